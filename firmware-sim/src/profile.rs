//! Profiles: how many links, circuits and cells fit which memory.
//!
//! Sizes are those of a 64-bit machine; where pointers are shorter there is more left. The command's `--report` shows what a run has needed.

use bulbil_core::node::Resources;

use crate::memory::Memory;

/// What a profile may use in all, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The whole.
    pub total: usize,
    /// Of that, stack: what building and opening an onion, making an onion key and (the most) shaking hands as the connector need, with what
    /// they are called from.
    pub stack: usize,
    /// Of that, heap: the RSA identity, and what one RSA operation needs.
    pub heap: usize,
}

/// 192 KiB in all: 4 links, 5 circuits, 80 cells. A microcontroller with an Ethernet port and little else, such as an STM32F407.
///
/// It has no cell more than its circuits are promised, and knows as many nodes as a path has hops.
pub type Small<B> = Memory<B, Resources<4, 5, 32, 80, 2, 1, 128>, 4, 5, 5, 2, 8, 4, 1460, 1472>;

/// What [`Small`] must fit.
pub const SMALL: Budget = Budget { total: 192 * 1024, stack: 43 * 1024, heap: 10_240 };

/// 512 KiB in all: 10 links, 20 circuits, 320 cells. A larger microcontroller, such as an STM32H7 or an RP2350.
pub type Medium<B> = Memory<B, Resources<10, 20, 128, 320, 4, 4, 1024>, 10, 20, 11, 6, 18, 10, 2920, 2920>;

/// What [`Medium`] must fit.
pub const MEDIUM: Budget = Budget { total: 512 * 1024, stack: 43 * 1024, heap: 10_240 };
