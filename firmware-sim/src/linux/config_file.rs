//! The configuration of one constrained node on Linux: a TOML file.
//!
//! Every field has a default, so the empty file describes a relay. [`default_toml`] writes the default with a comment for every field. Unknown
//! fields, values out of range and combinations that cannot work are errors that name the place and say what to do.

use core::{fmt, net::IpAddr, str::FromStr, time::Duration};
use std::{
    boxed::Box,
    format, fs,
    io::{self, Read},
    path::{Path, PathBuf},
    string::{String, ToString},
    vec,
    vec::Vec,
};

use bulbil_core::{
    phonebook::{HopCount, Strictness},
    wire::{Policy, Target, descriptor::ADDRESSES_MAX, message::begin_room},
};
use bulbil_host::config::{Bootstrap, Exit, NetworkGroups, Roles};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use smoltcp::wire::EthernetAddress;

use super::{
    board::{Calendar, LogLevel},
    faults::Faults,
};
use crate::config::{CONTACTS_MAX, Config, Contact, Network, REQUEST_MAX, RESOLVERS_MAX, Request};

mod printed;

pub use printed::default_toml;
pub(super) use printed::hex as printed_mac;

/// Largest configuration file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// Seconds for which an onion key is current: from what its descriptor can keep up with to half a day, half of the descriptor's life.
const ROTATION: core::ops::RangeInclusive<u32> = 600..=43_200;
const HOPS: core::ops::RangeInclusive<u8> = 1..=4;

/// How much memory a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// 192 KiB.
    Small,
    /// 512 KiB.
    Medium,
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Small => "small",
            Self::Medium => "medium",
        })
    }
}

/// A node's configuration, as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeFile {
    /// How much memory it has.
    pub profile: Profile,
    /// Directory of its keys. [`NodeFile::load`] takes a relative one from the file's place.
    pub state: PathBuf,
    /// What it does.
    pub roles: Roles,
    /// Nodes that it knows from the beginning, each with its fingerprint.
    pub contacts: Vec<Bootstrap>,
    /// Seconds for which an onion key is current.
    pub rotation_seconds: u32,
    /// Its place on its network.
    pub network: NetworkSettings,
    /// The exit.
    pub exit: Exit,
    /// Its own request, of a client.
    pub request: Option<RequestSettings>,
    /// What a Linux machine does in a board's place.
    pub linux: LinuxSettings,
}

impl Default for NodeFile {
    fn default() -> Self {
        Self {
            profile: Profile::Small,
            state: PathBuf::from("device"),
            roles: Roles { relay: true, exit: false, client: false },
            contacts: Vec::new(),
            rotation_seconds: 3600,
            network: NetworkSettings::default(),
            exit: Exit::default(),
            request: None,
            linux: LinuxSettings::default(),
        }
    }
}

/// An address with the length of its network's prefix, as `10.77.0.11/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr(pub IpAddr, pub u8);

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, self.1)
    }
}

impl FromStr for Cidr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let advice = "write an address and the length of its network's prefix, as 10.77.0.11/24 or fd77::11/64";
        let (address, prefix) = text.split_once('/').ok_or(advice)?;
        let address: IpAddr = address.parse().map_err(|_| advice)?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= longest).ok_or(advice)?;
        if address.is_unspecified() || address.is_multicast() {
            return Err("a node's address must be that of one host");
        }
        Ok(Self(address, prefix))
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|advice| D::Error::custom(format_args!("\"{text}\": {advice}")))
    }
}

/// The node's place on its network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkSettings {
    /// The TAP device's name.
    pub tap: String,
    /// The node's Ethernet address.
    #[serde(deserialize_with = "mac")]
    pub mac: EthernetAddress,
    /// Its own addresses.
    pub addresses: Vec<Cidr>,
    /// Routers: one of each family at most.
    pub gateways: Vec<IpAddr>,
    /// Name servers, for an exit.
    pub resolvers: Vec<IpAddr>,
    /// The TCP port at which links are answered.
    pub port: u16,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self {
            tap: "bulbil0".into(),
            mac: EthernetAddress([0x02, 0, 0, 0x77, 0, 0x0b]),
            addresses: vec![Cidr(IpAddr::from([10, 77, 0, 11]), 24)],
            gateways: Vec::new(),
            resolvers: Vec::new(),
            port: 9001,
        }
    }
}

fn mac<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EthernetAddress, D::Error> {
    let text = String::deserialize(deserializer)?;
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    let read = bytes.iter_mut().all(|byte| {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()));
        part.and_then(|part| u8::from_str_radix(part, 16).ok()).map(|value| *byte = value).is_some()
    });
    let address = EthernetAddress(bytes);
    if !read || parts.next().is_some() || !address.is_unicast() {
        return Err(D::Error::custom(format_args!(
            "\"{text}\" is not the Ethernet address of one device; write six bytes, the first of them even, as 02:00:00:77:00:0b"
        )));
    }
    Ok(address)
}

/// A client's own request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestSettings {
    /// Whom.
    #[serde(deserialize_with = "target")]
    pub target: Target,
    /// What is sent.
    #[serde(default)]
    pub text: String,
    /// Seconds after an answer until it is sent again; without this it is sent once.
    pub every_seconds: Option<u32>,
    /// Ask the exit to sign the answer.
    #[serde(default = "yes")]
    pub sign: bool,
    /// Nodes on the path, the exit included.
    #[serde(default = "hops_default", deserialize_with = "hops")]
    pub hops: HopCount,
    /// Strictness about network groups.
    #[serde(default = "prefer")]
    pub network_groups: NetworkGroups,
}

const fn yes() -> bool {
    true
}

fn hops_default() -> HopCount {
    HopCount::default()
}

const fn prefer() -> NetworkGroups {
    NetworkGroups::Prefer
}

fn target<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Target, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        D::Error::custom(format_args!(
            "\"{text}\" is no target; write a name or IP address and a port, as example.com:80 or [2001:db8::7]:80"
        ))
    })
}

fn hops<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HopCount, D::Error> {
    let value = i64::deserialize(deserializer)?;
    u8::try_from(value).ok().and_then(HopCount::new).ok_or_else(|| {
        D::Error::custom(format_args!(
            "{value} is out of range; write a number from {} to {}",
            HOPS.start(),
            HOPS.end()
        ))
    })
}

/// What a Linux machine does in a board's place.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinuxSettings {
    /// Where the calendar comes from.
    #[serde(deserialize_with = "clock")]
    pub clock: Calendar,
    /// What happens to frames.
    #[serde(deserialize_with = "faults")]
    pub faults: Faults,
    /// Capture of what crosses the TAP device. [`NodeFile::load`] takes a relative one from the file's place.
    pub pcap: Option<PathBuf>,
    /// How much is told on standard error.
    #[serde(deserialize_with = "level")]
    pub log: LogLevel,
}

impl Default for LinuxSettings {
    fn default() -> Self {
        Self { clock: Calendar::System, faults: Faults::default(), pcap: None, log: LogLevel::Normal }
    }
}

/// One of a few words.
fn word<'de, D: Deserializer<'de>, T: Copy>(deserializer: D, words: &[(&str, T)]) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        D::Error::custom(format_args!("\"{text}\" is not known here; write one of {}", words.join(", ")))
    })
}

fn clock<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Calendar, D::Error> {
    word(deserializer, &[("system", Calendar::System), ("none", Calendar::None)])
}

fn level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LogLevel, D::Error> {
    let words = [("quiet", LogLevel::Quiet), ("normal", LogLevel::Normal), ("verbose", LogLevel::Verbose)];
    word(deserializer, &words)
}

fn faults<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Faults, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// Why a configuration cannot be used.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Read(PathBuf, io::Error),
    /// The file is not a configuration by size or encoding.
    NotText(PathBuf),
    /// The text is not TOML, or a field is unknown, of the wrong type or out of range. With the file, if the text came from one.
    Parse(Option<PathBuf>, Box<toml::de::Error>),
    /// A field that does not fit the others, or what a node can hold: which, and what to do.
    Conflict(&'static str, String),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = "`bulbil-firmware-sim run --print-config` writes every field with its meaning";
        match self {
            Self::Read(path, error) => write!(f, "cannot read the configuration {}: {error}", path.display()),
            Self::NotText(path) => {
                let path = path.display();
                write!(f, "{path} is not a configuration: it must be UTF-8 text of at most {FILE_MAX} bytes; {hint}")
            }
            Self::Parse(path, error) => {
                if let Some(path) = path {
                    write!(f, "{}: ", path.display())?;
                }
                write!(f, "{}\n{hint}", error.to_string().trim_end())
            }
            Self::Conflict(field, advice) => write!(f, "`{field}` in the configuration: {advice}"),
        }
    }
}

impl core::error::Error for ConfigError {}

impl FromStr for NodeFile {
    type Err = ConfigError;

    /// Parses a configuration and checks that it describes a node.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let file: Self = toml::from_str(text).map_err(|error| ConfigError::Parse(None, Box::new(error)))?;
        file.node().map(|_| file)
    }
}

impl NodeFile {
    /// Reads the file at `path`. Relative paths in it are taken from the file's own directory, so that they do not depend on where the node
    /// is started.
    ///
    /// # Errors
    /// Whatever is wrong with the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut bytes = Vec::new();
        let failed = |error| ConfigError::Read(path.to_path_buf(), error);
        fs::File::open(path).map_err(failed)?.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        let text = String::from_utf8(bytes).ok().filter(|text| text.len() as u64 <= FILE_MAX);
        let text = text.ok_or_else(|| ConfigError::NotText(path.to_path_buf()))?;
        let mut file: Self = text.parse().map_err(|error| match error {
            ConfigError::Parse(_, error) => ConfigError::Parse(Some(path.to_path_buf()), error),
            error => error,
        })?;
        if let Some(parent) = path.parent() {
            file.state = parent.join(&file.state);
            file.linux.pcap = file.linux.pcap.map(|pcap| parent.join(pcap));
        }
        Ok(file)
    }

    /// The node that this describes.
    ///
    /// # Errors
    /// [`ConfigError::Conflict`].
    pub fn node(&self) -> Result<Config, ConfigError> {
        let config = Config {
            network: self.place()?,
            relay: self.roles.relay,
            exit: self.roles.exit.then(|| self.exit.policy.clone()),
            client: self.own_request()?,
            contacts: self.pinned()?,
            rotation: self.rotation()?,
        };
        config.check().map_err(|sentence| ConfigError::Conflict("roles, network or contacts", sentence.into()))?;
        Ok(config)
    }

    fn place(&self) -> Result<Network, ConfigError> {
        let network = &self.network;
        let conflict = |field, advice: &str| Err(ConfigError::Conflict(field, advice.into()));
        if network.tap.is_empty() {
            return conflict("network.tap", "it needs a name, as bulbil0");
        }
        let (v4, v6): (Vec<&IpAddr>, Vec<&IpAddr>) = network.gateways.iter().partition(|gateway| gateway.is_ipv4());
        if v4.len() > 1 || v6.len() > 1 {
            return conflict("network.gateways", "name one router of each family at most");
        }
        let gateway_v4 = v4.first().and_then(|gateway| match gateway {
            IpAddr::V4(gateway) => Some(*gateway),
            IpAddr::V6(_) => None,
        });
        let gateway_v6 = v6.first().and_then(|gateway| match gateway {
            IpAddr::V6(gateway) => Some(*gateway),
            IpAddr::V4(_) => None,
        });
        Ok(Network {
            mac: network.mac,
            addresses: fitting::<_, ADDRESSES_MAX>(
                "network.addresses",
                network.addresses.iter().map(|&Cidr(address, prefix)| (address, prefix)),
            )?,
            gateway_v4,
            gateway_v6,
            resolvers: fitting::<_, RESOLVERS_MAX>("network.resolvers", network.resolvers.iter().copied())?,
            port: network.port,
        })
    }

    fn own_request(&self) -> Result<Option<Request>, ConfigError> {
        let request = match (&self.request, self.roles.client) {
            (None, false) => return Ok(None),
            (Some(request), true) => request,
            (None, true) => {
                let advice = "a client needs to know what to ask for; add the table, or leave the role \"client\"";
                return Err(ConfigError::Conflict("request", advice.into()));
            }
            (Some(_), false) => {
                let advice = "only a client sends it; add the role \"client\", or remove the table";
                return Err(ConfigError::Conflict("request", advice.into()));
            }
        };
        let room = begin_room(&request.target).min(REQUEST_MAX);
        let bytes = heapless::Vec::from_slice(request.text.as_bytes()).ok().filter(|bytes| bytes.len() <= room);
        let bytes = bytes.ok_or_else(|| {
            let advice = format!("{} bytes are too many; {room} leave with the first cell", request.text.len());
            ConfigError::Conflict("request.text", advice)
        })?;
        if request.every_seconds == Some(0) {
            let advice = "a pause of 0 would ask without end; write a number from 1, or leave it out";
            return Err(ConfigError::Conflict("request.every_seconds", advice.into()));
        }
        Ok(Some(Request {
            target: request.target.clone(),
            bytes,
            every: request.every_seconds.map(|seconds| Duration::from_secs(seconds.into())),
            sign: request.sign,
            hops: request.hops,
            strictness: match request.network_groups {
                NetworkGroups::Require => Strictness::Require,
                NetworkGroups::Prefer => Strictness::Prefer,
                NetworkGroups::Ignore => Strictness::Ignore,
            },
        }))
    }

    fn pinned(&self) -> Result<heapless::Vec<Contact, CONTACTS_MAX>, ConfigError> {
        let contacts: Result<Vec<Contact>, ConfigError> = self
            .contacts
            .iter()
            .map(|contact| {
                let fingerprint = contact.fingerprint.ok_or_else(|| {
                    let advice = format!("{contact} has no fingerprint; write it as {contact}#FINGERPRINT");
                    ConfigError::Conflict("contacts", advice)
                })?;
                Ok(Contact { address: contact.address, fingerprint })
            })
            .collect();
        let contacts = contacts?;
        if contacts.is_empty() && self.linux.clock == Calendar::None {
            let advice =
                "a node without a clock learns the time from its contacts; name one, or set linux.clock = \"system\"";
            return Err(ConfigError::Conflict("contacts", advice.into()));
        }
        fitting("contacts", contacts.into_iter())
    }

    fn rotation(&self) -> Result<Duration, ConfigError> {
        if !ROTATION.contains(&self.rotation_seconds) {
            let (least, most) = (ROTATION.start(), ROTATION.end());
            let advice = format!("{} is out of range; write a number from {least} to {most}", self.rotation_seconds);
            return Err(ConfigError::Conflict("rotation_seconds", advice));
        }
        Ok(Duration::from_secs(self.rotation_seconds.into()))
    }

    /// The exit's policy as text, for people.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.exit.policy
    }
}

/// All of `values`, if there are no more than a node has places for.
fn fitting<T, const N: usize>(
    field: &'static str,
    values: impl Iterator<Item = T>,
) -> Result<heapless::Vec<T, N>, ConfigError> {
    let mut fitting = heapless::Vec::new();
    for value in values {
        if fitting.push(value).is_err() {
            return Err(ConfigError::Conflict(field, format!("a node has room for {N}; name no more")));
        }
    }
    Ok(fitting)
}

/// `text` as TOML writes it between quotes.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            character if character.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(character))),
            character => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests;
