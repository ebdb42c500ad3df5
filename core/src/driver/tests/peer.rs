//! The other end of a link: shakes hands as it should or not, and sends the cells that it is told to.

use std::vec::Vec;

use super::bench::{Bench, CREDIT, NOW, RECORD_CELLS, Stream, TIME, address};
use crate::circuit::LinkId;
use crate::crypto::cgo::{ClientBackward, ClientForward, HopIndex, Seed};
use crate::crypto::onion::{HopKeys, HopSpec, ONION_CELLS, ONION_LEN, build};
use crate::crypto::testing::rng;
use crate::link::noise::MESSAGE1_LEN;
use crate::link::record::{LENGTH_LEN, cells_offset, record_len};
use crate::link::{Connector, LinkSecret, Opened, Opener, PortableAead, RecordLimit, Sealer, answer};
use crate::wire::cell::{self, BODY_LEN, CELL_LEN, Cell};
use crate::wire::handshake::{Answer, CircuitLimit, Hello, InitialCredit, LinkLimits, RecordCells};
use crate::wire::{CircuitId, CloseReason, Command, Message, NodeId, OnionKey};

pub(super) type CellBytes = [u8; CELL_LEN];

pub(super) fn limits() -> LinkLimits {
    LinkLimits {
        record_cells: RecordCells::new(RECORD_CELLS as u16).unwrap(),
        credit: InitialCredit::new(CREDIT).unwrap(),
    }
}

/// A cell of circuit `circuit` (0: of the link) with this beginning of its body.
pub(super) fn cell(circuit: u32, command: Command, body: &[u8]) -> CellBytes {
    let mut bytes = [0; CELL_LEN];
    cell::emit_header(&mut bytes, CircuitId::new(circuit), command);
    cell::body_mut(&mut bytes)[..body.len()].copy_from_slice(body);
    bytes
}

/// Lets the driver connect a link to `expected`, and answers it with the link key `secret`, showing `descriptor`.
pub(super) fn answer_as(bench: &mut Bench<'_, '_>, expected: Option<NodeId>, secret: &LinkSecret, descriptor: &[u8]) {
    let wanted = bench.driver.contact(address(1), expected, NOW).unwrap();
    let _more = bench.driver.drain(&mut bench.shell, NOW);
    assert_eq!(bench.shell.links, [wanted]);
    let stream = Stream::default();
    bench.driver.handle_link_stream(&mut bench.shell, wanted, Ok(stream.clone()), NOW);
    let message: [u8; MESSAGE1_LEN] = stream.0.borrow().heard[LENGTH_LEN..].try_into().unwrap();
    let said = Answer { time: TIME, limits: limits(), circuits: CircuitLimit::new(8).unwrap(), descriptor };
    let (mut payload, mut text) = ([0; 4096], [0; 8192]);
    let len = said.emit(&mut payload).unwrap();
    let (len, _keys) = answer(secret, &message, &payload[..len], &mut text, &mut rng(4)).unwrap();
    stream.0.borrow_mut().said.extend((len as u16).to_be_bytes().iter().chain(&text[..len]));
    bench.serve(wanted);
}

/// A connector that has shaken hands with the driver's node.
pub(super) struct Peer {
    pub(super) link: LinkId,
    pub(super) stream: Stream,
    sealer: Sealer<PortableAead>,
    opener: Opener<PortableAead>,
}

impl Peer {
    /// Connects and says HELLO.
    pub(super) fn connect(bench: &mut Bench<'_, '_>) -> Self {
        let link = bench.driver.reserve_link(&mut bench.shell, NOW).unwrap();
        let stream = Stream::default();
        bench.driver.handle_accepted(link, stream.clone());
        let mut message = [0; MESSAGE1_LEN];
        let connector = Connector::start(&mut rng(5), &mut message);
        stream.0.borrow_mut().said.extend((MESSAGE1_LEN as u16).to_be_bytes().iter().chain(&message));
        bench.serve(link);
        let mut heard = core::mem::take(&mut stream.0.borrow_mut().heard);
        let keys = connector.finish(&mut heard[LENGTH_LEN..]).unwrap().keys;
        let limit = RecordLimit::new(RECORD_CELLS as u16).unwrap();
        let (sealer, opener) = (Sealer::new(&keys.send, limit), Opener::new(&keys.receive, limit));
        let mut peer = Self { link, stream, sealer, opener };
        let mut hello = cell(0, Command::HELLO, &[]);
        Hello { limits: limits() }.emit(cell::body_mut(&mut hello));
        peer.say(&[hello]);
        bench.serve(link);
        peer
    }

    /// Puts cells into the stream, as many as fit into each record.
    pub(super) fn say(&mut self, cells: &[CellBytes]) {
        for cells in cells.chunks(RECORD_CELLS) {
            let mut record = [0; record_len(RECORD_CELLS)];
            let text = &mut record[cells_offset()..];
            cells.iter().zip(text.chunks_exact_mut(CELL_LEN)).for_each(|(cell, place)| place.copy_from_slice(cell));
            let len = self.sealer.seal(&mut record, cells.len()).unwrap();
            self.stream.0.borrow_mut().said.extend(&record[..len]);
        }
    }

    /// The cells that have come since the last time.
    pub(super) fn hear(&mut self) -> Vec<CellBytes> {
        let mut heard = core::mem::take(&mut self.stream.0.borrow_mut().heard);
        let mut all = Vec::new();
        let mut rest = heard.as_mut_slice();
        while !rest.is_empty() {
            let Opened::Record { cells, consumed } = self.opener.open(rest).unwrap() else {
                panic!("records are whole")
            };
            all.extend_from_slice(cells);
            rest = rest.split_at_mut(consumed).1;
        }
        all
    }
}

/// A client's circuit on a peer's link.
pub(super) struct Circuit {
    id: u32,
    keys: Vec<HopKeys>,
    forward: ClientForward,
    backward: ClientBackward,
    onion: [u8; ONION_LEN],
}

impl Circuit {
    /// A path of the nodes with these ids and keys, at made-up addresses.
    pub(super) fn new(id: u32, hops: &[(NodeId, OnionKey)]) -> Self {
        let specs: Vec<_> = hops.iter().map(|(node, key)| HopSpec { node: *node, key, address: address(9) }).collect();
        let mut onion = [0; ONION_LEN];
        let keys: Vec<_> = build(&specs, &mut onion, &mut rng(6 + u64::from(id))).unwrap().into_iter().collect();
        let seeds: Vec<_> = keys.iter().map(|keys| Seed::from_bytes(*keys.forward)).collect();
        let forward = ClientForward::new(&seeds).unwrap();
        let seeds: Vec<_> = keys.iter().map(|keys| Seed::from_bytes(*keys.backward)).collect();
        let backward = ClientBackward::new(&seeds).unwrap();
        Self { id, keys, forward, backward, onion }
    }

    /// The onion.
    pub(super) fn open(&self) -> Vec<CellBytes> {
        let cells: Vec<_> = self.onion.chunks_exact(BODY_LEN).map(|part| cell(self.id, Command::OPEN, part)).collect();
        assert_eq!(cells.len(), ONION_CELLS);
        cells
    }

    /// A message to the hop numbered `hop`.
    pub(super) fn tell(&mut self, hop: usize, message: &Message<'_>) -> CellBytes {
        let mut bytes = cell(self.id, Command::RELAY, &[]);
        let body = cell::body_mut(&mut bytes);
        message.emit(body.last_chunk_mut().unwrap()).unwrap();
        self.forward.originate(HopIndex::new(hop).unwrap(), Command::RELAY, body).unwrap();
        bytes
    }

    /// A message to the last hop.
    pub(super) fn say(&mut self, message: &Message<'_>) -> CellBytes {
        self.tell(self.keys.len() - 1, message)
    }

    pub(super) fn close(&self, reason: CloseReason) -> CellBytes {
        cell(self.id, Command::CLOSE, &[reason as u8])
    }

    /// What the relay cells of this circuit say, and which hop says it; CREDIT and CLOSE are left out.
    pub(super) fn understand(&mut self, cells: &mut [CellBytes]) -> Vec<(usize, std::string::String)> {
        let mut said = Vec::new();
        for cell in cells {
            if let Cell::Relay(id, body) = Cell::parse(cell).unwrap() {
                assert_eq!(id.value(), self.id);
                let hop = self.backward.receive(Command::RELAY, body).unwrap();
                let message = Message::parse(body.last_chunk().unwrap()).unwrap();
                said.push((hop.value(), std::format!("{message:?}")));
            }
        }
        said
    }
}
