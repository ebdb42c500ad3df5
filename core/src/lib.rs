//! Bulbil's core.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed test may panic"))]

#[cfg(test)]
extern crate std;

pub mod circuit;
pub mod client;
pub mod conversation;
pub mod crypto;
pub mod driver;
pub mod io;
pub mod link;
pub mod node;
pub mod phonebook;
pub mod relay;
pub mod time;
pub mod wire;
