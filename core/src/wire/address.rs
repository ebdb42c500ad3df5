//! Addresses, node ids and targets, `PROTOCOL.md` section 2.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Reader, WireError, Writer};

/// Bytes of an address in a hop's instruction, whatever its family.
pub const ADDRESS_FIXED_LEN: usize = 19;
/// Longest encoded address in bytes.
pub const ADDRESS_MAX_LEN: usize = 19;
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

/// What an exit connects to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// A host and a TCP port, not 0.
    Tcp(Host, u16),
    /// A service inside the exit itself.
    Service(Service),
}

/// A host, by address or by a name that the exit resolves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A name.
    Name(Name),
}

/// A host's name: 1 to 253 bytes of `[A-Za-z0-9._-]`, not beginning with a dot or a hyphen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(heapless::String<NAME_MAX_LEN>);

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
        let (name, port) = text.rsplit_once(':').ok_or(WireError::Invalid)?;
        let port = port.parse().ok().filter(|&port: &u16| port != 0).ok_or(WireError::Invalid)?;
        Ok(Self::Tcp(Host::Name(Name::new(name)?), port))
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(Host::Ip(address.ip()), address.port())
    }
}
