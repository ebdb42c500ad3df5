//! Descriptors for tests.

use std::sync::LazyLock;

use bulbil_core::crypto::identity::IdentitySecret;
use bulbil_core::wire::descriptor::{DESCRIPTOR_MAX_LEN, SIGNING_CONTEXT};
use bulbil_core::wire::{Descriptor, OnionKey, ProtocolVersion, Roles, UnixTime};

use super::file;
use crate::engine::shell::unix_time;
use crate::random::SYSTEM;

static IDENTITIES: [LazyLock<IdentitySecret>; 3] =
    [const { LazyLock::new(|| IdentitySecret::generate(&mut SYSTEM.clone())) }; 3];

/// The descriptor of one of three nodes, signed.
pub(crate) fn signed(number: usize, change: impl FnOnce(&mut Descriptor)) -> Descriptor {
    let identity = &IDENTITIES[number];
    let now = unix_time();
    let mut descriptor = Descriptor {
        identity: identity.public(),
        sequence: 7,
        valid_from: UnixTime(now.0 - 3600),
        valid_until: UnixTime(now.0 + 3600),
        protocol: ProtocolVersion::V1,
        roles: Roles { relay: true, exit: false, constrained: number == 1 },
        link_key: [9; 32],
        onion_key: OnionKey::XWing([number as u8; 1216]),
        addresses: [format!("192.{number}.2.7:9001").parse().unwrap()].into_iter().collect(),
        exit_ports: Default::default(),
        signature: [0; 256],
    };
    change(&mut descriptor);
    let mut bytes = [0; DESCRIPTOR_MAX_LEN];
    let len = descriptor.emit_unsigned(&mut bytes).unwrap();
    descriptor.signature = identity.sign(&mut SYSTEM.clone(), &[SIGNING_CONTEXT, &bytes[..len]]).unwrap();
    descriptor
}

/// A file with these descriptors, good or not.
pub(crate) fn file_of(descriptors: &[Descriptor]) -> String {
    let mut text = file::heading();
    for descriptor in descriptors {
        let mut bytes = [0; DESCRIPTOR_MAX_LEN];
        let len = descriptor.emit(&mut bytes).unwrap();
        file::push_block(&mut text, &bytes[..len]);
    }
    text
}
