//! A node's onion key and its descriptor, replaced in time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bulbil_core::crypto::identity;
use bulbil_core::crypto::kem::OnionSecret;
use bulbil_core::phonebook::VerifiedDescriptor;
use bulbil_core::wire::descriptor::{ADDRESSES_MAX, DESCRIPTOR_MAX_LEN, SIGNING_CONTEXT};
use bulbil_core::wire::policy::Policy;
use bulbil_core::wire::{Descriptor, OnionKeyKind, ProtocolVersion, Roles};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::StartError;
use super::builder::Commands;
use super::sequence::Sequence;
use crate::engine::Command;
use crate::engine::clock::WallClock;
use crate::engine::shell::Keys;
use crate::engine::workers::Workers;
use crate::random::SYSTEM;

/// A descriptor is valid for so many of its node's onion keys, and for an hour at least: long enough to be handed from node to node, and
/// no longer than necessary, because it bounds for how long a node that has gone is believed in.
const VALIDITY_ROTATIONS: u32 = 3;
const VALIDITY_MIN: Duration = Duration::from_secs(3600);
/// A descriptor is valid a little before it is signed, for clocks that are slow.
const CLOCK_SLACK: Duration = Duration::from_secs(600);
/// Between two looks at whether the replay set has filled up.
const ROTATION_CHECK: Duration = Duration::from_secs(30);

/// A descriptor of this node, as it is shown to others.
#[derive(Clone)]
pub(super) struct Signed {
    pub bytes: Vec<u8>,
    pub card: Arc<VerifiedDescriptor>,
}

/// This node's descriptor for whoever passes it on; none of a node that answers no links.
pub(super) type Own = watch::Receiver<Option<Signed>>;

/// What a node says of itself, apart from its keys.
pub(super) struct Card {
    pub roles: Roles,
    pub addresses: Vec<SocketAddr>,
    pub policy: Policy,
    /// For how long an onion key is used.
    pub rotation: Duration,
    pub clock: WallClock,
    /// Numbers its descriptors.
    pub sequence: Sequence,
}

impl Card {
    /// A descriptor that announces the current onion key; none for a node that answers no links. Blocks on the disk, as all that signs here.
    pub(super) fn sign_current(&self, keys: &Keys) -> Result<Option<Signed>, StartError> {
        let onion = keys.onion.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.sign(keys, onion.current())
    }

    /// A descriptor that announces `onion`.
    fn sign(&self, keys: &Keys, onion: &OnionSecret) -> Result<Option<Signed>, StartError> {
        let Some(identity) = &keys.identity else { return Ok(None) };
        let now = self.clock.now();
        let mut descriptor = Descriptor {
            identity: identity.public(),
            sequence: self.sequence.next(self.clock.millis()),
            valid_from: now.saturating_sub(CLOCK_SLACK),
            valid_until: now.saturating_add(VALIDITY_MIN.max(self.rotation * VALIDITY_ROTATIONS)),
            protocol: ProtocolVersion::V1,
            roles: self.roles,
            link_key: keys.link.public().0,
            onion_key: onion.public(),
            addresses: self.addresses.iter().take(ADDRESSES_MAX).copied().collect(),
            exit_ports: if self.roles.exit { self.policy.summary() } else { Default::default() },
            signature: [0; 256],
        };
        let invalid =
            |error| StartError(format!("this node cannot be described to others: {error}; check its addresses"));
        let damaged = || StartError("the identity key does not sign; is it damaged?".into());
        let mut bytes = [0; DESCRIPTOR_MAX_LEN];
        let len = descriptor.emit_unsigned(&mut bytes).map_err(invalid)?;
        let signature = identity.sign(&mut SYSTEM.clone(), &[SIGNING_CONTEXT, &bytes[..len]]);
        descriptor.signature = signature.map_err(|_| damaged())?;
        debug_assert!(
            identity::verify(&descriptor.identity, &[SIGNING_CONTEXT, &bytes[..len]], &descriptor.signature).is_ok()
        );
        let len = descriptor.emit(&mut bytes).map_err(invalid)?;
        let card = VerifiedDescriptor::verify_stored(descriptor).map_err(|_| damaged())?;
        Ok(Some(Signed { bytes: bytes[..len].to_vec(), card: Arc::new(card) }))
    }
}

/// Replaces the onion key at intervals, and at once when its replay set is full; signs the descriptor anew when the clock was set and it
/// would seem out of date.
pub(super) struct Rotation {
    pub keys: Arc<Keys>,
    pub card: Card,
    pub kind: OnionKeyKind,
    pub own: watch::Sender<Option<Signed>>,
    pub jumps: watch::Receiver<u64>,
}

impl Rotation {
    pub(super) async fn run(mut self, workers: Workers, commands: Commands) {
        let period = self.card.rotation;
        let mut jumps = self.jumps.clone();
        self.jumps.mark_unchanged();
        let this = Arc::new(self);
        let mut until = Instant::now() + period;
        loop {
            let due = loop {
                let left = until.saturating_duration_since(Instant::now());
                tokio::select! {
                    () = sleep(left.min(ROTATION_CHECK)) => {}
                    jumped = jumps.changed() => if jumped.is_err() { return },
                }
                let (reply, status) = oneshot::channel();
                if commands.send(Command::Status(reply)).is_err() {
                    return;
                }
                let Ok(status) = status.await else { return };
                if status.rotation_due || Instant::now() >= until {
                    break true;
                }
                if !this.is_believed() {
                    break false;
                }
            };
            let maker = Arc::clone(&this);
            let made = workers.call(move || {
                let secret = due.then(|| OnionSecret::generate(maker.kind, &mut SYSTEM.clone()));
                let signed = match &secret {
                    Some(secret) => maker.card.sign(&maker.keys, secret),
                    None => maker.card.sign_current(&maker.keys),
                };
                (secret, signed)
            });
            match made.await {
                Some((secret, Ok(signed))) => {
                    let bytes = signed.as_ref().map(|signed| signed.bytes.clone()).unwrap_or_default();
                    let command = match secret {
                        Some(secret) => {
                            until = Instant::now() + period;
                            info!("new onion key");
                            Command::Rotate(Box::new(secret), bytes)
                        }
                        None => {
                            info!("descriptor signed anew, because the clock was set");
                            Command::Describe(bytes)
                        }
                    };
                    if commands.send(command).is_err() {
                        return;
                    }
                    this.own.send_replace(signed);
                }
                Some((_, Err(error))) => {
                    warn!(%error, "no new descriptor; trying again soon");
                    until = Instant::now() + ROTATION_CHECK;
                }
                None => return,
            }
        }
    }

    /// Whether the descriptor holds by our clock, half of the slack and of the shortest validity from either end.
    fn is_believed(&self) -> bool {
        let now = self.card.clock.now();
        self.own.borrow().as_ref().is_none_or(|signed| {
            let descriptor = signed.card.descriptor();
            descriptor.valid_from <= now.saturating_sub(CLOCK_SLACK / 2)
                && now.saturating_add(VALIDITY_MIN / 2) <= descriptor.valid_until
        })
    }
}
