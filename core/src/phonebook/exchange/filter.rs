//! What an asker has already, told in few bits: a Bloom filter over node ids and sequence numbers, `PROTOCOL.md` section 18.3.
//!
//! With ten bits a node it takes about one in a hundred nodes that the asker lacks for one that it has. The salt is another one each time,
//! and with it the mistakes.

use rand_core::CryptoRng;
use sha2::{Digest, Sha256};

use crate::wire::{NodeId, WireError};

/// Bytes of a salt.
pub const SALT_LEN: usize = 8;
/// Longest filter in bytes.
pub const FILTER_MAX_LEN: usize = 4096;
/// Most nodes for which a filter has its ten bits each. With twice as many it hides one in nine of those that the asker lacks, with
/// three times as many one in three: whoever knows more puts a random part of them in ([`super::Disclosure`]), and is told of the others
/// again.
pub const FILTER_NODES_MAX: usize = 8 * FILTER_MAX_LEN / BITS_PER_NODE;

const BITS_PER_NODE: usize = 10;
/// Bits that are set for each node.
const BITS_SET: usize = 6;
const CONTEXT: &[u8] = b"bulbil/1 filter";

/// Makes one exchange's filter differ from the next one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Salt(pub [u8; SALT_LEN]);

impl Salt {
    /// A fresh one.
    #[must_use]
    pub fn random<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        Self(rng.next_u64().to_be_bytes())
    }
}

/// Bytes of a filter for so many nodes: ten bits each, at most [`FILTER_MAX_LEN`].
#[must_use]
pub const fn filter_len(nodes: usize) -> usize {
    let len = nodes.saturating_mul(BITS_PER_NODE).div_ceil(8);
    if len < FILTER_MAX_LEN { len } else { FILTER_MAX_LEN }
}

/// The bits of a node in a filter of `len` bytes; `len` is not 0.
fn bits_of(salt: Salt, node: &NodeId, sequence: u64, len: usize) -> [usize; BITS_SET] {
    let mut hash = Sha256::new();
    for part in [CONTEXT, &salt.0, &node.0, &sequence.to_be_bytes()] {
        hash.update(part);
    }
    let digest: [u8; 32] = hash.finalize().into();
    let (words, _rest) = digest.as_chunks::<4>();
    let mut bits = [0; BITS_SET];
    for (bit, word) in bits.iter_mut().zip(words) {
        *bit = u32::from_be_bytes(*word) as usize % (8 * len);
    }
    bits
}

/// A filter in the making.
pub struct FilterBuilder<'b> {
    salt: Salt,
    bits: &'b mut [u8],
}

impl<'b> FilterBuilder<'b> {
    /// An empty filter for `nodes` nodes in the front of `storage`, [`filter_len`] bytes long or, if that is shorter, as long as `storage`:
    /// it is the less exact then.
    #[must_use]
    pub fn new(salt: Salt, nodes: usize, storage: &'b mut [u8]) -> Self {
        let len = filter_len(nodes).min(storage.len());
        let (bits, _rest) = storage.split_at_mut(len);
        bits.fill(0);
        Self { salt, bits }
    }

    /// The asker has this node's descriptor with this sequence number.
    pub fn insert(&mut self, node: &NodeId, sequence: u64) {
        if self.bits.is_empty() {
            return;
        }
        for bit in bits_of(self.salt, node, sequence, self.bits.len()) {
            if let Some(byte) = self.bits.get_mut(bit / 8) {
                *byte |= 1 << (bit % 8);
            }
        }
    }

    /// The filter.
    #[must_use]
    pub fn finish(self) -> Filter<'b> {
        Filter { salt: self.salt, bits: self.bits }
    }
}

/// What an asker has already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter<'a> {
    salt: Salt,
    bits: &'a [u8],
}

impl<'a> Filter<'a> {
    /// A filter that came with a request.
    ///
    /// # Errors
    /// [`WireError::Invalid`] if it is longer than [`FILTER_MAX_LEN`].
    pub const fn new(salt: Salt, bits: &'a [u8]) -> Result<Self, WireError> {
        if bits.len() > FILTER_MAX_LEN { Err(WireError::Invalid) } else { Ok(Self { salt, bits }) }
    }

    /// The filter of who has nothing, or does not say.
    #[must_use]
    pub const fn empty(salt: Salt) -> Self {
        Self { salt, bits: &[] }
    }

    /// Its salt.
    #[must_use]
    pub const fn salt(&self) -> Salt {
        self.salt
    }

    /// Its bits as they are on the wire.
    #[must_use]
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.bits
    }

    /// Whether the asker has the descriptor, or, seldom, only seems to.
    #[must_use]
    pub fn holds(&self, node: &NodeId, sequence: u64) -> bool {
        !self.bits.is_empty()
            && bits_of(self.salt, node, sequence, self.bits.len())
                .into_iter()
                .all(|bit| self.bits.get(bit / 8).is_some_and(|byte| byte & 1 << (bit % 8) != 0))
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use proptest::prelude::*;

    use super::super::super::testing::rng;
    use super::*;

    const SALT: Salt = Salt([0, 1, 2, 3, 4, 5, 6, 7]);

    fn node(number: u32) -> NodeId {
        NodeId(Sha256::digest(number.to_be_bytes()).into())
    }

    /// How many of 10,000 nodes that are not in a filter over `nodes` nodes it takes for held.
    fn mistakes(nodes: u32) -> usize {
        let mut storage = [0; FILTER_MAX_LEN];
        let mut builder = FilterBuilder::new(SALT, nodes as usize, &mut storage);
        (0..nodes).for_each(|number| builder.insert(&node(number), 7));
        let filter = builder.finish();
        assert!((0..nodes).all(|number| filter.holds(&node(number), 7)), "what was put in is held");
        (nodes..nodes + 10_000).filter(|&number| filter.holds(&node(number), 7)).count()
    }

    #[test]
    fn bits_are_those_computed_elsewhere() {
        // Python: hashlib.sha256(b"bulbil/1 filter" + salt + node + sequence), struct.unpack(">6I", digest[:24]), each modulo 8n.
        let (node, sequence) = (NodeId([0xab; 32]), 0x0102_0304_0506_0708);
        assert_eq!(bits_of(SALT, &node, sequence, 5), [31, 9, 36, 9, 32, 18]);
        assert_eq!(bits_of(SALT, &node, sequence, 4096), [6119, 25_057, 20_932, 21_641, 8328, 30_442]);
        let mut storage = [0xff; 8];
        let mut builder = FilterBuilder::new(SALT, 4, &mut storage);
        builder.insert(&node, sequence);
        assert_eq!(builder.finish().as_bytes(), [0x00, 0x02, 0x04, 0x80, 0x11]);
        assert_eq!(storage[5..], [0xff; 3], "only its own bytes are touched");
    }

    #[test]
    fn length_is_ten_bits_a_node_up_to_the_bound() {
        for (nodes, len) in [(0, 0), (1, 2), (2, 3), (4, 5), (100, 125), (2000, 2500), (3276, 4095), (3277, 4096)] {
            assert_eq!(filter_len(nodes), len, "{nodes}");
        }
        assert_eq!(filter_len(usize::MAX), FILTER_MAX_LEN);
        assert_eq!(filter_len(FILTER_NODES_MAX), FILTER_MAX_LEN - 1);
    }

    #[test]
    fn seldom_holds_what_was_not_put_in() {
        // Expected with ten bits a node: (1 - exp(-6 / 10))^6 = 0.84 %.
        for nodes in [100, 1000, 3276] {
            let mistakes = mistakes(nodes);
            assert!((40..130).contains(&mistakes), "{mistakes} of 10,000 with {nodes} nodes");
        }
        // With five and three and a third: 11.5 % and 33 %.
        assert!((1000..1300).contains(&mistakes(2 * 3276)), "{}", mistakes(2 * 3276));
        assert!((3000..3700).contains(&mistakes(3 * 3276)), "{}", mistakes(3 * 3276));
    }

    #[test]
    fn salt_node_and_sequence_all_count() {
        let mut storage = [0; 1250];
        let mut builder = FilterBuilder::new(SALT, 1000, &mut storage);
        builder.insert(&node(1), 7);
        let filter = builder.finish();
        assert!(filter.holds(&node(1), 7));
        assert!(!filter.holds(&node(1), 8) && !filter.holds(&node(2), 7));
        let other = Filter::new(Salt([9; 8]), filter.as_bytes()).unwrap();
        assert!(!other.holds(&node(1), 7));
        assert_ne!(Salt::random(&mut rng(1)), Salt::random(&mut rng(2)));
    }

    #[test]
    fn an_empty_filter_holds_nothing_and_a_full_one_everything() {
        assert!(!Filter::empty(SALT).holds(&node(1), 0));
        assert!(Filter::new(SALT, &[0xff; 3]).unwrap().holds(&node(1), 0));
        assert!(Filter::new(SALT, &vec![0; FILTER_MAX_LEN]).is_ok());
        assert_eq!(Filter::new(SALT, &vec![0; FILTER_MAX_LEN + 1]), Err(WireError::Invalid));
        let mut builder = FilterBuilder::new(SALT, 5, &mut []);
        builder.insert(&node(1), 0);
        assert_eq!(builder.finish(), Filter::empty(SALT), "without room nothing is said");
    }

    proptest! {
        #[test]
        fn holds_all_that_was_put_in_however_small(
            nodes in proptest::collection::vec((any::<[u8; 32]>(), any::<u64>()), 0..40),
            room in 0usize..64,
            salt in any::<[u8; 8]>(),
        ) {
            let mut storage = vec![0xa5; room];
            let mut builder = FilterBuilder::new(Salt(salt), nodes.len(), &mut storage);
            nodes.iter().for_each(|(node, sequence)| builder.insert(&NodeId(*node), *sequence));
            let filter = builder.finish();
            prop_assert_eq!(filter.as_bytes().len(), filter_len(nodes.len()).min(room));
            let held = nodes.iter().all(|(node, sequence)| filter.holds(&NodeId(*node), *sequence));
            prop_assert_eq!(held, room > 0 || nodes.is_empty());
        }
    }
}
