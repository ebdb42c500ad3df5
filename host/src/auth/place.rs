//! Where a server keeps what it is: its key and Argon2id's parameters in the state directory, and beside them its users.

use std::path::{Path, PathBuf};

use bulbil_core::auth::{KdfParameters, ServerSecret};
use zeroize::Zeroizing;

use super::database::{Database, DatabaseError, Writing};
use crate::random::SYSTEM;
use crate::state::{Item, Problem, StateDir, StateError};

/// memory u32, passes u32, lanes u8; the key's PKCS#8 DER follows.
const PARAMETERS_LEN: usize = 9;

/// A server's directory, opened and locked for this process as long as the value lives.
pub struct Place {
    pub(super) state: StateDir,
    /// The server's key.
    pub secret: ServerSecret,
    /// How its users' passwords are hashed.
    pub parameters: KdfParameters,
    /// Whether it was made just now.
    pub fresh: bool,
}

/// Where the users of the server in `dir` are.
#[must_use]
pub fn users_path(dir: &Path) -> PathBuf {
    dir.join("users.sqlite")
}

impl Place {
    /// Opens the directory. A new server gets a fresh key and `parameters`; an old one keeps both, for changing either would
    /// invalidate every password key that it stores.
    ///
    /// # Errors
    /// What is wrong with the directory: also that there are users, but not the key that they know the server by.
    pub fn open(dir: &Path, parameters: KdfParameters) -> Result<Self, StateError> {
        let state = StateDir::open(dir)?;
        if let Some(bytes) = state.read(Item::AuthServer)? {
            let damaged = || StateError { path: state.item_path(Item::AuthServer), problem: Problem::Garbage };
            let (parameters, secret) = decode(&bytes).ok_or_else(damaged)?;
            return Ok(Self { state, secret, parameters, fresh: false });
        }
        // A new key would be refused by all clients, and no password key would fit it.
        let users = users_path(dir);
        if users.try_exists().map_err(|error| StateError { path: users.clone(), problem: Problem::Io(error) })? {
            return Err(StateError { path: state.item_path(Item::AuthServer), problem: Problem::Missing });
        }
        let secret = ServerSecret::generate(&mut SYSTEM.clone());
        state.create(Item::AuthServer, &encode(parameters, &secret))?;
        Ok(Self { state, secret, parameters, fresh: true })
    }

    /// Opens the users' database, in which there may be `users_max` of them.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn database(&self, users_max: u32) -> Result<(Database, Writing), DatabaseError> {
        Database::open(&users_path(self.state.path()), users_max)
    }
}

fn encode(parameters: KdfParameters, secret: &ServerSecret) -> Zeroizing<Vec<u8>> {
    let secret = secret.to_pkcs8();
    let mut bytes = Zeroizing::new(Vec::with_capacity(PARAMETERS_LEN + secret.as_ref().len()));
    bytes.extend_from_slice(&parameters.memory().to_be_bytes());
    bytes.extend_from_slice(&parameters.passes().to_be_bytes());
    bytes.push(parameters.lanes());
    bytes.extend_from_slice(secret.as_ref());
    bytes
}

fn decode(bytes: &[u8]) -> Option<(KdfParameters, ServerSecret)> {
    let (memory, rest) = bytes.split_first_chunk()?;
    let (passes, rest) = rest.split_first_chunk()?;
    let (&lanes, secret) = rest.split_first()?;
    let parameters = KdfParameters::new(u32::from_be_bytes(*memory), u32::from_be_bytes(*passes), lanes)?;
    Some((parameters, ServerSecret::from_pkcs8(secret).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_server_stays_what_it_is() {
        let dir = Scratch::new("place");
        let path = dir.path().join("server");
        let first = Place::open(&path, KdfParameters::FLOOR).unwrap();
        assert!(first.fresh);
        let fingerprint = first.secret.public().fingerprint();
        assert!(Place::open(&path, KdfParameters::FLOOR).is_err(), "locked");
        drop(first);
        // Other parameters come too late.
        let again = Place::open(&path, KdfParameters::DEFAULT).unwrap();
        assert!(!again.fresh);
        assert_eq!((again.secret.public().fingerprint(), again.parameters), (fingerprint, KdfParameters::FLOOR));
        drop(again);
        let sound = std::fs::read(path.join("auth-server")).unwrap();
        std::fs::write(path.join("auth-server"), &sound[..sound.len() - 1]).unwrap();
        let told = Place::open(&path, KdfParameters::FLOOR).err().unwrap().to_string();
        assert!(told.contains("cut off") && told.contains("backup"), "{told}");
    }

    #[test]
    fn without_its_key_a_server_with_users_does_not_start() {
        let dir = Scratch::new("place");
        let path = dir.path().join("server");
        let place = Place::open(&path, KdfParameters::FLOOR).unwrap();
        let fingerprint = place.secret.public().fingerprint();
        let (database, writing) = place.database(1).unwrap();
        drop(database);
        writing.end();
        drop(place);
        let (key, backup) = (path.join("auth-server"), dir.path().join("backup"));
        std::fs::rename(&key, &backup).unwrap();
        let told = Place::open(&path, KdfParameters::FLOOR).err().unwrap().to_string();
        assert!(told.contains("auth-server is missing") && told.contains("restore it from the backup"), "{told}");
        assert!(!key.exists());
        std::fs::rename(&backup, &key).unwrap();
        let again = Place::open(&path, KdfParameters::FLOOR).unwrap();
        assert_eq!(again.secret.public().fingerprint(), fingerprint);
    }

    #[test]
    fn bytes_that_are_no_server_are_refused() {
        let secret = ServerSecret::generate(&mut SYSTEM.clone());
        let bytes = encode(KdfParameters::FLOOR, &secret);
        assert!(decode(&bytes).is_some());
        for len in 0..PARAMETERS_LEN + 30 {
            assert!(decode(&bytes[..len]).is_none());
        }
        assert!(decode(&[&[0; PARAMETERS_LEN][..], &bytes[PARAMETERS_LEN..]].concat()).is_none(), "below the floor");
    }
}
