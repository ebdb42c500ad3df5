//! The epoch sample, `PROTOCOL.md` section 18.6: the same part of all nodes for everybody who cannot keep all.

use sha2::{Digest, Sha256};

use crate::wire::{NodeId, UnixTime};

/// Seconds of an epoch: a day.
pub const EPOCH_LEN: u64 = 86_400;

/// A day, counted from 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// The epoch that `time` lies in.
    #[must_use]
    pub const fn at(time: UnixTime) -> Self {
        Self(time.0 / EPOCH_LEN)
    }

    /// Where a node stands in this epoch: those with the smallest ranks are the sample.
    #[must_use]
    pub fn rank(self, node: &NodeId) -> [u8; 32] {
        let hash = Sha256::new().chain_update(b"bulbil/1 epoch").chain_update(self.0.to_be_bytes());
        hash.chain_update(node.0).finalize().into()
    }
}
