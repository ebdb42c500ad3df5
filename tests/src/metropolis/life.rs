//! Birth, death, and new keys.

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use bulbil_core::phonebook::Source;
use bulbil_core::wire::{Descriptor, OnionKeyKind, Roles, UnixTime};
use rand_core::Rng as _;

use super::citizen::Household;
use super::visits::Contact;
use super::{Alarm, Card, City, Trade};
use crate::fixture;
use crate::sim::NodeIndex;

/// How long before now its validity begins, because clocks differ.
const BACKDATED: u64 = 600;

impl City<'_, '_, '_> {
    /// The descriptor that the node shows from now on.
    pub(super) fn prepare(&mut self, node: NodeIndex) {
        let bytes: Rc<[u8]> = self.signed(node, 0).into();
        let card = self.card_of(&bytes);
        self.net.set_descriptor(node, Rc::clone(&bytes));
        self.citizens[node].own = Some((bytes, card));
    }

    /// A signed descriptor of the node as it is now; `variant` makes others with the same sequence number.
    pub(super) fn signed(&self, node: NodeIndex, variant: u64) -> Vec<u8> {
        let citizen = &self.citizens[node];
        let now = UnixTime(fixture::EPOCH.0 + self.now().as_secs());
        let card = fixture::Card {
            number: citizen.identity,
            sequence: citizen.sequence,
            valid_from: UnixTime(now.0 - BACKDATED - variant),
            valid_until: now.saturating_add(self.plan.validity),
            roles: Roles { relay: true, exit: citizen.exit, constrained: false },
            onion_key: self.net.onion_key(node),
            address: citizen.address,
        };
        card.sign(self.plan.seed ^ (node as u64) << 24 ^ citizen.sequence << 8 ^ variant)
    }

    /// The handle that everybody shares of a descriptor that is known to be good.
    pub(super) fn card_of(&mut self, bytes: &[u8]) -> Card {
        let descriptor = Descriptor::parse(bytes).expect("it was made here");
        let now = UnixTime(fixture::EPOCH.0 + self.now().as_secs());
        self.registry.verify(&descriptor, now).expect("it was made here")
    }

    /// Everybody in the range has met everybody else.
    pub(super) fn introduce(&mut self, nodes: Range<NodeIndex>) {
        let cards: Vec<Card> = nodes.clone().filter_map(|node| self.citizens[node].card().cloned()).collect();
        for node in nodes {
            let now = self.net.calendar(node);
            let citizen = &mut self.citizens[node];
            // Not all were met at the same time, or all would be met again at the same time.
            for card in &cards {
                let ago = u64::from(citizen.rng.next_u32() % 3_600);
                let _full_or_own = citizen.steward.book_mut().insert(card.clone(), Source::Met, UnixTime(now.0 - ago));
            }
        }
    }

    /// Founders have met random others and have been told of inventions, see [`super::Start::Extras`].
    pub(super) fn acquaint(&mut self, met: usize, told: usize) {
        let nodes: Vec<NodeIndex> = (0..self.plan.founders).chain(self.gang()).collect();
        for node in 0..self.plan.founders {
            let now = self.net.calendar(node);
            for _ in 0..met {
                let other = nodes[self.rng.next_u32() as usize % nodes.len()];
                let Some(card) = self.citizens[other].card().cloned() else { continue };
                let _full_or_own = self.citizens[node].steward.book_mut().insert(card, Source::Met, now);
            }
            for _ in 0..told {
                let Some(card) = self.any_invention() else { break };
                let gang = self.gang();
                let liar = gang.start + self.rng.next_u32() as usize % gang.len();
                let address = self.citizens[liar].address;
                let book = self.citizens[node].steward.book_mut();
                let source = Source::Peer(book.group_of(address));
                let _full = book.insert(card, source, now);
            }
        }
    }

    /// The honest nodes that are born later.
    #[must_use]
    pub fn heirs(&self) -> Range<NodeIndex> {
        self.plan.founders..self.plan.founders + self.plan.heirs
    }

    /// The node begins to be. It knows the addresses and names of `known`, and what its phonebook holds.
    pub fn bear(&mut self, node: NodeIndex, known: &[NodeIndex]) {
        let known = known.iter().filter(|&&other| other != node);
        let contacts = known.map(|&other| Contact::new(self.citizens[other].address, self.citizens[other].id));
        self.citizens[node].bootstrap = contacts.collect();
        self.begin_life(node);
    }

    fn begin_life(&mut self, node: NodeIndex) {
        if self.citizens[node].own.is_none() && !self.plan.clients().contains(&node) {
            self.prepare(node);
        }
        let (address, now) = (self.citizens[node].address, self.now());
        self.net.bear(node, address);
        self.citizens[node].born = now;
        self.net.trace(&[10, node as u64]);
        self.begin_pace(node);
        for number in 0..self.citizens[node].bootstrap.len() {
            self.visit_bootstrap(node, number);
        }
        if let Some(every) = self.plan.requests {
            let first = every * (self.rng.next_u32() % 1_000) / 1_000;
            self.set_alarm(node, first, Alarm::Request);
        }
        if let Some(period) = self.plan.rotation {
            // As if it had been there before: nodes do not rotate in step.
            let first = period * (1 + self.rng.next_u32() % 1_000) / 1_000;
            self.set_alarm(node, first, Alarm::Rotate);
        }
        if self.citizens[node].trade != Trade::Honest {
            let first = Duration::from_millis(u64::from(self.rng.next_u32() % 10_000));
            self.set_alarm(node, first, Alarm::Trade);
        }
        self.deliver();
    }

    /// The node stops, to be started again by [`City::restart`]: what a host keeps over a restart is kept.
    pub fn stop(&mut self, node: NodeIndex) {
        let kept = self.citizens[node].kept();
        self.kept.insert(node, kept);
        self.kill(node);
    }

    /// The node starts again with what it has kept and a new onion key. Not sooner than its last life's alarms have passed: an hour after it has
    /// stopped. [`super::Plan::restarts`] says how often that may happen.
    pub fn restart(&mut self, node: NodeIndex) {
        let kept = self.kept.remove(&node).expect("it was stopped");
        let memory = self.spare.pop().expect("so many restarts were planned");
        let now = self.now_of(node);
        let household = Household::new(self.citizens[node].id, &self.plan);
        self.citizens[node].restart(household.restore(memory, &kept, now));
        self.renew(node);
        self.begin_life(node);
    }

    /// All links of the node break, and none is made with it until [`City::plug`].
    pub fn unplug(&mut self, node: NodeIndex) {
        self.net.unplug(node);
        self.deliver();
    }

    /// The node is connected again.
    pub fn plug(&mut self, node: NodeIndex) {
        self.net.plug(node);
    }

    /// Calls the attackers in; each knows a founder.
    pub fn call_gang(&mut self) {
        for node in self.gang() {
            let known = (self.rng.next_u32() as usize) % self.plan.founders;
            self.bear(node, &[known]);
        }
    }

    /// The node's process is gone, all of a sudden: its links break, and its machine refuses new ones.
    pub fn kill(&mut self, node: NodeIndex) {
        self.net.trace(&[11, node as u64]);
        self.net.bury(node);
        self.forget(node);
    }

    /// The node's machine is gone: who sends it something or connects to it hears nothing.
    pub fn silence(&mut self, node: NodeIndex) {
        self.net.trace(&[12, node as u64]);
        self.net.silence(node);
        self.forget(node);
    }

    fn forget(&mut self, node: NodeIndex) {
        let citizen = &mut self.citizens[node];
        citizen.asking = None;
        citizen.serving.clear();
        citizen.requests.clear();
        citizen.visits.clear();
        self.deliver();
    }

    /// A new onion key and a new descriptor; the old key is honoured for one period.
    pub(super) fn rotate(&mut self, node: NodeIndex) {
        self.renew(node);
        if let Some(period) = self.plan.rotation {
            self.set_alarm(node, period, Alarm::Rotate);
        }
    }

    fn renew(&mut self, node: NodeIndex) {
        let citizen = &mut self.citizens[node];
        if citizen.own.is_none() {
            return;
        }
        citizen.sequence += 1;
        let rotation = citizen.sequence as usize;
        self.net.set_onion(node, fixture::onion_secret(citizen.identity, OnionKeyKind::XWing, rotation));
        self.prepare(node);
    }
}
