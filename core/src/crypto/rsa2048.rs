//! What the uses of RSA-2048 share: which keys are acceptable, how they are made and stored, and how one transports a
//! secret.

use rand_core::CryptoRng;
use rsa::Oaep;
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use rsa::traits::PublicKeyParts;
use rsa::{BoxedUint, RsaPrivateKey, RsaPublicKey};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use crate::wire::descriptor::RSA_LEN;

/// The only public exponent there is in this protocol.
const EXPONENT: u64 = 65537;
const MODULUS_BITS: u32 = 2048;
/// The longest PKCS#8 DER of a two-prime RSA-2048 key takes 1220 bytes.
const SECRET_LEN_MAX: usize = 1280;

const _: () = assert!(RSA_LEN * 8 == MODULUS_BITS as usize);

/// The bytes are no acceptable key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InvalidKey;

impl core::fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("not an acceptable key")
    }
}

impl core::error::Error for InvalidKey {}

/// A secret key as bytes to be stored, wiped when dropped.
pub struct SecretBytes {
    bytes: Zeroizing<[u8; SECRET_LEN_MAX]>,
    len: usize,
}

impl SecretBytes {
    /// `None` if `secret` is longer than any key of this protocol.
    pub(crate) fn new(secret: &[u8]) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; SECRET_LEN_MAX]);
        bytes.get_mut(..secret.len())?.copy_from_slice(secret);
        Some(Self { bytes, len: secret.len() })
    }
}

impl AsRef<[u8]> for SecretBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The public key with this modulus: 2048 bits, odd, exponent 65537 (`PROTOCOL.md` section 3).
pub(super) fn public_key(modulus: &[u8; RSA_LEN]) -> Result<RsaPublicKey, InvalidKey> {
    let [first, .., last] = modulus;
    if first & 0x80 == 0 || last & 1 == 0 {
        return Err(InvalidKey);
    }
    let n = BoxedUint::from_be_slice(modulus, MODULUS_BITS).map_err(|_| InvalidKey)?;
    RsaPublicKey::new(n, BoxedUint::from(EXPONENT)).map_err(|_| InvalidKey)
}

/// A ciphertext was not made for this key and label. Why is not told.
pub(super) struct OaepFailed;

/// A random 32-byte secret and its encryption to the key with this modulus: RSAES-OAEP with SHA-256 and MGF1-SHA-256.
/// `label` keeps a ciphertext of one use of a key from being taken for one of another use.
pub(super) fn encapsulate(
    modulus: &[u8; RSA_LEN],
    label: &'static [u8],
    rng: &mut dyn CryptoRng,
) -> Result<([u8; RSA_LEN], Zeroizing<[u8; 32]>), InvalidKey> {
    let public = public_key(modulus)?;
    let mut secret = Zeroizing::new([0; 32]);
    rng.fill_bytes(secret.as_mut_slice());
    let padding = Oaep::<Sha256>::new_with_label(label);
    let encrypted = public.encrypt(rng, padding, secret.as_slice()).map_err(|_| InvalidKey)?;
    let ciphertext = encrypted.as_slice().try_into().map_err(|_| InvalidKey)?;
    Ok((ciphertext, secret))
}

/// An RSA-2048 key pair with exponent 65537. The `rsa` crate wipes it when it is dropped.
pub(super) struct PrivateKey(RsaPrivateKey);

impl PrivateKey {
    pub(super) fn generate(rng: &mut dyn CryptoRng) -> Self {
        let key = RsaPrivateKey::new(rng, MODULUS_BITS as usize);
        Self(key.expect("two primes chosen for this modulus and exponent make a valid key"))
    }

    pub(super) fn from_pkcs8(der: &[u8]) -> Result<Self, InvalidKey> {
        let key = RsaPrivateKey::from_pkcs8_der(der).map_err(|_| InvalidKey)?;
        if key.n().bits() != MODULUS_BITS || *key.e() != BoxedUint::from(EXPONENT) {
            return Err(InvalidKey);
        }
        Ok(Self(key))
    }

    pub(super) fn to_pkcs8(&self) -> SecretBytes {
        let der = self.0.to_pkcs8_der().expect("a key of two primes has a PKCS#8 form");
        SecretBytes::new(der.as_bytes()).expect("1220 bytes are the longest form of a 2048-bit key")
    }

    pub(super) fn modulus(&self) -> [u8; RSA_LEN] {
        let bytes = self.0.n_bytes();
        bytes.as_ref().try_into().expect("generating and importing make sure of 2048 bits")
    }

    /// The secret that [`encapsulate`] encrypted. Blinded.
    pub(super) fn decapsulate(
        &self,
        label: &'static [u8],
        ciphertext: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<Zeroizing<[u8; 32]>, OaepFailed> {
        // Not `decrypt`: without the operating system's generator it does not blind.
        let decrypted = self.0.decrypt_blinded(rng, Oaep::<Sha256>::new_with_label(label), ciphertext);
        let mut decrypted = decrypted.map_err(|_| OaepFailed)?;
        let secret = decrypted.as_slice().try_into().map(Zeroizing::new).map_err(|_| OaepFailed);
        decrypted.as_mut_slice().zeroize();
        secret
    }

    pub(super) const fn key(&self) -> &RsaPrivateKey {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::{Counted, RSA_KEYS, rng};

    const LABEL: &[u8] = b"bulbil/1 test";

    #[test]
    fn stored_keys_come_back() {
        for der in RSA_KEYS {
            let key = PrivateKey::from_pkcs8(der).unwrap();
            let again = PrivateKey::from_pkcs8(key.to_pkcs8().as_ref()).unwrap();
            assert!(key.0 == again.0);
        }
    }

    #[test]
    fn generated_keys_can_be_stored() {
        let key = PrivateKey::generate(&mut rng(1));
        let again = PrivateKey::from_pkcs8(key.to_pkcs8().as_ref()).unwrap();
        assert!(key.0 == again.0);
        assert!(public_key(&key.modulus()).is_ok());
    }

    #[test]
    fn damaged_keys_are_refused() {
        let der = RSA_KEYS[0];
        for len in 0..der.len() {
            assert!(PrivateKey::from_pkcs8(&der[..len]).is_err());
        }
        let longer = [der, &[0]].concat();
        assert!(PrivateKey::from_pkcs8(&longer).is_err());
        // Modulus, exponents and primes bind one another. What follows them is computed afresh and not looked at.
        for at in (40..820).step_by(17) {
            let mut bad = der.to_vec();
            bad[at] ^= 4;
            assert!(PrivateKey::from_pkcs8(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn keys_of_another_size_are_refused() {
        let small = RsaPrivateKey::new(&mut rng(2), 1024).unwrap().to_pkcs8_der().unwrap();
        assert!(PrivateKey::from_pkcs8(small.as_bytes()).is_err());
    }

    #[test]
    fn moduli_are_odd_and_full_length() {
        let modulus = PrivateKey::from_pkcs8(RSA_KEYS[0]).unwrap().modulus();
        assert!(public_key(&modulus).is_ok());
        let mut even = modulus;
        even[255] &= 0xfe;
        assert_eq!(public_key(&even).err(), Some(InvalidKey));
        let mut short = modulus;
        short[0] &= 0x7f;
        assert_eq!(public_key(&short).err(), Some(InvalidKey));
        assert_eq!(public_key(&[0; RSA_LEN]).err(), Some(InvalidKey));
        assert!(public_key(&[0xff; RSA_LEN]).is_ok());
    }

    /// Decapsulates with the randomness of `seed`; answers how many bytes of it were drawn, too.
    fn decapsulated(key: &PrivateKey, ciphertext: &[u8], seed: u64) -> (Option<[u8; 32]>, usize) {
        let mut counted = Counted { first: &[], rng: rng(seed), drawn: 0 };
        let secret = key.decapsulate(LABEL, ciphertext, &mut counted);
        (secret.ok().map(|secret| *secret), counted.drawn)
    }

    #[test]
    fn decapsulation_is_blinded_and_fails_in_one_way() {
        let key = PrivateKey::from_pkcs8(RSA_KEYS[0]).unwrap();
        let public = public_key(&key.modulus()).unwrap();
        let (ciphertext, secret) = encapsulate(&key.modulus(), LABEL, &mut rng(3)).unwrap();
        // What an attacker who asks for one decapsulation after another sends: another padding, OAEP for another use or of another
        // length, and numbers of his own (those of Manger begin with a byte that no padding has).
        let mut others = std::vec![
            public.encrypt(&mut rng(4), rsa::Pkcs1v15Encrypt, secret.as_slice()).unwrap(),
            public.encrypt(&mut rng(4), Oaep::<Sha256>::new(), secret.as_slice()).unwrap(),
            public.encrypt(&mut rng(4), Oaep::<Sha256>::new_with_label(LABEL), &secret[1..]).unwrap(),
        ];
        others.extend((2..=4).map(|last| [[0; RSA_LEN - 1].as_slice(), &[last]].concat()));
        for at in [0, RSA_LEN / 2, RSA_LEN - 1] {
            let mut altered = ciphertext.to_vec();
            altered[at] ^= 1;
            others.push(altered);
        }
        for seed in 5..8 {
            // The blinding factor is as long as the modulus, and different each time; that does not change the outcome.
            let (opened, drawn) = decapsulated(&key, &ciphertext, seed);
            assert_eq!(opened, Some(*secret));
            assert!(drawn >= RSA_LEN, "{drawn} bytes");
            for other in &others {
                // Drawn before anything is known of what is inside.
                let (opened, drawn) = decapsulated(&key, other, seed);
                assert_eq!(opened, None);
                assert!(drawn >= RSA_LEN, "{drawn} bytes");
            }
        }
        // This one tells nothing by its type either: there is nothing in it.
        assert_eq!(size_of::<OaepFailed>(), 0);
    }

    #[test]
    fn secret_bytes_have_a_limit() {
        assert_eq!(SecretBytes::new(&[7; SECRET_LEN_MAX]).unwrap().as_ref(), [7; SECRET_LEN_MAX]);
        assert!(SecretBytes::new(&[7; SECRET_LEN_MAX + 1]).is_none());
    }
}
