//! Who lives at a node: its phonebook, and what it has begun and not ended.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bulbil_core::circuit::LinkId;
use bulbil_core::phonebook::exchange::{Pace, Tally};
use bulbil_core::phonebook::{
    BUCKET, BookKey, Entry, Evidence, Grouping, Guards, NEW_PLACES, PeerClocks, Phonebook, Shelves, TRIED_PLACES,
};
use bulbil_core::time::Instant;
use bulbil_core::wire::{NodeId, UnixTime};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use super::Plan;
use super::attackers::Trade;
use super::registry::Card;
use super::request::Request;
use super::talk::{Asking, Serving};
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
            evidence: std::iter::repeat_with(|| None).take(bulbil_core::phonebook::EVIDENCE_MAX).collect(),
        }
    }

    /// A phonebook in it.
    pub(super) fn open(&mut self, own: NodeId, key: [u8; 32], grouping: Grouping) -> Book<'_> {
        let shelves = Shelves { tried: &mut self.tried, new: &mut self.new, evidence: &mut self.evidence };
        Phonebook::new(shelves, Some(own), BookKey::new(key), grouping)
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

/// A link that was made to see who is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Visit {
    /// Whom it is to meet, if that is in the phonebook.
    pub(super) node: NodeId,
    /// A bootstrap node, not a test.
    pub(super) bootstrap: bool,
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
    /// Whom it knows.
    pub book: Book<'s>,
    /// Its first hops.
    pub guards: Guards,
    /// What others take for the time.
    pub clocks: PeerClocks,
    /// What it has counted.
    pub counts: Counts,
    /// What it was sent, and refused.
    pub tally: Tally,
    /// When it was born.
    pub born: Duration,
    pub(super) rng: ChaCha20Rng,
    /// Whom it has been told of by hand and has not met yet.
    pub(super) bootstrap: Vec<(SocketAddr, NodeId)>,
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
    /// When it last asked earlier than its pace would have it.
    pub(super) hurried: Instant,
    /// The others say that its clock is wrong.
    pub(super) in_doubt: bool,
}

impl<'s> Citizen<'s> {
    pub(super) fn new(
        node: NodeIndex,
        identity: usize,
        address: SocketAddr,
        plan: &Plan,
        memory: &'s mut ShelfMemory,
        grouping: Grouping,
    ) -> Self {
        let id = fixture::node_id(identity);
        let mut rng = ChaCha20Rng::seed_from_u64(plan.seed ^ (node as u64 + 1) << 32 ^ 0x0062_6f6f_6b00_0000);
        let mut key = [0; 32];
        rand_core::Rng::fill_bytes(&mut rng, &mut key);
        Self {
            node,
            identity,
            id,
            address,
            exit: false,
            trade: Trade::Honest,
            book: memory.open(id, key, grouping),
            guards: Guards::new(),
            clocks: PeerClocks::new(),
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
            hurried: Instant::from_millis(0),
            in_doubt: false,
        }
    }

    /// Its descriptor, if it is there.
    #[must_use]
    pub fn card(&self) -> Option<&Card> {
        self.own.as_ref().map(|(_, card)| card)
    }

    /// Whether it knows the node, and may use it now.
    #[must_use]
    pub fn knows(&self, node: &NodeId, now: UnixTime) -> bool {
        self.book.get(node).is_some_and(|entry| entry.is_valid_at(now) && !entry.is_disputed())
    }
}
