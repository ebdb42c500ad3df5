//! The core's [`Shell`] on virtual pipes. What takes time becomes an event of the world.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bulbil_core::circuit::LinkId;
use bulbil_core::client::origin::{Reached, Receipt};
use bulbil_core::crypto::kem::OnionKeys;
use bulbil_core::crypto::onion::{Onion, OnionRejected, Peeled, peel};
use bulbil_core::crypto::receipt::ReceiptParts;
use bulbil_core::driver::LinkEnd;
use bulbil_core::io::{Shell, Statement};
use bulbil_core::link::LinkSecret;
use bulbil_core::node::{ConversationId, Outcome};
use bulbil_core::phonebook::VerifiedDescriptor;
use bulbil_core::relay::onions::OnionIndex;
use bulbil_core::wire::{NodeId, Target, UnixTime};
use rand_chacha::ChaCha20Rng;
use rand_core::CryptoRng;

use super::resident::Letter;
use super::stream::SimStream;
use super::wire::{self, WatchedAead};
use super::world::{Event, NodeIndex, Shared};
use crate::fixture;

/// Where a node's private-key operations happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jobs {
    /// In place, as on a microcontroller.
    InPlace,
    /// Elsewhere; results come in any order, each after at most so long.
    Elsewhere(Duration),
}

/// What a node has told its owner.
pub(super) enum Notice {
    Connected(ConversationId, Reached),
    Receipt(ConversationId, Box<Receipt>),
    Over(ConversationId, Outcome),
}

/// The machine around one simulated node.
pub(crate) struct SimShell {
    pub(super) world: Shared,
    pub(super) index: NodeIndex,
    pub(super) node: NodeId,
    /// Which of the fixed identities the node has, if it answers links.
    pub(super) identity: Option<usize>,
    pub(super) link: LinkSecret,
    pub(super) onion: Option<OnionKeys>,
    pub(super) descriptor: Rc<[u8]>,
    /// Seconds that the node's calendar is ahead of the true time.
    pub(super) ahead: i64,
    /// Calendars here and elsewhere are set to whatever time.
    pub(super) clocks_jump: bool,
    /// Seconds that an answer may have waited until a machine that slept has read it.
    pub(super) slept: u64,
    /// What somebody who lives here is to hear; `None` if nobody does.
    pub(super) letters: Option<Vec<Letter>>,
    /// Where links of a node with a resident were made to.
    pub(super) connecting: BTreeMap<LinkId, SocketAddr>,
    pub(super) rng: ChaCha20Rng,
    pub(super) jobs: Jobs,
    pub(super) notices: Vec<Notice>,
    /// Conversations that are over.
    pub(super) over: HashSet<ConversationId>,
    /// Links whose end was told.
    pub(super) ended: HashSet<LinkId>,
    /// How they ended, where nobody lives.
    pub(super) link_ends: Vec<(LinkId, LinkEnd)>,
}

impl SimShell {
    pub(super) fn calendar(&self) -> UnixTime {
        UnixTime((fixture::EPOCH.0 + self.world.borrow().now / 1_000_000).saturating_add_signed(self.ahead))
    }

    /// Nothing is said or asked of a link once its end was told.
    fn expect_link(&self, link: LinkId) {
        assert!(!self.ended.contains(&link), "node {}: {link:?} has ended before", self.index);
    }

    /// Nothing is said or asked of a conversation once it is over.
    fn expect_conversation(&self, conversation: ConversationId) {
        assert!(!self.over.contains(&conversation), "node {}: {conversation:?} was over before", self.index);
    }

    fn after_a_while(&mut self, most: Duration, event: Event) {
        let mut world = self.world.borrow_mut();
        let most = world.delays.jobs.unwrap_or(most.as_micros() as u64);
        let delay = world.draw((0, most));
        let at = world.now + delay;
        world.at(at, event);
    }
}

/// Whether a link ended by what no node does that follows the protocol, whoever has its address and whatever its clock says.
pub(super) const fn is_faulty(end: LinkEnd) -> bool {
    match end {
        LinkEnd::Violation(_) | LinkEnd::Record(_) | LinkEnd::Handshake(_) | LinkEnd::Answer(_) => true,
        LinkEnd::Descriptor(_) | LinkEnd::WrongNode | LinkEnd::Io(_) => false,
        LinkEnd::Closed | LinkEnd::Idle | LinkEnd::Stalled | LinkEnd::Shutdown => false,
    }
}

impl Shell for SimShell {
    type LinkStream = SimStream;
    type OutsideStream = SimStream;
    type Aead = WatchedAead;

    fn connect_link(&mut self, link: LinkId, address: SocketAddr) {
        self.expect_link(link);
        if self.letters.is_some() {
            self.connecting.insert(link, address);
        }
        self.world.borrow_mut().later(Event::Connect(self.index, link, address));
    }

    fn connect_target(&mut self, conversation: ConversationId, target: &Target) {
        self.expect_conversation(conversation);
        if let Some(letters) = &mut self.letters {
            letters.push(Letter::Asked(conversation, Box::new(target.clone())));
            return;
        }
        self.world.borrow_mut().later(Event::Target(self.index, conversation, Box::new(target.clone())));
    }

    fn peel(&mut self, job: OnionIndex, onion: &mut Onion) -> Option<Result<Peeled, OnionRejected>> {
        let keys = self.onion.as_ref().expect("onions come only to nodes that answer links");
        let mut next = Box::new(*onion);
        let peeled = peel(&mut next, &self.node, keys, &mut self.rng);
        if let Ok(peeled) = &peeled {
            wire::with(|wire| {
                if let Some(turncoat) = wire.turncoats.get_mut(&self.index) {
                    turncoat.learn_hop(onion, &peeled.keys);
                }
            });
        }
        match self.jobs {
            Jobs::InPlace => {
                *onion = *next;
                Some(peeled)
            }
            Jobs::Elsewhere(most) => {
                let onion = next;
                self.after_a_while(most, Event::Peeled(self.index, job, Box::new(peeled), onion));
                None
            }
        }
    }

    fn sign(&mut self, conversation: ConversationId, statement: Statement<'_>) -> Option<(UnixTime, [u8; 256])> {
        self.expect_conversation(conversation);
        let time = self.calendar();
        let identity = fixture::identity(self.identity.expect("exits have an identity"));
        let parts = ReceiptParts::new(self.node, statement.target, &statement.transcript, time.0);
        let signature = parts.expect("targets of BEGIN are valid").sign(identity, &mut self.rng).expect("a sound key");
        match self.jobs {
            Jobs::InPlace => Some((time, signature)),
            Jobs::Elsewhere(most) => {
                self.after_a_while(most, Event::Signed(self.index, conversation, time, Box::new(signature)));
                None
            }
        }
    }

    fn link_secret(&mut self) -> (&LinkSecret, &mut dyn CryptoRng) {
        (&self.link, &mut self.rng)
    }

    fn descriptor(&self) -> &[u8] {
        &self.descriptor
    }

    fn unix_time(&self) -> Option<UnixTime> {
        Some(self.calendar())
    }

    fn rng(&mut self) -> &mut dyn CryptoRng {
        &mut self.rng
    }

    fn handle_descriptor(&mut self, link: LinkId, descriptor: &VerifiedDescriptor, time: UnixTime) {
        assert!(descriptor.node() != self.node, "no node links to itself");
        self.expect_link(link);
        match &mut self.letters {
            Some(letters) => {
                let address = self.connecting.remove(&link).expect("links are asked for first");
                letters.push(Letter::Met(link, address, Box::new(descriptor.clone())));
            }
            None => assert!(self.clocks_jump || time.0.abs_diff(self.calendar().0) <= 1 + self.slept, "clocks agree"),
        }
    }

    fn handle_time(&mut self, link: LinkId, node: NodeId, time: UnixTime) {
        self.expect_link(link);
        if let Some(letters) = &mut self.letters {
            let address = self.connecting.get(&link).expect("links are asked for first");
            letters.push(Letter::Time(node, *address, time));
        }
    }

    fn handle_link_end(&mut self, link: LinkId, end: LinkEnd) {
        self.expect_link(link);
        self.ended.insert(link);
        match &mut self.letters {
            Some(letters) => {
                // Attackers lie in what they tell; their nodes are nodes.
                assert!(!is_faulty(end), "node {}, {link:?}: {end:?}", self.index);
                self.connecting.remove(&link);
                letters.push(Letter::LinkEnded(link, end));
            }
            None => self.link_ends.push((link, end)),
        }
    }

    fn handle_connected(&mut self, conversation: ConversationId, reached: Reached) {
        self.expect_conversation(conversation);
        if self.letters.is_none() {
            self.notices.push(Notice::Connected(conversation, reached));
        }
    }

    fn handle_receipt(&mut self, conversation: ConversationId, receipt: Receipt) {
        self.expect_conversation(conversation);
        if self.letters.is_none() {
            self.notices.push(Notice::Receipt(conversation, Box::new(receipt)));
        }
    }

    fn handle_over(&mut self, conversation: ConversationId, outcome: Outcome) {
        self.expect_conversation(conversation);
        self.over.insert(conversation);
        match &mut self.letters {
            Some(letters) => letters.push(Letter::Over(conversation, outcome)),
            None => self.notices.push(Notice::Over(conversation, outcome)),
        }
    }
}
