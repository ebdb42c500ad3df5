//! What the control socket asks of a running node.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bulbil_core::phonebook::{Entry, Inserted, Phonebook, Refusal};
use bulbil_core::wire::UnixTime;
use tokio::sync::oneshot;

use super::Node;
use crate::control::book::{Counts, FOUND_MAX, Found, NodeDetails, NodeLine, Question, Role, Shelf, Taken};
use crate::engine::traffic::Totals;

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
