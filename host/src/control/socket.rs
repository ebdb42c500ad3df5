//! The socket in the state directory: where it is, who may use it, and that a dead process's is in nobody's way.

use std::fmt;
use std::fs::Permissions;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixListener;

use crate::state::StateDir;

/// The socket's name in the state directory.
pub const SOCKET_NAME: &str = "control";

/// Longest path of a Unix socket in bytes: the system's 108, with the zero behind it.
const PATH_MAX: usize = 107;

/// Why there is no socket.
#[derive(Debug)]
pub enum SocketError {
    /// Its path is longer than a socket's may be.
    TooLong(PathBuf),
    /// Something else stands in its place.
    NotASocket(PathBuf),
    /// What the system reports.
    Io(PathBuf, io::Error),
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(path) => write!(
                f,
                "the path of the control socket, {}, has {} bytes, and a socket's may have {PATH_MAX}; use a state directory \
                 with a shorter path, or name it relative to the current directory",
                path.display(),
                path.as_os_str().len()
            ),
            Self::NotASocket(path) => {
                write!(f, "{} is in the place of the control socket and is none; move it away", path.display())
            }
            Self::Io(path, error) => {
                write!(f, "the control socket {}: {error}", path.display())?;
                match error.kind() {
                    io::ErrorKind::PermissionDenied => f.write_str("; run as the user that the node runs as"),
                    _ => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for SocketError {}

/// Where the socket of the state directory `dir` is.
///
/// # Errors
/// [`SocketError::TooLong`].
pub(super) fn path_in(dir: &Path) -> Result<PathBuf, SocketError> {
    let path = dir.join(SOCKET_NAME);
    match path.as_os_str().as_bytes().len() {
        0..=PATH_MAX => Ok(path),
        _ => Err(SocketError::TooLong(path)),
    }
}

/// A listening socket. Dropping it removes its file.
#[derive(Debug)]
pub struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// As long as the socket is there, so is the lock: nobody else's can be removed by mistake.
    _state: Arc<StateDir>,
}

impl Socket {
    /// Makes the socket, mode 0600, in place of one that a process left which did not end well: whoever holds the directory's lock
    /// knows that nobody listens there.
    ///
    /// # Errors
    /// [`SocketError`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn bind(state: &Arc<StateDir>) -> Result<Self, SocketError> {
        let path = path_in(state.path())?;
        let failed = |error| SocketError::Io(path.clone(), error);
        match path.symlink_metadata() {
            Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(&path).map_err(failed)?,
            Ok(_) => return Err(SocketError::NotASocket(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        let this = Self { listener, path: path.clone(), _state: Arc::clone(state) };
        // Until here the directory's mode has kept others out.
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(this)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // What cannot be removed is replaced at the next start.
        let _left_behind = std::fs::remove_file(&self.path);
    }
}
