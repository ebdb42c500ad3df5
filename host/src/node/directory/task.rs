//! The owner of the phonebook.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulbil_core::driver::LinkEnd;
use bulbil_core::phonebook::exchange::{Held, TestLoad, is_joining};
use bulbil_core::phonebook::{
    Anchors, BookKey, CLOCK_TOLERANCE, CachedPath, ClockVerdict, DescriptorError, Entry, Guards, Inserted, PathCache,
    PathError, PathRequest, PeerClocks, Refusal, SAMPLE_MAX, Source, Test, VerifiedDescriptor,
};
use bulbil_core::wire::{NodeId, UnixTime};
use rand_core::Rng as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

use super::{ChosenHop, Known, Part, Presentable, Request, Settings, Tallies, Teller, Wanted};
use crate::control::book::{Counts, Taken};
use crate::engine::clock::WallClock;
use crate::node::control::{self, Book};
use crate::node::stored::Tables;
use crate::random::SYSTEM;

/// Isolation keys whose paths are remembered.
const CACHED_PATHS: usize = 1024;
/// Between two looks at the clock, and between two searches for what has expired.
const LOOK: Duration = Duration::from_secs(1);
const EXPIRY: Duration = Duration::from_secs(60);
/// A clock that has moved so much more or less than the time that has passed was set.
const JUMP: i64 = 60;

/// What the task tells without being asked.
pub(super) struct Out {
    pub changed: watch::Sender<u64>,
    pub drawn: watch::Sender<Vec<NodeId>>,
    pub jumped: watch::Sender<u64>,
    pub tallies: Arc<Mutex<Tallies>>,
}

/// Runs until nobody can ask any more.
pub(super) async fn run(mut settings: Settings, mut asked: mpsc::UnboundedReceiver<Request>, out: Out) {
    let mut tables = Tables::new();
    let mut places: Vec<Option<CachedPath>> = vec![None; CACHED_PATHS];
    let clock = settings.clock.clone();
    let (mut book, anchors) = match settings.stored.take() {
        Some(stored) => stored.restore(&mut tables, settings.own, settings.grouping, clock.now()),
        None => {
            let key = BookKey::generate(&mut SYSTEM.clone());
            (Book::new(tables.shelves(), Some(settings.own), key, settings.grouping), Anchors::new())
        }
    };
    book.set_failure_pause(settings.retry);
    book.set_clock_in_doubt(true);
    let guards = Guards::restore(out.drawn.borrow().iter().copied());
    let mut owner = Owner {
        cache: PathCache::new(&mut places, settings.reuse),
        guards,
        ask_first: anchors.nodes().iter().copied().collect(),
        anchors,
        clocks: PeerClocks::new(),
        agreed: false,
        in_doubt: true,
        off: false,
        answered: None,
        changed: false,
        base: (Instant::now(), clock.now()),
        swept: Instant::now(),
        lonely: settings.lonely,
        presentable: None,
        first_in_epoch: None,
        book,
        clock,
        out,
    };
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            request = asked.recv() => match request {
                Some(request) => owner.handle(request),
                None => return,
            },
            _ = look.tick() => owner.look(),
        }
    }
}

struct Owner<'m> {
    book: Book<'m>,
    cache: PathCache<'m>,
    guards: Guards,
    anchors: Anchors,
    /// Anchors of before the start that have not been asked yet.
    ask_first: VecDeque<NodeId>,
    clocks: PeerClocks,
    /// The last word about the time agreed with ours.
    agreed: bool,
    in_doubt: bool,
    /// The log says that the clock is wrong.
    off: bool,
    /// When somebody answered last.
    answered: Option<Instant>,
    /// Something is worth storing.
    changed: bool,
    /// The clock at some moment, to find out whether it was set since.
    base: (Instant, UnixTime),
    /// When it was last looked for what has expired.
    swept: Instant,
    lonely: Duration,
    /// What may be passed on, made since the last look.
    presentable: Option<Presentable>,
    first_in_epoch: Option<Presentable>,
    clock: WallClock,
    out: Out,
}

impl Owner<'_> {
    fn handle(&mut self, request: Request) {
        let now = self.clock.now();
        // Whoever asked may have gone.
        match request {
            Request::Time { node, address, time } => self.hear(node, address, time, now),
            Request::Shown(card, address) => self.take_shown(card, address, now),
            Request::Insert(cards, teller, reply) => drop(reply.send(self.take_told(cards, teller, now))),
            Request::Path(wanted, reply) => drop(reply.send(self.choose(&wanted, now))),
            Request::Failed(node) => {
                self.cache.forget_node(&node);
                self.fail(&node, now);
            }
            Request::Unreached(node, end) => {
                let validity =
                    matches!(end, LinkEnd::Descriptor(DescriptorError::Expired | DescriptorError::NotYetValid));
                if !(self.in_doubt && validity) {
                    self.fail_anyway(&node, now);
                }
            }
            Request::Doubted(nodes) => nodes.iter().for_each(|node| self.cache.forget_node(node)),
            Request::Succeeded(node) => self.succeed(&node, now),
            Request::NextTest { idle, reply } => drop(reply.send(self.next_test(idle, now))),
            Request::Whom(reply) => drop(reply.send(self.whom(now))),
            Request::Answered(node, true) => {
                self.anchors.note(node);
                self.succeed(&node, now);
            }
            Request::Answered(node, false) => {
                self.anchors.forget(&node);
                self.fail(&node, now);
            }
            Request::Digest(reply) => {
                drop(reply.send(self.book.iter().map(Held::from).collect()));
            }
            Request::Joining(hops, strictness, reply) => drop(reply.send(is_joining(&self.book, hops, strictness))),
            Request::Presentable(part, reply) => drop(reply.send(self.presentable(part, now))),
            Request::Knows(node, reply) => drop(reply.send(self.book.get(&node).is_some())),
            Request::Anybody(reply) => drop(reply.send(self.book.iter().any(Entry::is_tried))),
            Request::Known(reply) => drop(reply.send(self.known())),
            Request::Clock(reply) => drop(reply.send((self.clocks.verdict(), self.in_doubt))),
            Request::Keep(reply) => drop(reply.send(self.keep())),
            Request::Control(question) => {
                let (tallies, clocks) = (&self.out.tallies, &self.clocks);
                let more = |counts: &mut Counts| {
                    let tallies = tallies.lock().unwrap_or_else(PoisonError::into_inner);
                    counts.exchanges = Some(tallies.exchanges.clone());
                    counts.tests = Some(tallies.tests);
                    counts.clock = clocks.verdict().into();
                };
                if control::answer(question, &mut self.book, now, more) {
                    self.note_change();
                }
            }
        }
    }

    /// From time to time: was the clock set, has anything expired?
    fn look(&mut self) {
        (self.presentable, self.first_in_epoch) = (None, None);
        let (then, at) = self.base;
        let now = self.clock.now();
        let expected = at.saturating_add(then.elapsed());
        self.base = (Instant::now(), now);
        if (now.0 as i64).abs_diff(expected.0 as i64) > JUMP.unsigned_abs() {
            info!("this machine's clock was set");
            self.clocks.clear();
            self.agreed = false;
            self.judge_clock();
            self.out.jumped.send_modify(|jumps| *jumps += 1);
        }
        if self.swept.elapsed() >= EXPIRY {
            self.swept = Instant::now();
            let before = self.book.len();
            self.book.remove_expired(now);
            self.changed |= self.book.len() != before;
        }
    }

    fn hear(&mut self, node: NodeId, address: SocketAddr, time: UnixTime, now: UnixTime) {
        self.answered = Some(Instant::now());
        self.agreed = time.0.abs_diff(now.0) <= CLOCK_TOLERANCE.as_secs();
        self.clocks.hear(node, self.book.group_of(address), time, now);
        self.judge_clock();
    }

    fn judge_clock(&mut self) {
        let verdict = self.clocks.verdict();
        self.in_doubt = match verdict {
            ClockVerdict::Agrees => false,
            ClockVerdict::Off { .. } => true,
            // Too few to outvote our own clock; but nothing is thrown away on its word alone, for it may be what is wrong.
            ClockVerdict::Unknown => !self.agreed,
        };
        self.book.set_clock_in_doubt(self.in_doubt);
        match verdict {
            ClockVerdict::Off { seconds, peers } if !self.off => {
                self.off = true;
                warn!(
                    "this machine's clock is {} what most nodes say ({peers} were heard); set it (NTP)",
                    lead(seconds)
                );
            }
            ClockVerdict::Agrees if self.off => {
                self.off = false;
                info!("this machine's clock is right again");
            }
            _ => {}
        }
    }

    fn take_shown(&mut self, card: Arc<VerifiedDescriptor>, address: SocketAddr, now: UnixTime) {
        self.answered = Some(Instant::now());
        let node = card.node();
        // Elsewhere than where it says that it is, it has not been met there.
        let met = card.address() == address;
        let source = if met { Source::Met } else { Source::Peer(self.book.group_of(address)) };
        let was_tried = self.book.get(&node).is_some_and(Entry::is_tried);
        match self.book.insert(card, source, now) {
            Ok(Inserted::Met) if was_tried => self.changed = true,
            Ok(_) => self.note_change(),
            Err(Refusal::NotNewer) => {}
            Err(refusal) => self.note_refusal(refusal),
        }
    }

    fn take_told(&mut self, cards: Vec<VerifiedDescriptor>, teller: Teller, now: UnixTime) -> Taken {
        let source = match teller {
            Teller::Peer(address) => Source::Peer(self.book.group_of(address)),
            Teller::Announced => Source::Announced,
        };
        let mut taken = Taken::default();
        for card in cards {
            let count = match self.book.insert(Arc::new(card), source, now) {
                Ok(Inserted::Added | Inserted::Evicted(_)) => &mut taken.added,
                Ok(Inserted::Updated) => &mut taken.updated,
                Ok(Inserted::Met) | Err(Refusal::NotNewer) => &mut taken.known,
                Err(Refusal::Own) => &mut taken.own,
                Err(Refusal::Full) => &mut taken.full,
                Err(Refusal::Expired) => &mut taken.expired,
                Err(Refusal::Disputed) => &mut taken.disputed,
            };
            *count += 1;
        }
        if taken.added + taken.updated > 0 {
            self.note_change();
        }
        self.changed |= taken.disputed > 0;
        taken
    }

    fn note_change(&mut self) {
        self.changed = true;
        self.out.changed.send_modify(|changes| *changes += 1);
    }

    fn note_refusal(&mut self, refusal: Refusal) {
        debug!(%refusal, "descriptor not taken");
        self.changed |= refusal == Refusal::Disputed;
    }

    /// While the clock is in doubt, a circuit that fails may have failed because of it.
    fn fail(&mut self, node: &NodeId, now: UnixTime) {
        if !self.in_doubt {
            self.fail_anyway(node, now);
        }
    }

    /// When nobody at all answers, it is our own connection that fails.
    fn fail_anyway(&mut self, node: &NodeId, now: UnixTime) {
        if self.answered.is_none_or(|at| at.elapsed() > self.lonely) {
            return;
        }
        self.changed = true;
        if self.book.record_failure(node, now) {
            self.anchors.forget(node);
            info!("a node that failed several times was dropped from the phonebook");
        }
    }

    fn succeed(&mut self, node: &NodeId, now: UnixTime) {
        self.answered = Some(Instant::now());
        self.changed = true;
        self.book.record_success(node, now);
    }

    fn next_test(&mut self, idle: bool, now: UnixTime) -> (Option<Test>, TestLoad) {
        let test =
            if idle || self.book.wants_tests(now) { self.book.next_test(now, &mut SYSTEM.clone()) } else { None };
        let unsure = self.clocks.verdict() != ClockVerdict::Agrees;
        let test = test.or_else(|| self.any_test().filter(|_| idle && unsure));
        // Whoever has failed is tried again as soon as its pause is over.
        let waiting = self.book.wants_tests(now) || self.book.iter().any(|entry| entry.failures() > 0);
        (test, if waiting { TestLoad::Waiting } else { TestLoad::Idle })
    }

    /// A link to anybody who was met, to hear what time it is.
    fn any_test(&self) -> Option<Test> {
        let met: Vec<_> = self.book.iter().filter(|entry| entry.is_tried()).collect();
        let drawn = SYSTEM.clone().next_u64() % met.len().max(1) as u64;
        met.get(drawn as usize).map(|entry| Test { node: entry.node(), address: entry.address(), urgent: false })
    }

    fn whom(&mut self, now: UnixTime) -> Option<NodeId> {
        while let Some(anchor) = self.ask_first.pop_front() {
            if self.book.get(&anchor).is_some_and(|entry| entry.is_valid_at(now) && !entry.is_disputed()) {
                return Some(anchor);
            }
        }
        let constrained = |card: &VerifiedDescriptor| card.descriptor().roles.constrained;
        let one = self.book.sample(1, now, &mut SYSTEM.clone(), constrained).next();
        one.map(|card| card.node())
    }

    /// Strangers may ask as often as they like, so this is made once a second.
    fn presentable(&mut self, part: Part, now: UnixTime) -> Presentable {
        let book = &self.book;
        let place = match part {
            Part::Random => &mut self.presentable,
            Part::Epoch => &mut self.first_in_epoch,
        };
        let cards = place.get_or_insert_with(|| match part {
            Part::Random => {
                let may_be = |entry: &&Entry<_>| entry.is_tried() && !entry.is_disputed() && entry.is_valid_at(now);
                book.iter().filter(may_be).map(|entry| Arc::clone(entry.card())).collect()
            }
            Part::Epoch => book.epoch_sample(SAMPLE_MAX, now).map(Arc::clone).collect(),
        });
        Arc::clone(cards)
    }

    fn known(&self) -> Vec<Known> {
        let mut known: Vec<_> = self
            .book
            .iter()
            .map(|entry| Known {
                node: entry.node(),
                address: entry.address(),
                met: entry.is_tried(),
                exit: entry.descriptor().roles.exit,
                failures: entry.failures(),
                disputed: entry.is_disputed(),
                sequence: entry.descriptor().sequence,
            })
            .collect();
        known.sort_unstable_by_key(|known| known.node);
        known
    }

    fn keep(&mut self) -> Option<Zeroizing<Vec<u8>>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        // The bucket key is in it. Sized beforehand, so that no part of it is left behind where the bytes were before.
        let mut len = 0;
        self.book.emit(&self.anchors, &mut |piece: &[u8]| len += piece.len());
        let mut bytes = Zeroizing::new(Vec::with_capacity(len));
        self.book.emit(&self.anchors, &mut |piece: &[u8]| bytes.extend_from_slice(piece));
        Some(bytes)
    }

    fn choose(&mut self, wanted: &Wanted, now: UnixTime) -> Result<Vec<ChosenHop>, PathError> {
        let request = PathRequest {
            hops: wanted.hops,
            last: wanted.last,
            strictness: wanted.strictness,
            avoid: &wanted.avoid,
            now,
        };
        let (book, guards) = (&self.book, &mut self.guards);
        let path = match wanted.isolation {
            Some(key) => self.cache.path_for(key, book, &request, guards, &mut SYSTEM.clone()),
            None => book.choose_path(&request, guards, &mut SYSTEM.clone()),
        };
        self.out.drawn.send_if_modified(|kept| {
            let changed = kept.as_slice() != guards.nodes();
            if changed {
                *kept = guards.nodes().to_vec();
            }
            changed
        });
        let path = path?;
        let hops = path.hops().iter().filter_map(|hop| {
            let descriptor = book.descriptor_of(hop)?;
            Some(ChosenHop {
                node: hop.node,
                address: hop.address,
                key: descriptor.onion_key.clone(),
                identity: descriptor.identity,
            })
        });
        Ok(hops.collect())
    }
}

/// "3 hours behind".
fn lead(seconds: i64) -> String {
    let amount = match seconds.unsigned_abs() {
        minutes @ ..=7200 => format!("{} minutes", minutes / 60),
        hours @ ..=172_800 => format!("{} hours", hours / 3600),
        days => format!("{} days", days / 86_400),
    };
    format!("{amount} {}", if seconds < 0 { "behind" } else { "ahead of" })
}

#[cfg(test)]
mod tests {
    use super::lead;

    #[test]
    fn a_wrong_clock_is_told_in_units_for_people() {
        assert_eq!(lead(-660), "11 minutes behind");
        assert_eq!(lead(3 * 3600 + 59), "3 hours ahead of");
        assert_eq!(lead(-86_400 * 400), "400 days behind");
        assert_eq!(lead(i64::MIN), "106751991167300 days behind");
    }
}
