//! What the owner of a constrained node decides: addresses, roles, contacts, its own request. All of it fixed at start.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::time::Duration;

use bulbil_core::phonebook::{HopCount, Strictness};
use bulbil_core::wire::descriptor::ADDRESSES_MAX;
use bulbil_core::wire::{NodeId, Policy, Target};
use smoltcp::wire::EthernetAddress;

/// Pinned contacts, at most.
pub const CONTACTS_MAX: usize = 8;
/// Name servers, at most: what smoltcp is built for here.
pub const RESOLVERS_MAX: usize = 2;
/// Bytes of the node's own request, at most: what leaves with BEGIN for a target of any length.
pub const REQUEST_MAX: usize = 224;

/// The node's place on its network.
#[derive(Debug, Clone)]
pub struct Network {
    /// The device's Ethernet address.
    pub mac: EthernetAddress,
    /// Own addresses with the lengths of their networks' prefixes.
    pub addresses: heapless::Vec<(IpAddr, u8), ADDRESSES_MAX>,
    /// The router for IPv4, if there is one.
    pub gateway_v4: Option<Ipv4Addr>,
    /// The router for IPv6, if there is one.
    pub gateway_v6: Option<Ipv6Addr>,
    /// Name servers, for an exit. Without any, targets by name are answered "not resolved".
    pub resolvers: heapless::Vec<IpAddr, RESOLVERS_MAX>,
    /// The TCP port at which links are answered, by a relay or an exit.
    pub port: u16,
}

/// A node that is known from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contact {
    /// Where.
    pub address: SocketAddr,
    /// Whom to meet there; nobody else is believed.
    pub fingerprint: NodeId,
}

/// What the node, as a client, asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Whom.
    pub target: Target,
    /// What is sent.
    pub bytes: heapless::Vec<u8, REQUEST_MAX>,
    /// How long after an answer it is sent again; `None`: once.
    pub every: Option<Duration>,
    /// The exit is asked to sign the answer.
    pub sign: bool,
    /// Hops on the path.
    pub hops: HopCount,
    /// How much different network groups matter.
    pub strictness: Strictness,
}

/// Everything that the owner decides. The roles are independent of each other; none at all is a node that does nothing.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's place on its network.
    pub network: Network,
    /// Passes circuits on.
    pub relay: bool,
    /// Ends circuits and connects to targets that the policy accepts.
    pub exit: Option<Policy>,
    /// Sends its own request through the network.
    pub client: Option<Request>,
    /// Pinned contacts: where the node learns descriptors and, without a clock, the time.
    pub contacts: heapless::Vec<Contact, CONTACTS_MAX>,
    /// How long an onion key is current; half of the time for which a stolen one opens onions.
    pub rotation: Duration,
}

impl Config {
    /// Whether the node answers links.
    #[must_use]
    pub const fn is_serving(&self) -> bool {
        self.relay || self.exit.is_some()
    }

    /// Checks what types cannot say.
    ///
    /// # Errors
    /// The sentence says what to change.
    pub fn check(&self) -> Result<(), &'static str> {
        let network = &self.network;
        if network.addresses.is_empty() {
            return Err("the node needs an address of its own");
        }
        if self.is_serving() && network.port == 0 {
            return Err("a relay or an exit needs a port to answer links at");
        }
        if !network.mac.is_unicast() {
            return Err("the Ethernet address must be that of one device: an even first byte, and not all zeros");
        }
        if self.client.is_some() && self.contacts.is_empty() {
            return Err("a client needs contacts to learn a path from");
        }
        if self.contacts.iter().any(|contact| contact.address.port() == 0) {
            return Err("a contact's port must not be 0");
        }
        if self.rotation < Duration::from_secs(60) {
            return Err("an onion key must live for a minute at least");
        }
        if self.exit.is_some() && self.exit.as_ref().is_some_and(|policy| policy.summary().is_empty()) {
            return Err("an exit whose policy accepts nothing is none");
        }
        Ok(())
    }
}
