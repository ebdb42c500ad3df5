//! Bulbil's core.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed test may panic"))]

#[cfg(test)]
extern crate std;

pub mod crypto;
pub mod link;
pub mod phonebook;
pub mod wire;
pub mod circuit;
pub mod client;
pub mod conversation;
pub mod node;
pub mod relay;
pub mod time;
pub mod driver;
pub mod io;
