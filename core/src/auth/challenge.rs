//! Challenges and their answers, `PROTOCOL.md` section 17.4.
//!
//! Both sides encrypt the challenge with AES-SIV (RFC 5297) under the password key, and the server compares. SIV is
//! deterministic and a pseudorandom function of all that goes in, so any number of challenges with their answers tell
//! nothing about the answer to another. What goes in besides the challenge is the connection, with the server's key in
//! it, and the session's key: an answer that was coaxed out of a user elsewhere is worth nothing here.

use aes_siv::siv::Aes128Siv;
use hmac::{Hmac, KeyInit, Mac};
use rand_core::CryptoRng;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::envelope::Binding;
use super::key::PublicKey;
use super::name::{USERNAME_MAX_LEN, Username};
use super::password::PasswordKey;
use super::status::SessionNumber;

/// Bytes of the longest challenge.
pub const CHALLENGE_MAX_LEN: usize = PREFIX.len() + USERNAME_MAX_LEN + 1 + NONCE_TEXT_LEN;
/// Bytes of the longest answer.
pub const ANSWER_MAX_LEN: usize = SIV_LEN + CHALLENGE_MAX_LEN;

const PREFIX: &str = "bonjour_";
const COUNTER_LEN: usize = 8;
const RANDOM_LEN: usize = 16;
const NONCE_TEXT_LEN: usize = 2 * (COUNTER_LEN + RANDOM_LEN);
const SIV_LEN: usize = 16;

/// A key that the server draws when it starts and keeps to itself; wiped when dropped.
pub(super) struct MaskKey(Zeroizing<[u8; 32]>);

impl MaskKey {
    pub(super) fn generate(rng: &mut dyn CryptoRng) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        rng.fill_bytes(key.as_mut_slice());
        Self(key)
    }

    /// A pseudorandom function of what `parts` say; the first names the purpose, and their lengths are fixed but for the last.
    pub(super) fn derive(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mac = Hmac::<Sha256>::new_from_slice(self.0.as_slice()).expect("HMAC takes keys of any length");
        parts.iter().fold(mac, Mac::chain_update).finalize().into_bytes().into()
    }
}

/// A challenge: `bonjour_<username>_<nonce>`, the nonce 48 hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Challenge(heapless::String<CHALLENGE_MAX_LEN, u8>);

impl Challenge {
    /// A fresh challenge for `username`, who has signed in `counter` times.
    ///
    /// The counter makes the nonce differ between sessions even if the generator repeats itself. It is masked, since in
    /// clear it would tell anybody who asks whether there is such a user and how often they sign in.
    pub(super) fn issue(username: &Username, counter: SessionNumber, mask: &MaskKey, rng: &mut dyn CryptoRng) -> Self {
        let mut random = [0; RANDOM_LEN];
        rng.fill_bytes(&mut random);
        let keystream = mask.derive(&[b"counter", &random, username.as_bytes()]);
        let masked = u64::from_be_bytes(*keystream.first_chunk().expect("8 of 32 bytes")) ^ counter.0;
        let mut text = heapless::String::new();
        let parts = format_args!("{PREFIX}{}_{masked:016x}{:032x}", username.as_str(), u128::from_be_bytes(random));
        core::fmt::write(&mut text, parts).expect("the capacity is that of the longest username");
        Self(text)
    }

    /// The challenge that `text` is, or `None` if it is none for `username`: nobody answers another user's challenge.
    #[must_use]
    pub fn parse(text: &str, username: &Username) -> Option<Self> {
        let nonce = text.strip_prefix(PREFIX)?.strip_prefix(username.as_str())?.strip_prefix('_')?;
        let hex = nonce.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (nonce.len() == NONCE_TEXT_LEN && hex).then(|| text.try_into().ok().map(Self)).flatten()
    }

    /// The challenge's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The answer by whoever has `key`, on the connection of `binding`, for the session of `session`.
    #[must_use]
    pub fn answer(&self, key: &PasswordKey, binding: &Binding, session: &PublicKey) -> Answer {
        let mut bytes = [0; ANSWER_MAX_LEN];
        let len = SIV_LEN + self.0.len();
        let (iv, rest) = bytes.split_at_mut(SIV_LEN);
        let text = &mut rest[..self.0.len()];
        text.copy_from_slice(self.0.as_bytes());
        let session = session.fingerprint();
        let headers = [binding.as_bytes(), session.as_bytes()];
        let siv = Aes128Siv::new(key.as_bytes().into()).encrypt_inout_detached(headers, text.into());
        iv.copy_from_slice(&siv.expect("two headers are fewer than 127"));
        Answer { bytes, len }
    }
}

/// An answer to a challenge: SIV's 16 bytes, then the challenge encrypted.
pub struct Answer {
    bytes: [u8; ANSWER_MAX_LEN],
    len: usize,
}

impl Answer {
    /// Whether `bytes` are this answer, by `subtle`'s comparison in constant time.
    #[must_use]
    pub fn matches(&self, bytes: &[u8]) -> bool {
        self.as_ref().ct_eq(bytes).into()
    }
}

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::auth::key::SessionSecret;
    use crate::crypto::testing::{RSA_KEYS, rng};

    fn session(index: usize) -> PublicKey {
        SessionSecret::from_pkcs8(RSA_KEYS[index]).unwrap().public()
    }

    fn issue(name: &str, counter: u64, seed: u64) -> Challenge {
        let mask = MaskKey::generate(&mut rng(0));
        Challenge::issue(&Username::new(name).unwrap(), SessionNumber(counter), &mask, &mut rng(seed))
    }

    /// RFC 5297, A.1: what the crate calls `Aes128Siv` is AEAD_AES_SIV_CMAC_256.
    #[test]
    fn siv_is_that_of_the_rfc() {
        let key: [u8; 32] = hex::decode("fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
            .unwrap()
            .try_into()
            .unwrap();
        let header = hex::decode("101112131415161718191a1b1c1d1e1f2021222324252627").unwrap();
        let mut text = hex::decode("112233445566778899aabbccddee").unwrap();
        let iv = Aes128Siv::new(&key.into()).encrypt_inout_detached([header], text.as_mut_slice().into()).unwrap();
        assert_eq!(hex::encode(iv), "85632d07c6e8f37f950acd320a2ecc93");
        assert_eq!(hex::encode(text), "40c02b9690c4dc04daef7f6afe5c");
    }

    #[test]
    fn frozen_answer() {
        let challenge = Challenge::parse(
            &std::format!("bonjour_alice_{}", "0123456789abcdef".repeat(3)),
            &Username::new("alice").unwrap(),
        );
        let answer = challenge.unwrap().answer(&PasswordKey::new([7; 32]), &Binding::from_bytes([9; 32]), &session(0));
        assert_eq!(hex::encode(answer.as_ref()), FROZEN);
    }
    /// By AESSIV of pyca/cryptography (OpenSSL).
    const FROZEN: &str = concat!(
        "6ad97e50380adb87df803b451cd8e2ca497e45f05caf0361f20235df4730d8a93a508b4571d0f2",
        "9bb0ff7a8eb635ff2df52bfd32efd408fa9f93a4c453dc45b01b3a5a515dd99fa6eb491d17fa05",
    );

    #[test]
    fn challenges_name_their_user_and_never_repeat() {
        let (name, other) = (Username::new("a_b").unwrap(), Username::new("a").unwrap());
        let mut seen = HashSet::new();
        for seed in 0..200 {
            let challenge = issue("a_b", seed / 100, seed);
            assert!(Challenge::parse(challenge.as_str(), &name).unwrap() == challenge);
            assert!(Challenge::parse(challenge.as_str(), &other).is_none());
            assert!(seen.insert(std::string::String::from(challenge.as_str())));
        }
        // A generator that repeats itself does not repeat a challenge once the user has signed in.
        assert!(issue("a_b", 1, 7) != issue("a_b", 2, 7));
    }

    #[test]
    fn only_challenges_parse() {
        let name = Username::new("alice").unwrap();
        let good = issue("alice", 3, 1);
        let good = good.as_str();
        for len in 0..good.len() {
            assert!(Challenge::parse(&good[..len], &name).is_none());
        }
        for bad in [
            &std::format!("{good}0"),
            &good.replace("bonjour", "Bonjour"),
            &good.replacen("alice", "alicE", 1),
            &good.to_uppercase(),
        ] {
            assert!(Challenge::parse(bad, &name).is_none());
        }
        assert!(
            Challenge::parse(issue(&"x".repeat(64), 3, 1).as_str(), &Username::new(&"x".repeat(64)).unwrap()).is_some()
        );
    }

    #[test]
    fn an_answer_fits_one_challenge_key_connection_and_session() {
        let (challenge, key, binding) = (issue("alice", 1, 1), PasswordKey::new([1; 32]), Binding::from_bytes([2; 32]));
        let answer = challenge.answer(&key, &binding, &session(0));
        assert!(answer.matches(challenge.answer(&key, &binding, &session(0)).as_ref()));
        for other in [
            challenge.answer(&PasswordKey::new([3; 32]), &binding, &session(0)),
            challenge.answer(&key, &Binding::from_bytes([3; 32]), &session(0)),
            challenge.answer(&key, &binding, &session(1)),
            issue("alice", 1, 2).answer(&key, &binding, &session(0)),
            issue("alicf", 1, 1).answer(&key, &binding, &session(0)),
        ] {
            assert!(!answer.matches(other.as_ref()));
            assert_eq!(answer.as_ref().len(), other.as_ref().len());
        }
        assert!(!answer.matches(&[]));
        assert!(!answer.matches(&answer.as_ref()[1..]));
    }

    /// What one answer gives away under AES-CTR with a fixed nonce: here the keystreams of any two answers differ.
    #[test]
    fn observed_answers_give_no_keystream() {
        let (key, binding) = (PasswordKey::new([1; 32]), Binding::from_bytes([2; 32]));
        let mut seen = HashSet::new();
        for seed in 0..500 {
            let challenge = issue("alice", 1, seed);
            let answer = challenge.answer(&key, &binding, &session(0));
            let text = challenge.as_str().as_bytes();
            let keystream: std::vec::Vec<u8> =
                answer.as_ref()[SIV_LEN..].iter().zip(text).map(|(a, b)| a ^ b).collect();
            assert!(seen.insert(keystream[..16].to_vec()));
            assert!(seen.insert(answer.as_ref()[..SIV_LEN].to_vec()));
        }
    }
}
