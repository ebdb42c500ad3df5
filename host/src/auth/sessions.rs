//! Sessions between commands: one file for each server and user in the client's state directory, mode 0600, replaced as a whole.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use bulbil_core::auth::client::{SESSION_MAX_LEN, Session, SessionBytes};
use bulbil_core::auth::key::SessionSecret;
use bulbil_core::auth::{PublicKey, Username};
use zeroize::Zeroizing;

use crate::random::SYSTEM;
use crate::state::{self, Problem, StateError};

/// The sessions of a client's state directory.
pub struct Sessions(PathBuf);

impl Sessions {
    /// Those of the state directory `dir`, which is made if it does not exist.
    ///
    /// # Errors
    /// A directory that others may enter; what the system reports.
    pub fn of(dir: &Path) -> Result<Self, StateError> {
        state::private_dir(dir)?;
        let sessions = dir.join("sessions");
        state::private_dir(&sessions)?;
        Ok(Self(sessions))
    }

    /// The file of a user's session. Usernames have no character that means something in a path, and the server's fingerprint stands before them.
    #[must_use]
    pub fn path(&self, server: &PublicKey, username: &Username) -> PathBuf {
        self.0.join(format!("{}.{}", server.fingerprint(), username.as_str()))
    }

    /// The session that was stored, if there is one.
    ///
    /// # Errors
    /// A file that others may read, or that is damaged.
    pub fn load(&self, server: &PublicKey, username: &Username) -> Result<Option<Session>, StateError> {
        let path = self.path(server, username);
        let fail = |problem| StateError { path: path.clone(), problem };
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(Problem::Io(error))),
        };
        let metadata = file.metadata().map_err(|error| fail(Problem::Io(error)))?;
        state::check_private(&path, &metadata)?;
        if metadata.len() > SESSION_MAX_LEN as u64 {
            return Err(fail(Problem::TooLong));
        }
        let mut bytes = Zeroizing::new(vec![0; usize::try_from(metadata.len()).unwrap_or(0)]);
        file.read_exact(&mut bytes).map_err(|error| fail(Problem::Io(error)))?;
        let session = Session::import(&bytes).map_err(|_| fail(Problem::Garbage))?;
        let right = session.username() == username && *session.server() == server.fingerprint();
        if right { Ok(Some(session)) } else { Err(fail(Problem::Mismatch)) }
    }

    /// The stored session, or a new one with a fresh key (tenths of a second), which is not stored yet.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_or_new(&self, server: &PublicKey, username: &Username) -> Result<Session, StateError> {
        let fresh = || Session::new(username.clone(), server, SessionSecret::generate(&mut SYSTEM.clone()));
        Ok(self.load(server, username)?.unwrap_or_else(fresh))
    }

    /// Stores a session of `server`.
    ///
    /// # Errors
    /// What the system reports; the old content then is untouched.
    pub fn store(&self, server: &PublicKey, session: &Session) -> Result<(), StateError> {
        let bytes: SessionBytes = session.export();
        state::write_private(&self.path(server, session.username()), bytes.as_ref(), true)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use bulbil_core::auth::ServerSecret;

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_session_is_kept_private_and_whole() {
        let dir = Scratch::new("sessions");
        let sessions = Sessions::of(&dir.path().join("state")).unwrap();
        let key = || ServerSecret::generate(&mut SYSTEM.clone()).public();
        let (server, other) = (key(), key());
        let (alice, bob) = (Username::new("alice").unwrap(), Username::new("..").unwrap());
        assert!(sessions.load(&server, &alice).unwrap().is_none());
        let session = sessions.load_or_new(&server, &alice).unwrap();
        sessions.store(&server, &session).unwrap();
        let again = sessions.load_or_new(&server, &alice).unwrap();
        assert_eq!(again.public(), session.public());
        assert!(sessions.load(&other, &alice).unwrap().is_none());
        assert!(sessions.load(&server, &bob).unwrap().is_none());

        let path = sessions.path(&server, &alice);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        // Another user's file under this name.
        std::fs::copy(&path, sessions.path(&server, &bob)).unwrap();
        assert!(matches!(sessions.load(&server, &bob).err().unwrap().problem, Problem::Mismatch));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(sessions.load(&server, &alice).is_err());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let told = sessions.load(&server, &alice).err().unwrap().to_string();
        assert!(told.contains("chmod"), "{told}");
    }
}
