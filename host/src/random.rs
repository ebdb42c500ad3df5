//! The operating system's generator, for everything. A machine that has none cannot run a node: that is the one thing it panics for.

use getrandom::SysRng;
use rand_core::UnwrapErr;

/// The operating system's generator.
pub type SystemRandom = UnwrapErr<SysRng>;

/// The operating system's generator.
pub const SYSTEM: SystemRandom = UnwrapErr(SysRng);
