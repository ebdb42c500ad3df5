//! The constrained node on Linux: a TAP device in a network card's place, and what a board's developer wants to see.
//!
//! [`cli`] is the command. [`run`] runs one node as a [`config_file`] says, on a [`board`] of files and clocks, over a [`tap`] with [`faults`]
//! and captures ([`pcap`]), and measures its [`stack`] and [`heap`] for the [`report`]. [`mod@stage`] starts a whole network in a [`namespace`] of
//! its own.

pub mod board;
pub mod cli;
pub mod config_file;
pub mod faults;
pub mod heap;
mod ifreq;
pub mod namespace;
pub mod pcap;
pub mod report;
pub mod run;
mod scratch;
pub mod stack;
pub mod stage;
pub mod tap;
