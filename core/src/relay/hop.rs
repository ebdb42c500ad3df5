//! One hop's keys of a circuit, both directions.

use crate::crypto::cgo::{RelayBackward, RelayForward, Seed};
use crate::crypto::onion::HopKeys;
use crate::wire::Command;
use crate::wire::cell::CellBody;

/// A hop's relay-cell encryption.
pub struct Hop {
    forward: RelayForward,
    backward: RelayBackward,
    /// A cell has come from the next hop.
    answered: bool,
}

impl Hop {
    /// The hop whose keys the onion carried.
    #[must_use]
    pub fn new(keys: &HopKeys) -> Self {
        Self {
            forward: RelayForward::new(&Seed::from_bytes(*keys.forward)),
            backward: RelayBackward::new(&Seed::from_bytes(*keys.backward)),
            answered: false,
        }
    }

    /// Removes our layer from a cell that comes from the client; answers whether it is for us.
    pub fn forward(&mut self, body: &mut CellBody) -> bool {
        self.forward.receive(Command::RELAY, body)
    }

    /// Adds our layer to a cell that comes from the next hop.
    pub fn backward(&mut self, body: &mut CellBody) {
        self.answered = true;
        self.backward.pass(Command::RELAY, body);
    }

    /// Whether the next hop has ever sent a cell. Until then it, or a hop behind it, may have refused the circuit without the
    /// client's knowing who.
    #[must_use]
    pub const fn is_answered(&self) -> bool {
        self.answered
    }

    /// Encrypts a message of our own (behind the place of the tag) to the client.
    pub fn originate(&mut self, body: &mut CellBody) {
        self.backward.originate(Command::RELAY, body);
    }
}
