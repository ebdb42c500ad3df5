//! UIV, the wide-block cipher over a whole body, from [`super::et`] and [`super::prf`].
//!
//! With the body's halves X_L (the tag) and X_R and the tweak `H = T' || AD`: `Y_L = ET(H || X_R, X_L)` and
//! `Y_R = X_R ^ PRF(Y_L, 0)`.

use super::{Seed, Tag, Tweak, et::Et, halves, prf::Prf};
use crate::wire::cell::CellBody;

/// The wide-block cipher under a seed's keys.
pub(super) struct Uiv<'a> {
    pub(super) et: Et<'a>,
    pub(super) prf: Prf<'a>,
}

impl Uiv<'_> {
    /// Encrypts `body` in place.
    pub(super) fn encrypt(&self, tweak: &Tweak, body: &mut CellBody) {
        let (left, right) = halves(body);
        self.et.encrypt(tweak, right, left);
        self.prf.mask(left, right);
    }

    /// Undoes [`Self::encrypt`].
    pub(super) fn decrypt(&self, tweak: &Tweak, body: &mut CellBody) {
        let (left, right) = halves(body);
        self.prf.mask(left, right);
        self.et.decrypt(tweak, right, left);
    }

    /// The keys and nonce that follow these keys with `nonce`.
    pub(super) fn next_seed(&self, nonce: &Tag) -> Seed {
        self.prf.next_seed(nonce)
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
            let next = seed(&vector["key"], None).uiv().next_seed(&bytes(&vector["nonce"]));
            let expected = seed(&vector["output"]["key"], Some(&vector["output"]["nonce"]));
            assert!(next.as_bytes() == expected.as_bytes());
        }
    }
}
