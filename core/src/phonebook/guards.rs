//! Guards: the few relays that a node's paths begin with, `PROTOCOL.md` section 11.
//!
//! A client that drew a new first hop for every path would sooner or later begin one at an attacker's relay. With a few
//! first hops that stay, it most likely never does. So that they stay, a guard that cannot be used is waited for: others are used
//! meanwhile, and it is the first choice again when it is back.

use core::borrow::Borrow;
use core::time::Duration;

use heapless::Vec;
use rand_core::CryptoRng;

use super::entry::{Entry, Flag};
use super::path::{Choice, PathRequest, Scope};
use super::{NetworkGroup, Phonebook, VerifiedDescriptor};
use crate::wire::{NodeId, Reader, UnixTime, WireError};

/// Guards that are in use at a time.
pub const GUARDS_MAX: usize = 3;
/// Guards that a node keeps, those included that cannot be used at the moment.
pub const GUARDS_KEPT_MAX: usize = 8;
/// Most bytes of [`Guards::to_bytes`].
pub const GUARDS_LEN_MAX: usize = 1 + GUARDS_KEPT_MAX * STORED_LEN;
/// A guard that could not be used for so long on end is given up; only time in which it could have been seen to be back counts.
pub const GUARD_PATIENCE: Duration = Duration::from_secs(20 * 86_400);
/// So much time at most counts from one review to the next, twice a node's usual interval: for longer it was off, asleep or cut off, and
/// that says nothing about a guard.
pub const GUARD_REVIEW_MAX: Duration = Duration::from_secs(120);

/// Usable guards that a path needs: with two of them one is left when the other is the path's last hop.
const USABLE_MIN: usize = 2;
/// Of the stored list, after which each guard is `node id 32 || unusable for u32`, in whole hours.
const FORMAT: u8 = 2;
/// Of lists as they were before, with the date since when, in place of the hours.
const FORMAT_DATED: u8 = 1;
const STORED_LEN: usize = 32 + 4;
const HOUR: u32 = 3600;

/// One of the kept.
#[derive(Debug, Clone, Copy)]
struct Guard {
    node: NodeId,
    /// For how many seconds on end it could not be used, as far as that was seen.
    unusable: u32,
}

impl Guard {
    const fn usable(node: NodeId) -> Self {
        Self { node, unusable: 0 }
    }

    /// What is stored: in whole hours, so that a guard that is away is not a reason to write every minute.
    const fn unusable_hours(&self) -> u32 {
        self.unusable / HOUR
    }
}

impl PartialEq for Guard {
    fn eq(&self, other: &Self) -> bool {
        self.node == other.node && self.unusable_hours() == other.unusable_hours()
    }
}

impl Eq for Guard {}

/// A node's guards, in the order in which they were drawn; the first three that a request can use are the ones in use. The caller keeps the
/// list, over restarts too ([`Guards::to_bytes`], [`Guards::from_bytes`]). About 300 bytes. Two lists are equal if the same is stored of them.
///
/// They are drawn uniformly, from different network groups when there are enough, and from nodes that were met as the rest of
/// a path is. One that has left the phonebook, is in dispute, is avoided by a request, or whose descriptor is not valid at the moment, is passed
/// over and keeps its place. While fewer than two can be used, or all that can are in the group of every possible last hop, further ones are
/// drawn and put at the end. If the list is full, or the request draws nobody ([`PathRequest::draw_guards`]), those that it avoids are tried
/// again instead: whoever makes one guard after the other fail gets no further. Only one that was unusable for [`GUARD_PATIENCE`] leaves
/// ([`Guards::review`]).
#[derive(Debug, Clone, Default)]
pub struct Guards {
    kept: Vec<Guard, GUARDS_KEPT_MAX>,
    /// When they were looked at last; not over a restart, as nobody knows what was in between.
    reviewed: Option<UnixTime>,
}

impl PartialEq for Guards {
    fn eq(&self, other: &Self) -> bool {
        self.kept == other.kept
    }
}

impl Eq for Guards {}

impl Guards {
    /// No guards yet; the first path draws them.
    #[must_use]
    pub const fn new() -> Self {
        Self { kept: Vec::new(), reviewed: None }
    }

    /// Guards of which nothing is known but who they are: the first eight different ones of `nodes`.
    #[must_use]
    pub fn restore(nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let mut guards = Self::new();
        for node in nodes {
            if !guards.contains(&node) && guards.kept.push(Guard::usable(node)).is_err() {
                break;
            }
        }
        guards
    }

    /// The guards of an earlier run: what [`Guards::to_bytes`] wrote, or a list of before, either with dates (which are not taken over: days on
    /// which this node was off are in them) or of bare node ids.
    ///
    /// # Errors
    /// [`WireError`] if it is none of these, or a list that is not of bare ids and names a node twice or more guards than are kept.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        // 1 + 36 n is never a multiple of 32.
        if let (nodes, []) = bytes.as_chunks::<32>() {
            return Ok(Self::restore(nodes.iter().copied().map(NodeId)));
        }
        let mut guards = Self::new();
        let mut reader = Reader::new(bytes);
        let dated = match reader.u8()? {
            FORMAT => false,
            FORMAT_DATED => true,
            _ => return Err(WireError::UnknownCode),
        };
        while reader.remaining() > 0 {
            let (node, number) = (NodeId(*reader.array()?), reader.u32()?);
            let guard = Guard { node, unusable: if dated { 0 } else { number.saturating_mul(HOUR) } };
            if guards.contains(&guard.node) || guards.kept.push(guard).is_err() {
                return Err(WireError::Invalid);
            }
        }
        Ok(guards)
    }

    /// The list, with for how many hours each could not be used, to be kept over a restart.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8, GUARDS_LEN_MAX> {
        let mut bytes = Vec::new();
        let mut put = |part: &[u8]| bytes.extend_from_slice(part).expect("sized for a full list");
        put(&[FORMAT]);
        for guard in &self.kept {
            put(&guard.node.0);
            put(&guard.unusable_hours().to_be_bytes());
        }
        bytes
    }

    /// The guards that are kept, in the order in which they were drawn.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId, GUARDS_KEPT_MAX> {
        self.kept.iter().map(|guard| guard.node).collect()
    }

    fn contains(&self, node: &NodeId) -> bool {
        self.kept.iter().any(|guard| guard.node == *node)
    }

    /// Notes for how long who could not be used, and gives up who could not be for [`GUARD_PATIENCE`] on end: of the time since the last review
    /// no more than [`GUARD_REVIEW_MAX`] counts. To be called from time to time, but not while the own clock is in doubt, nor before those that are
    /// known were given time to show their new descriptors (after a start, or when the node was cut off).
    pub fn review<C: Borrow<VerifiedDescriptor> + Clone>(&mut self, book: &Phonebook<'_, C>, now: UnixTime) {
        // Of a clock that was set back it is not known how much has passed.
        let passed = self.reviewed.and_then(|reviewed| now.since(reviewed)).unwrap_or_default().min(GUARD_REVIEW_MAX);
        self.reviewed = Some(now);
        self.kept.retain_mut(|guard| {
            let usable = |entry: &Entry<C>| entry.has(Flag::Relay) && entry.is_usable() && entry.is_valid_at(now);
            let is_usable = book.get(&guard.node).is_some_and(usable);
            guard.unusable = if is_usable { 0 } else { guard.unusable.saturating_add(passed.as_secs() as u32) };
            u64::from(guard.unusable) < GUARD_PATIENCE.as_secs()
        });
    }

    /// Those that this request can use, drawn from `scope` where some are missing.
    pub(super) fn usable<'b, C: Borrow<VerifiedDescriptor> + Clone, R: CryptoRng + ?Sized>(
        &mut self,
        book: &'b Phonebook<'_, C>,
        request: &PathRequest<'_>,
        scope: Scope,
        rng: &mut R,
    ) -> Vec<Choice<'b, C>, GUARDS_MAX> {
        let choices = self.kept.iter().filter_map(|guard| book.choice_of(&guard.node));
        let mut usable: Vec<Choice<'b, C>, GUARDS_MAX> =
            choices.filter(|choice| request.can_relay(choice)).take(GUARDS_MAX).collect();
        while (self.kept.len() < GUARDS_MAX || usable.len() < USABLE_MIN) && self.may_draw(request) {
            let known: Vec<NodeId, { GUARDS_KEPT_MAX + GUARDS_MAX }> =
                self.nodes().into_iter().chain(usable.iter().map(Choice::node)).collect();
            let fresh = |choice: &Choice<'_, C>| request.can_relay(choice) && !choice.is_one_of(&known);
            let taken = |group: NetworkGroup| usable.iter().any(|guard| guard.group() == group);
            let apart = book.draw_choice(scope, |choice| fresh(choice) && !taken(choice.group()), rng);
            let Some(choice) = apart.or_else(|| book.draw_choice(scope, fresh, rng)) else { break };
            self.kept.push(Guard::usable(choice.node())).expect("nobody is drawn for a full list");
            usable.push(choice).expect("fewer than three are kept, or fewer than two usable");
        }
        usable
    }

    /// Whether another one may be drawn for `request`: as long as there are fewer than are in use at a time always, as a node that has just
    /// joined hears few others.
    pub(super) fn may_draw(&self, request: &PathRequest<'_>) -> bool {
        let most = if request.draw_guards { GUARDS_KEPT_MAX } else { GUARDS_MAX };
        self.kept.len() < most
    }

    /// One in none of the groups of `usable`, where that decides: of those that are kept the first, or another one that is drawn.
    pub(super) fn apart<'b, C: Borrow<VerifiedDescriptor> + Clone, R: CryptoRng + ?Sized>(
        &mut self,
        book: &'b Phonebook<'_, C>,
        request: &PathRequest<'_>,
        usable: &[Choice<'_, C>],
        scope: Scope,
        rng: &mut R,
    ) -> Option<Choice<'b, C>> {
        let allowed = |choice: &Choice<'_, C>| {
            request.can_relay(choice) && usable.iter().all(|guard| guard.group() != choice.group())
        };
        let mut kept = self.kept.iter().filter_map(|guard| book.choice_of(&guard.node));
        if let Some(choice) = kept.find(|choice| allowed(choice)) {
            return Some(choice);
        }
        let choice = if self.may_draw(request) { book.draw_choice(scope, allowed, rng)? } else { return None };
        // Not one of those that are kept: none of these is allowed.
        self.kept.push(Guard::usable(choice.node())).expect("nobody is drawn for a full list");
        Some(choice)
    }

    /// Those in use, even if `request` avoids them.
    pub(super) fn despite_all<'b, C: Borrow<VerifiedDescriptor> + Clone>(
        &self,
        book: &'b Phonebook<'_, C>,
        request: &PathRequest<'_>,
    ) -> Vec<Choice<'b, C>, GUARDS_MAX> {
        let request = PathRequest { avoid: &[], ..*request };
        let choices = self.kept.iter().filter_map(|guard| book.choice_of(&guard.node));
        choices.filter(|choice| request.can_relay(choice)).take(GUARDS_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::testing::{Card, NOW, Room, card, descriptor, exit, in_group, later, rng, shared, with};
    use super::super::{LastHop, NEW_PLACES, PathError, PathRequest, Source, Strictness, TRIED_PLACES};
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
        assert_eq!(Guards::restore(drawn.nodes()), drawn);
        assert_eq!(Guards::restore(drawn.nodes().into_iter().chain(drawn.nodes())), drawn);
        assert_eq!(Guards::restore((0..20).map(|n| card(n).node())).nodes().len(), GUARDS_KEPT_MAX);
    }

    /// First hops of many paths, at `now`.
    fn first_hops(
        book: &Phonebook<'_, Card>,
        guards: &mut Guards,
        avoid: &[NodeId],
        now: UnixTime,
    ) -> BTreeSet<NodeId> {
        let request = PathRequest { now, ..request(avoid) };
        (0..60).map(|seed| book.choose_path(&request, guards, &mut rng(seed)).unwrap().hops()[0].node).collect()
    }

    /// A phonebook of twenty relays, and the three guards that were drawn.
    fn drawn<'m>(room: &'m mut Room, seed: u64) -> (Phonebook<'m, Card>, Guards, [NodeId; 3]) {
        let mut book = room.book();
        fill(&mut book, 20);
        let mut guards = Guards::new();
        book.choose_path(&request(&[]), &mut guards, &mut rng(seed)).unwrap();
        let nodes = *guards.nodes().as_array().expect("three guards");
        (book, guards, nodes)
    }

    #[test]
    fn one_that_is_out_of_the_book_is_used_again_when_it_is_back() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let (mut book, mut guards, three) = drawn(&mut room, 2);
        let card = book.get(&three[1]).unwrap().card().clone();
        book.remove(&three[1]);
        assert_eq!(first_hops(&book, &mut guards, &[], NOW), BTreeSet::from([three[0], three[2]]));
        guards.review(&book, NOW);
        book.insert(card, Source::Met, later(16 * 60)).unwrap();
        assert_eq!(first_hops(&book, &mut guards, &[], later(16 * 60)), BTreeSet::from(three));
        guards.review(&book, later(16 * 60));
        assert_eq!(guards, Guards::restore(three), "nothing is left behind");
    }

    #[test]
    fn those_that_have_expired_are_used_again_when_they_are_renewed() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let (mut book, mut guards, three) = drawn(&mut room, 3);
        let day_after = later(2 * 86_400);
        // All but the three guards have new descriptors.
        let renew = |book: &mut Phonebook<'_, Card>, renewed: &dyn Fn(&NodeId) -> bool| {
            let old: Vec<Card, 32> = book.iter().map(|entry| entry.card().clone()).collect();
            for card in old.iter().filter(|card| renewed(&card.node())) {
                let mut descriptor = card.descriptor().clone();
                (descriptor.sequence, descriptor.valid_until) = (2, later(4 * 86_400));
                book.insert(shared(descriptor), Source::Met, day_after).unwrap();
            }
        };
        renew(&mut book, &|node| !three.contains(node));
        let others = first_hops(&book, &mut guards, &[], day_after);
        assert_eq!((others.len(), guards.nodes().len()), (USABLE_MIN, GUARDS_MAX + USABLE_MIN));
        assert!(others.iter().all(|other| !three.contains(other)));
        assert_eq!(guards.nodes()[..3], three, "none is overwritten");
        guards.review(&book, day_after);
        renew(&mut book, &|node| three.contains(node));
        assert_eq!(first_hops(&book, &mut guards, &[], day_after), BTreeSet::from(three));
    }

    #[test]
    fn two_that_fail_a_request_are_passed_over_by_that_request_only() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let (book, mut guards, three) = drawn(&mut room, 4);
        assert_eq!(first_hops(&book, &mut guards, &three[..1], NOW), BTreeSet::from([three[1], three[2]]));
        assert_eq!(guards.nodes(), three, "two are enough");
        let pair = first_hops(&book, &mut guards, &three[..2], NOW);
        let fourth = *guards.nodes().last().unwrap();
        assert_eq!((pair, guards.nodes().len()), (BTreeSet::from([three[2], fourth]), 4), "one more is enough");
        assert_eq!(first_hops(&book, &mut guards, &[], NOW), BTreeSet::from(three));
        // The next time it is the same one.
        assert_eq!(first_hops(&book, &mut guards, &three[..2], NOW), BTreeSet::from([three[2], fourth]));
        assert_eq!(guards.nodes().len(), 4);
    }

    #[test]
    fn a_full_list_is_not_overwritten() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let (book, mut guards, _) = drawn(&mut room, 5);
        while guards.nodes().len() < GUARDS_KEPT_MAX {
            let avoid = guards.nodes();
            book.choose_path(&request(&avoid), &mut guards, &mut rng(6)).unwrap();
        }
        let kept = guards.clone();
        let nodes = kept.nodes();
        // Whichever of them a request avoids, it begins with one of them: with the others as long as there is one, then with the first again.
        for avoided in 1..GUARDS_KEPT_MAX {
            let others: BTreeSet<NodeId> = nodes[avoided..].iter().take(GUARDS_MAX).copied().collect();
            assert_eq!(first_hops(&book, &mut guards, &nodes[..avoided], NOW), others);
        }
        assert_eq!(first_hops(&book, &mut guards, &nodes, NOW), nodes[..3].iter().copied().collect());
        assert_eq!(guards, kept);
        assert_eq!(first_hops(&book, &mut guards, &[], NOW), nodes[..3].iter().copied().collect());
        // If none can be used at all, that is said.
        let mut room = room.clone();
        let mut book = room.book();
        nodes.iter().for_each(|node| book.remove(node));
        let path = book.choose_path(&request(&[]), &mut guards, &mut rng(1));
        assert_eq!(path, Err(PathError::TooFewRelays { known: 0, needed: 3 }));
        assert_eq!(guards, kept);
    }

    #[test]
    fn who_may_be_cut_off_draws_no_more_than_are_in_use() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let mut book = room.book();
        fill(&mut book, 20);
        let mut guards = Guards::new();
        let choose = |guards: &mut Guards, avoid: &[NodeId], draw_guards, seed| {
            let path = book.choose_path(&PathRequest { draw_guards, ..request(avoid) }, guards, &mut rng(seed));
            path.unwrap().hops()[0].node
        };
        choose(&mut guards, &[], false, 1);
        let three = guards.nodes();
        assert_eq!(three.len(), GUARDS_MAX, "it begins with somebody");
        for seed in 0..60 {
            assert_eq!(choose(&mut guards, &three[..2], false, seed), three[2]);
            assert!(three.contains(&choose(&mut guards, &three, false, seed)));
        }
        assert_eq!(guards.nodes(), three);
        choose(&mut guards, &three, true, 1);
        assert_eq!(guards.nodes().len(), GUARDS_MAX + USABLE_MIN);
    }

    #[test]
    fn one_more_is_drawn_rather_than_beginning_in_the_last_hops_group() {
        let group = |number: u16, group| shared(in_group(descriptor(number), group));
        let mut room = Room::new(64, 64);
        let mut book = room.book();
        for number in 1..=12 {
            book.insert(group(number, if number <= 3 { 1 } else { number as u8 }), Source::Met, NOW).unwrap();
        }
        let last = shared(in_group(exit(99, PortRange::ALL), 1));
        book.insert(last, Source::Met, NOW).unwrap();
        let three = [1, 2, 3].map(|number| card(number).node());
        for strictness in [Strictness::Prefer, Strictness::Require] {
            let request = PathRequest { strictness, ..request(&[]) };
            let mut guards = Guards::restore(three);
            let hops = |guards: &mut Guards, seed| {
                let path = book.choose_path(&request, guards, &mut rng(seed)).unwrap();
                let groups: BTreeSet<NetworkGroup> =
                    path.hops().iter().map(|hop| NetworkGroup::from(hop.address.ip())).collect();
                (path.hops()[0].node, groups.len())
            };
            let (fourth, groups) = hops(&mut guards, 1);
            assert!(groups == 4 && guards.nodes()[..3] == three && guards.nodes()[3..] == [fourth]);
            for seed in 0..60 {
                assert_eq!(hops(&mut guards, seed), (fourth, 4), "the same one again");
            }
            assert_eq!(guards.nodes().len(), 4);
            let mut few = Guards::restore(three);
            let kept = book.choose_path(&PathRequest { draw_guards: false, ..request }, &mut few, &mut rng(1));
            assert_eq!((kept.is_ok(), few.nodes().len()), (strictness == Strictness::Prefer, 3));
        }
    }

    #[test]
    fn one_leaves_after_twenty_days_on_end() {
        // Relays 1 to 20 fit into one bucket.
        let mut room = Room::new(32, 32);
        let (mut book, mut guards, three) = drawn(&mut room, 7);
        let day = |day: u64| later(day * 86_400);
        let card = |number: u16, until: u64| with(number, |d| (d.sequence, d.valid_until) = (until, day(until)));
        let number = (1..=20).find(|&number| super::super::testing::node(number) == three[1]).unwrap();
        for renewed in 1..=20 {
            if renewed != number {
                book.insert(card(renewed, 100), Source::Met, NOW).unwrap();
            }
        }
        let mut lasting = exit(99, PortRange::ALL);
        (lasting.sequence, lasting.valid_until) = (2, day(100));
        book.insert(shared(lasting), Source::Met, NOW).unwrap();
        let review = |guards: &mut Guards, book: &Phonebook<'_, Card>, days: core::ops::Range<u64>| {
            let moments = (day(days.start).0..day(days.end).0).step_by(GUARD_REVIEW_MAX.as_secs() as usize);
            moments.for_each(|at| guards.review(book, UnixTime(at)));
            *guards = Guards::from_bytes(&guards.to_bytes()).unwrap();
            guards.contains(&three[1])
        };
        // Nineteen days, one day on which it was back, nineteen days.
        assert!(review(&mut guards, &book, 2..21));
        book.insert(card(number, 23), Source::Met, day(22)).unwrap();
        assert!(review(&mut guards, &book, 22..23));
        assert!(review(&mut guards, &book, 24..43));
        // However long this node is off, asleep or cut off, and whatever its clock says meanwhile: two minutes count.
        for at in [60, 80, 43, 50, 90] {
            guards.review(&book, day(at));
            assert!(guards.contains(&three[1]), "{at}");
        }
        assert!(!review(&mut guards, &book, 90..92));
        assert_eq!(guards.nodes(), [three[0], three[2]]);
        first_hops(&book, &mut guards, &[], day(92));
        assert_eq!(guards.nodes().len(), GUARDS_MAX, "and another one is drawn");
    }

    #[test]
    fn storage_keeps_list_and_hours() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let (mut book, mut guards, three) = drawn(&mut room, 8);
        book.remove(&three[0]);
        for review in 0..119 {
            guards.review(&book, later(60 * review));
            assert_eq!(guards == Guards::restore(three), review < 60, "there is nothing to write but once an hour");
        }
        let bytes = guards.to_bytes();
        assert_eq!((bytes[0], bytes.len()), (2, 1 + 3 * 36));
        assert_eq!((&bytes[33..37], &bytes[69..73]), (&[0, 0, 0, 1][..], &[0; 4][..]));
        assert_eq!(Guards::from_bytes(&bytes), Ok(guards.clone()));
        // As they were when dates were stored: of these nothing follows.
        let dated = [&[1], &bytes[1..33], &(NOW.0 as u32).to_be_bytes(), &bytes[37..]].concat();
        assert_eq!(Guards::from_bytes(&dated), Ok(Guards::restore(three)));
        for len in (1..bytes.len()).filter(|len| (len - 1) % 36 != 0 && len % 32 != 0) {
            assert!(Guards::from_bytes(&bytes[..len]).is_err(), "{len}");
        }
        for byte in 0..=255 {
            let longer: Vec<u8, 110> = bytes.iter().copied().chain([byte]).collect();
            assert!(Guards::from_bytes(&longer).is_err());
        }
        assert_eq!(Guards::from_bytes(&[3]), Err(WireError::UnknownCode));
        let twice = [&bytes[..], &bytes[1..37]].concat();
        assert_eq!(Guards::from_bytes(&twice), Err(WireError::Invalid));
        let nine: std::vec::Vec<u8> =
            [2].into_iter().chain((0..9).flat_map(|number| [&[number; 32][..], &[0; 4]].concat())).collect();
        assert!(Guards::from_bytes(&nine[..289]).is_ok() && Guards::from_bytes(&nine).is_err());
        // Bare ids, as they were before that.
        assert_eq!(Guards::from_bytes(&three.map(|node| node.0).concat()), Ok(Guards::restore(three)));
        assert_eq!(Guards::from_bytes(&[]), Ok(Guards::new()));
        assert!(size_of::<Guards>() <= 312, "{}", size_of::<Guards>());
    }

    #[test]
    fn one_that_is_not_valid_now_keeps_its_place() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let mut book = room.book();
        let mut early = descriptor(50);
        early.valid_from = UnixTime(NOW.0 + 1000);
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
