//! Whole networks.

pub mod processes;
pub mod scratch;
pub mod socks;
pub mod targets;
