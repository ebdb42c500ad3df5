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
        if standing == Standing::SignedOut {
            // Signed out there is no number.
            let mut bad = bytes.as_ref().to_vec();
            bad[41] = 1;
            assert!(matches!(Session::import(&bad), Err(WireError::NotZero)));
        }
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

#[test]
fn parameters_are_told_once_the_server_has_answered() {
    let mut world = World::with_alice();
    let told = Some(KdfParameters::DEFAULT);
    let mut line = world.line();
    assert_eq!(line.client.parameters(), None);
    line.client.confirm(&mut line.frame).unwrap();
    assert_eq!(line.client.parameters(), None);
    assert_eq!(line.client.confirm(&mut line.frame), Err(ClientError::OutOfTurn));
    let (_, mut reply) = line.carry(&mut world).unwrap();
    assert_eq!(line.client.handle_confirmation(&mut reply[LENGTH_LEN..]), Ok(KdfParameters::DEFAULT));
    assert_eq!(line.client.parameters(), told);
    // The connection goes on.
    let mut bob = world.session("bob", 2);
    assert_eq!(line.sign_up(&mut world, &mut bob, 1), Status::SignedUp);
    // A challenge is an answer as well.
    let mut line = world.line();
    assert_eq!(line.begin(&mut world, &mut bob), Said::Challenged);
    assert_eq!(line.client.parameters(), told);
}

/// Whoever changes the greeting, or greets in the server's place, cannot answer: nobody hashes for them.
#[test]
fn parameters_of_others_are_never_told() {
    let world = &mut World::new();
    let (_, greeting) = world.server.greet(&mut world.rng);
    let mut dearest = greeting;
    // 1 GiB, 16 passes, 16 lanes.
    dearest[1..10].copy_from_slice(&[0, 0x10, 0, 0, 0, 0, 0, 16, 16]);
    let greeting = Greeting::parse(&dearest).unwrap();
    assert_eq!(greeting.parameters(), KdfParameters::CEILING);
    let mut client = Connection::new(&greeting, &server_key(), &mut world.rng).unwrap();
    let mut frame = Frame::new();
    client.confirm(&mut frame).unwrap();
    let (mut server, _) = world.server.greet(&mut world.rng);
    assert!(crate::auth::testing::deliver(&mut server, world, frame.as_ref()).is_err());
    // What they can send back: garbage of the right length, or what the client has sent.
    let echoed = frame.as_ref()[frame.as_ref().len() - 1552..].to_vec();
    for mut forged in
        [std::vec![0; 1552], echoed, std::vec![0; 1551], std::vec![0; 1553], std::vec![0; 16], std::vec![]]
    {
        let handled = client.handle_confirmation(&mut forged);
        assert_eq!(handled, Err(ClientError::Channel(ChannelFailed)));
        assert_eq!(client.parameters(), None);
    }
}

#[test]
fn only_the_servers_own_key_confirms() {
    let other = session_secret(1).public();
    let reply = |request, content| Message::unsigned(Username::nobody(), request, content);
    let cases = [
        (reply(Request::PublicKey, Content::Key(server_key())), Ok(KdfParameters::FLOOR)),
        (reply(Request::PublicKey, Content::Key(other)), Err(ClientError::Unexpected)),
        (reply(Request::SignIn, Content::Key(server_key())), Err(ClientError::Unexpected)),
        (reply(Request::Log, Content::Text("503 unavailable")), Err(ClientError::Unexpected)),
    ];
    for (message, expected) in cases {
        let rng = &mut rng(1);
        let greeter = Greeter::new(KdfParameters::FLOOR, rng);
        let greeting = Greeting::parse(greeter.greeting()).unwrap();
        let mut client = Connection::new(&greeting, &server_key(), rng).unwrap();
        let mut frame = Frame::new();
        client.confirm(&mut frame).unwrap();
        let mut bytes = frame.as_ref()[LENGTH_LEN..].to_vec();
        let (mut server, asked) = greeter.accept(&crate::auth::testing::server_secret(), &mut bytes, rng).unwrap();
        assert_eq!(asked, b"0::-:public_key:");
        server.seal(&message, None, &mut frame).unwrap();
        let reply = &frame.as_ref()[LENGTH_LEN..];
        assert_eq!(client.handle_confirmation(&mut reply.to_vec()), expected);
    }
}

/// What a broken server, or somebody in its place, says when it is asked for its key.
#[test]
fn only_a_key_is_found() {
    let reply = |request, content| Message::unsigned(Username::nobody(), request, content);
    let cases = [
        (reply(Request::PublicKey, Content::Key(server_key())), Ok(server_key())),
        (reply(Request::SignIn, Content::Key(server_key())), Err(ClientError::Unexpected)),
        (reply(Request::PublicKey, Content::Text("503 unavailable")), Err(ClientError::Unexpected)),
        (reply(Request::Log, Content::Text("503 unavailable")), Err(ClientError::Unexpected)),
        (reply(Request::Act, Content::Raw(b"note")), Err(ClientError::Unexpected)),
    ];
    for (message, expected) in cases {
        let rng = &mut rng(1);
        let greeter = Greeter::new(KdfParameters::FLOOR, rng);
        let greeting = Greeting::parse(greeter.greeting()).unwrap();
        let mut frame = Frame::new();
        let discovery = Discovery::new(&greeting, rng, &mut frame).unwrap();
        let mut bytes = frame.as_ref()[LENGTH_LEN..].to_vec();
        let (mut server, _) = greeter.accept(&crate::auth::testing::server_secret(), &mut bytes, rng).unwrap();
        server.seal(&message, None, &mut frame).unwrap();
        let mut reply = frame.as_ref()[LENGTH_LEN..].to_vec();
        assert_eq!(discovery.handle(&mut reply), expected);
    }
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
