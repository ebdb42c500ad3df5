//! `x-wing`: X25519 and ML-KEM-768 combined as draft-connolly-cfrg-xwing-kem says; either alone keeps the secret.
//!
//! The `x-wing` crate derives its key from the seed again at each decapsulation. Here the key stays expanded, and
//! ML-KEM is libcrux's, which together makes a relay's work several times cheaper. The crate is the reference in the
//! tests.
//!
//! An all-zero X25519 output is not rejected: the draft does not ask for it, the hash binds both public values, and
//! whoever forces a zero only gives up the X25519 half of a secret that is theirs anyway.

use libcrux_ml_kem::mlkem768::{self, MlKem768Ciphertext, MlKem768PrivateKey, MlKem768PublicKey};
use rand_core::CryptoRng;
use sha3::{Digest, Sha3_256};
use shake::Shake256;
use shake::digest::{ExtendableOutput, Update, XofReader};
use x25519_dalek::{PublicKey, SharedSecret as X25519Secret, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{DecapsulationFailed, EncapsulationFailed, Kem, SharedSecret};
use crate::wire::OnionKeyKind;
use crate::wire::descriptor::XWING_KEY_LEN;

const SEED_LEN: usize = 32;
const X25519_LEN: usize = 32;
const ML_KEM_PUBLIC_LEN: usize = 1184;
const ML_KEM_SECRET_LEN: usize = 2400;
const ML_KEM_CIPHERTEXT_LEN: usize = 1088;
/// Where FIPS 203 keeps the encapsulation key inside the decapsulation key: behind 3 x 384 bytes of K-PKE's.
const ML_KEM_PUBLIC_AT: usize = 1152;

const _: () = assert!(ML_KEM_PUBLIC_LEN + X25519_LEN == XWING_KEY_LEN);
const _: () = assert!(ML_KEM_PUBLIC_LEN == MlKem768PublicKey::len());
const _: () = assert!(ML_KEM_SECRET_LEN == MlKem768PrivateKey::len());
const _: () = assert!(ML_KEM_CIPHERTEXT_LEN == MlKem768Ciphertext::len());
const _: () = assert!(ML_KEM_PUBLIC_AT + ML_KEM_PUBLIC_LEN + 32 + 32 == ML_KEM_SECRET_LEN);

/// The draft's XWingLabel.
const LABEL: &[u8; 6] = br"\.//^\";

/// X-Wing.
pub enum XWing {}

/// The secret half of an `x-wing` onion key, expanded from its seed; wiped when dropped.
pub struct XWingSecret {
    seed: Zeroizing<[u8; SEED_LEN]>,
    ml_kem: MlKem768PrivateKey,
    x25519: StaticSecret,
    x25519_public: PublicKey,
}

impl XWingSecret {
    /// A fresh key.
    #[must_use]
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        let mut seed = Zeroizing::new([0; SEED_LEN]);
        rng.fill_bytes(seed.as_mut_slice());
        Self::from_seed(&seed)
    }

    /// The key with this seed, the draft's `expandDecapsulationKey`.
    #[must_use]
    pub fn from_seed(seed: &[u8; SEED_LEN]) -> Self {
        let mut ml_kem_seed = Zeroizing::new([0; 64]);
        let mut x25519_seed = Zeroizing::new([0; X25519_LEN]);
        let mut expanded = Shake256::default();
        expanded.update(seed);
        let mut expanded = expanded.finalize_xof();
        expanded.read(ml_kem_seed.as_mut_slice());
        expanded.read(x25519_seed.as_mut_slice());

        let (ml_kem, _) = mlkem768::generate_key_pair(*ml_kem_seed).into_parts();
        let x25519 = StaticSecret::from(*x25519_seed);
        let x25519_public = PublicKey::from(&x25519);
        Self { seed: Zeroizing::new(*seed), ml_kem, x25519, x25519_public }
    }

    /// What the key is expanded from, and the only thing that need be stored.
    #[must_use]
    pub fn seed(&self) -> &[u8; SEED_LEN] {
        &self.seed
    }

    /// The encapsulation key.
    #[must_use]
    pub fn public(&self) -> [u8; XWING_KEY_LEN] {
        let mut public = [0; XWING_KEY_LEN];
        let (ml_kem, x25519) = public.split_at_mut(ML_KEM_PUBLIC_LEN);
        ml_kem.copy_from_slice(&self.ml_kem[ML_KEM_PUBLIC_AT..ML_KEM_PUBLIC_AT + ML_KEM_PUBLIC_LEN]);
        x25519.copy_from_slice(self.x25519_public.as_bytes());
        public
    }
}

impl Drop for XWingSecret {
    fn drop(&mut self) {
        self.ml_kem[0..ML_KEM_SECRET_LEN].zeroize();
    }
}

impl ZeroizeOnDrop for XWingSecret {}

impl Kem for XWing {
    const KIND: OnionKeyKind = OnionKeyKind::XWing;
    const CIPHERTEXT_LEN: usize = ML_KEM_CIPHERTEXT_LEN + X25519_LEN;
    type Public = [u8; XWING_KEY_LEN];
    type Secret = XWingSecret;

    fn encapsulate(
        public: &[u8; XWING_KEY_LEN],
        ciphertext: &mut [u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<SharedSecret, EncapsulationFailed> {
        let (ml_kem_public, x25519_public) = split(public).ok_or(EncapsulationFailed)?;
        let (ml_kem_out, x25519_out) =
            ciphertext.split_first_chunk_mut::<ML_KEM_CIPHERTEXT_LEN>().ok_or(EncapsulationFailed)?;
        let x25519_out: &mut [u8; X25519_LEN] = x25519_out.try_into().map_err(|_| EncapsulationFailed)?;

        let ml_kem_public = MlKem768PublicKey::from(ml_kem_public);
        // FIPS 203, 7.2: a key from elsewhere is checked before it is used.
        if !mlkem768::validate_public_key(&ml_kem_public) {
            return Err(EncapsulationFailed);
        }
        let x25519_public = PublicKey::from(*x25519_public);

        let mut ml_kem_seed = Zeroizing::new([0; 32]);
        let mut x25519_seed = Zeroizing::new([0; X25519_LEN]);
        rng.fill_bytes(ml_kem_seed.as_mut_slice());
        rng.fill_bytes(x25519_seed.as_mut_slice());

        let (ml_kem_ciphertext, ml_kem_secret) = mlkem768::encapsulate(&ml_kem_public, *ml_kem_seed);
        let ml_kem_secret = Zeroizing::new(ml_kem_secret);
        let ephemeral = StaticSecret::from(*x25519_seed);
        let x25519_ciphertext = PublicKey::from(&ephemeral);
        let x25519_secret = ephemeral.diffie_hellman(&x25519_public);

        *ml_kem_out = *ml_kem_ciphertext.as_slice();
        *x25519_out = x25519_ciphertext.to_bytes();
        Ok(combine(&ml_kem_secret, &x25519_secret, &x25519_ciphertext, &x25519_public))
    }

    /// Takes 26 KB of stack on a Cortex-M4; encapsulating takes 27 KB, making a key 26 KB.
    fn decapsulate(
        secret: &XWingSecret,
        ciphertext: &[u8],
        _rng: &mut dyn CryptoRng,
    ) -> Result<SharedSecret, DecapsulationFailed> {
        let (ml_kem, x25519) = split(ciphertext).ok_or(DecapsulationFailed)?;
        let ml_kem_secret = mlkem768::decapsulate(&secret.ml_kem, &MlKem768Ciphertext::from(ml_kem));
        let ml_kem_secret = Zeroizing::new(ml_kem_secret);
        let x25519_ciphertext = PublicKey::from(*x25519);
        let x25519_secret = secret.x25519.diffie_hellman(&x25519_ciphertext);
        Ok(combine(&ml_kem_secret, &x25519_secret, &x25519_ciphertext, &secret.x25519_public))
    }
}

/// The ML-KEM part of `M` bytes and the X25519 part, if they are all there is.
fn split<const M: usize>(bytes: &[u8]) -> Option<(&[u8; M], &[u8; X25519_LEN])> {
    let (ml_kem, x25519) = bytes.split_first_chunk()?;
    Some((ml_kem, x25519.try_into().ok()?))
}

/// The draft's Combiner.
fn combine(ml_kem: &[u8; 32], x25519: &X25519Secret, ciphertext: &PublicKey, public: &PublicKey) -> SharedSecret {
    let hash = Sha3_256::new()
        .chain_update(ml_kem)
        .chain_update(x25519.as_bytes())
        .chain_update(ciphertext.as_bytes())
        .chain_update(public.as_bytes())
        .chain_update(LABEL);
    Zeroizing::new(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use x_wing::{Decapsulate, Encapsulate, KeyExport, TryKeyInit};

    use super::*;
    use crate::crypto::testing::{Scripted, rng};

    const CIPHERTEXT_LEN: usize = XWing::CIPHERTEXT_LEN;

    fn field<const N: usize>(vector: &serde_json::Value, name: &str) -> [u8; N] {
        hex::decode(vector[name].as_str().unwrap()).unwrap().try_into().unwrap()
    }

    #[test]
    fn draft_vectors() {
        let vectors = include_str!("../../../tests/vectors/xwing.json");
        let vectors: Vec<serde_json::Value> = serde_json::from_str(vectors).unwrap();
        assert_eq!(vectors.len(), 3);
        for vector in &vectors {
            let secret = XWingSecret::generate(&mut Scripted(&field::<32>(vector, "seed")));
            assert_eq!(*secret.seed(), field(vector, "sk"));
            assert_eq!(secret.public(), field(vector, "pk"));

            let mut ciphertext = [0xa5; CIPHERTEXT_LEN];
            let eseed = field::<64>(vector, "eseed");
            let shared = XWing::encapsulate(&secret.public(), &mut ciphertext, &mut Scripted(&eseed)).unwrap();
            assert_eq!(ciphertext, field(vector, "ct"));
            assert_eq!(*shared, field(vector, "ss"));
            assert_eq!(XWing::decapsulate(&secret, &ciphertext, &mut rng(0)), Ok(shared));
        }
    }

    #[test]
    fn agrees_with_the_crate() {
        let rng = &mut rng(1);
        for _ in 0..8 {
            let ours = XWingSecret::generate(rng);
            let theirs = x_wing::DecapsulationKey::from(*ours.seed());
            let their_public = x_wing::EncapsulationKey::new_from_slice(&ours.public()).unwrap();
            assert_eq!(their_public.to_bytes().as_slice(), ours.public());

            let mut ciphertext = [0; CIPHERTEXT_LEN];
            let shared = XWing::encapsulate(&ours.public(), &mut ciphertext, rng).unwrap();
            assert_eq!(theirs.decapsulate(&ciphertext.into()).as_slice(), shared.as_slice());

            let (ciphertext, shared) = their_public.encapsulate_with_rng(rng);
            assert_eq!(XWing::decapsulate(&ours, &ciphertext, rng).unwrap().as_slice(), shared.as_slice());
        }
    }

    /// Altered ciphertexts do not fail, they yield another secret, and the same one as in the crate.
    #[test]
    fn altered_ciphertexts_yield_other_secrets() {
        let rng = &mut rng(2);
        let ours = XWingSecret::generate(rng);
        let theirs = x_wing::DecapsulationKey::from(*ours.seed());
        let mut ciphertext = [0; CIPHERTEXT_LEN];
        let shared = XWing::encapsulate(&ours.public(), &mut ciphertext, rng).unwrap();
        // The last byte's top bit is one that X25519 itself ignores.
        for (at, bit) in (0..CIPHERTEXT_LEN).step_by(97).map(|at| (at, at % 8)).chain([(CIPHERTEXT_LEN - 1, 7)]) {
            let mut altered = ciphertext;
            altered[at] ^= 1 << bit;
            let other = XWing::decapsulate(&ours, &altered, rng).unwrap();
            assert_ne!(other, shared);
            assert_eq!(other.as_slice(), theirs.decapsulate(&altered.into()).as_slice());
        }
    }

    #[test]
    fn a_zero_x25519_output_is_accepted_as_in_the_crate() {
        let rng = &mut rng(3);
        let ours = XWingSecret::generate(rng);
        let theirs = x_wing::DecapsulationKey::from(*ours.seed());
        let mut ciphertext = [0; CIPHERTEXT_LEN];
        XWing::encapsulate(&ours.public(), &mut ciphertext, rng).unwrap();
        ciphertext[ML_KEM_CIPHERTEXT_LEN..].fill(0);
        let shared = XWing::decapsulate(&ours, &ciphertext, rng).unwrap();
        assert_eq!(shared.as_slice(), theirs.decapsulate(&ciphertext.into()).as_slice());
    }

    #[test]
    fn nothing_is_encapsulated_to_an_invalid_key() {
        let rng = &mut rng(4);
        let good = XWingSecret::generate(rng).public();
        let mut out = [0; CIPHERTEXT_LEN];
        assert!(XWing::encapsulate(&good, &mut out, rng).is_ok());
        assert_eq!(XWing::encapsulate(&[0xff; XWING_KEY_LEN], &mut out, rng), Err(EncapsulationFailed));
        // A coefficient that is not below the modulus, in the first, a middle and the last place.
        for at in [0, 576, 1149] {
            let mut bad = good;
            bad[at..at + 3].fill(0xff);
            assert_eq!(XWing::encapsulate(&bad, &mut out, rng), Err(EncapsulationFailed));
            assert!(x_wing::EncapsulationKey::new_from_slice(&bad).is_err());
        }
    }

    #[test]
    fn lengths_are_checked() {
        let rng = &mut rng(5);
        let secret = XWingSecret::generate(rng);
        for len in [0, 31, 32, ML_KEM_CIPHERTEXT_LEN, CIPHERTEXT_LEN - 1, CIPHERTEXT_LEN + 1] {
            let mut bytes = std::vec![0; len];
            assert_eq!(XWing::encapsulate(&secret.public(), &mut bytes, rng), Err(EncapsulationFailed));
            assert_eq!(XWing::decapsulate(&secret, &bytes, rng), Err(DecapsulationFailed));
        }
    }

    #[test]
    fn the_expanded_key_is_small() {
        assert_eq!(size_of::<XWingSecret>(), SEED_LEN + ML_KEM_SECRET_LEN + 2 * X25519_LEN);
    }
}
