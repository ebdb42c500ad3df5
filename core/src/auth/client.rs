//! The client's side: a session, which outlives its connections, and a connection, `PROTOCOL.md` section 17.
//!
//! One request at a time: a method puts a frame into the caller's [`Frame`]; once that is sent, the reply's frame goes to
//! [`Connection::handle`]. A connection that failed is of no more use; nothing that it was asked to do is done twice by
//! asking again on another.
//!
//! What a greeting says is anybody's word until the server has answered: hash no password before
//! [`Connection::parameters`] tells how. When signing in that is once the challenge is there; before signing up
//! [`Connection::confirm`] asks for an answer.

use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::challenge::Challenge;
use super::envelope::{Channel, ChannelFailed, Expected, Frame, Greeting, LENGTH_LEN, Opening};
use super::key::{Fingerprint, PublicKey, SessionSecret};
use super::message::{Content, Message, MessageError, Request};
use super::name::{USERNAME_MAX_LEN, Username};
use super::password::{KdfParameters, PasswordKey};
use super::record::NOTE_MAX_LEN;
use super::server::{READ, SIGN_UP_LEN, WRITE};
use super::status::{SessionNumber, Status};
use crate::crypto::identity::SigningFailed;
use crate::wire::{Reader, WireError, Writer};

/// Bytes of the longest exported session.
pub const SESSION_MAX_LEN: usize = SESSION_HEAD_LEN + USERNAME_MAX_LEN + SECRET_MAX_LEN;

const SESSION_HEAD_LEN: usize = 1 + Fingerprint::LEN + 1 + 8 + 1;
/// What `SecretBytes` holds at most.
const SECRET_MAX_LEN: usize = 1280;
const SESSION_VERSION: u8 = 1;
const SIGNED_OUT: u8 = 0;
const SIGNED_IN: u8 = 1;

/// Why a request was not made or a reply not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientError {
    /// The server's frame does not belong to this connection. It may not be the server that was meant.
    Channel(ChannelFailed),
    /// The frame holds no message.
    Message(MessageError),
    /// A message that is no reply to what was asked.
    Unexpected,
    /// The session belongs to another server (the caller's mistake).
    OtherServer,
    /// A request before the last one's reply, or an answer without a challenge (the caller's mistake).
    OutOfTurn,
    /// The note is longer than [`NOTE_MAX_LEN`].
    NoteTooLong,
    /// Signing failed.
    Signing(SigningFailed),
}

impl core::fmt::Display for ClientError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Channel(error) => error.fmt(f),
            Self::Message(error) => error.fmt(f),
            Self::Unexpected => f.write_str("not a reply to what was asked"),
            Self::OtherServer => f.write_str("the session belongs to another server"),
            Self::OutOfTurn => f.write_str("not the time for this request"),
            Self::NoteTooLong => f.write_str("note is too long"),
            Self::Signing(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ClientError {}

impl From<ChannelFailed> for ClientError {
    fn from(error: ChannelFailed) -> Self {
        Self::Channel(error)
    }
}

/// Whether a session may act, as far as the client knows. The server decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Not signed in, or signed out, or refused.
    SignedOut,
    /// Signed in; nothing else has been heard since.
    SignedIn(SessionNumber),
}

/// A user's session on this computer: the key that signs for it. Wiped when dropped.
///
/// The key is kept from the sign-up and over sign-ins: a key that has signed up or in before is not slowed by the wrong answers
/// of strangers.
pub struct Session {
    username: Username,
    server: Fingerprint,
    secret: SessionSecret,
    standing: Standing,
}

impl Session {
    /// A session, not signed in, of `username` at the server with this key.
    #[must_use]
    pub fn new(username: Username, server: &PublicKey, secret: SessionSecret) -> Self {
        Self { username, server: server.fingerprint(), secret, standing: Standing::SignedOut }
    }

    /// Whose session it is.
    #[must_use]
    pub const fn username(&self) -> &Username {
        &self.username
    }

    /// The server that it belongs to.
    #[must_use]
    pub const fn server(&self) -> &Fingerprint {
        &self.server
    }

    /// Whether it may act.
    #[must_use]
    pub const fn standing(&self) -> Standing {
        self.standing
    }

    /// The public half of the session's key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.secret.public()
    }

    /// The session for storage. It holds the key: treat it as a secret.
    #[must_use]
    pub fn export(&self) -> SessionBytes {
        let mut session = SessionBytes { bytes: Zeroizing::new([0; SESSION_MAX_LEN]), len: 0 };
        let mut writer = Writer::new(session.bytes.as_mut_slice());
        self.emit(&mut writer).expect("the capacity is that of the longest username and key");
        session.len = writer.len();
        session
    }

    fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        let (standing, SessionNumber(number)) = match self.standing {
            Standing::SignedOut => (SIGNED_OUT, SessionNumber(0)),
            Standing::SignedIn(number) => (SIGNED_IN, number),
        };
        writer.put(&[SESSION_VERSION])?;
        writer.put(self.server.as_bytes())?;
        writer.put(&[standing])?;
        writer.put(&number.to_be_bytes())?;
        writer.put(&[self.username.as_bytes().len() as u8])?;
        writer.put(self.username.as_bytes())?;
        writer.put(self.secret.to_pkcs8().as_ref())
    }

    /// The session that was exported.
    ///
    /// # Errors
    /// [`WireError`] for bytes that [`Self::export`] does not give.
    pub fn import(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != SESSION_VERSION {
            return Err(WireError::UnknownCode);
        }
        let server = Fingerprint::from_bytes(*reader.array()?);
        let standing = match (reader.u8()?, reader.u64()?) {
            (SIGNED_OUT, 0) => Standing::SignedOut,
            (SIGNED_OUT, _) => return Err(WireError::NotZero),
            (SIGNED_IN, number) => Standing::SignedIn(SessionNumber(number)),
            _ => return Err(WireError::UnknownCode),
        };
        let len = reader.u8()?;
        let username = core::str::from_utf8(reader.take(len.into())?).map_err(|_| WireError::Invalid)?;
        let username = Username::new(username)?;
        let secret = SessionSecret::from_pkcs8(reader.rest()).map_err(|_| WireError::Invalid)?;
        Ok(Self { username, server, secret, standing })
    }
}

/// An exported session, wiped when dropped.
pub struct SessionBytes {
    bytes: Zeroizing<[u8; SESSION_MAX_LEN]>,
    len: usize,
}

impl AsRef<[u8]> for SessionBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What to do with the user's note.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Act<'a> {
    /// Get it.
    Read,
    /// Put this in its place; at most [`NOTE_MAX_LEN`] bytes.
    Write(&'a [u8]),
}

/// What the server replied.
#[derive(Clone, PartialEq, Eq)]
pub enum Reply<'a> {
    /// Continue with [`Connection::answer`].
    Challenged,
    /// The note.
    Note(&'a [u8]),
    /// How it went.
    Log(Status),
}

/// Without the note.
impl core::fmt::Debug for Reply<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Challenged => f.write_str("Challenged"),
            Self::Note(note) => write!(f, "Note({} bytes)", note.len()),
            Self::Log(status) => write!(f, "Log({status:?})"),
        }
    }
}

/// A connection that only asks for the server's key.
pub struct Discovery(Channel);

impl Discovery {
    /// Puts the question into `frame`.
    ///
    /// # Errors
    /// [`ClientError::Channel`] for a greeting that nobody may be greeted with.
    pub fn new(greeting: &Greeting, rng: &mut dyn CryptoRng, frame: &mut Frame) -> Result<Self, ClientError> {
        let (mut channel, opening) = Channel::connect(greeting, None, rng)?;
        let message = Message::unsigned(Username::nobody(), Request::PublicKey, Content::Raw(&[]));
        channel.seal(&message, Some(&opening), frame).map_err(|_| ChannelFailed)?;
        Ok(Self(channel))
    }

    /// How many bytes follow a length field of these bytes.
    ///
    /// # Errors
    /// [`ChannelFailed`] if no such frame may come.
    pub fn frame_len(&self, field: [u8; LENGTH_LEN]) -> Result<usize, ChannelFailed> {
        Expected::Sealed.frame_len(field)
    }

    /// The key in the reply's frame (without its length field). Nothing says yet whose it is: compare its fingerprint with
    /// the one that was pinned or remembered, or remember it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn handle(mut self, frame: &mut [u8]) -> Result<PublicKey, ClientError> {
        let message = Message::parse(self.0.open(frame)?).map_err(ClientError::Message)?;
        match (message.request, message.content) {
            (Request::PublicKey, Content::Key(key)) => Ok(key),
            _ => Err(ClientError::Unexpected),
        }
    }
}

/// A connection with a server whose key is known.
pub struct Connection {
    channel: Channel,
    server: Fingerprint,
    parameters: KdfParameters,
    /// Whether the server has answered, which nobody else can.
    confirmed: bool,
    /// Until the first frame has been made.
    opening: Option<Opening>,
    awaiting: Awaiting,
}

#[derive(Clone)]
enum Awaiting {
    Nothing,
    Confirmation,
    SignedUp,
    Challenge,
    /// Nothing, but an answer may be given.
    Answering(Challenge),
    SignedIn,
    Note,
    NoteKept,
    Disconnected,
}

impl Connection {
    /// Takes up the server's greeting. Nothing is sent before the first request.
    ///
    /// # Errors
    /// [`ChannelFailed`] for a greeting or key that nobody may have.
    pub fn new(greeting: &Greeting, server: &PublicKey, rng: &mut dyn CryptoRng) -> Result<Self, ChannelFailed> {
        let (channel, opening) = Channel::connect(greeting, Some(server), rng)?;
        Ok(Self {
            channel,
            server: server.fingerprint(),
            parameters: greeting.parameters(),
            confirmed: false,
            opening: Some(opening),
            awaiting: Awaiting::Nothing,
        })
    }

    /// How the server wants passwords hashed; `None` until it has answered on this connection, which shows that it holds its key
    /// and that the greeting is its own. Whoever hashes earlier can be made to work by anybody in between.
    #[must_use]
    pub fn parameters(&self) -> Option<KdfParameters> {
        self.confirmed.then_some(self.parameters)
    }

    /// Asks for nothing but an answer; it goes to [`Self::handle_confirmation`].
    ///
    /// # Errors
    /// [`ClientError::OutOfTurn`].
    pub fn confirm(&mut self, frame: &mut Frame) -> Result<(), ClientError> {
        self.in_turn()?;
        let message = Message::unsigned(Username::nobody(), Request::PublicKey, Content::Raw(&[]));
        self.send(&message, Awaiting::Confirmation, frame)
    }

    /// Takes the frame (without its length field) of the reply to [`Self::confirm`], and answers as [`Self::parameters`] from then on.
    ///
    /// # Errors
    /// [`ClientError`]: close the connection.
    pub fn handle_confirmation(&mut self, frame: &mut [u8]) -> Result<KdfParameters, ClientError> {
        let (awaiting, message) = self.open(frame)?;
        match (awaiting, message.request, message.content) {
            (Awaiting::Confirmation, Request::PublicKey, Content::Key(key)) if key.fingerprint() == self.server => {
                Ok(self.parameters)
            }
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Asks for an account whose password key is `key`, and whose first known session key is that of `session`: store the
    /// session before.
    ///
    /// # Errors
    /// [`ClientError`], the caller's mistakes.
    pub fn sign_up(
        &mut self,
        session: &Session,
        key: &PasswordKey,
        rng: &mut dyn CryptoRng,
        frame: &mut Frame,
    ) -> Result<(), ClientError> {
        let mut content = Zeroizing::new([0; SIGN_UP_LEN]);
        let mut writer = Writer::new(content.as_mut_slice());
        let written = writer.put(key.as_bytes()).and_then(|()| writer.put(&session.secret.public().to_der()));
        written.expect("the length is that of the two");
        self.send_signed(session, Request::SignUp, Content::Raw(content.as_slice()), Awaiting::SignedUp, rng, frame)
    }

    /// Begins to sign in.
    ///
    /// # Errors
    /// [`ClientError`], the caller's mistakes.
    pub fn sign_in(
        &mut self,
        session: &Session,
        rng: &mut dyn CryptoRng,
        frame: &mut Frame,
    ) -> Result<(), ClientError> {
        let content = Content::Key(session.secret.public());
        self.send_signed(session, Request::SignIn, content, Awaiting::Challenge, rng, frame)
    }

    /// Answers the challenge.
    ///
    /// # Errors
    /// [`ClientError`], the caller's mistakes.
    pub fn answer(&mut self, session: &Session, key: &PasswordKey, frame: &mut Frame) -> Result<(), ClientError> {
        let Awaiting::Answering(challenge) = &self.awaiting else { return Err(ClientError::OutOfTurn) };
        let answer = challenge.answer(key, self.channel.binding(), &session.secret.public());
        self.ready(session)?;
        let message = Message::unsigned(session.username.clone(), Request::Challenge, Content::Raw(answer.as_ref()));
        self.send(&message, Awaiting::SignedIn, frame)
    }

    /// Reads or writes the user's note.
    ///
    /// # Errors
    /// [`ClientError`], the caller's mistakes.
    pub fn act(
        &mut self,
        session: &Session,
        act: Act<'_>,
        rng: &mut dyn CryptoRng,
        frame: &mut Frame,
    ) -> Result<(), ClientError> {
        let Act::Write(note) = act else {
            let content = Content::Text(core::str::from_utf8(READ).expect("letters"));
            return self.send_signed(session, Request::Act, content, Awaiting::Note, rng, frame);
        };
        if note.len() > NOTE_MAX_LEN {
            return Err(ClientError::NoteTooLong);
        }
        let mut bytes = Zeroizing::new([0; WRITE.len() + NOTE_MAX_LEN]);
        let mut writer = Writer::new(bytes.as_mut_slice());
        writer.put(WRITE).and_then(|()| writer.put(note)).map_err(|_| ClientError::NoteTooLong)?;
        let len = writer.len();
        self.send_signed(session, Request::Act, Content::Raw(&bytes[..len]), Awaiting::NoteKept, rng, frame)
    }

    /// Ends the session.
    ///
    /// # Errors
    /// [`ClientError`], the caller's mistakes.
    pub fn disconnect(
        &mut self,
        session: &Session,
        rng: &mut dyn CryptoRng,
        frame: &mut Frame,
    ) -> Result<(), ClientError> {
        self.send_signed(session, Request::Disconnect, Content::Raw(&[]), Awaiting::Disconnected, rng, frame)
    }

    /// How many bytes follow a length field of these bytes.
    ///
    /// # Errors
    /// [`ChannelFailed`] if no such frame may come: close the connection.
    pub fn frame_len(&self, field: [u8; LENGTH_LEN]) -> Result<usize, ChannelFailed> {
        Expected::Sealed.frame_len(field)
    }

    /// Takes the reply's frame (without its length field), and notes in `session` what it means for it: store the session
    /// afterwards.
    ///
    /// # Errors
    /// [`ClientError`]: close the connection. What the request did is not known.
    pub fn handle<'a>(&mut self, session: &mut Session, frame: &'a mut [u8]) -> Result<Reply<'a>, ClientError> {
        let (awaiting, message) = self.open(frame)?;
        let not_understood = Username::nobody() == message.username;
        if message.username != session.username && !not_understood {
            return Err(ClientError::Unexpected);
        }
        match (awaiting, message.request, message.content) {
            (Awaiting::Challenge, Request::Challenge, Content::Text(text)) => {
                let challenge = Challenge::parse(text, &session.username).ok_or(ClientError::Unexpected)?;
                // Whoever has the session is not asked.
                session.standing = Standing::SignedOut;
                self.awaiting = Awaiting::Answering(challenge);
                Ok(Reply::Challenged)
            }
            (Awaiting::Note, Request::Act, Content::Raw(note)) => Ok(Reply::Note(note)),
            (awaiting, Request::Log, Content::Text(text)) => {
                let status = Status::parse(text).ok_or(ClientError::Unexpected)?;
                session.standing = awaiting.standing_after(status, session.standing).ok_or(ClientError::Unexpected)?;
                Ok(Reply::Log(status))
            }
            _ => Err(ClientError::Unexpected),
        }
    }

    /// The message in a frame, and what was awaited until now.
    fn open<'a>(&mut self, frame: &'a mut [u8]) -> Result<(Awaiting, Message<'a>), ClientError> {
        let awaiting = core::mem::replace(&mut self.awaiting, Awaiting::Nothing);
        let message = self.channel.open(frame)?;
        self.confirmed = true;
        Ok((awaiting, Message::parse(message).map_err(ClientError::Message)?))
    }

    const fn in_turn(&self) -> Result<(), ClientError> {
        match self.awaiting {
            Awaiting::Nothing | Awaiting::Answering(_) => Ok(()),
            _ => Err(ClientError::OutOfTurn),
        }
    }

    fn ready(&self, session: &Session) -> Result<(), ClientError> {
        self.in_turn()?;
        if session.server == self.server { Ok(()) } else { Err(ClientError::OtherServer) }
    }

    fn send_signed(
        &mut self,
        session: &Session,
        request: Request,
        content: Content<'_>,
        awaiting: Awaiting,
        rng: &mut dyn CryptoRng,
        frame: &mut Frame,
    ) -> Result<(), ClientError> {
        self.ready(session)?;
        let (username, binding) = (session.username.clone(), self.channel.binding());
        let message = Message::signed(username, request, content, &session.secret, binding, rng);
        self.send(&message.map_err(ClientError::Signing)?, awaiting, frame)
    }

    fn send(&mut self, message: &Message<'_>, awaiting: Awaiting, frame: &mut Frame) -> Result<(), ClientError> {
        let sealed = self.channel.seal(message, self.opening.as_ref(), frame);
        sealed.expect("no request's content is longer than a content may be");
        self.opening = None;
        self.awaiting = awaiting;
        Ok(())
    }
}

/// What tests of misbehaviour need.
#[cfg(test)]
impl Connection {
    pub(super) const fn binding(&self) -> &super::envelope::Binding {
        self.channel.binding()
    }

    pub(super) fn challenge(&self) -> Option<Challenge> {
        match &self.awaiting {
            Awaiting::Answering(challenge) => Some(challenge.clone()),
            _ => None,
        }
    }

    pub(super) fn send_raw(&mut self, message: &Message<'_>, frame: &mut Frame) {
        self.send(message, Awaiting::Nothing, frame).unwrap();
    }

    pub(super) fn open_raw(&mut self, frame: &mut [u8]) -> super::testing::Said {
        use super::testing::Said;
        let message = Message::parse(self.channel.open(frame).unwrap()).unwrap();
        match (message.request, message.content) {
            (Request::Challenge, _) => Said::Challenged,
            (Request::Act, Content::Raw(note)) => Said::Note(note.to_vec()),
            (Request::Log, Content::Text(text)) => Said::Log(Status::parse(text).unwrap()),
            (request, _) => panic!("{request:?} is no reply"),
        }
    }
}

impl Awaiting {
    /// What a session is after `status` came in reply to this, or `None` if that is no reply to it.
    fn standing_after(&self, status: Status, before: Standing) -> Option<Standing> {
        match (self, status) {
            (Self::Nothing | Self::Confirmation | Self::Answering(_), _) => None,
            (Self::SignedIn, Status::SignedIn(number)) | (Self::Challenge, Status::AlreadySignedIn(number)) => {
                Some(Standing::SignedIn(number))
            }
            (Self::Disconnected, Status::Disconnected) => Some(Standing::SignedOut),
            // The user's session is another one now, or none.
            (Self::Note | Self::NoteKept | Self::Disconnected, Status::Refused)
            | (Self::Challenge, Status::RetryAfter(_)) => Some(Standing::SignedOut),
            (Self::SignedUp, Status::SignedUp | Status::NameTaken)
            | (Self::NoteKept, Status::NoteKept)
            | (Self::SignedIn, Status::RetryAfter(_))
            | (Self::SignedUp | Self::Challenge | Self::SignedIn, Status::Refused)
            | (_, Status::NotUnderstood | Status::Unavailable) => Some(before),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
