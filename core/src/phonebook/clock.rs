//! What others take for the time, `PROTOCOL.md` section 18.5.

use core::time::Duration;

use super::NetworkGroup;
use crate::wire::{NodeId, UnixTime};

/// Nodes that are listened to at most, each of another network group.
pub const CLOCK_PEERS_MAX: usize = 15;
/// Nodes that must have been heard before anything follows.
pub const CLOCK_PEERS_MIN: usize = 3;
/// A median beyond this puts the own clock in doubt.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(600);

/// What others think of the own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClockVerdict {
    /// Too few were heard.
    Unknown,
    /// It is right, or not wrong by more than [`CLOCK_TOLERANCE`].
    Agrees,
    /// It is in doubt.
    Off {
        /// By how many seconds it is ahead of the others (negative: behind), in the median.
        seconds: i64,
        /// How many others were heard.
        peers: u8,
    },
}

/// The last word of a group.
#[derive(Debug, Clone, Copy)]
struct Word {
    node: NodeId,
    group: NetworkGroup,
    /// Seconds that the own clock is ahead.
    ahead: i64,
}

/// The last words about the time from nodes of different network groups. About 720 bytes.
#[derive(Debug, Default)]
pub struct PeerClocks {
    /// The latest last.
    words: heapless::Vec<Word, CLOCK_PEERS_MAX>,
}

impl PeerClocks {
    /// Nobody heard yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { words: heapless::Vec::new() }
    }

    /// A node that was linked to at an address of `group` said `their_time` when it was `own_time` here. A node and a group have one
    /// word each, the last; of more than [`CLOCK_PEERS_MAX`] groups the one that was silent longest is forgotten.
    pub fn hear(&mut self, node: NodeId, group: NetworkGroup, their_time: UnixTime, own_time: UnixTime) {
        let ahead = i128::from(own_time.0) - i128::from(their_time.0);
        let ahead = i64::try_from(ahead).unwrap_or(if ahead < 0 { i64::MIN } else { i64::MAX });
        self.words.retain(|word| word.node != node && word.group != group);
        if self.words.is_full() {
            self.words.remove(0);
        }
        self.words.push(Word { node, group, ahead }).expect("room was made");
    }

    /// Forgets all words, as when the own clock has been set.
    pub fn clear(&mut self) {
        self.words.clear();
    }

    /// What the median says. Of an even number of words the middle one that is nearer to the own clock counts.
    #[must_use]
    pub fn verdict(&self) -> ClockVerdict {
        if self.words.len() < CLOCK_PEERS_MIN {
            return ClockVerdict::Unknown;
        }
        let mut ahead: heapless::Vec<i64, CLOCK_PEERS_MAX> = self.words.iter().map(|word| word.ahead).collect();
        ahead.sort_unstable();
        let middle = [(ahead.len() - 1) / 2, ahead.len() / 2].map(|at| ahead.get(at).copied().unwrap_or(0));
        let seconds = middle.into_iter().min_by_key(|seconds| seconds.unsigned_abs()).unwrap_or(0);
        if seconds.unsigned_abs() > CLOCK_TOLERANCE.as_secs() {
            ClockVerdict::Off { seconds, peers: ahead.len() as u8 }
        } else {
            ClockVerdict::Agrees
        }
    }
}
