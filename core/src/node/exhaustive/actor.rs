//! One of the three nodes with what is around it: a real [`Node`], driven as [`crate::driver`] drives it, one step at a time.
//!
//! A node cannot be copied, so a step is taken by doing everything again from the beginning and then the step. What may differ
//! between two pasts and matter to the future is in [`Seen::digest`]: two pasts with the same digest are one state.

use core::net::SocketAddr;
use std::collections::hash_map::DefaultHasher;
use std::format;
use std::hash::{Hash, Hasher};
use std::string::String;
use std::vec::Vec;

use super::{CONTROL_ROOM, Case, Upset};
use crate::circuit::LinkId;
use crate::circuit::pool::{Pool, PoolSlot};
use crate::circuit::table::{End, Side};
use crate::crypto::kem::KeyEpoch;
use crate::crypto::onion::{HopKeys, Instruction, ONION_CELLS, ONION_LEN, Peeled};
use crate::crypto::replay::ReplayTag;
use crate::crypto::testing::rng;
use crate::node::role::Role;
use crate::node::{
    Ask, Config, ConversationId, LinkWish, Node, Opening, Outcome, Output, Patience, PeerLimits, Resources, Violation,
};
use crate::relay::onions::{OnionIndex, Stage as OnionStage};
use crate::time::Instant;
use crate::wire::cell::{self, CELL_LEN, Cell, Command};
use crate::wire::handshake::{Hello, InitialCredit, LinkLimits, RecordCells};
use crate::wire::message::BeginOptions;
use crate::wire::{EndReason, NodeId, Target};

const NOW: Instant = Instant::from_millis(0);

/// Cells that travel together: a record. An onion's ten cells do, or its parts; everything else travels alone.
pub(super) type Record = Vec<[u8; CELL_LEN]>;

/// A record's number in the table of all records that were ever sent.
pub(super) type RecordId = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Client,
    Relay,
    Exit,
}

impl Place {
    pub(super) const ALL: [Self; 3] = [Self::Client, Self::Relay, Self::Exit];

    const fn number(self) -> u8 {
        self as u8 + 1
    }

    fn id(self) -> NodeId {
        NodeId([self.number(); 32])
    }

    fn address(self) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, self.number()], 1))
    }

    /// The room that the neighbours are promised for a circuit.
    const fn window(self, case: &Case) -> u16 {
        case.windows[self as usize]
    }

    pub(super) const fn has(self, side: Side) -> bool {
        !matches!((self, side), (Self::Client, Side::Inward) | (Self::Exit, Side::Outward))
    }
}

/// What can happen to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Input {
    /// The owner takes a record for the link at this side, which had something to send when last looked at.
    Send(Side),
    /// A record comes in.
    Deliver(Side, RecordId),
    /// The owner looks after a conversation that has called.
    Attend,
    /// The owner overhears the call: a fault.
    Oversleep,
    /// The exit's owner has reached the target.
    Connect,
    /// The owner takes an onion to be opened.
    TakeJob,
    /// The owner has opened it.
    Peel,
    /// The outside says one cell's worth.
    Write,
    /// The outside has nothing more to say.
    Finish,
    /// The outside takes one cell's worth.
    Read,
    /// The link at this side is gone.
    Down(Side),
    /// The link that the relay wants in place of one that went down is not to be had.
    Unreachable,
    /// A closing circuit's deadline passes.
    Expire,
    /// The outside is gone: the application cancels, the target resets.
    LetGo,
}

/// The outside of a conversation: an application that knows what it says from the beginning, or a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Outside {
    name: Option<ConversationId>,
    pub(super) said: u8,
    pub(super) finish_said: bool,
    pub(super) heard: u8,
    pub(super) finish_heard: bool,
    /// How the node said that it ended.
    pub(super) over: Option<Outcome>,
    /// The conversation ended otherwise: our own side has let go.
    pub(super) gone: bool,
    connecting: bool,
    /// When last looked at, something was there to be taken.
    offered: bool,
    /// When last looked at, there was room for what we say.
    room: bool,
}

impl Outside {
    /// Whether there is, or was, a conversation.
    pub(super) const fn is_known(&self) -> bool {
        self.name.is_some()
    }

    /// Whether there is, or was, a conversation and nobody has told the outside that it ended.
    pub(super) const fn is_waiting(&self) -> bool {
        self.name.is_some() && self.over.is_none() && !self.gone
    }
}

/// A circuit's books at one of its links: what the node may send there, and what may come from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Books {
    pub(super) credit: u32,
    pub(super) promised: u16,
}

/// What a node is like after some inputs.
pub(super) struct Seen {
    /// All that decides how it goes on.
    pub(super) digest: Vec<u8>,
    /// What the last input sent.
    pub(super) record: Option<Record>,
    /// What can happen next, besides a record that comes in and a link that goes down.
    pub(super) inputs: Vec<Input>,
    pub(super) outside: Outside,
    /// By side; `None` without a circuit there, or when that is ending.
    pub(super) books: [Option<Books>; 2],
    /// Circuits, onions and reserved room are gone.
    pub(super) clean: bool,
}

/// What must not happen within one node.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It finds fault with a neighbour.
    Violation(Violation),
    /// Its books disagree with each other.
    Audit(&'static str),
    /// It holds or has promised more than it may.
    Room(String),
    /// A conversation hears what was not said, or its end before that.
    Heard(String),
}

pub(super) const SIDES: [Side; 2] = [Side::Inward, Side::Outward];

type Memory = Resources<2, 1, 4, 16, 1, 1, 8>;

struct Actor<'m> {
    place: Place,
    case: &'m Case,
    node: Node<'m>,
    /// By side.
    links: [Option<LinkId>; 2],
    /// The link has called and not yet been found to have nothing.
    calls: [bool; 2],
    /// A link that the owner is connecting.
    connecting: Option<LinkId>,
    outside: Outside,
    /// What relay cells came in and went out at each side: decides the state of the encryption.
    transcript: [DefaultHasher; 4],
}

/// Does `inputs` to a new node and answers what it is like then.
pub(super) fn run(place: Place, case: &Case, inputs: &[Input], records: &[Record]) -> Result<Seen, Fault> {
    let mut memory = std::boxed::Box::new(Memory::new());
    let own = usize::from(place.window(case));
    let capacity = match place {
        Place::Relay => 2 * own + case.spare,
        // A conversation's own direction has room for its control messages besides.
        Place::Client | Place::Exit => 2 * own + usize::from(CONTROL_ROOM),
    };
    let mut cells: Vec<_> = (0..capacity).map(|_| PoolSlot::EMPTY).collect();
    let mut actor = Actor::new(place, case, &mut memory, &mut cells);
    let mut record = None;
    for (at, &input) in inputs.iter().enumerate() {
        record = actor.step(input, records)?;
        // What came before was checked when it was new.
        if at + 1 == inputs.len() {
            actor.check()?;
        }
    }
    Ok(actor.seen(record))
}

impl<'m> Actor<'m> {
    fn new(place: Place, case: &'m Case, memory: &'m mut Memory, cells: &'m mut [PoolSlot]) -> Self {
        let own = place.window(case);
        let limits = |credit| LinkLimits {
            record_cells: RecordCells::new(ONION_CELLS as u16).unwrap(),
            credit: InitialCredit::new(credit).unwrap(),
        };
        let config = Config {
            node: place.id(),
            relay: place == Place::Relay,
            exit: place == Place::Exit,
            limits: limits(8),
            window_max: 0,
            circuits_per_link: 1,
            onions_per_link: 1,
            half_open_links: 1,
            patience: Patience::DEFAULT,
        };
        let mut node = Node::new(config, memory.lend(), &mut rng(1)).unwrap();
        // Windows smaller than any configuration may ask for, and no room in the pool beyond them.
        node.config.limits = limits(own);
        node.config.window_max = case.window_max;
        node.pool = Pool::new(cells);
        let mut actor = Self {
            place,
            case,
            node,
            links: [None; 2],
            calls: [false; 2],
            connecting: None,
            outside: Outside::default(),
            transcript: core::array::from_fn(|_| DefaultHasher::new()),
        };
        actor.link_up(limits);
        if place == Place::Client {
            actor.open();
        }
        actor.note_calls();
        actor
    }

    /// Links are there from the beginning, and every HELLO is said.
    fn link_up(&mut self, limits: impl Fn(u16) -> LinkLimits) {
        let window = |place: Place| place.window(self.case);
        let before = match self.place {
            Place::Client => None,
            Place::Relay => Some(Place::Client),
            Place::Exit => Some(Place::Relay),
        };
        let after = match self.place {
            Place::Client => Some(Place::Relay),
            Place::Relay => Some(Place::Exit),
            Place::Exit => None,
        };
        if let Some(before) = before {
            let link = self.node.accept_link(NOW).unwrap();
            self.node.handle_link_answered(link);
            let mut hello = [0; CELL_LEN];
            cell::emit_header(&mut hello, None, Command::HELLO);
            Hello { limits: limits(window(before)) }.emit(cell::body_mut(&mut hello));
            self.node.handle_cell(link, &mut hello, NOW).unwrap();
            self.links[Side::Inward as usize] = Some(link);
        }
        if let Some(after) = after {
            let link = self.node.connect_link(after.address(), Some(after.id()), NOW).unwrap();
            let wish = self.node.poll_link();
            assert!(matches!(wish, Some((asked, LinkWish::Connect { .. })) if asked == link));
            let credit = window(after);
            let limits = PeerLimits { record_cells: ONION_CELLS as u16, credit, circuits: 1 };
            self.node.handle_link_up(link, after.id(), limits, NOW);
            let mut hello = [[0; CELL_LEN]; 1];
            assert_eq!(
                (self.node.poll_cells(link, &mut hello, NOW), self.node.poll_cells(link, &mut hello, NOW)),
                (1, 0)
            );
            self.links[Side::Outward as usize] = Some(link);
        }
        while self.node.poll_link().is_some() {}
    }

    /// The client opens its one circuit.
    fn open(&mut self) {
        let target = Target::from(SocketAddr::from(([198, 51, 100, 1], 80)));
        let opening = Opening {
            node: Place::Relay.id(),
            address: Place::Relay.address(),
            onion: &[0; ONION_LEN],
            keys: &[keys(Place::Relay), keys(Place::Exit)],
            target: &target,
            options: BeginOptions { sign: false, once: self.case.once },
            first: &[],
        };
        let name = self.node.open(&opening, NOW).unwrap();
        self.widen();
        self.outside.name = Some(name);
        self.service();
    }

    /// A conversation's own direction has room for its control messages besides, and never loses it.
    fn widen(&mut self) {
        let (index, _) = self.node.table.iter().next().unwrap();
        let entry = self.node.table.get_mut(index).unwrap();
        let own = if self.place == Place::Client { &mut entry.forward } else { &mut entry.backward };
        own.widen(&mut self.node.pool, CONTROL_ROOM);
        self.node.config.limits.credit = InitialCredit::new(self.place.window(self.case) + CONTROL_ROOM).unwrap();
    }

    fn step(&mut self, input: Input, records: &[Record]) -> Result<Option<Record>, Fault> {
        let mut record = None;
        match input {
            Input::Send(side) => record = self.send(side),
            Input::Deliver(side, id) => self.deliver(side, &records[id as usize])?,
            Input::Attend => {
                let name = self.node.poll_conversation().unwrap();
                self.outside.name = Some(name);
                self.service();
            }
            Input::Oversleep => drop(self.node.poll_conversation()),
            Input::Connect => {
                self.outside.connecting = false;
                let name = self.outside.name.unwrap();
                self.node.handle_connected(name, SocketAddr::from(([198, 51, 100, 1], 80)), NOW);
                self.service();
            }
            Input::TakeJob => drop(self.node.poll_job().map(|(job, _)| job)),
            Input::Peel => self.peel(),
            Input::Write => {
                let taken = self.node.handle_input(self.outside.name.unwrap(), &[self.outside.said], NOW);
                self.outside.said += taken as u8;
                self.look_for_room();
            }
            Input::Finish => {
                self.node.handle_input_finished(self.outside.name.unwrap(), NOW);
                self.outside.finish_said = true;
                self.outside.room = false;
            }
            Input::Read => {
                let (name, mut byte) = (self.outside.name.unwrap(), [0xff]);
                let output = self.node.poll_output(name, &mut byte, NOW);
                if output == Output::Bytes(1) {
                    if byte != [self.outside.heard] {
                        return Err(Fault::Heard(format!("{byte:?} instead of {}", self.outside.heard)));
                    }
                    self.outside.heard += 1;
                    self.node.handle_written(name, 1, NOW);
                } else {
                    // What was offered may be gone by now.
                    self.hear(output);
                }
                self.service();
            }
            Input::Down(side) => {
                self.calls[side as usize] = false;
                if let Some(link) = self.links[side as usize].take() {
                    self.node.handle_link_down(link, NOW);
                }
            }
            Input::Unreachable => {
                let link = self.connecting.take().unwrap();
                self.node.handle_link_down(link, NOW);
            }
            Input::Expire => self.node.handle_timeout(NOW.after(Patience::DEFAULT.draining)),
            Input::LetGo => {
                let name = self.outside.name.unwrap();
                self.node.handle_failed(name, EndReason::Reset, NOW);
                self.node.close_conversation(name, self.case.upset == Upset::Leave, NOW);
                self.let_go();
            }
        }
        self.note_calls();
        Ok(record)
    }

    fn note_calls(&mut self) {
        while let Some((link, wish)) = self.node.poll_link() {
            match wish {
                LinkWish::Send => SIDES.into_iter().for_each(|side| {
                    self.calls[side as usize] |= self.links[side as usize] == Some(link);
                }),
                LinkWish::Connect { .. } => self.connecting = Some(link),
                LinkWish::Close => panic!("every link is up and needed"),
            }
        }
        for side in SIDES {
            // To be told that there is nothing to send changes nothing, whenever it is.
            let port = self.links[side as usize].and_then(|link| self.node.ports.get(link));
            if self.calls[side as usize]
                && port.is_some_and(|port| port.output.is_empty() && port.grants.is_empty() && port.leaving.is_empty())
            {
                assert!(self.send(side).is_none(), "nothing was listed");
            }
        }
    }

    fn send(&mut self, side: Side) -> Option<Record> {
        let link = self.links[side as usize]?;
        let mut cells = [[0; CELL_LEN]; ONION_CELLS];
        // An onion leaves in one record, or in two of which the case says where the first one ends; everything else leaves cell by cell.
        let leaves = self.node.ports.get(link).is_some_and(|port| self.node.onions.front(&port.leaving).is_some());
        let most = match self.node.onions.stage(OnionIndex::default()) {
            OnionStage::Leaving { cells: 0 } if leaves => self.case.first_cells,
            OnionStage::Leaving { cells } if leaves => ONION_CELLS - cells,
            _ => 1,
        };
        let len = self.node.poll_cells(link, &mut cells[..most], NOW);
        if len == 0 {
            self.calls[side as usize] = false;
            return None;
        }
        for cell in &cells[..len] {
            if cell[4] == Command::RELAY.value() {
                cell.hash(&mut self.transcript[side as usize]);
            }
        }
        Some(cells[..len].to_vec())
    }

    fn deliver(&mut self, side: Side, record: &Record) -> Result<(), Fault> {
        let Some(link) = self.links[side as usize] else { return Ok(()) };
        for cell in record {
            assert!(self.node.takes_cells(link), "nothing is refused here");
            let empty = self.node.table.is_empty();
            if cell[4] == Command::RELAY.value() {
                cell.hash(&mut self.transcript[2 + side as usize]);
            }
            self.node.handle_cell(link, &mut cell.clone(), NOW).map_err(Fault::Violation)?;
            if self.place == Place::Exit && empty && !self.node.table.is_empty() {
                self.widen();
            }
        }
        Ok(())
    }

    fn peel(&mut self) {
        let instruction = match self.place {
            Place::Exit => Instruction::Last,
            _ => Instruction::Next { address: Place::Exit.address(), node: Place::Exit.id() },
        };
        let peeled = Peeled {
            instruction,
            keys: keys(self.place),
            replay_tag: ReplayTag::from_bytes([1; 8]),
            epoch: KeyEpoch::FIRST,
        };
        self.node.handle_peeled(OnionIndex::default(), Ok(peeled), NOW);
    }

    /// What [`crate::driver`] does when a conversation has called or its stream is ready, but for the bytes themselves.
    fn service(&mut self) {
        let Some(name) = self.outside.name else { return };
        if self.outside.gone || !self.node.knows(name) {
            self.let_go();
            return;
        }
        if let Some(Ask::Connect(_)) = self.node.poll_ask(name) {
            self.outside.connecting = true;
        }
        loop {
            let output = self.node.poll_output(name, &mut [0; 1], NOW);
            self.hear(output);
            if output != Output::Finish {
                break;
            }
        }
        self.look_for_room();
    }

    fn hear(&mut self, output: Output) {
        self.outside.offered = matches!(output, Output::Bytes(_));
        match output {
            Output::Finish => self.outside.finish_heard = true,
            Output::Over(outcome) => {
                self.outside.over = Some(outcome);
                self.let_go();
            }
            Output::Nothing | Output::Bytes(_) => {}
        }
    }

    fn look_for_room(&mut self) {
        let room = self.outside.name.map_or(0, |name| self.node.input_room(name));
        self.outside.room = room > 0 && !self.outside.finish_said && !self.outside.gone;
    }

    fn let_go(&mut self) {
        let outside = &mut self.outside;
        (outside.connecting, outside.offered, outside.room, outside.gone) = (false, false, false, true);
    }

    /// What must hold after every step.
    fn check(&self) -> Result<(), Fault> {
        self.node.audit().map_err(Fault::Audit)?;
        let pool = &self.node.pool;
        if pool.held() > pool.reserved() || pool.reserved() > pool.capacity() {
            return Err(Fault::Room(format!("{} of {} of {}", pool.held(), pool.reserved(), pool.capacity())));
        }
        let own = self.place.window(self.case);
        for (_, entry) in self.node.table.iter() {
            let [forward, backward] = match self.place {
                Place::Client => [own + CONTROL_ROOM, own],
                Place::Relay => [own.max(self.case.window_max); 2],
                Place::Exit => [own, own + CONTROL_ROOM],
            };
            // One cell more, of its own, is what a node may add to say how a circuit ended.
            let farewell = u16::from(entry.farewell.is_some());
            for (flow, most) in [(&entry.forward, forward), (&entry.backward, backward)] {
                if flow.room() > most + farewell {
                    return Err(Fault::Room(format!("{flow:?}, and no more than {most} were granted")));
                }
            }
        }
        let (outside, said) = (&self.outside, self.case.said_to(self.place));
        if outside.heard > said || outside.finish_heard && outside.heard != said {
            return Err(Fault::Heard(format!("{outside:?}, and {said} cells were to be said")));
        }
        Ok(())
    }

    fn inputs(&self) -> Vec<Input> {
        let outside = &self.outside;
        let to_say = self.case.said_by(self.place);
        let job = self.node.onions.stage(OnionIndex::default());
        let leaves = match self.case.upset {
            Upset::Cancel | Upset::Leave => self.place == Place::Client,
            Upset::Reset => self.place == Place::Exit,
            _ => false,
        };
        let calls = !self.node.attention.is_empty();
        let mut inputs: Vec<_> = SIDES
            .into_iter()
            .filter(|&side| self.calls[side as usize] && self.links[side as usize].is_some())
            .map(Input::Send)
            .collect();
        let may = [
            (calls, Input::Attend),
            (outside.connecting, Input::Connect),
            (self.connecting.is_some(), Input::Unreachable),
            (job == OnionStage::Waiting, Input::TakeJob),
            (job == OnionStage::Working, Input::Peel),
            (outside.offered, Input::Read),
            (outside.room && outside.said < to_say, Input::Write),
            (outside.room && outside.said == to_say, Input::Finish),
            (leaves && outside.is_waiting(), Input::LetGo),
            (calls && self.case.upset == Upset::Oversleep, Input::Oversleep),
        ];
        inputs.extend(may.into_iter().filter_map(|(can, input)| can.then_some(input)));
        inputs
    }

    fn seen(&self, record: Option<Record>) -> Seen {
        let node = &self.node;
        let mut books = [None; 2];
        for (_, entry) in node.table.iter() {
            for (side, leaving, entering) in
                [(Side::Inward, &entry.backward, &entry.forward), (Side::Outward, &entry.forward, &entry.backward)]
            {
                if matches!(entry.end(side), End::Link(..)) && entry.farewell.is_none() {
                    books[side as usize] = Some(Books { credit: leaving.credit(), promised: entering.promised() });
                }
            }
        }
        Seen {
            digest: self.digest(),
            record,
            inputs: self.inputs(),
            outside: self.outside.clone(),
            books,
            clean: node.table.is_empty() && node.onions.is_empty() && node.pool.reserved() == 0,
        }
    }

    /// All books, in words: deadlines are left out because time stands still, and where in the pool a cell lies because it cannot matter.
    fn digest(&self) -> Vec<u8> {
        let node = &self.node;
        let mut text = format!("{:?} {:?} {:?} ", self.outside, self.calls, (self.links, self.connecting));
        text += &format!("{} {} {} ", node.pool.held(), node.pool.reserved(), node.attention.is_empty());
        text += &format!("{:?} ", node.onions.stage(OnionIndex::default()));
        for link in self.links.iter().flatten() {
            let Some(port) = node.ports.get(*link) else { continue };
            text += &format!("{:?} {} {:?} {} ", port.stage, port.circuits, port.arriving, port.onions);
            text += &format!("{} {} {} ", port.last_id, port.unsent, port.refusals.len());
            let listed = [port.output.is_empty(), port.grants.is_empty(), port.leaving.is_empty()];
            text += &format!("{listed:?} ");
        }
        for (index, entry) in node.table.iter() {
            text += &format!("{index:?} {:?} {:?} {:?} ", entry.inward, entry.outward, entry.farewell);
            for flow in [&entry.forward, &entry.backward] {
                let numbers = (flow.promised(), flow.room(), flow.credit(), flow.window());
                let mut cells = DefaultHasher::new();
                node.pool.iter(flow.waiting()).for_each(|body| body.hash(&mut cells));
                text += &format!("{} {numbers:?} {:x} ", flow.waiting().len(), cells.finish());
            }
            text += &match &entry.role {
                Role::Refused => String::from("refused"),
                Role::Opening { onion, closed } => format!("opening {onion:?} {closed}"),
                Role::Passing(hop, onion) => format!("passing {} {onion:?}", hop.is_answered()),
                Role::Exiting(hop, exit) => {
                    format!("exiting {} {:?} {:?}", hop.is_answered(), exit.stage(), exit.halves)
                }
                Role::Client(origin, onion) => {
                    let origin = node.origins[origin.0 as usize].0.as_ref().unwrap();
                    format!("client {:?} {:?} {:?} {onion:?}", origin.ended(), origin.reached(), origin.halves)
                }
            };
            for cells in &self.transcript {
                text += &format!(" {:x}", cells.finish());
            }
        }
        text.into_bytes()
    }
}

fn keys(place: Place) -> HopKeys {
    HopKeys { forward: [place.number(); 80].into(), backward: [0x10 + place.number(); 80].into() }
}

/// What a record does to the books of a link: relay cells, cells of credit, and whether a circuit is opened or closed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Burden {
    pub(super) relay: u32,
    pub(super) credit: u32,
    pub(super) open: bool,
    pub(super) close: bool,
}

pub(super) fn burden(record: &Record) -> Burden {
    let mut burden = Burden::default();
    for cell in record {
        match Cell::parse(&mut cell.clone()).unwrap() {
            Cell::Relay(..) => burden.relay += 1,
            Cell::Credit(entries) => burden.credit += entries.map(|(_, cells)| u32::from(cells.get())).sum::<u32>(),
            Cell::Open(..) => burden.open = true,
            Cell::Close(..) => burden.close = true,
            Cell::Hello(_) | Cell::Padding => {}
        }
    }
    burden
}
