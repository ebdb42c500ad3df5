//! Links that are made to see who is there: tests, and first contacts.

use std::net::SocketAddr;
use std::time::Duration;

use bulbil_core::circuit::LinkId;
use bulbil_core::driver::LinkEnd;
use bulbil_core::phonebook::steward::Unreached;
use bulbil_core::phonebook::{DescriptorError, Entry, Test, VerifiedDescriptor};
use bulbil_core::wire::{NodeId, UnixTime};

use super::{Alarm, City};
use crate::sim::NodeIndex;

/// Between two attempts to reach a bootstrap node: at first, at most while nobody else was met, and at most.
const RETRY: (Duration, Duration, Duration) =
    (Duration::from_millis(500), Duration::from_secs(60), Duration::from_secs(3600));
/// Between two looks at whether a bootstrap node is still in the phonebook.
const LOOK: Duration = Duration::from_secs(30);

/// A bootstrap node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contact {
    pub(super) address: SocketAddr,
    pub(super) id: NodeId,
    /// Until the next attempt.
    pub(super) pause: Duration,
    /// The last attempt has met it.
    pub(super) met: bool,
}

impl Contact {
    pub(super) const fn new(address: SocketAddr, id: NodeId) -> Self {
        Self { address, id, pause: RETRY.0, met: false }
    }
}

/// A link that was made to see who is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Visit {
    /// Whom it is to meet.
    pub(super) node: NodeId,
    /// To which bootstrap node it is, if it is not a test.
    pub(super) bootstrap: Option<usize>,
}

impl City<'_, '_, '_> {
    /// Makes the link that a test is.
    pub(super) fn test(&mut self, node: NodeIndex, test: Test) {
        let now = self.now_of(node);
        let citizen = &mut self.citizens[node];
        citizen.counts.tests += 1;
        if !self.plan.defences.test_before_evict && citizen.book().is_asked(&test.node) {
            // Somebody waits for its place, and it would have to answer; here it is as if it did not.
            citizen.steward.handle_unreached(&test.node, Unreached::Link, now);
            return;
        }
        // Without a place for the link the test is forgotten after a while.
        self.visit(node, test.address, Visit { node: test.node, bootstrap: None });
    }

    /// Meets a bootstrap node, and again when it has left the phonebook.
    pub(super) fn visit_bootstrap(&mut self, node: NodeIndex, number: usize) {
        let citizen = &mut self.citizens[node];
        let Some(contact) = citizen.bootstrap.get(number).copied() else { return };
        if contact.met && citizen.book().get(&contact.id).is_some() {
            self.await_bootstrap(node, number, LOOK);
        } else if !self.visit(node, contact.address, Visit { node: contact.id, bootstrap: Some(number) }) {
            self.handle_bootstrap(node, number, false);
        }
    }

    fn handle_bootstrap(&mut self, node: NodeIndex, number: usize, met: bool) {
        let citizen = &mut self.citizens[node];
        let anybody = citizen.book().iter().any(Entry::is_tried);
        let Some(contact) = citizen.bootstrap.get_mut(number) else { return };
        contact.met = met;
        let pause = if met {
            contact.pause = RETRY.0;
            LOOK
        } else {
            let pause = if anybody { contact.pause } else { contact.pause.min(RETRY.1) };
            contact.pause = (contact.pause * 2).min(RETRY.2);
            pause
        };
        self.await_bootstrap(node, number, pause);
    }

    fn await_bootstrap(&mut self, node: NodeIndex, number: usize, pause: Duration) {
        let pause = self.spread(pause);
        self.set_alarm(node, pause, Alarm::Bootstrap(number as u64));
    }

    fn visit(&mut self, node: NodeIndex, address: SocketAddr, visit: Visit) -> bool {
        let link = self.net.contact(node, address, Some(visit.node));
        link.is_some_and(|link| self.citizens[node].visits.insert(link, visit).is_none())
    }

    /// A link that the node has made shows who is there.
    pub(super) fn handle_met(
        &mut self,
        node: NodeIndex,
        link: LinkId,
        address: SocketAddr,
        descriptor: &VerifiedDescriptor,
    ) {
        let now = self.now_of(node);
        let card = self.registry.share(descriptor);
        let citizen = &mut self.citizens[node];
        let visit = citizen.visits.remove(&link);
        let _known_or_full = citizen.steward.handle_shown(card, address, now);
        if let Some(number) = visit.and_then(|visit| visit.bootstrap) {
            self.handle_bootstrap(node, number, true);
        }
        self.pass_on(node);
        self.net.trace(&[30, node as u64]);
    }

    /// Another node says what time it is.
    pub(super) fn handle_time(&mut self, node: NodeIndex, other: NodeId, address: SocketAddr, time: UnixTime) {
        let now = self.now_of(node);
        self.citizens[node].steward.handle_time(other, address, time, now);
        self.pass_on(node);
    }

    pub(super) fn handle_link_ended(&mut self, node: NodeIndex, link: LinkId, end: LinkEnd) {
        let now = self.now_of(node);
        let citizen = &mut self.citizens[node];
        let Some(visit) = citizen.visits.remove(&link) else { return };
        if let Some(number) = visit.bootstrap {
            self.handle_bootstrap(node, number, false);
        } else if end != LinkEnd::Shutdown {
            citizen.counts.failed_tests += 1;
            let validity = matches!(end, LinkEnd::Descriptor(DescriptorError::Expired | DescriptorError::NotYetValid));
            let why = if validity { Unreached::Validity } else { Unreached::Link };
            citizen.steward.handle_unreached(&visit.node, why, now);
        }
        self.pass_on(node);
        self.net.trace(&[31, node as u64]);
    }
}

#[cfg(test)]
mod tests {
    use bulbil_core::phonebook::exchange::Settings;

    use super::super::{Defences, Plan, run};
    use super::*;

    #[test]
    fn without_test_before_evict_those_whose_place_nobody_wants_are_tested_all_the_same() {
        let defences = Defences { test_before_evict: false, ..Defences::ALL };
        // Exchanges are so few that everybody has to be tested to be met anew within the hour; and there is room for all.
        let settings = Settings { exchange: Duration::from_secs(4 * 3600), ..Settings::DEFAULT };
        let plan =
            Plan { defences, settings, connects_lost: 0, link_life: None, audit_stride: 1, ..Plan::standing(1, 8) };
        run(&plan, |city| {
            for _ in 0..80 {
                city.run_for(Duration::from_secs(60));
                let failures = |node: NodeIndex| city.citizen(node).book().iter().map(Entry::failures).max();
                assert!((0..8).all(|node| failures(node) == Some(0)));
            }
            assert!((0..8).all(|node| city.citizen(node).counts.tests >= 5));
        });
    }
}
