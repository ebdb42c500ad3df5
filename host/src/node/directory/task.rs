//! The owner of the phonebook.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulbil_core::driver::LinkEnd;
use bulbil_core::phonebook::exchange::{Held, is_joining};
use bulbil_core::phonebook::steward::{Notice, Now, Settings as Waits, Steward, Teller, Unreached};
use bulbil_core::phonebook::{
    Anchors, BookKey, CachedPath, DescriptorError, Entry, Guards, Inserted, PathCache, PathError, PathRequest, Refusal,
    SAMPLE_MAX, VerifiedDescriptor,
};
use bulbil_core::time::Instant;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

use super::{ChosenHop, Known, Part, Presentable, Request, Settings, Tallies, Wanted};
use crate::control::book::{Counts, Taken};
use crate::engine::clock::WallClock;
use crate::node::control::{self, Book};
use crate::node::stored::Tables;
use crate::random::SYSTEM;

/// Isolation keys whose paths are remembered.
const CACHED_PATHS: usize = 1024;

/// What the task tells without being asked.
pub(super) struct Out {
    pub changed: watch::Sender<u64>,
    pub drawn: watch::Sender<Guards>,
    pub jumped: watch::Sender<u64>,
    pub tallies: Arc<Mutex<Tallies>>,
}

/// Runs until nobody can ask any more.
pub(super) async fn run(mut settings: Settings, mut asked: mpsc::UnboundedReceiver<Request>, out: Out) {
    let mut tables = Tables::new();
    let mut places: Vec<Option<CachedPath>> = vec![None; CACHED_PATHS];
    let clocks = Clocks { origin: tokio::time::Instant::now(), wall: settings.clock.clone() };
    let now = clocks.now();
    let (book, anchors) = match settings.stored.take() {
        Some(stored) => stored.restore(&mut tables, settings.own, settings.grouping, now.date),
        None => {
            let key = BookKey::generate(&mut SYSTEM.clone());
            (Book::new(tables.shelves(), Some(settings.own), key, settings.grouping), Anchors::new())
        }
    };
    let paths = PathCache::new(&mut places, settings.reuse);
    let guards = out.drawn.borrow().clone();
    let waits = Waits { retry: settings.retry, lonely: settings.lonely };
    let mut owner = Owner {
        steward: Steward::new(book, paths, guards, anchors, waits, now),
        clocks,
        presentable: None,
        first_in_epoch: None,
        out,
    };
    loop {
        let look = owner.clocks.origin + Duration::from_millis(owner.steward.poll_timeout().millis());
        tokio::select! {
            request = asked.recv() => match request {
                Some(request) => owner.handle(request),
                None => return,
            },
            () = sleep_until(look) => owner.look(),
        }
        owner.pass_on();
    }
}

/// Both clocks.
struct Clocks {
    origin: tokio::time::Instant,
    wall: WallClock,
}

impl Clocks {
    fn now(&self) -> Now {
        Now { instant: Instant::from_millis(self.origin.elapsed().as_millis() as u64), date: self.wall.now() }
    }
}

/// Passes requests to the steward and tells what that has to say.
struct Owner<'m> {
    steward: Steward<'m, Arc<VerifiedDescriptor>>,
    clocks: Clocks,
    /// What may be passed on, made since the last look.
    presentable: Option<Presentable>,
    first_in_epoch: Option<Presentable>,
    out: Out,
}

impl Owner<'_> {
    fn handle(&mut self, request: Request) {
        let now = self.clocks.now();
        let steward = &mut self.steward;
        // Whoever asked may have gone.
        match request {
            Request::Time { node, address, time } => steward.handle_time(node, address, time, now),
            Request::Shown(card, address) => match steward.handle_shown(card, address, now) {
                Ok(_) | Err(Refusal::NotNewer) => {}
                Err(refusal) => debug!(%refusal, "descriptor not taken"),
            },
            Request::Insert(cards, teller, reply) => drop(reply.send(self.take_told(cards, teller, now))),
            Request::Path(wanted, reply) => drop(reply.send(self.choose(&wanted, now))),
            Request::Failed(node) => steward.handle_hop_failed(&node, now),
            Request::Unreached(node, end) => {
                let validity =
                    matches!(end, LinkEnd::Descriptor(DescriptorError::Expired | DescriptorError::NotYetValid));
                let why = if validity { Unreached::Validity } else { Unreached::Link };
                steward.handle_unreached(&node, why, now);
            }
            Request::Doubted(nodes) => nodes.iter().for_each(|node| steward.handle_hop_doubted(node)),
            Request::Succeeded(node) => steward.handle_hop_succeeded(&node, now),
            Request::NextTest { idle, reply } => {
                let _gone = reply.send(steward.poll_test(idle, now, &mut SYSTEM.clone()));
            }
            Request::Whom(reply) => drop(reply.send(steward.whom(now, &mut SYSTEM.clone()))),
            Request::Answered(node, well) => steward.handle_exchanged(&node, well, now),
            Request::Digest(reply) => {
                drop(reply.send(steward.book().iter().map(Held::from).collect()));
            }
            Request::Joining(hops, strictness, reply) => {
                let _gone = reply.send(is_joining(steward.book(), hops, strictness));
            }
            Request::Presentable(part, reply) => drop(reply.send(self.presentable(part, now))),
            Request::Knows(node, reply) => drop(reply.send(steward.book().get(&node).is_some())),
            Request::Anybody(reply) => drop(reply.send(steward.book().iter().any(Entry::is_tried))),
            Request::Known(reply) => drop(reply.send(self.known())),
            Request::Clock(reply) => drop(reply.send((steward.clock(), steward.is_clock_in_doubt()))),
            Request::Keep(reply) => drop(reply.send(self.keep())),
            Request::Control(question) => {
                let (tallies, clock) = (&self.out.tallies, steward.clock());
                let more = |counts: &mut Counts| {
                    let tallies = tallies.lock().unwrap_or_else(PoisonError::into_inner);
                    counts.exchanges = Some(tallies.exchanges.clone());
                    counts.tests = Some(tallies.tests);
                    counts.clock = clock.into();
                };
                if control::answer(question, steward.book_mut(), now.date, more) {
                    steward.handle_edited();
                }
            }
        }
    }

    fn look(&mut self) {
        (self.presentable, self.first_in_epoch) = (None, None);
        self.steward.handle_timeout(self.clocks.now());
    }

    /// Tells those who wait, and the log, what has come about.
    fn pass_on(&mut self) {
        while let Some(notice) = self.steward.poll_notice() {
            match notice {
                Notice::News | Notice::LinksDue => self.out.changed.send_modify(|changes| *changes += 1),
                Notice::Dropped(_) => info!("a node that failed several times was dropped from the phonebook"),
                Notice::ClockSet => {
                    info!("this machine's clock was set");
                    self.out.jumped.send_modify(|jumps| *jumps += 1);
                }
                Notice::ClockWrong { seconds, peers } => warn!(
                    "this machine's clock is {} what most nodes say ({peers} were heard); set it (NTP)",
                    lead(seconds)
                ),
                Notice::ClockRight => info!("this machine's clock is right again"),
            }
        }
        self.out.drawn.send_if_modified(|kept| {
            let changed = kept != self.steward.guards();
            if changed {
                kept.clone_from(self.steward.guards());
            }
            changed
        });
    }

    fn take_told(&mut self, cards: Vec<VerifiedDescriptor>, teller: Teller, now: Now) -> Taken {
        let mut taken = Taken::default();
        for card in cards {
            let count = match self.steward.handle_told(Arc::new(card), teller, now) {
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
        taken
    }

    /// Strangers may ask as often as they like, so this is made once a second.
    fn presentable(&mut self, part: Part, now: Now) -> Presentable {
        let book = self.steward.book();
        let place = match part {
            Part::Random => &mut self.presentable,
            Part::Epoch => &mut self.first_in_epoch,
        };
        let cards = place.get_or_insert_with(|| match part {
            Part::Random => {
                let may_be =
                    |entry: &&Entry<_>| entry.is_tried() && !entry.is_disputed() && entry.is_valid_at(now.date);
                book.iter().filter(may_be).map(|entry| Arc::clone(entry.card())).collect()
            }
            Part::Epoch => book.epoch_sample(SAMPLE_MAX, now.date).map(Arc::clone).collect(),
        });
        Arc::clone(cards)
    }

    fn known(&self) -> Vec<Known> {
        let mut known: Vec<_> = self
            .steward
            .book()
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
        if !self.steward.take_changed() {
            return None;
        }
        // The bucket key is in it. Sized beforehand, so that no part of it is left behind where the bytes were before.
        let mut len = 0;
        self.steward.emit(&mut |piece: &[u8]| len += piece.len());
        let mut bytes = Zeroizing::new(Vec::with_capacity(len));
        self.steward.emit(&mut |piece: &[u8]| bytes.extend_from_slice(piece));
        Some(bytes)
    }

    fn choose(&mut self, wanted: &Wanted, now: Now) -> Result<Vec<ChosenHop>, PathError> {
        let request = PathRequest {
            hops: wanted.hops,
            last: wanted.last,
            strictness: wanted.strictness,
            avoid: &wanted.avoid,
            now: now.date,
            draw_guards: true,
        };
        let path = self.steward.choose_path(&request, wanted.isolation, &mut SYSTEM.clone())?;
        let hops = path.hops().iter().filter_map(|hop| {
            let descriptor = self.steward.book().descriptor_of(hop)?;
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
