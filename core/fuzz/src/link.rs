//! A link from its first byte, `PROTOCOL.md` section 4, over a wire that splits, alters, loses, inserts and ends: two real nodes with their
//! drivers. However the bytes are split, the handshake succeeds when all of it has come and not before, and what one side sends the other one
//! understands. Once a byte of the handshake is another one, the connector never takes the other side for the node that it meant, and
//! whatever is done to the wire, neither side ever finds a fault with the other that only an authentic peer could commit.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::OnceLock;
use std::task::Poll;

use bulbil_core::circuit::LinkId;
use bulbil_core::client::origin::{Reached, Receipt};
use bulbil_core::crypto::identity::IdentitySecret;
use bulbil_core::crypto::onion::{HopKeys, ONION_LEN, Onion, OnionRejected, Peeled};
use bulbil_core::driver::{Driver, LINK_BUFFER_MIN, LinkEnd, LinkPlace, More, OutsidePlace, Places};
use bulbil_core::io::{ByteStream, Shell, Statement};
use bulbil_core::link::{LinkSecret, PortableAead};
use bulbil_core::node::{Config, ConversationId, Node, Opening, Outcome, Patience, Resources};
use bulbil_core::phonebook::VerifiedDescriptor;
use bulbil_core::relay::onions::OnionIndex;
use bulbil_core::time::Instant;
use bulbil_core::wire::descriptor::{DESCRIPTOR_MAX_LEN, RSA_LEN, SIGNING_CONTEXT};
use bulbil_core::wire::handshake::{InitialCredit, LinkLimits, RecordCells};
use bulbil_core::wire::message::BeginOptions;
use bulbil_core::wire::{CloseReason, Descriptor, NodeId, OnionKey, ProtocolVersion, Roles, Target, UnixTime};
use embedded_io::ErrorType;
use rand_chacha::ChaCha20Rng;
use rand_core::{CryptoRng, SeedableRng};

use super::model::RSA_KEYS;
use super::script::Script;

const TIME: UnixTime = UnixTime(1_800_000_000);
const NOW: Instant = Instant::from_millis(0);
/// The connector's message with its length: an X25519 key and an ML-KEM-768 key.
const FIRST_LEN: usize = 2 + 32 + 1184;
const STEPS_MAX: usize = 200;

/// One direction of the wire.
#[derive(Default)]
struct Direction {
    /// What its sender wrote.
    sent: Vec<u8>,
    /// What of that, or instead of that, is on its way.
    wire: VecDeque<u8>,
    /// What came, all of it and what is not read yet.
    came: Vec<u8>,
    unread: VecDeque<u8>,
    /// Bytes that the sender can write before it has to wait.
    room: usize,
    /// The sender has closed it.
    closed: bool,
}

impl Direction {
    fn is_honest(&self, len: usize) -> bool {
        let len = len.min(self.came.len());
        self.sent.get(..len) == Some(&self.came[..len])
    }
}

type Wires = Rc<RefCell<[Direction; 2]>>;

/// One end of the wire.
struct Stream {
    wires: Wires,
    side: usize,
}

impl ErrorType for Stream {
    type Error = Infallible;
}

impl ByteStream for Stream {
    fn try_read(&mut self, buffer: &mut [u8]) -> Poll<Result<usize, Infallible>> {
        let from = &mut self.wires.borrow_mut()[1 - self.side];
        let len = from.unread.len().min(buffer.len());
        if len == 0 && !(from.closed && from.wire.is_empty()) {
            return Poll::Pending;
        }
        buffer.iter_mut().zip(from.unread.drain(..len)).for_each(|(place, byte)| *place = byte);
        Poll::Ready(Ok(len))
    }

    fn try_write(&mut self, bytes: &[u8]) -> Poll<Result<usize, Infallible>> {
        let to = &mut self.wires.borrow_mut()[self.side];
        let len = to.room.min(bytes.len());
        if len == 0 {
            return Poll::Pending;
        }
        to.room -= len;
        to.sent.extend_from_slice(&bytes[..len]);
        to.wire.extend(&bytes[..len]);
        Poll::Ready(Ok(len))
    }

    fn finish(&mut self) -> Result<(), Infallible> {
        self.wires.borrow_mut()[self.side].closed = true;
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.wires.borrow_mut()[self.side].closed = true;
    }
}

/// What a node has around it.
struct Machine {
    rng: ChaCha20Rng,
    link: LinkSecret,
    descriptor: &'static [u8],
    connecting: Option<LinkId>,
    /// Who has shown a descriptor.
    met: Vec<NodeId>,
    ends: Vec<LinkEnd>,
    over: Option<Outcome>,
}

impl Shell for Machine {
    type LinkStream = Stream;
    type OutsideStream = Stream;
    type Aead = PortableAead;

    fn connect_link(&mut self, link: LinkId, _address: SocketAddr) {
        assert!(self.connecting.replace(link).is_none(), "one link is wanted");
    }

    fn connect_target(&mut self, _: ConversationId, _: &Target) {
        panic!("no onion is peeled here");
    }

    fn peel(&mut self, _: OnionIndex, onion: &mut Onion) -> Option<Result<Peeled, OnionRejected>> {
        assert!(onion.iter().all(|&byte| byte == 0x77), "another onion than was sent");
        Some(Err(OnionRejected::NotAuthentic))
    }

    fn sign(&mut self, _: ConversationId, _: Statement<'_>) -> Option<(UnixTime, [u8; RSA_LEN])> {
        None
    }

    fn link_secret(&mut self) -> (&LinkSecret, &mut dyn CryptoRng) {
        (&self.link, &mut self.rng)
    }

    fn descriptor(&self) -> &[u8] {
        self.descriptor
    }

    fn unix_time(&self) -> Option<UnixTime> {
        Some(TIME)
    }

    fn rng(&mut self) -> &mut dyn CryptoRng {
        &mut self.rng
    }

    fn handle_descriptor(&mut self, _: LinkId, descriptor: &VerifiedDescriptor, time: UnixTime) {
        assert_eq!(time, TIME);
        self.met.push(descriptor.node());
    }

    fn handle_link_end(&mut self, _: LinkId, end: LinkEnd) {
        self.ends.push(end);
    }

    fn handle_connected(&mut self, _: ConversationId, _: Reached) {
        panic!("the onion is refused");
    }

    fn handle_receipt(&mut self, _: ConversationId, _: Receipt) {
        panic!("the onion is refused");
    }

    fn handle_over(&mut self, _: ConversationId, outcome: Outcome) {
        assert!(self.over.replace(outcome).is_none(), "a conversation ends once");
    }
}

/// The answerer: its link key and what it shows of itself.
fn answerer() -> &'static ([u8; 32], Vec<u8>, NodeId) {
    static ANSWERER: OnceLock<([u8; 32], Vec<u8>, NodeId)> = OnceLock::new();
    ANSWERER.get_or_init(|| {
        let rng = &mut ChaCha20Rng::seed_from_u64(1);
        let (identity, link) = (IdentitySecret::from_pkcs8(RSA_KEYS[0]), LinkSecret::generate(rng));
        let identity = identity.expect("the test key is sound");
        let mut descriptor = Descriptor {
            identity: identity.public(),
            sequence: 1,
            valid_from: UnixTime(TIME.0 - 3600),
            valid_until: UnixTime(TIME.0 + 3600),
            protocol: ProtocolVersion::V1,
            roles: Roles { relay: true, exit: false, constrained: false },
            link_key: link.public().0,
            onion_key: OnionKey::XWing([4; 1216]),
            addresses: [([192, 0, 2, 1], 9001).into()].into_iter().collect(),
            exit_ports: [].into_iter().collect(),
            signature: [0; RSA_LEN],
        };
        let mut bytes = [0; DESCRIPTOR_MAX_LEN];
        let len = descriptor.emit_unsigned(&mut bytes).expect("the descriptor is sound");
        descriptor.signature = identity.sign(rng, &[SIGNING_CONTEXT, &bytes[..len]]).expect("the key is sound");
        let len = descriptor.emit(&mut bytes).expect("the descriptor is sound");
        (*link.to_bytes(), bytes[..len].to_vec(), descriptor.node_id())
    })
}

struct World<'m, 'b> {
    wires: Wires,
    sides: [(Driver<'m, 'b, Machine>, Machine); 2],
    links: [Option<LinkId>; 2],
    /// Nothing but splitting was done to the wire.
    untouched: bool,
}

/// The input is a [`Script`] of what happens to the wire.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    let Some(choice) = script.byte() else { return };
    let mut memories = [(); 2].map(|()| Box::new(Resources::<2, 1, 4, 16, 1, 1, 8>::new()));
    let mut outsides = [(); 2].map(|()| [OutsidePlace::EMPTY]);
    let mut buffers = [(); 8].map(|()| vec![0; LINK_BUFFER_MIN.max(2 + 16 + 4 * 514)]);
    let mut buffers = buffers.iter_mut();
    let mut places = [(); 2].map(|()| {
        [(); 2].map(|()| {
            let mut next = || buffers.next().expect("two for each place").as_mut_slice();
            LinkPlace::new(next(), next())
        })
    });
    let mut scratches = [[0; 490]; 2];
    let wires = Wires::default();
    let (secret, descriptor, node) = answerer();

    let parts = memories.iter_mut().zip(&mut places).zip(&mut outsides).zip(&mut scratches).enumerate();
    let mut sides = parts.map(|(side, (((memory, links), outsides), scratch))| {
        let rng = ChaCha20Rng::seed_from_u64(2 + side as u64);
        let record_cells = RecordCells::new(1 + u16::from(choice >> side & 3)).expect("1 to 4");
        let config = Config {
            node: if side == 0 { NodeId([1; 32]) } else { *node },
            relay: true,
            exit: false,
            limits: LinkLimits { record_cells, credit: InitialCredit::new(8).expect("1 to 1024") },
            window_max: 8,
            circuits_per_link: 1,
            onions_per_link: 1,
            half_open_links: 1,
            patience: Patience::DEFAULT,
        };
        let machine = Machine {
            link: LinkSecret::from_bytes(*secret),
            descriptor: if side == 0 { &[] } else { descriptor },
            connecting: None,
            met: Vec::new(),
            ends: Vec::new(),
            over: None,
            rng,
        };
        let node = Node::new(config, memory.lend(), &mut ChaCha20Rng::seed_from_u64(4)).expect("a sound configuration");
        (Driver::new(node, Places { links, outsides, scratch }), machine)
    });
    let sides = [sides.next(), sides.next()].map(|side| side.expect("two sides"));
    let mut world = World { wires, sides, links: [None; 2], untouched: true };
    world.connect(*node);
    for _ in 0..STEPS_MAX {
        if world.step(&mut script).is_none() {
            break;
        }
        world.check();
    }
    world.finish();
}

impl World<'_, '_> {
    fn connect(&mut self, node: NodeId) {
        let stream = |side| Stream { wires: Rc::clone(&self.wires), side };
        let (near, far) = (stream(0), stream(1));
        let [(connector, connecting), (answerer, answering)] = &mut self.sides;
        let link = answerer.reserve_link(answering, NOW).expect("a place is free");
        answerer.handle_accepted(link, far);
        self.links[1] = Some(link);

        let opening = Opening {
            node,
            address: SocketAddr::from(([192, 0, 2, 1], 9001)),
            onion: &[0x77; ONION_LEN],
            keys: &[HopKeys { forward: [1; 80].into(), backward: [2; 80].into() }],
            target: &SocketAddr::from(([198, 51, 100, 1], 80)).into(),
            options: BeginOptions { sign: false, once: false },
            first: b"first",
        };
        connector.open(&opening, NOW).expect("everything is free");
        let _more = connector.drain(connecting, NOW);
        let link = connecting.connecting.expect("a link is wanted");
        connector.handle_link_stream(connecting, link, Ok(near), NOW);
        self.links[0] = Some(link);
    }

    fn step(&mut self, script: &mut Script<'_>) -> Option<()> {
        let choice = script.byte()?;
        let direction = usize::from(choice & 1);
        if choice & 0xf0 == 0xf0 {
            self.untouched = false;
        }
        let mut wires = self.wires.borrow_mut();
        let wire = &mut wires[direction];
        match choice {
            // Half of all steps let something arrive, the others let something leave or alter what is on its way.
            0..=0x7f => {
                let len = script.below(wire.wire.len() + 1)?;
                let came: Vec<u8> = wire.wire.drain(..len).collect();
                wire.came.extend_from_slice(&came);
                wire.unread.extend(came);
            }
            0x80..=0xbf => wire.room += usize::from(script.byte()?).pow(2),
            0xc0..=0xef => wire.room += 1 << 16,
            0xf0..=0xf5 => {
                let at = script.below(wire.wire.len())?;
                wire.wire[at] ^= script.byte()?;
            }
            0xf6..=0xf9 => {
                let range = script.range(wire.wire.len())?;
                wire.wire.drain(range);
            }
            0xfa..=0xfd => {
                let at = script.below(wire.wire.len() + 1)?;
                let len = usize::from(script.byte()? % 32);
                let rest = wire.wire.split_off(at);
                wire.wire.extend(script.bytes(len));
                wire.wire.extend(rest);
            }
            _ => {
                wire.closed = true;
                wire.wire.clear();
            }
        }
        drop(wires);
        self.service();
        Some(())
    }

    fn service(&mut self) {
        for ((driver, machine), link) in self.sides.iter_mut().zip(self.links) {
            let link = link.expect("there from the beginning");
            for _ in 0..100 {
                let more = driver.service_link(machine, link, NOW);
                if more == More::No && driver.drain(machine, NOW) == More::No {
                    break;
                }
            }
            assert_eq!(driver.node().audit(), Ok(()));
        }
    }

    fn check(&self) {
        let wires = self.wires.borrow();
        let [(_, connector), (_, answerer)] = &self.sides;
        let [out, back] = &*wires;
        // The answer's length stands before it.
        let answer_len = back.sent.first_chunk().map_or(usize::MAX, |&len| 2 + usize::from(u16::from_be_bytes(len)));
        let answered = back.came.len() >= answer_len && back.is_honest(answer_len);
        let asked = out.came.len() >= FIRST_LEN && out.is_honest(FIRST_LEN);
        assert!(out.sent.len() < FIRST_LEN || out.sent[..2] == (FIRST_LEN as u16 - 2).to_be_bytes());
        // What comes first decides; the connector may have given up before the rest of the answer came.
        let expected = if asked && answered { vec![self::answerer().2] } else { vec![] };
        // Whose stream breaks while the answer lies there unread may not look at it any more.
        let broke = (out.closed || back.closed) && connector.ends.contains(&LinkEnd::Closed);
        assert!(connector.met == expected || broke && connector.met.is_empty(), "{:?}, {expected:?}", connector.met);
        assert!(answerer.met.is_empty(), "the connector is nobody");
        assert!(back.sent.is_empty() || out.came.len() >= FIRST_LEN, "answered before the whole question");
        assert!(out.sent.len() <= FIRST_LEN || asked && answered, "records before the answer");
        for machine in [connector, answerer] {
            assert!(machine.ends.len() <= 1);
            for end in &machine.ends {
                let possible = matches!(end, LinkEnd::Handshake(_) | LinkEnd::Record(_) | LinkEnd::Closed);
                assert!(possible && !self.untouched, "{end:?}");
            }
        }
        if let Some(outcome) = connector.over {
            let refused = outcome.close == Some(CloseReason::OnionRejected);
            assert!(refused || !connector.ends.is_empty(), "{outcome:?}");
            assert!(!refused || asked && answered && out.is_honest(FIRST_LEN + 18 + 514), "refused by nobody");
        }
    }

    /// What is still to come comes.
    fn finish(&mut self) {
        loop {
            let before = self.wires.borrow().each_ref().map(|wire| (wire.sent.len(), wire.came.len()));
            for wire in self.wires.borrow_mut().iter_mut() {
                wire.room = 1 << 16;
                let came: Vec<u8> = wire.wire.drain(..).collect();
                wire.came.extend_from_slice(&came);
                wire.unread.extend(came);
            }
            self.service();
            self.check();
            if self.wires.borrow().each_ref().map(|wire| (wire.sent.len(), wire.came.len())) == before {
                break;
            }
        }
        if self.untouched {
            let outcome = self.sides[0].1.over.expect("the circuit was refused");
            assert_eq!((outcome.end, outcome.close), (None, Some(CloseReason::OnionRejected)));
            for (driver, _) in &self.sides {
                let usage = driver.node().usage();
                assert_eq!((usage.links, usage.circuits, usage.cells_reserved), (1, 0, 0), "{usage:?}");
            }
        }
    }
}
