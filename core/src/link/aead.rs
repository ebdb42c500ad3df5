//! The authenticated cipher behind a link: AES-256-GCM with the nonces of Noise, `PROTOCOL.md` section 4.2.
//!
//! Records are the largest cost per byte on a host, so the cipher that carries them is a trait. [`PortableAead`]
//! implements it wherever the core runs; a host may bring a faster one. Both must be AES-256-GCM: the trait is a seam
//! inside one node, not a choice on the wire.

use aes::Aes256Enc;
use aes::cipher::consts::U12;
use aes_gcm::{AeadInOut, AesGcm, KeyInit};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes of an AES-256 key.
pub const KEY_LEN: usize = 32;
/// Bytes of an authenticator.
pub const TAG_LEN: usize = 16;

/// A key for one direction of one link; wiped when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct RecordKey([u8; KEY_LEN]);

impl RecordKey {
    /// The key with these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

/// A ciphertext that was not made under this key and nonce, or was altered since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OpenFailed;

impl core::fmt::Display for OpenFailed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("ciphertext is not authentic")
    }
}

impl core::error::Error for OpenFailed {}

/// AES-256-GCM without associated data, in place, keyed once.
///
/// The nonce is the 64-bit number given, as 4 zero bytes and then the number big-endian. The caller never seals twice
/// under one nonce. Implementations must wipe the key when they are dropped.
pub trait RecordAead {
    /// Keys the cipher.
    fn new(key: &[u8; KEY_LEN]) -> Self;

    /// Encrypts `buffer` (up to 65,535 bytes) and answers its authenticator.
    #[must_use = "without its tag a ciphertext cannot be opened"]
    fn seal(&self, nonce: u64, buffer: &mut [u8]) -> [u8; TAG_LEN];

    /// Checks `tag` and decrypts `buffer`.
    ///
    /// # Errors
    /// [`OpenFailed`] if the authenticator does not fit; `buffer` then holds nothing of use.
    fn open(&self, nonce: u64, buffer: &mut [u8], tag: &[u8; TAG_LEN]) -> Result<(), OpenFailed>;
}

/// AES-256-GCM of the RustCrypto crates: without allocator, with the processor's AES instructions where they are found
/// at run time.
///
/// Only the encrypting half of AES is keyed, since GCM never uses the other.
pub struct PortableAead(AesGcm<Aes256Enc, U12>);

impl PortableAead {
    /// [`RecordAead::seal`] that also authenticates `associated`, which handshake messages need.
    pub(super) fn seal_with(&self, nonce: u64, associated: &[u8], buffer: &mut [u8]) -> [u8; TAG_LEN] {
        self.0
            .encrypt_inout_detached(&noise_nonce(nonce).into(), associated, buffer.into())
            .expect("GCM takes 2^36 bytes, and no message here has more than 2^16")
            .into()
    }

    /// [`RecordAead::open`] with associated data; `buffer` is unchanged on failure.
    pub(super) fn open_with(
        &self,
        nonce: u64,
        associated: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), OpenFailed> {
        self.0
            .decrypt_inout_detached(&noise_nonce(nonce).into(), associated, buffer.into(), tag.into())
            .map_err(|_| OpenFailed)
    }
}

impl RecordAead for PortableAead {
    fn new(key: &[u8; KEY_LEN]) -> Self {
        Self(AesGcm::new(key.into()))
    }

    fn seal(&self, nonce: u64, buffer: &mut [u8]) -> [u8; TAG_LEN] {
        self.seal_with(nonce, &[], buffer)
    }

    fn open(&self, nonce: u64, buffer: &mut [u8], tag: &[u8; TAG_LEN]) -> Result<(), OpenFailed> {
        self.open_with(nonce, &[], buffer, tag)
    }
}

/// The nonce of Noise's AESGCM functions (Noise section 12.4): 4 zero bytes, then the counter big-endian.
#[must_use]
pub fn noise_nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    /// McGrew and Viega, "The Galois/Counter Mode of Operation", test case 14: zero key, zero nonce, one zero block.
    #[test]
    fn seals_the_gcm_specification_test_case_14() {
        let mut block = [0; 16];
        let tag = PortableAead::new(&[0; KEY_LEN]).seal(0, &mut block);
        assert_eq!(hex::encode(block), "cea7403d4d606b6e074ec5d3baf39d18");
        assert_eq!(hex::encode(tag), "d0d1c8a799996bf0265b98b5d48ab919");
    }

    #[test]
    fn nonce_is_big_endian_behind_four_zero_bytes() {
        assert_eq!(noise_nonce(0x0102_0304_0506_0708), [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn opens_only_what_was_sealed_under_the_same_key_nonce_and_associated_data() {
        let aead = PortableAead::new(&[7; KEY_LEN]);
        let mut sealed = *b"nine cells";
        let tag = aead.seal_with(3, b"hash", &mut sealed);
        let open = |aead: &PortableAead, nonce, associated: &[u8], mut bytes: [u8; 10], tag: &[u8; TAG_LEN]| {
            aead.open_with(nonce, associated, &mut bytes, tag).map(|()| bytes)
        };
        assert_eq!(open(&aead, 3, b"hash", sealed, &tag), Ok(*b"nine cells"));
        assert_eq!(open(&aead, 4, b"hash", sealed, &tag), Err(OpenFailed));
        assert_eq!(open(&aead, 3, b"", sealed, &tag), Err(OpenFailed));
        assert_eq!(open(&PortableAead::new(&[8; KEY_LEN]), 3, b"hash", sealed, &tag), Err(OpenFailed));
        for bit in 0..TAG_LEN * 8 {
            let mut tag = tag;
            tag[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&aead, 3, b"hash", sealed, &tag), Err(OpenFailed), "bit {bit} of the tag");
        }
    }
}
