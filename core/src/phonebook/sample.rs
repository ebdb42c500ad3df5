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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec::Vec as StdVec;

    use super::super::testing::{
        Card, NOW, Room, assert_uniform, descriptor, in_group, later, node, rng, shared, with,
    };
    use super::super::{NEW_PLACES, Source, TRIED_PLACES};
    use super::*;
    use crate::wire::NodeId;

    const PEER: Source = Source::Peer(NetworkGroup::V4([9, 9]));

    fn ids(sample: Sample<'_, '_, Card>) -> StdVec<NodeId> {
        let len = sample.len();
        let ids: StdVec<_> = sample.map(|card| card.node()).collect();
        assert_eq!(ids.len(), len);
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "strictly ascending");
        ids
    }

    #[test]
    fn is_uniform_among_those_that_were_met() {
        const RUNS: u32 = 3000;
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let mut book = room.book();
        for number in 0..40 {
            book.insert(with(number, |_| ()), if number < 20 { Source::Met } else { PEER }, NOW).unwrap();
        }
        let mut rng = rng(4);
        let mut counts = [0u32; 20];
        for _ in 0..RUNS {
            let sample = ids(book.sample(5, NOW, &mut rng, |_| false));
            assert_eq!(sample.len(), 5);
            for id in sample {
                counts[(0..20).position(|number| node(number) == id).expect("nobody who was not met")] += 1;
            }
        }
        // Five of twenty without replacement: a little more even than draws would be.
        assert_uniform(&counts, 43.82);
    }

    #[test]
    fn leaves_out_what_the_asker_has_and_what_is_not_valid() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let mut book = room.book();
        for number in 0..200 {
            book.insert(with(number, |_| ()), Source::Met, NOW).unwrap();
        }
        book.insert(with(300, |d| d.valid_until = NOW), Source::Met, NOW).unwrap();
        book.insert(with(301, |d| d.valid_from = later(500)), Source::Met, NOW).unwrap();
        let known: BTreeSet<_> = (0..197).map(node).collect();
        let mut rng = rng(5);
        let rest = ids(book.sample(128, later(61), &mut rng, |card| known.contains(&card.node())));
        assert_eq!(BTreeSet::from_iter(rest), BTreeSet::from([197, 198, 199].map(node)));
        assert_eq!(book.sample(1000, NOW, &mut rng, |_| false).len(), SAMPLE_MAX);
        assert_eq!(book.sample(0, NOW, &mut rng, |_| false).len(), 0);
        assert_eq!(book.sample(7, NOW, &mut rng, |_| true).len(), 0);
        assert_eq!(
            ids(book.sample(50, NOW, &mut self::rng(6), |_| false)),
            ids(book.sample(50, NOW, &mut self::rng(6), |_| false))
        );
    }

    #[test]
    fn of_an_epoch_is_the_same_for_all() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let mut book = room.book();
        let made = |number: u16| shared(in_group(descriptor(number), (number % 100) as u8));
        for number in 0..400 {
            book.insert(made(number), Source::Met, NOW).unwrap();
        }
        for number in 400..500 {
            let _only_heard_of = book.insert(made(number), PEER, NOW);
        }
        let mut sizes = StdVec::new();
        for now in [NOW, later(86_400)] {
            let epoch = Epoch::at(now);
            let mut all: StdVec<_> = (0..400).map(|number| (epoch.rank(&node(number)), number)).collect();
            all.sort_unstable();
            let mut groups = BTreeSet::new();
            all.retain(|(_, number)| groups.insert(number % 100));
            for want in [0, 1, 2, 10, 50, 99, 100, 128, 1000] {
                let expected: BTreeSet<_> = all.iter().take(want.min(SAMPLE_MAX)).map(|(_, n)| node(*n)).collect();
                let sample = ids(book.epoch_sample(want, now));
                sizes.push(sample.len());
                assert_eq!(BTreeSet::from_iter(sample), expected, "{want}");
            }
        }
        assert_eq!(sizes[..9], [0, 1, 2, 10, 50, 99, 100, 100, 100]);
        assert_ne!(ids(book.epoch_sample(10, NOW)), ids(book.epoch_sample(10, later(86_400))));
    }
}
