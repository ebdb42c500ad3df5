//! What was refused of answers, counted by kind.

use core::time::Duration;

use crate::phonebook::{CLOCK_TOLERANCE, DescriptorError};
use crate::wire::descriptor::VALIDITY_GRACE;
use crate::wire::{Descriptor, UnixTime};

/// Why a descriptor, or the rest of an answer, is not taken. `PROTOCOL.md` section 18.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Refused {
    /// The answer has another version.
    Version,
    /// It announces more descriptors than were wanted.
    TooMany,
    /// A descriptor does not parse, or has an impossible length.
    Malformed,
    /// A node id is not greater than the one before.
    Unordered,
    /// Something follows the last descriptor.
    Trailing,
    /// The answer ends before its last descriptor does.
    CutOff,
    /// A descriptor is not signed by its node.
    Signature,
    /// A descriptor's validity does not hold now. Nobody's fault unless [`is_validity_fault`].
    Validity,
    /// It is the asker's own. Passed over.
    Own,
    /// The same descriptor of its node, or a newer one, is known. Passed over.
    NotNewer,
    /// Its node has signed contradictory descriptors. Passed over: that is the node's fault, not the answerer's.
    Disputed,
    /// The phonebook has no room for it. Passed over.
    Full,
}

impl Refused {
    /// Every kind, in the order in which they are counted.
    pub const ALL: [Self; 12] = [
        Self::Version,
        Self::TooMany,
        Self::Malformed,
        Self::Unordered,
        Self::Trailing,
        Self::CutOff,
        Self::Signature,
        Self::Validity,
        Self::Own,
        Self::NotNewer,
        Self::Disputed,
        Self::Full,
    ];

    /// Whether an honest answerer would not have said that: the rest of its answer is not read, and it counts as a failed try of the answerer.
    /// Otherwise the descriptor is passed over.
    #[must_use]
    pub const fn is_fault(self) -> bool {
        !matches!(self, Self::Own | Self::NotNewer | Self::Disputed | Self::Full)
    }
}

impl From<DescriptorError> for Refused {
    fn from(error: DescriptorError) -> Self {
        match error {
            DescriptorError::Malformed(_) => Self::Malformed,
            DescriptorError::NotYetValid | DescriptorError::Expired => Self::Validity,
            DescriptorError::Signature => Self::Signature,
        }
    }
}

/// How much two clocks may differ of which neither is in doubt: each may be wrong by [`CLOCK_TOLERANCE`].
const CLOCKS_APART: Duration = CLOCK_TOLERANCE.saturating_mul(2);

/// Whether an answerer whose clock may be right would not have passed `descriptor` on at `now`: it is not valid at any time that differs from
/// ours by no more than two clocks may without a doubt (twice [`CLOCK_TOLERANCE`], `PROTOCOL.md` section 18.5). Otherwise [`Refused::Validity`] is
/// passed over.
#[must_use]
pub fn is_validity_fault(descriptor: &Descriptor, now: UnixTime) -> bool {
    let (earliest, latest) = (now.saturating_sub(CLOCKS_APART), now.saturating_add(CLOCKS_APART));
    descriptor.is_expired_at(earliest) || latest.saturating_add(VALIDITY_GRACE) < descriptor.valid_from
}

impl core::fmt::Display for Refused {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Version => "another version",
            Self::TooMany => "more descriptors than wanted",
            Self::Malformed => "malformed descriptor",
            Self::Unordered => "descriptors out of order",
            Self::Trailing => "more than the answer",
            Self::CutOff => "answer cut off",
            Self::Signature => "descriptor not signed by its node",
            Self::Validity => "descriptor not valid now",
            Self::Own => "own descriptor",
            Self::NotNewer => "descriptor not newer than the known one",
            Self::Disputed => "node with contradictory descriptors",
            Self::Full => "no room for the descriptor",
        })
    }
}

impl core::error::Error for Refused {}

/// Counts of what was taken and what was refused, of one answer or of many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    taken: u64,
    refused: [u64; Refused::ALL.len()],
}

impl Tally {
    /// Descriptors that were taken.
    #[must_use]
    pub const fn taken(&self) -> u64 {
        self.taken
    }

    /// How often something was refused for this.
    #[must_use]
    pub fn refused(&self, kind: Refused) -> u64 {
        self.refused.get(kind as usize).copied().unwrap_or(0)
    }

    /// Every kind with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Refused, u64)> {
        Refused::ALL.into_iter().zip(self.refused)
    }

    /// Counts a descriptor as taken.
    pub const fn take(&mut self) {
        self.taken = self.taken.saturating_add(1);
    }

    /// Counts a refusal.
    pub fn refuse(&mut self, kind: Refused) {
        if let Some(count) = self.refused.get_mut(kind as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// Adds what another tally has counted.
    pub fn add(&mut self, other: &Self) {
        self.taken = self.taken.saturating_add(other.taken);
        for (count, more) in self.refused.iter_mut().zip(other.refused) {
            *count = count.saturating_add(more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::descriptor;
    use super::*;
    use crate::wire::WireError;

    #[test]
    fn every_kind_has_a_counter_of_its_own() {
        let mut tally = Tally::default();
        for (at, kind) in Refused::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
            (0..=at).for_each(|_| tally.refuse(kind));
        }
        tally.take();
        tally.add(&tally.clone());
        assert_eq!(tally.taken(), 2);
        for (kind, count) in tally.iter() {
            assert_eq!((count, tally.refused(kind)), (2 * (kind as u64 + 1), count));
        }
    }

    #[test]
    fn clocks_may_differ_before_anybody_is_to_blame() {
        let descriptor = descriptor(1);
        let (from, until) = (descriptor.valid_from.0, descriptor.valid_until.0);
        // Ten minutes for either clock, and sixty seconds of the answerer's grace besides.
        for (now, fault) in
            [(from - 1261, true), (from - 1260, false), (from, false), (until + 1260, false), (until + 1261, true)]
        {
            assert_eq!(is_validity_fault(&descriptor, UnixTime(now)), fault, "{now}");
        }
        // One that is valid for a moment only is no exception.
        let brief = Descriptor { valid_until: UnixTime(from + 1), ..descriptor };
        for (now, fault) in [(from - 1261, true), (from - 1260, false), (from + 1261, false), (from + 1262, true)] {
            assert_eq!(is_validity_fault(&brief, UnixTime(now)), fault, "{now}");
        }
        let forever = Descriptor { valid_from: UnixTime(0), valid_until: UnixTime(u64::MAX), ..brief };
        assert!(!is_validity_fault(&forever, UnixTime(0)) && !is_validity_fault(&forever, UnixTime(u64::MAX)));
    }

    #[test]
    fn counters_stop_at_their_end() {
        let mut tally = Tally { taken: u64::MAX, refused: [u64::MAX; 12] };
        tally.take();
        tally.refuse(Refused::Full);
        tally.add(&tally.clone());
        assert_eq!((tally.taken(), tally.refused(Refused::Full)), (u64::MAX, u64::MAX));
    }

    #[test]
    fn what_is_wrong_with_a_descriptor_is_its_bringers_fault() {
        for (error, refused) in [
            (DescriptorError::Malformed(WireError::Invalid), Refused::Malformed),
            (DescriptorError::Expired, Refused::Validity),
            (DescriptorError::NotYetValid, Refused::Validity),
            (DescriptorError::Signature, Refused::Signature),
        ] {
            assert_eq!(Refused::from(error), refused);
            assert!(refused.is_fault());
        }
        assert_eq!(Refused::ALL.into_iter().filter(|kind| !kind.is_fault()).count(), 4);
    }
}
