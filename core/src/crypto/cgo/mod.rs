//! Relay-cell encryption: Counter Galois Onion over AES-128 and POLYVAL (`PROTOCOL.md` section 8; Tor proposal 359;
//! IACR ePrint 2025/583).
//!
//! Every hop of a path holds one secret state for either direction, and the client holds a copy of them all. Take a
//! path of three hops, and a message for the last one:
//!
//! ```text
//!          client                        hop 0            hop 1            hop 2
//! forward  N2 in the tag's place
//!          undo 2, undo 1, undo 0  --->  do 0        ---> do 1        ---> do 2: the tag is N2, so it is for me
//!
//! backward undo 0, undo 1, undo 2  <---  do 0        <--- do 1        <--- N2 in the tag's place, do 2
//!          the tag is N2, so hop 2 sent it
//! ```
//!
//! "Do" is encryption with the hop's state and "undo" decryption, in both directions: only the client ever undoes.
//! The cell has no field that says for whom it is. A hop knows its cell by the nonce N, 16 bytes that nobody else
//! knows, appearing in the tag; then both ends replace that hop's keys and nonce by what the old ones derive.
//!
//! Doing and undoing are one wide-block cipher over all 509 bytes (UIV) whose tweak is the tag of the cell before it on
//! the same hop. So a hop that alters one bit of a cell turns the whole of it into noise at the next honest hop, and
//! every later cell that passes there too: no mark is left that a second hop could recognise, and nothing can be tried
//! twice.
//!
//! # What a state holds, and what it costs
//!
//! A state is 96 bytes: 80 of keys and nonce, 16 of the last tag. Round keys and powers of the hash keys would be 640
//! bytes more for each hop and direction; they are derived anew for every cell. On an x86-64 server that costs about 40
//! ns of a cell that takes 240 and whose state is in the first-level cache. With 20,000 circuits in turn the small
//! states are faster by 15 to 40 per cent, because there is less to fetch. Without AES instructions expanding the keys
//! costs a seventh of a cell's time, but a node that small is shorter of memory than of time.

mod client;
mod et;
mod hop;
mod prf;
mod relay;
mod uiv;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;

pub use client::{ClientBackward, ClientForward};
pub use relay::{RelayBackward, RelayForward};

use crate::wire::cell::{BODY_LEN, CellBody};
use et::Et;
use prf::Prf;
use uiv::Uiv;
use zeroize::ZeroizeOnDrop;

/// Bytes at the beginning of a relay cell's body that tell a hop whether the cell is its own.
pub const TAG_LEN: usize = 16;
/// Bytes of a relay message with its padding: what a body carries behind the tag.
pub const MESSAGE_LEN: usize = BODY_LEN - TAG_LEN;
/// Bytes of secret that begin one direction of one hop.
pub const SEED_LEN: usize = 80;
/// Most hops on a path.
pub const PATH_MAX: usize = 4;

const BLOCK_LEN: usize = 16;
/// UIV's tweak `H = T' || AD`: the last tag and the additional-data byte.
const TWEAK_LEN: usize = TAG_LEN + 1;

type Tag = [u8; TAG_LEN];
type Message = [u8; MESSAGE_LEN];
type Key = [u8; 16];
type Tweak = [u8; TWEAK_LEN];

/// What one direction of one hop begins with: `KB 16 || KU 16 || K 16 || B 16 || N 16` (`PROTOCOL.md` section 8).
///
/// Wiped when dropped. It has no `Debug`, so that it cannot reach a log.
#[derive(Clone, ZeroizeOnDrop)]
pub struct Seed([u8; SEED_LEN]);

impl Seed {
    /// The seed made of these bytes, which must be secret and uniformly random.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; SEED_LEN]) -> Self {
        Self(bytes)
    }

    /// The secret itself.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; SEED_LEN] {
        &self.0
    }

    fn et(&self) -> Et<'_> {
        Et { block_key: self.part::<0>(), hash_key: self.part::<1>() }
    }

    fn prf(&self) -> Prf<'_> {
        Prf { block_key: self.part::<2>(), hash_key: self.part::<3>() }
    }

    fn uiv(&self) -> Uiv<'_> {
        Uiv { et: self.et(), prf: self.prf() }
    }

    fn nonce(&self) -> &Tag {
        self.part::<4>()
    }

    fn part<const INDEX: usize>(&self) -> &[u8; 16] {
        const { assert!(16 * INDEX + 16 <= SEED_LEN) };
        self.0[16 * INDEX..].first_chunk().expect("a seed is five parts of sixteen bytes")
    }
}

/// A position on a path, counted from the client: 0 is the hop that the client has its link with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HopIndex(u8);

impl HopIndex {
    /// The `index`-th hop, or `None` if no path is that long ([`PATH_MAX`]).
    #[must_use]
    pub const fn new(index: usize) -> Option<Self> {
        if index < PATH_MAX { Some(Self(index as u8)) } else { None }
    }

    /// The position, 0 to 3.
    #[must_use]
    pub const fn value(self) -> usize {
        self.0 as usize
    }
}

/// What the caller got wrong about a path. No peer can bring it about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PathError {
    /// A path has 1 to [`PATH_MAX`] hops.
    Length,
    /// The path has no such hop.
    NoSuchHop,
}

impl core::fmt::Display for PathError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Length => "a path has one to four hops",
            Self::NoSuchHop => "the path has no such hop",
        })
    }
}

impl core::error::Error for PathError {}

/// X_L alone.
fn tag(body: &CellBody) -> &Tag {
    body.first_chunk().expect("a tag is shorter than a body")
}

/// A body's two halves: X_L (or Y_L), which is the tag, and X_R (or Y_R).
fn halves(body: &mut CellBody) -> (&mut Tag, &mut Message) {
    let (tag, message) = body.split_first_chunk_mut().expect("a tag is shorter than a body");
    (tag, message.try_into().expect("a message is a body less a tag"))
}

/// `a ^= b`.
fn xor_block(a: &mut [u8; BLOCK_LEN], b: &[u8; BLOCK_LEN]) {
    *a = (u128::from_ne_bytes(*a) ^ u128::from_ne_bytes(*b)).to_ne_bytes();
}
