//! UIV, the wide-block cipher over a whole body, from [`super::et`] and [`super::prf`].
//!
//! With the body's halves X_L (the tag) and X_R and the tweak `H = T' || AD`: `Y_L = ET(H || X_R, X_L)` and
//! `Y_R = X_R ^ PRF(Y_L, 0)`.
//!
//! A hop's keys are replaced after a cell by `PRF(T', 1)`, and T' is then that cell's Y_L: what the new keys are made
//! of follows directly on the keystream of the cell. So both operations return that stream, and taking the new keys
//! from it costs five blocks, neither a key expansion nor a hash.

use super::{
    Tweak,
    et::Et,
    halves,
    prf::{Keystream, Prf},
};
use crate::wire::cell::CellBody;

/// The wide-block cipher under a seed's keys.
pub(super) struct Uiv<'a> {
    pub(super) et: Et<'a>,
    pub(super) prf: Prf<'a>,
}

impl Uiv<'_> {
    /// Encrypts `body` in place. What it returns is the stream of `PRF(Y_L, _)`.
    pub(super) fn encrypt(&self, tweak: &Tweak, body: &mut CellBody) -> Keystream {
        let (left, right) = halves(body);
        self.et.encrypt(tweak, right, left);
        let stream = self.prf.keystream(left);
        stream.mask(right);
        stream
    }

    /// Undoes [`Self::encrypt`], and returns the same stream.
    pub(super) fn decrypt(&self, tweak: &Tweak, body: &mut CellBody) -> Keystream {
        let (left, right) = halves(body);
        let stream = self.prf.keystream(left);
        stream.mask(right);
        self.et.decrypt(tweak, right, left);
        stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::cgo::vectors::{self, body, bytes, seed};

    #[test]
    fn outside_vectors() {
        for vector in vectors::list("uiv", 6) {
            let keys = seed(&vector["key"], None);
            let tweak = bytes(&vector["tweak"]);
            let mut cell = body(&vector["left"], &vector["right"]);
            let apply = if vector["encrypt"].as_bool().unwrap() { Uiv::encrypt } else { Uiv::decrypt };
            apply(&keys.uiv(), &tweak, &mut cell);
            assert_eq!(cell, body(&vector["output"]["left"], &vector["output"]["right"]));
        }
    }

    #[test]
    fn outside_vectors_of_the_update() {
        for vector in vectors::list("uiv_update", 5) {
            let next = seed(&vector["key"], None).uiv().prf.keystream(&bytes(&vector["nonce"])).next_seed();
            let expected = seed(&vector["output"]["key"], Some(&vector["output"]["nonce"]));
            assert!(next.as_bytes() == expected.as_bytes());
        }
    }
}
