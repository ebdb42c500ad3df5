//! Whole networks: what the tests in `tests/` run on.

pub mod fixture;
pub mod mesh;
pub mod sim;
