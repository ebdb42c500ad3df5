//! The AEAD behind link records on hosts: ring's AES-256-GCM, about four times as fast as the portable one (`cargo bench -p bulbil-core --bench link`).

use bulbil_core::link::RecordAead;
use bulbil_core::link::aead::{OpenFailed, noise_nonce};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// AES-256-GCM by ring.
pub(crate) struct RingAead(LessSafeKey);

impl RecordAead for RingAead {
    fn new(key: &[u8; 32]) -> Self {
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("the key has AES-256's length")))
    }

    fn seal(&self, nonce: u64, buffer: &mut [u8]) -> [u8; 16] {
        let nonce = Nonce::assume_unique_for_key(noise_nonce(nonce));
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::empty(), buffer);
        let tag = tag.expect("a record is far below GCM's limit");
        tag.as_ref().try_into().expect("GCM's tag has 16 bytes")
    }

    fn open(&self, nonce: u64, buffer: &mut [u8], tag: &[u8; 16]) -> Result<(), OpenFailed> {
        let nonce = Nonce::assume_unique_for_key(noise_nonce(nonce));
        let opened = self.0.open_in_place_separate_tag(nonce, Aad::empty(), (*tag).into(), buffer, 0..);
        opened.map(|_| ()).map_err(|_| OpenFailed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulbil_core::link::PortableAead;

    #[test]
    fn is_the_same_cipher_as_the_portable_one() {
        for len in [514, 127 * 514] {
            let text: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let (mut by_ring, mut portable) = (text.clone(), text.clone());
            let tag = RingAead::new(&[7; 32]).seal(1 << 40, &mut by_ring);
            assert_eq!(tag, PortableAead::new(&[7; 32]).seal(1 << 40, &mut portable));
            assert_eq!(by_ring, portable);
            let mut forged = by_ring.clone();
            forged[len / 2] ^= 1;
            assert!(RingAead::new(&[7; 32]).open(1 << 40, &mut forged, &tag).is_err());
            RingAead::new(&[7; 32]).open(1 << 40, &mut by_ring, &tag).unwrap();
            assert_eq!(by_ring, text);
        }
    }
}
