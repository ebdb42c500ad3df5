//! The application's RSA-2048 keys: the server's, which secrets are sent to, and a session's, which signs.

use rand_core::CryptoRng;
use sha2::{Digest, Sha256};

use crate::crypto::identity::{self, BadSignature, IdentitySecret, Signature, SigningFailed};
use crate::crypto::kem::{DecapsulationFailed, SharedSecret};
use crate::crypto::transport::{CIPHERTEXT_LEN, TransportSecret};
use crate::crypto::{InvalidKey, SecretBytes};
use crate::wire::descriptor::RSA_LEN;
use crate::wire::{NodeId, WireError};

/// Bytes of a public key in DER.
pub const DER_LEN: usize = DER_HEAD.len() + RSA_LEN + DER_TAIL.len();

/// What a SubjectPublicKeyInfo of an odd modulus of 2048 bits begins with: algorithm rsaEncryption, a bit string, in it a
/// sequence, and in that an integer whose first byte is 0 because the modulus's top bit is set.
const DER_HEAD: [u8; 33] = [
    0x30, 0x82, 0x01, 0x22, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
    0x03, 0x82, 0x01, 0x0f, 0x00, 0x30, 0x82, 0x01, 0x0a, 0x02, 0x82, 0x01, 0x01, 0x00,
];
/// The exponent 65537.
const DER_TAIL: [u8; 5] = [0x02, 0x03, 0x01, 0x00, 0x01];

/// An RSA-2048 public key: the modulus, big-endian, odd, its top bit set. The exponent is 65537.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey([u8; RSA_LEN]);

impl PublicKey {
    /// The key with this modulus.
    ///
    /// # Errors
    /// [`WireError::Invalid`] if it is even or shorter than 2048 bits.
    pub fn from_modulus(modulus: &[u8; RSA_LEN]) -> Result<Self, WireError> {
        match modulus {
            [first, .., last] if first & 0x80 != 0 && last & 1 == 1 => Ok(Self(*modulus)),
            _ => Err(WireError::Invalid),
        }
    }

    /// The key with this SubjectPublicKeyInfo (RFC 5280) in DER.
    ///
    /// # Errors
    /// [`WireError::Invalid`] for anything but an RSA key of 2048 bits with exponent 65537.
    pub fn from_der(der: &[u8]) -> Result<Self, WireError> {
        let modulus = der.strip_prefix(&DER_HEAD).and_then(|rest| rest.strip_suffix(&DER_TAIL));
        Self::from_modulus(modulus.and_then(|modulus| modulus.try_into().ok()).ok_or(WireError::Invalid)?)
    }

    /// The key's SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn to_der(&self) -> [u8; DER_LEN] {
        let mut der = [0; DER_LEN];
        let parts = DER_HEAD.iter().chain(&self.0).chain(&DER_TAIL);
        der.iter_mut().zip(parts).for_each(|(to, &from)| *to = from);
        der
    }

    /// The modulus.
    #[must_use]
    pub const fn modulus(&self) -> &[u8; RSA_LEN] {
        &self.0
    }

    /// What the key is pinned by.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint(NodeId(Sha256::digest(self.0).into()))
    }

    pub(super) fn verify(&self, parts: &[&[u8]], signature: &Signature) -> Result<(), BadSignature> {
        identity::verify(&self.0, parts, signature)
    }
}

/// SHA-256 over a key's modulus, written as 64 hexadecimal digits: computed and spelled as node ids are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(NodeId);

impl Fingerprint {
    /// Bytes of a fingerprint.
    pub const LEN: usize = 32;

    /// The fingerprint with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(NodeId(bytes))
    }

    /// The fingerprint's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0.0
    }
}

impl core::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.fmt(f)
    }
}

impl core::str::FromStr for Fingerprint {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self, WireError> {
        text.parse().map(Self)
    }
}

/// The secret half of the server's key, wiped when dropped. It only decrypts.
pub struct ServerSecret(TransportSecret);

impl ServerSecret {
    /// A fresh key.
    #[must_use]
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        Self(TransportSecret::generate(rng))
    }

    /// The key stored as PKCS#8 DER.
    ///
    /// # Errors
    /// [`InvalidKey`] unless it is a consistent RSA key of 2048 bits with exponent 65537.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, InvalidKey> {
        TransportSecret::from_pkcs8(der).map(Self)
    }

    /// The key as PKCS#8 DER, for storage.
    #[must_use]
    pub fn to_pkcs8(&self) -> SecretBytes {
        self.0.to_pkcs8()
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.public())
    }

    pub(super) fn receive(
        &self,
        label: &'static [u8],
        ciphertext: &[u8; CIPHERTEXT_LEN],
        rng: &mut dyn CryptoRng,
    ) -> Result<SharedSecret, DecapsulationFailed> {
        self.0.receive(label, ciphertext, rng)
    }
}

/// The secret half of a session's key, wiped when dropped. It only signs.
pub struct SessionSecret(IdentitySecret);

impl SessionSecret {
    /// A fresh key.
    #[must_use]
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        Self(IdentitySecret::generate(rng))
    }

    /// The key stored as PKCS#8 DER.
    ///
    /// # Errors
    /// [`InvalidKey`] unless it is a consistent RSA key of 2048 bits with exponent 65537.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, InvalidKey> {
        IdentitySecret::from_pkcs8(der).map(Self)
    }

    /// The key as PKCS#8 DER, for storage.
    #[must_use]
    pub fn to_pkcs8(&self) -> SecretBytes {
        self.0.to_pkcs8()
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.public())
    }

    pub(super) fn sign(&self, parts: &[&[u8]], rng: &mut dyn CryptoRng) -> Result<Signature, SigningFailed> {
        self.0.sign(rng, parts)
    }
}

#[cfg(test)]
mod tests {
    use rsa::pkcs8::{DecodePrivateKey, EncodePublicKey};

    use super::*;
    use crate::crypto::testing::RSA_KEYS;

    #[test]
    fn der_is_that_of_another_encoder() {
        for pkcs8 in RSA_KEYS {
            let expected =
                rsa::RsaPrivateKey::from_pkcs8_der(pkcs8).unwrap().to_public_key().to_public_key_der().unwrap();
            let key = SessionSecret::from_pkcs8(pkcs8).unwrap().public();
            assert_eq!(key.to_der(), expected.as_bytes());
            assert_eq!(PublicKey::from_der(expected.as_bytes()), Ok(key));
        }
    }

    #[test]
    fn other_der_is_refused() {
        let der = ServerSecret::from_pkcs8(RSA_KEYS[0]).unwrap().public().to_der();
        for len in 0..DER_LEN {
            assert!(PublicKey::from_der(&der[..len]).is_err());
        }
        assert!(PublicKey::from_der(&[&der[..], &[0]].concat()).is_err());
        // The frame, the modulus's top byte made small, and its last bit.
        for at in (0..DER_HEAD.len()).chain(DER_LEN - DER_TAIL.len()..DER_LEN) {
            let mut bad = der;
            bad[at] ^= 1;
            assert!(PublicKey::from_der(&bad).is_err(), "byte {at}");
        }
        for (at, mask) in [(DER_HEAD.len(), 0x7f), (DER_LEN - DER_TAIL.len() - 1, 0xfe)] {
            let mut bad = der;
            bad[at] &= mask;
            assert!(PublicKey::from_der(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn fingerprints_are_spelled_as_node_ids() {
        // As in `crypto::identity`: by sha256sum.
        let text = "88bf03c5eea386b1830572253551692e2603ea080f1f37b6ac69bd6ff216d018";
        let fingerprint = ServerSecret::from_pkcs8(RSA_KEYS[0]).unwrap().public().fingerprint();
        assert_eq!(std::format!("{fingerprint}"), text);
        assert_eq!(text.parse(), Ok(fingerprint));
        assert_eq!(Fingerprint::from_bytes(*fingerprint.as_bytes()), fingerprint);
    }
}
