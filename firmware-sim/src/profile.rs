//! Profiles: how many links, circuits and cells fit which memory.

use bulbil_core::node::Resources;

use crate::memory::Memory;

/// What a profile may use in all, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The whole.
    pub total: usize,
    /// Of that, stack: what opening an onion, building one and making an onion key need, with what they are called from.
    pub stack: usize,
    /// Of that, heap: the RSA identity, and what one RSA operation needs.
    pub heap: usize,
}

/// 192 KiB in all: 4 links, 5 circuits, 80 cells. A microcontroller with an Ethernet port and little else, such as an STM32F407.
pub type Small<B> = Memory<B, Resources<4, 5, 32, 80, 2, 2, 256>, 4, 5, 5, 2, 8, 5, 1536>;

/// What [`Small`] must fit.
pub const SMALL: Budget = Budget { total: 192 * 1024, stack: 44 * 1024, heap: 12 * 1024 };

/// 512 KiB in all: 10 links, 20 circuits, 384 cells. A larger microcontroller, such as an STM32H7 or an RP2350.
pub type Medium<B> = Memory<B, Resources<10, 20, 128, 384, 4, 8, 1024>, 10, 20, 11, 6, 18, 12, 3072>;

/// What [`Medium`] must fit.
pub const MEDIUM: Budget = Budget { total: 512 * 1024, stack: 44 * 1024, heap: 12 * 1024 };
