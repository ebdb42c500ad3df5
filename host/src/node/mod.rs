//! A node in this process: start it, open circuits through it, send messages.

mod answers;
mod builder;
pub(crate) mod control;
mod directory;
mod error;
mod gossip;
mod keeper;
mod open;
mod rotation;
mod sequence;
pub(crate) mod stored;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bulbil_core::wire::{NodeId, Target};
use tokio::sync::{mpsc, oneshot};

use crate::engine::Command;
use crate::engine::workers::Workers;
use directory::Directory;

pub use crate::engine::clock::WallClock;
pub use crate::engine::memory::Sizes;
pub use crate::engine::service::ServiceCall;
pub use crate::engine::{LinkEnds, Status};
pub use answers::{Answers, VerifiedReceipt};
pub use builder::{NodeBuilder, start};
pub use bulbil_core::client::origin::Reached;
pub use bulbil_core::phonebook::ClockVerdict;
pub use bulbil_core::phonebook::{IsolationKey, Strictness};
pub use bulbil_core::wire::EndReason;
pub use directory::{HopInfo, Known};
pub use error::{OpenError, StartError};
pub use gossip::Intervals;
pub use stream::CircuitStream;

/// A handle to a running node. All clones speak of the same node.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    addresses: Vec<SocketAddr>,
    commands: mpsc::UnboundedSender<Command>,
    directory: Directory,
    workers: Workers,
    /// Bounds the circuits that are being built at one time, and so what waits for the workers and the engine.
    building: tokio::sync::Semaphore,
    hops: bulbil_core::phonebook::HopCount,
    strictness: Strictness,
    reuse_paths: bool,
    started: tokio::time::Instant,
    clock: WallClock,
    intervals: Intervals,
    /// Who stores first hops and phonebook, if somebody does.
    keeping: std::sync::Mutex<Option<Arc<keeper::Keeper>>>,
    traffic: Arc<crate::engine::traffic::Traffic>,
    /// Everything that runs for the node besides its engine; aborted when it shuts down.
    tasks: std::sync::Mutex<tokio::task::JoinSet<()>>,
}

/// How a circuit is to be opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Conversations with the same key share a path for ten minutes (each on a circuit of its own); without a key each has its own path.
    pub isolation: Option<IsolationKey>,
    /// How long it may take until the target is reached, other paths that are tried included.
    pub deadline: Duration,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { isolation: None, deadline: Duration::from_secs(60) }
    }
}

/// How a message is to be sent.
#[derive(Debug, Clone)]
pub struct SendOptions {
    /// Keep the path open for many answers, until either side closes; otherwise it is forgotten after the answer.
    pub keep_open: bool,
    /// Ask the exit to sign the answer.
    pub sign: bool,
    /// How long it may take until the target is reached, other paths that are tried included.
    pub deadline: Duration,
}

impl Default for SendOptions {
    fn default() -> Self {
        Self { keep_open: false, sign: true, deadline: Duration::from_secs(60) }
    }
}

impl std::fmt::Debug for Node {
    /// Says nothing: a node's name does not belong in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Node")
    }
}

impl Node {
    /// Describes a node that is to be started.
    #[must_use]
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    /// Who this node is.
    #[must_use]
    pub fn fingerprint(&self) -> NodeId {
        self.inner.node
    }

    /// The first address that the node answers links on, if it does.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.inner.addresses.first().copied()
    }

    /// Opens a circuit to `target` and returns as soon as its onion is on its way: what is written follows right behind it.
    ///
    /// Until the node knows enough others for a path it waits, within the deadline.
    ///
    /// # Errors
    /// No path within the deadline, no room, or the node is shutting down.
    pub async fn open(&self, target: Target, options: OpenOptions) -> Result<CircuitStream, OpenError> {
        CircuitStream::open(self.clone(), target, options).await
    }

    /// Sends `request` to `target` through the network, and gives its answers.
    ///
    /// The request leaves in the same flight as the onion. If a path fails before an answer comes, another one is tried.
    ///
    /// # Errors
    /// As for [`Node::open`]; later ones come from [`Answers::next`].
    pub async fn send(&self, target: Target, request: &[u8], options: SendOptions) -> Result<Answers, OpenError> {
        Answers::send(self.clone(), target, request.to_vec(), options).await
    }

    /// Keeps what should survive a restart in `state`, which holds `guards` and stays locked until the node is shut down.
    fn keep(&self, state: Arc<crate::state::StateDir>, guards: bulbil_core::phonebook::Guards) {
        let inner = &self.inner;
        let keeper = Arc::new(keeper::Keeper::new(state, inner.directory.clone(), guards));
        *inner.keeping.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Arc::clone(&keeper));
        let mut tasks = inner.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        tasks.spawn(keeper.run(inner.intervals.save));
    }

    /// The nodes that this node knows, in ascending order of ids; `None` once it has stopped.
    pub async fn known(&self) -> Option<Vec<Known>> {
        self.inner.directory.known().await
    }

    /// What other nodes think of this machine's clock; `None` once the node has stopped.
    pub async fn clock(&self) -> Option<ClockVerdict> {
        self.inner.directory.clock().await.map(|(verdict, _)| verdict)
    }

    /// Waits until a path to an exit can be chosen.
    ///
    /// # Errors
    /// That is not so within `deadline`; the error says what is missing.
    pub async fn ready(&self, deadline: Duration) -> Result<(), OpenError> {
        let until = tokio::time::Instant::now() + deadline;
        let last = bulbil_core::phonebook::LastHop::Exit { port: None };
        self.inner.wait_for_path(last, None, &[], until).await.map(|_| ())
    }

    /// How full and how busy the node is; `None` once it has stopped.
    pub async fn status(&self) -> Option<Status> {
        let (reply, status) = oneshot::channel();
        self.inner.commands.send(Command::Status(reply)).ok()?;
        status.await.ok()
    }

    /// Waits until the node has stopped, whoever stopped it.
    pub async fn stopped(&self) {
        self.inner.commands.closed().await;
    }

    /// Stops the node: no new circuits, two seconds for those that are open, then every link is closed.
    pub async fn shutdown(&self) {
        let (reply, stopped) = oneshot::channel();
        if self.inner.commands.send(Command::Stop(reply)).is_ok() {
            let _engine_gone = stopped.await;
        }
        let keeping = self.inner.keeping.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(keeping) = keeping {
            keeping.save().await;
        }
        self.inner.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).abort_all();
    }
}

#[cfg(test)]
mod tests {
    use bulbil_core::driver::LinkEnd;
    use embedded_io::ErrorKind;
    use tokio::net::TcpListener;

    use super::*;

    const SIZES: Sizes = Sizes { links: 8, circuits: 8, cells: 256, onions: 4, origins: 4, replay: 256 };

    /// How a link to `address` ends that a relay makes which others are told to find at `advertised`.
    async fn called(advertised: SocketAddr, address: SocketAddr) -> LinkEnd {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let node = Node::builder().listen(listen).advertise(advertised).relay().sizes(SIZES).start().await.unwrap();
        let (reply, met) = oneshot::channel();
        node.inner.commands.send(Command::Contact(address, None, reply)).unwrap();
        let end = met.await.unwrap().map(|_| "met").unwrap_err();
        node.shutdown().await;
        end
    }

    #[tokio::test]
    async fn a_node_with_a_public_address_calls_on_no_private_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let private = listener.local_addr().unwrap();
        let end = called("8.8.8.8:9001".parse().unwrap(), private).await;
        assert_eq!(end, LinkEnd::Io(ErrorKind::PermissionDenied));

        // One on a private network does call, and whoever is there hangs up.
        let hang_up = async {
            let (stream, _) = listener.accept().await.unwrap();
            drop(stream);
        };
        let (end, ()) = tokio::join!(called("192.168.1.1:9001".parse().unwrap(), private), hang_up);
        assert_ne!(end, LinkEnd::Io(ErrorKind::PermissionDenied));
        assert!(tokio::time::timeout(Duration::ZERO, listener.accept()).await.is_err(), "one call, not two");
    }
}
