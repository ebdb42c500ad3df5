//! Identities that never change. Making RSA keys is slow in an unoptimised build, so nodes of all test networks share six of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, OnceLock, PoisonError};

use bulbil_core::crypto::identity::{IdentitySecret, Signature};
use bulbil_core::crypto::kem::OnionSecret;
use bulbil_core::link::LinkSecret;
use bulbil_core::wire::descriptor::{DESCRIPTOR_MAX_LEN, SIGNING_CONTEXT};
use bulbil_core::wire::{Descriptor, NodeId, OnionKey, OnionKeyKind, PortRange, ProtocolVersion, Roles, UnixTime};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use sha2::{Digest, Sha256};

pub mod population;

/// The time, in Unix seconds, at which every test network starts.
pub const EPOCH: UnixTime = UnixTime(1_700_000_000);

/// Published test keys (`core/tests/vectors/rsa/README.md`).
const KEYS: [&[u8]; IDENTITIES] = [
    include_bytes!("../../core/tests/vectors/rsa/test-key-0.der"),
    include_bytes!("../../core/tests/vectors/rsa/test-key-1.der"),
    include_bytes!("../../core/tests/vectors/rsa/test-key-2.der"),
    include_bytes!("../../core/tests/vectors/rsa/test-key-3.der"),
    include_bytes!("../../core/tests/vectors/rsa/test-key-4.der"),
    include_bytes!("../../core/tests/vectors/rsa/test-key-5.der"),
];

/// Identities of nodes in small networks, and so the number of nodes there that can answer links. Those with greater numbers are the
/// [`population`].
pub const IDENTITIES: usize = 6;
/// All identities.
pub const IDENTITIES_IN_ALL: usize = IDENTITIES + population::POPULATION;

/// The identity with this number.
#[must_use]
pub fn identity(number: usize) -> &'static IdentitySecret {
    static SECRETS: [OnceLock<IdentitySecret>; IDENTITIES] = [const { OnceLock::new() }; IDENTITIES];
    if let Some(number) = number.checked_sub(IDENTITIES) {
        return population::identity(number);
    }
    SECRETS[number].get_or_init(|| IdentitySecret::from_pkcs8(KEYS[number]).expect("test keys are valid"))
}

/// The same as PKCS#8 DER, as a constrained node's storage holds it.
#[must_use]
pub const fn identity_der(number: usize) -> &'static [u8] {
    KEYS[number]
}

/// The id of the identity's node.
#[must_use]
pub fn node_id(number: usize) -> NodeId {
    static IDS: [OnceLock<NodeId>; IDENTITIES_IN_ALL] = [const { OnceLock::new() }; IDENTITIES_IN_ALL];
    *IDS[number].get_or_init(|| identity(number).node_id())
}

/// Where the identity's node listens.
#[must_use]
pub fn address(number: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1 + u8::try_from(number).expect("few identities")], 9000))
}

/// The identity's link key.
#[must_use]
pub fn link_secret(number: usize) -> LinkSecret {
    let mut bytes = [1 + (number % 251) as u8; 32];
    if number >= IDENTITIES {
        bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
    }
    LinkSecret::from_bytes(bytes)
}

/// The identity's onion key after so many rotations. With `rsa2048` there is another one six times.
#[must_use]
pub fn onion_secret(number: usize, kind: OnionKeyKind, rotation: usize) -> OnionSecret {
    match kind {
        OnionKeyKind::Rsa2048 => {
            let der = KEYS[(number + rotation + 1) % IDENTITIES];
            OnionSecret::import(kind, der).expect("test keys are valid")
        }
        OnionKeyKind::XWing => {
            let mut rng = ChaCha20Rng::seed_from_u64((number as u64) << 32 | rotation as u64);
            OnionSecret::generate(kind, &mut rng)
        }
    }
}

/// The identity's signed descriptor, with its first onion key of this kind.
#[must_use]
pub fn descriptor(number: usize, kind: OnionKeyKind) -> &'static [u8] {
    static SIGNED: [[OnceLock<Vec<u8>>; 2]; IDENTITIES] = [const { [const { OnceLock::new() }; 2] }; IDENTITIES];
    SIGNED[number][kind as usize - 1].get_or_init(|| {
        let card = Card {
            number,
            sequence: 1,
            valid_from: UnixTime(EPOCH.0 - 3_600),
            valid_until: UnixTime(EPOCH.0 + 30 * 86_400),
            roles: Roles { relay: true, exit: true, constrained: false },
            onion_key: onion_secret(number, kind, 0).public(),
            address: address(number),
        };
        card.sign(number as u64)
    })
}

/// What is to stand in a descriptor of one of the identities.
#[derive(Debug, Clone)]
pub struct Card {
    /// Whose.
    pub number: usize,
    /// The descriptor's number.
    pub sequence: u64,
    /// First second of the validity.
    pub valid_from: UnixTime,
    /// Last second of the validity.
    pub valid_until: UnixTime,
    /// What the node offers; an exit takes every port.
    pub roles: Roles,
    /// Its onion key.
    pub onion_key: OnionKey,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Card {
    /// The signed descriptor; `seed` salts the signature.
    #[must_use]
    pub fn sign(self, seed: u64) -> Vec<u8> {
        let number = self.number;
        let mut descriptor = Descriptor {
            identity: identity(number).public(),
            sequence: self.sequence,
            valid_from: self.valid_from,
            valid_until: self.valid_until,
            protocol: ProtocolVersion::V1,
            roles: self.roles,
            link_key: link_secret(number).public().0,
            onion_key: self.onion_key,
            addresses: [self.address].into_iter().collect(),
            exit_ports: self.roles.exit.then_some(PortRange::ALL).into_iter().collect(),
            signature: [0; 256],
        };
        let mut bytes = [0; DESCRIPTOR_MAX_LEN];
        let len = descriptor.emit_unsigned(&mut bytes).expect("a descriptor fits");
        descriptor.signature = signature(number, seed, &bytes[..len]);
        let len = descriptor.emit(&mut bytes).expect("a descriptor fits");
        bytes[..len].to_vec()
    }
}

/// A signature, made once in a process: networks that are made again from the same seed sign the same.
fn signature(number: usize, seed: u64, unsigned: &[u8]) -> Signature {
    static MADE: Mutex<BTreeMap<[u8; 32], Signature>> = Mutex::new(BTreeMap::new());
    let key = Sha256::new().chain_update(seed.to_be_bytes()).chain_update(unsigned).finalize().into();
    let made = || MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(signature) = made().get(&key) {
        return *signature;
    }
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let signature = identity(number).sign(&mut rng, &[SIGNING_CONTEXT, unsigned]).expect("test keys are sound");
    made().insert(key, signature);
    signature
}
