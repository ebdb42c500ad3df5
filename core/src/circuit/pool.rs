//! The pool: every relay cell that a node holds lies in one of its slots, and every promise of room is counted against it.
//!
//! Invariant: `held <= reserved <= capacity`. A cell is put into a slot only under a reservation made before, so a sender that was
//! promised room always finds it, and no sender can take more.

use crate::wire::cell::{BODY_LEN, CellBody};

const END: u32 = u32::MAX;

/// One slot of the pool.
#[derive(Clone)]
pub struct PoolSlot {
    next: u32,
    body: CellBody,
}

impl PoolSlot {
    /// A slot that holds nothing.
    pub const EMPTY: Self = Self { next: END, body: [0; BODY_LEN] };
}

/// Cells waiting in order, linked through the pool.
#[derive(Debug, Default)]
pub struct CellQueue {
    ends: Option<(u32, u32)>,
    len: u16,
}

impl CellQueue {
    /// Cells in the queue.
    #[must_use]
    pub const fn len(&self) -> u16 {
        self.len
    }

    /// Whether no cell waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// All the room a node has for relay cells.
pub struct Pool<'m> {
    slots: &'m mut [PoolSlot],
    free: u32,
    reserved: usize,
    held: usize,
}

impl<'m> Pool<'m> {
    /// A pool over `slots`, all of them free.
    #[must_use]
    pub fn new(slots: &'m mut [PoolSlot]) -> Self {
        let len = slots.len().min(END as usize);
        let slots = &mut slots[..len];
        for (index, slot) in slots.iter_mut().enumerate() {
            slot.next = if index + 1 == len { END } else { index as u32 + 1 };
        }
        Self { free: if len == 0 { END } else { 0 }, slots, reserved: 0, held: 0 }
    }

    /// Cells that the pool can hold.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Cells held or promised.
    #[must_use]
    pub const fn reserved(&self) -> usize {
        self.reserved
    }

    /// Cells held.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.held
    }

    /// Room that is neither taken nor promised.
    #[must_use]
    pub const fn unreserved(&self) -> usize {
        self.slots.len() - self.reserved
    }

    /// Promises room for `cells` more, or changes nothing and answers `false`.
    #[must_use]
    pub fn reserve(&mut self, cells: u16) -> bool {
        let granted = self.unreserved() >= usize::from(cells);
        if granted {
            self.reserved += usize::from(cells);
        }
        granted
    }

    /// Takes back a promise of room for `cells`.
    pub fn release(&mut self, cells: u16) {
        debug_assert!(self.reserved >= self.held + usize::from(cells), "room released twice");
        self.reserved = self.reserved.saturating_sub(usize::from(cells));
    }

    /// Puts a cell at the end of `queue`, under a reservation made before.
    ///
    /// Answers the body's place to be filled, or `None` if the caller had no reservation (a bug here, never a peer's doing).
    pub fn push(&mut self, queue: &mut CellQueue) -> Option<&mut CellBody> {
        if self.held >= self.reserved || self.free == END {
            debug_assert!(false, "cell without a reservation");
            return None;
        }
        let at = self.free;
        let slot = &mut self.slots[at as usize];
        self.free = core::mem::replace(&mut slot.next, END);
        self.held += 1;
        queue.len += 1;
        queue.ends = match queue.ends {
            None => Some((at, at)),
            Some((head, tail)) => {
                self.slots[tail as usize].next = at;
                Some((head, at))
            }
        };
        Some(&mut self.slots[at as usize].body)
    }

    /// The first cell of `queue`.
    #[must_use]
    pub fn front(&self, queue: &CellQueue) -> Option<&CellBody> {
        queue.ends.map(|(head, _)| &self.slots[head as usize].body)
    }

    /// Copies the first cell of `queue` out, if there is one, and frees its slot. The reservation stays with the caller.
    pub fn pop(&mut self, queue: &mut CellQueue) -> bool {
        let Some((head, tail)) = queue.ends else { return false };
        let slot = &mut self.slots[head as usize];
        let next = core::mem::replace(&mut slot.next, self.free);
        self.free = head;
        self.held -= 1;
        queue.len -= 1;
        queue.ends = (head != tail).then_some((next, tail));
        true
    }

    /// Frees every cell of `queue`. The reservations stay with the caller.
    pub fn clear(&mut self, queue: &mut CellQueue) {
        while self.pop(queue) {}
    }

    /// The bodies in `queue`, first to last.
    pub fn iter<'a>(&'a self, queue: &CellQueue) -> impl Iterator<Item = &'a CellBody> {
        let mut at = queue.ends.map_or(END, |(head, _)| head);
        core::iter::from_fn(move || {
            let slot = self.slots.get(at as usize)?;
            at = slot.next;
            Some(&slot.body)
        })
        .take(usize::from(queue.len))
    }

    /// Calls `rewrite` on every body in `queue`, first to last; stops when it answers `false`.
    pub fn rewrite_each(&mut self, queue: &CellQueue, mut rewrite: impl FnMut(&mut CellBody) -> bool) {
        let mut at = queue.ends.map_or(END, |(head, _)| head);
        for _ in 0..queue.len {
            let slot = &mut self.slots[at as usize];
            if !rewrite(&mut slot.body) {
                return;
            }
            at = slot.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::VecDeque, vec, vec::Vec};

    #[test]
    fn queues_keep_order_and_slots_come_back() {
        let mut slots = vec![PoolSlot::EMPTY; 8];
        let mut pool = Pool::new(&mut slots);
        assert!(pool.reserve(8));
        assert!(!pool.reserve(1), "a full pool promises nothing more");
        let mut queues = [CellQueue::default(), CellQueue::default()];
        let mut model = [VecDeque::new(), VecDeque::new()];
        let mut stamp = 0u8;
        for round in 0..200usize {
            let which = round % 2;
            if (round * 7) % 3 != 0 && pool.held() < 8 {
                stamp = stamp.wrapping_add(1);
                pool.push(&mut queues[which]).unwrap().fill(stamp);
                model[which].push_back(stamp);
            } else {
                assert_eq!(pool.front(&queues[which]).map(|body| body[508]), model[which].front().copied());
                assert_eq!(pool.pop(&mut queues[which]), model[which].pop_front().is_some());
            }
            for (queue, model) in queues.iter().zip(&model) {
                let bodies: Vec<u8> = pool.iter(queue).map(|body| body[0]).collect();
                assert!(bodies.iter().eq(model), "round {round}");
                assert_eq!(usize::from(queue.len()), model.len());
            }
            assert_eq!(pool.held(), model[0].len() + model[1].len());
        }
        pool.clear(&mut queues[0]);
        pool.clear(&mut queues[1]);
        pool.release(8);
        assert_eq!((pool.held(), pool.reserved(), pool.unreserved()), (0, 0, 8));
    }

    #[test]
    fn rewriting_reaches_every_cell_in_order() {
        let mut slots = vec![PoolSlot::EMPTY; 3];
        let mut pool = Pool::new(&mut slots);
        assert!(pool.reserve(3));
        let mut queue = CellQueue::default();
        for value in 1..=3 {
            pool.push(&mut queue).unwrap().fill(value);
        }
        let mut seen = Vec::new();
        pool.rewrite_each(&queue, |body| {
            seen.push(body[0]);
            body[0] += 10;
            true
        });
        assert_eq!(seen, [1, 2, 3]);
        assert_eq!(pool.iter(&queue).map(|body| body[0]).collect::<Vec<_>>(), [11, 12, 13]);
    }
}
