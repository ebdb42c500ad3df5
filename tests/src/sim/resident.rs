//! Whoever lives at a node: hears what happens to it, lets it make links and open circuits, and answers for its services and targets. What
//! the phonebook's owner is on a real machine.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bulbil_core::circuit::LinkId;
use bulbil_core::crypto::kem::OnionSecret;
use bulbil_core::crypto::onion::{HopSpec, ONION_LEN, build};
use bulbil_core::driver::LinkEnd;
use bulbil_core::node::{ConversationId, OpenRefused, Opening, Outcome};
use bulbil_core::phonebook::VerifiedDescriptor;
use bulbil_core::wire::message::BeginOptions;
use bulbil_core::wire::{EndReason, NodeId, OnionKey, Target, UnixTime};

use super::node::Token;
pub(crate) use super::pipes::StreamId;
pub(crate) use super::stream::SimStream;
use super::world::{Event, NodeIndex, Owner};
use super::{Network, PIPE};

/// What a resident hears.
pub(crate) enum Letter {
    /// Who answered at this address takes that for the time.
    Time(NodeId, SocketAddr, UnixTime),
    /// A link that the node made to this address has shown who is there.
    Met(LinkId, SocketAddr, Box<VerifiedDescriptor>),
    /// A link has ended.
    LinkEnded(LinkId, LinkEnd),
    /// The node is the last hop of a circuit that wants this.
    Asked(ConversationId, Box<Target>),
    /// A conversation is over.
    Over(ConversationId, Outcome),
    /// A stream that the resident has waited for may have become ready.
    Ready(StreamId),
    /// It is the time that the resident wanted to be called at.
    Alarm(u64),
}

impl Network<'_, '_> {
    /// The next thing that somebody is to hear.
    pub(crate) fn take_letter(&mut self) -> Option<(NodeIndex, Letter)> {
        self.mail.pop_front()
    }

    /// Whether something is going to happen until then.
    pub(crate) fn is_due_before(&self, end: Duration) -> bool {
        self.world.borrow().next_at().is_some_and(|at| at <= end.as_micros() as u64)
    }

    /// Lets time pass in which nothing happens.
    pub(crate) fn wait_until(&mut self, end: Duration) {
        self.world.borrow_mut().now = end.as_micros() as u64;
    }

    /// Only one call of a node in so many is followed by an audit of its books.
    pub(crate) fn set_audit_stride(&mut self, stride: u64) {
        self.audit_stride = stride;
    }

    /// How often of 10,000 times an attempt to connect fails, and how long a link lives on average before it is cut.
    pub(crate) fn set_weather(&mut self, connects_lost: u64, link_life: Option<Duration>) {
        let mut world = self.world.borrow_mut();
        world.connects_lost = connects_lost;
        world.link_life = link_life.map_or(0, |life| life.as_micros() as u64);
    }

    /// What residents say to their own nodes does not travel.
    pub(crate) fn set_inside_latency(&mut self, latency: Duration) {
        let latency = latency.as_micros() as u64;
        self.world.borrow_mut().inside_latency = Some((latency, latency));
    }

    /// Pipes in use.
    #[must_use]
    pub fn pipes(&self) -> usize {
        self.world.borrow().pipes.len()
    }

    /// Bytes that a node has sent and received on links.
    #[must_use]
    pub fn traffic(&self, node: NodeIndex) -> (u64, u64) {
        self.world.borrow().traffic(node)
    }

    /// Adds to what two runs are compared by.
    pub(crate) fn trace(&self, words: &[u64]) {
        self.world.borrow_mut().trace(words);
    }

    /// The time as the node's calendar has it.
    pub(crate) fn calendar(&self, node: NodeIndex) -> UnixTime {
        self.nodes[node].shell.calendar()
    }

    /// Sets a node's calendar wrong by so many seconds.
    pub(crate) fn set_ahead(&mut self, node: NodeIndex, ahead: i64) {
        self.nodes[node].shell.ahead = ahead;
    }

    /// Whether the node is there.
    pub(crate) fn is_alive(&self, node: NodeIndex) -> bool {
        !self.nodes[node].dead
    }

    /// The resident is called after so long.
    pub(crate) fn set_alarm(&self, node: NodeIndex, after: Duration, alarm: u64) {
        let mut world = self.world.borrow_mut();
        let at = world.now + after.as_micros() as u64;
        world.at(at, Event::Alarm(node, alarm));
    }

    /// The node begins to be, under this address.
    pub(crate) fn bear(&mut self, node: NodeIndex, address: SocketAddr) {
        self.nodes[node].dead = false;
        self.world.borrow_mut().addresses.insert(address, node);
    }

    /// The node dies, and its memory of links and conversations is given back.
    pub(crate) fn bury(&mut self, node: NodeIndex) {
        self.kill(node);
        let now = self.instant();
        let this = &mut self.nodes[node];
        this.driver.close_all(&mut this.shell, now);
        this.ready.clear();
        self.forget_dropped();
    }

    /// The public half of the node's current onion key.
    pub(crate) fn onion_key(&self, node: NodeIndex) -> OnionKey {
        self.nodes[node].shell.onion.as_ref().expect("it answers links").current().public()
    }

    /// Ends a conversation that the node answers; the client is told why.
    pub(crate) fn fail(&mut self, node: NodeIndex, name: ConversationId, reason: EndReason) {
        let now = self.instant();
        self.nodes[node].driver.node_mut().handle_failed(name, reason, now);
        self.run_woken(Some(node));
    }

    /// The node dies without a word: its links stay and nobody is at their other end, and who connects to it waits.
    pub(crate) fn silence(&mut self, node: NodeIndex) {
        self.nodes[node].dead = true;
    }

    /// The node's links break, and none is made with it any more.
    pub(crate) fn unplug(&mut self, node: NodeIndex) {
        let links = self.links_between(node, None);
        let mut world = self.world.borrow_mut();
        links.into_iter().for_each(|end| world.cut(end));
        world.unplugged.insert(node);
    }

    /// Links can be made with the node again.
    pub(crate) fn plug(&mut self, node: NodeIndex) {
        self.world.borrow_mut().unplugged.remove(&node);
    }

    /// What the node shows of itself from now on.
    pub(crate) fn set_descriptor(&mut self, node: NodeIndex, descriptor: Rc<[u8]>) {
        self.nodes[node].shell.descriptor = descriptor;
    }

    /// The node takes this onion key; the one that it had is now its previous one.
    pub(crate) fn set_onion(&mut self, node: NodeIndex, secret: OnionSecret) {
        let this = &mut self.nodes[node];
        if let Some(keys) = &mut this.shell.onion {
            keys.rotate(secret);
            this.driver.node_mut().handle_rotation();
        }
    }

    /// Wants a link to `address`, to be met by `expected` if that is known.
    pub(crate) fn contact(&mut self, node: NodeIndex, address: SocketAddr, expected: Option<NodeId>) -> Option<LinkId> {
        let now = self.instant();
        let link = self.nodes[node].driver.contact(address, expected, now);
        self.run_woken(Some(node));
        link
    }

    /// Opens a conversation with `target` along `hops`.
    pub(crate) fn converse(
        &mut self,
        node: NodeIndex,
        hops: &[HopSpec<'_>],
        target: &Target,
        first: &[u8],
    ) -> Result<(ConversationId, SimStream), OpenRefused> {
        let now = self.instant();
        let this = &mut self.nodes[node];
        let mut onion = Box::new([0; ONION_LEN]);
        let keys = build(hops, &mut onion, &mut this.shell.rng).map_err(|_| OpenRefused::Invalid)?;
        let opening = Opening {
            node: hops[0].node,
            address: hops[0].address,
            onion: &onion,
            keys: &keys,
            target,
            options: BeginOptions { sign: false, once: false },
            first,
        };
        let name = this.driver.open(&opening, now)?;
        let (inside, outside) = self.pipe_for_resident(node, name);
        let this = &mut self.nodes[node];
        this.driver.attach(&mut this.shell, name, inside, now);
        self.run_woken(Some(node));
        Ok((name, outside))
    }

    fn pipe_for_resident(&mut self, node: NodeIndex, name: ConversationId) -> (SimStream, SimStream) {
        let (inside, outside) = self.world.borrow_mut().pipe(Some(PIPE));
        self.nodes[node].tokens.insert(inside, Token::Conversation(name));
        let theirs = SimStream::new(&self.world, inside, Owner::Outside(node, inside));
        (theirs, SimStream::new(&self.world, outside, Owner::Resident(node, outside)))
    }

    /// Takes up a conversation that asks for a service of this node, or refuses it.
    pub(crate) fn serve(
        &mut self,
        node: NodeIndex,
        name: ConversationId,
        refused: Option<EndReason>,
    ) -> Option<SimStream> {
        let now = self.instant();
        let (inside, outside) = match refused {
            Some(reason) => (Err(reason), None),
            None => {
                let (inside, outside) = self.pipe_for_resident(node, name);
                (Ok(inside), Some(outside))
            }
        };
        let this = &mut self.nodes[node];
        this.driver.handle_service(&mut this.shell, name, inside, now);
        self.run_woken(Some(node));
        outside
    }

    /// Reaches a target for a conversation: the resident is it.
    pub(crate) fn reach(&mut self, node: NodeIndex, name: ConversationId, address: SocketAddr) -> SimStream {
        let now = self.instant();
        let (inside, outside) = self.pipe_for_resident(node, name);
        let this = &mut self.nodes[node];
        this.driver.handle_target(&mut this.shell, name, Ok((inside, address)), now);
        self.run_woken(Some(node));
        outside
    }

    /// The resident lets go of a conversation of its own.
    pub(crate) fn let_go(&mut self, node: NodeIndex, name: ConversationId) {
        let now = self.instant();
        self.nodes[node].driver.release(name, false, now);
        self.run_woken(Some(node));
    }

    /// Calls whoever a resident's reading and writing has woken.
    pub(crate) fn run_resident(&mut self, node: NodeIndex) {
        self.run_woken(Some(node));
    }
}
