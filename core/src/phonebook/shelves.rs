//! Where an entry lies, `PROTOCOL.md` section 18.1: shelves, and on them buckets that a secret key assigns.
//!
//! Whoever wants to fill a node's phonebook with nodes of his own needs network groups for it, and cannot tell which places
//! they fall on.

use core::borrow::Borrow;
use core::net::IpAddr;
use core::ops::Range;

use rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::entry::{Entry, Flag, Source};
use super::{Epoch, Evidence, Grouping, NetworkGroup, Phonebook, REVISIT, VerifiedDescriptor};
use crate::wire::{NodeId, UnixTime};

/// Places in a bucket.
pub const BUCKET: usize = 32;
/// Places of the shelf `tried` on a host: 128 buckets.
pub const TRIED_PLACES: usize = 128 * BUCKET;
/// Places of the shelf `new` on a host: 64 buckets.
pub const NEW_PLACES: usize = 64 * BUCKET;
/// Buckets of `tried` that one network group reaches.
pub const BUCKETS_PER_GROUP: u64 = 4;
/// Buckets of `new` that one source reaches.
pub const BUCKETS_PER_SOURCE: u64 = 8;
/// Nodes in `tried` at one IP address (IPv6: in one /64) at most: identities cost nothing, addresses do.
pub const TRIED_PER_IP: usize = 2;
/// One network group holds at most one in so many places of a bucket of `new`, and one in any case.
pub const GROUP_SHARE: usize = 8;
/// Nodes that may wait for another one's test at a time.
pub const SWAPS_MAX: usize = 8;
/// Places of a shelf that are used at most.
const PLACES_MAX: usize = u16::MAX as usize / 2;

/// The memory of a [`Phonebook`], by its owner.
///
/// A shelf with fewer than 64 places is one bucket; what is left beyond whole buckets belongs to the last. On a shelf more
/// than 32,767 places are not used. A constrained node gives an empty `tried`: then all lie in `new`, which is one bucket and keeps
/// the epoch sample (section 18.6).
#[derive(Debug)]
pub struct Shelves<'m, C = VerifiedDescriptor> {
    /// For nodes that this node has met itself.
    pub tried: &'m mut [Option<Entry<C>>],
    /// For nodes that it has heard of.
    pub new: &'m mut [Option<Entry<C>>],
    /// For pairs of descriptors that contradict each other.
    pub evidence: &'m mut [Option<Evidence<C>>],
}

impl<'m, C> Shelves<'m, C> {
    /// All places empty, and not more than can be counted.
    pub(super) fn cleared(self) -> Self {
        fn clear<T>(places: &mut [Option<T>]) -> &mut [Option<T>] {
            let used = places.len().min(PLACES_MAX);
            let places = places.get_mut(..used).unwrap_or_default();
            places.iter_mut().for_each(|place| *place = None);
            places
        }
        Self { tried: clear(self.tried), new: clear(self.new), evidence: clear(self.evidence) }
    }
}

/// The secret that assigns buckets. Kept with the phonebook: with another key every entry would lie elsewhere.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct BookKey([u8; 32]);

impl BookKey {
    /// The key of an earlier run.
    #[must_use]
    pub const fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// A fresh key.
    #[must_use]
    pub fn generate<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        let mut key = [0; 32];
        rng.fill_bytes(&mut key);
        Self(key)
    }

    pub(super) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// h of section 18.1.
    fn hash(&self, purpose: u8, parts: &[&[u8]]) -> u64 {
        let mut hash = Sha256::new().chain_update(b"bulbil/1 bucket").chain_update(self.0).chain_update([purpose]);
        parts.iter().for_each(|part| hash.update(part));
        let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = hash.finalize().into();
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    fn tried_bucket(&self, group: NetworkGroup, node: &NodeId) -> u64 {
        let spread = (self.hash(2, &[&node.0]) % BUCKETS_PER_GROUP) as u8;
        self.hash(1, &[&group.to_bytes(), &[spread]])
    }

    fn new_bucket(&self, group: NetworkGroup, source: Source) -> u64 {
        let source = source.to_bytes(group);
        let spread = (self.hash(4, &[&group.to_bytes(), &source]) % BUCKETS_PER_SOURCE) as u8;
        self.hash(3, &[&source, &[spread]])
    }

    /// Decides between nodes of which nothing else is known, the same way each time: of two the one with the greater lot gives way.
    pub(super) fn lot(&self, node: &NodeId) -> u64 {
        self.hash(5, &[&node.0])
    }
}

impl Source {
    /// Bytes that tell sources apart; a node that was met is heard of from its own group.
    const fn to_bytes(self, own_group: NetworkGroup) -> [u8; NetworkGroup::LEN] {
        match self {
            Self::Met => own_group.to_bytes(),
            Self::Peer(group) => group.to_bytes(),
            Self::Announced => [2, 0, 0, 0, 0],
            Self::Stored => [3, 0, 0, 0, 0],
        }
    }
}

/// A place on the shelves: first those of `tried`, then those of `new`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(pub(super) u16);

/// What a bucket of `tried` has for a newcomer.
pub(super) enum Vacancy {
    /// This place, from which whoever is there can go at once.
    Place(Slot),
    /// None, unless this node does not answer.
    IfSilent(Slot),
    /// None.
    None,
}

/// Whether two addresses are likely to be one owner's: the same IPv4 address, the same IPv6 /64.
fn same_site(one: IpAddr, other: IpAddr) -> bool {
    match (one.to_canonical(), other.to_canonical()) {
        (IpAddr::V4(one), IpAddr::V4(other)) => one == other,
        (IpAddr::V6(one), IpAddr::V6(other)) => one.to_bits() >> 64 == other.to_bits() >> 64,
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// Bucket `number` of a shelf with so many places.
fn bucket_range(places: usize, number: u64) -> Range<usize> {
    let buckets = (places / BUCKET).max(1);
    let bucket = (number % buckets as u64) as usize;
    let end = if bucket + 1 == buckets { places } else { (bucket + 1) * BUCKET };
    bucket * BUCKET..end
}

impl<C: Borrow<VerifiedDescriptor>> Phonebook<'_, C> {
    /// Whether this node keeps the epoch sample and nothing else.
    pub(super) const fn is_constrained(&self) -> bool {
        self.shelves.tried.is_empty()
    }

    pub(super) const fn places(&self) -> usize {
        self.shelves.tried.len() + self.shelves.new.len()
    }

    pub(super) fn entry(&self, Slot(slot): Slot) -> Option<&Entry<C>> {
        let slot = usize::from(slot);
        match slot.checked_sub(self.shelves.tried.len()) {
            None => self.shelves.tried.get(slot)?.as_ref(),
            Some(slot) => self.shelves.new.get(slot)?.as_ref(),
        }
    }

    pub(super) fn place_mut(&mut self, Slot(slot): Slot) -> Option<&mut Option<Entry<C>>> {
        let slot = usize::from(slot);
        match slot.checked_sub(self.shelves.tried.len()) {
            None => self.shelves.tried.get_mut(slot),
            Some(slot) => self.shelves.new.get_mut(slot),
        }
    }

    pub(super) fn entry_mut(&mut self, slot: Slot) -> Option<&mut Entry<C>> {
        self.place_mut(slot)?.as_mut()
    }

    /// Every entry with its slot.
    pub(super) fn slots(&self) -> impl Iterator<Item = (Slot, &Entry<C>)> + Clone {
        let places = self.shelves.tried.iter().chain(self.shelves.new.iter());
        places.zip(0..).filter_map(|(place, slot)| Some((Slot(slot), place.as_ref()?)))
    }

    pub(super) fn find(&self, node: &NodeId) -> Option<Slot> {
        self.slots().find(|(_, entry)| entry.is(node)).map(|(slot, _)| slot)
    }

    pub(super) const fn is_on_tried(&self, Slot(slot): Slot) -> bool {
        (slot as usize) < self.shelves.tried.len()
    }

    /// Whether the entry counts as expired: while the clock is in doubt, none does.
    pub(super) fn has_expired(&self, entry: &Entry<C>, now: UnixTime) -> bool {
        !self.clock_in_doubt && entry.is_expired_at(now)
    }

    /// Empties a place.
    pub(super) fn vacate(&mut self, slot: Slot) -> Option<Entry<C>> {
        self.place_mut(slot)?.take()
    }

    /// Fills a place, and says who was there.
    pub(super) fn put(&mut self, slot: Slot, mut entry: Entry<C>) -> Option<NodeId> {
        let met = entry.last_met().is_some();
        entry.set(Flag::Tried, self.is_on_tried(slot) || self.is_constrained() && met);
        entry.set(Flag::Swapping, false);
        self.place_mut(slot)?.replace(entry).map(|gone| gone.node())
    }

    /// The slots of the bucket of `tried` where `entry` belongs.
    fn tried_bucket(&self, entry: &Entry<C>) -> Range<u16> {
        let number = self.key.tried_bucket(entry.group(), &entry.node());
        let Range { start, end } = bucket_range(self.shelves.tried.len(), number);
        start as u16..end as u16
    }

    /// The slots of the bucket of `new` where `entry` belongs.
    fn new_bucket(&self, entry: &Entry<C>) -> Range<u16> {
        let places = self.shelves.new.len();
        let range = if self.is_constrained() {
            0..places
        } else {
            bucket_range(places, self.key.new_bucket(entry.group(), entry.source()))
        };
        let before = self.shelves.tried.len();
        (before + range.start) as u16..(before + range.end) as u16
    }

    /// Whether as many nodes as may be at one IP address lie in `tried` without `newcomer`. One that gives up the place `leaving` does not
    /// count.
    fn is_crowded(&self, newcomer: &Entry<C>, leaving: Option<Slot>) -> bool {
        let ip = newcomer.address().ip();
        let tried = self.slots().take_while(|(slot, _)| self.is_on_tried(*slot));
        let of_group = tried.filter(|(slot, entry)| entry.group() == newcomer.group() && Some(*slot) != leaving);
        let at_ip = of_group.filter(|(_, entry)| same_site(entry.address().ip(), ip));
        self.grouping == Grouping::Network && !newcomer.is_pinned() && at_ip.take(TRIED_PER_IP).count() == TRIED_PER_IP
    }

    /// The place in `new` that `newcomer` may take: a free one, or that of the entry that is most dispensable, if that is more so
    /// than itself. If its network group has its share of the bucket already, only one of that. The place `leaving` counts as free.
    pub(super) fn place_in_new(&self, newcomer: &Entry<C>, leaving: Option<Slot>, now: UnixTime) -> Option<Slot> {
        let slots = self.new_bucket(newcomer).map(Slot);
        let share = (slots.len() / GROUP_SHARE).max(1);
        let entry = |slot: Slot| if Some(slot) == leaving { None } else { self.entry(slot) };
        let free = slots.clone().find(|&slot| entry(slot).is_none());
        let mut others = slots.filter_map(|slot| Some((slot, entry(slot)?))).filter(|(_, entry)| !entry.is_pinned());
        let pinned = newcomer.is_pinned();
        if self.is_constrained() {
            let epoch = Epoch::at(now);
            let given_up = |entry: &Entry<C>| self.has_expired(entry, now) && !entry.is_tried();
            let readiness = |entry: &Entry<C>| (given_up(entry), entry.is_disputed(), epoch.rank(&entry.node()));
            let beats = |rival: &Entry<C>| pinned || readiness(rival) > readiness(newcomer);
            let in_group = others.clone().find(|(_, other)| !pinned && other.group() == newcomer.group());
            return match (in_group, free) {
                (None, Some(free)) => Some(free),
                (in_group, _) => {
                    let rival = in_group.or_else(|| others.max_by_key(|(_, entry)| readiness(entry)));
                    rival.filter(|(_, rival)| beats(rival)).map(|(slot, _)| slot)
                }
            };
        }
        let dispensability =
            |entry: &Entry<C>| entry.dispensability(self.has_expired(entry, now), self.key.lot(&entry.node()));
        let beaten = |(_, rival): &(Slot, &Entry<C>)| pinned || dispensability(rival) > dispensability(newcomer);
        let readiest = |rivals: &mut dyn Iterator<Item = (Slot, &'_ Entry<C>)>| {
            let rival = rivals.max_by_key(|(_, entry)| dispensability(entry));
            rival.filter(beaten).map(|(slot, _)| slot)
        };
        let mut of_group = others.clone().filter(|(_, other)| other.group() == newcomer.group());
        if !pinned && of_group.clone().count() >= share {
            return readiest(&mut of_group);
        }
        free.or_else(|| readiest(&mut others))
    }

    /// What there is in `tried` for a node that was met. The place `leaving` counts as free.
    ///
    /// In a full bucket that is the place of an expired one, otherwise of the one that was met longest ago, but only if it does not answer:
    /// expiry tells more of how long this node was cut off than of the others. One that was met within [`REVISIT`] is not asked: else
    /// whoever has newcomers at hand could keep this node busy with asking.
    pub(super) fn place_in_tried(&self, newcomer: &Entry<C>, leaving: Option<Slot>, now: UnixTime) -> Vacancy {
        let bucket = self.tried_bucket(newcomer);
        let entry = |slot: Slot| if Some(slot) == leaving { None } else { self.entry(slot) };
        if self.is_crowded(newcomer, leaving) {
            return Vacancy::None;
        }
        if let Some(free) = bucket.clone().map(Slot).find(|&slot| entry(slot).is_none()) {
            return Vacancy::Place(free);
        }
        let movable = bucket.clone().map(Slot).filter_map(|slot| Some((slot, entry(slot)?)));
        let mut movable = movable.filter(|(_, entry)| !entry.is_pinned());
        if let Some((slot, _)) = movable.clone().find(|(_, entry)| entry.is_disputed()) {
            return Vacancy::Place(slot);
        }
        if self.swaps().count() >= SWAPS_MAX || self.swaps().any(|(asked, _)| bucket.contains(&asked.0)) {
            return Vacancy::None;
        }
        let asked = movable.by_ref().min_by_key(|(_, entry)| (!self.has_expired(entry, now), entry.last_met()));
        asked
            .filter(|(_, entry)| self.has_expired(entry, now) || entry.is_unmet_for(REVISIT, now))
            .map_or(Vacancy::None, |(slot, _)| Vacancy::IfSilent(slot))
    }

    /// Who has to answer and who waits for that, at most [`SWAPS_MAX`]. A flag alone means nothing: its counterpart has left.
    pub(super) fn swaps(&self) -> impl Iterator<Item = (Slot, Slot)> {
        let waiting = self.slots().skip_while(|(slot, _)| self.is_on_tried(*slot));
        let waiting = waiting.filter(|(_, entry)| entry.has(Flag::Swapping) && entry.failures() == 0);
        waiting.filter_map(|(newcomer, entry)| {
            let asked = |entry: &Entry<C>| entry.has(Flag::Swapping) && !entry.is_pinned();
            let mut bucket = self.tried_bucket(entry).map(Slot);
            Some((bucket.find(|&slot| self.entry(slot).is_some_and(asked))?, newcomer))
        })
    }

    /// The node in `slot` has to answer, or its place goes to the one in `newcomer`. What was agreed about its bucket before is void: a flag
    /// whose counterpart had left would find one again.
    pub(super) fn begin_swap(&mut self, slot: Slot, newcomer: Slot) {
        while let Some(stale) = self.swapping_with(newcomer) {
            if let Some(entry) = self.entry_mut(stale) {
                entry.set(Flag::Swapping, false);
            }
        }
        for slot in [slot, newcomer] {
            if let Some(entry) = self.entry_mut(slot) {
                entry.set(Flag::Swapping, true);
            }
        }
    }

    /// One with the flag in the bucket of `tried` where the entry in `newcomer` belongs, or one that waits for a place there.
    fn swapping_with(&self, newcomer: Slot) -> Option<Slot> {
        let bucket = self.tried_bucket(self.entry(newcomer)?);
        let mut flagged = self.slots().filter(|(_, entry)| entry.has(Flag::Swapping));
        let found = flagged.find(|&(slot, entry)| match self.is_on_tried(slot) {
            true => bucket.contains(&slot.0),
            false => self.tried_bucket(entry) == bucket,
        });
        found.map(|(slot, _)| slot)
    }

    /// The node in `slot` has answered: who waits for its place goes on waiting.
    pub(super) fn end_swap(&mut self, slot: Slot) {
        let waiting = self.swaps().find(|(asked, _)| *asked == slot).map(|(_, newcomer)| newcomer);
        for slot in [Some(slot), waiting].into_iter().flatten() {
            if let Some(entry) = self.entry_mut(slot) {
                entry.set(Flag::Swapping, false);
            }
        }
    }

    /// The node in `slot` has not answered: it changes places with the one that waits for that. Says whether it was dropped,
    /// because its own bucket of `new` has no place either; `None` if nobody waits.
    pub(super) fn swap(&mut self, slot: Slot, now: UnixTime) -> Option<bool> {
        let (_, waiting) = self.swaps().find(|(asked, _)| *asked == slot)?;
        if self.is_crowded(self.entry(waiting)?, Some(slot)) {
            // Others at its address have found a place meanwhile.
            self.end_swap(slot);
            return None;
        }
        let newcomer = self.vacate(waiting)?;
        let silent = self.vacate(slot);
        self.put(slot, newcomer);
        let mut silent = silent?;
        silent.set(Flag::Swapping, false);
        let place = self.place_in_new(&silent, None, now);
        if let Some(place) = place {
            self.put(place, silent);
        }
        Some(place.is_none())
    }
}

#[cfg(test)]
mod tests;
