//! The constrained node: the same core as everywhere, on smoltcp, in one loop, with every buffer static.
//!
//! # Layers
//!
//! Each module knows only the ones above it in this list.
//!
//! 1. [`board`]: what a board provides, as traits; [`config`]: what its owner decides.
//! 2. [`net`]: smoltcp's interface and a fixed table of sockets; [`stream`]: one of them as the core's driver sees it; `target`: an exit's
//!    connections, under its policy.
//! 3. `keys`, `calendar`, `contacts`: the identity from outside and the onion key of the node's own; the time; pinned contacts.
//! 4. [`shell`]: all of that as the machine around the core's driver. `client`: the node's own request.
//! 5. [`memory`]: every buffer as one value for a `static`; [`profile`]: how much of everything fits which machine.
//! 6. [`node`]: the loop.
//!
//! With the feature `linux` (the default, for the command), `linux` adds what a Linux machine needs to stand in for a board: a TAP
//! device, faults on it, a capture, the measurements of stack and heap, the stage.
//!
//! # Porting to a board
//!
//! Depend on this crate with `default-features = false`, and provide
//!
//! - the network device: [`smoltcp::phy::Device`], which Ethernet drivers for embedded Rust have;
//! - [`board::Clock`], [`board::Entropy`], [`board::KeyStore`], [`board::Observer`] on one type;
//! - a global allocator with the profile's heap: the `rsa` crate needs one. Nothing else allocates;
//! - a `static` of the profile's [`memory::Memory`], behind whatever the platform has for taking it once;
//! - the stack that the profile states.
//!
//! Then [`node::ConstrainedNode::start`], and [`node::ConstrainedNode::poll`] for ever, sleeping until the instant that it answers or until the
//! device has a frame.
#![no_std]
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed test may panic"))]

#[cfg(any(test, feature = "linux"))]
extern crate std;

pub mod board;
mod calendar;
mod client;
pub mod config;
mod contacts;
mod keys;
pub mod memory;
pub mod net;
pub mod node;
pub mod profile;
pub mod shell;
pub mod stream;
mod target;

#[cfg(all(feature = "linux", target_os = "linux"))]
pub mod linux;
