//! Onions in memory: arriving cell by cell, waiting for the private-key operation, leaving cell by cell.
//!
//! There is a fixed number of places; an onion that finds none is refused. `PROTOCOL.md` sections 6 and 7.

use crate::circuit::LinkId;
use crate::circuit::list::{Hook, Hooked, List};
use crate::circuit::table::ConversationId;
use crate::crypto::onion::{ONION_CELLS, ONION_LEN, Onion};
use crate::wire::cell::{BODY_LEN, CellBody};

/// An onion's place in this node's table of onions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OnionIndex(u16);

impl OnionIndex {
    const fn slot(self) -> usize {
        self.0 as usize
    }
}

/// How far an onion has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// No onion here.
    Free,
    /// Cells come in from a link; the circuit is known, its keys are not.
    Arriving {
        /// Cells that have come.
        cells: usize,
    },
    /// Complete, and waiting to be opened.
    Waiting,
    /// Being opened by the owner's private key.
    Working,
    /// The next hop's onion, on its way out.
    Leaving {
        /// Cells that are sent.
        cells: usize,
    },
}

/// A place for one onion.
pub struct OnionSlot {
    stage: Stage,
    circuit: Option<ConversationId>,
    from: Option<LinkId>,
    hook: Hook,
    onion: Onion,
}

impl OnionSlot {
    /// A place without an onion.
    pub const EMPTY: Self =
        Self { stage: Stage::Free, circuit: None, from: None, hook: Hook::NONE, onion: [0; ONION_LEN] };
}

/// An onion stands in one list at most: the one for jobs, or one link's for leaving.
#[derive(Debug, Clone, Copy)]
pub struct OnionHook;

impl Hooked<OnionHook> for OnionSlot {
    fn hook(&mut self, _: OnionHook) -> &mut Hook {
        &mut self.hook
    }
}

/// The table of onions over caller-given places.
pub struct Onions<'m> {
    slots: &'m mut [OnionSlot],
    jobs: List,
}

impl<'m> Onions<'m> {
    /// A table without onions; more than 65,536 places are not used.
    #[must_use]
    pub fn new(slots: &'m mut [OnionSlot]) -> Self {
        let len = slots.len().min(1 << 16);
        let slots = &mut slots[..len];
        slots.fill_with(|| OnionSlot::EMPTY);
        Self { slots, jobs: List::default() }
    }

    /// Takes a place for an onion that arrives, or `None` if all are taken.
    pub fn arrive(&mut self, from: LinkId, circuit: ConversationId) -> Option<OnionIndex> {
        self.take(Stage::Arriving { cells: 0 }, Some(from), circuit)
    }

    /// Takes a place for an onion of our own and answers where to put it.
    pub fn depart(&mut self, circuit: ConversationId) -> Option<(OnionIndex, &mut Onion)> {
        let index = self.take(Stage::Leaving { cells: 0 }, None, circuit)?;
        Some((index, &mut self.slots[index.slot()].onion))
    }

    fn take(&mut self, stage: Stage, from: Option<LinkId>, circuit: ConversationId) -> Option<OnionIndex> {
        let at = self.slots.iter().position(|slot| slot.stage == Stage::Free)?;
        let slot = &mut self.slots[at];
        (slot.stage, slot.from, slot.circuit) = (stage, from, Some(circuit));
        Some(OnionIndex(at as u16))
    }

    /// Onions that are here, whatever their stage.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.iter().filter(|slot| slot.stage != Stage::Free).count()
    }

    /// Onions that can be here at once.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Whether no onion is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How far the onion has come.
    #[must_use]
    pub fn stage(&self, index: OnionIndex) -> Stage {
        self.slots[index.slot()].stage
    }

    /// The circuit that the onion opens.
    #[must_use]
    pub fn circuit(&self, index: OnionIndex) -> Option<ConversationId> {
        self.slots[index.slot()].circuit
    }

    /// Adds the next cell of an onion that arrives; answers whether it is now complete, and then lists it as a job.
    pub fn handle_part(&mut self, index: OnionIndex, body: &CellBody) -> bool {
        let slot = &mut self.slots[index.slot()];
        let Stage::Arriving { cells } = slot.stage else { return false };
        if let Some(place) = slot.onion.get_mut(cells * BODY_LEN..(cells + 1) * BODY_LEN) {
            place.copy_from_slice(body);
        }
        let complete = cells + 1 == ONION_CELLS;
        slot.stage = if complete { Stage::Waiting } else { Stage::Arriving { cells: cells + 1 } };
        if complete {
            self.jobs.push(self.slots, index.slot(), OnionHook);
        }
        complete
    }

    /// The next onion to open: it counts as worked on until [`Self::finish`] or [`Self::free`].
    pub fn poll_job(&mut self) -> Option<(OnionIndex, &mut Onion)> {
        let at = self.jobs.pop(self.slots, OnionHook)?;
        let slot = &mut self.slots[at];
        slot.stage = Stage::Working;
        Some((OnionIndex(at as u16), &mut slot.onion))
    }

    /// Whether the onion is being opened.
    #[must_use]
    pub fn is_working(&self, index: OnionIndex) -> bool {
        self.slots.get(index.slot()).is_some_and(|slot| slot.stage == Stage::Working)
    }

    /// The link that the onion came from, unless that is gone.
    #[must_use]
    pub fn from(&self, index: OnionIndex) -> Option<LinkId> {
        self.slots.get(index.slot())?.from
    }

    /// Onions that came over `link` and are still here.
    #[must_use]
    pub fn of_link(&self, link: LinkId) -> usize {
        self.slots.iter().filter(|slot| slot.from == Some(link) && slot.stage != Stage::Free).count()
    }

    /// Onions that are being opened although their circuit, looked up with `find`, is gone or has no use for them.
    #[must_use]
    pub fn abandoned(&self, mut has_use: impl FnMut(ConversationId, OnionIndex) -> bool) -> usize {
        let places = self.slots.iter().enumerate().filter(|(_, slot)| slot.stage == Stage::Working);
        places.filter(|(at, slot)| !slot.circuit.is_some_and(|name| has_use(name, OnionIndex(*at as u16)))).count()
    }

    /// A link is gone: what is being opened for it comes back to nobody.
    pub fn forget_link(&mut self, link: LinkId) {
        for slot in &mut *self.slots {
            if slot.from == Some(link) {
                slot.from = None;
            }
        }
    }

    /// The onion's bytes; its place must be taken.
    pub fn bytes(&mut self, index: OnionIndex) -> &mut Onion {
        &mut self.slots[index.slot()].onion
    }

    /// Makes an opened onion leave.
    pub fn finish(&mut self, index: OnionIndex) {
        self.slots[index.slot()].stage = Stage::Leaving { cells: 0 };
    }

    /// Lists a leaving onion as `list`'s last.
    pub fn enqueue(&mut self, list: &mut List, index: OnionIndex) {
        list.push(self.slots, index.slot(), OnionHook);
    }

    /// Takes a leaving onion out of `list`, if it is there.
    pub fn dequeue(&mut self, list: &mut List, index: OnionIndex) {
        list.remove(self.slots, index.slot(), OnionHook);
    }

    /// The onion that leaves first on `list`.
    #[must_use]
    pub fn front(&self, list: &List) -> Option<OnionIndex> {
        list.front().map(|at| OnionIndex(at as u16))
    }

    /// Copies the next cell of a leaving onion into `body`; answers whether that was the last one.
    pub fn poll_part(&mut self, index: OnionIndex, body: &mut CellBody) -> bool {
        let slot = &mut self.slots[index.slot()];
        let Stage::Leaving { cells } = slot.stage else { return true };
        if let Some(part) = slot.onion.get(cells * BODY_LEN..(cells + 1) * BODY_LEN) {
            body.copy_from_slice(part);
        }
        slot.stage = Stage::Leaving { cells: cells + 1 };
        cells + 1 >= ONION_CELLS
    }

    /// Gives the place back. An onion that is listed as leaving must be taken out of its list first.
    pub fn free(&mut self, index: OnionIndex) {
        if self.stage(index) == Stage::Waiting {
            self.jobs.remove(self.slots, index.slot(), OnionHook);
        }
        let slot = &mut self.slots[index.slot()];
        (slot.stage, slot.circuit, slot.from) = (Stage::Free, None, None);
    }
}
