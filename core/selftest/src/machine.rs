//! A node of the core with its driver, and the machine around it: keys from seeds, connections in memory, everything in place and at once.

use core::net::SocketAddr;

use bulbil_core::circuit::LinkId;
use bulbil_core::client::origin::{Reached, Receipt};
use bulbil_core::crypto::identity::IdentitySecret;
use bulbil_core::crypto::kem::{OnionKeys, OnionSecret};
use bulbil_core::crypto::onion::{Onion, OnionRejected, Peeled, peel};
use bulbil_core::crypto::receipt::ReceiptParts;
use bulbil_core::driver::{Driver, LinkEnd, Places};
use bulbil_core::io::{Shell, Statement};
use bulbil_core::link::{LinkSecret, PortableAead};
use bulbil_core::node::{Config, ConversationId, Memory, Node, Outcome, Patience};
use bulbil_core::phonebook::VerifiedDescriptor;
use bulbil_core::relay::onions::OnionIndex;
use bulbil_core::time::Instant;
use bulbil_core::wire::descriptor::{DESCRIPTOR_MAX_LEN, RSA_LEN, SIGNING_CONTEXT};
use bulbil_core::wire::handshake::{InitialCredit, LinkLimits, RecordCells};
use bulbil_core::wire::{Descriptor, NodeId, PortRange, ProtocolVersion, Roles, Target, UnixTime};
use rand_chacha::ChaCha20Rng;
use rand_core::{CryptoRng, SeedableRng};

use crate::pipe::Pipe;

/// Cells in a record.
pub(crate) const RECORD_CELLS: u16 = 8;
/// What every node takes for the time.
const NOW: UnixTime = UnixTime(1_700_000_000);
/// Wishes of a node that are not granted yet.
const WISHES: usize = 4;

/// What an answering node is, beside its number.
pub(crate) struct Keys {
    identity: IdentitySecret,
    onion: OnionKeys,
}

impl Keys {
    pub(crate) fn new(identity: &[u8], onion: OnionSecret) -> Result<Self, &'static str> {
        let identity = IdentitySecret::from_pkcs8(identity).map_err(|_| "an identity does not parse")?;
        Ok(Self { identity, onion: OnionKeys::new(onion, None) })
    }
}

/// The machine around one node.
pub(crate) struct TestShell<'r> {
    pub(crate) node: NodeId,
    /// `None` at a client, which answers no links.
    keys: Option<Keys>,
    link: LinkSecret,
    descriptor: heapless::Vec<u8, DESCRIPTOR_MAX_LEN>,
    pub(crate) rng: ChaCha20Rng,
    pub(crate) links_wanted: heapless::Deque<(LinkId, SocketAddr), WISHES>,
    pub(crate) target_wanted: Option<ConversationId>,
    /// What the target's connection will be.
    pub(crate) target: Option<Pipe<'r>>,
    pub(crate) reached: Option<Reached>,
    pub(crate) receipt: Option<Receipt>,
    pub(crate) outcome: Option<(ConversationId, Outcome)>,
    pub(crate) link_ends: usize,
}

/// Where node `number` listens.
pub(crate) fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 9000))
}

impl TestShell<'_> {
    pub(crate) fn new(number: u8, keys: Option<Keys>) -> Result<Self, &'static str> {
        let mut rng = ChaCha20Rng::seed_from_u64(u64::from(number));
        let link = LinkSecret::generate(&mut rng);
        let mut bytes = [0; DESCRIPTOR_MAX_LEN];
        let mut len = 0;
        let mut node = NodeId([number; 32]);
        if let Some(keys) = &keys {
            node = keys.identity.node_id();
            let mut descriptor = Descriptor {
                identity: keys.identity.public(),
                sequence: 1,
                valid_from: UnixTime(NOW.0 - 1),
                valid_until: UnixTime(NOW.0 + 3600),
                protocol: ProtocolVersion::V1,
                roles: Roles { relay: true, exit: true, constrained: true },
                link_key: link.public().0,
                onion_key: keys.onion.current().public(),
                addresses: [address(number)].into_iter().collect(),
                exit_ports: [PortRange::ALL].into_iter().collect(),
                signature: [0; RSA_LEN],
            };
            let unsigned = descriptor.emit_unsigned(&mut bytes).map_err(|_| "a descriptor cannot be encoded")?;
            let signature = keys.identity.sign(&mut rng, &[SIGNING_CONTEXT, &bytes[..unsigned]]);
            descriptor.signature = signature.map_err(|_| "a descriptor cannot be signed")?;
            len = descriptor.emit(&mut bytes).map_err(|_| "a descriptor cannot be encoded")?;
        }
        Ok(Self {
            node,
            keys,
            link,
            descriptor: bytes[..len].iter().copied().collect(),
            rng,
            links_wanted: heapless::Deque::new(),
            target_wanted: None,
            target: None,
            reached: None,
            receipt: None,
            outcome: None,
            link_ends: 0,
        })
    }

    pub(crate) fn keys(&self) -> Result<(&IdentitySecret, &OnionKeys), &'static str> {
        self.keys.as_ref().map(|keys| (&keys.identity, &keys.onion)).ok_or("a node without keys is asked for them")
    }
}

impl<'r> Shell for TestShell<'r> {
    type LinkStream = Pipe<'r>;
    type OutsideStream = Pipe<'r>;
    type Aead = PortableAead;

    fn connect_link(&mut self, link: LinkId, address: SocketAddr) {
        let _its_deadline_tells = self.links_wanted.push_back((link, address));
    }

    fn connect_target(&mut self, conversation: ConversationId, _target: &Target) {
        self.target_wanted = Some(conversation);
    }

    fn peel(&mut self, _job: OnionIndex, onion: &mut Onion) -> Option<Result<Peeled, OnionRejected>> {
        let Some(keys) = &self.keys else { return Some(Err(OnionRejected::NotAuthentic)) };
        Some(peel(onion, &self.node, &keys.onion, &mut self.rng))
    }

    fn sign(&mut self, _name: ConversationId, statement: Statement<'_>) -> Option<(UnixTime, [u8; RSA_LEN])> {
        let identity = &self.keys.as_ref()?.identity;
        let parts = ReceiptParts::new(self.node, statement.target, &statement.transcript, NOW.0).ok()?;
        Some((NOW, parts.sign(identity, &mut self.rng).ok()?))
    }

    fn link_secret(&mut self) -> (&LinkSecret, &mut dyn CryptoRng) {
        (&self.link, &mut self.rng)
    }

    fn descriptor(&self) -> &[u8] {
        &self.descriptor
    }

    fn unix_time(&self) -> Option<UnixTime> {
        Some(NOW)
    }

    fn rng(&mut self) -> &mut dyn CryptoRng {
        &mut self.rng
    }

    fn handle_descriptor(&mut self, _link: LinkId, _descriptor: &VerifiedDescriptor, _time: UnixTime) {}

    fn handle_link_end(&mut self, _link: LinkId, _end: LinkEnd) {
        self.link_ends += 1;
    }

    fn handle_connected(&mut self, _conversation: ConversationId, reached: Reached) {
        self.reached = Some(reached);
    }

    fn handle_receipt(&mut self, _conversation: ConversationId, receipt: Receipt) {
        self.receipt = Some(receipt);
    }

    fn handle_over(&mut self, conversation: ConversationId, outcome: Outcome) {
        self.outcome = Some((conversation, outcome));
    }
}

/// A node, its driver and its machine.
pub(crate) struct Machine<'m, 'b, 'r> {
    pub(crate) driver: Driver<'m, 'b, TestShell<'r>>,
    pub(crate) shell: TestShell<'r>,
    pub(crate) links: heapless::Vec<LinkId, WISHES>,
    pub(crate) conversation: Option<ConversationId>,
    /// The connection to the next node, until it is used.
    pub(crate) near: Option<Pipe<'r>>,
    /// The connection from the node before, until it is used.
    pub(crate) far: Option<Pipe<'r>>,
}

impl<'m, 'b, 'r> Machine<'m, 'b, 'r> {
    pub(crate) fn new(
        mut shell: TestShell<'r>,
        memory: Memory<'m>,
        places: Places<'m, 'b, TestShell<'r>>,
    ) -> Result<Self, &'static str> {
        let serves = shell.keys.is_some();
        let config = Config {
            node: shell.node,
            relay: serves,
            exit: serves,
            limits: LinkLimits {
                record_cells: RecordCells::new(RECORD_CELLS).ok_or("a record of no cells")?,
                credit: InitialCredit::new(8).ok_or("no credit")?,
            },
            window_max: 16,
            circuits_per_link: 4,
            onions_per_link: 2,
            half_open_links: 2,
            patience: Patience::DEFAULT,
        };
        let node = Node::new(config, memory, &mut shell.rng)?;
        let driver = Driver::new(node, places);
        Ok(Self { driver, shell, links: heapless::Vec::new(), conversation: None, near: None, far: None })
    }

    /// Does everything that has become possible.
    pub(crate) fn serve(&mut self, now: Instant) {
        for &link in &self.links {
            let _served_again = self.driver.service_link(&mut self.shell, link, now);
        }
        if let Some(name) = self.conversation {
            self.driver.service_conversation(&mut self.shell, name, now);
        }
        let _drained_again = self.driver.drain(&mut self.shell, now);
        self.driver.handle_timeout(&mut self.shell, now);
    }
}
