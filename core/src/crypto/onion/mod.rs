//! The onion: one message that opens a circuit along its whole path, `PROTOCOL.md` section 6.
//!
//! A client builds it ([`build()`]) for a path of one to four hops. Each hop peels ([`peel()`]) one layer off, which
//! tells it the next hop and leaves the next hop's onion, of the same [`ONION_LEN`] bytes, in place of its own:
//!
//! ```text
//! built:    | ct | mac | A: next is B | ct | mac | B: next is C | ct | mac | C: last | random |
//! A peels:                            | ct | mac | B: next is C | ct | mac | C: last | random | A's pad |
//! B peels:                                                      | ct | mac | C: last | random | A's pad | B's pad |
//! ```
//!
//! Whatever lies behind a mac is encrypted to its hop, and the mac covers all of it to the end, the pads included. So
//! the client has to know the pads while it builds: they are keystream, which it can compute. That is Sphinx's
//! construction with a KEM ciphertext in place of the blinded group element. The kinds of key may mix on a path; a hop
//! knows the length of its ciphertext because it knows its own key.

mod build;
mod layer;
mod peel;
#[cfg(test)]
mod tests;

use core::net::SocketAddr;

use zeroize::Zeroizing;

pub use self::build::{BuildError, HopSpec, build};
pub use self::peel::{OnionRejected, Peeled, peel};
use super::kem::{Kem, Rsa2048, XWing};
use crate::wire::address::{ADDRESS_FIXED_LEN, emit_address, parse_address};
use crate::wire::cell::BODY_LEN;
use crate::wire::{NodeId, Reader, WireError, Writer};

/// Cells that carry an onion.
pub const ONION_CELLS: usize = 10;
/// Bytes of an onion, at every hop of every path.
pub const ONION_LEN: usize = 5090;
/// Bytes of a hop's instruction.
pub const INSTRUCTION_LEN: usize = 64;
/// Most hops on a path.
pub const PATH_MAX: usize = 4;
/// Bytes of relay-cell key material for one hop and direction.
pub const SEED_LEN: usize = 80;

/// Bytes of a layer's authenticator.
const MAC_LEN: usize = 16;
const KIND_LAST: u8 = 0;
const KIND_NEXT: u8 = 1;
const NODE_ID_LEN: usize = 32;

/// Bytes by which a layer with a ciphertext of `ciphertext_len` bytes is in front of the next one.
const fn shift(ciphertext_len: usize) -> usize {
    ciphertext_len + MAC_LEN + INSTRUCTION_LEN
}

/// The most bytes that any one layer takes.
const SHIFT_MAX: usize = shift(XWing::CIPHERTEXT_LEN);

const _: () = assert!(ONION_LEN == ONION_CELLS * BODY_LEN);
const _: () = assert!(1 + ADDRESS_FIXED_LEN + NODE_ID_LEN <= INSTRUCTION_LEN);
const _: () = assert!(Rsa2048::CIPHERTEXT_LEN == 256 && XWing::CIPHERTEXT_LEN == 1120);
const _: () = assert!(shift(Rsa2048::CIPHERTEXT_LEN) <= SHIFT_MAX);
const _: () = assert!(PATH_MAX * SHIFT_MAX <= ONION_LEN);
// One cell fewer would not carry the longest path.
const _: () = assert!(PATH_MAX * SHIFT_MAX > ONION_LEN - BODY_LEN);

/// An onion, as any hop sends or receives it.
pub type Onion = [u8; ONION_LEN];

/// What a hop is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Instruction {
    /// The path ends here.
    Last,
    /// Send the onion on.
    Next {
        /// Where the next hop listens.
        address: SocketAddr,
        /// Who the next hop must prove to be.
        node: NodeId,
    },
}

impl Instruction {
    /// Fails for port 0, which the wire cannot carry.
    fn emit(&self, bytes: &mut [u8; INSTRUCTION_LEN]) -> Result<(), WireError> {
        bytes.fill(KIND_LAST);
        if let Self::Next { address, node } = self {
            let (kind, rest) = bytes.split_at_mut(1);
            let (address_out, rest) = rest.split_at_mut(ADDRESS_FIXED_LEN);
            kind.fill(KIND_NEXT);
            emit_address(*address, &mut Writer::new(address_out))?;
            Writer::new(rest).put(&node.0)?;
        }
        Ok(())
    }

    fn parse(bytes: &[u8; INSTRUCTION_LEN]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let this = match reader.u8()? {
            KIND_LAST => Self::Last,
            KIND_NEXT => {
                let mut address_reader = Reader::new(reader.take(ADDRESS_FIXED_LEN)?);
                let address = parse_address(&mut address_reader)?;
                address_reader.end_zeros()?;
                Self::Next { address, node: NodeId(*reader.array()?) }
            }
            _ => return Err(WireError::UnknownCode),
        };
        reader.end_zeros()?;
        Ok(this)
    }
}

/// What a client and one hop encrypt relay cells with: a seed for each direction, wiped when dropped.
pub struct HopKeys {
    /// For cells away from the client.
    pub forward: Zeroizing<[u8; SEED_LEN]>,
    /// For cells toward the client.
    pub backward: Zeroizing<[u8; SEED_LEN]>,
}
