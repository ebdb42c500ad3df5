//! A node's books: what must hold between any two events, whatever peers do. For tests and for hunting bugs; far too slow for each cell.

use super::Node;
use super::port::{Port, Stage as PortStage};
use super::role::Role;
use super::timers::TICK;
use crate::circuit::table::{Circuit, End, Listed, Side};
use crate::relay::onions::Stage;
use crate::time::Instant;

impl Node<'_> {
    /// Checks every table against every other.
    ///
    /// # Errors
    /// The sentence says which of them disagree: a bug here.
    pub fn audit(&self) -> Result<(), &'static str> {
        self.audit_pool()?;
        self.audit_links()?;
        self.audit_onions()?;
        self.audit_lists()?;
        self.audit_deadlines()?;
        let clients = self.table.iter().filter(|(_, entry)| matches!(entry.role, Role::Client(..))).count();
        if clients != self.origins.iter().filter(|slot| slot.0.is_some()).count() {
            return Err("origins and circuits of our own differ");
        }
        if self.next_tick.is_none() && !(self.table.is_empty() && self.ports.is_empty()) {
            return Err("something is open and no deadline will be looked at");
        }
        Ok(())
    }

    fn audit_pool(&self) -> Result<(), &'static str> {
        let (mut held, mut reserved) = (0, 0);
        for (_, entry) in self.table.iter() {
            for flow in [&entry.forward, &entry.backward] {
                held += usize::from(flow.waiting().len());
                reserved += usize::from(flow.room());
            }
        }
        match (held == self.pool.held(), reserved == self.pool.reserved()) {
            (true, true) if held <= reserved && reserved <= self.pool.capacity() => Ok(()),
            (true, true) => Err("the pool promises more than it has"),
            (false, _) => Err("cells in the pool and in circuits differ"),
            (_, false) => Err("room promised by the pool and by circuits differs"),
        }
    }

    fn audit_links(&self) -> Result<(), &'static str> {
        let ends = self.table.iter().flat_map(|(_, entry)| [entry.inward, entry.outward]);
        if ends.filter(|end| matches!(end, End::Link(..))).count() != self.index.len() {
            return Err("the index has entries of circuits that are gone");
        }
        for (index, entry) in self.table.iter() {
            for side in [Side::Inward, Side::Outward] {
                let End::Link(link, id) = entry.end(side) else { continue };
                if self.index.get(link, id) != Some(index) {
                    return Err("a circuit is not in the index");
                }
                if self.ports.get(link).is_none_or(|port| port.side != side) {
                    return Err("a circuit is on a link that is gone");
                }
            }
            if entry.farewell.is_some() && entry.inward == End::Detached && entry.outward == End::Detached {
                return Err("a circuit without ends stays");
            }
        }
        for (link, port) in self.ports.iter() {
            let on_link = |end| matches!(end, End::Link(on, _) if on == link);
            let circuits = self.table.iter().filter(|(_, entry)| on_link(entry.end(port.side))).count();
            if circuits != port.circuits as usize {
                return Err("a link and its circuits differ");
            }
            if let Some((_, onion)) = port.arriving
                && !matches!(self.onions.stage(onion), Stage::Arriving { .. })
            {
                return Err("an onion that arrives is not there");
            }
            if self.onions.of_link(link) != usize::from(port.onions) {
                return Err("a link and its onions differ");
            }
        }
        Ok(())
    }

    /// Whoever waits for this node to do something stands in a list, so that the owner hears of it.
    fn audit_lists(&self) -> Result<(), &'static str> {
        for (index, entry) in self.table.iter() {
            for side in [Side::Inward, Side::Outward] {
                let End::Link(..) = entry.end(side) else { continue };
                let flow = entry.flow(side);
                let may_send = side == Side::Inward || entry.role.is_sending();
                let farewell_due = entry.farewell.is_some() && flow.waiting().is_empty();
                if may_send && (flow.sendable() || farewell_due) && !self.table.is_listed(index, Listed::Output(side)) {
                    return Err("a circuit has something to send and is not listed");
                }
            }
            for side in [Side::Inward, Side::Outward] {
                let flow = entry.flow(side.opposite());
                let starved = flow.due() > 0 && flow.promised() == 0 && flow.waiting().is_empty();
                if starved
                    && entry.farewell.is_none()
                    && entry.end(side) != End::Detached
                    && !self.table.is_listed(index, Listed::Grant(side))
                {
                    return Err("a sender has nothing left and will not be told of the room that there is");
                }
            }
        }
        Ok(())
    }

    /// Checks besides [`Node::audit`] that the owner will hear of every link that wants something of it, and that every link's deadline is
    /// looked at in time. For an owner who acts at once upon each wish that [`Node::poll_link`] tells it: a wish for a link may be older than the
    /// link's deadline otherwise.
    ///
    /// # Errors
    /// The sentence says what was forgotten: a bug here, or in the owner.
    pub fn audit_wishes(&self) -> Result<(), &'static str> {
        for (link, port) in self.ports.iter() {
            let wants = match port.stage {
                PortStage::Up(_) => port.has_output() && !port.unsent,
                PortStage::Wanted | PortStage::Closing => true,
                PortStage::Opening | PortStage::AwaitingHello => false,
            };
            if wants && !self.ports.is_ready(link) {
                return Err("a link wants the owner, and the owner will not hear of it");
            }
        }
        let waits = |port: &Port| match port.stage {
            PortStage::Up(_) => port.circuits == 0,
            PortStage::Opening | PortStage::AwaitingHello => true,
            PortStage::Wanted | PortStage::Closing => false,
        };
        if self.ports.iter().any(|(_, port)| waits(port) && self.is_late(port.deadline)) {
            return Err("a link's deadline has passed unseen");
        }
        Ok(())
    }

    /// Every circuit has a deadline that is looked at in time.
    fn audit_deadlines(&self) -> Result<(), &'static str> {
        if self.table.iter().any(|(_, entry)| self.is_late(entry.deadline)) {
            return Err("a circuit's deadline has passed unseen");
        }
        Ok(())
    }

    fn is_late(&self, deadline: Instant) -> bool {
        self.next_tick.is_some_and(|tick| deadline.after(TICK) <= tick)
    }

    /// Checks besides [`Node::audit`] that no deadline is further away than this node's patience lasts, and that the next look at them is due
    /// within a second. For an owner who calls [`Node::handle_timeout`] in time.
    ///
    /// # Errors
    /// The sentence says what waits too long: a bug here.
    pub fn audit_patience(&self, now: Instant) -> Result<(), &'static str> {
        let patience = self.config.patience;
        if self.next_tick.is_some_and(|tick| tick > now.after(TICK)) {
            return Err("deadlines are looked at too late");
        }
        // Of our own circuits the application may say more at any time; their link has a deadline.
        let opens = |entry: &Circuit<Role>| {
            entry.farewell.is_none() && !entry.role.is_sending() && !matches!(entry.role, Role::Client(..))
        };
        let longest = patience.opening.max(patience.idle).max(patience.draining);
        let longest = |entry| if opens(entry) { patience.opening } else { longest };
        if self.table.iter().any(|(_, entry)| entry.deadline > now.after(longest(entry))) {
            return Err("a circuit's deadline is too far away");
        }
        let longest = patience.handshake + patience.link_idle;
        if self.ports.iter().any(|(_, port)| port.deadline > now.after(longest)) {
            return Err("a link's deadline is too far away");
        }
        Ok(())
    }

    fn audit_onions(&self) -> Result<(), &'static str> {
        let held = |entry: &Circuit<Role>| {
            matches!(entry.role, Role::Opening { .. } | Role::Passing(_, Some(_)) | Role::Client(_, Some(_)))
        };
        let circuits = self.table.iter().filter(|(_, entry)| held(entry)).count();
        // An onion that is being opened stays until that is done, even when its circuit is gone.
        let has_use = |name, onion| {
            let entry = self.table.find(name).and_then(|index| self.table.get(index));
            matches!(entry.map(|entry| &entry.role), Some(Role::Opening { onion: opening, .. }) if *opening == onion)
        };
        if circuits + self.onions.abandoned(has_use) != self.onions.len() {
            return Err("onions and their circuits differ");
        }
        Ok(())
    }
}
