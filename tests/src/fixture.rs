//! Identities that never change. Making RSA keys is slow in an unoptimised build, so nodes of all test networks share six of them.

use std::net::SocketAddr;
use std::sync::OnceLock;

use bulbil_core::crypto::identity::IdentitySecret;
use bulbil_core::crypto::kem::OnionSecret;
use bulbil_core::link::LinkSecret;
use bulbil_core::wire::descriptor::{DESCRIPTOR_MAX_LEN, SIGNING_CONTEXT};
use bulbil_core::wire::{Descriptor, NodeId, OnionKeyKind, PortRange, ProtocolVersion, Roles, UnixTime};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

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

/// Nodes of one network that can have an identity, and so answer links.
pub const IDENTITIES: usize = 6;

/// The identity with this number.
#[must_use]
pub fn identity(number: usize) -> &'static IdentitySecret {
    static SECRETS: [OnceLock<IdentitySecret>; IDENTITIES] = [const { OnceLock::new() }; IDENTITIES];
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
    static IDS: [OnceLock<NodeId>; IDENTITIES] = [const { OnceLock::new() }; IDENTITIES];
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
    LinkSecret::from_bytes([1 + u8::try_from(number).expect("few identities"); 32])
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
        let mut descriptor = Descriptor {
            identity: identity(number).public(),
            sequence: 1,
            valid_from: UnixTime(EPOCH.0 - 3_600),
            valid_until: UnixTime(EPOCH.0 + 30 * 86_400),
            protocol: ProtocolVersion::V1,
            roles: Roles { relay: true, exit: true, constrained: false },
            link_key: link_secret(number).public().0,
            onion_key: onion_secret(number, kind, 0).public(),
            addresses: [address(number)].into_iter().collect(),
            exit_ports: [PortRange::ALL].into_iter().collect(),
            signature: [0; 256],
        };
        let mut bytes = [0; DESCRIPTOR_MAX_LEN];
        let len = descriptor.emit_unsigned(&mut bytes).expect("a descriptor fits");
        let mut rng = ChaCha20Rng::seed_from_u64(number as u64);
        descriptor.signature =
            identity(number).sign(&mut rng, &[SIGNING_CONTEXT, &bytes[..len]]).expect("test keys are sound");
        let len = descriptor.emit(&mut bytes).expect("a descriptor fits");
        bytes[..len].to_vec()
    })
}
