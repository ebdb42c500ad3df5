//! Network groups: addresses that one operator gets together.

use core::net::IpAddr;

/// The part of an address that is expensive to have many of: an IPv4 /16 or an IPv6 /32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetworkGroup {
    /// The first 16 bits of an IPv4 address, IPv4-mapped IPv6 addresses included.
    V4([u8; 2]),
    /// The first 32 bits of an IPv6 address.
    V6([u8; 4]),
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
}
