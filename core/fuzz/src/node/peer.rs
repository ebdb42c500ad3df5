//! What a node's neighbour knows, and what it may expect of the node.

use std::collections::BTreeMap;

use bulbil_core::crypto::cgo::{ClientBackward, ClientForward, HopIndex, Seed};
use bulbil_core::wire::cell::{BODY_LEN, CELL_LEN, Cell};
use bulbil_core::wire::handshake::{Hello, InitialCredit, LinkLimits, RecordCells};
use bulbil_core::wire::message::MESSAGE_LEN;
use bulbil_core::wire::{Command, Message};

use super::CREDIT;

/// A link's other end. Links are numbered in the order of their making, and the numbers never used again.
pub(super) struct Peer {
    pub(super) number: u16,
    /// Whether the node connected, and so the node opens circuits here.
    pub(super) outward: bool,
    /// What it has told the node: nothing yet, or its limits.
    pub(super) limits: Option<LinkLimits>,
    pub(super) hello_seen: bool,
    /// Its onions are in disorder: the node may find fault with anything that it sends.
    pub(super) rogue: bool,
    pub(super) last_id: u32,
    /// Of the onion that is arriving at this peer.
    pub(super) parts_seen: usize,
    pub(super) circuits: BTreeMap<u32, Circuit>,
}

/// A circuit as a peer knows it.
pub(super) struct Circuit {
    /// Relay cells that the peer may still send to the node, and the node to the peer.
    pub(super) room: u32,
    pub(super) credit: u32,
    /// Parts of its onion that have been sent, by the peer or to it.
    pub(super) parts: usize,
    pub(super) closed: bool,
    pub(super) forward: ClientForward,
    pub(super) backward: ClientBackward,
    /// Whether the node ends this circuit, as far as the peer knows.
    pub(super) exits: bool,
    /// It asks for a service of the node.
    pub(super) service: bool,
    /// What the client has said, and what it was told.
    pub(super) said: Vec<u8>,
    pub(super) told: Vec<u8>,
    pub(super) begun: bool,
    pub(super) finished: bool,
}

impl Circuit {
    pub(super) fn new(room: u32, credit: u32, parts: usize, [forward, backward]: [Seed; 2]) -> Self {
        Self {
            room,
            credit,
            parts,
            closed: false,
            forward: ClientForward::new([&forward]).expect("a path of one hop"),
            backward: ClientBackward::new([&backward]).expect("a path of one hop"),
            exits: false,
            service: false,
            said: Vec::new(),
            told: Vec::new(),
            begun: false,
            finished: false,
        }
    }
}

impl Peer {
    /// A cell of the node's, which has to be one that this peer expects.
    pub(super) fn receive(&mut self, bytes: &mut [u8; CELL_LEN], initial_credit: u16) {
        let parsed = Cell::parse(bytes).expect("the node's cells are well formed");
        assert!(self.hello_seen || !self.outward || matches!(parsed, Cell::Hello(_)), "HELLO comes first");
        match parsed {
            Cell::Hello(body) => {
                assert!(self.outward && !self.hello_seen, "HELLO comes once, from the connector");
                assert_eq!(Hello::parse(body), Ok(Hello { limits: limits(4, CREDIT) }));
                self.hello_seen = true;
            }
            Cell::Credit(entries) => {
                for (id, cells) in entries {
                    let circuit = self.circuits.get_mut(&id.value());
                    // The peer's CLOSE and the node's CREDIT may cross.
                    let Some(circuit) = circuit else { continue };
                    assert!(!circuit.closed, "credit for a closed circuit");
                    circuit.room += u32::from(cells.get());
                    assert!(circuit.room <= u32::from(u16::MAX));
                }
            }
            Cell::Open(id, _) => {
                assert!(self.outward, "only the connector opens circuits");
                // The rest of an onion need not come when this peer has closed its circuit.
                let closed = !self.circuits.contains_key(&self.last_id);
                if self.parts_seen == 0 || (closed && id.value() != self.last_id) {
                    self.parts_seen = 0;
                    assert!(id.value() > self.last_id, "circuit ids increase");
                    self.last_id = id.value();
                    let seeds = seeds((self.number, id.value()));
                    let circuit = Circuit::new(u32::from(CREDIT), u32::from(initial_credit), 0, seeds);
                    self.circuits.insert(id.value(), circuit);
                }
                assert_eq!(id.value(), self.last_id, "an onion within another");
                self.parts_seen = (self.parts_seen + 1) % 10;
                if let Some(circuit) = self.circuits.get_mut(&id.value()) {
                    circuit.parts += 1;
                }
            }
            Cell::Relay(id, body) => {
                let outward = self.outward;
                // The peer's CLOSE and the node's cell may cross.
                let Some(circuit) = self.circuits.get_mut(&id.value()) else { return };
                assert!(!circuit.closed, "a cell on a closed circuit");
                circuit.credit = circuit.credit.checked_sub(1).expect("a cell without credit");
                if outward || !circuit.exits {
                    return;
                }
                let hop = circuit.backward.receive(Command::RELAY, body);
                assert_eq!(hop, HopIndex::new(0), "the client does not understand the exit");
                let message = body[BODY_LEN - MESSAGE_LEN..].try_into().expect("a message follows the tag");
                match Message::parse(message).expect("the exit's messages are well formed") {
                    Message::Data(data) => circuit.told.extend_from_slice(data),
                    Message::Begin { .. } => panic!("BEGIN from the exit"),
                    Message::Connected { .. } => assert!(!circuit.service, "CONNECTED for a service"),
                    _ => {}
                }
            }
            Cell::Close(id, _) => {
                let Some(circuit) = self.circuits.get_mut(&id.value()) else { return };
                assert!(!core::mem::replace(&mut circuit.closed, true), "CLOSE comes once");
            }
            Cell::Padding => {}
        }
    }
}

pub(super) fn limits(cells: u16, credit: u16) -> LinkLimits {
    LinkLimits {
        record_cells: RecordCells::new(cells).expect("1 to 127"),
        credit: InitialCredit::new(credit).expect("1 to 1024"),
    }
}

/// The keys of a circuit: forward, backward.
pub(super) fn seeds((number, id): (u16, u32)) -> [Seed; 2] {
    [0, 1].map(|direction| {
        // No part of it is all zeros: a universal hash with such a key is no hash, and who has lost step would be understood again.
        let mut bytes = core::array::from_fn(|at| (at as u8) << 1 | direction);
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        bytes[2..6].copy_from_slice(&id.to_be_bytes());
        Seed::from_bytes(bytes)
    })
}
