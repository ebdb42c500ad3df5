//! What the client does: every hop's layer at once (`PROTOCOL.md` section 8).

use super::{HopIndex, PATH_MAX, PathError, Seed, hop::Hop};
use crate::wire::cell::{CellBody, Command};
use heapless::Vec;

/// The states of a path's hops, from the first.
type Path = Vec<Hop, PATH_MAX>;

fn path<'a>(seeds: impl IntoIterator<Item = &'a Seed>) -> Result<Path, PathError> {
    let mut path = Path::new();
    for seed in seeds {
        path.push(Hop::new(seed)).map_err(|_| PathError::Length)?;
    }
    if path.is_empty() { Err(PathError::Length) } else { Ok(path) }
}

/// The client's states for cells that it sends along a path.
pub struct ClientForward {
    path: Path,
}

impl ClientForward {
    /// The state of a circuit whose hops, from the first, have these forward seeds.
    ///
    /// # Errors
    /// [`PathError::Length`] unless there are 1 to [`PATH_MAX`] of them.
    pub fn new<'a>(seeds: impl IntoIterator<Item = &'a Seed>) -> Result<Self, PathError> {
        path(seeds).map(|path| Self { path })
    }

    /// Makes a cell to `hop` out of the message in `body`, from [`super::TAG_LEN`] on. What is in the tag's place does
    /// not matter.
    ///
    /// # Errors
    /// [`PathError::NoSuchHop`] if the path is shorter; nothing has changed then.
    pub fn originate(&mut self, hop: HopIndex, ad: Command, body: &mut CellBody) -> Result<(), PathError> {
        self.originate_with(hop, ad.value(), body)
    }

    fn originate_with(&mut self, hop: HopIndex, ad: u8, body: &mut CellBody) -> Result<(), PathError> {
        let (last, before) =
            self.path.get_mut(..=hop.value()).and_then(<[Hop]>::split_last_mut).ok_or(PathError::NoSuchHop)?;
        last.claim(body);
        let stream = last.unwrap(ad, body);
        last.update(&stream);
        for earlier in before.iter_mut().rev() {
            earlier.unwrap(ad, body);
        }
        Ok(())
    }
}

/// The client's states for cells that come back along a path.
pub struct ClientBackward {
    path: Path,
}

impl ClientBackward {
    /// The state of a circuit whose hops, from the first, have these backward seeds.
    ///
    /// # Errors
    /// [`PathError::Length`] unless there are 1 to [`PATH_MAX`] of them.
    pub fn new<'a>(seeds: impl IntoIterator<Item = &'a Seed>) -> Result<Self, PathError> {
        path(seeds).map(|path| Self { path })
    }

    /// Takes off layers until a hop's nonce shows.
    ///
    /// Returns that hop: then `body` is the tag and, from [`super::TAG_LEN`] on, its message. `None` means that the
    /// cell was altered on the way, and the hop that made it will not be understood again.
    #[must_use]
    pub fn receive(&mut self, ad: Command, body: &mut CellBody) -> Option<HopIndex> {
        for (index, hop) in self.path.iter_mut().enumerate() {
            let stream = hop.unwrap(ad.value(), body);
            if hop.claims(body) {
                hop.update(&stream);
                return HopIndex::new(index);
            }
        }
        None
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
        for vector in vectors::list("cgo_client_originate", 7) {
            let states = vector["states"].as_array().unwrap();
            let mut forward = ClientForward { path: states.iter().map(Hop::from_vector).collect() };
            let ad = bytes::<1>(&vector["ad"])[0];
            let mut cell = [0xa5; BODY_LEN];
            cell[TAG_LEN..].copy_from_slice(&bytes::<493>(&vector["message"]));
            // The vectors count hops from 1.
            let hop = HopIndex::new(vector["hop"].as_u64().unwrap() as usize - 1).unwrap();
            forward.originate_with(hop, ad, &mut cell).unwrap();
            let output = &vector["output"];
            assert_eq!(cell, body(&output["tag"], &output["payload"]));
            let after = output["states"].as_array().unwrap();
            assert_eq!(after.len(), forward.path.len());
            assert!(forward.path.iter().zip(after).all(|(hop, state)| hop.is_vector(state)));
        }
    }

    #[test]
    fn a_path_has_one_to_four_hops() {
        let seeds: [Seed; 5] = core::array::from_fn(|i| Seed::from_bytes([i as u8; SEED_LEN]));
        for len in 0..=seeds.len() {
            let expected = if (1..=PATH_MAX).contains(&len) { Ok(()) } else { Err(PathError::Length) };
            assert_eq!(ClientForward::new(&seeds[..len]).map(|_| ()), expected);
            assert_eq!(ClientBackward::new(&seeds[..len]).map(|_| ()), expected);
        }
    }

    #[test]
    fn a_hop_beyond_the_path_changes_nothing() {
        let seeds: [Seed; 2] = core::array::from_fn(|i| Seed::from_bytes([i as u8; SEED_LEN]));
        let (mut one, mut other) = (ClientForward::new(&seeds).unwrap(), ClientForward::new(&seeds).unwrap());
        for beyond in 2..PATH_MAX {
            let mut body = [1; BODY_LEN];
            let hop = HopIndex::new(beyond).unwrap();
            assert_eq!(one.originate(hop, Command::RELAY, &mut body), Err(PathError::NoSuchHop));
            assert_eq!(body, [1; BODY_LEN]);
        }
        let (mut a, mut b) = ([2; BODY_LEN], [2; BODY_LEN]);
        let last = HopIndex::new(1).unwrap();
        one.originate(last, Command::RELAY, &mut a).unwrap();
        other.originate(last, Command::RELAY, &mut b).unwrap();
        assert_eq!(a, b);
    }

    /// A client keeps one of these for each direction of a circuit.
    #[test]
    fn size() {
        let states = PATH_MAX * (SEED_LEN + TAG_LEN);
        assert_eq!(size_of::<ClientForward>(), states + size_of::<usize>());
        assert_eq!(size_of::<ClientBackward>(), states + size_of::<usize>());
    }
}
