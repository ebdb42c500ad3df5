//! What a circuit means at the client that opened it.

pub mod origin;
