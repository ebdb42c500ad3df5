//! `rsa2048`: a random secret under RSAES-OAEP with SHA-256, MGF1-SHA-256 and a label of its own.

use rand_core::CryptoRng;

use super::{DecapsulationFailed, EncapsulationFailed, Kem, SharedSecret};
use crate::crypto::rsa2048::{self, OaepFailed, PrivateKey};
use crate::crypto::{InvalidKey, SecretBytes};
use crate::wire::OnionKeyKind;
use crate::wire::descriptor::RSA_LEN;

/// Keeps a ciphertext of any other use of a key from being taken for one of these.
const LABEL: &[u8] = b"bulbil/1 onion";

/// RSA-2048 OAEP as a key encapsulation mechanism.
pub enum Rsa2048 {}

/// The secret half of an `rsa2048` onion key, wiped when dropped.
pub struct RsaOnionSecret(PrivateKey);

impl RsaOnionSecret {
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
}

impl Kem for Rsa2048 {
    const KIND: OnionKeyKind = OnionKeyKind::Rsa2048;
    const CIPHERTEXT_LEN: usize = RSA_LEN;
    type Public = [u8; RSA_LEN];
    type Secret = RsaOnionSecret;

    fn encapsulate(
        public: &[u8; RSA_LEN],
        ciphertext: &mut [u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<SharedSecret, EncapsulationFailed> {
        let (encrypted, secret) = rsa2048::encapsulate(public, LABEL, rng).map_err(|InvalidKey| EncapsulationFailed)?;
        if ciphertext.len() != encrypted.len() {
            return Err(EncapsulationFailed);
        }
        ciphertext.copy_from_slice(&encrypted);
        Ok(secret)
    }

    fn decapsulate(
        secret: &RsaOnionSecret,
        ciphertext: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<SharedSecret, DecapsulationFailed> {
        secret.0.decapsulate(LABEL, ciphertext, rng).map_err(|OaepFailed| DecapsulationFailed)
    }
}

#[cfg(test)]
mod tests {
    use rsa::Oaep;
    use sha2::Sha256;

    use super::*;
    use crate::crypto::rsa2048::public_key;
    use crate::crypto::testing::{RSA_KEYS, rng};

    fn padding() -> Oaep<Sha256> {
        Oaep::new_with_label(LABEL)
    }

    fn secret(index: usize) -> RsaOnionSecret {
        RsaOnionSecret::from_pkcs8(RSA_KEYS[index]).unwrap()
    }

    #[test]
    fn both_sides_agree() {
        let (key, other, rng) = (secret(0), secret(1), &mut rng(1));
        let mut ciphertext = [0xa5; RSA_LEN];
        let shared = Rsa2048::encapsulate(&key.public(), &mut ciphertext, rng).unwrap();
        assert_eq!(Rsa2048::decapsulate(&key, &ciphertext, rng), Ok(shared));
        assert_eq!(Rsa2048::decapsulate(&other, &ciphertext, rng), Err(DecapsulationFailed));
    }

    #[test]
    fn openssl_ciphertext_opens() {
        let ciphertext = include_bytes!("../../../tests/vectors/rsa/openssl-oaep.ct");
        let shared = Rsa2048::decapsulate(&secret(1), ciphertext, &mut rng(2)).unwrap();
        assert_eq!(*shared, core::array::from_fn(|i| i as u8));
    }

    #[test]
    fn other_ciphertexts_fail() {
        let (key, rng) = (secret(0), &mut rng(3));
        let public = public_key(&key.public()).unwrap();
        let mut bad = std::vec![
            public.encrypt(rng, Oaep::<Sha256>::new(), &[7; 32]).unwrap(),
            public.encrypt(rng, Oaep::<Sha256>::new_with_label(b"bulbil/1 other".as_slice()), &[7; 32]).unwrap(),
            public.encrypt(rng, padding(), &[7; 31]).unwrap(),
            public.encrypt(rng, padding(), &[7; 33]).unwrap(),
            public.encrypt(rng, padding(), &[]).unwrap(),
            key.public().to_vec(),
            std::vec![0; RSA_LEN],
            std::vec![0xff; RSA_LEN],
            std::vec![0; RSA_LEN - 1],
            std::vec![0; RSA_LEN + 1],
            std::vec![],
        ];
        let good = public.encrypt(rng, padding(), &[7; 32]).unwrap();
        bad.push(good[1..].to_vec());
        bad.push([&good[..], &[0]].concat());
        bad.push([&[0], &good[..]].concat());
        for at in (0..RSA_LEN).step_by(5) {
            let mut altered = good.clone();
            altered[at] ^= 0x10;
            bad.push(altered);
        }
        assert!(Rsa2048::decapsulate(&key, &good, rng).is_ok());
        for ciphertext in bad {
            assert_eq!(Rsa2048::decapsulate(&key, &ciphertext, rng), Err(DecapsulationFailed));
        }
    }

    #[test]
    fn nothing_is_encapsulated_to_an_invalid_key() {
        for byte in [0, 1, 0x80, 0xfe] {
            let result = Rsa2048::encapsulate(&[byte; RSA_LEN], &mut [0; RSA_LEN], &mut rng(4));
            assert_eq!(result, Err(EncapsulationFailed));
        }
        let wrong_len = Rsa2048::encapsulate(&secret(0).public(), &mut [0; RSA_LEN - 1], &mut rng(4));
        assert_eq!(wrong_len, Err(EncapsulationFailed));
    }
}
