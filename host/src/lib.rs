//! `bulbil`
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed test may panic"))]

pub mod cli;
pub mod commands;
pub mod config;
pub mod demo;
pub mod identity;
pub mod logging;
pub mod net;
pub mod node;
pub mod shutdown;
pub mod socks;
pub mod state;
pub mod target_server;

#[cfg(test)]
mod scratch;
