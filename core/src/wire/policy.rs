//! Exit policies, `PROTOCOL.md` section 12: ordered rules about which targets an exit connects to.
//!
//! A policy is written one rule per line, `accept` or `reject`, then `NETWORK:PORTS`:
//!
//! ```text
//! reject *:25                  # every network
//! accept 192.0.2.0/24:80-443   # IPv4; without /LENGTH a single address
//! accept [2001:db8::]/32:*     # IPv6, in brackets
//! reject private:*             # every network that is not part of the public Internet
//! accept *:*
//! ```
//!
//! The first rule that matches decides; a target that none matches is rejected. An IPv4-mapped IPv6 address is judged as
//! the IPv4 address in it.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::str::FromStr;

use heapless::Vec;

use super::PortRange;
use super::descriptor::EXIT_RANGES_MAX;

/// Most rules of a policy.
pub const RULES_MAX: usize = 32;

/// What a policy says about a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The exit may connect.
    Accept,
    /// The exit must not connect.
    Reject,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "accept",
            Self::Reject => "reject",
        })
    }
}

/// Why a text is not a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RuleError {
    /// Not `accept` or `reject`, a space and `NETWORK:PORTS`.
    Syntax,
    /// Not `*`, `private`, an IPv4 network or an IPv6 network in brackets.
    Network,
    /// The address has bits set behind the prefix.
    HostBits,
    /// An IPv4-mapped IPv6 network, which never matches: addresses in it are judged as IPv4.
    Mapped,
    /// Not `*`, a port or a range of ports; port 0 is none.
    Ports,
    /// More than [`RULES_MAX`] rules.
    TooMany,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syntax => "expected accept or reject and NETWORK:PORTS",
            Self::Network => "network is not *, private, 192.0.2.0/24 or [2001:db8::]/32",
            Self::HostBits => "address has bits set behind its prefix",
            Self::Mapped => "IPv4-mapped network; write it as IPv4",
            Self::Ports => "ports are not *, 80 or 80-443",
            Self::TooMany => "more than 32 rules",
        })
    }
}

impl core::error::Error for RuleError {}

/// The first line of a text that is not a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PolicyError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: RuleError,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl core::error::Error for PolicyError {}

/// A set of addresses that a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Network {
    /// Every address.
    Any,
    /// Every address that is not part of the public Internet: loopback, private, shared, link-local, multicast,
    /// unspecified, documentation, benchmarking and reserved ranges, and the IPv6 ranges that lead to IPv4 addresses.
    Private,
    /// The addresses that begin with the prefix.
    Prefix(Prefix),
}

/// An address prefix; the bits behind it are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// The addresses whose first `len` bits are those of `address`.
    ///
    /// # Errors
    /// [`RuleError::Network`] for a length beyond the family's, [`RuleError::HostBits`], [`RuleError::Mapped`].
    pub const fn new(address: IpAddr, len: u8) -> Result<Self, RuleError> {
        let host_bits = match address {
            IpAddr::V4(ip) if len <= 32 => ip.to_bits() & !mask_v4(len) != 0,
            IpAddr::V6(ip) if len <= 128 => {
                if len >= 96 && ip.to_ipv4_mapped().is_some() {
                    return Err(RuleError::Mapped);
                }
                ip.to_bits() & !mask_v6(len) != 0
            }
            _ => return Err(RuleError::Network),
        };
        if host_bits { Err(RuleError::HostBits) } else { Ok(Self { address, len }) }
    }

    /// Whether `ip`, already freed of IPv4 mapping, begins with the prefix.
    fn contains(self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(prefix), IpAddr::V4(ip)) => ip.to_bits() & mask_v4(self.len) == prefix.to_bits(),
            (IpAddr::V6(prefix), IpAddr::V6(ip)) => ip.to_bits() & mask_v6(self.len) == prefix.to_bits(),
            _ => false,
        }
    }
}

const fn mask_v4(len: u8) -> u32 {
    match u32::MAX.checked_shl(32 - len as u32) {
        Some(mask) => mask,
        None => 0,
    }
}

const fn mask_v6(len: u8) -> u128 {
    match u128::MAX.checked_shl(128 - len as u32) {
        Some(mask) => mask,
        None => 0,
    }
}

const fn v4(a: u8, b: u8, c: u8, len: u8) -> Prefix {
    match Prefix::new(IpAddr::V4(Ipv4Addr::new(a, b, c, 0)), len) {
        Ok(prefix) => prefix,
        Err(_) => panic!("not a prefix"),
    }
}

const fn v6(a: u16, b: u16, c: u16, len: u8) -> Prefix {
    match Prefix::new(IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0)), len) {
        Ok(prefix) => prefix,
        Err(_) => panic!("not a prefix"),
    }
}

const LOOPBACK: [Prefix; 2] = [v4(127, 0, 0, 8), Prefix { address: IpAddr::V6(Ipv6Addr::LOCALHOST), len: 128 }];

/// What [`Network::Private`] stands for, after the IANA special-purpose address registries.
const PRIVATE: [Prefix; 26] = [
    v4(0, 0, 0, 8),           // unspecified, "this network"
    v4(10, 0, 0, 8),          // private use
    v4(100, 64, 0, 10),       // shared address space (carrier NAT)
    v4(127, 0, 0, 8),         // loopback
    v4(169, 254, 0, 16),      // link-local, with the metadata services of clouds
    v4(172, 16, 0, 12),       // private use
    v4(192, 0, 0, 24),        // protocol assignments
    v4(192, 0, 2, 24),        // documentation
    v4(192, 168, 0, 16),      // private use
    v4(198, 18, 0, 15),       // benchmarking
    v4(198, 51, 100, 24),     // documentation
    v4(203, 0, 113, 24),      // documentation
    v4(224, 0, 0, 4),         // multicast
    v4(240, 0, 0, 4),         // reserved, broadcast
    v6(0, 0, 0, 96),          // unspecified, loopback, IPv4-compatible
    v6(0x64, 0xff9b, 0, 96),  // NAT64: an IPv4 address, perhaps a private one, behind a translator
    v6(0x64, 0xff9b, 1, 48),  // NAT64, local use
    v6(0x100, 0, 0, 64),      // discard-only
    v6(0x2001, 0, 0, 23),     // protocol assignments: Teredo, benchmarking, ORCHID
    v6(0x2001, 0xdb8, 0, 32), // documentation
    v6(0x2002, 0, 0, 16),     // 6to4: an IPv4 address, perhaps a private one
    v6(0x3fff, 0, 0, 20),     // documentation
    v6(0xfc00, 0, 0, 7),      // unique local
    v6(0xfe80, 0, 0, 10),     // link-local
    v6(0xfec0, 0, 0, 10),     // site-local, deprecated
    v6(0xff00, 0, 0, 8),      // multicast
];

impl Network {
    /// The network of one address.
    ///
    /// # Errors
    /// [`RuleError::Mapped`].
    pub const fn host(address: IpAddr) -> Result<Self, RuleError> {
        let len = if address.is_ipv4() { 32 } else { 128 };
        match Prefix::new(address, len) {
            Ok(prefix) => Ok(Self::Prefix(prefix)),
            Err(error) => Err(error),
        }
    }

    /// Whether `ip`, already freed of IPv4 mapping, is in the network.
    fn contains(self, ip: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Private => PRIVATE.iter().any(|prefix| prefix.contains(ip)),
            Self::Prefix(prefix) => prefix.contains(ip),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Private => f.write_str("private"),
            Self::Prefix(Prefix { address: IpAddr::V4(ip), len: 32 }) => write!(f, "{ip}"),
            Self::Prefix(Prefix { address: IpAddr::V4(ip), len }) => write!(f, "{ip}/{len}"),
            Self::Prefix(Prefix { address: IpAddr::V6(ip), len: 128 }) => write!(f, "[{ip}]"),
            Self::Prefix(Prefix { address: IpAddr::V6(ip), len }) => write!(f, "[{ip}]/{len}"),
        }
    }
}

impl FromStr for Network {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        match text {
            "*" => return Ok(Self::Any),
            "private" => return Ok(Self::Private),
            _ => {}
        }
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let address: IpAddr = match address.strip_prefix('[') {
            Some(rest) => {
                let inner = rest.strip_suffix(']').ok_or(RuleError::Network)?;
                inner.parse::<Ipv6Addr>().map_err(|_| RuleError::Network)?.into()
            }
            None => address.parse::<Ipv4Addr>().map_err(|_| RuleError::Network)?.into(),
        };
        match len {
            None => Self::host(address),
            Some(len) if len.bytes().all(|byte| byte.is_ascii_digit()) => {
                Prefix::new(address, len.parse().map_err(|_| RuleError::Network)?).map(Self::Prefix)
            }
            Some(_) => Err(RuleError::Network),
        }
    }
}

/// One line of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rule {
    /// What is said about the targets that match.
    pub verdict: Verdict,
    /// The addresses that match.
    pub network: Network,
    /// The ports that match.
    pub ports: PortRange,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}:{}", self.verdict, self.network, self.ports)
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (verdict, pattern) = text.trim().split_once([' ', '\t']).ok_or(RuleError::Syntax)?;
        let verdict = match verdict {
            "accept" => Verdict::Accept,
            "reject" => Verdict::Reject,
            _ => return Err(RuleError::Syntax),
        };
        let (network, ports) = pattern.trim_start().rsplit_once(':').ok_or(RuleError::Syntax)?;
        Ok(Self { verdict, network: network.parse()?, ports: ports.parse().map_err(|_| RuleError::Ports)? })
    }
}

/// An exit's policy: at most [`RULES_MAX`] rules, the first that matches decides, and what none matches is rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule, RULES_MAX>,
}

const EVERYTHING: Rule = Rule { verdict: Verdict::Accept, network: Network::Any, ports: PortRange::ALL };
const NO_PRIVATE: Rule = Rule { verdict: Verdict::Reject, network: Network::Private, ports: PortRange::ALL };
const NO_MAIL: Rule =
    Rule { verdict: Verdict::Reject, network: Network::Any, ports: PortRange::single(25).expect("25 is a port") };

impl Default for Policy {
    /// The public Internet without port 25, which would make the exit a source of spam.
    fn default() -> Self {
        Self { rules: Vec::from_array([NO_PRIVATE, NO_MAIL, EVERYTHING]) }
    }
}

impl Policy {
    /// The policy that rejects everything.
    #[must_use]
    pub const fn reject_all() -> Self {
        Self { rules: Vec::new() }
    }

    /// Every address on the public network: where other nodes of a public node can be.
    #[must_use]
    pub fn public() -> Self {
        Self { rules: Vec::from_array([NO_PRIVATE, EVERYTHING]) }
    }

    /// For test networks on one machine: as the default, but loopback is allowed, except port 25.
    #[must_use]
    pub fn loopback() -> Self {
        let accept = |network| Rule { verdict: Verdict::Accept, network, ports: PortRange::ALL };
        let [v4_loopback, v6_loopback] = LOOPBACK.map(|prefix| accept(Network::Prefix(prefix)));
        Self { rules: Vec::from_array([NO_MAIL, v4_loopback, v6_loopback, NO_PRIVATE, EVERYTHING]) }
    }

    /// Adds a rule behind the others.
    ///
    /// # Errors
    /// [`RuleError::TooMany`] if there are [`RULES_MAX`] already.
    pub fn push(&mut self, rule: Rule) -> Result<(), RuleError> {
        self.rules.push(rule).map_err(|_| RuleError::TooMany)
    }

    /// The rules in their order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What the policy says about connecting to `target`.
    #[must_use]
    pub fn decide(&self, target: SocketAddr) -> Verdict {
        let ip = target.ip().to_canonical();
        self.rules
            .iter()
            .find(|rule| rule.ports.contains(target.port()) && rule.network.contains(ip))
            .map_or(Verdict::Reject, |rule| rule.verdict)
    }

    /// The ports at which some address may be accepted, for the descriptor: ascending, not touching; empty if the
    /// policy accepts nothing. Where that takes more than 8 ranges, those with the smallest gaps between them are joined,
    /// so a port in the summary is not a promise.
    #[must_use]
    pub fn summary(&self) -> Vec<PortRange, EXIT_RANGES_MAX> {
        // The answer changes only where a rule's range begins or ends, so one port stands for all up to the next such.
        let mut starts: Vec<u16, { 2 * RULES_MAX + 1 }> = Vec::new();
        let ends = self.rules.iter().filter_map(|rule| rule.ports.high().checked_add(1));
        for start in self.rules.iter().map(|rule| rule.ports.low()).chain(ends).chain([1]) {
            starts.push(start).expect("two for each rule and one");
        }
        starts.sort_unstable();
        let next_starts = starts.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
        let accepted = starts.iter().zip(next_starts).filter_map(|(&low, high)| {
            // A start that occurs twice makes an empty range, which `new` refuses.
            PortRange::new(low, high).filter(|_| self.may_accept(low))
        });
        // An accepted stretch begins at a start, and two of them do not touch after joining.
        let mut ranges: Vec<PortRange, { 2 * RULES_MAX + 1 }> = Vec::new();
        for range in accepted {
            match ranges.last_mut() {
                Some(last) if !last.is_apart_from(range) => *last = join(*last, range),
                _ => ranges.push(range).expect("at most one for each start"),
            }
        }
        while ranges.len() > EXIT_RANGES_MAX {
            let gaps = ranges.windows(2).map(|pair| pair[1].low() - pair[0].high());
            let (closest, _) = gaps.enumerate().min_by_key(|&(_, gap)| gap).expect("more than one range");
            let later = ranges.remove(closest + 1);
            ranges[closest] = join(ranges[closest], later);
        }
        ranges.into_iter().collect()
    }

    /// Whether a rule accepts `port` for an address that no earlier rule rejects for certain.
    fn may_accept(&self, port: u16) -> bool {
        self.rules
            .iter()
            .filter(|rule| rule.ports.contains(port))
            .find(|rule| rule.verdict == Verdict::Accept || rule.network == Network::Any)
            .is_some_and(|rule| rule.verdict == Verdict::Accept)
    }
}

/// The range from the beginning of `first` to the end of `last`, which begins and ends later.
fn join(first: PortRange, last: PortRange) -> PortRange {
    PortRange::new(first.low(), last.high()).expect("the later range ends after the earlier one begins")
}

impl fmt::Display for Policy {
    /// One rule per line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rules.iter().try_for_each(|rule| writeln!(f, "{rule}"))
    }
}

impl FromStr for Policy {
    type Err = PolicyError;

    /// Parses one rule per line. Empty lines and everything from a `#` on are ignored.
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let mut policy = Self::reject_all();
        for (index, line) in text.lines().enumerate() {
            let rule = line.split('#').next().unwrap_or_default().trim();
            if !rule.is_empty() {
                let pushed = rule.parse().and_then(|rule| policy.push(rule));
                pushed.map_err(|reason| PolicyError { line: index + 1, reason })?;
            }
        }
        Ok(policy)
    }
}

#[cfg(test)]
mod tests;
