//! Disputes, `PROTOCOL.md` section 18.4: two descriptors of one node with one sequence number.

use core::borrow::Borrow;

use super::shelves::Slot;
use super::{Phonebook, VerifiedDescriptor};
use crate::wire::{Descriptor, NodeId, UnixTime};

/// Pairs that a host keeps; the oldest gives way.
pub const EVIDENCE_MAX: usize = 16;

/// Two verified descriptors of one node with the same sequence number and different content: the proof that its key is used
/// twice.
#[derive(Debug, Clone)]
pub struct Evidence<C = VerifiedDescriptor> {
    pub(super) pair: [C; 2],
    pub(super) noted: UnixTime,
}

impl<C: Borrow<VerifiedDescriptor>> Evidence<C> {
    /// The node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        let [first, _] = &self.pair;
        first.borrow().node()
    }

    /// The two descriptors, the one that was known first in front.
    #[must_use]
    pub const fn pair(&self) -> &[C; 2] {
        &self.pair
    }

    /// When the second one came.
    #[must_use]
    pub const fn noted(&self) -> UnixTime {
        self.noted
    }

    /// Whether both have expired.
    #[must_use]
    pub fn is_expired_at(&self, now: UnixTime) -> bool {
        self.pair.iter().all(|card| card.borrow().descriptor().is_expired_at(now))
    }
}

/// Whether two descriptors are of one node and have the same sequence number, but not the same content.
pub(super) fn contradict(one: &VerifiedDescriptor, other: &VerifiedDescriptor) -> bool {
    let (one, other) = (one.descriptor(), other.descriptor());
    one.identity == other.identity && one.sequence == other.sequence && !same_content(one, other)
}

/// Whether two descriptors say the same. Signatures are left out: signing the same again is no contradiction.
fn same_content(one: &Descriptor, other: &Descriptor) -> bool {
    let Descriptor {
        identity,
        sequence,
        valid_from,
        valid_until,
        protocol,
        roles,
        link_key,
        onion_key,
        addresses,
        exit_ports,
        signature: _,
    } = one;
    *identity == other.identity
        && *sequence == other.sequence
        && *valid_from == other.valid_from
        && *valid_until == other.valid_until
        && *protocol == other.protocol
        && *roles == other.roles
        && *link_key == other.link_key
        && *onion_key == other.onion_key
        && *addresses == other.addresses
        && *exit_ports == other.exit_ports
}

impl<C: Borrow<VerifiedDescriptor> + Clone> Phonebook<'_, C> {
    /// `card` contradicts the descriptor in `slot`.
    pub(super) fn begin_dispute(&mut self, slot: Slot, card: C, now: UnixTime) {
        let until = card.borrow().descriptor().valid_until;
        let Some(entry) = self.entry_mut(slot) else { return };
        entry.note_dispute(until);
        let known = entry.card().clone();
        self.keep_evidence(Evidence { pair: [known, card], noted: now });
    }

    pub(super) fn keep_evidence(&mut self, evidence: Evidence<C>) {
        let oldest = self.shelves.evidence.iter_mut().min_by_key(|place| place.as_ref().map(|kept| kept.noted));
        if let Some(place) = oldest {
            *place = Some(evidence);
        }
    }

    /// A dispute about `node` is over if both descriptors have expired; then the node may begin anew.
    pub(super) fn lift_dispute(&mut self, node: &NodeId, now: UnixTime) {
        if self.clock_in_doubt {
            return;
        }
        for place in self.shelves.evidence.iter_mut() {
            if place.as_ref().is_some_and(|kept| kept.node() == *node && kept.is_expired_at(now)) {
                *place = None;
            }
        }
        if let Some(slot) = self.find(node)
            && let Some(entry) = self.entry_mut(slot)
            && entry.is_disputed()
            && entry.is_expired_at(now)
        {
            if entry.is_pinned() {
                entry.end_dispute();
            } else {
                self.vacate(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::super::testing::{Card, NOW, Room, later, node, with};
    use super::super::{Inserted, NetworkGroup, Refusal, Source};
    use super::*;

    const PEER: Source = Source::Peer(NetworkGroup::V4([9, 9]));

    /// Descriptor of node 1 in one of several versions.
    fn version(sequence: u64, variant: u8) -> Card {
        with(1, |d| {
            (d.sequence, d.link_key) = (sequence, [variant; 32]);
            d.valid_until = UnixTime(NOW.0 + 1000 * u64::from(variant));
        })
    }

    #[test]
    fn signing_the_same_again_is_none() {
        let mut room = Room::new(1, 1);
        let mut book = room.book();
        book.insert(version(1, 1), PEER, NOW).unwrap();
        let mut again = version(1, 1).descriptor().clone();
        again.signature = [9; 256];
        assert_eq!(book.insert(super::super::testing::shared(again), PEER, NOW), Err(Refusal::NotNewer));
        assert_eq!(book.evidence().count(), 0);
    }

    #[test]
    fn every_field_counts() {
        type Spoil = fn(&mut Descriptor);
        let spoil: [Spoil; 9] = [
            |d| d.valid_from.0 += 1,
            |d| d.valid_until.0 += 1,
            |d| d.protocol = crate::wire::ProtocolVersion::new(2).unwrap(),
            |d| d.roles.constrained = true,
            |d| d.link_key[31] ^= 1,
            |d| d.onion_key = crate::wire::OnionKey::XWing([3; 1216]),
            |d| d.addresses[0].set_port(1),
            |d| d.addresses.push("192.0.2.1:1".parse().unwrap()).unwrap(),
            |d| {
                d.roles.exit = true;
                d.exit_ports.push(crate::wire::PortRange::ALL).unwrap();
            },
        ];
        for spoil in spoil {
            assert!(contradict(&with(1, |_| ()), &with(1, spoil)));
            assert!(!contradict(&with(1, spoil), &with(1, spoil)));
            assert!(!contradict(&with(1, |d| d.sequence = 2), &with(1, spoil)));
            assert!(!contradict(&with(2, |_| ()), &with(1, spoil)));
        }
    }

    #[test]
    fn nothing_moves_a_disputed_node_until_both_have_expired() {
        let (one, two) = (version(5, 1), version(5, 2));
        for (first, second) in [(&one, &two), (&two, &one)] {
            for met in [false, true] {
                let mut room = Room::new(1, 1);
                let mut book = room.book();
                book.insert(first.clone(), if met { Source::Met } else { PEER }, NOW).unwrap();
                assert_eq!(book.insert(second.clone(), PEER, NOW), Err(Refusal::Disputed));
                let kept = first.descriptor().clone();
                // Whatever comes, in whatever order, however often.
                for (sequence, variant) in [(5, 2), (5, 1), (6, 1), (5, 1), (4, 1), (9, 2), (5, 2), (5, 2)] {
                    for source in [Source::Met, PEER, Source::Announced] {
                        assert_eq!(book.insert(version(sequence, variant), source, NOW), Err(Refusal::Disputed));
                    }
                    let entry = book.get(&node(1)).unwrap();
                    assert!(entry.is_disputed() && *entry.descriptor() == kept);
                    assert_eq!(book.evidence().count(), 1);
                }
                let evidence = book.evidence().next().unwrap();
                assert_eq!((evidence.node(), evidence.noted()), (node(1), NOW));
                assert_eq!(
                    evidence.pair().each_ref().map(|card| card.descriptor()),
                    [first.descriptor(), second.descriptor()]
                );
                // Not at the end of the first, nor while the clock may be wrong, nor if the entry has gone.
                book.remove_expired(later(1061));
                assert!(book.get(&node(1)).is_some());
                book.remove(&node(1));
                let newer = with(1, |d| (d.sequence, d.valid_until) = (6, UnixTime(NOW.0 + 90_000)));
                assert_eq!(book.insert(newer.clone(), PEER, later(2060)), Err(Refusal::Disputed));
                book.set_clock_in_doubt(true);
                assert_eq!(book.insert(newer.clone(), PEER, later(2061)), Err(Refusal::Disputed));
                book.set_clock_in_doubt(false);
                assert_eq!(book.insert(newer, PEER, later(2061)), Ok(Inserted::Added));
                assert_eq!(book.evidence().count(), 0);
            }
        }
    }

    #[test]
    fn a_disputed_node_is_neither_tested_nor_passed_on() {
        let mut room = Room::new(1, 1);
        let mut book = room.book();
        book.insert(version(1, 1), Source::Met, NOW).unwrap();
        let mut rng = super::super::testing::rng(1);
        assert_eq!(book.sample(9, NOW, &mut rng, |_| false).count(), 1);
        assert!(book.insert(version(1, 2), PEER, NOW).is_err());
        assert_eq!(book.sample(9, NOW, &mut rng, |_| false).count(), 0);
        assert_eq!(book.epoch_sample(9, NOW).count(), 0);
        assert_eq!(book.next_test(later(100_000), &mut rng), None);
        assert_eq!(book.counts().disputed, 1);
    }

    #[test]
    fn the_oldest_evidence_gives_way_and_the_node_stays_unused() {
        let mut room = Room::new(8, 8);
        let mut book = room.book();
        for number in 0..5u16 {
            let now = later(number.into());
            book.insert(with(number, |_| ()), Source::Met, now).unwrap();
            assert_eq!(book.insert(with(number, |d| d.link_key = [0; 32]), PEER, now), Err(Refusal::Disputed));
        }
        let mut kept: Vec<_> = book.evidence().map(|evidence| (evidence.noted(), evidence.node())).collect();
        kept.sort_unstable();
        assert_eq!(kept, [2, 3, 4].map(|number| (later(number), node(number as u16))));
        assert_eq!(book.insert(with(0, |d| d.sequence = 9), PEER, NOW), Err(Refusal::Disputed));
        // Its entry still knows when both have expired.
        book.remove_expired(later(86_400 + 61));
        assert!(book.is_empty() && book.evidence().next().is_none());
    }

    #[test]
    fn a_pinned_node_is_believed_again_after_both_have_expired() {
        let mut room = Room::new(1, 1);
        let mut book = room.book();
        for remove in [false, true] {
            book.insert(version(1, 1), PEER, NOW).unwrap();
            book.set_pinned(&node(1), true);
            assert!(book.insert(version(1, 2), PEER, NOW).is_err());
            if remove {
                book.remove_expired(later(2061));
                assert!(!book.get(&node(1)).unwrap().is_disputed());
            }
            assert_eq!(book.insert(with(1, |d| d.sequence = 7), PEER, later(2061)), Ok(Inserted::Updated));
            book.remove(&node(1));
        }
    }
}
