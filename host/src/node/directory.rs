//! The phonebook of a running node, owned by one task: everybody else asks it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bulbil_core::phonebook::{
    BookKey, CachedPath, EVIDENCE_MAX, Grouping, Guards, HopCount, Inserted, IsolationKey, LastHop, NEW_PLACES,
    PathCache, PathError, PathRequest, Phonebook, Shelves, Source, Strictness, TRIED_PLACES, VerifiedDescriptor,
};
use bulbil_core::wire::descriptor::RSA_LEN;
use bulbil_core::wire::{NodeId, OnionKey};
use tokio::sync::{mpsc, oneshot, watch};

use crate::engine::shell::unix_time;
use crate::random::SYSTEM;

/// Isolation keys whose paths are remembered.
const CACHED_PATHS: usize = 1024;

/// A hop of a chosen path, with what is needed to build its layer.
pub(crate) struct ChosenHop {
    pub node: NodeId,
    pub address: SocketAddr,
    pub key: OnionKey,
    pub identity: [u8; RSA_LEN],
}

/// A hop of a path, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HopInfo {
    /// Who.
    pub node: NodeId,
    /// Where the hop before reaches it.
    pub address: SocketAddr,
}

/// What a path is wanted for.
pub(crate) struct Wanted {
    pub hops: HopCount,
    pub last: LastHop,
    pub strictness: Strictness,
    pub avoid: Vec<NodeId>,
    pub isolation: Option<IsolationKey>,
}

enum Request {
    Insert(Arc<VerifiedDescriptor>),
    Path(Wanted, oneshot::Sender<Result<Vec<ChosenHop>, PathError>>),
    Failed(NodeId),
    Doubted(Vec<NodeId>),
    Succeeded(NodeId),
}

/// Asks the task that owns the phonebook.
#[derive(Clone)]
pub(crate) struct Directory {
    requests: mpsc::UnboundedSender<Request>,
    changes: watch::Receiver<u64>,
    doubts: Arc<watch::Sender<u64>>,
    guards: watch::Receiver<Vec<NodeId>>,
}

impl Directory {
    /// Starts the task. `own` is never put on a path; paths of one isolation key are kept for `reuse`.
    /// `guards` are the first hops that were used before a restart.
    pub(crate) fn start(own: NodeId, reuse: Duration, guards: Vec<NodeId>) -> Self {
        let (requests, asked) = mpsc::unbounded_channel();
        let (changed, changes) = watch::channel(0);
        let (drawn, drawn_guards) = watch::channel(guards);
        tokio::spawn(run(own, reuse, asked, changed, drawn));
        let doubts = Arc::new(watch::Sender::new(0));
        Self { requests, changes, doubts, guards: drawn_guards }
    }

    /// The first hops in use, to be kept over a restart.
    pub(crate) fn guards(&self) -> watch::Receiver<Vec<NodeId>> {
        self.guards.clone()
    }

    /// A node has shown its descriptor.
    pub(crate) fn insert(&self, descriptor: VerifiedDescriptor) {
        let _stopped = self.requests.send(Request::Insert(Arc::new(descriptor)));
    }

    /// Chooses a path; `None` once the node has stopped.
    pub(crate) async fn path(&self, wanted: Wanted) -> Option<Result<Vec<ChosenHop>, PathError>> {
        let (reply, path) = oneshot::channel();
        self.requests.send(Request::Path(wanted, reply)).ok()?;
        path.await.ok()
    }

    /// A hop did not do its part: paths with it are forgotten.
    pub(crate) fn failed(&self, node: NodeId) {
        let _stopped = self.requests.send(Request::Failed(node));
        self.doubts.send_modify(|doubts| *doubts += 1);
    }

    /// Changes when a hop did not do its part: what is known of the network may be out of date.
    pub(crate) fn doubts(&self) -> watch::Receiver<u64> {
        self.doubts.subscribe()
    }

    /// A path failed and nobody can be blamed: paths with these hops are forgotten, and the nodes asked again who they are.
    pub(crate) fn doubted(&self, nodes: Vec<NodeId>) {
        let _stopped = self.requests.send(Request::Doubted(nodes));
        self.doubts.send_modify(|doubts| *doubts += 1);
    }

    /// A hop did its part.
    pub(crate) fn succeeded(&self, node: NodeId) {
        let _stopped = self.requests.send(Request::Succeeded(node));
    }

    /// Changes when a descriptor comes in that was not known.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

async fn run(
    own: NodeId,
    reuse: Duration,
    mut asked: mpsc::UnboundedReceiver<Request>,
    changed: watch::Sender<u64>,
    drawn: watch::Sender<Vec<NodeId>>,
) {
    let (mut tried, mut new) = (vec![None; TRIED_PLACES], vec![None; NEW_PLACES]);
    let mut evidence = vec![None; EVIDENCE_MAX];
    let mut places: Vec<Option<CachedPath>> = vec![None; CACHED_PATHS];
    let shelves = Shelves { tried: &mut tried, new: &mut new, evidence: &mut evidence };
    let key = BookKey::generate(&mut SYSTEM.clone());
    let mut book = Phonebook::<Arc<VerifiedDescriptor>>::new(shelves, Some(own), key, Grouping::Network);
    let mut cache = PathCache::new(&mut places, reuse);
    let mut guards = Guards::restore(drawn.borrow().iter().copied());
    while let Some(request) = asked.recv().await {
        let now = unix_time();
        match request {
            Request::Insert(descriptor) => match book.insert(descriptor, Source::Met, now) {
                Ok(Inserted::Met) => {}
                Ok(_) => changed.send_modify(|changes| *changes += 1),
                Err(refusal) => tracing::debug!(%refusal, "descriptor not taken"),
            },
            Request::Doubted(nodes) => nodes.iter().for_each(|node| cache.forget_node(node)),
            Request::Failed(node) => {
                cache.forget_node(&node);
                if book.record_failure(&node, now) {
                    tracing::info!("a node that failed several times was dropped from the phonebook");
                }
            }
            Request::Succeeded(node) => book.record_success(&node, now),
            Request::Path(wanted, reply) => {
                let request = PathRequest {
                    hops: wanted.hops,
                    last: wanted.last,
                    strictness: wanted.strictness,
                    avoid: &wanted.avoid,
                    now,
                };
                let path = match wanted.isolation {
                    Some(key) => cache.path_for(key, &book, &request, &mut guards, &mut SYSTEM.clone()),
                    None => book.choose_path(&request, &mut guards, &mut SYSTEM.clone()),
                };
                drawn.send_if_modified(|kept| {
                    let changed = kept.as_slice() != guards.nodes();
                    if changed {
                        *kept = guards.nodes().to_vec();
                    }
                    changed
                });
                let _nobody_waits = reply.send(path.map(|path| {
                    let hops = path.hops().iter();
                    hops.filter_map(|hop| {
                        let descriptor = book.descriptor_of(hop)?;
                        Some(ChosenHop {
                            node: hop.node,
                            address: hop.address,
                            key: descriptor.onion_key.clone(),
                            identity: descriptor.identity,
                        })
                    })
                    .collect()
                }));
            }
        }
    }
}
