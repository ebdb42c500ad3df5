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
    /// It was this node that wanted the link.
    own_link: bool,
}

impl Word {
    const fn agrees(&self) -> bool {
        self.ahead.unsigned_abs() <= CLOCK_TOLERANCE.as_secs()
    }
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
    ///
    /// `own_link` says that this node wanted the link. Somebody's onion makes a relay open links to whomever that somebody likes, as often
    /// as he likes: what is heard on these never takes the place of a word heard on an own one, its own node's excepted.
    pub fn hear(
        &mut self,
        node: NodeId,
        group: NetworkGroup,
        their_time: UnixTime,
        own_time: UnixTime,
        own_link: bool,
    ) {
        let ahead = i128::from(own_time.0) - i128::from(their_time.0);
        let ahead = i64::try_from(ahead).unwrap_or(if ahead < 0 { i64::MIN } else { i64::MAX });
        if !own_link {
            // What it says here it could have said on the other link. Its place in the order stays what the own links have made of it.
            if let Some(known) = self.words.iter_mut().find(|word| word.own_link && word.node == node) {
                if known.group == group {
                    known.ahead = ahead;
                }
                return;
            }
            if self.words.iter().any(|word| word.own_link && word.group == group) {
                return;
            }
        }
        self.words.retain(|word| word.node != node && word.group != group);
        if self.words.is_full() {
            match self.words.iter().position(|word| !word.own_link) {
                Some(oldest) => drop(self.words.remove(oldest)),
                None if own_link => drop(self.words.remove(0)),
                None => return,
            }
        }
        self.words.push(Word { node, group, ahead, own_link }).expect("room was made");
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

    /// Whether nothing should be thrown away on the own clock's word alone. `met` are the groups of the nodes that were met, in any order, each
    /// as often as it comes.
    ///
    /// The doubt is lifted by [`ClockVerdict::Agrees`] only; or, where those that were met are in fewer than [`CLOCK_PEERS_MIN`]
    /// groups at all, by every one of these groups having agreed and nobody having said otherwise: one peer alone, who may have seen to
    /// it that he is heard first, lifts it only if there is nobody else.
    #[must_use]
    pub fn leave_doubt(&self, met: impl IntoIterator<Item = NetworkGroup>) -> bool {
        match self.verdict() {
            ClockVerdict::Agrees => false,
            ClockVerdict::Off { .. } => true,
            ClockVerdict::Unknown => {
                let mut groups: heapless::Vec<NetworkGroup, { CLOCK_PEERS_MIN - 1 }> = heapless::Vec::new();
                for group in met {
                    if !groups.contains(&group) && groups.push(group).is_err() {
                        return true;
                    }
                }
                let was_heard = |group: &NetworkGroup| self.words.iter().any(|word| word.group == *group);
                groups.is_empty() || !groups.iter().all(was_heard) || !self.words.iter().all(Word::agrees)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_000_000);

    fn hear(clocks: &mut PeerClocks, number: u8, ahead: i64) {
        let time = UnixTime(NOW.0.checked_add_signed(-ahead).unwrap());
        clocks.hear(NodeId([number; 32]), NetworkGroup::V4([number, 0]), time, NOW, true);
    }

    fn verdict(ahead: &[i64]) -> ClockVerdict {
        let mut clocks = PeerClocks::new();
        ahead.iter().zip(1..).for_each(|(&ahead, number)| hear(&mut clocks, number, ahead));
        clocks.verdict()
    }

    #[test]
    fn three_are_needed_and_the_median_counts() {
        assert_eq!(verdict(&[]), ClockVerdict::Unknown);
        assert_eq!(verdict(&[9000, 9000]), ClockVerdict::Unknown);
        assert_eq!(verdict(&[9000, 9000, 0]), ClockVerdict::Off { seconds: 9000, peers: 3 });
        assert_eq!(verdict(&[9000, 1, 0]), ClockVerdict::Agrees);
        assert_eq!(verdict(&[-601, -601, -602]), ClockVerdict::Off { seconds: -601, peers: 3 });
        assert_eq!(verdict(&[-600, -600, -602]), ClockVerdict::Agrees);
        assert_eq!(verdict(&[600; 5]), ClockVerdict::Agrees);
        assert_eq!(verdict(&[601; 5]), ClockVerdict::Off { seconds: 601, peers: 5 });
        // Half of them is not enough.
        assert_eq!(verdict(&[9000, 9000, 0, 0]), ClockVerdict::Agrees);
        assert_eq!(verdict(&[9000, 8000, 7000, 0]), ClockVerdict::Off { seconds: 7000, peers: 4 });
    }

    #[test]
    fn the_doubt_is_lifted_by_a_verdict_or_by_all_that_there_are() {
        let group = |number: u8| NetworkGroup::V4([number, 0]);
        let leave_doubt = |ahead: &[i64], met: &[u8]| {
            let mut clocks = PeerClocks::new();
            ahead.iter().zip(1..).for_each(|(&ahead, number)| hear(&mut clocks, number, ahead));
            clocks.leave_doubt(met.iter().map(|&number| group(number)))
        };
        assert!(leave_doubt(&[], &[]) && leave_doubt(&[], &[1]));
        assert!(leave_doubt(&[0], &[]), "whoever spoke was not met");
        // One that agrees is enough only where nobody else is known.
        assert!(!leave_doubt(&[600], &[1]) && !leave_doubt(&[-600], &[1, 1, 1]));
        assert!(leave_doubt(&[601], &[1]) && leave_doubt(&[-601], &[1]));
        assert!(leave_doubt(&[0], &[1, 2]) && leave_doubt(&[0], &[2]) && leave_doubt(&[0], &[1, 2, 3, 4]));
        assert!(!leave_doubt(&[0, 0], &[1, 2, 2, 1]) && !leave_doubt(&[0, 0], &[2]));
        assert!(leave_doubt(&[0, 0], &[1, 2, 3]), "the third has yet to speak");
        // Somebody says otherwise, met or not.
        assert!(leave_doubt(&[0, 9000], &[1, 2]) && leave_doubt(&[0, 9000], &[1]));
        // A verdict decides, whoever was met.
        assert!(!leave_doubt(&[0, 0, 9000], &[]) && !leave_doubt(&[0, 0, 0], &[1, 2, 3, 4, 5]));
        assert!(leave_doubt(&[0, 9000, 9000], &[1]));
    }

    #[test]
    fn a_node_and_a_group_have_one_word_each() {
        let mut clocks = PeerClocks::new();
        for number in 0..200 {
            clocks.hear(NodeId([number; 32]), NetworkGroup::V4([1, 1]), UnixTime(5), NOW, true);
            clocks.hear(NodeId([1; 32]), NetworkGroup::V6([1, 1, 1, number]), UnixTime(5), NOW, true);
        }
        assert_eq!(clocks.words.len(), 2);
        assert_eq!(clocks.verdict(), ClockVerdict::Unknown);
        clocks.clear();
        for _ in 0..2 {
            (1..=4).for_each(|number| hear(&mut clocks, number, 7000));
            assert!(matches!(clocks.verdict(), ClockVerdict::Off { peers: 4, .. }));
            (1..=4).for_each(|number| hear(&mut clocks, number, 0));
            assert_eq!(clocks.verdict(), ClockVerdict::Agrees, "the last word counts");
        }
    }

    #[test]
    fn the_last_fifteen_groups_are_heard() {
        let mut clocks = PeerClocks::new();
        (0..100).for_each(|number| hear(&mut clocks, number, 5000));
        assert_eq!(clocks.verdict(), ClockVerdict::Off { seconds: 5000, peers: 15 });
        (100..107).for_each(|number| hear(&mut clocks, number, 0));
        assert!(matches!(clocks.verdict(), ClockVerdict::Off { .. }));
        hear(&mut clocks, 107, 0);
        assert_eq!(clocks.verdict(), ClockVerdict::Agrees);
    }

    #[test]
    fn strangers_push_out_nobody_whom_the_node_has_asked_itself() {
        let mut clocks = PeerClocks::new();
        let stranger = |clocks: &mut PeerClocks, node: u8, group: u8, ahead: u64| {
            let group = NetworkGroup::V4([group, 0]);
            clocks.hear(NodeId([node; 32]), group, UnixTime(NOW.0 - ahead), NOW, false);
        };
        (1..=3).for_each(|number| hear(&mut clocks, number, 0));
        // Of other groups, as many as there are places; then in the place of each other.
        for number in 10..=100 {
            stranger(&mut clocks, number, number, 9000);
        }
        let own = |clocks: &PeerClocks| clocks.words.iter().filter(|word| word.own_link).count();
        assert_eq!((own(&clocks), clocks.words.len()), (3, CLOCK_PEERS_MAX));
        // Nor does one of the same group; but the node itself may say something else.
        stranger(&mut clocks, 101, 1, 9000);
        assert!(clocks.words.iter().all(|word| word.node != NodeId([101; 32])));
        stranger(&mut clocks, 2, 2, 9000);
        assert_eq!(clocks.words.iter().filter(|word| word.ahead == 0).count(), 2);
        stranger(&mut clocks, 2, 2, 0);
        stranger(&mut clocks, 3, 102, 9000);
        assert_eq!(clocks.words.iter().filter(|word| word.ahead == 0).count(), 3, "elsewhere it is not heard");
        // Those who are asked take the strangers' places first.
        (4..=15).for_each(|number| hear(&mut clocks, number, 0));
        assert_eq!((own(&clocks), clocks.verdict()), (15, ClockVerdict::Agrees));
        stranger(&mut clocks, 110, 110, 9000);
        assert_eq!(own(&clocks), 15);
        hear(&mut clocks, 120, 0);
        assert!(clocks.words.iter().all(|word| word.node != NodeId([1; 32])), "the longest silent of their own kind");
    }

    #[test]
    fn times_of_any_size_are_heard() {
        let mut clocks = PeerClocks::new();
        for number in 0..4 {
            clocks.hear(NodeId([number; 32]), NetworkGroup::V4([number, 0]), UnixTime(u64::MAX), UnixTime(0), true);
        }
        assert_eq!(clocks.verdict(), ClockVerdict::Off { seconds: i64::MIN, peers: 4 });
        for number in 0..4 {
            clocks.hear(NodeId([number; 32]), NetworkGroup::V4([number, 0]), UnixTime(0), UnixTime(u64::MAX), true);
        }
        assert_eq!(clocks.verdict(), ClockVerdict::Off { seconds: i64::MAX, peers: 4 });
        assert!(size_of::<PeerClocks>() <= 728, "{}", size_of::<PeerClocks>());
    }
}
