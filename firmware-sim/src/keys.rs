//! The node's keys and what it says of itself: the identity from outside, the onion key of its own, the descriptor that binds them.

use core::net::SocketAddr;
use core::time::Duration;

use bulbil_core::crypto::identity::IdentitySecret;
use bulbil_core::crypto::kem::{OnionKeys, OnionSecret};
use bulbil_core::link::LinkSecret;
use bulbil_core::time::Instant;
use bulbil_core::wire::descriptor::{ADDRESSES_MAX, DESCRIPTOR_MAX_LEN, RSA_LEN, SIGNING_CONTEXT};
use bulbil_core::wire::{Descriptor, NodeId, OnionKeyKind, Policy, ProtocolVersion, Roles, UnixTime};
use rand_core::CryptoRng;
use zeroize::Zeroize;

use crate::board::{Board, ITEM_MAX_LEN, Item};
use crate::config::Config;

/// How long a descriptor is valid.
const VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// A descriptor is valid a little before it is signed, for clocks that are slow.
const CLOCK_SLACK: Duration = Duration::from_secs(600);
/// After a rotation that failed.
const RETRY: Duration = Duration::from_secs(30);

/// Why a node has no keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyError {
    /// A relay or an exit needs an identity, and the storage has none.
    NoIdentity,
    /// What the storage holds is no identity of an RSA-2048 key.
    BadIdentity,
    /// What the storage holds is no link key.
    BadLinkKey,
    /// The storage does not work.
    Storage,
}

impl core::fmt::Display for KeyError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NoIdentity => "there is no identity; make one with: bulbil keygen --for-device",
            Self::BadIdentity => "the identity is no RSA-2048 key in PKCS#8 DER; restore it, or provision another one",
            Self::BadLinkKey => "the link key is not 32 bytes; remove it to get a new one",
            Self::Storage => "the key storage does not work",
        })
    }
}

impl core::error::Error for KeyError {}

/// The keys of a node that answers links.
struct Serving {
    identity: IdentitySecret,
    onion: OnionKeys,
    /// The descriptor that is shown; empty until the time is known.
    descriptor: heapless::Vec<u8, DESCRIPTOR_MAX_LEN>,
    /// When the onion key is to be replaced, or the first descriptor signed.
    due: Instant,
}

/// The keys of a node.
pub(crate) struct Keys {
    node: NodeId,
    link: LinkSecret,
    serving: Option<Serving>,
}

/// What came of looking after the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Care {
    /// There was nothing to do.
    Nothing,
    /// The first descriptor is signed.
    Published,
    /// There is a new onion key: the node must begin a new replay epoch.
    Rotated,
    /// Signing failed.
    Failed,
}

impl Keys {
    /// The keys in the board's storage, and a fresh onion key.
    pub(crate) fn load<B: Board>(config: &Config, board: &mut B, now: Instant) -> Result<Self, KeyError> {
        let mut buffer = [0; ITEM_MAX_LEN];
        let keys = Self::read(config, board, &mut buffer, now);
        buffer.zeroize();
        keys
    }

    fn read<B: Board>(
        config: &Config,
        board: &mut B,
        buffer: &mut [u8; ITEM_MAX_LEN],
        now: Instant,
    ) -> Result<Self, KeyError> {
        let stored = board.load(Item::LinkKey, buffer).map_err(|_| KeyError::Storage)?;
        let link = match stored {
            Some(len) => {
                let bytes = buffer.get(..len).and_then(|bytes| bytes.try_into().ok());
                LinkSecret::from_bytes(bytes.ok_or(KeyError::BadLinkKey)?)
            }
            None => {
                let link = LinkSecret::generate(board.rng());
                if config.is_serving() {
                    board.store(Item::LinkKey, link.to_bytes().as_ref()).map_err(|_| KeyError::Storage)?;
                }
                link
            }
        };
        if !config.is_serving() {
            // A client that answers no links shows itself to nobody.
            let mut id = [0; 32];
            board.rng().fill_bytes(&mut id);
            return Ok(Self { node: NodeId(id), link, serving: None });
        }
        let stored = board.load(Item::Identity, buffer).map_err(|_| KeyError::Storage)?;
        let der = buffer.get(..stored.ok_or(KeyError::NoIdentity)?).ok_or(KeyError::Storage)?;
        let identity = IdentitySecret::from_pkcs8(der).map_err(|_| KeyError::BadIdentity)?;
        let onion = OnionKeys::new(OnionSecret::generate(OnionKeyKind::XWing, board.rng()), None);
        let serving = Serving { identity, onion, descriptor: heapless::Vec::new(), due: now };
        Ok(Self { node: serving.identity.node_id(), link, serving: Some(serving) })
    }

    /// Who the node is.
    pub(crate) const fn node(&self) -> NodeId {
        self.node
    }

    pub(crate) const fn link(&self) -> &LinkSecret {
        &self.link
    }

    pub(crate) fn identity(&self) -> Option<&IdentitySecret> {
        self.serving.as_ref().map(|serving| &serving.identity)
    }

    pub(crate) fn onion(&self) -> Option<&OnionKeys> {
        self.serving.as_ref().map(|serving| &serving.onion)
    }

    /// The descriptor that is shown; empty if there is none.
    pub(crate) fn descriptor(&self) -> &[u8] {
        self.serving.as_ref().map_or(&[], |serving| serving.descriptor.as_slice())
    }

    /// When [`Keys::look_after`] has something to do at the latest.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.serving.as_ref().map(|serving| serving.due)
    }

    /// Signs the first descriptor once the time is known, and replaces the onion key when it is due, or early if `full` says that its replay
    /// set has no more room.
    pub(crate) fn look_after(
        &mut self,
        config: &Config,
        (now, time): (Instant, Option<UnixTime>),
        full: bool,
        rng: &mut dyn CryptoRng,
    ) -> Care {
        let Some(serving) = &mut self.serving else { return Care::Nothing };
        if now < serving.due && !full {
            return Care::Nothing;
        }
        let Some(time) = time else {
            // Met contacts tell the time; there is nothing to be signed before.
            serving.due = now.after(Duration::from_secs(1));
            return Care::Nothing;
        };
        let link = self.link.public().0;
        if serving.descriptor.is_empty() {
            let card = describe(config, &serving.identity, link, serving.onion.current(), (now, time), rng);
            let Some(card) = card else {
                serving.due = now.after(RETRY);
                return Care::Failed;
            };
            serving.descriptor = card;
            serving.due = now.after(period(config));
            return Care::Published;
        }
        let secret = OnionSecret::generate(OnionKeyKind::XWing, rng);
        let Some(card) = describe(config, &serving.identity, link, &secret, (now, time), rng) else {
            serving.due = now.after(RETRY);
            return Care::Failed;
        };
        serving.onion.rotate(secret);
        serving.descriptor = card;
        serving.due = now.after(period(config));
        Care::Rotated
    }
}

/// A key lives no longer than half of its descriptor, so that the descriptor never runs out.
fn period(config: &Config) -> Duration {
    config.rotation.min(VALIDITY / 2)
}

/// A signed descriptor that announces `onion`.
fn describe(
    config: &Config,
    identity: &IdentitySecret,
    link_key: [u8; 32],
    onion: &OnionSecret,
    (now, time): (Instant, UnixTime),
    rng: &mut dyn CryptoRng,
) -> Option<heapless::Vec<u8, DESCRIPTOR_MAX_LEN>> {
    let addresses: heapless::Vec<SocketAddr, ADDRESSES_MAX> =
        config.network.addresses.iter().map(|(address, _)| SocketAddr::new(*address, config.network.port)).collect();
    let mut descriptor = Descriptor {
        identity: identity.public(),
        // Milliseconds, so that a node that restarts at once is believed at once; and the storage need not count.
        sequence: time.0.saturating_mul(1000).saturating_add(now.millis() % 1000),
        valid_from: time.saturating_sub(CLOCK_SLACK),
        valid_until: time.saturating_add(VALIDITY),
        protocol: ProtocolVersion::V1,
        roles: Roles { relay: config.relay, exit: config.exit.is_some(), constrained: true },
        link_key,
        onion_key: onion.public(),
        addresses,
        exit_ports: config.exit.as_ref().map(Policy::summary).unwrap_or_default(),
        signature: [0; RSA_LEN],
    };
    let mut bytes = heapless::Vec::new();
    bytes.resize_default(DESCRIPTOR_MAX_LEN).ok()?;
    let len = descriptor.emit_unsigned(&mut bytes).ok()?;
    descriptor.signature = identity.sign(rng, &[SIGNING_CONTEXT, bytes.get(..len)?]).ok()?;
    let len = descriptor.emit(&mut bytes).ok()?;
    bytes.truncate(len);
    Some(bytes)
}
