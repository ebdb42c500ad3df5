//! Sessions between commands: one file for each server and user in the client's state directory, mode 0600, replaced as a whole.
//!
//! Several commands at once are kept apart by a lock for each server and user, from loading a session over what the server says to storing what
//! became of it: so a session's number never goes back, and no key that the server knows is overwritten by another one.

use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};

use bulbil_core::auth::client::{SESSION_MAX_LEN, Session, SessionBytes};
use bulbil_core::auth::key::SessionSecret;
use bulbil_core::auth::{PublicKey, Username};
use zeroize::Zeroizing;

use crate::random::SYSTEM;
use crate::state::{self, Problem, StateError};

/// The sessions of a client's state directory.
#[derive(Debug, Clone)]
pub struct Sessions(PathBuf);

impl Sessions {
    /// Those of the state directory `dir`, which is made if it does not exist. What commands that were killed have left there is removed.
    ///
    /// # Errors
    /// A directory that others may enter; what the system reports.
    pub fn of(dir: &Path) -> Result<Self, StateError> {
        state::private_dir(dir)?;
        let sessions = dir.join("sessions");
        state::private_dir(&sessions)?;
        state::remove_left_behind(&sessions, None);
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

    /// Keeps a user's session for this command until the value is dropped. While another command has it, waits, after it has called
    /// `waits`: call this where blocking is allowed.
    ///
    /// # Errors
    /// What the system reports.
    pub fn hold(&self, server: &PublicKey, username: &Username, waits: impl FnOnce()) -> Result<Held, StateError> {
        // No session's file begins with a dot, and no temporary file ends so.
        let path = self.0.join(format!(".{}.{}.lock", server.fingerprint(), username.as_str()));
        let lock = state::lock_file(&path)?;
        let locked = match lock.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                waits();
                lock.lock()
            }
            Err(TryLockError::Error(error)) => Err(error),
        };
        locked.map_err(|error| StateError { path, problem: Problem::Io(error) })?;
        Ok(Held { sessions: self.clone(), server: server.clone(), username: username.clone(), _lock: lock })
    }
}

/// A user's session that no other command loads to change it, or stores, as long as the value lives.
#[derive(Debug)]
pub struct Held {
    sessions: Sessions,
    server: PublicKey,
    username: Username,
    /// Holds the lock; closing the file releases it, also when the process is killed.
    _lock: File,
}

impl Held {
    /// The session that was stored, if there is one.
    ///
    /// # Errors
    /// As [`Sessions::load`].
    pub fn load(&self) -> Result<Option<Session>, StateError> {
        self.sessions.load(&self.server, &self.username)
    }

    /// The stored session, or a new one with a fresh key (tenths of a second), which is stored before anybody is told of it.
    ///
    /// # Errors
    /// As [`Self::load`] and [`Self::store`].
    pub fn load_or_new(&self) -> Result<Session, StateError> {
        if let Some(session) = self.load()? {
            return Ok(session);
        }
        let session = Session::new(self.username.clone(), &self.server, SessionSecret::generate(&mut SYSTEM.clone()));
        self.store(&session)?;
        Ok(session)
    }

    /// Stores what became of the session.
    ///
    /// # Errors
    /// What the system reports; the old content then is untouched.
    pub fn store(&self, session: &Session) -> Result<(), StateError> {
        let bytes: SessionBytes = session.export();
        state::write_private(&self.sessions.path(&self.server, &self.username), bytes.as_ref(), true)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use bulbil_core::auth::client::Standing;
    use bulbil_core::auth::{ServerSecret, SessionNumber};

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
        let held = sessions.hold(&server, &alice, || panic!("nobody else has it")).unwrap();
        let session = held.load_or_new().unwrap();
        // Stored already.
        let again = sessions.load(&server, &alice).unwrap().unwrap();
        assert_eq!(again.public(), session.public());
        assert_eq!(held.load_or_new().unwrap().public(), session.public());
        drop(held);
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
    /// The session as it is after its next sign-in, with what the server would have said put in by hand.
    fn next(session: &Session) -> Session {
        let mut bytes = session.export().as_ref().to_vec();
        let Standing::SignedIn(SessionNumber(number)) = session.standing() else {
            bytes[33] = 1;
            bytes[34..42].copy_from_slice(&1u64.to_be_bytes());
            return Session::import(&bytes).unwrap();
        };
        bytes[34..42].copy_from_slice(&(number + 1).to_be_bytes());
        Session::import(&bytes).unwrap()
    }

    #[test]
    fn commands_at_once_lose_no_session() {
        let dir = Scratch::new("sessions");
        let server = ServerSecret::generate(&mut SYSTEM.clone()).public();
        let alice = Username::new("alice").unwrap();
        let command = || {
            // Each is a command of its own, with a lock of its own.
            let sessions = Sessions::of(&dir.path().join("state")).unwrap();
            let held = sessions.hold(&server, &alice, || {}).unwrap();
            let session = held.load_or_new().unwrap();
            held.store(&next(&session)).unwrap();
            session.public()
        };
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..25).map(|_| command()).collect::<Vec<_>>())).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let last = Sessions::of(&dir.path().join("state")).unwrap().load(&server, &alice).unwrap().unwrap();
        assert_eq!(last.standing(), Standing::SignedIn(SessionNumber(100)));
        assert!(keys.iter().all(|key| *key == last.public()), "the first key stays");
    }

    #[test]
    fn another_user_s_command_waits_for_nobody() {
        let dir = Scratch::new("sessions");
        let sessions = Sessions::of(&dir.path().join("state")).unwrap();
        let server = ServerSecret::generate(&mut SYSTEM.clone()).public();
        let name = |name: &str| Username::new(name).unwrap();
        let held: Vec<_> = ["alice", "alice.lock", "alice.1.new", "bob"]
            .into_iter()
            .map(|user| sessions.hold(&server, &name(user), || panic!("{user} has a lock of their own")).unwrap())
            .collect();
        for held in &held {
            held.load_or_new().unwrap();
        }
        drop(Sessions::of(&dir.path().join("state")).unwrap());
        for held in &held {
            assert!(held.load().unwrap().is_some(), "no session was taken for a temporary file");
        }
    }

    #[test]
    fn what_a_killed_command_left_is_removed_by_the_next() {
        let dir = Scratch::new("sessions");
        drop(Sessions::of(&dir.path().join("state")).unwrap());
        let left = dir.path().join("state/sessions/.0123.alice.1.new");
        std::fs::write(&left, "half of a s").unwrap();
        drop(Sessions::of(&dir.path().join("state")).unwrap());
        assert!(!left.exists());
    }
}
