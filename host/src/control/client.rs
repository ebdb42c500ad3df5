//! The other end of the socket: what `bulbil status` and `bulbil phonebook` do. Blocking, for a command has nothing else to do.

use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file::FILE_MAX;
use super::message::{self, Answer, Ask, Complaint, LineError, REPLY_MAX, Reply, Request, VERSION};
use super::socket::{SocketError, path_in};

/// How long a node may be silent. Long: it may have thousands of signatures to verify, on a busy machine.
const SILENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug)]
pub enum ClientError {
    /// The socket cannot be reached.
    Socket(SocketError),
    /// The conversation broke.
    Io(PathBuf, io::Error),
    /// The node speaks another version of the protocol.
    Version(u32),
    /// What came is no answer.
    Garbage(PathBuf),
    /// The node refuses.
    Refused(Complaint, String),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(error) => error.fmt(f),
            Self::Io(path, error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => write!(
                    f,
                    "the node at {} has not answered for {} s; is it stopped, or the machine very busy?",
                    path.display(),
                    SILENCE.as_secs()
                ),
                _ => write!(f, "the conversation with the node at {} broke: {error}", path.display()),
            },
            Self::Version(version) => write!(
                f,
                "the node speaks version {version} of the control protocol and this program version {VERSION}; use the same \
                 version of bulbil for both"
            ),
            Self::Garbage(path) => write!(f, "whoever answers at {} does not talk like a bulbil node", path.display()),
            Self::Refused(_, text) => f.write_str(text),
        }
    }
}

impl std::error::Error for ClientError {}

/// A connection to a running node, good for one request.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
}

impl Client {
    /// Connects to the node that runs with the state directory `dir`; `None` if none does.
    ///
    /// # Errors
    /// The system refuses, or the path is too long for a socket.
    pub fn connect(dir: &Path) -> Result<Option<Self>, ClientError> {
        let path = path_in(dir).map_err(ClientError::Socket)?;
        let stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            // No socket, or one that nobody listens at.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(ClientError::Socket(SocketError::Io(path, error))),
        };
        let timeouts = stream.set_read_timeout(Some(SILENCE)).and_then(|()| stream.set_write_timeout(Some(SILENCE)));
        timeouts.map_err(|error| ClientError::Io(path.clone(), error))?;
        Ok(Some(Self { stream, path }))
    }

    /// Asks, with the file that belongs to it if it is an import. Answers the reply, and the file that belongs to that if it is an export.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn ask(self, ask: Ask, file: &[u8]) -> Result<(Reply, Vec<u8>), ClientError> {
        let Self { mut stream, path } = self;
        let broken = |error| ClientError::Io(path.clone(), error);
        let request = message::write_line(&Request::new(ask));
        let written = stream.write_all(&request).and_then(|()| stream.write_all(file));
        // A node that refuses may say so without having read everything; its word is worth more than the broken pipe.
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        let read = reader.by_ref().take(REPLY_MAX as u64).read_until(b'\n', &mut line);
        if line.pop_if(|end| *end == b'\n').is_none() {
            written.map_err(broken)?;
            read.map_err(broken)?;
            return match line.is_empty() {
                true => Err(broken(io::ErrorKind::UnexpectedEof.into())),
                false => Err(ClientError::Garbage(path)),
            };
        }
        let answer: Answer = message::read_line(&line).map_err(|error| match error {
            LineError::Version(version) => ClientError::Version(version),
            LineError::Garbage(_) => ClientError::Garbage(path.clone()),
        })?;
        let len = match answer.reply {
            Reply::Error { kind, text } => return Err(ClientError::Refused(kind, text)),
            Reply::Export { bytes, .. } if bytes <= FILE_MAX => bytes,
            Reply::Export { .. } => return Err(ClientError::Garbage(path)),
            _ => 0,
        };
        let mut file = Vec::new();
        reader.take(len).read_to_end(&mut file).map_err(broken)?;
        match file.len() as u64 == len {
            true => Ok((answer.reply, file)),
            false => Err(broken(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}
