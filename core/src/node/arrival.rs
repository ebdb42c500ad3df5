//! A cell came over a link: which circuit, may it come, and what it means there. `PROTOCOL.md` sections 5 and 7.

use super::port::{PeerLimits, Stage};
use super::role::Role;
use super::{Node, Violation};
use crate::circuit::table::{End, Side};
use crate::circuit::{CircuitIndex, LinkId};
use crate::crypto::cgo::TAG_LEN;
use crate::relay::exit;
use crate::relay::onions::Stage as OnionStage;
use crate::time::Instant;
use crate::wire::cell::{CELL_LEN, Cell, CellBody, CreditEntries};
use crate::wire::handshake::Hello;
use crate::wire::message::{MESSAGE_LEN, Message};
use crate::wire::{CircuitId, CloseReason, EndReason, Target};

/// The message in a relay cell whose layers are off.
pub(super) fn message_of(body: &mut CellBody) -> &mut [u8; MESSAGE_LEN] {
    const { assert!(TAG_LEN + MESSAGE_LEN == crate::wire::cell::BODY_LEN) };
    body.last_chunk_mut().expect("a message is what follows the tag")
}

/// What became of a cell whose circuit is known.
enum Fate {
    /// It waits in the pool to be sent on, or for its keys.
    Kept,
    /// It was used up.
    Used,
    /// It asks for what this node does not do: the circuit ends.
    Refused,
    /// It is not what an honest path would send: the circuit ends.
    Garbage,
}

impl Node<'_> {
    /// Takes a cell that came over `link`, and rewrites it in place.
    ///
    /// # Errors
    /// The peer broke the protocol: the owner closes the link and says so with [`Node::handle_link_down`]. Nothing else is affected.
    pub fn handle_cell(&mut self, link: LinkId, cell: &mut [u8; CELL_LEN], now: Instant) -> Result<(), Violation> {
        self.take_cell(link, cell, now).inspect_err(|_| self.counters.violations += 1)
    }

    fn take_cell(&mut self, link: LinkId, cell: &mut [u8; CELL_LEN], now: Instant) -> Result<(), Violation> {
        let Some(port) = self.ports.get(link) else { return Err(Violation::OutOfTurn) };
        let (side, stage) = (port.side, port.stage);
        if stage == Stage::Closing {
            // The peer does not know yet that its link gives way to another.
            self.counters.late += 1;
            return Ok(());
        }
        match (Cell::parse(cell)?, stage) {
            (Cell::Relay(circuit, body), Stage::Up(_)) => self.handle_relay(link, side, circuit, body, now),
            (Cell::Credit(entries), Stage::Up(_)) => self.handle_credit(link, side, entries),
            (Cell::Open(circuit, body), Stage::Up(_)) if side == Side::Inward => {
                self.handle_open(link, circuit, body, now)
            }
            (Cell::Close(circuit, reason), Stage::Up(_)) => self.handle_close(link, side, circuit, reason, now),
            (Cell::Padding, Stage::Up(_)) => Ok(()),
            (Cell::Hello(body), Stage::AwaitingHello) => self.handle_hello(link, body, now),
            _ => Err(Violation::OutOfTurn),
        }
    }

    fn handle_hello(&mut self, link: LinkId, body: &CellBody, now: Instant) -> Result<(), Violation> {
        let hello = Hello::parse(body)?;
        let idle = now.after(self.link_idle(Side::Inward));
        if let Some(port) = self.ports.get_mut(link) {
            port.deadline = idle;
            port.stage = Stage::Up(PeerLimits {
                record_cells: hello.limits.record_cells.value(),
                credit: hello.limits.credit.value(),
                circuits: 0,
            });
        }
        Ok(())
    }

    /// The circuit of a cell, or `None` for a late one.
    fn circuit_of(&mut self, link: LinkId, circuit: CircuitId) -> Result<Option<CircuitIndex>, Violation> {
        let found = self.index.get(link, circuit);
        if found.is_none() {
            if self.ports.get(link).is_none_or(|port| circuit.value() > port.last_id) {
                return Err(Violation::UnknownCircuit);
            }
            self.counters.late += 1;
        }
        Ok(found)
    }

    fn handle_credit(&mut self, link: LinkId, side: Side, entries: CreditEntries<'_>) -> Result<(), Violation> {
        for (circuit, cells) in entries {
            let Some(index) = self.circuit_of(link, circuit)? else { continue };
            let Some(entry) = self.table.get_mut(index) else { continue };
            let flow = entry.leaving(side);
            flow.handle_credit(cells.get()).map_err(|_| Violation::CreditOverflow)?;
            if flow.sendable() {
                self.list_output(index, side, link);
            }
        }
        Ok(())
    }

    fn handle_close(
        &mut self,
        link: LinkId,
        side: Side,
        circuit: CircuitId,
        reason: CloseReason,
        now: Instant,
    ) -> Result<(), Violation> {
        if let Some(index) = self.circuit_of(link, circuit)? {
            if side == Side::Outward
                && let Some(Role::Passing(hop, _)) = self.table.get(index).map(|entry| &entry.role)
                && !hop.is_answered()
            {
                // The next hop has refused the circuit, and could not tell the client so itself.
                self.say_end(index, EndReason::NextHopUnreachable);
            }
            if side == Side::Inward
                && reason == CloseReason::Finished
                && let Some(entry) = self.table.get_mut(index)
                && let Role::Opening { closed, .. } = &mut entry.role
                && !entry.forward.waiting().is_empty()
            {
                // What was said before is still to be delivered; first it must be known where.
                *closed = true;
                return Ok(());
            }
            self.wind_up(index, reason, Some(side), now);
        }
        Ok(())
    }

    fn handle_relay(
        &mut self,
        link: LinkId,
        side: Side,
        circuit: CircuitId,
        body: &mut CellBody,
        now: Instant,
    ) -> Result<(), Violation> {
        let Some(index) = self.circuit_of(link, circuit)? else { return Ok(()) };
        let Some(entry) = self.table.get_mut(index) else { return Ok(()) };
        if let Role::Opening { onion, closed } = entry.role
            && (closed || matches!(self.onions.stage(onion), OnionStage::Arriving { .. }))
        {
            // Before the onion is whole, or behind the peer's own CLOSE.
            return Err(Violation::OutOfTurn);
        }
        match side {
            Side::Inward => self.counters.forward += 1,
            Side::Outward => self.counters.backward += 1,
        }
        if entry.farewell.is_some() {
            // Sent before the peer could know that the circuit is closing.
            self.counters.late += 1;
            return Ok(());
        }
        if side == Side::Outward && !entry.role.is_sending() {
            // A next hop that speaks before it has the whole onion. What moves keeps a circuit alive, so it could have the onion's place
            // for as long as it likes.
            return Err(Violation::OutOfTurn);
        }
        // The overrun check comes before anything is decrypted: cells without credit cost nothing and change no state.
        if entry.entering(side).promised() == 0 {
            return Err(Violation::Overrun);
        }
        if entry.role.is_sending() {
            // Before that the circuit has to open in time, whatever is sent behind its onion.
            entry.deadline = now.after(self.config.patience.idle);
        }
        self.receive(index, side, body, now);
        Ok(())
    }

    /// Handles a relay cell for which the sender has room. `side` is where it came in.
    pub(super) fn receive(&mut self, index: CircuitIndex, side: Side, body: &mut CellBody, now: Instant) {
        let fate = match side {
            Side::Inward => self.receive_forward(index, body, now),
            Side::Outward => self.receive_backward(index, body),
        };
        match fate {
            Fate::Kept => {
                let Some(entry) = self.table.get_mut(index) else { return };
                let kept = entry.entering(side).push(&mut self.pool).map(|place| *place = *body);
                debug_assert!(kept.is_ok(), "the sender's room was checked");
                if entry.entering(side).sendable()
                    && let End::Link(link, _) = entry.end(side.opposite())
                    && entry.role.is_sending()
                {
                    self.list_output(index, side.opposite(), link);
                } else if entry.end(side.opposite()) == End::Conversation {
                    self.list_attention(index);
                }
            }
            Fate::Used => {
                let growth = self.config.growth();
                let Some(entry) = self.table.get_mut(index) else { return };
                if entry.farewell.is_none() {
                    let _room_was_checked = entry.entering(side).consume(&mut self.pool, growth);
                }
                self.announce_room(index, side);
                if self.table.get(index).is_some_and(|entry| entry.end(side.opposite()) == End::Conversation) {
                    self.list_attention(index);
                }
            }
            Fate::Refused => self.refuse(index, CloseReason::RoleRefused, now),
            Fate::Garbage => {
                self.counters.garbled += 1;
                self.abort(index, EndReason::Protocol, CloseReason::Protocol, now);
            }
        }
    }

    fn receive_forward(&mut self, index: CircuitIndex, body: &mut CellBody, now: Instant) -> Fate {
        let Some(entry) = self.table.get_mut(index) else { return Fate::Used };
        match &mut entry.role {
            Role::Opening { .. } => Fate::Kept,
            Role::Passing(hop, _) => {
                if !hop.forward(body) {
                    return Fate::Kept;
                }
                // To a hop in the middle a client sends padding and nothing else.
                match Message::parse(message_of(body)) {
                    Ok(Message::Drop) => Fate::Used,
                    _ => Fate::Garbage,
                }
            }
            Role::Exiting(hop, exit) => {
                if !hop.forward(body) {
                    return Fate::Garbage;
                }
                let message = message_of(body);
                let Ok(parsed) = Message::parse(message) else { return Fate::Garbage };
                let received = exit.handle(parsed);
                let begun = matches!(received, Ok(exit::Received::Begin(_)));
                if begun && !self.config.exit && !matches!(exit.target(), Some(Target::Service(_))) {
                    return Fate::Refused;
                }
                match received {
                    Ok(exit::Received::Data) => Fate::Kept,
                    Ok(exit::Received::Used) => Fate::Used,
                    Ok(exit::Received::Begin([])) => Fate::Used,
                    Ok(exit::Received::Begin(first)) => {
                        let mut data = [0; MESSAGE_LEN];
                        if Message::Data(first).emit(&mut data).is_err() {
                            return Fate::Garbage;
                        }
                        *message = data;
                        Fate::Kept
                    }
                    Ok(exit::Received::Ended(_)) => {
                        self.end_conversation(index, None, CloseReason::Finished, now);
                        Fate::Used
                    }
                    Err(exit::OutOfTurn) => Fate::Garbage,
                }
            }
            Role::Client(..) | Role::Refused => Fate::Garbage,
        }
    }

    fn receive_backward(&mut self, index: CircuitIndex, body: &mut CellBody) -> Fate {
        let Some(entry) = self.table.get_mut(index) else { return Fate::Used };
        match &mut entry.role {
            Role::Passing(hop, _) => {
                hop.backward(body);
                Fate::Kept
            }
            Role::Client(origin, _) => {
                let Some(origin) = self.origins.get_mut(origin.0 as usize).and_then(|slot| slot.0.as_mut()) else {
                    return Fate::Garbage;
                };
                let Some(hop) = origin.backward.receive(crate::wire::Command::RELAY, body) else {
                    return Fate::Garbage;
                };
                let Ok(message) = Message::parse(message_of(body)) else { return Fate::Garbage };
                match origin.handle(hop, &message) {
                    Ok(crate::client::origin::Received::Data) => Fate::Kept,
                    Ok(crate::client::origin::Received::Used) => Fate::Used,
                    Err(exit::OutOfTurn) => Fate::Garbage,
                }
            }
            Role::Opening { .. } | Role::Exiting(..) | Role::Refused => Fate::Garbage,
        }
    }

    /// Tells the sender at `side` of room that came free, if it is worth a word.
    pub(super) fn announce_room(&mut self, index: CircuitIndex, side: Side) {
        let Some(entry) = self.table.get_mut(index) else { return };
        if entry.farewell.is_some() || !entry.entering(side).announce_due() {
            return;
        }
        match entry.end(side) {
            End::Link(link, _) => self.list_grant(index, side, link),
            End::Conversation => {
                entry.entering(side).announce();
                self.list_attention(index);
            }
            End::Detached => {}
        }
    }
}
