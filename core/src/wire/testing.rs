//! What the tests of every wire structure share: strategies for its parts and the checks of the contract that the
//! module documents.

use core::fmt::Debug;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::vec::Vec;

use proptest::prelude::*;

use super::descriptor::{EXIT_RANGES_MAX, RSA_LEN, XWING_KEY_LEN};
use super::{
    Descriptor, Host, Name, OnionKey, PortRange, ProtocolVersion, Roles, Service, Target, UnixTime, WireError,
};

/// A structure that fills its input exactly, with one spelling for every value.
pub(crate) trait Canonical: Sized + PartialEq + Debug {
    fn decode(bytes: &[u8]) -> Result<Self, WireError>;
    fn encode(&self, buffer: &mut [u8]) -> Result<usize, WireError>;
}

/// `value`'s bytes, emitted over a pattern that shows bytes left unwritten or written past the end.
pub(crate) fn encoded<T: Canonical>(value: &T) -> Vec<u8> {
    let mut buffer = [0xa5; 4096];
    let len = value.encode(&mut buffer).unwrap();
    assert!(buffer[len..].iter().all(|&byte| byte == 0xa5), "wrote past its length");
    let mut other = [0x5a; 4096];
    assert_eq!(value.encode(&mut other), Ok(len));
    assert_eq!(buffer[..len], other[..len], "left bytes unwritten");
    buffer[..len].to_vec()
}

/// Round trip, every truncation, every single-byte extension, every buffer that is too short.
pub(crate) fn assert_canonical<T: Canonical>(value: &T) {
    let bytes = encoded(value);
    assert_eq!(T::decode(&bytes).as_ref(), Ok(value));
    assert_rejects_misfits(&bytes, |input| T::decode(input).map(|_| ()));
    let mut buffer = std::vec![0; bytes.len()];
    for len in 0..bytes.len() {
        assert_eq!(value.encode(&mut buffer[..len]), Err(WireError::NoRoom), "emitted into {len} bytes");
    }
    assert_eq!(value.encode(&mut buffer), Ok(bytes.len()));
}

/// Every proper prefix of `bytes` and every `bytes` with one more byte is rejected.
pub(crate) fn assert_rejects_misfits(bytes: &[u8], decode: impl Fn(&[u8]) -> Result<(), WireError>) {
    for len in 0..bytes.len() {
        assert!(decode(&bytes[..len]).is_err(), "accepted the first {len} of {} bytes", bytes.len());
    }
    let mut extended = bytes.to_vec();
    extended.push(0);
    for byte in 0..=u8::MAX {
        *extended.last_mut().unwrap() = byte;
        assert!(decode(&extended).is_err(), "accepted a trailing {byte:#04x}");
    }
}

/// A non-zero byte anywhere from `used` on is rejected, in each of its eight bits.
pub(crate) fn assert_rejects_padding<const N: usize>(
    bytes: &[u8; N],
    used: usize,
    mut decode: impl FnMut(&mut [u8; N]) -> Result<(), WireError>,
) {
    assert_eq!(decode(&mut bytes.clone()), Ok(()));
    for position in used..N {
        for bit in 0..8 {
            let mut spoilt = *bytes;
            assert_eq!(spoilt[position], 0, "padding at {position}");
            spoilt[position] = 1 << bit;
            assert_eq!(decode(&mut spoilt), Err(WireError::NotZero), "padding at {position}");
        }
    }
}

/// Whatever decodes, encodes to the same bytes.
pub(crate) fn assert_no_second_spelling<T: Canonical>(bytes: &[u8]) {
    if let Ok(value) = T::decode(bytes) {
        assert_eq!(encoded(&value), bytes);
    }
}

/// `bytes` with a few of its bytes replaced: nearly valid inputs.
pub(crate) fn mutated(bytes: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let len = bytes.len();
    proptest::collection::vec((0..len, any::<u8>()), 0..4).prop_map(move |changes| {
        let mut bytes = bytes.clone();
        for (position, byte) in changes {
            bytes[position] = byte;
        }
        bytes
    })
}

pub(crate) fn any_address() -> impl Strategy<Value = SocketAddr> {
    (any_ip(), 1..=u16::MAX).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

pub(crate) fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(|octets| Ipv4Addr::from_octets(octets).into()),
        any::<[u8; 16]>().prop_map(|octets| Ipv6Addr::from_octets(octets).into()),
        any::<[u8; 4]>().prop_map(|octets| Ipv4Addr::from_octets(octets).to_ipv6_mapped().into()),
    ]
}

pub(crate) fn any_name() -> impl Strategy<Value = Name> {
    "[A-Za-z0-9_][A-Za-z0-9._-]{0,252}".prop_map(|text| Name::new(&text).unwrap())
}

pub(crate) fn any_target() -> impl Strategy<Value = Target> {
    prop_oneof![
        any_address().prop_map(Target::from),
        (any_name(), 1..=u16::MAX).prop_map(|(name, port)| Target::Tcp(Host::Name(name), port)),
        Just(Target::Service(Service::Phonebook)),
    ]
}

pub(crate) fn any_port_range() -> impl Strategy<Value = PortRange> {
    (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| PortRange::new(a.min(b), a.max(b)).unwrap())
}

/// Ascending ranges that do not touch, at most as many as a descriptor holds.
fn any_exit_ports() -> impl Strategy<Value = heapless::Vec<PortRange, EXIT_RANGES_MAX>> {
    let bounds = proptest::collection::btree_set((1..=u16::MAX / 2).prop_map(|port| 2 * port), 0..=2 * EXIT_RANGES_MAX);
    // Even bounds keep two ranges from touching.
    bounds.prop_map(|bounds| {
        let bounds: Vec<u16> = bounds.into_iter().collect();
        bounds.chunks_exact(2).map(|pair| PortRange::new(pair[0], pair[1]).unwrap()).collect()
    })
}

fn any_modulus() -> impl Strategy<Value = [u8; RSA_LEN]> {
    any_bytes().prop_map(|mut modulus: [u8; RSA_LEN]| {
        modulus[0] |= 0x80;
        modulus[RSA_LEN - 1] |= 1;
        modulus
    })
}

/// Arrays longer than the 32 elements that proptest knows; unlike there, all bytes come from one seed and shrink with it.
pub(crate) fn any_bytes<const N: usize>() -> impl Strategy<Value = [u8; N]> {
    any::<u64>().prop_map(|seed| {
        let mut state = seed;
        core::array::from_fn(|_| {
            // Knuth's MMIX constants; only variety is needed.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
    })
}

pub(crate) fn any_descriptor() -> impl Strategy<Value = Descriptor> {
    let keys = (
        any_modulus(),
        prop_oneof![any_modulus().prop_map(OnionKey::Rsa2048), any_bytes::<XWING_KEY_LEN>().prop_map(OnionKey::XWing)],
        any::<[u8; 32]>(),
        any_bytes::<RSA_LEN>(),
    );
    let times = (any::<u64>(), 0..u64::MAX).prop_flat_map(|(sequence, from)| {
        (from + 1..=u64::MAX).prop_map(move |until| (sequence, UnixTime(from), UnixTime(until)))
    });
    let contact = (proptest::collection::vec(any_address(), 1..=4), any_exit_ports());
    let offers = (1..=u16::MAX, any::<bool>(), any::<bool>());
    (keys, times, contact, offers).prop_map(
        |(
            (identity, onion_key, link_key, signature),
            (sequence, valid_from, valid_until),
            (addresses, exit_ports),
            (protocol, relay, constrained),
        )| Descriptor {
            identity,
            sequence,
            valid_from,
            valid_until,
            protocol: ProtocolVersion::new(protocol).unwrap(),
            roles: Roles { relay, exit: !exit_ports.is_empty(), constrained },
            link_key,
            onion_key,
            addresses: addresses.into_iter().collect(),
            exit_ports,
            signature,
        },
    )
}
