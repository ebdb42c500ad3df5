//! What the control socket asks of a running node, and what a phonebook answers, whoever owns it: the directory of a running node, or
//! `bulbil phonebook` when none runs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bulbil_core::phonebook::{ClockVerdict, Entry, Inserted, Phonebook, Refusal, Source, VerifiedDescriptor};
use bulbil_core::wire::{NodeId, UnixTime};
use tokio::sync::oneshot;

use super::Node;
use crate::control::book::{
    Clock, Counts, FOUND_MAX, Found, NodeDetails, NodeLine, Prefix, Question, Role, Shelf, Taken,
};
use crate::engine::traffic::Totals;

/// A node's phonebook as hosts keep it.
pub(crate) type Book<'m> = Phonebook<'m, Arc<VerifiedDescriptor>>;

impl Node {
    /// Asks the owner of the phonebook; `None` once the node has stopped.
    pub(crate) async fn ask_phonebook<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.inner.directory.ask(question(reply));
        answer.await.ok()
    }

    /// What has crossed its links. Asks nobody.
    pub(crate) fn traffic(&self) -> Totals {
        self.inner.traffic.totals()
    }

    /// For how long it has been running.
    pub(crate) fn uptime(&self) -> Duration {
        self.inner.started.elapsed()
    }

    /// Where it answers links.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.inner.addresses
    }
}

impl From<ClockVerdict> for Clock {
    fn from(verdict: ClockVerdict) -> Self {
        match verdict {
            ClockVerdict::Unknown => Self::Unknown,
            ClockVerdict::Agrees => Self::Agrees,
            ClockVerdict::Off { seconds, peers } => Self::Off { seconds, peers },
        }
    }
}

/// Answers a question about `book`. `more` adds to its counts what the book itself does not know: exchanges, tests, the clock. Says whether the
/// book has changed.
pub(crate) fn answer(question: Question, book: &mut Book<'_>, now: UnixTime, more: impl FnOnce(&mut Counts)) -> bool {
    // Whoever asked may have gone.
    match question {
        Question::Count(reply) => {
            let mut counts = count(book, now);
            more(&mut counts);
            let _gone = reply.send(counts);
        }
        Question::List(reply) => drop(reply.send(list(book))),
        Question::Find(prefix, reply) => drop(reply.send(find(book, &prefix))),
        Question::Export(reply) => drop(reply.send(export(book, now))),
        Question::Import(descriptors, reply) => {
            let taken = import(book, descriptors, now);
            let _gone = reply.send(taken);
            return taken.added + taken.updated + taken.disputed > 0;
        }
    }
    false
}

/// What a phonebook by itself can count.
pub(crate) fn count(book: &Book<'_>, now: UnixTime) -> Counts {
    let counts = book.counts();
    Counts {
        tried: counts.tried,
        new: counts.new,
        disputed: counts.disputed,
        pinned: counts.pinned,
        expired: book.iter().filter(|entry| entry.is_expired_at(now)).count(),
        capacity: book.capacity(),
        ..Counts::default()
    }
}

fn line(entry: &Entry<Arc<VerifiedDescriptor>>) -> NodeLine {
    let descriptor = entry.descriptor();
    NodeLine {
        fingerprint: entry.node(),
        roles: Role::of(descriptor.roles),
        address: entry.address(),
        shelf: if entry.is_tried() { Shelf::Tried } else { Shelf::New },
        failures: entry.failures(),
        last_met: entry.last_met().map(|at| at.0),
        valid_until: descriptor.valid_until.0,
        onion_key: descriptor.onion_key.kind().into(),
        pinned: entry.is_pinned(),
        disputed: entry.is_disputed(),
    }
}

/// Every node, in ascending order of fingerprints.
pub(crate) fn list(book: &Book<'_>) -> Vec<NodeLine> {
    let mut lines: Vec<_> = book.iter().map(line).collect();
    lines.sort_unstable_by_key(|line| line.fingerprint);
    lines
}

/// The nodes whose fingerprints begin so.
pub(crate) fn find(book: &Book<'_>, prefix: &Prefix) -> Found {
    let found: Vec<_> = book.iter().filter(|entry| prefix.matches(&entry.node())).collect();
    match found.as_slice() {
        [] => Found::Nobody,
        [entry] => {
            let descriptor = entry.descriptor();
            Found::One(Box::new(NodeDetails {
                line: line(entry),
                addresses: descriptor.addresses.to_vec(),
                exit_ports: descriptor.exit_ports.iter().map(ToString::to_string).collect(),
                sequence: descriptor.sequence,
                valid_from: descriptor.valid_from.0,
                protocol: descriptor.protocol.value(),
                link_key: descriptor.link_key.iter().map(|byte| format!("{byte:02x}")).collect(),
            }))
        }
        several => {
            let mut nodes: Vec<NodeId> = several.iter().map(|entry| entry.node()).collect();
            nodes.sort_unstable();
            let count = nodes.len();
            nodes.truncate(FOUND_MAX);
            Found::Several(nodes, count)
        }
    }
}

/// Every descriptor that may be passed on, in ascending order of fingerprints.
pub(crate) fn export(book: &Book<'_>, now: UnixTime) -> Vec<Arc<VerifiedDescriptor>> {
    let good = book.iter().filter(|entry| !entry.is_disputed() && !entry.is_expired_at(now));
    let mut cards: Vec<_> = good.map(|entry| Arc::clone(entry.card())).collect();
    cards.sort_unstable_by_key(|card| card.node());
    cards
}

/// Takes descriptors in that the owner has from somewhere. Each is as if its own network group had told of it: so they spread over the
/// whole shelf, and one network's nodes over no more of it than if somebody from there had sent them.
pub(crate) fn import(book: &mut Book<'_>, descriptors: Vec<VerifiedDescriptor>, now: UnixTime) -> Taken {
    let mut taken = Taken::default();
    for descriptor in descriptors {
        let source = Source::Peer(book.group_of(descriptor.address()));
        let count = match book.insert(Arc::new(descriptor), source, now) {
            Ok(Inserted::Added | Inserted::Evicted(_)) => &mut taken.added,
            Ok(Inserted::Updated) => &mut taken.updated,
            Ok(Inserted::Met) | Err(Refusal::NotNewer) => &mut taken.known,
            Err(Refusal::Own) => &mut taken.own,
            Err(Refusal::Full) => &mut taken.full,
            Err(Refusal::Expired) => &mut taken.expired,
            Err(Refusal::Disputed) => &mut taken.disputed,
        };
        *count += 1;
    }
    taken
}
