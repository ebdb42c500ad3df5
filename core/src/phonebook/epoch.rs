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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_a_day() {
        assert_eq!(Epoch::at(UnixTime(0)), Epoch::at(UnixTime(86_399)));
        assert_ne!(Epoch::at(UnixTime(86_399)), Epoch::at(UnixTime(86_400)));
        assert_eq!(Epoch::at(UnixTime(1_700_000_000)), Epoch(19_675));
    }

    #[test]
    fn the_rank_is_a_hash_over_epoch_and_node() {
        // Python: hashlib.sha256(b"bulbil/1 epoch" + (19675).to_bytes(8, "big") + bytes([7]) * 32)
        let rank = Epoch(19_675).rank(&NodeId([7; 32]));
        assert_eq!(hex::encode(rank), "0a804e6a64df405dd0d82d81240a8487da4ced3637e430059d3e674e6a0971b6");
        assert_ne!(Epoch(19_676).rank(&NodeId([7; 32])), rank);
        assert_ne!(Epoch(19_675).rank(&NodeId([8; 32])), rank);
    }
}
