//! Monotonic time as the state machines see it: an argument, never a clock.

use core::time::Duration;

/// Milliseconds since an origin of the owner's choice; never goes back.
///
/// Deadlines of the protocol are seconds long, so milliseconds lose nothing. An owner whose clock jumps back must hold the value
/// still until the clock has caught up; one that jumps forward only makes deadlines expire early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// The instant `millis` milliseconds after the origin.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the origin.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// This instant and `span` later; the end of time if that is out of range.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long until `later`; zero if that has passed.
    #[must_use]
    pub const fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}
