//! The state that a hop and the client share for one direction.

use super::{Seed, TAG_LEN, TWEAK_LEN, Tag, Tweak, halves, prf::Keystream, tag};
use crate::wire::cell::CellBody;
use subtle::ConstantTimeEq;

/// One hop's keys and nonce N for one direction, and the last tag T'.
pub(super) struct Hop {
    seed: Seed,
    last_tag: Tag,
}

impl Hop {
    /// The state of a circuit on which no cell has passed yet.
    pub(super) fn new(seed: &Seed) -> Self {
        Self { seed: seed.clone(), last_tag: [0; TAG_LEN] }
    }

    /// Adds this hop's layer; the tag that results becomes T'. Returns the stream of `PRF(T', _)`.
    pub(super) fn wrap(&mut self, ad: u8, body: &mut CellBody) -> Keystream {
        let stream = self.seed.uiv().encrypt(&self.tweak(ad), body);
        self.last_tag = *tag(body);
        stream
    }

    /// Takes this hop's layer off; the tag that the layer had becomes T'. Returns the stream of `PRF(T', _)`.
    pub(super) fn unwrap(&mut self, ad: u8, body: &mut CellBody) -> Keystream {
        let tweak = self.tweak(ad);
        self.last_tag = *tag(body);
        self.seed.uiv().decrypt(&tweak, body)
    }

    /// Puts N in the tag's place: the cell is to this hop or from it.
    pub(super) fn claim(&self, body: &mut CellBody) {
        *halves(body).0 = *self.seed.nonce();
    }

    /// Whether N is in the tag's place, found in constant time.
    pub(super) fn claims(&self, body: &CellBody) -> bool {
        // Not as slices: subtle compares those byte by byte, which takes longer than AES does.
        let difference = u128::from_ne_bytes(*tag(body)) ^ u128::from_ne_bytes(*self.seed.nonce());
        (difference as u64 | (difference >> 64) as u64).ct_eq(&0).into()
    }

    /// Replaces keys and nonce by `PRF(T', 1)`, after a cell to this hop or from it; `stream` is what that cell's layer
    /// returned.
    ///
    /// T' is by then N for a cell to the hop, and the tag as it was sent for a cell from the hop.
    pub(super) fn update(&mut self, stream: &Keystream) {
        self.seed = stream.next_seed();
    }

    fn tweak(&self, ad: u8) -> Tweak {
        let mut tweak = [ad; TWEAK_LEN];
        tweak[..TAG_LEN].copy_from_slice(&self.last_tag);
        tweak
    }
}

#[cfg(test)]
impl Hop {
    /// A state in the middle of a circuit, as the vectors give it: `{ "key", "nonce", "tag" }`.
    pub(super) fn from_vector(state: &serde_json::Value) -> Self {
        use super::vectors::{bytes, seed};
        Self { seed: seed(&state["key"], Some(&state["nonce"])), last_tag: bytes(&state["tag"]) }
    }

    /// Checks every byte of the state without printing any.
    pub(super) fn is_vector(&self, state: &serde_json::Value) -> bool {
        let expected = Self::from_vector(state);
        self.seed.as_bytes() == expected.seed.as_bytes() && self.last_tag == expected.last_tag
    }
}
