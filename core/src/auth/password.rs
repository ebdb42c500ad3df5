//! From a password to the key that answers challenges, `PROTOCOL.md` section 17.3.
//!
//! The core does not hash passwords: that takes tens of megabytes. It says with which salt and parameters a host does it,
//! and takes the 32-byte key that comes of it, so that a constrained client may be given the key alone.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::key::PublicKey;
use super::name::Username;
use crate::wire::{Reader, WireError, Writer};

/// Bytes of a password key.
pub const PASSWORD_KEY_LEN: usize = 32;
/// Bytes of Argon2id's salt.
pub const SALT_LEN: usize = 16;

const SALT_CONTEXT: &[u8] = b"bulbil/1 auth salt";

/// What Argon2id makes of a password; wiped when dropped. Whoever has it can sign in as its user.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PasswordKey([u8; PASSWORD_KEY_LEN]);

/// By `subtle`'s comparison in constant time.
impl PartialEq for PasswordKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for PasswordKey {}

impl PasswordKey {
    /// The key with these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; PASSWORD_KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; PASSWORD_KEY_LEN] {
        &self.0
    }
}

/// Argon2id's salt for a user of a server: the same password gives another key at another server or for another user.
#[must_use]
pub fn salt(server: &PublicKey, username: &Username) -> [u8; SALT_LEN] {
    let hash =
        Sha256::new().chain_update(SALT_CONTEXT).chain_update(server.modulus()).chain_update(username.as_bytes());
    let hash: [u8; 32] = hash.finalize().into();
    *hash.first_chunk().expect("16 of 32 bytes")
}

/// Cost parameters of Argon2id version 1.3, the same for all users of a server; output 32 bytes, no secret, no
/// associated data.
///
/// They are the same for all so that they tell nothing about a user, and never change during the life of a server's key:
/// the keys that it stores were made with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KdfParameters {
    memory: u32,
    passes: u32,
    lanes: u8,
}

impl KdfParameters {
    /// The weakest parameters that a client accepts (OWASP's minimum): 19 MiB, 2 passes, 1 lane.
    pub const FLOOR: Self = Self { memory: 19 * 1024, passes: 2, lanes: 1 };
    /// The dearest parameters that a client accepts, so that no server ties it up: 1 GiB, 16 passes, 16 lanes.
    pub const CEILING: Self = Self { memory: 1024 * 1024, passes: 16, lanes: 16 };
    /// What a new server takes (RFC 9106, second recommendation): 64 MiB, 3 passes, 4 lanes.
    pub const DEFAULT: Self = Self { memory: 64 * 1024, passes: 3, lanes: 4 };
    /// Bytes on the wire.
    pub(super) const LEN: usize = 9;

    /// `memory` KiB, `passes` over it, `lanes` in parallel; `None` outside [`Self::FLOOR`] and [`Self::CEILING`].
    #[must_use]
    pub fn new(memory: u32, passes: u32, lanes: u8) -> Option<Self> {
        let (floor, ceiling) = (Self::FLOOR, Self::CEILING);
        let allowed = (floor.memory..=ceiling.memory).contains(&memory)
            && (floor.passes..=ceiling.passes).contains(&passes)
            && (floor.lanes..=ceiling.lanes).contains(&lanes);
        allowed.then_some(Self { memory, passes, lanes })
    }

    /// Memory in KiB.
    #[must_use]
    pub const fn memory(self) -> u32 {
        self.memory
    }

    /// Passes over the memory.
    #[must_use]
    pub const fn passes(self) -> u32 {
        self.passes
    }

    /// Degree of parallelism.
    #[must_use]
    pub const fn lanes(self) -> u8 {
        self.lanes
    }

    pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Self::new(reader.u32()?, reader.u32()?, reader.u8()?).ok_or(WireError::Invalid)
    }

    pub(super) fn emit(self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        writer.put(&self.memory.to_be_bytes())?;
        writer.put(&self.passes.to_be_bytes())?;
        writer.put(&[self.lanes])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::key::ServerSecret;
    use crate::crypto::testing::RSA_KEYS;

    #[test]
    fn parameters_have_a_floor_and_a_ceiling() {
        for good in [KdfParameters::FLOOR, KdfParameters::DEFAULT, KdfParameters::CEILING] {
            assert_eq!(KdfParameters::new(good.memory, good.passes, good.lanes), Some(good));
            let mut bytes = [0xa5; KdfParameters::LEN];
            let mut writer = Writer::new(&mut bytes);
            good.emit(&mut writer).unwrap();
            assert_eq!(writer.len(), KdfParameters::LEN);
            assert_eq!(KdfParameters::parse(&mut Reader::new(&bytes)), Ok(good));
        }
        for (memory, passes, lanes) in [
            (19 * 1024 - 1, 2, 1),
            (19 * 1024, 1, 1),
            (19 * 1024, 2, 0),
            (1024 * 1024 + 1, 2, 1),
            (65536, 17, 1),
            (65536, 3, 17),
        ] {
            assert_eq!(KdfParameters::new(memory, passes, lanes), None);
        }
    }

    #[test]
    fn salts_differ_by_server_and_user() {
        let server = |index: usize| ServerSecret::from_pkcs8(RSA_KEYS[index]).unwrap().public();
        let name = |text| Username::new(text).unwrap();
        let salts =
            [salt(&server(0), &name("alice")), salt(&server(0), &name("Alice")), salt(&server(1), &name("alice"))];
        assert!(salts[0] != salts[1] && salts[0] != salts[2] && salts[1] != salts[2]);
        let by_hand = [b"bulbil/1 auth salt".as_slice(), server(0).modulus(), b"alice"].concat();
        assert_eq!(salts[0], Sha256::digest(by_hand)[..16]);
    }
}
