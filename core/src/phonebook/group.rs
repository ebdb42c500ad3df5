//! Network groups: addresses that one operator gets together.

use core::net::{IpAddr, SocketAddr};

use sha2::{Digest, Sha256};

use crate::wire::WireError;

/// The part of an address that is expensive to have many of: an IPv4 /16 or an IPv6 /32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetworkGroup {
    /// The first 16 bits of an IPv4 address, IPv4-mapped IPv6 addresses included.
    V4([u8; 2]),
    /// The first 32 bits of an IPv6 address.
    V6([u8; 4]),
    /// One address and port, by the first 32 bits of their hash: where [`Grouping::Address`] holds.
    Address([u8; 4]),
}

impl NetworkGroup {
    /// Bytes of a group in hashes and in storage.
    pub(super) const LEN: usize = 5;

    /// The same number of bytes for each, and no two alike.
    pub(super) const fn to_bytes(self) -> [u8; Self::LEN] {
        match self {
            Self::V4([a, b]) => [4, a, b, 0, 0],
            Self::V6([a, b, c, d]) => [6, a, b, c, d],
            Self::Address([a, b, c, d]) => [1, a, b, c, d],
        }
    }

    pub(super) const fn from_bytes(bytes: [u8; Self::LEN]) -> Result<Self, WireError> {
        match bytes {
            [4, a, b, 0, 0] => Ok(Self::V4([a, b])),
            [4, ..] => Err(WireError::NotZero),
            [6, a, b, c, d] => Ok(Self::V6([a, b, c, d])),
            [1, a, b, c, d] => Ok(Self::Address([a, b, c, d])),
            _ => Err(WireError::UnknownCode),
        }
    }
}

impl From<IpAddr> for NetworkGroup {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let [a, b, ..] = ip.octets();
                Self::V4([a, b])
            }
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.octets();
                Self::V6([a, b, c, d])
            }
        }
    }
}

/// What counts as a network group, `PROTOCOL.md` section 18.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Grouping {
    /// An IPv4 /16, an IPv6 /32.
    #[default]
    Network,
    /// Each address and port by itself: a test network on one machine, where all nodes would be one group.
    Address,
}

impl Grouping {
    /// The group of an address.
    #[must_use]
    pub fn group_of(self, address: SocketAddr) -> NetworkGroup {
        match self {
            Self::Network => address.ip().into(),
            Self::Address => {
                let mut hash = Sha256::new();
                match address.ip().to_canonical() {
                    IpAddr::V4(ip) => hash.update(ip.octets()),
                    IpAddr::V6(ip) => hash.update(ip.octets()),
                }
                let [a, b, c, d, ..]: [u8; 32] = hash.chain_update(address.port().to_be_bytes()).finalize().into();
                NetworkGroup::Address([a, b, c, d])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_slash_16_and_slash_32() {
        let group = |text: &str| NetworkGroup::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(group("192.0.2.1"), group("192.0.255.255"));
        assert_ne!(group("192.0.2.1"), group("192.1.2.1"));
        assert_eq!(group("::ffff:192.0.2.1"), group("192.0.7.1"));
        assert_eq!(group("2001:db8::1"), group("2001:db8:ffff::1"));
        assert_ne!(group("2001:db8::1"), group("2001:db9::1"));
    }

    #[test]
    fn on_one_machine_each_address_and_port_is_a_group() {
        let group = |text: &str| Grouping::Address.group_of(text.parse().unwrap());
        assert_eq!(group("127.0.0.1:9001"), group("127.0.0.1:9001"));
        assert_eq!(group("[::ffff:127.0.0.1]:9001"), group("127.0.0.1:9001"));
        assert_ne!(group("127.0.0.1:9001"), group("127.0.0.1:9002"));
        assert_ne!(group("127.0.0.1:9001"), group("127.0.0.2:9001"));
        assert_eq!(group("[2001:db8::1]:9001"), group("[2001:db8::1]:9001"));
        assert_ne!(group("[2001:db8::1]:9001"), group("[2001:db8::1]:9002"));
        assert_ne!(group("[2001:db8::1]:9001"), group("[2001:db8::2]:9001"));
        let network = |text: &str| Grouping::Network.group_of(text.parse().unwrap());
        assert_eq!(network("127.0.0.1:9001"), network("127.0.3.9:77"));
    }

    #[test]
    fn bytes_tell_groups_apart_and_come_back() {
        let groups = [
            NetworkGroup::V4([1, 2]),
            NetworkGroup::V4([1, 3]),
            NetworkGroup::V6([1, 2, 0, 0]),
            NetworkGroup::Address([1, 2, 0, 0]),
        ];
        for (at, group) in groups.iter().enumerate() {
            assert_eq!(NetworkGroup::from_bytes(group.to_bytes()), Ok(*group));
            assert!(groups[at + 1..].iter().all(|other| other.to_bytes() != group.to_bytes()));
        }
        assert_eq!(NetworkGroup::from_bytes([4, 1, 2, 0, 1]), Err(WireError::NotZero));
        for code in [0, 2, 3, 5, 7, 255] {
            assert_eq!(NetworkGroup::from_bytes([code, 0, 0, 0, 0]), Err(WireError::UnknownCode));
        }
        assert_eq!(size_of::<NetworkGroup>(), 5);
    }
}
