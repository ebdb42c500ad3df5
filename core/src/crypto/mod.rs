//! Key encapsulation, onion layers, relay-cell encryption, signatures, key derivation. No I/O.
//!
//! Randomness is always an argument. Types that hold secrets wipe them when dropped and have no `Debug`; what the
//! crates below leave in their own stack frames while they compute is beyond reach.
//!
//! [`identity`], [`transport`] and the `rsa2048` half of [`kem`] allocate, because the `rsa` crate does. Nothing else here does.

pub mod cgo;
pub mod identity;
pub mod kem;
pub mod onion;
pub mod receipt;
pub mod replay;
mod rsa2048;
#[cfg(test)]
pub(crate) mod testing;
pub mod transport;

pub use rsa2048::{InvalidKey, SecretBytes};
