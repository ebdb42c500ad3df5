//! Peeling a layer off an onion in place.

use ctr::cipher::StreamCipher;
use hmac::Mac;
use rand_core::CryptoRng;

use super::layer::LayerKeys;
use super::{HopKeys, INSTRUCTION_LEN, Instruction, MAC_LEN, ONION_LEN, Onion, shift};
use crate::crypto::kem::{Kem, KeyEpoch, OnionKeys, OnionSecret, Rsa2048, XWing};
use crate::crypto::replay::ReplayTag;
use crate::wire::NodeId;

/// What a hop learns from its layer.
#[must_use]
pub struct Peeled {
    /// What to do, once the replay tag is accepted and not before.
    pub instruction: Instruction,
    /// What relay cells of the circuit are encrypted with.
    pub keys: HopKeys,
    /// To be offered to the replay set of `epoch`.
    pub replay_tag: ReplayTag,
    /// The key that opened the onion.
    pub epoch: KeyEpoch,
}

/// Why an onion was not peeled: for counters here. The neighbour is told one reason for all, `onion rejected`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnionRejected {
    /// No honoured key opens it: altered, meant for another node, or for a key that is gone.
    NotAuthentic,
    /// It is authentic, and its instruction means nothing: whoever built it erred.
    Instruction,
}

impl core::fmt::Display for OnionRejected {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NotAuthentic => "onion not authentic",
            Self::Instruction => "onion with a meaningless instruction",
        })
    }
}

impl core::error::Error for OnionRejected {}

/// Opens the layer that is meant for `node`, with its current key or else its previous one. If the instruction is to
/// send the onion on, `onion` is then the next hop's; otherwise, and on failure, it is as it was.
///
/// The MAC, over every byte behind it, is compared in constant time before anything is decrypted. `rng` blinds the RSA
/// operation.
///
/// The caller offers the replay tag to [`ReplayEpochs`](crate::crypto::replay::ReplayEpochs) before it acts on the
/// instruction.
///
/// Works in the onion itself. Takes 4 KB of stack on a Cortex-M4; with an `x-wing` key 28 KB in all while it
/// decapsulates, with an `rsa2048` key about 15 KB, and 6.4 KB of heap.
///
/// # Errors
/// [`OnionRejected`].
pub fn peel(
    onion: &mut Onion,
    node: &NodeId,
    keys: &OnionKeys,
    rng: &mut dyn CryptoRng,
) -> Result<Peeled, OnionRejected> {
    for (epoch, secret) in keys.newest_first() {
        let opened = match secret {
            OnionSecret::Rsa2048(secret) => peel_with::<Rsa2048>(onion, node, secret, epoch, rng),
            OnionSecret::XWing(secret) => peel_with::<XWing>(onion, node, secret, epoch, rng),
        };
        if opened.as_ref().err() != Some(&OnionRejected::NotAuthentic) {
            return opened;
        }
    }
    Err(OnionRejected::NotAuthentic)
}

pub(super) fn peel_with<K: Kem>(
    onion: &mut Onion,
    node: &NodeId,
    secret: &K::Secret,
    epoch: KeyEpoch,
    rng: &mut dyn CryptoRng,
) -> Result<Peeled, OnionRejected> {
    const { assert!(shift(K::CIPHERTEXT_LEN) <= ONION_LEN) };
    let (ciphertext, rest) = onion.split_at(K::CIPHERTEXT_LEN);
    let (mac, body) = rest.split_at(MAC_LEN);

    let shared = K::decapsulate(secret, ciphertext, rng).map_err(|_| OnionRejected::NotAuthentic)?;
    let keys = LayerKeys::derive(&shared, node, K::KIND, ciphertext);
    keys.mac().chain_update(body).verify_truncated_left(mac).map_err(|_| OnionRejected::NotAuthentic)?;

    let mut stream = keys.stream();
    let mut instruction = *body.first_chunk::<INSTRUCTION_LEN>().expect("checked when compiled");
    stream.apply_keystream(&mut instruction);
    let instruction = Instruction::parse(&instruction).map_err(|_| OnionRejected::Instruction)?;

    if let Instruction::Next { .. } = instruction {
        let kept = ONION_LEN - shift(K::CIPHERTEXT_LEN);
        onion.copy_within(shift(K::CIPHERTEXT_LEN).., 0);
        onion[kept..].fill(0);
        stream.apply_keystream(onion);
    }
    Ok(Peeled { instruction, keys: keys.hop_keys(), replay_tag: keys.replay_tag(), epoch })
}
