//! Exchanges that others have begun: what a host's task behind the service `phonebook` does.

use std::collections::BTreeMap;
use std::task::Poll;
use std::time::Duration;

use bulbil_core::io::ByteStream;
use bulbil_core::node::ConversationId;
use bulbil_core::phonebook::VerifiedDescriptor;
use bulbil_core::phonebook::exchange::{
    AnswerWriter, REQUEST_MAX_LEN, Request, SampleKind, Want, draw_sample, with_own,
};
use bulbil_core::phonebook::steward::{Now, Teller};
use bulbil_core::wire::{EndReason, NodeId, Service, Target};

use super::talk::write_all;
use super::{Alarm, Card, City, EXTRA, TOWNSMAN};
use crate::sim::NodeIndex;
use crate::sim::resident::{SimStream, StreamId};

/// Until a request has come.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// Until the asker has taken the answer.
const ANSWER_TIME: Duration = Duration::from_secs(20);
/// Exchanges that a host answers at one time such as came over one link. No node here has that many circuits, so none is ever refused for want of
/// a place.
const SHARE: usize = 32;
const _: () = assert!(TOWNSMAN.circuits < SHARE && EXTRA.circuits < SHARE, "places would have to be counted");

/// An exchange that the node answers.
pub(super) struct Serving {
    number: u64,
    name: ConversationId,
    stream: SimStream,
    request: Vec<u8>,
    answer: Option<Vec<u8>>,
    sent: usize,
}

impl City<'_, '_, '_> {
    /// The node is the last hop of a circuit.
    pub(super) fn handle_asked(&mut self, node: NodeIndex, name: ConversationId, target: &Target) {
        if !matches!(target, Target::Service(Service::Phonebook)) {
            self.answer_as_target(node, name);
            return;
        }
        let Some(stream) = self.net.serve(node, name, None) else { return };
        let (id, number) = (stream.id(), self.number());
        let serving = Serving { number, name, stream, request: Vec::new(), answer: None, sent: 0 };
        self.citizens[node].serving.insert(id, serving);
        self.set_alarm(node, REQUEST_TIME, Alarm::Serving(number));
        self.continue_serving(node, id);
    }

    pub(super) fn handle_late_service(&mut self, node: NodeIndex, number: u64) {
        let serving = &mut self.citizens[node].serving;
        let late = serving.iter().find(|(_, serving)| serving.number == number).map(|(id, _)| *id);
        let Some(late) = late.and_then(|id| serving.remove(&id)) else { return };
        let name = late.name;
        drop(late);
        self.net.fail(node, name, EndReason::TimedOut);
    }

    pub(super) fn continue_serving(&mut self, node: NodeIndex, id: StreamId) {
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
                        serving.number = self.number();
                        self.set_alarm(node, ANSWER_TIME, Alarm::Serving(serving.number));
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
                done => {
                    if done.is_some() {
                        let _gone = serving.stream.finish();
                        self.citizens[node].counts.served += 1;
                    }
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
        self.citizens[node].counts.asked_of += 1;
        let now = self.now_of(node);
        let announced = request.announced().transpose().ok()?;
        let lie = self.false_answer(node, &request);
        let answer = lie.or_else(|| self.honest_answer(node, &request, now));
        if let Some(card) = announced.and_then(|descriptor| self.registry.verify(&descriptor, now.date).ok()) {
            let citizen = &mut self.citizens[node];
            citizen.counts.announced += 1;
            let _full_or_known = citizen.steward.handle_told(card, Teller::Announced, now);
            self.pass_on(node);
        }
        answer
    }

    fn honest_answer(&mut self, node: NodeIndex, request: &Request<'_>, now: Now) -> Option<Vec<u8>> {
        let (only_met, avoid_failing) = (self.plan.defences.only_met_passed_on, self.plan.avoid_failing);
        let citizen = &mut self.citizens[node];
        let held = |card: &VerifiedDescriptor| request.filter.holds(&card.node(), card.descriptor().sequence);
        let own = citizen.own.as_ref().map(|(_, card)| card.clone()).filter(|card| !held(card));
        let want = usize::from(request.want.value()) - usize::from(own.is_some());
        let cards: Vec<Card> = match request.kind {
            SampleKind::Epoch => {
                citizen.book().epoch_sample(want, now.date).filter(|card| !held(card)).cloned().collect()
            }
            SampleKind::Random => {
                let may_be = citizen.steward.book().iter().filter(|entry| {
                    let met = entry.is_tried() || !only_met;
                    let passed_over = avoid_failing && entry.failures() > 0;
                    met && !passed_over && !entry.is_disputed() && entry.is_valid_at(now.date)
                });
                let mut cards: Vec<Card> = may_be.map(|entry| entry.card().clone()).collect();
                draw_sample(&mut cards, want, &mut citizen.rng, held).to_vec()
            }
        };
        answer_of(cards.iter().map(|card| &**card), own.as_deref(), request.want)
    }
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
