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

/// The keys that outlive a restart.
pub(crate) struct Stored {
    node: NodeId,
    link: LinkSecret,
    /// Of a node that answers links.
    identity: Option<IdentitySecret>,
}

/// The keys of a node.
pub(crate) struct Keys {
    stored: Stored,
    /// `None` until the time is known: it would age unused.
    onion: Option<OnionKeys>,
    /// The descriptor that is shown; empty until then.
    descriptor: heapless::Vec<u8, DESCRIPTOR_MAX_LEN>,
    /// When the onion key is to be made or replaced.
    due: Instant,
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

impl Stored {
    /// The keys in the board's storage. Not inlined, as a node's start has to fit the stack together with what RSA takes of it.
    #[inline(never)]
    pub(crate) fn load<B: Board>(config: &Config, board: &mut B) -> Result<Self, KeyError> {
        let mut buffer = [0; ITEM_MAX_LEN];
        let keys = Self::read(config, board, &mut buffer);
        buffer.zeroize();
        keys
    }

    fn read<B: Board>(config: &Config, board: &mut B, buffer: &mut [u8; ITEM_MAX_LEN]) -> Result<Self, KeyError> {
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
            return Ok(Self { node: NodeId(id), link, identity: None });
        }
        let stored = board.load(Item::Identity, buffer).map_err(|_| KeyError::Storage)?;
        let der = buffer.get(..stored.ok_or(KeyError::NoIdentity)?).ok_or(KeyError::Storage)?;
        let identity = IdentitySecret::from_pkcs8(der).map_err(|_| KeyError::BadIdentity)?;
        Ok(Self { node: identity.node_id(), link, identity: Some(identity) })
    }
}

impl Keys {
    /// These keys, and no onion key yet.
    pub(crate) const fn new(stored: Stored, now: Instant) -> Self {
        Self { stored, onion: None, descriptor: heapless::Vec::new(), due: now }
    }

    /// Who the node is.
    pub(crate) const fn node(&self) -> NodeId {
        self.stored.node
    }

    pub(crate) const fn link(&self) -> &LinkSecret {
        &self.stored.link
    }

    pub(crate) const fn identity(&self) -> Option<&IdentitySecret> {
        self.stored.identity.as_ref()
    }

    pub(crate) const fn onion(&self) -> Option<&OnionKeys> {
        self.onion.as_ref()
    }

    /// The descriptor that is shown; empty if there is none.
    pub(crate) fn descriptor(&self) -> &[u8] {
        &self.descriptor
    }

    /// When [`Keys::look_after`] has something to do at the latest.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.stored.identity.is_some().then_some(self.due)
    }

    /// Makes the first onion key once the time is known, and replaces it when that is due, or early if `full` says that its replay set has no
    /// more room.
    pub(crate) fn look_after(
        &mut self,
        config: &Config,
        (now, time): (Instant, Option<UnixTime>),
        full: bool,
        rng: &mut dyn CryptoRng,
    ) -> Care {
        if self.stored.identity.is_none() || (now < self.due && !full) {
            return Care::Nothing;
        }
        let Some(time) = time else {
            // Met contacts tell the time; there is nothing to be signed before.
            self.due = now.after(Duration::from_secs(1));
            return Care::Nothing;
        };
        self.renew(config, (now, time), rng)
    }

    /// A new onion key, and a descriptor that announces it. Until it is signed the old ones stay.
    #[inline(never)]
    fn renew(&mut self, config: &Config, (now, time): (Instant, UnixTime), rng: &mut dyn CryptoRng) -> Care {
        let Some(identity) = &self.stored.identity else { return Care::Nothing };
        let secret = OnionSecret::generate(OnionKeyKind::XWing, rng);
        let link = self.stored.link.public().0;
        let Some(card) = describe(config, identity, link, &secret, (now, time), rng) else {
            self.due = now.after(RETRY);
            return Care::Failed;
        };
        self.descriptor = card;
        self.due = now.after(period(config));
        match &mut self.onion {
            Some(keys) => {
                keys.rotate(secret);
                Care::Rotated
            }
            none => {
                *none = Some(OnionKeys::new(secret, None));
                Care::Published
            }
        }
    }
}

/// A key lives no longer than half of its descriptor, so that the descriptor never runs out.
fn period(config: &Config) -> Duration {
    config.rotation.min(VALIDITY / 2)
}

/// A signed descriptor that announces `onion`.
#[inline(never)]
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
