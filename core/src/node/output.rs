//! What a link sends next: grants, onions and cells, fair between circuits. `PROTOCOL.md` sections 5 and 10.

use super::Node;
use super::role::Role;
use crate::circuit::list::List;
use crate::circuit::table::{End, Listed, Side};
use crate::circuit::{CircuitIndex, LinkId};
use crate::relay::onions::OnionIndex;
use crate::time::Instant;
use crate::wire::cell::{self, CELL_LEN, Command, CreditWriter};
use crate::wire::handshake::Hello;
use core::num::NonZeroU16;

/// Cells of one circuit that leave in a row while others wait. More would be quicker for bulk and slower for everybody else.
const TURN: usize = 4;
/// Records of fewer cells than this are shared cell by cell: a turn ends with its record, and cutting every second one short in the middle would
/// give every second circuit half of what the others get.
const SHORT_RECORD: usize = 4 * TURN;

/// Cells on their way into one record.
struct Batch<'o> {
    cells: &'o mut [[u8; CELL_LEN]],
    len: usize,
}

impl Batch<'_> {
    const fn is_full(&self) -> bool {
        self.len == self.cells.len()
    }

    fn next(&mut self) -> Option<&mut [u8; CELL_LEN]> {
        let cell = self.cells.get_mut(self.len)?;
        self.len += 1;
        Some(cell)
    }
}

impl Node<'_> {
    /// Fills `out` with cells to be sent on `link`, from the front, and answers how many. They are gone from the node then: the owner sends them.
    ///
    /// `out` should be as long as a record may be; the peer's limit is kept here. Zero means that nothing is ready. To ask again says that
    /// the cells of the last time are out of the owner's hands: until then the link does not count as idle.
    pub fn poll_cells(&mut self, link: LinkId, out: &mut [[u8; CELL_LEN]], now: Instant) -> usize {
        let Some(port) = self.ports.get_mut(link) else { return 0 };
        let Some(limits) = port.limits() else { return 0 };
        let len = out.len().min(usize::from(limits.record_cells));
        let mut batch = Batch { cells: &mut out[..len], len: 0 };
        let side = port.side;

        if port.hello_due
            && let Some(cell) = batch.next()
        {
            port.hello_due = false;
            cell.fill(0);
            cell::emit_header(cell, None, Command::HELLO);
            let hello = Hello { limits: self.config.limits };
            hello.emit(cell::body_mut(cell));
        }
        while !batch.is_full()
            && let Some((circuit, reason)) = port.refusals.pop_front()
            && let Some(cell) = batch.next()
        {
            cell::emit_close(cell, circuit, reason);
        }
        self.send_grants(link, side, &mut batch);
        self.send_onions(link, &mut batch);
        self.send_relay_cells(link, side, &mut batch, now);
        let len = batch.len;
        if let Some(port) = self.ports.get_mut(link) {
            port.unsent = len > 0;
        }
        len
    }

    fn pop_listed(&mut self, link: LinkId, kind: Listed) -> Option<CircuitIndex> {
        let port = self.ports.get_mut(link)?;
        let list: &mut List = match kind {
            Listed::Grant(_) => &mut port.grants,
            Listed::Output(_) => &mut port.output,
            Listed::Attention => return None,
        };
        list.pop(self.table.slots(), kind).map(|at| CircuitIndex(at as u32))
    }

    fn send_grants(&mut self, link: LinkId, side: Side, batch: &mut Batch<'_>) {
        if self.ports.get(link).is_none_or(|port| port.grants.is_empty()) {
            return;
        }
        let Some(cell) = batch.next() else { return };
        let mut writer = CreditWriter::new(cell);
        while writer.count() < cell::CREDIT_ENTRIES
            && let Some(index) = self.pop_listed(link, Listed::Grant(side))
        {
            let Some(entry) = self.table.get_mut(index) else { continue };
            let End::Link(_, id) = entry.end(side) else { continue };
            if let Some(cells) = NonZeroU16::new(entry.entering(side).announce()) {
                let written = writer.push(id, cells);
                debug_assert!(written.is_ok(), "the count was checked");
            }
        }
        if writer.count() == 0 {
            batch.len -= 1;
        }
    }

    fn send_onions(&mut self, link: LinkId, batch: &mut Batch<'_>) {
        while !batch.is_full()
            && let Some(onion) = self.ports.get(link).and_then(|port| self.onions.front(&port.leaving))
            && let Some(cell) = batch.next()
        {
            let index = self.onions.circuit(onion).and_then(|name| self.table.find(name));
            let end = index.and_then(|index| self.table.get(index)).map(|entry| entry.outward);
            let last = self.onions.poll_part(onion, cell::body_mut(cell));
            if let Some(End::Link(_, id)) = end {
                cell::emit_header(cell, Some(id), Command::OPEN);
            } else {
                debug_assert!(false, "an onion leaves only with its circuit");
                batch.len -= 1;
            }
            if last {
                self.finish_onion(link, onion, index);
            }
        }
    }

    /// A circuit's onion has left: its cells may follow.
    fn finish_onion(&mut self, link: LinkId, onion: OnionIndex, index: Option<CircuitIndex>) {
        if let Some(port) = self.ports.get_mut(link) {
            self.onions.dequeue(&mut port.leaving, onion);
        }
        self.free_onion(onion);
        let Some(index) = index else { return };
        let Some(entry) = self.table.get_mut(index) else { return };
        if let Role::Passing(_, leaving) | Role::Client(_, leaving) = &mut entry.role {
            *leaving = None;
        }
        if entry.forward.sendable() || entry.farewell.is_some() {
            self.list_output(index, Side::Outward, link);
        }
    }

    fn send_relay_cells(&mut self, link: LinkId, side: Side, batch: &mut Batch<'_>, now: Instant) {
        let growth = self.config.growth();
        let turn = if batch.cells.len() < SHORT_RECORD { 1 } else { TURN };
        while !batch.is_full()
            && let Some(index) = self.pop_listed(link, Listed::Output(side))
        {
            let Some(entry) = self.table.get_mut(index) else { continue };
            let End::Link(_, id) = entry.end(side) else { continue };
            if side == Side::Outward && !entry.role.is_sending() {
                // Listed again when its onion has left.
                continue;
            }
            let flow = entry.leaving(side);
            let mut sent = 0;
            while sent < turn
                && flow.sendable()
                && let Some(cell) = batch.next()
            {
                if let Some(body) = self.pool.front(flow.waiting()) {
                    *cell::body_mut(cell) = *body;
                }
                cell::emit_header(cell, Some(id), Command::RELAY);
                flow.pop(&mut self.pool, growth);
                sent += 1;
            }
            self.counters.sent += sent as u64;
            let (sendable, empty) = (flow.sendable(), flow.waiting().is_empty());
            if sent > 0 {
                entry.deadline = match entry.farewell {
                    None => now.after(self.config.patience.idle),
                    Some(_) => now.after(self.config.patience.draining),
                };
            }
            if let Some(reason) = entry.farewell
                && empty
                && let Some(cell) = batch.next()
            {
                cell::emit_close(cell, id, reason);
                self.detach(index, side, now);
                continue;
            }
            if sendable || (empty && entry.farewell.is_some()) {
                self.list_output(index, side, link);
            }
            if sent > 0 {
                self.announce_room(index, side.opposite());
            }
        }
    }
}
