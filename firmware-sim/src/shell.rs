//! The core's [`Shell`] on a board: sockets of smoltcp, and private-key operations in place.

use core::cell::RefCell;
use core::net::SocketAddr;

use bulbil_core::circuit::LinkId;
use bulbil_core::client::origin::{Reached, Receipt};
use bulbil_core::crypto::onion::{Onion, OnionRejected, Peeled, peel};
use bulbil_core::crypto::receipt::ReceiptParts;
use bulbil_core::driver::LinkEnd;
use bulbil_core::io::{Shell, Statement};
use bulbil_core::link::{LinkSecret, PortableAead};
use bulbil_core::node::{ConversationId, Outcome};
use bulbil_core::phonebook::{Phonebook, Source, VerifiedDescriptor};
use bulbil_core::relay::onions::OnionIndex;
use bulbil_core::time::Instant;
use bulbil_core::wire::descriptor::RSA_LEN;
use bulbil_core::wire::{EndReason, Policy, Target, UnixTime, Verdict};
use embedded_io::ErrorKind;
use rand_core::CryptoRng;

use crate::board::{Board, Event};
use crate::calendar::Calendar;
use crate::client::{OwnStream, Progress};
use crate::config::Config;
use crate::contacts::Contacts;
use crate::keys::Keys;
use crate::net::Net;
use crate::stream::TcpStream;
use crate::target::Dials;

/// Failures that are told to the driver in the next turn. If there are ever more, the core's own deadlines tell it.
const FAILURES: usize = 16;

/// What a conversation of this node is attached to.
pub enum Outside {
    /// A target's connection, at an exit.
    Target(TcpStream),
    /// The node's own request.
    Own(OwnStream),
}

/// The machine around the node.
pub struct BoardShell<B: Board> {
    pub(crate) board: B,
    pub(crate) net: &'static RefCell<Net>,
    pub(crate) keys: &'static mut Keys,
    pub(crate) phonebook: Phonebook<'static>,
    pub(crate) contacts: Contacts,
    pub(crate) calendar: Calendar,
    pub(crate) dials: Dials,
    pub(crate) config: &'static Config,
    /// The node is on the public network: onions must not make it call on private ones.
    pub(crate) public: bool,
    /// What became of the node's own request.
    pub(crate) progress: Progress,
    pub(crate) failed_links: heapless::Deque<(LinkId, ErrorKind), FAILURES>,
    pub(crate) failed_targets: heapless::Deque<(ConversationId, EndReason), FAILURES>,
    /// The time of this turn.
    pub(crate) now: Instant,
    pub(crate) time: Option<UnixTime>,
    /// The time is the board's own, not what contacts say.
    pub(crate) has_clock: bool,
}

impl<B: Board> BoardShell<B> {
    /// Looks at the clocks.
    pub(crate) fn tick(&mut self) -> Instant {
        self.now = self.board.now().max(self.now);
        let own = self.board.unix_time();
        self.has_clock = own.is_some();
        self.time = own.or_else(|| self.calendar.time(self.now));
        self.now
    }
}

impl<B: Board> Shell for BoardShell<B> {
    type LinkStream = TcpStream;
    type OutsideStream = Outside;
    type Aead = PortableAead;

    fn connect_link(&mut self, link: LinkId, address: SocketAddr) {
        let allowed = !self.public || Policy::public().decide(address) == Verdict::Accept;
        let begun =
            if allowed { self.net.borrow_mut().connect_link(link, address) } else { Err(ErrorKind::PermissionDenied) };
        if let Err(kind) = begun {
            let _its_deadline_tells = self.failed_links.push_back((link, kind));
        }
    }

    fn connect_target(&mut self, conversation: ConversationId, target: &Target) {
        let begun = match &self.config.exit {
            Some(policy) => self.dials.begin(&mut self.net.borrow_mut(), policy, conversation, target, self.now),
            // No exit: it is asked for services only.
            None => Err(EndReason::NoService),
        };
        if let Err(reason) = begun {
            let _its_deadline_tells = self.failed_targets.push_back((conversation, reason));
        }
    }

    fn peel(&mut self, _job: OnionIndex, onion: &mut Onion) -> Option<Result<Peeled, OnionRejected>> {
        let Some(keys) = self.keys.onion() else { return Some(Err(OnionRejected::NotAuthentic)) };
        Some(peel(onion, &self.keys.node(), keys, self.board.rng()))
    }

    fn sign(&mut self, conversation: ConversationId, statement: Statement<'_>) -> Option<(UnixTime, [u8; RSA_LEN])> {
        let signed = self.time.zip(self.keys.identity()).and_then(|(time, identity)| {
            let parts = ReceiptParts::new(self.keys.node(), statement.target, &statement.transcript, time.0).ok()?;
            Some((time, parts.sign(identity, self.board.rng()).ok()?))
        });
        if signed.is_none() {
            let _its_deadline_tells = self.failed_targets.push_back((conversation, EndReason::Internal));
        }
        signed
    }

    fn link_secret(&mut self) -> (&LinkSecret, &mut dyn CryptoRng) {
        (self.keys.link(), self.board.rng())
    }

    fn descriptor(&self) -> &[u8] {
        self.keys.descriptor()
    }

    fn unix_time(&self) -> Option<UnixTime> {
        self.time
    }

    fn rng(&mut self) -> &mut dyn CryptoRng {
        self.board.rng()
    }

    fn handle_descriptor(&mut self, link: LinkId, descriptor: &VerifiedDescriptor, time: UnixTime) {
        self.board.handle_event(Event::LinkUp);
        if let Some(contact) = self.contacts.handle_met(link, descriptor.node(), self.now) {
            self.calendar.learn(descriptor.node(), time, self.now);
            self.time = self.time.or_else(|| self.calendar.time(self.now));
            self.board.handle_event(Event::Met(contact));
        }
        let node = descriptor.node();
        // Only whom the owner has named: a stranger's onion can make this node meet anybody, and must not put them on its own paths.
        if let Some(now) = self.time
            && self.contacts.is_pinned(&node)
        {
            let _known_or_refused = self.phonebook.insert(descriptor.clone(), Source::Met, now);
            self.phonebook.set_pinned(&node, true);
        }
    }

    fn handle_link_end(&mut self, link: LinkId, end: LinkEnd) {
        self.net.borrow_mut().forget_link(link);
        self.contacts.handle_link_end(link, self.now);
        self.board.handle_event(Event::LinkEnded(end));
    }

    fn handle_connected(&mut self, conversation: ConversationId, reached: Reached) {
        if self.progress.is_of(conversation) {
            self.progress.connected = true;
            if let Reached::Address(address) = reached {
                self.board.handle_event(Event::Connected(address));
            }
        }
    }

    fn handle_receipt(&mut self, conversation: ConversationId, receipt: Receipt) {
        if self.progress.is_of(conversation) {
            self.progress.receipt = Some(receipt);
        }
    }

    fn handle_over(&mut self, conversation: ConversationId, outcome: Outcome) {
        if self.progress.is_of(conversation) {
            self.progress.outcome = Some(outcome);
        }
    }
}
