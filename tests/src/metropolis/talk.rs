//! Exchanges of descriptors, from both ends: what a host's task behind the service `phonebook` does.

use std::collections::{BTreeMap, HashSet};
use std::task::Poll;
use std::time::Duration;

use bulbil_core::crypto::onion::HopSpec;
use bulbil_core::io::ByteStream;
use bulbil_core::node::{ConversationId, Outcome, Suspect};
use bulbil_core::phonebook::exchange::{
    AnswerReader, AnswerWriter, Due, Exchanged, FILTER_NODES_MAX, Filter, FilterBuilder, Pace, REQUEST_MAX_LEN,
    Refused, Request, Salt, SampleKind, TestLoad, Want, filter_len, with_own,
};
use bulbil_core::phonebook::{NetworkGroup, Refusal, SAMPLE_MAX, Source, VerifiedDescriptor};
use bulbil_core::wire::{EndReason, NodeId, Service, Target, UnixTime};
use rand_core::Rng as _;

use super::{Alarm, Card, Citizen, City, Start, Trade};
use crate::sim::NodeIndex;
use crate::sim::resident::{SimStream, StreamId};

/// An exchange that takes longer is given up, by either side.
const PATIENCE: Duration = Duration::from_secs(60);
/// Exchanges that a node answers at one time.
const PLACES: usize = 32;

/// An exchange that the node has begun.
pub(super) struct Asking {
    number: u64,
    name: ConversationId,
    stream: SimStream,
    answerer: NodeId,
    group: NetworkGroup,
    request: Vec<u8>,
    sent: usize,
    finished: bool,
    reader: Box<AnswerReader>,
    outcome: Option<Outcome>,
}

/// An exchange that the node answers.
pub(super) struct Serving {
    number: u64,
    name: ConversationId,
    stream: SimStream,
    request: Vec<u8>,
    answer: Option<Vec<u8>>,
    sent: usize,
}

/// Moves bytes to the stream; answers whether all have gone, or `None` if it is broken.
fn write_all(stream: &mut SimStream, bytes: &[u8], sent: &mut usize) -> Option<bool> {
    while *sent < bytes.len() {
        match stream.try_write(&bytes[*sent..]) {
            Poll::Pending => return Some(false),
            Poll::Ready(Ok(len)) => *sent += len,
            Poll::Ready(Err(_)) => return None,
        }
    }
    Some(true)
}

impl City<'_, '_, '_> {
    /// The pace of a node's tests and exchanges begins.
    pub(super) fn begin_pace(&mut self, node: NodeIndex) {
        if matches!(self.plan.start, Start::Extras { .. }) && !self.heirs().contains(&node) {
            return;
        }
        let newcomer = self.citizens[node].book.is_empty();
        // Nodes that know each other did not all start at this moment.
        let wait = if newcomer { 10 } else { u64::from(self.rng.next_u32() % 60_000) };
        let at = self.net.instant().after(Duration::from_millis(wait));
        self.citizens[node].pace = Some(Pace::new(self.plan.settings, at));
        self.set_alarm(node, Duration::from_millis(wait), Alarm::Pace);
    }

    /// There is somebody to ask now, or somebody has failed, and others may know what has become of him.
    pub(super) fn hurry(&mut self, node: NodeIndex) {
        let now = self.net.instant();
        if now < self.citizens[node].hurried.after(self.plan.settings.exchange_busy) {
            return;
        }
        self.citizens[node].hurried = now;
        if let Some(pace) = &mut self.citizens[node].pace {
            pace.handle_first_contact(now);
        }
        self.handle_pace(node);
    }

    pub(super) fn handle_pace(&mut self, node: NodeIndex) {
        let now = self.net.instant();
        while let Some(due) = self.citizens[node].pace.as_mut().and_then(|pace| pace.poll(now)) {
            match due {
                Due::Exchange => {
                    if !self.begin_exchange(node) {
                        self.rest(node, Exchanged::Failed);
                    }
                }
                Due::Test => {
                    self.test(node);
                    let calendar = self.net.calendar(node);
                    let citizen = &mut self.citizens[node];
                    let load = if citizen.book.wants_tests(calendar) { TestLoad::Waiting } else { TestLoad::Idle };
                    if let Some(pace) = &mut citizen.pace {
                        pace.handle_test_begun(load, now, &mut citizen.rng);
                    }
                }
            }
        }
        self.arm_pace(node);
    }

    /// Makes sure that the node is called when its pace is due, and not more often than that.
    fn arm_pace(&mut self, node: NodeIndex) {
        let now = self.net.instant();
        let citizen = &mut self.citizens[node];
        let Some(at) = citizen.pace.as_ref().and_then(Pace::poll_timeout) else { return };
        let armed = citizen.armed.filter(|&armed| armed > now);
        if armed.is_none_or(|armed| at < armed) {
            citizen.armed = Some(at);
            let wait = Duration::from_millis(at.millis().saturating_sub(now.millis()));
            self.set_alarm(node, wait, Alarm::Pace);
        }
    }

    /// There may be somebody new to be tested.
    fn handle_news(&mut self, node: NodeIndex) {
        let (now, calendar) = (self.net.instant(), self.net.calendar(node));
        let Citizen { pace, book, .. } = &mut self.citizens[node];
        if let Some(pace) = pace
            && book.wants_tests(calendar)
        {
            pace.handle_news(now);
            self.arm_pace(node);
        }
    }

    /// An exchange is over, or could not begin.
    fn rest(&mut self, node: NodeIndex, exchanged: Exchanged) {
        let now = self.net.instant();
        let citizen = &mut self.citizens[node];
        if let Some(pace) = &mut citizen.pace {
            pace.handle_exchanged(exchanged, now, &mut citizen.rng);
        }
        self.arm_pace(node);
    }

    /// Asks a random node that was met; answers `false` if there is none, or no room.
    fn begin_exchange(&mut self, node: NodeIndex) -> bool {
        let now = self.net.calendar(node);
        let citizen = &mut self.citizens[node];
        let answerer: Option<Card> = citizen.book.sample(1, now, &mut citizen.rng, |_| false).next().cloned();
        let announcement = citizen.own.as_ref().map(|(bytes, _)| bytes.to_vec());
        answerer.is_some_and(|answerer| self.ask(node, &answerer, announcement.as_deref()))
    }

    /// Asks `answerer` over a circuit of one hop.
    pub(super) fn ask(&mut self, node: NodeIndex, answerer: &Card, announcement: Option<&[u8]>) -> bool {
        if self.citizens[node].asking.is_some() {
            return false;
        }
        let request = self.request_of_book(node, announcement);
        let hop = HopSpec { node: answerer.node(), key: &answerer.descriptor().onion_key, address: answerer.address() };
        let target = Target::Service(Service::Phonebook);
        let Ok((name, stream)) = self.net.converse(node, &[hop], &target, &[]) else { return false };
        let number = self.number();
        self.net.trace(&[40, node as u64, u64::from(answerer.node().0[0])]);
        let citizen = &mut self.citizens[node];
        citizen.counts.asked += 1;
        citizen.asking = Some(Asking {
            number,
            name,
            stream,
            answerer: answerer.node(),
            group: citizen.book.group_of(answerer.address()),
            request,
            sent: 0,
            finished: false,
            reader: Box::new(AnswerReader::new(Want::MAX)),
            outcome: None,
        });
        self.set_alarm(node, PATIENCE, Alarm::Exchange(number));
        self.continue_asking(node);
        true
    }

    fn request_of_book(&mut self, node: NodeIndex, announcement: Option<&[u8]>) -> Vec<u8> {
        let citizen = &mut self.citizens[node];
        let salt = Salt::random(&mut citizen.rng);
        if matches!(citizen.trade, Trade::Eclipse | Trade::Invent(_)) {
            // It has everything already: it asks in order to tell.
            let filter = Filter::new(salt, &[0xff]).expect("one byte is not too long");
            let request = Request { kind: SampleKind::Random, want: Want::MAX, filter, announcement };
            return emitted(&request);
        }
        let known = citizen.book.len().min(FILTER_NODES_MAX - 1);
        let mut bits = vec![0; filter_len(known + 1)];
        let mut filter = FilterBuilder::new(salt, known + 1, &mut bits);
        for entry in citizen.book.iter().take(known) {
            filter.insert(&entry.node(), entry.descriptor().sequence);
        }
        filter.insert(&citizen.id, citizen.sequence);
        let request = Request { kind: SampleKind::Random, want: Want::MAX, filter: filter.finish(), announcement };
        emitted(&request)
    }

    pub(super) fn handle_ready(&mut self, node: NodeIndex, stream: StreamId) {
        if self.citizens[node].asking.as_ref().is_some_and(|asking| asking.stream.id() == stream) {
            self.continue_asking(node);
        } else if self.citizens[node].serving.contains_key(&stream) {
            self.continue_serving(node, stream);
        } else {
            self.read_request(node, stream);
        }
    }

    pub(super) fn handle_over(&mut self, node: NodeIndex, name: ConversationId, outcome: Outcome) {
        if let Some(asking) = self.citizens[node].asking.as_mut().filter(|asking| asking.name == name) {
            // What has come before is still to be read.
            asking.outcome = Some(outcome);
        } else {
            self.handle_request_over(node, name, Some(outcome));
        }
    }

    fn continue_asking(&mut self, node: NodeIndex) {
        let now = self.net.calendar(node);
        let citizen = &mut self.citizens[node];
        let Some(asking) = &mut citizen.asking else { return };
        let mut broken = false;
        if !asking.finished {
            match write_all(&mut asking.stream, &asking.request, &mut asking.sent) {
                Some(true) => {
                    asking.finished = true;
                    broken = asking.stream.finish().is_err();
                }
                Some(false) => {}
                None => broken = true,
            }
        }
        let mut buffer = [0; 4096];
        let ended = loop {
            match asking.stream.try_read(&mut buffer) {
                Poll::Pending => break broken.then_some(Err(None)),
                Poll::Ready(Ok(0)) => break Some(asking.reader.finish().map_err(Some)),
                Poll::Ready(Err(_)) => break Some(Err(None)),
                Poll::Ready(Ok(len)) => {
                    let mut input = &buffer[..len];
                    let taken = loop {
                        match asking.reader.read(&mut input) {
                            Ok(None) => break Ok(()),
                            Err(refused) => break Err(refused),
                            Ok(Some((_, descriptor))) => {
                                citizen.counts.told += 1;
                                let verdict =
                                    self.registry.verify(&descriptor, now).map_err(Refused::from).and_then(|card| {
                                        let source = Source::Peer(asking.group);
                                        let inserted = citizen.book.insert(card, source, now);
                                        inserted.map(|_| ()).map_err(refused_of)
                                    });
                                if verdict == Err(Refused::Validity) && citizen.in_doubt {
                                    asking.reader.pass_over(Refused::Validity);
                                } else if let Err(refused) = asking.reader.judge(verdict) {
                                    break Err(refused);
                                }
                            }
                        }
                    };
                    if let Err(refused) = taken {
                        break Some(Err(Some(refused)));
                    }
                }
            }
        };
        match ended {
            Some(ended) => self.end_exchange(node, ended),
            None => self.net.run_resident(node),
        }
    }

    /// The answer has ended: whole, refused, or broken off.
    fn end_exchange(&mut self, node: NodeIndex, ended: Result<(), Option<Refused>>) {
        let now = self.net.calendar(node);
        let citizen = &mut self.citizens[node];
        let Some(asking) = citizen.asking.take() else { return };
        citizen.tally.add(asking.reader.tally());
        let blamed = match (ended, asking.outcome) {
            (Ok(()), _) => false,
            (Err(Some(_)), _) => true,
            // Broken off by somebody: with one hop there is nobody else, unless it was the own side.
            (Err(None), Some(outcome)) => matches!(outcome.suspect(1), Some(Suspect::Hop(_))),
            (Err(None), None) => true,
        };
        if blamed {
            citizen.book.record_failure(&asking.answerer, now);
        }
        let exchanged = match ended {
            Ok(()) if asking.reader.is_full() => Exchanged::Full,
            Ok(()) => Exchanged::Partial,
            Err(_) => Exchanged::Failed,
        };
        if ended.is_ok() {
            citizen.counts.answered += 1;
            citizen.book.record_success(&asking.answerer, now);
        }
        let (name, over) = (asking.name, asking.outcome.is_some());
        self.net.trace(&[41, node as u64, u64::from(ended.is_ok()), asking.reader.tally().taken()]);
        drop(asking);
        if !over {
            self.net.let_go(node, name);
        }
        self.handle_news(node);
        self.rest(node, exchanged);
    }

    pub(super) fn handle_late_exchange(&mut self, node: NodeIndex, number: u64) {
        if self.citizens[node].asking.as_ref().is_some_and(|asking| asking.number == number) {
            self.end_exchange(node, Err(None));
        }
    }

    /// The node is the last hop of a circuit.
    pub(super) fn handle_asked(&mut self, node: NodeIndex, name: ConversationId, target: &Target) {
        if !matches!(target, Target::Service(Service::Phonebook)) {
            self.answer_as_target(node, name);
            return;
        }
        let full = self.citizens[node].serving.len() >= PLACES;
        let Some(stream) = self.net.serve(node, name, full.then_some(EndReason::Busy)) else { return };
        let (id, number) = (stream.id(), self.number());
        let serving = Serving { number, name, stream, request: Vec::new(), answer: None, sent: 0 };
        self.citizens[node].serving.insert(id, serving);
        self.set_alarm(node, PATIENCE, Alarm::Serving(number));
        self.continue_serving(node, id);
    }

    pub(super) fn handle_late_service(&mut self, node: NodeIndex, number: u64) {
        let serving = &self.citizens[node].serving;
        let late = serving.iter().find(|(_, serving)| serving.number == number).map(|(id, _)| *id);
        if late.and_then(|id| self.citizens[node].serving.remove(&id)).is_some() {
            self.net.run_resident(node);
        }
    }

    fn continue_serving(&mut self, node: NodeIndex, id: StreamId) {
        let Some(mut serving) = self.citizens[node].serving.remove(&id) else { return };
        if serving.answer.is_none() {
            let mut buffer = [0; 4096];
            loop {
                match serving.stream.try_read(&mut buffer) {
                    Poll::Pending => break,
                    Poll::Ready(Err(_)) => {
                        drop(serving);
                        self.net.run_resident(node);
                        return;
                    }
                    Poll::Ready(Ok(0)) => {
                        serving.answer = self.answer(node, &serving.request);
                        if serving.answer.is_none() {
                            self.net.fail(node, serving.name, EndReason::Protocol);
                            return;
                        }
                        break;
                    }
                    Poll::Ready(Ok(len)) => {
                        serving.request.extend_from_slice(&buffer[..len]);
                        if serving.request.len() > REQUEST_MAX_LEN {
                            self.net.fail(node, serving.name, EndReason::Protocol);
                            return;
                        }
                    }
                }
            }
        }
        if let Some(answer) = &serving.answer {
            match write_all(&mut serving.stream, answer, &mut serving.sent) {
                Some(false) => {}
                Some(true) => {
                    let _gone = serving.stream.finish();
                    self.citizens[node].counts.served += 1;
                    drop(serving);
                    self.net.run_resident(node);
                    return;
                }
                None => {
                    drop(serving);
                    self.net.run_resident(node);
                    return;
                }
            }
        }
        self.citizens[node].serving.insert(id, serving);
        self.net.run_resident(node);
    }

    /// The answer to a request; `None` if that is malformed.
    fn answer(&mut self, node: NodeIndex, request: &[u8]) -> Option<Vec<u8>> {
        let request = Request::parse(request).ok()?;
        let now = self.net.calendar(node);
        let announced = request.announced().and_then(Result::ok);
        let announced = announced.and_then(|descriptor| self.registry.verify(&descriptor, now).ok());
        let citizen = &mut self.citizens[node];
        if let Some(card) = announced {
            citizen.counts.announced += 1;
            let _full_or_known = citizen.book.insert(card, Source::Announced, now);
            self.handle_news(node);
        }
        if self.citizens[node].trade != Trade::Honest
            && let Some(answer) = self.false_answer(node, &request)
        {
            return Some(answer);
        }
        self.honest_answer(node, &request, now)
    }

    pub(super) fn honest_answer(&mut self, node: NodeIndex, request: &Request<'_>, now: UnixTime) -> Option<Vec<u8>> {
        let only_met = self.plan.defences.only_met_passed_on;
        let avoid_failing = self.plan.avoid_failing;
        let citizen = &mut self.citizens[node];
        let failing = citizen.book.iter().filter(|entry| avoid_failing && entry.failures() > 0);
        let failing: HashSet<NodeId> = failing.map(bulbil_core::phonebook::Entry::node).collect();
        let held = |card: &VerifiedDescriptor| {
            failing.contains(&card.node()) || request.filter.holds(&card.node(), card.descriptor().sequence)
        };
        let own = citizen.own.as_ref().map(|(_, card)| card.clone()).filter(|card| !held(card));
        let want = usize::from(request.want.value()) - usize::from(own.is_some());
        let cards: Vec<Card> = match request.kind {
            SampleKind::Epoch => citizen.book.epoch_sample(want, now).filter(|card| !held(card)).cloned().collect(),
            SampleKind::Random if only_met => citizen.book.sample(want, now, &mut citizen.rng, held).cloned().collect(),
            SampleKind::Random => {
                // All that are known, met or not: what this node does not do.
                let known = citizen.book.iter().filter(|entry| entry.is_valid_at(now) && !entry.is_disputed());
                let mut known: Vec<Card> = known.map(|entry| entry.card().clone()).filter(|card| !held(card)).collect();
                while known.len() > want {
                    let gone = citizen.rng.next_u64() as usize % known.len();
                    known.swap_remove(gone);
                }
                known.sort_unstable_by_key(|card| card.node());
                known
            }
        };
        debug_assert!(cards.len() <= SAMPLE_MAX);
        answer_of(cards.iter().map(|card| &**card), own.as_deref(), request.want)
    }
}

fn emitted(request: &Request<'_>) -> Vec<u8> {
    let mut bytes = vec![0; REQUEST_MAX_LEN];
    let len = request.emit(&mut bytes).expect("descriptors are well made");
    bytes.truncate(len);
    bytes
}

/// An answer in one piece.
pub(super) fn answer_of<'d>(
    cards: impl Iterator<Item = &'d VerifiedDescriptor>,
    own: Option<&'d VerifiedDescriptor>,
    want: Want,
) -> Option<Vec<u8>> {
    let cards: BTreeMap<NodeId, &VerifiedDescriptor> = with_own(cards, own).map(|card| (card.node(), card)).collect();
    let mut writer = AnswerWriter::new(cards.len(), want)?;
    let mut cards = cards.into_values();
    let mut bytes = vec![0; 2 + cards.len() * 2_048];
    let len = writer.fill(&mut cards, &mut bytes).ok()?;
    bytes.truncate(len);
    writer.is_complete().then_some(bytes)
}

const fn refused_of(refusal: Refusal) -> Refused {
    match refusal {
        Refusal::Own => Refused::Own,
        Refusal::Expired => Refused::Validity,
        Refusal::NotNewer => Refused::NotNewer,
        Refusal::Full => Refused::Full,
        Refusal::Disputed => Refused::Disputed,
    }
}
