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
//!
//! Whoever comes first in that order is found, and every change noted, in logarithmic time: a flood is when there is none to spare.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::Notify;

/// A connection's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PlaceId(u64);

/// How far a connection that is waited for has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Not yet answered on a channel sealed to the server's key.
    Silent,
    /// Answered on such a channel.
    Answered,
}

impl Stage {
    const ALL: [Self; 2] = [Self::Silent, Self::Answered];
}

/// Something for each stage.
#[derive(Default)]
struct Staged<T> {
    silent: T,
    answered: T,
}

impl<T> Staged<T> {
    const fn get(&self, stage: Stage) -> &T {
        match stage {
            Stage::Silent => &self.silent,
            Stage::Answered => &self.answered,
        }
    }

    const fn get_mut(&mut self, stage: Stage) -> &mut T {
        match stage {
            Stage::Silent => &mut self.silent,
            Stage::Answered => &mut self.answered,
        }
    }
}

struct Entry {
    from: IpAddr,
    /// `None` while a request is in work.
    waits: Option<Stage>,
    /// When the connection was made, or last answered on a sealed channel; grows with time.
    since: u64,
    notice: Arc<Notify>,
}

/// The connections of one address.
#[derive(Default)]
struct Group {
    /// All of them, also those with a request in work.
    count: usize,
    /// Those that are waited for, by the time since when.
    waiting: Staged<BTreeMap<u64, PlaceId>>,
}

/// Where an address's connections of one stage stand: by how many the address has, then by the one waited for the longest.
type Rank = (Reverse<usize>, u64, IpAddr);

impl Group {
    fn rank(&self, from: IpAddr, stage: Stage) -> Option<Rank> {
        let (&since, _) = self.waiting.get(stage).first_key_value()?;
        Some((Reverse(self.count), since, from))
    }
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
    groups: HashMap<IpAddr, Group>,
    /// Addresses with connections that are waited for; the first to give way is in front.
    ranks: Staged<BTreeSet<Rank>>,
    /// How many connections are waited for.
    waiting: Staged<usize>,
    /// Counts what happens.
    clock: u64,
    closing: bool,
}

impl Places {
    pub(super) fn new(connections: usize, per_address: usize) -> Self {
        Self {
            connections,
            per_address,
            entries: HashMap::new(),
            groups: HashMap::new(),
            ranks: Staged::default(),
            waiting: Staged::default(),
            clock: 0,
            closing: false,
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn count(&self, from: IpAddr) -> usize {
        self.groups.get(&from).map_or(0, |group| group.count)
    }

    /// Changes what is known of an address, and its ranks with it.
    fn regroup(&mut self, from: IpAddr, change: impl FnOnce(&mut Group)) {
        let group = self.groups.entry(from).or_default();
        for stage in Stage::ALL {
            *self.waiting.get_mut(stage) -= group.waiting.get(stage).len();
            if let Some(rank) = group.rank(from, stage) {
                self.ranks.get_mut(stage).remove(&rank);
            }
        }
        change(group);
        for stage in Stage::ALL {
            *self.waiting.get_mut(stage) += group.waiting.get(stage).len();
            if let Some(rank) = group.rank(from, stage) {
                self.ranks.get_mut(stage).insert(rank);
            }
        }
        if group.count == 0 {
            self.groups.remove(&from);
        }
    }

    /// A place for a newcomer; `None` if all places are taken by requests in work, or the server stops.
    pub(super) fn admit(&mut self, from: IpAddr) -> Option<Admitted> {
        if self.closing {
            return None;
        }
        let evicted = if self.count(from) >= self.per_address {
            self.evict(Some(from))?;
            true
        } else if self.entries.len() >= self.connections {
            self.evict(None)?;
            true
        } else {
            false
        };
        let since = self.tick();
        let (id, notice) = (PlaceId(since), Arc::new(Notify::new()));
        let entry = Entry { from, waits: Some(Stage::Silent), since, notice: Arc::clone(&notice) };
        self.entries.insert(id, entry);
        self.regroup(from, |group| {
            group.count += 1;
            group.waiting.silent.insert(since, id);
        });
        Some(Admitted { id, notice, evicted })
    }

    /// A whole request has come and its work would begin. Whether it may: not that of a connection that had to give way at this very moment,
    /// and none when the server stops.
    #[must_use]
    pub(super) fn busy(&mut self, id: PlaceId) -> bool {
        if self.closing {
            return false;
        }
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        let (from, since, waited) = (entry.from, entry.since, entry.waits.take());
        if let Some(stage) = waited {
            self.regroup(from, |group| {
                group.waiting.get_mut(stage).remove(&since);
            });
        }
        true
    }

    /// The request has been answered, on a channel that is `sealed` to the server's key or one that asks for it. Whether another one
    /// may come.
    #[must_use]
    pub(super) fn waits(&mut self, id: PlaceId, sealed: bool) -> bool {
        if self.closing {
            return false;
        }
        let now = self.tick();
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        // Who only asks for the key stays as old as it is, or asking again and again would make it the last to go.
        let (stage, since) = if sealed { (Stage::Answered, now) } else { (Stage::Silent, entry.since) };
        let (from, before) = (entry.from, entry.waits.replace(stage).map(|stage| (stage, entry.since)));
        entry.since = since;
        self.regroup(from, |group| {
            if let Some((stage, since)) = before {
                group.waiting.get_mut(stage).remove(&since);
            }
            group.waiting.get_mut(stage).insert(since, id);
        });
        true
    }

    /// The connection has ended.
    pub(super) fn leave(&mut self, id: PlaceId) {
        let Some(entry) = self.entries.remove(&id) else { return };
        self.regroup(entry.from, |group| {
            group.count -= 1;
            if let Some(stage) = entry.waits {
                group.waiting.get_mut(stage).remove(&entry.since);
            }
        });
    }

    /// Closes the connection that comes first, if there is one that waits.
    pub(super) fn evict_one(&mut self) {
        let _none = self.evict(None);
    }

    /// The server stops: closes all that wait, and lets no request begin any more.
    pub(super) fn close(&mut self) {
        self.closing = true;
        while self.evict(None).is_some() {}
    }

    /// Closes the connection that comes first, of all or of one address's.
    fn evict(&mut self, of: Option<IpAddr>) -> Option<()> {
        let waiting = |stage| match of {
            Some(from) => self.groups.get(&from).map_or(0, |group| group.waiting.get(stage).len()),
            None => *self.waiting.get(stage),
        };
        let stage = if waiting(Stage::Silent) >= waiting(Stage::Answered) { Stage::Silent } else { Stage::Answered };
        let from = match of {
            Some(from) => from,
            None => self.ranks.get(stage).first()?.2,
        };
        let (_, &first) = self.groups.get(&from)?.waiting.get(stage).first_key_value()?;
        if let Some(entry) = self.entries.get(&first) {
            entry.notice.notify_one();
        }
        self.leave(first);
        Some(())
    }
}

#[cfg(test)]
mod tests;
