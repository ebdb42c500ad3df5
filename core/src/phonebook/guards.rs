//! Guards: the few relays that a node's paths begin with.
//!
//! A client that drew a new first hop for every path would sooner or later begin one at an attacker's relay. With a few
//! first hops that stay, it most likely never does.

use core::borrow::Borrow;

use heapless::Vec;
use rand_core::CryptoRng;

use super::path::{Choice, PathRequest, Scope};
use super::{NetworkGroup, Phonebook, VerifiedDescriptor};
use crate::wire::NodeId;

/// How many guards a node keeps.
pub const GUARDS_MAX: usize = 3;

/// Usable guards that a path needs: with two of them one is left when the other is the path's last hop.
const USABLE_MIN: usize = 2;

/// A node's guards. The caller keeps them, over restarts too ([`Guards::nodes`], [`Guards::restore`]).
///
/// They are drawn uniformly, from different network groups when there are enough, and from nodes that were met as the rest of
/// a path is. One that has left the phonebook is
/// replaced. One that a request avoids, or whose descriptor is not valid at the moment, is passed over and keeps its place
/// while at least two others are usable; otherwise it is replaced, too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guards {
    nodes: Vec<NodeId, GUARDS_MAX>,
}

impl Guards {
    /// No guards yet; the first path draws them.
    #[must_use]
    pub const fn new() -> Self {
        Self { nodes: Vec::new() }
    }

    /// The guards of an earlier run: the first three different ones of `nodes`.
    #[must_use]
    pub fn restore(nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let mut guards = Self::new();
        for node in nodes {
            if !guards.nodes.contains(&node) && guards.nodes.push(node).is_err() {
                break;
            }
        }
        guards
    }

    /// The guards, in the order in which they were drawn.
    #[must_use]
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// Replaces and adds guards where that is due, from `scope`, and returns those that this request can use.
    pub(super) fn usable<'b, C: Borrow<VerifiedDescriptor> + Clone, R: CryptoRng + ?Sized>(
        &mut self,
        book: &'b Phonebook<'_, C>,
        request: &PathRequest<'_>,
        scope: Scope,
        rng: &mut R,
    ) -> Vec<Choice<'b, C>, GUARDS_MAX> {
        let mut usable: Vec<Choice<'b, C>, GUARDS_MAX> = Vec::new();
        let mut passed_over: Vec<NodeId, GUARDS_MAX> = Vec::new();
        self.nodes.retain(|node| {
            let Some(choice) = book.choice_of(node) else { return false };
            let can = request.can_relay(&choice);
            let full = if can { usable.push(choice).is_err() } else { passed_over.push(*node).is_err() };
            debug_assert!(!full, "there are no more guards than places");
            true
        });
        while self.nodes.len() < GUARDS_MAX || usable.len() < USABLE_MIN {
            let known = &self.nodes;
            let fresh = |choice: &Choice<'_, C>| request.can_relay(choice) && !choice.is_one_of(known);
            let taken = |group: NetworkGroup| usable.iter().any(|guard| guard.group() == group);
            let apart = book.draw_choice(scope, |choice| fresh(choice) && !taken(choice.group()), rng);
            let Some(choice) = apart.or_else(|| book.draw_choice(scope, fresh, rng)) else { break };
            let place = match passed_over.first() {
                Some(replaced) if self.nodes.is_full() => self.nodes.iter().position(|node| node == replaced),
                _ => None,
            };
            match place.and_then(|place| self.nodes.get_mut(place)) {
                Some(place) => {
                    *place = choice.node();
                    passed_over.remove(0);
                }
                // Not full, or the loop would have ended: a full set has either two usable guards or one passed over.
                None => self.nodes.push(choice.node()).expect("a place is free"),
            }
            usable.push(choice).expect("usable guards are guards");
        }
        usable
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Card, NOW, Room, card, descriptor, exit, rng, shared, with};
    use super::super::{LastHop, NEW_PLACES, PathRequest, Source, TRIED_PLACES};
    use super::*;
    use crate::wire::PortRange;

    fn request(avoid: &[NodeId]) -> PathRequest<'_> {
        PathRequest { avoid, ..PathRequest::new(LastHop::Exit { port: None }, NOW) }
    }

    /// Relays 1 to `relays` and exit 99.
    fn fill(book: &mut Phonebook<'_, Card>, relays: u16) {
        for number in 1..=relays {
            book.insert(with(number, |_| ()), Source::Met, NOW).unwrap();
        }
        book.insert(shared(exit(99, PortRange::ALL)), Source::Met, NOW).unwrap();
    }

    #[test]
    fn stay_as_they_were_drawn() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let mut book = room.book();
        fill(&mut book, 20);
        let mut guards = Guards::new();
        let mut rng = rng(1);
        book.choose_path(&request(&[]), &mut guards, &mut rng).unwrap();
        let drawn = guards.clone();
        assert_eq!(drawn.nodes().len(), GUARDS_MAX);
        for _ in 0..200 {
            let path = book.choose_path(&request(&[]), &mut guards, &mut rng).unwrap();
            assert!(drawn.nodes().contains(&path.hops()[0].node));
        }
        assert_eq!(guards, drawn);
        assert_eq!(Guards::restore(drawn.nodes().iter().copied()), drawn);
        assert_eq!(Guards::restore(drawn.nodes().iter().chain(drawn.nodes()).copied()), drawn);
        assert_eq!(Guards::restore((0..9).map(|n| card(n).node())).nodes().len(), GUARDS_MAX);
    }

    #[test]
    fn one_that_left_the_phonebook_is_replaced() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let mut book = room.book();
        fill(&mut book, 20);
        let mut guards = Guards::new();
        let mut rng = rng(2);
        book.choose_path(&request(&[]), &mut guards, &mut rng).unwrap();
        let [first, second, third] = guards.nodes() else { panic!("three guards") };
        let (first, second, third) = (*first, *second, *third);
        book.remove(&second);
        book.choose_path(&request(&[]), &mut guards, &mut rng).unwrap();
        assert_eq!(guards.nodes()[..2], [first, third]);
        assert_eq!(guards.nodes().len(), GUARDS_MAX);
        assert!(!guards.nodes().contains(&second));
    }

    #[test]
    fn an_avoided_one_is_passed_over_and_replaced_only_in_need() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let mut book = room.book();
        fill(&mut book, 20);
        let mut guards = Guards::new();
        let mut rng = rng(3);
        book.choose_path(&request(&[]), &mut guards, &mut rng).unwrap();
        let drawn = guards.clone();
        for _ in 0..50 {
            let path = book.choose_path(&request(&drawn.nodes()[..1]), &mut guards, &mut rng).unwrap();
            assert!(drawn.nodes()[1..].contains(&path.hops()[0].node));
            assert_eq!(guards, drawn);
        }
        book.choose_path(&request(&drawn.nodes()[..2]), &mut guards, &mut rng).unwrap();
        assert_eq!(guards.nodes()[1..], drawn.nodes()[1..], "one replacement is enough");
        assert!(!drawn.nodes().contains(&guards.nodes()[0]));
    }

    #[test]
    fn one_that_is_not_valid_now_keeps_its_place() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let mut book = room.book();
        let mut early = descriptor(50);
        early.valid_from = crate::wire::UnixTime(NOW.0 + 1000);
        let early = shared(early);
        let node = early.node();
        fill(&mut book, 5);
        book.insert(early, Source::Met, NOW).unwrap();
        let mut guards = Guards::restore([node]);
        let path = book.choose_path(&request(&[]), &mut guards, &mut rng(4)).unwrap();
        assert!(path.hops().iter().all(|hop| hop.node != node));
        assert_eq!(guards.nodes()[0], node);
        assert_eq!(guards.nodes().len(), GUARDS_MAX);
    }

    #[test]
    fn prefer_different_groups() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let mut book = room.book();
        fill(&mut book, 3);
        for number in 10..30 {
            let mut crowd = descriptor(number);
            crowd.addresses[0].set_ip([77, 77, 0, number as u8].into());
            book.insert(shared(crowd), Source::Met, NOW).unwrap();
        }
        for seed in 0..50 {
            let mut guards = Guards::new();
            book.choose_path(&request(&[]), &mut guards, &mut rng(seed)).unwrap();
            let in_crowd = |node: &&NodeId| (10..30).any(|number| card(number).node() == **node);
            assert!(guards.nodes().iter().filter(in_crowd).count() <= 1);
        }
    }

    #[test]
    fn are_drawn_uniformly() {
        const RELAYS: u16 = 10;
        const RUNS: u32 = 4000;
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let mut book = room.book();
        fill(&mut book, RELAYS);
        let mut rng = rng(5);
        let mut counts = [0u32; RELAYS as usize];
        for _ in 0..RUNS {
            let mut guards = Guards::new();
            book.choose_path(&request(&[]), &mut guards, &mut rng).unwrap();
            for (number, count) in (1..=RELAYS).zip(&mut counts) {
                *count += u32::from(guards.nodes().contains(&card(number).node()));
            }
        }
        // Three of ten without replacement: variance of each count 0.3 x 0.7, and the sum of the counts is fixed.
        let expected = f64::from(RUNS) * 0.3;
        let scale = expected * 0.7 * 10.0 / 9.0;
        let statistic: f64 = counts.iter().map(|&count| (f64::from(count) - expected).powi(2) / scale).sum();
        // 99.9 % quantile of chi-squared with 9 degrees of freedom.
        assert!(statistic < 27.88, "{statistic} {counts:?}");
    }

    #[test]
    fn are_drawn_from_those_that_were_met_as_soon_as_there_are_eight() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let mut book = room.book();
        let teller = |number: u16| Source::Peer(NetworkGroup::V4([number as u8, 1]));
        for number in 100..1000 {
            book.insert(with(number, |_| ()), teller(number), NOW).unwrap();
        }
        fill(&mut book, 7);
        let met: Vec<NodeId, 8> = (1..=8).map(|number| card(number).node()).collect();
        let drawn = |book: &Phonebook<'_, Card>, seed| {
            let mut guards = Guards::new();
            book.choose_path(&request(&[]), &mut guards, &mut rng(seed)).unwrap();
            guards.nodes().iter().filter(|guard| met.contains(guard)).count()
        };
        assert!((0..50).any(|seed| drawn(&book, seed) < GUARDS_MAX), "seven are too few");
        fill(&mut book, 8);
        assert!((0..50).all(|seed| drawn(&book, seed) == GUARDS_MAX));
        // Those that there are stay, wherever they are from.
        let mut guards = Guards::restore([card(500).node()]);
        book.choose_path(&request(&[]), &mut guards, &mut rng(1)).unwrap();
        assert_eq!(guards.nodes()[0], card(500).node());
    }
}
