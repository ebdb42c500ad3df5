//! From a target to a circuit on its way: choose a path, build the onion, hand it to the engine.

use std::time::Duration;

use bulbil_core::crypto::onion::{HopSpec, ONION_LEN, build};
use bulbil_core::node::{ConversationId, Outcome, Suspect};
use bulbil_core::phonebook::{IsolationKey, LastHop, PathError};
use bulbil_core::wire::descriptor::RSA_LEN;
use bulbil_core::wire::message::{BeginOptions, begin_room};
use bulbil_core::wire::{CloseReason, EndReason, NodeId, Target};
use rand_core::Rng as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::directory::{ChosenHop, HopInfo, Wanted};
use super::{Inner, Node, OpenError};
use crate::engine::shell::Progress;
use crate::engine::{Command, OpenCommand};
use crate::random::SYSTEM;

/// Paths that are tried for one conversation.
const ATTEMPTS: u32 = 16;
/// Pause before the second attempt if there is no way around what failed; twice as long before each further one, up to the second
/// value. Longer in all than a node takes to be asked for its descriptor again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));
/// With less time than that nobody is given up for another one.
const PATIENCE_MIN: Duration = Duration::from_secs(2);
/// Until so long after a node's start an exit that takes a target's port may still be met; from then on nobody waits for one.
const ACQUAINTANCE: Duration = Duration::from_secs(3);

/// What came of earlier attempts at one conversation.
#[derive(Default)]
pub(super) struct Attempts {
    failed: u32,
    /// Nodes that are to blame.
    avoid: Vec<NodeId>,
    /// Nobody could be blamed for the last one: what we know of some node may be out of date.
    blind: bool,
    /// Who was on the last path over which nobody said anything: one of them hangs, or the target. Of that path only, so that whoever keeps
    /// silent on purpose makes us pass over no more than one first hop.
    silent: Vec<NodeId>,
}

impl Attempts {
    /// Whether there may be another one.
    pub(super) const fn are_left(&self) -> bool {
        self.failed < ATTEMPTS
    }

    /// How long this one may take until somebody answers, with so much time `left` in all: half of it, because a path on which a node hangs says
    /// nothing, ever, and there must be time for another one; all of it if half would be too little for anybody to answer.
    pub(super) fn patience(left: Duration) -> Duration {
        if left < PATIENCE_MIN { left } else { left / 2 }
    }
}

/// A circuit on its way.
pub(super) struct Opened {
    pub name: ConversationId,
    pub progress: watch::Receiver<Progress>,
    pub path: Vec<HopInfo>,
    pub exit_identity: [u8; RSA_LEN],
    /// How many of the first bytes left with BEGIN.
    pub sent: usize,
    commands: mpsc::UnboundedSender<Command>,
}

impl Opened {
    /// How it ended, as far as that was not well.
    pub(super) fn failure(&self) -> Option<OpenError> {
        self.progress.borrow().outcome.as_ref().and_then(error_of)
    }

    /// Tells the engine something about this circuit.
    pub(super) fn command(&self, command: Command) {
        let _engine_gone = self.commands.send(command);
    }
}

impl Drop for Opened {
    /// A circuit that nobody holds any more is given up, unless it has ended.
    fn drop(&mut self) {
        if self.progress.borrow().outcome.is_none() {
            self.command(Command::Release(self.name, false));
        }
    }
}

/// What a circuit is opened for.
pub(super) struct Purpose<'a> {
    pub target: &'a Target,
    pub last: LastHop,
    pub options: BeginOptions,
    pub isolation: Option<IsolationKey>,
    /// What was tried before.
    pub attempts: &'a Attempts,
    /// The first bytes for the target; as many as fit leave with BEGIN.
    pub first: &'a [u8],
    pub deadline: Instant,
}

impl Inner {
    /// A path to `last`, as soon as the phonebook allows one.
    pub(super) async fn wait_for_path(
        &self,
        last: LastHop,
        isolation: Option<IsolationKey>,
        avoid: &[NodeId],
        deadline: Instant,
    ) -> Result<Vec<ChosenHop>, OpenError> {
        let mut changes = self.directory.changes();
        loop {
            changes.mark_unchanged();
            let wanted = Wanted {
                hops: self.hops,
                last,
                strictness: self.strictness,
                avoid: avoid.to_vec(),
                isolation: isolation.filter(|_| self.reuse_paths),
            };
            let error = match self.directory.path(wanted).await.ok_or(OpenError::Shutdown)? {
                Ok(path) => return Ok(path),
                Err(error) => OpenError::NoPath(error),
            };
            // Another node may yet show itself; when nodes are avoided, that is for the caller to decide.
            if !avoid.is_empty() {
                return Err(error);
            }
            let until = match error {
                OpenError::NoPath(PathError::NoExitForPort(_)) => deadline.min(self.started + ACQUAINTANCE),
                _ => deadline,
            };
            let changed = async {
                tokio::select! {
                    changed = changes.changed() => changed.is_ok(),
                    () = self.commands.closed() => false,
                }
            };
            match timeout_at(until, changed).await {
                Ok(true) => {}
                Ok(false) => return Err(OpenError::Shutdown),
                Err(_) => return Err(error),
            }
        }
    }

    /// A path that goes around what failed before. If there is none, whatever it was gets time to come back: a node that has
    /// restarted has a new onion key, and its descriptor is asked for as soon as it is in doubt.
    async fn path_around(&self, last: LastHop, purpose: &Purpose<'_>) -> Result<Vec<ChosenHop>, OpenError> {
        let Purpose { attempts, isolation, deadline, .. } = *purpose;
        let mut changes = self.directory.changes();
        changes.mark_unchanged();
        // Around as many of those who kept silent as can be, and in no order that tells them apart.
        let mut silent = attempts.silent.clone();
        while !silent.is_empty() {
            let avoid = [attempts.avoid.as_slice(), &silent].concat();
            let path = self.wait_for_path(last, isolation, &avoid, deadline).await;
            if path.is_ok() {
                return path;
            }
            silent.swap_remove(SYSTEM.clone().next_u64() as usize % silent.len());
        }
        for pause_first in [attempts.blind, true] {
            if pause_first {
                let pause = PAUSE.1.min(PAUSE.0 * 2u32.pow(attempts.failed.saturating_sub(1)));
                let _changed_or_not = timeout_at(deadline.min(Instant::now() + pause), changes.changed()).await;
            }
            let path = self.wait_for_path(last, isolation, &attempts.avoid, deadline).await;
            // A guard that has just failed is no way around, where there is no other one.
            let is_around = |path: &Vec<ChosenHop>| path.iter().all(|hop| !attempts.avoid.contains(&hop.node));
            if attempts.avoid.is_empty() || path.as_ref().is_ok_and(|path| pause_first || is_around(path)) {
                return path;
            }
        }
        self.wait_for_path(last, isolation, &[], deadline).await
    }
}

impl Node {
    /// Sends a circuit's onion on its way.
    pub(super) async fn launch(&self, purpose: &Purpose<'_>) -> Result<Opened, OpenError> {
        let path = self.inner.path_around(purpose.last, purpose).await?;
        self.launch_over(path, purpose).await
    }

    /// Sends a circuit's onion on its way over this path.
    pub(super) async fn launch_over(&self, path: Vec<ChosenHop>, purpose: &Purpose<'_>) -> Result<Opened, OpenError> {
        let inner = &self.inner;
        let infos: Vec<_> = path.iter().map(|hop| HopInfo { node: hop.node, address: hop.address }).collect();
        let (Some(first_hop), Some(exit)) = (infos.first().copied(), path.last()) else {
            return Err(OpenError::Shutdown);
        };
        let exit_identity = exit.identity;

        let permit = timeout_at(purpose.deadline, inner.building.acquire()).await;
        let _permit = permit.map_err(|_| OpenError::Deadline)?.map_err(|_| OpenError::Shutdown)?;
        let built = inner.workers.call(move || {
            let mut onion = Box::new([0; ONION_LEN]);
            let hops: Vec<_> =
                path.iter().map(|hop| HopSpec { node: hop.node, key: &hop.key, address: hop.address }).collect();
            build(&hops, &mut onion, &mut SYSTEM.clone()).map(|keys| (onion, keys.into_iter().collect::<Vec<_>>()))
        });
        // A descriptor's key was checked when it was accepted; that it cannot be used is its owner's doing.
        let (onion, keys) =
            built.await.ok_or(OpenError::Shutdown)?.map_err(|_| OpenError::Closed(CloseReason::OnionRejected))?;

        let sent = begin_room(purpose.target).min(purpose.first.len());
        let (reply, opened) = oneshot::channel();
        let command = OpenCommand {
            node: first_hop.node,
            address: first_hop.address,
            onion,
            keys,
            target: purpose.target.clone(),
            options: purpose.options,
            first: purpose.first[..sent].to_vec(),
            reply,
        };
        inner.commands.send(Command::Open(Box::new(command))).map_err(|_| OpenError::Shutdown)?;
        let (name, progress) = opened.await.map_err(|_| OpenError::Shutdown)?.map_err(OpenError::Refused)?;
        Ok(Opened { name, progress, path: infos, exit_identity, sent, commands: inner.commands.clone() })
    }

    /// Nobody on a path has said anything for too long. Nobody can be blamed, but the next one is not to be the same.
    pub(super) fn learn_from_silence(&self, path: &[HopInfo], attempts: &mut Attempts) {
        attempts.failed += 1;
        attempts.blind = false;
        attempts.silent = path.iter().map(|hop| hop.node).collect();
        self.inner.directory.doubted(attempts.silent.clone());
    }

    /// Judges how a circuit ended: whom to avoid, and whether another path may do better.
    pub(super) fn learn_from(&self, path: &[HopInfo], outcome: &Outcome, attempts: &mut Attempts) -> bool {
        attempts.failed += 1;
        let suspect = match outcome.suspect(path.len()) {
            Some(Suspect::Hop(hop)) => path.get(hop.value()),
            Some(Suspect::Somebody) => None,
            None => return false,
        };
        attempts.blind = suspect.is_none();
        match suspect {
            Some(hop) => {
                self.inner.directory.failed(hop.node);
                attempts.avoid.push(hop.node);
            }
            None => self.inner.directory.doubted(path.iter().map(|hop| hop.node).collect()),
        }
        true
    }
}

/// The error that an outcome is for the application, if it is one.
pub(super) fn error_of(outcome: &Outcome) -> Option<OpenError> {
    match (outcome.end, outcome.close) {
        (Some((EndReason::Done, _)), _) => None,
        (Some((reason, _)), _) => Some(OpenError::Ended(reason)),
        (None, Some(reason)) => Some(OpenError::Closed(reason)),
        (None, None) => None,
    }
}

/// Waits until the target is reached (a service: until it answers) or the circuit has ended.
pub(super) async fn settled(progress: &mut watch::Receiver<Progress>) -> Result<Progress, OpenError> {
    let settled = progress.wait_for(|progress| progress.reached.is_some() || progress.outcome.is_some()).await;
    settled.map(|progress| progress.clone()).map_err(|_| OpenError::Shutdown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_path_leaves_time_for_others() {
        let (mut left, mut attempts) = (Duration::from_secs(60), 0);
        // A name and one address that nobody answers at take an exit 25 s.
        assert!(Attempts::patience(left) >= Duration::from_secs(25));
        while !left.is_zero() {
            left -= Attempts::patience(left);
            attempts += 1;
        }
        assert_eq!(attempts, 6);
        assert_eq!(Attempts::patience(Duration::from_millis(50)), Duration::from_millis(50), "hasty already");
    }
}
