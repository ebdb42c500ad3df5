//! The machine's time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bulbil_core::wire::UnixTime;

/// The machine's time, or one that is off by some seconds: for tests of what a node does whose clock is wrong or is set. All clones
/// are the same clock.
#[derive(Debug, Clone, Default)]
pub struct WallClock {
    /// Seconds.
    ahead: Arc<AtomicI64>,
}

impl WallClock {
    /// Sets it so many seconds ahead of the machine's (negative: behind). For tests.
    #[doc(hidden)]
    pub fn set_ahead(&self, seconds: i64) {
        self.ahead.store(seconds, Ordering::Relaxed);
    }

    /// Milliseconds since 1970.
    pub(crate) fn millis(&self) -> u64 {
        let machine = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        machine.saturating_add_signed(self.ahead.load(Ordering::Relaxed).saturating_mul(1000))
    }

    /// Seconds since 1970.
    pub(crate) fn now(&self) -> UnixTime {
        UnixTime(self.millis() / 1000)
    }
}
