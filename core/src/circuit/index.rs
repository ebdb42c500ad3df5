//! Which circuit a cell belongs to: (link, circuit id) to a slot of the table.
//!
//! Open addressing with linear probing over a fixed slice. Peers choose circuit ids, so positions come from a keyed
//! multiplication: without the key nobody can aim at one run of the table. Each circuit has at most two entries and the slice at least
//! four places a circuit, so it is never more than half full and never refuses.

use super::{CircuitIndex, LinkId};
use crate::wire::CircuitId;

/// One place of the index.
#[derive(Debug, Clone, Copy, Default)]
pub struct IndexSlot {
    entry: Option<(CircuitId, LinkId, CircuitIndex)>,
}

impl IndexSlot {
    /// A place without an entry.
    pub const EMPTY: Self = Self { entry: None };
}

/// Places that the index of so many circuits needs: four for each, and a power of two.
#[must_use]
pub const fn index_len(circuits: usize) -> usize {
    circuits.saturating_mul(4).next_power_of_two()
}

/// The index over caller-given places, a power of two of them.
pub struct Index<'m> {
    slots: &'m mut [IndexSlot],
    key: [u64; 2],
}

impl<'m> Index<'m> {
    /// An empty index. `key` must be random and secret; `slots` is cut to a power of two.
    #[must_use]
    pub fn new(slots: &'m mut [IndexSlot], key: [u64; 2]) -> Self {
        let len = if slots.is_empty() { 0 } else { 1 << slots.len().ilog2() };
        let slots = &mut slots[..len];
        slots.fill(IndexSlot::default());
        Self { slots, key: [key[0], key[1] | 1] }
    }

    /// Entries, counted one by one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.iter().filter(|slot| slot.entry.is_some()).count()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn home(&self, link: LinkId, circuit: CircuitId) -> usize {
        let link = link.slot() as u64 | u64::from(link.generation()) << 16;
        let word = (link << 32 | u64::from(circuit.value())) ^ self.key[0];
        let product = u128::from(word).wrapping_mul(u128::from(self.key[1]) << 1 | 1);
        ((product >> 64) as u64 ^ product as u64) as usize & (self.slots.len() - 1)
    }

    fn find(&self, link: LinkId, circuit: CircuitId) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = self.home(link, circuit);
        for _ in 0..self.slots.len() {
            let (entry_circuit, entry_link, _) = self.slots[at].entry?;
            if entry_circuit == circuit && entry_link == link {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
        None
    }

    /// The circuit that is `circuit` on `link`.
    #[must_use]
    pub fn get(&self, link: LinkId, circuit: CircuitId) -> Option<CircuitIndex> {
        self.find(link, circuit).and_then(|at| self.slots[at].entry).map(|(_, _, index)| index)
    }

    /// Enters a circuit; answers `false` (a bug here) if there is no place or it is entered already.
    pub fn insert(&mut self, link: LinkId, circuit: CircuitId, index: CircuitIndex) -> bool {
        let Some(mask) = self.slots.len().checked_sub(1) else { return false };
        let mut at = self.home(link, circuit);
        for _ in 0..self.slots.len() {
            match self.slots[at].entry {
                None => {
                    self.slots[at].entry = Some((circuit, link, index));
                    return true;
                }
                Some((entry_circuit, entry_link, _)) if entry_circuit == circuit && entry_link == link => return false,
                Some(_) => at = (at + 1) & mask,
            }
        }
        false
    }

    /// Removes a circuit, if it is entered, and closes the gap.
    pub fn remove(&mut self, link: LinkId, circuit: CircuitId) {
        let Some(mut gap) = self.find(link, circuit) else { return };
        let mask = self.slots.len() - 1;
        let mut at = gap;
        loop {
            at = (at + 1) & mask;
            let Some((entry_circuit, entry_link, _)) = self.slots[at].entry else { break };
            // An entry may move back to the gap unless its home lies behind the gap.
            let home = self.home(entry_link, entry_circuit);
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(gap) & mask {
                self.slots[gap] = self.slots[at];
                gap = at;
            }
        }
        self.slots[gap].entry = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::HashMap, vec};

    proptest! {
        #[test]
        fn behaves_as_a_map(
            steps in proptest::collection::vec((any::<bool>(), 0..3u16, 1..40u32), 0..400),
            key in any::<[u64; 2]>(),
        ) {
            let mut slots = vec![IndexSlot::default(); 256];
            let mut index = Index::new(&mut slots, key);
            let mut model = HashMap::new();
            for (number, (insert, link, circuit)) in (0u32..).zip(steps) {
                let (link, circuit) = (LinkId::new(link, link % 2), CircuitId::new(circuit).unwrap());
                if insert && model.len() < 128 {
                    let fresh = !model.contains_key(&(link, circuit));
                    prop_assert_eq!(index.insert(link, circuit, CircuitIndex(number)), fresh);
                    model.entry((link, circuit)).or_insert(number);
                } else {
                    index.remove(link, circuit);
                    model.remove(&(link, circuit));
                }
                for link in (0..3).map(|link| LinkId::new(link, link % 2)) {
                    for circuit in (1..40).filter_map(CircuitId::new) {
                        let expected = model.get(&(link, circuit)).copied().map(CircuitIndex);
                        prop_assert_eq!(index.get(link, circuit), expected);
                    }
                }
            }
        }
    }
}
