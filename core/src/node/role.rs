//! The roles that circuits can have.

use crate::relay::exit::Exit;
use crate::relay::hop::Hop;
use crate::relay::onions::OnionIndex;

/// The place of one of our own circuits' layers.
#[derive(Debug, Clone, Copy)]
pub struct OriginIndex(pub(super) u32);

/// What a circuit is at this node.
#[expect(clippy::large_enum_variant, reason = "circuits are as large as their largest role; there is no allocator")]
pub enum Role {
    /// Its onion was not accepted; only the refusal is left to be sent.
    Refused,
    /// Its onion arrives or is being opened.
    Opening {
        /// The onion.
        onion: OnionIndex,
        /// The client has said all it had to say, and closed the circuit behind that.
        closed: bool,
    },
    /// A hop in the middle, and the onion for the next hop until it has left.
    Passing(Hop, Option<OnionIndex>),
    /// The last hop.
    Exiting(Hop, Exit),
    /// Our own circuit: its place among the origins, and its onion until that has left.
    Client(OriginIndex, Option<OnionIndex>),
}

impl Role {
    /// Whether the circuit's onion has left, so that relay cells may follow it forward.
    pub const fn is_sending(&self) -> bool {
        !matches!(self, Self::Passing(_, Some(_)) | Self::Client(_, Some(_)) | Self::Opening { .. })
    }
}
