//! What an asker lets an answerer know of itself: who goes into its filter, how many descriptors it wants, and whether it may show its
//! address. `PROTOCOL.md` section 18.3.

use core::borrow::Borrow;

use rand_core::CryptoRng;

use super::filter::{FILTER_NODES_MAX, Filter, FilterBuilder, Salt, filter_len};
use super::{Exchanged, Want};
use crate::phonebook::entry::{Entry, Flag};
use crate::phonebook::path::below;
use crate::phonebook::{HopCount, NetworkGroup, PATH_MAX, Phonebook, Strictness, VerifiedDescriptor};
use crate::wire::NodeId;

/// A node that the asker knows, as far as filters are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Who.
    pub node: NodeId,
    /// The sequence number of the descriptor that is known.
    pub sequence: u64,
    /// The asker has met it itself.
    pub met: bool,
}

impl<C: Borrow<VerifiedDescriptor>> From<&Entry<C>> for Held {
    fn from(entry: &Entry<C>) -> Self {
        Self { node: entry.node(), sequence: entry.descriptor().sequence, met: entry.is_tried() }
    }
}

/// How much of what it knows an asker puts into its filter.
///
/// A filter is a fingerprint: whoever answers can tell each asker of a node of its own making, a mark, and know the asker again by the filters
/// that hold it. A relay is asked at its address and announces itself, so it has nothing to hide. A client, whose exchanges go over whole
/// paths so that nobody knows whose they are, says less than would tell it from others:
///
/// - Only nodes that it has met. One that was invented is never in a filter, so a mark costs a live node that the client links to.
/// - Each of these by a coin of its own, so that a mark is missing from every second filter, and no filter says how many there are.
/// - In five to ten bits a node instead of ten, because the filter's length is a power of two (which says as little about how many they are):
///   one in a hundred to one in nine of all other nodes seem to be there too. So a mark is found in 50 to 56 of 100 filters of the marked
///   client and in 1 to 12 of 100 of anybody else.
///
/// What that costs: half of what the client knows may be told to it again. Two of three descriptors are new to it while it knows half of all, one in
/// four when it knows six of seven; from then on it asks less often and for fewer at once ([`Disclosure::want`],
/// [`super::AnswerReader::outcome`]). What a filter wrongly holds is told by a later answer, as the salt is another one each time. With a quarter
/// instead of half, marks would be half as strong and a third more would be told in vain.
///
/// It makes marks dear and weak, not impossible: many marks, seen in many exchanges, add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Disclosure {
    /// Everything, or as many nodes of it, at random, as a filter has room for ([`FILTER_NODES_MAX`]): a relay.
    All,
    /// A random half of the nodes that were met: a client.
    Half,
    /// Nothing: a client that joins, and shows its address to whom it asks.
    Nothing,
}

impl Disclosure {
    /// Descriptors that a client wants when it expects to know most of them.
    pub const FEW: Want = match Want::new(32) {
        Some(want) => want,
        None => panic!("32 is in range"),
    };

    /// A filter with a fresh salt for who knows `held`, in `storage`, which should have [`super::FILTER_MAX_LEN`] bytes.
    #[must_use]
    pub fn filter<'b, R: CryptoRng + ?Sized>(
        self,
        held: impl Iterator<Item = Held> + Clone,
        storage: &'b mut [u8],
        rng: &mut R,
    ) -> Filter<'b> {
        let salt = Salt::random(rng);
        match self {
            Self::All => {
                // Selection sampling: each of the rest is taken with the probability with which a place is left for it.
                let mut rest = u32::try_from(held.clone().count()).unwrap_or(u32::MAX);
                let mut places = rest.min(FILTER_NODES_MAX as u32);
                let mut filter = FilterBuilder::new(salt, places as usize, storage);
                for held in held {
                    if below(rest, rng) < places {
                        filter.insert(&held.node, held.sequence);
                        places -= 1;
                    }
                    rest = rest.saturating_sub(1);
                }
                filter.finish()
            }
            Self::Half => {
                let met = held.filter(|held| held.met);
                let nodes = met.clone().count().div_ceil(2);
                let len = filter_len(nodes).checked_ilog2().map_or(0, |log| 1 << log);
                let len = len.min(storage.len());
                let storage = storage.get_mut(..len).unwrap_or_default();
                let mut filter = FilterBuilder::new(salt, nodes, storage);
                for held in met {
                    if rng.next_u32() & 1 == 1 {
                        filter.insert(&held.node, held.sequence);
                    }
                }
                filter.finish()
            }
            Self::Nothing => Filter::empty(salt),
        }
    }

    /// How many descriptors to ask for, after an exchange that came to `last`. Who tells all that it knows is told of nothing again, and may as well have
    /// as many as there are; a client that was told of little that was new asks for few until there is more to be had.
    #[must_use]
    pub const fn want(self, last: Option<Exchanged>) -> Want {
        match (self, last) {
            (Self::Half, Some(Exchanged::Partial)) => Self::FEW,
            _ => Want::MAX,
        }
    }
}

/// Whether a client is joining: of those that it has met, valid now or not, failing or not, no path of `hops` hops could be made.
///
/// Only then may it ask over one hop, which shows its address, and with it that it is a client and when it is there, to a node that somebody else
/// may have chosen. Later, when a path cannot be made for the moment (descriptors have expired, nodes are avoided), it waits. It joins
/// anew when so many of those that it has met have left its phonebook for not answering. What is kept over restarts is the phonebook, and with it the
/// answer.
#[must_use]
pub fn is_joining<C: Borrow<VerifiedDescriptor> + Clone>(
    book: &Phonebook<'_, C>,
    hops: HopCount,
    strictness: Strictness,
) -> bool {
    let (mut relays, mut others) = (0usize, 0usize);
    let mut groups: heapless::Vec<NetworkGroup, PATH_MAX> = heapless::Vec::new();
    // What is in dispute may stay so for as long as it likes, and must not keep anybody from joining.
    for entry in book.iter().filter(|entry| entry.is_tried() && entry.is_usable()) {
        match (entry.has(Flag::Relay), entry.has(Flag::Exit)) {
            (true, _) => relays += 1,
            (false, true) => others += 1,
            (false, false) => continue,
        }
        if !groups.contains(&entry.group()) && !groups.is_full() {
            groups.push(entry.group()).expect("there is a place");
        }
    }
    // The last hop may be an exit that is no relay.
    let enough = relays + others.min(1) >= hops.value();
    !enough || strictness == Strictness::Require && groups.len() < hops.value()
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::super::super::testing::{NOW, Room, descriptor, exit, in_group, later, node, rng, shared, with};
    use super::super::super::{NEW_PLACES, Source, TRIED_PLACES};
    use super::super::FILTER_MAX_LEN;
    use super::*;
    use crate::wire::{Descriptor, PortRange, Roles};

    /// So many nodes, every second one met.
    fn held(count: u32) -> Vec<Held> {
        let id = |number: u32| {
            let mut id = [0x5a; 32];
            id[..4].copy_from_slice(&number.to_be_bytes());
            NodeId(id)
        };
        (0..count).map(|number| Held { node: id(number), sequence: 7, met: number % 2 == 0 }).collect()
    }

    fn holds(filter: &Filter<'_>, held: &[Held], range: core::ops::Range<usize>) -> usize {
        held[range].iter().filter(|held| filter.holds(&held.node, held.sequence)).count()
    }

    #[test]
    fn a_relay_puts_in_all_that_it_knows() {
        let (mut storage, mut rng) = ([0xa5; FILTER_MAX_LEN], rng(1));
        for count in [0, 1, 5, 1000, FILTER_NODES_MAX] {
            let held = held(count as u32);
            let filter = Disclosure::All.filter(held.iter().copied(), &mut storage, &mut rng);
            assert_eq!((holds(&filter, &held, 0..count), filter.as_bytes().len()), (count, filter_len(count)));
        }
    }

    #[test]
    fn more_than_a_filter_has_room_for_are_a_random_part() {
        let held = held(6144);
        let (mut storage, mut rng) = ([0; FILTER_MAX_LEN], rng(2));
        let mut ever = [0u8; 6144];
        for _ in 0..20 {
            let filter = Disclosure::All.filter(held.iter().copied(), &mut storage, &mut rng);
            // 3276, and 0.84 % of the other 2868: 24.
            let all = holds(&filter, &held, 0..6144);
            assert!((3276..3340).contains(&all), "{all}");
            let half = holds(&filter, &held, 0..3072);
            assert!((1550..1750).contains(&half), "{half} of {all}");
            let strangers = (0..1000u64).filter(|n| filter.holds(&NodeId([7; 32]), *n)).count();
            assert!(strangers < 25, "{strangers} of 1000");
            for (ever, held) in ever.iter_mut().zip(&held) {
                *ever += u8::from(filter.holds(&held.node, held.sequence));
            }
        }
        assert!(ever.iter().all(|&ever| (1..20).contains(&ever)), "other ones each time");
    }

    #[test]
    fn a_client_puts_in_some_of_those_that_it_has_met() {
        let held = held(2000);
        let (mut storage, mut rng) = ([0; FILTER_MAX_LEN], rng(3));
        let mut ever = [0u8; 2000];
        for _ in 0..20 {
            let filter = Disclosure::Half.filter(held.iter().copied(), &mut storage, &mut rng);
            assert_eq!(filter.as_bytes().len(), 512, "500 nodes in 8.2 bits each: one in 55 is mistaken for held");
            for (ever, held) in ever.iter_mut().zip(&held) {
                *ever += u8::from(filter.holds(&held.node, held.sequence));
            }
        }
        let (mut met, mut unmet) = (0u32, 0u32);
        for (ever, held) in ever.iter().zip(&held) {
            *if held.met { &mut met } else { &mut unmet } += u32::from(*ever);
        }
        // Of 20,000 each: half and one in 55 of the rest, and one in 55.
        assert!((9700..10_700).contains(&met), "{met}");
        assert!((200..600).contains(&unmet), "{unmet}");
    }

    #[test]
    fn the_length_says_nearly_nothing() {
        let (mut storage, mut rng) = ([0; FILTER_MAX_LEN], rng(4));
        let mut len = |count| {
            let held = held(count);
            Disclosure::Half.filter(held.iter().copied(), &mut storage, &mut rng).as_bytes().len()
        };
        let lens: std::collections::BTreeSet<_> = (0..6144).step_by(61).map(&mut len).collect();
        assert!(lens.iter().all(|len| *len == 0 || len.is_power_of_two()), "{lens:?}");
        assert_eq!([0, 1, 3, 2000, 3000, 3276, 6144].map(len), [0, 2, 2, 512, 512, 1024, 1024]);
        // Who has met nobody says nothing, nor who does not want to; too short a place costs exactness.
        let unmet: Vec<_> = held(40).into_iter().map(|held| Held { met: false, ..held }).collect();
        assert!(Disclosure::Half.filter(unmet.iter().copied(), &mut storage, &mut rng).as_bytes().is_empty());
        assert!(Disclosure::Nothing.filter(held(40).into_iter(), &mut storage, &mut rng).as_bytes().is_empty());
        assert_eq!(Disclosure::Half.filter(held(40).into_iter(), &mut [0; 3], &mut rng).as_bytes().len(), 3);
        let (first, second) = (&mut [0; 64], &mut [0; 64]);
        let salts = [
            Disclosure::Half.filter(held(4).into_iter(), first, &mut rng).salt(),
            Disclosure::Half.filter(held(4).into_iter(), second, &mut rng).salt(),
        ];
        assert_ne!(salts[0], salts[1]);
    }

    #[test]
    fn clients_ask_for_less_where_little_is_new() {
        for last in [None, Some(Exchanged::Full), Some(Exchanged::Failed)] {
            assert_eq!(Disclosure::Half.want(last), Want::MAX);
        }
        assert_eq!(Disclosure::Half.want(Some(Exchanged::Partial)), Disclosure::FEW);
        assert_eq!(Disclosure::All.want(Some(Exchanged::Partial)), Want::MAX);
    }

    #[test]
    fn a_client_joins_until_it_has_met_enough_for_a_path() {
        let hops = |number| HopCount::new(number).unwrap();
        let (mut room, peer) = (Room::new(TRIED_PLACES, NEW_PLACES), Source::Peer(NetworkGroup::V4([9, 9])));
        let mut book = room.book();
        for number in 1..=9 {
            book.insert(with(number, |_| ()), peer, NOW).unwrap();
        }
        assert!(is_joining(&book, hops(1), Strictness::Prefer), "heard of, not met");
        for number in 60..64 {
            let roles = Roles { relay: false, exit: false, constrained: false };
            book.insert(with(number, |d| d.roles = roles), Source::Met, NOW).unwrap();
        }
        assert!(is_joining(&book, hops(1), Strictness::Ignore), "whoever has met only such as do nothing");
        for number in 50..52 {
            book.insert(shared(in_group(exit(number, PortRange::ALL), 7)), Source::Met, NOW).unwrap();
        }
        assert!(!is_joining(&book, hops(1), Strictness::Prefer));
        assert!(is_joining(&book, hops(2), Strictness::Prefer), "exits that are no relays stand only at the end");
        // Expired or not: another day they are valid again.
        let of_group =
            |number, group, until| shared(Descriptor { valid_until: until, ..in_group(descriptor(number), group) });
        for (number, group) in [(1, 7), (2, 8), (3, 8)] {
            assert!(is_joining(&book, hops(number as u8 + 1), Strictness::Ignore), "a relay is missing");
            book.remove(&node(number));
            book.insert(of_group(number, group, later(60)), Source::Met, NOW).unwrap();
            assert!(!is_joining(&book, hops(number as u8 + 1), Strictness::Ignore));
        }
        book.record_failure(&node(1), true, later(7200));
        assert!(!is_joining(&book, hops(4), Strictness::Prefer));
        // Where groups must differ, others have to be met first.
        assert!(is_joining(&book, hops(4), Strictness::Require) && is_joining(&book, hops(3), Strictness::Require));
        assert!(!is_joining(&book, hops(2), Strictness::Require));
        // Two words of one node: it is on no path, for as long as it likes.
        let other = shared(Descriptor { link_key: [9; 32], ..in_group(descriptor(3), 8) });
        assert!(book.insert(other, Source::Met, NOW).is_err());
        assert!(is_joining(&book, hops(4), Strictness::Ignore) && !is_joining(&book, hops(3), Strictness::Ignore));
    }
}
