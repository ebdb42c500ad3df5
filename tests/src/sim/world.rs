//! What all parts of a simulated network share: virtual time, what is going to happen, the pipes, and the generator behind all chance.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;

use bulbil_core::circuit::LinkId;
use bulbil_core::crypto::onion::{Onion, OnionRejected, Peeled};
use bulbil_core::node::ConversationId;
use bulbil_core::relay::onions::OnionIndex;
use bulbil_core::wire::{Target, UnixTime};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng};

use super::pipes::{Pipes, StreamId};

/// A node's number in its network.
pub type NodeIndex = usize;

/// A conversation's number in its network.
pub type TalkIndex = usize;

/// Who is called when a pipe becomes ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    /// A node's link, by its place in the streams that the network keeps for the node.
    Link(NodeIndex, StreamId),
    /// What a node's conversation is attached to.
    Outside(NodeIndex, StreamId),
    /// The application of a conversation.
    App(TalkIndex),
    /// The target of a conversation.
    Target(TalkIndex),
    /// Whoever lives at a node, for a conversation of its own or with one of its services.
    Resident(NodeIndex, StreamId),
    /// Nobody any more, or not yet.
    Nobody,
}

/// Something that is going to happen.
pub(super) enum Event {
    /// The first segment on the way to this end arrives.
    Arrive(StreamId),
    /// The writer at this end learns of room.
    Room(StreamId),
    /// The writer at this end learns that nobody reads.
    Unread(StreamId),
    /// Both ends of the pipe learn that it is cut.
    Cut(StreamId),
    Connect(NodeIndex, LinkId, SocketAddr),
    Target(NodeIndex, ConversationId, Box<Target>),
    Peeled(NodeIndex, OnionIndex, Box<Result<Peeled, OnionRejected>>, Box<Onion>),
    Signed(NodeIndex, ConversationId, UnixTime, Box<[u8; 256]>),
    Timer(NodeIndex),
    /// The target says something more.
    Tick(TalkIndex),
    /// A resident wants to be called.
    Alarm(NodeIndex, u64),
}

/// Everything that is chance or time.
pub(super) struct World {
    /// Microseconds since the start.
    pub(super) now: u64,
    pub(super) rng: ChaCha8Rng,
    queue: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    pub(super) woken: BTreeSet<Owner>,
    pub(super) pipes: Pipes,
    trace: u64,
    /// Who listens where.
    pub(super) addresses: HashMap<SocketAddr, NodeIndex>,
    /// Bytes that each node has sent and received on links.
    traffic: Vec<(u64, u64)>,
    /// Microseconds that a byte travels, least and most; each pipe draws its own.
    pub(super) latency: (u64, u64),
    /// The same for pipes that end at the node itself, if that is different.
    pub(super) inside_latency: Option<(u64, u64)>,
    /// Bytes that a pipe holds in one direction, least and most.
    pub(super) capacity: (u64, u64),
    /// Whether reads and writes take fewer bytes than they could, now and then.
    pub(super) splitting: bool,
    /// Of 10,000 attempts to connect, how many fail although somebody listens.
    pub(super) connects_lost: u64,
    /// Microseconds that a link lives on average before it is cut; 0 if it is not.
    pub(super) link_life: u64,
    /// Nodes that are cut off from all others.
    pub(super) unplugged: BTreeSet<NodeIndex>,
}

/// The world, shared by the streams in it.
pub(super) type Shared = Rc<RefCell<World>>;

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: 0,
            rng: ChaCha8Rng::seed_from_u64(seed),
            queue: BTreeMap::new(),
            sequence: 0,
            woken: BTreeSet::new(),
            pipes: Pipes::default(),
            trace: 0xcbf2_9ce4_8422_2325,
            addresses: HashMap::new(),
            traffic: Vec::new(),
            latency: (1_000, 30_000),
            inside_latency: None,
            capacity: (2_000, 100_000),
            splitting: true,
            connects_lost: 0,
            link_life: 0,
            unplugged: BTreeSet::new(),
        }
    }

    /// Notes what happened, so that two runs can be compared.
    pub(super) fn trace(&mut self, words: &[u64]) {
        for word in [self.now].iter().chain(words) {
            for byte in word.to_le_bytes() {
                self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
    }

    pub(super) const fn trace_hash(&self) -> u64 {
        self.trace
    }

    /// A number of the range, both ends included.
    pub(super) fn draw(&mut self, (least, most): (u64, u64)) -> u64 {
        least + self.rng.next_u64() % (most - least + 1)
    }

    pub(super) fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), event);
    }

    /// After some travel.
    pub(super) fn later(&mut self, event: Event) {
        let delay = self.draw(self.latency);
        self.at(self.now + delay, event);
    }

    fn traffic_of(&mut self, node: NodeIndex) -> &mut (u64, u64) {
        if self.traffic.len() <= node {
            self.traffic.resize(node + 1, (0, 0));
        }
        &mut self.traffic[node]
    }

    pub(super) fn count_sent(&mut self, node: NodeIndex, len: usize) {
        self.traffic_of(node).0 += len as u64;
    }

    pub(super) fn count_received(&mut self, node: NodeIndex, len: usize) {
        self.traffic_of(node).1 += len as u64;
    }

    /// Bytes that a node has sent and received on links.
    pub(super) fn traffic(&self, node: NodeIndex) -> (u64, u64) {
        self.traffic.get(node).copied().unwrap_or_default()
    }

    /// Whether this attempt to connect fails.
    pub(super) fn loses_connect(&mut self) -> bool {
        self.connects_lost > 0 && self.rng.next_u64() % 10_000 < self.connects_lost
    }

    /// A link was made; it may be cut one day.
    pub(super) fn age(&mut self, end: StreamId) {
        if self.link_life > 0 {
            let life = self.draw((0, 2 * self.link_life));
            self.cut_at(end, self.now + life);
        }
    }

    /// Goes to the next event.
    pub(super) fn next(&mut self) -> Option<Event> {
        let ((at, _), event) = self.queue.pop_first()?;
        self.now = at;
        Some(event)
    }

    /// When the next event is due.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }
}
