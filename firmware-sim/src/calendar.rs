//! The time of day on a board that has no clock for it: the median of what pinned contacts say.

use bulbil_core::time::Instant;
use bulbil_core::wire::{NodeId, UnixTime};

use crate::config::CONTACTS_MAX;

/// What contacts have said.
#[derive(Debug, Default)]
pub(crate) struct Calendar {
    /// The Unix time of the origin of [`Instant`], in seconds, by each contact.
    origins: heapless::Vec<(NodeId, u64), CONTACTS_MAX>,
}

impl Calendar {
    /// A pinned contact takes `time` for the time. More contacts than can be configured are not listened to.
    pub(crate) fn learn(&mut self, contact: NodeId, time: UnixTime, now: Instant) {
        let origin = time.0.saturating_sub(now.millis() / 1000);
        match self.origins.iter_mut().find(|(known, _)| *known == contact) {
            Some((_, known)) => *known = origin,
            None => {
                let _full = self.origins.push((contact, origin));
            }
        }
    }

    /// The time, once a contact has been met. Of an even number the earlier middle one, so that one of two liars is not the middle.
    pub(crate) fn time(&self, now: Instant) -> Option<UnixTime> {
        let mut origins: heapless::Vec<u64, CONTACTS_MAX> = self.origins.iter().map(|(_, origin)| *origin).collect();
        origins.sort_unstable();
        let median = *origins.get(origins.len().checked_sub(1)? / 2)?;
        Some(UnixTime(median.saturating_add(now.millis() / 1000)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    #[test]
    fn nobody_met_means_no_time() {
        assert_eq!(Calendar::default().time(Instant::from_millis(5000)), None);
    }

    #[test]
    fn one_liar_among_three_changes_nothing() {
        let mut calendar = Calendar::default();
        let now = Instant::from_millis(10_000);
        calendar.learn(node(1), UnixTime(1_000_010), now);
        assert_eq!(calendar.time(now), Some(UnixTime(1_000_010)));
        calendar.learn(node(2), UnixTime(1_000_012), now);
        calendar.learn(node(3), UnixTime(9_000_000_000), now);
        assert_eq!(calendar.time(now), Some(UnixTime(1_000_012)));
        assert_eq!(calendar.time(Instant::from_millis(70_000)), Some(UnixTime(1_000_072)), "it goes on");
    }

    #[test]
    fn a_contact_has_one_vote_and_the_last_word() {
        let mut calendar = Calendar::default();
        let now = Instant::from_millis(0);
        for time in 1..100 {
            calendar.learn(node(7), UnixTime(time), now);
        }
        calendar.learn(node(1), UnixTime(500), now);
        calendar.learn(node(2), UnixTime(501), now);
        assert_eq!(calendar.time(now), Some(UnixTime(500)));
        for number in 10..30 {
            calendar.learn(node(number), UnixTime(7), now);
        }
        assert_eq!(calendar.origins.len(), CONTACTS_MAX);
    }

    #[test]
    fn a_time_before_the_boards_own_start_is_no_panic() {
        let mut calendar = Calendar::default();
        calendar.learn(node(1), UnixTime(0), Instant::from_millis(u64::MAX));
        assert_eq!(calendar.time(Instant::from_millis(1000)), Some(UnixTime(1)));
    }
}
