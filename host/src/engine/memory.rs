//! The memory of a host's node: as much as its configuration says, allocated once at the start, and never more.

use bulbil_core::circuit::index::{IndexSlot, index_len};
use bulbil_core::circuit::pool::PoolSlot;
use bulbil_core::driver::{LINK_BUFFER_MIN, LinkPlace, OutsidePlace};
use bulbil_core::link::record::{RECORD_LEN_MAX, record_len};
use bulbil_core::node::{self, NodeCircuit, OriginSlot, PortSlot};
use bulbil_core::relay::onions::OnionSlot;
use bulbil_core::wire::message::DATA_MAX;

use super::shell::TokioShell;

/// How much a node can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Links, answered and connected.
    pub links: usize,
    /// Circuits in any role.
    pub circuits: usize,
    /// Relay cells, 516 bytes each.
    pub cells: usize,
    /// Onions that arrive, are opened or leave.
    pub onions: usize,
    /// Our own circuits.
    pub origins: usize,
    /// Circuits that one onion key may open.
    pub replay: usize,
}

impl Default for Sizes {
    /// Room for a busy relay: about 330 MiB set aside, two thirds of it for the buffers of links, of which the system gives only what is used.
    fn default() -> Self {
        Self { links: 1024, circuits: 16_384, cells: 1 << 17, onions: 1024, origins: 4096, replay: 1 << 20 }
    }
}

/// Input of a link: two records, so that one can be used while the next comes.
const INPUT_LEN: usize = 2 * RECORD_LEN_MAX;
/// Output of a link: one record.
const OUTPUT_LEN: usize = RECORD_LEN_MAX;
/// Bytes between conversations and cells.
const SCRATCH_LEN: usize = 127 * DATA_MAX;

const _: () = assert!(INPUT_LEN >= LINK_BUFFER_MIN && OUTPUT_LEN >= LINK_BUFFER_MIN && OUTPUT_LEN >= record_len(127));

/// All the tables of one node.
pub(crate) struct Memory {
    links: Vec<PortSlot>,
    circuits: Vec<NodeCircuit>,
    index: Vec<IndexSlot>,
    cells: Vec<PoolSlot>,
    onions: Vec<OnionSlot>,
    origins: Vec<OriginSlot>,
    replay: [Vec<u64>; 2],
    buffers: Vec<u8>,
    outsides: Vec<OutsidePlace<TokioShell>>,
    scratch: Vec<u8>,
}

fn filled<T>(len: usize, make: impl FnMut() -> T) -> Vec<T> {
    std::iter::repeat_with(make).take(len).collect()
}

impl Memory {
    /// Allocates everything.
    pub(crate) fn new(sizes: &Sizes) -> Self {
        // The set is full at three quarters of its places.
        let replay = (sizes.replay * 4 / 3 + 1).next_power_of_two();
        Self {
            links: filled(sizes.links, || PortSlot::EMPTY),
            circuits: filled(sizes.circuits, || NodeCircuit::EMPTY),
            index: vec![IndexSlot::default(); index_len(sizes.circuits)],
            cells: vec![PoolSlot::EMPTY; sizes.cells],
            onions: filled(sizes.onions, || OnionSlot::EMPTY),
            origins: filled(sizes.origins, || OriginSlot::EMPTY),
            replay: [vec![0; replay], vec![0; replay]],
            buffers: vec![0; sizes.links * (INPUT_LEN + OUTPUT_LEN)],
            outsides: filled(sizes.circuits, || OutsidePlace::EMPTY),
            scratch: vec![0; SCRATCH_LEN],
        }
    }

    /// The tables of the node, what its driver keeps besides, and the buffers of its links.
    pub(crate) fn lend(&mut self) -> (node::Memory<'_>, &mut [OutsidePlace<TokioShell>], &mut [u8], LinkBuffers<'_>) {
        let [current, previous] = &mut self.replay;
        let memory = node::Memory {
            links: &mut self.links,
            circuits: &mut self.circuits,
            index: &mut self.index,
            cells: &mut self.cells,
            onions: &mut self.onions,
            origins: &mut self.origins,
            replay: [current, previous],
        };
        (memory, &mut self.outsides, &mut self.scratch, LinkBuffers(&mut self.buffers))
    }
}

/// The buffers of all links.
pub(crate) struct LinkBuffers<'b>(&'b mut [u8]);

impl<'b> LinkBuffers<'b> {
    /// A place for each link.
    pub(crate) fn places(self) -> Vec<LinkPlace<'b, TokioShell>> {
        let pairs = self.0.chunks_exact_mut(INPUT_LEN + OUTPUT_LEN).map(|pair| pair.split_at_mut(INPUT_LEN));
        pairs.map(|(input, output)| LinkPlace::new(input, output)).collect()
    }
}
