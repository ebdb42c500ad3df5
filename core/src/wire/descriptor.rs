//! Descriptors, `PROTOCOL.md` section 3: a node's signed contact card.
//!
//! Here a descriptor is only taken apart and put together. Whether its signature holds is not checked here; what may
//! enter a phonebook or a path is the proof type that such a check yields.

use core::net::SocketAddr;
use core::time::Duration;

use heapless::Vec;
use sha2::{Digest, Sha256};

use super::address::{ADDRESS_MAX_LEN, ADDRESS_MIN_LEN, emit_address, parse_address};
use super::{NodeId, PortRange, ProtocolVersion, Reader, UnixTime, WireError, Writer};

/// Bytes of an RSA-2048 modulus, signature or ciphertext.
pub const RSA_LEN: usize = 256;
/// Bytes of an X-Wing encapsulation key.
pub const XWING_KEY_LEN: usize = 1216;
/// Most addresses of a node.
pub const ADDRESSES_MAX: usize = 4;
/// Most port ranges in an exit summary.
pub const EXIT_RANGES_MAX: usize = 8;
/// What a signature over a descriptor begins with, before the descriptor's bytes.
pub const SIGNING_CONTEXT: &[u8] = b"bulbil/1 descriptor";
/// How far outside a descriptor's validity a node still accepts it, because clocks differ.
pub const VALIDITY_GRACE: Duration = Duration::from_secs(60);

/// Format, identity, sequence, validity, protocol, roles, link key, onion key kind; both counts; signature.
const FIXED_LEN: usize = 1 + RSA_LEN + 8 + 8 + 8 + 2 + 1 + 32 + 1 + 1 + 1 + RSA_LEN;
/// Longest encoded descriptor in bytes.
pub const DESCRIPTOR_MAX_LEN: usize =
    FIXED_LEN + XWING_KEY_LEN + ADDRESSES_MAX * ADDRESS_MAX_LEN + EXIT_RANGES_MAX * PortRange::LEN;
/// Shortest encoded descriptor in bytes.
pub const DESCRIPTOR_MIN_LEN: usize = FIXED_LEN + RSA_LEN + ADDRESS_MIN_LEN;

const FORMAT: u8 = 1;
const ROLE_RELAY: u8 = 1 << 0;
const ROLE_EXIT: u8 = 1 << 1;
const ROLE_CONSTRAINED: u8 = 1 << 2;

/// The kind of a node's onion key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OnionKeyKind {
    /// RSA-2048 OAEP-SHA-256.
    Rsa2048 = 1,
    /// X25519 and ML-KEM-768.
    XWing = 2,
}

/// A node's public onion key.
#[derive(Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "without an allocator the larger key has to lie in place")]
pub enum OnionKey {
    /// A modulus; the exponent is 65537.
    Rsa2048([u8; RSA_LEN]),
    /// An X-Wing encapsulation key.
    XWing([u8; XWING_KEY_LEN]),
}

impl OnionKey {
    /// Which KEM the key is for.
    #[must_use]
    pub const fn kind(&self) -> OnionKeyKind {
        match self {
            Self::Rsa2048(_) => OnionKeyKind::Rsa2048,
            Self::XWing(_) => OnionKeyKind::XWing,
        }
    }

    /// The key as it is on the wire, 256 or 1216 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Rsa2048(modulus) => modulus,
            Self::XWing(key) => key,
        }
    }

    fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        match reader.u8()? {
            kind if kind == OnionKeyKind::Rsa2048 as u8 => reader.array().copied().map(Self::Rsa2048),
            kind if kind == OnionKeyKind::XWing as u8 => reader.array().copied().map(Self::XWing),
            _ => Err(WireError::UnknownCode),
        }
    }

    fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        writer.put(&[self.kind() as u8])?;
        writer.put(self.as_bytes())
    }
}

impl core::fmt::Debug for OnionKey {
    /// The kind only: a kilobyte of key helps nobody.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.kind().fmt(f)
    }
}

/// What a node offers to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// It passes circuits on.
    pub relay: bool,
    /// It ends circuits and connects to targets.
    pub exit: bool,
    /// It is short of memory.
    pub constrained: bool,
}

impl Roles {
    fn parse(bits: u8) -> Result<Self, WireError> {
        if bits & !(ROLE_RELAY | ROLE_EXIT | ROLE_CONSTRAINED) != 0 {
            return Err(WireError::NotZero);
        }
        Ok(Self {
            relay: bits & ROLE_RELAY != 0,
            exit: bits & ROLE_EXIT != 0,
            constrained: bits & ROLE_CONSTRAINED != 0,
        })
    }

    const fn bits(self) -> u8 {
        (self.relay as u8 * ROLE_RELAY) | (self.exit as u8 * ROLE_EXIT) | (self.constrained as u8 * ROLE_CONSTRAINED)
    }
}

/// A node's contact card, signed or about to be. About 2 KiB.
///
/// The fields may hold any combination; [`Descriptor::emit`] refuses those that section 3 does not allow, and
/// [`Descriptor::parse`] never yields them.
#[derive(Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The identity key: an RSA-2048 modulus, big-endian; the exponent is 65537.
    pub identity: [u8; RSA_LEN],
    /// Grows with every descriptor of this identity.
    pub sequence: u64,
    /// First second of the validity.
    pub valid_from: UnixTime,
    /// Last second of the validity.
    pub valid_until: UnixTime,
    /// Highest protocol version spoken.
    pub protocol: ProtocolVersion,
    /// What the node offers.
    pub roles: Roles,
    /// The X25519 static key that the node proves on its links.
    pub link_key: [u8; 32],
    /// The key that onion layers for this node are made with.
    pub onion_key: OnionKey,
    /// Where the node is reached, 1 to 4, the preferred one first.
    pub addresses: Vec<SocketAddr, ADDRESSES_MAX>,
    /// Ports that the exit may connect to: ascending, not touching; empty exactly when the node is no exit.
    pub exit_ports: Vec<PortRange, EXIT_RANGES_MAX>,
    /// RSA-PSS by the identity over [`SIGNING_CONTEXT`] and the bytes before it.
    pub signature: [u8; RSA_LEN],
}

impl Descriptor {
    /// Reads a descriptor that fills `bytes`. The signature is not checked.
    ///
    /// # Errors
    /// Unknown format or onion key kind, reserved role bits, and whatever section 3 forbids: an even or short modulus, an
    /// empty validity, no address, an exit summary that is out of order or contradicts the exit bit.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != FORMAT {
            return Err(WireError::UnknownCode);
        }
        let descriptor = Self {
            identity: *reader.array()?,
            sequence: reader.u64()?,
            valid_from: UnixTime(reader.u64()?),
            valid_until: UnixTime(reader.u64()?),
            protocol: ProtocolVersion::parse(&mut reader)?,
            roles: Roles::parse(reader.u8()?)?,
            link_key: *reader.array()?,
            onion_key: OnionKey::parse(&mut reader)?,
            addresses: parse_counted(&mut reader, parse_address)?,
            exit_ports: parse_counted(&mut reader, PortRange::parse)?,
            signature: *reader.array()?,
        };
        reader.end()?;
        descriptor.check()?;
        Ok(descriptor)
    }

    /// Writes the descriptor and returns its length in bytes, at most [`DESCRIPTOR_MAX_LEN`].
    ///
    /// # Errors
    /// [`WireError::NoRoom`]; [`WireError::Invalid`] for what section 3 forbids.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<usize, WireError> {
        let mut writer = Writer::new(buffer);
        self.emit_signed_part(&mut writer)?;
        writer.put(&self.signature)?;
        Ok(writer.len())
    }

    /// Writes the bytes that the signature is made over, without [`SIGNING_CONTEXT`], and returns their number.
    ///
    /// # Errors
    /// As [`Descriptor::emit`].
    pub fn emit_unsigned(&self, buffer: &mut [u8]) -> Result<usize, WireError> {
        let mut writer = Writer::new(buffer);
        self.emit_signed_part(&mut writer)?;
        Ok(writer.len())
    }

    fn emit_signed_part(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        self.check()?;
        writer.put(&[FORMAT])?;
        writer.put(&self.identity)?;
        writer.put(&self.sequence.to_be_bytes())?;
        writer.put(&self.valid_from.0.to_be_bytes())?;
        writer.put(&self.valid_until.0.to_be_bytes())?;
        writer.put(&self.protocol.value().to_be_bytes())?;
        writer.put(&[self.roles.bits()])?;
        writer.put(&self.link_key)?;
        self.onion_key.emit(writer)?;
        writer.put(&[self.addresses.len() as u8])?;
        self.addresses.iter().try_for_each(|address| emit_address(*address, writer))?;
        writer.put(&[self.exit_ports.len() as u8])?;
        self.exit_ports.iter().try_for_each(|range| range.emit(writer))
    }

    /// The invariants that the fields' types do not carry.
    fn check(&self) -> Result<(), WireError> {
        let onion_modulus = match &self.onion_key {
            OnionKey::Rsa2048(modulus) => is_modulus(modulus),
            OnionKey::XWing(_) => true,
        };
        let ports_apart = self.exit_ports.windows(2).all(|pair| match pair {
            [low, high] => low.is_apart_from(*high),
            _ => true,
        });
        let valid = is_modulus(&self.identity)
            && onion_modulus
            && self.valid_from < self.valid_until
            && !self.addresses.is_empty()
            && ports_apart
            && self.roles.exit != self.exit_ports.is_empty();
        if valid { Ok(()) } else { Err(WireError::Invalid) }
    }

    /// What the node is called: SHA-256 over the identity's modulus.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        NodeId(Sha256::digest(self.identity).into())
    }

    /// Whether `now` lies in the validity, give or take [`VALIDITY_GRACE`].
    #[must_use]
    pub fn is_valid_at(&self, now: UnixTime) -> bool {
        self.valid_from <= now.saturating_add(VALIDITY_GRACE) && !self.is_expired_at(now)
    }

    /// Whether the validity has ended by `now`, [`VALIDITY_GRACE`] included.
    #[must_use]
    pub fn is_expired_at(&self, now: UnixTime) -> bool {
        self.valid_until < now.saturating_sub(VALIDITY_GRACE)
    }

    /// Whether the node is an exit that may connect to `port`; its policy may still refuse the target's network.
    #[must_use]
    pub fn accepts_port(&self, port: u16) -> bool {
        self.exit_ports.iter().any(|range| range.contains(port))
    }
}

impl core::fmt::Debug for Descriptor {
    /// Neither keys nor addresses: the latter do not belong in a log.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Descriptor")
            .field("node", &format_args!("{}", self.node_id()))
            .field("sequence", &self.sequence)
            .field("roles", &self.roles)
            .field("onion_key", &self.onion_key)
            .finish_non_exhaustive()
    }
}

/// Whether `modulus` has 2048 bits and is odd.
const fn is_modulus(modulus: &[u8; RSA_LEN]) -> bool {
    modulus[0] & 0x80 != 0 && modulus[RSA_LEN - 1] & 1 != 0
}

/// Takes a list that begins with its `u8` count.
fn parse_counted<'a, T, const N: usize>(
    reader: &mut Reader<'a>,
    parse: impl Fn(&mut Reader<'a>) -> Result<T, WireError>,
) -> Result<Vec<T, N>, WireError> {
    let mut list = Vec::new();
    for _ in 0..reader.u8()? {
        // Full: the count is larger than the field allows.
        list.push(parse(reader)?).map_err(|_| WireError::Invalid)?;
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use std::format;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::testing::{
        Canonical, any_descriptor, assert_canonical, assert_no_second_spelling, assert_rejects_misfits, encoded,
        mutated,
    };

    impl Canonical for Descriptor {
        fn decode(bytes: &[u8]) -> Result<Self, WireError> {
            Self::parse(bytes)
        }

        fn encode(&self, buffer: &mut [u8]) -> Result<usize, WireError> {
            self.emit(buffer)
        }
    }

    fn ranges(bounds: &[(u16, u16)]) -> Vec<PortRange, EXIT_RANGES_MAX> {
        bounds.iter().map(|&(low, high)| PortRange::new(low, high).unwrap()).collect()
    }

    fn sample() -> Descriptor {
        Descriptor {
            identity: [0xff; RSA_LEN],
            sequence: 0x0102,
            valid_from: UnixTime(1000),
            valid_until: UnixTime(2000),
            protocol: ProtocolVersion::V1,
            roles: Roles { relay: true, exit: true, constrained: false },
            link_key: [3; 32],
            onion_key: OnionKey::XWing([4; XWING_KEY_LEN]),
            addresses: Vec::from_array(["192.0.2.1:9000".parse().unwrap()]),
            exit_ports: ranges(&[(80, 80), (443, 500)]),
            signature: [5; RSA_LEN],
        }
    }

    fn largest() -> Descriptor {
        let mut descriptor = sample();
        descriptor.addresses =
            (1..=4).map(|port| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], port))).collect();
        descriptor.exit_ports = (1..=8).map(|port| PortRange::single(2 * port).unwrap()).collect();
        descriptor
    }

    fn smallest() -> Descriptor {
        let mut descriptor = sample();
        descriptor.onion_key = OnionKey::Rsa2048([0xff; RSA_LEN]);
        descriptor.roles.exit = false;
        descriptor.exit_ports.clear();
        descriptor
    }

    #[test]
    fn layout_is_as_specified() {
        let bytes = encoded(&sample());
        assert_eq!(bytes[..2], [1, 0xff]);
        assert_eq!(bytes[256..266], [0xff, 0, 0, 0, 0, 0, 0, 1, 2, 0]);
        assert_eq!(bytes[265..281], [0, 0, 0, 0, 0, 0, 3, 0xe8, 0, 0, 0, 0, 0, 0, 7, 0xd0]);
        assert_eq!(bytes[281..286], [0, 1, 3, 3, 3]);
        assert_eq!(bytes[315..318], [3, 2, 4]);
        let rest = &bytes[317 + XWING_KEY_LEN..];
        assert_eq!(rest[..8], [1, 1, 192, 0, 2, 1, 0x23, 0x28]);
        assert_eq!(rest[8..17], [2, 0, 80, 0, 80, 1, 0xbb, 1, 0xf4]);
        assert_eq!(rest[17..], [5; RSA_LEN]);
        assert_eq!(encoded(&largest()).len(), DESCRIPTOR_MAX_LEN);
        assert_eq!(encoded(&smallest()).len(), DESCRIPTOR_MIN_LEN);
    }

    #[test]
    fn every_truncation_and_extension_is_rejected() {
        assert_canonical(&sample());
        assert_canonical(&largest());
        assert_canonical(&smallest());
    }

    #[test]
    fn unsigned_part_is_everything_before_the_signature() {
        let bytes = encoded(&sample());
        let mut buffer = [0xa5; DESCRIPTOR_MAX_LEN];
        let len = sample().emit_unsigned(&mut buffer).unwrap();
        assert_eq!(buffer[..len], bytes[..bytes.len() - RSA_LEN]);
        assert!(buffer[len..].iter().all(|&byte| byte == 0xa5));
        assert_rejects_misfits(&bytes, |input| Descriptor::parse(input).map(|_| ()));
    }

    #[test]
    fn what_section_3_forbids_is_refused_by_both_sides() {
        let spoil: [fn(&mut Descriptor); 12] = [
            |d| d.identity[0] = 0x7f,
            |d| d.identity[RSA_LEN - 1] = 0xfe,
            |d| d.onion_key = OnionKey::Rsa2048([0xfe; RSA_LEN]),
            |d| d.onion_key = OnionKey::Rsa2048([0x7f; RSA_LEN]),
            |d| d.valid_until = d.valid_from,
            |d| d.valid_from = UnixTime(2001),
            |d| d.addresses.clear(),
            |d| d.exit_ports.clear(),
            |d| d.roles.exit = false,
            |d| d.exit_ports = ranges(&[(80, 80), (81, 90)]),
            |d| d.exit_ports = ranges(&[(80, 90), (85, 100)]),
            |d| d.exit_ports = ranges(&[(443, 443), (80, 80)]),
        ];
        for (number, spoil) in spoil.into_iter().enumerate() {
            let mut descriptor = sample();
            spoil(&mut descriptor);
            let mut buffer = [0; DESCRIPTOR_MAX_LEN];
            assert_eq!(descriptor.emit(&mut buffer), Err(WireError::Invalid), "spoilt by {number}");
            // The same through the parser, past the emitter's check.
            let mut bytes = encoded(&sample());
            bytes[1..1 + RSA_LEN].copy_from_slice(&descriptor.identity);
            bytes[265..273].copy_from_slice(&descriptor.valid_from.0.to_be_bytes());
            bytes[273..281].copy_from_slice(&descriptor.valid_until.0.to_be_bytes());
            bytes[283] = descriptor.roles.bits();
            let lists = 317 + XWING_KEY_LEN;
            let tail = bytes.split_off(lists);
            if let OnionKey::Rsa2048(modulus) = &descriptor.onion_key {
                bytes.truncate(316);
                bytes.push(1);
                bytes.extend_from_slice(modulus);
            }
            bytes.push(descriptor.addresses.len() as u8);
            bytes.extend_from_slice(&tail[1..][..7 * descriptor.addresses.len()]);
            bytes.push(descriptor.exit_ports.len() as u8);
            for range in &descriptor.exit_ports {
                bytes.extend(range.low().to_be_bytes());
                bytes.extend(range.high().to_be_bytes());
            }
            bytes.extend_from_slice(&[5; RSA_LEN]);
            assert_eq!(Descriptor::parse(&bytes), Err(WireError::Invalid), "spoilt by {number}");
        }
    }

    #[test]
    fn unknown_formats_kinds_roles_and_counts_are_rejected() {
        let valid = encoded(&sample());
        let lists = 317 + XWING_KEY_LEN;
        let with = |position: usize, byte: u8| {
            let mut bytes = valid.clone();
            bytes[position] = byte;
            Descriptor::parse(&bytes).map(|_| ())
        };
        for byte in 0..=u8::MAX {
            assert_eq!(with(0, byte), if byte == 1 { Ok(()) } else { Err(WireError::UnknownCode) }, "format {byte}");
            assert_eq!(with(283, byte).is_ok(), matches!(byte, 2 | 3 | 6 | 7), "roles {byte}");
            assert_eq!(with(316, byte).is_ok(), byte == 2, "kind {byte}");
            assert_eq!(with(lists, byte).is_ok(), byte == 1, "{byte} addresses");
            assert_eq!(with(lists + 8, byte).is_ok(), byte == 2, "{byte} ranges");
        }
        assert_eq!(with(282, 0), Err(WireError::Invalid), "protocol 0");
        // One more than the field holds, with all the bytes there.
        let mut bytes = encoded(&largest());
        bytes[lists] = 5;
        let address = bytes[lists + 1..][..ADDRESS_MAX_LEN].to_vec();
        bytes.splice(lists + 1..lists + 1, address);
        assert_eq!(Descriptor::parse(&bytes), Err(WireError::Invalid));
    }

    #[test]
    fn validity_has_a_minute_of_grace_at_either_end() {
        for (now, valid) in [(0, false), (939, false), (940, true), (1500, true), (2060, true), (2061, false)] {
            assert_eq!(sample().is_valid_at(UnixTime(now)), valid, "at {now}");
            assert_eq!(sample().is_expired_at(UnixTime(now)), now == 2061, "at {now}");
        }
        let mut forever = sample();
        (forever.valid_from, forever.valid_until) = (UnixTime(0), UnixTime(u64::MAX));
        assert!(forever.is_valid_at(UnixTime(0)) && forever.is_valid_at(UnixTime(u64::MAX)));
    }

    #[test]
    fn ports_are_accepted_inclusively() {
        let accepted = [80, 443, 500];
        for port in [0, 79, 80, 81, 442, 443, 500, 501, 65535] {
            assert_eq!(sample().accepts_port(port), accepted.contains(&port), "{port}");
        }
    }

    #[test]
    fn node_id_is_sha256_of_the_modulus() {
        // `printf '\xff%.0s' {1..256} | sha256sum`
        let expected = "3d6876a0146de8576eb2395a858de1213d1b92c65b779df3a331cfd5a4584546";
        assert_eq!(format!("{}", sample().node_id()), expected);
    }

    #[test]
    fn debug_shows_no_address() {
        let text = format!("{:?}", sample());
        assert!(!text.contains("192.0.2.1") && text.contains("sequence: 258"), "{text}");
    }

    #[test]
    fn sizes_are_pinned() {
        assert!(size_of::<Descriptor>() <= 2000, "{}", size_of::<Descriptor>());
        assert_eq!(DESCRIPTOR_MAX_LEN, 1899);
        assert_eq!(DESCRIPTOR_MIN_LEN, 838);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn round_trips(descriptor in any_descriptor()) {
            assert_canonical(&descriptor);
        }
    }

    proptest! {
        #[test]
        fn has_no_second_spelling(bytes in any_descriptor().prop_flat_map(|descriptor| mutated(encoded(&descriptor)))) {
            assert_no_second_spelling::<Descriptor>(&bytes);
        }
    }
}
