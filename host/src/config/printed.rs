//! The default configuration as a text to start from.

use super::{
    ADDRESSES_MAX, CELLS, CIRCUITS, Config, DEFAULT_SOCKS, EXCHANGE, HALF_OPEN, HANDSHAKE, HOPS, IDLE, JOBS, LINKS,
    ONIONS, OPEN_DEADLINE, RETRY, REUSE, ROTATION, SAVE, SOCKS_CONNECTIONS, TEST, WORKERS,
};

/// The default configuration as TOML with a comment for every field; parses back to exactly [`Config::default`].
#[must_use]
pub fn default_toml() -> String {
    let default = Config::default();
    let (limits, path, key, phonebook) = (&default.limits, &default.path, &default.onion_key, &default.phonebook);
    format!(
        r##"# Configuration of one Bulbil node. Every value below is the default; what is left out stays at it.

# Directory of this node's keys, guards and phonebook. A relative path begins where this file is. It is created with mode
# 0700, and one that others can enter is refused.
state = "{state}"

# What this node does, any mix of:
#   "relay"   passes circuits on to the next node
#   "exit"    ends circuits and connects to targets, as [exit] permits
#   "client"  opens circuits of its own, for the SOCKS5 proxy below
roles = ["client"]

# Addresses on which links from other nodes are accepted, such as ["0.0.0.0:9001", "[::]:9001"]. Relays and exits need one.
# Port 0 lets the system choose.
listen = []

# Addresses that others are told to connect to, at most {ADDRESSES_MAX}. Empty: those of `listen`, which then must not be 0.0.0.0
# or [::].
advertise = []

# Nodes to meet the network through, one is enough, as "address:port#fingerprint". Whoever answers there with another identity is
# refused. `bulbil keygen --show` prints a node's fingerprint. Empty for the first node of a new network. Once others are known, they
# are not needed any more.
bootstrap = []

# Accept bootstrap nodes without "#fingerprint". Whoever sits between can then answer in their place.
allow_unpinned = false

[socks]
# Addresses of the SOCKS5 proxy; [] for none. Used with the role "client" only.
listen = ["{socks}"]
# Permit addresses other than loopback. SOCKS5 is not encrypted, and every host that reaches it can use this client.
allow_remote = false
# Connections at one time ({SOCKS_CONNECTIONS}); more are closed at once.
connections = {socks_connections}

[exit]
# Ordered rules, one in each text, at most 32: "accept NETWORK:PORTS" or "reject NETWORK:PORTS", where NETWORK is *, private,
# 192.0.2.0/24 or [2001:db8::]/32 and PORTS is *, 80 or 80-443. The first that matches decides; what none matches is rejected.
# ["reject *:25", "reject private:*", "accept *:80", "accept *:443"] is an example. Empty: the default, which rejects private
# networks (loopback and link-local among them) and port 25 and accepts all else.
policy = []

[onion_key]
# "x-wing" (X25519 and ML-KEM-768: post-quantum, and cheaper to serve) or "rsa2048".
kind = "x-wing"
# Seconds until a new key takes over ({ROTATION}); the previous one is honoured as long again.
rotation_seconds = {rotation}

[path]
# Nodes on a path, the exit included ({HOPS}).
hops = {hops}
# Nodes of one path in different networks (IPv4 /16, IPv6 /32): "require", "prefer", or "ignore" (test networks).
network_groups = "prefer"
# Seconds during which the same SOCKS credentials and destination keep their path ({REUSE}; 0: a new path every time).
reuse_seconds = {reuse}
# Seconds within which a target must answer, other paths tried included ({OPEN_DEADLINE}).
deadline_seconds = {deadline}

[phonebook]
# Seconds between two exchanges with other nodes, give or take a fifth ({EXCHANGE}). While there is more to learn every 2 seconds.
# 0: this node asks nobody; it answers all the same.
exchange_seconds = {exchange}
# Seconds between two tests of nodes that have been heard of and not met yet ({TEST}). When there is nobody to meet, 15 times as long.
test_seconds = {test}
# Seconds after a node's first failure until it is tried again ({RETRY}), twice as long after each further one. After five
# failures in a row it is forgotten (unless so few others answer that it is rather this node that is cut off), after two if it was never met.
retry_seconds = {retry}
# Seconds between two writes of what has changed to the state directory ({SAVE}). It is written when the node stops, too.
save_seconds = {save}

[limits]
# Links at one time ({LINKS}), and how many of them may be in their handshake ({HALF_OPEN}).
links = {links}
half_open_links = {half_open}
# Seconds for a link's handshake ({HANDSHAKE}).
handshake_seconds = {handshake}
# Circuits at one time, in all and on one link (each {CIRCUITS}).
circuits = {circuits}
circuits_per_link = {circuits_per_link}
# Seconds without a cell after which a circuit is closed ({IDLE}).
circuit_idle_seconds = {idle}
# Cells of 514 bytes held at one time ({CELLS}): the memory that others can make this node use. The default is 64 MiB.
cells = {cells}
# Onions of which only a part has come ({ONIONS}).
onions = {onions}
# Private-key operations waiting for one link ({JOBS}).
jobs_per_link = {jobs}
# Threads for private-key operations ({WORKERS}); 0 means one per processor.
workers = {workers}

[log]
# "error", "warn", "info", "debug" or "trace". The environment variable BULBIL_LOG overrides it. The log goes to standard error.
level = "info"
# "human" or "json" (one object a line).
format = "human"
# Write addresses, names and fingerprints, which are [redacted] otherwise.
sensitive = false
"##,
        state = default.state.display(),
        socks = DEFAULT_SOCKS,
        socks_connections = default.socks.connections,
        rotation = key.rotation_seconds,
        hops = path.hops,
        reuse = path.reuse_seconds,
        deadline = path.deadline_seconds,
        exchange = phonebook.exchange_seconds,
        test = phonebook.test_seconds,
        retry = phonebook.retry_seconds,
        save = phonebook.save_seconds,
        links = limits.links,
        half_open = limits.half_open_links,
        handshake = limits.handshake_seconds,
        circuits = limits.circuits,
        circuits_per_link = limits.circuits_per_link,
        idle = limits.circuit_idle_seconds,
        cells = limits.cells,
        onions = limits.onions,
        jobs = limits.jobs_per_link,
        workers = limits.workers,
    )
}
