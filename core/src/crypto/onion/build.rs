//! Building an onion in place.
//!
//! All layers lie in one buffer in which layer i begins where it will lie in the first hop's onion. A layer's onion is
//! the window of [`ONION_LEN`] bytes from there, so it sticks out at the end by exactly what the earlier hops append:
//! the tail. Building goes through the layers three times: encapsulate to each, from the first on; run the earlier
//! hops' keystreams over the tail, from the first on, which makes it what the last hop will see; then encrypt and
//! authenticate each window, from the last back to the first, which takes those keystreams off the tail again.

use core::net::SocketAddr;

use ctr::cipher::{StreamCipher, StreamCipherSeek};
use hmac::Mac;
use rand_core::CryptoRng;

use super::layer::{LayerKeys, truncated};
use super::{HopKeys, INSTRUCTION_LEN, Instruction, MAC_LEN, ONION_LEN, Onion, PATH_MAX, SHIFT_MAX, shift};
use crate::crypto::kem::{EncapsulationFailed, Kem, Rsa2048, XWing};
use crate::wire::{NodeId, OnionKey};

/// The most bytes that hops append before the last one.
const TAIL_MAX: usize = (PATH_MAX - 1) * SHIFT_MAX;

/// A hop as the client knows it.
#[derive(Clone, Copy)]
pub struct HopSpec<'a> {
    /// Who it is.
    pub node: NodeId,
    /// What its layer is encrypted to.
    pub key: &'a OnionKey,
    /// Where the previous hop reaches it. The first hop's is not in the onion: the client itself connects there.
    pub address: SocketAddr,
}

/// Why an onion was not built. What is in the buffer then is no onion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BuildError {
    /// A path has 1 to [`PATH_MAX`] hops.
    PathLength,
    /// A hop's onion key is none that its kind allows.
    InvalidKey {
        /// Which one, 0 being the first.
        hop: usize,
    },
    /// A hop's address has port 0.
    InvalidAddress {
        /// Which one, 0 being the first.
        hop: usize,
    },
}

impl core::fmt::Display for BuildError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::PathLength => write!(f, "a path has 1 to {PATH_MAX} hops"),
            Self::InvalidKey { hop } => write!(f, "hop {hop} has an invalid onion key"),
            Self::InvalidAddress { hop } => write!(f, "hop {hop} has an invalid address"),
        }
    }
}

impl core::error::Error for BuildError {}

/// Fills `onion` with an onion for `path`, first hop first. Returns the keys of each hop, in the same order.
///
/// Takes 8 KB of stack on a Cortex-M4, 31 KB in all while it encapsulates to an `x-wing` hop. The same generator state
/// gives the same bytes.
///
/// # Errors
/// [`BuildError`].
pub fn build(
    path: &[HopSpec<'_>],
    onion: &mut Onion,
    rng: &mut dyn CryptoRng,
) -> Result<heapless::Vec<HopKeys, PATH_MAX>, BuildError> {
    let layers = encapsulate(path, onion, rng)?;
    assemble(&layers, onion, rng)?;
    Ok(layers.iter().map(|layer| layer.keys.hop_keys()).collect())
}

/// The layers of one onion.
pub(super) type Layers = heapless::Vec<Layer, PATH_MAX>;

/// A layer whose ciphertext already is in its place.
pub(super) struct Layer {
    /// Where it begins in the first hop's onion; also, how many bytes the earlier hops append.
    start: usize,
    ciphertext_len: usize,
    keys: LayerKeys,
    instruction: Instruction,
}

impl Layer {
    /// Encapsulates to a hop's key, with the ciphertext at `start`. The hop is told to be the last.
    pub(super) fn encapsulate<K: Kem>(
        start: usize,
        node: &NodeId,
        key: &K::Public,
        onion: &mut Onion,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, EncapsulationFailed> {
        let ciphertext = onion.get_mut(start..start + K::CIPHERTEXT_LEN).ok_or(EncapsulationFailed)?;
        let secret = K::encapsulate(key, ciphertext, rng)?;
        let keys = LayerKeys::derive(&secret, node, K::KIND, ciphertext);
        Ok(Self { start, ciphertext_len: K::CIPHERTEXT_LEN, keys, instruction: Instruction::Last })
    }

    /// Makes the hop pass the onion on.
    pub(super) fn set_next(&mut self, address: SocketAddr, node: NodeId) {
        self.instruction = Instruction::Next { address, node };
    }

    /// Where the next layer begins.
    pub(super) const fn end(&self) -> usize {
        self.start + shift(self.ciphertext_len)
    }

    /// Where the encrypted part begins.
    const fn body(&self) -> usize {
        self.start + self.ciphertext_len + MAC_LEN
    }
}

// Not inlined, so that the stack that encapsulating takes is free again before the tail is there.
#[inline(never)]
fn encapsulate(path: &[HopSpec<'_>], onion: &mut Onion, rng: &mut dyn CryptoRng) -> Result<Layers, BuildError> {
    let mut layers = Layers::new();
    let mut start = 0;
    for (hop, spec) in path.iter().enumerate() {
        if let Some(before) = layers.last_mut() {
            before.set_next(spec.address, spec.node);
        }
        if layers.is_full() {
            return Err(BuildError::PathLength);
        }
        let layer = match spec.key {
            OnionKey::Rsa2048(key) => Layer::encapsulate::<Rsa2048>(start, &spec.node, key, onion, rng),
            OnionKey::XWing(key) => Layer::encapsulate::<XWing>(start, &spec.node, key, onion, rng),
        };
        let layer = layer.map_err(|EncapsulationFailed| BuildError::InvalidKey { hop })?;
        start = layer.end();
        layers.push(layer).map_err(|_| BuildError::PathLength)?;
    }
    Ok(layers)
}

/// Turns the ciphertexts in `onion` into an onion.
#[inline(never)]
pub(super) fn assemble(layers: &Layers, onion: &mut Onion, rng: &mut dyn CryptoRng) -> Result<(), BuildError> {
    let Some((last, passing)) = layers.split_last() else {
        return Err(BuildError::PathLength);
    };
    // Zeros here would show the last hop where the layers before its own ended.
    rng.fill_bytes(&mut onion[last.end()..]);

    let mut tail = [0; TAIL_MAX];
    for layer in passing {
        let mut stream = layer.keys.stream();
        stream.seek(ONION_LEN - layer.body());
        stream.apply_keystream(&mut tail[..layer.end()]);
    }

    for (hop, layer) in layers.iter().enumerate().rev() {
        let instruction = onion[layer.body()..].first_chunk_mut::<INSTRUCTION_LEN>();
        let instruction = instruction.expect("all layers of a path fit into an onion");
        // A bad address is the next hop's.
        layer.instruction.emit(instruction).map_err(|_| BuildError::InvalidAddress { hop: hop + 1 })?;
        let mut stream = layer.keys.stream();
        stream.apply_keystream(&mut onion[layer.body()..]);
        if hop < passing.len() {
            stream.apply_keystream(&mut tail[..layer.end()]);
        }
        let mac = layer.keys.mac().chain_update(&onion[layer.body()..]).chain_update(&tail[..layer.start]);
        onion[layer.body() - MAC_LEN..layer.body()].copy_from_slice(&truncated(mac));
    }
    Ok(())
}
