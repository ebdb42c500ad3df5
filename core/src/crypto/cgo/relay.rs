//! What a hop does to the cells that pass it (`PROTOCOL.md` section 8).

use super::{Seed, hop::Hop};
use crate::wire::cell::{CellBody, Command};

/// A hop's state for cells away from the client.
pub struct RelayForward {
    hop: Hop,
}

impl RelayForward {
    /// The state of a circuit that opens with this forward seed.
    #[must_use]
    pub fn new(seed: &Seed) -> Self {
        Self { hop: Hop::new(seed) }
    }

    /// Adds this hop's layer to a cell from the client's side.
    ///
    /// Returns whether the cell is for this hop: then `body` is the tag and, from [`super::TAG_LEN`] on, the message.
    /// Otherwise it is what the next hop must get. A hop that is the last and gets `false` has a cell that somebody
    /// altered, or one that was never meant to make sense; nothing later on the circuit will.
    #[must_use]
    pub fn receive(&mut self, ad: Command, body: &mut CellBody) -> bool {
        self.receive_with(ad.value(), body)
    }

    fn receive_with(&mut self, ad: u8, body: &mut CellBody) -> bool {
        let stream = self.hop.wrap(ad, body);
        let ours = self.hop.claims(body);
        if ours {
            self.hop.update(&stream);
        }
        ours
    }
}

/// A hop's state for cells toward the client.
pub struct RelayBackward {
    hop: Hop,
}

impl RelayBackward {
    /// The state of a circuit that opens with this backward seed.
    #[must_use]
    pub fn new(seed: &Seed) -> Self {
        Self { hop: Hop::new(seed) }
    }

    /// Adds this hop's layer to a cell from a hop farther away.
    pub fn pass(&mut self, ad: Command, body: &mut CellBody) {
        self.hop.wrap(ad.value(), body);
    }

    /// Makes a cell from this hop out of the message in `body`, from [`super::TAG_LEN`] on. What is in the tag's place
    /// does not matter.
    pub fn originate(&mut self, ad: Command, body: &mut CellBody) {
        self.originate_with(ad.value(), body);
    }

    fn originate_with(&mut self, ad: u8, body: &mut CellBody) {
        self.hop.claim(body);
        let stream = self.hop.wrap(ad, body);
        self.hop.update(&stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::cgo::vectors::{self, body, bytes};
    use crate::crypto::cgo::{SEED_LEN, TAG_LEN};
    use crate::wire::cell::BODY_LEN;

    #[test]
    fn outside_vectors() {
        let mut directions = [0, 0];
        for vector in vectors::list("cgo_relay", 6) {
            let ad = bytes::<1>(&vector["ad"])[0];
            let mut cell = body(&vector["tag"], &vector["payload"]);
            let inbound = vector["inbound"].as_bool().unwrap();
            directions[usize::from(inbound)] += 1;
            let hop = Hop::from_vector(&vector["state"]);
            let after = if inbound {
                let mut backward = RelayBackward { hop };
                backward.hop.wrap(ad, &mut cell);
                backward.hop
            } else {
                let mut forward = RelayForward { hop };
                assert!(!forward.receive_with(ad, &mut cell));
                forward.hop
            };
            assert_eq!(cell, body(&vector["output"]["tag"], &vector["output"]["payload"]));
            assert!(after.is_vector(&vector["output"]["state"]));
        }
        assert_eq!(directions, [3, 3]);
    }

    #[test]
    fn outside_vectors_of_originating() {
        for vector in vectors::list("cgo_relay_originate", 3) {
            let ad = bytes::<1>(&vector["ad"])[0];
            let mut cell = [0xa5; BODY_LEN];
            cell[TAG_LEN..].copy_from_slice(&bytes::<493>(&vector["message"]));
            let mut backward = RelayBackward { hop: Hop::from_vector(&vector["state"]) };
            backward.originate_with(ad, &mut cell);
            assert_eq!(cell, body(&vector["output"]["tag"], &vector["output"]["payload"]));
            assert!(backward.hop.is_vector(&vector["output"]["state"]));
        }
    }

    /// A relay keeps two of these for every circuit.
    #[test]
    fn size() {
        assert_eq!(size_of::<RelayForward>(), SEED_LEN + TAG_LEN);
        assert_eq!(size_of::<RelayBackward>(), SEED_LEN + TAG_LEN);
    }
}
