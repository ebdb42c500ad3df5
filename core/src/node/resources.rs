//! A node's memory as one value that can lie in a `static`: for machines without an allocator, where its size is part of the interface.

use super::{Memory, NodeCircuit, OriginSlot, PortSlot};
use crate::circuit::flow::WINDOW_MIN;
use crate::circuit::index::IndexSlot;
use crate::circuit::pool::PoolSlot;
use crate::relay::onions::OnionSlot;

/// Memory for a node with so many places.
///
/// | parameter | places for | bytes each on x86-64 |
/// | --- | --- | --- |
/// | `LINKS` | links, answered and connected | 440 |
/// | `CIRCUITS` | circuits in any role | 848 |
/// | `INDEX` | the index of circuits: a power of two, at least `4 * CIRCUITS` | 12 |
/// | `CELLS` | cells: at least `2 * 8 * CIRCUITS`, so that every circuit gets its least room both ways | 516 |
/// | `ONIONS` | onions that arrive, are opened or leave | 5,136 |
/// | `ORIGINS` | circuits of our own, at most `CIRCUITS` | 1,528 |
/// | `REPLAY` | replay tags, for each of two onion keys; a set is full at three quarters | 2 x 8 |
///
/// ```
/// use bulbil_core::node::Resources;
/// // In a `static`, behind whatever the platform has for taking it once.
/// let mut resources = Resources::<4, 7, 32, 112, 2, 2, 512>::new();
/// let memory = resources.lend();
/// assert_eq!(memory.cells.len(), 112);
/// ```
///
/// Sizes that do not fit each other do not compile:
///
/// ```compile_fail
/// // An index of 16 places is too small for 7 circuits.
/// let resources = bulbil_core::node::Resources::<4, 7, 16, 112, 2, 2, 512>::new();
/// ```
///
/// ```compile_fail
/// // 100 cells are not the least room of 7 circuits.
/// let resources = bulbil_core::node::Resources::<4, 7, 32, 100, 2, 2, 512>::new();
/// ```
pub struct Resources<
    const LINKS: usize,
    const CIRCUITS: usize,
    const INDEX: usize,
    const CELLS: usize,
    const ONIONS: usize,
    const ORIGINS: usize,
    const REPLAY: usize,
> {
    links: [PortSlot; LINKS],
    circuits: [NodeCircuit; CIRCUITS],
    index: [IndexSlot; INDEX],
    cells: [PoolSlot; CELLS],
    onions: [OnionSlot; ONIONS],
    origins: [OriginSlot; ORIGINS],
    replay: [[u64; REPLAY]; 2],
}

impl<
    const LINKS: usize,
    const CIRCUITS: usize,
    const INDEX: usize,
    const CELLS: usize,
    const ONIONS: usize,
    const ORIGINS: usize,
    const REPLAY: usize,
> Resources<LINKS, CIRCUITS, INDEX, CELLS, ONIONS, ORIGINS, REPLAY>
{
    /// Empty memory.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a default would be built on the stack first")]
    pub const fn new() -> Self {
        const {
            assert!(LINKS >= 1 && LINKS <= 1 << 16, "a node without links reaches nobody");
            assert!(CIRCUITS >= 1, "a node without circuits does nothing");
            assert!(INDEX.is_power_of_two(), "the index wraps round by masking");
            assert!(INDEX / 4 >= CIRCUITS, "a circuit has two entries, and the index is at most half full");
            assert!(CELLS / 2 / (WINDOW_MIN as usize) >= CIRCUITS, "every circuit needs its least room both ways");
            assert!(ONIONS >= 1 && ONIONS <= 1 << 16, "no circuit opens without an onion");
            assert!(ORIGINS <= CIRCUITS, "our own circuits are circuits");
        }
        Self {
            links: [const { PortSlot::EMPTY }; LINKS],
            circuits: [const { NodeCircuit::EMPTY }; CIRCUITS],
            index: [IndexSlot::EMPTY; INDEX],
            cells: [const { PoolSlot::EMPTY }; CELLS],
            onions: [const { OnionSlot::EMPTY }; ONIONS],
            origins: [const { OriginSlot::EMPTY }; ORIGINS],
            replay: [[0; REPLAY]; 2],
        }
    }

    /// The tables, for [`super::Node::new`].
    pub const fn lend(&mut self) -> Memory<'_> {
        let [current, previous] = &mut self.replay;
        Memory {
            links: &mut self.links,
            circuits: &mut self.circuits,
            index: &mut self.index,
            cells: &mut self.cells,
            onions: &mut self.onions,
            origins: &mut self.origins,
            replay: [current, previous],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::rng;
    use crate::node::{Config, Node, Patience};
    use crate::wire::NodeId;
    use crate::wire::handshake::{InitialCredit, LinkLimits, RecordCells};

    /// What fits a microcontroller: four links and seven circuits.
    type Small = Resources<4, 7, 32, 112, 2, 2, 512>;

    #[test]
    fn a_node_lives_in_it() {
        let mut resources = std::boxed::Box::new(Small::new());
        let limits = LinkLimits { record_cells: RecordCells::MIN, credit: InitialCredit::new(WINDOW_MIN).unwrap() };
        let config = Config {
            half_open_links: 2,
            node: NodeId([1; 32]),
            relay: true,
            exit: false,
            limits,
            window_max: WINDOW_MIN,
            circuits_per_link: 7,
            onions_per_link: 1,
            patience: Patience::DEFAULT,
        };
        assert!(Node::new(config, resources.lend(), &mut rng(1)).is_ok());
    }

    /// On a microcontroller the size is part of the interface: whoever changes one of these knows it, and changes the tables in the docs.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn sizes_are_pinned() {
        let places = [
            size_of::<PortSlot>(),
            size_of::<NodeCircuit>(),
            size_of::<IndexSlot>(),
            size_of::<PoolSlot>(),
            size_of::<OnionSlot>(),
            size_of::<OriginSlot>(),
        ];
        assert_eq!(places, [440, 848, 12, 516, 5136, 1528]);
        assert_eq!(size_of::<Small>(), 87_392);
        assert_eq!(size_of::<Node<'_>>(), 512);
    }
}
