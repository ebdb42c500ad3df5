//! Refusing an onion that was already opened, `PROTOCOL.md` section 6.
//!
//! Every onion yields a [`ReplayTag`] under the key that opened it. A [`ReplaySet`] remembers all tags of one key's
//! life in memory of fixed size that its owner gives. It never forgets one before it is cleared: when it is full, it
//! refuses, and the owner rotates the onion key. [`ReplayEpochs`] keeps a set each for the current
//! and the previous key.

use core::fmt;

use rand_core::CryptoRng;

use super::kem::KeyEpoch;

/// What identifies an onion to the hop that opened it: 8 bytes derived from its secret.
///
/// Two honest onions among n share one with probability n^2 / 2^65; the second is then refused like a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReplayTag(u64);

impl ReplayTag {
    /// The tag with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }

    /// The tag's bytes.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

/// Why a tag was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refused {
    /// The onion was opened before.
    Seen,
    /// The set has no room for another tag: the onion key is to be rotated.
    Full,
    /// The key that opened the onion is older than the previous one; its set is gone.
    Expired,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Seen => "onion seen before",
            Self::Full => "replay set is full",
            Self::Expired => "onion key expired",
        })
    }
}

impl core::error::Error for Refused {}

/// The tags of all onions accepted under one key: a hash set with linear probing in the owner's memory.
///
/// At most three quarters of the slots are taken, so a look-up reads a handful on average. A client chooses the secrets
/// that tags come from and could search for tags that collide; the slot therefore depends on a
/// secret of the set's own, by multiply-shift hashing.
pub struct ReplaySet<'m> {
    /// Zero is an empty slot. One tag in 2^64 is zero itself: `zero_seen` stands for it.
    slots: &'m mut [u64],
    zero_seen: bool,
    len: usize,
    multiplier: u64,
}

impl<'m> ReplaySet<'m> {
    /// An empty set that remembers up to three quarters of `slots.len()` tags, rounded down.
    pub fn new(slots: &'m mut [u64], rng: &mut dyn CryptoRng) -> Self {
        slots.fill(0);
        Self { slots, zero_seen: false, len: 0, multiplier: rng.next_u64() | 1 }
    }

    /// Tags in the set.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the set is as after [`ReplaySet::clear`].
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tags that the set can hold.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        // Not `* 3 / 4`, which could overflow; always less than the number of slots, so that probing ends.
        self.slots.len() / 4 * 3 + self.slots.len() % 4 * 3 / 4
    }

    /// Whether an eighth of the room or less is left: time to rotate the key, before circuits have to be refused.
    #[must_use]
    pub const fn is_nearly_full(&self) -> bool {
        self.capacity() > 0 && self.len >= self.capacity() - self.capacity() / 8
    }

    /// All tags, in no particular order: to be stored with the key and inserted again after a restart.
    pub fn tags(&self) -> impl Iterator<Item = ReplayTag> {
        let zero = self.zero_seen.then_some(ReplayTag(0));
        self.slots.iter().filter(|&&slot| slot != 0).map(|&slot| ReplayTag(slot)).chain(zero)
    }

    /// Takes a tag that was not there.
    ///
    /// # Errors
    /// [`Refused::Seen`] if it was there, else [`Refused::Full`] if there is no room. The set is then unchanged.
    pub fn insert(&mut self, tag: ReplayTag) -> Result<(), Refused> {
        let full = self.len >= self.capacity();
        let vacant = if tag.0 == 0 {
            if self.zero_seen { None } else { Some(&mut 0) }
        } else {
            let (before, after) = self.slots.split_at_mut(Self::home(self.multiplier, tag, self.slots.len()));
            after.iter_mut().chain(before).find(|slot| **slot == 0 || **slot == tag.0).filter(|slot| **slot == 0)
        };
        let Some(slot) = vacant else {
            // A set without slots lands here too, and has seen nothing.
            return Err(if self.slots.is_empty() { Refused::Full } else { Refused::Seen });
        };
        if full {
            return Err(Refused::Full);
        }
        *slot = tag.0;
        self.zero_seen |= tag.0 == 0;
        self.len += 1;
        Ok(())
    }

    /// Forgets everything. Only right when the key whose onions were counted is gone.
    pub fn clear(&mut self) {
        self.slots.fill(0);
        self.zero_seen = false;
        self.len = 0;
    }

    /// Where the search for `tag` begins: the product's upper bits, scaled to the number of slots.
    fn home(multiplier: u64, tag: ReplayTag, slots: usize) -> usize {
        let hash = tag.0.wrapping_mul(multiplier);
        ((u128::from(hash) * slots as u128) >> 64) as usize
    }
}

/// The replay sets of the current and of the previous onion key.
pub struct ReplayEpochs<'m> {
    epoch: KeyEpoch,
    current: ReplaySet<'m>,
    previous: ReplaySet<'m>,
}

impl<'m> ReplayEpochs<'m> {
    /// Sets for the key of `epoch` and the one before it, empty only if these keys have opened nothing yet.
    #[must_use]
    pub const fn new(epoch: KeyEpoch, current: ReplaySet<'m>, previous: ReplaySet<'m>) -> Self {
        Self { epoch, current, previous }
    }

    /// Takes the tag of an onion that the key of `epoch` opened. An onion opened on a worker thread may come
    /// back after a rotation, which is why the epoch is a number here and not "current" or "previous".
    ///
    /// # Errors
    /// [`Refused`]: the onion must not open a circuit.
    pub fn insert(&mut self, epoch: KeyEpoch, tag: ReplayTag) -> Result<(), Refused> {
        if epoch == self.epoch {
            self.current.insert(tag)
        } else if epoch.next() == self.epoch {
            self.previous.insert(tag)
        } else {
            Err(Refused::Expired)
        }
    }

    /// Goes on to the next onion key, together with [`super::kem::OnionKeys::rotate`]: the current set becomes the
    /// previous one, whose memory is emptied for the new key.
    pub fn rotate(&mut self) {
        core::mem::swap(&mut self.current, &mut self.previous);
        self.current.clear();
        self.epoch = self.epoch.next();
    }

    /// The set of the current key, whose length tells when the key should be rotated early.
    #[must_use]
    pub const fn current(&self) -> &ReplaySet<'m> {
        &self.current
    }

    /// The set of the previous key.
    #[must_use]
    pub const fn previous(&self) -> &ReplaySet<'m> {
        &self.previous
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::crypto::testing::rng;

    #[test]
    fn capacity_leaves_a_quarter_free() {
        for (slots, capacity) in [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3), (5, 3), (7, 5), (8, 6), (1000, 750)] {
            let mut memory = vec![9; slots];
            let set = ReplaySet::new(&mut memory, &mut rng(1));
            assert_eq!(set.capacity(), capacity, "{slots} slots");
            assert!(set.is_empty());
        }
    }

    #[test]
    fn a_full_set_refuses_and_remembers() {
        for slots in 0..40 {
            let mut memory = vec![0; slots];
            let mut set = ReplaySet::new(&mut memory, &mut rng(slots as u64));
            let capacity = set.capacity() as u64;
            for tag in 0..capacity {
                assert_eq!(set.insert(ReplayTag(tag)), Ok(()));
            }
            for tag in 0..capacity {
                assert_eq!(set.insert(ReplayTag(tag)), Err(Refused::Seen));
            }
            for tag in capacity..capacity + 50 {
                assert_eq!(set.insert(ReplayTag(tag)), Err(Refused::Full));
            }
            assert_eq!(set.len() as u64, capacity);
            set.clear();
            assert!(set.is_empty());
            assert_eq!(set.insert(ReplayTag(0)).is_ok(), capacity > 0);
        }
    }

    /// Tags that all begin their search at one slot, the last of the table, so that every search wraps round.
    #[test]
    fn clustered_tags_are_told_apart() {
        let mut memory = [0; 64];
        let mut set = ReplaySet::new(&mut memory, &mut rng(2));
        let inverse =
            (0..6).fold(set.multiplier, |x, _| x.wrapping_mul(2u64.wrapping_sub(set.multiplier.wrapping_mul(x))));
        assert_eq!(inverse.wrapping_mul(set.multiplier), 1);
        let tags: Vec<_> = (0..48).map(|i| ReplayTag((u64::MAX - i).wrapping_mul(inverse))).collect();
        assert!(tags.iter().all(|&tag| ReplaySet::home(set.multiplier, tag, 64) == 63));
        for &tag in &tags {
            assert_eq!(set.insert(tag), Ok(()));
        }
        for &tag in &tags {
            assert_eq!(set.insert(tag), Err(Refused::Seen));
        }
    }

    #[test]
    fn epochs_move_on() {
        let (mut a, mut b) = ([0; 8], [0; 8]);
        let sets = (ReplaySet::new(&mut a, &mut rng(3)), ReplaySet::new(&mut b, &mut rng(4)));
        let first = KeyEpoch::FIRST;
        let mut epochs = ReplayEpochs::new(first, sets.0, sets.1);
        let tag = ReplayTag(5);
        assert_eq!(epochs.insert(first, tag), Ok(()));
        assert_eq!(epochs.insert(first.next(), tag), Err(Refused::Expired), "a key that is not there yet");
        epochs.rotate();
        assert_eq!(epochs.insert(first, tag), Err(Refused::Seen));
        assert_eq!(epochs.insert(first, ReplayTag(6)), Ok(()));
        assert_eq!(epochs.insert(first.next(), tag), Ok(()));
        assert_eq!(epochs.current().len(), 1);
        epochs.rotate();
        assert_eq!(epochs.insert(first, tag), Err(Refused::Expired));
        assert_eq!(epochs.insert(first.next(), tag), Err(Refused::Seen));
        assert!(epochs.current().is_empty());
    }

    proptest! {
        /// Against the standard library's set, with few enough tags and slots for repetition and overflow.
        #[test]
        fn agrees_with_a_reference(
            slots in 0usize..80,
            seed in any::<u64>(),
            tags in prop::collection::vec(prop_oneof![0u64..100, any::<u64>(), (1u64..9).prop_map(|i| i << 60)], ..200),
        ) {
            let mut memory = vec![0; slots];
            let mut set = ReplaySet::new(&mut memory, &mut rng(seed));
            let mut reference = HashSet::new();
            for tag in tags {
                let expected = if reference.contains(&tag) {
                    Err(Refused::Seen)
                } else if reference.len() == slots * 3 / 4 {
                    Err(Refused::Full)
                } else {
                    reference.insert(tag);
                    Ok(())
                };
                prop_assert_eq!(set.insert(ReplayTag(tag)), expected);
                prop_assert_eq!(set.len(), reference.len());
            }
            let tags: Vec<_> = set.tags().map(|tag| tag.0).collect();
            prop_assert_eq!(tags.len(), reference.len());
            prop_assert_eq!(tags.into_iter().collect::<HashSet<_>>(), reference);
        }
    }
}
