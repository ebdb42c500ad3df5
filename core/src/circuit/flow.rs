//! One direction of a circuit at one node: the cells that wait, what was promised to the sender, what the receiver promised us.
//!
//! `PROTOCOL.md` section 10. All room is reserved in the [`Pool`] before it is promised, so at any time the pool's reservation for this
//! flow is `waiting + promised + due`: cells here, cells that the sender may still send, and cells whose room is free again but not yet
//! announced.

use super::pool::{CellQueue, Pool};
use crate::wire::cell::CellBody;

/// Cells of promised room below which a window never shrinks.
pub const WINDOW_MIN: u16 = 8;

/// A cell came for which no room was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overrun;

/// One direction of a circuit.
#[derive(Debug, Default)]
pub struct Flow {
    waiting: CellQueue,
    /// What the sender may still send.
    promised: u16,
    /// Room that is free again and that the sender has not been told of.
    due: u16,
    /// Cells of room that this flow should have in all.
    window: u16,
    /// What the receiver lets us send.
    credit: u32,
}

impl Flow {
    /// Reserves `room` cells for a sender that knows of them already (the initial credit), or answers `None`.
    pub fn open(pool: &mut Pool<'_>, room: u16) -> Option<Self> {
        pool.reserve(room).then(|| Self { promised: room, window: room, ..Self::default() })
    }

    /// Cells that wait to be sent on.
    #[must_use]
    pub const fn waiting(&self) -> &CellQueue {
        &self.waiting
    }

    /// Cells that the sender may still send.
    #[must_use]
    pub const fn promised(&self) -> u16 {
        self.promised
    }

    /// Cells of room that are free again and that the sender has not been told of.
    #[must_use]
    pub const fn due(&self) -> u16 {
        self.due
    }

    /// Cells that the receiver lets us send.
    #[must_use]
    pub const fn credit(&self) -> u32 {
        self.credit
    }

    /// All the room that this flow has in the pool, used or not.
    #[must_use]
    pub fn room(&self) -> u16 {
        self.waiting.len() + self.promised + self.due
    }

    /// Cells of room that this flow should have in all; 0 once the sender is gone.
    #[cfg(test)]
    pub(crate) const fn window(&self) -> u16 {
        self.window
    }

    /// Adds to the room that the sender knows of from the beginning.
    #[cfg(test)]
    pub(crate) fn widen(&mut self, pool: &mut Pool<'_>, room: u16) {
        assert!(pool.reserve(room));
        self.promised += room;
        self.window += room;
    }

    /// Whether a cell can be sent on now.
    #[must_use]
    pub const fn sendable(&self) -> bool {
        !self.waiting.is_empty() && self.credit > 0
    }

    /// The receiver grants room for `cells` more.
    ///
    /// # Errors
    /// More than 65,535 in all, which no receiver has a reason for: a violation.
    pub fn handle_credit(&mut self, cells: u16) -> Result<(), Overrun> {
        let credit = self.credit + u32::from(cells);
        if credit > u32::from(u16::MAX) {
            return Err(Overrun);
        }
        self.credit = credit;
        Ok(())
    }

    /// Takes a cell from the sender and answers its place in the pool, to be filled.
    ///
    /// # Errors
    /// The sender had no room left.
    pub fn push<'p>(&mut self, pool: &'p mut Pool<'_>) -> Result<&'p mut CellBody, Overrun> {
        let promised = self.promised.checked_sub(1).ok_or(Overrun)?;
        let body = pool.push(&mut self.waiting).ok_or(Overrun)?;
        self.promised = promised;
        Ok(body)
    }

    /// Takes the first waiting cell back out into `body`, as if the sender had not sent it yet; answers `false` if none waits.
    ///
    /// For cells that came before their keys: each is taken out and received again, in order.
    pub fn unreceive(&mut self, pool: &mut Pool<'_>, body: &mut CellBody) -> bool {
        let Some(first) = pool.front(&self.waiting) else { return false };
        *body = *first;
        self.promised += 1;
        pool.pop(&mut self.waiting)
    }

    /// Counts a cell that the sender sent and that was used up at once.
    ///
    /// # Errors
    /// The sender had no room left.
    pub fn consume(&mut self, pool: &mut Pool<'_>, growth: Growth) -> Result<(), Overrun> {
        self.promised = self.promised.checked_sub(1).ok_or(Overrun)?;
        self.due += 1;
        self.resize(pool, growth);
        Ok(())
    }

    /// Removes the first cell, now sent on; uses up one cell of the receiver's room.
    pub fn pop(&mut self, pool: &mut Pool<'_>, growth: Growth) {
        if pool.pop(&mut self.waiting) {
            self.credit = self.credit.saturating_sub(1);
            self.due += 1;
            self.resize(pool, growth);
        }
    }

    /// Removes the first cell, used up here rather than sent on.
    pub fn pop_local(&mut self, pool: &mut Pool<'_>, growth: Growth) {
        if pool.pop(&mut self.waiting) {
            self.due += 1;
            self.resize(pool, growth);
        }
    }

    /// Fits the room to what the flow uses, called when a cell's room came free.
    ///
    /// A flow whose sender uses its room while nothing piles up here gets one more cell per cell (so its window doubles each round
    /// trip), until what it has beyond the minimum is as much as the pool has left beyond a quarter, which is for new circuits. So flows
    /// that use their room come to the same share, however many they are and whoever came first: as more come, less is left, and those
    /// that have more give room back, cell by cell; all at once when less than an eighth is left.
    fn resize(&mut self, pool: &mut Pool<'_>, growth: Growth) {
        if self.window == 0 {
            // The sender is gone: room that comes free is nobody's.
            pool.release(core::mem::take(&mut self.due));
            return;
        }
        let extra = self.window.saturating_sub(growth.min);
        let share = pool.unreserved().saturating_sub(pool.capacity() / 4);
        let excess = match usize::from(extra) {
            0 => 0,
            _ if pool.unreserved() < pool.capacity() / 8 => extra,
            // A little more than its share is not worth moving room to and fro.
            has if has > share + share / 4 => 1,
            _ => 0,
        };
        if excess > 0 {
            let excess = excess.min(self.due);
            self.window -= excess;
            self.due -= excess;
            pool.release(excess);
        } else if self.window < growth.max
            && self.waiting.len() <= self.window / 2
            && usize::from(extra) < share
            && pool.reserve(1)
        {
            self.window += 1;
            self.due += 1;
        }
    }

    /// Whether so much room came free that the sender should be told now.
    #[must_use]
    pub fn announce_due(&self) -> bool {
        self.due > 0 && (self.due >= self.window / 4 || self.promised == 0)
    }

    /// Promises the sender what is due, and answers how much that is.
    pub fn announce(&mut self) -> u16 {
        let due = core::mem::take(&mut self.due);
        self.promised += due;
        due
    }

    /// Frees the waiting cells and all promised room: nothing more will be taken from the sender.
    pub fn close(&mut self, pool: &mut Pool<'_>) {
        let room = self.room();
        pool.clear(&mut self.waiting);
        pool.release(room);
        *self = Self { credit: self.credit, ..Self::default() };
    }

    /// Gives back the room that the sender has not used: it will send nothing more. Waiting cells stay.
    pub fn close_sender(&mut self, pool: &mut Pool<'_>) {
        pool.release(core::mem::take(&mut self.promised) + core::mem::take(&mut self.due));
        self.window = 0;
    }

    /// Adds a cell of our own behind the waiting ones after the sender is gone; `None` if the pool has no room for it.
    pub fn push_farewell<'p>(&mut self, pool: &'p mut Pool<'_>) -> Option<&'p mut CellBody> {
        pool.reserve(1).then(|| pool.push(&mut self.waiting)).flatten()
    }
}

/// Between what sizes a window may move.
#[derive(Debug, Clone, Copy)]
pub struct Growth {
    /// Never less than this.
    pub min: u16,
    /// Never more than this.
    pub max: u16,
}

#[cfg(test)]
mod tests {
    use super::super::pool::PoolSlot;
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    const GROWTH: Growth = Growth { min: 8, max: 64 };

    #[test]
    fn a_sender_without_room_is_an_overrun() {
        let mut slots = vec![PoolSlot::EMPTY; 64];
        let mut pool = Pool::new(&mut slots);
        let mut flow = Flow::open(&mut pool, 8).unwrap();
        for _ in 0..8 {
            flow.push(&mut pool).unwrap();
        }
        assert_eq!(flow.push(&mut pool).unwrap_err(), Overrun);
        assert_eq!(flow.waiting().len(), 8);
        flow.close(&mut pool);
        assert_eq!((pool.held(), pool.reserved()), (0, 0));
    }

    #[test]
    fn a_flow_that_moves_grows_and_one_under_pressure_shrinks() {
        let mut slots = vec![PoolSlot::EMPTY; 256];
        let mut pool = Pool::new(&mut slots);
        let mut flow = Flow::open(&mut pool, 8).unwrap();
        for _ in 0..500 {
            flow.handle_credit(1).unwrap();
            flow.push(&mut pool).unwrap();
            flow.pop(&mut pool, GROWTH);
            if flow.announce_due() {
                flow.announce();
            }
        }
        assert_eq!(flow.room(), 64, "grows to its largest window");
        let rest = u16::try_from(pool.unreserved()).unwrap() - 4;
        assert!(pool.reserve(rest));
        for _ in 0..500 {
            if flow.promised() > 0 {
                flow.push(&mut pool).unwrap();
                flow.pop_local(&mut pool, GROWTH);
            }
            if flow.announce_due() {
                flow.announce();
            }
        }
        assert_eq!(flow.room(), GROWTH.min, "gives all of it back while the pool is short of room for new circuits");
        flow.close(&mut pool);
        pool.release(rest);
        assert_eq!(pool.reserved(), 0);
    }

    #[test]
    fn flows_come_to_the_same_share_whoever_came_first() {
        const GREEDY: Growth = Growth { min: 8, max: 200 };
        let mut slots = vec![PoolSlot::EMPTY; 256];
        let mut pool = Pool::new(&mut slots);
        let mut flows = vec![];
        for count in 1..=6 {
            flows.push(Flow::open(&mut pool, 8).unwrap());
            for turn in 0..4000 {
                let flow: &mut Flow = &mut flows[turn % count];
                if flow.promised() > 0 {
                    flow.handle_credit(1).unwrap();
                    flow.push(&mut pool).unwrap();
                    flow.pop(&mut pool, GREEDY);
                }
                if flow.announce_due() {
                    flow.announce();
                }
            }
            let rooms = || flows.iter().map(Flow::room);
            let (least, most) = (rooms().min().unwrap(), rooms().max().unwrap());
            assert!(most - least <= most / 4, "{count} flows have {least} to {most}");
            assert!(usize::from(least) > 128 / (count + 1), "{count} flows have only {least}");
            assert!(pool.unreserved() >= 256 / 4, "{count} flows leave room for new circuits");
        }
    }

    proptest! {
        /// Whatever happens, the pool's reservation is the sum of what the flows account for.
        #[test]
        fn reservations_always_add_up(steps in proptest::collection::vec((0..2usize, 0..6u8), 0..300)) {
            let mut slots = vec![PoolSlot::EMPTY; 48];
            let mut pool = Pool::new(&mut slots);
            let mut flows = [Flow::open(&mut pool, 8).unwrap(), Flow::open(&mut pool, 8).unwrap()];
            for (which, action) in steps {
                let flow = &mut flows[which];
                match action {
                    0 | 1 => {
                        let had = flow.promised();
                        prop_assert_eq!(flow.push(&mut pool).is_ok(), had > 0);
                    }
                    2 => flow.pop(&mut pool, GROWTH),
                    3 => { flow.announce(); }
                    4 => { let had = flow.promised(); prop_assert_eq!(flow.consume(&mut pool, GROWTH).is_ok(), had > 0); }
                    _ => flow.handle_credit(3).unwrap(),
                }
                prop_assert_eq!(pool.reserved(), flows.iter().map(|flow| usize::from(flow.room())).sum::<usize>());
                prop_assert_eq!(pool.held(), flows.iter().map(|flow| usize::from(flow.waiting().len())).sum::<usize>());
                prop_assert!(pool.reserved() <= pool.capacity());
            }
        }
    }
}
