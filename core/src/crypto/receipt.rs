//! Signed answers, `PROTOCOL.md` section 9 (RECEIPT): an exit's word for what it carried between a client and a target.

use rand_core::CryptoRng;
use sha2::{Digest, Sha256};

use super::identity::{self, BadSignature, IdentityKey, IdentitySecret, Signature, SigningFailed};
use crate::wire::address::TARGET_MAX_LEN;
use crate::wire::{NodeId, Target, WireError, Writer};

const CONTEXT: &[u8] = b"bulbil/1 receipt";

/// Hashes of a conversation's two directions, kept by exit and client alike while it goes on.
#[derive(Clone, Default)]
pub struct TranscriptDigest {
    request: Sha256,
    answer: Sha256,
}

impl TranscriptDigest {
    /// Of a conversation in which nothing has been said.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes sent forward: BEGIN's first bytes or a DATA message, before the client's FIN.
    pub fn update_request(&mut self, bytes: &[u8]) {
        self.request.update(bytes);
    }

    /// Adds bytes sent backward: a DATA message.
    pub fn update_answer(&mut self, bytes: &[u8]) {
        self.answer.update(bytes);
    }
}

/// Everything that a receipt states, in the order in which it is signed.
pub struct ReceiptParts {
    exit: NodeId,
    target: [u8; TARGET_MAX_LEN],
    target_len: usize,
    request: [u8; 32],
    answer: [u8; 32],
    time: [u8; 8],
}

impl ReceiptParts {
    /// States that `exit` carried `transcript` between a client and `target`, and finished at `time` (Unix seconds).
    ///
    /// # Errors
    /// [`WireError::Invalid`] for a target that cannot be sent in BEGIN (port 0).
    pub fn new(exit: NodeId, target: &Target, transcript: &TranscriptDigest, time: u64) -> Result<Self, WireError> {
        let mut bytes = [0; TARGET_MAX_LEN];
        let mut writer = Writer::new(&mut bytes);
        target.emit(&mut writer)?;
        let target_len = writer.len();
        Ok(Self {
            exit,
            target: bytes,
            target_len,
            request: transcript.request.clone().finalize().into(),
            answer: transcript.answer.clone().finalize().into(),
            time: time.to_be_bytes(),
        })
    }

    fn parts(&self) -> [&[u8]; 6] {
        [CONTEXT, &self.exit.0, &self.target[..self.target_len], &self.request, &self.answer, &self.time]
    }

    /// The exit's signature over this statement.
    ///
    /// # Errors
    /// [`SigningFailed`], see there.
    pub fn sign(&self, secret: &IdentitySecret, rng: &mut dyn CryptoRng) -> Result<Signature, SigningFailed> {
        secret.sign(rng, &self.parts())
    }

    /// Whether the exit, whose identity is `key`, signed this statement.
    ///
    /// # Errors
    /// [`BadSignature`], also if `key` is not the identity of the exit that the statement names.
    pub fn verify(&self, key: &IdentityKey, signature: &Signature) -> Result<(), BadSignature> {
        if identity::node_id(key) != self.exit {
            return Err(BadSignature);
        }
        identity::verify(key, &self.parts(), signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::{RSA_KEYS, rng};

    fn transcript(request: &[&[u8]], answer: &[&[u8]]) -> TranscriptDigest {
        let mut digest = TranscriptDigest::new();
        request.iter().for_each(|part| digest.update_request(part));
        answer.iter().for_each(|part| digest.update_answer(part));
        digest
    }

    #[test]
    fn receipts_hold_for_exactly_what_they_state() {
        let secret = IdentitySecret::from_pkcs8(RSA_KEYS[0]).unwrap();
        let other = IdentitySecret::from_pkcs8(RSA_KEYS[1]).unwrap();
        let (key, exit) = (secret.public(), secret.node_id());
        let target: Target = "example.org:443".parse().unwrap();
        let state = |exit, target: &str, request: &[&[u8]], answer: &[&[u8]], time| {
            ReceiptParts::new(exit, &target.parse().unwrap(), &transcript(request, answer), time).unwrap()
        };

        let signed = ReceiptParts::new(exit, &target, &transcript(&[b"ab", b"c"], &[b"def"]), 99).unwrap();
        let signature = signed.sign(&secret, &mut rng(1)).unwrap();

        // How the bytes were cut into messages does not matter.
        let same = state(exit, "example.org:443", &[b"a", b"", b"bc"], &[b"de", b"f"], 99);
        assert_eq!(same.verify(&key, &signature), Ok(()));
        // By hand, as the protocol states it.
        let name = [b"\x03\x0bexample.org".as_slice(), &443u16.to_be_bytes()].concat();
        let by_hand: [&[u8]; 6] = [
            b"bulbil/1 receipt",
            &exit.0,
            &name,
            &Sha256::digest(b"abc"),
            &Sha256::digest(b"def"),
            &99u64.to_be_bytes(),
        ];
        assert_eq!(identity::verify(&key, &by_hand, &signature), Ok(()));

        for different in [
            state(exit, "example.org:80", &[b"abc"], &[b"def"], 99),
            state(exit, "example.com:443", &[b"abc"], &[b"def"], 99),
            state(exit, "phonebook", &[b"abc"], &[b"def"], 99),
            state(exit, "example.org:443", &[b"abcd"], &[b"ef"], 99),
            state(exit, "example.org:443", &[b"abc"], &[b""], 99),
            state(exit, "example.org:443", &[b"abc"], &[b"def"], 98),
            state(other.node_id(), "example.org:443", &[b"abc"], &[b"def"], 99),
        ] {
            assert_eq!(different.verify(&key, &signature), Err(BadSignature));
        }
        assert_eq!(same.verify(&other.public(), &signature), Err(BadSignature));
    }

    #[test]
    fn no_receipt_for_what_cannot_be_asked_for() {
        let target = Target::Tcp(crate::wire::Host::Ip([127, 0, 0, 1].into()), 0);
        let parts = ReceiptParts::new(NodeId([0; 32]), &target, &TranscriptDigest::new(), 0);
        assert_eq!(parts.err(), Some(WireError::Invalid));
    }

    #[test]
    fn the_longest_target_fits() {
        let target: Target = std::format!("{}:65535", "x".repeat(253)).parse().unwrap();
        assert!(ReceiptParts::new(NodeId([0; 32]), &target, &TranscriptDigest::new(), 0).is_ok());
    }
}
