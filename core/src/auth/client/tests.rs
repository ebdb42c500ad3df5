use super::*;
use crate::auth::testing::{Said, World, name, password, server_key, session_secret};
use crate::auth::{envelope::Greeter, password::KdfParameters};
use crate::crypto::testing::{RSA_KEYS, rng};

#[test]
fn sessions_survive_export() {
    let world = World::new();
    for (username, standing) in
        [("a", Standing::SignedOut), (&*"x".repeat(64), Standing::SignedIn(SessionNumber(u64::MAX)))]
    {
        let session = Session { standing, ..world.session(username, 1) };
        let bytes = session.export();
        let again = Session::import(bytes.as_ref()).unwrap();
        assert_eq!(
            (again.username(), again.server(), again.standing()),
            (session.username(), session.server(), standing)
        );
        assert_eq!(again.export().as_ref(), bytes.as_ref());
        for len in 0..bytes.as_ref().len() {
            assert!(Session::import(&bytes.as_ref()[..len]).is_err(), "{len}");
        }
        assert!(Session::import(&[bytes.as_ref(), &[0]].concat()).is_err());
        for (at, byte) in [(0, 2), (33, 2), (33, u8::from(standing == Standing::SignedOut) * 7 + 3), (42, 0), (42, 65)]
        {
            let mut bad = bytes.as_ref().to_vec();
            bad[at] = byte;
            assert!(Session::import(&bad).is_err(), "{at}");
        }
    }
}

#[test]
fn an_imported_session_goes_on() {
    let mut world = World::with_alice();
    let mut session = world.session("alice", 1);
    assert_eq!(world.line().sign_in(&mut world, &mut session, 1), Status::SignedIn(SessionNumber(1)));
    let mut session = Session::import(session.export().as_ref()).unwrap();
    assert_eq!(session.standing(), Standing::SignedIn(SessionNumber(1)));
    assert_eq!(world.line().act(&mut world, &mut session, Act::Write(b"x")), Said::Log(Status::NoteKept));
    assert_eq!(world.line().disconnect(&mut world, &mut session), Status::Disconnected);
    assert_eq!(session.standing(), Standing::SignedOut);
}

#[test]
fn requests_have_their_turn() {
    let mut world = World::with_alice();
    let mut session = world.session("alice", 1);
    let mut line = world.line();
    let answer = |line: &mut crate::auth::testing::Line, session: &Session| {
        line.client.answer(session, &password(1), &mut line.frame)
    };
    assert_eq!(answer(&mut line, &session), Err(ClientError::OutOfTurn));
    line.client.sign_in(&session, &mut world.rng, &mut line.frame).unwrap();
    assert_eq!(answer(&mut line, &session), Err(ClientError::OutOfTurn));
    assert_eq!(line.client.disconnect(&session, &mut world.rng, &mut line.frame), Err(ClientError::OutOfTurn));
    assert_eq!(line.round(&mut world, &mut session), Ok(Said::Challenged));
    let long = [0; NOTE_MAX_LEN + 1];
    let act = line.client.act(&session, Act::Write(&long), &mut world.rng, &mut line.frame);
    assert_eq!(act, Err(ClientError::NoteTooLong));
    let elsewhere = crate::auth::key::ServerSecret::from_pkcs8(RSA_KEYS[2]).unwrap().public();
    let stranger = Session::new(name("alice"), &elsewhere, session_secret(1));
    assert_eq!(answer(&mut line, &stranger), Err(ClientError::OtherServer));
    assert_eq!(answer(&mut line, &session), Ok(()));
}

/// Replies that the server never gives, made with its end of the channel.
#[test]
fn only_fitting_replies_are_taken() {
    let alice = name("alice");
    let challenge = |user: &str| std::format!("bonjour_{user}_{}", "0".repeat(48));
    let (own, others) = (challenge("alice"), challenge("bob"));
    let text = |username: &str, request, text| Message::unsigned(name(username), request, Content::Text(text));
    let cases = [
        (text("alice", Request::Challenge, &own), Ok(Reply::Challenged)),
        (text("alice", Request::Challenge, &others), Err(ClientError::Unexpected)),
        (text("bob", Request::Challenge, &own), Err(ClientError::Unexpected)),
        (text("alice", Request::Log, "202 signed in, session 1"), Err(ClientError::Unexpected)),
        (text("alice", Request::Log, "204 disconnected"), Err(ClientError::Unexpected)),
        (text("alice", Request::Log, "403 refused"), Ok(Reply::Log(Status::Refused))),
        (text("alice", Request::Log, "403 Refused"), Err(ClientError::Unexpected)),
        (text("-", Request::Log, "400 not understood"), Ok(Reply::Log(Status::NotUnderstood))),
        (text("alice", Request::Act, "x"), Err(ClientError::Unexpected)),
        (Message::unsigned(alice, Request::Act, Content::Raw(b"x")), Err(ClientError::Unexpected)),
    ];
    for (message, expected) in cases {
        let rng = &mut rng(1);
        let greeter = Greeter::new(KdfParameters::DEFAULT, rng);
        let greeting = Greeting::parse(greeter.greeting()).unwrap();
        let mut session = Session::new(name("alice"), &server_key(), session_secret(1));
        let mut client = Connection::new(&greeting, &server_key(), rng).unwrap();
        let mut frame = Frame::new();
        client.sign_in(&session, rng, &mut frame).unwrap();
        let mut bytes = frame.as_ref()[LENGTH_LEN..].to_vec();
        let (mut server, _) = greeter.accept(&crate::auth::testing::server_secret(), &mut bytes, rng).unwrap();
        server.seal(&message, None, &mut frame).unwrap();
        let mut bytes = frame.as_ref()[LENGTH_LEN..].to_vec();
        assert_eq!(client.handle(&mut session, &mut bytes), expected);
        assert_eq!(session.standing(), Standing::SignedOut);
        // Nothing is awaited any more.
        server.seal(&text("alice", Request::Log, "403 refused"), None, &mut frame).unwrap();
        let mut bytes = frame.as_ref()[LENGTH_LEN..].to_vec();
        assert_eq!(client.handle(&mut session, &mut bytes), Err(ClientError::Unexpected));
    }
}
