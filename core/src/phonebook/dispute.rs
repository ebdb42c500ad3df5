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

/// Whether two descriptors of one node say the same. Signatures are left out: signing the same again is no contradiction.
pub(super) fn same_content(one: &Descriptor, other: &Descriptor) -> bool {
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
