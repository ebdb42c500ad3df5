//! What others try.

use core::time::Duration;

use crate::auth::challenge::Challenge;
use crate::auth::client::{self, Act, ClientError};
use crate::auth::envelope::{ChannelFailed, Frame, Greeting, LENGTH_LEN};
use crate::auth::message::{Content, Message, Request};
use crate::auth::server::{Answered, CHALLENGE_LIFE};
use crate::auth::status::{SessionNumber, Status};
use crate::auth::testing::{Said, World, deliver, name, password, server_key, session_secret};
use crate::auth::throttle::{WRONG_ANSWER_WAIT, WRONG_ANSWERS_FREE};
use crate::crypto::testing::rng;

const REFUSED: Said = Said::Log(Status::Refused);

fn signed_in_alice(world: &mut World) -> client::Session {
    let mut alice = world.session("alice", 1);
    assert!(matches!(world.line().sign_in(world, &mut alice, 1), Status::SignedIn(_)));
    alice
}

#[test]
fn a_challenge_is_answered_once() {
    let world = &mut World::with_alice();
    let mut alice = world.session("alice", 1);
    let mut line = world.line();
    assert_eq!(line.begin(world, &mut alice), Said::Challenged);
    let challenge = line.challenge();
    assert_eq!(line.raw_answer(world, &alice, "alice", &challenge), Status::SignedIn(SessionNumber(1)));
    assert_eq!(line.raw_answer(world, &alice, "alice", &challenge), Status::Refused);
    // Also a wrong answer uses it up.
    assert_eq!(world.line().disconnect(world, &mut alice), Status::Disconnected);
    assert_eq!(line.begin(world, &mut alice), Said::Challenged);
    let challenge = line.challenge();
    assert_eq!(line.raw_answer(world, &world.session("alice", 2), "alice", &challenge), Status::Refused);
    assert_eq!(line.raw_answer(world, &alice, "alice", &challenge), Status::Refused);
    // And another sign-in on the same connection.
    assert_eq!(line.begin(world, &mut alice), Said::Challenged);
    let challenge = line.challenge();
    assert_eq!(line.begin(world, &mut alice), Said::Challenged);
    assert_eq!(line.raw_answer(world, &alice, "alice", &challenge), Status::Refused);
}

#[test]
fn a_challenge_expires() {
    let world = &mut World::with_alice();
    let mut alice = world.session("alice", 1);
    let life = CHALLENGE_LIFE.as_millis() as u64;
    for (wait, status) in [(life + 1, Status::Refused), (life, Status::SignedIn(SessionNumber(1)))] {
        let mut line = world.line();
        assert_eq!(line.begin(world, &mut alice), Said::Challenged);
        world.pass(wait);
        line.client.answer(&alice, &password(1), &mut line.frame).unwrap();
        assert_eq!(line.round(world, &mut alice), Ok(Said::Log(status)));
    }
}

#[test]
fn a_challenge_is_for_one_user_connection_and_session() {
    let world = &mut World::with_alice();
    let mut bob = world.session("bob", 2);
    // The same password, so that nothing but the names differs.
    assert_eq!(world.line().sign_up(world, &mut bob, 1), Status::SignedUp);
    let mut alice = world.session("alice", 1);
    let (mut line, mut other) = (world.line(), world.line());
    assert_eq!(line.begin(world, &mut alice), Said::Challenged);
    let challenge = line.challenge();
    assert_eq!(line.raw_answer(world, &alice, "bob", &challenge), Status::Refused);
    // On a connection without a challenge, and on one with a challenge of its own.
    assert_eq!(other.raw_answer(world, &alice, "alice", &challenge), Status::Refused);
    assert_eq!(other.begin(world, &mut alice), Said::Challenged);
    assert_eq!(other.raw_answer(world, &alice, "alice", &challenge), Status::Refused);
    assert_eq!(world.users.writes, 2);
}

/// Whoever answers in alice's place, with her right answer to the same text, made for another connection: what a server in
/// the middle would have.
#[test]
fn an_answer_coaxed_out_elsewhere_is_worth_nothing() {
    let world = &mut World::with_alice();
    let mut thief = world.session("alice", 2);
    let mut line = world.line();
    assert_eq!(line.begin(world, &mut thief), Said::Challenged);
    let challenge = line.challenge();
    let elsewhere = world.line();
    let answer = challenge.answer(&password(1), elsewhere.client.binding(), &session_secret(2).public());
    assert_eq!(line.raw(world, Request::Challenge, "alice", Content::Raw(answer.as_ref())), Status::Refused);
}

#[test]
fn many_observed_exchanges_answer_no_other_challenge() {
    let world = &mut World::with_alice();
    let mut alice = world.session("alice", 1);
    let mut answers = std::vec::Vec::new();
    let line = &mut world.line();
    for _ in 0..40 {
        assert_eq!(line.begin(world, &mut alice), Said::Challenged);
        let challenge = line.challenge();
        let answer = challenge.answer(&password(1), line.client.binding(), &session_secret(1).public());
        answers.push((challenge, answer));
        assert!(matches!(line.raw_answer(world, &alice, "alice", &answers[answers.len() - 1].0), Status::SignedIn(_)));
        assert_eq!(line.disconnect(world, &mut alice), Status::Disconnected);
    }
    let writes = world.users.writes;
    for (round, (old, answer)) in answers.iter().enumerate() {
        world.pass(WRONG_ANSWER_WAIT.as_millis() as u64);
        assert_eq!(line.begin(world, &mut alice), Said::Challenged);
        let challenge = line.challenge();
        assert!(challenge != *old);
        // The old answer, and the old keystream laid over the new challenge.
        let mut forged = answer.as_ref().to_vec();
        let texts = old.as_str().bytes().zip(challenge.as_str().bytes());
        forged[16..].iter_mut().zip(texts).for_each(|(byte, (old, new))| *byte ^= old ^ new);
        let sent = if round % 2 == 0 { answer.as_ref() } else { &forged };
        assert_eq!(line.raw(world, Request::Challenge, "alice", Content::Raw(sent)), Status::Refused);
    }
    assert_eq!(world.users.writes, writes);
}

#[test]
fn recorded_frames_sent_again_do_nothing() {
    let world = &mut World::with_alice();
    let mut alice = world.session("alice", 1);
    let mut recorded = std::vec::Vec::new();
    let mut line = world.line();
    assert!(matches!(line.sign_in(world, &mut alice, 1), Status::SignedIn(_)));
    recorded.append(&mut line.sent);
    let mut line = world.line();
    assert_eq!(line.act(world, &mut alice, Act::Write(b"old")), Said::Log(Status::NoteKept));
    recorded.append(&mut line.sent);
    let mut line = world.line();
    assert_eq!(line.disconnect(world, &mut alice), Status::Disconnected);
    recorded.append(&mut line.sent);
    // The same sessions' keys are in use again, so nothing but the frames is old.
    signed_in_alice(world);
    assert_eq!(world.line().act(world, &mut alice, Act::Write(b"new")), Said::Log(Status::NoteKept));

    let stored = world.users.records.clone();
    for frame in &recorded {
        let (mut server, _) = world.server.greet(&mut world.rng);
        assert_eq!(deliver(&mut server, world, frame).err(), Some(ChannelFailed));
        // And behind a good first frame.
        let mut line = world.line();
        assert_eq!(line.act(world, &mut alice, Act::Read), Said::Note(b"new".to_vec()));
        assert_eq!(deliver(&mut line.server, world, frame).err(), Some(ChannelFailed));
        // A connection that failed stays closed.
        line.client.act(&alice, Act::Read, &mut world.rng, &mut line.frame).unwrap();
        assert_eq!(line.carry(world).err(), Some(ChannelFailed));
    }
    assert!(world.users.records == stored);
}

/// The messages themselves, signatures and all, put into new envelopes: what a thief of the channel's keys could do.
#[test]
fn signed_messages_do_not_travel_to_another_connection() {
    let world = &mut World::with_alice();
    let mut alice = signed_in_alice(world);
    let line = world.line();
    let secret = session_secret(1);
    for (request, content) in [
        (Request::Disconnect, Content::Raw(&b""[..])),
        (Request::Act, Content::Raw(b"write:x")),
        (Request::Act, Content::Text("read")),
        (Request::SignIn, Content::Key(secret.public())),
        (Request::SignUp, Content::Raw(&sign_up_content(1, &secret.public().to_der()))),
    ] {
        let message =
            Message::signed(name("alice"), request, content, &secret, line.client.binding(), &mut world.rng).unwrap();
        let mut other = world.line();
        assert_eq!(other.raw_message(world, &message), Said::Log(Status::Refused), "{request:?}");
    }
    assert_eq!(world.line().begin(world, &mut alice), Said::Log(Status::AlreadySignedIn(SessionNumber(1))));
}

#[test]
fn unsigned_and_misattributed_messages_do_nothing() {
    let world = &mut World::with_alice();
    signed_in_alice(world);
    let mut bob = world.session("bob", 2);
    assert_eq!(world.line().sign_up(world, &mut bob, 2), Status::SignedUp);
    assert!(matches!(world.line().sign_in(world, &mut bob, 2), Status::SignedIn(_)));
    let stored = world.users.records.clone();
    let line = &mut world.line();
    for (request, content) in [
        (Request::Disconnect, Content::Raw(&b""[..])),
        (Request::Act, Content::Text("read")),
        (Request::Act, Content::Raw(b"write:x")),
    ] {
        let unsigned = Message::unsigned(name("alice"), request, content.clone());
        assert_eq!(line.raw_message(world, &unsigned), REFUSED);
        let bobs =
            Message::signed(name("alice"), request, content, &session_secret(2), line.client.binding(), &mut world.rng);
        assert_eq!(line.raw_message(world, &bobs.unwrap()), REFUSED);
    }
    // A sign-in with somebody else's key: it would name the owner's session and is known to be theirs.
    let key = Content::Key(session_secret(1).public());
    let stolen =
        Message::signed(name("alice"), Request::SignIn, key, &session_secret(2), line.client.binding(), &mut world.rng);
    assert_eq!(line.raw_message(world, &stolen.unwrap()), REFUSED);
    assert!(world.users.records == stored);
}

#[test]
fn beginning_to_sign_in_disturbs_nobody() {
    let world = &mut World::with_alice();
    let mut alice = signed_in_alice(world);
    let stored = world.users.records.clone();
    let mut lines = std::vec::Vec::new();
    for _ in 0..20 {
        let mut line = world.line();
        assert_eq!(line.begin(world, &mut world.session("alice", 2)), Said::Challenged);
        lines.push(line);
    }
    for line in &mut lines {
        line.client.answer(&world.session("alice", 2), &password(9), &mut line.frame).unwrap();
        line.carry(world).unwrap();
    }
    assert!(world.users.records == stored);
    assert_eq!(world.line().act(world, &mut alice, Act::Write(b"mine")), Said::Log(Status::NoteKept));
    assert_eq!(world.line().disconnect(world, &mut alice), Status::Disconnected);
}

/// The signature of a user without a session is checked against the server's key: its holder gains nothing by that.
#[test]
fn the_servers_own_key_signs_for_nobody() {
    let world = &mut World::with_alice();
    let stored = world.users.records.clone();
    for user in ["alice", "nobody-known"] {
        for (request, content) in [
            (Request::Act, Content::Text("read")),
            (Request::Act, Content::Raw(b"write:forged")),
            (Request::Disconnect, Content::Raw(b"")),
        ] {
            let line = &mut world.line();
            let servers = session_secret(0);
            assert!(servers.public() == server_key());
            let binding = line.client.binding();
            let message = Message::signed(name(user), request, content, &servers, binding, &mut world.rng).unwrap();
            assert_eq!(line.raw_message(world, &message), REFUSED, "{user}, {message:?}");
        }
    }
    assert!(world.users.records == stored);
}

/// The content of a sign-up: this password key, and the DER of a session's key.
fn sign_up_content(key: u8, der: &[u8]) -> std::vec::Vec<u8> {
    [&[key; 32][..], der].concat()
}

#[test]
fn a_sign_up_is_made_by_the_holder_of_its_session_key() {
    let world = &mut World::new();
    let line = &mut world.line();
    let (own, others) = (session_secret(2), session_secret(1).public());
    let content = sign_up_content(1, &others.to_der());
    let content = Content::Raw(&content);
    let unsigned = Message::unsigned(name("bob"), Request::SignUp, content.clone());
    assert_eq!(line.raw_message(world, &unsigned), REFUSED);
    let binding = line.client.binding();
    let message = Message::signed(name("bob"), Request::SignUp, content, &own, binding, &mut world.rng).unwrap();
    assert_eq!(line.raw_message(world, &message), REFUSED);
    // Signed for other content.
    let content = sign_up_content(1, &own.public().to_der());
    let signed = Content::Raw(&content);
    let message =
        Message::signed(name("bob"), Request::SignUp, signed, &own, line.client.binding(), &mut world.rng).unwrap();
    let content = sign_up_content(2, &own.public().to_der());
    let changed = Message { content: Content::Raw(&content), ..message.clone() };
    assert_eq!(line.raw_message(world, &changed), REFUSED);
    assert!(world.users.records.is_empty());
    assert_eq!(line.raw_message(world, &message), Said::Log(Status::SignedUp));
}

#[test]
fn strangers_do_not_keep_a_fresh_account_out() {
    let world = &mut World::new();
    let mut owner = world.session("alice", 1);
    assert_eq!(world.line().sign_up(world, &mut owner, 1), Status::SignedUp);
    // Strangers use up what they have, before the owner has ever signed in.
    let mut stranger = world.session("alice", 2);
    while world.line().sign_in(world, &mut stranger, 9) == Status::Refused {}
    assert!(matches!(world.line().sign_in(world, &mut stranger, 1), Status::RetryAfter(_)));
    assert_eq!(world.line().sign_in(world, &mut owner, 1), Status::SignedIn(SessionNumber(1)));
    // Whoever is refused because the name is taken gets no place among the known keys.
    assert_eq!(world.line().sign_up(world, &mut stranger, 9), Status::NameTaken);
    assert!(matches!(world.line().sign_in(world, &mut stranger, 1), Status::RetryAfter(_)));
}

#[test]
fn a_known_name_cannot_be_signed_up_again() {
    let world = &mut World::with_alice();
    let mut alice = signed_in_alice(world);
    for key in [1, 2] {
        assert_eq!(world.line().sign_up(world, &mut world.session("alice", 2), key), Status::NameTaken);
    }
    assert_eq!(world.line().disconnect(world, &mut alice), Status::Disconnected);
    assert_eq!(world.line().sign_up(world, &mut world.session("alice", 2), 2), Status::NameTaken);
    assert_eq!(world.line().sign_in(world, &mut world.session("alice", 2), 2), Status::Refused);
    assert!(matches!(world.line().sign_in(world, &mut alice, 1), Status::SignedIn(_)));
}

#[test]
fn guessing_is_slowed_for_strangers_and_not_for_the_owner() {
    let world = &mut World::with_alice();
    let mut owner = signed_in_alice(world);
    assert_eq!(world.line().disconnect(world, &mut owner), Status::Disconnected);
    let mut thief = world.session("alice", 2);
    // A hundred sign-ins begun at once gain nothing over one after another.
    let mut lines: std::vec::Vec<_> = (0..100).map(|_| world.line()).collect();
    for line in &mut lines {
        assert_eq!(line.begin(world, &mut thief), Said::Challenged);
    }
    let mut counts = (0, 0);
    for line in &mut lines {
        line.client.answer(&thief, &password(9), &mut line.frame).unwrap();
        match line.round(world, &mut thief).unwrap() {
            REFUSED => counts.0 += 1,
            Said::Log(Status::RetryAfter(30)) => counts.1 += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(counts, (WRONG_ANSWERS_FREE, 100 - WRONG_ANSWERS_FREE));
    // Not even the right answer, from there and now; the owner's own computer is not held up.
    assert_eq!(world.line().sign_in(world, &mut thief, 1), Status::RetryAfter(30));
    assert!(matches!(world.line().sign_in(world, &mut owner, 1), Status::SignedIn(_)));
    assert_eq!(world.line().disconnect(world, &mut owner), Status::Disconnected);
    // And for a new computer it ends.
    let mut new = world.session("alice", 3);
    world.pass(WRONG_ANSWER_WAIT.as_millis() as u64 - 1500);
    assert_eq!(world.line().sign_in(world, &mut new, 1), Status::RetryAfter(2));
    world.pass(1500);
    assert!(matches!(world.line().sign_in(world, &mut new, 1), Status::SignedIn(_)));
    // The owner's own wrong answers are slowed as well.
    assert_eq!(world.line().disconnect(world, &mut new), Status::Disconnected);
    for _ in 0..WRONG_ANSWERS_FREE {
        assert_eq!(world.line().sign_in(world, &mut owner, 9), Status::Refused);
    }
    assert!(matches!(world.line().sign_in(world, &mut owner, 1), Status::RetryAfter(1..)));
    world.now = world.now.after(Duration::from_secs(3600));
    assert!(matches!(world.line().sign_in(world, &mut owner, 1), Status::SignedIn(_)));
}

#[test]
fn without_the_servers_key_only_that_is_told() {
    let world = &mut World::with_alice();
    let requests = [
        Message::unsigned(name("bob"), Request::SignUp, Content::Raw(&[1; 326])),
        Message::unsigned(name("alice"), Request::Disconnect, Content::Raw(&[])),
        Message::unsigned(name("alice"), Request::Log, Content::Text("201 signed up")),
    ];
    for message in requests {
        let (mut server, greeting) = world.server.greet(&mut world.rng);
        let greeting = Greeting::parse(&greeting).unwrap();
        let (mut channel, opening) = crate::auth::envelope::Channel::connect(&greeting, None, &mut world.rng).unwrap();
        let mut frame = Frame::new();
        channel.seal(&message, Some(&opening), &mut frame).unwrap();
        let (answered, _) = deliver(&mut server, world, frame.as_ref()).unwrap();
        assert_eq!(answered, Answered::Log(Status::NotUnderstood));
    }
    assert_eq!(world.users.records.len(), 1);
}

#[test]
fn messages_out_of_place_are_answered_and_the_connection_goes_on() {
    let world = &mut World::with_alice();
    let mut alice = signed_in_alice(world);
    let line = &mut world.line();
    let key = Content::Key(session_secret(1).public());
    let not_understood = Said::Log(Status::NotUnderstood);
    let der = session_secret(1).public().to_der();
    let sign_up = sign_up_content(1, &der);
    let mut der_of_another_kind = der;
    der_of_another_kind[0] ^= 1;
    for (request, content) in [
        (Request::Log, Content::Text("201 signed up")),
        (Request::SignUp, Content::Raw(&[])),
        (Request::SignUp, Content::Raw(&[1; 32])),
        (Request::SignUp, Content::Raw(&sign_up[..325])),
        (Request::SignUp, Content::Raw(&[&sign_up[..], &[0]].concat())),
        (Request::SignUp, Content::Raw(&sign_up_content(1, &der_of_another_kind))),
        (Request::SignUp, Content::Text(core::str::from_utf8(&[b'0'; 326]).unwrap())),
        (Request::SignUp, key.clone()),
        (Request::SignIn, Content::Raw(b"")),
        (Request::Challenge, key.clone()),
        (Request::Act, Content::Text("Read")),
        (Request::Act, Content::Text("write:x")),
        (Request::Act, Content::Raw(b"read")),
        (Request::Act, Content::Raw(&[b"write:".as_slice(), &[0; 1025]].concat())),
        (Request::Disconnect, Content::Text("")),
        (Request::Disconnect, Content::Raw(b"x")),
        (Request::PublicKey, key),
    ] {
        let message =
            Message::signed(name("alice"), request, content, &session_secret(1), line.client.binding(), &mut world.rng)
                .unwrap();
        assert_eq!(line.raw_message(world, &message), not_understood, "{message:?}");
    }
    assert_eq!(line.disconnect(world, &mut alice), Status::Disconnected);
}

#[test]
fn whatever_a_client_sends_the_server_does_not_panic() {
    use rand_core::Rng;
    let world = &mut World::new();
    let mut noise = rng(5);
    for round in 0..60 {
        let (mut server, _) = world.server.greet(&mut world.rng);
        let mut frame = std::vec![0; [1843, 1587][round % 2]];
        noise.fill_bytes(&mut frame);
        let len = (frame.len() - LENGTH_LEN) as u16;
        frame[..2].copy_from_slice(&len.to_be_bytes());
        frame[2] = [1, 2, 3, 0][round % 4];
        assert_eq!(deliver(&mut server, world, &frame).err(), Some(ChannelFailed));
    }
    // Text of another protocol is seen through at its second byte.
    for start in [b"GE", b"\x16\x03", b"0:", b"\0\0", b"\xff\xff"] {
        let (mut server, _) = world.server.greet(&mut world.rng);
        assert_eq!(server.frame_len(*start), Err(ChannelFailed));
        assert_eq!(server.frame_len(1841u16.to_be_bytes()), Err(ChannelFailed));
    }
}

/// Somebody with another key in the server's place.
#[test]
fn another_server_reads_nothing() {
    let world = &mut World::new();
    let (mut impostor, greeting) = {
        let secret = crate::auth::key::ServerSecret::from_pkcs8(crate::crypto::testing::RSA_KEYS[1]).unwrap();
        let server = crate::auth::Server::new(secret, crate::auth::KdfParameters::FLOOR, [], &mut world.rng);
        let (connection, greeting) = server.greet(&mut world.rng);
        ((server, connection), greeting)
    };
    let greeting = Greeting::parse(&greeting).unwrap();
    let mut client = client::Connection::new(&greeting, &server_key(), &mut world.rng).unwrap();
    let mut session = world.session("alice", 1);
    let mut frame = Frame::new();
    client.sign_up(&session, &password(1), &mut world.rng, &mut frame).unwrap();
    let mut body = frame.as_ref()[LENGTH_LEN..].to_vec();
    let received = impostor.1.receive(&impostor.0, &mut body, &mut world.rng);
    assert_eq!(received.err(), Some(ChannelFailed));
    // Nor can it reply.
    let mut forged = frame.as_ref()[frame.as_ref().len() - 1552..].to_vec();
    assert_eq!(client.handle(&mut session, &mut forged), Err(ClientError::Channel(ChannelFailed)));
}

impl crate::auth::testing::Line {
    /// The challenge that the client has just been given.
    fn challenge(&self) -> Challenge {
        self.client.challenge().unwrap()
    }

    /// A message as it stands, whatever the client's state.
    fn raw_message(&mut self, world: &mut World, message: &Message<'_>) -> Said {
        self.client.send_raw(message, &mut self.frame);
        let (_, mut reply) = self.carry(world).unwrap();
        self.client.open_raw(&mut reply[LENGTH_LEN..])
    }

    fn raw(&mut self, world: &mut World, request: Request, username: &str, content: Content<'_>) -> Status {
        match self.raw_message(world, &Message::unsigned(name(username), request, content)) {
            Said::Log(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// The right answer of `session` with password 1 to `challenge`, in the name of `username`.
    fn raw_answer(
        &mut self,
        world: &mut World,
        session: &client::Session,
        username: &str,
        challenge: &Challenge,
    ) -> Status {
        let answer = challenge.answer(&password(1), self.client.binding(), &session.public());
        self.raw(world, Request::Challenge, username, Content::Raw(answer.as_ref()))
    }
}
