//! What goes over links, as the simulator sees it: it stands where the cipher stands, so it knows every cell that is sent and every one
//! that has come, and can put other cells in their place. Nodes do not notice: the cipher is the one that they would use anyway.
//!
//! Whoever seals is a *lane*, one direction of one link. Ciphers are made with a key and nothing else, so lanes are known by their keys,
//! and which pipe a lane runs through is found when its first record is written.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use bulbil_core::link::aead::{KEY_LEN, OpenFailed, PortableAead, RecordAead, TAG_LEN};
use bulbil_core::link::record::record_len;
use bulbil_core::wire::Command;
use bulbil_core::wire::cell::{CELL_LEN, Cell};

use super::pipes::StreamId;
use super::turncoat::Turncoat;
use super::world::NodeIndex;

/// A cell's bytes.
pub(super) type CellBytes = [u8; CELL_LEN];

thread_local! {
    static WIRE: RefCell<Option<Wire>> = const { RefCell::new(None) };
}

/// Does something with what is watched on this thread, if anything is.
pub(super) fn with<T>(act: impl FnOnce(&mut Wire) -> T) -> Option<T> {
    WIRE.with_borrow_mut(|wire| wire.as_mut().map(act))
}

/// Forgets what was watched on this thread.
pub(super) fn forget() {
    WIRE.set(None);
}

/// Watches every link that is made on this thread from now on.
pub(super) fn watch() {
    WIRE.set(Some(Wire::default()));
}

/// One direction of a link.
pub(super) struct Lane {
    key: [u8; KEY_LEN],
    /// Who seals.
    pub(super) sender: Option<NodeIndex>,
    /// The same link's other direction.
    pub(super) twin: Option<usize>,
    /// It leads from the connector to the answerer.
    pub(super) forward: bool,
    /// The sender's next nonce, as it counts itself.
    next: u64,
    /// Records that were put between its own.
    shift: u64,
    /// Bytes of the sender's last record that are still to be written.
    left: usize,
    /// Records to be put behind it.
    extra: Vec<Vec<u8>>,
    /// Relay cells on their way, by circuit.
    relay_flight: BTreeMap<u32, u32>,
    /// Credit on its way, by circuit.
    credit_flight: BTreeMap<u32, u32>,
    /// Relay cells that were sent, by circuit.
    relay_sent: BTreeMap<u32, u64>,
    /// Relay cells that have come, by circuit.
    relay_received: BTreeMap<u32, u64>,
    /// Circuits that were closed here.
    closed: BTreeSet<u32>,
    /// The onions that went here, as far as they have come, if a turncoat has them.
    pub(super) onions: BTreeMap<u32, Vec<u8>>,
    /// The first relay cell of each circuit, if a turncoat has sent it.
    pub(super) first_relayed: BTreeMap<u32, CellBytes>,
    /// Circuits of which something went here.
    pub(super) circuits: BTreeSet<u32>,
    /// Some of the cells that went here.
    pub(super) history: Vec<CellBytes>,
}

impl Lane {
    fn new(key: [u8; KEY_LEN]) -> Self {
        Self {
            key,
            sender: None,
            twin: None,
            forward: true,
            next: 0,
            shift: 0,
            left: 0,
            extra: Vec::new(),
            relay_flight: BTreeMap::new(),
            credit_flight: BTreeMap::new(),
            relay_sent: BTreeMap::new(),
            relay_received: BTreeMap::new(),
            closed: BTreeSet::new(),
            onions: BTreeMap::new(),
            first_relayed: BTreeMap::new(),
            circuits: BTreeSet::new(),
            history: Vec::new(),
        }
    }

    /// A node says nothing of a circuit behind its CLOSE, whatever it has become.
    fn check_order(&mut self, sender: NodeIndex, cell: &CellBytes) {
        let circuit = circuit_of(cell);
        let is = |command: Command| cell[4] == command.value();
        let late = (is(Command::OPEN) || is(Command::RELAY) || is(Command::CLOSE)) && self.closed.contains(&circuit);
        assert!(!late, "node {sender} sends command {} of circuit {circuit} behind its CLOSE", cell[4]);
        if is(Command::CLOSE) {
            self.closed.insert(circuit);
        }
    }

    /// Counts a cell that goes onto the wire.
    fn count_sent(&mut self, cell: &CellBytes) {
        let circuit = circuit_of(cell);
        if circuit != 0 {
            self.circuits.insert(circuit);
        }
        match Cell::parse(&mut { *cell }) {
            Ok(Cell::Relay(..)) => {
                *self.relay_flight.entry(circuit).or_default() += 1;
                *self.relay_sent.entry(circuit).or_default() += 1;
            }
            Ok(Cell::Credit(entries)) => {
                for (circuit, cells) in entries {
                    *self.credit_flight.entry(circuit.value()).or_default() += u32::from(cells.get());
                }
            }
            _ => {}
        }
    }

    /// Counts a cell that has come.
    fn count_received(&mut self, cell: &CellBytes) {
        let circuit = circuit_of(cell);
        match Cell::parse(&mut { *cell }) {
            Ok(Cell::Relay(..)) => {
                let flight = self.relay_flight.entry(circuit).or_default();
                *flight = flight.checked_sub(1).expect("what comes was sent");
                *self.relay_received.entry(circuit).or_default() += 1;
            }
            Ok(Cell::Credit(entries)) => {
                for (circuit, cells) in entries {
                    let flight = self.credit_flight.entry(circuit.value()).or_default();
                    *flight = flight.checked_sub(u32::from(cells.get())).expect("what comes was sent");
                }
            }
            _ => {}
        }
    }

    /// Relay cells and credit of a circuit that are on their way here.
    pub(super) fn flight(&self, circuit: u32) -> (u32, u32) {
        let of = |flight: &BTreeMap<u32, u32>| flight.get(&circuit).copied().unwrap_or_default();
        (of(&self.relay_flight), of(&self.credit_flight))
    }

    /// Relay cells of a circuit that were sent here, and that have come.
    pub(super) fn relayed(&self, circuit: u32) -> (u64, u64) {
        let of = |counts: &BTreeMap<u32, u64>| counts.get(&circuit).copied().unwrap_or_default();
        (of(&self.relay_sent), of(&self.relay_received))
    }
}

/// The circuit id in a cell's header.
pub(super) fn circuit_of(cell: &CellBytes) -> u32 {
    u32::from_be_bytes([cell[0], cell[1], cell[2], cell[3]])
}

/// Every link that is watched.
#[derive(Default)]
pub(super) struct Wire {
    /// Whose driver runs.
    pub(super) running: NodeIndex,
    pub(super) lanes: Vec<Lane>,
    by_key: HashMap<[u8; KEY_LEN], usize>,
    by_end: BTreeMap<StreamId, usize>,
    /// The lane whose cipher was made last, by whom, if the other side had made one of that key before.
    last_made: Option<(NodeIndex, usize)>,
    /// A record was sealed on it and nothing is written yet.
    unbound: Option<usize>,
    /// Nodes that may turn.
    pub(super) turncoats: BTreeMap<NodeIndex, Turncoat>,
}

impl Wire {
    fn lane(&mut self, key: &[u8; KEY_LEN]) -> usize {
        let running = self.running;
        if let Some(&lane) = self.by_key.get(key) {
            self.last_made = Some((running, lane));
            return lane;
        }
        let lane = self.lanes.len();
        self.lanes.push(Lane::new(*key));
        self.by_key.insert(*key, lane);
        // A connector makes both its ciphers in one go, the one that the answerer has already first.
        if let Some((maker, twin)) = self.last_made.take()
            && maker == running
            && self.lanes[twin].twin.is_none()
        {
            self.lanes[twin].twin = Some(lane);
            (self.lanes[lane].twin, self.lanes[lane].forward) = (Some(twin), false);
        }
        lane
    }

    /// The lane whose sender writes at `end`.
    pub(super) fn lane_at(&self, end: StreamId) -> Option<&Lane> {
        self.by_end.get(&end).map(|&lane| &self.lanes[lane])
    }

    /// Lanes with their sender's ends, of one sender.
    pub(super) fn lanes_of(&self, node: NodeIndex) -> Vec<(StreamId, usize)> {
        let all = self.by_end.iter().map(|(&end, &lane)| (end, lane));
        all.filter(|&(_, lane)| self.lanes[lane].sender == Some(node)).collect()
    }

    /// Whether a node does what it wants by now.
    pub(super) fn has_turned(&self, node: NodeIndex) -> bool {
        self.turncoats.get(&node).is_some_and(Turncoat::has_turned)
    }

    /// Whether any node does.
    pub(super) fn has_any_turned(&self) -> bool {
        self.turncoats.values().any(Turncoat::has_turned)
    }

    /// A record is about to be sealed; answers by how much its nonce is to be greater.
    fn handle_sealed(&mut self, at: usize, nonce: u64, text: &mut [u8]) -> u64 {
        let sender = self.running;
        let lane = &mut self.lanes[at];
        lane.sender = Some(sender);
        text.as_chunks().0.iter().for_each(|cell| lane.check_order(sender, cell));
        if let Some(turncoat) = self.turncoats.get_mut(&sender) {
            turncoat.handle_sending(&mut self.lanes, at, text.as_chunks_mut().0);
        }
        let lane = &mut self.lanes[at];
        text.as_chunks().0.iter().for_each(|cell| lane.count_sent(cell));
        lane.next = nonce + 1;
        lane.left = record_len(text.len() / CELL_LEN);
        self.unbound = Some(at);
        lane.shift
    }

    fn handle_opened(&mut self, at: usize, text: &[u8]) {
        let keeps_onions = self.turncoats.contains_key(&self.running);
        let lane = &mut self.lanes[at];
        for cell in text.as_chunks().0 {
            lane.count_received(cell);
            if keeps_onions && cell[4] == Command::OPEN.value() {
                lane.onions.entry(circuit_of(cell)).or_default().extend_from_slice(&cell[5..]);
            }
        }
    }

    /// Something is about to be written at a link's end.
    pub(super) fn bind(&mut self, end: StreamId) {
        if let Some(lane) = self.unbound.take() {
            self.by_end.insert(end, lane);
        }
    }

    /// These bytes of a node's are about to be written to a link.
    pub(super) fn mangle(&mut self, node: NodeIndex, bytes: &mut [u8]) {
        if let Some(turncoat) = self.turncoats.get_mut(&node) {
            turncoat.mangle(bytes);
        }
    }

    /// So many bytes were written there; answers the records that go behind them.
    pub(super) fn handle_written(&mut self, end: StreamId, len: usize) -> Vec<Vec<u8>> {
        let Some(&lane) = self.by_end.get(&end) else { return Vec::new() };
        let lane = &mut self.lanes[lane];
        lane.left = lane.left.saturating_sub(len);
        if lane.left == 0 { std::mem::take(&mut lane.extra) } else { Vec::new() }
    }

    /// Puts a record of one cell behind what the sender has sealed last; answers it if it can go at once.
    pub(super) fn inject(&mut self, at: usize, mut cell: CellBytes) -> Option<Vec<u8>> {
        let lane = &mut self.lanes[at];
        lane.count_sent(&cell);
        let tag = PortableAead::new(&lane.key).seal(lane.next + lane.shift, &mut cell);
        lane.shift += 1;
        let len = (CELL_LEN + TAG_LEN) as u16;
        let record = [&len.to_be_bytes()[..], &cell, &tag].concat();
        if lane.left == 0 {
            return Some(record);
        }
        lane.extra.push(record);
        None
    }
}

/// The cipher that every node would use, and a pair of eyes.
pub(crate) struct WatchedAead {
    lane: Option<usize>,
    cipher: PortableAead,
}

impl RecordAead for WatchedAead {
    fn new(key: &[u8; KEY_LEN]) -> Self {
        Self { lane: with(|wire| wire.lane(key)), cipher: PortableAead::new(key) }
    }

    fn seal(&self, nonce: u64, buffer: &mut [u8]) -> [u8; TAG_LEN] {
        let shift = self.lane.and_then(|lane| with(|wire| wire.handle_sealed(lane, nonce, buffer)));
        self.cipher.seal(nonce + shift.unwrap_or_default(), buffer)
    }

    fn open(&self, nonce: u64, buffer: &mut [u8], tag: &[u8; TAG_LEN]) -> Result<(), OpenFailed> {
        self.cipher.open(nonce, buffer, tag)?;
        if let Some(lane) = self.lane {
            with(|wire| wire.handle_opened(lane, buffer));
        }
        Ok(())
    }
}
