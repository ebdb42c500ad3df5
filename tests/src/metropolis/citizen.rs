//! Who lives at a node: its phonebook, and what it has begun and not ended.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bulbil_core::circuit::LinkId;
use bulbil_core::phonebook::exchange::{Exchanged, Pace, Tally};
use bulbil_core::phonebook::steward::{Now, Settings, Steward};
use bulbil_core::phonebook::{
    Anchors, BUCKET, BookKey, EVIDENCE_MAX, Entry, Evidence, Grouping, Guards, NEW_PLACES, PATH_LIFETIME, PathCache,
    Phonebook, Shelves, StoredBook, TRIED_PLACES, VerifiedDescriptor,
};
use bulbil_core::time::Instant;
use bulbil_core::wire::{NodeId, UnixTime};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use super::Plan;
use super::attackers::Trade;
use super::registry::Card;
use super::request::Request;
use super::serve::Serving;
use super::talk::Asking;
use super::visits::{Contact, Visit};
use crate::fixture;
use crate::sim::NodeIndex;
use crate::sim::resident::StreamId;

/// Phonebooks hold handles.
pub type Book<'s> = Phonebook<'s, Card>;

/// The memory of one phonebook, as large as a host's.
pub(super) struct ShelfMemory {
    tried: Vec<Option<Entry<Card>>>,
    new: Vec<Option<Entry<Card>>>,
    evidence: Vec<Option<Evidence<Card>>>,
}

impl ShelfMemory {
    /// A host's shelves, or shorter ones with as many buckets of the host's length as there are places for.
    #[must_use]
    pub(super) fn new(places: Places) -> Self {
        let empty = |len| std::iter::repeat_with(|| None).take(len).collect();
        Self {
            tried: empty(places.tried),
            new: empty(places.new),
            evidence: std::iter::repeat_with(|| None).take(EVIDENCE_MAX).collect(),
        }
    }

    fn shelves(&mut self) -> Shelves<'_, Card> {
        Shelves { tried: &mut self.tried, new: &mut self.new, evidence: &mut self.evidence }
    }
}

/// What a node keeps over a restart.
pub(super) struct Kept {
    book: Vec<u8>,
    guards: Vec<u8>,
}

/// What makes a steward: the same as on a host, with a network group's rule and intervals of a plan. Requests keep apart what they do, so no path is kept for
/// another time.
pub(super) struct Household {
    own: NodeId,
    grouping: Grouping,
    settings: Settings,
}

impl Household {
    pub(super) const fn new(own: NodeId, plan: &Plan) -> Self {
        Self {
            own,
            grouping: plan.defences.grouping(),
            settings: Settings {
                // Five times as long as from exchange to exchange.
                lonely: plan.settings.exchange.saturating_mul(5),
                ..Settings::DEFAULT
            },
        }
    }

    fn steward<'s>(&self, book: Book<'s>, guards: Guards, anchors: Anchors, now: Now) -> Steward<'s, Card> {
        Steward::new(book, PathCache::new(&mut [], PATH_LIFETIME), guards, anchors, self.settings, now)
    }

    fn found<'s>(&self, memory: &'s mut ShelfMemory, key: [u8; 32], now: Now) -> Steward<'s, Card> {
        let book = Phonebook::new(memory.shelves(), Some(self.own), BookKey::new(key), self.grouping);
        self.steward(book, Guards::new(), Anchors::new(), now)
    }

    /// As a host reads what it has kept.
    pub(super) fn restore<'s>(&self, memory: &'s mut ShelfMemory, kept: &Kept, now: Now) -> Steward<'s, Card> {
        let stored = StoredBook::parse(&kept.book).expect("it was stored by the same code");
        let verify = |descriptor| VerifiedDescriptor::verify_stored(descriptor).ok().map(Card::new);
        let book = Phonebook::restore(memory.shelves(), Some(self.own), self.grouping, &stored, now.date, verify);
        let guards = Guards::from_bytes(&kept.guards).expect("they were stored by the same code");
        self.steward(book, guards, stored.anchors().clone(), now)
    }
}

/// How long shelves are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// Places for nodes that were met.
    pub tried: usize,
    /// Places for nodes that were heard of.
    pub new: usize,
}

impl Places {
    /// As PROTOCOL.md section 18.1 has them.
    pub const HOST: Self = Self { tried: TRIED_PLACES, new: NEW_PLACES };
    /// Enough for somebody who only answers.
    pub(super) const EXTRA: Self = Self { tried: 16 * BUCKET, new: 16 * BUCKET };
    /// What a constrained node has: one bucket, which keeps the epoch sample.
    pub const CONSTRAINED: Self = Self { tried: 0, new: BUCKET };
}

/// What a citizen has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Exchanges that it began.
    pub asked: u64,
    /// Of these, those that ended well.
    pub answered: u64,
    /// Requests of others that it has read.
    pub asked_of: u64,
    /// Exchanges that it answered.
    pub served: u64,
    /// Descriptors that it was sent in answers.
    pub told: u64,
    /// Announcements that it was sent.
    pub announced: u64,
    /// Links made to see who is there.
    pub tests: u64,
    /// Of these, those that met nobody or somebody else.
    pub failed_tests: u64,
    /// Requests begun.
    pub requests: u64,
    /// Requests answered over the first path.
    pub at_once: u64,
    /// Requests answered in time, over whatever path.
    pub in_time: u64,
    /// Requests that ended badly.
    pub lost: u64,
    /// Requests that ended badly because no path could be chosen.
    pub pathless: u64,
}

/// Who lives at a node.
pub struct Citizen<'s> {
    /// Its node.
    pub node: NodeIndex,
    /// Its identity's number.
    pub identity: usize,
    /// Its name.
    pub id: NodeId,
    /// Where it is.
    pub address: SocketAddr,
    /// It also connects to targets.
    pub exit: bool,
    /// What it does besides or instead of what it should.
    pub trade: Trade,
    /// Whom it knows, and what it does with that.
    pub steward: Steward<'s, Card>,
    /// What it has counted.
    pub counts: Counts,
    /// What it was sent, and refused.
    pub tally: Tally,
    /// When it was born.
    pub born: Duration,
    pub(super) rng: ChaCha20Rng,
    /// Whom it has been told of by hand.
    pub(super) bootstrap: Vec<Contact>,
    pub(super) sequence: u64,
    /// Its own descriptor, as bytes and as others have it.
    pub(super) own: Option<(Rc<[u8]>, Card)>,
    pub(super) visits: BTreeMap<LinkId, Visit>,
    pub(super) asking: Option<Asking>,
    pub(super) serving: BTreeMap<StreamId, Serving>,
    pub(super) requests: BTreeMap<StreamId, Request>,
    /// When it tests and asks.
    pub(super) pace: Option<Pace>,
    /// When it is called for that.
    pub(super) armed: Option<Instant>,
    /// There was nobody to be asked.
    pub(super) lone: bool,
    /// What the last exchange that was answered came to.
    pub(super) last: Option<Exchanged>,
    /// The last turn for a test that can wait.
    pub(super) idle_since: Instant,
}

impl<'s> Citizen<'s> {
    pub(super) fn new(
        node: NodeIndex,
        identity: usize,
        address: SocketAddr,
        plan: &Plan,
        memory: &'s mut ShelfMemory,
    ) -> Self {
        let id = fixture::node_id(identity);
        let mut rng = ChaCha20Rng::seed_from_u64(plan.seed ^ (node as u64 + 1) << 32 ^ 0x0062_6f6f_6b00_0000);
        let mut key = [0; 32];
        rand_core::Rng::fill_bytes(&mut rng, &mut key);
        let start = Now { instant: Instant::from_millis(0), date: fixture::EPOCH };
        Self {
            node,
            identity,
            id,
            address,
            exit: false,
            trade: Trade::Honest,
            steward: Household::new(id, plan).found(memory, key, start),
            counts: Counts::default(),
            tally: Tally::default(),
            born: Duration::ZERO,
            rng,
            bootstrap: Vec::new(),
            sequence: 1,
            own: None,
            visits: BTreeMap::new(),
            asking: None,
            serving: BTreeMap::new(),
            requests: BTreeMap::new(),
            pace: None,
            armed: None,
            lone: false,
            last: None,
            idle_since: Instant::from_millis(0),
        }
    }

    /// Whom it knows.
    #[must_use]
    pub const fn book(&self) -> &Book<'s> {
        self.steward.book()
    }

    /// Begins anew with what was kept. What it counts is counted on.
    pub(super) fn restart(&mut self, steward: Steward<'s, Card>) {
        self.steward = steward;
        (self.pace, self.armed, self.last, self.lone) = (None, None, None, false);
        self.bootstrap.iter_mut().for_each(|contact| *contact = Contact::new(contact.address, contact.id));
    }

    /// What would be there after a restart.
    pub(super) fn kept(&self) -> Kept {
        let mut book = Vec::new();
        self.steward.emit(&mut |piece: &[u8]| book.extend_from_slice(piece));
        Kept { book, guards: self.steward.guards().to_bytes().to_vec() }
    }

    /// Its descriptor, if it has one: clients have none.
    #[must_use]
    pub fn card(&self) -> Option<&Card> {
        self.own.as_ref().map(|(_, card)| card)
    }

    /// Whether it knows the node, and may use it now.
    #[must_use]
    pub fn knows(&self, node: &NodeId, now: UnixTime) -> bool {
        self.book().get(node).is_some_and(|entry| entry.is_valid_at(now) && !entry.is_disputed())
    }
}
