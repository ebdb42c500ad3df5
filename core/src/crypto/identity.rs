//! A node's identity: an RSA-2048 key that signs its descriptors and receipts, `PROTOCOL.md` sections 2 and 3.
//!
//! Signatures are RSASSA-PSS with SHA-256, MGF1-SHA-256 and a 32-byte salt. What is signed is handed over in parts that
//! are hashed one after another, so nobody copies a descriptor to put a domain separator in front of it. The parts are
//! not framed: a caller's first part is its domain separator, and it makes sure that no two of its messages join to the
//! same bytes.
//!
//! On a Cortex-M signing takes about 11 KB of stack and 6.4 KB of heap, verifying 1 KB and 5.6 KB, generating 43 KB and
//! 5.2 KB.

use rand_core::CryptoRng;
use rsa::Pss;
use sha2::{Digest, Sha256};

use super::rsa2048::{self, InvalidKey, PrivateKey, SecretBytes};
use crate::wire::NodeId;
use crate::wire::descriptor::RSA_LEN;

/// Bytes of a signature.
pub const SIGNATURE_LEN: usize = RSA_LEN;

/// An identity's public half: the big-endian modulus. The exponent is 65537.
pub type IdentityKey = [u8; RSA_LEN];

/// An RSA-PSS signature.
pub type Signature = [u8; SIGNATURE_LEN];

/// What a node is pinned by: its node id, written as 64 hexadecimal digits.
pub type Fingerprint = NodeId;

/// The signature is not one of these parts by this key (or the key is none).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BadSignature;

impl core::fmt::Display for BadSignature {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("bad signature")
    }
}

impl core::error::Error for BadSignature {}

/// Signing failed, which a sound key and sound hardware rule out. Nothing was revealed: a result is
/// checked against the public key before it leaves, since a miscalculated one would betray the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SigningFailed;

impl core::fmt::Display for SigningFailed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("signing failed")
    }
}

impl core::error::Error for SigningFailed {}

/// The secret half of an identity, wiped when dropped.
pub struct IdentitySecret(PrivateKey);

impl IdentitySecret {
    /// A fresh identity.
    #[must_use]
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        Self(PrivateKey::generate(rng))
    }

    /// The identity stored as PKCS#8 DER.
    ///
    /// # Errors
    /// [`InvalidKey`] unless it is a consistent RSA key of 2048 bits with exponent 65537.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, InvalidKey> {
        PrivateKey::from_pkcs8(der).map(Self)
    }

    /// The identity as PKCS#8 DER, for storage.
    #[must_use]
    pub fn to_pkcs8(&self) -> SecretBytes {
        self.0.to_pkcs8()
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> IdentityKey {
        self.0.modulus()
    }

    /// What this identity's node is called.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        node_id(&self.public())
    }

    /// Signs the concatenation of `parts`. `rng` gives the salt and blinds the private operation.
    ///
    /// # Errors
    /// [`SigningFailed`], see there.
    pub fn sign(&self, rng: &mut dyn CryptoRng, parts: &[&[u8]]) -> Result<Signature, SigningFailed> {
        let hash = hash(parts);
        // Not `sign`: without the operating system's generator it does not blind.
        let signature =
            self.0.key().sign_with_rng(rng, Pss::<Sha256>::new_blinded(), &hash).map_err(|_| SigningFailed)?;
        signature.as_slice().try_into().map_err(|_| SigningFailed)
    }
}

/// Checks a signature over the concatenation of `parts`.
///
/// # Errors
/// [`BadSignature`], also for a `key` that is even or shorter than 2048 bits.
pub fn verify(key: &IdentityKey, parts: &[&[u8]], signature: &Signature) -> Result<(), BadSignature> {
    let key = rsa2048::public_key(key).map_err(|_| BadSignature)?;
    key.verify(Pss::<Sha256>::new(), &hash(parts), signature).map_err(|_| BadSignature)
}

/// The id of the node with this identity: SHA-256 over the modulus.
#[must_use]
pub fn node_id(key: &IdentityKey) -> NodeId {
    NodeId(Sha256::digest(key).into())
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    parts.iter().fold(Sha256::new(), Sha256::chain_update).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::{Counted, RSA_KEYS, rng};

    fn identity(index: usize) -> IdentitySecret {
        IdentitySecret::from_pkcs8(RSA_KEYS[index]).unwrap()
    }

    #[test]
    fn parts_are_signed_as_their_concatenation() {
        let (secret, other) = (identity(0), identity(1));
        let signature = secret.sign(&mut rng(1), &[b"bulbil/1 ", b"", b"text"]).unwrap();
        assert_eq!(verify(&secret.public(), &[b"bulbil/1 text"], &signature), Ok(()));
        assert_eq!(verify(&secret.public(), &[b"bulbil/1 texT"], &signature), Err(BadSignature));
        assert_eq!(verify(&secret.public(), &[], &signature), Err(BadSignature));
        assert_eq!(verify(&other.public(), &[b"bulbil/1 text"], &signature), Err(BadSignature));
    }

    #[test]
    fn openssl_signature_verifies() {
        let signature = include_bytes!("../../tests/vectors/rsa/openssl-pss.sig");
        let parts: [&[u8]; 2] = [b"bulbil/1 descriptor", b"signed by openssl"];
        assert_eq!(verify(&identity(0).public(), &parts, signature), Ok(()));
    }

    #[test]
    fn altered_signatures_fail() {
        let secret = identity(0);
        let signature = secret.sign(&mut rng(2), &[b"text"]).unwrap();
        for at in 0..SIGNATURE_LEN {
            let mut bad = signature;
            bad[at] ^= 1 << (at % 8);
            assert_eq!(verify(&secret.public(), &[b"text"], &bad), Err(BadSignature), "byte {at}");
        }
        for bad in [[0; SIGNATURE_LEN], [0xff; SIGNATURE_LEN], secret.public()] {
            assert_eq!(verify(&secret.public(), &[b"text"], &bad), Err(BadSignature));
        }
    }

    #[test]
    fn a_stranger_may_send_any_key() {
        let signature = [0x55; SIGNATURE_LEN];
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            assert_eq!(verify(&[byte; RSA_LEN], &[b"text"], &signature), Err(BadSignature));
        }
    }

    #[test]
    fn salts_of_another_length_are_refused() {
        let secret = identity(0);
        let hash = hash(&[b"text"]);
        for salt in [0, 20, 31, 33] {
            let pss = Pss::<Sha256>::new_with_salt(salt);
            let signature = secret.0.key().sign_with_rng(&mut rng(3), pss, &hash).unwrap();
            let signature = signature.as_slice().try_into().unwrap();
            assert_eq!(verify(&secret.public(), &[b"text"], signature), Err(BadSignature));
        }
    }

    #[test]
    fn randomness_is_the_callers() {
        let secret = identity(0);
        let sign = |seed| secret.sign(&mut rng(seed), &[b"text"]).unwrap();
        assert_eq!(sign(4), sign(4));
        assert_ne!(sign(4), sign(5));
    }

    #[test]
    fn signing_is_blinded_and_padded_with_a_random_salt() {
        let secret = identity(0);
        let sign = |salt: &[u8; 32], seed| {
            let mut counted = Counted { first: salt, rng: rng(seed), drawn: 0 };
            let signature = secret.sign(&mut counted, &[b"text"]).unwrap();
            // The salt, and a blinding factor as long as the modulus.
            assert!(counted.drawn >= 32 + RSA_LEN, "{} bytes", counted.drawn);
            assert_eq!(verify(&secret.public(), &[b"text"], &signature), Ok(()));
            signature
        };
        // The blinding is different each time, and gone from the signature.
        assert_eq!(sign(&[1; 32], 6), sign(&[1; 32], 7));
        assert_ne!(sign(&[1; 32], 6), sign(&[2; 32], 6));
        let other_padding = rsa::Pkcs1v15Sign::new_unprefixed();
        let other = secret.0.key().sign(other_padding, &hash(&[b"text"])).unwrap();
        assert_eq!(verify(&secret.public(), &[b"text"], other.as_slice().try_into().unwrap()), Err(BadSignature));
    }

    #[test]
    fn ids_are_hashes_of_the_modulus() {
        // SHA-256 of `openssl rsa -modulus` of this key, by sha256sum.
        let expected = "88bf03c5eea386b1830572253551692e2603ea080f1f37b6ac69bd6ff216d018";
        let fingerprint: Fingerprint = identity(0).node_id();
        assert_eq!(std::format!("{fingerprint}"), expected);
    }
}
