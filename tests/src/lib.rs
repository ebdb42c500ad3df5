//! Whole networks: what the tests in `tests/` run on.

pub mod auth;
pub mod fixture;
pub mod lan;
pub mod mesh;
pub mod metropolis;
pub mod processes;
pub mod scratch;
pub mod sim;
pub mod socks;
pub mod targets;
