//! What to test next, and what became of it: `PROTOCOL.md` section 18.2.

use core::borrow::Borrow;
use core::net::SocketAddr;
use core::time::Duration;

use rand_core::CryptoRng;

use super::entry::{Entry, Flag};
use super::path::draw;
use super::shelves::Slot;
use super::{Phonebook, VerifiedDescriptor};
use crate::wire::{NodeId, UnixTime};

/// A node that was met is met again after so long, if nothing is more urgent.
pub const REVISIT: Duration = Duration::from_secs(3600);

/// A link that should be made now, to see who answers. If the node does, [`Phonebook::insert`] with [`Source::Met`](super::Source::Met) and the
/// descriptor that it shows; if not, [`Phonebook::record_failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Test {
    /// Who should answer.
    pub node: NodeId,
    /// Where: the first of its addresses.
    pub address: SocketAddr,
    /// Another node waits for the outcome, one of `new` has not been tested yet, or the pause after a failure is over: the next test should
    /// follow soon.
    pub urgent: bool,
}

impl<C: Borrow<VerifiedDescriptor> + Clone> Phonebook<'_, C> {
    /// What to test next; the test counts as begun. First those whose place others wait for, then those that failed and whose pause is
    /// over, then a random one of `new`, then the one in `tried` that was met longest ago, if that is [`REVISIT`] ago.
    pub fn next_test<R: CryptoRng + ?Sized>(&mut self, now: UnixTime, rng: &mut R) -> Option<Test> {
        let slot = self.asked(now).or_else(|| self.failed(now)).or_else(|| self.heard_of(now, rng));
        let slot = slot.or_else(|| self.met_longest_ago(now))?;
        let urgent = self.wants_tests(now);
        let entry = self.entry_mut(slot)?;
        entry.begin_test(now);
        Some(Test { node: entry.node(), address: entry.address(), urgent })
    }

    fn testable(&self, now: UnixTime) -> impl Iterator<Item = (Slot, &Entry<C>)> + Clone {
        self.slots().filter(move |(_, entry)| !entry.is_disputed() && !entry.is_testing(now))
    }

    /// Whose place another node waits for.
    fn asked(&self, now: UnixTime) -> Option<Slot> {
        let testing = |slot: Slot| self.entry(slot).is_some_and(|entry| entry.is_testing(now));
        self.swaps().map(|(asked, _)| asked).find(|&slot| !testing(slot))
    }

    /// Whose pause is over; the one that has waited longest.
    fn failed(&self, now: UnixTime) -> Option<Slot> {
        let due = self.testable(now).filter(|(_, entry)| entry.is_retry_due(now, self.failure_pause));
        due.min_by_key(|(_, entry)| entry.last_try()).map(|(slot, _)| slot)
    }

    fn rested(&self, now: UnixTime) -> impl Iterator<Item = (Slot, &Entry<C>)> + Clone {
        self.testable(now).filter(move |(_, entry)| entry.failures() == 0 && entry.is_unmet_for(REVISIT, now))
    }

    fn heard_of<R: CryptoRng + ?Sized>(&self, now: UnixTime, rng: &mut R) -> Option<Slot> {
        draw(self.rested(now).filter(|(slot, _)| !self.is_on_tried(*slot)), rng).map(|(slot, _)| slot)
    }

    fn met_longest_ago(&self, now: UnixTime) -> Option<Slot> {
        self.rested(now).min_by_key(|(_, entry)| entry.last_met()).map(|(slot, _)| slot)
    }

    /// Whether another node waits for the outcome of a test, `new` holds one that has not been tested yet, or the pause after a failure is
    /// over: then tests should follow each other closely.
    #[must_use]
    pub fn wants_tests(&self, now: UnixTime) -> bool {
        let untested = |entry: &Entry<C>| {
            entry.last_met().is_none() && entry.failures() == 0 && !entry.is_disputed() && !entry.is_testing(now)
        };
        self.iter().any(untested) || self.failed(now).is_some() || self.swaps().next().is_some()
    }

    /// Notes that a node did not answer, to a test or as a hop. Failures within the pause after the last one
    /// ([`FAILURE_PAUSE`](super::FAILURE_PAUSE)) count as one with it. After [`FAILURES_MAX`](super::FAILURES_MAX) in a row the node is dropped, after
    /// [`FAILURES_MAX_UNMET`](super::FAILURES_MAX_UNMET) if it was never met; not if it is pinned. One whose place another waits for changes places with
    /// that if it fails a test. Says whether the node was dropped.
    pub fn record_failure(&mut self, node: &NodeId, now: UnixTime) -> bool {
        let Some(slot) = self.find(node) else { return false };
        let first_pause = self.failure_pause;
        let Some(entry) = self.entry_mut(slot) else { return false };
        let tested = entry.has(Flag::Testing);
        if !entry.note_failure(now, first_pause) {
            return false;
        }
        let (enough, may_swap) = (entry.has_failed_enough(), tested && entry.has(Flag::Swapping) && !entry.is_pinned());
        let swapped = if may_swap && self.is_on_tried(slot) { self.swap(slot, now) } else { None };
        if enough && swapped != Some(true) {
            self.remove(node);
        }
        swapped.unwrap_or(enough) || enough
    }

    /// Notes that a node did its part as a hop: its failures are forgiven, and one that was met counts as met just now. (That it
    /// was met at all, only [`Phonebook::insert`] can say.)
    pub fn record_success(&mut self, node: &NodeId, now: UnixTime) {
        let Some(slot) = self.find(node) else { return };
        let Some(entry) = self.entry_mut(slot) else { return };
        if entry.is_tried() {
            entry.note_met(now);
        } else {
            entry.forgive();
        }
        if self.is_on_tried(slot) {
            self.end_swap(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::super::testing::{NOW, Room, assert_uniform, later, node, rng, with};
    use super::super::{FAILURES_MAX, FAILURES_MAX_UNMET, Inserted, NetworkGroup, SWAPS_MAX, Source};
    use super::*;

    const PEER: Source = Source::Peer(NetworkGroup::V4([9, 9]));

    /// Who is tested at `now`, and whether that is urgent.
    fn tested(book: &mut Phonebook<'_, super::super::testing::Card>, now: UnixTime) -> Option<(NodeId, bool)> {
        book.next_test(now, &mut rng(1)).map(|test| (test.node, test.urgent))
    }

    #[test]
    fn pauses_grow_and_failures_within_them_are_one() {
        let mut room = Room::new(2, 2);
        let mut book = room.book();
        book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
        let mut now = NOW;
        for (count, pause) in [(1, 60), (2, 120), (3, 240), (4, 480)] {
            assert!(!book.record_failure(&node(1), now));
            for within in [0, pause / 2, pause - 1] {
                assert!(!book.record_failure(&node(1), UnixTime(now.0 + within)), "same outage");
                assert_eq!(tested(&mut book, UnixTime(now.0 + within)), None, "the pause is not over");
            }
            assert_eq!(book.get(&node(1)).unwrap().failures(), count);
            assert_eq!(book.get(&node(1)).unwrap().last_try(), Some(now));
            now = UnixTime(now.0 + pause);
        }
        let mut forgiven = book.shelves.tried.to_vec();
        assert!(book.record_failure(&node(1), now));
        assert!(book.is_empty());
        assert!(!book.record_failure(&node(1), now), "unknown by now");

        book.shelves.tried.swap_with_slice(&mut forgiven);
        assert_eq!(book.get(&node(1)).unwrap().failures(), FAILURES_MAX - 1);
        book.record_success(&node(1), now);
        assert_eq!(book.get(&node(1)).unwrap().last_met(), Some(now));
        assert!(!book.record_failure(&node(1), now));
        assert_eq!(book.get(&node(1)).unwrap().failures(), 1);
        assert!(!book.record_failure(&node(1), UnixTime(5)), "a clock set back does not stop the count");
        assert_eq!(book.get(&node(1)).unwrap().failures(), 2);
        book.insert(with(1, |d| d.sequence = 2), PEER, NOW).unwrap();
        assert_eq!(book.get(&node(1)).unwrap().failures(), 2, "still at the address that failed");
        let further = |d: &mut crate::wire::Descriptor| {
            d.sequence = 3;
            d.addresses.push("192.0.2.1:1".parse().unwrap()).unwrap();
        };
        book.insert(with(1, further), PEER, NOW).unwrap();
        assert_eq!(book.get(&node(1)).unwrap().failures(), 2, "nobody links to a second address");
        let moved = |d: &mut crate::wire::Descriptor| {
            d.sequence = 4;
            d.addresses[0] = "192.0.2.1:1".parse().unwrap();
        };
        book.insert(with(1, moved), PEER, NOW).unwrap();
        assert_eq!(book.get(&node(1)).unwrap().failures(), 0);
    }

    #[test]
    fn who_was_never_met_has_two_tries() {
        let mut room = Room::new(2, 2);
        let mut book = room.book();
        book.insert(with(1, |_| ()), PEER, NOW).unwrap();
        for attempt in 1..=FAILURES_MAX_UNMET {
            let now = later(60 * u64::from(attempt));
            assert_eq!(tested(&mut book, now), Some((node(1), true)));
            assert_eq!(tested(&mut book, now), None, "not twice at a time");
            assert_eq!(book.record_failure(&node(1), now), attempt == FAILURES_MAX_UNMET);
        }
        assert!(book.is_empty());
    }

    #[test]
    fn a_test_of_which_nothing_is_heard_is_forgotten() {
        let mut room = Room::new(2, 2);
        let mut book = room.book();
        book.insert(with(1, |_| ()), PEER, NOW).unwrap();
        assert_eq!(tested(&mut book, NOW), Some((node(1), true)));
        assert_eq!(tested(&mut book, later(59)), None);
        assert_eq!(tested(&mut book, later(60)), Some((node(1), true)));
    }

    #[test]
    fn waiting_then_failed_then_heard_of_then_met_longest_ago() {
        let mut room = Room::new(2, 32);
        let mut book = room.book();
        book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
        book.insert(with(2, |_| ()), Source::Met, later(1)).unwrap();
        assert_eq!(tested(&mut book, later(3599)), None);
        assert!(!book.wants_tests(later(3599)));
        assert_eq!(tested(&mut book, later(3601)), Some((node(1), false)));
        book.insert(with(1, |_| ()), Source::Met, later(3601)).unwrap();
        assert_eq!(tested(&mut book, later(3602)), Some((node(2), false)));
        assert_eq!(book.insert(with(2, |_| ()), Source::Met, later(3602)), Ok(Inserted::Met));
        // Now 3 is heard of, 4 and 5 have failed, 4 first, and 6 waits for 1.
        book.insert(with(4, |_| ()), PEER, later(3610)).unwrap();
        book.record_failure(&node(4), later(3610));
        book.insert(with(5, |_| ()), PEER, later(3610)).unwrap();
        book.record_failure(&node(5), later(3611));
        book.insert(with(3, |_| ()), PEER, later(3610)).unwrap();
        book.insert(with(6, |_| ()), Source::Met, later(3612)).unwrap();
        let now = later(3671);
        assert_eq!(tested(&mut book, now), Some((node(1), true)));
        assert_eq!(tested(&mut book, now), Some((node(4), true)));
        assert_eq!(tested(&mut book, now), Some((node(5), true)));
        assert_eq!(tested(&mut book, now), Some((node(3), true)));
        assert_eq!(tested(&mut book, now), None);
        assert_eq!(tested(&mut book, UnixTime(5)).unwrap().0, node(1), "a clock set back does not stop tests");
    }

    #[test]
    fn those_heard_of_are_tested_in_random_order() {
        let mut room = Room::new(2, 10);
        let mut book = room.book();
        for number in 0..10 {
            book.insert(with(number, |_| ()), PEER, NOW).unwrap();
        }
        let mut rng = rng(3);
        let mut counts = [0; 10];
        for round in 0..4000 {
            let test = book.next_test(later(60 * round), &mut rng).unwrap();
            counts[(0..10).position(|number| node(number) == test.node).unwrap()] += 1;
        }
        assert_uniform(&counts, 27.88);
    }

    #[test]
    fn one_that_answers_keeps_its_place() {
        let mut room = Room::new(1, 4);
        let mut book = room.book();
        book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
        for (number, success) in [(2, false), (3, true)] {
            let now = later(10 * u64::from(number));
            assert_eq!(book.insert(with(number, |_| ()), Source::Met, now), Ok(Inserted::Added));
            assert!(!book.get(&node(number)).unwrap().is_tried());
            assert_eq!(tested(&mut book, now), Some((node(1), true)));
            if success {
                book.record_success(&node(1), now);
            } else {
                assert_eq!(book.insert(with(1, |_| ()), Source::Met, now), Ok(Inserted::Met));
            }
            assert!(book.get(&node(1)).unwrap().is_tried() && book.get(&node(number)).is_some());
            assert_eq!(tested(&mut book, now), None, "nobody waits any more");
        }
    }

    #[test]
    fn one_that_does_not_answer_changes_places() {
        let mut room = Room::new(2, 4);
        let mut book = room.book();
        book.insert(with(1, |_| ()), Source::Met, later(1)).unwrap();
        book.insert(with(2, |_| ()), Source::Met, NOW).unwrap();
        book.insert(with(3, |_| ()), Source::Met, later(10)).unwrap();
        book.insert(with(4, |_| ()), Source::Met, later(11)).unwrap();
        assert!(!book.record_failure(&node(2), later(12)), "a circuit that failed is no test");
        assert!(book.get(&node(2)).unwrap().is_tried());
        assert_eq!(tested(&mut book, later(13)), Some((node(2), true)), "met longest ago");
        assert!(!book.record_failure(&node(2), later(14)));
        let tried: Vec<_> = (1..5).map(|number| book.get(&node(number)).unwrap().is_tried()).collect();
        assert_eq!(tried, [true, false, true, false]);
        assert_eq!(book.get(&node(2)).unwrap().failures(), 2);
        // It answers later, and waits then.
        book.insert(with(2, |_| ()), Source::Met, later(300)).unwrap();
        assert_eq!(tested(&mut book, later(300)), Some((node(1), true)));
        // Whoever waits and fails meanwhile waits no longer.
        book.record_failure(&node(2), later(301));
        assert!(!book.record_failure(&node(1), later(302)));
        assert!(book.get(&node(1)).unwrap().is_tried() && !book.get(&node(2)).unwrap().is_tried());
    }

    #[test]
    fn one_that_does_not_answer_is_dropped_if_there_is_no_other_place() {
        let mut room = Room::new(1, 1);
        let mut book = room.book();
        book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
        book.insert(with(2, |_| ()), Source::Met, NOW).unwrap();
        for number in 10..14 {
            assert!(book.insert(with(number, |d| d.valid_from = NOW), PEER, NOW).is_err(), "who was met stays");
        }
        assert_eq!(tested(&mut book, later(1)), Some((node(1), true)));
        assert!(!book.record_failure(&node(1), later(1)), "the place in `new` has come free");
        assert!(book.get(&node(2)).unwrap().is_tried() && !book.get(&node(1)).unwrap().is_tried());

        let mut room = Room::new(1, 2);
        let mut book = room.book();
        book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
        book.insert(with(2, |_| ()), Source::Met, NOW).unwrap();
        book.insert(with(3, |_| ()), Source::Met, NOW).unwrap();
        book.set_pinned(&node(2), true);
        book.set_pinned(&node(3), true);
        assert_eq!(tested(&mut book, later(1)), Some((node(1), true)));
        book.remove(&node(2));
        assert!(!book.record_failure(&node(1), later(1)), "who waited is gone");
        assert!(book.get(&node(1)).unwrap().is_tried());
    }

    #[test]
    fn expired_and_disputed_ones_go_without_a_test() {
        let mut room = Room::new(1, 2);
        let mut book = room.book();
        book.insert(with(1, |d| d.valid_until = NOW), Source::Met, NOW).unwrap();
        assert_eq!(book.insert(with(2, |_| ()), Source::Met, later(61)), Ok(Inserted::Evicted(node(1))));
        assert!(book.insert(with(2, |d| d.link_key = [0; 32]), PEER, later(61)).is_err());
        assert!(book.get(&node(2)).unwrap().is_disputed());
        assert_eq!(book.insert(with(3, |_| ()), Source::Met, later(61)), Ok(Inserted::Evicted(node(2))));
        assert_eq!(book.len(), 1);
        assert_eq!(book.insert(with(2, |_| ()), Source::Met, later(61)), Err(super::super::Refusal::Disputed));
    }

    #[test]
    fn at_most_eight_wait() {
        let mut room = Room::new(20 * super::super::BUCKET, 2000);
        let mut book = room.book();
        for number in 0..2000 {
            let _full = book.insert(with(number, |_| ()), Source::Met, later(number.into()));
        }
        assert!(book.counts().tried > 600);
        assert_eq!(book.swaps().count(), SWAPS_MAX);
        // Each waits for another one, and all can be settled.
        let mut asked: Vec<_> = book.swaps().map(|(asked, _)| asked.0 / 32).collect();
        asked.sort_unstable();
        asked.dedup();
        assert_eq!(asked.len(), SWAPS_MAX);
        for _ in 0..SWAPS_MAX {
            let (silent, urgent) = tested(&mut book, later(2000)).unwrap();
            assert!(urgent && book.get(&silent).unwrap().is_tried());
            book.record_failure(&silent, later(2000));
            assert!(book.get(&silent).is_none_or(|entry| !entry.is_tried()));
        }
        assert_eq!(book.swaps().count(), 0);
    }
}
