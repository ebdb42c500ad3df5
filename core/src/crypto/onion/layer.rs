//! The keys of one layer.

use aes::Aes128;
use ctr::Ctr128BE;
use ctr::cipher::KeyIvInit;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{HopKeys, MAC_LEN, SEED_LEN};
use crate::crypto::kem::SharedSecret;
use crate::crypto::replay::ReplayTag;
use crate::wire::{NodeId, OnionKeyKind};

const SALT: &[u8] = b"bulbil/1 onion";
const MAC_KEY_LEN: usize = 32;
const STREAM_KEY_LEN: usize = 16;
const REPLAY_TAG_LEN: usize = 8;
const KEYS_LEN: usize = MAC_KEY_LEN + STREAM_KEY_LEN + REPLAY_TAG_LEN + 2 * SEED_LEN;

const _: () = assert!(KEYS_LEN == 216);

/// The cipher of a layer. The counter never reaches 2^9 blocks.
pub(super) type Stream = Ctr128BE<Aes128>;

/// Everything that follows from a layer's secret; wiped when dropped.
pub(super) struct LayerKeys(Zeroizing<[u8; KEYS_LEN]>);

impl LayerKeys {
    /// Binds the secret to the hop that it is meant for and to the very ciphertext that carried it, so that a KEM
    /// which tolerates altered ciphertexts still does not let one through.
    pub(super) fn derive(secret: &SharedSecret, node: &NodeId, kind: OnionKeyKind, ciphertext: &[u8]) -> Self {
        let hash = Sha256::digest(ciphertext);
        let mut keys = Zeroizing::new([0; KEYS_LEN]);
        Hkdf::<Sha256>::new(Some(SALT), secret.as_slice())
            .expand_multi_info(&[&node.0, &[kind as u8], &hash], keys.as_mut_slice())
            .expect("216 bytes are within HKDF's limit");
        Self(keys)
    }

    /// A MAC over nothing yet.
    pub(super) fn mac(&self) -> Hmac<Sha256> {
        Hmac::new_from_slice(self.field::<0, MAC_KEY_LEN>()).expect("HMAC takes keys of any length")
    }

    /// The keystream from its beginning.
    pub(super) fn stream(&self) -> Stream {
        Stream::new(self.field::<MAC_KEY_LEN, STREAM_KEY_LEN>().into(), &[0; 16].into())
    }

    pub(super) fn replay_tag(&self) -> ReplayTag {
        ReplayTag::from_bytes(*self.field::<{ MAC_KEY_LEN + STREAM_KEY_LEN }, REPLAY_TAG_LEN>())
    }

    pub(super) fn hop_keys(&self) -> HopKeys {
        HopKeys {
            forward: Zeroizing::new(*self.field::<{ KEYS_LEN - 2 * SEED_LEN }, SEED_LEN>()),
            backward: Zeroizing::new(*self.field::<{ KEYS_LEN - SEED_LEN }, SEED_LEN>()),
        }
    }

    fn field<const AT: usize, const LEN: usize>(&self) -> &[u8; LEN] {
        const { assert!(AT + LEN <= KEYS_LEN) };
        self.0[AT..].first_chunk().expect("checked when compiled")
    }
}

/// The part of a MAC that an onion has room for.
pub(super) fn truncated(mac: Hmac<Sha256>) -> [u8; MAC_LEN] {
    let mac = mac.finalize().into_bytes();
    *mac.first_chunk().expect("a MAC of 32 bytes is longer")
}
