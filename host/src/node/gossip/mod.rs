//! How a node keeps its phonebook good, `PROTOCOL.md` sections 18.2 and 18.3: it asks others for descriptors, tests whether nodes are there,
//! and answers those who ask. One exchange at a time of its own, at most four tests; what others may ask is bounded in `serve`.

mod ask;
mod serve;
#[cfg(test)]
mod tests;

use std::sync::Weak;
use std::time::Duration;

use bulbil_core::driver::LinkEnd;
use bulbil_core::phonebook::Test;
use bulbil_core::phonebook::exchange::{Due, Exchanged, Pace, Settings, TestLoad};
use bulbil_core::time::Instant;
use rand_core::Rng as _;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::builder::Commands;
use super::directory::Directory;
use super::rotation::Own;
use super::{Inner, Node};
use crate::engine::Command;
use crate::random::SYSTEM;

pub(super) use serve::{Server, serve};

/// Tests at one time.
const TESTS: usize = 4;
/// Longer than a link takes to be made or to fail.
const TEST_TIME: Duration = Duration::from_secs(30);
/// How much longer it is between two tests that nobody waits for.
const IDLE: u32 = 15;
/// Between two exchanges that follow each other closely.
const BUSY: Duration = Duration::from_secs(2);

/// Between two exchanges, unless told otherwise.
pub(super) const EXCHANGE: Duration = Duration::from_secs(60);

/// How often a node does what keeps its phonebook good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    /// Between two exchanges, give or take a fifth; `None` for a node that asks nobody. It still answers, and goes on testing others.
    pub exchange: Option<Duration>,
    /// Between two tests while somebody waits for one; 15 times as long otherwise.
    pub test: Duration,
    /// After a node's first failure; twice as long after each further one.
    pub retry: Duration,
    /// Between two looks at whether the phonebook has to be stored.
    pub save: Duration,
}

impl Default for Intervals {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { exchange: Some(EXCHANGE), test: seconds(2), retry: seconds(60), save: seconds(300) }
    }
}

/// What asks and tests.
pub(super) struct Gossip {
    /// Weak, because the node owns this task.
    pub node: Weak<Inner>,
    pub directory: Directory,
    pub commands: Commands,
    pub own: Own,
    pub intervals: Intervals,
}

impl Gossip {
    pub(super) async fn run(self) {
        let Intervals { exchange, test, .. } = self.intervals;
        let asks = exchange.is_some();
        let exchange = exchange.unwrap_or_default();
        let settings = Settings { exchange, exchange_busy: BUSY.min(exchange), test, test_idle: test * IDLE };
        let origin = tokio::time::Instant::now();
        let now = || Instant::from_millis(origin.elapsed().as_millis() as u64);
        let mut pace = Pace::new(settings, now());
        let (mut changes, mut doubts) = (self.directory.changes(), self.directory.doubts());
        let mut asking = JoinSet::new();
        let mut testing = JoinSet::new();
        let mut lone = false;
        let mut last = None;
        let mut idle_since = now();
        loop {
            while let Some(due) = pace.poll(now()) {
                match due {
                    // What is never begun is never over, and so never due again.
                    Due::Exchange if !asks => {}
                    Due::Exchange => match self.directory.whom().await {
                        Some(whom) => {
                            let Some(inner) = self.node.upgrade() else { return };
                            let own = self.own.borrow().clone();
                            asking.spawn(async move { ask::ask(&Node { inner }, whom, own, last).await });
                        }
                        None => {
                            lone = true;
                            pace.handle_exchanged(Exchanged::Failed, now(), &mut SYSTEM.clone());
                        }
                    },
                    Due::Test => {
                        let mut load = TestLoad::Waiting;
                        // Without room for a test nobody's turn has come.
                        if testing.len() < TESTS {
                            let idle = now() >= idle_since.after(settings.test_idle);
                            if idle {
                                idle_since = now();
                            }
                            let Some((mut next, left)) = self.directory.next_test(idle).await else { return };
                            load = left;
                            if next.is_none() && idle && !asks {
                                next = whoever_was_met(&self.directory).await;
                            }
                            if let Some(next) = next {
                                testing.spawn(test_one(next, self.directory.clone(), self.commands.clone()));
                            }
                        }
                        pace.handle_test_begun(load, now(), &mut SYSTEM.clone());
                    }
                }
            }
            let until = pace.poll_timeout().map(|at| origin + Duration::from_millis(at.millis()));
            tokio::select! {
                () = sleep_until(until) => {}
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    pace.handle_news(now());
                    if std::mem::take(&mut lone) {
                        pace.handle_first_contact(now());
                    }
                }
                doubted = doubts.changed() => {
                    if doubted.is_err() {
                        return;
                    }
                    pace.handle_path_failed(now());
                }
                Some(outcome) = asking.join_next() => {
                    // What failed in the exchange itself is no reason for another one at once.
                    doubts.mark_unchanged();
                    let outcome = outcome.unwrap_or(Exchanged::Failed);
                    last = Some(outcome).filter(|&outcome| outcome != Exchanged::Failed).or(last);
                    pace.handle_exchanged(outcome, now(), &mut SYSTEM.clone());
                }
                Some(_) = testing.join_next() => {}
            }
        }
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A random node that was met, for a test that only shows whether others answer: a node that asks nobody would else hear nobody for so long that it took
/// itself for cut off, and dropped nothing that has expired.
async fn whoever_was_met(directory: &Directory) -> Option<Test> {
    let mut known = directory.known().await?;
    known.retain(|known| known.met && !known.disputed && known.failures == 0);
    let drawn = SYSTEM.clone().next_u64() as usize % known.len().max(1);
    known.get(drawn).map(|known| Test { node: known.node, address: known.address, urgent: false })
}

/// Links to a node. If it answers, the link itself tells the phonebook.
async fn test_one(test: Test, directory: Directory, commands: Commands) {
    directory.tallies().tests.begun += 1;
    let (reply, met) = oneshot::channel();
    if commands.send(Command::Contact(test.address, Some(test.node), reply)).is_err() {
        return;
    }
    match timeout(TEST_TIME, met).await {
        Ok(Ok(Ok(_))) => directory.tallies().tests.answered += 1,
        Ok(Ok(Err(LinkEnd::Shutdown))) => {}
        Ok(Ok(Err(end))) => {
            directory.tallies().tests.failed += 1;
            directory.unreached(test.node, end);
        }
        // No place for the link, or no word of it: that is not the other node's doing. Its test is forgotten after a while.
        Ok(Err(_)) | Err(_) => {}
    }
}
