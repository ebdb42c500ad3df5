//! The core's [`Shell`] on tokio: sockets, worker threads and keys. Whatever takes time happens elsewhere and comes back as a [`Done`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bulbil_core::circuit::LinkId;
use bulbil_core::client::origin::{Reached, Receipt};
use bulbil_core::crypto::identity::IdentitySecret;
use bulbil_core::crypto::kem::OnionKeys;
use bulbil_core::crypto::onion::{Onion, OnionRejected, Peeled, peel};
use bulbil_core::crypto::receipt::ReceiptParts;
use bulbil_core::driver::LinkEnd;
use bulbil_core::io::{Shell, Statement};
use bulbil_core::link::LinkSecret;
use bulbil_core::node::{ConversationId, Outcome};
use bulbil_core::phonebook::VerifiedDescriptor;
use bulbil_core::relay::onions::OnionIndex;
use bulbil_core::wire::descriptor::RSA_LEN;
use bulbil_core::wire::policy::{Policy, Verdict};
use bulbil_core::wire::{CloseReason, EndReason, NodeId, Service, Target, UnixTime};
use embedded_io::ErrorKind;
use rand_core::CryptoRng;
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{debug, trace, warn};

use super::aead::RingAead;
use super::clock::WallClock;
use super::readiness::{Readiness, Token};
use super::service::Services;
use super::stream::{Breakable, Outside, Waking, kind_of};
use super::target;
use super::traffic::{Metered, Traffic};
use super::workers::Workers;
use crate::random::{SYSTEM, SystemRandom};

/// How long a link's connection may take to be made.
const LINK_CONNECT: Duration = Duration::from_secs(8);

/// Something that took time is done.
pub(crate) enum Done {
    /// A link's connection is made, or not.
    Link(LinkId, Result<TcpStream, ErrorKind>),
    /// A target is reached, or not.
    Target(ConversationId, Result<(TcpStream, SocketAddr), EndReason>),
    /// A conversation asks for a service; whether there is room depends on others that came over its link, which the node knows.
    Service(ConversationId, Service),
    /// A service ends a conversation without an answer; its end of the pipe.
    Unserved(ConversationId, EndReason, Option<DuplexStream>),
    /// An onion is opened, or not.
    Peeled(OnionIndex, Result<Peeled, OnionRejected>, Box<Onion>),
    /// An answer is signed.
    Signed(ConversationId, UnixTime, Box<[u8; RSA_LEN]>),
    /// An answer could not be signed; what the client is told.
    Unsigned(ConversationId, EndReason),
}

/// What the application is told of its conversation.
#[derive(Clone, Default)]
pub(crate) struct Progress {
    /// What the last hop has reached.
    pub reached: Option<Reached>,
    /// The receipt, not yet verified.
    pub receipt: Option<Box<Receipt>>,
    /// How it ended.
    pub outcome: Option<Outcome>,
}

/// What came of an attempt to meet a node.
pub(crate) type Met = Result<(Box<VerifiedDescriptor>, UnixTime), LinkEnd>;

/// What a node that we linked to shows of itself.
pub(crate) enum Shown<'a> {
    /// Who it is, and what it takes for the time. Its descriptor may yet be refused for its validity.
    Time(NodeId, UnixTime),
    /// Its descriptor.
    Descriptor(&'a VerifiedDescriptor),
}

/// Takes what the nodes show at whose addresses links are made.
pub(crate) type Audience = Box<dyn FnMut(SocketAddr, Shown<'_>) + Send>;

/// A node's secrets.
pub(crate) struct Keys {
    /// None for a client that answers no links.
    pub identity: Option<IdentitySecret>,
    pub link: LinkSecret,
    pub onion: RwLock<OnionKeys>,
    pub node: NodeId,
}

/// The machine around one node.
pub(crate) struct TokioShell {
    pub keys: Arc<Keys>,
    /// Our own signed descriptor, or nothing.
    pub descriptor: Vec<u8>,
    pub policy: Arc<Policy>,
    pub workers: Workers,
    pub readiness: Arc<Readiness>,
    pub done: mpsc::UnboundedSender<Done>,
    pub conversations: HashMap<ConversationId, watch::Sender<Progress>>,
    /// Who waits to hear of a link.
    pub contacts: HashMap<LinkId, Vec<tokio::sync::oneshot::Sender<Met>>>,
    /// Hears what links show, for the phonebook.
    pub audience: Audience,
    /// Where the links that we make lead.
    pub addresses: HashMap<LinkId, SocketAddr>,
    pub clock: WallClock,
    /// Where other nodes may be; anywhere, unless this node is on the public network: then onions must not make it call on private ones.
    pub neighbours: Option<Policy>,
    /// Bounds the targets that are being resolved and connected at one time.
    pub connecting: Arc<Semaphore>,
    /// What this node has for conversations that ask for a service.
    pub services: Services,
    /// Bounds the answers that wait for a signature at one time: each is worth twenty onions.
    pub signing: Arc<Semaphore>,
    /// How links ended.
    pub ends: LinkEnds,
    /// What crosses links.
    pub traffic: Arc<Traffic>,
    /// Since when the current onion key is in force.
    pub onion_key_since: tokio::time::Instant,
    pub random: SystemRandom,
}

/// How a node's links ended, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkEnds {
    /// Closed by either side in good order, or idle.
    pub closed: u64,
    /// Not made, or broken by the network.
    pub failed: u64,
    /// The handshake failed, or its answer was not acceptable.
    pub handshake: u64,
    /// Answered by another node than the one that was meant.
    pub wrong_node: u64,
    /// A record was forged or malformed.
    pub record: u64,
    /// The peer broke the protocol.
    pub violation: u64,
    /// The peer took nothing for too long.
    pub stalled: u64,
}

impl LinkEnds {
    const fn count(&mut self, end: LinkEnd) {
        let counter = match end {
            LinkEnd::Idle | LinkEnd::Closed | LinkEnd::Shutdown => &mut self.closed,
            LinkEnd::Io(_) => &mut self.failed,
            LinkEnd::Handshake(_) | LinkEnd::Answer(_) | LinkEnd::Descriptor(_) => &mut self.handshake,
            LinkEnd::WrongNode => &mut self.wrong_node,
            LinkEnd::Record(_) => &mut self.record,
            LinkEnd::Violation(_) => &mut self.violation,
            LinkEnd::Stalled => &mut self.stalled,
        };
        *counter += 1;
    }
}

/// Targets that are being resolved and connected at one time; a task and a socket each.
pub(crate) const CONNECTING: usize = 1024;
/// Answers that wait for a signature at one time.
pub(crate) const SIGNING: usize = 64;

/// The machine's time, for whoever has no node.
pub(crate) fn unix_time() -> UnixTime {
    WallClock::default().now()
}

impl TokioShell {
    fn show(&mut self, link: LinkId, shown: Shown<'_>) {
        if let Some(address) = self.addresses.get(&link) {
            (self.audience)(*address, shown);
        }
    }

    /// A link's connection, waking the engine.
    pub(crate) fn link_stream(&self, link: LinkId, stream: TcpStream) -> Metered {
        // Records are written whole; waiting for more bytes would only delay the last ones.
        let _only_slower = stream.set_nodelay(true);
        let waking = Waking::new(stream, self.readiness.waker(Token::Link(link)));
        Metered::new(waking, Arc::clone(&self.traffic))
    }

    /// The node stops: tells every conversation that is still open, before its stream goes, which would otherwise look like its end.
    pub(crate) fn end_conversations(&mut self) {
        for (_, progress) in self.conversations.drain() {
            let outcome = Outcome { end: None, close: Some(CloseReason::Shutdown) };
            progress.send_modify(|progress| progress.outcome = Some(outcome));
        }
    }

    /// A conversation's connection, waking the engine.
    pub(crate) fn outside_tcp(&self, name: ConversationId, stream: TcpStream) -> Outside {
        Outside::Tcp(Breakable::new(stream, self.readiness.waker(Token::Conversation(name))))
    }

    /// Begins a conversation with a service, which wakes the engine; `link` is where the conversation came from.
    pub(crate) fn outside_service(
        &self,
        name: ConversationId,
        service: Service,
        link: LinkId,
    ) -> Result<Outside, EndReason> {
        let done = self.done.clone();
        let fail = move |reason, stream| {
            let _engine_gone = done.send(Done::Unserved(name, reason, stream));
        };
        let (pipe, place) = self.services.begin(service, link, Arc::new(fail))?;
        Ok(Outside::Service { pipe: Waking::new(pipe, self.readiness.waker(Token::Conversation(name))), _place: place })
    }
}

impl Shell for TokioShell {
    type LinkStream = Metered;
    type OutsideStream = Outside;
    type Aead = RingAead;

    fn connect_link(&mut self, link: LinkId, address: SocketAddr) {
        let done = self.done.clone();
        self.addresses.insert(link, address);
        if self.neighbours.as_ref().is_some_and(|policy| policy.decide(address) != Verdict::Accept) {
            let _engine_gone = done.send(Done::Link(link, Err(ErrorKind::PermissionDenied)));
            return;
        }
        tokio::spawn(async move {
            let connected = match tokio::time::timeout(LINK_CONNECT, TcpStream::connect(address)).await {
                Ok(connected) => connected.map_err(|error| kind_of(&error)),
                Err(_) => Err(ErrorKind::TimedOut),
            };
            let _engine_gone = done.send(Done::Link(link, connected));
        });
    }

    fn connect_target(&mut self, conversation: ConversationId, target: &Target) {
        if let Target::Service(service) = *target {
            let _engine_gone = self.done.send(Done::Service(conversation, service));
            return;
        }
        let (done, policy, target) = (self.done.clone(), Arc::clone(&self.policy), target.clone());
        let Ok(permit) = Arc::clone(&self.connecting).try_acquire_owned() else {
            let _engine_gone = done.send(Done::Target(conversation, Err(EndReason::Busy)));
            return;
        };
        tokio::spawn(async move {
            let connected = target::connect(&target, &policy).await;
            drop(permit);
            let _engine_gone = done.send(Done::Target(conversation, connected));
        });
    }

    fn peel(&mut self, job: OnionIndex, onion: &mut Onion) -> Option<Result<Peeled, OnionRejected>> {
        let (done, keys, mut onion) = (self.done.clone(), Arc::clone(&self.keys), Box::new(*onion));
        self.workers.run(move || {
            let onion_keys = keys.onion.read().unwrap_or_else(PoisonError::into_inner);
            let peeled = peel(&mut onion, &keys.node, &onion_keys, &mut SYSTEM.clone());
            drop(onion_keys);
            let _engine_gone = done.send(Done::Peeled(job, peeled, onion));
        });
        None
    }

    fn sign(&mut self, conversation: ConversationId, statement: Statement<'_>) -> Option<(UnixTime, [u8; RSA_LEN])> {
        let (done, keys, time) = (self.done.clone(), Arc::clone(&self.keys), self.clock.now());
        let parts = ReceiptParts::new(keys.node, statement.target, &statement.transcript, time.0);
        let Ok(permit) = Arc::clone(&self.signing).try_acquire_owned() else {
            let _engine_gone = done.send(Done::Unsigned(conversation, EndReason::Busy));
            return None;
        };
        self.workers.run(move || {
            let signature = parts.ok().zip(keys.identity.as_ref());
            let signature = signature.and_then(|(parts, identity)| parts.sign(identity, &mut SYSTEM.clone()).ok());
            let _engine_gone = done.send(match signature {
                Some(signature) => Done::Signed(conversation, time, Box::new(signature)),
                None => Done::Unsigned(conversation, EndReason::Internal),
            });
            drop(permit);
        });
        None
    }

    fn link_secret(&mut self) -> (&LinkSecret, &mut dyn CryptoRng) {
        (&self.keys.link, &mut self.random)
    }

    fn descriptor(&self) -> &[u8] {
        &self.descriptor
    }

    fn unix_time(&self) -> Option<UnixTime> {
        Some(self.clock.now())
    }

    fn rng(&mut self) -> &mut dyn CryptoRng {
        &mut self.random
    }

    fn handle_time(&mut self, link: LinkId, node: NodeId, time: UnixTime) {
        self.show(link, Shown::Time(node, time));
    }

    fn handle_descriptor(&mut self, link: LinkId, descriptor: &VerifiedDescriptor, time: UnixTime) {
        debug!(link = link.slot(), "link up");
        self.show(link, Shown::Descriptor(descriptor));
        for waiting in self.contacts.remove(&link).into_iter().flatten() {
            let _nobody_waits = waiting.send(Ok((Box::new(descriptor.clone()), time)));
        }
    }

    fn handle_link_end(&mut self, link: LinkId, end: LinkEnd) {
        self.ends.count(end);
        self.addresses.remove(&link);
        match end {
            LinkEnd::Idle | LinkEnd::Closed | LinkEnd::Shutdown => debug!(link = link.slot(), %end, "link ended"),
            LinkEnd::WrongNode | LinkEnd::Descriptor(_) => warn!(link = link.slot(), %end, "link refused"),
            _ => debug!(link = link.slot(), %end, "link failed"),
        }
        for waiting in self.contacts.remove(&link).into_iter().flatten() {
            let _nobody_waits = waiting.send(Err(end));
        }
    }

    fn handle_connected(&mut self, conversation: ConversationId, reached: Reached) {
        if let Some(progress) = self.conversations.get(&conversation) {
            progress.send_modify(|progress| progress.reached = Some(reached));
        }
    }

    fn handle_receipt(&mut self, conversation: ConversationId, receipt: Receipt) {
        if let Some(progress) = self.conversations.get(&conversation) {
            progress.send_modify(|progress| progress.receipt = Some(Box::new(receipt)));
        }
    }

    fn handle_over(&mut self, conversation: ConversationId, outcome: Outcome) {
        trace!(?outcome, "conversation over");
        if let Some(progress) = self.conversations.remove(&conversation) {
            progress.send_modify(|progress| progress.outcome = Some(outcome));
        }
    }
}
