//! Onion routing without `std`, without an allocator on the cell path, and without I/O of its own: the protocol of Bulbil, once, for a
//! microcontroller and for a server.
//!
//! # Layers
//!
//! Each module knows only the ones above it in this list.
//!
//! 1. [`wire`]: bytes to values and back. No keys, no state. Never panics, never allocates.
//! 2. [`crypto`]: key encapsulation, onions, relay-cell encryption, signatures, replay sets. (The `rsa` crate allocates; nothing else does.)
//! 3. [`link`]: the handshake between two nodes, and the records that carry cells.
//! 4. The state machines; values in, values out, time and randomness are arguments:
//!    - [`phonebook`]: verified descriptors, guards, the choice of paths.
//!    - [`circuit`]: the mechanics of circuits: the pool of cells, credit, tables, lists, whatever the circuit's role.
//!    - [`relay`] and [`client`], with [`conversation`] between them: what a circuit means at a relay, an exit, a client.
//!    - [`node`]: all of that together: a node's links, circuits and conversations.
//! 5. [`io`]: what a machine must provide, as traits; and [`driver`]: the one loop that moves bytes between those and the node.
//! 6. [`auth`]: an application over the network, signing up and in, of which nothing above knows. It uses keys, ciphers and the wire's
//!    readers (1 to 3), and knows nothing of circuits.
//!
//! A shell (tokio on hosts, smoltcp on microcontrollers, a simulator in tests) adds sockets, clocks and keys to the driver, never protocol.
//!
//! # Where to look
//!
//! | to change | look at |
//! | --- | --- |
//! | a layout | the module of [`wire`] with its name, and the specification below |
//! | what a relay does with a cell | `node/arrival.rs`, then [`relay`] |
//! | what is sent next | `node/output.rs` |
//! | how circuits open and end | `node/opening.rs`, `node/closing.rs` |
//! | who may send how much | [`circuit::flow`] |
//! | signing up and in, and what a signed-in user may do | [`auth::server`], [`auth::client`] |
//! | the bytes of an exit's target or of an application | `node/talk.rs`, `driver/outside.rs` |
//!
//! # The protocol
#![doc = include_str!("../PROTOCOL.md")]
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed test may panic"))]

#[cfg(test)]
extern crate std;

pub mod auth;
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
