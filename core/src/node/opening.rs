//! Circuits open: onions arrive, are opened, and go on to the next hop. `PROTOCOL.md` sections 6 and 7.

use core::net::SocketAddr;

use super::arrival::message_of;
use super::role::{OriginIndex, Role};
use super::{Node, Violation};
use crate::circuit::flow::Flow;
use crate::circuit::table::{Circuit, ConversationId, End, Side};
use crate::circuit::{CircuitIndex, LinkId};
use crate::client::origin::Origin;
use crate::crypto::cgo::{ClientBackward, ClientForward, HopIndex, PATH_MAX, SEED_LEN, Seed};
use crate::crypto::onion::{HopKeys, Instruction, ONION_CELLS, Onion, OnionRejected, Peeled};
use crate::crypto::replay;
use crate::relay::exit::Exit;
use crate::relay::hop::Hop;
use crate::relay::onions::{OnionIndex, Stage as OnionStage};
use crate::time::Instant;
use crate::wire::cell::{BODY_LEN, CellBody};
use crate::wire::message::{BeginOptions, Message};
use crate::wire::{CircuitId, CloseReason, Command, EndReason, NodeId, Target};

/// A circuit of our own to be opened.
pub struct Opening<'a> {
    /// The first hop.
    pub node: NodeId,
    /// Where it is reached.
    pub address: SocketAddr,
    /// The onion for it.
    pub onion: &'a Onion,
    /// The keys of every hop, first to last.
    pub keys: &'a [HopKeys],
    /// What the exit connects to.
    pub target: &'a Target,
    /// What is asked of the exit.
    pub options: BeginOptions,
    /// The first bytes for the target, at most what [`crate::wire::message::begin_room`] says fits into BEGIN.
    pub first: &'a [u8],
}

/// The same without onion and keys, which are made in place ([`Node::open_in_place`]).
pub struct Plan<'a> {
    /// The first hop.
    pub node: NodeId,
    /// Where it is reached.
    pub address: SocketAddr,
    /// What the exit connects to.
    pub target: &'a Target,
    /// What is asked of the exit.
    pub options: BeginOptions,
    /// The first bytes for the target, as in [`Opening`].
    pub first: &'a [u8],
}

/// Why a circuit of our own was not opened. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpenRefused {
    /// No place for another circuit, onion or link, or no room in the pool.
    Busy,
    /// The path has no hop or too many, the target cannot be spelled, or the first bytes are too many.
    Invalid,
    /// The node is stopping.
    Stopping,
}

impl core::fmt::Display for OpenRefused {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Busy => "no room for another circuit",
            Self::Invalid => "the path or the target is not valid",
            Self::Stopping => "the node is stopping",
        })
    }
}

impl Node<'_> {
    /// A cell of an onion came.
    pub(super) fn handle_open(
        &mut self,
        link: LinkId,
        circuit: CircuitId,
        body: &CellBody,
        now: Instant,
    ) -> Result<(), Violation> {
        let Some(port) = self.ports.get_mut(link) else { return Err(Violation::OutOfTurn) };
        if let Some((arriving, onion)) = port.arriving {
            if arriving != circuit {
                return Err(Violation::OutOfTurn);
            }
            port.parts += 1;
            if self.onions.handle_part(onion, body) {
                port.arriving = None;
            }
            return Ok(());
        }
        if circuit.value() == port.last_id {
            // The rest of an onion that we have refused or given up; there is no more to an onion than its cells.
            port.parts += 1;
            self.counters.late += 1;
            return if port.parts > ONION_CELLS { Err(Violation::OutOfTurn) } else { Ok(()) };
        }
        if circuit.value() < port.last_id {
            return Err(Violation::OutOfTurn);
        }
        (port.last_id, port.parts) = (circuit.value(), 1);
        match self.begin_arrival(link, circuit, now) {
            Ok(onion) => {
                let complete = self.onions.handle_part(onion, body);
                debug_assert!(!complete, "an onion has more than one cell");
                Ok(())
            }
            Err(reason) => {
                self.counters.busy += u64::from(reason == CloseReason::Busy);
                let idle = now.after(self.link_idle(Side::Inward));
                let Some(port) = self.ports.get_mut(link) else { return Ok(()) };
                // To its connector this is a circuit that ends: else the answerer would close first, and perhaps before the refusal has left.
                port.deadline = idle;
                port.refusals.push_back((circuit, reason)).map_err(|_| Violation::Flood)?;
                self.ports.touch(link);
                Ok(())
            }
        }
    }

    fn begin_arrival(&mut self, link: LinkId, id: CircuitId, now: Instant) -> Result<OnionIndex, CloseReason> {
        if self.stopping {
            return Err(CloseReason::Shutdown);
        }
        let deadline = now.after(self.config.patience.opening);
        let port = self.ports.get(link).ok_or(CloseReason::Protocol)?;
        let allowed = port.circuits < self.config.circuits_per_link && port.onions < self.config.onions_per_link;
        if !allowed || self.table.is_full() {
            return Err(CloseReason::Busy);
        }
        let credit = port.limits().map_or(0, |limits| limits.credit);
        let (forward, backward) = self.reserve_flows().ok_or(CloseReason::Busy)?;
        let mut circuit = Circuit {
            inward: End::Link(link, id),
            outward: End::Detached,
            forward,
            backward,
            farewell: None,
            deadline,
            role: Role::Opening { onion: OnionIndex::default(), closed: false },
        };
        let _initial_credit_fits = circuit.backward.handle_credit(credit);
        let index = self.table.insert(circuit).ok_or(CloseReason::Busy)?;
        let Some(onion) = self.onions.arrive(link, self.table.name(index)) else {
            self.discard(index);
            return Err(CloseReason::Busy);
        };
        if let Some(entry) = self.table.get_mut(index) {
            entry.role = Role::Opening { onion, closed: false };
        }
        let entered = self.index.insert(link, id, index);
        debug_assert!(entered, "ids on a link increase, and the index has room for every circuit");
        if let Some(port) = self.ports.get_mut(link) {
            port.arriving = Some((id, onion));
            port.circuits += 1;
            port.onions += 1;
        }
        self.arm(now);
        Ok(onion)
    }

    /// Reserves the least room that a circuit needs, in both directions.
    fn reserve_flows(&mut self) -> Option<(Flow, Flow)> {
        let room = self.config.limits.credit.value();
        let mut forward = Flow::open(&mut self.pool, room)?;
        match Flow::open(&mut self.pool, room) {
            Some(backward) => Some((forward, backward)),
            None => {
                forward.close(&mut self.pool);
                None
            }
        }
    }

    /// Removes a circuit that nobody has heard of.
    fn discard(&mut self, index: CircuitIndex) {
        if let Some(mut circuit) = self.table.remove(index) {
            circuit.forward.close(&mut self.pool);
            circuit.backward.close(&mut self.pool);
        }
    }

    /// The next onion to be opened with [`crate::crypto::onion::peel`], in place or in a copy.
    ///
    /// Every onion handed out must come back through [`Node::handle_peeled`].
    pub fn poll_job(&mut self) -> Option<(OnionIndex, &mut Onion)> {
        self.onions.poll_job()
    }

    /// Where an onion that was handed out lies, so that what was peeled elsewhere can be put back.
    pub fn job_onion(&mut self, job: OnionIndex) -> Option<&mut Onion> {
        self.onions.is_working(job).then(|| self.onions.bytes(job))
    }

    /// An onion was opened, or not. If it was, its place now holds the next hop's onion.
    pub fn handle_peeled(&mut self, job: OnionIndex, peeled: Result<Peeled, OnionRejected>, now: Instant) {
        if !self.onions.is_working(job) {
            return;
        }
        let index = self.onions.circuit(job).and_then(|name| self.table.find(name));
        let Some(index) = index.filter(|&index| self.table.get(index).is_some_and(|entry| entry.farewell.is_none()))
        else {
            // The circuit ended while its onion was being opened.
            self.free_onion(job);
            return;
        };
        let closed = matches!(self.table.get(index).map(|entry| &entry.role), Some(Role::Opening { closed: true, .. }));
        match self.accept_onion(job, index, peeled, now) {
            Ok(()) => {
                self.receive_early_cells(index, now);
                if closed {
                    self.wind_up(index, CloseReason::Finished, Some(Side::Inward), now);
                }
            }
            Err(reason) => {
                self.free_onion(job);
                if let Some(entry) = self.table.get_mut(index) {
                    entry.role = Role::Refused;
                }
                self.wind_up(index, reason, None, now);
            }
        }
    }

    fn accept_onion(
        &mut self,
        job: OnionIndex,
        index: CircuitIndex,
        peeled: Result<Peeled, OnionRejected>,
        now: Instant,
    ) -> Result<(), CloseReason> {
        let peeled = peeled.map_err(|_| {
            self.counters.rejected += 1;
            CloseReason::OnionRejected
        })?;
        match self.replay.insert(peeled.epoch, peeled.replay_tag) {
            Ok(()) => {}
            Err(replay::Refused::Seen) => {
                self.counters.replayed += 1;
                return Err(CloseReason::OnionRejected);
            }
            Err(replay::Refused::Expired) => {
                self.counters.rejected += 1;
                return Err(CloseReason::OnionRejected);
            }
            Err(replay::Refused::Full) => {
                self.rotation_due = true;
                self.counters.busy += 1;
                return Err(CloseReason::Busy);
            }
        }
        let hop = Hop::new(&peeled.keys);
        match peeled.instruction {
            // Whether this node is the right one for it is known with BEGIN: every last hop has services, only an exit has targets.
            Instruction::Last if self.config.exit || self.config.relay => {
                self.free_onion(job);
                let entry = self.table.get_mut(index).ok_or(CloseReason::Protocol)?;
                entry.role = Role::Exiting(hop, Exit::new());
                entry.outward = End::Conversation;
            }
            Instruction::Next { node, .. } if node == self.config.node => return Err(CloseReason::OnionRejected),
            Instruction::Next { address, node } if self.config.relay => {
                let Some(entry) = self.table.get_mut(index) else { return Err(CloseReason::Protocol) };
                entry.role = Role::Passing(hop, None);
                if !self.extend(index, job, node, address, now) {
                    self.counters.busy += 1;
                    self.free_onion(job);
                    self.abort(index, EndReason::Busy, CloseReason::Busy, now);
                    return Ok(());
                }
            }
            Instruction::Last | Instruction::Next { .. } => return Err(CloseReason::RoleRefused),
        }
        self.counters.opened += 1;
        Ok(())
    }

    /// Attaches a circuit to the link to its next hop and queues its onion there; answers `false` if there is no place for the link.
    fn extend(
        &mut self,
        index: CircuitIndex,
        onion: OnionIndex,
        node: NodeId,
        address: SocketAddr,
        now: Instant,
    ) -> bool {
        let Some(link) = self.link_to(address, node, now) else { return false };
        let Some(port) = self.ports.get_mut(link) else { return false };
        let Some(id) = port.last_id.checked_add(1).and_then(CircuitId::new) else { return false };
        port.last_id = id.value();
        port.circuits += 1;
        self.onions.finish(onion);
        self.onions.enqueue(&mut port.leaving, onion);
        let credit = port.limits().map_or(0, |limits| limits.credit);
        let entered = self.index.insert(link, id, index);
        debug_assert!(entered, "ids on a link increase, and the index has room for every circuit");
        if let Some(entry) = self.table.get_mut(index) {
            entry.outward = End::Link(link, id);
            let _initial_credit_fits = entry.forward.handle_credit(credit);
            match &mut entry.role {
                Role::Passing(_, leaving) | Role::Client(_, leaving) => *leaving = Some(onion),
                Role::Opening { .. } | Role::Exiting(..) | Role::Refused => {}
            }
        }
        self.ports.touch(link);
        true
    }

    /// Receives again, in order, what came before the keys were known.
    fn receive_early_cells(&mut self, index: CircuitIndex, now: Instant) {
        let early = self.table.get(index).map_or(0, |entry| entry.forward.waiting().len());
        let mut body = [0; BODY_LEN];
        for _ in 0..early {
            let Some(entry) = self.table.get_mut(index).filter(|entry| entry.farewell.is_none()) else { return };
            if !entry.forward.unreceive(&mut self.pool, &mut body) {
                return;
            }
            self.receive(index, Side::Inward, &mut body, now);
        }
        let idle = now.after(self.config.patience.idle);
        if let Some(entry) = self.table.get_mut(index)
            && entry.outward == End::Conversation
        {
            if early > 0 && entry.farewell.is_none() {
                entry.deadline = idle;
            }
            self.list_attention(index);
        }
    }

    /// Opens a circuit of our own. Its BEGIN leaves right behind the onion; the conversation can be used at once.
    ///
    /// # Errors
    /// See [`OpenRefused`].
    pub fn open(&mut self, opening: &Opening<'_>, now: Instant) -> Result<ConversationId, OpenRefused> {
        let Opening { node, address, onion, keys, target, options, first } = *opening;
        let plan = Plan { node, address, target, options, first };
        let copy = |place: &mut Onion| {
            *place = *onion;
            Some(keys)
        };
        self.open_in_place(&plan, copy, now)
    }

    /// The same for a machine without room for two onions: `build` builds it where it leaves from, and answers the keys of every hop, first to
    /// last. It is not called when the circuit cannot be opened anyway.
    ///
    /// # Errors
    /// See [`OpenRefused`]; invalid also if `build` answers `None`.
    pub fn open_in_place<K: AsRef<[HopKeys]>>(
        &mut self,
        plan: &Plan<'_>,
        build: impl FnOnce(&mut Onion) -> Option<K>,
        now: Instant,
    ) -> Result<ConversationId, OpenRefused> {
        let places = self.place_own(now)?;
        let keys = build(self.onions.bytes(places.onion));
        self.begin_own(places, keys.as_ref().map_or(&[], AsRef::as_ref), plan, now)
    }

    /// The onion is built: sends it on its way, with BEGIN behind it. Without keys, gives the places back.
    #[inline(never)]
    fn begin_own(
        &mut self,
        OwnPlaces { index, onion, origin: free }: OwnPlaces,
        keys: &[HopKeys],
        plan: &Plan<'_>,
        now: Instant,
    ) -> Result<ConversationId, OpenRefused> {
        let mut begin = [0; BODY_LEN];
        let origin = match originate(keys, plan, &mut begin) {
            Ok(_) if !self.extend(index, onion, plan.node, plan.address, now) => Err(OpenRefused::Busy),
            origin => origin,
        };
        let origin = origin.inspect_err(|_| {
            self.free_onion(onion);
            self.discard(index);
        })?;
        if let Some(slot) = self.origins.get_mut(free) {
            slot.0 = Some(origin);
        }
        if let Some(entry) = self.table.get_mut(index)
            && let Ok(place) = entry.forward.push(&mut self.pool)
        {
            *place = begin;
        }
        self.arm(now);
        Ok(self.table.name(index))
    }

    /// Takes the places that a circuit of our own needs: in the table, for its onion, among the origins. Not inlined: what this takes of the stack
    /// is not under `build`.
    #[inline(never)]
    fn place_own(&mut self, now: Instant) -> Result<OwnPlaces, OpenRefused> {
        if self.stopping {
            return Err(OpenRefused::Stopping);
        }
        let free = self.origins.iter().position(|slot| slot.0.is_none()).ok_or(OpenRefused::Busy)?;
        if self.table.is_full() {
            return Err(OpenRefused::Busy);
        }
        let (forward, backward) = self.reserve_flows().ok_or(OpenRefused::Busy)?;
        let circuit = Circuit {
            inward: End::Conversation,
            outward: End::Detached,
            forward,
            backward,
            farewell: None,
            deadline: now.after(self.config.patience.opening),
            role: Role::Client(OriginIndex(free as u32), None),
        };
        let index = self.table.insert(circuit).ok_or(OpenRefused::Busy)?;
        match self.onions.depart(self.table.name(index)) {
            Some((onion, _)) => Ok(OwnPlaces { index, onion, origin: free }),
            None => {
                self.discard(index);
                Err(OpenRefused::Busy)
            }
        }
    }

    /// Gives an onion's place back, and the link that it came over its share of them: not before, so that no link has more than its
    /// share however slowly its onions leave.
    pub(super) fn free_onion(&mut self, onion: OnionIndex) {
        if let Some(port) = self.onions.from(onion).and_then(|from| self.ports.get_mut(from)) {
            port.onions = port.onions.saturating_sub(1);
        }
        self.onions.free(onion);
    }

    /// Forgets a circuit's onion, wherever it is; answers whether it had left or begun to leave.
    pub(super) fn drop_onion(&mut self, index: CircuitIndex, keep_started: bool) -> bool {
        let Some(entry) = self.table.get_mut(index) else { return true };
        let inward = entry.inward;
        let onion = match &mut entry.role {
            Role::Opening { onion, .. } => {
                let onion = *onion;
                entry.role = Role::Refused;
                self.drop_arriving(onion, inward);
                return true;
            }
            Role::Passing(_, leaving) | Role::Client(_, leaving) => leaving,
            Role::Exiting(..) | Role::Refused => return true,
        };
        let Some(waiting) = *onion else { return true };
        let started = !matches!(self.onions.stage(waiting), OnionStage::Leaving { cells: 0 });
        if started && keep_started {
            return true;
        }
        *onion = None;
        if let End::Link(link, _) = entry.outward
            && let Some(port) = self.ports.get_mut(link)
        {
            self.onions.dequeue(&mut port.leaving, waiting);
        }
        self.free_onion(waiting);
        started
    }

    fn drop_arriving(&mut self, onion: OnionIndex, inward: End) {
        let stage = self.onions.stage(onion);
        if stage == OnionStage::Working {
            // Comes back through `handle_peeled`, which finds the circuit gone.
            return;
        }
        if let End::Link(link, _) = inward
            && let Some(port) = self.ports.get_mut(link)
            && matches!(stage, OnionStage::Arriving { .. })
        {
            port.arriving = None;
        }
        self.free_onion(onion);
    }
}

/// Where a circuit of our own is.
struct OwnPlaces {
    index: CircuitIndex,
    onion: OnionIndex,
    /// Among the origins.
    origin: usize,
}

/// A client's side of a circuit; `begin` becomes its BEGIN in all layers.
fn originate(keys: &[HopKeys], plan: &Plan<'_>, begin: &mut CellBody) -> Result<Origin, OpenRefused> {
    let exit = keys.len().checked_sub(1).and_then(HopIndex::new).ok_or(OpenRefused::Invalid)?;
    let message = Message::Begin { options: plan.options, target: plan.target.clone(), first: plan.first };
    message.emit(message_of(begin)).map_err(|_| OpenRefused::Invalid)?;
    let (Ok(forward), Ok(backward)) = (
        ClientForward::new(&seeds(keys, |keys| &keys.forward)),
        ClientBackward::new(&seeds(keys, |keys| &keys.backward)),
    ) else {
        return Err(OpenRefused::Invalid);
    };
    let mut origin = Origin::new(forward, backward, exit, plan.target, plan.options);
    origin.handle_request(plan.first);
    let originated = origin.forward.originate(exit, Command::RELAY, begin);
    debug_assert!(originated.is_ok(), "the exit is a hop of the path");
    Ok(origin)
}

/// One direction's seeds of every hop.
fn seeds(
    keys: &[HopKeys],
    direction: fn(&HopKeys) -> &zeroize::Zeroizing<[u8; SEED_LEN]>,
) -> heapless::Vec<Seed, PATH_MAX> {
    keys.iter().take(PATH_MAX).map(|keys| Seed::from_bytes(**direction(keys))).collect()
}
