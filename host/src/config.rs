//! The configuration of one node: a TOML file.
//!
//! Every field has a default, so the empty file is a valid configuration: a client with a SOCKS5 proxy on loopback that
//! knows no network yet. [`default_toml`] writes the default with a comment for every field. Unknown fields, numbers out
//! of range and combinations that cannot work are errors that name the place and say what to do.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use bulbil_core::wire::{OnionKeyKind, descriptor::ADDRESSES_MAX, policy::Policy};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::node::Intervals;

mod bootstrap;
mod error;
mod printed;

pub use bootstrap::{Bootstrap, BootstrapError};
pub use error::ConfigError;
pub use printed::default_toml;

/// Largest configuration file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// Where SOCKS5 clients are served by default: the port that IANA gave to SOCKS.
pub const DEFAULT_SOCKS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1080);

/// The bounds of a number, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Smallest allowed value.
    pub min: u32,
    /// Largest allowed value.
    pub max: u32,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.min, self.max)
    }
}

const SOCKS_CONNECTIONS: Range = Range { min: 1, max: 65_536 };
/// A key that changes too often outruns the descriptors that announce it; a week bounds what a stolen key opens.
const ROTATION: Range = Range { min: 600, max: 604_800 };
const HOPS: Range = Range { min: 1, max: 4 };
const REUSE: Range = Range { min: 0, max: 86_400 };
const OPEN_DEADLINE: Range = Range { min: 1, max: 600 };
const LINKS: Range = Range { min: 1, max: 65_536 };
const HALF_OPEN: Range = Range { min: 1, max: 65_536 };
const CIRCUITS: Range = Range { min: 1, max: 1_048_576 };
/// The upper end is 8 GiB of cells.
const CELLS: Range = Range { min: 64, max: 16_777_216 };
const ONIONS: Range = Range { min: 1, max: 65_536 };
const JOBS: Range = Range { min: 1, max: 4_096 };
const WORKERS: Range = Range { min: 0, max: 256 };
const IDLE: Range = Range { min: 10, max: 86_400 };
const EXCHANGE: Range = Range { min: 0, max: 86_400 };
const TEST: Range = Range { min: 1, max: 3600 };
const RETRY: Range = Range { min: 1, max: 3600 };
const SAVE: Range = Range { min: 1, max: 86_400 };
const HANDSHAKE: Range = Range { min: 1, max: 120 };

/// One node's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directory of keys and of what survives a restart. [`Config::load`] takes a relative one from the file's place.
    pub state: PathBuf,
    /// What the node does.
    pub roles: Roles,
    /// Addresses that links from other nodes are accepted on; port 0 lets the system choose.
    pub listen: Vec<SocketAddr>,
    /// Addresses that the descriptor names, 4 at most; empty means those listened on.
    pub advertise: Vec<SocketAddr>,
    /// Nodes to ask for the phonebook at first.
    pub bootstrap: Vec<Bootstrap>,
    /// Accept bootstrap nodes without a fingerprint.
    pub allow_unpinned: bool,
    /// The SOCKS5 proxy.
    pub socks: Socks,
    /// The exit.
    pub exit: Exit,
    /// The onion key.
    pub onion_key: OnionKeySettings,
    /// The choice of paths.
    pub path: PathSettings,
    /// The phonebook.
    pub phonebook: PhonebookSettings,
    /// Bounds on memory and time.
    pub limits: Limits,
    /// The log.
    pub log: Log,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state: PathBuf::from("bulbil-state"),
            roles: Roles { relay: false, exit: false, client: true },
            listen: Vec::new(),
            advertise: Vec::new(),
            bootstrap: Vec::new(),
            allow_unpinned: false,
            socks: Socks::default(),
            exit: Exit::default(),
            onion_key: OnionKeySettings::default(),
            path: PathSettings::default(),
            phonebook: PhonebookSettings::default(),
            limits: Limits::default(),
            log: Log::default(),
        }
    }
}

/// What a node does, any mix: in TOML a list of `"relay"`, `"exit"`, `"client"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// Passes circuits on.
    pub relay: bool,
    /// Ends circuits and connects to targets.
    pub exit: bool,
    /// Opens circuits of its own, for the SOCKS5 proxy and the library.
    pub client: bool,
}

impl<'de> Deserialize<'de> for Roles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Role {
            Relay,
            Exit,
            Client,
        }
        let mut roles = Self { relay: false, exit: false, client: false };
        for role in Vec::<Role>::deserialize(deserializer)? {
            let (taken, name) = match role {
                Role::Relay => (&mut roles.relay, "relay"),
                Role::Exit => (&mut roles.exit, "exit"),
                Role::Client => (&mut roles.client, "client"),
            };
            if std::mem::replace(taken, true) {
                return Err(D::Error::custom(format_args!("the role \"{name}\" is named twice; name it once")));
            }
        }
        if !(roles.relay || roles.exit || roles.client) {
            return Err(D::Error::custom("a node needs a role; name one or more of \"relay\", \"exit\", \"client\""));
        }
        Ok(roles)
    }
}

/// Whether `address` can name one reachable host.
fn reachable(address: SocketAddr) -> bool {
    let ip = address.ip();
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// The SOCKS5 proxy of a client.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Socks {
    /// Addresses it listens on; none means no proxy. Unused without the client role.
    pub listen: Vec<SocketAddr>,
    /// Permit addresses other than loopback.
    pub allow_remote: bool,
    /// Connections at one time; more are closed at once.
    #[serde(deserialize_with = "ranged::<_, { SOCKS_CONNECTIONS.min }, { SOCKS_CONNECTIONS.max }>")]
    pub connections: u32,
}

impl Default for Socks {
    fn default() -> Self {
        Self { listen: vec![DEFAULT_SOCKS], allow_remote: false, connections: 1024 }
    }
}

/// The exit's settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Exit {
    /// Where it connects to. In TOML a list of rules as text; the empty list means the default.
    #[serde(deserialize_with = "policy")]
    pub policy: Policy,
}

fn policy<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Policy, D::Error> {
    let rules = Vec::<String>::deserialize(deserializer)?;
    if rules.is_empty() {
        return Ok(Policy::default());
    }
    let mut policy = Policy::reject_all();
    for text in &rules {
        // Exactly one rule each: a text without any, on its own, would leave a policy that rejects everything.
        let pushed = text.parse().and_then(|rule| policy.push(rule));
        pushed.map_err(|reason| D::Error::custom(format_args!("the rule \"{text}\": {reason}")))?;
    }
    Ok(policy)
}

/// The onion key's settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OnionKeySettings {
    /// The KEM.
    #[serde(deserialize_with = "onion_key_kind")]
    pub kind: OnionKeyKind,
    /// Seconds after which a new key takes over; the previous one is honoured as long again.
    #[serde(deserialize_with = "ranged::<_, { ROTATION.min }, { ROTATION.max }>")]
    pub rotation_seconds: u32,
}

impl OnionKeySettings {
    /// [`Self::rotation_seconds`].
    #[must_use]
    pub fn rotation(&self) -> Duration {
        Duration::from_secs(self.rotation_seconds.into())
    }
}

impl Default for OnionKeySettings {
    fn default() -> Self {
        Self { kind: OnionKeyKind::XWing, rotation_seconds: 3600 }
    }
}

fn onion_key_kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OnionKeyKind, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "x-wing" => Ok(OnionKeyKind::XWing),
        "rsa2048" => Ok(OnionKeyKind::Rsa2048),
        other => Err(D::Error::custom(format_args!("no onion key kind \"{other}\"; write \"x-wing\" or \"rsa2048\""))),
    }
}

/// How far the nodes of a path must lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkGroups {
    /// Every node in another network group, or no path.
    Require,
    /// Other groups where the phonebook has them.
    Prefer,
    /// Groups do not matter (test networks).
    Ignore,
}

/// The choice of paths.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PathSettings {
    /// Nodes on a path, the exit included.
    #[serde(deserialize_with = "ranged::<_, { HOPS.min }, { HOPS.max }>")]
    pub hops: u32,
    /// Strictness about network groups (IPv4 /16, IPv6 /32).
    pub network_groups: NetworkGroups,
    /// Seconds during which one isolation key keeps its path; 0 draws a new path for every circuit.
    #[serde(deserialize_with = "ranged::<_, { REUSE.min }, { REUSE.max }>")]
    pub reuse_seconds: u32,
    /// Seconds within which a target must answer, other paths tried included.
    #[serde(deserialize_with = "ranged::<_, { OPEN_DEADLINE.min }, { OPEN_DEADLINE.max }>")]
    pub deadline_seconds: u32,
}

impl PathSettings {
    /// [`Self::reuse_seconds`].
    #[must_use]
    pub fn reuse(&self) -> Duration {
        Duration::from_secs(self.reuse_seconds.into())
    }

    /// [`Self::deadline_seconds`].
    #[must_use]
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline_seconds.into())
    }
}

impl Default for PathSettings {
    fn default() -> Self {
        Self { hops: 4, network_groups: NetworkGroups::Prefer, reuse_seconds: 600, deadline_seconds: 60 }
    }
}

/// How often the node does what keeps its phonebook good.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PhonebookSettings {
    /// Seconds between two exchanges with other nodes; 0 for a node that asks nobody.
    #[serde(deserialize_with = "ranged::<_, { EXCHANGE.min }, { EXCHANGE.max }>")]
    pub exchange_seconds: u32,
    /// Seconds between two tests of nodes that have not been met yet.
    #[serde(deserialize_with = "ranged::<_, { TEST.min }, { TEST.max }>")]
    pub test_seconds: u32,
    /// Seconds after a node's first failure until it is tried again.
    #[serde(deserialize_with = "ranged::<_, { RETRY.min }, { RETRY.max }>")]
    pub retry_seconds: u32,
    /// Seconds between two writes of a phonebook that changes.
    #[serde(deserialize_with = "ranged::<_, { SAVE.min }, { SAVE.max }>")]
    pub save_seconds: u32,
}

impl PhonebookSettings {
    /// All of them.
    #[must_use]
    pub fn intervals(&self) -> Intervals {
        let [exchange, test, retry, save] =
            [self.exchange_seconds, self.test_seconds, self.retry_seconds, self.save_seconds]
                .map(|seconds| Duration::from_secs(seconds.into()));
        Intervals { exchange: (!exchange.is_zero()).then_some(exchange), test, retry, save }
    }
}

impl Default for PhonebookSettings {
    fn default() -> Self {
        Self { exchange_seconds: 60, test_seconds: 2, retry_seconds: 60, save_seconds: 300 }
    }
}

/// Bounds on memory and time.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Links at one time.
    #[serde(deserialize_with = "ranged::<_, { LINKS.min }, { LINKS.max }>")]
    pub links: u32,
    /// Links whose handshake has not ended.
    #[serde(deserialize_with = "ranged::<_, { HALF_OPEN.min }, { HALF_OPEN.max }>")]
    pub half_open_links: u32,
    /// Seconds for a link's handshake.
    #[serde(deserialize_with = "ranged::<_, { HANDSHAKE.min }, { HANDSHAKE.max }>")]
    pub handshake_seconds: u32,
    /// Circuits at one time, over all links.
    #[serde(deserialize_with = "ranged::<_, { CIRCUITS.min }, { CIRCUITS.max }>")]
    pub circuits: u32,
    /// Circuits at one time on one link.
    #[serde(deserialize_with = "ranged::<_, { CIRCUITS.min }, { CIRCUITS.max }>")]
    pub circuits_per_link: u32,
    /// Seconds without a cell after which a circuit is closed.
    #[serde(deserialize_with = "ranged::<_, { IDLE.min }, { IDLE.max }>")]
    pub circuit_idle_seconds: u32,
    /// Cells held at one time, 514 bytes each: the memory that peers can make this node use.
    #[serde(deserialize_with = "ranged::<_, { CELLS.min }, { CELLS.max }>")]
    pub cells: u32,
    /// Onions of which only some cells have come, over all links.
    #[serde(deserialize_with = "ranged::<_, { ONIONS.min }, { ONIONS.max }>")]
    pub onions: u32,
    /// Private-key operations waiting for one link.
    #[serde(deserialize_with = "ranged::<_, { JOBS.min }, { JOBS.max }>")]
    pub jobs_per_link: u32,
    /// Threads for private-key operations; 0 means one per processor.
    #[serde(deserialize_with = "ranged::<_, { WORKERS.min }, { WORKERS.max }>")]
    pub workers: u32,
}

impl Limits {
    /// [`Self::circuit_idle_seconds`].
    #[must_use]
    pub fn circuit_idle(&self) -> Duration {
        Duration::from_secs(self.circuit_idle_seconds.into())
    }

    /// [`Self::handshake_seconds`].
    #[must_use]
    pub fn handshake(&self) -> Duration {
        Duration::from_secs(self.handshake_seconds.into())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            links: 1024,
            half_open_links: 128,
            handshake_seconds: 10,
            circuits: 16_384,
            circuits_per_link: 4096,
            circuit_idle_seconds: 600,
            cells: 131_072,
            onions: 1024,
            jobs_per_link: 512,
            workers: 0,
        }
    }
}

/// How much the log tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What somebody must act on.
    Error,
    /// What is odd.
    Warn,
    /// What happens to the node.
    Info,
    /// What happens to links and circuits.
    Debug,
    /// Everything.
    Trace,
}

/// The shape of the log's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text for people.
    Human,
    /// One JSON object a line.
    Json,
}

/// The log, which goes to standard error.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// How much it tells.
    pub level: LogLevel,
    /// The shape of its lines.
    pub format: LogFormat,
    /// Write addresses, names and fingerprints instead of `[redacted]`.
    pub sensitive: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Human, sensitive: false }
    }
}

fn ranged<'de, D: Deserializer<'de>, const MIN: u32, const MAX: u32>(deserializer: D) -> Result<u32, D::Error> {
    let value = i64::deserialize(deserializer)?;
    u32::try_from(value)
        .ok()
        .filter(|value| (MIN..=MAX).contains(value))
        .ok_or_else(|| D::Error::custom(format_args!("{value} is out of range; write a number from {MIN} to {MAX}")))
}

impl FromStr for Config {
    type Err = ConfigError;

    /// Parses and checks a configuration.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|error| ConfigError::Parse { path: None, error: Box::new(error) })?;
        config.check()?;
        Ok(config)
    }
}

impl Config {
    /// Reads the file at `path`. A relative state directory is taken from the file's own directory, so that it does not
    /// depend on where the node is started.
    ///
    /// # Errors
    /// Whatever is wrong with the file, with its path.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        use std::io::Read;
        let read_error = |error| ConfigError::Read { path: path.to_owned(), error };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(read_error)?;
        file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(read_error)?;
        let text = String::from_utf8(bytes).ok().filter(|text| text.len() as u64 <= FILE_MAX);
        let text = text.ok_or_else(|| ConfigError::NotText { path: path.to_owned() })?;
        let mut config: Self = text.parse().map_err(|error: ConfigError| error.within(path))?;
        if let Some(parent) = path.parent() {
            config.state = parent.join(&config.state);
        }
        Ok(config)
    }

    /// Checks what concerns several fields at once. Parsing does it already; for a configuration made in code.
    ///
    /// # Errors
    /// [`ConfigError::Conflict`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let conflict = |field, advice: &str| Err(ConfigError::conflict(field, advice));
        let serves = self.roles.relay || self.roles.exit;
        if self.state.as_os_str().is_empty() {
            return conflict("state", "the empty path names no directory; write one, such as \"bulbil-state\"");
        }
        if serves && self.listen.is_empty() {
            return conflict(
                "listen",
                "a relay or an exit must be reachable; write an address such as \"0.0.0.0:9001\", or leave only \
                 the role \"client\"",
            );
        }
        if self.advertise.len() > ADDRESSES_MAX || (self.advertise.is_empty() && self.listen.len() > ADDRESSES_MAX) {
            return conflict("advertise", "a descriptor has room for four addresses; name at most four");
        }
        if let Some(address) = self.advertise.iter().find(|address| !reachable(**address)) {
            return Err(ConfigError::conflict(
                "advertise",
                format!("{address} cannot be reached by others; write the address and port they would connect to"),
            ));
        }
        if serves && self.advertise.is_empty() && self.listen.iter().any(|address| address.ip().is_unspecified()) {
            return conflict(
                "advertise",
                "listening on every interface does not tell which address others reach; write the public one here",
            );
        }
        for (index, address) in self.listen.iter().enumerate() {
            if address.port() != 0 && self.listen.iter().take(index).any(|earlier| earlier == address) {
                return Err(ConfigError::conflict("listen", format!("{address} is named twice; name it once")));
            }
        }
        if !self.allow_unpinned
            && let Some(node) = self.bootstrap.iter().find(|node| node.fingerprint.is_none())
        {
            return Err(ConfigError::conflict(
                "bootstrap",
                format!(
                    "{node} has no fingerprint, so whoever sits between could answer in its place; write it as \
                     `{node}#fingerprint` (`bulbil keygen --show` prints it on that node), or set `allow_unpinned = true`"
                ),
            ));
        }
        if self.roles.client
            && !self.socks.allow_remote
            && let Some(address) = self.socks.listen.iter().find(|address| !address.ip().is_loopback())
        {
            return Err(ConfigError::conflict(
                "socks.listen",
                format!(
                    "{address} is not a loopback address: SOCKS5 is not encrypted and every host that reaches it could use \
                     this client; use {}, or set `socks.allow_remote = true`",
                    SocketAddr::new(
                        if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() },
                        address.port()
                    )
                ),
            ));
        }
        if self.limits.circuits_per_link > self.limits.circuits {
            return conflict(
                "limits.circuits_per_link",
                "one link cannot have more circuits than `limits.circuits` allows",
            );
        }
        if self.limits.half_open_links > self.limits.links {
            return conflict("limits.half_open_links", "there cannot be more of them than `limits.links` allows");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
