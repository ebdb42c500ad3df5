//! The directory of signed descriptors that every node keeps for itself, and the choice of paths from it.
//!
//! A [`Phonebook`] has a fixed capacity, given by its owner as a slice of entries. Only a [`VerifiedDescriptor`] gets in. Time
//! is an argument and comes from the node's wall clock; when that is set back or forward, descriptors count as not yet
//! valid or as expired until it is right again, and nothing else happens.
//!
//! When it is full, a new node takes the place of an expired one, else of the one with the most failures, else of the one
//! whose descriptor is oldest. Pinned nodes never give way.

mod cache;
pub mod exchange;
mod group;
mod guards;
mod path;
#[cfg(test)]
mod testing;
mod verified;

use core::time::Duration;

pub use cache::{CachedPath, IsolationKey, PATH_LIFETIME, PathCache};
pub use group::NetworkGroup;
pub use guards::{GUARDS_MAX, Guards};
pub use path::{HopCount, LastHop, PATH_MAX, Path, PathError, PathHop, PathRequest, Strictness};
pub use verified::{DescriptorError, VerifiedDescriptor};

use crate::wire::{Descriptor, NodeId, UnixTime};

/// Failures after which a node is dropped: several, so that a restart or a broken route does not cost it its place.
pub const FAILURES_MAX: u8 = 5;
/// Failures closer together than this count once: one outage seen by many circuits is one failure.
pub const FAILURE_INTERVAL: Duration = Duration::from_secs(60);

/// A node in the phonebook.
#[derive(Debug, Clone)]
pub struct Entry {
    card: VerifiedDescriptor,
    failures: u8,
    last_failure: Option<UnixTime>,
    pinned: bool,
}

impl Entry {
    /// The node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.card.node()
    }

    /// Its descriptor.
    #[must_use]
    pub const fn descriptor(&self) -> &Descriptor {
        self.card.descriptor()
    }

    /// How often in a row the node did not answer, below [`FAILURES_MAX`] unless it is pinned.
    #[must_use]
    pub const fn failures(&self) -> u8 {
        self.failures
    }

    /// When the last of these failures was counted.
    #[must_use]
    pub const fn last_failure(&self) -> Option<UnixTime> {
        self.last_failure
    }

    /// Whether the owner wants the node kept whatever happens.
    #[must_use]
    pub const fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// Orders entries by how readily they give way, the readiest last.
    fn dispensability(&self, now: UnixTime) -> (bool, u8, core::cmp::Reverse<UnixTime>) {
        (self.descriptor().is_expired_at(now), self.failures, core::cmp::Reverse(self.descriptor().valid_from))
    }
}

/// What became of a descriptor that was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// The node was not known and there was room.
    Added,
    /// The node was known by an older descriptor.
    Updated,
    /// The node was not known and took the place of another.
    Evicted(NodeId),
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
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Own => "own descriptor",
            Self::Expired => "descriptor expired",
            Self::NotNewer => "descriptor is not newer than the known one",
            Self::Full => "phonebook is full",
        })
    }
}

impl core::error::Error for Refusal {}

/// The nodes that this node knows, at most as many as the slice given to [`Phonebook::new`] has places (about 2 KiB each).
#[derive(Debug)]
pub struct Phonebook<'m> {
    entries: &'m mut [Option<Entry>],
    own: Option<NodeId>,
}

impl<'m> Phonebook<'m> {
    /// An empty phonebook in `entries`. The node called `own` is never taken in, so it is never on a path.
    #[must_use]
    pub fn new(entries: &'m mut [Option<Entry>], own: Option<NodeId>) -> Self {
        entries.fill(None);
        Self { entries, own }
    }

    /// How many nodes fit.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.entries.len()
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
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().flatten()
    }

    /// The node called `node`.
    #[must_use]
    pub fn get(&self, node: &NodeId) -> Option<&Entry> {
        self.iter().find(|entry| entry.node() == *node)
    }

    /// The descriptor of a hop, or `None` if the node has left the phonebook since the path was chosen. Where it has not
    /// moved, this takes no search.
    #[must_use]
    pub fn descriptor_of(&self, hop: &PathHop) -> Option<&Descriptor> {
        let in_place = self.slot(hop.slot).filter(|entry| entry.node() == hop.node);
        in_place.or_else(|| self.get(&hop.node)).map(Entry::descriptor)
    }

    fn slot(&self, slot: usize) -> Option<&Entry> {
        self.entries.get(slot)?.as_ref()
    }

    fn get_mut(&mut self, node: &NodeId) -> Option<&mut Entry> {
        self.entries.iter_mut().flatten().find(|entry| entry.node() == *node)
    }

    /// Takes a descriptor in, or replaces the node's older one.
    ///
    /// # Errors
    /// [`Refusal`]; the phonebook is then unchanged. [`Refusal::Full`] if everybody is pinned, or if everybody else is in
    /// good standing and has a descriptor at least as young.
    pub fn insert(&mut self, card: VerifiedDescriptor, now: UnixTime) -> Result<Inserted, Refusal> {
        let descriptor = card.descriptor();
        if self.own == Some(card.node()) {
            return Err(Refusal::Own);
        }
        if descriptor.is_expired_at(now) {
            return Err(Refusal::Expired);
        }
        if let Some(known) = self.get_mut(&card.node()) {
            if descriptor.sequence <= known.descriptor().sequence {
                return Err(Refusal::NotNewer);
            }
            if descriptor.addresses != known.descriptor().addresses {
                // The failures were those of addresses that the node has left.
                known.failures = 0;
                known.last_failure = None;
            }
            known.card = card;
            return Ok(Inserted::Updated);
        }
        let newcomer = Entry { card, failures: 0, last_failure: None, pinned: false };
        if let Some(free) = self.entries.iter_mut().find(|entry| entry.is_none()) {
            *free = Some(newcomer);
            return Ok(Inserted::Added);
        }
        let victim = self
            .entries
            .iter_mut()
            .flatten()
            .filter(|entry| !entry.pinned)
            .max_by_key(|entry| entry.dispensability(now))
            .ok_or(Refusal::Full)?;
        if victim.dispensability(now) <= newcomer.dispensability(now) {
            return Err(Refusal::Full);
        }
        let evicted = victim.node();
        *victim = newcomer;
        Ok(Inserted::Evicted(evicted))
    }

    /// Keeps a known node whatever happens, or lets it go again. Says whether the node is known.
    pub fn set_pinned(&mut self, node: &NodeId, pinned: bool) -> bool {
        self.get_mut(node).map(|entry| entry.pinned = pinned).is_some()
    }

    /// Forgets a node, pinned or not.
    pub fn remove(&mut self, node: &NodeId) {
        self.retain(|entry| entry.node() != *node);
    }

    /// Forgets the nodes whose descriptors have expired, except pinned ones.
    pub fn remove_expired(&mut self, now: UnixTime) {
        self.retain(|entry| entry.pinned || !entry.descriptor().is_expired_at(now));
    }

    fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        for entry in self.entries.iter_mut() {
            if entry.as_ref().is_some_and(|entry| !keep(entry)) {
                *entry = None;
            }
        }
    }

    /// Notes that a node did not answer. After [`FAILURES_MAX`] failures, each at least [`FAILURE_INTERVAL`] after the one
    /// before, the node is dropped unless it is pinned. Says whether it was dropped.
    pub fn record_failure(&mut self, node: &NodeId, now: UnixTime) -> bool {
        let Some(entry) = self.get_mut(node) else { return false };
        // A last failure in the future means that the clock was set back; waiting for it would take forever.
        let since_last = entry.last_failure.and_then(|last| now.since(last));
        if since_last.is_some_and(|passed| passed < FAILURE_INTERVAL) {
            return false;
        }
        entry.failures = entry.failures.saturating_add(1);
        entry.last_failure = Some(now);
        let dropped = entry.failures >= FAILURES_MAX && !entry.pinned;
        if dropped {
            self.remove(node);
        }
        dropped
    }

    /// Notes that a node answered: its failures are forgiven.
    pub fn record_success(&mut self, node: &NodeId) {
        if let Some(entry) = self.get_mut(node) {
            entry.failures = 0;
            entry.last_failure = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::{NOW, card, descriptor, storage};
    use super::*;

    fn with(number: u16, change: impl FnOnce(&mut Descriptor)) -> VerifiedDescriptor {
        let mut descriptor = descriptor(number);
        change(&mut descriptor);
        VerifiedDescriptor::unchecked(descriptor)
    }

    fn node(number: u16) -> NodeId {
        card(number).node()
    }

    fn later(seconds: u64) -> UnixTime {
        UnixTime(NOW.0 + seconds)
    }

    #[test]
    fn only_a_newer_sequence_replaces() {
        let mut entries = storage(2);
        let mut book = Phonebook::new(&mut entries, None);
        assert!(book.is_empty());
        assert_eq!(book.insert(with(1, |d| d.sequence = 5), NOW), Ok(Inserted::Added));
        assert_eq!(book.insert(with(1, |d| d.sequence = 5), NOW), Err(Refusal::NotNewer));
        assert_eq!(book.insert(with(1, |d| d.sequence = 4), NOW), Err(Refusal::NotNewer));
        assert_eq!(book.insert(with(1, |d| d.sequence = 6), NOW), Ok(Inserted::Updated));
        assert_eq!(book.get(&node(1)).unwrap().descriptor().sequence, 6);
        assert_eq!((book.len(), book.capacity()), (1, 2));
    }

    #[test]
    fn own_and_expired_descriptors_are_refused() {
        let mut entries = storage(2);
        let mut book = Phonebook::new(&mut entries, Some(node(1)));
        assert_eq!(book.insert(card(1), NOW), Err(Refusal::Own));
        assert_eq!(book.insert(with(2, |d| d.valid_until = UnixTime(NOW.0 - 61)), NOW), Err(Refusal::Expired));
        assert!(book.is_empty());
    }

    #[test]
    fn expired_then_failing_then_oldest_give_way() {
        let mut entries = storage(3);
        let mut book = Phonebook::new(&mut entries, None);
        // 1 is oldest, 2 has failed, 3 expires soon.
        book.insert(with(1, |d| d.valid_from = UnixTime(10)), NOW).unwrap();
        book.insert(with(2, |d| d.valid_from = UnixTime(30)), NOW).unwrap();
        book.insert(with(3, |d| (d.valid_from, d.valid_until) = (UnixTime(20), NOW)), NOW).unwrap();
        book.record_failure(&node(2), NOW);
        let now = later(61);
        assert_eq!(book.insert(with(4, |d| d.valid_from = UnixTime(40)), now), Ok(Inserted::Evicted(node(3))));
        assert_eq!(book.insert(with(5, |d| d.valid_from = UnixTime(50)), now), Ok(Inserted::Evicted(node(2))));
        assert_eq!(book.insert(with(6, |d| d.valid_from = UnixTime(60)), now), Ok(Inserted::Evicted(node(1))));
        assert_eq!(book.insert(with(7, |d| d.valid_from = UnixTime(40)), now), Err(Refusal::Full), "not younger");
        assert_eq!(book.insert(with(7, |d| d.valid_from = UnixTime(39)), now), Err(Refusal::Full));
        assert_eq!(book.len(), 3);
    }

    #[test]
    fn pinned_nodes_never_give_way() {
        let mut entries = storage(2);
        let mut book = Phonebook::new(&mut entries, None);
        book.insert(with(1, |d| d.valid_until = NOW), NOW).unwrap();
        book.insert(with(2, |d| d.valid_from = UnixTime(1)), NOW).unwrap();
        assert!(book.set_pinned(&node(1), true));
        assert!(!book.set_pinned(&node(9), true));
        let mut now = later(1000);
        assert_eq!(book.insert(card(3), now), Ok(Inserted::Evicted(node(2))));
        for _ in 0..FAILURES_MAX + 1 {
            now = now.saturating_add(FAILURE_INTERVAL);
            assert!(!book.record_failure(&node(1), now));
        }
        book.remove_expired(now);
        assert!(book.get(&node(1)).unwrap().is_pinned());
        book.set_pinned(&node(3), true);
        assert_eq!(book.insert(with(4, |d| d.valid_from = NOW), now), Err(Refusal::Full));
        book.set_pinned(&node(1), false);
        assert_eq!(book.insert(with(4, |d| d.valid_from = NOW), now), Ok(Inserted::Evicted(node(1))));
    }

    #[test]
    fn a_node_is_dropped_after_several_separate_failures() {
        let mut entries = storage(2);
        let mut book = Phonebook::new(&mut entries, None);
        book.insert(card(1), NOW).unwrap();
        let mut now = NOW;
        for count in 1..FAILURES_MAX {
            assert!(!book.record_failure(&node(1), now));
            assert!(!book.record_failure(&node(1), now.saturating_add(Duration::from_secs(59))), "same outage");
            assert_eq!(book.get(&node(1)).unwrap().failures(), count);
            assert_eq!(book.get(&node(1)).unwrap().last_failure(), Some(now));
            now = now.saturating_add(FAILURE_INTERVAL);
        }
        let mut forgiven = storage(2);
        forgiven.clone_from_slice(book.entries);
        assert!(book.record_failure(&node(1), now));
        assert!(book.is_empty());
        assert!(!book.record_failure(&node(1), now), "unknown by now");

        let mut book = Phonebook { entries: &mut forgiven, own: None };
        book.record_success(&node(1));
        assert!(!book.record_failure(&node(1), now));
        assert_eq!(book.get(&node(1)).unwrap().failures(), 1);
        assert!(!book.record_failure(&node(1), UnixTime(5)), "a clock set back does not stop the count");
        assert_eq!(book.get(&node(1)).unwrap().failures(), 2);
        book.insert(with(1, |d| d.sequence += 1), NOW).unwrap();
        assert_eq!(book.get(&node(1)).unwrap().failures(), 2, "still at the address that failed");
        let moved = with(1, |d| {
            d.sequence += 2;
            d.addresses[0].set_port(77);
        });
        book.insert(moved, NOW).unwrap();
        assert_eq!(book.get(&node(1)).unwrap().failures(), 0);
    }

    #[test]
    fn expired_nodes_are_removed_on_request() {
        let mut entries = storage(3);
        let mut book = Phonebook::new(&mut entries, None);
        book.insert(with(1, |d| d.valid_until = NOW), NOW).unwrap();
        book.insert(card(2), NOW).unwrap();
        book.remove_expired(later(60));
        assert_eq!(book.len(), 2, "within the grace");
        book.remove_expired(later(61));
        assert_eq!(book.iter().map(Entry::node).collect::<std::vec::Vec<_>>(), [node(2)]);
        book.remove(&node(2));
        assert!(book.is_empty());
    }

    #[test]
    fn no_capacity_means_full() {
        let mut book = Phonebook::new(&mut [], None);
        assert_eq!(book.insert(card(1), NOW), Err(Refusal::Full));
    }

    #[test]
    fn sizes_are_pinned() {
        assert!(size_of::<Option<Entry>>() <= 2048, "{}", size_of::<Option<Entry>>());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert { number: u16, sequence: u64, from: u64 },
        Fail(u16),
        Pin(u16, bool),
        Wait(u64),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..8u16, 0..4u64, 0..5u64).prop_map(|(number, sequence, from)| Step::Insert { number, sequence, from }),
            2 => (0..8u16).prop_map(Step::Fail),
            1 => (0..8u16, any::<bool>()).prop_map(|(number, pinned)| Step::Pin(number, pinned)),
            1 => (0..200u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Whatever happens: no node twice, never our own, sequences never fall, pinned nodes stay.
        #[test]
        fn invariants_hold(steps in proptest::collection::vec(any_step(), 0..60)) {
            let mut entries = storage(4);
            let mut book = Phonebook::new(&mut entries, Some(node(0)));
            let mut now = NOW;
            for step in steps {
                let before: std::vec::Vec<_> =
                    book.iter().map(|e| (e.node(), e.descriptor().sequence, e.is_pinned())).collect();
                let mut unpinned = None;
                match step {
                    Step::Insert { number, sequence, from } => {
                        let card = with(number, |d| (d.sequence, d.valid_from) = (sequence, UnixTime(from)));
                        let result = book.insert(card, now);
                        let known = before.iter().find(|(id, ..)| *id == node(number));
                        match result {
                            Ok(Inserted::Added) => prop_assert!(known.is_none() && before.len() < 4),
                            Ok(Inserted::Updated) => prop_assert!(known.unwrap().1 < sequence),
                            Ok(Inserted::Evicted(id)) => prop_assert!(before.len() == 4 && book.get(&id).is_none()),
                            Err(Refusal::Own) => prop_assert_eq!(number, 0),
                            Err(Refusal::NotNewer) => prop_assert!(known.unwrap().1 >= sequence),
                            Err(Refusal::Full) => prop_assert!(before.len() == 4),
                            Err(Refusal::Expired) => prop_assert!(false),
                        }
                    }
                    Step::Fail(number) => {
                        let known = book.get(&node(number)).is_some();
                        prop_assert!(!book.record_failure(&node(number), now) || known);
                    }
                    Step::Pin(number, pinned) => {
                        book.set_pinned(&node(number), pinned);
                        unpinned = Some(node(number));
                    }
                    Step::Wait(seconds) => now = UnixTime(now.0 + seconds),
                }
                for (id, sequence, pinned) in before {
                    if let Some(entry) = book.get(&id) {
                        prop_assert!(entry.descriptor().sequence >= sequence);
                    } else {
                        prop_assert!(!pinned || unpinned == Some(id));
                    }
                }
                prop_assert!(book.get(&node(0)).is_none());
                for entry in book.iter() {
                    prop_assert_eq!(book.iter().filter(|other| other.node() == entry.node()).count(), 1);
                }
            }
        }
    }
}
