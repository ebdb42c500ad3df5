//! Made-up nodes for the tests of the phonebook.

use core::net::Ipv4Addr;
use std::sync::Arc;
use std::vec::Vec;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use super::{BookKey, Entry, Evidence, FAILURE_PAUSE, Grouping, Phonebook, Shelves, VerifiedDescriptor};
use crate::wire::descriptor::{RSA_LEN, XWING_KEY_LEN};
use crate::wire::{Descriptor, NodeId, OnionKey, PortRange, ProtocolVersion, Roles, UnixTime};

/// The time at which the made-up descriptors are valid.
pub(super) const NOW: UnixTime = UnixTime(1_700_000_000);

/// What a host's phonebook holds.
pub(super) type Card = Arc<VerifiedDescriptor>;

/// A relay in a network group of its own; `number` makes its identity.
pub(super) fn descriptor(number: u16) -> Descriptor {
    numbered(number.into())
}

/// As [`descriptor`] for more numbers; those that agree in the lower 16 bits share a network group.
pub(super) fn numbered(number: u32) -> Descriptor {
    let [upper, third, high, low] = number.to_be_bytes();
    let mut identity = [0xff; RSA_LEN];
    identity[1..5].copy_from_slice(&[high, low, upper, third]);
    Descriptor {
        identity,
        sequence: 1,
        valid_from: UnixTime(NOW.0 - 3600),
        valid_until: UnixTime(NOW.0 + 86_400),
        protocol: ProtocolVersion::V1,
        roles: Roles { relay: true, exit: false, constrained: false },
        link_key: [1; 32],
        onion_key: OnionKey::XWing([2; XWING_KEY_LEN]),
        addresses: heapless::Vec::from_array([(Ipv4Addr::new(high, low, upper, third), 9000).into()]),
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

/// `descriptor` moved into the network group `10.group`.
pub(super) fn in_group(mut descriptor: Descriptor, group: u8) -> Descriptor {
    let [.., c, d] = descriptor.identity[..3] else { unreachable!() };
    descriptor.addresses[0].set_ip([10, group, c, d].into());
    descriptor
}

/// `descriptor(number)`, taken as verified.
pub(super) fn card(number: u16) -> VerifiedDescriptor {
    VerifiedDescriptor::unchecked(descriptor(number))
}

/// `descriptor`, taken as verified.
pub(super) fn shared(descriptor: Descriptor) -> Card {
    Arc::new(VerifiedDescriptor::unchecked(descriptor))
}

/// `descriptor(number)` with a change, taken as verified.
pub(super) fn with(number: u16, change: impl FnOnce(&mut Descriptor)) -> Card {
    let mut descriptor = descriptor(number);
    change(&mut descriptor);
    shared(descriptor)
}

/// What node `number` is called.
pub(super) fn node(number: u16) -> NodeId {
    card(number).node()
}

/// `seconds` after [`NOW`].
pub(super) fn later(seconds: u64) -> UnixTime {
    UnixTime(NOW.0 + seconds)
}

/// A host's memory for a phonebook.
#[derive(Debug, Clone)]
pub(super) struct Room {
    pub(super) tried: Vec<Option<Entry<Card>>>,
    pub(super) new: Vec<Option<Entry<Card>>>,
    pub(super) evidence: Vec<Option<Evidence<Card>>>,
}

impl Room {
    pub(super) fn new(tried: usize, new: usize) -> Self {
        Self { tried: std::vec![None; tried], new: std::vec![None; new], evidence: std::vec![None; 3] }
    }

    pub(super) fn shelves(&mut self) -> Shelves<'_, Card> {
        Shelves { tried: &mut self.tried, new: &mut self.new, evidence: &mut self.evidence }
    }

    /// The phonebook in here, with what is in it already; its key is always the same.
    pub(super) fn book(&mut self) -> Phonebook<'_, Card> {
        let (key, grouping) = (BookKey::new([7; 32]), Grouping::Network);
        Phonebook {
            shelves: self.shelves(),
            key,
            own: None,
            grouping,
            clock_in_doubt: false,
            failure_pause: FAILURE_PAUSE,
        }
    }
}

/// A generator that gives the same draws in every run.
pub(super) fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

/// Fails unless `counts` may come from draws with equal probability; `quantile` is that of chi-squared for 99.9 %.
pub(super) fn assert_uniform(counts: &[u32], quantile: f64) {
    let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
    let statistic: f64 = counts.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum();
    assert!(statistic < quantile, "{statistic} {counts:?}");
}
