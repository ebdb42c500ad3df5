//! One driver under test. The test holds the other end of every stream, and says there what it likes.

use core::net::SocketAddr;
use core::task::Poll;
use std::boxed::Box;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::vec::Vec;

use embedded_io::{ErrorKind, ErrorType};
use rand_chacha::ChaCha20Rng;
use rand_core::CryptoRng;

use crate::circuit::LinkId;
use crate::client::origin::{Reached, Receipt};
use crate::crypto::identity::IdentitySecret;
use crate::crypto::kem::{OnionKeys, OnionSecret};
use crate::crypto::onion::{Onion, OnionRejected, Peeled, peel};
use crate::crypto::testing::{RSA_KEYS, rng};
use crate::driver::{Driver, LINK_BUFFER_MIN, LinkEnd, LinkPlace, More, OutsidePlace, Places};
use crate::io::{ByteStream, Shell, Statement};
use crate::link::record::record_len;
use crate::link::{LinkSecret, PortableAead};
use crate::node::{Config, ConversationId, Node, Outcome, Patience, Resources};
use crate::phonebook::VerifiedDescriptor;
use crate::relay::onions::OnionIndex;
use crate::time::Instant;
use crate::wire::descriptor::{DESCRIPTOR_MAX_LEN, RSA_LEN, SIGNING_CONTEXT};
use crate::wire::handshake::{InitialCredit, LinkLimits, RecordCells};
use crate::wire::{Descriptor, NodeId, OnionKeyKind, PortRange, ProtocolVersion, Roles, Target, UnixTime};

pub(super) const NOW: Instant = Instant::from_millis(1_000);
pub(super) const TIME: UnixTime = UnixTime(1_700_000_000);
/// Cells in a record, either way.
pub(super) const RECORD_CELLS: usize = 16;
pub(super) const CREDIT: u16 = 16;

/// A connection, seen from the test.
#[derive(Default)]
pub(super) struct Wire {
    /// What the test has said and the driver has not read.
    pub(super) said: VecDeque<u8>,
    /// What the driver has written.
    pub(super) heard: Vec<u8>,
    /// Takes nothing from the driver now.
    pub(super) full: bool,
    /// Breaks when the driver says that nothing more comes.
    pub(super) breaks: bool,
    /// The driver has said so.
    pub(super) finished: bool,
}

#[derive(Clone, Default)]
pub(super) struct Stream(pub(super) Rc<RefCell<Wire>>);

impl ErrorType for Stream {
    type Error = ErrorKind;
}

impl ByteStream for Stream {
    fn try_read(&mut self, buffer: &mut [u8]) -> Poll<Result<usize, ErrorKind>> {
        let said = &mut self.0.borrow_mut().said;
        let len = said.len().min(buffer.len());
        buffer.iter_mut().zip(said.drain(..len)).for_each(|(place, byte)| *place = byte);
        if len == 0 { Poll::Pending } else { Poll::Ready(Ok(len)) }
    }

    fn try_write(&mut self, bytes: &[u8]) -> Poll<Result<usize, ErrorKind>> {
        let wire = &mut self.0.borrow_mut();
        if wire.full {
            return Poll::Pending;
        }
        wire.heard.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn finish(&mut self) -> Result<(), ErrorKind> {
        let wire = &mut self.0.borrow_mut();
        wire.finished = true;
        if wire.breaks { Err(ErrorKind::ConnectionReset) } else { Ok(()) }
    }
}

/// What a node that answers links is known by.
pub(super) struct Keys {
    pub(super) node: NodeId,
    pub(super) link: LinkSecret,
    pub(super) onion: OnionKeys,
    pub(super) descriptor: Vec<u8>,
}

/// The node with this RSA test key, at an address of its own.
pub(super) fn keys(index: usize) -> Keys {
    let identity = IdentitySecret::from_pkcs8(RSA_KEYS[index]).unwrap();
    let link = LinkSecret::generate(&mut rng(10 + index as u64));
    let onion = OnionSecret::generate(OnionKeyKind::XWing, &mut rng(20 + index as u64));
    let mut descriptor = Descriptor {
        identity: identity.public(),
        sequence: 1,
        valid_from: UnixTime(TIME.0 - 1),
        valid_until: UnixTime(TIME.0 + 3600),
        protocol: ProtocolVersion::V1,
        roles: Roles { relay: true, exit: true, constrained: false },
        link_key: link.public().0,
        onion_key: onion.public(),
        addresses: [address(index)].into_iter().collect(),
        exit_ports: [PortRange::ALL].into_iter().collect(),
        signature: [0; RSA_LEN],
    };
    let mut bytes = [0; DESCRIPTOR_MAX_LEN];
    let len = descriptor.emit_unsigned(&mut bytes).unwrap();
    descriptor.signature = identity.sign(&mut rng(1), &[SIGNING_CONTEXT, &bytes[..len]]).unwrap();
    let len = descriptor.emit(&mut bytes).unwrap();
    Keys { node: identity.node_id(), link, onion: OnionKeys::new(onion, None), descriptor: bytes[..len].to_vec() }
}

pub(super) fn address(index: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, index as u8], 9000))
}

/// The machine around the node, which keeps what it is told.
pub(super) struct Machine {
    pub(super) keys: Keys,
    rng: ChaCha20Rng,
    /// Links that are to be connected.
    pub(super) links: Vec<LinkId>,
    /// Conversations that want their target.
    pub(super) targets: Vec<(ConversationId, Target)>,
    pub(super) times: Vec<UnixTime>,
    pub(super) met: Vec<NodeId>,
    pub(super) ends: Vec<LinkEnd>,
    pub(super) over: Vec<Outcome>,
}

impl Shell for Machine {
    type LinkStream = Stream;
    type OutsideStream = Stream;
    type Aead = PortableAead;

    fn connect_link(&mut self, link: LinkId, _: SocketAddr) {
        self.links.push(link);
    }

    fn connect_target(&mut self, name: ConversationId, target: &Target) {
        self.targets.push((name, target.clone()));
    }

    fn peel(&mut self, _: OnionIndex, onion: &mut Onion) -> Option<Result<Peeled, OnionRejected>> {
        Some(peel(onion, &self.keys.node, &self.keys.onion, &mut self.rng))
    }

    fn sign(&mut self, _: ConversationId, _: Statement<'_>) -> Option<(UnixTime, [u8; RSA_LEN])> {
        None
    }

    fn link_secret(&mut self) -> (&LinkSecret, &mut dyn CryptoRng) {
        (&self.keys.link, &mut self.rng)
    }

    fn descriptor(&self) -> &[u8] {
        &self.keys.descriptor
    }

    fn unix_time(&self) -> Option<UnixTime> {
        Some(TIME)
    }

    fn rng(&mut self) -> &mut dyn CryptoRng {
        &mut self.rng
    }

    fn handle_time(&mut self, _: LinkId, _: NodeId, time: UnixTime) {
        self.times.push(time);
    }

    fn handle_descriptor(&mut self, _: LinkId, descriptor: &VerifiedDescriptor, _: UnixTime) {
        self.met.push(descriptor.node());
    }

    fn handle_link_end(&mut self, _: LinkId, end: LinkEnd) {
        self.ends.push(end);
    }

    fn handle_connected(&mut self, _: ConversationId, _: Reached) {}

    fn handle_receipt(&mut self, _: ConversationId, _: Receipt) {}

    fn handle_over(&mut self, _: ConversationId, outcome: Outcome) {
        self.over.push(outcome);
    }
}

/// The driver and the machine around it.
pub(super) struct Bench<'m, 'b> {
    pub(super) driver: Driver<'m, 'b, Machine>,
    pub(super) shell: Machine,
}

impl Bench<'_, '_> {
    /// Everything that has become possible, and that the node's books are right.
    pub(super) fn serve(&mut self, link: LinkId) {
        while self.driver.service_link(&mut self.shell, link, NOW) == More::Yes {}
        while self.driver.drain(&mut self.shell, NOW) == More::Yes {}
        self.driver.node().audit().unwrap();
    }
}

/// The node with RSA test key 0, relay and exit, with a driver; gives it to `test`.
pub(super) fn run<T>(test: impl FnOnce(&mut Bench<'_, '_>) -> T) -> T {
    const LINKS: usize = 2;
    const CIRCUITS: usize = 8;
    let mut memory = Box::new(Resources::<LINKS, CIRCUITS, 32, 256, 4, 2, 64>::new());
    let mut buffers = std::vec![[0; LINK_BUFFER_MIN + record_len(RECORD_CELLS)]; 2 * LINKS];
    let mut buffers = buffers.iter_mut().map(<[u8; _]>::as_mut_slice);
    let mut links = [(); LINKS].map(|()| LinkPlace::new(buffers.next().unwrap(), buffers.next().unwrap()));
    let mut outsides = [(); CIRCUITS].map(|()| OutsidePlace::EMPTY);
    let mut scratch = [0; 2048];
    let keys = keys(0);
    let config = Config {
        node: keys.node,
        relay: true,
        exit: true,
        limits: LinkLimits {
            record_cells: RecordCells::new(RECORD_CELLS as u16).unwrap(),
            credit: InitialCredit::new(CREDIT).unwrap(),
        },
        window_max: CREDIT,
        circuits_per_link: 2,
        onions_per_link: 2,
        half_open_links: 2,
        patience: Patience::DEFAULT,
    };
    let node = Node::new(config, memory.lend(), &mut rng(2)).unwrap();
    let driver = Driver::new(node, Places { links: &mut links, outsides: &mut outsides, scratch: &mut scratch });
    let shell = Machine {
        keys,
        rng: rng(3),
        links: Vec::new(),
        targets: Vec::new(),
        times: Vec::new(),
        met: Vec::new(),
        ends: Vec::new(),
        over: Vec::new(),
    };
    test(&mut Bench { driver, shell })
}
