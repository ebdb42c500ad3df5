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
    hash(password, &salt(server, username), parameters)
}

fn hash(password: &[u8], salt: &[u8], parameters: KdfParameters) -> PasswordKey {
    let lanes = u32::from(parameters.lanes());
    let params = Params::new(parameters.memory(), parameters.passes(), lanes, Some(PASSWORD_KEY_LEN))
        .expect("the core's bounds are within Argon2's");
    let mut memory = vec![Block::default(); params.block_count()];
    let mut key = Zeroizing::new([0; PASSWORD_KEY_LEN]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(password, salt, key.as_mut_slice(), &mut memory)
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

    /// A test vector of the reference implementation (its `src/test.c`: Argon2id, version 0x13, t = 2, m = 16, p = 1).
    #[test]
    fn keys_are_those_of_the_reference_implementation() {
        let expected = [
            0x09, 0x31, 0x61, 0x15, 0xd5, 0xcf, 0x24, 0xed, 0x5a, 0x15, 0xa3, 0x1a, 0x3b, 0xa3, 0x26, 0xe5, 0xcf, 0x32,
            0xed, 0xc2, 0x47, 0x02, 0x98, 0x7c, 0x02, 0xb6, 0x56, 0x6f, 0x61, 0x91, 0x3c, 0xf7,
        ];
        let parameters = KdfParameters::new(1 << 16, 2, 1).unwrap();
        assert_eq!(*hash(b"password", b"somesalt", parameters).as_bytes(), expected);
    }

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
