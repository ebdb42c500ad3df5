//! Who gives way when there are too many connections.
//!
//! Refusing the newcomer would let 10,000 connections that say nothing keep everybody out until their deadlines, again and
//! again. So a newcomer is let in and another connection closed, in this order:
//!
//! 1. one that has not yet been answered on a channel sealed to the server's key (asking for that key costs nothing, and so counts for
//!    nothing), as long as those are at least half of the connections that may be closed; else one that has been
//!    answered: they are about to go on, but what opens them is cheap enough to fill all places with them, and
//!    newcomers would have no time to speak;
//! 2. of those, one from the address with the most connections: who floods pushes out their own;
//! 3. of those, the one that has been waited for the longest: it had the most time to speak.
//!
//! A client that speaks as soon as it is greeted is therefore closed only if half of the places change hands within its
//! round trip. A request in work (not one that waits for a thread) is never dropped; if nothing else is there, which takes as many
//! requests in work as there are places, the newcomer is refused.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::Notify;

/// A connection's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PlaceId(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not yet answered on a channel sealed to the server's key.
    Silent,
    /// Answered on such a channel, and waited for since.
    Answered,
    /// A request is in work.
    Busy,
}

struct Entry {
    from: IpAddr,
    phase: Phase,
    /// When the connection was made, or last answered on a sealed channel; grows with time.
    since: u64,
    notice: Arc<Notify>,
}

/// A newcomer's place.
pub(super) struct Admitted {
    pub(super) id: PlaceId,
    /// Told when the connection has to give way.
    pub(super) notice: Arc<Notify>,
    /// Whether another one had to.
    pub(super) evicted: bool,
}

/// The table of connections.
pub(super) struct Places {
    connections: usize,
    per_address: usize,
    entries: HashMap<PlaceId, Entry>,
    counts: HashMap<IpAddr, usize>,
    /// Counts what happens.
    clock: u64,
}

impl Places {
    pub(super) fn new(connections: usize, per_address: usize) -> Self {
        Self { connections, per_address, entries: HashMap::new(), counts: HashMap::new(), clock: 0 }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn count(&self, from: IpAddr) -> usize {
        self.counts.get(&from).copied().unwrap_or(0)
    }

    /// A place for a newcomer; `None` if all places are taken by requests in work.
    pub(super) fn admit(&mut self, from: IpAddr) -> Option<Admitted> {
        let evicted = if self.count(from) >= self.per_address {
            self.evict(|entry| entry.from == from)?;
            true
        } else if self.entries.len() >= self.connections {
            self.evict(|_| true)?;
            true
        } else {
            false
        };
        let since = self.tick();
        let (id, notice) = (PlaceId(since), Arc::new(Notify::new()));
        self.entries.insert(id, Entry { from, phase: Phase::Silent, since, notice: Arc::clone(&notice) });
        *self.counts.entry(from).or_default() += 1;
        Some(Admitted { id, notice, evicted })
    }

    /// A whole request has come and its work begins.
    pub(super) fn busy(&mut self, id: PlaceId) {
        // One that was evicted at this very moment is no longer here.
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.phase = Phase::Busy;
        }
    }

    /// The request has been answered, on a channel that is `sealed` to the server's key or one that asks for it.
    pub(super) fn waits(&mut self, id: PlaceId, sealed: bool) {
        let now = self.tick();
        if let Some(entry) = self.entries.get_mut(&id) {
            // Who only asks for the key stays as old as it is, or asking again and again would make it the last to go.
            (entry.phase, entry.since) = if sealed { (Phase::Answered, now) } else { (Phase::Silent, entry.since) };
        }
    }

    /// The connection has ended.
    pub(super) fn leave(&mut self, id: PlaceId) {
        let Some(entry) = self.entries.remove(&id) else { return };
        if let Some(count) = self.counts.get_mut(&entry.from) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&entry.from);
            }
        }
    }

    /// Closes the connection that comes first, if there is one that waits.
    pub(super) fn evict_one(&mut self) {
        let _none = self.evict(|_| true);
    }

    /// Closes all that wait.
    pub(super) fn evict_waiting(&mut self) {
        while self.evict(|_| true).is_some() {}
    }

    fn evict(&mut self, eligible: impl Fn(&Entry) -> bool) -> Option<()> {
        let count = |phase| self.entries.values().filter(|entry| entry.phase == phase && eligible(entry)).count();
        let (silent, answered) = (count(Phase::Silent), count(Phase::Answered));
        let phase = if silent >= answered { Phase::Silent } else { Phase::Answered };
        let candidates = self.entries.iter().filter(|(_, entry)| entry.phase == phase && eligible(entry));
        let first =
            candidates.min_by_key(|(_, entry)| (Reverse(self.count(entry.from)), entry.since)).map(|(id, _)| *id)?;
        if let Some(entry) = self.entries.get(&first) {
            entry.notice.notify_one();
        }
        self.leave(first);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    /// Whether a connection has been told to give way.
    async fn closed(admitted: &Admitted) -> bool {
        tokio::select! {
            biased;
            () = admitted.notice.notified() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn silent_ones_give_way_to_newcomers_the_oldest_first() {
        let mut places = Places::new(3, 3);
        let mut all: Vec<_> = (0..3).map(|number| places.admit(ip(number)).unwrap()).collect();
        places.busy(all[0].id);
        places.waits(all[0].id, true);
        for expected in [1, 2, 3, 4] {
            let next = places.admit(ip(10 + expected as u8)).unwrap();
            assert!(next.evicted);
            for (number, one) in all.iter().enumerate() {
                assert_eq!(closed(one).await, number == expected, "{number} when {expected} was due");
            }
            all.push(next);
        }
    }

    #[tokio::test]
    async fn answered_ones_do_not_keep_newcomers_from_speaking() {
        let mut places = Places::new(10, 10);
        let answered: Vec<_> = (0..10).map(|number| places.admit(ip(number)).unwrap()).collect();
        for one in &answered {
            places.busy(one.id);
            places.waits(one.id, true);
        }
        // The last to be answered is the last to go.
        places.waits(answered[0].id, true);
        let newcomers: Vec<_> = (0..5).map(|number| places.admit(ip(20 + number)).unwrap()).collect();
        for one in &newcomers {
            assert!(!closed(one).await);
        }
        for (number, one) in answered.iter().enumerate() {
            assert_eq!(closed(one).await, (1..=5).contains(&number), "{number}");
        }
        // Half of the places are the answered ones' to keep.
        let _next = places.admit(ip(30)).unwrap();
        assert!(closed(&newcomers[0]).await);
    }

    #[tokio::test]
    async fn asking_for_the_key_buys_no_time() {
        let mut places = Places::new(4, 4);
        let askers = [places.admit(ip(1)).unwrap(), places.admit(ip(2)).unwrap()];
        let later = [places.admit(ip(3)).unwrap(), places.admit(ip(4)).unwrap()];
        for _ in 0..3 {
            for one in &askers {
                places.busy(one.id);
                places.waits(one.id, false);
            }
        }
        for _ in 0..2 {
            assert!(places.admit(ip(5)).unwrap().evicted);
        }
        assert!(closed(&askers[0]).await && closed(&askers[1]).await);
        assert!(!closed(&later[0]).await && !closed(&later[1]).await);
    }

    #[tokio::test]
    async fn who_floods_pushes_out_their_own() {
        let mut places = Places::new(10, 10);
        let honest = [places.admit(ip(1)).unwrap(), places.admit(ip(2)).unwrap()];
        for _ in 0..1000 {
            places.admit(ip(66)).unwrap();
        }
        for one in &honest {
            assert!(!closed(one).await);
        }
        assert_eq!((places.entries.len(), places.count(ip(66))), (10, 8));
    }

    #[tokio::test]
    async fn an_address_has_its_share_at_most() {
        let mut places = Places::new(10, 4);
        let first = places.admit(ip(1)).unwrap();
        for _ in 0..3 {
            assert!(!places.admit(ip(1)).unwrap().evicted);
        }
        assert!(places.admit(ip(1)).unwrap().evicted);
        assert!(closed(&first).await);
        assert_eq!(places.entries.len(), 4);
    }

    #[tokio::test]
    async fn requests_in_work_are_never_dropped() {
        let mut places = Places::new(2, 2);
        let both = [places.admit(ip(1)).unwrap(), places.admit(ip(2)).unwrap()];
        both.iter().for_each(|one| places.busy(one.id));
        assert!(places.admit(ip(3)).is_none());
        places.waits(both[1].id, true);
        assert!(places.admit(ip(3)).unwrap().evicted);
        assert!(!closed(&both[0]).await && closed(&both[1]).await);
        // What the evicted one still reports changes nothing.
        places.busy(both[1].id);
        places.leave(both[1].id);
        places.leave(both[0].id);
        assert_eq!((places.entries.len(), places.counts.len()), (1, 1));
    }
}
