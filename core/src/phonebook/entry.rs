//! One node in the phonebook: its descriptor, and beside it what has to be found without looking into that.

use core::borrow::Borrow;
use core::net::SocketAddr;
use core::time::Duration;

use super::{NetworkGroup, VerifiedDescriptor};
use crate::wire::descriptor::VALIDITY_GRACE;
use crate::wire::{Descriptor, NodeId, ProtocolVersion, UnixTime};

/// Failures in a row after which a node that was met is dropped: several, so that a restart or a broken route does not cost
/// it its place.
pub const FAILURES_MAX: u8 = 5;
/// Failures in a row after which a node that was never met is dropped.
pub const FAILURES_MAX_UNMET: u8 = 2;
/// The pause after the first failure, unless the owner decides otherwise; it doubles with each further one. Failures within it count as
/// one: an outage seen by many circuits is one failure.
pub const FAILURE_PAUSE: Duration = Duration::from_secs(60);
/// Doublings of the pause at most; only pinned nodes get there.
const DOUBLINGS_MAX: u8 = 6;
/// A test that has not ended by then is forgotten.
const TEST_LIFE: Duration = Duration::from_secs(60);

/// Where a descriptor comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// From the node itself, which was linked to **at the first address of the descriptor**, and proved link key and identity
    /// there.
    Met,
    /// From an exchange with a node of this group.
    Peer(NetworkGroup),
    /// From an announcement: nobody knows through whose circuit it came.
    Announced,
    /// From a file.
    Stored,
}

/// How readily an entry of `new` gives way for what it has gone through, the readiest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It was met, and the test of another decides whether it gets that one's place.
    Waits,
    /// It was not met yet.
    Unmet,
    /// It was met, and there was no place for it: whoever answers everywhere but finds none must not stand in the way of those who
    /// have not been tested.
    Surplus,
}

/// What is noted about an entry, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Flag {
    /// The owner wants the node kept.
    Pinned = 1 << 0,
    /// Two descriptors of it contradict each other.
    Disputed = 1 << 1,
    /// A test has begun at `last_try`.
    Testing = 1 << 2,
    /// In `new`: waits for a place in its bucket of `tried`. In `tried`: has to answer, or give such a node its place.
    Swapping = 1 << 3,
    /// It relays.
    Relay = 1 << 4,
    /// It is an exit.
    Exit = 1 << 5,
    /// It speaks the protocol.
    Speaks = 1 << 6,
    /// It was met at the address that it has, and lies in `tried` if there is one.
    Tried = 1 << 7,
}

/// A node in the phonebook. Besides the descriptor or the handle of one 32 bytes, enough to pass over an entry without
/// touching the descriptor, which a handle may have far away.
#[derive(Clone)]
pub struct Entry<C = VerifiedDescriptor> {
    card: C,
    /// The first bytes of the node id.
    prefix: [u8; 4],
    /// Unix seconds, as all here; what does not fit is looked up in the descriptor.
    valid_from: u32,
    /// In a dispute the later end of the two.
    valid_until: u32,
    /// 0 if never.
    last_met: u32,
    /// When the last failure was counted or, later than that, a test began.
    last_try: u32,
    group: NetworkGroup,
    source: Source,
    failures: u8,
    flags: u8,
}

const fn seconds(time: UnixTime) -> u32 {
    if time.0 > u32::MAX as u64 { u32::MAX } else { time.0 as u32 }
}

/// Whether `span` has passed since `then`. One that lies in the future means that the clock was set back; waiting for it
/// would take forever.
fn passed(then: u32, now: UnixTime, span: Duration) -> bool {
    now.since(UnixTime(then.into())).is_none_or(|passed| passed >= span)
}

impl<C: Borrow<VerifiedDescriptor>> Entry<C> {
    pub(super) fn new(card: C, group: NetworkGroup, source: Source) -> Self {
        let mut entry = Self {
            prefix: [0; 4],
            card,
            valid_from: 0,
            valid_until: 0,
            last_met: 0,
            last_try: 0,
            group,
            source,
            failures: 0,
            flags: 0,
        };
        entry.summarise();
        entry
    }

    /// Notes what the descriptor says.
    fn summarise(&mut self) {
        let NodeId([a, b, c, d, ..]) = self.node();
        let Descriptor { valid_from, valid_until, protocol, roles, .. } = *self.descriptor();
        self.prefix = [a, b, c, d];
        (self.valid_from, self.valid_until) = (seconds(valid_from), seconds(valid_until));
        self.set(Flag::Relay, roles.relay);
        self.set(Flag::Exit, roles.exit);
        self.set(Flag::Speaks, protocol == ProtocolVersion::V1);
    }

    /// Replaces the descriptor. Failures, a test that is under way and a wait for a place are those of the first address, and over if the
    /// node has left it. Its others, to which nobody links, it could name anew for ever.
    pub(super) fn set_card(&mut self, card: C, group: NetworkGroup) {
        let moved = self.address() != card.borrow().address();
        (self.card, self.group) = (card, group);
        self.summarise();
        if moved {
            self.forgive();
            self.set(Flag::Swapping, false);
        }
    }

    fn verified(&self) -> &VerifiedDescriptor {
        self.card.borrow()
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.verified().node()
    }

    /// Whether that is the node; of nearly all others that is seen without the descriptor.
    pub(super) fn is(&self, node: &NodeId) -> bool {
        node.0.starts_with(&self.prefix) && self.node() == *node
    }

    /// Its descriptor.
    #[must_use]
    pub fn descriptor(&self) -> &Descriptor {
        self.verified().descriptor()
    }

    /// The verified descriptor or the handle of it.
    #[must_use]
    pub const fn card(&self) -> &C {
        &self.card
    }

    /// Where it is reached: its first address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.verified().address()
    }

    /// Whether its validity has ended by `now`, the grace included; in a dispute, the validity of both descriptors.
    #[must_use]
    pub fn is_expired_at(&self, now: UnixTime) -> bool {
        match self.valid_until {
            u32::MAX if self.is_disputed() => false,
            u32::MAX => self.descriptor().is_expired_at(now),
            until => u64::from(until) < now.saturating_sub(VALIDITY_GRACE).0,
        }
    }

    /// Whether `now` lies in its validity, give or take the grace.
    #[must_use]
    pub fn is_valid_at(&self, now: UnixTime) -> bool {
        match self.valid_from {
            u32::MAX => self.descriptor().is_valid_at(now),
            from => u64::from(from) <= now.saturating_add(VALIDITY_GRACE).0 && !self.is_expired_at(now),
        }
    }

    /// Orders entries of `new` by how readily they give way, the readiest last: expired, in dispute, failing, without prospects, and then
    /// by `lot`. Nothing in a descriptor has a say in that: its node writes there what it likes.
    pub(super) const fn dispensability(&self, expired: bool, lot: u64) -> (bool, bool, u8, Standing, u64) {
        let standing = match self.last_met {
            0 => Standing::Unmet,
            _ if self.has(Flag::Swapping) => Standing::Waits,
            _ => Standing::Surplus,
        };
        (expired, self.is_disputed(), self.failures, standing, lot)
    }
}

impl<C> Entry<C> {
    pub(super) const fn has(&self, flag: Flag) -> bool {
        self.flags & flag as u8 != 0
    }

    pub(super) const fn set(&mut self, flag: Flag, value: bool) {
        if value {
            self.flags |= flag as u8;
        } else {
            self.flags &= !(flag as u8);
        }
    }

    /// Whether it speaks the protocol and nothing contradicts it.
    pub(super) const fn is_usable(&self) -> bool {
        self.has(Flag::Speaks) && !self.has(Flag::Disputed)
    }

    /// How often in a row the node did not answer, below [`FAILURES_MAX`] unless it is pinned.
    #[must_use]
    pub const fn failures(&self) -> u8 {
        self.failures
    }

    /// When this node linked to it last.
    #[must_use]
    pub const fn last_met(&self) -> Option<UnixTime> {
        if self.last_met == 0 { None } else { Some(UnixTime(self.last_met as u64)) }
    }

    /// When the last failure was counted or, later than that, a test began.
    #[must_use]
    pub const fn last_try(&self) -> Option<UnixTime> {
        if self.last_try == 0 { None } else { Some(UnixTime(self.last_try as u64)) }
    }

    /// Whether this node has met it at the address that it has, and it has a place among those.
    #[must_use]
    pub const fn is_tried(&self) -> bool {
        self.has(Flag::Tried)
    }

    /// Whether the owner wants the node kept whatever happens.
    #[must_use]
    pub const fn is_pinned(&self) -> bool {
        self.has(Flag::Pinned)
    }

    /// Whether its key is used twice: two descriptors with one sequence number.
    #[must_use]
    pub const fn is_disputed(&self) -> bool {
        self.has(Flag::Disputed)
    }

    /// From whom it was heard first at the address that it has.
    #[must_use]
    pub const fn source(&self) -> Source {
        self.source
    }

    /// The network group of its address.
    #[must_use]
    pub const fn group(&self) -> NetworkGroup {
        self.group
    }

    pub(super) const fn note_met(&mut self, now: UnixTime) {
        self.last_met = if now.0 == 0 { 1 } else { seconds(now) };
        self.forgive();
    }

    pub(super) const fn forgive(&mut self) {
        (self.failures, self.last_try) = (0, 0);
        self.set(Flag::Testing, false);
    }

    /// Two descriptors contradict each other; the other one is valid until then.
    pub(super) const fn note_dispute(&mut self, until: UnixTime) {
        if self.valid_until < seconds(until) {
            self.valid_until = seconds(until);
        }
        self.set(Flag::Disputed, true);
        self.set(Flag::Testing, false);
        self.set(Flag::Swapping, false);
    }

    /// Both descriptors have expired.
    pub(super) const fn end_dispute(&mut self) {
        self.set(Flag::Disputed, false);
    }

    pub(super) const fn begin_test(&mut self, now: UnixTime) {
        self.last_try = seconds(now);
        self.set(Flag::Testing, true);
    }

    /// Whether a test has begun that may still succeed.
    pub(super) fn is_testing(&self, now: UnixTime) -> bool {
        self.has(Flag::Testing) && !passed(self.last_try, now, TEST_LIFE)
    }

    /// Whether the last try failed and the pause after it is over.
    pub(super) fn is_retry_due(&self, now: UnixTime, first_pause: Duration) -> bool {
        self.failures > 0 && self.is_pause_over(now, first_pause)
    }

    /// Whether the last meeting, if there was one, is as long ago as that.
    pub(super) fn is_unmet_for(&self, span: Duration, now: UnixTime) -> bool {
        self.last_met == 0 || passed(self.last_met, now, span)
    }

    fn is_pause_over(&self, now: UnixTime, first_pause: Duration) -> bool {
        let doublings = self.failures.saturating_sub(1).min(DOUBLINGS_MAX);
        self.failures == 0 || passed(self.last_try, now, first_pause * (1 << doublings))
    }

    /// Counts a failure, but not beyond `most`, unless it is one with the last; of a test that was under way (`tested`), in any case. Says
    /// whether it was counted.
    pub(super) fn note_failure(&mut self, tested: bool, most: u8, now: UnixTime, first_pause: Duration) -> bool {
        let counts = tested || self.is_pause_over(now, first_pause);
        if counts {
            self.failures = self.failures.saturating_add(1).min(most.max(self.failures));
            self.last_try = seconds(now);
        }
        if tested {
            self.set(Flag::Testing, false);
        }
        counts
    }

    /// Whether it has failed so often that it has to leave.
    pub(super) const fn has_failed_enough(&self) -> bool {
        let most = if self.last_met == 0 { FAILURES_MAX_UNMET } else { FAILURES_MAX };
        self.failures >= most && !self.is_pinned() && !self.is_disputed()
    }

    /// What storage keeps of it.
    pub(super) const fn history(&self) -> History {
        History {
            failures: self.failures,
            last_met: self.last_met,
            last_try: self.last_try,
            valid_until: if self.is_disputed() { self.valid_until } else { 0 },
            pinned: self.is_pinned(),
            tried: self.is_tried(),
            disputed: self.is_disputed(),
            source: self.source,
        }
    }

    /// Takes up what storage kept.
    pub(super) const fn recall(&mut self, history: History) {
        (self.failures, self.last_met, self.last_try) = (history.failures, history.last_met, history.last_try);
        self.source = history.source;
        self.set(Flag::Pinned, history.pinned);
        if history.disputed {
            self.note_dispute(UnixTime(history.valid_until as u64));
        }
    }
}

impl<C: core::fmt::Debug> core::fmt::Debug for Entry<C> {
    /// Without the network group, which is half an address.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Entry")
            .field("card", &self.card)
            .field("failures", &self.failures)
            .field("tried", &self.is_tried())
            .field("pinned", &self.is_pinned())
            .field("disputed", &self.is_disputed())
            .finish_non_exhaustive()
    }
}

/// What a node went through here: all of an entry that is not in its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct History {
    pub(super) failures: u8,
    pub(super) last_met: u32,
    pub(super) last_try: u32,
    pub(super) valid_until: u32,
    pub(super) pinned: bool,
    pub(super) tried: bool,
    pub(super) disputed: bool,
    pub(super) source: Source,
}

#[cfg(test)]
mod tests {
    use std::format;

    use super::super::testing::{NOW, descriptor, later, with};
    use super::*;

    fn entry(change: impl FnOnce(&mut Descriptor)) -> Entry<super::super::testing::Card> {
        Entry::new(with(1, change), NetworkGroup::V4([77, 88]), Source::Announced)
    }

    #[test]
    fn says_of_validity_what_the_descriptor_says() {
        for (from, until) in [
            (0, 1),
            (NOW.0, NOW.0 + 1),
            (NOW.0 - 5000, NOW.0 - 1000),
            (NOW.0 + 5000, u64::from(u32::MAX) - 1),
            (0, u64::from(u32::MAX)),
            (u64::from(u32::MAX) - 1, u64::from(u32::MAX) + 1),
            (u64::from(u32::MAX) + 100, u64::from(u32::MAX) + 200),
            (0, u64::MAX),
        ] {
            let entry = entry(|d| (d.valid_from, d.valid_until) = (UnixTime(from), UnixTime(until)));
            for base in [from, until, NOW.0, u64::from(u32::MAX), 0] {
                for now in [
                    base.saturating_sub(61),
                    base.saturating_sub(60),
                    base,
                    base.saturating_add(60),
                    base.saturating_add(61),
                ] {
                    let now = UnixTime(now);
                    assert_eq!(entry.is_valid_at(now), entry.descriptor().is_valid_at(now), "{from} {until} {now:?}");
                    assert_eq!(
                        entry.is_expired_at(now),
                        entry.descriptor().is_expired_at(now),
                        "{from} {until} {now:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_dispute_lasts_as_long_as_the_longer_descriptor() {
        let mut entry = entry(|_| ());
        entry.note_dispute(NOW);
        assert!(!entry.is_expired_at(later(86_460)) && entry.is_expired_at(later(86_461)));
        entry.note_dispute(later(90_000));
        assert!(!entry.is_expired_at(later(90_060)) && entry.is_expired_at(later(90_061)));
        entry.note_dispute(UnixTime(u64::MAX));
        assert!(!entry.is_expired_at(UnixTime(u64::MAX)), "that is later than can be noted");
    }

    #[test]
    fn meetings_at_any_time_are_noted() {
        let mut entry = entry(|_| ());
        assert_eq!(entry.last_met(), None);
        for (now, noted) in [(0, 1), (1, 1), (NOW.0, NOW.0), (u64::MAX, u32::MAX.into())] {
            entry.note_met(UnixTime(now));
            assert_eq!(entry.last_met(), Some(UnixTime(noted)));
        }
    }

    #[test]
    fn debug_shows_no_address() {
        let text = format!("{:?}", entry(|_| ()));
        assert!(!text.contains("V4") && text.contains("tried: false"), "{text}");
    }

    #[test]
    fn the_front_of_an_id_is_not_the_id() {
        let entry = entry(|_| ());
        let mut other = descriptor(1).node_id();
        assert!(entry.is(&other));
        other.0[31] ^= 1;
        assert!(!entry.is(&other));
    }
}
