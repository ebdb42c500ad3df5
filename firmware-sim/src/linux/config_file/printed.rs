//! The default configuration as a text to start from.

use std::{format, string::String};

use super::{ADDRESSES_MAX, CONTACTS_MAX, HOPS, NodeFile, REQUEST_MAX, RESOLVERS_MAX, ROTATION};

/// The default configuration as TOML with a comment for every field; parses back to exactly [`NodeFile::default`].
#[must_use]
pub fn default_toml() -> String {
    let default = NodeFile::default();
    let network = &default.network;
    let address = network.addresses.first().map_or_else(String::new, |address| format!("{address}"));
    format!(
        r##"# Configuration of one constrained Bulbil node on a TAP device. Every value below is the default; what is left out stays at it.

# How much memory the node has: "small" (192 KiB in all) or "medium" (512 KiB).
profile = "{profile}"

# Directory of this node's keys. Make it with `bulbil keygen --for-device DIR`, which prints the fingerprint that others pin. A relative path
# begins where this file is.
state = "{state}"

# What this node does, any mix of:
#   "relay"   passes circuits on to the next node
#   "exit"    ends circuits and connects to targets, as [exit] permits
#   "client"  sends the fixed [request] through the network
roles = ["relay"]

# Nodes that it knows from the beginning, at most {CONTACTS_MAX}, as "address:port#fingerprint". A client builds its paths from them; a node without a clock
# believes the median of their times. A relay or an exit that has a clock needs none.
contacts = []

# Seconds for which an onion key is current ({rotation_least} to {rotation_most}); the previous one is honoured as long again.
rotation_seconds = {rotation}

[network]
# The TAP device. It is made if there is none and the node may; `bulbil-firmware-sim stage` shows a whole network of them. By hand, as root:
#   ip tuntap add {tap} mode tap && ip addr add 10.77.0.1/24 dev {tap} && ip link set {tap} up
tap = "{tap}"
# The node's own Ethernet address. The kernel's end of the TAP device has another one.
mac = "{mac}"
# The node's own addresses with the length of their network's prefix, at most {ADDRESSES_MAX}. Other nodes are told to use the first one.
addresses = ["{address}"]
# Routers, one of each family at most, such as ["10.77.0.1", "fd77::1"]. Empty: only the node's own networks can be reached.
gateways = []
# Name servers, at most {RESOLVERS_MAX}, for an exit. Empty: targets by name are answered "name not resolved".
resolvers = []
# The TCP port at which links from other nodes are answered.
port = {port}

[exit]
# Ordered rules, one in each text, at most 32: "accept NETWORK:PORTS" or "reject NETWORK:PORTS", where NETWORK is *, private,
# 192.0.2.0/24 or [2001:db8::]/32 and PORTS is *, 80 or 80-443. The first that matches decides; what none matches is rejected.
# Empty: the default, which rejects private networks (loopback and link-local among them) and port 25 and accepts all else.
policy = []

# What a client asks for. Remove the # of the table and of what you need.
# [request]
# Whom: a name or IP address and a port. A name is resolved at the exit.
# target = "10.77.0.1:8080"
# What is sent, at most {REQUEST_MAX} bytes, less for a target with a long name.
# text = "GET / HTTP/1.0\r\n\r\n"
# Seconds after an answer until it is sent again; left out: it is sent once.
# every_seconds = 60
# Ask the exit to sign the answer.
# sign = true
# Nodes on the path, the exit included ({hops_least} to {hops_most}).
# hops = 4
# Nodes of one path in different networks (IPv4 /16, IPv6 /32): "require", "prefer", or "ignore" (test networks).
# network_groups = "prefer"

[linux]
# "system", or "none": a board without a clock, which asks its contacts.
clock = "system"
# A bad network, in each direction, such as "loss=5,duplicate=1,reorder=2,corrupt=0.1,delay=100ms,jitter=10ms" with shares in per cent.
faults = ""
# File for a capture of what crosses the TAP device, for Wireshark. A relative path begins where this file is.
# pcap = "node.pcap"
# What is told on standard error: "quiet" (what somebody must act on), "normal" (no address, host or key in it) or "verbose" (with addresses).
log = "normal"
"##,
        profile = default.profile,
        state = default.state.display(),
        rotation = default.rotation_seconds,
        rotation_least = ROTATION.start(),
        rotation_most = ROTATION.end(),
        tap = network.tap,
        mac = hex(network.mac.0),
        port = network.port,
        hops_least = HOPS.start(),
        hops_most = HOPS.end(),
    )
}

/// An Ethernet address as it is written here.
pub(in crate::linux) fn hex([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
