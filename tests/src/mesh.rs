//! Nodes without links: the cells that one node sends are handed to the next as they are, at once, and may be looked at and altered on
//! the way. For what a peer can do that real links, being authentic, hide: a malicious neighbour is whoever holds the other end.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use bulbil_core::circuit::LinkId;
use bulbil_core::crypto::kem::OnionKeys;
use bulbil_core::crypto::onion::{HopKeys, HopSpec, ONION_LEN, Onion, build, peel};
use bulbil_core::node::{
    Ask, ConversationId, LinkWish, Node, OpenRefused, Opening, Outcome, Output, PeerLimits, Violation,
};
use bulbil_core::time::Instant;
use bulbil_core::wire::cell::CELL_LEN;
use bulbil_core::wire::message::BeginOptions;
use bulbil_core::wire::{NodeId, OnionKey};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use crate::fixture;
use crate::sim::{Spec, Tables};

/// A cell.
pub type CellBytes = [u8; CELL_LEN];

/// Where a cell goes from and to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    /// The node that sends it.
    pub from: usize,
    /// The node that receives it.
    pub to: usize,
    /// How many cells went that way before.
    pub number: u64,
}

/// What a conversation of a node has come to.
#[derive(Debug, Default)]
pub struct Ear {
    /// What it has heard.
    pub heard: Vec<u8>,
    /// The other side has finished.
    pub finished: bool,
    /// It is over.
    pub outcome: Option<Outcome>,
    /// This is the exit's end of it.
    pub exit: bool,
}

/// One node of the mesh.
struct Place<'m> {
    node: Node<'m>,
    keys: Option<OnionKeys>,
    identity: Option<usize>,
    id: NodeId,
    rng: ChaCha20Rng,
    limits: PeerLimits,
    ears: HashMap<ConversationId, Ear>,
    /// Conversations in the order in which they came.
    order: Vec<ConversationId>,
}

/// One way of a link: who sends into it, and who receives.
struct Wire {
    from: (usize, LinkId),
    to: (usize, LinkId),
    carried: u64,
}

/// What may look at a cell and alter it; `false` drops it.
pub type Tamper<'t> = Box<dyn FnMut(Passage, &mut CellBytes) -> bool + 't>;

/// Nodes, connected as they wish.
pub struct Mesh<'m, 't> {
    places: Vec<Place<'m>>,
    wires: Vec<Wire>,
    /// Milliseconds.
    now: u64,
    tamper: Option<Tamper<'t>>,
    violations: Vec<(usize, Violation)>,
    /// Exits say back what they hear.
    pub echo: bool,
}

/// Makes nodes and gives them to `test`. Those that answer links get the fixed identities in their order.
pub fn run<'t, T>(seed: u64, specs: &[Spec], test: impl FnOnce(&mut Mesh<'_, 't>) -> T) -> T {
    let mut tables: Vec<_> = specs.iter().map(Tables::new).collect();
    let mut identities = 0..fixture::IDENTITIES;
    let places = specs.iter().zip(&mut tables).enumerate().map(|(index, (spec, tables))| {
        let mut rng = ChaCha20Rng::seed_from_u64(seed ^ (index as u64 + 1) << 48);
        let identity = spec.answers.then(|| identities.next().expect("there are six identities"));
        let id = identity.map_or(NodeId([index as u8; 32]), fixture::node_id);
        let config = spec.config(id);
        let limits = PeerLimits {
            record_cells: config.limits.record_cells.value(),
            credit: config.limits.credit.value(),
            circuits: config.circuits_per_link,
        };
        Place {
            node: Node::new(config, tables.lend().0.memory, &mut rng).expect("specs are sound"),
            keys: identity.map(|identity| OnionKeys::new(fixture::onion_secret(identity, spec.kind, 0), None)),
            identity,
            id,
            rng,
            limits,
            ears: HashMap::new(),
            order: Vec::new(),
        }
    });
    let places = places.collect();
    test(&mut Mesh { places, wires: Vec::new(), now: 0, tamper: None, violations: Vec::new(), echo: true })
}

impl<'m, 't> Mesh<'m, 't> {
    /// The time.
    #[must_use]
    pub const fn now(&self) -> Instant {
        Instant::from_millis(self.now)
    }

    /// Lets so many milliseconds pass and every deadline come.
    pub fn pass(&mut self, millis: u64) {
        self.now += millis;
        for at in 0..self.places.len() {
            let now = self.now();
            self.places[at].node.handle_timeout(now);
        }
        self.settle();
    }

    /// A node.
    #[must_use]
    pub fn node(&self, at: usize) -> &Node<'m> {
        &self.places[at].node
    }

    /// A node.
    pub fn node_mut(&mut self, at: usize) -> &mut Node<'m> {
        &mut self.places[at].node
    }

    /// What a node lets its connectors do.
    #[must_use]
    pub fn limits(&self, at: usize) -> PeerLimits {
        self.places[at].limits
    }

    /// Alters cells from now on.
    pub fn set_tamper(&mut self, tamper: Tamper<'t>) {
        self.tamper = Some(tamper);
    }

    /// Who found which violation.
    #[must_use]
    pub fn violations(&self) -> &[(usize, Violation)] {
        &self.violations
    }

    /// A node's conversations, in the order in which they came.
    pub fn ears(&self, at: usize) -> impl Iterator<Item = &Ear> {
        let place = &self.places[at];
        place.order.iter().map(|name| &place.ears[name])
    }

    /// A conversation of a node.
    #[must_use]
    pub fn ear(&self, at: usize, name: ConversationId) -> &Ear {
        &self.places[at].ears[&name]
    }

    /// Replaces a node's onion key; `rotation` counts them.
    pub fn rotate(&mut self, at: usize, rotation: usize) {
        let place = &mut self.places[at];
        if let (Some(keys), Some(identity)) = (&mut place.keys, place.identity) {
            let kind = keys.current().kind();
            keys.rotate(fixture::onion_secret(identity, kind, rotation));
            place.node.handle_rotation();
        }
    }

    /// An onion for `path`, and the keys to use it.
    pub fn onion(&mut self, client: usize, path: &[usize]) -> (Box<Onion>, Vec<HopKeys>) {
        let keys: Vec<OnionKey> = path
            .iter()
            .map(|&hop| self.places[hop].keys.as_ref().expect("hops answer links").current().public())
            .collect();
        let hops: Vec<_> = path
            .iter()
            .zip(&keys)
            .map(|(&hop, key)| HopSpec { node: self.places[hop].id, key, address: self.address(hop) })
            .collect();
        let mut onion = Box::new([0; ONION_LEN]);
        let keys = build(&hops, &mut onion, &mut self.places[client].rng).expect("paths are valid");
        (onion, keys.into_iter().collect())
    }

    /// Where a node listens.
    #[must_use]
    pub fn address(&self, at: usize) -> SocketAddr {
        fixture::address(self.places[at].identity.expect("it answers links"))
    }

    /// Opens a circuit that says `first`.
    ///
    /// # Errors
    /// The client refuses.
    pub fn open(&mut self, client: usize, path: &[usize], first: &[u8]) -> Result<ConversationId, OpenRefused> {
        let (onion, keys) = self.onion(client, path);
        self.open_with(client, path[0], &onion, &keys, first)
    }

    /// Opens a circuit with this very onion.
    ///
    /// # Errors
    /// The client refuses.
    pub fn open_with(
        &mut self,
        client: usize,
        hop: usize,
        onion: &Onion,
        keys: &[HopKeys],
        first: &[u8],
    ) -> Result<ConversationId, OpenRefused> {
        let (now, address, id) = (self.now(), self.address(hop), self.places[hop].id);
        let place = &mut self.places[client];
        let opening = Opening {
            node: id,
            address,
            onion,
            keys,
            target: &"target.test:80".parse().expect("a valid name"),
            options: BeginOptions::default(),
            first,
        };
        let name = place.node.open(&opening, now)?;
        place.ears.insert(name, Ear::default());
        place.order.push(name);
        Ok(name)
    }

    /// A conversation says something more; it must have room for it.
    pub fn say(&mut self, at: usize, name: ConversationId, bytes: &[u8]) {
        let now = self.now();
        assert_eq!(self.places[at].node.handle_input(name, bytes, now), bytes.len(), "there is room");
    }

    /// The same, unless the conversation is over or has no room.
    pub fn say_if_open(&mut self, at: usize, name: ConversationId, bytes: &[u8]) {
        let now = self.now();
        if self.places[at].node.input_room(name) >= bytes.len() {
            self.places[at].node.handle_input(name, bytes, now);
        }
    }

    /// Hands `to` a cell as if `from` had sent it, over the first link on which `from` sends to it.
    pub fn inject(&mut self, from: usize, to: usize, cell: CellBytes) {
        let wire = self.wires.iter().find(|wire| wire.from.0 == from && wire.to.0 == to);
        let Some(end) = wire.map(|wire| wire.to) else { return };
        if let Some(violation) = self.feed(end.0, end.1, cell) {
            self.violations.push((end.0, violation));
        }
    }

    /// Hands a node a cell over one of its links; a violation ends that link, as a driver would end it.
    pub fn feed(&mut self, at: usize, link: LinkId, mut cell: CellBytes) -> Option<Violation> {
        let now = self.now();
        let violation = self.places[at].node.handle_cell(link, &mut cell, now).err();
        if violation.is_some() {
            self.disconnect((at, link));
        }
        self.places[at].node.audit().expect("the books are right");
        violation
    }

    /// Somebody connects to a node and has not said HELLO.
    pub fn stranger(&mut self, at: usize) -> LinkId {
        let now = self.now();
        let link = self.places[at].node.accept_link(now).expect("there is a place");
        self.places[at].node.handle_link_answered(link);
        link
    }

    /// Connects `from` to `to`, whether it wishes so or not; answers `from`'s end and `to`'s.
    fn connect(&mut self, from: (usize, LinkId), to: usize) {
        let now = self.now();
        let Some(link) = self.places[to].node.accept_link(now) else {
            self.places[from.0].node.handle_link_down(from.1, now);
            return;
        };
        self.forget_displaced(to);
        self.places[to].node.handle_link_answered(link);
        self.wires.push(Wire { from, to: (to, link), carried: 0 });
        self.wires.push(Wire { from: (to, link), to: from, carried: 0 });
        let (id, limits) = (self.places[to].id, self.places[to].limits);
        self.places[from.0].node.handle_link_up(from.1, id, limits, now);
    }

    /// Breaks the links whose places a node has given to others.
    fn forget_displaced(&mut self, at: usize) {
        let node = &self.places[at].node;
        let displaced = |wire: &&Wire| wire.from.0 == at && !node.knows_link(wire.from.1);
        for end in self.wires.iter().filter(displaced).map(|wire| wire.from).collect::<Vec<_>>() {
            self.disconnect(end);
        }
    }

    /// Breaks the link at both ends.
    fn disconnect(&mut self, end: (usize, LinkId)) {
        let now = self.now();
        for wire in self.wires.extract_if(.., |wire| wire.from == end || wire.to == end).collect::<Vec<_>>() {
            self.places[wire.from.0].node.handle_link_down(wire.from.1, now);
        }
        self.places[end.0].node.handle_link_down(end.1, now);
    }

    /// Breaks every link between two nodes.
    pub fn cut(&mut self, one: usize, other: usize) {
        while let Some(wire) = self.wires.iter().find(|wire| wire.from.0 == one && wire.to.0 == other) {
            self.disconnect(wire.from);
        }
    }

    /// Whether there is a link between two nodes.
    #[must_use]
    pub fn are_connected(&self, one: usize, other: usize) -> bool {
        self.wires.iter().any(|wire| wire.from.0 == one && wire.to.0 == other)
    }

    /// Does what there is to do until there is nothing more.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            let mut idle = true;
            for at in 0..self.places.len() {
                idle &= self.serve(at);
            }
            if idle {
                return;
            }
        }
        panic!("the mesh runs in circles");
    }

    /// One round of a node; answers whether it had nothing to do.
    fn serve(&mut self, at: usize) -> bool {
        let now = self.now();
        let mut idle = true;
        let place = &mut self.places[at];
        while let Some((job, onion)) = place.node.poll_job() {
            idle = false;
            let keys = place.keys.as_ref().expect("onions come only to nodes that answer links");
            let peeled = peel(onion, &place.id, keys, &mut place.rng);
            place.node.handle_peeled(job, peeled, now);
        }
        while let Some(name) = place.node.poll_conversation() {
            idle = false;
            converse(place, name, self.echo, now);
        }
        while let Some((link, wish)) = self.places[at].node.poll_link() {
            idle = false;
            self.forget_displaced(at);
            match wish {
                LinkWish::Connect { address, .. } => {
                    let to = self
                        .places
                        .iter()
                        .position(|place| place.identity.is_some_and(|identity| fixture::address(identity) == address));
                    match to {
                        Some(to) => self.connect((at, link), to),
                        None => self.places[at].node.handle_link_down(link, now),
                    }
                }
                LinkWish::Send => self.carry((at, link)),
                LinkWish::Close => self.disconnect((at, link)),
            }
        }
        self.places[at].node.audit().expect("the books are right");
        idle
    }

    fn carry(&mut self, from: (usize, LinkId)) {
        let now = self.now();
        // Cells of one round leave before anything that follows from them.
        let mut cells = VecDeque::new();
        let mut batch = vec![[0; CELL_LEN]; 127];
        loop {
            let count = self.places[from.0].node.poll_cells(from.1, &mut batch, now);
            if count == 0 {
                break;
            }
            cells.extend(&batch[..count]);
        }
        for mut cell in cells {
            let Some(wire) = self.wires.iter_mut().find(|wire| wire.from == from) else { return };
            let passage = Passage { from: from.0, to: wire.to.0, number: wire.carried };
            wire.carried += 1;
            let to = wire.to;
            if !self.places[to.0].node.knows_link(to.1) {
                return self.disconnect(to);
            }
            if self.tamper.as_mut().is_some_and(|tamper| !tamper(passage, &mut cell)) {
                continue;
            }
            if let Err(violation) = self.places[to.0].node.handle_cell(to.1, &mut cell, now) {
                self.violations.push((to.0, violation));
                self.disconnect(to);
            }
        }
    }
}

/// Does what a conversation of this node wants: connects at once, hears everything, and says it back if it is an exit's.
fn converse(place: &mut Place<'_>, name: ConversationId, echo: bool, now: Instant) {
    let node = &mut place.node;
    if let Some(Ask::Connect(_)) = node.poll_ask(name) {
        place.ears.insert(name, Ear { exit: true, ..Ear::default() });
        place.order.push(name);
        node.handle_connected(name, SocketAddr::from(([198, 51, 100, 1], 80)), now);
    }
    let Some(ear) = place.ears.get_mut(&name) else { return };
    let mut buffer = [0; 4096];
    loop {
        match node.poll_output(name, &mut buffer, now) {
            Output::Nothing => return,
            Output::Finish => ear.finished = true,
            Output::Over(outcome) => {
                ear.outcome = Some(outcome);
                return;
            }
            Output::Bytes(len) => {
                let len = if ear.exit && echo { len.min(node.input_room(name)) } else { len };
                if len == 0 {
                    return;
                }
                ear.heard.extend(&buffer[..len]);
                if ear.exit && echo {
                    assert_eq!(node.handle_input(name, &buffer[..len], now), len, "there was room");
                }
                node.handle_written(name, len, now);
            }
        }
    }
}
