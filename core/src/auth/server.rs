//! The server's side: a connection with one client, and what becomes of a user, `PROTOCOL.md` sections 17.2, 17.4 and 17.5.
//!
//! | a user is | which is kept | and leaves that by |
//! | --- | --- | --- |
//! | unknown | nowhere | signing up |
//! | registered | in the [`UserRecord`], [`Presence::Disconnected`] | answering a challenge |
//! | challenged | on the [`Connection`] where the sign-in was begun | an answer, right or not; another sign-in there; its end |
//! | connected | in the record, [`Presence::Connected`] | disconnecting; another session's beginning |
//!
//! A challenge is no state of the record: so whoever begins to sign in as somebody disturbs nobody, stores nothing, and holds
//! nothing once the connection is closed.
//!
//! A host reads [`Connection::frame_len`] bytes, calls [`Connection::receive`] (RSA: 1.6 ms once a connection) and then
//! [`Connection::answer`] (reads and writes storage, and verifies a signature: 0.1 ms), sends the reply, and so on until
//! either fails or the client is gone. Connections share one [`Server`] without locks.

use core::time::Duration;

use rand_core::CryptoRng;

use super::challenge::{Challenge, MaskKey};
use super::envelope::{Binding, Channel, ChannelFailed, Expected, Frame, GREETING_LEN, Greeter, LENGTH_LEN};
use super::key::{DER_LEN, PublicKey, ServerSecret};
use super::message::{Content, Message, MessageError, Request};
use super::name::Username;
use super::password::{KdfParameters, PASSWORD_KEY_LEN, PasswordKey};
use super::record::{NOTE_MAX_LEN, Presence, Replaced, StorageFailed, UserRecord, Users};
use super::status::{SessionNumber, Status};
use super::throttle::{Allowance, Throttle};
use crate::time::Instant;

/// How long a challenge may be answered.
pub const CHALLENGE_LIFE: Duration = Duration::from_secs(60);

/// Each conflict means that another connection has changed the same user, so this many changes in a row came first.
const CONFLICTS_MAX: u32 = 64;

/// Bytes of a sign-up's content: the password key and the session's public key in DER.
pub(super) const SIGN_UP_LEN: usize = PASSWORD_KEY_LEN + DER_LEN;

/// Content of an act that asks for the note.
pub(super) const READ: &[u8] = b"read";
/// What the content of an act that stores a note begins with.
pub(super) const WRITE: &[u8] = b"write:";

/// What all connections of a server share. `T` is the table of allowances (a slice's owner); 65,536 of them make the
/// table's 256 KiB outlast what one core can check.
pub struct Server<T> {
    secret: ServerSecret,
    public: PublicKey,
    parameters: KdfParameters,
    mask: MaskKey,
    throttle: Throttle<T>,
}

impl<T: AsRef<[Allowance]>> Server<T> {
    /// A server with this key. `parameters` are stored beside the key and never change while it is in use.
    pub fn new(secret: ServerSecret, parameters: KdfParameters, allowances: T, rng: &mut dyn CryptoRng) -> Self {
        let public = secret.public();
        Self { secret, public, parameters, mask: MaskKey::generate(rng), throttle: Throttle(allowances) }
    }

    /// The server's public key.
    #[must_use]
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// A connection with a client that has just connected, and the greeting to send.
    pub fn greet(&self, rng: &mut dyn CryptoRng) -> (Connection, [u8; GREETING_LEN]) {
        let greeter = Greeter::new(self.parameters, rng);
        let greeting = *greeter.greeting();
        (Connection { state: State::Greeted(greeter) }, greeting)
    }
}

/// A connection with one client.
pub struct Connection {
    state: State,
}

#[expect(clippy::large_enum_variant, reason = "without an allocator the ciphers have to lie in place")]
enum State {
    Greeted(Greeter),
    Open { channel: Channel, attempt: Attempt },
    Closed,
}

/// What a client has begun on its connection.
#[expect(clippy::large_enum_variant, reason = "without an allocator the challenge has to lie in place")]
enum Attempt {
    Idle,
    Challenged { username: Username, session: PublicKey, challenge: Challenge, until: Instant },
}

/// A client's message, on its way from [`Connection::receive`] to [`Connection::answer`].
#[derive(Clone)]
pub struct Incoming<'a>(Result<Message<'a>, MessageError>);

/// What a reply says, for counters: nothing that names a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answered {
    /// The server's public key.
    PublicKey,
    /// A challenge.
    Challenged,
    /// A note.
    Note,
    /// A status.
    Log(Status),
}

#[expect(clippy::large_enum_variant, reason = "without an allocator the note has to lie in place")]
enum Reply {
    PublicKey(PublicKey),
    Challenge(Challenge),
    Note(UserRecord),
    Log(Status),
}

impl From<Status> for Reply {
    fn from(status: Status) -> Self {
        Self::Log(status)
    }
}

/// A change was not stored.
enum Unchanged {
    /// The user's record, as it is now, does not allow it.
    Refused,
    /// Storage failed, or too many others came first.
    Unavailable,
}

impl Connection {
    /// Whether the client has sealed its first frame to the server's key, which cost both sides the work of a private key.
    /// Asking for that key does not.
    #[must_use]
    pub const fn is_authentic(&self) -> bool {
        matches!(&self.state, State::Open { channel, .. } if channel.is_authentic())
    }

    /// How many bytes follow a length field of these bytes.
    ///
    /// # Errors
    /// [`ChannelFailed`] if no such frame may come now: close the connection. It stays that way.
    pub fn frame_len(&mut self, field: [u8; LENGTH_LEN]) -> Result<usize, ChannelFailed> {
        let len = match &self.state {
            State::Greeted(_) => Expected::Opening.frame_len(field),
            State::Open { .. } => Expected::Sealed.frame_len(field),
            State::Closed => Err(ChannelFailed),
        };
        if len.is_err() {
            self.state = State::Closed;
        }
        len
    }

    /// Opens a frame, given without its length field, in place. Afterwards `frame` holds what the client said, which may
    /// be a password key: wipe it once it is answered.
    ///
    /// # Errors
    /// [`ChannelFailed`]: close the connection, there is nothing to answer. It stays that way.
    pub fn receive<'a, T: AsRef<[Allowance]>>(
        &mut self,
        server: &Server<T>,
        frame: &'a mut [u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<Incoming<'a>, ChannelFailed> {
        // Whatever fails below leaves the connection closed.
        let (channel, attempt, message) = match core::mem::replace(&mut self.state, State::Closed) {
            State::Greeted(greeter) => {
                let (channel, message) = greeter.accept(&server.secret, frame, rng)?;
                (channel, Attempt::Idle, message)
            }
            State::Open { mut channel, attempt } => {
                let message = channel.open(frame)?;
                (channel, attempt, message)
            }
            State::Closed => return Err(ChannelFailed),
        };
        self.state = State::Open { channel, attempt };
        Ok(Incoming(Message::parse(message)))
    }

    /// Does what the client asks for and puts the reply into `reply`.
    ///
    /// # Errors
    /// [`ChannelFailed`] if nothing has been received on this connection.
    pub fn answer<T: AsRef<[Allowance]>>(
        &mut self,
        server: &Server<T>,
        incoming: Incoming<'_>,
        users: &mut impl Users,
        now: Instant,
        rng: &mut dyn CryptoRng,
        reply: &mut Frame,
    ) -> Result<Answered, ChannelFailed> {
        let State::Open { channel, attempt } = &mut self.state else { return Err(ChannelFailed) };
        let (username, answer) = match incoming.0 {
            Ok(message) => {
                let username = message.username.clone();
                (username, decide(server, channel, attempt, &message, users, now, rng))
            }
            Err(_) => (Username::nobody(), Status::NotUnderstood.into()),
        };
        let (answered, text);
        let (request, content) = match &answer {
            Reply::PublicKey(key) => {
                answered = Answered::PublicKey;
                (Request::PublicKey, Content::Key(key.clone()))
            }
            Reply::Challenge(challenge) => {
                answered = Answered::Challenged;
                (Request::Challenge, Content::Text(challenge.as_str()))
            }
            Reply::Note(record) => {
                answered = Answered::Note;
                (Request::Act, Content::Raw(record.note()))
            }
            Reply::Log(status) => {
                answered = Answered::Log(*status);
                text = status.text();
                (Request::Log, Content::Text(text.as_ref()))
            }
        };
        let message = Message::unsigned(username, request, content);
        channel.seal(&message, None, reply).map_err(|_| ChannelFailed)?;
        Ok(answered)
    }
}

fn decide<T: AsRef<[Allowance]>>(
    server: &Server<T>,
    channel: &Channel,
    attempt: &mut Attempt,
    message: &Message<'_>,
    users: &mut impl Users,
    now: Instant,
    rng: &mut dyn CryptoRng,
) -> Reply {
    // Without the server's key in it a channel may lead through anybody.
    if !channel.is_authentic() && message.request != Request::PublicKey {
        return Status::NotUnderstood.into();
    }
    match (message.request, &message.content) {
        (Request::PublicKey, Content::Raw([])) => Reply::PublicKey(server.public.clone()),
        (Request::SignUp, Content::Raw(content)) => match parse_sign_up(content) {
            // As at a sign-in: what becomes a known session key has been proved by its holder.
            Some((_, session)) if message.verify(&session, channel.binding()).is_err() => Status::Refused.into(),
            Some((key, session)) => sign_up(&message.username, key, &session, users).into(),
            None => Status::NotUnderstood.into(),
        },
        (Request::SignIn, Content::Key(session)) => {
            *attempt = Attempt::Idle;
            if message.verify(session, channel.binding()).is_err() {
                return Status::Refused.into();
            }
            sign_in(server, attempt, &message.username, session, users, now, rng)
        }
        (Request::Challenge, Content::Raw(answer)) => {
            let attempt = core::mem::replace(attempt, Attempt::Idle);
            check_answer(server, channel.binding(), attempt, &message.username, answer, users, now).into()
        }
        (Request::Act, Content::Text(text)) if text.as_bytes() == READ => {
            match current(server, channel.binding(), message, users) {
                Ok(record) => Reply::Note(record),
                Err(status) => status.into(),
            }
        }
        (Request::Act, Content::Raw(content)) => match content.strip_prefix(WRITE) {
            Some(note) if note.len() <= NOTE_MAX_LEN => {
                let write = |record: &UserRecord| record.with_note(note);
                change_by_session(server, channel.binding(), message, users, write, Status::NoteKept).into()
            }
            _ => Status::NotUnderstood.into(),
        },
        (Request::Disconnect, Content::Raw([])) => {
            let end = UserRecord::disconnected;
            change_by_session(server, channel.binding(), message, users, end, Status::Disconnected).into()
        }
        _ => Status::NotUnderstood.into(),
    }
}

/// The password key and the session's key in the content of a sign-up.
fn parse_sign_up(content: &[u8]) -> Option<(PasswordKey, PublicKey)> {
    let (key, der) = content.split_first_chunk()?;
    Some((PasswordKey::new(*key), PublicKey::from_der(der).ok()?))
}

fn sign_up(username: &Username, key: PasswordKey, session: &PublicKey, users: &mut impl Users) -> Status {
    match users.replace(None, &UserRecord::new(username.clone(), key, session)) {
        Ok(Replaced::Stored) => Status::SignedUp,
        Ok(Replaced::Conflict) => Status::NameTaken,
        Err(StorageFailed) => Status::Unavailable,
    }
}

fn sign_in<T: AsRef<[Allowance]>>(
    server: &Server<T>,
    attempt: &mut Attempt,
    username: &Username,
    session: &PublicKey,
    users: &mut impl Users,
    now: Instant,
    rng: &mut dyn CryptoRng,
) -> Reply {
    let Ok(record) = users.load(username) else { return Status::Unavailable.into() };
    let (counter, known) = match &record {
        Some(record) if *record.presence() == Presence::Connected(session.clone()) => {
            return Status::AlreadySignedIn(record.sessions()).into();
        }
        Some(record) => (record.sessions(), record.knows(&session.fingerprint())),
        None => (SessionNumber(0), false),
    };
    let wait = allowance(server, username, session, known).wait(now);
    if !wait.is_zero() {
        return Status::retry_after(wait).into();
    }
    let challenge = Challenge::issue(username, counter, &server.mask, rng);
    *attempt = Attempt::Challenged {
        username: username.clone(),
        session: session.clone(),
        challenge: challenge.clone(),
        until: now.after(CHALLENGE_LIFE),
    };
    Reply::Challenge(challenge)
}

fn check_answer<T: AsRef<[Allowance]>>(
    server: &Server<T>,
    binding: &Binding,
    attempt: Attempt,
    answering: &Username,
    answer: &[u8],
    users: &mut impl Users,
    now: Instant,
) -> Status {
    let Attempt::Challenged { username, session, challenge, until } = attempt else { return Status::Refused };
    if username != *answering || now > until {
        return Status::Refused;
    }
    let Ok(record) = users.load(&username) else { return Status::Unavailable };
    let known = record.as_ref().is_some_and(|record| record.knows(&session.fingerprint()));
    let allowance = allowance(server, &username, &session, known);
    if let Err(wait) = allowance.take(now) {
        return Status::retry_after(wait);
    }
    // An unknown user's answer is checked as well, against a key that nobody has.
    let nobodys = PasswordKey::new(server.mask.derive(&[b"nobody", username.as_bytes()]));
    let key = record.as_ref().map_or(&nobodys, UserRecord::key);
    let right = challenge.answer(key, binding, &session).matches(answer);
    let (true, Some(record)) = (right, record) else { return Status::Refused };
    allowance.give_back();
    let begin = |record: &UserRecord| {
        // The key is checked again in case the record has changed since.
        let right = challenge.answer(record.key(), binding, &session).matches(answer);
        if right { record.connected(&session) } else { None }
    };
    match change(users, record, begin) {
        Ok(record) => Status::SignedIn(record.sessions()),
        Err(Unchanged::Refused) => Status::Refused,
        Err(Unchanged::Unavailable) => Status::Unavailable,
    }
}

fn allowance<'a, T: AsRef<[Allowance]>>(
    server: &'a Server<T>,
    username: &Username,
    session: &PublicKey,
    known: bool,
) -> &'a Allowance {
    let device = known.then(|| session.fingerprint());
    server.throttle.of(username, device.as_ref(), &server.mask)
}

/// The record of a message's user, if the message is signed by the user's current session.
fn current<T>(
    server: &Server<T>,
    binding: &Binding,
    message: &Message<'_>,
    users: &mut impl Users,
) -> Result<UserRecord, Status> {
    let record = users.load(&message.username).map_err(|StorageFailed| Status::Unavailable)?;
    let session = match record.as_ref().map(UserRecord::presence) {
        Some(Presence::Connected(session)) => Some(session),
        Some(Presence::Disconnected) | None => None,
    };
    // Without a session the signature is checked as well, against a key that never signs: to be unknown is no short cut.
    let verified = message.verify(session.unwrap_or(&server.public), binding);
    // The server's key, stolen, would sign: only a session's signature counts.
    let by_session = session.is_some() && verified.is_ok();
    record.filter(|_| by_session).ok_or(Status::Refused)
}

/// Makes a change to a user that only the current session may make.
fn change_by_session<T>(
    server: &Server<T>,
    binding: &Binding,
    message: &Message<'_>,
    users: &mut impl Users,
    next: impl Fn(&UserRecord) -> Option<UserRecord>,
    done: Status,
) -> Status {
    let record = match current(server, binding, message, users) {
        Ok(record) => record,
        Err(status) => return status,
    };
    let session = record.presence().clone();
    // Another session may have begun since.
    let next = |record: &UserRecord| if *record.presence() == session { next(record) } else { None };
    match change(users, record, next) {
        Ok(_) => done,
        Err(Unchanged::Refused) => Status::Refused,
        Err(Unchanged::Unavailable) => Status::Unavailable,
    }
}

/// Replaces `record` by its `next`; if somebody else was faster, by the next of what they stored.
fn change(
    users: &mut impl Users,
    mut record: UserRecord,
    next: impl Fn(&UserRecord) -> Option<UserRecord>,
) -> Result<UserRecord, Unchanged> {
    for _ in 0..CONFLICTS_MAX {
        let changed = next(&record).ok_or(Unchanged::Refused)?;
        let replaced = users.replace(Some(record.revision()), &changed);
        match replaced.map_err(|StorageFailed| Unchanged::Unavailable)? {
            Replaced::Stored => return Ok(changed),
            Replaced::Conflict => {
                let again = users.load(record.username()).map_err(|StorageFailed| Unchanged::Unavailable)?;
                record = again.ok_or(Unchanged::Refused)?;
            }
        }
    }
    Err(Unchanged::Unavailable)
}
