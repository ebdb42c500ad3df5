//! The constrained node on Linux.

pub mod faults;
pub mod heap;
mod ifreq;
pub mod namespace;
pub mod pcap;
pub mod stack;
pub mod tap;
