//! Pinned contacts: visited one after another for their descriptors, and for the time where the board has no clock.

use core::net::SocketAddr;
use core::time::Duration;

use bulbil_core::circuit::LinkId;
use bulbil_core::time::Instant;
use bulbil_core::wire::NodeId;

use crate::config::{CONTACTS_MAX, Contact};

/// Between two visits to a contact that answers: a third of the shortest life that its descriptor's onion key should have.
const REFRESH: Duration = Duration::from_secs(1200);
/// Between two visits to one that does not, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// When a contact is visited next.
#[derive(Debug, Clone, Copy)]
struct Visit {
    contact: Contact,
    due: Instant,
    /// The pause after the next failure.
    pause: Duration,
}

/// The contacts.
pub(crate) struct Contacts {
    visits: heapless::Vec<Visit, CONTACTS_MAX>,
    /// The visit that is being made, and its link.
    current: Option<(usize, LinkId)>,
}

impl Contacts {
    pub(crate) fn new(contacts: &[Contact], now: Instant) -> Self {
        let visits =
            contacts.iter().take(CONTACTS_MAX).map(|&contact| Visit { contact, due: now, pause: RETRY.0 }).collect();
        Self { visits, current: None }
    }

    /// The contact to be visited now, if none is being visited. [`Contacts::begin`] says over which link.
    pub(crate) fn poll(&self, now: Instant) -> Option<(usize, Contact)> {
        if self.current.is_some() {
            return None;
        }
        let (at, visit) = self.visits.iter().enumerate().min_by_key(|(_, visit)| visit.due)?;
        (now >= visit.due).then_some((at, visit.contact))
    }

    /// A visit begins over `link`; without one, for want of a place, it is tried again.
    pub(crate) fn begin(&mut self, at: usize, link: Option<LinkId>, now: Instant) {
        match link {
            Some(link) => self.current = Some((at, link)),
            None => self.fail(at, now),
        }
    }

    /// A node has shown itself. Answers its address if it is a contact, whichever link it was.
    pub(crate) fn handle_met(&mut self, link: LinkId, node: NodeId, now: Instant) -> Option<SocketAddr> {
        if self.current.is_some_and(|(_, current)| current == link) {
            self.current = None;
        }
        let visit = self.visits.iter_mut().find(|visit| visit.contact.fingerprint == node)?;
        (visit.due, visit.pause) = (now.after(REFRESH), RETRY.0);
        Some(visit.contact.address)
    }

    /// A link has ended: the visit over it, if it has not been successful before, has failed.
    pub(crate) fn handle_link_end(&mut self, link: LinkId, now: Instant) {
        if let Some((at, current)) = self.current
            && current == link
        {
            self.current = None;
            self.fail(at, now);
        }
    }

    fn fail(&mut self, at: usize, now: Instant) {
        if let Some(visit) = self.visits.get_mut(at) {
            visit.due = now.after(visit.pause);
            visit.pause = (visit.pause * 2).min(RETRY.1);
        }
    }

    /// What is known of the contacts is in doubt: all are visited again soon.
    pub(crate) fn doubt(&mut self, now: Instant) {
        for visit in &mut self.visits {
            visit.due = visit.due.min(now.after(RETRY.0));
        }
    }

    /// Whether the owner has pinned that node.
    pub(crate) fn is_pinned(&self, node: &NodeId) -> bool {
        self.visits.iter().any(|visit| visit.contact.fingerprint == *node)
    }

    /// When the next visit is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if self.current.is_some() { None } else { self.visits.iter().map(|visit| visit.due).min() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contact(number: u8) -> Contact {
        Contact { address: SocketAddr::from(([10, 0, 0, number], 9001)), fingerprint: NodeId([number; 32]) }
    }

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn link(number: u16) -> LinkId {
        LinkId::new(number, 0)
    }

    #[test]
    fn one_is_visited_after_another() {
        let mut contacts = Contacts::new(&[contact(1), contact(2)], at(0));
        assert_eq!(contacts.poll(at(0)), Some((0, contact(1))));
        contacts.begin(0, Some(link(3)), at(0));
        assert_eq!(contacts.poll(at(100)), None);
        assert_eq!(contacts.poll_timeout(), None, "its link has a deadline of its own");
        assert_eq!(contacts.handle_met(link(3), NodeId([1; 32]), at(100)), Some(contact(1).address));
        assert_eq!(contacts.poll(at(100)), Some((1, contact(2))));
        contacts.begin(1, Some(link(4)), at(100));
        contacts.handle_met(link(4), NodeId([2; 32]), at(200));
        assert_eq!(contacts.poll(at(200)), None);
        assert_eq!(contacts.poll_timeout(), Some(at(100).after(REFRESH)));
    }

    #[test]
    fn failures_are_tried_again_ever_later() {
        let mut contacts = Contacts::new(&[contact(1)], at(0));
        let mut now = at(0);
        let mut pauses = std::vec::Vec::new();
        for number in 0..12 {
            assert!(contacts.poll(now).is_some());
            contacts.begin(0, Some(link(number)), now);
            contacts.handle_link_end(link(99), now);
            assert!(contacts.poll(now).is_none(), "another link's end means nothing");
            contacts.handle_link_end(link(number), now);
            let due = contacts.poll_timeout().unwrap();
            pauses.push(now.until(due));
            now = due;
        }
        assert_eq!(pauses[0], RETRY.0);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses.last(), Some(&RETRY.1));
        contacts.begin(0, None, now);
        assert!(contacts.poll(now).is_none(), "no place for a link is a failure too");
    }

    #[test]
    fn doubts_bring_a_visit_forward_and_the_end_of_a_link_that_was_met_does_not() {
        let mut contacts = Contacts::new(&[contact(1)], at(0));
        contacts.begin(0, Some(link(1)), at(0));
        contacts.handle_met(link(1), NodeId([1; 32]), at(10));
        contacts.handle_link_end(link(1), at(20));
        assert_eq!(contacts.poll_timeout(), Some(at(10).after(REFRESH)));
        contacts.doubt(at(1000));
        assert_eq!(contacts.poll_timeout(), Some(at(1000).after(RETRY.0)));
        assert!(contacts.is_pinned(&NodeId([1; 32])) && !contacts.is_pinned(&NodeId([2; 32])));
        assert_eq!(contacts.handle_met(link(7), NodeId([2; 32]), at(0)), None, "no contact");
    }
}
