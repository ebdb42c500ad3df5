//! Exchanges that a node has begun: what a host's gossip task does with one.

use std::task::Poll;
use std::time::Duration;

use bulbil_core::io::ByteStream;
use bulbil_core::node::{ConversationId, Outcome, Suspect};
use bulbil_core::phonebook::exchange::{
    AnswerReader, Disclosure, Exchanged, FILTER_MAX_LEN, Filter, Held, REQUEST_MAX_LEN, Refused, Request, Salt,
    SampleKind, Want, is_joining, is_validity_fault,
};
use bulbil_core::phonebook::steward::Teller;
use bulbil_core::phonebook::{HopCount, LastHop, Refusal};
use bulbil_core::wire::{Descriptor, EndReason, NodeId, Service, Target};

use super::request::Hop;
use super::{Alarm, Card, City, Trade};
use crate::sim::NodeIndex;
use crate::sim::resident::{SimStream, StreamId};

/// How long an exchange may take in all.
const TIME: Duration = Duration::from_secs(20);
const ONE_HOP: HopCount = HopCount::new(1).expect("one is in range");

/// An exchange that the node has begun.
pub(super) struct Asking {
    number: u64,
    name: ConversationId,
    stream: SimStream,
    /// The last one is asked.
    hops: Vec<Hop>,
    request: Vec<u8>,
    sent: usize,
    finished: bool,
    reader: Box<AnswerReader>,
    /// Nothing more comes.
    heard_out: bool,
    outcome: Option<Outcome>,
}

/// How to ask.
struct Way {
    hops: Vec<Hop>,
    disclosure: Disclosure,
}

/// Why an exchange came to nothing.
enum Failure {
    /// The answer was refused.
    Refused,
    /// The circuit ended before the answer did.
    Circuit(Outcome),
    /// Nothing came for too long.
    Late,
}

/// What became of a descriptor.
enum Verdict {
    Taken,
    Refused(Refused),
    /// Refused, and nobody blamed.
    PassedOver(Refused),
}

/// Moves bytes to the stream; answers whether all have gone, or `None` if it is broken.
pub(super) fn write_all(stream: &mut SimStream, bytes: &[u8], sent: &mut usize) -> Option<bool> {
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
    /// Asks whom the steward names; answers `false` if there is nobody, or no way, or no room.
    pub(super) fn begin_exchange(&mut self, node: NodeIndex) -> bool {
        let now = self.now_of(node);
        let citizen = &mut self.citizens[node];
        let Some(whom) = citizen.steward.whom(now, &mut citizen.rng) else {
            citizen.lone = true;
            return false;
        };
        self.pass_on(node);
        let Some(Way { hops, disclosure }) = self.choose_way(node, whom) else { return false };
        let citizen = &mut self.citizens[node];
        let announcement = citizen.own.as_ref().map(|(bytes, _)| bytes.to_vec());
        let want = disclosure.want(citizen.last);
        let request = if matches!(citizen.trade, Trade::Eclipse | Trade::Invent(_)) {
            request_to_tell(announcement.as_deref())
        } else {
            let own = citizen.own.as_ref().map(|(_, card)| Held {
                node: card.node(),
                sequence: card.descriptor().sequence,
                met: false,
            });
            // Who announces itself has itself, too.
            let held: Vec<Held> = citizen.book().iter().map(Held::from).chain(own).collect();
            let mut bits = vec![0; FILTER_MAX_LEN];
            let filter = disclosure.filter(held.into_iter(), &mut bits, &mut citizen.rng);
            let kind = SampleKind::Random;
            emitted(&Request { kind, want, filter, announcement: announcement.as_deref() })
        };
        self.ask(node, hops, request, want)
    }

    /// A node that answers links asks over one hop, a client over a whole path, over one hop only while it is joining.
    fn choose_way(&mut self, node: NodeIndex, whom: NodeId) -> Option<Way> {
        let path = |city: &mut Self, hops, last| city.choose_path(node, hops, last, &[]);
        if self.citizens[node].own.is_some() {
            let hops = path(self, ONE_HOP, LastHop::Node(whom))?;
            return Some(Way { hops, disclosure: Disclosure::All });
        }
        for last in [LastHop::Node(whom), LastHop::Service] {
            if let Some(hops) = path(self, HopCount::default(), last) {
                return Some(Way { hops, disclosure: Disclosure::Half });
            }
        }
        if !is_joining(self.citizens[node].book(), HopCount::default(), self.plan.defences.strictness()) {
            return None;
        }
        let hops = path(self, ONE_HOP, LastHop::Node(whom))?;
        Some(Way { hops, disclosure: Disclosure::Nothing })
    }

    /// An attacker tells `victim` of somebody.
    pub(super) fn tell(&mut self, node: NodeIndex, victim: &Card, of: &[u8]) -> bool {
        let key = victim.descriptor().onion_key.clone();
        let hops = vec![Hop { node: victim.node(), address: victim.address(), key }];
        self.ask(node, hops, request_to_tell(Some(of)), Want::MAX)
    }

    /// Asks the last of `hops`.
    fn ask(&mut self, node: NodeIndex, hops: Vec<Hop>, request: Vec<u8>, want: Want) -> bool {
        if self.citizens[node].asking.is_some() {
            return false;
        }
        let specs: Vec<_> = hops.iter().map(Hop::spec).collect();
        let target = Target::Service(Service::Phonebook);
        let Ok((name, stream)) = self.net.converse(node, &specs, &target, &[]) else { return false };
        let number = self.number();
        let whom = hops.last().map_or(0, |hop| u64::from(hop.node.0[0]));
        self.net.trace(&[40, node as u64, whom]);
        let citizen = &mut self.citizens[node];
        citizen.counts.asked += 1;
        citizen.asking = Some(Asking {
            number,
            name,
            stream,
            hops,
            request,
            sent: 0,
            finished: false,
            reader: Box::new(AnswerReader::new(want)),
            heard_out: false,
            outcome: None,
        });
        self.set_alarm(node, TIME, Alarm::Exchange(number));
        self.continue_asking(node);
        true
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
            asking.outcome = Some(outcome);
            // What has come before is still to be read.
            self.continue_asking(node);
        } else {
            self.handle_request_over(node, name, Some(outcome));
        }
    }

    fn continue_asking(&mut self, node: NodeIndex) {
        // Taken out, so that what it brings can be told to the steward.
        let Some(mut asking) = self.citizens[node].asking.take() else { return };
        if !asking.finished {
            match write_all(&mut asking.stream, &asking.request, &mut asking.sent) {
                Some(true) => {
                    asking.finished = true;
                    let _cut_off = asking.stream.finish();
                }
                Some(false) => {}
                // An answerer may break off before it has heard all; what it has said counts.
                None => asking.finished = true,
            }
        }
        let mut buffer = [0; 4096];
        let refused = loop {
            match asking.stream.try_read(&mut buffer) {
                _ if asking.heard_out => break false,
                Poll::Pending => break false,
                Poll::Ready(Ok(0) | Err(_)) => asking.heard_out = true,
                Poll::Ready(Ok(len)) => {
                    if self.take_in(node, &mut asking, &buffer[..len]).is_err() {
                        break true;
                    }
                }
            }
        };
        let ended = if refused {
            Some(Err(Failure::Refused))
        } else if !asking.heard_out {
            None
        } else if asking.reader.is_complete() {
            Some(Ok(()))
        } else {
            // The end of the pipe: of the answer, or of the circuit?
            asking.outcome.map(|outcome| match is_failure(&outcome) {
                true => Err(Failure::Circuit(outcome)),
                false => asking.reader.finish().map_err(|_| Failure::Refused),
            })
        };
        match ended {
            Some(ended) => self.end_exchange(node, asking, ended),
            None => {
                self.citizens[node].asking = Some(asking);
                self.net.run_resident(node);
            }
        }
    }

    /// What has come of an answer.
    fn take_in(&mut self, node: NodeIndex, asking: &mut Asking, mut input: &[u8]) -> Result<(), Refused> {
        let Some(teller) = asking.hops.last().map(|hop| Teller::Peer(hop.address)) else { return Ok(()) };
        while let Some((id, descriptor)) = asking.reader.read(&mut input)? {
            self.citizens[node].counts.told += 1;
            match self.judge(node, id, &descriptor, teller) {
                Verdict::Taken => asking.reader.judge(Ok(()))?,
                Verdict::Refused(refused) => asking.reader.judge(Err(refused))?,
                Verdict::PassedOver(refused) => asking.reader.pass_over(refused),
            }
        }
        Ok(())
    }

    /// Verifies a descriptor and hands it to the steward.
    fn judge(&mut self, node: NodeIndex, id: NodeId, descriptor: &Descriptor, teller: Teller) -> Verdict {
        let now = self.now_of(node);
        let citizen = &mut self.citizens[node];
        if id == citizen.id {
            return Verdict::Refused(Refused::Own);
        }
        let card = match self.registry.verify_stored(descriptor) {
            Ok(card) => card,
            Err(error) => return Verdict::Refused(error.into()),
        };
        if let Err(error) = card.judge_validity(now.date) {
            let blamed = is_validity_fault(descriptor, now.date) && !citizen.steward.is_clock_in_doubt();
            return if blamed { Verdict::Refused(error.into()) } else { Verdict::PassedOver(error.into()) };
        }
        match citizen.steward.handle_told(card, teller, now) {
            Ok(_) => Verdict::Taken,
            Err(Refusal::Own) => Verdict::Refused(Refused::Own),
            Err(Refusal::NotNewer) => Verdict::Refused(Refused::NotNewer),
            Err(Refusal::Full) => Verdict::Refused(Refused::Full),
            Err(Refusal::Disputed) => Verdict::Refused(Refused::Disputed),
            Err(Refusal::Expired) => Verdict::PassedOver(Refused::Validity),
        }
    }

    /// The exchange has ended: well, refused, broken off, or late.
    fn end_exchange(&mut self, node: NodeIndex, asking: Asking, ended: Result<(), Failure>) {
        let now = self.now_of(node);
        let Asking { hops, reader, name, outcome, .. } = asking;
        let citizen = &mut self.citizens[node];
        citizen.tally.add(reader.tally());
        let Some(whom) = hops.last().map(|hop| hop.node) else { return };
        self.net.trace(&[41, node as u64, u64::from(ended.is_ok()), reader.tally().taken()]);
        let exchanged = if ended.is_ok() { reader.outcome() } else { Exchanged::Failed };
        match ended {
            Ok(()) => {
                citizen.counts.answered += 1;
                hops.iter().for_each(|hop| citizen.steward.handle_hop_succeeded(&hop.node, now));
                citizen.steward.handle_exchanged(&whom, true, now);
            }
            Err(Failure::Refused) => citizen.steward.handle_exchanged(&whom, false, now),
            // It has no room at the moment, and said so: it is there.
            Err(Failure::Circuit(Outcome { end: Some((EndReason::Busy, by)), .. })) if by.value() + 1 == hops.len() => {
            }
            Err(Failure::Circuit(outcome)) => {
                let _nobody_else_is_asked = self.learn_from(node, &hops, &outcome);
            }
            Err(Failure::Late) if hops.len() == 1 => citizen.steward.handle_exchanged(&whom, false, now),
            Err(Failure::Late) => hops.iter().for_each(|hop| citizen.steward.handle_hop_doubted(&hop.node)),
        }
        if outcome.is_none() {
            self.net.let_go(node, name);
        }
        self.pass_on(node);
        self.rest(node, exchanged);
    }

    /// Judges how a circuit ended; answers who is to be avoided. Others may know what has become of it.
    pub(super) fn learn_from(&mut self, node: NodeIndex, path: &[Hop], outcome: &Outcome) -> Option<NodeId> {
        let now = self.now_of(node);
        let steward = &mut self.citizens[node].steward;
        let avoid = match outcome.suspect(path.len())? {
            Suspect::Hop(hop) => path.get(hop.value()).map(|hop| hop.node),
            Suspect::Somebody => None,
        };
        match &avoid {
            Some(hop) => steward.handle_hop_failed(hop, now),
            None => path.iter().for_each(|hop| steward.handle_hop_doubted(&hop.node)),
        }
        self.handle_path_failed(node);
        self.pass_on(node);
        avoid
    }

    pub(super) fn handle_late_exchange(&mut self, node: NodeIndex, number: u64) {
        let late = self.citizens[node].asking.take_if(|asking| asking.number == number);
        if let Some(asking) = late {
            self.end_exchange(node, asking, Err(Failure::Late));
        }
    }
}

/// Whether a circuit with this outcome has ended otherwise than well.
const fn is_failure(outcome: &Outcome) -> bool {
    !matches!((outcome.end, outcome.close), (Some((EndReason::Done, _)), _) | (None, None))
}

/// Of somebody who has everything already: he asks in order to tell.
fn request_to_tell(announcement: Option<&[u8]>) -> Vec<u8> {
    let filter = Filter::new(Salt([7; 8]), &[0xff]).expect("one byte is not too long");
    emitted(&Request { kind: SampleKind::Random, want: Want::MAX, filter, announcement })
}

fn emitted(request: &Request<'_>) -> Vec<u8> {
    let mut bytes = vec![0; REQUEST_MAX_LEN];
    let len = request.emit(&mut bytes).expect("descriptors are well made");
    bytes.truncate(len);
    bytes
}
