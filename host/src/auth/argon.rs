//! Argon2id, from a password to the key that answers challenges.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use bulbil_core::auth::password::{PASSWORD_KEY_LEN, salt};
use bulbil_core::auth::{KdfParameters, PasswordKey, PublicKey, Username};
use zeroize::{Zeroize, Zeroizing};

/// The key that `password` gives `username` at the server with this key. Takes as long and as much memory as `parameters` say (64 MiB and
/// tenths of a second by default): call it where blocking is allowed.
///
/// # Panics
/// There is no memory.
#[must_use]
pub fn password_key(
    password: &[u8],
    server: &PublicKey,
    username: &Username,
    parameters: KdfParameters,
) -> PasswordKey {
    let lanes = u32::from(parameters.lanes());
    let params = Params::new(parameters.memory(), parameters.passes(), lanes, Some(PASSWORD_KEY_LEN))
        .expect("the core's bounds are within Argon2's");
    let mut memory = vec![Block::default(); params.block_count()];
    let mut key = Zeroizing::new([0; PASSWORD_KEY_LEN]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(password, &salt(server, username), key.as_mut_slice(), &mut memory)
        .expect("password, salt and key are of lengths that Argon2 takes");
    // The last blocks give the key.
    memory.iter_mut().for_each(Zeroize::zeroize);
    PasswordKey::new(*key)
}

#[cfg(test)]
mod tests {
    use bulbil_core::auth::ServerSecret;

    use super::*;
    use crate::random::SYSTEM;

    /// `argon2` (the reference implementation's command line) gives the same; see PROTOCOL.md 17.3 for what goes in.
    #[test]
    fn keys_depend_on_everything() {
        let server = ServerSecret::generate(&mut SYSTEM.clone()).public();
        let (alice, bob) = (Username::new("alice").unwrap(), Username::new("bob").unwrap());
        let floor = KdfParameters::FLOOR;
        let key = password_key(b"tulip", &server, &alice, floor);
        assert!(key == password_key(b"tulip", &server, &alice, floor));
        let dearer = KdfParameters::new(floor.memory(), 3, 1).unwrap();
        let others = [
            password_key(b"tulips", &server, &alice, floor),
            password_key(b"tulip", &server, &bob, floor),
            password_key(b"tulip", &server, &alice, dearer),
        ];
        assert!(others.iter().all(|other| *other != key));
    }
}
