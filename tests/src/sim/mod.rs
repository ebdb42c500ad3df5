//! The simulator: a network of real nodes and drivers over virtual pipes, in virtual time. All chance comes from one seed, so the same
//! seed gives the same run, and nobody ever sleeps.
//!
//! [`run`] makes the nodes and hands the [`Network`] to a test, which opens conversations ([`Network::open`]) and lets time pass
//! ([`Network::run_until`], [`Network::run_for`], [`Network::settle`]). After every step the simulator itself checks what must always
//! hold: the pools' bounds, each node's own books ([`bulbil_core::node::Node::audit`]), and that every byte which an application or a
//! target hears is the one that comes next.

mod actor;
mod node;
mod shell;
mod stream;
mod world;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bulbil_core::client::origin::Receipt;
use bulbil_core::crypto::kem::OnionKeys;
use bulbil_core::crypto::onion::{HopSpec, build};
use bulbil_core::crypto::receipt::ReceiptParts;
use bulbil_core::driver::{LinkEnd, More};
use bulbil_core::link::LinkSecret;
use bulbil_core::node::{ConversationId, Counters, OpenRefused, Opening, Outcome, Usage};
use bulbil_core::time::Instant;
use bulbil_core::wire::message::BeginOptions;
use bulbil_core::wire::{EndReason, NodeId, OnionKey, Target};
use embedded_io::ErrorKind;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

pub use self::actor::{Actor, Behaviour, Heard};
pub use self::node::Spec;
pub use self::shell::Jobs;
pub use self::world::{NodeIndex, TalkIndex};

pub(crate) use self::node::Tables;
use self::node::{SimNode, Token};
use self::shell::{Notice, SimShell};
use self::stream::SimStream;
use self::world::{Event, Owner, Shared, StreamId, World};
use crate::fixture;

/// Calls of one node at one instant, beyond which it is taken to run in circles.
const CALLS_MAX: u32 = 10_000;

/// Bytes between a conversation and what it is attached to.
const PIPE: usize = 8192;

/// What a client wants of a conversation.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// What the target does.
    pub target: Behaviour,
    /// Bytes to say in all.
    pub request: u64,
    /// How many of them come in BEGIN, at most.
    pub first: usize,
    /// Finish after that.
    pub finish: bool,
    /// One request, one answer.
    pub once: bool,
    /// A signature is asked for.
    pub sign: bool,
    /// The application takes what comes.
    pub listens: bool,
}

impl Wish {
    /// Says `request` bytes to a target that behaves so, finishes, and listens to the end.
    #[must_use]
    pub const fn new(target: Behaviour, request: u64) -> Self {
        Self { target, request, first: 100, finish: true, once: false, sign: false, listens: true }
    }

    /// Does not finish after its request.
    #[must_use]
    pub const fn open_ended(self) -> Self {
        Self { finish: false, ..self }
    }
}

/// A conversation, with both of its ends.
pub struct Talk {
    /// Who opened it.
    pub client: NodeIndex,
    /// Through whom.
    pub path: Vec<NodeIndex>,
    /// What is to be reached.
    pub target: Target,
    wish: Wish,
    name: ConversationId,
    exit: Option<(NodeIndex, ConversationId)>,
    app: Actor,
    at_target: Option<Actor>,
    connections: u32,
    connected: Option<SocketAddr>,
    receipt: Option<Receipt>,
    outcome: Option<Outcome>,
    exit_outcome: Option<Outcome>,
    ticks: u32,
    opened: Duration,
    first_heard: Option<Duration>,
}

impl Talk {
    /// What the client wanted.
    #[must_use]
    pub const fn wish(&self) -> &Wish {
        &self.wish
    }

    /// The application.
    #[must_use]
    pub const fn app(&self) -> &Actor {
        &self.app
    }

    /// The target, once the exit has reached it.
    #[must_use]
    pub const fn target(&self) -> Option<&Actor> {
        self.at_target.as_ref()
    }

    /// Bytes that the target has heard.
    #[must_use]
    pub fn target_heard(&self) -> u64 {
        self.at_target.as_ref().map_or(0, Actor::heard)
    }

    /// How often an exit was asked to connect.
    #[must_use]
    pub const fn connections(&self) -> u32 {
        self.connections
    }

    /// What the client was told that the exit has reached.
    #[must_use]
    pub const fn connected(&self) -> Option<SocketAddr> {
        self.connected
    }

    /// The receipt, if one has come.
    #[must_use]
    pub const fn receipt(&self) -> Option<&Receipt> {
        self.receipt.as_ref()
    }

    /// How it ended for the client, once it has.
    #[must_use]
    pub const fn outcome(&self) -> Option<Outcome> {
        self.outcome
    }

    /// Whether it has ended for the client, and the application has heard everything that came.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.outcome.is_some() && self.app.heard_end().is_some()
    }

    /// Whether the application has heard everything that the target said, and the target everything that it waits for.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let Some(target) = &self.at_target else { return false };
        let heard_answer = self.app.heard() == target.said();
        let heard_request = target.heard() == self.app.said() || self.wish.once;
        heard_answer && heard_request
    }

    /// How it ended for the exit, once it has.
    #[must_use]
    pub const fn exit_outcome(&self) -> Option<Outcome> {
        self.exit_outcome
    }

    /// When it was opened.
    #[must_use]
    pub const fn opened(&self) -> Duration {
        self.opened
    }

    /// When the application heard something for the first time.
    #[must_use]
    pub const fn first_heard(&self) -> Option<Duration> {
        self.first_heard
    }

    /// END as the client heard it: the reason, and the place on the path of who said it.
    #[must_use]
    pub fn end(&self) -> Option<(EndReason, usize)> {
        self.outcome?.end.map(|(reason, hop)| (reason, hop.value()))
    }
}

/// A network of nodes.
pub struct Network<'m, 'b> {
    world: Shared,
    nodes: Vec<SimNode<'m, 'b>>,
    talks: Vec<Talk>,
    names: HashMap<(NodeIndex, ConversationId), TalkIndex>,
    ended: HashSet<(NodeIndex, ConversationId)>,
    steps: u64,
}

/// Makes a network of such nodes and gives it to `test`. Nodes that answer links get the fixed identities in their order.
pub fn run<T>(seed: u64, specs: &[Spec], test: impl FnOnce(&mut Network<'_, '_>) -> T) -> T {
    let world: Shared = Rc::new(RefCell::new(World::new(seed)));
    let mut tables: Vec<_> = specs.iter().map(Tables::new).collect();
    let (lent, mut places): (Vec<_>, Vec<_>) = tables.iter_mut().map(Tables::lend).unzip();
    let mut identities = 0..fixture::IDENTITIES;
    let nodes = specs.iter().zip(lent).zip(&mut places).enumerate().map(|(index, ((spec, lent), places))| {
        let mut rng = ChaCha20Rng::seed_from_u64(seed ^ (index as u64 + 1) << 48);
        let identity = spec.answers.then(|| identities.next().expect("there are six identities"));
        let shell = SimShell {
            world: Rc::clone(&world),
            index,
            node: identity.map_or(NodeId([index as u8; 32]), fixture::node_id),
            identity,
            link: identity.map_or_else(|| LinkSecret::generate(&mut rng), fixture::link_secret),
            onion: identity.map(|identity| OnionKeys::new(fixture::onion_secret(identity, spec.kind, 0), None)),
            descriptor: identity.map_or(&[], |identity| fixture::descriptor(identity, spec.kind)),
            rng,
            jobs: spec.jobs,
            notices: Vec::new(),
            link_ends: Vec::new(),
        };
        SimNode::new(*spec, shell, lent, places)
    });
    let nodes = nodes.collect();
    test(&mut Network { world, nodes, talks: Vec::new(), names: HashMap::new(), ended: HashSet::new(), steps: 0 })
}

impl<'m, 'b> Network<'m, 'b> {
    /// Time since the start.
    #[must_use]
    pub fn now(&self) -> Duration {
        Duration::from_micros(self.world.borrow().now)
    }

    fn instant(&self) -> Instant {
        Instant::from_millis(self.world.borrow().now / 1000)
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

    /// How links of a node have ended, in order.
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

    /// Opens a conversation through `path`. Its target comes into being with it and is known by its number.
    ///
    /// # Errors
    /// The client refuses.
    pub fn open(&mut self, client: NodeIndex, path: &[NodeIndex], wish: Wish) -> Result<TalkIndex, OpenRefused> {
        let talk = self.talks.len();
        let target: Target = format!("t{talk}.test:80").parse().expect("a valid name");
        let keys: Vec<OnionKey> = path
            .iter()
            .map(|&hop| self.nodes[hop].shell.onion.as_ref().expect("hops answer links").current().public())
            .collect();
        let hops: Vec<_> = path.iter().zip(&keys).map(|(&hop, key)| self.hop(hop, key)).collect();
        let mut onion = Box::new([0; bulbil_core::crypto::onion::ONION_LEN]);
        let now = self.instant();
        let node = &mut self.nodes[client];
        let keys = build(&hops, &mut onion, &mut node.shell.rng).expect("paths are valid");
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
        });
        self.names.insert((client, name), talk);
        let stream = self.attach(client, name, Owner::App(talk), |talks, stream| talks[talk].app.attach(stream));
        let node = &mut self.nodes[client];
        node.driver.attach(&mut node.shell, name, stream, now);
        self.world.borrow_mut().woken.insert(Owner::App(talk));
        self.run_woken(Some(client));
        Ok(talk)
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
        let (client, name, now) = (self.talks[talk].client, self.talks[talk].name, self.instant());
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
        this.onion_rotations += 1;
        if let (Some(keys), Some(identity)) = (&mut this.shell.onion, this.shell.identity) {
            keys.rotate(fixture::onion_secret(identity, this.spec.kind, this.onion_rotations));
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

    /// Goes to the next event and does what follows from it; answers `false` if nothing is going to happen any more.
    pub fn step(&mut self) -> bool {
        let Some(event) = self.world.borrow_mut().next() else { return false };
        self.steps += 1;
        let node = self.handle(event);
        self.run_woken(node);
        true
    }

    /// Steps until `reached`. Panics after `steps` steps or when nothing happens any more.
    pub fn run_until(&mut self, steps: u64, mut reached: impl FnMut(&Self) -> bool) {
        for _ in 0..steps {
            if reached(self) {
                return;
            }
            assert!(self.step(), "nothing happens any more at {:?}:\n{}", self.now(), self.describe());
        }
        panic!("not reached in {steps} steps, at {:?}:\n{}", self.now(), self.describe());
    }

    /// Lets so much time pass.
    pub fn run_for(&mut self, span: Duration) {
        let end = self.world.borrow().now + span.as_micros() as u64;
        while self.world.borrow().next_at().is_some_and(|at| at <= end) {
            self.step();
        }
        self.world.borrow_mut().now = end;
    }

    /// Runs until no circuit is open anywhere, which must come to pass within an hour, and checks that everything was given back.
    pub fn settle(&mut self) {
        let end = self.now() + Duration::from_secs(3600);
        while self.living().any(|node| node.driver.node().usage().circuits > 0) {
            assert!(self.now() < end, "circuits stay:\n{}", self.describe());
            assert!(self.step(), "circuits stay, and nothing happens:\n{}", self.describe());
        }
        // Jobs and streams of circuits that are gone.
        self.run_for(Duration::from_secs(5));
        for node in self.living() {
            let usage = node.driver.node().usage();
            let empty = Usage { links: usage.links, ..Usage::default() };
            assert_eq!(usage, empty, "node {} keeps something", node.shell.index);
        }
        for (number, talk) in self.talks.iter().enumerate() {
            assert!(talk.connections <= 1, "conversation {number} was connected twice");
            // Who hears an end has heard all: what broke off never looks like that.
            let Some(target) = &talk.at_target else {
                assert_ne!(talk.app.heard_end(), Some(Heard::End), "conversation {number} ended with nobody");
                continue;
            };
            if talk.app.heard_end() == Some(Heard::End) {
                assert!(
                    target.is_finished() && talk.app.heard() == target.said(),
                    "answer {number}:\n{}",
                    self.describe()
                );
            }
            if target.heard_end() == Some(Heard::End) {
                assert!(
                    talk.app.is_finished() && target.heard() == talk.app.said(),
                    "request {number}:\n{}",
                    self.describe()
                );
            }
        }
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

    fn handle(&mut self, event: Event) -> Option<NodeIndex> {
        let now = self.instant();
        match event {
            Event::Arrive(_) | Event::Room(_) | Event::Unread(_) | Event::Cut(_) => {
                self.world.borrow_mut().handle_pipe(&event);
                None
            }
            Event::Connect(node, link, address) => {
                self.world.borrow_mut().trace(&[2, node as u64]);
                let answerer = self.nodes.iter().position(|other| {
                    !other.dead && other.shell.identity.is_some_and(|identity| fixture::address(identity) == address)
                });
                let stream = answerer.map(|answerer| {
                    let (near, far) = self.world.borrow_mut().pipe(None);
                    let far_stream = SimStream::new(&self.world, far, Owner::Link(answerer, far));
                    let other = &mut self.nodes[answerer];
                    if let Some(link) = other.driver.reserve_link(&mut other.shell, now) {
                        other.tokens.insert(far, Token::Link(link));
                        other.driver.handle_accepted(link, far_stream);
                        other.ready.push(Token::Link(link));
                        self.world.borrow_mut().woken.insert(Owner::Link(answerer, far));
                    }
                    self.nodes[node].tokens.insert(near, Token::Link(link));
                    SimStream::new(&self.world, near, Owner::Link(node, near))
                });
                let this = &mut self.nodes[node];
                this.driver.handle_link_stream(&mut this.shell, link, stream.ok_or(ErrorKind::ConnectionRefused), now);
                Some(node)
            }
            Event::Target(node, name, target) => {
                self.handle_target(node, name, &target, now);
                Some(node)
            }
            Event::Peeled(node, job, peeled, onion) => {
                self.world.borrow_mut().trace(&[3, node as u64, u64::from(peeled.is_ok())]);
                self.nodes[node].driver.handle_peeled(job, *peeled, &onion, now);
                Some(node)
            }
            Event::Signed(node, name, time, signature) => {
                self.nodes[node].driver.handle_signed(name, time, &signature, now);
                Some(node)
            }
            Event::Timer(node) => {
                self.nodes[node].timer = None;
                Some(node)
            }
            Event::Tick(talk) => {
                self.tick(talk);
                None
            }
        }
    }

    fn handle_target(&mut self, node: NodeIndex, name: ConversationId, target: &Target, now: Instant) {
        let talk = self.talks.iter().position(|talk| talk.target == *target).expect("targets come with conversations");
        self.world.borrow_mut().trace(&[4, node as u64, talk as u64]);
        let this = &mut self.talks[talk];
        assert_eq!(this.path.last(), Some(&node), "the exit is the last hop");
        this.connections += 1;
        this.exit = Some((node, name));
        let behaviour = this.wish.target;
        let connected = match behaviour {
            Behaviour::Silent => return,
            Behaviour::Unreached(reason) => Err(reason),
            _ => {
                self.names.insert((node, name), talk);
                let (speaks, hears) = (2 * talk as u64 + 1, 2 * talk as u64);
                let speaks = if behaviour == Behaviour::Echo { hears } else { speaks };
                let stream = self.attach(node, name, Owner::Target(talk), |talks, stream| {
                    talks[talk].at_target = Some(Actor::target(stream, speaks, hears, behaviour));
                });
                self.world.borrow_mut().woken.insert(Owner::Target(talk));
                if let Behaviour::Ticker { every, .. } = behaviour {
                    let mut world = self.world.borrow_mut();
                    let at = world.now + every.as_micros() as u64;
                    world.at(at, Event::Tick(talk));
                }
                Ok((stream, target_address(talk)))
            }
        };
        let this = &mut self.nodes[node];
        this.driver.handle_target(&mut this.shell, name, connected, now);
    }

    fn tick(&mut self, talk: TalkIndex) {
        let this = &mut self.talks[talk];
        let Behaviour::Ticker { every, size, count } = this.wish.target else { return };
        this.ticks += 1;
        let last = this.ticks == count;
        if let Some(target) = &mut this.at_target {
            target.say_more(size, last);
        }
        let mut world = self.world.borrow_mut();
        world.woken.insert(Owner::Target(talk));
        if !last {
            let at = world.now + every.as_micros() as u64;
            world.at(at, Event::Tick(talk));
        }
    }

    /// Calls everybody who has something to do, until nobody has.
    fn run_woken(&mut self, first: Option<NodeIndex>) {
        let mut due: Vec<NodeIndex> = first.into_iter().collect();
        let mut calls = 0;
        loop {
            let woken = std::mem::take(&mut self.world.borrow_mut().woken);
            for owner in woken {
                match owner {
                    Owner::Nobody => {}
                    Owner::App(talk) => {
                        self.talks[talk].app.run(&mut self.world.borrow_mut());
                        let heard = self.talks[talk].app.heard() > 0;
                        if heard && self.talks[talk].first_heard.is_none() {
                            self.talks[talk].first_heard = Some(self.now());
                        }
                    }
                    Owner::Target(talk) => {
                        if let Some(target) = &mut self.talks[talk].at_target {
                            target.run(&mut self.world.borrow_mut());
                        }
                    }
                    Owner::Link(node, end) | Owner::Outside(node, end) => {
                        if let Some(token) = self.nodes[node].tokens.get(&end).copied() {
                            self.nodes[node].ready.push(token);
                        }
                        due.push(node);
                    }
                }
            }
            due.sort_unstable();
            due.dedup();
            if due.is_empty() {
                return;
            }
            for node in std::mem::take(&mut due) {
                calls += 1;
                assert!(calls < CALLS_MAX, "node {node} runs in circles:\n{}", self.describe());
                if self.run_node(node) {
                    due.push(node);
                }
            }
        }
    }

    /// Calls a node's driver as a shell must; answers whether it wants to be called again.
    fn run_node(&mut self, index: NodeIndex) -> bool {
        let now = self.instant();
        let this = &mut self.nodes[index];
        if this.dead {
            return false;
        }
        let mut again = Vec::new();
        for token in std::mem::take(&mut this.ready) {
            match token {
                Token::Link(link) => {
                    if this.driver.service_link(&mut this.shell, link, now) == More::Yes {
                        again.push(token);
                    }
                }
                Token::Conversation(name) => this.driver.service_conversation(&mut this.shell, name, now),
            }
        }
        let more = this.driver.drain(&mut this.shell, now) == More::Yes || !again.is_empty();
        this.ready = again;
        this.driver.handle_timeout(&mut this.shell, now);
        let more = more || this.driver.drain(&mut this.shell, now) == More::Yes;
        let due = this.driver.poll_timeout();
        if let Some(at) = due
            && this.timer.is_none_or(|timer| at < timer)
        {
            this.timer = Some(at);
            self.world.borrow_mut().at(at.millis() * 1000, Event::Timer(index));
        }
        self.check(index);
        self.take_notices(index);
        more
    }

    /// What always holds.
    fn check(&mut self, index: NodeIndex) {
        let node = self.nodes[index].driver.node();
        let usage = node.usage();
        let spec = &self.nodes[index].spec;
        assert!(usage.cells_held <= usage.cells_reserved, "node {index}: {usage:?}");
        assert!(usage.cells_reserved <= spec.cells, "node {index}: {usage:?}");
        if let Err(wrong) = node.audit() {
            panic!("node {index}: {wrong}\n{}", self.describe());
        }
        let words = [
            5,
            index as u64,
            usage.circuits as u64,
            usage.cells_held as u64,
            usage.cells_reserved as u64,
            node.counters().forward,
            node.counters().backward,
        ];
        self.world.borrow_mut().trace(&words);
    }

    fn take_notices(&mut self, index: NodeIndex) {
        for notice in std::mem::take(&mut self.nodes[index].shell.notices) {
            match notice {
                Notice::Connected(name, address) => {
                    let talk = self.names[&(index, name)];
                    assert_eq!(address, target_address(talk));
                    assert_eq!(self.talks[talk].connected.replace(address), None, "told twice");
                }
                Notice::Receipt(name, receipt) => {
                    let talk = self.names[&(index, name)];
                    assert!(self.talks[talk].receipt.replace(*receipt).is_none(), "told twice");
                }
                Notice::Over(name, outcome) => {
                    assert!(self.ended.insert((index, name)), "told twice");
                    // An exit's conversation may be over before its target was reached.
                    let Some(talk) = self.names.remove(&(index, name)) else { continue };
                    let talk = &mut self.talks[talk];
                    let place = if (talk.client, talk.name) == (index, name) {
                        &mut talk.outcome
                    } else {
                        &mut talk.exit_outcome
                    };
                    assert_eq!(place.replace(outcome), None, "told twice");
                }
            }
        }
    }
}

/// The address of a conversation's target.
fn target_address(talk: TalkIndex) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 1], 1 + (talk % 60_000) as u16))
}
