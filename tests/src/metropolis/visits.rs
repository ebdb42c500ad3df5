//! Links that are made to see who is there: tests of nodes that were heard of, and first contacts.

use std::net::SocketAddr;
use std::time::Duration;

use bulbil_core::circuit::LinkId;
use bulbil_core::driver::LinkEnd;
use bulbil_core::phonebook::{ClockVerdict, DescriptorError, Source, VerifiedDescriptor};
use bulbil_core::wire::{NodeId, UnixTime};

use super::citizen::Visit;
use super::{Alarm, City};
use crate::sim::NodeIndex;

/// Between two attempts to reach bootstrap nodes: at first, doubled each time, and at most.
const BOOTSTRAP_PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

impl City<'_, '_, '_> {
    /// Makes the link that a test is; answers `false` if there is nobody to be tested, or no place for a link.
    pub(super) fn test(&mut self, node: NodeIndex) -> bool {
        let now = self.net.calendar(node);
        let citizen = &mut self.citizens[node];
        let Some(test) = citizen.book.next_test(now, &mut citizen.rng) else { return false };
        self.visit(node, test.address, Visit { node: test.node, bootstrap: false })
    }

    /// Links to the nodes that it has been told of by hand, until each has been met once: whoever else is met meanwhile, and may tell what
    /// he likes, is not the only one to be asked.
    pub(super) fn visit_bootstrap(&mut self, node: NodeIndex, tries: u64) {
        let missing = self.citizens[node].bootstrap.clone();
        for &(address, id) in &missing {
            if self.citizens[node].visits.values().all(|visit| visit.node != id) {
                self.visit(node, address, Visit { node: id, bootstrap: true });
            }
        }
        if !missing.is_empty() {
            let pause = BOOTSTRAP_PAUSE.0 * 2u32.pow(tries.min(10) as u32);
            self.set_alarm(node, pause.min(BOOTSTRAP_PAUSE.1), Alarm::Bootstrap(tries + 1));
        }
    }

    fn visit(&mut self, node: NodeIndex, address: SocketAddr, visit: Visit) -> bool {
        let link = self.net.contact(node, address, Some(visit.node));
        let citizen = &mut self.citizens[node];
        citizen.counts.tests += u64::from(!visit.bootstrap && link.is_some());
        link.is_some_and(|link| citizen.visits.insert(link, visit).is_none())
    }

    /// A link that the node has made shows who is there.
    pub(super) fn handle_met(
        &mut self,
        node: NodeIndex,
        link: LinkId,
        address: SocketAddr,
        descriptor: &VerifiedDescriptor,
    ) {
        let now = self.net.calendar(node);
        let card = self.registry.share(descriptor);
        let defences = self.plan.defences;
        let citizen = &mut self.citizens[node];
        let visit = citizen.visits.remove(&link);
        let group = citizen.book.group_of(address);
        let here = card.address() == address;
        let source = if here { Source::Met } else { Source::Peer(group) };
        let _known_or_full = citizen.book.insert(card.clone(), source, now);
        citizen.bootstrap.retain(|(_, id)| *id != card.node());
        if !defences.test_before_evict {
            // Whoever was met longest ago in the bucket would have to answer; here it is as if it did not.
            let waits = citizen.book.get(&card.node()).is_some_and(|entry| !entry.is_tried());
            if waits && let Some(test) = citizen.book.next_test(now, &mut citizen.rng) {
                let asked = citizen.book.get(&test.node);
                if asked.is_some_and(|asked| asked.is_tried() && asked.failures() == 0) {
                    citizen.book.record_failure(&test.node, now);
                }
            }
        }
        if visit.is_some_and(|visit| visit.bootstrap) {
            self.hurry(node);
        }
        self.net.trace(&[30, node as u64]);
    }

    /// Another node says what time it is.
    pub(super) fn handle_time(&mut self, node: NodeIndex, other: NodeId, address: SocketAddr, time: UnixTime) {
        let now = self.net.calendar(node);
        let citizen = &mut self.citizens[node];
        citizen.clocks.hear(other, citizen.book.group_of(address), time, now);
        citizen.in_doubt = matches!(citizen.clocks.verdict(), ClockVerdict::Off { .. });
        citizen.book.set_clock_in_doubt(citizen.in_doubt);
    }

    pub(super) fn handle_link_ended(&mut self, node: NodeIndex, link: LinkId, end: LinkEnd) {
        let now = self.net.calendar(node);
        let citizen = &mut self.citizens[node];
        let Some(visit) = citizen.visits.remove(&link) else { return };
        let validity = matches!(end, LinkEnd::Descriptor(DescriptorError::Expired | DescriptorError::NotYetValid));
        let excused = visit.bootstrap || validity && citizen.in_doubt;
        if !excused {
            citizen.counts.failed_tests += 1;
            citizen.book.record_failure(&visit.node, now);
        }
        self.net.trace(&[31, node as u64]);
    }
}
