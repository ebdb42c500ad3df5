//! Paths that are used again: the same isolation key gets the same path for ten minutes.

use core::borrow::Borrow;
use core::time::Duration;

use rand_core::CryptoRng;

use super::{Guards, Path, PathError, PathRequest, Phonebook, VerifiedDescriptor};
use crate::wire::{NodeId, UnixTime};

/// How long a path is used, unless the owner decides otherwise.
pub const PATH_LIFETIME: Duration = Duration::from_secs(600);

/// What keeps conversations apart: those with different keys never share a path. For a SOCKS client a hash over its
/// credentials and the destination.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IsolationKey(pub [u8; 32]);

impl core::fmt::Debug for IsolationKey {
    /// Says nothing: the key tells who talks to whom.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("IsolationKey")
    }
}

/// A place in a [`PathCache`].
#[derive(Clone)]
pub struct CachedPath {
    key: IsolationKey,
    path: Path,
    chosen: UnixTime,
}

impl CachedPath {
    fn is_alive_at(&self, now: UnixTime, lifetime: Duration) -> bool {
        // A path from the future means that the clock was set back: its age is not known, so it is not used again.
        now.since(self.chosen).is_some_and(|age| age < lifetime)
    }
}

/// The paths in use, at most as many as the slice given to [`PathCache::new`] has places. When it is full the oldest path
/// is forgotten, which costs its isolation key a new path and nothing else.
pub struct PathCache<'m> {
    places: &'m mut [Option<CachedPath>],
    lifetime: Duration,
}

impl<'m> PathCache<'m> {
    /// An empty cache in `places`, whose paths are used for `lifetime` (by default [`PATH_LIFETIME`]).
    #[must_use]
    pub fn new(places: &'m mut [Option<CachedPath>], lifetime: Duration) -> Self {
        places.fill(None);
        Self { places, lifetime }
    }

    /// The path that `key` uses: the cached one as long as it lives and [`Phonebook::allows`] it, otherwise a new one, which
    /// is cached.
    ///
    /// # Errors
    /// [`PathError`] if a new path is due and cannot be chosen.
    pub fn path_for<C: Borrow<VerifiedDescriptor> + Clone, R: CryptoRng + ?Sized>(
        &mut self,
        key: IsolationKey,
        book: &Phonebook<'_, C>,
        request: &PathRequest<'_>,
        guards: &mut Guards,
        rng: &mut R,
    ) -> Result<Path, PathError> {
        if let Some(path) = self.get(key, request.now).filter(|path| book.allows(path, request)) {
            return Ok(path.clone());
        }
        let path = book.choose_path(request, guards, rng)?;
        self.insert(key, path.clone(), request.now);
        Ok(path)
    }

    /// The living path of `key`.
    #[must_use]
    pub fn get(&self, key: IsolationKey, now: UnixTime) -> Option<&Path> {
        let cached = self.places.iter().flatten().find(|cached| cached.key == key)?;
        cached.is_alive_at(now, self.lifetime).then_some(&cached.path)
    }

    /// Gives `key` a path, in place of the one that it has.
    pub fn insert(&mut self, key: IsolationKey, path: Path, now: UnixTime) {
        let lifetime = self.lifetime;
        let place = self.places.iter_mut().min_by_key(|place| match place {
            Some(cached) if cached.key == key => (0, UnixTime(0)),
            None => (1, UnixTime(0)),
            Some(cached) if !cached.is_alive_at(now, lifetime) => (2, UnixTime(0)),
            Some(cached) => (3, cached.chosen),
        });
        if let Some(place) = place {
            *place = Some(CachedPath { key, path, chosen: now });
        }
    }

    /// Forgets every path with `node` on it, a hop that failed.
    pub fn forget_node(&mut self, node: &NodeId) {
        for place in self.places.iter_mut() {
            if place.as_ref().is_some_and(|cached| cached.path.contains(node)) {
                *place = None;
            }
        }
    }

    /// Forgets every path, as for a new identity.
    pub fn clear(&mut self) {
        self.places.fill(None);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Card, NOW, Room, exit, rng, shared, with};
    use super::super::{LastHop, Source};
    use super::*;
    use crate::wire::PortRange;

    const REQUEST_LAST: LastHop = LastHop::Exit { port: Some(80) };

    fn key(byte: u8) -> IsolationKey {
        IsolationKey([byte; 32])
    }

    fn at(seconds: u64) -> UnixTime {
        UnixTime(NOW.0 + seconds)
    }

    /// Asks `cache` for paths out of a phonebook of 30 relays and 10 exits.
    fn with_book(
        test: impl FnOnce(
            &mut Phonebook<'_, Card>,
            &mut dyn FnMut(&Phonebook<'_, Card>, &mut PathCache<'_>, u8, u64) -> Path,
        ),
    ) {
        let mut room = Room::new(60, 40);
        let mut book = room.book();
        for number in 0..30 {
            book.insert(with(number, |_| ()), Source::Met, NOW).unwrap();
        }
        for number in 30..40 {
            book.insert(shared(exit(number, PortRange::new(80, 90).unwrap())), Source::Met, NOW).unwrap();
        }
        let mut guards = Guards::new();
        let mut rng = rng(11);
        test(&mut book, &mut |book, cache, byte, seconds| {
            let request = PathRequest::new(REQUEST_LAST, at(seconds));
            cache.path_for(key(byte), book, &request, &mut guards, &mut rng).unwrap()
        });
    }

    #[test]
    fn a_key_keeps_its_path_for_ten_minutes() {
        with_book(|book, path_for| {
            let mut places = [const { None }; 4];
            let mut cache = PathCache::new(&mut places, PATH_LIFETIME);
            let first = path_for(book, &mut cache, 1, 0);
            assert_ne!(path_for(book, &mut cache, 2, 0), first, "another key");
            assert_eq!(path_for(book, &mut cache, 1, 599), first);
            let second = path_for(book, &mut cache, 1, 600);
            assert_ne!(second, first);
            assert_eq!(path_for(book, &mut cache, 1, 1199), second, "its own ten minutes");
            assert_ne!(path_for(book, &mut cache, 1, 0), second, "the clock was set back");
            cache.clear();
            assert_eq!(cache.get(key(1), at(0)), None);
        });
    }

    #[test]
    fn the_oldest_path_gives_way() {
        with_book(|book, path_for| {
            let mut places = [const { None }; 3];
            let mut cache = PathCache::new(&mut places, PATH_LIFETIME);
            let paths: std::vec::Vec<_> = (0..3).map(|n| path_for(book, &mut cache, n, 10 - u64::from(n))).collect();
            path_for(book, &mut cache, 3, 11);
            assert_eq!(cache.get(key(2), at(11)), None, "chosen first");
            assert_eq!(cache.get(key(0), at(11)), Some(&paths[0]));
            assert_eq!(cache.get(key(1), at(11)), Some(&paths[1]));
            // 1 is dead at 609, 0 not yet: a dead path gives way before any living one.
            path_for(book, &mut cache, 4, 609);
            assert_eq!(cache.get(key(0), at(609)), Some(&paths[0]));
            assert!(cache.get(key(3), at(609)).is_some());
        });
    }

    #[test]
    fn a_path_that_is_not_allowed_any_more_is_replaced() {
        with_book(|book, path_for| {
            let mut places = [const { None }; 4];
            let mut cache = PathCache::new(&mut places, PATH_LIFETIME);
            let first = path_for(book, &mut cache, 1, 0);
            book.remove(&first.hops()[1].node);
            let second = path_for(book, &mut cache, 1, 0);
            assert!(!second.contains(&first.hops()[1].node));
            assert_eq!(path_for(book, &mut cache, 1, 0), second);
            cache.forget_node(&second.hops()[3].node);
            assert_eq!(cache.get(key(1), at(0)), None);
        });
    }

    #[test]
    fn no_place_means_a_new_path_each_time() {
        with_book(|book, path_for| {
            let mut cache = PathCache::new(&mut [], PATH_LIFETIME);
            assert_ne!(path_for(book, &mut cache, 1, 0), path_for(book, &mut cache, 1, 0));
        });
    }

    #[test]
    fn sizes_are_pinned() {
        assert!(size_of::<Option<CachedPath>>() <= 360, "{}", size_of::<Option<CachedPath>>());
    }
}
