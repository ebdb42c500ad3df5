//! Key encapsulation, `PROTOCOL.md` section 6: how a client and one hop come to share a secret that nobody else knows.

mod rsa2048;
mod x_wing;

use rand_core::CryptoRng;
use zeroize::Zeroizing;

pub use self::rsa2048::{Rsa2048, RsaOnionSecret};
pub use self::x_wing::{XWing, XWingSecret};
use super::{InvalidKey, SecretBytes};
use crate::wire::{OnionKey, OnionKeyKind};

/// A 32-byte secret that a client and a hop share.
pub type SharedSecret = Zeroizing<[u8; 32]>;

/// Encapsulation failed: the public key is none that its kind allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EncapsulationFailed;

/// Decapsulation failed. Why is not told, since that would help whoever made the ciphertext.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DecapsulationFailed;

/// A key encapsulation mechanism, secure against chosen ciphertexts.
pub trait Kem {
    /// The onion keys that it belongs to.
    const KIND: OnionKeyKind;
    /// Bytes of a ciphertext.
    const CIPHERTEXT_LEN: usize;
    /// An encapsulation key as it stands in a descriptor; it need not be valid.
    type Public;
    /// A decapsulation key.
    type Secret;

    /// Makes a secret and fills `ciphertext`, which is [`Kem::CIPHERTEXT_LEN`] bytes long, with its encapsulation.
    ///
    /// # Errors
    /// [`EncapsulationFailed`] for an invalid `public` or a `ciphertext` of another length.
    fn encapsulate(
        public: &Self::Public,
        ciphertext: &mut [u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<SharedSecret, EncapsulationFailed>;

    /// Recovers the secret. A ciphertext that is not of this key may also yield a secret that nobody else has.
    ///
    /// # Errors
    /// [`DecapsulationFailed`] for a ciphertext of another length and, with `rsa2048`, for one not made for this key.
    fn decapsulate(
        secret: &Self::Secret,
        ciphertext: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<SharedSecret, DecapsulationFailed>;
}

/// The secret half of an onion key, wiped when dropped.
#[expect(clippy::large_enum_variant, reason = "without an allocator the larger key has to lie in place")]
pub enum OnionSecret {
    /// RSA-2048 OAEP-SHA-256.
    Rsa2048(RsaOnionSecret),
    /// X25519 and ML-KEM-768, expanded: 2.5 KB.
    XWing(XWingSecret),
}

impl OnionSecret {
    /// A fresh key.
    #[must_use]
    pub fn generate(kind: OnionKeyKind, rng: &mut dyn CryptoRng) -> Self {
        match kind {
            OnionKeyKind::Rsa2048 => Self::Rsa2048(RsaOnionSecret::generate(rng)),
            OnionKeyKind::XWing => Self::XWing(XWingSecret::generate(rng)),
        }
    }

    /// The kind of this key.
    #[must_use]
    pub const fn kind(&self) -> OnionKeyKind {
        match self {
            Self::Rsa2048(_) => OnionKeyKind::Rsa2048,
            Self::XWing(_) => OnionKeyKind::XWing,
        }
    }

    /// The public half, as a descriptor carries it.
    #[must_use]
    pub fn public(&self) -> OnionKey {
        match self {
            Self::Rsa2048(secret) => OnionKey::Rsa2048(secret.public()),
            Self::XWing(secret) => OnionKey::XWing(secret.public()),
        }
    }

    /// The key for storage: PKCS#8 DER for `rsa2048`, the 32-byte seed for `x-wing`.
    ///
    /// Whoever stores a key stores its replay tags too. A key that comes back without them would open an old onion a
    /// second time.
    #[must_use]
    pub fn export(&self) -> SecretBytes {
        match self {
            Self::Rsa2048(secret) => secret.to_pkcs8(),
            Self::XWing(secret) => SecretBytes::new(secret.seed()).expect("a seed is short"),
        }
    }

    /// A key from storage.
    ///
    /// # Errors
    /// [`InvalidKey`] if the bytes are no key of this kind.
    pub fn import(kind: OnionKeyKind, bytes: &[u8]) -> Result<Self, InvalidKey> {
        Ok(match kind {
            OnionKeyKind::Rsa2048 => Self::Rsa2048(RsaOnionSecret::from_pkcs8(bytes)?),
            OnionKeyKind::XWing => Self::XWing(XWingSecret::from_seed(bytes.try_into().map_err(|_| InvalidKey)?)),
        })
    }
}

/// Which of a node's onion keys, counted from the one it started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyEpoch(u64);

impl KeyEpoch {
    /// The epoch of the key that a node starts with.
    pub const FIRST: Self = Self(1);

    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// The epoch before this one.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.wrapping_sub(1))
    }
}

/// The onion keys that a node honours: the one in its descriptor and the one before.
pub struct OnionKeys {
    epoch: KeyEpoch,
    current: OnionSecret,
    previous: Option<OnionSecret>,
}

impl OnionKeys {
    /// The keys of a node that starts with `current` and, if it has been running before, still honours `previous`.
    #[must_use]
    pub const fn new(current: OnionSecret, previous: Option<OnionSecret>) -> Self {
        Self { epoch: KeyEpoch::FIRST, current, previous }
    }

    /// The key to publish.
    #[must_use]
    pub const fn current(&self) -> &OnionSecret {
        &self.current
    }

    /// The key that was published before.
    #[must_use]
    pub const fn previous(&self) -> Option<&OnionSecret> {
        self.previous.as_ref()
    }

    /// The epoch of the current key.
    #[must_use]
    pub const fn epoch(&self) -> KeyEpoch {
        self.epoch
    }

    /// Makes `new` the current key and the current one the previous; the key that was previous is wiped.
    pub fn rotate(&mut self, new: OnionSecret) {
        self.previous = Some(core::mem::replace(&mut self.current, new));
        self.epoch = self.epoch.next();
    }

    /// Wipes the previous key before the next rotation would.
    pub fn forget_previous(&mut self) {
        self.previous = None;
    }

    /// The honoured keys, the current one first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = (KeyEpoch, &OnionSecret)> {
        let previous = self.previous.iter().map(|secret| (self.epoch.previous(), secret));
        core::iter::once((self.epoch, &self.current)).chain(previous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::{RSA_KEYS, rng};

    #[test]
    fn stored_keys_come_back() {
        let rsa = OnionSecret::import(OnionKeyKind::Rsa2048, RSA_KEYS[0]).unwrap();
        let x_wing = OnionSecret::generate(OnionKeyKind::XWing, &mut rng(1));
        for secret in [rsa, x_wing] {
            let stored = secret.export();
            let again = OnionSecret::import(secret.kind(), stored.as_ref()).unwrap();
            assert!(secret.public() == again.public());
            assert_eq!(stored.as_ref(), again.export().as_ref());
            for bad in [&stored.as_ref()[1..], &[stored.as_ref(), &[0]].concat(), &[]] {
                assert!(OnionSecret::import(secret.kind(), bad).is_err());
            }
        }
    }

    #[test]
    fn two_keys_are_honoured() {
        let key = |seed| OnionSecret::generate(OnionKeyKind::XWing, &mut rng(seed));
        let mut keys = OnionKeys::new(key(1), None);
        assert_eq!(keys.newest_first().count(), 1);
        keys.rotate(key(2));
        keys.rotate(key(3));
        let honoured: std::vec::Vec<_> = keys.newest_first().map(|(epoch, key)| (epoch, key.public())).collect();
        let third = KeyEpoch::FIRST.next().next();
        assert!(honoured == [(third, key(3).public()), (third.previous(), key(2).public())]);
        assert_eq!(keys.epoch(), third);
        keys.forget_previous();
        assert_eq!(keys.newest_first().count(), 1);
    }
}
