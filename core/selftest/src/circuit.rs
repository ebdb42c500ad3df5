//! A circuit through three relays and an exit: five nodes with their links, in memory. Request, answer, receipt, end.

use core::cell::RefCell;
use core::task::Poll;

use bulbil_core::client::origin::Reached;
use bulbil_core::crypto::cgo::HopIndex;
use bulbil_core::crypto::kem::OnionSecret;
use bulbil_core::crypto::onion::{HopKeys, HopSpec, ONION_LEN, Onion, build};
use bulbil_core::crypto::receipt::{ReceiptParts, TranscriptDigest};
use bulbil_core::driver::{LINK_BUFFER_MIN, LinkPlace, OutsidePlace, Places};
use bulbil_core::io::ByteStream;
use bulbil_core::link::record::record_len;
use bulbil_core::node::{ConversationId, Opening, Outcome, Resources};
use bulbil_core::time::Instant;
use bulbil_core::wire::message::BeginOptions;
use bulbil_core::wire::{CloseReason, EndReason, NodeId, OnionKey, OnionKeyKind, Target};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use crate::machine::{Keys, Machine, RECORD_CELLS, TestShell, address};
use crate::pipe::{Pipe, Ring};
use crate::{Check, ensure};

/// The client, three relays, the exit.
const NODES: usize = 5;
const HOPS: usize = NODES - 1;
const EXIT: usize = NODES - 1;
const LINKS: usize = 4;
const CIRCUITS: usize = 4;
/// Links between neighbours, the application's connection, the target's.
const CONNECTIONS: usize = HOPS + 2;

const BUFFER: usize = {
    let record = record_len(RECORD_CELLS as usize);
    if record > LINK_BUFFER_MIN { record } else { LINK_BUFFER_MIN }
};

type Tables = Resources<LINKS, CIRCUITS, 16, 64, 2, 2, 64>;

/// What the client says: the first bytes, and then more than one cell holds.
const FIRST: &[u8] = b"first bytes, in the flight that opens the path";
const REQUEST_LEN: usize = 3_000;
/// What the target answers: more than every window and every buffer between them holds.
const ANSWER_LEN: usize = 40_000;
/// Turns of all nodes after which something that should have happened never will.
const TURNS_MAX: u64 = 2_000;

/// Everything that the five nodes keep; about 600 KB.
pub struct Memory {
    tables: [Tables; NODES],
    buffers: [[[[u8; BUFFER]; 2]; LINKS]; NODES],
    scratch: [[u8; 2_048]; NODES],
    connections: [[RefCell<Ring>; 2]; CONNECTIONS],
}

impl Memory {
    /// Memory that nothing has used yet; once for each [`crate::run`].
    #[expect(clippy::new_without_default, reason = "a default would be built on the stack first")]
    #[must_use]
    pub const fn new() -> Self {
        Self {
            tables: [const { Tables::new() }; NODES],
            buffers: [[[[0; BUFFER]; 2]; LINKS]; NODES],
            scratch: [[0; 2_048]; NODES],
            connections: [const { [const { RefCell::new(Ring::EMPTY) }; 2] }; CONNECTIONS],
        }
    }
}

pub(crate) fn check(memory: &mut Memory) -> Check {
    let Memory { tables, buffers, scratch, connections } = memory;
    let mut places =
        buffers.each_mut().map(|links| links.each_mut().map(|[input, output]| LinkPlace::new(input, output)));
    let mut outsides: [[_; CIRCUITS]; NODES] = core::array::from_fn(|_| core::array::from_fn(|_| OutsidePlace::EMPTY));
    let mut connections = connections.iter().map(Pipe::pair);
    let mut network = Network { machines: heapless::Vec::new(), now: 0 };

    let memories = tables.iter_mut().zip(&mut places).zip(&mut outsides).zip(scratch);
    for (number, (((tables, links), outsides), scratch)) in memories.enumerate() {
        let shell = TestShell::new(number as u8, keys(number)?)?;
        let machine = Machine::new(shell, tables.lend(), Places { links, outsides, scratch })?;
        network.machines.push(machine).map_err(|_| "too many nodes")?;
    }
    for answerer in 1..NODES {
        let [near, far] = connections.next().ok_or("too few connections")?;
        network.streams(answerer - 1, answerer, near, far);
    }
    let [target, behind] = connections.next().ok_or("too few connections")?;
    network.machines[EXIT].shell.target = Some(behind);
    let [app, inside] = connections.next().ok_or("too few connections")?;

    let path = Path::new(&network)?;
    let name = network.open(&path)?;
    network.attach(name, inside);
    network.converse(app, target)?;
    network.judge(&path, name)?;
    network.send_again(&path)
}

/// Who has which keys: the second hop's onion key is an RSA one.
fn keys(number: usize) -> Result<Option<Keys>, &'static str> {
    const DER: [&[u8]; HOPS] = [
        include_bytes!("../../tests/vectors/rsa/test-key-0.der"),
        include_bytes!("../../tests/vectors/rsa/test-key-1.der"),
        include_bytes!("../../tests/vectors/rsa/test-key-2.der"),
        include_bytes!("../../tests/vectors/rsa/test-key-3.der"),
    ];
    let Some(der) = number.checked_sub(1).and_then(|at| DER.get(at)) else { return Ok(None) };
    let onion = if number == 2 {
        let der = include_bytes!("../../tests/vectors/rsa/test-key-4.der");
        OnionSecret::import(OnionKeyKind::Rsa2048, der).map_err(|_| "a key does not parse")?
    } else {
        OnionSecret::generate(OnionKeyKind::XWing, &mut ChaCha20Rng::seed_from_u64(100 + number as u64))
    };
    Keys::new(der, onion).map(Some)
}

fn target() -> Result<Target, &'static str> {
    "target.test:80".parse().map_err(|_| "the target's name is none")
}

/// The byte at `at` of what `speaker` says.
fn said(speaker: u8, at: usize) -> u8 {
    (at % 251) as u8 ^ speaker
}

/// An onion for all hops, and the keys for them.
struct Path {
    first: NodeId,
    onion: Onion,
    keys: heapless::Vec<HopKeys, HOPS>,
}

impl Path {
    fn new(network: &Network<'_, '_, '_>) -> Result<Self, &'static str> {
        let hops = || network.machines.iter().skip(1).map(|machine| &machine.shell);
        let mut public = heapless::Vec::<OnionKey, HOPS>::new();
        for shell in hops() {
            let _fits = public.push(shell.keys()?.1.current().public());
        }
        let specs = hops().zip(&public).zip(1..);
        let specs: heapless::Vec<HopSpec<'_>, HOPS> =
            specs.map(|((shell, key), number)| HopSpec { node: shell.node, key, address: address(number) }).collect();
        let mut onion = [0; ONION_LEN];
        let keys = build(&specs, &mut onion, &mut ChaCha20Rng::seed_from_u64(99)).map_err(|_| "no onion is built")?;
        let first = specs.first().ok_or("a path without hops")?.node;
        Ok(Self { first, onion, keys })
    }
}

struct Network<'m, 'b, 'r> {
    machines: heapless::Vec<Machine<'m, 'b, 'r>, NODES>,
    /// Milliseconds.
    now: u64,
}

impl<'r> Network<'_, '_, 'r> {
    /// What two neighbours will be connected by, once one of them wants to.
    fn streams(&mut self, connector: usize, answerer: usize, near: Pipe<'r>, far: Pipe<'r>) {
        self.machines[connector].near = Some(near);
        self.machines[answerer].far = Some(far);
    }

    fn open(&mut self, path: &Path) -> Result<ConversationId, &'static str> {
        let opening = Opening {
            node: path.first,
            address: address(1),
            onion: &path.onion,
            keys: &path.keys,
            target: &target()?,
            options: BeginOptions { sign: true, once: false },
            first: FIRST,
        };
        let name = self.machines[0].driver.open(&opening, Instant::from_millis(self.now));
        let name = name.map_err(|_| "the circuit is not opened")?;
        self.machines[0].conversation = Some(name);
        Ok(name)
    }

    fn attach(&mut self, name: ConversationId, inside: Pipe<'r>) {
        let client = &mut self.machines[0];
        client.driver.attach(&mut client.shell, name, inside, Instant::from_millis(self.now));
    }

    /// One turn of every node, and everything that they have wished for.
    fn turn(&mut self) {
        self.now += 7;
        let now = Instant::from_millis(self.now);
        for at in 0..self.machines.len() {
            self.machines[at].serve(now);
            while let Some((link, to)) = self.machines[at].shell.links_wanted.pop_front() {
                let number = (1..NODES).find(|&number| address(number as u8) == to);
                let far = number.and_then(|number| {
                    let answerer = &mut self.machines[number];
                    let far = answerer.far.take()?;
                    let link = answerer.driver.reserve_link(&mut answerer.shell, now)?;
                    answerer.driver.handle_accepted(link, far);
                    answerer.links.push(link).ok()
                });
                let this = &mut self.machines[at];
                let near = this.near.take().filter(|_| far.is_some());
                let near = near.ok_or(embedded_io::ErrorKind::ConnectionRefused);
                this.driver.handle_link_stream(&mut this.shell, link, near, now);
                let _fits = this.links.push(link);
            }
            let this = &mut self.machines[at];
            if let Some(name) = this.shell.target_wanted.take()
                && let Some(behind) = this.shell.target.take()
            {
                this.driver.handle_target(&mut this.shell, name, Ok((behind, address(99))), now);
                this.conversation = Some(name);
            }
        }
    }

    /// The application sends its request and reads the answer to its end; the target does the same the other way round.
    fn converse(&mut self, app: Pipe<'r>, target: Pipe<'r>) -> Check {
        let mut client = Talker::new(app, 1, FIRST.len(), REQUEST_LEN);
        let mut server = Talker::new(target, 2, 0, ANSWER_LEN);
        server.waits = true;
        for _ in 0..TURNS_MAX {
            self.turn();
            client.talk(|at| said(2, at))?;
            server.talk(|at| FIRST.get(at).copied().unwrap_or_else(|| said(1, at)))?;
            ensure!(self.machines.iter().all(|machine| machine.shell.link_ends == 0), "a link ends");
            ensure!(self.machines.iter().all(|machine| machine.driver.node().audit().is_ok()), "books out of order");
            if client.heard_end && self.machines[0].shell.outcome.is_some() && self.usage() == 0 {
                ensure!(server.heard == REQUEST_LEN && server.heard_end, "the request has not come whole");
                ensure!(client.heard == ANSWER_LEN, "the answer has not come whole");
                return Ok(());
            }
        }
        Err("the conversation does not come to its end")
    }

    /// Circuits and cells at all nodes.
    fn usage(&self) -> usize {
        let usage = self.machines.iter().map(|machine| machine.driver.node().usage());
        usage.map(|usage| usage.circuits + usage.onions + usage.cells_reserved).sum()
    }

    /// What the client was told, and what every relay has done.
    fn judge(&mut self, path: &Path, name: ConversationId) -> Check {
        let client = &mut self.machines[0].shell;
        ensure!(client.reached == Some(Reached::Address(address(99))), "another target was reached");
        let done = Outcome { end: HopIndex::new(HOPS - 1).map(|exit| (EndReason::Done, exit)), close: None };
        let (ended, outcome) = client.outcome.take().ok_or("no outcome")?;
        ensure!(ended == name && outcome.end == done.end, "another outcome");
        let receipt = client.receipt.take().ok_or("no receipt")?;

        let exit = &self.machines[EXIT].shell;
        let key = exit.keys()?.0.public();
        let statement = |transcript: &TranscriptDigest| {
            ReceiptParts::new(exit.node, &target()?, transcript, receipt.time.0).map_err(|_| "no statement")
        };
        let signed = statement(&receipt.transcript)?;
        ensure!(signed.verify(&key, &receipt.signature).is_ok(), "the receipt does not verify");
        let mut more = receipt.transcript.clone();
        more.update_answer(b"x");
        ensure!(statement(&more)?.verify(&key, &receipt.signature).is_err(), "a receipt for another answer verifies");
        let mut own = TranscriptDigest::new();
        own.update_request(FIRST);
        (FIRST.len()..REQUEST_LEN).for_each(|at| own.update_request(&[said(1, at)]));
        (0..ANSWER_LEN).for_each(|at| own.update_answer(&[said(2, at)]));
        ensure!(statement(&own)?.verify(&key, &receipt.signature).is_ok(), "the receipt is for something else");

        ensure!(path.keys.len() == HOPS, "keys for another number of hops");
        for machine in self.machines.iter().skip(1) {
            let counters = machine.driver.node().counters();
            ensure!(counters.opened == 1, "a hop has opened another number of circuits");
            ensure!(counters.forward >= 7 && counters.violations + counters.garbled == 0, "another number of cells");
        }
        let passed = self.machines[1].driver.node().counters().backward;
        ensure!(passed >= (ANSWER_LEN / 490) as u64, "the answer has not come through the first hop");
        Ok(())
    }

    /// The first hop has seen this onion.
    fn send_again(&mut self, path: &Path) -> Check {
        let name = self.open(path)?;
        for _ in 0..TURNS_MAX {
            self.turn();
            if let Some((ended, outcome)) = self.machines[0].shell.outcome {
                ensure!(ended == name, "another conversation ends");
                ensure!(outcome.close == Some(CloseReason::OnionRejected), "a replayed onion is not rejected");
                ensure!(self.machines[1].driver.node().counters().replayed == 1, "the replay was not seen");
                return Ok(());
            }
        }
        Err("a replayed onion is not answered")
    }
}

/// Says a pattern, and checks what it hears.
struct Talker<'r> {
    pipe: Pipe<'r>,
    speaker: u8,
    said: usize,
    to_say: usize,
    /// Says nothing before the other side has finished.
    waits: bool,
    finished: bool,
    heard: usize,
    heard_end: bool,
}

impl<'r> Talker<'r> {
    const fn new(pipe: Pipe<'r>, speaker: u8, said: usize, to_say: usize) -> Self {
        Self { pipe, speaker, said, to_say, waits: false, finished: false, heard: 0, heard_end: false }
    }

    fn talk(&mut self, expected: impl Fn(usize) -> u8) -> Check {
        let mut buffer = [0; 700];
        while !self.heard_end
            && let Poll::Ready(read) = self.pipe.try_read(&mut buffer)
        {
            let read = read.map_err(|_| "a connection breaks")?;
            for &byte in &buffer[..read] {
                ensure!(byte == expected(self.heard), "another byte arrives than was sent");
                self.heard += 1;
            }
            self.heard_end = read == 0;
        }
        while self.said < self.to_say && (self.heard_end || !self.waits) {
            let len = buffer.len().min(self.to_say - self.said);
            for (place, at) in buffer[..len].iter_mut().zip(self.said..) {
                *place = said(self.speaker, at);
            }
            let Poll::Ready(written) = self.pipe.try_write(&buffer[..len]) else { break };
            self.said += written.map_err(|_| "a connection breaks")?;
        }
        if self.said == self.to_say && !core::mem::replace(&mut self.finished, true) {
            self.pipe.finish().map_err(|_| "a connection breaks")?;
        }
        Ok(())
    }
}
