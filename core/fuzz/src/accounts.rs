//! The authentication server, `PROTOCOL.md` sections 17.4 and 17.5, beside a model of a few lines: who has which password, who is signed in from
//! where, what the note says. Users, computers, waiting and lost connections in any order; and somebody who has seen every frame sends them
//! again, alters them and brings them on other connections, which changes nothing.

use std::collections::HashMap;

use bulbil_core::auth::client::{self, Act, ClientError, Reply, Session};
use bulbil_core::auth::envelope::Greeting;
use bulbil_core::auth::key::SessionSecret;
use bulbil_core::auth::{
    Allowance, ChannelFailed, Fingerprint, Frame, KdfParameters, LENGTH_LEN, PasswordKey, Replaced, Revision, Server,
    ServerSecret, SessionNumber, Status, StorageFailed, UserRecord, Username, Users, server,
};
use bulbil_core::time::Instant;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use super::model::RSA_KEYS;
use super::script::Script;

const NAMES: [&str; 2] = ["alice", "bob"];
const COMPUTERS: usize = 3;
const LINES: usize = NAMES.len() * COMPUTERS;
/// Each costs private-key operations.
const STEPS_MAX: usize = 24;
/// How long a challenge is good for.
const CHALLENGE_MILLIS: u64 = 60_000;

/// The server's users: records as they would lie on a disk.
#[derive(Default)]
struct Disk {
    records: HashMap<String, Vec<u8>>,
    broken: bool,
}

impl Users for Disk {
    fn load(&mut self, username: &Username) -> Result<Option<UserRecord>, StorageFailed> {
        if self.broken {
            return Err(StorageFailed);
        }
        let stored = self.records.get(username.as_str());
        Ok(stored.map(|bytes| UserRecord::decode(bytes).expect("what was stored can be read")))
    }

    fn replace(&mut self, previous: Option<Revision>, record: &UserRecord) -> Result<Replaced, StorageFailed> {
        let stored = self.load(record.username())?;
        if stored.as_ref().map(UserRecord::revision) != previous {
            return Ok(Replaced::Conflict);
        }
        if let Some(stored) = stored {
            assert!(record.revision() > stored.revision() && record.sessions() >= stored.sessions());
        }
        self.records.insert(record.username().as_str().into(), record.encode().to_vec());
        Ok(Replaced::Stored)
    }
}

/// A user as the section has it.
#[derive(Default)]
struct User {
    password: Option<u8>,
    sessions: u64,
    /// The computer that is signed in.
    connected: Option<usize>,
    note: Vec<u8>,
    /// Whose session keys are known, the last used one at the end.
    known: Vec<Fingerprint>,
}

impl User {
    fn meet(&mut self, session: Fingerprint) {
        self.known.retain(|&known| known != session);
        self.known.push(session);
    }
}

/// Both ends of a connection, and what was sent on it.
struct Line {
    client: client::Connection,
    server: server::Connection,
    replies: usize,
    /// When its challenge came.
    challenged: Option<u64>,
}

struct World {
    server: Server<Vec<Allowance>>,
    disk: Disk,
    now: u64,
    rng: ChaCha20Rng,
    users: [User; NAMES.len()],
    lines: Vec<Line>,
    /// Every user on every computer, from when they are first there: to read a key takes as long as to use it. A computer has one key.
    sessions: [Option<Session>; LINES],
    /// Every frame that a client ever sent.
    seen: Vec<Vec<u8>>,
}

/// What the server answered.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Challenged,
    Note(Vec<u8>),
    Log(Status),
}

/// The input is a [`Script`]: who does what on which computer.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    if input.is_empty() {
        return;
    }
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let secret = ServerSecret::from_pkcs8(RSA_KEYS[0]).expect("a test key is sound");
    let allowances = (0..64).map(|_| Allowance::new()).collect();
    let server = Server::new(secret, KdfParameters::FLOOR, allowances, &mut rng);
    let mut world = World {
        server,
        disk: Disk::default(),
        now: 5_000_000,
        rng,
        users: Default::default(),
        lines: Vec::new(),
        sessions: Default::default(),
        seen: Vec::new(),
    };
    world.lines = (0..LINES).map(|_| world.line()).collect();
    for _ in 0..STEPS_MAX {
        if world.step(&mut script).is_none() {
            break;
        }
        world.check();
    }
}

fn name(text: &str) -> Username {
    Username::new(text).expect("a name")
}

fn password(byte: u8) -> PasswordKey {
    PasswordKey::new([byte; 32])
}

impl World {
    fn line(&mut self) -> Line {
        let (server, greeting) = self.server.greet(&mut self.rng);
        let greeting = Greeting::parse(&greeting).expect("the server's greeting");
        let client = client::Connection::new(&greeting, self.server.public(), &mut self.rng).expect("its own key");
        Line { client, server, replies: 0, challenged: None }
    }

    fn step(&mut self, script: &mut Script<'_>) -> Option<()> {
        let (choice, step) = (script.byte()?, script.byte()?);
        let index = usize::from(choice) % LINES;
        let (who, computer) = (index / COMPUTERS, index % COMPUTERS);
        let mine = self.users[who].connected == Some(computer);
        let number = SessionNumber(self.users[who].sessions);
        let mut frame = Frame::new();
        let (line, server) = (&mut self.lines[index], self.server.public());
        let session = self.sessions[index].get_or_insert_with(|| {
            let secret = SessionSecret::from_pkcs8(RSA_KEYS[1 + computer]).expect("a test key is sound");
            Session::new(name(NAMES[who]), server, secret)
        });
        let key_of_session = session.public().fingerprint();
        let challenged = line.challenged.take();
        // A broken disk shows in the answer, and in nothing else.
        self.disk.broken = step >= 0xf0;
        let broken = self.disk.broken;
        match step % 12 {
            0 | 1 => {
                let key = 1 + step / 12 % 2;
                line.client.sign_up(session, &password(key), &mut self.rng, &mut frame).expect("at any time");
                let known = self.users[who].password.is_some();
                let said = Said::Log(if known { Status::NameTaken } else { Status::SignedUp });
                self.expect(index, &frame, self.with_disk(said));
                if !known && !broken {
                    self.users[who].password = Some(key);
                    self.users[who].meet(key_of_session);
                }
            }
            2 | 3 => {
                line.client.sign_in(session, &mut self.rng, &mut frame).expect("at any time");
                let said = if mine { Said::Log(Status::AlreadySignedIn(number)) } else { Said::Challenged };
                self.expect(index, &frame, self.with_disk(said));
                if !mine && !broken {
                    self.lines[index].challenged = Some(self.now);
                }
            }
            4..=6 => {
                let key = 1 + step / 12 % 2;
                let made = line.client.answer(session, &password(key), &mut frame);
                assert_eq!(made.is_ok(), challenged.is_some(), "who was not challenged has no answer");
                let challenged = challenged?;
                let late = self.now - challenged > CHALLENGE_MILLIS;
                let right = self.users[who].password == Some(key) && !late;
                let number = SessionNumber(number.0 + 1);
                let said = Said::Log(if right { Status::SignedIn(number) } else { Status::Refused });
                // What comes too late is refused whether or not there is a record to be had.
                let said = if late { said } else { self.with_disk(said) };
                self.expect(index, &frame, said);
                if right && !broken {
                    self.users[who].sessions = number.0;
                    self.users[who].connected = Some(computer);
                    self.users[who].meet(key_of_session);
                }
                // How guessing is slowed is another matter (`throttle`).
                self.now += 120_000;
            }
            7 => {
                let byte = script.byte()?;
                let act = if byte & 1 == 0 { Act::Read } else { Act::Write(&[byte; 3]) };
                line.client.act(session, act, &mut self.rng, &mut frame).expect("at any time");
                let said = match (mine, byte & 1) {
                    (false, _) => Said::Log(Status::Refused),
                    (true, 0) => Said::Note(self.users[who].note.clone()),
                    (true, _) => Said::Log(Status::NoteKept),
                };
                self.expect(index, &frame, self.with_disk(said));
                if mine && !broken && byte & 1 == 1 {
                    self.users[who].note = vec![byte; 3];
                }
            }
            8 => {
                line.client.disconnect(session, &mut self.rng, &mut frame).expect("at any time");
                let said = Said::Log(if mine { Status::Disconnected } else { Status::Refused });
                self.expect(index, &frame, self.with_disk(said));
                if mine && !broken {
                    self.users[who].connected = None;
                }
            }
            9 => {
                self.lines[index] = self.line();
                self.now += u64::from(step) * 500;
            }
            10 => {
                // Somebody sends a frame again, or brings it on another connection.
                let again = script.below(self.seen.len()).map(|at| self.seen[at].clone());
                self.lines[index].challenged = challenged;
                self.attack(index, &again?);
            }
            _ => {
                // Somebody alters one on its way.
                line.client.sign_up(session, &password(3), &mut self.rng, &mut frame).expect("at any time");
                let mut altered = frame.as_ref().to_vec();
                let (at, mask) = (script.below(frame.as_ref().len())?, script.byte()?.max(1));
                altered[at] ^= mask;
                self.attack(index, &altered);
            }
        }
        Some(())
    }

    /// A frame that its sender did not make for this connection and now.
    fn attack(&mut self, index: usize, frame: &[u8]) {
        let before = self.disk.records.clone();
        let taken = self.deliver(index, frame);
        assert!(taken.is_err(), "somebody else's frame was answered");
        assert!(self.lines[index].server.is_closed(), "a connection goes on after a frame that failed");
        assert!(self.disk.records == before);
        self.lines[index] = self.line();
    }

    fn deliver(&mut self, index: usize, frame: &[u8]) -> Result<Vec<u8>, ChannelFailed> {
        let server = &mut self.lines[index].server;
        let (field, body) = frame.split_first_chunk::<LENGTH_LEN>().ok_or(ChannelFailed)?;
        // One bit makes an opening without the server's key of one with it: what is left over would be the next frame's.
        let body = body.get(..server.frame_len(*field)?);
        let body =
            body.expect("only openings are altered where an opening may come, and none may be longer than theirs");
        let (mut body, mut reply, now) = (body.to_vec(), Frame::new(), Instant::from_millis(self.now));
        let incoming = server.receive(&self.server, &mut body, &mut self.rng)?;
        server.answer(&self.server, incoming, &mut self.disk, now, &mut self.rng, &mut reply)?;
        Ok(reply.as_ref().to_vec())
    }

    /// Carries a client's frame to the server, which must answer so.
    fn expect(&mut self, index: usize, frame: &Frame, said: Said) {
        self.seen.push(frame.as_ref().to_vec());
        let mut reply = self.deliver(index, frame.as_ref()).expect("an honest frame");
        let line = &mut self.lines[index];
        line.replies += 1;
        let body = reply.get_mut(LENGTH_LEN..).expect("a length field");
        let session = self.sessions[index].as_mut().expect("who sent the frame");
        let heard = line.client.handle(session, body);
        let heard = heard.map(|reply| match reply {
            Reply::Challenged => Said::Challenged,
            Reply::Note(note) => Said::Note(note.to_vec()),
            Reply::Log(status) => Said::Log(status),
        });
        assert_eq!(heard, Ok::<_, ClientError>(said));
        assert!(!self.lines[index].server.is_closed() || self.lines[index].replies >= 16);
        if self.lines[index].server.is_closed() {
            self.lines[index] = self.line();
        }
    }

    /// What becomes of an answer that needs a record.
    fn with_disk(&self, said: Said) -> Said {
        if self.disk.broken { Said::Log(Status::Unavailable) } else { said }
    }

    /// What is stored is what the model says.
    fn check(&mut self) {
        self.disk.broken = false;
        for (text, user) in NAMES.iter().zip(&self.users) {
            let record = self.disk.load(&name(text)).expect("the disk is whole");
            assert_eq!(record.is_some(), user.password.is_some());
            let Some(record) = record else { continue };
            assert_eq!(record.sessions(), SessionNumber(user.sessions));
            // Where they lie in a record: section 17.5.
            let bytes = record.encode();
            assert_eq!(bytes[500..502], (user.note.len() as u16).to_be_bytes());
            assert!(bytes[502..].starts_with(&user.note));
            let known: Vec<_> = user.known.iter().rev().map(|session| *session.as_bytes()).collect();
            assert_eq!(
                (usize::from(bytes[114]), &bytes[115..][..32 * known.len()]),
                (known.len(), known.as_flattened())
            );
        }
    }
}
