//! Constrained nodes on a virtual Ethernet with a virtual clock: hours in seconds, the same every time.

mod board;
mod host;
mod wire;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bulbil_core::phonebook::{HopCount, Strictness};
use bulbil_core::time::Instant;
use bulbil_core::wire::{Policy, Target};
use bulbil_firmware_sim::config::{Config, Contact, Network, Request};
use bulbil_firmware_sim::linux::heap;
use bulbil_firmware_sim::node::ConstrainedNode;
use bulbil_firmware_sim::profile::{Medium, Small};
use smoltcp::wire::EthernetAddress;

pub use board::{LanBoard, Told};
pub use host::{PlainHost, source_byte};
pub use wire::{Port, Switch, VirtualClock};

/// A constrained node on the virtual Ethernet.
pub type LanNode = ConstrainedNode<Port, LanBoard>;

/// The port that nodes answer at.
pub const PORT: u16 = 9001;
/// Turns without any progress of the clock after which something spins.
const SPINS: usize = 100_000;

/// How much memory a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// 192 KiB.
    Small,
    /// 512 KiB.
    Medium,
}

/// The address of the node, or of the plain machine, of that number.
#[must_use]
pub fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, number))
}

/// A network.
pub struct Lan {
    /// Its time.
    pub clock: VirtualClock,
    /// Its switch.
    pub switch: Switch,
    /// Constrained nodes.
    pub nodes: Vec<LanNode>,
    /// Plain machines.
    pub hosts: Vec<PlainHost>,
    /// Nodes whose power is off, or that hang: they are not polled, and their peers hear nothing.
    pub frozen: BTreeSet<usize>,
    /// Plain machines that do nothing: what comes for them waits.
    pub mute: BTreeSet<usize>,
    /// What each node's turns have taken from the heap, if the program's allocator counts.
    pub heap: Vec<NodeHeap>,
}

/// What one node has taken from the heap in its turns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeHeap {
    /// Allocations.
    pub allocations: u64,
    /// Bytes in use by now, less what was given back.
    pub in_use: isize,
    /// The most bytes in use within one turn, beyond what was in use before it.
    pub peak: usize,
}

/// What a node is to be: no role, and no contacts.
#[must_use]
pub fn config(number: u8) -> Config {
    let network = Network {
        mac: EthernetAddress([2, 0, 0, 0, 0, number]),
        addresses: heapless::Vec::from_array([(address(number), 24)]),
        gateway_v4: None,
        gateway_v6: None,
        resolvers: heapless::Vec::new(),
        port: PORT,
    };
    Config {
        network,
        relay: false,
        exit: None,
        client: None,
        contacts: heapless::Vec::new(),
        rotation: Duration::from_secs(3600),
    }
}

/// A policy that accepts everything: the virtual Ethernet has private addresses.
#[must_use]
pub fn anything() -> Policy {
    "accept *:*".parse().expect("a policy")
}

/// A request for `target`.
#[must_use]
pub fn request(target: SocketAddr, text: &[u8], every: Option<Duration>) -> Request {
    Request {
        target: Target::from(target),
        bytes: heapless::Vec::from_slice(text).expect("short"),
        every,
        sign: false,
        hops: HopCount::default(),
        strictness: Strictness::Ignore,
    }
}

impl NodeHeap {
    fn measure<T>(&mut self, turn: impl FnOnce() -> T) -> T {
        heap::reset_peak();
        let before = heap::usage();
        let result = turn();
        let after = heap::usage();
        self.allocations += after.allocations - before.allocations;
        self.in_use += after.in_use as isize - before.in_use as isize;
        self.peak = self.peak.max(after.peak - before.in_use);
        result
    }
}

impl Lan {
    /// An empty network with cables of one millisecond.
    #[must_use]
    pub fn new() -> Self {
        let clock = VirtualClock::default();
        let switch = Switch::new(&clock, 1);
        let (frozen, mute, heap) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        Self { clock, switch, nodes: Vec::new(), hosts: Vec::new(), frozen, mute, heap }
    }

    /// Starts a node. Its memory is never given back, as on a board.
    pub fn start(&mut self, profile: Profile, config: Config, board: LanBoard) -> usize {
        let device = self.switch.plug();
        let node = match profile {
            Profile::Small => LanNode::start(Box::leak(Box::new(Small::new())), device, board, config),
            Profile::Medium => LanNode::start(Box::leak(Box::new(Medium::new())), device, board, config),
        };
        self.nodes.push(node.expect("a sound configuration"));
        self.heap.push(NodeHeap::default());
        self.nodes.len() - 1
    }

    /// Starts a node that answers links, with the fixed identity of its number, and runs it until it does.
    pub fn serve(&mut self, profile: Profile, number: u8, relay: bool, exit: Option<Policy>) -> Contact {
        let board = LanBoard::new(&self.clock, u64::from(number), Some(usize::from(number)));
        let node = self.start(profile, Config { relay, exit, ..config(number) }, board);
        self.run_until("a node publishes itself", |lan| lan.nodes[node].board_mut().told.published > 0);
        Contact { address: SocketAddr::new(address(number), PORT), fingerprint: self.nodes[node].fingerprint() }
    }

    /// Starts a client that knows `contacts`.
    pub fn client(&mut self, profile: Profile, number: u8, contacts: &[Contact], request: Request) -> usize {
        let board = LanBoard::new(&self.clock, 1000 + u64::from(number), None);
        let contacts = heapless::Vec::from_slice(contacts).expect("few");
        self.start(profile, Config { client: Some(request), contacts, ..config(number) }, board)
    }

    /// Plugs a plain machine in.
    pub fn plain(&mut self, number: u8, sockets: usize) -> usize {
        let device = self.switch.plug();
        let address = smoltcp::wire::IpAddress::from(address(number));
        self.hosts.push(PlainHost::new(&self.clock, device, number, address, sockets));
        self.hosts.len() - 1
    }

    /// Does everything that can be done now, checks every node's books, then lets the time pass until something else can.
    pub fn step(&mut self) {
        self.step_with(|_, node| node.poll());
        self.audit();
    }

    /// The same without a look at the books, where `poll` polls the nodes: to measure one of them.
    pub fn step_with(&mut self, mut poll: impl FnMut(usize, &mut LanNode) -> Instant) {
        let now = self.clock.now();
        let mut next = Instant::from_millis(now.millis() + 1000);
        let mut last = None;
        for _ in 0..SPINS {
            next = Instant::from_millis(now.millis() + 1000);
            for (at, node) in self.nodes.iter_mut().enumerate() {
                if self.frozen.contains(&at) {
                    node.device_mut().discard();
                    continue;
                }
                let due = self.heap[at].measure(|| poll(at, node));
                if due <= now {
                    last = Some(at);
                }
                next = next.min(due);
            }
            for (at, host) in self.hosts.iter_mut().enumerate() {
                if self.mute.contains(&at) {
                    host.forget_arrived();
                    continue;
                }
                next = next.min(host.poll().unwrap_or(next));
            }
            next = next.min(self.switch.next_due().unwrap_or(next));
            if next > now {
                break;
            }
        }
        assert!(next > now, "something always wants to be called at once, and does nothing: {last:?}");
        self.clock.advance_to(next);
    }

    /// Runs for so long.
    pub fn run_for(&mut self, span: Duration) {
        let until = self.clock.now().after(span);
        while self.clock.now() < until {
            self.step();
        }
    }

    /// Runs until `done`; ten virtual minutes at most.
    pub fn run_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = self.clock.now().after(Duration::from_secs(600));
        while !done(self) {
            assert!(self.clock.now() < deadline, "waited for ten minutes: {what}");
            self.step();
        }
    }

    fn audit(&self) {
        for (at, node) in self.nodes.iter().enumerate() {
            node.node().audit().unwrap_or_else(|error| panic!("node {at}: {error}"));
        }
    }
}

impl Default for Lan {
    fn default() -> Self {
        Self::new()
    }
}
