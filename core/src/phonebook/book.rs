//! The nodes that a node knows: what comes in, what it replaces, what leaves.

use core::borrow::Borrow;
use core::cmp::Ordering;
use core::time::Duration;

use super::dispute::contradict;
use super::entry::{Entry, FAILURE_PAUSE, Flag, Source};
use super::shelves::{BookKey, Shelves, Slot, Vacancy};
use super::{Evidence, Grouping, NetworkGroup, PathHop, VerifiedDescriptor};
use crate::wire::{Descriptor, NodeId, UnixTime};

/// What became of a descriptor that was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// The node was not known and there was room.
    Added,
    /// The node was known by an older descriptor.
    Updated,
    /// The node was not known and took the place of another.
    Evicted(NodeId),
    /// The node was known by this descriptor, or by a newer one with the same first address that has not expired, and its meeting was noted.
    Met,
}

/// Why a descriptor was not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// It is the node's own.
    Own,
    /// It has expired since it was verified.
    Expired,
    /// The same descriptor of the node, or a newer one, is there already.
    NotNewer,
    /// There is no room, and nobody who would give way to it.
    Full,
    /// It contradicts the known one, or others have contradicted each other before (section 18.4).
    Disputed,
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Own => "own descriptor",
            Self::Expired => "descriptor expired",
            Self::NotNewer => "descriptor is not newer than the known one",
            Self::Full => "phonebook is full",
            Self::Disputed => "descriptors of the node contradict each other",
        })
    }
}

impl core::error::Error for Refusal {}

/// How many nodes are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Met, and with a place among those.
    pub tried: usize,
    /// The others.
    pub new: usize,
    /// Of both, those in dispute.
    pub disputed: usize,
    /// Of both, those that the owner wants kept.
    pub pinned: usize,
}

/// The nodes that this node knows, at most as many as its [`Shelves`] have places.
///
/// A card is a [`VerifiedDescriptor`] or whatever holds one: hosts use a shared handle, constrained nodes the value itself (about 2 KiB).
pub struct Phonebook<'m, C = VerifiedDescriptor> {
    pub(super) shelves: Shelves<'m, C>,
    pub(super) key: BookKey,
    pub(super) own: Option<NodeId>,
    pub(super) grouping: Grouping,
    pub(super) clock_in_doubt: bool,
    pub(super) failure_pause: Duration,
}

impl<'m, C: Borrow<VerifiedDescriptor> + Clone> Phonebook<'m, C> {
    /// An empty phonebook in `shelves`. The node called `own` is never taken in, so it is never on a path.
    #[must_use]
    pub fn new(shelves: Shelves<'m, C>, own: Option<NodeId>, key: BookKey, grouping: Grouping) -> Self {
        Self { shelves: shelves.cleared(), key, own, grouping, clock_in_doubt: false, failure_pause: FAILURE_PAUSE }
    }

    /// How many nodes fit.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.places()
    }

    /// How many nodes are known, expired ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether no node is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// The nodes, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = &Entry<C>> {
        self.slots().map(|(_, entry)| entry)
    }

    /// The node called `node`.
    #[must_use]
    pub fn get(&self, node: &NodeId) -> Option<&Entry<C>> {
        self.entry(self.find(node)?)
    }

    /// How many nodes of which kind are known.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.iter().fold(Counts::default(), |counts, entry| Counts {
            tried: counts.tried + usize::from(entry.is_tried()),
            new: counts.new + usize::from(!entry.is_tried()),
            disputed: counts.disputed + usize::from(entry.is_disputed()),
            pinned: counts.pinned + usize::from(entry.is_pinned()),
        })
    }

    /// The network group of an address, as this phonebook takes it.
    #[must_use]
    pub fn group_of(&self, address: core::net::SocketAddr) -> NetworkGroup {
        self.grouping.group_of(address)
    }

    /// The descriptor of a hop, or `None` if the node has left the phonebook since the path was chosen. Where it has not
    /// moved, this takes no search.
    #[must_use]
    pub fn descriptor_of(&self, hop: &PathHop) -> Option<&Descriptor> {
        self.entry_of(hop).map(Entry::descriptor)
    }

    /// The entry of a hop, as [`Phonebook::descriptor_of`].
    #[must_use]
    pub fn entry_of(&self, hop: &PathHop) -> Option<&Entry<C>> {
        let in_place = self.entry(hop.slot).filter(|entry| entry.is(&hop.node));
        in_place.or_else(|| self.get(&hop.node))
    }

    /// Takes a descriptor in, or replaces the node's older one. A node that is met moves to `tried`; if its bucket there is full it
    /// waits in `new` until an expired one, or the one that was met longest ago, has been tested ([`Phonebook::next_test`]); if its IP address has
    /// [`TRIED_PER_IP`](super::TRIED_PER_IP) nodes there, until one of these has left.
    ///
    /// A newer descriptor with another first address that does not come from the node itself takes it back to `new`: it may name
    /// whatever address it likes, and has not been met there.
    ///
    /// # Errors
    /// [`Refusal`]; the phonebook is then unchanged, except that [`Refusal::Disputed`] notes the dispute. [`Refusal::Full`] if there is no
    /// place in the node's bucket; a known node then stays as it was.
    pub fn insert(&mut self, card: C, source: Source, now: UnixTime) -> Result<Inserted, Refusal> {
        let verified: &VerifiedDescriptor = card.borrow();
        let (node, address) = (verified.node(), verified.address());
        if self.own == Some(node) {
            return Err(Refusal::Own);
        }
        if verified.descriptor().is_expired_at(now) {
            return Err(Refusal::Expired);
        }
        self.lift_dispute(&node, now);
        let slot = self.find(&node);
        let known = slot.and_then(|slot| self.entry(slot));
        if known.is_some_and(Entry::is_disputed) || self.evidence().any(|evidence| evidence.node() == node) {
            return Err(Refusal::Disputed);
        }
        let mut leaving = None;
        if let Some((slot, known)) = slot.zip(known) {
            if contradict(known.card().borrow(), verified) {
                self.begin_dispute(slot, card, now);
                return Err(Refusal::Disputed);
            }
            let here = known.address() == address;
            match verified.descriptor().sequence.cmp(&known.descriptor().sequence) {
                // Else one that has expired would be met again and again, and be as it was before.
                Ordering::Less | Ordering::Equal if source == Source::Met && here && !self.has_expired(known, now) => {
                    self.meet(slot, now);
                    return Ok(Inserted::Met);
                }
                Ordering::Less | Ordering::Equal => return Err(Refusal::NotNewer),
                // The owner answers for a pinned node.
                Ordering::Greater if here || known.is_pinned() => {
                    let group = self.group_of(address);
                    if let Some(entry) = self.entry_mut(slot) {
                        entry.set_card(card, group);
                    }
                    if source == Source::Met {
                        self.meet(slot, now);
                    }
                    return Ok(Inserted::Updated);
                }
                Ordering::Greater => leaving = Some(slot),
            }
        }
        let mut entry = Entry::new(card, self.group_of(address), source);
        if source == Source::Met {
            entry.note_met(now);
        }
        let evicted = self.admit(entry, leaving, now)?;
        Ok(match (leaving, evicted) {
            (Some(_), _) => Inserted::Updated,
            (None, Some(evicted)) => Inserted::Evicted(evicted),
            (None, None) => Inserted::Added,
        })
    }

    /// Gives `entry` a place, and frees the place `leaving` then. Says who had the place.
    fn admit(&mut self, mut entry: Entry<C>, leaving: Option<Slot>, now: UnixTime) -> Result<Option<NodeId>, Refusal> {
        let met = entry.last_met().is_some() && !self.is_constrained();
        let vacancy = if met { self.place_in_tried(&entry, leaving, now) } else { Vacancy::None };
        // Until the test has ended it needs a place in `new`, and whoever waits gives way last.
        entry.set(Flag::Swapping, matches!(vacancy, Vacancy::IfSilent(_)));
        let place = match vacancy {
            Vacancy::Place(slot) => Some(slot),
            Vacancy::IfSilent(_) | Vacancy::None => self.place_in_new(&entry, leaving, now),
        };
        let place = place.ok_or(Refusal::Full)?;
        if let Some(leaving) = leaving {
            self.vacate(leaving);
        }
        let evicted = self.put(place, entry);
        if let Vacancy::IfSilent(asked) = vacancy {
            self.begin_swap(asked, place);
        }
        Ok(evicted)
    }

    /// The node in `slot` was linked to where it says that it is.
    fn meet(&mut self, slot: Slot, now: UnixTime) {
        let constrained = self.is_constrained();
        let Some(entry) = self.entry_mut(slot) else { return };
        entry.note_met(now);
        if constrained {
            entry.set(Flag::Tried, true);
        } else if self.is_on_tried(slot) {
            self.end_swap(slot);
        } else {
            let Some(entry) = self.entry(slot) else { return };
            match self.place_in_tried(entry, None, now) {
                Vacancy::Place(place) => {
                    if let Some(entry) = self.vacate(slot) {
                        self.put(place, entry);
                    }
                }
                Vacancy::IfSilent(asked) => self.begin_swap(asked, slot),
                Vacancy::None => {}
            }
        }
    }

    /// Keeps a known node whatever happens, or lets it go again. Says whether the node is known.
    pub fn set_pinned(&mut self, node: &NodeId, pinned: bool) -> bool {
        let entry = self.find(node).and_then(|slot| self.entry_mut(slot));
        entry.map(|entry| entry.set(Flag::Pinned, pinned)).is_some()
    }

    /// Forgets a node, pinned or not. A dispute about it is not forgotten.
    pub fn remove(&mut self, node: &NodeId) {
        if let Some(slot) = self.find(node) {
            self.vacate(slot);
        }
    }

    /// Forgets the nodes of `new` whose descriptors have expired, except pinned ones, and disputes all of whose descriptors have. Who was met is
    /// not forgotten for that, but tested ([`Phonebook::next_test`]): else a node that was cut off for as long as descriptors are valid would
    /// have to begin with whoever tells it something first. While the clock is in doubt nothing is forgotten.
    pub fn remove_expired(&mut self, now: UnixTime) {
        if self.clock_in_doubt {
            return;
        }
        for place in self.shelves.tried.iter_mut().chain(self.shelves.new.iter_mut()) {
            if let Some(entry) = place
                && entry.is_expired_at(now)
            {
                if entry.is_pinned() {
                    entry.end_dispute();
                } else if !entry.is_tried() || entry.is_disputed() {
                    *place = None;
                }
            }
        }
        for place in self.shelves.evidence.iter_mut() {
            if place.as_ref().is_some_and(|evidence| evidence.is_expired_at(now)) {
                *place = None;
            }
        }
    }

    /// Says whether the own clock may be wrong (section 18.5, [`ClockVerdict`](super::ClockVerdict)); at first it is believed. A node that starts does
    /// well to doubt it until others have agreed.
    pub const fn set_clock_in_doubt(&mut self, in_doubt: bool) {
        self.clock_in_doubt = in_doubt;
    }

    /// Sets the pause after a node's first failure, [`FAILURE_PAUSE`] at first.
    pub const fn set_failure_pause(&mut self, pause: Duration) {
        self.failure_pause = pause;
    }

    /// The pairs of descriptors that prove that a key is used twice.
    pub fn evidence(&self) -> impl Iterator<Item = &Evidence<C>> {
        self.shelves.evidence.iter().flatten()
    }
}

impl<C> core::fmt::Debug for Phonebook<'_, C> {
    /// Who is known is nobody's business.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Phonebook").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
