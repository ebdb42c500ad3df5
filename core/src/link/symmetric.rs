//! Noise's SymmetricState and the CipherState in it (revision 34, sections 5.1 and 5.2) with SHA-256 and AESGCM.

use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::aead::{KEY_LEN, PortableAead, RecordAead, RecordKey, TAG_LEN};
use super::noise::HandshakeError;

pub(super) const HASH_LEN: usize = 32;

/// Which handshake is run.
pub(super) struct Protocol<'a> {
    pub(super) name: &'a [u8],
    pub(super) prologue: &'a [u8],
    /// Whether the tokens e1 and ekem1 are part of the pattern.
    pub(super) hybrid: bool,
}

/// What both sides know at a point of the handshake.
///
/// A sealed field is a text and, once there is a key, its tag behind it.
pub(super) struct SymmetricState {
    chaining_key: Zeroizing<[u8; HASH_LEN]>,
    hash: [u8; HASH_LEN],
    key: Option<RecordKey>,
    nonce: u64,
}

impl SymmetricState {
    /// InitializeSymmetric and MixHash of the prologue.
    pub(super) fn new(protocol: &Protocol<'_>) -> Self {
        let mut hash = [0; HASH_LEN];
        match hash.get_mut(..protocol.name.len()) {
            Some(start) => start.copy_from_slice(protocol.name),
            None => hash = Sha256::digest(protocol.name).into(),
        }
        let mut this = Self { chaining_key: Zeroizing::new(hash), hash, key: None, nonce: 0 };
        this.mix_hash(protocol.prologue);
        this
    }

    pub(super) fn mix_hash(&mut self, data: &[u8]) {
        self.hash = Sha256::new_with_prefix(self.hash).chain_update(data).finalize().into();
    }

    pub(super) fn mix_key(&mut self, input: &[u8]) {
        let (chaining_key, key) = self.hkdf(input);
        self.chaining_key = chaining_key;
        self.key = Some(RecordKey::new(*key));
        self.nonce = 0;
    }

    /// HKDF of Noise section 4.3 with two outputs: that of RFC 5869 with the chaining key as salt and no info.
    fn hkdf(&self, input: &[u8]) -> (Zeroizing<[u8; HASH_LEN]>, Zeroizing<[u8; KEY_LEN]>) {
        let mut output = Zeroizing::new([0; HASH_LEN + KEY_LEN]);
        Hkdf::<Sha256>::new(Some(&*self.chaining_key), input)
            .expand(&[], &mut *output)
            .expect("HKDF-SHA-256 gives up to 8,160 bytes");
        let (mut first, mut second) = (Zeroizing::new([0; HASH_LEN]), Zeroizing::new([0; KEY_LEN]));
        first.copy_from_slice(&output[..HASH_LEN]);
        second.copy_from_slice(&output[HASH_LEN..]);
        (first, second)
    }

    pub(super) fn encrypt_and_hash(&mut self, field: &mut [u8]) -> Result<(), HandshakeError> {
        if let Some(key) = &self.key {
            let (text, tag) = field.split_last_chunk_mut::<TAG_LEN>().ok_or(HandshakeError::NoRoom)?;
            *tag = PortableAead::new(key.as_bytes()).seal_with(self.nonce, &self.hash, text);
            self.nonce += 1;
        }
        self.mix_hash(field);
        Ok(())
    }

    /// Answers the text of the field.
    pub(super) fn decrypt_and_hash<'f>(&mut self, field: &'f mut [u8]) -> Result<&'f mut [u8], HandshakeError> {
        let associated = self.hash;
        self.mix_hash(field);
        let Some(key) = &self.key else { return Ok(field) };
        let (text, tag) = field.split_last_chunk_mut::<TAG_LEN>().ok_or(HandshakeError::Length)?;
        PortableAead::new(key.as_bytes()).open_with(self.nonce, &associated, text, tag)?;
        self.nonce += 1;
        Ok(text)
    }

    /// The handshake hash so far.
    #[cfg(test)]
    pub(super) const fn hash(&self) -> &[u8; HASH_LEN] {
        &self.hash
    }

    /// The keys from connector to answerer and from answerer to connector.
    pub(super) fn split(&self) -> (RecordKey, RecordKey) {
        let (to_answerer, to_connector) = self.hkdf(&[]);
        (RecordKey::new(*to_answerer), RecordKey::new(*to_connector))
    }
}
