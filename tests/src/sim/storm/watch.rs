//! Which storms are under way, so that one that hangs inside says which it is: nothing but its seed repeats it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::shrink::Part;

/// How long a storm may take: most take less than a second.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Default)]
struct UnderWay {
    /// Since when, by seed.
    since: BTreeMap<u64, Instant>,
    closed: bool,
}

/// The storms that are under way.
pub struct Watch {
    under_way: Mutex<UnderWay>,
    closed: Condvar,
    patience: Duration,
}

/// A storm under way; it is over when this is dropped.
pub struct Watched<'w>(&'w Watch, u64);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.lock().since.remove(&self.1);
    }
}

/// Nothing is watched any more when this is dropped.
struct Close<'w>(&'w Watch);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.closed.notify_all();
    }
}

impl Watch {
    const fn new(patience: Duration) -> Self {
        let under_way = UnderWay { since: BTreeMap::new(), closed: false };
        Self { under_way: Mutex::new(under_way), closed: Condvar::new(), patience }
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The storm of this seed begins.
    #[must_use = "the storm is under way as long as this lives"]
    pub fn begin(&self, seed: u64) -> Watched<'_> {
        self.lock().since.insert(seed, Instant::now());
        Watched(self, seed)
    }

    /// Waits until a storm takes too long, and answers the seeds of all that are under way, the oldest first; or until nothing is watched
    /// any more.
    fn wait(&self) -> Option<Vec<u64>> {
        let mut under_way = self.lock();
        loop {
            if under_way.closed {
                return None;
            }
            let oldest = under_way.since.values().min().map_or(Duration::ZERO, Instant::elapsed);
            if !under_way.since.is_empty() && oldest >= self.patience {
                let mut seeds: Vec<_> = under_way.since.iter().map(|(&seed, &since)| (since, seed)).collect();
                seeds.sort_unstable();
                return Some(seeds.into_iter().map(|(_, seed)| seed).collect());
            }
            // Whatever begins meanwhile has more time left.
            let waited = self.closed.wait_timeout(under_way, self.patience - oldest);
            under_way = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Does `work`, which says when storms begin and end. Should one of them take too long, the process says which are under way and ends.
pub fn watched<T>(work: impl FnOnce(&Watch) -> T) -> T {
    let watch = Watch::new(PATIENCE);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let Some(seeds) = watch.wait() else { return };
            let lines = seeds
                .iter()
                .map(|&seed| format!("under way: {} {}\n", super::command::COMMAND, Part::whole(seed).arguments()));
            let text = format!("a storm takes more than {} s\n{}", PATIENCE.as_secs(), lines.collect::<String>());
            // Past whatever keeps a test's output until its end, which does not come.
            let _nothing_is_left_to_be_done = std::io::stderr().write_all(text.as_bytes());
            std::process::abort();
        });
        let _close = Close(&watch);
        work(&watch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_that_takes_too_long_is_named_and_so_are_the_others() {
        let watch = Watch::new(Duration::ZERO);
        let (_older, _younger) = (watch.begin(9), watch.begin(4));
        drop(watch.begin(5));
        assert_eq!(watch.wait(), Some(vec![9, 4]));
    }

    #[test]
    fn who_waits_is_let_go_when_all_is_done() {
        let watch = Watch::new(PATIENCE);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| watch.wait());
            let _under_way = watch.begin(1);
            drop(Close(&watch));
            assert_eq!(waiter.join().unwrap_or(Some(Vec::new())), None);
        });
    }
}
