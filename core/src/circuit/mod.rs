//! The mechanics of circuits, without their roles: where cells wait, who was promised room, which list a circuit stands in.
//!
//! Nothing here encrypts, and nothing here knows whether a circuit is passed on, ends here or began here.

pub mod flow;
pub mod index;
pub mod list;
pub mod pool;
pub mod table;

/// A link's number in this node's table of links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u16);

impl LinkId {
    /// The slot of the link's table.
    #[must_use]
    pub const fn slot(self) -> usize {
        self.0 as usize
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
