//! Slows wrong answers, `PROTOCOL.md` section 17.4.
//!
//! Allowances are kept in a fixed table under a keyed hash: in its first half per username, for users that do not exist as
//! for those that do, so that being slowed down tells nothing, and bounded whatever names are tried; in its second half per
//! username and session key, for the user's known session keys (the 4 that signed up or in last) that have signed on the connection.
//! So strangers who keep guessing, under however many names, use up the first half alone. The second one is
//! used up only by wrong answers from computers that their users have signed up or in with.
//!
//! Allowances are lost when the server stops.

use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use super::challenge::MaskKey;
use super::key::Fingerprint;
use super::name::Username;
use crate::time::Instant;

/// Wrong answers in a row before the first wait.
pub const WRONG_ANSWERS_FREE: u32 = 5;
/// For each further one.
pub const WRONG_ANSWER_WAIT: Duration = Duration::from_secs(INTERVAL as u64);

const INTERVAL: u32 = 30;

/// One allowance: a generic cell rate algorithm's theoretical arrival time in seconds.
#[derive(Debug, Default)]
pub struct Allowance(AtomicU32);

impl Allowance {
    /// An allowance nothing has been taken from; an item of the table that the caller provides.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// How long from `now` until an answer may be given; zero if now.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let free_from = self.0.load(Ordering::Relaxed).saturating_sub(INTERVAL * (WRONG_ANSWERS_FREE - 1));
        now.until(Instant::from_millis(u64::from(free_from) * 1000))
    }

    /// Takes one answer out of the allowance before the answer is looked at, so that many connections at once gain nothing.
    ///
    /// # Errors
    /// How long to wait, if nothing is left.
    pub(super) fn take(&self, now: Instant) -> Result<(), Duration> {
        let seconds = u32::try_from(now.millis() / 1000).unwrap_or(u32::MAX);
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |time| {
            let free = time <= seconds.saturating_add(INTERVAL * (WRONG_ANSWERS_FREE - 1));
            free.then(|| time.max(seconds).saturating_add(INTERVAL))
        });
        taken.map(|_| ()).map_err(|_| self.wait(now).max(Duration::from_secs(1)))
    }

    /// Gives back what a right answer took.
    pub(super) fn give_back(&self) {
        // The closure always answers `Some`, so this cannot fail.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |time| Some(time.saturating_sub(INTERVAL)));
    }
}

/// The table of allowances, the strangers' half and then the known computers'. Two users may share an allowance by chance, the
/// likelier the more are in use; which two, nobody without the key can arrange.
pub(super) struct Throttle<T>(pub(super) T);

impl<T: AsRef<[Allowance]>> Throttle<T> {
    /// The allowance of `username`'s `device`, whose session key the record knows and the client has proved; without one
    /// the allowance that strangers have for `username`.
    pub(super) fn of(&self, username: &Username, device: Option<&Fingerprint>, mask: &MaskKey) -> &Allowance {
        // An allowance for everybody is the worst that an owner without a table gets.
        static STRANGERS: Allowance = Allowance::new();
        static DEVICES: Allowance = Allowance::new();
        let table = self.0.as_ref();
        let (strangers, devices) = table.split_at(table.len() / 2);
        let (half, shared) = if device.is_some() { (devices, &DEVICES) } else { (strangers, &STRANGERS) };
        let device = device.map_or([0; Fingerprint::LEN], |device| *device.as_bytes());
        let hash = mask.derive(&[b"allowance", &device, username.as_bytes()]);
        let hash = u64::from_be_bytes(*hash.first_chunk().expect("8 of 32 bytes"));
        let index = hash.checked_rem(half.len() as u64).unwrap_or(0);
        half.get(index as usize).unwrap_or(shared)
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::crypto::testing::rng;

    const fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1000)
    }

    #[test]
    fn five_are_free_and_then_one_every_half_minute() {
        let allowance = Allowance::new();
        for _ in 0..WRONG_ANSWERS_FREE {
            assert_eq!(allowance.wait(at(1000)), Duration::ZERO);
            assert_eq!(allowance.take(at(1000)), Ok(()));
        }
        assert_eq!(allowance.take(at(1000)), Err(WRONG_ANSWER_WAIT));
        assert_eq!(allowance.wait(at(1029)), Duration::from_secs(1));
        assert_eq!(allowance.take(at(1030)), Ok(()));
        assert_eq!(allowance.take(at(1030)), Err(WRONG_ANSWER_WAIT));
        // A pause makes good for at most the free ones.
        let later = at(1_000_000);
        assert_eq!((0..100).filter(|_| allowance.take(later).is_ok()).count() as u32, WRONG_ANSWERS_FREE);
    }

    #[test]
    fn right_answers_cost_nothing() {
        let allowance = Allowance::new();
        for _ in 0..100 {
            allowance.take(at(0)).unwrap();
            allowance.give_back();
        }
    }

    #[test]
    fn the_end_of_time_is_no_trap() {
        let allowance = Allowance::new();
        let end = Instant::from_millis(u64::MAX);
        for _ in 0..20 {
            let _ = allowance.take(end);
        }
        assert!(allowance.wait(end).is_zero());
    }

    #[test]
    fn users_and_their_computers_have_their_own() {
        let mask = MaskKey::generate(&mut rng(1));
        let throttle = Throttle((0..4096).map(|_| Allowance::new()).collect::<Vec<_>>());
        let (alice, bob) = (Username::new("alice").unwrap(), Username::new("bob").unwrap());
        let device = Fingerprint::from_bytes([1; 32]);
        while throttle.of(&alice, None, &mask).take(at(0)).is_ok() {}
        assert!(throttle.of(&alice, None, &mask).take(at(1)).is_err());
        assert!(throttle.of(&alice, Some(&device), &mask).take(at(1)).is_ok());
        assert!(throttle.of(&bob, None, &mask).take(at(1)).is_ok());
        assert_eq!(Throttle([]).of(&bob, None, &mask).wait(at(0)), Duration::ZERO);
    }

    #[test]
    fn strangers_who_use_up_every_name_leave_the_users_computers_alone() {
        let mask = MaskKey::generate(&mut rng(2));
        for len in [2, 3, 16] {
            let throttle = Throttle((0..len).map(|_| Allowance::new()).collect::<Vec<_>>());
            // Of so small a table every allowance that strangers have is hit.
            for number in 0..400 {
                let name = Username::new(&std::format!("user-{number}")).unwrap();
                while throttle.of(&name, None, &mask).take(at(0)).is_ok() {}
            }
            let alice = Username::new("alice").unwrap();
            let device = Fingerprint::from_bytes([1; 32]);
            assert!(throttle.of(&alice, None, &mask).take(at(1)).is_err(), "{len}");
            assert_eq!(throttle.of(&alice, Some(&device), &mask).take(at(1)), Ok(()), "{len}");
        }
    }
}
