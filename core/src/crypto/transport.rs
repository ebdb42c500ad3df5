//! RSA-2048 keys that secrets are sent to, outside onions: RSAES-OAEP with SHA-256 and MGF1-SHA-256.
//!
//! The caller's label says what the secret is for, so a ciphertext made for one protocol is none in another.

use rand_core::CryptoRng;

use super::kem::{DecapsulationFailed, EncapsulationFailed, SharedSecret};
use super::rsa2048::{self, OaepFailed, PrivateKey};
use super::{InvalidKey, SecretBytes};
use crate::wire::descriptor::RSA_LEN;

/// Bytes of an encrypted secret.
pub const CIPHERTEXT_LEN: usize = RSA_LEN;

/// The secret half of a key that secrets are sent to, wiped when dropped.
pub struct TransportSecret(PrivateKey);

impl TransportSecret {
    /// A fresh key.
    #[must_use]
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        Self(PrivateKey::generate(rng))
    }

    /// The key stored as PKCS#8 DER.
    ///
    /// # Errors
    /// [`InvalidKey`] unless it is a consistent RSA key of 2048 bits with exponent 65537.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, InvalidKey> {
        PrivateKey::from_pkcs8(der).map(Self)
    }

    /// The key as PKCS#8 DER, for storage.
    #[must_use]
    pub fn to_pkcs8(&self) -> SecretBytes {
        self.0.to_pkcs8()
    }

    /// The modulus.
    #[must_use]
    pub fn public(&self) -> [u8; RSA_LEN] {
        self.0.modulus()
    }

    /// The secret that [`send`] made. `rng` blinds the private operation.
    ///
    /// # Errors
    /// [`DecapsulationFailed`] for anything that was not made for this key and label.
    pub fn receive(
        &self,
        label: &'static [u8],
        ciphertext: &[u8; CIPHERTEXT_LEN],
        rng: &mut dyn CryptoRng,
    ) -> Result<SharedSecret, DecapsulationFailed> {
        self.0.decapsulate(label, ciphertext, rng).map_err(|OaepFailed| DecapsulationFailed)
    }
}

/// A fresh secret, and its encryption to the key with this modulus.
///
/// # Errors
/// [`EncapsulationFailed`] if the modulus is even or shorter than 2048 bits.
pub fn send(
    modulus: &[u8; RSA_LEN],
    label: &'static [u8],
    rng: &mut dyn CryptoRng,
) -> Result<([u8; CIPHERTEXT_LEN], SharedSecret), EncapsulationFailed> {
    rsa2048::encapsulate(modulus, label, rng).map_err(|InvalidKey| EncapsulationFailed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::{RSA_KEYS, rng};

    #[test]
    fn secrets_arrive_under_their_label_only() {
        let key = TransportSecret::from_pkcs8(RSA_KEYS[0]).unwrap();
        let other = TransportSecret::from_pkcs8(RSA_KEYS[1]).unwrap();
        let rng = &mut rng(1);
        let (ciphertext, secret) = send(&key.public(), b"one use", rng).unwrap();
        assert_eq!(key.receive(b"one use", &ciphertext, rng), Ok(secret));
        assert_eq!(key.receive(b"another", &ciphertext, rng), Err(DecapsulationFailed));
        assert_eq!(other.receive(b"one use", &ciphertext, rng), Err(DecapsulationFailed));
        assert_eq!(send(&[0; RSA_LEN], b"one use", rng).err(), Some(EncapsulationFailed));
    }

    #[test]
    fn stored_keys_come_back() {
        let key = TransportSecret::from_pkcs8(RSA_KEYS[2]).unwrap();
        let again = TransportSecret::from_pkcs8(key.to_pkcs8().as_ref()).unwrap();
        assert_eq!(key.public(), again.public());
    }
}
