//! A node's static link key, X25519.

use rand_core::CryptoRng;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

use super::noise::DH_LEN;

/// A node's public link key, X25519.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkKey(pub [u8; DH_LEN]);

/// A node's secret link key, X25519; wiped when dropped.
pub struct LinkSecret {
    pub(super) secret: StaticSecret,
    pub(super) public: LinkKey,
}

impl LinkSecret {
    /// A new key.
    pub fn generate<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        Self::from_secret(StaticSecret::random_from_rng(rng))
    }

    /// The key that [`Self::to_bytes`] gave.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; DH_LEN]) -> Self {
        let this = Self::from_secret(StaticSecret::from(bytes));
        bytes.zeroize();
        this
    }

    fn from_secret(secret: StaticSecret) -> Self {
        let public = LinkKey(PublicKey::from(&secret).to_bytes());
        Self { secret, public }
    }

    /// The secret scalar's bytes, to be stored.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; DH_LEN]> {
        Zeroizing::new(self.secret.to_bytes())
    }

    /// The public key that belongs to it.
    #[must_use]
    pub const fn public(&self) -> LinkKey {
        self.public
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn stored_bytes_give_the_same_key_again() {
        let secret = LinkSecret::generate(&mut ChaCha20Rng::from_seed([1; 32]));
        let again = LinkSecret::from_bytes(*secret.to_bytes());
        assert_eq!(secret.public(), again.public());
        assert_ne!(secret.public(), LinkSecret::generate(&mut ChaCha20Rng::from_seed([2; 32])).public());
    }
}
