//! The control socket: how `bulbil status` and `bulbil phonebook` talk to the node that runs with a state directory.
//!
//! A Unix stream socket named [`SOCKET_NAME`] in the state directory, mode 0600 in a directory of mode 0700: who may read the node's keys may ask it.
//! It exists while the node runs; one that a killed process has left is replaced, which the directory's lock makes safe. Nodes without a
//! state directory (`bulbil net`, `bulbil demo`) have none.
//!
//! One connection is one request and its answer. Both are one line of JSON, `{"bulbil":1,"ask":…}` and `{"bulbil":1,"reply":…}` (see
//! [`Ask`] and [`Reply`]); the number is the version of this protocol, and another one is refused by either side. Behind the line of an
//! import follow as many bytes as it says, and likewise behind the answer to an export: a file as [`mod@file`] describes it.
//!
//! | bound | | beyond it |
//! | --- | --- | --- |
//! | connections at one time | 8 | told "busy" and closed |
//! | a request, its file included, and the taking of an answer | 30 s each | closed |
//! | a request's line | 64 KiB | refused |
//! | an import's file | 64 MiB, 16,384 descriptors, one import at a time | refused |
//! | requests worked on | 20 a second, one after the other | wait |
//!
//! Nothing of this happens on the node's own thread but the counting of its tables, about a millisecond at most.

pub mod book;
pub mod client;
pub mod file;
mod gauge;
pub mod import;
mod message;
pub mod report;
mod server;
mod socket;
mod text;

pub use message::{Ask, Complaint, Reply};
pub use server::{About, Server};
pub use socket::{SOCKET_NAME, Socket, SocketError};
pub use text::{details, lines};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
