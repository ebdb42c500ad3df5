//! The model beside the node's books.

use bulbil_core::circuit::table::{self, Side};
use bulbil_core::node::{CircuitBooks, FlowBooks, LinkBooks, Node, Patience, RoleBooks};

use super::{CREDIT, Circuit, End, Flow, LINKS, Model, Phase, Role, WINDOW_MAX};

impl From<table::End> for End {
    fn from(end: table::End) -> Self {
        match end {
            table::End::Detached => Self::Nobody,
            table::End::Link(link, id) => Self::Link(link, id.value()),
            table::End::Conversation => Self::Outside,
        }
    }
}

impl Model {
    /// Panics if the node's books say something else.
    pub(in super::super) fn compare(&mut self, node: &Node<'_>) {
        self.sweep();
        let books: Vec<_> = node.circuit_books().collect();
        for books in &books {
            let at = self.named(books.name).or_else(|| {
                let inward = End::from(books.inward);
                self.circuits.iter().position(|circuit| circuit.name.is_none() && circuit.inward == inward)
            });
            let Some(at) = at else { panic!("a circuit that is none: {books:#?}, model: {:#?}", self.circuits) };
            self.circuits[at].compare(books);
        }
        let mine = || self.circuits.iter().map(|circuit| circuit.name).collect::<Vec<_>>();
        assert_eq!(self.circuits.len(), books.len(), "circuits of the model: {:?}, of the node: {books:#?}", mine());
        assert_eq!(self.onions.len(), node.usage().onions, "onions: {:?}", self.onions);
        assert_eq!(self.reserved(), node.usage().cells_reserved, "cells reserved");
        let replay = node.replay_usage();
        assert_eq!([self.seen[0].len(), self.seen[1].len()], [replay.current, replay.previous], "onions remembered");
        self.compare_links(node);
    }

    fn compare_links(&mut self, node: &Node<'_>) {
        let books: Vec<_> = node.link_books().collect();
        let gone: Vec<_> = self.lines.keys().copied().filter(|&link| !node.knows_link(link)).collect();
        for link in gone {
            // Only a full table is a reason to give a link's place away, and only a link that nobody misses gives way.
            let line = &self.lines[&link];
            let idle = matches!(line.phase, Phase::Up(_)) && line.refusals.is_empty();
            let half_open = !line.outward && matches!(line.phase, Phase::Shaking | Phase::AwaitingHello);
            assert!(idle || half_open || line.phase == Phase::Closing, "{line:?} is gone");
            assert!(
                books.len() == LINKS && self.circuits_at(link) == 0,
                "a link was displaced that is needed: {line:?}"
            );
            self.link_down(link);
        }
        for books in &books {
            let LinkBooks { link, unsent, closing, .. } = *books;
            let on_it = self.circuits_at(link);
            let Some(line) = self.lines.get_mut(&link) else { panic!("a link that is none: {books:?}") };
            if closing && line.phase != Phase::Closing {
                assert!(on_it == 0 || !matches!(line.phase, Phase::Up(_)), "a link in use is closed: {line:?}");
                // Only to a peer who takes nothing for as long as an idle link lives refusals are not said.
                let idle = Patience::DEFAULT.link_idle + Patience::DEFAULT.handshake;
                assert!(line.refusals.is_empty() || self.now >= line.refused.after(idle), "{line:?} is closed");
                line.phase = Phase::Closing;
            }
            let model = LinkBooks {
                link,
                side: if line.outward { Side::Outward } else { Side::Inward },
                up: matches!(line.phase, Phase::Up(_)),
                // Whatever the owner has asked for has left.
                unsent,
                closing: line.phase == Phase::Closing,
                circuits: on_it,
                last_id: line.last_id,
                refusals: line.refusals.len(),
            };
            assert_eq!(model, *books, "model, node");
        }
        assert_eq!(self.lines.len(), books.len(), "links of the model: {:?}, of the node: {books:?}", self.lines);
    }
}

impl Circuit {
    fn compare(&mut self, books: &CircuitBooks) {
        // A new one has no name in the model yet.
        self.name = Some(books.name);
        self.deadline = books.deadline;
        let role = match self.role {
            Role::Refused => RoleBooks::Refused,
            Role::Opening { .. } => RoleBooks::Opening,
            Role::Passing { .. } => RoleBooks::Passing,
            Role::Exiting(_) => RoleBooks::Exiting,
            Role::Client { .. } => RoleBooks::Client,
        };
        let model = (role, self.inward, self.outward, self.ending);
        let theirs = (books.role, End::from(books.inward), End::from(books.outward), books.ending);
        assert_eq!(model, theirs, "model, node: {self:#?}");
        let (inward, outward, alive) = (self.inward, self.outward, self.ending.is_none());
        self.forward.compare(&books.forward, inward, outward, alive, "forward");
        self.backward.compare(&books.backward, outward, inward, alive, "backward");
    }
}

impl Flow {
    /// `alive`: cells may still come from the sender.
    fn compare(&mut self, books: &FlowBooks, sender: End, receiver: End, alive: bool, way: &str) {
        assert_eq!(self.waiting.len(), books.waiting, "cells that wait {way}: model, node: {self:?}, {books:?}");
        if sender == End::Outside {
            // The node tells itself of room at once.
            assert!(books.promised >= self.promised, "promised {way}: model {self:?}, node {books:?}");
            self.promised = books.promised;
        }
        assert_eq!(self.promised, books.promised, "what the sender may send {way}: model, node: {self:?}, {books:?}");
        if let End::Link(..) = receiver {
            assert_eq!(self.credit, books.credit, "what the node may send {way}: model, node: {self:?}, {books:?}");
        }
        self.due = books.due;
        let (room, least, most) = (self.room(), usize::from(CREDIT), usize::from(WINDOW_MAX));
        if alive {
            assert!((least..=most).contains(&room), "room {way} is {room}: {books:?}");
        } else {
            assert_eq!(
                (books.promised, books.due),
                (0, 0),
                "room for a sender that sends nothing more {way}: {self:?}"
            );
        }
    }
}
