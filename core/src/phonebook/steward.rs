//! What a node does with its phonebook, `PROTOCOL.md` sections 11, 18.2, 18.3 and 18.5: whom it asks, whom it tests, what counts as a
//! failure, when its clock is in doubt, and which anchors and guards it has.
//!
//! A [`Steward`] owns all of that. Its owner makes the links and has the conversations, tells it what has come of them (`handle_…`), asks it
//! what to do next ([`Steward::poll_test`], [`Steward::whom`], [`Steward::choose_path`]), and after each call takes what it has to say
//! ([`Steward::poll_notice`]) until that is nothing. Time and randomness are arguments.
//!
//! **A node that was cut off.** The descriptors that it knows expire while nobody can renew them. So at a start, and as soon as nobody has answered
//! for [`Settings::lonely`], links to anchors and guards are tested before anybody else; failures are not the others' as long as nobody answers; and
//! nothing is swept for having expired before somebody has answered, and then for as long again, so that those that are there can show their
//! new descriptors.
//!
//! **A node that is being cut off.** Whoever sits on its line may let through a node of his own, and nobody else. So one answer is not
//! enough: as long as nodes of fewer than [`COMPANY_MIN`] network groups that had been met before have answered within [`Settings::lonely`]
//! ([`Steward::is_cut_off`]), whoever fails is avoided but nobody of `tried` leaves for it, nothing is swept, no guard's time runs, and no guards are
//! drawn beyond those in use; and idle turns look for company.

use core::borrow::Borrow;
use core::net::SocketAddr;
use core::time::Duration;

use heapless::{Deque, Vec};
use rand_core::CryptoRng;

use super::entry::Entry;
use super::exchange::TestLoad;
use super::guards::GUARDS_KEPT_MAX;
use super::path::draw;
use super::{
    ANCHORS_MAX, Anchors, ClockVerdict, Guards, Inserted, IsolationKey, NetworkGroup, Path, PathCache, PathError,
    PathRequest, PeerClocks, Phonebook, Refusal, Source, Test, VerifiedDescriptor,
};
use crate::time::Instant;
use crate::wire::{NodeId, UnixTime};

/// Network groups of nodes that had been met before from which answers must have come, so that failures are the others'; where fewer are
/// known, all of them.
pub const COMPANY_MIN: usize = 3;
/// Groups whose last answers are remembered.
const COMPANY_KEPT: usize = 8;
/// A wall clock that has moved so much more or less than the time that has passed was set.
pub const CLOCK_JUMP: Duration = Duration::from_secs(60);
/// Between two looks at the clock.
const LOOK: Duration = Duration::from_secs(1);
/// Between two searches for what has expired.
const SWEEP: Duration = Duration::from_secs(60);
/// Nodes that may have to be tested first: all anchors and guards.
const FIRST_MAX: usize = ANCHORS_MAX + GUARDS_KEPT_MAX;
/// Notices that wait to be taken. More than one call leaves behind.
const NOTICES: usize = 8;

/// A moment by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// By the one that only runs.
    pub instant: Instant,
    /// By the one that can be wrong and be set.
    pub date: UnixTime,
}

/// How long a node waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// After a node's first failure, and between two rounds of links to anchors and guards while nobody answers.
    pub retry: Duration,
    /// Without any answer for so long it is the own connection that fails: five times as long as from exchange to exchange.
    pub lonely: Duration,
}

impl Settings {
    /// What nodes use unless told otherwise.
    pub const DEFAULT: Self = Self { retry: super::FAILURE_PAUSE, lonely: Duration::from_secs(300) };
}

/// From whom descriptors come that this node was not shown on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Teller {
    /// The node at this address, asked in an exchange.
    Peer(SocketAddr),
    /// Its own node, through somebody's circuit.
    Announced,
}

/// Why a node that was tested was not met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unreached {
    /// No link came about, or it was somebody else who answered.
    Link,
    /// What it showed is not valid now: one of two clocks is wrong.
    Validity,
}

/// What the owner may want to know, to pass on or to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A descriptor has come in that was not known, or a node was met for the first time: a path that there was not may be there now,
    /// and somebody may have to be tested.
    News,
    /// Links to anchors and guards are due: [`Steward::poll_test`] should be called soon.
    LinksDue,
    /// A node that failed several times was dropped.
    Dropped(NodeId),
    /// The own clock was set.
    ClockSet,
    /// Most nodes say that the own clock is wrong.
    ClockWrong {
        /// By how many seconds it is ahead (negative: behind).
        seconds: i64,
        /// How many nodes were heard.
        peers: u8,
    },
    /// They do not say so any more.
    ClockRight,
}

/// The time for which others have answered, never silent for longer than [`Settings::lonely`].
#[derive(Debug, Clone, Copy)]
struct Company {
    since: Instant,
    last: Instant,
}

/// The last answers of nodes that had been met before, on links and circuits of this node's own choosing, for each network group one; the
/// latest last.
#[derive(Debug, Default)]
struct Answers {
    kept: Vec<(NetworkGroup, Instant), COMPANY_KEPT>,
}

impl Answers {
    fn note(&mut self, group: NetworkGroup, now: Instant) {
        self.kept.retain(|(known, _)| *known != group);
        if self.kept.is_full() {
            self.kept.remove(0);
        }
        self.kept.push((group, now)).expect("room was made");
    }

    /// The groups of those that are not older than `span`.
    fn within(&self, span: Duration, now: Instant) -> impl Iterator<Item = NetworkGroup> {
        self.kept.iter().filter(move |(_, at)| at.after(span) >= now).map(|(group, _)| *group)
    }
}

/// Owns a phonebook and decides what is done with it; see the [module](self). Without the memory of book and paths about 2 KB.
///
/// Any method that takes [`Now`] notices if the wall clock was set since the last one.
pub struct Steward<'m, C = VerifiedDescriptor> {
    book: Phonebook<'m, C>,
    paths: PathCache<'m>,
    guards: Guards,
    anchors: Anchors,
    clocks: PeerClocks,
    settings: Settings,
    /// Anchors that are to be asked before anybody else, as soon as their descriptors are valid.
    ask_first: Vec<NodeId, ANCHORS_MAX>,
    /// Anchors and guards that are to be tested before anybody else.
    test_first: Vec<NodeId, FIRST_MAX>,
    /// When the last of these was tested.
    rested: Instant,
    /// `None` until somebody answers, and again after the clock was set.
    company: Option<Company>,
    answers: Answers,
    in_doubt: bool,
    /// The owner was told that the clock is wrong.
    told_wrong: bool,
    /// Something is worth storing.
    changed: bool,
    notices: Deque<Notice, NOTICES>,
    /// The moment of the last call.
    seen: Now,
    looked: Instant,
    swept: Instant,
}

impl<'m, C: Borrow<VerifiedDescriptor> + Clone> Steward<'m, C> {
    /// Takes over what there is: an empty phonebook, no guards and no anchors, or those of an earlier run. The clock is in doubt until others agree.
    #[must_use]
    pub fn new(
        mut book: Phonebook<'m, C>,
        paths: PathCache<'m>,
        guards: Guards,
        anchors: Anchors,
        settings: Settings,
        now: Now,
    ) -> Self {
        book.set_failure_pause(settings.retry);
        book.set_clock_in_doubt(true);
        let mut steward = Self {
            book,
            paths,
            guards,
            anchors,
            clocks: PeerClocks::new(),
            settings,
            ask_first: Vec::new(),
            test_first: Vec::new(),
            rested: now.instant,
            company: None,
            answers: Answers::default(),
            in_doubt: true,
            told_wrong: false,
            changed: false,
            notices: Deque::new(),
            seen: now,
            looked: now.instant,
            swept: now.instant,
        };
        steward.ask_first = steward.anchors.nodes().iter().copied().collect();
        steward.list_links();
        steward
    }

    /// The phonebook.
    #[must_use]
    pub const fn book(&self) -> &Phonebook<'m, C> {
        &self.book
    }

    /// The phonebook, for its owner to change; then [`Steward::handle_edited`].
    pub const fn book_mut(&mut self) -> &mut Phonebook<'m, C> {
        &mut self.book
    }

    /// The guards, to be kept over a restart. [`Steward::choose_path`] and [`Steward::handle_timeout`] change them.
    #[must_use]
    pub const fn guards(&self) -> &Guards {
        &self.guards
    }

    /// Forgets the guards; the next path draws others.
    pub fn forget_guards(&mut self) {
        self.guards = Guards::new();
    }

    /// The anchors.
    #[must_use]
    pub const fn anchors(&self) -> &Anchors {
        &self.anchors
    }

    /// What others think of the own clock.
    #[must_use]
    pub fn clock(&self) -> ClockVerdict {
        self.clocks.verdict()
    }

    /// Whether nothing is to be thrown away on the own clock's word.
    #[must_use]
    pub const fn is_clock_in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// Whether nobody has answered for [`Settings::lonely`], or since the start, or since the clock was set.
    #[must_use]
    pub fn is_lonely(&self, now: Instant) -> bool {
        self.company.is_none_or(|company| company.last.after(self.settings.lonely) < now)
    }

    /// Whether nodes of fewer than [`COMPANY_MIN`] network groups (or of not all, if those that were met are in fewer) that had been met
    /// before have answered within [`Settings::lonely`]: it may be somebody on the line who decides who answers.
    #[must_use]
    pub fn is_cut_off(&self, now: Instant) -> bool {
        !self.has_company(None, now)
    }

    /// As [`Steward::is_cut_off`], for judging a node of the group `besides`: that group may have failed as a whole, and does not count.
    fn has_company(&self, besides: Option<NetworkGroup>, now: Instant) -> bool {
        let mut known: Vec<NetworkGroup, COMPANY_MIN> = Vec::new();
        let met = self.book.iter().filter(|entry| entry.is_tried() && !entry.is_disputed()).map(Entry::group);
        for group in met.filter(|&group| Some(group) != besides) {
            if !known.contains(&group) && (known.push(group).is_err() || known.is_full()) {
                break;
            }
        }
        let answered = self.answers.within(self.settings.lonely, now);
        match known.len() {
            // Nobody of another group was met.
            0 => answered.count() > 0,
            needed => answered.filter(|&group| Some(group) != besides).count() >= needed,
        }
    }

    /// What there is to say, until there is nothing more.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// Whether something is worth storing that was not when this was asked last.
    pub const fn take_changed(&mut self) -> bool {
        core::mem::replace(&mut self.changed, false)
    }

    /// Writes what should survive, except the guards, as [`Phonebook::emit`].
    pub fn emit<S: FnMut(&[u8])>(&self, sink: &mut S) {
        self.book.emit(&self.anchors, sink);
    }

    /// When [`Steward::handle_timeout`] should be called. Who calls it later finds out later that the clock was set, and sweeps later.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        self.looked.after(LOOK)
    }

    /// Looks at the clock, and from time to time for what has expired and who has been unusable as a guard for too long.
    pub fn handle_timeout(&mut self, now: Now) {
        self.watch(now);
        self.looked = now.instant;
        if self.swept.after(SWEEP) > now.instant {
            return;
        }
        self.swept = now.instant;
        let settled = |company: Company| company.since.after(self.settings.lonely) <= now.instant;
        let settled = self.company.is_some_and(settled);
        if self.in_doubt || self.is_lonely(now.instant) || !settled || self.is_cut_off(now.instant) {
            return;
        }
        let before = self.book.len();
        self.book.remove_expired(now.date);
        self.changed |= self.book.len() != before;
        self.guards.review(&self.book, now.date);
    }

    /// The own clock was set: what others have said about it is void, and descriptors may look expired that only could not be renewed, as after a
    /// machine has slept. To be called by an owner who knows; otherwise it is noticed.
    pub fn handle_clock_set(&mut self, now: Now) {
        self.seen = now;
        self.clocks.clear();
        self.company = None;
        self.answers = Answers::default();
        self.judge_clock();
        self.notify(Notice::ClockSet);
        self.list_links();
    }

    /// A node that was linked to at `address` says that it is `time`.
    ///
    /// Links that this node wanted are those of tests ([`Steward::poll_test`]); any other one somebody's onion may have made it open.
    pub fn handle_time(&mut self, node: NodeId, address: SocketAddr, time: UnixTime, now: Now) {
        self.note_answer(now);
        let own_link = self.is_tested_at(&node, address, now);
        self.clocks.hear(node, self.book.group_of(address), time, now.date, own_link);
        self.judge_clock();
    }

    /// A node that was linked to at `address` has shown its descriptor. If that is where the phonebook has it, and it was neither a meeting nor
    /// a newer descriptor, the node has failed as one that does not answer: else its test would begin again for ever.
    ///
    /// # Errors
    /// As [`Phonebook::insert`].
    pub fn handle_shown(&mut self, card: C, address: SocketAddr, now: Now) -> Result<Inserted, Refusal> {
        self.note_answer(now);
        let verified: &VerifiedDescriptor = card.borrow();
        let node = verified.node();
        if self.is_tested_at(&node, address, now) {
            self.note_company(&node, now);
        }
        let expected_here = self.book.get(&node).is_some_and(|entry| entry.address() == address);
        // Elsewhere than where it says that it is, it has not been met there.
        let met = verified.address() == address;
        let source = if met { Source::Met } else { Source::Peer(self.book.group_of(address)) };
        let was_tried = self.book.get(&node).is_some_and(Entry::is_tried);
        let taken = self.book.insert(card, source, now.date);
        match taken {
            Ok(Inserted::Met) if was_tried => self.changed = true,
            Ok(_) => self.note_news(),
            Err(Refusal::Disputed) => self.changed = true,
            Err(Refusal::NotNewer | Refusal::Full) if expected_here => self.fail(&node, true, now),
            Err(Refusal::Expired) if expected_here && !self.in_doubt => self.fail(&node, true, now),
            Err(Refusal::NotNewer | Refusal::Full | Refusal::Expired | Refusal::Own) => {}
        }
        // Of more groups more have to agree.
        self.judge_clock();
        taken
    }

    /// Somebody has told of a node.
    ///
    /// # Errors
    /// As [`Phonebook::insert`].
    pub fn handle_told(&mut self, card: C, teller: Teller, now: Now) -> Result<Inserted, Refusal> {
        self.watch(now);
        let source = match teller {
            Teller::Peer(address) => Source::Peer(self.book.group_of(address)),
            Teller::Announced => Source::Announced,
        };
        let taken = self.book.insert(card, source, now.date);
        match taken {
            Ok(Inserted::Added | Inserted::Evicted(_) | Inserted::Updated) => self.note_news(),
            Ok(Inserted::Met) => {}
            Err(refusal) => self.changed |= refusal == Refusal::Disputed,
        }
        taken
    }

    /// The owner has changed the phonebook by himself.
    pub fn handle_edited(&mut self) {
        self.note_news();
    }

    /// A hop did not do its part: paths with it are forgotten. While the clock is in doubt it may be that why the circuit failed, and that does not
    /// count against the node.
    pub fn handle_hop_failed(&mut self, node: &NodeId, now: Now) {
        self.paths.forget_node(node);
        self.watch(now);
        if !self.in_doubt {
            self.fail(node, false, now);
        }
    }

    /// A hop of a path that failed, and nobody can be blamed: paths with it are forgotten.
    pub fn handle_hop_doubted(&mut self, node: &NodeId) {
        self.paths.forget_node(node);
    }

    /// A hop did its part.
    pub fn handle_hop_succeeded(&mut self, node: &NodeId, now: Now) {
        self.note_answer(now);
        self.note_company(node, now);
        self.changed = true;
        self.book.record_success(node, now.date);
    }

    /// A node that was tested was not met. That counts while the clock is in doubt too, unless it is a matter of clocks.
    pub fn handle_unreached(&mut self, node: &NodeId, why: Unreached, now: Now) {
        self.watch(now);
        if !(self.in_doubt && why == Unreached::Validity) {
            self.fail(node, true, now);
        }
    }

    /// A node that was asked for descriptors has answered well, or has not.
    pub fn handle_exchanged(&mut self, node: &NodeId, well: bool, now: Now) {
        if well {
            self.anchors.note(*node);
            self.handle_hop_succeeded(node, now);
        } else {
            self.anchors.demote(node);
            self.handle_hop_failed(node, now);
        }
    }

    /// Whom to test now, by a link whose outcome is told by [`Steward::handle_shown`] or [`Steward::handle_unreached`], and what is left. With `idle` also those
    /// who can wait: the owner says so once in the longer of his two intervals. Anchors and guards that links are due to come first; otherwise it is as
    /// [`Phonebook::next_test`] says. An idle turn without a test goes to anybody who was met while it is not known that others agree about the time,
    /// or too few have answered ([`Steward::is_cut_off`]).
    pub fn poll_test<R: CryptoRng + ?Sized>(&mut self, idle: bool, now: Now, rng: &mut R) -> (Option<Test>, TestLoad) {
        self.watch(now);
        let mut test = self.next_link(now);
        if test.is_none() && (idle || self.book.wants_tests(now.date)) {
            test = self.book.next_test(now.date, rng);
        }
        if test.is_none() && idle && (self.clocks.verdict() != ClockVerdict::Agrees || self.is_cut_off(now.instant)) {
            let may_be = |entry: &Entry<C>| entry.is_tried() && !entry.is_disputed() && !entry.is_testing(now.date);
            let drawn = draw(self.book.slots().filter(|(_, entry)| may_be(entry)), rng).map(|(slot, _)| slot);
            if let Some(entry) = drawn.and_then(|slot| self.book.entry_mut(slot)) {
                entry.begin_test(now.date);
                test = Some(Test { node: entry.node(), address: entry.address(), urgent: false });
            }
        }
        // Whoever has failed is tried again as soon as its pause is over.
        let waiting = !self.test_first.is_empty()
            || self.book.wants_tests(now.date)
            || self.book.iter().any(|entry| entry.failures() > 0);
        (test, if waiting { TestLoad::Waiting } else { TestLoad::Idle })
    }

    /// Whom to ask for descriptors: anchors first after a start and after loneliness, then a random node that was met and is not constrained. An anchor whose
    /// descriptor has expired waits, while others are asked, until its test has brought a new one or has failed.
    pub fn whom<R: CryptoRng + ?Sized>(&mut self, now: Now, rng: &mut R) -> Option<NodeId> {
        self.watch(now);
        let book = &self.book;
        self.ask_first.retain(|anchor| book.get(anchor).is_some_and(|entry| !entry.is_disputed()));
        let valid = |anchor: &NodeId| book.get(anchor).is_some_and(|entry| entry.is_valid_at(now.date));
        if let Some(at) = self.ask_first.iter().position(valid) {
            return Some(self.ask_first.remove(at));
        }
        let constrained = |card: &VerifiedDescriptor| card.descriptor().roles.constrained;
        let one = self.book.sample(1, now.date, rng, constrained).next();
        one.map(|card| card.borrow().node())
    }

    /// Chooses a path, with an isolation key the one that it has. As long as this node may be cut off, guards are drawn only where it has
    /// fewer than it uses.
    ///
    /// # Errors
    /// [`PathError`], what is missing.
    pub fn choose_path<R: CryptoRng + ?Sized>(
        &mut self,
        request: &PathRequest<'_>,
        isolation: Option<IsolationKey>,
        rng: &mut R,
    ) -> Result<Path, PathError> {
        // A path is chosen by the date alone; the moment of the last call is near enough.
        let draw_guards = request.draw_guards && !self.is_cut_off(self.seen.instant);
        let request = &PathRequest { draw_guards, ..*request };
        match isolation {
            Some(key) => self.paths.path_for(key, &self.book, request, &mut self.guards, rng),
            None => self.book.choose_path(request, &mut self.guards, rng),
        }
    }

    /// Notices if the clock was set, and if nobody has answered for long.
    fn watch(&mut self, now: Now) {
        let expected = self.seen.date.saturating_add(self.seen.instant.until(now.instant));
        self.seen = now;
        if now.date.0.abs_diff(expected.0) > CLOCK_JUMP.as_secs() {
            self.handle_clock_set(now);
        } else if self.test_first.is_empty()
            && self.is_lonely(now.instant)
            && self.rested.after(self.settings.retry) <= now.instant
        {
            self.rested = now.instant;
            self.list_links();
        }
    }

    fn note_answer(&mut self, now: Now) {
        self.watch(now);
        let at = now.instant;
        match &mut self.company {
            Some(company) if company.last.after(self.settings.lonely) >= at => company.last = at,
            _ => {
                self.company = Some(Company { since: at, last: at });
                self.ask_first = self.anchors.nodes().iter().copied().collect();
                self.list_links();
            }
        }
    }

    /// A node of this one's own choosing did what it was to do; that counts if it is one of those that were met before.
    fn note_company(&mut self, node: &NodeId, now: Now) {
        let met = self.book.get(node).filter(|entry| entry.is_tried() && !entry.is_disputed());
        if let Some(group) = met.map(Entry::group) {
            self.answers.note(group, now.instant);
        }
    }

    /// Whether a test of the node at this address is under way.
    fn is_tested_at(&self, node: &NodeId, address: SocketAddr, now: Now) -> bool {
        self.book.get(node).is_some_and(|entry| entry.is_testing(now.date) && entry.address() == address)
    }

    /// Links to all anchors and guards are due.
    fn list_links(&mut self) {
        self.test_first.clear();
        for node in self.anchors.nodes().iter().chain(&self.guards.nodes()) {
            if !self.test_first.contains(node) {
                self.test_first.push(*node).expect("there is room for all anchors and guards");
            }
        }
        if !self.test_first.is_empty() {
            self.notify(Notice::LinksDue);
        }
    }

    /// The next anchor or guard to be tested, without those that have just been met.
    fn next_link(&mut self, now: Now) -> Option<Test> {
        while !self.test_first.is_empty() {
            let node = self.test_first.remove(0);
            self.rested = now.instant;
            let test = self.begin_link(&node, now);
            if test.is_some() {
                return test;
            }
        }
        None
    }

    /// A test of a node that is known, however long ago the last one was; one that has not ended may have begun before the connection was back.
    fn begin_link(&mut self, node: &NodeId, now: Now) -> Option<Test> {
        let slot = self.book.find(node)?;
        let entry = self.book.entry_mut(slot)?;
        let met = entry.is_valid_at(now.date) && !entry.is_unmet_for(self.settings.lonely, now.date);
        if met || entry.is_disputed() {
            return None;
        }
        entry.begin_test(now.date);
        Some(Test { node: *node, address: entry.address(), urgent: true })
    }

    /// When nobody at all answers, it is the own connection that fails; when only a few do, somebody may want it so.
    fn fail(&mut self, node: &NodeId, tested: bool, now: Now) {
        if self.is_lonely(now.instant) {
            return;
        }
        self.changed = true;
        self.ask_first.retain(|anchor| anchor != node);
        let group = self.book.get(node).map(Entry::group);
        let cut_off = !self.has_company(group, now.instant);
        if self.book.count_failure(node, tested, cut_off, now.date) {
            self.anchors.forget(node);
            self.notify(Notice::Dropped(*node));
        }
    }

    fn judge_clock(&mut self) {
        let met = self.book.iter().filter(|entry| entry.is_tried()).map(Entry::group);
        self.in_doubt = self.clocks.leave_doubt(met);
        self.book.set_clock_in_doubt(self.in_doubt);
        match self.clocks.verdict() {
            ClockVerdict::Off { seconds, peers } if !self.told_wrong => {
                self.told_wrong = true;
                self.notify(Notice::ClockWrong { seconds, peers });
            }
            ClockVerdict::Agrees if self.told_wrong => {
                self.told_wrong = false;
                self.notify(Notice::ClockRight);
            }
            ClockVerdict::Unknown | ClockVerdict::Agrees | ClockVerdict::Off { .. } => {}
        }
    }

    fn note_news(&mut self) {
        self.changed = true;
        self.notify(Notice::News);
    }

    fn notify(&mut self, notice: Notice) {
        if self.notices.iter().any(|waiting| *waiting == notice) {
            return;
        }
        // An owner who takes none misses the oldest.
        if self.notices.is_full() {
            self.notices.pop_front();
        }
        self.notices.push_back(notice).expect("room was made");
    }
}

impl<C> core::fmt::Debug for Steward<'_, C> {
    /// Who is known is nobody's business.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Steward").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
