//! Nodes that follow the protocol until a chosen moment. Such a node is a real one, and what it sends passes through here before it is
//! sealed: so whatever is done to it is done under the right keys, where a link's cipher protects nobody.
//!
//! With the onions that it has opened or built, a turncoat has relay-cell keys too. From the first cell of a circuit it keeps a second
//! set of their states ([`Shadow`]): one takes the node's own layers off, one puts them on again, and in between lies the message.

use std::collections::{BTreeMap, HashMap};

use bulbil_core::crypto::cgo::ClientBackward;
use bulbil_core::crypto::cgo::{ClientForward, HopIndex, RelayBackward, RelayForward, SEED_LEN, Seed, TAG_LEN};
use bulbil_core::crypto::onion::{HopKeys, ONION_LEN};
use bulbil_core::wire::Command;
use bulbil_core::wire::cell::{BODY_LEN, CELL_LEN, CREDIT_ENTRIES, CellBody, HEADER_LEN};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng};

use super::wire::{CellBytes, Lane, circuit_of};

/// Cells that a turncoat remembers of a lane.
const HISTORY: usize = 24;

/// What a turncoat does to a cell that it was to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trick {
    /// Alters a few bits of its body.
    Garble,
    /// Sends an earlier one in its place.
    Replay,
    /// Sends it on another circuit.
    Cross,
    /// Grants nothing.
    Starve,
    /// Grants what there is not.
    Overgrant,
    /// Gives it another command.
    Command,
    /// Does not send it.
    Silence,
    /// Sends random bytes in its place.
    Noise,
    /// Sends it before the one that was to go first.
    Swap,
    /// Closes no circuit.
    Linger,
    /// Says something else in it, under the right keys.
    Message,
    /// Alters a byte of what is written to the link, handshakes included.
    Mangle,
}

impl Trick {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Garble,
        Self::Replay,
        Self::Cross,
        Self::Starve,
        Self::Overgrant,
        Self::Command,
        Self::Silence,
        Self::Noise,
        Self::Swap,
        Self::Linger,
        Self::Message,
        Self::Mangle,
    ];
}

/// What a node does once it has turned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Treason {
    /// Its tricks.
    pub tricks: Vec<Trick>,
    /// One cell in so many falls to one of them, at random.
    pub one_in: u64,
}

/// A circuit's keys where a turncoat has them, in step with the node's own.
enum Shadow {
    /// The turncoat is a hop of it: cells to the client.
    Hop(ClientBackward, RelayBackward),
    /// It is the turncoat's own: cells away from it.
    Client(Vec<RelayForward>, ClientForward),
}

type Seeds = ([u8; SEED_LEN], [u8; SEED_LEN]);

fn seeds_of(keys: &HopKeys) -> Seeds {
    (*keys.forward, *keys.backward)
}

/// A node that may turn.
pub(super) struct Turncoat {
    rng: ChaCha8Rng,
    treason: Option<Treason>,
    /// Keys of the circuits whose onions it has opened, by the onion.
    hops: HashMap<Vec<u8>, Seeds>,
    /// Keys of its own circuits.
    paths: HashMap<Vec<u8>, Vec<Seeds>>,
    shadows: BTreeMap<(usize, u32), Option<Shadow>>,
}

impl Turncoat {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            treason: None,
            hops: HashMap::new(),
            paths: HashMap::new(),
            shadows: BTreeMap::new(),
        }
    }

    /// It turns now.
    pub(super) fn turn(&mut self, treason: Treason) {
        self.treason = Some(treason);
    }

    pub(super) const fn has_turned(&self) -> bool {
        self.treason.is_some()
    }

    /// The node has opened an onion.
    pub(super) fn learn_hop(&mut self, onion: &[u8], keys: &HopKeys) {
        self.hops.insert(onion.to_vec(), seeds_of(keys));
    }

    /// The node has built an onion.
    pub(super) fn learn_path(&mut self, onion: &[u8], keys: &[HopKeys]) {
        self.paths.insert(onion.to_vec(), keys.iter().map(seeds_of).collect());
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound.max(1)
    }

    fn wants(&mut self, trick: Trick) -> bool {
        let Some(treason) = &self.treason else { return false };
        let (has, one_in) = (treason.tricks.contains(&trick), treason.one_in);
        has && self.below(one_in) == 0
    }

    /// The node sends these cells: does to them what it likes.
    pub(super) fn handle_sending(&mut self, lanes: &mut [Lane], at: usize, cells: &mut [CellBytes]) {
        for place in 0..cells.len() {
            let cell = &mut cells[place];
            let circuit = circuit_of(cell);
            if cell[4] == Command::OPEN.value() {
                lanes[at].onions.entry(circuit).or_default().extend_from_slice(&cell[HEADER_LEN..]);
            }
            if cell[4] == Command::RELAY.value() {
                if lanes[at].forward {
                    lanes[at].first_relayed.entry(circuit).or_insert(*cell);
                }
                let forge = self.wants(Trick::Message);
                self.pass(lanes, at, circuit, body_of(cell), forge);
            }
            if self.below(3) == 0 {
                let many = lanes[at].history.len();
                if many < HISTORY {
                    lanes[at].history.push(*cell);
                } else {
                    lanes[at].history[self.below(many as u64) as usize] = *cell;
                }
            }
            let Some(treason) = &self.treason else { continue };
            let (tricks, one_in) = (treason.tricks.clone(), treason.one_in);
            if self.below(one_in) == 0 {
                let trick = tricks[self.below(tricks.len() as u64) as usize];
                self.play(trick, lanes, at, cells, place);
            }
        }
    }

    fn play(&mut self, trick: Trick, lanes: &[Lane], at: usize, cells: &mut [CellBytes], place: usize) {
        let cell = &mut cells[place];
        let has = |command: Command| cell[4] == command.value();
        match trick {
            Trick::Garble => {
                let (from, mask) = (HEADER_LEN + self.below(BODY_LEN as u64) as usize, 1 << self.below(8));
                cell[from] ^= mask;
            }
            Trick::Replay => {
                let history = &lanes[at].history;
                if !history.is_empty() {
                    *cell = history[self.below(history.len() as u64) as usize];
                }
            }
            Trick::Cross => {
                let circuit = self.some_circuit(lanes, at);
                cell[..4].copy_from_slice(&circuit.to_be_bytes());
            }
            Trick::Starve if has(Command::CREDIT) => *cell = [0; CELL_LEN],
            Trick::Overgrant => *cell = self.credit(lanes, at),
            Trick::Command => cell[4] = self.below(7) as u8,
            Trick::Silence => *cell = [0; CELL_LEN],
            Trick::Noise => {
                self.rng.fill_bytes(cell);
                cell[4] = self.below(8) as u8;
            }
            Trick::Swap if place > 0 => cells.swap(place - 1, place),
            Trick::Linger if has(Command::CLOSE) => *cell = [0; CELL_LEN],
            Trick::Message if !has(Command::RELAY) => {
                if let Some(rogue) = self.rogue_message(lanes, at) {
                    *cell = rogue;
                }
            }
            // It has no use for this cell; what becomes of messages was decided before.
            Trick::Starve | Trick::Swap | Trick::Linger | Trick::Message | Trick::Mangle => {}
        }
    }

    /// A circuit that there is, or was, or will be.
    fn some_circuit(&mut self, lanes: &[Lane], at: usize) -> u32 {
        let twin = lanes[at].twin.map(|twin| &lanes[twin].circuits);
        let known: Vec<u32> = lanes[at].circuits.iter().chain(twin.into_iter().flatten()).copied().collect();
        match self.below(12) {
            0 => self.below(200) as u32,
            1 => known.iter().max().map_or(1, |last| last + 1),
            _ if known.is_empty() => 1,
            _ => known[self.below(known.len() as u64) as usize],
        }
    }

    /// Grants as they come to mind.
    fn credit(&mut self, lanes: &[Lane], at: usize) -> CellBytes {
        let mut cell = [0; CELL_LEN];
        cell[4] = Command::CREDIT.value();
        let most = if self.below(4) == 0 { CREDIT_ENTRIES as u64 + 2 } else { 2 };
        let count = 1 + self.below(most) as usize;
        cell[5] = count as u8;
        for entry in cell[6..].chunks_exact_mut(6).take(count) {
            entry[..4].copy_from_slice(&self.some_circuit(lanes, at).to_be_bytes());
            let cells = if self.below(3) == 0 { self.below(1 << 16) } else { self.below(20) };
            entry[4..].copy_from_slice(&(cells as u16).to_be_bytes());
        }
        cell
    }

    /// Alters a byte of what the node writes, if it likes to.
    pub(super) fn mangle(&mut self, bytes: &mut [u8]) {
        if self.wants(Trick::Mangle)
            && let Some(byte) = bytes.len().checked_sub(1).map(|last| self.below(last as u64 + 1) as usize)
        {
            bytes[byte] ^= 1 << self.below(8);
        }
    }

    /// Cells that nobody asked for: an onion that the node has sent before, with the first relay cell behind it, as a new circuit; or one cell of any
    /// kind.
    pub(super) fn rogue_cells(&mut self, lanes: &[Lane], at: usize) -> Vec<CellBytes> {
        if self.below(4) > 0 || !lanes[at].forward {
            return vec![self.rogue_cell(lanes, at)];
        }
        let mine = lanes.iter().filter(|lane| lane.forward && lane.sender == lanes[at].sender);
        let mut whole: Vec<_> = mine
            .flat_map(|lane| lane.onions.iter().map(|(circuit, onion)| (onion, lane.first_relayed.get(circuit))))
            .filter(|(onion, _)| onion.len() == ONION_LEN)
            .collect();
        if whole.is_empty() {
            return vec![self.rogue_cell(lanes, at)];
        }
        let (onion, relay) = whole.swap_remove(self.below(whole.len() as u64) as usize);
        let circuit = lanes[at].circuits.last().map_or(1, |last| last.saturating_add(1));
        let opens = onion.as_chunks::<BODY_LEN>().0.iter().map(|body| {
            let mut cell = [0; CELL_LEN];
            cell[4] = Command::OPEN.value();
            *body_of(&mut cell) = *body;
            cell
        });
        let mut cells: Vec<CellBytes> = opens.chain(relay.copied()).collect();
        cells.iter_mut().for_each(|cell| cell[..4].copy_from_slice(&circuit.to_be_bytes()));
        cells
    }

    /// A cell that nobody asked for.
    fn rogue_cell(&mut self, lanes: &[Lane], at: usize) -> CellBytes {
        let mut cell = [0; CELL_LEN];
        let circuit = self.some_circuit(lanes, at);
        match self.below(10) {
            0 => {
                self.rng.fill_bytes(&mut cell);
                cell[4] = self.below(8) as u8;
                return cell;
            }
            1 | 2 => return self.credit(lanes, at),
            3 | 4 => {
                let history = &lanes[at].history;
                if !history.is_empty() {
                    return history[self.below(history.len() as u64) as usize];
                }
            }
            5..8 => {
                if let Some(cell) = self.rogue_message(lanes, at) {
                    return cell;
                }
            }
            8 => {
                cell[4] = Command::CLOSE.value();
                cell[5] = self.below(10) as u8;
            }
            _ => {
                self.rng.fill_bytes(&mut cell);
                cell[4] = [Command::OPEN, Command::RELAY][self.below(2) as usize].value();
            }
        }
        cell[..4].copy_from_slice(&circuit.to_be_bytes());
        cell
    }

    /// A message of the turncoat's own, under the right keys of one of its circuits.
    fn rogue_message(&mut self, lanes: &[Lane], at: usize) -> Option<CellBytes> {
        let known: Vec<u32> = lanes[at].circuits.iter().copied().collect();
        let circuit = *known.get(self.below(known.len() as u64) as usize)?;
        let mut cell = [0; CELL_LEN];
        cell[..4].copy_from_slice(&circuit.to_be_bytes());
        cell[4] = Command::RELAY.value();
        let mut message = [0; BODY_LEN];
        self.forge(&mut message);
        let hop = self.below(4);
        match self.shadow(lanes, at, circuit)? {
            Shadow::Hop(_, out) => out.originate(Command::RELAY, &mut message),
            Shadow::Client(views, out) => {
                let hop = HopIndex::new(hop as usize % views.len())?;
                out.originate(hop, Command::RELAY, &mut message).ok()?;
            }
        }
        *body_of(&mut cell) = message;
        Some(cell)
    }

    /// The turncoat's own states of a circuit on a lane, if it has the keys.
    fn shadow(&mut self, lanes: &[Lane], at: usize, circuit: u32) -> Option<&mut Shadow> {
        let Self { hops, paths, shadows, .. } = self;
        let find = || {
            let seed = |seed: &[u8; SEED_LEN]| Seed::from_bytes(*seed);
            let lane = &lanes[at];
            if lane.forward {
                let path = paths.get(lane.onions.get(&circuit)?)?;
                let seeds: Vec<_> = path.iter().map(|(forward, _)| seed(forward)).collect();
                let views = seeds.iter().map(RelayForward::new).collect();
                Some(Shadow::Client(views, ClientForward::new(&seeds).ok()?))
            } else {
                let (_, backward) = hops.get(lanes[lane.twin?].onions.get(&circuit)?)?;
                let view = ClientBackward::new(&[seed(backward)]).ok()?;
                Some(Shadow::Hop(view, RelayBackward::new(&seed(backward))))
            }
        };
        shadows.entry((at, circuit)).or_insert_with(find).as_mut()
    }

    /// Takes off the node's own layers, forges what is below if that is wanted, and puts them on again.
    fn pass(&mut self, lanes: &[Lane], at: usize, circuit: u32, body: &mut CellBody, forge: bool) {
        let mut forged = [0; BODY_LEN];
        if forge {
            self.forge(&mut forged);
        }
        let message = |body: &mut CellBody| {
            if forge {
                body[TAG_LEN..].copy_from_slice(&forged[TAG_LEN..]);
            }
        };
        match self.shadow(lanes, at, circuit) {
            Some(Shadow::Hop(view, out)) => {
                if view.receive(Command::RELAY, body).is_some() {
                    message(body);
                    out.originate(Command::RELAY, body);
                } else {
                    out.pass(Command::RELAY, body);
                }
            }
            Some(Shadow::Client(views, out)) => {
                let hop = views.iter_mut().position(|view| view.receive(Command::RELAY, body));
                if let Some(hop) = hop.and_then(HopIndex::new) {
                    message(body);
                    out.originate(hop, Command::RELAY, body).expect("the hop is on the path");
                }
            }
            None => {}
        }
    }

    /// A relay message, valid or not, behind the place of the tag.
    fn forge(&mut self, body: &mut CellBody) {
        self.rng.fill_bytes(body);
        let message = &mut body[TAG_LEN..];
        let (command, len) = match self.below(10) {
            0 => {
                // Port 80 of a name that stands for nobody.
                message[3..11].copy_from_slice(&[0, 3, 4, b't', b'.', b'x', b'y', 0]);
                message[11] = 80;
                (1, 9 + self.below(20))
            }
            1 => {
                message[3] = 1;
                (2, 7)
            }
            2 | 3 => (3, 1 + self.below(490)),
            4 => (4, 0),
            5 => {
                message[3] = self.below(16) as u8;
                (5, 1)
            }
            6 => (6, 0),
            7 => (7, 264),
            8 => (self.below(9), self.below(491)),
            _ => return,
        };
        message[0] = command as u8;
        message[1..3].copy_from_slice(&(len as u16).to_be_bytes());
        if self.below(20) > 0 {
            message[3 + len as usize..].fill(0);
        }
    }
}

fn body_of(cell: &mut CellBytes) -> &mut CellBody {
    cell.last_chunk_mut().expect("a body is shorter than a cell")
}
