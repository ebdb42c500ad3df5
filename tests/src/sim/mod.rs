//! The simulator: a network of real nodes and drivers over virtual pipes, in virtual time. All chance comes from one seed, so the same
//! seed gives the same run, and nobody ever sleeps.
//!
//! [`run`] makes the nodes and hands the [`Network`] to a test, which opens conversations ([`Network::open`]) and lets time pass
//! ([`Network::run_until`], [`Network::run_for`], [`Network::settle`]). After every step the simulator itself checks what must always
//! hold: the pools' bounds, each node's own books ([`bulbil_core::node::Node::audit`]), that nothing is said or asked of a link or a
//! conversation that has ended, and that every byte which an application or a target hears is the one that comes next. Only the books of
//! networks of very many or very long runs are looked at after one call in thousands (`metropolis::Plan::audit_stride`).

mod actor;
mod checks;
mod faults;
mod node;
mod pipes;
pub(crate) mod resident;
mod shell;
mod steps;
pub mod storm;
mod stream;
mod talk;
mod turncoat;
mod wire;
mod world;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bulbil_core::crypto::kem::OnionKeys;
use bulbil_core::crypto::onion::{HopSpec, build};
use bulbil_core::crypto::receipt::ReceiptParts;
use bulbil_core::driver::LinkEnd;
use bulbil_core::link::LinkSecret;
use bulbil_core::node::{ConversationId, Counters, OpenRefused, Opening, Usage};
use bulbil_core::time::Instant;
use bulbil_core::wire::message::BeginOptions;
use bulbil_core::wire::{NodeId, OnionKey, Target};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

pub use self::actor::{Actor, Behaviour, Heard};
pub use self::faults::{Faults, State};
pub use self::node::Spec;
pub use self::shell::Jobs;
pub use self::talk::{Talk, Wish};
pub use self::turncoat::{Treason, Trick};
pub use self::world::{NodeIndex, TalkIndex};

pub(crate) use self::node::Tables;
use self::node::{SimNode, Token};
use self::pipes::StreamId;
use self::resident::Letter;
use self::shell::SimShell;
use self::stream::SimStream;
use self::world::{Owner, Shared, World};
use crate::fixture;

/// Bytes between a conversation and what it is attached to.
const PIPE: usize = 8192;

/// A network of nodes.
pub struct Network<'m, 'b> {
    world: Shared,
    nodes: Vec<SimNode<'m, 'b>>,
    talks: Vec<Talk>,
    names: HashMap<(NodeIndex, ConversationId), TalkIndex>,
    ended: HashSet<(NodeIndex, ConversationId)>,
    /// Whose circuits go over links, by the connector's end and the circuit id there, if links are watched.
    clients: HashMap<(StreamId, u32), NodeIndex>,
    /// What residents are to hear.
    mail: VecDeque<(NodeIndex, Letter)>,
    steps: u64,
    /// One call of a node in so many is followed by an audit of its books.
    audit_stride: u64,
    calls: u64,
    /// Links are watched, and neighbours' books are laid beside each other.
    watching: bool,
    /// What happens is printed.
    verbose: bool,
}

/// A node that is to be, and who lives there.
pub(crate) struct Settler {
    pub(crate) spec: Spec,
    /// Which of the fixed identities it has, if it answers links.
    pub(crate) identity: Option<usize>,
    /// Where it listens.
    pub(crate) address: Option<SocketAddr>,
    /// What it shows of itself.
    pub(crate) descriptor: Rc<[u8]>,
    /// Somebody lives there who is to be told what happens.
    pub(crate) resident: bool,
    /// It is there from the beginning.
    pub(crate) born: bool,
}

/// Makes a network of such nodes and gives it to `test`. Nodes that answer links get the fixed identities in their order.
pub fn run<T>(seed: u64, specs: &[Spec], test: impl FnOnce(&mut Network<'_, '_>) -> T) -> T {
    run_lives(seed, specs, 1, test)
}

/// The same with nodes that can die and come back until each has lived so many lives.
pub fn run_lives<T>(seed: u64, specs: &[Spec], lives: usize, test: impl FnOnce(&mut Network<'_, '_>) -> T) -> T {
    let mut identities = 0..fixture::IDENTITIES;
    let settlers = specs.iter().map(|spec| {
        let identity = spec.answers.then(|| identities.next().expect("there are six identities"));
        Settler {
            spec: *spec,
            identity,
            address: identity.map(fixture::address),
            descriptor: identity.map_or(&[][..], |identity| fixture::descriptor(identity, spec.kind)).into(),
            resident: false,
            born: true,
        }
    });
    let settlers: Vec<_> = settlers.collect();
    settle_lives(seed, &settlers, lives, |mut network| {
        network.watch();
        test(&mut network)
    })
}

/// Makes a network of such nodes and gives it to `test`.
pub(crate) fn settle<T>(seed: u64, settlers: &[Settler], test: impl FnOnce(Network<'_, '_>) -> T) -> T {
    settle_lives(seed, settlers, 1, test)
}

fn settle_lives<T>(seed: u64, settlers: &[Settler], lives: usize, test: impl FnOnce(Network<'_, '_>) -> T) -> T {
    wire::forget();
    let world: Shared = Rc::new(RefCell::new(World::new(seed)));
    let each = settlers.iter().flat_map(|settler| std::iter::repeat_with(|| Tables::new(&settler.spec)).take(lives));
    let mut tables: Vec<_> = each.collect();
    let (lent, mut places): (Vec<_>, Vec<_>) = tables.iter_mut().map(Tables::lend).unzip();
    let mut memory = lent.into_iter().zip(places.iter_mut().map(Vec::as_mut_slice));
    let nodes = settlers.iter().enumerate().map(|(index, settler)| {
        let life = memory.next().expect("as many lives as nodes, at least");
        let spares = memory.by_ref().take(lives - 1).collect();
        let Settler { spec, identity, .. } = settler;
        let mut rng = ChaCha20Rng::seed_from_u64(seed ^ (index as u64 + 1) << 48);
        let client = || {
            let mut id = [0xcc; 32];
            id[..8].copy_from_slice(&(index as u64).to_be_bytes());
            NodeId(id)
        };
        let shell = SimShell {
            world: Rc::clone(&world),
            index,
            node: identity.map_or_else(client, fixture::node_id),
            identity: *identity,
            link: identity.map_or_else(|| LinkSecret::generate(&mut rng), fixture::link_secret),
            onion: identity.map(|identity| OnionKeys::new(fixture::onion_secret(identity, spec.kind, 0), None)),
            descriptor: Rc::clone(&settler.descriptor),
            ahead: 0,
            clocks_jump: false,
            slept: 0,
            letters: settler.resident.then(Vec::new),
            connecting: BTreeMap::new(),
            rng,
            jobs: spec.jobs,
            notices: Vec::new(),
            over: HashSet::new(),
            ended: HashSet::new(),
            link_ends: Vec::new(),
        };
        if let Some(address) = settler.address.filter(|_| settler.born) {
            world.borrow_mut().addresses.insert(address, index);
        }
        SimNode::new(*spec, shell, life, spares, !settler.born)
    });
    let nodes = nodes.collect();
    let result = test(Network {
        world,
        nodes,
        talks: Vec::new(),
        names: HashMap::new(),
        ended: HashSet::new(),
        clients: HashMap::new(),
        mail: VecDeque::new(),
        steps: 0,
        audit_stride: 1,
        calls: 0,
        watching: false,
        verbose: false,
    });
    wire::forget();
    result
}

impl<'m, 'b> Network<'m, 'b> {
    /// Time since the start.
    #[must_use]
    pub fn now(&self) -> Duration {
        Duration::from_micros(self.world.borrow().now)
    }

    pub(crate) fn instant(&self) -> Instant {
        Instant::from_millis(self.world.borrow().now / 1000)
    }

    /// The same as a node's own clock shows it.
    pub(super) fn instant_of(&self, node: NodeIndex) -> Instant {
        self.nodes[node].clock.at(self.world.borrow().now / 1000)
    }

    /// Steps so far.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    /// Stands for everything that has happened so far.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.world.borrow().trace_hash()
    }

    /// How long a byte travels, least and most; each pipe that is made from now on draws its own.
    pub fn set_latency(&mut self, least: Duration, most: Duration) {
        self.world.borrow_mut().latency = (least.as_micros() as u64, most.as_micros() as u64);
    }

    /// Bytes that a link holds in one direction, least and most; for links that are made from now on.
    pub fn set_capacity(&mut self, least: u64, most: u64) {
        self.world.borrow_mut().capacity = (least, most);
    }

    /// Whether reads and writes take fewer bytes than they could, now and then.
    pub fn set_splitting(&mut self, splitting: bool) {
        self.world.borrow_mut().splitting = splitting;
    }

    /// How full a node's tables are.
    #[must_use]
    pub fn usage(&self, node: NodeIndex) -> Usage {
        self.nodes[node].driver.node().usage()
    }

    /// What a node has counted.
    #[must_use]
    pub fn counters(&self, node: NodeIndex) -> Counters {
        *self.nodes[node].driver.node().counters()
    }

    /// Whether a node's replay set is full.
    #[must_use]
    pub fn is_rotation_due(&self, node: NodeIndex) -> bool {
        self.nodes[node].driver.node().is_rotation_due()
    }

    /// How links of a node have ended, in order. Of a node with a resident that hears it, nothing.
    #[must_use]
    pub fn link_ends(&self, node: NodeIndex) -> Vec<LinkEnd> {
        self.nodes[node].shell.link_ends.iter().map(|(_, end)| *end).collect()
    }

    /// A conversation.
    #[must_use]
    pub fn talk(&self, talk: TalkIndex) -> &Talk {
        &self.talks[talk]
    }

    /// Every conversation.
    #[must_use]
    pub fn talks(&self) -> &[Talk] {
        &self.talks
    }

    /// Opens a conversation through `path`. Its target comes into being with it and is known by its number; conversations with one node's
    /// phonebook have to be opened after the one before has reached it.
    ///
    /// # Errors
    /// The client refuses.
    pub fn open(&mut self, client: NodeIndex, path: &[NodeIndex], wish: Wish) -> Result<TalkIndex, OpenRefused> {
        let talk = self.open_detached(client, path, wish)?;
        self.attach_app(talk);
        Ok(talk)
    }

    /// Opens a conversation whose application comes later, with [`Self::attach_app`].
    ///
    /// # Errors
    /// The client refuses.
    pub fn open_detached(
        &mut self,
        client: NodeIndex,
        path: &[NodeIndex],
        wish: Wish,
    ) -> Result<TalkIndex, OpenRefused> {
        let talk = self.talks.len();
        let target = if wish.service { "phonebook".into() } else { format!("t{talk}.test:80") };
        let target: Target = target.parse().expect("a valid name");
        let keys: Vec<OnionKey> = path.iter().map(|&hop| self.known_key(hop, wish.outdated)).collect();
        let hops: Vec<_> = path.iter().zip(&keys).map(|(&hop, key)| self.hop(hop, key)).collect();
        let mut onion = Box::new([0; bulbil_core::crypto::onion::ONION_LEN]);
        let now = self.instant_of(client);
        let node = &mut self.nodes[client];
        let keys = build(&hops, &mut onion, &mut node.shell.rng).expect("paths are valid");
        wire::with(|wire| {
            if let Some(turncoat) = wire.turncoats.get_mut(&client) {
                turncoat.learn_path(&*onion, &keys);
            }
        });
        // The application speaks the stream with the even number, the target the odd one.
        let (speaks, hears) = (2 * talk as u64, 2 * talk as u64 + 1);
        let first = actor::beginning(speaks, wish.first.min(wish.request as usize).min(400));
        let opening = Opening {
            node: hops[0].node,
            address: hops[0].address,
            onion: &onion,
            keys: &keys,
            target: &target,
            options: BeginOptions { sign: wish.sign, once: wish.once },
            first: &first,
        };
        let name = node.driver.open(&opening, now)?;
        let hears = if wish.target == Behaviour::Echo { speaks } else { hears };
        let mut app = Actor::app(None, speaks, hears, first.len() as u64, wish.request, wish.finish);
        app.listen(wish.listens);
        self.talks.push(Talk {
            client,
            path: path.to_vec(),
            target,
            wish,
            name,
            exit: None,
            app,
            at_target: None,
            connections: 0,
            connected: None,
            receipt: None,
            outcome: None,
            exit_outcome: None,
            ticks: 0,
            opened: self.now(),
            first_heard: None,
            orphaned: false,
            doubtful: false,
            repeatable: false,
        });
        if self.has_turned(client) || self.has_turned(path[path.len() - 1]) {
            self.talks[talk].doubt();
        }
        self.names.insert((client, name), talk);
        self.run_woken(Some(client));
        Ok(talk)
    }

    /// Attaches a conversation to its application.
    pub fn attach_app(&mut self, talk: TalkIndex) {
        if self.talks[talk].orphaned {
            return;
        }
        let (client, name) = (self.talks[talk].client, self.talks[talk].name);
        let now = self.instant_of(client);
        let stream = self.attach(client, name, Owner::App(talk), |talks, stream| talks[talk].app.attach(stream));
        let node = &mut self.nodes[client];
        node.driver.attach(&mut node.shell, name, stream, now);
        self.world.borrow_mut().woken.insert(Owner::App(talk));
        self.run_woken(Some(client));
    }

    /// The onion key that a client knows of a node; the one before or after, if there is one, when what it knows is outdated.
    fn known_key(&self, hop: NodeIndex, outdated: bool) -> OnionKey {
        let this = &self.nodes[hop];
        let other = this.onion_key.checked_sub(1).unwrap_or(this.onion_keys_made);
        match this.shell.identity {
            Some(identity) if outdated => fixture::onion_secret(identity, this.spec.kind, other).public(),
            _ => this.shell.onion.as_ref().expect("hops answer links").current().public(),
        }
    }

    fn hop<'k>(&self, hop: NodeIndex, key: &'k OnionKey) -> HopSpec<'k> {
        let identity = self.nodes[hop].shell.identity.expect("hops answer links");
        HopSpec { node: fixture::node_id(identity), key, address: fixture::address(identity) }
    }

    /// A pipe between a node's conversation and an actor.
    fn attach(
        &mut self,
        node: NodeIndex,
        name: ConversationId,
        owner: Owner,
        give: impl FnOnce(&mut [Talk], SimStream),
    ) -> SimStream {
        let (inside, outside) = self.world.borrow_mut().pipe(Some(PIPE));
        give(&mut self.talks, SimStream::new(&self.world, outside, owner));
        self.nodes[node].tokens.insert(inside, Token::Conversation(name));
        SimStream::new(&self.world, inside, Owner::Outside(node, inside))
    }

    /// The application goes on listening, or stops.
    pub fn listen(&mut self, talk: TalkIndex, listening: bool) {
        self.talks[talk].app.listen(listening);
        self.world.borrow_mut().woken.insert(Owner::App(talk));
        self.run_woken(None);
    }

    /// The target goes on listening, or stops.
    pub fn target_listens(&mut self, talk: TalkIndex, listening: bool) {
        if let Some(target) = &mut self.talks[talk].at_target {
            target.listen(listening);
        }
        self.world.borrow_mut().woken.insert(Owner::Target(talk));
        self.run_woken(None);
    }

    /// The application says something more, and finishes if that was the last.
    pub fn say(&mut self, talk: TalkIndex, len: u64, last: bool) {
        self.talks[talk].app.say_more(len, last);
        self.world.borrow_mut().woken.insert(Owner::App(talk));
        self.run_woken(None);
    }

    /// The client lets go of a conversation.
    pub fn release(&mut self, talk: TalkIndex, graceful: bool) {
        let (client, name) = (self.talks[talk].client, self.talks[talk].name);
        let now = self.instant_of(client);
        if self.talks[talk].orphaned {
            return;
        }
        self.nodes[client].driver.release(name, graceful, now);
        self.run_woken(Some(client));
    }

    /// Cuts every link between two nodes.
    pub fn cut(&mut self, one: NodeIndex, other: NodeIndex) {
        for end in self.links_between(one, Some(other)) {
            self.world.borrow_mut().cut(end);
        }
    }

    /// A node is gone, all of a sudden: its links break and nobody reaches it.
    pub fn kill(&mut self, node: NodeIndex) {
        for end in self.links_between(node, None) {
            self.world.borrow_mut().cut(end);
        }
        self.nodes[node].dead = true;
        let world = &mut *self.world.borrow_mut();
        world.addresses.retain(|_, listener| *listener != node);
    }

    fn links_between(&self, one: NodeIndex, other: Option<NodeIndex>) -> Vec<StreamId> {
        let world = self.world.borrow();
        let ours = self.nodes[one].tokens.keys().copied();
        ours.filter(|&end| {
            let Owner::Link(to, _) = world.owner(end.peer()) else { return false };
            world.is_open(end) && other.is_none_or(|other| to == other)
        })
        .collect()
    }

    /// A node takes a new onion key.
    pub fn rotate(&mut self, node: NodeIndex) {
        let this = &mut self.nodes[node];
        this.onion_keys_made += 1;
        this.onion_key = this.onion_keys_made;
        if let (Some(keys), Some(identity)) = (&mut this.shell.onion, this.shell.identity) {
            keys.rotate(fixture::onion_secret(identity, this.spec.kind, this.onion_key));
            this.driver.node_mut().handle_rotation();
        }
    }

    /// A node takes nothing new any more.
    pub fn stop(&mut self, node: NodeIndex) {
        self.nodes[node].driver.node_mut().stop();
    }

    /// Whether the conversation's receipt is its exit's word for exactly this conversation. Panics if there is none.
    #[must_use]
    pub fn receipt_holds(&self, talk: TalkIndex) -> bool {
        let talk = &self.talks[talk];
        let receipt = talk.receipt.as_ref().expect("a receipt was asked for");
        let exit = self.nodes[talk.path[talk.path.len() - 1]].shell.identity.expect("exits have one");
        let parts = ReceiptParts::new(fixture::node_id(exit), &talk.target, &receipt.transcript, receipt.time.0)
            .expect("valid");
        parts.verify(&fixture::identity(exit).public(), &receipt.signature).is_ok()
    }

    fn living(&self) -> impl Iterator<Item = &SimNode<'m, 'b>> {
        self.nodes.iter().filter(|node| !node.dead)
    }

    /// A summary for failed assertions.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            let (usage, counters) = (node.driver.node().usage(), node.driver.node().counters());
            text += &format!(
                "node {} dead {}: {usage:?} {counters:?} {:?}\n",
                node.shell.index, node.dead, node.shell.link_ends
            );
        }
        for (number, talk) in self.talks.iter().enumerate() {
            let app = &talk.app;
            text += &format!(
                "talk {number} {:?} via {:?}: said {} heard {} {:?}",
                talk.wish.target,
                talk.path,
                app.said(),
                app.heard(),
                app.heard_end()
            );
            if let Some(target) = &talk.at_target {
                text += &format!("; target said {} heard {} {:?}", target.said(), target.heard(), target.heard_end());
            }
            text += &format!("; {:?} / {:?}\n", talk.outcome, talk.exit_outcome);
        }
        text
    }
}
