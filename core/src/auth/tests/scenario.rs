//! What honest users do.

use std::vec;

use crate::auth::Users;
use crate::auth::client::{Act, Discovery, Standing};
use crate::auth::envelope::{Frame, Greeting, LENGTH_LEN};
use crate::auth::record::{Presence, UserRecord};
use crate::auth::status::{SessionNumber, Status};
use crate::auth::testing::{Said, World, deliver, name, password};

const fn signed_in(number: u64) -> Status {
    Status::SignedIn(SessionNumber(number))
}

/// The scenario of the design this one grew from, with the impostor and the second computer.
#[test]
fn the_seed_scenario() {
    let world = &mut World::new();
    let (mut first, mut second, mut impostor) =
        (world.session("alice", 1), world.session("alice", 2), world.session("alice", 3));

    assert_eq!(world.line().sign_up(world, &mut first, 1), Status::SignedUp);
    assert_eq!(world.line().sign_in(world, &mut first, 1), signed_in(1));
    // An impostor on another node.
    assert_eq!(world.line().disconnect(world, &mut impostor), Status::Refused);
    assert_eq!(world.line().act(world, &mut impostor, Act::Read), Said::Log(Status::Refused));
    assert_eq!(world.line().sign_in(world, &mut impostor, 2), Status::Refused);
    // Again while connected: no password needed.
    assert_eq!(world.line().begin(world, &mut first), Said::Log(Status::AlreadySignedIn(SessionNumber(1))));
    assert_eq!(world.line().disconnect(world, &mut first), Status::Disconnected);
    // A second computer.
    assert_eq!(world.line().sign_in(world, &mut first, 1), signed_in(2));
    assert_eq!(world.line().act(world, &mut first, Act::Write(b"from the first")), Said::Log(Status::NoteKept));
    assert_eq!(world.line().sign_in(world, &mut second, 1), signed_in(3));
    // The first one is outdated now.
    assert_eq!(first.standing(), Standing::SignedIn(SessionNumber(2)));
    assert_eq!(world.line().disconnect(world, &mut first), Status::Refused);
    assert_eq!(first.standing(), Standing::SignedOut);
    assert_eq!(world.line().act(world, &mut first, Act::Write(b"too late")), Said::Log(Status::Refused));
    assert_eq!(world.line().act(world, &mut second, Act::Read), Said::Note(b"from the first".to_vec()));
    assert_eq!(world.line().sign_in(world, &mut first, 9), Status::Refused);
    assert_eq!(world.line().disconnect(world, &mut second), Status::Disconnected);
    assert_eq!(world.line().disconnect(world, &mut second), Status::Refused);
}

#[test]
fn one_connection_may_carry_it_all() {
    let world = &mut World::new();
    let (mut alice, mut bob) = (world.session("alice", 1), world.session("bob", 2));
    let line = &mut world.line();
    assert_eq!(line.sign_up(world, &mut alice, 1), Status::SignedUp);
    assert_eq!(line.sign_up(world, &mut alice, 1), Status::NameTaken);
    assert_eq!(line.sign_up(world, &mut bob, 2), Status::SignedUp);
    assert_eq!(line.sign_in(world, &mut alice, 1), signed_in(1));
    assert_eq!(line.sign_in(world, &mut bob, 2), signed_in(1));
    for note in [vec![0; 1024], b"a:b:c::\xff".to_vec(), vec![]] {
        for session in [&mut alice, &mut bob] {
            assert_eq!(line.act(world, session, Act::Write(&note)), Said::Log(Status::NoteKept));
            assert_eq!(line.act(world, session, Act::Read), Said::Note(note.clone()));
        }
    }
    assert_eq!(line.disconnect(world, &mut alice), Status::Disconnected);
    assert_eq!(line.act(world, &mut alice, Act::Read), Said::Log(Status::Refused));
    assert_eq!(line.act(world, &mut bob, Act::Read), Said::Note(vec![]));
}

#[test]
fn the_servers_key_is_found() {
    let world = &mut World::new();
    let (mut server, greeting) = world.server.greet(&mut world.rng);
    let greeting = Greeting::parse(&greeting).unwrap();
    let mut frame = Frame::new();
    let discovery = Discovery::new(&greeting, &mut world.rng, &mut frame).unwrap();
    let (_, mut reply) = deliver(&mut server, world, frame.as_ref()).unwrap();
    assert_eq!(discovery.frame_len([reply[0], reply[1]]), Ok(reply.len() - LENGTH_LEN));
    assert_eq!(discovery.handle(&mut reply[LENGTH_LEN..]), Ok(world.server.public().clone()));
}

#[test]
fn failing_storage_changes_nothing_and_is_said() {
    let world = &mut World::with_alice();
    let mut alice = world.session("alice", 1);
    let mut line = world.line();
    assert_eq!(line.begin(world, &mut alice), Said::Challenged);
    world.users.broken = true;
    line.client.answer(&alice, &password(1), &mut line.frame).unwrap();
    assert_eq!(line.round(world, &mut alice), Ok(Said::Log(Status::Unavailable)));
    let mut bob = world.session("bob", 2);
    assert_eq!(line.sign_up(world, &mut bob, 2), Status::Unavailable);
    assert_eq!(line.sign_in(world, &mut alice, 1), Status::Unavailable);
    assert_eq!(line.act(world, &mut alice, Act::Read), Said::Log(Status::Unavailable));
    assert_eq!(line.disconnect(world, &mut alice), Status::Unavailable);
    world.users.broken = false;
    assert_eq!(line.sign_up(world, &mut bob, 2), Status::SignedUp);
    assert_eq!(line.sign_in(world, &mut alice, 1), signed_in(1));
}

/// The stored record of alice, changed by `change`, stored by somebody else just before the next change.
fn race(world: &mut World, change: impl Fn(&UserRecord) -> UserRecord) {
    let record = world.users.load(&name("alice")).unwrap().unwrap();
    world.users.races.push(change(&record));
}

#[test]
fn changes_at_once_all_count() {
    let world = &mut World::with_alice();
    let mut alice = world.session("alice", 1);
    let other = crate::auth::testing::session_secret(2).public();
    // Another sign-in ends just before this one.
    race(world, |record| record.connected(&other).unwrap());
    assert_eq!(world.line().sign_in(world, &mut alice, 1), signed_in(2));
    // A note comes in between two others of the same session.
    race(world, |record| record.with_note(b"first").unwrap());
    assert_eq!(world.line().act(world, &mut alice, Act::Write(b"second")), Said::Log(Status::NoteKept));
    assert_eq!(world.line().act(world, &mut alice, Act::Read), Said::Note(b"second".to_vec()));
    // Another session begins while this one writes or disconnects: it is no longer its to do.
    race(world, |record| record.connected(&other).unwrap());
    assert_eq!(world.line().act(world, &mut alice, Act::Write(b"third")), Said::Log(Status::Refused));
    assert_eq!(world.line().sign_in(world, &mut alice, 1), signed_in(4));
    race(world, |record| record.connected(&other).unwrap());
    assert_eq!(world.line().disconnect(world, &mut alice), Status::Refused);
    let record = world.users.load(&name("alice")).unwrap().unwrap();
    assert!(*record.presence() == Presence::Connected(other));
    assert_eq!((record.sessions(), record.note()), (SessionNumber(5), &b"second"[..]));
}

#[test]
fn an_answer_is_judged_again_by_what_was_stored_meanwhile() {
    let world = &mut World::with_alice();
    let mut alice = world.session("alice", 1);
    // Somebody else has become alice, with another password, while the answer was judged.
    let other = crate::auth::testing::session_secret(2).public();
    let anew = UserRecord::new(name("alice"), password(2), &other);
    race(world, |_| anew.connected(&other).unwrap());
    assert_eq!(world.line().sign_in(world, &mut alice, 1), Status::Refused);
    assert!(*world.users.load(&name("alice")).unwrap().unwrap().presence() == Presence::Connected(other));
}

#[test]
fn whoever_always_comes_too_late_is_told_so_and_the_server_goes_on() {
    let world = &mut World::with_alice();
    let mut alice = world.session("alice", 1);
    assert_eq!(world.line().sign_in(world, &mut alice, 1), signed_in(1));
    let crowd = |world: &mut World| {
        // Others store something just before each attempt, however many there are.
        let mut record = world.users.load(&name("alice")).unwrap().unwrap();
        let faster = (0..100u8).map(|number| {
            record = record.with_note(&[number]).unwrap();
            record.clone()
        });
        world.users.races = faster.collect();
        world.users.races.reverse();
    };
    crowd(world);
    let writes = world.users.writes;
    assert_eq!(world.line().act(world, &mut alice, Act::Write(b"mine")), Said::Log(Status::Unavailable));
    crowd(world);
    let mut again = world.session("alice", 3);
    assert_eq!(world.line().sign_in(world, &mut again, 1), Status::Unavailable);
    assert_eq!(world.users.writes, writes, "nothing was stored over what others had stored");
    world.users.races.clear();
    assert_eq!(world.line().sign_in(world, &mut again, 1), signed_in(2));
}

#[test]
fn connections_do_not_share_challenges() {
    let world = &mut World::with_alice();
    let (mut one, mut two) = (world.session("alice", 1), world.session("alice", 2));
    let (mut first, mut second) = (world.line(), world.line());
    // Both begin, then both answer, the later one first: each in turn is the user's session.
    assert_eq!(first.begin(world, &mut one), Said::Challenged);
    assert_eq!(second.begin(world, &mut two), Said::Challenged);
    second.client.answer(&two, &password(1), &mut second.frame).unwrap();
    assert_eq!(second.round(world, &mut two), Ok(Said::Log(signed_in(1))));
    first.client.answer(&one, &password(1), &mut first.frame).unwrap();
    assert_eq!(first.round(world, &mut one), Ok(Said::Log(signed_in(2))));
    assert_eq!(second.act(world, &mut two, Act::Read), Said::Log(Status::Refused));
}
