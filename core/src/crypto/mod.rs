//! Key encapsulation, onion layers, relay-cell encryption, signatures, key derivation. No I/O.

pub mod cgo;
pub mod identity;
pub mod kem;
pub mod onion;
pub mod replay;
