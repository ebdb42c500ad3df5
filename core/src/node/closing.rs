//! Circuits end: by a CLOSE, a lost link, a deadline, or because the conversation is over. `PROTOCOL.md` section 7.
//!
//! A circuit that ends has a farewell. From then on it takes no more cells; each end that is still attached gets what waits for it, then
//! CLOSE (a link) or its outcome (a conversation), and is detached; with both ends detached the circuit is gone.

use super::Node;
use super::arrival::message_of;
use super::role::Role;
use crate::circuit::table::{End, Listed, Side};
use crate::circuit::{CircuitIndex, LinkId};
use crate::time::Instant;
use crate::wire::cell::BODY_LEN;
use crate::wire::message::Message;
use crate::wire::{CloseReason, EndReason};

impl Node<'_> {
    /// Begins a circuit's end. `from` is the side that is gone already (it said so, or its link broke); `None` if this node decided.
    pub(super) fn wind_up(&mut self, index: CircuitIndex, reason: CloseReason, from: Option<Side>, now: Instant) {
        let Some(entry) = self.table.get_mut(index) else { return };
        let reason = *entry.farewell.get_or_insert(reason);
        // Bytes that wait for our own application cost nobody else anything.
        let local = matches!(entry.role, Role::Client(..)) && from != Some(Side::Inward);
        entry.deadline = now.after(if local { self.config.patience.idle } else { self.config.patience.draining });
        entry.forward.close_sender(&mut self.pool);
        entry.backward.close_sender(&mut self.pool);
        if reason != CloseReason::Finished {
            // The client is gone or gave up: what it said last is not worth the wait. What waits for a client always is.
            entry.forward.close(&mut self.pool);
            if let Role::Exiting(_, exit) = &mut entry.role {
                // Nor must what the target has got of it look like the whole.
                exit.halves.finish_received = false;
            }
        }
        // A circuit whose onion has not been opened has nowhere to deliver to.
        let deliverable = !entry.forward.waiting().is_empty()
            && from == Some(Side::Inward)
            && !matches!(entry.role, Role::Opening { .. });
        // A next hop that has said CLOSE takes no rest of an onion; any other that has the beginning must get the whole.
        let keep_started = from != Some(Side::Outward);
        if !deliverable && !self.drop_onion(index, keep_started) {
            // The next hop has not heard of this circuit and need not.
            self.detach(index, Side::Outward, now);
        }
        if let Some(side) = from {
            self.detach(index, side, now);
        }
        for side in [Side::Inward, Side::Outward] {
            match self.table.get(index).map(|entry| entry.end(side)) {
                Some(End::Link(link, _)) => self.list_output(index, side, link),
                Some(End::Conversation) => self.list_attention(index),
                Some(End::Detached) | None => {}
            }
        }
        self.free_if_detached(index);
    }

    /// Takes one end off a circuit: nothing more is sent there or comes from there.
    pub(super) fn detach(&mut self, index: CircuitIndex, side: Side, now: Instant) {
        let Some(entry) = self.table.get_mut(index) else { return };
        let end = entry.end(side);
        entry.set_end(side, End::Detached);
        entry.leaving(side).close(&mut self.pool);
        match end {
            End::Link(link, id) => {
                self.index.remove(link, id);
                let idle = now.after(self.link_idle(side));
                if let Some(port) = self.ports.get_mut(link) {
                    port.circuits = port.circuits.saturating_sub(1);
                    port.deadline = idle;
                    port.output.remove(self.table.slots(), index.slot(), Listed::Output(side));
                    port.grants.remove(self.table.slots(), index.slot(), Listed::Grant(side));
                }
            }
            End::Conversation => self.attention.remove(self.table.slots(), index.slot(), Listed::Attention),
            End::Detached => {}
        }
        self.free_if_detached(index);
    }

    fn free_if_detached(&mut self, index: CircuitIndex) {
        let detached = |entry: &crate::circuit::table::Circuit<Role>| {
            entry.farewell.is_some() && entry.inward == End::Detached && entry.outward == End::Detached
        };
        if !self.table.get(index).is_some_and(detached) {
            return;
        }
        self.drop_onion(index, false);
        if let Some(mut circuit) = self.table.remove(index) {
            circuit.forward.close(&mut self.pool);
            circuit.backward.close(&mut self.pool);
            if let Role::Client(origin, _) = circuit.role
                && let Some(slot) = self.origins.get_mut(origin.0 as usize)
            {
                slot.0 = None;
            }
        }
    }

    /// Ends a circuit that cannot go on: tells the client why, as far as we share keys with it, and both neighbours.
    pub(super) fn abort(&mut self, index: CircuitIndex, end: EndReason, close: CloseReason, now: Instant) {
        self.say_end(index, end);
        self.refuse(index, close, now);
    }

    /// The same without a word to the client: whoever is before this node on the path says that it was refused here.
    pub(super) fn refuse(&mut self, index: CircuitIndex, close: CloseReason, now: Instant) {
        if let Some(entry) = self.table.get_mut(index)
            && let Role::Exiting(_, exit) = &mut entry.role
        {
            exit.end(false);
        }
        self.wind_up(index, close, None, now);
    }

    /// Ends a conversation at its exit, with END to the client if there is a reason to be told.
    pub(super) fn end_conversation(
        &mut self,
        index: CircuitIndex,
        end: Option<EndReason>,
        close: CloseReason,
        now: Instant,
    ) {
        if let Some(end) = end {
            self.say_end(index, end);
        }
        let Some(entry) = self.table.get_mut(index) else { return };
        if let Role::Exiting(_, exit) = &mut entry.role {
            exit.end(end == Some(EndReason::Done) && entry.forward.waiting().is_empty());
        }
        entry.forward.close(&mut self.pool);
        self.wind_up(index, close, None, now);
    }

    /// Sends END to the client, behind what waits for it. Without room for one more cell the CLOSE that follows has to do.
    pub(super) fn say_end(&mut self, index: CircuitIndex, end: EndReason) {
        let Some(entry) = self.table.get_mut(index) else { return };
        if entry.farewell.is_some() || !matches!(entry.inward, End::Link(..)) {
            return;
        }
        let (Role::Passing(hop, _) | Role::Exiting(hop, _)) = &mut entry.role else { return };
        let mut body = [0; BODY_LEN];
        if Message::End(end).emit(message_of(&mut body)).is_err() {
            return;
        }
        entry.backward.close_sender(&mut self.pool);
        if let Some(place) = entry.backward.push_farewell(&mut self.pool) {
            hop.originate(&mut body);
            *place = body;
        }
    }

    /// A link is gone: closed by either side, broken, or never opened. Its circuits end.
    pub fn handle_link_down(&mut self, link: LinkId, now: Instant) {
        let Some(port) = self.ports.get(link) else { return };
        let (end, close) = match port.limits() {
            Some(_) => (EndReason::NextHopLost, CloseReason::LinkLost),
            None => (EndReason::NextHopUnreachable, CloseReason::NextHopUnreachable),
        };
        self.end_link(link, end, close, now);
    }

    /// A link was not opened because this machine has nothing left to make a connection of: no open files, no memory, no port. Its circuits end as
    /// at a node without room, so that nobody takes the next hop for the one that failed.
    pub fn handle_link_unmade(&mut self, link: LinkId, now: Instant) {
        self.counters.busy += u64::from(self.ports.get(link).is_some_and(|port| port.circuits > 0));
        self.end_link(link, EndReason::Busy, CloseReason::Busy, now);
    }

    fn end_link(&mut self, link: LinkId, end: EndReason, close: CloseReason, now: Instant) {
        let Some(port) = self.ports.get(link) else { return };
        let (mut left, onions) = (port.circuits, port.onions);
        for at in 0..self.table.capacity() as u32 {
            if left == 0 {
                break;
            }
            let index = CircuitIndex(at);
            for side in [Side::Inward, Side::Outward] {
                let Some(entry) = self.table.get(index) else { break };
                if !matches!(entry.end(side), End::Link(on, _) if on == link) {
                    continue;
                }
                left -= 1;
                if side == Side::Outward {
                    self.say_end(index, end);
                    self.drop_onion(index, false);
                }
                self.wind_up(index, if side == Side::Outward { close } else { CloseReason::LinkLost }, Some(side), now);
            }
        }
        if onions > 0 {
            self.onions.forget_link(link);
        }
        let removed = self.ports.remove(link);
        debug_assert!(
            removed.is_none_or(|port| port.output.is_empty() && port.grants.is_empty() && port.leaving.is_empty()),
            "a link's lists empty as its circuits leave"
        );
    }
}
