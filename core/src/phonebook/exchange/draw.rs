//! The sample in an answer, drawn from a list rather than from the phonebook: looking into an asker's filter costs a hash a node, which
//! must not be spent where the phonebook is needed by others.

use rand_core::CryptoRng;

use crate::phonebook::VerifiedDescriptor;
use crate::phonebook::path::below;

/// At most `want` of `cards` without those that `skip` wants left out, each with the same probability, in ascending order of ids. The list
/// is left in another order. `skip` is asked of no more cards than have to be looked at.
pub fn draw_sample<'c, C: AsRef<VerifiedDescriptor>, R: CryptoRng + ?Sized>(
    cards: &'c mut [C],
    want: usize,
    rng: &mut R,
    mut skip: impl FnMut(&VerifiedDescriptor) -> bool,
) -> &'c [C] {
    // In front those that were drawn, at the end those that are left out, between them those that were not looked at.
    let (mut drawn, mut end) = (0, cards.len());
    while drawn < want && drawn < end {
        let at = drawn + below(u32::try_from(end - drawn).unwrap_or(u32::MAX), rng) as usize;
        if cards.get(at).is_none_or(|card| skip(card.as_ref())) {
            end -= 1;
            cards.swap(at, end);
        } else {
            cards.swap(at, drawn);
            drawn += 1;
        }
    }
    let sample = cards.get_mut(..drawn).unwrap_or_default();
    sample.sort_unstable_by_key(|card| card.as_ref().node());
    sample
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::super::super::testing::{Card, NOW, Room, assert_uniform, node, rng, with};
    use super::super::super::{Entry, NEW_PLACES, Source, TRIED_PLACES};
    use super::super::{Disclosure, FILTER_MAX_LEN, Held};
    use super::*;

    fn cards(count: u16) -> Vec<Card> {
        (0..count).map(|number| with(number, |_| ())).collect()
    }

    #[test]
    fn is_uniform_among_those_that_are_not_left_out() {
        let (mut cards, mut rng) = (cards(40), rng(1));
        let left_out: Vec<_> = (20..40).map(node).collect();
        let mut counts = [0u32; 20];
        for _ in 0..3000 {
            let sample = draw_sample(&mut cards, 5, &mut rng, |card| left_out.contains(&card.node()));
            assert_eq!(sample.len(), 5);
            assert!(sample.windows(2).all(|pair| pair[0].node() < pair[1].node()), "strictly ascending");
            for card in sample {
                counts[(0..20).position(|number| node(number) == card.node()).expect("nobody who is left out")] += 1;
            }
        }
        assert_uniform(&counts, 43.82);
    }

    #[test]
    fn looks_at_no_more_than_it_must() {
        let (mut cards, mut rng) = (cards(100), rng(2));
        for (want, held, len, looks) in
            [(0, false, 0, 0), (30, false, 30, 30), (200, false, 100, 100), (1, true, 0, 100)]
        {
            let mut looked = 0;
            let sample = draw_sample(&mut cards, want, &mut rng, |_| {
                looked += 1;
                held
            });
            assert_eq!((sample.len(), looked), (len, looks));
        }
        assert!(draw_sample(&mut cards[..0], 7, &mut rng, |_| false).is_empty());
        assert_eq!(cards.iter().map(|card| card.node()).collect::<std::collections::BTreeSet<_>>().len(), 100);
    }

    /// `cargo test -p bulbil-core --lib -- --ignored --nocapture what_a_request_costs`
    #[test]
    #[ignore = "measures"]
    fn what_a_request_costs() {
        const NODES: u16 = 4096;
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let mut book = room.book();
        for card in cards(NODES) {
            let _full = book.insert(card, Source::Met, NOW);
        }
        let met: Vec<_> = book.iter().filter(|entry| entry.is_tried()).collect();
        let mut rng = rng(3);
        std::println!("{} nodes met", met.len());
        for known in [0, met.len()] {
            let mut bits = [0; FILTER_MAX_LEN];
            let held = met.iter().take(known).map(|&entry| Held::from(entry));
            let filter = Disclosure::All.filter(held, &mut bits, &mut rng);
            let holds = |card: &VerifiedDescriptor| filter.holds(&card.node(), card.descriptor().sequence);
            let time = |name: &str, run: &mut dyn FnMut() -> usize| {
                let begun = std::time::Instant::now();
                let sum: usize = (0..200).map(|_| run()).sum();
                let each = begun.elapsed() / 200;
                std::println!("asker knows {known}: {name}: {each:?} for {} descriptors", sum / 200);
            };
            let (mut owners, mut workers) = (self::rng(4), self::rng(4));
            time("before, in the phonebook's task", &mut || book.sample(127, NOW, &mut owners, holds).len());
            let list = || -> Vec<Card> {
                let may_be = |entry: &&Entry<Card>| entry.is_tried() && !entry.is_disputed() && entry.is_valid_at(NOW);
                book.iter().filter(may_be).map(|entry| entry.card().clone()).collect()
            };
            time("after, once a second in the phonebook's task", &mut || list().len());
            let list = list();
            time("after, on a worker", &mut || {
                let mut drawn: Vec<_> = list.iter().collect();
                draw_sample(&mut drawn, 127, &mut workers, holds).len()
            });
        }
    }
}
