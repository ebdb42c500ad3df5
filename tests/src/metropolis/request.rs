//! What the network is for: now and then a node sends a few bytes along a path of four hops and waits for the answer.

use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;

use bulbil_core::crypto::onion::HopSpec;
use bulbil_core::io::ByteStream;
use bulbil_core::node::{ConversationId, Outcome};
use bulbil_core::phonebook::{Entry, HopCount, LastHop, PathHop, PathRequest};
use bulbil_core::wire::{NodeId, OnionKey, Target};

use super::{Alarm, City};
use crate::sim::NodeIndex;
use crate::sim::resident::{SimStream, StreamId};

/// A request has to be answered within this time, over however many paths.
const DEADLINE: Duration = Duration::from_secs(30);
/// Paths that are tried.
const ATTEMPTS: u32 = 6;
/// After so long without an answer another path is tried.
const ATTEMPT: Duration = Duration::from_secs(10);
/// The port that every request is for.
pub(super) const PORT: u16 = 80;

/// A hop of a chosen path, with what is needed to build its layer.
pub(super) struct Hop {
    pub(super) node: NodeId,
    pub(super) address: SocketAddr,
    pub(super) key: OnionKey,
}

impl Hop {
    pub(super) const fn spec(&self) -> HopSpec<'_> {
        HopSpec { node: self.node, key: &self.key, address: self.address }
    }
}

/// A request on its way.
pub(super) struct Request {
    number: u64,
    name: ConversationId,
    stream: SimStream,
    path: Vec<Hop>,
    attempt: u32,
    avoid: Vec<NodeId>,
    until: Duration,
}

/// An earlier attempt's knowledge.
struct Attempt {
    number: u32,
    avoid: Vec<NodeId>,
    until: Duration,
}

impl City<'_, '_, '_> {
    pub(super) fn begin_request(&mut self, node: NodeIndex) {
        if let Some(every) = self.plan.requests {
            let pause = self.spread(every);
            self.set_alarm(node, pause, Alarm::Request);
        }
        self.citizens[node].counts.requests += 1;
        let until = self.now() + DEADLINE;
        self.attempt(node, Attempt { number: 1, avoid: Vec::new(), until });
    }

    /// A path to a target as the node would draw it now.
    pub(super) fn draw_path(&mut self, node: NodeIndex, avoid: &[NodeId]) -> Option<Vec<Hop>> {
        self.choose_path(node, HopCount::default(), LastHop::Exit { port: Some(PORT) }, avoid)
    }

    pub(super) fn choose_path(
        &mut self,
        node: NodeIndex,
        hops: HopCount,
        last: LastHop,
        avoid: &[NodeId],
    ) -> Option<Vec<Hop>> {
        let now = self.net.calendar(node);
        let (defences, avoid_failing) = (self.plan.defences, self.plan.avoid_failing);
        let citizen = &mut self.citizens[node];
        let failing = citizen.book().iter().filter(|entry| avoid_failing && entry.failures() > 0);
        let avoid: Vec<NodeId> = failing.map(Entry::node).chain(avoid.iter().copied()).collect();
        let strictness = defences.strictness();
        let request = PathRequest { hops, strictness, avoid: &avoid, ..PathRequest::new(last, now) };
        if !defences.guards {
            citizen.steward.forget_guards();
        }
        let path = citizen.steward.choose_path(&request, None, &mut citizen.rng).ok()?;
        let book = citizen.steward.book();
        let hop = |hop: &PathHop| {
            Some(Hop { node: hop.node, address: hop.address, key: book.descriptor_of(hop)?.onion_key.clone() })
        };
        path.hops().iter().map(hop).collect()
    }

    fn attempt(&mut self, node: NodeIndex, attempt: Attempt) {
        let Attempt { number: attempt, avoid, until } = attempt;
        let path = self.draw_path(node, &avoid).or_else(|| self.draw_path(node, &[]));
        let Some(hops) = path else {
            self.citizens[node].counts.lost += 1;
            self.citizens[node].counts.pathless += 1;
            return;
        };
        let specs: Vec<_> = hops.iter().map(Hop::spec).collect();
        let target: Target = format!("city.test:{PORT}").parse().expect("a valid name");
        let number = self.number();
        let Ok((name, stream)) = self.net.converse(node, &specs, &target, b"?") else {
            // No room; nobody's fault, and another try a moment later would find the same.
            self.citizens[node].counts.lost += 1;
            return;
        };
        self.net.trace(&[20, node as u64, attempt.into()]);
        let id = stream.id();
        let request = Request { number, name, stream, path: hops, attempt, avoid, until };
        self.citizens[node].requests.insert(id, request);
        self.set_alarm(node, ATTEMPT.min(until - self.net.now()), Alarm::Deadline(number));
        self.read_request(node, id);
    }

    /// The answer may have come; answers whether it has.
    pub(super) fn read_request(&mut self, node: NodeIndex, id: StreamId) -> bool {
        let now = self.now_of(node);
        let citizen = &mut self.citizens[node];
        let Some(request) = citizen.requests.get_mut(&id) else { return false };
        if !matches!(request.stream.try_read(&mut [0; 16]), Poll::Ready(Ok(1..))) {
            return false;
        }
        let Some(Request { name, path, attempt, stream, .. }) = citizen.requests.remove(&id) else { return false };
        citizen.counts.in_time += 1;
        citizen.counts.at_once += u64::from(attempt == 1);
        for hop in &path {
            citizen.steward.handle_hop_succeeded(&hop.node, now);
        }
        self.pass_on(node);
        self.net.trace(&[21, node as u64]);
        drop(stream);
        self.net.let_go(node, name);
        true
    }

    /// A conversation is over; if it was a request's and its answer has not come, another path is tried.
    pub(super) fn handle_request_over(&mut self, node: NodeIndex, name: ConversationId, outcome: Option<Outcome>) {
        let ended = self.citizens[node].requests.iter().find(|(_, request)| request.name == name);
        let Some(id) = ended.map(|(id, _)| *id) else { return };
        if self.read_request(node, id) {
            return;
        }
        let at = self.now();
        let citizen = &mut self.citizens[node];
        let Some(Request { stream, path, attempt, mut avoid, until, .. }) = citizen.requests.remove(&id) else {
            return;
        };
        drop(stream);
        avoid.extend(outcome.and_then(|outcome| self.learn_from(node, &path, &outcome)));
        self.handle_pace(node);
        self.net.trace(&[22, node as u64]);
        if attempt < ATTEMPTS && at < until {
            self.attempt(node, Attempt { number: attempt + 1, avoid, until });
        } else {
            self.citizens[node].counts.lost += 1;
        }
    }

    pub(super) fn handle_deadline(&mut self, node: NodeIndex, number: u64) {
        let late = self.citizens[node].requests.values().find(|request| request.number == number);
        if let Some(name) = late.map(|request| request.name) {
            self.net.let_go(node, name);
            self.handle_request_over(node, name, None);
        }
    }

    /// The node is the exit of a circuit to the target, and answers for it.
    pub(super) fn answer_as_target(&mut self, node: NodeIndex, name: ConversationId) {
        let address = SocketAddr::from(([198, 51, 100, 1], PORT));
        let mut stream = self.net.reach(node, name, address);
        // The request is not read: a byte that asks is as good as any other.
        let _gone = stream.try_write(b"!");
        let _gone = stream.finish();
        self.net.run_resident(node);
    }
}
