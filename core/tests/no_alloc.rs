//! The cell path allocates nothing: a client, a relay and an exit with drivers and links, in one thread whose allocator counts.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;

use bulbil_core::circuit::LinkId;
use bulbil_core::client::origin::{Reached, Receipt};
use bulbil_core::crypto::identity::IdentitySecret;
use bulbil_core::crypto::kem::{OnionKeys, OnionSecret};
use bulbil_core::crypto::onion::{HopSpec, ONION_LEN, Onion, OnionRejected, Peeled, build, peel};
use bulbil_core::driver::{Driver, LINK_BUFFER_MIN, LinkEnd, LinkPlace, OutsidePlace, Places};
use bulbil_core::io::{ByteStream, Shell, Statement};
use bulbil_core::link::record::record_len;
use bulbil_core::link::{LinkSecret, PortableAead};
use bulbil_core::node::{Config, ConversationId, Node, Opening, Outcome, Patience, Resources};
use bulbil_core::phonebook::VerifiedDescriptor;
use bulbil_core::relay::onions::OnionIndex;
use bulbil_core::time::Instant;
use bulbil_core::wire::descriptor::{DESCRIPTOR_MAX_LEN, SIGNING_CONTEXT};
use bulbil_core::wire::handshake::{InitialCredit, LinkLimits, RecordCells};
use bulbil_core::wire::message::BeginOptions;
use bulbil_core::wire::{Descriptor, NodeId, OnionKeyKind, PortRange, ProtocolVersion, Roles, Target, UnixTime};
use embedded_io::{ErrorKind, ErrorType};
use rand_chacha::ChaCha20Rng;
use rand_core::{CryptoRng, SeedableRng};

struct Counting;

thread_local! {
    /// Counts the allocations of this thread; `None` while nobody looks.
    static ALLOCATIONS: Cell<Option<u64>> = const { Cell::new(None) };
}

fn note() {
    ALLOCATIONS.set(ALLOCATIONS.get().map(|count| count + 1));
}

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    ALLOCATIONS.set(Some(0));
    work();
    ALLOCATIONS.replace(None).unwrap()
}

/// Bytes on their way, in a ring of fixed size.
struct Ring {
    bytes: RefCell<Box<[u8; 20_000]>>,
    start: Cell<usize>,
    len: Cell<usize>,
}

impl Ring {
    fn new() -> Rc<Self> {
        Rc::new(Self { bytes: RefCell::new(Box::new([0; 20_000])), start: Cell::new(0), len: Cell::new(0) })
    }

    fn write(&self, bytes: &[u8]) -> usize {
        let mut ring = self.bytes.borrow_mut();
        let len = bytes.len().min(ring.len() - self.len.get());
        for (at, byte) in (self.start.get() + self.len.get()..).zip(&bytes[..len]) {
            ring[at % 20_000] = *byte;
        }
        self.len.set(self.len.get() + len);
        len
    }

    fn read(&self, buffer: &mut [u8]) -> usize {
        let len = buffer.len().min(self.len.get());
        for (place, at) in buffer[..len].iter_mut().zip(self.start.get()..) {
            *place = self.bytes.borrow()[at % 20_000];
        }
        self.start.set((self.start.get() + len) % 20_000);
        self.len.set(self.len.get() - len);
        len
    }
}

#[derive(Clone)]
struct Pipe {
    incoming: Rc<Ring>,
    outgoing: Rc<Ring>,
}

impl Pipe {
    fn pair() -> (Self, Self) {
        let (one, other) = (Ring::new(), Ring::new());
        (Self { incoming: Rc::clone(&one), outgoing: Rc::clone(&other) }, Self { incoming: other, outgoing: one })
    }
}

impl ErrorType for Pipe {
    type Error = ErrorKind;
}

impl ByteStream for Pipe {
    fn try_read(&mut self, buffer: &mut [u8]) -> Poll<Result<usize, ErrorKind>> {
        match self.incoming.read(buffer) {
            0 => Poll::Pending,
            len => Poll::Ready(Ok(len)),
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> Poll<Result<usize, ErrorKind>> {
        match self.outgoing.write(bytes) {
            0 => Poll::Pending,
            len => Poll::Ready(Ok(len)),
        }
    }

    fn finish(&mut self) -> Result<(), ErrorKind> {
        Ok(())
    }
}

struct TestShell {
    node: NodeId,
    link: LinkSecret,
    onion: OnionKeys,
    descriptor: Vec<u8>,
    rng: ChaCha20Rng,
    links_wanted: Vec<(LinkId, SocketAddr)>,
    targets_wanted: Vec<ConversationId>,
}

const NOW: UnixTime = UnixTime(1_700_000_000);

impl Shell for TestShell {
    type LinkStream = Pipe;
    type OutsideStream = Pipe;
    type Aead = PortableAead;

    fn connect_link(&mut self, link: LinkId, address: SocketAddr) {
        self.links_wanted.push((link, address));
    }

    fn connect_target(&mut self, conversation: ConversationId, _target: &Target) {
        self.targets_wanted.push(conversation);
    }

    fn peel(&mut self, _job: OnionIndex, onion: &mut Onion) -> Option<Result<Peeled, OnionRejected>> {
        Some(peel(onion, &self.node, &self.onion, &mut self.rng))
    }

    fn sign(&mut self, _conversation: ConversationId, _statement: Statement<'_>) -> Option<(UnixTime, [u8; 256])> {
        None
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

    fn handle_link_end(&mut self, _link: LinkId, end: LinkEnd) {
        panic!("a link ended: {end}");
    }

    fn handle_connected(&mut self, _conversation: ConversationId, _reached: Reached) {}

    fn handle_receipt(&mut self, _conversation: ConversationId, _receipt: Receipt) {}

    fn handle_over(&mut self, _conversation: ConversationId, outcome: Outcome) {
        panic!("the conversation ended: {outcome:?}");
    }
}

/// A node, its driver and its machine.
struct Machine {
    driver: Driver<'static, 'static, TestShell>,
    shell: TestShell,
    links: Vec<LinkId>,
    conversation: Option<ConversationId>,
}

type Small = Resources<4, 7, 32, 512, 2, 2, 64>;

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 9000))
}

impl Machine {
    /// A node whose memory is given away for good.
    fn new(number: u8, der: &[u8]) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(u64::from(number));
        let identity = IdentitySecret::from_pkcs8(der).unwrap();
        let (link, onion) = (LinkSecret::generate(&mut rng), OnionSecret::generate(OnionKeyKind::XWing, &mut rng));
        let mut descriptor = Descriptor {
            identity: identity.public(),
            sequence: 1,
            valid_from: UnixTime(NOW.0 - 1),
            valid_until: UnixTime(NOW.0 + 3600),
            protocol: ProtocolVersion::V1,
            roles: Roles { relay: true, exit: true, constrained: true },
            link_key: link.public().0,
            onion_key: onion.public(),
            addresses: [address(number)].into_iter().collect(),
            exit_ports: [PortRange::ALL].into_iter().collect(),
            signature: [0; 256],
        };
        let mut bytes = [0; DESCRIPTOR_MAX_LEN];
        let len = descriptor.emit_unsigned(&mut bytes).unwrap();
        descriptor.signature = identity.sign(&mut rng, &[SIGNING_CONTEXT, &bytes[..len]]).unwrap();
        let len = descriptor.emit(&mut bytes).unwrap();
        let config = Config {
            half_open_links: 2,
            node: identity.node_id(),
            relay: true,
            exit: true,
            limits: LinkLimits { record_cells: RecordCells::new(8).unwrap(), credit: InitialCredit::new(16).unwrap() },
            window_max: 48,
            circuits_per_link: 7,
            onions_per_link: 2,
            patience: Patience::DEFAULT,
        };
        let resources: &'static mut Small = Box::leak(Box::new(Small::new()));
        let node = Node::new(config, resources.lend(), &mut rng).unwrap();
        let buffer = || vec![0; LINK_BUFFER_MIN.max(record_len(8))].leak();
        let links: Vec<_> = (0..4).map(|_| LinkPlace::new(buffer(), buffer())).collect();
        let outsides: Vec<_> = (0..7).map(|_| OutsidePlace::EMPTY).collect();
        let places = Places { links: links.leak(), outsides: outsides.leak(), scratch: vec![0; 4096].leak() };
        let shell = TestShell {
            node: identity.node_id(),
            link,
            onion: OnionKeys::new(onion, None),
            descriptor: bytes[..len].to_vec(),
            rng,
            links_wanted: Vec::new(),
            targets_wanted: Vec::new(),
        };
        Self { driver: Driver::new(node, places), shell, links: Vec::new(), conversation: None }
    }

    fn serve(&mut self, now: Instant) {
        for &link in &self.links {
            let _more = self.driver.service_link(&mut self.shell, link, now);
        }
        if let Some(name) = self.conversation {
            self.driver.service_conversation(&mut self.shell, name, now);
        }
        let _more = self.driver.drain(&mut self.shell, now);
        self.driver.handle_timeout(&mut self.shell, now);
    }
}

/// Everything ready: the three nodes, and the far ends of the application's and the target's connections.
fn network() -> ([Machine; 3], Pipe, Pipe) {
    let mut machines = [
        Machine::new(1, include_bytes!("vectors/rsa/test-key-0.der")),
        Machine::new(2, include_bytes!("vectors/rsa/test-key-1.der")),
        Machine::new(3, include_bytes!("vectors/rsa/test-key-2.der")),
    ];
    let now = Instant::from_millis(0);
    let keys = [1, 2].map(|hop: usize| machines[hop].shell.onion.current().public());
    let hops = [0, 1].map(|hop| HopSpec {
        node: machines[hop + 1].shell.node,
        key: &keys[hop],
        address: address(hop as u8 + 2),
    });
    let mut onion = [0; ONION_LEN];
    let keys = build(&hops, &mut onion, &mut machines[0].shell.rng).unwrap();
    let opening = Opening {
        node: hops[0].node,
        address: hops[0].address,
        onion: &onion,
        keys: &keys,
        target: &"target.test:80".parse().unwrap(),
        options: BeginOptions { sign: true, once: false },
        first: b"hello",
    };
    let name = machines[0].driver.open(&opening, now).unwrap();
    let (app, inside) = Pipe::pair();
    let client = &mut machines[0];
    client.driver.attach(&mut client.shell, name, inside, now);
    client.conversation = Some(name);
    let (target, behind) = Pipe::pair();
    for _ in 0..20 {
        for at in 0..3 {
            machines[at].serve(now);
            for (link, to) in std::mem::take(&mut machines[at].shell.links_wanted) {
                let (near, far) = Pipe::pair();
                let answerer = &mut machines[if to == address(2) { 1 } else { 2 }];
                let answered = answerer.driver.reserve_link(&mut answerer.shell, now).unwrap();
                answerer.driver.handle_accepted(answered, far);
                answerer.links.push(answered);
                let this = &mut machines[at];
                this.driver.handle_link_stream(&mut this.shell, link, Ok(near), now);
                this.links.push(link);
            }
            for name in std::mem::take(&mut machines[at].shell.targets_wanted) {
                let this = &mut machines[at];
                this.driver.handle_target(&mut this.shell, name, Ok((behind.clone(), address(9))), now);
                this.conversation = Some(name);
            }
        }
    }
    let mut heard = [0; 5];
    assert_eq!((target.incoming.read(&mut heard), &heard), (5, b"hello"));
    (machines, app, target)
}

/// Moves bytes from one end to the other, and answers how many came.
fn transfer(machines: &mut [Machine; 3], from: &Pipe, to: &Pipe, clock: &mut u64) -> usize {
    let (mut sent, mut received) = (0u64, 0u64);
    let mut buffer = [0; 3000];
    for _ in 0..300 {
        for place in &mut buffer {
            *place = (sent % 251) as u8;
            sent += 1;
        }
        sent -= (buffer.len() - from.outgoing.write(&buffer)) as u64;
        *clock += 7;
        for machine in &mut *machines {
            machine.serve(Instant::from_millis(*clock));
        }
        let len = to.incoming.read(&mut buffer);
        for byte in &buffer[..len] {
            assert_eq!(*byte, (received % 251) as u8);
            received += 1;
        }
    }
    received as usize
}

#[test]
fn cells_are_carried_without_an_allocation() {
    let (mut machines, app, target) = network();
    let mut clock = 0;
    let (mut forward, mut backward) = (0, 0);
    let count = allocations(|| {
        forward = transfer(&mut machines, &app, &target, &mut clock);
        backward = transfer(&mut machines, &target, &app, &mut clock);
    });
    assert!(forward > 100_000 && backward > 100_000, "{forward} bytes forward, {backward} backward");
    let cells = machines[1].driver.node().counters();
    assert!(cells.forward > 200 && cells.backward > 200, "{cells:?}");
    assert_eq!(count, 0);
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

/// What a driver keeps for each link and conversation, beside the buffers; on a microcontroller the size is part of the interface.
#[cfg(target_arch = "x86_64")]
#[test]
fn sizes_are_pinned() {
    let sizes = [
        size_of::<LinkPlace<'_, TestShell>>(),
        size_of::<OutsidePlace<TestShell>>(),
        size_of::<Driver<'_, '_, TestShell>>(),
    ];
    assert_eq!(sizes, [944, 32, 568]);
}
