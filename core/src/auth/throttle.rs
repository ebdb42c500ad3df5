//! Slows wrong answers, `PROTOCOL.md` section 17.4.
//!
//! Allowances are kept in a fixed table: in its first half per username, for users that do not exist as
//! for those that do, so that being slowed down tells nothing, and bounded whatever names are tried; in its second half per
//! username and session key, for the user's known session keys (the 4 that signed up or in last) that have signed on the connection.
//! So strangers who keep guessing, under however many names, use up the first half alone. The second one is
//! used up only by wrong answers from computers that their users have signed up or in with.
//!
//! Anybody may sign up often, so the second half has to stand wrong answers under many names as well. A keyed hash gives everybody 8 allowances
//! and a tag. Whoever has not recovered yet is found by the tag; everybody else gets one that has recovered, with the tag in it.
//! Only if all 8 are in use by others does one serve two. Nobody loses a debt to others: a tag is replaced only where nothing is owed.
//!
//! Allowances are lost when the server stops.

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
/// Whoever owes more seconds has to wait.
const DEBT_FREE: u32 = INTERVAL * (WRONG_ANSWERS_FREE - 1);
/// Allowances that the keyed hash gives.
const PROBES: u64 = 8;

/// One allowance: who is in debt, and until when.
///
/// Threads share it where the target has 64-bit atomics; elsewhere it is not `Sync`.
#[derive(Debug, Default)]
pub struct Allowance(word::Word);

#[cfg(target_has_atomic = "64")]
mod word {
    use core::sync::atomic::{AtomicU64, Ordering};

    #[derive(Debug, Default)]
    pub(super) struct Word(AtomicU64);

    impl Word {
        pub(super) const fn new() -> Self {
            Self(AtomicU64::new(0))
        }

        pub(super) fn get(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }

        /// Whether it was `old` and is `new` now.
        pub(super) fn replace(&self, old: u64, new: u64) -> bool {
            self.0.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        }
    }
}

#[cfg(not(target_has_atomic = "64"))]
mod word {
    use core::cell::Cell;

    #[derive(Debug, Default)]
    pub(super) struct Word(Cell<u64>);

    impl Word {
        pub(super) const fn new() -> Self {
            Self(Cell::new(0))
        }

        pub(super) fn get(&self) -> u64 {
            self.0.get()
        }

        /// Whether it was `old` and is `new` now.
        pub(super) fn replace(&self, old: u64, new: u64) -> bool {
            let same = self.0.get() == old;
            if same {
                self.0.set(new);
            }
            same
        }
    }
}

impl Allowance {
    /// An allowance nothing has been taken from; an item of the table that the caller provides.
    #[must_use]
    pub const fn new() -> Self {
        Self(word::Word::new())
    }

    fn entry(&self) -> Entry {
        let word = self.0.get();
        Entry { tag: (word >> 32) as u32, until: word as u32 }
    }

    fn replace(&self, old: Entry, new: Entry) -> bool {
        self.0.replace(old.word(), new.word())
    }
}

/// What an allowance holds.
#[derive(Clone, Copy)]
struct Entry {
    /// Whose it is as long as something is owed.
    tag: u32,
    /// In seconds: a generic cell rate algorithm's theoretical arrival time.
    until: u32,
}

impl Entry {
    fn word(self) -> u64 {
        u64::from(self.tag) << 32 | u64::from(self.until)
    }

    /// Seconds owed, 30 for each wrong answer; zero once it has recovered.
    fn debt(self, now: Instant) -> u32 {
        self.until.saturating_sub(seconds(now))
    }
}

fn seconds(now: Instant) -> u32 {
    u32::try_from(now.millis() / 1000).unwrap_or(u32::MAX)
}

/// The table of allowances, the strangers' half and then the known computers'.
pub(super) struct Throttle<T> {
    table: T,
    /// An allowance for everybody is the worst that an owner without a table gets.
    shared: Allowance,
}

impl<T: AsRef<[Allowance]>> Throttle<T> {
    pub(super) const fn new(table: T) -> Self {
        Self { table, shared: Allowance::new() }
    }

    /// `username`'s `device`, whose session key the record knows and the client has proved; without one
    /// the strangers who answer as `username`.
    pub(super) fn of(&self, username: &Username, device: Option<&Fingerprint>, mask: &MaskKey) -> Debtor<'_> {
        let table = self.table.as_ref();
        let (strangers, devices) = table.split_at(table.len() / 2);
        let half = if device.is_some() { devices } else { strangers };
        let half = if half.is_empty() { core::slice::from_ref(&self.shared) } else { half };
        let device = device.map_or([0; Fingerprint::LEN], |device| *device.as_bytes());
        let hash = mask.derive(&[b"allowance", &device, username.as_bytes()]);
        let [first, step, tag, _] = hash.as_chunks().0 else { unreachable!("4 times 8 of 32 bytes") };
        let (first, step, tag) = (u64::from_be_bytes(*first), u64::from_be_bytes(*step), u64::from_be_bytes(*tag));
        // An odd step meets no place of a power of two twice.
        Debtor { half, first, step: step | 1, tag: tag as u32 }
    }
}

/// Somebody whose wrong answers are counted.
pub(super) struct Debtor<'a> {
    /// Never empty.
    half: &'a [Allowance],
    first: u64,
    step: u64,
    tag: u32,
}

/// What an answer took from an allowance; kept if this is dropped.
pub(super) struct Taken<'a> {
    allowance: &'a Allowance,
    tag: u32,
}

impl<'a> Debtor<'a> {
    /// The allowance that counts at `now`, and what was in it.
    fn find(&self, now: Instant) -> (&'a Allowance, Entry) {
        let (half, len) = (self.half, self.half.len() as u64);
        let probe = |number: u64| {
            let allowance = &half[(self.first.wrapping_add(self.step.wrapping_mul(number)) % len) as usize];
            (allowance, allowance.entry())
        };
        let own = |(_, entry): &(&Allowance, Entry)| entry.tag == self.tag && entry.debt(now) > 0;
        // If others have them all, the one with the least debt is shared. The first of several, so that connections at once agree.
        let least = || (0..PROBES).map(probe).min_by_key(|(_, entry)| entry.debt(now));
        (0..PROBES).map(probe).find(own).or_else(least).unwrap_or_else(|| probe(0))
    }

    /// How long from `now` until an answer may be given; zero if now.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        Self::wait_for(self.find(now).1, now)
    }

    fn wait_for(entry: Entry, now: Instant) -> Duration {
        let free_from = u64::from(entry.until.saturating_sub(DEBT_FREE)) * 1000;
        now.until(Instant::from_millis(free_from))
    }

    /// Takes one answer out of the allowance before the answer is looked at, so that many connections at once gain nothing.
    ///
    /// # Errors
    /// How long to wait, if nothing is left.
    pub(super) fn take(&self, now: Instant) -> Result<Taken<'a>, Duration> {
        loop {
            let (allowance, old) = self.find(now);
            let debt = old.debt(now);
            if debt > DEBT_FREE {
                return Err(Self::wait_for(old, now));
            }
            let tag = if debt == 0 { self.tag } else { old.tag };
            let until = old.until.max(seconds(now)).saturating_add(INTERVAL);
            // Otherwise somebody else was faster, and what counts may be another one now.
            if allowance.replace(old, Entry { tag, until }) {
                return Ok(Taken { allowance, tag });
            }
        }
    }
}

impl Taken<'_> {
    /// Gives back what a right answer took.
    pub(super) fn give_back(self) {
        loop {
            let old = self.allowance.entry();
            // It may have recovered, and be in use by somebody else.
            let given_back = Entry { until: old.until.saturating_sub(INTERVAL), ..old };
            if old.tag != self.tag || self.allowance.replace(old, given_back) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
