//! What must hold between neighbours, and between a node and its machine, after every call of the node: nothing is lost, nothing comes
//! twice, nobody has more credit than was granted, and whoever waits will be woken.

use std::collections::BTreeMap;

use bulbil_core::circuit::LinkId;
use bulbil_core::circuit::table::{End, Side};
use bulbil_core::driver::LinkEnd;
use bulbil_core::node::{CircuitBooks, RoleBooks};

use super::Network;
use super::node::Token;
use super::pipes::StreamId;
use super::shell::is_faulty;
use super::wire;
use super::world::{NodeIndex, Owner};

/// A link whose both ends are known and whole.
struct Whole {
    link: LinkId,
    end: StreamId,
    other: NodeIndex,
    theirs: LinkId,
}

impl Network<'_, '_> {
    /// A node's links whose both ends are still in use, and at the other end a living node.
    fn whole_links(&self, node: NodeIndex) -> Vec<Whole> {
        let world = self.world.borrow();
        let links = self.nodes[node].tokens.iter().filter_map(|(&end, token)| {
            let Token::Link(link) = *token else { return None };
            if !world.is_open(end) || !self.nodes[node].driver.node().knows_link(link) {
                return None;
            }
            let Owner::Link(other, far) = world.owner(end.peer()) else { return None };
            let Some(Token::Link(theirs)) = self.nodes[other].tokens.get(&far).copied() else { return None };
            (!self.nodes[other].dead).then_some(Whole { link, end, other, theirs })
        });
        links.collect()
    }

    /// Lays the node's books beside those of its neighbours, and beside what the simulator has seen on the links.
    pub(super) fn check_neighbours(&self, index: NodeIndex) {
        let node = self.nodes[index].driver.node();
        if let Err(wrong) = node.audit_patience(self.instant_of(index)).and_then(|()| node.audit_wishes()) {
            panic!("node {index}: {wrong}\n{}", self.describe());
        }
        if let Some(tick) = node.poll_timeout() {
            assert!(self.nodes[index].timer.is_some_and(|timer| timer <= tick), "node {index} sleeps too long");
        }
        assert_eq!(node.jobs_out(), self.world.borrow().jobs(index), "node {index}: jobs out and jobs to come");
        self.check_link_ends(index);
        let whole = self.whole_links(index);
        let ours: Vec<CircuitBooks> = node.circuit_books().collect();
        for link in &whole {
            if self.has_turned(index) || self.has_turned(link.other) {
                continue;
            }
            self.check_link(index, link, &ours);
        }
        let counters = node.counters();
        // Each has ended its link, and those are looked at one by one.
        let violated = self.nodes[index].shell.link_ends.iter();
        let violated = violated.filter(|(_, end)| matches!(end, LinkEnd::Violation(_))).count() as u64;
        assert_eq!(counters.violations, violated, "node {index}:\n{}", self.describe());
        if !self.has_any_turned() {
            assert_eq!(counters.garbled, 0, "node {index}:\n{}", self.describe());
        }
        if !self.has_turned(index) {
            let ends = whole.iter().map(|link| (link.link, link.end)).collect();
            ours.iter().for_each(|books| self.check_cells(index, books, &ends));
        }
    }

    /// On one link: what the one may send is what the other has granted, less what is on its way.
    fn check_link(&self, index: NodeIndex, link: &Whole, ours: &[CircuitBooks]) {
        let theirs = self.nodes[link.other].driver.node();
        let on = |books: &CircuitBooks, link: LinkId| match (books.inward, books.outward) {
            (End::Link(inward, id), _) if inward == link => Some((Side::Inward, id)),
            (_, End::Link(outward, id)) if outward == link => Some((Side::Outward, id)),
            _ => None,
        };
        let mut ours = ours.iter().filter_map(|our| Some((on(our, link.link)?, our))).peekable();
        if ours.peek().is_none() {
            return;
        }
        let theirs = theirs.circuit_books().filter_map(|their| Some((on(&their, link.theirs)?.1, their)));
        let theirs: BTreeMap<_, _> = theirs.collect();
        for ((side, id), our) in ours {
            let Some(their) = theirs.get(&id) else { continue };
            let (from_us, to_us) = self.flights(link.end, id.value());
            // The one who connected is outward of the circuit, the one who answered inward.
            let (connector, answerer, forward, backward) = match side {
                Side::Outward => (our, their, from_us, to_us),
                Side::Inward => (their, our, to_us, from_us),
            };
            let directions = [
                (
                    "forward",
                    connector.forward.credit + forward.0 + backward.1,
                    answerer.forward.promised,
                    answerer,
                    connector,
                ),
                (
                    "backward",
                    answerer.backward.credit + backward.0 + forward.1,
                    connector.backward.promised,
                    connector,
                    answerer,
                ),
            ];
            for (direction, may_send, promised, by, to) in directions {
                assert!(
                    by.ending.is_some() || may_send as usize == promised,
                    "nodes {index} and {}, circuit {}: {may_send} {direction}, {promised} granted by {by:?}, to {to:?}\n{}",
                    link.other,
                    id.value(),
                    self.describe()
                );
            }
        }
    }

    /// Relay cells and credit of a circuit that are on their way from an end, and to it.
    fn flights(&self, end: StreamId, circuit: u32) -> ((u32, u32), (u32, u32)) {
        let flight = |end| wire::with(|wire| wire.lane_at(end).map(|lane| lane.flight(circuit))).flatten();
        (flight(end).unwrap_or_default(), flight(end.peer()).unwrap_or_default())
    }

    /// What came in has gone out or waits, cell for cell.
    fn check_cells(&self, index: NodeIndex, books: &CircuitBooks, ends: &BTreeMap<LinkId, StreamId>) {
        if books.ending.is_some() {
            return;
        }
        let relayed = |end: End, comes: bool| {
            let End::Link(link, id) = end else { return None };
            let end = *ends.get(&link)?;
            let end = if comes { end.peer() } else { end };
            let counts = wire::with(|wire| wire.lane_at(end).map(|lane| lane.relayed(id.value()))).flatten();
            let (sent, received) = counts.unwrap_or_default();
            Some(if comes { received } else { sent })
        };
        let flows: &[_] = match books.role {
            RoleBooks::Passing => &[
                (books.inward, books.outward, books.forward, true),
                (books.outward, books.inward, books.backward, false),
            ],
            RoleBooks::Opening => &[(books.inward, End::Detached, books.forward, true)],
            RoleBooks::Refused | RoleBooks::Exiting | RoleBooks::Client => return,
        };
        for &(from, to, flow, forward) in flows {
            let Some(came) = relayed(from, true) else { continue };
            let Some(went) = (if to == End::Detached { Some(0) } else { relayed(to, false) }) else { continue };
            let left = went + flow.waiting as u64;
            // A hop in the middle keeps cells that are for itself, and no client that follows the protocol sends any.
            let passing = books.role == RoleBooks::Passing;
            let kept = forward && passing && came > left && self.has_turned(self.client_of(index, from));
            assert!(came == left || kept, "node {index}: {came} came, {left} are left: {books:?}\n{}", self.describe());
        }
    }

    /// A node's end of a link.
    fn link_end(&self, index: NodeIndex, link: LinkId) -> Option<StreamId> {
        let tokens = self.nodes[index].tokens.iter();
        tokens.filter(|&(_, token)| *token == Token::Link(link)).map(|(&end, _)| end).next()
    }

    /// Remembers whose circuits a node has on the links that it has connected. To be said before the next hop is called.
    pub(super) fn note_clients(&mut self, index: NodeIndex) {
        let node = self.nodes[index].driver.node();
        let new: Vec<_> = node
            .circuit_books()
            .filter_map(|books| {
                let End::Link(link, id) = books.outward else { return None };
                let key = (self.link_end(index, link)?, id.value());
                if self.clients.contains_key(&key) {
                    return None;
                }
                Some((key, if books.role == RoleBooks::Client { index } else { self.client_of(index, books.inward) }))
            })
            .collect();
        self.clients.extend(new);
    }

    /// Whose circuit it is that comes in at a node there. What the neighbour does not know of is the neighbour's own doing.
    fn client_of(&self, index: NodeIndex, inward: End) -> NodeIndex {
        let End::Link(link, id) = inward else { return index };
        let client = self.link_end(index, link).and_then(|end| self.clients.get(&(end.peer(), id.value())));
        client.or_else(|| self.nodes[index].peers.get(&link)).copied().unwrap_or(index)
    }

    /// Links end by somebody's fault only if somebody has turned.
    fn check_link_ends(&self, index: NodeIndex) {
        let this = &self.nodes[index];
        for &(link, end) in &this.shell.link_ends {
            let faulty = match end {
                LinkEnd::WrongNode => true,
                LinkEnd::Descriptor(_) => !this.shell.clocks_jump,
                _ => is_faulty(end),
            };
            let other = this.peers.get(&link).copied();
            let explained = self.has_turned(index) || other.is_some_and(|other| self.has_turned(other));
            assert!(!faulty || explained, "node {index}, link to {other:?}: {end:?}\n{}", self.describe());
        }
    }

    /// A node that wants no further call is called again when there is something for it to do: it listens wherever it takes anything, and
    /// waits for room wherever it has something left.
    pub(super) fn check_wakeups(&self, index: NodeIndex) {
        let node = self.nodes[index].driver.node();
        let world = self.world.borrow();
        for (&end, token) in &self.nodes[index].tokens {
            if !world.is_open(end) {
                continue;
            }
            match *token {
                Token::Link(link) => {
                    let Some(books) = node.link_books().find(|books| books.link == link) else { continue };
                    let deaf = node.takes_cells(link) && !world.listens(end);
                    let stuck = books.up && books.unsent && !world.waits_for_room(end);
                    assert!(
                        !deaf && !stuck,
                        "node {index}: {books:?}, deaf {deaf}, stuck {stuck}\n{}",
                        self.describe()
                    );
                }
                Token::Conversation(name) => {
                    let Some(books) = node.circuit_books().find(|books| books.name == name) else { continue };
                    let waiting = match books.role {
                        RoleBooks::Client if books.inward == End::Conversation => books.backward.waiting,
                        RoleBooks::Exiting if books.outward == End::Conversation => books.forward.waiting,
                        _ => continue,
                    };
                    let deaf = node.input_room(name) > 0 && !world.listens(end);
                    let stuck = waiting > 0 && !world.waits_for_room(end);
                    assert!(
                        !deaf && !stuck,
                        "node {index}: {books:?}, deaf {deaf}, stuck {stuck}\n{}",
                        self.describe()
                    );
                }
            }
        }
    }
}
