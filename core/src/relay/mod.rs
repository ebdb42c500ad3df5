//! What a circuit means at a relay and at an exit: its keys, its onion, and what may be said.

pub mod exit;
pub mod hop;
pub mod onions;
