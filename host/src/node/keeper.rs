//! What runs beside a node's engine: the first contacts, the rotation of the onion key.

use std::sync::Arc;
use std::time::Duration;

use bulbil_core::crypto::kem::OnionSecret;
use bulbil_core::wire::{NodeId, OnionKeyKind};
use rand_core::Rng as _;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::builder::{Card, Commands, VALIDITY};
use crate::config::Bootstrap;
use crate::engine::Command;
use crate::engine::shell::Keys;
use crate::engine::workers::Workers;
use crate::random::SYSTEM;
use crate::state::{Item, StateDir};

/// Between two visits to a node that answers: a third of the shortest life that its descriptor's onion key should have.
const REFRESH: Duration = Duration::from_secs(1200);
/// Between two attempts to reach one that does not answer, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Longest time between two visits for the reason that paths fail.
const SPACING_MAX: Duration = Duration::from_secs(4);
/// For how long a node may fail to answer before the log says so.
const SILENCE: Duration = Duration::from_secs(4);
/// Between two looks at whether the replay set has filled up.
const ROTATION_CHECK: Duration = Duration::from_secs(30);

/// Learns a node's descriptor, and keeps it fresh. `doubts` changes when a path fails: then the node is asked again, whether or
/// not it answered before, because it may have restarted with a new onion key or come back.
pub(super) async fn stay_in_touch(
    contact: Bootstrap,
    commands: Commands,
    serving: bool,
    mut doubts: watch::Receiver<u64>,
) {
    let (mut pause, mut spacing) = (RETRY.0, RETRY.0);
    let mut failing_since = None;
    loop {
        let (reply, met) = oneshot::channel();
        doubts.mark_unchanged();
        let asked = Instant::now();
        if commands.send(Command::Contact(contact.address, contact.fingerprint, reply)).is_err() {
            return;
        }
        let wait = match met.await {
            Ok(Ok(_)) => {
                (pause, failing_since) = (RETRY.0, None);
                REFRESH
            }
            outcome => {
                let end = match outcome {
                    Ok(Err(end)) => end.to_string(),
                    _ => "no room for the link".to_owned(),
                };
                // Nodes that start together find each other late; only a lasting failure is worth a word, and one.
                let since = failing_since.get_or_insert(Some(asked));
                if since.is_some_and(|since| since.elapsed() > SILENCE) {
                    warn!(reason = end, serving, "a bootstrap node cannot be reached; trying again from time to time");
                    failing_since = Some(None);
                }
                let wait = pause;
                pause = (pause * 2).min(RETRY.1);
                wait
            }
        };
        // However many paths fail, each further visit for that reason is later than the one before.
        let early = async {
            sleep_until(asked + spacing).await;
            doubts.changed().await
        };
        match timeout(spread(wait), early).await {
            Ok(Ok(())) => spacing = (spacing * 2).min(SPACING_MAX),
            Ok(Err(_)) => return,
            Err(_) => spacing = RETRY.0,
        }
    }
}

/// Writes the first hops in use to the state directory whenever they change.
pub(super) async fn keep_guards(state: Arc<StateDir>, mut guards: watch::Receiver<Vec<NodeId>>) {
    while guards.changed().await.is_ok() {
        let bytes: Vec<u8> = guards.borrow_and_update().iter().flat_map(|node| node.0).collect();
        let state = Arc::clone(&state);
        let written = tokio::task::spawn_blocking(move || state.replace(Item::Guards, &bytes)).await;
        if let Ok(Err(error)) = written {
            // The node goes on with the guards that it has; only a restart would draw others.
            warn!(%error, "the first hops could not be kept");
        }
    }
}

/// `period`, give or take a fifth, so that nodes do not move in step.
fn spread(period: Duration) -> Duration {
    period.mul_f64(0.8 + 0.4 * f64::from(SYSTEM.clone().next_u32()) / f64::from(u32::MAX))
}

/// Replaces the onion key at intervals, and at once when its replay set is full.
pub(super) struct Rotation {
    pub keys: Arc<Keys>,
    pub card: Card,
    pub kind: OnionKeyKind,
    pub period: Duration,
}

impl Rotation {
    pub(super) async fn run(self, workers: Workers, commands: Commands) {
        let this = Arc::new(self);
        // A key lives no longer than half of its descriptor, so that the descriptor never runs out.
        let period = this.period.min(VALIDITY / 2);
        let mut until = Instant::now() + period;
        loop {
            loop {
                let left = until.saturating_duration_since(Instant::now());
                sleep(left.min(ROTATION_CHECK)).await;
                let (reply, status) = oneshot::channel();
                if commands.send(Command::Status(reply)).is_err() {
                    return;
                }
                let Ok(status) = status.await else { return };
                if status.rotation_due || Instant::now() >= until {
                    break;
                }
            }
            let maker = Arc::clone(&this);
            let made = workers.call(move || {
                let secret = OnionSecret::generate(maker.kind, &mut SYSTEM.clone());
                let descriptor = maker.card.sign(&maker.keys, &secret);
                (secret, descriptor)
            });
            match made.await {
                Some((secret, Ok(descriptor))) => {
                    if commands.send(Command::Rotate(Box::new(secret), descriptor)).is_err() {
                        return;
                    }
                    info!("new onion key");
                    until = Instant::now() + period;
                }
                Some((_, Err(error))) => {
                    warn!(%error, "no new onion key; trying again soon");
                    until = Instant::now() + ROTATION_CHECK;
                }
                None => return,
            }
        }
    }
}
