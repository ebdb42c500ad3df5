//! Wall-clock time as it is on the wire.

use core::time::Duration;

/// Seconds since 1970-01-01 00:00 UTC, leap seconds not counted.
///
/// It may jump in either direction when the node's clock is set; nothing here assumes that it grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// The time `duration` later (its whole seconds), at most the last one that can be expressed.
    #[must_use]
    pub const fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_secs()))
    }

    /// The time `duration` earlier (its whole seconds), at least the first one that can be expressed.
    #[must_use]
    pub const fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration.as_secs()))
    }

    /// The time that passed since `earlier`, or `None` if that lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Option<Duration> {
        match self.0.checked_sub(earlier.0) {
            Some(seconds) => Some(Duration::from_secs(seconds)),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_stays_within_range() {
        let hour = Duration::from_secs(3600);
        assert_eq!(UnixTime(10).saturating_add(hour), UnixTime(3610));
        assert_eq!(UnixTime(u64::MAX - 1).saturating_add(hour), UnixTime(u64::MAX));
        assert_eq!(UnixTime(10).saturating_sub(hour), UnixTime(0));
        assert_eq!(UnixTime(3610).since(UnixTime(10)), Some(hour));
        assert_eq!(UnixTime(10).since(UnixTime(11)), None);
    }
}
