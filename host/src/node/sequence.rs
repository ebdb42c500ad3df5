//! The sequence numbers of this node's descriptors, `PROTOCOL.md` section 3.

use std::sync::{Arc, Mutex, PoisonError};

use tracing::warn;

use super::StartError;
use crate::state::{Item, StateDir};

/// Counts a node's descriptors. They must grow whatever its clock does, over restarts too: others keep the descriptor with the greatest number, and with
/// it an onion key that is long gone.
pub(super) struct Sequence {
    last: Mutex<u64>,
    state: Option<Arc<StateDir>>,
}

impl Sequence {
    /// Goes on behind the last number that is kept in `state`. Without a state directory only the clock makes numbers grow over a restart.
    ///
    /// # Errors
    /// The file is damaged or holds something else.
    pub(super) fn load(state: Option<Arc<StateDir>>) -> Result<Self, StartError> {
        let Some(state) = state else { return Ok(Self { last: Mutex::new(0), state: None }) };
        let kept = state.read(Item::Sequence).map_err(|error| StartError(error.to_string()))?;
        let last = match kept.as_ref().map(|bytes| bytes.as_slice().try_into()) {
            None => 0,
            Some(Ok(bytes)) => u64::from_be_bytes(bytes),
            Some(Err(_)) => {
                let path = state.item_path(Item::Sequence);
                return Err(StartError(format!("{} does not hold a number; remove it", path.display())));
            }
        };
        Ok(Self { last: Mutex::new(last), state: Some(state) })
    }

    /// The next number, which is kept before anybody sees it. Milliseconds since 1970, so that a node that restarts without its state is believed at once;
    /// and never one twice, though the clock be set back. Blocks on the disk.
    pub(super) fn next(&self, now_millis: u64) -> u64 {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = now_millis.max(last.saturating_add(1));
        if let Some(state) = &self.state
            && let Err(error) = state.replace(Item::Sequence, &last.to_be_bytes())
        {
            // It matters only to a node that starts again with its clock set back, and the next number is kept anew.
            warn!(%error, "the descriptor's sequence number could not be kept");
        }
        *last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn numbers_grow_over_restarts_though_the_clock_be_set_back() {
        let scratch = Scratch::new("sequence");
        let start = || {
            let state = Arc::new(StateDir::open(&scratch.path().join("state")).unwrap());
            (Sequence::load(Some(Arc::clone(&state))), state)
        };
        let numbers = |clock: [u64; 2]| {
            let sequence = start().0.unwrap();
            clock.map(|millis| sequence.next(millis))
        };
        assert_eq!(numbers([1_000, 2_000]), [1_000, 2_000]);
        assert_eq!(numbers([1_500, 1_500]), [2_001, 2_002], "set back");
        assert_eq!(numbers([2_002, 9_000]), [2_003, 9_000]);

        let (sequence, state) = start();
        assert_eq!(sequence.unwrap().next(1), 9_001);
        state.replace(Item::Sequence, b"123456789").unwrap();
        drop(state);
        let error = start().0.map(drop).unwrap_err();
        assert!(error.to_string().contains("sequence does not hold a number"), "{error}");
    }

    #[test]
    fn a_number_that_cannot_be_kept_is_shown_all_the_same() {
        let scratch = Scratch::new("sequence");
        let state = Arc::new(StateDir::open(&scratch.path().join("state")).unwrap());
        let sequence = Sequence::load(Some(Arc::clone(&state))).unwrap();
        std::fs::create_dir(state.item_path(Item::Sequence)).unwrap();
        assert_eq!([5, 5].map(|millis| sequence.next(millis)), [5, 6]);
        let without = Sequence::load(None).unwrap();
        assert_eq!([5, 5].map(|millis| without.next(millis)), [5, 6]);
    }
}
