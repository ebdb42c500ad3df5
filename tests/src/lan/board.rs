//! A board whose clock is the network's, whose generator is seeded, and whose storage is a map.

use bulbil_core::driver::LinkEnd;
use bulbil_core::node::Outcome;
use bulbil_core::time::Instant;
use bulbil_core::wire::UnixTime;
use bulbil_firmware_sim::board::{Clock, Entropy, Event, ITEM_MAX_LEN, Item, KeyStore, Observer, StorageFailed};
use rand_chacha::ChaCha20Rng;
use rand_core::{CryptoRng, SeedableRng as _};
use sha2::{Digest as _, Sha256};

use super::wire::VirtualClock;
use crate::fixture;

/// What a node has told its board. Counted, not collected: an hour of it is long.
#[derive(Clone, Default)]
pub struct Told {
    /// Descriptors published.
    pub published: u32,
    /// Contacts met.
    pub met: u32,
    /// Links refused for want of a place.
    pub links_refused: u32,
    /// Nodes that were connected to and have shown an acceptable descriptor.
    pub links_up: u32,
    /// Why links ended, and how many for each reason. Of fixed size, because what a node's turn takes from the heap is counted.
    pub links_ended: heapless::Vec<(LinkEnd, u32), 24>,
    /// Requests answered in full.
    pub answered: u32,
    /// Of those, receipts that verified.
    pub receipts: u32,
    /// Requests that failed, and how the last one did.
    pub failed: (u32, Option<Outcome>),
    /// Bytes of the answer that is coming, and their digest.
    pub answer: (u64, Sha256),
    /// Length and digest of the last whole answer.
    pub last_answer: Option<(u64, [u8; 32])>,
    /// Nothing could be done for want of a path.
    pub no_path: u32,
}

/// A board.
pub struct LanBoard {
    clock: VirtualClock,
    /// Whether it knows the time of day.
    pub calendar: bool,
    rng: ChaCha20Rng,
    /// What is stored, by [`Item`]. Of fixed size, because what a node's turn takes from the heap is counted.
    pub items: [Option<heapless::Vec<u8, ITEM_MAX_LEN>>; 3],
    /// What the node has told.
    pub told: Told,
}

impl LanBoard {
    /// A board with the fixed identity of that number, if it is to have one.
    #[must_use]
    pub fn new(clock: &VirtualClock, seed: u64, identity: Option<usize>) -> Self {
        let mut items = [const { None }; 3];
        items[Item::Identity as usize] = identity.map(|number| {
            heapless::Vec::from_slice(fixture::identity_der(number)).expect("an identity is no longer than an item")
        });
        let rng = ChaCha20Rng::seed_from_u64(seed);
        Self { clock: clock.clone(), calendar: true, rng, items, told: Told::default() }
    }
}

impl Clock for LanBoard {
    fn now(&mut self) -> Instant {
        self.clock.now()
    }

    fn unix_time(&mut self) -> Option<UnixTime> {
        self.calendar.then(|| UnixTime(fixture::EPOCH.0 + self.clock.now().millis() / 1000))
    }
}

impl Entropy for LanBoard {
    fn rng(&mut self) -> &mut dyn CryptoRng {
        &mut self.rng
    }
}

impl KeyStore for LanBoard {
    fn load(&mut self, item: Item, buffer: &mut [u8]) -> Result<Option<usize>, StorageFailed> {
        let Some(bytes) = &self.items[item as usize] else { return Ok(None) };
        buffer.get_mut(..bytes.len()).ok_or(StorageFailed)?.copy_from_slice(bytes);
        Ok(Some(bytes.len()))
    }

    fn store(&mut self, item: Item, bytes: &[u8]) -> Result<(), StorageFailed> {
        assert_ne!(item, Item::Identity, "the identity comes from outside");
        self.items[item as usize] = Some(heapless::Vec::from_slice(bytes).map_err(|_| StorageFailed)?);
        Ok(())
    }
}

impl Observer for LanBoard {
    fn handle_event(&mut self, event: Event<'_>) {
        let told = &mut self.told;
        match event {
            Event::Published => told.published += 1,
            Event::Met(_) => told.met += 1,
            Event::LinkUp => told.links_up += 1,
            Event::LinkEnded(end) => match told.links_ended.iter_mut().find(|(known, _)| *known == end) {
                Some((_, count)) => *count += 1,
                None => told.links_ended.push((end, 1)).expect("few reasons"),
            },
            Event::LinkRefused => told.links_refused += 1,
            Event::Connected(_) => told.answer = (0, Sha256::new()),
            Event::Answer(bytes) => {
                told.answer.0 += bytes.len() as u64;
                told.answer.1.update(bytes);
            }
            Event::Answered { receipt } => {
                told.answered += 1;
                told.receipts += u32::from(receipt == Some(true));
                assert_ne!(receipt, Some(false), "an honest exit's receipt verifies");
                let (len, digest) = std::mem::replace(&mut told.answer, (0, Sha256::new()));
                told.last_answer = Some((len, digest.finalize().into()));
            }
            Event::RequestFailed(outcome) => told.failed = (told.failed.0 + 1, Some(outcome)),
            Event::NoPath => told.no_path += 1,
            Event::StorageFailed(_) | Event::RotationFailed => panic!("{event:?}"),
        }
    }
}
