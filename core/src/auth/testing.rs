//! What the tests of several modules share: a server with users in memory, and a client's line to it.

use std::collections::HashMap;
use std::string::String;
use std::vec::Vec;

use rand_chacha::ChaCha20Rng;

use super::ChannelFailed;
use super::client::{self, Act, ClientError, Session};
use super::envelope::{Frame, Greeting, LENGTH_LEN};
use super::key::{PublicKey, ServerSecret, SessionSecret};
use super::name::Username;
use super::password::{KdfParameters, PasswordKey};
use super::record::{Replaced, Revision, StorageFailed, UserRecord, Users};
use super::server::{self, Answered, Server};
use super::status::Status;
use super::throttle::Allowance;
use crate::crypto::testing::{RSA_KEYS, rng};
use crate::time::Instant;

/// Users in memory, as their encoded records. Panics if a counter ever goes back.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) records: HashMap<String, Vec<u8>>,
    /// Fails from now on.
    pub(super) broken: bool,
    /// What others store just before the next replacements.
    pub(super) races: Vec<UserRecord>,
    pub(super) writes: usize,
}

impl Users for Memory {
    fn load(&mut self, username: &Username) -> Result<Option<UserRecord>, StorageFailed> {
        if self.broken {
            return Err(StorageFailed);
        }
        Ok(self.records.get(username.as_str()).map(|bytes| UserRecord::decode(bytes).unwrap()))
    }

    fn replace(&mut self, previous: Option<Revision>, record: &UserRecord) -> Result<Replaced, StorageFailed> {
        if let Some(faster) = self.races.pop() {
            self.records.insert(faster.username().as_str().into(), faster.encode().to_vec());
        }
        let stored = self.load(record.username())?;
        if stored.as_ref().map(UserRecord::revision) != previous {
            return Ok(Replaced::Conflict);
        }
        if let Some(stored) = stored {
            assert!(record.revision() > stored.revision() && record.sessions() >= stored.sessions());
        }
        self.records.insert(record.username().as_str().into(), record.encode().to_vec());
        self.writes += 1;
        Ok(Replaced::Stored)
    }
}

pub(super) struct World {
    pub(super) server: Server<Vec<Allowance>>,
    pub(super) users: Memory,
    pub(super) now: Instant,
    pub(super) rng: ChaCha20Rng,
}

pub(super) fn name(text: &str) -> Username {
    Username::new(text).unwrap()
}

pub(super) fn password(byte: u8) -> PasswordKey {
    PasswordKey::new([byte; 32])
}

/// Keys 1 to 5; key 0 is the server's.
pub(super) fn session_secret(index: usize) -> SessionSecret {
    SessionSecret::from_pkcs8(RSA_KEYS[index]).unwrap()
}

pub(super) fn server_secret() -> ServerSecret {
    ServerSecret::from_pkcs8(RSA_KEYS[0]).unwrap()
}

impl World {
    pub(super) fn new() -> Self {
        let mut rng = rng(17);
        let allowances = (0..64).map(|_| Allowance::new()).collect();
        let server = Server::new(server_secret(), KdfParameters::DEFAULT, allowances, &mut rng);
        Self { server, users: Memory::default(), now: Instant::from_millis(5_000_000), rng }
    }

    /// A world in which alice, password 1, has signed up.
    pub(super) fn with_alice() -> Self {
        let mut world = Self::new();
        let mut session = world.session("alice", 5);
        assert_eq!(world.line().sign_up(&mut world, &mut session, 1), Status::SignedUp);
        world
    }

    pub(super) fn session(&self, username: &str, key: usize) -> Session {
        Session::new(name(username), self.server.public(), session_secret(key))
    }

    pub(super) fn pass(&mut self, millis: u64) {
        self.now = Instant::from_millis(self.now.millis() + millis);
    }

    pub(super) fn line(&mut self) -> Line {
        let (server, greeting) = self.server.greet(&mut self.rng);
        let greeting = Greeting::parse(&greeting).unwrap();
        let client = client::Connection::new(&greeting, self.server.public(), &mut self.rng).unwrap();
        Line { client, server, frame: Frame::new(), sent: Vec::new() }
    }
}

/// A client's reply with its note copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    Challenged,
    Note(Vec<u8>),
    Log(Status),
}

/// Both ends of one connection.
pub(super) struct Line {
    pub(super) client: client::Connection,
    pub(super) server: server::Connection,
    /// What the client has made and the server has not had yet.
    pub(super) frame: Frame,
    /// All frames, both ways.
    pub(super) sent: Vec<Vec<u8>>,
}

impl Line {
    /// Carries the client's frame to the server; answers with the reply's bytes.
    pub(super) fn carry(&mut self, world: &mut World) -> Result<(Answered, Vec<u8>), ChannelFailed> {
        let frame = self.frame.as_ref().to_vec();
        self.sent.push(frame.clone());
        let (answered, reply) = deliver(&mut self.server, world, &frame)?;
        self.sent.push(reply.clone());
        Ok((answered, reply))
    }

    pub(super) fn round(&mut self, world: &mut World, session: &mut Session) -> Result<Said, ClientError> {
        let (_, mut reply) = self.carry(world)?;
        let len = self.client.frame_len([reply[0], reply[1]])?;
        let body = &mut reply[LENGTH_LEN..];
        assert_eq!(body.len(), len);
        Ok(match self.client.handle(session, body)? {
            client::Reply::Challenged => Said::Challenged,
            client::Reply::Note(note) => Said::Note(note.to_vec()),
            client::Reply::Log(status) => Said::Log(status),
        })
    }

    fn log(&mut self, world: &mut World, session: &mut Session) -> Status {
        match self.round(world, session).unwrap() {
            Said::Log(status) => status,
            other => panic!("{other:?} is no status"),
        }
    }

    pub(super) fn sign_up(&mut self, world: &mut World, session: &mut Session, key: u8) -> Status {
        self.client.sign_up(session, &password(key), &mut world.rng, &mut self.frame).unwrap();
        self.log(world, session)
    }

    /// Begins to sign in; whether a challenge came.
    pub(super) fn begin(&mut self, world: &mut World, session: &mut Session) -> Said {
        self.client.sign_in(session, &mut world.rng, &mut self.frame).unwrap();
        self.round(world, session).unwrap()
    }

    pub(super) fn sign_in(&mut self, world: &mut World, session: &mut Session, key: u8) -> Status {
        match self.begin(world, session) {
            Said::Challenged => {
                self.client.answer(session, &password(key), &mut self.frame).unwrap();
                self.log(world, session)
            }
            Said::Log(status) => status,
            Said::Note(_) => panic!("a note"),
        }
    }

    pub(super) fn act(&mut self, world: &mut World, session: &mut Session, act: Act<'_>) -> Said {
        self.client.act(session, act, &mut world.rng, &mut self.frame).unwrap();
        self.round(world, session).unwrap()
    }

    pub(super) fn disconnect(&mut self, world: &mut World, session: &mut Session) -> Status {
        self.client.disconnect(session, &mut world.rng, &mut self.frame).unwrap();
        self.log(world, session)
    }
}

/// Gives `frame`, its length field included, to a connection of the server, as a host does.
pub(super) fn deliver(
    server: &mut server::Connection,
    world: &mut World,
    frame: &[u8],
) -> Result<(Answered, Vec<u8>), ChannelFailed> {
    let (field, body) = frame.split_first_chunk().unwrap();
    if server.frame_len(*field)? != body.len() {
        return Err(ChannelFailed);
    }
    let mut body = body.to_vec();
    let mut reply = Frame::new();
    let incoming = server.receive(&world.server, &mut body, &mut world.rng)?;
    let answered = server.answer(&world.server, incoming, &mut world.users, world.now, &mut world.rng, &mut reply)?;
    Ok((answered, reply.as_ref().to_vec()))
}

/// The server's key as clients have it.
pub(super) fn server_key() -> PublicKey {
    server_secret().public()
}
