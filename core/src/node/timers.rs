//! Deadlines. All of them are seconds long, so once a second every table is looked through, and only while something is in it.
//!
//! That costs a few microseconds a second for thousands of circuits, and saves a write to an ordered structure for each cell.

use core::time::Duration;

use super::Node;
use super::port::Stage;
use super::role::Role;
use crate::circuit::CircuitIndex;
use crate::time::Instant;
use crate::wire::{CloseReason, EndReason};

pub(super) const TICK: Duration = Duration::from_secs(1);

impl Node<'_> {
    /// Makes sure that the next look through the tables will come.
    pub(super) fn arm(&mut self, now: Instant) {
        self.next_tick.get_or_insert(now.after(TICK));
    }

    /// When [`Node::handle_timeout`] must be called; `None` while there is no link and no circuit.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.next_tick
    }

    /// Ends what has passed its deadline. Calls before [`Node::poll_timeout`]'s instant do nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next_tick.is_none_or(|tick| now < tick) {
            return;
        }
        for at in 0..self.table.capacity() as u32 {
            let index = CircuitIndex(at);
            let Some(entry) = self.table.get(index) else { continue };
            if now < entry.deadline {
                continue;
            }
            self.counters.expired += 1;
            if entry.farewell.is_some() {
                self.give_up(index, now);
            } else {
                self.abort(index, EndReason::TimedOut, CloseReason::TimedOut, now);
            }
        }
        for at in 0..self.ports.capacity() {
            let Some(link) = self.ports.at(at) else { continue };
            let Some(port) = self.ports.get_mut(link) else { continue };
            if port.circuits == 0 && now >= port.deadline && port.stage != Stage::Wanted {
                port.stage = Stage::Closing;
                self.ports.touch(link);
            } else if port.circuits > 0 && now >= port.deadline && !matches!(port.stage, Stage::Up(_)) {
                // Circuits wait for a handshake that takes too long.
                port.stage = Stage::Closing;
                self.ports.touch(link);
            }
        }
        let busy = !self.table.is_empty() || !self.ports.is_empty();
        self.next_tick = busy.then(|| now.after(TICK));
    }

    /// What waits for a circuit's ends is not taken in time: it is thrown away, and only the farewells remain.
    fn give_up(&mut self, index: CircuitIndex, now: Instant) {
        let Some(entry) = self.table.get_mut(index) else { return };
        entry.farewell = Some(CloseReason::TimedOut);
        if let Role::Client(origin, _) = &entry.role
            && !entry.backward.waiting().is_empty()
            && let Some(origin) = self.origins.get_mut(origin.0 as usize).and_then(|slot| slot.0.as_mut())
        {
            origin.handle_truncated();
        }
        entry.forward.close(&mut self.pool);
        entry.backward.close(&mut self.pool);
        if let Role::Exiting(_, exit) = &mut entry.role {
            // What was thrown away must not look like the end.
            exit.halves.finish_received = false;
        }
        self.wind_up(index, CloseReason::TimedOut, None, now);
    }
}
