//! The table of circuits: fixed slots, each with two ends and two flows, and a role `R` that the layers above fill in.

use super::flow::Flow;
use super::list::{Hook, Hooked};
use super::{CircuitIndex, LinkId};
use crate::time::Instant;
use crate::wire::{CircuitId, CloseReason};

/// One of a circuit's two ends, and with it the direction of the flow that leaves there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Toward the client: backward cells leave here, forward cells come in.
    Inward,
    /// Away from the client: forward cells leave here, backward cells come in.
    Outward,
}

impl Side {
    /// The other side.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Inward => Self::Outward,
            Self::Outward => Self::Inward,
        }
    }
}

/// What a circuit is attached to at one of its ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Not attached yet (outward, while the onion is opened) or not any more.
    Detached,
    /// A circuit id on a link.
    Link(LinkId, CircuitId),
    /// A conversation of this node: the target's at an exit, the application's at a client.
    Conversation,
}

/// The lists that a circuit can stand in, one hook each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// Has something to send on the link at this side.
    Output(Side),
    /// Has room to announce to the link at this side.
    Grant(Side),
    /// Its conversation wants the driver's attention.
    Attention,
}

/// A circuit.
pub struct Circuit<R> {
    /// The end toward the client.
    pub inward: End,
    /// The end away from the client.
    pub outward: End,
    /// Cells from the client.
    pub forward: Flow,
    /// Cells to the client.
    pub backward: Flow,
    /// Set once one end is gone: what to tell the other end after what waits for it has been sent.
    pub farewell: Option<CloseReason>,
    /// When the circuit is given up unless something moves.
    pub deadline: Instant,
    /// What the circuit is here.
    pub role: R,
}

impl<R> Circuit<R> {
    /// What is attached at `side`.
    #[must_use]
    pub const fn end(&self, side: Side) -> End {
        match side {
            Side::Inward => self.inward,
            Side::Outward => self.outward,
        }
    }

    /// The flow of cells that leave at `side`, to be looked at.
    #[must_use]
    pub const fn flow(&self, side: Side) -> &Flow {
        match side {
            Side::Inward => &self.backward,
            Side::Outward => &self.forward,
        }
    }

    /// Attaches `end` at `side`.
    pub const fn set_end(&mut self, side: Side, end: End) {
        match side {
            Side::Inward => self.inward = end,
            Side::Outward => self.outward = end,
        }
    }

    /// The flow of cells that leave at `side`.
    #[must_use]
    pub const fn leaving(&mut self, side: Side) -> &mut Flow {
        match side {
            Side::Inward => &mut self.backward,
            Side::Outward => &mut self.forward,
        }
    }

    /// The flow of cells that come in at `side`.
    #[must_use]
    pub const fn entering(&mut self, side: Side) -> &mut Flow {
        self.leaving(side.opposite())
    }
}

/// A place in the table.
pub struct CircuitSlot<R> {
    circuit: Option<Circuit<R>>,
    /// Counts the circuits that this slot has held, so that a late answer for an old one is known.
    generation: u32,
    hooks: [Hook; 5],
}

impl<R> CircuitSlot<R> {
    /// A place without a circuit.
    pub const EMPTY: Self = Self { circuit: None, generation: 0, hooks: [Hook::NONE; 5] };
}

impl Listed {
    /// Its place among a slot's hooks.
    const fn place(self) -> usize {
        match self {
            Self::Output(Side::Inward) => 0,
            Self::Output(Side::Outward) => 1,
            Self::Grant(Side::Inward) => 2,
            Self::Grant(Side::Outward) => 3,
            Self::Attention => 4,
        }
    }
}

impl<R> Hooked<Listed> for CircuitSlot<R> {
    fn hook(&mut self, kind: Listed) -> &mut Hook {
        &mut self.hooks[kind.place()]
    }
}

/// A circuit and which of the slot's circuits it is: names a conversation for as long as anybody may speak of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConversationId {
    index: CircuitIndex,
    generation: u32,
}

impl ConversationId {
    /// The slot that the circuit takes while it lives.
    #[must_use]
    pub const fn index(self) -> CircuitIndex {
        self.index
    }
}

/// The table over caller-given slots.
pub struct Table<'m, R> {
    slots: &'m mut [CircuitSlot<R>],
    used: usize,
    /// Where the search for a free slot begins, so that slots are used in turn and ids stay fresh.
    next: usize,
}

impl<'m, R> Table<'m, R> {
    /// An empty table.
    pub fn new(slots: &'m mut [CircuitSlot<R>]) -> Self {
        Self { slots, used: 0, next: 0 }
    }

    /// Circuits in the table.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.used
    }

    /// Whether no circuit is in the table.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Circuits that the table can hold.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Whether no more circuits fit.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.used == self.slots.len()
    }

    /// Adds a circuit; `None` if the table is full.
    pub fn insert(&mut self, circuit: Circuit<R>) -> Option<CircuitIndex> {
        if self.is_full() {
            return None;
        }
        let len = self.slots.len();
        let at = (self.next..len).chain(0..self.next).find(|&at| self.slots[at].circuit.is_none())?;
        self.next = (at + 1) % len;
        self.used += 1;
        self.slots[at].circuit = Some(circuit);
        Some(CircuitIndex(at as u32))
    }

    /// Removes a circuit. It must stand in no list.
    pub fn remove(&mut self, index: CircuitIndex) -> Option<Circuit<R>> {
        let slot = self.slots.get_mut(index.slot())?;
        let circuit = slot.circuit.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.used -= 1;
        Some(circuit)
    }

    /// The circuit at `index`.
    #[must_use]
    pub fn get(&self, index: CircuitIndex) -> Option<&Circuit<R>> {
        self.slots.get(index.slot())?.circuit.as_ref()
    }

    /// The circuit at `index`.
    pub fn get_mut(&mut self, index: CircuitIndex) -> Option<&mut Circuit<R>> {
        self.slots.get_mut(index.slot())?.circuit.as_mut()
    }

    /// The name of the conversation on the circuit at `index`.
    #[must_use]
    pub fn name(&self, index: CircuitIndex) -> ConversationId {
        ConversationId { index, generation: self.slots.get(index.slot()).map_or(0, |slot| slot.generation) }
    }

    /// The circuit named so, unless it is gone.
    #[must_use]
    pub fn find(&self, name: ConversationId) -> Option<CircuitIndex> {
        let slot = self.slots.get(name.index.slot())?;
        (slot.generation == name.generation && slot.circuit.is_some()).then_some(name.index)
    }

    /// Whether the circuit at `index` stands in its list of that kind.
    #[must_use]
    pub fn is_listed(&self, index: CircuitIndex, kind: Listed) -> bool {
        self.slots.get(index.slot()).is_some_and(|slot| slot.hooks[kind.place()].is_listed())
    }

    /// Every circuit's index and itself.
    pub fn iter(&self) -> impl Iterator<Item = (CircuitIndex, &Circuit<R>)> {
        (0u32..).zip(self.slots.iter()).filter_map(|(at, slot)| Some((CircuitIndex(at), slot.circuit.as_ref()?)))
    }

    /// The slots, for the lists that run through them.
    pub const fn slots(&mut self) -> &mut [CircuitSlot<R>] {
        self.slots
    }
}
