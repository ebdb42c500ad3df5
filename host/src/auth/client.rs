//! The client: connections with the server through the network, one request at a time.

use std::io;
use std::time::Duration;

use bulbil_core::auth::client::{Act, ClientError, Connection, Discovery, Reply, Session};
use bulbil_core::auth::envelope::Greeting;
use bulbil_core::auth::{Frame, GREETING_LEN, KdfParameters, LENGTH_LEN, PasswordKey, PublicKey, Status};
use bulbil_core::wire::{Target, WireError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use super::route::{Route, RouteError, Stream};
use crate::random::SYSTEM;

/// Why a request has no answer.
#[derive(Debug)]
pub enum TalkError {
    /// The server was not reached.
    Route(RouteError),
    /// The connection broke.
    Broken(io::Error),
    /// The server, or somebody in between, closed the connection instead of answering.
    Closed,
    /// No answer in time.
    Deadline,
    /// What greets there is no such server.
    Greeting(WireError),
    /// The server greets with other parameters for hashing passwords than before.
    OtherParameters,
    /// What came is no answer.
    Protocol(ClientError),
}

impl TalkError {
    /// Whether that is how it looks when the server has another key than the one that was used.
    #[must_use]
    pub const fn may_be_another_key(&self) -> bool {
        matches!(self, Self::Closed | Self::Broken(_) | Self::Protocol(ClientError::Channel(_)))
    }
}

impl std::fmt::Display for TalkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let again = "what was asked may have been done or not, and asking again does no harm";
        match self {
            Self::Route(error) => write!(f, "the server was not reached: {error}"),
            Self::Broken(error) => write!(f, "the connection with the server broke ({error}); {again}"),
            Self::Closed => write!(f, "the server closed the connection without an answer; {again}"),
            Self::Deadline => write!(f, "no answer in time; {again}, --timeout gives it longer"),
            Self::Greeting(WireError::Invalid) => f.write_str(
                "the server, or somebody in between, asks for passwords to be hashed more weakly than is safe, or at a price that this client refuses; do not use it",
            ),
            Self::Greeting(_) => {
                f.write_str("what answers there is no authentication server of this version; is the address right?")
            }
            Self::OtherParameters => f.write_str(
                "the server changed how passwords are hashed between two connections; somebody may sit between: try again, perhaps over another network",
            ),
            Self::Protocol(ClientError::NoteTooLong) => f.write_str("a note has 1024 bytes at most; shorten it"),
            Self::Protocol(error) => write!(f, "the server's answer is not understood: {error}"),
        }
    }
}

impl std::error::Error for TalkError {}

impl From<ClientError> for TalkError {
    fn from(error: ClientError) -> Self {
        Self::Protocol(error)
    }
}

/// A server, and the way to it.
#[derive(Clone)]
pub struct Client {
    route: Route,
    server: Target,
    deadline: Duration,
}

impl Client {
    /// Talks to `server` over `route`; connecting and each request may take `deadline`.
    #[must_use]
    pub const fn new(route: Route, server: Target, deadline: Duration) -> Self {
        Self { route, server, deadline }
    }

    /// The server's address.
    #[must_use]
    pub const fn server(&self) -> &Target {
        &self.server
    }

    async fn greeted(&self) -> Result<(Wire, Greeting), TalkError> {
        let until = Instant::now() + self.deadline;
        let connect = timeout_at(until, self.route.connect(&self.server)).await;
        let stream = connect.map_err(|_| TalkError::Deadline)?.map_err(TalkError::Route)?;
        let mut wire = Wire { stream, deadline: self.deadline };
        let mut greeting = [0; GREETING_LEN];
        wire.read(until, &mut greeting).await?;
        let greeting = Greeting::parse(&greeting).map_err(TalkError::Greeting)?;
        Ok((wire, greeting))
    }

    /// Lets the server show that it holds this key, and say how it wants passwords hashed, on a connection that is closed again: hashing
    /// takes a while, in which a connection that says nothing would be the first to be closed by a busy server.
    ///
    /// # Errors
    /// [`TalkError`].
    pub async fn confirm(&self, key: &PublicKey) -> Result<KdfParameters, TalkError> {
        self.connect(key).await?.confirm().await
    }

    /// Asks for the server's key. Whether it is the right one only its fingerprint tells.
    ///
    /// # Errors
    /// [`TalkError`].
    pub async fn discover(&self) -> Result<PublicKey, TalkError> {
        let (mut wire, greeting) = self.greeted().await?;
        let mut frame = Frame::new();
        let discovery = Discovery::new(&greeting, &mut SYSTEM.clone(), &mut frame)?;
        let mut reply = wire.ask(&frame, |field| Ok(discovery.frame_len(field).map_err(ClientError::from)?)).await?;
        Ok(discovery.handle(&mut reply)?)
    }

    /// A connection with the server of this key.
    ///
    /// # Errors
    /// [`TalkError`].
    pub async fn connect(&self, key: &PublicKey) -> Result<Conversation, TalkError> {
        let (wire, greeting) = self.greeted().await?;
        Conversation::new(wire, &greeting, key)
    }

    /// Another connection with the server of this key, whose `parameters` were confirmed on an earlier one.
    ///
    /// # Errors
    /// [`TalkError::OtherParameters`] if it now greets with others; [`TalkError`].
    pub async fn reconnect(&self, key: &PublicKey, parameters: KdfParameters) -> Result<Conversation, TalkError> {
        let (wire, greeting) = self.greeted().await?;
        if greeting.parameters() != parameters {
            return Err(TalkError::OtherParameters);
        }
        Conversation::new(wire, &greeting, key)
    }
}

struct Wire {
    stream: Box<dyn Stream>,
    deadline: Duration,
}

impl Wire {
    async fn read(&mut self, until: Instant, bytes: &mut [u8]) -> Result<(), TalkError> {
        let read = timeout_at(until, self.stream.read_exact(bytes)).await.map_err(|_| TalkError::Deadline)?;
        read.map(drop).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => TalkError::Closed,
            _ => TalkError::Broken(error),
        })
    }

    /// Sends a frame and reads its reply.
    async fn ask(
        &mut self,
        frame: &Frame,
        frame_len: impl FnOnce([u8; LENGTH_LEN]) -> Result<usize, TalkError>,
    ) -> Result<Zeroizing<Vec<u8>>, TalkError> {
        let until = Instant::now() + self.deadline;
        let send = async {
            self.stream.write_all(frame.as_ref()).await?;
            self.stream.flush().await
        };
        timeout_at(until, send).await.map_err(|_| TalkError::Deadline)?.map_err(TalkError::Broken)?;
        let mut field = [0; LENGTH_LEN];
        self.read(until, &mut field).await?;
        let mut reply = Zeroizing::new(vec![0; frame_len(field)?]);
        self.read(until, &mut reply).await?;
        Ok(reply)
    }
}

/// What the server answered.
#[derive(Clone, PartialEq, Eq)]
pub enum Said {
    /// A challenge: [`Conversation::answer`] it.
    Challenged,
    /// The user's note.
    Note(Zeroizing<Vec<u8>>),
    /// How it went.
    Log(Status),
}

/// Without the note.
impl std::fmt::Debug for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Challenged => f.write_str("Challenged"),
            Self::Note(note) => write!(f, "Note({} bytes)", note.len()),
            Self::Log(status) => write!(f, "Log({status:?})"),
        }
    }
}

/// A connection with a server whose key is known. Several sessions may use it in turn.
pub struct Conversation {
    wire: Wire,
    connection: Connection,
    frame: Frame,
}

impl Conversation {
    fn new(wire: Wire, greeting: &Greeting, key: &PublicKey) -> Result<Self, TalkError> {
        let connection = Connection::new(greeting, key, &mut SYSTEM.clone()).map_err(ClientError::from)?;
        Ok(Self { wire, connection, frame: Frame::new() })
    }

    /// How the server wants passwords hashed; `None` until it has answered.
    #[must_use]
    pub fn parameters(&self) -> Option<KdfParameters> {
        self.connection.parameters()
    }

    /// Sends the frame that was made, and reads the reply's.
    async fn exchange(&mut self) -> Result<Zeroizing<Vec<u8>>, TalkError> {
        let connection = &self.connection;
        self.wire.ask(&self.frame, |field| Ok(connection.frame_len(field).map_err(ClientError::from)?)).await
    }

    /// Asks for nothing but an answer: it shows that the server holds its key, and that it wants passwords hashed as it said.
    ///
    /// # Errors
    /// [`TalkError`].
    pub async fn confirm(&mut self) -> Result<KdfParameters, TalkError> {
        self.connection.confirm(&mut self.frame)?;
        let mut reply = self.exchange().await?;
        Ok(self.connection.handle_confirmation(&mut reply)?)
    }

    async fn ask(&mut self, session: &mut Session) -> Result<Said, TalkError> {
        let mut reply = self.exchange().await?;
        Ok(match self.connection.handle(session, &mut reply)? {
            Reply::Challenged => Said::Challenged,
            Reply::Note(note) => Said::Note(Zeroizing::new(note.to_vec())),
            Reply::Log(status) => Said::Log(status),
        })
    }

    /// Asks for an account, whose first known session key is that of `session`: store the session before.
    ///
    /// # Errors
    /// [`TalkError`].
    pub async fn sign_up(&mut self, session: &mut Session, key: &PasswordKey) -> Result<Said, TalkError> {
        self.connection.sign_up(session, key, &mut SYSTEM.clone(), &mut self.frame)?;
        self.ask(session).await
    }

    /// Begins to sign in: [`Said::Challenged`], or at once how it went.
    ///
    /// # Errors
    /// [`TalkError`].
    pub async fn begin(&mut self, session: &mut Session) -> Result<Said, TalkError> {
        self.connection.sign_in(session, &mut SYSTEM.clone(), &mut self.frame)?;
        self.ask(session).await
    }

    /// Answers the challenge.
    ///
    /// # Errors
    /// [`TalkError`].
    pub async fn answer(&mut self, session: &mut Session, key: &PasswordKey) -> Result<Said, TalkError> {
        self.connection.answer(session, key, &mut self.frame)?;
        self.ask(session).await
    }

    /// Signs in: begins, and answers the challenge if one comes.
    ///
    /// # Errors
    /// [`TalkError`].
    pub async fn sign_in(&mut self, session: &mut Session, key: &PasswordKey) -> Result<Said, TalkError> {
        match self.begin(session).await? {
            Said::Challenged => self.answer(session, key).await,
            said => Ok(said),
        }
    }

    /// Reads or writes the user's note.
    ///
    /// # Errors
    /// [`TalkError`].
    pub async fn act(&mut self, session: &mut Session, act: Act<'_>) -> Result<Said, TalkError> {
        self.connection.act(session, act, &mut SYSTEM.clone(), &mut self.frame)?;
        self.ask(session).await
    }

    /// Ends the session.
    ///
    /// # Errors
    /// [`TalkError`].
    pub async fn disconnect(&mut self, session: &mut Session) -> Result<Said, TalkError> {
        self.connection.disconnect(session, &mut SYSTEM.clone(), &mut self.frame)?;
        self.ask(session).await
    }
}
