//! What is passed on to others, `PROTOCOL.md` sections 18.3 and 18.6: nodes that this node has met itself, a random part of them or the epoch's.

use core::borrow::Borrow;

use heapless::Vec;
use rand_core::CryptoRng;

use super::entry::Entry;
use super::path::below;
use super::shelves::Slot;
use super::{Epoch, NetworkGroup, Phonebook, VerifiedDescriptor};
use crate::wire::UnixTime;

/// Most nodes in a sample.
pub const SAMPLE_MAX: usize = 128;

/// Nodes in ascending order of their ids.
#[derive(Debug, Clone)]
pub struct Sample<'b, 'm, C> {
    book: &'b Phonebook<'m, C>,
    slots: Vec<Slot, SAMPLE_MAX>,
    next: usize,
}

impl<'b, 'm, C: Borrow<VerifiedDescriptor> + Clone> Sample<'b, 'm, C> {
    fn new(book: &'b Phonebook<'m, C>, mut slots: Vec<Slot, SAMPLE_MAX>) -> Self {
        slots.sort_unstable_by_key(|&slot| book.entry(slot).map(Entry::node));
        Self { book, slots, next: 0 }
    }
}

impl<'b, C: Borrow<VerifiedDescriptor> + Clone> Iterator for Sample<'b, '_, C> {
    type Item = &'b C;

    fn next(&mut self) -> Option<&'b C> {
        let slot = *self.slots.get(self.next)?;
        self.next += 1;
        self.book.entry(slot).map(Entry::card)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.slots.len() - self.next;
        (left, Some(left))
    }
}

impl<C: Borrow<VerifiedDescriptor> + Clone> ExactSizeIterator for Sample<'_, '_, C> {}

/// A candidate for the epoch sample.
struct Ranked {
    /// The front of its rank, which decides nearly always.
    front: u64,
    slot: Slot,
    group: NetworkGroup,
}

impl<'m, C: Borrow<VerifiedDescriptor> + Clone> Phonebook<'m, C> {
    /// The entries that may be passed on.
    fn presentable(&self, now: UnixTime) -> impl Iterator<Item = (Slot, &Entry<C>)> {
        self.slots().filter(move |(_, entry)| entry.is_tried() && !entry.is_disputed() && entry.is_valid_at(now))
    }

    /// At most `want` and [`SAMPLE_MAX`] of the nodes that this node has met, without those that `skip` wants left out, each with the same
    /// probability. Expired and disputed ones are not among them.
    #[must_use]
    pub fn sample<R: CryptoRng + ?Sized>(
        &self,
        want: usize,
        now: UnixTime,
        rng: &mut R,
        mut skip: impl FnMut(&VerifiedDescriptor) -> bool,
    ) -> Sample<'_, 'm, C> {
        let want = want.min(SAMPLE_MAX);
        let mut slots: Vec<Slot, SAMPLE_MAX> = Vec::new();
        let mut seen = 0;
        for (slot, entry) in self.presentable(now) {
            if want == 0 || skip(entry.card().borrow()) {
                continue;
            }
            // Algorithm R: the n-th takes one of the places with probability want / n.
            seen += 1;
            if slots.len() < want {
                slots.push(slot).expect("at most as many as fit");
            } else if let Some(place) = slots.get_mut(below(seen, rng) as usize) {
                *place = slot;
            }
        }
        Sample::new(self, slots)
    }

    /// The at most `want` and [`SAMPLE_MAX`] nodes that stand first in this epoch among those that this node has met, no two of one network
    /// group. Expired and disputed ones are not among them. What an asker has already is for the caller to leave out.
    #[must_use]
    pub fn epoch_sample(&self, want: usize, now: UnixTime) -> Sample<'_, 'm, C> {
        let want = want.min(SAMPLE_MAX);
        let epoch = Epoch::at(now);
        let mut best: Vec<Ranked, SAMPLE_MAX> = Vec::new();
        for (slot, entry) in self.presentable(now) {
            let rank = epoch.rank(&entry.node());
            let [a, b, c, d, e, f, g, h, ..] = rank;
            let ranked = Ranked { front: u64::from_be_bytes([a, b, c, d, e, f, g, h]), slot, group: entry.group() };
            let in_front_of = |other: &Ranked| {
                let rank_of = |slot| self.entry(slot).map(|entry| epoch.rank(&entry.node()));
                ranked.front < other.front || ranked.front == other.front && Some(rank) < rank_of(other.slot)
            };
            // The list always holds the first of each group, as far as these are among the first.
            if let Some(rival) = best.iter().position(|other| other.group == ranked.group) {
                if !best.get(rival).is_some_and(in_front_of) {
                    continue;
                }
                best.remove(rival);
            }
            let at = best.iter().position(in_front_of).unwrap_or(best.len());
            if best.len() == want {
                if at == want {
                    continue;
                }
                best.pop();
            }
            let full = best.insert(at, ranked).is_err();
            debug_assert!(!full, "at most as many as fit");
        }
        Sample::new(self, best.iter().map(|ranked| ranked.slot).collect())
    }
}
