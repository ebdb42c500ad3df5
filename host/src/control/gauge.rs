//! How much crosses a node's links just now, from samples of how much has crossed them in all.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::report::{Moved, Recent};
use crate::engine::traffic::Totals;

/// Between two samples.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// Samples that are kept: the oldest is ten seconds old.
const SAMPLES: usize = 11;

/// The last samples.
#[derive(Debug, Default)]
pub(super) struct Gauge(VecDeque<(Instant, Totals)>);

impl Gauge {
    /// Keeps a sample.
    pub(super) fn push(&mut self, now: Instant, totals: Totals) {
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back((now, totals));
    }

    /// What has moved since the oldest sample.
    pub(super) fn since_oldest(&self, now: Instant, totals: Totals) -> Recent {
        let (at, before) = self.0.front().copied().unwrap_or((now, totals));
        Recent {
            seconds: now.saturating_duration_since(at).as_secs_f64(),
            moved: Moved {
                bytes_in: totals.bytes_in.saturating_sub(before.bytes_in),
                bytes_out: totals.bytes_out.saturating_sub(before.bytes_out),
                cells_in: totals.cells_in.saturating_sub(before.cells_in),
                cells_out: totals.cells_out.saturating_sub(before.cells_out),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_seconds_are_kept() {
        let mut gauge = Gauge::default();
        let begin = Instant::now();
        let totals =
            |second: u64| Totals { bytes_in: 100 * second, bytes_out: 7 * second, cells_in: second, cells_out: 0 };
        assert_eq!(gauge.since_oldest(begin, totals(3)), Recent::default(), "nothing is known yet");
        for second in 0..=60 {
            gauge.push(begin + INTERVAL * second, totals(u64::from(second)));
            let kept = u64::from(second.min(10));
            let recent = gauge.since_oldest(begin + INTERVAL * second, totals(u64::from(second)));
            assert_eq!((recent.seconds, recent.moved.bytes_in), (kept as f64, 100 * kept));
            assert_eq!((recent.moved.bytes_out, recent.moved.cells_in), (7 * kept, kept));
        }
    }
}
