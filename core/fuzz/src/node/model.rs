//! A node in plain lists: which circuits there are and on which links, what waits where, who may still send how much, and so what a peer may
//! send now and what the node may. It is told what happens to the node, works out for itself what has to come of it (`PROTOCOL.md`
//! sections 5 to 7, 9 and 10), and is compared with the node's own books after every step.
//!
//! Three things the protocol leaves to the node; here the model takes its word, within bounds: how large windows are, which deadlines
//! circuits have, and which link a new circuit takes.

mod arrive;
mod compare;
mod end;
mod send;
mod talk;

pub(super) use self::arrive::alike;
pub(super) use self::talk::{Asked, Heard};

use std::collections::{BTreeMap, HashSet, VecDeque};

use bulbil_core::circuit::LinkId;
use bulbil_core::circuit::table::Side;
use bulbil_core::node::{ConversationId, Node};
use bulbil_core::time::Instant;
use bulbil_core::wire::CloseReason;

use super::{CELLS, CIRCUITS, CREDIT, LINKS, ONIONS, ORIGINS};

/// Cells that carry one onion.
const PARTS: usize = 10;
/// Places of one link's circuits and onions, and refusals that wait for it.
pub(super) const CIRCUITS_PER_LINK: usize = 4;
pub(super) const ONIONS_PER_LINK: usize = 2;
const REFUSALS: usize = 32;
/// The largest window that the node gives.
pub(super) const WINDOW_MAX: u16 = 32;
/// Tags that a replay set of 16 places takes.
const TAGS: usize = 12;

/// Whom a circuit reaches at one of its ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Nobody,
    Link(LinkId, u32),
    /// A target, or an application of the node's own.
    Outside,
}

/// What a relay cell says to whoever takes its layers off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// Nothing that anybody understands.
    Noise,
    Begin {
        service: bool,
        sign: bool,
        once: bool,
        first: usize,
    },
    Data(usize),
    Fin,
    End,
    Drop,
}

/// One direction of a circuit.
#[derive(Debug, Default)]
struct Flow {
    waiting: VecDeque<Said>,
    /// What the sender may still send, and what it has not been told of.
    promised: usize,
    due: usize,
    /// What the receiver lets the node send.
    credit: u32,
}

impl Flow {
    fn room(&self) -> usize {
        self.waiting.len() + self.promised + self.due
    }

    /// Nothing more comes from the sender.
    fn stop(&mut self) {
        (self.promised, self.due) = (0, 0);
    }

    /// Nor does anything leave.
    fn close(&mut self) {
        self.stop();
        self.waiting.clear();
    }

    fn push(&mut self, said: Said) {
        self.promised = self.promised.checked_sub(1).expect("the model has seen to the room");
        self.waiting.push_back(said);
    }
}

/// How far a conversation with a target has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    AwaitingBegin,
    Asking,
    Connecting,
    Open,
    Unsigned,
    Signing,
    Over,
}

#[derive(Debug)]
struct Exit {
    stage: Stage,
    sign: bool,
    once: bool,
    service: bool,
    /// The client has said FIN, and the target has been told.
    finished: bool,
    told: bool,
    /// The target has said that it has finished.
    answered: bool,
    /// Bytes that the target has of the first cell that waits.
    taken: usize,
}

#[derive(Debug)]
enum Role {
    Refused,
    Opening { closed: bool },
    Passing { answered: bool },
    Exiting(Exit),
    Client { finished: bool },
}

#[derive(Debug)]
struct Circuit {
    /// What the node calls it, once it is known.
    name: Option<ConversationId>,
    role: Role,
    inward: End,
    outward: End,
    forward: Flow,
    backward: Flow,
    ending: Option<CloseReason>,
    deadline: Instant,
    /// Whether the client and this hop are in step, so that the one understands the other.
    in_step: bool,
    /// The onion that opens it or leaves, by number.
    onion: Option<u64>,
}

impl Circuit {
    /// Whether relay cells may follow the onion.
    fn onion_has_left(&self) -> bool {
        !matches!(self.role, Role::Opening { .. }) && self.onion.is_none()
    }

    fn end(&mut self, outward: bool) -> &mut End {
        if outward { &mut self.outward } else { &mut self.inward }
    }

    /// What leaves at that end.
    fn leaving(&mut self, outward: bool) -> &mut Flow {
        if outward { &mut self.forward } else { &mut self.backward }
    }

    /// What comes in at that end.
    fn entering(&mut self, outward: bool) -> &mut Flow {
        self.leaving(!outward)
    }

    fn is_at(&self, link: LinkId) -> bool {
        [self.inward, self.outward].iter().any(|end| matches!(end, End::Link(at, _) if *at == link))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Arriving(usize),
    Waiting,
    Working,
    Leaving(usize),
}

#[derive(Debug)]
struct Onion {
    number: u64,
    from: Option<LinkId>,
    progress: Progress,
    /// How its first part begins: tests write there whose it is.
    label: [u8; 6],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Shaking,
    AwaitingHello,
    /// And the credit that the peer gives every circuit.
    Up(u16),
    Closing,
}

#[derive(Debug)]
struct Line {
    number: Option<u16>,
    outward: bool,
    phase: Phase,
    /// Whom the node connects, and how many circuits that one allows.
    to: u8,
    allowed: usize,
    last_id: u32,
    parts: usize,
    arriving: Option<u64>,
    refusals: VecDeque<(u32, CloseReason)>,
    /// When the last circuit was refused.
    refused: Instant,
    hello_sent: bool,
}

impl Line {
    fn new(outward: bool, to: u8) -> Self {
        Self {
            number: None,
            outward,
            phase: Phase::Shaking,
            to,
            allowed: 0,
            last_id: 0,
            parts: 0,
            arriving: None,
            refusals: VecDeque::new(),
            refused: Instant::default(),
            hello_sent: false,
        }
    }

    fn credit(&self) -> u16 {
        if let Phase::Up(credit) = self.phase { credit } else { 0 }
    }
}

/// What the script has let a private-key operation yield.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peeled {
    /// The next hop; `None` for the last one.
    pub(super) next: Option<u8>,
    pub(super) tag: u64,
    pub(super) epoch: u64,
    /// Whose keys.
    pub(super) keys: (u16, u32),
}

pub(super) struct Model {
    relay: bool,
    exit: bool,
    stopping: bool,
    /// When time passed last.
    now: Instant,
    lines: BTreeMap<LinkId, Line>,
    circuits: Vec<Circuit>,
    /// Waiting and leaving ones in the order of their turns.
    onions: Vec<Onion>,
    onions_made: u64,
    epoch: u64,
    /// Tags of the current key and the one before it.
    seen: [HashSet<u64>; 2],
}

impl Model {
    pub(super) fn new(relay: bool, exit: bool) -> Self {
        Self {
            relay,
            exit,
            stopping: false,
            now: Instant::default(),
            lines: BTreeMap::new(),
            circuits: Vec::new(),
            onions: Vec::new(),
            onions_made: 0,
            epoch: 1,
            seen: [HashSet::new(), HashSet::new()],
        }
    }

    fn at(&self, link: LinkId, id: u32) -> Option<usize> {
        let there = End::Link(link, id);
        self.circuits.iter().position(|circuit| circuit.inward == there || circuit.outward == there)
    }

    fn named(&self, name: ConversationId) -> Option<usize> {
        self.circuits.iter().position(|circuit| circuit.name == Some(name))
    }

    fn onion(&mut self, number: u64) -> Option<&mut Onion> {
        self.onions.iter_mut().find(|onion| onion.number == number)
    }

    /// Puts an onion at the end of whatever line it waits in.
    fn queue_onion(&mut self, number: u64, progress: Progress) {
        if let Some(at) = self.onions.iter().position(|onion| onion.number == number) {
            let mut onion = self.onions.remove(at);
            onion.progress = progress;
            self.onions.push(onion);
        }
    }

    fn new_onion(&mut self, from: Option<LinkId>, progress: Progress, label: [u8; 6]) -> u64 {
        self.onions_made += 1;
        self.onions.push(Onion { number: self.onions_made, from, progress, label });
        self.onions_made
    }

    /// Cells of the pool that are taken or promised.
    fn reserved(&self) -> usize {
        self.circuits.iter().map(|circuit| circuit.forward.room() + circuit.backward.room()).sum()
    }

    fn has_room_for_a_circuit(&self) -> bool {
        self.circuits.len() < CIRCUITS
            && self.reserved() + 2 * usize::from(CREDIT) <= CELLS
            && self.onions.len() < ONIONS
    }

    fn circuits_at(&self, link: LinkId) -> usize {
        self.circuits.iter().filter(|circuit| circuit.is_at(link)).count()
    }

    pub(super) fn stop(&mut self) {
        self.stopping = true;
    }

    pub(super) fn rotate(&mut self) {
        self.epoch += 1;
        self.seen.swap(0, 1);
        self.seen[0].clear();
    }

    /// A peer has connected, or found no place.
    pub(super) fn accepted(&mut self, link: Option<LinkId>) {
        let Some(link) = link else { return };
        assert!(!self.stopping, "a link for a node that is stopping");
        assert!(self.lines.insert(link, Line::new(false, 0)).is_none(), "a link's name was given away twice");
    }

    pub(super) fn number(&mut self, link: LinkId, number: u16) {
        self.lines.get_mut(&link).expect("the node's wish is for a link that there is").number = Some(number);
    }

    pub(super) fn answered(&mut self, link: LinkId) {
        if let Some(line) = self.lines.get_mut(&link) {
            line.phase = Phase::AwaitingHello;
        }
    }

    /// A link that the node has connected is up.
    pub(super) fn up(&mut self, link: LinkId, credit: u16, allowed: u32) {
        let Some(line) = self.lines.get_mut(&link) else { return };
        line.phase = Phase::Up(credit);
        line.allowed = allowed as usize;
        for circuit in &mut self.circuits {
            if matches!(circuit.outward, End::Link(at, _) if at == link) {
                circuit.forward.credit += u32::from(credit);
            }
        }
    }

    /// The next onion is handed out to be opened, if one waits.
    pub(super) fn job(&mut self, label: Option<[u8; 6]>) -> Option<u64> {
        let next = self.onions.iter_mut().find(|onion| onion.progress == Progress::Waiting);
        assert_eq!(next.as_ref().map(|onion| onion.label), label, "model's and node's next onion to open");
        let onion = next?;
        onion.progress = Progress::Working;
        Some(onion.number)
    }

    /// The link that a new circuit of the node's took, with its id there, and that it was allowed to; `None` if it found no place.
    fn extension(&mut self, to: u8, node: &Node<'_>) -> Option<(LinkId, u32)> {
        let last = |link| self.lines.get(&link).map_or(0, |line| line.last_id);
        let Some(books) =
            node.link_books().find(|books| books.side == Side::Outward && books.last_id == last(books.link) + 1)
        else {
            assert_eq!(node.usage().links, LINKS, "no link for a circuit, though there is a place for one");
            return None;
        };
        let on_it = self.circuits_at(books.link);
        let line = self.lines.entry(books.link).or_insert_with(|| Line::new(true, to));
        assert!(line.outward && line.to == to && line.phase != Phase::Closing, "{line:?} does not lead to {to}");
        assert!(!matches!(line.phase, Phase::Up(_)) || on_it < line.allowed, "more circuits than {line:?} allows");
        line.last_id += 1;
        Some((books.link, line.last_id))
    }

    /// A circuit of the node's own was opened or refused.
    pub(super) fn opened(&mut self, opened: Result<ConversationId, bool>, hops: usize, to: u8, node: &Node<'_>) {
        let own = self.circuits.iter().filter(|circuit| matches!(circuit.role, Role::Client { .. })).count();
        let may = !self.stopping && own < ORIGINS && self.has_room_for_a_circuit() && (1..=4).contains(&hops);
        let name = match opened {
            Ok(name) => name,
            Err(busy) => return assert!(!may || (busy && node.usage().links == LINKS), "refused for no reason"),
        };
        assert!(may, "there is no room for a circuit of the node's own");
        let (link, id) = self.extension(to, node).expect("an open circuit is on a link");
        let room = usize::from(CREDIT);
        let mut forward = Flow { promised: room, credit: u32::from(self.lines[&link].credit()), ..Flow::default() };
        forward.push(Said::Noise);
        let onion = self.new_onion(None, Progress::Leaving(0), [0x77; 6]);
        self.circuits.push(Circuit {
            name: Some(name),
            role: Role::Client { finished: false },
            inward: End::Outside,
            outward: End::Link(link, id),
            forward,
            backward: Flow { promised: room, ..Flow::default() },
            ending: None,
            deadline: Instant::default(),
            in_step: false,
            onion: Some(onion),
        });
    }
}
