//! The server beside a model of a few lines.

use std::vec::Vec;

use proptest::prelude::*;

use crate::auth::client::{Act, Session};
use crate::auth::status::{SessionNumber, Status};
use crate::auth::testing::{Line, Said, World, name, password, session_secret};
use crate::auth::{Fingerprint, Users as _};

const NAMES: [&str; 2] = ["alice", "bob"];
/// More than a record knows session keys.
const COMPUTERS: usize = 5;
const LINES: usize = NAMES.len() * COMPUTERS;

#[derive(Debug, Clone)]
enum Step {
    SignUp {
        password: u8,
    },
    /// On the computer's line.
    Begin,
    Answer {
        password: u8,
    },
    Read,
    Write(u8),
    Disconnect,
    /// A new connection for the computer.
    Reconnect,
    /// Time passes.
    Wait,
}

#[derive(Default)]
struct User {
    password: Option<u8>,
    sessions: u64,
    /// The computer that is signed in.
    connected: Option<usize>,
    note: Vec<u8>,
    /// Computers whose session keys are known, the latest first.
    known: Vec<usize>,
}

impl User {
    fn meets(&mut self, computer: usize) {
        self.known.retain(|&known| known != computer);
        self.known.insert(0, computer);
        self.known.truncate(4);
    }
}

fn any_step() -> impl Strategy<Value = (usize, usize, Step)> {
    let step = prop_oneof![
        2 => (1..3u8).prop_map(|password| Step::SignUp { password }),
        4 => Just(Step::Begin),
        4 => (1..3u8).prop_map(|password| Step::Answer { password }),
        2 => Just(Step::Read),
        2 => any::<u8>().prop_map(Step::Write),
        1 => Just(Step::Disconnect),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Wait),
    ];
    (0..NAMES.len(), 0..COMPUTERS, step)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn the_server_does_what_the_model_does(steps in proptest::collection::vec(any_step(), 1..40)) {
        let world = &mut World::new();
        let mut users: [User; NAMES.len()] = Default::default();
        // Every user has a line of their own on every computer; the users of a computer have one session key.
        let mut lines: Vec<Line> = (0..LINES).map(|_| world.line()).collect();
        let mut sessions: Vec<Session> =
            (0..LINES).map(|index| world.session(NAMES[index / COMPUTERS], 1 + index % COMPUTERS)).collect();
        let keys: [Fingerprint; COMPUTERS] =
            core::array::from_fn(|computer| session_secret(1 + computer).public().fingerprint());
        let mut challenged = [false; LINES];
        for (who, computer, step) in steps {
            let index = who * COMPUTERS + computer;
            let (user, line, session) = (&mut users[who], &mut lines[index], &mut sessions[index]);
            let mine = user.connected == Some(computer);
            match step {
                Step::SignUp { password } => {
                    let expected = if user.password.is_none() { Status::SignedUp } else { Status::NameTaken };
                    prop_assert_eq!(line.sign_up(world, session, password), expected);
                    if user.password.is_none() {
                        user.password = Some(password);
                        user.meets(computer);
                    }
                    // The client keeps no challenge over another request, though the server would.
                    challenged[index] = false;
                }
                Step::Begin => {
                    let said = line.begin(world, session);
                    challenged[index] = !mine;
                    let number = SessionNumber(user.sessions);
                    let expected = if mine { Said::Log(Status::AlreadySignedIn(number)) } else { Said::Challenged };
                    prop_assert_eq!(said, expected);
                }
                Step::Answer { password: key } => {
                    let made = line.client.answer(session, &password(key), &mut line.frame);
                    prop_assert_eq!(made.is_ok(), challenged[index]);
                    if !core::mem::take(&mut challenged[index]) {
                        continue;
                    }
                    let right = user.password == Some(key);
                    if right {
                        user.sessions += 1;
                        user.connected = Some(computer);
                        user.meets(computer);
                    }
                    let expected = if right { Status::SignedIn(SessionNumber(user.sessions)) } else { Status::Refused };
                    prop_assert_eq!(line.round(world, session).unwrap(), Said::Log(expected));
                    // Slowing down is tested elsewhere.
                    world.pass(60_000);
                    challenged = [false; LINES];
                    lines = (0..LINES).map(|_| world.line()).collect();
                }
                Step::Read => {
                    let expected = if mine { Said::Note(user.note.clone()) } else { Said::Log(Status::Refused) };
                    prop_assert_eq!(line.act(world, session, Act::Read), expected);
                    challenged[index] = false;
                }
                Step::Write(byte) => {
                    let expected = if mine { Status::NoteKept } else { Status::Refused };
                    prop_assert_eq!(line.act(world, session, Act::Write(&[byte; 3])), Said::Log(expected));
                    if mine {
                        user.note = std::vec![byte; 3];
                    }
                    challenged[index] = false;
                }
                Step::Disconnect => {
                    let expected = if mine { Status::Disconnected } else { Status::Refused };
                    prop_assert_eq!(line.disconnect(world, session), expected);
                    if mine {
                        user.connected = None;
                    }
                    challenged[index] = false;
                }
                Step::Reconnect => {
                    lines[index] = world.line();
                    challenged[index] = false;
                }
                Step::Wait => world.pass(30_000),
            }
            let record = world.users.load(&name(NAMES[who])).unwrap();
            let known = |computer: &usize| record.as_ref().is_some_and(|record| record.knows(&keys[*computer]));
            let mut expected = user.known.clone();
            expected.sort_unstable();
            prop_assert_eq!((0..COMPUTERS).filter(known).collect::<Vec<_>>(), expected);
        }
    }
}
