//! A network on one machine: a namespace, a bridge, host nodes' addresses on it, and constrained nodes on TAP devices, each a process of its own.
//!
//! ```no_run
//! use bulbil_firmware_sim::linux::stage::{NodeSpec, Stage};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! Stage::enter()?; // before the first thread
//! let mut stage = Stage::new("target/release/bulbil-firmware-sim")?;
//! let relay = stage.start(&NodeSpec { relay: true, ..NodeSpec::default() })?;
//! relay.wait_ready()?;
//! println!("{} at {}", relay.fingerprint(), relay.address());
//! println!("{}", relay.report()?);
//! assert!(relay.stop()?.status.success());
//! # Ok(())
//! # }
//! ```

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use std::{
    fmt::Write as _,
    format, fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    string::{String, ToString},
    sync::atomic::{AtomicU32, Ordering},
    vec::Vec,
};

use bulbil_core::wire::NodeId;
use bulbil_host::{
    config::{Bootstrap, NetworkGroups},
    identity, state,
};
use zeroize::Zeroizing;

use super::{
    board::{Calendar, IDENTITY},
    config_file::{Profile, RequestSettings, printed_mac, quoted},
    faults::Faults,
    namespace::{self, Bridge, Entered, NamespaceError},
    scratch::Scratch,
    tap::Tap,
};

pub mod demo;
mod process;

pub use process::{Ended, RunningNode};

/// The bridge's name.
pub const BRIDGE: &str = "bulbil-stage";
/// The port at which constrained nodes answer links.
pub const PORT: u16 = 9001;
/// Addresses for hosts on the bridge, numbered from 1.
pub const HOSTS: u8 = 8;
/// The number of the first constrained node in its addresses.
const FIRST: u8 = 11;
/// Constrained nodes, at most.
const NODES_MAX: u8 = 200;

/// Why the stage cannot be set, or a node on it does not do what was asked; the text says what to do.
#[derive(Debug)]
pub enum StageError {
    /// There is no namespace.
    Namespace(NamespaceError),
    /// Something the system refused, and what was attempted.
    System(String, io::Error),
    /// A node did not do something in time, or ended; with what it said last.
    Node(String),
}

impl StageError {
    fn system(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let attempt = attempt.into();
        move |error| Self::System(attempt, error)
    }
}

impl fmt::Display for StageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(error) => error.fmt(f),
            Self::System(attempt, error) => write!(f, "cannot {attempt}: {error}"),
            Self::Node(text) => f.write_str(text),
        }
    }
}

impl core::error::Error for StageError {}

/// The addresses of host `number` on the bridge, 1 to [`HOSTS`].
#[must_use]
pub fn host_addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::new(10, 77, 0, number), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into()))
}

/// What a constrained node on the stage is to be.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// How much memory it has.
    pub profile: Profile,
    /// It passes circuits on.
    pub relay: bool,
    /// It is an exit with this policy, rule by rule.
    pub exit: Option<Vec<String>>,
    /// It sends this request of its own.
    pub request: Option<RequestSettings>,
    /// Nodes that it knows from the beginning.
    pub contacts: Vec<Bootstrap>,
    /// Where it knows the time from.
    pub clock: Calendar,
    /// Others are told to use its IPv6 address.
    pub ipv6: bool,
    /// What happens to its frames.
    pub faults: Faults,
    /// Capture of what crosses its TAP device.
    pub pcap: Option<PathBuf>,
    /// Its identity, PKCS#8 DER; without it one is made, which takes up to 300 ms.
    pub identity: Option<Zeroizing<Vec<u8>>>,
    /// It tells of its links on standard error as well ([`RunningNode::log`]).
    pub verbose: bool,
}

impl Default for NodeSpec {
    fn default() -> Self {
        Self {
            profile: Profile::Small,
            relay: false,
            exit: None,
            request: None,
            contacts: Vec::new(),
            clock: Calendar::System,
            ipv6: false,
            faults: Faults::default(),
            pcap: None,
            identity: None,
            verbose: false,
        }
    }
}

/// The stage: what is on it lives as long as it does, or its namespace.
#[derive(Debug)]
pub struct Stage {
    executable: PathBuf,
    bridge: Bridge,
    directory: Scratch,
    started: u8,
}

impl Stage {
    /// Moves the process into a network namespace of its own. No thread may have been started yet.
    ///
    /// # Errors
    /// The kernel or its settings do not allow it.
    pub fn enter() -> Result<Entered, StageError> {
        namespace::enter().map_err(StageError::Namespace)
    }

    /// Makes the bridge, with [`HOSTS`] addresses of either family for hosts on it, inside of the namespace. `executable` is
    /// `bulbil-firmware-sim`, for the constrained nodes.
    ///
    /// # Errors
    /// There are no TAP devices or bridges to be had.
    pub fn new(executable: impl Into<PathBuf>) -> Result<Self, StageError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // All rights in the namespace do not open /dev/net/tun: better said here than by the first node.
        Tap::open("bulbil-probe").map_err(StageError::system("make TAP devices"))?;
        namespace::bring_up("lo").map_err(StageError::system("bring the loopback interface up"))?;
        let addresses: Vec<(IpAddr, u8)> = (1..=HOSTS)
            .map(host_addresses)
            .flat_map(|(v4, v6)| [(IpAddr::from(v4), 24), (IpAddr::from(v6), 64)])
            .collect();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = if number == 0 { String::from(BRIDGE) } else { format!("{BRIDGE}{number}") };
        let bridge = Bridge::create(&name, &addresses).map_err(StageError::system("make a bridge"))?;
        let directory = Scratch::new("stage").map_err(StageError::system("make a directory for keys"))?;
        Ok(Self { executable: executable.into(), bridge, directory, started: 0 })
    }

    /// Starts a constrained node and waits until it has said who it is. Once it is [ready](RunningNode::wait_ready) others can use it.
    ///
    /// # Errors
    /// It does not start; with what it said.
    pub fn start(&mut self, spec: &NodeSpec) -> Result<RunningNode, StageError> {
        if self.started >= NODES_MAX {
            return Err(StageError::Node(format!("there is room for {NODES_MAX} constrained nodes")));
        }
        let number = FIRST + self.started;
        self.started += 1;
        let tap = format!("bulbil{number}");
        Tap::create_persistent(&tap).map_err(StageError::system(format!("make the TAP device {tap}")))?;
        self.bridge.attach(&tap).map_err(StageError::system("attach a TAP device to the bridge"))?;

        let directory = self.directory.path().join(&tap);
        let place = Place { number, tap: &tap };
        let configuration = directory.join("node.toml");
        let made = fs::DirBuilder::new().mode(0o700).create(&directory);
        made.map_err(StageError::system("make a node's directory"))?;
        if spec.relay || spec.exit.is_some() {
            let identity = spec.identity.clone().unwrap_or_else(identity::generate);
            let written = state::write_private(&directory.join(IDENTITY), &identity, false);
            written.map_err(|error| StageError::Node(error.to_string()))?;
        }
        let text = toml(spec, &place);
        fs::write(&configuration, text).map_err(StageError::system("write a node's configuration"))?;
        RunningNode::start(&self.executable, &configuration, place.address(spec.ipv6), spec.verbose)
    }
}

/// Where a constrained node is.
struct Place<'a> {
    number: u8,
    tap: &'a str,
}

impl Place<'_> {
    fn addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        host_addresses(self.number)
    }

    fn address(&self, ipv6: bool) -> SocketAddr {
        let (v4, v6) = self.addresses();
        if ipv6 { (v6, PORT).into() } else { (v4, PORT).into() }
    }
}

/// The configuration file of a node.
fn toml(spec: &NodeSpec, place: &Place<'_>) -> String {
    let list = |values: Vec<String>| values.iter().map(|value| quoted(value)).collect::<Vec<_>>().join(", ");
    let roles = [("relay", spec.relay), ("exit", spec.exit.is_some()), ("client", spec.request.is_some())];
    let roles = roles.iter().filter(|(_, has)| *has).map(|(name, _)| (*name).into()).collect();
    let contacts = spec.contacts.iter().map(ToString::to_string).collect();
    let (v4, v6) = place.addresses();
    let mut addresses = [format!("{v4}/24"), format!("{v6}/64")];
    if spec.ipv6 {
        addresses.reverse();
    }
    let mac = printed_mac([0x02, 0, 0, 0x77, 0, place.number]);
    let clock = if spec.clock == Calendar::None { "none" } else { "system" };
    let mut text = format!(
        "profile = \"{}\"\nstate = \".\"\nroles = [{}]\ncontacts = [{}]\n\
         [network]\ntap = {}\nmac = \"{mac}\"\naddresses = [{}]\nport = {PORT}\n\
         [exit]\npolicy = [{}]\n\
         [linux]\nclock = \"{clock}\"\nfaults = {}\n",
        spec.profile,
        list(roles),
        list(contacts),
        quoted(place.tap),
        list(addresses.into()),
        list(spec.exit.clone().unwrap_or_default()),
        quoted(&if spec.faults.is_none() { String::new() } else { spec.faults.to_string() }),
    );
    if let Some(pcap) = spec.pcap.as_ref().and_then(|path| path.to_str()) {
        let _ = writeln!(text, "pcap = {}", quoted(pcap));
    }
    if let Some(request) = &spec.request {
        let groups = match request.network_groups {
            NetworkGroups::Require => "require",
            NetworkGroups::Prefer => "prefer",
            NetworkGroups::Ignore => "ignore",
        };
        let _ = writeln!(
            text,
            "[request]\ntarget = {}\ntext = {}\nsign = {}\nhops = {}\nnetwork_groups = \"{groups}\"",
            quoted(&request.target.to_string()),
            quoted(&request.text),
            request.sign,
            request.hops.value(),
        );
        if let Some(seconds) = request.every_seconds {
            let _ = writeln!(text, "every_seconds = {seconds}");
        }
    }
    text
}

/// How others pin a node.
#[must_use]
pub fn pinned(address: SocketAddr, fingerprint: NodeId) -> Bootstrap {
    Bootstrap { address, fingerprint: Some(fingerprint) }
}

/// How long a node may take for what should take it a moment.
const MOMENT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use bulbil_core::phonebook::HopCount;

    use super::*;
    use crate::linux::config_file::NodeFile;

    #[test]
    fn what_is_specified_is_what_the_node_reads() {
        let spec = NodeSpec {
            profile: Profile::Medium,
            relay: true,
            exit: Some(["accept 10.77.0.0/24:80".into(), "reject *:*".into()].into()),
            request: Some(RequestSettings {
                target: "10.77.0.1:80".parse().unwrap(),
                text: "GET / HTTP/1.0\r\n\"quoted\"".into(),
                every_seconds: Some(3),
                sign: false,
                hops: HopCount::new(2).unwrap(),
                network_groups: NetworkGroups::Ignore,
            }),
            contacts: [pinned(([10, 77, 0, 1], 9001).into(), NodeId([7; 32]))].into(),
            clock: Calendar::None,
            ipv6: true,
            faults: "loss=5,delay=100ms".parse().unwrap(),
            pcap: Some("/tmp/a file.pcap".into()),
            ..NodeSpec::default()
        };
        let place = Place { number: 12, tap: "bulbil12" };
        let file: NodeFile = toml(&spec, &place).parse().unwrap();
        let config = file.node().unwrap();
        assert_eq!((file.profile, &file.request), (spec.profile, &spec.request));
        assert_eq!((file.contacts, file.linux.clock), (spec.contacts.clone(), spec.clock));
        assert_eq!((file.linux.faults, file.linux.pcap), (spec.faults, spec.pcap.clone()));
        assert_eq!(config.network.addresses.first(), Some(&(place.address(true).ip(), 64)));
        assert_eq!(config.exit.unwrap().to_string().lines().count(), 2);
        assert_eq!(file.network.mac.0[5], 12);
        let plain = NodeSpec { relay: true, ..NodeSpec::default() };
        let file: NodeFile = toml(&plain, &place).parse().unwrap();
        assert_eq!(file.node().unwrap().network.addresses.first(), Some(&(place.address(false).ip(), 24)));
    }
}
