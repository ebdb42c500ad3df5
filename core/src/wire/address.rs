//! Addresses, node ids and targets, `PROTOCOL.md` section 2.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Reader, WireError, Writer};

/// Encoded length of an IPv4 address with its port, in bytes.
const ADDRESS_V4_LEN: usize = 1 + 4 + 2;
/// Longest encoded address, that of an IPv6 address with its port, in bytes.
pub const ADDRESS_MAX_LEN: usize = 1 + 16 + 2;
/// Shortest encoded address in bytes.
pub const ADDRESS_MIN_LEN: usize = ADDRESS_V4_LEN;
/// Bytes of an address in a hop's instruction, whatever its family.
pub const ADDRESS_FIXED_LEN: usize = ADDRESS_MAX_LEN;
/// Longest name of a host in bytes.
pub const NAME_MAX_LEN: usize = 253;
/// Longest encoded target in bytes.
pub const TARGET_MAX_LEN: usize = 1 + 1 + NAME_MAX_LEN + 2;

const FAMILY_V4: u8 = 1;
const FAMILY_V6: u8 = 2;
const KIND_NAME: u8 = 3;
const KIND_SERVICE: u8 = 4;

/// SHA-256 over a node's identity key: what a node is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 32]);

impl core::fmt::Display for NodeId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl core::str::FromStr for NodeId {
    type Err = WireError;

    /// Parses 64 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, WireError> {
        if text.len() != 64 || !text.is_ascii() {
            return Err(WireError::Invalid);
        }
        let mut id = [0; 32];
        for (byte, pair) in id.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            for &digit in pair {
                let value = char::from(digit).to_digit(16).ok_or(WireError::Invalid)?;
                *byte = *byte << 4 | value as u8;
            }
        }
        Ok(Self(id))
    }
}

/// Takes an address of either family.
///
/// # Errors
/// An unknown family, port 0, too few bytes.
pub fn parse_address(reader: &mut Reader<'_>) -> Result<SocketAddr, WireError> {
    let family = reader.u8()?;
    parse_address_of(family, reader)
}

fn parse_address_of(family: u8, reader: &mut Reader<'_>) -> Result<SocketAddr, WireError> {
    let ip: IpAddr = match family {
        FAMILY_V4 => Ipv4Addr::from_octets(*reader.array()?).into(),
        FAMILY_V6 => Ipv6Addr::from_octets(*reader.array()?).into(),
        _ => return Err(WireError::UnknownCode),
    };
    let port = parse_port(reader)?;
    Ok(SocketAddr::new(ip, port))
}

fn parse_port(reader: &mut Reader<'_>) -> Result<u16, WireError> {
    match reader.u16()? {
        0 => Err(WireError::Invalid),
        port => Ok(port),
    }
}

/// Puts an address. Flow label and scope of an IPv6 address are not carried.
///
/// # Errors
/// [`WireError::NoRoom`]; [`WireError::Invalid`] for port 0.
pub fn emit_address(address: SocketAddr, writer: &mut Writer<'_>) -> Result<(), WireError> {
    if address.port() == 0 {
        return Err(WireError::Invalid);
    }
    match address.ip() {
        IpAddr::V4(ip) => {
            writer.put(&[FAMILY_V4])?;
            writer.put(&ip.octets())?;
        }
        IpAddr::V6(ip) => {
            writer.put(&[FAMILY_V6])?;
            writer.put(&ip.octets())?;
        }
    }
    writer.put(&address.port().to_be_bytes())
}

/// Reads an address of either family from the constant space that it has in a hop's instruction.
///
/// # Errors
/// An unknown family, port 0, non-zero padding behind an IPv4 address.
pub fn parse_address_fixed(bytes: &[u8; ADDRESS_FIXED_LEN]) -> Result<SocketAddr, WireError> {
    let mut reader = Reader::new(bytes);
    let address = parse_address(&mut reader)?;
    reader.end_zeros()?;
    Ok(address)
}

/// Writes an address of either family into the constant space that it has in a hop's instruction.
///
/// # Errors
/// [`WireError::Invalid`] for port 0.
pub fn emit_address_fixed(address: SocketAddr, bytes: &mut [u8; ADDRESS_FIXED_LEN]) -> Result<(), WireError> {
    let mut writer = Writer::new(bytes);
    emit_address(address, &mut writer)?;
    writer.zero_rest();
    Ok(())
}

/// What an exit connects to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(clippy::large_enum_variant, reason = "without an allocator the name has to lie in place")]
pub enum Target {
    /// A host and a TCP port, not 0.
    Tcp(Host, u16),
    /// A service inside the exit itself.
    Service(Service),
}

/// A host, by address or by a name that the exit resolves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(clippy::large_enum_variant, reason = "without an allocator the name has to lie in place")]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A name.
    Name(Name),
}

/// A host's name: 1 to 253 bytes of `[A-Za-z0-9._-]`, not beginning with a dot or a hyphen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(heapless::String<NAME_MAX_LEN, u8>);

impl Name {
    /// The name spelled as `text`.
    ///
    /// # Errors
    /// [`WireError::Invalid`] for a name that is too long or has other characters.
    pub fn new(text: &str) -> Result<Self, WireError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if text.is_empty() || text.starts_with(['.', '-']) || !text.bytes().all(allowed) {
            return Err(WireError::Invalid);
        }
        heapless::String::try_from(text).map(Self).map_err(|_| WireError::Invalid)
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A service inside a node, reached as a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Service {
    /// The exchange of descriptors.
    Phonebook = 1,
}

impl Target {
    /// Takes a target.
    ///
    /// # Errors
    /// Unknown kinds and services, invalid names, port 0, too few bytes.
    pub fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        match reader.u8()? {
            KIND_NAME => {
                let len = usize::from(reader.u8()?);
                let name = core::str::from_utf8(reader.take(len)?).map_err(|_| WireError::Invalid)?;
                let name = Name::new(name)?;
                Ok(Self::Tcp(Host::Name(name), parse_port(reader)?))
            }
            KIND_SERVICE => match reader.u8()? {
                1 => Ok(Self::Service(Service::Phonebook)),
                _ => Err(WireError::UnknownCode),
            },
            family => {
                let address = parse_address_of(family, reader)?;
                Ok(Self::Tcp(Host::Ip(address.ip()), address.port()))
            }
        }
    }

    /// Bytes of the target on the wire.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        match self {
            Self::Tcp(Host::Ip(IpAddr::V4(_)), _) => ADDRESS_V4_LEN,
            Self::Tcp(Host::Ip(IpAddr::V6(_)), _) => ADDRESS_MAX_LEN,
            Self::Tcp(Host::Name(name), _) => 1 + 1 + name.as_str().len() + 2,
            Self::Service(_) => 1 + 1,
        }
    }

    /// Puts the target.
    ///
    /// # Errors
    /// [`WireError::NoRoom`]; [`WireError::Invalid`] for port 0.
    pub fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        match self {
            Self::Tcp(_, 0) => Err(WireError::Invalid),
            Self::Tcp(Host::Ip(ip), port) => emit_address(SocketAddr::new(*ip, *port), writer),
            Self::Tcp(Host::Name(name), port) => {
                let name = name.as_str().as_bytes();
                let len = u8::try_from(name.len()).map_err(|_| WireError::Invalid)?;
                writer.put(&[KIND_NAME, len])?;
                writer.put(name)?;
                writer.put(&port.to_be_bytes())
            }
            Self::Service(service) => writer.put(&[KIND_SERVICE, *service as u8]),
        }
    }
}

impl core::fmt::Display for Target {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Tcp(Host::Ip(ip), port) => write!(f, "{}", SocketAddr::new(*ip, *port)),
            Self::Tcp(Host::Name(name), port) => write!(f, "{}:{port}", name.as_str()),
            Self::Service(Service::Phonebook) => f.write_str("phonebook"),
        }
    }
}

impl core::str::FromStr for Target {
    type Err = WireError;

    /// Parses `host:port`, `[ipv6]:port` or `phonebook`.
    fn from_str(text: &str) -> Result<Self, WireError> {
        if text == "phonebook" {
            return Ok(Self::Service(Service::Phonebook));
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 { Err(WireError::Invalid) } else { Ok(address.into()) };
        }
        let (name, digits) = text.rsplit_once(':').ok_or(WireError::Invalid)?;
        // `u16::from_str` would also take a plus sign, and so make a name of the address in `192.0.2.1:+80`.
        let digits = Some(digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let port = digits.and_then(|digits| digits.parse().ok()).filter(|&port| port != 0);
        Ok(Self::Tcp(Host::Name(Name::new(name)?), port.ok_or(WireError::Invalid)?))
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(Host::Ip(address.ip()), address.port())
    }
}

#[cfg(test)]
mod tests {
    use std::string::{String, ToString};

    use proptest::prelude::*;

    use super::*;
    use crate::wire::testing::{
        Canonical, any_address, any_target, assert_canonical, assert_no_second_spelling, assert_rejects_padding,
        encoded, mutated,
    };

    impl Canonical for SocketAddr {
        fn decode(bytes: &[u8]) -> Result<Self, WireError> {
            let mut reader = Reader::new(bytes);
            let address = parse_address(&mut reader)?;
            reader.end().map(|()| address)
        }

        fn encode(&self, buffer: &mut [u8]) -> Result<usize, WireError> {
            let mut writer = Writer::new(buffer);
            emit_address(*self, &mut writer)?;
            Ok(writer.len())
        }
    }

    impl Canonical for Target {
        fn decode(bytes: &[u8]) -> Result<Self, WireError> {
            let mut reader = Reader::new(bytes);
            let target = Self::parse(&mut reader)?;
            reader.end().map(|()| target)
        }

        fn encode(&self, buffer: &mut [u8]) -> Result<usize, WireError> {
            let mut writer = Writer::new(buffer);
            self.emit(&mut writer)?;
            Ok(writer.len())
        }
    }

    #[test]
    fn layouts_are_as_specified() {
        let v4: SocketAddr = "192.0.2.1:258".parse().unwrap();
        assert_eq!(encoded(&v4), [1, 192, 0, 2, 1, 1, 2]);
        let v6: SocketAddr = "[2001:db8::1]:258".parse().unwrap();
        assert_eq!(encoded(&v6), [2, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2]);
        assert_eq!(encoded(&Target::from(v4)), encoded(&v4));
        let name: Target = "a.b:258".parse().unwrap();
        assert_eq!(encoded(&name), [3, 3, b'a', b'.', b'b', 1, 2]);
        assert_eq!(encoded(&Target::Service(Service::Phonebook)), [4, 1]);
    }

    #[test]
    fn rejects_unknown_kinds_and_port_zero() {
        for family in (0..=u8::MAX).filter(|family| !(1..=2).contains(family)) {
            let bytes = [&[family][..], &[9; 18]].concat();
            assert_eq!(SocketAddr::decode(&bytes), Err(WireError::UnknownCode));
        }
        for kind in (0..=u8::MAX).filter(|kind| !(1..=4).contains(kind)) {
            assert_eq!(Target::decode(&[kind, 1, 1, 1, 1, 1, 1]), Err(WireError::UnknownCode));
        }
        for service in (0..=u8::MAX).filter(|&service| service != 1) {
            assert_eq!(Target::decode(&[4, service]), Err(WireError::UnknownCode));
        }
        assert_eq!(SocketAddr::decode(&[1, 1, 2, 3, 4, 0, 0]), Err(WireError::Invalid));
        assert_eq!(Target::decode(&[3, 1, b'a', 0, 0]), Err(WireError::Invalid));
        let mut buffer = [0; 32];
        let unset = SocketAddr::from(([127, 0, 0, 1], 0));
        assert_eq!(unset.encode(&mut buffer), Err(WireError::Invalid));
        assert_eq!(Target::from(unset).encode(&mut buffer), Err(WireError::Invalid));
        assert_eq!(Target::Tcp(Host::Name(Name::new("a").unwrap()), 0).encode(&mut buffer), Err(WireError::Invalid));
    }

    #[test]
    fn names_are_checked_byte_by_byte() {
        for byte in 0..=u8::MAX {
            let allowed = byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            let inside = [3, 2, b'a', byte, 0, 80];
            assert_eq!(Target::decode(&inside).is_ok(), allowed, "{byte:#04x} inside");
            let first = [3, 2, byte, b'a', 0, 80];
            assert_eq!(Target::decode(&first).is_ok(), allowed && !b".-".contains(&byte), "{byte:#04x} first");
        }
        assert_eq!(Target::decode(&[3, 0, 0, 80]), Err(WireError::Invalid));
        let longest: String = core::iter::repeat_n('a', NAME_MAX_LEN).collect();
        let target = Target::Tcp(Host::Name(Name::new(&longest).unwrap()), 80);
        assert_canonical(&target);
        assert_eq!(target.encoded_len(), TARGET_MAX_LEN);
        assert_eq!(Name::new(&(longest + "a")), Err(WireError::Invalid));
        for len in 254..=u8::MAX {
            let bytes = [&[3, len][..], &std::vec![b'a'; usize::from(len)], &[0, 80]].concat();
            assert_eq!(Target::decode(&bytes), Err(WireError::Invalid));
        }
    }

    #[test]
    fn address_in_an_instruction_is_padded_with_zeros() {
        let mut bytes = [0xa5; ADDRESS_FIXED_LEN];
        emit_address_fixed("192.0.2.1:258".parse().unwrap(), &mut bytes).unwrap();
        assert_rejects_padding(&bytes, ADDRESS_V4_LEN, |bytes| parse_address_fixed(bytes).map(|_| ()));
    }

    #[test]
    fn texts_that_are_no_target_are_rejected() {
        let rejected = [
            "",
            ":80",
            "a",
            "a:",
            "a:0",
            "a:+80",
            "192.0.2.1:+80",
            "a:65536",
            "a b:80",
            "-a:80",
            ".a:80",
            "[::1]:0",
            "::1:80",
            "Phonebook",
            "a:b:80",
        ];
        for text in rejected {
            assert_eq!(text.parse::<Target>(), Err(WireError::Invalid), "{text}");
        }
    }

    #[test]
    fn node_id_texts_are_64_hexadecimal_digits() {
        let id = NodeId(core::array::from_fn(|i| 7 * i as u8));
        let text = id.to_string();
        assert_eq!(text[..8], *"00070e15");
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(text.to_uppercase().parse(), Ok(id));
        for len in 0..64 {
            assert_eq!(text[..len].parse::<NodeId>(), Err(WireError::Invalid));
        }
        for position in 0..64 {
            for other in ["g", " ", "+", ":"] {
                let mut spoilt = text.clone();
                spoilt.replace_range(position..=position, other);
                assert_eq!(spoilt.parse::<NodeId>(), Err(WireError::Invalid));
            }
        }
        assert_eq!("é".repeat(32).parse::<NodeId>(), Err(WireError::Invalid));
        assert_eq!((text + "0").parse::<NodeId>(), Err(WireError::Invalid));
    }

    proptest! {
        #[test]
        fn addresses_round_trip(address in any_address()) {
            assert_canonical(&address);
            let mut fixed = [0xa5; ADDRESS_FIXED_LEN];
            emit_address_fixed(address, &mut fixed).unwrap();
            prop_assert_eq!(parse_address_fixed(&fixed), Ok(address));
            prop_assert!(fixed.starts_with(&encoded(&address)));
        }

        #[test]
        fn targets_round_trip(target in any_target()) {
            assert_canonical(&target);
            prop_assert_eq!(encoded(&target).len(), target.encoded_len());
            prop_assert_eq!(target.to_string().parse(), Ok(target));
        }

        #[test]
        fn targets_have_no_second_spelling(bytes in any_target().prop_flat_map(|target| mutated(encoded(&target)))) {
            assert_no_second_spelling::<Target>(&bytes);
            assert_no_second_spelling::<SocketAddr>(&bytes);
        }

        #[test]
        fn random_bytes_have_no_second_spelling(bytes in proptest::collection::vec(0..8u8, 0..24)) {
            assert_no_second_spelling::<Target>(&bytes);
            assert_no_second_spelling::<SocketAddr>(&bytes);
        }
    }
}
