//! Unknown and known users look the same from outside, and all users to the exit: in what is said, how long it is and how often
//! it goes back and forth.

use std::string::String;
use std::vec::Vec;

use crate::auth::challenge::Challenge;
use crate::auth::client::Act;
use crate::auth::message::{Content, Message, Request};
use crate::auth::testing::{Line, Said, World, name, password, session_secret};

/// Everything that somebody without the password sees who tries `username`: frames' lengths, and what is in the replies.
fn tried(world: &mut World, username: &str, key: usize) -> (Vec<usize>, Vec<String>) {
    let mut session = world.session(username, key);
    let (mut lengths, mut said) = (Vec::new(), Vec::new());
    for _ in 0..8 {
        let mut line = world.line();
        let reply = line.begin(world, &mut session);
        said.push(std::format!("{reply:?}"));
        if reply == Said::Challenged {
            let challenge = line.client.challenge().unwrap();
            assert!(Challenge::parse(challenge.as_str(), &name(username)).is_some());
            line.client.answer(&session, &password(9), &mut line.frame).unwrap();
            let reply = line.round(world, &mut session);
            said.push(std::format!("{:?}", reply.unwrap()));
        }
        for act in [Act::Read, Act::Write(b"x")] {
            let reply = line.act(world, &mut session, act);
            said.push(std::format!("{reply:?}"));
        }
        let reply = line.disconnect(world, &mut session);
        said.push(std::format!("{reply:?}"));
        let unasked = Message::unsigned(name(username), Request::Challenge, Content::Raw(b"x"));
        said.push(std::format!("{:?}", raw(&mut line, world, &unasked)));
        for message in bad_sign_ups(username) {
            said.push(std::format!("{:?}", raw(&mut line, world, &message)));
        }
        lengths.extend(line.sent.iter().map(Vec::len));
    }
    (lengths, said)
}

fn raw(line: &mut Line, world: &mut World, message: &Message<'_>) -> Said {
    line.client.send_raw(message, &mut line.frame);
    let (_, mut reply) = line.carry(world).unwrap();
    line.client.open_raw(&mut reply[2..])
}

/// Without a signature, and without a key.
fn bad_sign_ups(username: &str) -> [Message<'static>; 2] {
    static CONTENT: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let content = CONTENT.get_or_init(|| [&[1; 32][..], &session_secret(2).public().to_der()].concat());
    [&content[..], &content[..32]]
        .map(|content| Message::unsigned(name(username), Request::SignUp, Content::Raw(content)))
}

/// What tells that a name is taken tells nothing more.
#[test]
fn all_taken_names_look_alike() {
    let refused = |world: &mut World| {
        let mut line = world.line();
        let said = line.sign_up(world, &mut world.session("alice", 3), 7);
        (said, line.sent.iter().map(Vec::len).collect::<Vec<_>>())
    };
    let mut world = World::with_alice();
    let registered = refused(&mut world);
    let mut alice = world.session("alice", 1);
    world.line().sign_in(&mut world, &mut alice, 1);
    let connected = refused(&mut world);
    world.line().disconnect(&mut world, &mut alice);
    assert_eq!(registered.0, crate::auth::Status::NameTaken);
    assert_eq!(registered, connected);
    assert_eq!(registered, refused(&mut world));
    // A free one is answered with as many bytes.
    assert_eq!(refused(&mut World::new()), (crate::auth::Status::SignedUp, registered.1));
}

#[test]
fn unknown_registered_and_connected_users_look_alike() {
    // In three worlds with the same time, so that nothing but the user differs.
    let unknown = tried(&mut World::with_alice(), "mallo", 2);
    let registered = tried(&mut World::with_alice(), "alice", 2);
    let mut world = World::with_alice();
    let mut alice = world.session("alice", 1);
    assert!(matches!(world.line().sign_in(&mut world, &mut alice, 1), crate::auth::Status::SignedIn(_)));
    let connected = tried(&mut world, "alice", 2);
    assert_eq!(unknown, registered);
    assert_eq!(unknown, connected);
    // Waits are among what was seen.
    assert!(unknown.1.iter().any(|said| said.contains("RetryAfter")));
}

/// Counters are in the challenges, but nobody can tell.
#[test]
fn challenges_do_not_count_for_others() {
    let world = &mut World::with_alice();
    let mut alice = world.session("alice", 1);
    let mut stranger = world.session("alice", 2);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..20 {
        let mut line = world.line();
        line.begin(world, &mut stranger);
        let challenge = line.client.challenge().unwrap();
        let counter = String::from(&challenge.as_str()["bonjour_alice_".len()..][..16]);
        assert!(seen.insert(counter));
        world.line().sign_in(world, &mut alice, 1);
        world.line().disconnect(world, &mut alice);
    }
}

#[test]
fn frames_show_nothing() {
    let world = &mut World::new();
    let long = "x".repeat(64);
    let mut lengths = Vec::new();
    for (username, key) in [("alice", 1), (long.as_str(), 2)] {
        let mut session = world.session(username, key);
        let mut line = world.line();
        line.sign_up(world, &mut session, 1);
        line.sign_in(world, &mut session, 1);
        line.act(world, &mut session, Act::Write(b"a note of some length"));
        line.act(world, &mut session, Act::Read);
        line.disconnect(world, &mut session);
        let der = session.public().to_der();
        let contents: [&[u8]; 9] = [
            username.as_bytes(),
            b"bonjour",
            b"sign_",
            b"challenge",
            b"disconnect",
            b"note",
            b"log",
            &[1; 32],
            &der[33..65],
        ];
        for frame in &line.sent {
            for content in contents {
                // Three bytes turn up by chance; five do not, in 20 KB.
                let shown = content.len() >= 4 && frame.windows(content.len()).any(|window| window == content);
                assert!(!shown);
            }
        }
        lengths.push(line.sent.iter().map(Vec::len).collect::<Vec<_>>());
    }
    assert_eq!(lengths[0], lengths[1]);
    assert!(lengths[0][1..].iter().all(|&len| len == 1554));
}
