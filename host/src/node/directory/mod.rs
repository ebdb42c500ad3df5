//! The phonebook of a running node, owned by one task: everybody else asks it.

mod task;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bulbil_core::driver::LinkEnd;
use bulbil_core::phonebook::exchange::{Held, TestLoad};
pub(crate) use bulbil_core::phonebook::steward::Teller;
use bulbil_core::phonebook::{
    ClockVerdict, Grouping, Guards, HopCount, IsolationKey, LastHop, PathError, Strictness, Test, VerifiedDescriptor,
};
use bulbil_core::wire::descriptor::RSA_LEN;
use bulbil_core::wire::{NodeId, OnionKey, UnixTime};
use tokio::sync::{mpsc, oneshot, watch};
use zeroize::Zeroizing;

use super::stored::Stored;
use crate::control::book::{Exchanges, Question, Taken, Tests};
use crate::engine::clock::WallClock;
use crate::engine::shell::Shown;

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

/// A node in the phonebook, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Who.
    pub node: NodeId,
    /// Where: its first address.
    pub address: SocketAddr,
    /// This node has met it there.
    pub met: bool,
    /// It is an exit.
    pub exit: bool,
    /// How often in a row it did not answer.
    pub failures: u8,
    /// Its key is used twice.
    pub disputed: bool,
    /// Grows with each of its descriptors.
    pub sequence: u64,
}

/// What a path is wanted for.
pub(crate) struct Wanted {
    pub hops: HopCount,
    pub last: LastHop,
    pub strictness: Strictness,
    pub avoid: Vec<NodeId>,
    pub isolation: Option<IsolationKey>,
}

/// Which part of the phonebook is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Random,
    Epoch,
}

/// Descriptors that may be passed on.
pub(crate) type Presentable = Arc<[Arc<VerifiedDescriptor>]>;

enum Request {
    /// A node that we linked to says what time it is.
    Time {
        node: NodeId,
        address: SocketAddr,
        time: UnixTime,
    },
    /// A node has shown its descriptor on a link to this address.
    Shown(Arc<VerifiedDescriptor>, SocketAddr),
    Insert(Vec<VerifiedDescriptor>, Teller, oneshot::Sender<Taken>),
    Path(Wanted, oneshot::Sender<Result<Vec<ChosenHop>, PathError>>),
    Failed(NodeId),
    Unreached(NodeId, LinkEnd),
    Doubted(Vec<NodeId>),
    Succeeded(NodeId),
    NextTest {
        idle: bool,
        reply: oneshot::Sender<(Option<Test>, TestLoad)>,
    },
    Whom(oneshot::Sender<Option<NodeId>>),
    Answered(NodeId, bool),
    Digest(oneshot::Sender<Vec<Held>>),
    Joining(HopCount, Strictness, oneshot::Sender<bool>),
    Presentable(Part, oneshot::Sender<Presentable>),
    Knows(NodeId, oneshot::Sender<bool>),
    Anybody(oneshot::Sender<bool>),
    Known(oneshot::Sender<Vec<Known>>),
    Clock(oneshot::Sender<(ClockVerdict, bool)>),
    Keep(oneshot::Sender<Option<Zeroizing<Vec<u8>>>>),
    Control(Question),
}

/// What the exchanges and tests of a node have come to.
#[derive(Debug, Default)]
pub(crate) struct Tallies {
    pub exchanges: Exchanges,
    pub tests: Tests,
}

/// What the task begins with.
pub(crate) struct Settings {
    /// Never put on a path.
    pub own: NodeId,
    /// For how long the paths of one isolation key are kept.
    pub reuse: Duration,
    /// The first hops that were used before a restart.
    pub guards: Guards,
    /// The phonebook of before a restart.
    pub stored: Option<Stored>,
    pub grouping: Grouping,
    /// The pause after a node's first failure.
    pub retry: Duration,
    /// Without any answer for so long, failures are not the others'.
    pub lonely: Duration,
    pub clock: WallClock,
}

/// Asks the task that owns the phonebook.
#[derive(Clone)]
pub(crate) struct Directory {
    requests: mpsc::UnboundedSender<Request>,
    changes: watch::Receiver<u64>,
    doubts: Arc<watch::Sender<u64>>,
    guards: watch::Receiver<Guards>,
    jumps: watch::Receiver<u64>,
    tallies: Arc<Mutex<Tallies>>,
}

impl Directory {
    /// Starts the task.
    pub(crate) fn start(mut settings: Settings) -> Self {
        let (requests, asked) = mpsc::unbounded_channel();
        let (changed, changes) = watch::channel(0);
        let (drawn, guards) = watch::channel(std::mem::take(&mut settings.guards));
        let (jumped, jumps) = watch::channel(0);
        let tallies = Arc::new(Mutex::new(Tallies::default()));
        let out = task::Out { changed, drawn, jumped, tallies: Arc::clone(&tallies) };
        tokio::spawn(task::run(settings, asked, out));
        Self { requests, changes, doubts: Arc::new(watch::Sender::new(0)), guards, jumps, tallies }
    }

    fn tell(&self, request: Request) {
        let _stopped = self.requests.send(request);
    }

    /// `None` once the node has stopped.
    async fn question<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).ok()?;
        answer.await.ok()
    }

    /// The first hops, to be kept over a restart.
    pub(crate) fn guards(&self) -> watch::Receiver<Guards> {
        self.guards.clone()
    }

    /// A node at whose address a link was made has shown something of itself.
    pub(crate) fn show(&self, address: SocketAddr, shown: Shown<'_>) {
        self.tell(match shown {
            Shown::Time(node, time) => Request::Time { node, address, time },
            Shown::Descriptor(descriptor) => Request::Shown(Arc::new(descriptor.clone()), address),
        });
    }

    /// Takes in what others have told; `None` once the node has stopped.
    pub(crate) async fn insert(&self, descriptors: Vec<VerifiedDescriptor>, teller: Teller) -> Option<Taken> {
        self.question(|reply| Request::Insert(descriptors, teller, reply)).await
    }

    /// Chooses a path; `None` once the node has stopped.
    pub(crate) async fn path(&self, wanted: Wanted) -> Option<Result<Vec<ChosenHop>, PathError>> {
        self.question(|reply| Request::Path(wanted, reply)).await
    }

    /// A hop did not do its part: paths with it are forgotten.
    pub(crate) fn failed(&self, node: NodeId) {
        self.tell(Request::Failed(node));
        self.doubts.send_modify(|doubts| *doubts += 1);
    }

    /// A node that was tested did not answer, or not well.
    pub(crate) fn unreached(&self, node: NodeId, end: LinkEnd) {
        self.tell(Request::Unreached(node, end));
    }

    /// Changes when a hop did not do its part: what is known of the network may be out of date.
    pub(crate) fn doubts(&self) -> watch::Receiver<u64> {
        self.doubts.subscribe()
    }

    /// A path failed and nobody can be blamed: paths with these hops are forgotten, and the nodes asked again who they are.
    pub(crate) fn doubted(&self, nodes: Vec<NodeId>) {
        self.tell(Request::Doubted(nodes));
        self.doubts.send_modify(|doubts| *doubts += 1);
    }

    /// A hop did its part.
    pub(crate) fn succeeded(&self, node: NodeId) {
        self.tell(Request::Succeeded(node));
    }

    /// Passes a question of the control socket on; whoever asked hears nothing once the node has stopped.
    pub(crate) fn ask(&self, question: Question) {
        self.tell(Request::Control(question));
    }

    /// Changes when a descriptor comes in that was not known, or a node is met for the first time.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Changes when the clock was set.
    pub(crate) fn jumps(&self) -> watch::Receiver<u64> {
        self.jumps.clone()
    }

    /// Whom to test next, with `idle` those too that can wait, and whether somebody is left; `None` once the node has stopped.
    pub(crate) async fn next_test(&self, idle: bool) -> Option<(Option<Test>, TestLoad)> {
        self.question(|reply| Request::NextTest { idle, reply }).await
    }

    /// Whom to ask for descriptors.
    pub(crate) async fn whom(&self) -> Option<NodeId> {
        self.question(Request::Whom).await.flatten()
    }

    /// A node that was asked for descriptors has answered, well or not.
    pub(crate) fn answered(&self, node: NodeId, well: bool) {
        self.tell(Request::Answered(node, well));
    }

    /// Everybody, as far as filters are concerned.
    pub(crate) async fn digest(&self) -> Option<Vec<Held>> {
        self.question(Request::Digest).await
    }

    /// Whether too few were met for any path of so many hops.
    pub(crate) async fn is_joining(&self, hops: HopCount, strictness: Strictness) -> Option<bool> {
        self.question(|reply| Request::Joining(hops, strictness, reply)).await
    }

    /// Nodes to pass on, as of a second ago at most: all, or the epoch's as many as an answer can hold.
    pub(crate) async fn presentable(&self, part: Part) -> Option<Presentable> {
        self.question(|reply| Request::Presentable(part, reply)).await
    }

    /// Whether a node is known.
    pub(crate) async fn knows(&self, node: NodeId) -> bool {
        self.question(|reply| Request::Knows(node, reply)).await.unwrap_or_default()
    }

    /// Whether anybody who was met is known.
    pub(crate) async fn anybody(&self) -> bool {
        self.question(Request::Anybody).await.unwrap_or_default()
    }

    /// Everybody, in ascending order of ids.
    pub(crate) async fn known(&self) -> Option<Vec<Known>> {
        self.question(Request::Known).await
    }

    /// What others think of our clock, and whether it is in doubt.
    pub(crate) async fn clock(&self) -> Option<(ClockVerdict, bool)> {
        self.question(Request::Clock).await
    }

    /// What is to be stored, if it has changed since this was asked last.
    pub(crate) async fn keep(&self) -> Option<Zeroizing<Vec<u8>>> {
        self.question(Request::Keep).await.flatten()
    }

    /// What is counted.
    pub(crate) fn tallies(&self) -> MutexGuard<'_, Tallies> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
