//! What to test next, and what became of it: `PROTOCOL.md` section 18.2.

use core::borrow::Borrow;
use core::net::SocketAddr;
use core::time::Duration;

use rand_core::CryptoRng;

use super::entry::{Entry, Flag};
use super::path::draw;
use super::shelves::Slot;
use super::{FAILURES_MAX, Phonebook, VerifiedDescriptor};
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
    /// There is somebody for one of the next tests ([`Phonebook::wants_tests`]): it should follow soon.
    pub urgent: bool,
}

impl<C: Borrow<VerifiedDescriptor> + Clone> Phonebook<'_, C> {
    /// What to test next; the test counts as begun. One of those whose place others wait for, one that is overdue, or a random one of `new`: a draw
    /// decides between the three, so that no number of one kind keeps the others waiting. Overdue are those that failed and whose
    /// pause is over, and those in `tried` that have expired. If there are none of these, the one in `tried` that was met longest ago, if that is
    /// [`REVISIT`] ago.
    pub fn next_test<R: CryptoRng + ?Sized>(&mut self, now: UnixTime, rng: &mut R) -> Option<Test> {
        let kinds = [self.asked(now), self.overdue(now), self.heard_of(now, rng)];
        let slot = draw(kinds.into_iter().flatten(), rng).or_else(|| self.met_longest_ago(now))?;
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

    /// Whose pause is over, and who has expired; the one that was tried or met longest ago.
    fn overdue(&self, now: UnixTime) -> Option<Slot> {
        let lapsed = |entry: &Entry<C>| entry.is_tried() && entry.failures() == 0 && self.has_expired(entry, now);
        let due = |entry: &Entry<C>| entry.is_retry_due(now, self.failure_pause) || lapsed(entry);
        let due = self.testable(now).filter(|(_, entry)| due(entry));
        due.min_by_key(|(_, entry)| entry.last_try().max(entry.last_met())).map(|(slot, _)| slot)
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

    /// Whether another node waits for the outcome of a test, `new` holds one that has not been tested yet, the pause after a failure is
    /// over, or one in `tried` has expired: then tests should follow each other closely.
    #[must_use]
    pub fn wants_tests(&self, now: UnixTime) -> bool {
        let untested = |entry: &Entry<C>| {
            entry.last_met().is_none() && entry.failures() == 0 && !entry.is_disputed() && !entry.is_testing(now)
        };
        self.iter().any(untested) || self.overdue(now).is_some() || self.swaps().next().is_some()
    }

    /// Notes that a node did not answer, to a test or as a hop. Failures within the pause after the last one
    /// ([`FAILURE_PAUSE`](super::FAILURE_PAUSE)) count as one with it. After [`FAILURES_MAX`](super::FAILURES_MAX) in a row the node is dropped, after
    /// [`FAILURES_MAX_UNMET`](super::FAILURES_MAX_UNMET) if it was never met; not if it is pinned. One whose place another waits for changes places with
    /// that if it fails a test. Says whether the node was dropped.
    ///
    /// `tested` says that the link of a test has failed; it decides only while that test is under way. Others can make circuits fail.
    pub fn record_failure(&mut self, node: &NodeId, tested: bool, now: UnixTime) -> bool {
        self.count_failure(node, tested, false, now)
    }

    /// As [`Phonebook::record_failure`]. A node that may be `cut_off` from all but a few who want it so avoids whoever has failed, but has nobody
    /// of `tried` leave for it.
    pub(super) fn count_failure(&mut self, node: &NodeId, tested: bool, cut_off: bool, now: UnixTime) -> bool {
        let Some(slot) = self.find(node) else { return false };
        let first_pause = self.failure_pause;
        let Some(entry) = self.entry_mut(slot) else { return false };
        let tested = tested && entry.is_testing(now);
        let spared = cut_off && entry.is_tried();
        let most = if spared && !entry.is_pinned() { FAILURES_MAX - 1 } else { u8::MAX };
        if !entry.note_failure(tested, most, now, first_pause) {
            return false;
        }
        let may_swap = tested && !spared && entry.has(Flag::Swapping) && !entry.is_pinned();
        let enough = entry.has_failed_enough();
        if !entry.is_tried() {
            // Whoever waits for a place and fails meanwhile waits no longer.
            entry.set(Flag::Swapping, false);
        }
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

    /// Whether another node waits for this one's place: it has to answer the next test, or give that up.
    #[must_use]
    pub fn is_asked(&self, node: &NodeId) -> bool {
        self.find(node).is_some_and(|slot| self.swaps().any(|(asked, _)| asked == slot))
    }
}

#[cfg(test)]
mod tests;
