//! Made-up nodes for the tests of the phonebook.

use core::net::Ipv4Addr;
use std::vec::Vec;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use super::{Entry, VerifiedDescriptor};
use crate::wire::descriptor::{RSA_LEN, XWING_KEY_LEN};
use crate::wire::{Descriptor, OnionKey, PortRange, ProtocolVersion, Roles, UnixTime};

/// The time at which the made-up descriptors are valid.
pub(super) const NOW: UnixTime = UnixTime(1_700_000_000);

/// A relay in a network group of its own; `number` makes its identity.
pub(super) fn descriptor(number: u16) -> Descriptor {
    let [high, low] = number.to_be_bytes();
    let mut identity = [0xff; RSA_LEN];
    identity[1..3].copy_from_slice(&[high, low]);
    Descriptor {
        identity,
        sequence: 1,
        valid_from: UnixTime(NOW.0 - 3600),
        valid_until: UnixTime(NOW.0 + 86_400),
        protocol: ProtocolVersion::V1,
        roles: Roles { relay: true, exit: false, constrained: false },
        link_key: [1; 32],
        onion_key: OnionKey::XWing([2; XWING_KEY_LEN]),
        addresses: heapless::Vec::from_array([(Ipv4Addr::new(high, low, 0, 1), 9000).into()]),
        exit_ports: heapless::Vec::new(),
        signature: [3; RSA_LEN],
    }
}

/// A node that only exits, to `ports`.
pub(super) fn exit(number: u16, ports: PortRange) -> Descriptor {
    let mut descriptor = descriptor(number);
    descriptor.roles = Roles { relay: false, exit: true, constrained: false };
    descriptor.exit_ports = heapless::Vec::from_array([ports]);
    descriptor
}

/// `descriptor(number)`, taken as verified.
pub(super) fn card(number: u16) -> VerifiedDescriptor {
    VerifiedDescriptor::unchecked(descriptor(number))
}

/// Places for `capacity` entries.
pub(super) fn storage(capacity: usize) -> Vec<Option<Entry>> {
    std::vec![None; capacity]
}

/// A generator that gives the same draws in every run.
pub(super) fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}
