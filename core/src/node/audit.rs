//! A node's books: what must hold between any two events, whatever peers do. For tests and for hunting bugs; far too slow for each cell.

use super::Node;
use super::role::Role;
use crate::circuit::table::{End, Side};
use crate::relay::onions::Stage;

impl Node<'_> {
    /// Checks every table against every other.
    ///
    /// # Errors
    /// The sentence says which of them disagree: a bug here.
    pub fn audit(&self) -> Result<(), &'static str> {
        self.audit_pool()?;
        self.audit_links()?;
        self.audit_onions()?;
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

    fn audit_onions(&self) -> Result<(), &'static str> {
        let held = |entry: &crate::circuit::table::Circuit<Role>| {
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
