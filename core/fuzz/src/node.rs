//! A node in the hands of its neighbours and of the outside: whatever comes, in whatever order, its books are in order
//! after every step ([`Node::audit`]), and what they say of every circuit, link and cell is what a plain model beside it says (`model`),
//! which also says what every cell that comes has to be answered with, and whether the node may send what it sends. It keeps to the
//! credit that it was given, conversations carry what was said in them, and when all is over nothing is left.
//!
//! Onions are not really peeled here (that is [`super::onion`]): what a job yields is chosen by the script, too.

mod model;
mod outside;
mod peer;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use bulbil_core::circuit::LinkId;
use bulbil_core::circuit::index::IndexSlot;
use bulbil_core::circuit::pool::PoolSlot;
use bulbil_core::crypto::cgo::HopIndex;
use bulbil_core::crypto::kem::KeyEpoch;
use bulbil_core::crypto::onion::{HopKeys, Instruction, OnionRejected, Peeled};
use bulbil_core::crypto::replay::ReplayTag;
use bulbil_core::node::{
    Config, ConversationId, LinkWish, Memory, Node, NodeCircuit, OriginSlot, Patience, PeerLimits, PortSlot, Usage,
    Violation,
};
use bulbil_core::relay::onions::{OnionIndex, OnionSlot};
use bulbil_core::time::Instant;
use bulbil_core::wire::cell::{self, CELL_LEN, Cell, CreditWriter};
use bulbil_core::wire::handshake::Hello;
use bulbil_core::wire::message::{BeginOptions, MESSAGE_LEN};
use bulbil_core::wire::{CircuitId, CloseReason, Command, EndReason, Message, NodeId, Service, Target};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use self::model::{Asked, Heard, Model, Peeled as Opened, Said, alike};
use self::outside::Conversation;
use self::peer::{Circuit, Peer, limits, seeds};
use super::script::Script;

const LINKS: usize = 4;
const CIRCUITS: usize = 6;
const CELLS: usize = 64;
const ONIONS: usize = 3;
const ORIGINS: usize = 2;
/// The credit that the node gives every circuit from the beginning.
const CREDIT: u16 = 8;
/// Enough for every way in which few circuits can interact.
const STEPS_MAX: usize = 400;

struct World<'m> {
    node: Node<'m>,
    model: Model,
    now: Instant,
    peers: BTreeMap<LinkId, Peer>,
    links_made: u16,
    /// Onions that are being opened: whose each is, and its number in the model.
    jobs: Vec<(OnionIndex, (u16, u32), u64)>,
    conversations: Vec<(ConversationId, Conversation)>,
    /// What the node has asked for and not yet got.
    wishes: VecDeque<(LinkId, LinkWish)>,
    /// What was said on circuits that are gone.
    history: BTreeMap<(u16, u32), Vec<u8>>,
    /// The circuit that asks for a service: one a run, so that it is known whose it is.
    service: Option<(u16, u32)>,
    /// What targets answered on circuits.
    answers: BTreeMap<(u16, u32), Vec<u8>>,
}

/// The input is a [`Script`] of what happens to a node.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    let roles = script.byte().unwrap_or_default();
    let config = Config {
        node: NodeId([1; 32]),
        relay: roles & 1 == 0,
        exit: roles & 2 == 0,
        limits: limits(4, CREDIT),
        window_max: model::WINDOW_MAX,
        circuits_per_link: model::CIRCUITS_PER_LINK as u32,
        onions_per_link: model::ONIONS_PER_LINK as u16,
        half_open_links: 3,
        patience: Patience::DEFAULT,
    };
    let mut links: Vec<_> = (0..LINKS).map(|_| PortSlot::EMPTY).collect();
    let mut circuits: Vec<_> = (0..CIRCUITS).map(|_| NodeCircuit::EMPTY).collect();
    let mut index: Vec<_> = (0..(4 * CIRCUITS).next_power_of_two()).map(|_| IndexSlot::default()).collect();
    let mut cells: Vec<_> = (0..CELLS).map(|_| PoolSlot::EMPTY).collect();
    let mut onions: Vec<_> = (0..ONIONS).map(|_| OnionSlot::EMPTY).collect();
    let mut origins: Vec<_> = (0..ORIGINS).map(|_| OriginSlot::EMPTY).collect();
    let (mut current, mut previous) = ([0; 16], [0; 16]);
    let memory = Memory {
        links: &mut links,
        circuits: &mut circuits,
        index: &mut index,
        cells: &mut cells,
        onions: &mut onions,
        origins: &mut origins,
        replay: [&mut current, &mut previous],
    };
    let node = Node::new(config, memory, &mut ChaCha20Rng::seed_from_u64(1)).expect("the configuration is sound");
    let mut world = World {
        node,
        model: Model::new(roles & 1 == 0, roles & 2 == 0),
        now: Instant::default(),
        peers: BTreeMap::new(),
        links_made: 0,
        jobs: Vec::new(),
        conversations: Vec::new(),
        wishes: VecDeque::new(),
        history: BTreeMap::new(),
        service: None,
        answers: BTreeMap::new(),
    };
    for _ in 0..STEPS_MAX {
        let up = world.links_up();
        if world.step(&mut script).is_none() {
            break;
        }
        world.drop_displaced(&up);
        world.audit();
    }
    world.end();
}

impl World<'_> {
    fn audit(&mut self) {
        assert_eq!(self.node.audit(), Ok(()));
        assert_eq!(self.node.audit_patience(self.now), Ok(()));
        self.model.compare(&self.node);
        let usage = self.node.usage();
        assert_eq!(usage.links, self.peers.len() + self.wanted(), "{usage:?}");
        assert!(usage.circuits <= CIRCUITS && usage.onions <= ONIONS && usage.origins <= ORIGINS, "{usage:?}");
        assert!(usage.cells_held <= usage.cells_reserved && usage.cells_reserved <= CELLS, "{usage:?}");
        assert!(self.jobs.len() <= usage.onions);
    }

    /// Links that the node wants and has not asked for yet.
    fn wanted(&self) -> usize {
        self.node.usage().links - self.peers.len()
    }

    fn step(&mut self, script: &mut Script<'_>) -> Option<()> {
        match script.byte()? % 16 {
            0 => self.accept(script)?,
            1 | 2 => self.open(script)?,
            3 => self.take_job(),
            4 | 5 => self.return_job(script)?,
            6 | 7 => self.say(script)?,
            8 => self.send_junk(script)?,
            9 => self.grant(script)?,
            10 => {
                let (link, id) = self.pick(script)?;
                let reason = CloseReason::from_code(script.byte()? % 9).ok()?;
                if self.circuit(link, id).is_some() {
                    let mut bytes = [0; CELL_LEN];
                    cell::emit_close(&mut bytes, CircuitId::new(id)?, reason);
                    self.deliver(link, &mut bytes, Said::Noise, true);
                    self.forget(link, id);
                }
            }
            11 => {
                let link = self.pick_link(script)?;
                let mut bytes = [0; CELL_LEN];
                let raw = script.bytes(24);
                bytes[..raw.len()].copy_from_slice(raw);
                self.deliver_raw(link, &mut bytes);
            }
            12 => {
                let wishes = script.byte()?;
                self.serve(script, 1 + usize::from(wishes % 8))?;
            }
            13 => self.talk(script)?,
            14 => match script.byte()? {
                0..=1 => {
                    self.node.stop();
                    self.model.stop();
                }
                2..=3 => {
                    self.node.handle_rotation();
                    self.model.rotate();
                }
                4..=63 => self.open_own(script)?,
                choice => {
                    self.now = Instant::from_millis(self.now.millis() + u64::from(choice) * u64::from(choice) * 20);
                    let due = self.node.poll_timeout().is_some_and(|tick| tick <= self.now);
                    self.model.time(self.now, due);
                    self.node.handle_timeout(self.now);
                }
            },
            _ => {
                let link = self.pick_link(script)?;
                if self.peers.contains_key(&link) {
                    self.drop_link(link);
                }
            }
        }
        Some(())
    }

    fn pick_link(&self, script: &mut Script<'_>) -> Option<LinkId> {
        let at = usize::from(script.byte()?).checked_rem(self.peers.len()).unwrap_or_default();
        // No link is no reason to end the script; 0 is as good as any number then.
        Some(self.peers.keys().nth(at).copied().unwrap_or_default())
    }

    /// A circuit on a link, or one that never was.
    fn pick(&self, script: &mut Script<'_>) -> Option<(LinkId, u32)> {
        let link = self.pick_link(script)?;
        let choice = usize::from(script.byte()?);
        let Some(peer) = self.peers.get(&link) else { return Some((link, 1)) };
        let at = choice.checked_rem(peer.circuits.len()).unwrap_or_default();
        Some((link, peer.circuits.keys().nth(at).copied().unwrap_or(1)))
    }

    fn circuit(&mut self, link: LinkId, id: u32) -> Option<&mut Circuit> {
        self.peers.get_mut(&link)?.circuits.get_mut(&id)
    }

    fn by_number(&mut self, (number, id): (u16, u32)) -> Option<&mut Circuit> {
        self.peers.values_mut().find(|peer| peer.number == number)?.circuits.get_mut(&id)
    }

    fn add_peer(&mut self, link: LinkId, outward: bool) {
        let number = self.links_made;
        self.links_made += 1;
        let peer = Peer {
            number,
            outward,
            limits: None,
            hello_seen: false,
            rogue: false,
            last_id: 0,
            parts_seen: 0,
            circuits: BTreeMap::new(),
        };
        self.model.number(link, number);
        assert!(self.peers.insert(link, peer).is_none(), "a link's number was given away twice");
    }

    fn accept(&mut self, script: &mut Script<'_>) -> Option<()> {
        let choice = script.byte()?;
        let accepted = self.node.accept_link(self.now);
        self.model.accepted(accepted);
        let Some(link) = accepted else { return Some(()) };
        self.add_peer(link, false);
        if choice < 16 {
            return Some(());
        }
        self.node.handle_link_answered(link);
        self.model.answered(link);
        self.audit_model();
        let limits = limits(1 + u16::from(choice % 4), 1 + u16::from(choice));
        let mut bytes = [0; CELL_LEN];
        cell::emit_header(&mut bytes, None, Command::HELLO);
        Hello { limits }.emit(cell::body_mut(&mut bytes));
        self.deliver(link, &mut bytes, Said::Noise, true);
        self.peers.get_mut(&link)?.limits = Some(limits);
        Some(())
    }

    /// Sends some cells of an onion.
    fn open(&mut self, script: &mut Script<'_>) -> Option<()> {
        let link = self.pick_link(script)?;
        let choice = script.byte()?;
        let Some(peer) = self.peers.get_mut(&link).filter(|peer| !peer.outward) else { return Some(()) };
        let Some(credit) = peer.limits.map(|limits| limits.credit.value()) else { return Some(()) };
        let unfinished = peer.circuits.iter().find(|(_, circuit)| circuit.parts < 10).map(|(&id, _)| id);
        let fresh = peer.last_id.checked_add(1 + u32::from(choice & 1));
        let Some(id) = unfinished.or(fresh) else { return Some(()) };
        if unfinished.is_none() {
            peer.last_id = id;
            let seeds = seeds((peer.number, id));
            peer.circuits.insert(id, Circuit::new(u32::from(CREDIT), u32::from(credit), 0, seeds));
        }
        // Mostly all of it.
        let parts = if choice < 0xc0 { 10 } else { 1 + usize::from(choice % 10) };
        for _ in 0..parts {
            let Some(peer) = self.peers.get_mut(&link) else { break };
            let number = peer.number;
            let Some(circuit) = peer.circuits.get_mut(&id).filter(|circuit| circuit.parts < 10) else { break };
            circuit.parts += 1;
            let mut bytes = [0; CELL_LEN];
            cell::emit_header(&mut bytes, CircuitId::new(id), Command::OPEN);
            cell::body_mut(&mut bytes)[..2].copy_from_slice(&number.to_be_bytes());
            cell::body_mut(&mut bytes)[2..6].copy_from_slice(&id.to_be_bytes());
            self.deliver(link, &mut bytes, Said::Noise, false);
        }
        Some(())
    }

    fn take_job(&mut self) {
        let job =
            self.node.poll_job().map(|(job, onion)| (job, *onion.first_chunk::<6>().expect("an onion is longer")));
        let number = self.model.job(job.map(|(_, label)| label));
        if let (Some((job, [high, low, id @ ..])), Some(number)) = (job, number) {
            self.jobs.push((job, (u16::from_be_bytes([high, low]), u32::from_be_bytes(id)), number));
        }
    }

    fn return_job(&mut self, script: &mut Script<'_>) -> Option<()> {
        if self.jobs.is_empty() {
            self.take_job();
        }
        let (at, choice) = (usize::from(script.byte()?), script.byte()?);
        if self.jobs.is_empty() {
            return Some(());
        }
        let (job, name, number) = self.jobs.remove(at % self.jobs.len());
        let [forward, backward] = seeds(name);
        let next = |to: u8| Instruction::Next { address: address(to), node: NodeId([to; 32]) };
        let instruction = match choice {
            // Back to the node itself.
            0..=3 => next(1),
            4..=79 => next(2 + choice % 3),
            _ => Instruction::Last,
        };
        let tag = if choice & 0x1f == 0x1f { 0 } else { u64::from(name.0) << 32 | u64::from(name.1) };
        let peeled = Peeled {
            instruction,
            keys: HopKeys { forward: (*forward.as_bytes()).into(), backward: (*backward.as_bytes()).into() },
            replay_tag: ReplayTag::from_bytes(tag.to_be_bytes()),
            epoch: if choice == 0xfe { KeyEpoch::FIRST.next() } else { KeyEpoch::FIRST },
        };
        if let Some(circuit) = self.by_number(name) {
            circuit.exits = instruction == Instruction::Last;
        }
        let next = match instruction {
            Instruction::Next { node, .. } => Some(node.0[0]),
            Instruction::Last => None,
        };
        let opened = Opened { next, tag, epoch: if choice == 0xfe { 2 } else { 1 }, keys: name };
        let rejected = choice == 0xff;
        let peeled = if rejected { Err(OnionRejected::NotAuthentic) } else { Ok(peeled) };
        self.node.handle_peeled(job, peeled, self.now);
        self.model.peeled(number, (!rejected).then_some(opened), &self.node);
        Some(())
    }

    /// An honest client says something.
    fn say(&mut self, script: &mut Script<'_>) -> Option<()> {
        let (link, id) = self.pick(script)?;
        let (choice, len) = (script.byte()?, usize::from(script.byte()?));
        let Some(peer) = self.peers.get_mut(&link) else { return Some(()) };
        let (number, outward) = (peer.number, peer.outward);
        let Some(circuit) = peer.circuits.get_mut(&id) else { return Some(()) };
        if outward {
            return Some(());
        }
        let data = vec![circuit.said.len() as u8 ^ choice; 1 + len];
        let mut target =
            Target::from(SocketAddr::new([10, (number >> 8) as u8, number as u8, id.min(255) as u8].into(), 80));
        if !circuit.begun && choice & 0x1c == 0x1c && self.service.is_none() {
            self.service = Some((number, id));
            circuit.service = true;
            target = Target::Service(Service::Phonebook);
        }
        let message = match choice {
            _ if !circuit.begun => {
                circuit.begun = true;
                let options = BeginOptions { sign: choice & 1 != 0, once: choice & 2 != 0 };
                Message::Begin { options, target, first: &data[1..] }
            }
            0..=15 => Message::Fin,
            16..=23 => Message::End(EndReason::Cancelled),
            24..=47 => Message::Drop,
            // Out of turn.
            48..=51 => Message::Begin { options: BeginOptions::default(), target, first: &[] },
            _ => Message::Data(&data),
        };
        let said = match &message {
            Message::Begin { options: BeginOptions { sign, once }, target, first } => Said::Begin {
                service: matches!(target, Target::Service(_)),
                sign: *sign,
                once: *once,
                first: first.len(),
            },
            Message::Data(data) => Said::Data(data.len()),
            Message::Fin => Said::Fin,
            Message::End(_) => Said::End,
            _ => Said::Drop,
        };
        match message {
            Message::Begin { first, .. } if choice / 4 != 12 || circuit.said.is_empty() => {
                circuit.said.extend_from_slice(first);
            }
            Message::Data(data) if !circuit.finished => circuit.said.extend_from_slice(data),
            Message::Drop => {}
            Message::Fin if !circuit.finished => circuit.finished = true,
            // Ends the conversation: the rest is not for the target.
            _ => circuit.finished = true,
        }
        let mut bytes = [0; CELL_LEN];
        let body = cell::body_mut(&mut bytes);
        let room: &mut [u8; MESSAGE_LEN] = body.last_chunk_mut()?;
        message.emit(room).expect("the message is sound");
        circuit.forward.originate(HopIndex::new(0)?, Command::RELAY, body).expect("the path has a hop");
        cell::emit_header(&mut bytes, CircuitId::new(id), Command::RELAY);
        self.send_relay(link, id, &mut bytes, said);
        Some(())
    }

    fn send_junk(&mut self, script: &mut Script<'_>) -> Option<()> {
        let (link, id) = self.pick(script)?;
        let fill = script.byte()?;
        let mut bytes = [fill; CELL_LEN];
        cell::emit_header(&mut bytes, CircuitId::new(id), Command::RELAY);
        self.send_relay(link, id, &mut bytes, Said::Noise);
        Some(())
    }

    /// A relay cell comes, within its sender's room or beyond.
    fn send_relay(&mut self, link: LinkId, id: u32, bytes: &mut [u8; CELL_LEN], said: Said) {
        let Some(circuit) = self.circuit(link, id) else { return };
        // Relay cells come behind the whole onion and within the room.
        if circuit.parts == 10 && circuit.room > 0 {
            circuit.room -= 1;
            return self.deliver(link, bytes, said, false);
        }
        let late = self.node.counters().late;
        let taken = self.hand(link, bytes, said);
        assert!(taken.is_err() || self.node.counters().late > late, "a cell that may not come");
        if taken.is_err() {
            self.drop_link(link);
        }
    }

    fn grant(&mut self, script: &mut Script<'_>) -> Option<()> {
        let (link, id) = self.pick(script)?;
        let cells = u16::from(script.byte()?) + 1;
        let Some(circuit) = self.circuit(link, id) else { return Some(()) };
        circuit.credit += u32::from(cells);
        if circuit.credit > u32::from(u16::MAX) {
            circuit.credit -= u32::from(cells);
            return Some(());
        }
        let mut bytes = [0; CELL_LEN];
        CreditWriter::new(&mut bytes).push(CircuitId::new(id)?, cells.try_into().ok()?).ok()?;
        self.deliver(link, &mut bytes, Said::Noise, true);
        Some(())
    }

    /// A cell comes that the protocol allows; only a flood of refusals may cost the link.
    fn deliver(&mut self, link: LinkId, bytes: &mut [u8; CELL_LEN], said: Said, certain: bool) {
        match self.hand(link, bytes, said) {
            Ok(()) => {}
            Err(Violation::Flood) if !certain => self.drop_link(link),
            Err(Violation::OutOfTurn) if self.is_closing(link) => self.drop_link(link),
            Err(_) if self.peers.get(&link).is_some_and(|peer| peer.rogue) => self.drop_link(link),
            Err(error) => panic!("{error}, but the cell was honest"),
        }
    }

    /// A cell comes; the node's answer to it is the model's.
    fn hand(&mut self, link: LinkId, bytes: &mut [u8; CELL_LEN], said: Said) -> Result<(), Violation> {
        let expected = self.model.cell(link, *bytes, said);
        let answer = self.node.handle_cell(link, bytes, self.now);
        assert!(alike(expected, answer), "the model says {expected:?}, the node {answer:?}");
        answer
    }

    fn audit_model(&mut self) {
        self.model.compare(&self.node);
    }

    /// Whether the node has decided to close the link, or has given its place to another, and its owner has not heard of that.
    fn is_closing(&mut self, link: LinkId) -> bool {
        if !self.node.knows_link(link) {
            return true;
        }
        while let Some(wish) = self.node.poll_link() {
            self.wishes.push_back(wish);
        }
        self.wishes.contains(&(link, LinkWish::Close))
    }

    /// A cell comes that may be anything.
    fn deliver_raw(&mut self, link: LinkId, bytes: &mut [u8; CELL_LEN]) {
        if !self.peers.contains_key(&link) {
            return;
        }
        let copy = *bytes;
        if self.hand(link, bytes, Said::Noise).is_err() {
            return self.drop_link(link);
        }
        // What it changed on either side cannot be told from here: the circuits that it could mean are nobody's now.
        let mut copy = copy;
        let Some(peer) = self.peers.get_mut(&link) else { return };
        match Cell::parse(&mut copy) {
            Ok(Cell::Hello(body)) => peer.limits = Hello::parse(body).ok().map(|hello| hello.limits),
            Ok(Cell::Open(id, _)) => {
                peer.rogue = true;
                peer.last_id = peer.last_id.max(id.value());
                let credit = peer.limits.map_or(0, |limits| u32::from(limits.credit.value()));
                let new = || Circuit::new(u32::from(CREDIT), credit, 0, seeds((peer.number, id.value())));
                let circuit = peer.circuits.entry(id.value()).or_insert_with(new);
                circuit.parts += 1;
            }
            Ok(Cell::Relay(id, _)) => {
                if let Some(circuit) = peer.circuits.get_mut(&id.value()) {
                    circuit.room = circuit.room.saturating_sub(1);
                }
            }
            Ok(Cell::Credit(entries)) => {
                for (id, cells) in entries {
                    if let Some(circuit) = peer.circuits.get_mut(&id.value()) {
                        circuit.credit += u32::from(cells.get());
                    }
                }
            }
            Ok(Cell::Close(id, _)) => self.forget(link, id.value()),
            Ok(Cell::Padding) | Err(_) => {}
        }
    }

    fn forget(&mut self, link: LinkId, id: u32) {
        let Some(peer) = self.peers.get_mut(&link) else { return };
        if let Some(circuit) = peer.circuits.remove(&id) {
            self.history.insert((peer.number, id), circuit.said);
        }
    }

    fn drop_link(&mut self, link: LinkId) {
        if let Some(peer) = self.peers.remove(&link) {
            for (id, circuit) in peer.circuits {
                self.history.insert((peer.number, id), circuit.said);
            }
        }
        // Without a peer it is one that the node wanted and gave up.
        self.model.link_down(link);
        self.node.handle_link_down(link, self.now);
        self.audit_model();
    }

    /// Links in use, which the node has not decided to close.
    fn links_up(&self) -> Vec<LinkId> {
        self.peers.keys().copied().filter(|&link| self.node.peer_limits(link).is_some()).collect()
    }

    /// Forgets links whose places the node has given to others; of those that were `up`, only what nobody misses may go.
    fn drop_displaced(&mut self, up: &[LinkId]) {
        let displaced = self.peers.keys().copied().filter(|&link| !self.node.knows_link(link));
        for link in displaced.collect::<Vec<_>>() {
            let peer = &self.peers[&link];
            let over = peer.circuits.values().all(|circuit| circuit.closed);
            assert!(peer.rogue || over || !up.contains(&link), "its peer has not heard the end of a circuit");
            self.drop_link(link);
        }
    }

    /// Does some of what the node wants for its links.
    fn serve(&mut self, script: &mut Script<'_>, wishes: usize) -> Option<()> {
        for _ in 0..wishes {
            let Some((link, wish)) = self.wishes.pop_front().or_else(|| self.node.poll_link()) else { break };
            match wish {
                // The place of a link that took too long may be another's by now.
                LinkWish::Connect { .. } if !self.node.knows_link(link) => {}
                LinkWish::Connect { address: at, node } => {
                    self.add_peer(link, true);
                    let node = node.unwrap_or(NodeId([9; 32]));
                    assert_eq!(at, address(node.0[0]), "another address than the onion's");
                    match script.byte()? {
                        0..=31 => self.drop_link(link),
                        // It takes for ever.
                        32..=47 => {}
                        choice => {
                            let limits = limits(1 + u16::from(choice % 4), u16::from(choice));
                            let peer = self.peers.get_mut(&link)?;
                            peer.limits = Some(limits);
                            let (record_cells, credit) = (limits.record_cells.value(), limits.credit.value());
                            let circuits = 1 + u32::from(choice & 3);
                            self.node.handle_link_up(
                                link,
                                node,
                                PeerLimits { record_cells, credit, circuits },
                                self.now,
                            );
                            self.model.up(link, credit, circuits);
                            self.audit_model();
                        }
                    }
                }
                LinkWish::Send => self.drain(link, 1 + usize::from(script.byte()? / 8)),
                LinkWish::Close => self.drop_link(link),
            }
        }
        Some(())
    }

    /// Takes up to `records` records of cells off the node.
    fn drain(&mut self, link: LinkId, records: usize) {
        for _ in 0..records {
            let mut out = [[0xa5; CELL_LEN]; 8];
            let count = self.node.poll_cells(link, &mut out, self.now);
            let Some(peer) = self.peers.get_mut(&link) else {
                return assert_eq!(count, 0, "a link that is gone sends");
            };
            let Some(limits) = peer.limits else { return assert_eq!(count, 0, "a link that is not up sends") };
            assert!(count <= usize::from(limits.record_cells.value()));
            for cell in &mut out[..count] {
                self.model.sent(link, *cell);
                peer.receive(cell, limits.credit.value());
            }
            for (&id, circuit) in peer.circuits.iter().filter(|(id, circuit)| **id < 255 && !circuit.told.is_empty()) {
                let answers = self.answers.get(&(peer.number, id));
                let told = answers.is_some_and(|answers| answers.starts_with(&circuit.told));
                assert!(told, "the client was told something else than the target said");
            }
            if count == 0 {
                self.model.silent(link);
                return;
            }
            self.audit();
        }
    }

    /// Everybody goes: nothing may be left.
    fn end(&mut self) {
        while self.jobs.len() < ONIONS {
            let before = self.jobs.len();
            self.take_job();
            if self.jobs.len() == before {
                break;
            }
        }
        for (job, _, number) in core::mem::take(&mut self.jobs) {
            self.node.handle_peeled(job, Err(OnionRejected::NotAuthentic), self.now);
            self.model.peeled(number, None, &self.node);
            self.audit_model();
        }
        while let Some((link, wish)) = self.wishes.pop_front().or_else(|| self.node.poll_link()) {
            match wish {
                LinkWish::Connect { .. } if !self.node.knows_link(link) => {}
                LinkWish::Connect { .. } => self.add_peer(link, true),
                LinkWish::Send => {}
                LinkWish::Close => self.drop_link(link),
            }
        }
        for link in self.peers.keys().copied().collect::<Vec<_>>() {
            self.drop_link(link);
            assert_eq!(self.node.audit(), Ok(()));
        }
        while let Some(name) = self.node.poll_conversation() {
            if !self.conversations.iter().any(|(known, _)| *known == name) && self.node.knows(name) {
                self.conversations.push((name, Conversation::default()));
            }
        }
        // More often than the pool has cells, and with room for all of them.
        for round in 0..CELLS + 4 {
            for at in (0..self.conversations.len()).rev() {
                if round == 1 {
                    // Whoever still has no answer from the target gets one.
                    let (name, _) = &self.conversations[at];
                    self.node.handle_failed(*name, EndReason::Reset, self.now);
                    self.model.failed(*name);
                }
                self.output(at, 4096, 0);
                assert_eq!(self.node.audit(), Ok(()));
                self.audit_model();
            }
        }
        assert_eq!(self.node.usage(), Usage::default(), "something is left");
    }
}

fn address(of: u8) -> SocketAddr {
    SocketAddr::new([192, 0, 2, of].into(), 9000)
}
