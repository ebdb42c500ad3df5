//! The mechanics of circuits, without their roles: where cells wait, who was promised room, which list a circuit stands in.
//!
//! Nothing here encrypts, and nothing here knows whether a circuit is passed on, ends here or began here.

pub mod flow;
pub mod index;
pub mod list;
pub mod pool;
pub mod table;

/// A link's name: its place in this node's table of links, and which of the place's links it is, so that a late answer for an old one
/// is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LinkId {
    slot: u16,
    generation: u16,
}

impl LinkId {
    /// The link in that place, the `generation`th there. Only the table of links makes links; shells name them in their own tables and tests.
    #[must_use]
    pub const fn new(slot: u16, generation: u16) -> Self {
        Self { slot, generation }
    }

    /// The place in the table of links.
    #[must_use]
    pub const fn slot(self) -> usize {
        self.slot as usize
    }

    pub(crate) const fn generation(self) -> u16 {
        self.generation
    }
}

/// A circuit's number in this node's table of circuits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CircuitIndex(pub u32);

impl CircuitIndex {
    /// The slot of the circuit's table.
    #[must_use]
    pub const fn slot(self) -> usize {
        self.0 as usize
    }
}
