//! One thread that owns a node: its state machine, its sockets and its timers, on an event loop of its own. No lock is held over I/O,
//! because there is none to hold: all that other tasks and threads share with it are channels and the list of woken streams.
//!
//! A thread of its own, and not a task among others, because then a socket's event wakes exactly the one who waits for it, on the core whose
//! cache holds its cells; a work-stealing runtime wakes a second thread to look for work each time.

mod aead;
pub(crate) mod clock;
pub(crate) mod memory;
pub(crate) mod readiness;
pub(crate) mod service;
pub(crate) mod shell;
pub(crate) mod stream;
mod target;
pub(crate) mod traffic;
pub(crate) mod workers;

use std::io;
use std::sync::PoisonError;
use std::time::Duration;

use bulbil_core::crypto::kem::OnionSecret;
use bulbil_core::crypto::onion::{HopKeys, Onion};
use bulbil_core::driver::{Driver, More, Places};
use bulbil_core::node::{
    Capacity, Config, ConversationId, Counters, LinkCensus, Node, OpenRefused, Opening, ReplayUsage, Usage,
};
use bulbil_core::time::Instant;
use bulbil_core::wire::message::BeginOptions;
use bulbil_core::wire::{NodeId, Target};
use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, warn};

use memory::Sizes;
use readiness::Token;
pub use shell::LinkEnds;
use shell::{Done, Met, Progress, TokioShell};
use stream::{Outside, Waking};

/// What other tasks ask of the engine.
pub(crate) enum Command {
    /// Meet the node at an address.
    Contact(std::net::SocketAddr, Option<NodeId>, oneshot::Sender<Met>),
    /// Open a circuit of our own.
    Open(Box<OpenCommand>),
    /// Attach a conversation to an application.
    AttachPipe(ConversationId, DuplexStream),
    /// Attach a conversation to a local client's connection.
    AttachTcp(ConversationId, std::net::TcpStream),
    /// Let go of a conversation.
    Release(ConversationId, bool),
    /// Take a new onion key and the descriptor that announces it.
    Rotate(Box<OnionSecret>, Vec<u8>),
    /// Take a new descriptor for the same keys.
    Describe(Vec<u8>),
    /// How full and how busy the node is.
    Status(oneshot::Sender<Status>),
    /// End: no new circuits, a moment for those that are open, then everything is closed.
    Stop(oneshot::Sender<()>),
}

/// A circuit to be opened, its onion already built.
pub(crate) struct OpenCommand {
    pub node: NodeId,
    pub address: std::net::SocketAddr,
    pub onion: Box<Onion>,
    pub keys: Vec<HopKeys>,
    pub target: Target,
    pub options: BeginOptions,
    pub first: Vec<u8>,
    pub reply: oneshot::Sender<Result<(ConversationId, watch::Receiver<Progress>), OpenRefused>>,
}

/// How full and how busy a node is.
#[derive(Debug, Clone, Copy)]
pub struct Status {
    /// What its tables hold.
    pub usage: Usage,
    /// What they can hold.
    pub capacity: Capacity,
    /// Its links by direction.
    pub census: LinkCensus,
    /// How much of the onion keys' lives is used up.
    pub replay: ReplayUsage,
    /// For how long the onion key has been in force.
    pub onion_key_age: Duration,
    /// What it has done.
    pub counters: Counters,
    /// How links ended.
    pub ends: LinkEnds,
    /// The current onion key's replay set is full.
    pub rotation_due: bool,
}

/// Connections that listeners may hand over before the engine has taken them.
const ACCEPTED: usize = 64;
/// After the system refuses to accept a connection, for want of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long open circuits have to end by themselves when the node stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Everything that a node's thread takes over.
pub(crate) struct Engine {
    pub config: Config,
    pub sizes: Sizes,
    pub shell: TokioShell,
    pub listeners: Vec<std::net::TcpListener>,
    pub commands: mpsc::UnboundedReceiver<Command>,
    pub done: mpsc::UnboundedReceiver<Done>,
}

impl Engine {
    /// Starts the node's thread; the answer comes once the node runs, or says what is wrong with its settings.
    ///
    /// # Errors
    /// The system gives no thread, no event loop, or does not watch the listeners.
    pub(crate) fn start(self) -> io::Result<oneshot::Receiver<Result<(), &'static str>>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let listeners: Vec<_> = self.listeners.into_iter().map(TcpListener::from_std).collect::<io::Result<_>>()?;
        drop(entered);
        let (accepted, arriving) = mpsc::channel(ACCEPTED);
        let (started, running) = oneshot::channel();
        std::thread::Builder::new().name("bulbil-node".into()).spawn(move || {
            // Tokio's budget per poll is meant for tasks that forget others; the engine yields by itself.
            runtime.block_on(tokio::task::coop::unconstrained(async move {
                for listener in listeners {
                    tokio::spawn(accept_all(listener, accepted.clone()));
                }
                run(self.config, self.sizes, self.shell, self.commands, arriving, self.done, started).await;
            }));
        })?;
        Ok(running)
    }
}

/// Hands accepted connections to the engine. When that is behind, so is the listener, and the system's own queue holds the rest.
async fn accept_all(listener: TcpListener, accepted: mpsc::Sender<TcpStream>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if accepted.send(stream).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A node on its way to its end.
struct Stopping {
    deadline: tokio::time::Instant,
    /// Who waits for it.
    told: Vec<oneshot::Sender<()>>,
}

impl Stopping {
    fn begin() -> Self {
        Self { deadline: tokio::time::Instant::now() + STOP_GRACE, told: Vec::new() }
    }
}

/// Runs a node until it is told to stop or every handle to it is gone.
async fn run(
    config: Config,
    sizes: Sizes,
    mut shell: TokioShell,
    mut commands: mpsc::UnboundedReceiver<Command>,
    mut accepted: mpsc::Receiver<TcpStream>,
    mut done: mpsc::UnboundedReceiver<Done>,
    started: oneshot::Sender<Result<(), &'static str>>,
) {
    let mut memory = memory::Memory::new(&sizes);
    let (tables, outsides, scratch, buffers) = memory.lend();
    let mut links = buffers.places();
    let node = match Node::new(config, tables, &mut crate::random::SYSTEM.clone()) {
        Ok(node) => node,
        Err(error) => {
            let _nobody_waits = started.send(Err(error));
            return;
        }
    };
    let mut driver = Driver::new(node, Places { links: &mut links, outsides, scratch });
    let origin = tokio::time::Instant::now();
    let readiness = std::sync::Arc::clone(&shell.readiness);
    let mut tokens = Vec::new();
    let mut spare = Vec::new();
    let mut again = Vec::new();
    let mut stopping: Option<Stopping> = None;
    let _nobody_waits = started.send(Ok(()));

    loop {
        let now = Instant::from_millis(origin.elapsed().as_millis() as u64);
        // A fixed order: what is done, what was asked for, what is ready, and then what follows from all that.
        while let Ok(done) = done.try_recv() {
            handle_done(&mut driver, &mut shell, done, now);
        }
        loop {
            match commands.try_recv() {
                Ok(Command::Stop(reply)) => {
                    driver.node_mut().stop();
                    stopping.get_or_insert_with(Stopping::begin).told.push(reply);
                }
                Ok(command) => handle_command(&mut driver, &mut shell, command, now),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    shell.end_conversations();
                    return;
                }
            }
        }
        while let Ok(stream) = accepted.try_recv() {
            accept(&mut driver, &mut shell, stream, now);
        }
        readiness.take(&mut tokens, &mut spare);
        tokens.append(&mut again);
        let mut more = More::No;
        for token in tokens.drain(..) {
            match token {
                Token::Link(link) => {
                    if driver.service_link(&mut shell, link, now) == More::Yes {
                        more = More::Yes;
                        again.push(token);
                    }
                }
                Token::Conversation(name) => driver.service_conversation(&mut shell, name, now),
            }
        }
        driver.handle_timeout(&mut shell, now);
        if driver.drain(&mut shell, now) == More::Yes {
            more = More::Yes;
        }
        shell.traffic.note_cells(driver.node().counters());
        if let Some(stopping) = &mut stopping
            && (driver.node().usage().circuits == 0 || tokio::time::Instant::now() >= stopping.deadline)
        {
            // Before the reply: the process may end right behind it, and what it leaves open the system ends as if all was well.
            shell.end_conversations();
            driver.close_all(&mut shell, now);
            for told in stopping.told.drain(..) {
                let _nobody_waits = told.send(());
            }
            return;
        }
        if more == More::Yes {
            tokio::task::yield_now().await;
            continue;
        }
        let wake = match (driver.poll_timeout(), &stopping) {
            (_, Some(_)) => tokio::time::Instant::now() + Duration::from_millis(20),
            (Some(at), None) => origin + Duration::from_millis(at.millis()),
            (None, None) => origin + Duration::from_secs(u64::from(u32::MAX)),
        };
        tokio::select! {
            () = readiness.ready() => {}
            Some(finished) = done.recv() => handle_done(&mut driver, &mut shell, finished, now),
            Some(stream) = accepted.recv() => accept(&mut driver, &mut shell, stream, now),
            command = commands.recv() => match command {
                Some(Command::Stop(reply)) => {
                    driver.node_mut().stop();
                    stopping.get_or_insert_with(Stopping::begin).told.push(reply);
                }
                Some(command) => handle_command(&mut driver, &mut shell, command, now),
                None => {
                    shell.end_conversations();
                    return;
                }
            },
            () = tokio::time::sleep_until(wake) => {}
        }
    }
}

fn handle_done(driver: &mut Driver<'_, '_, TokioShell>, shell: &mut TokioShell, done: Done, now: Instant) {
    match done {
        Done::Link(link, stream) => {
            let stream = stream.map(|stream| shell.link_stream(link, stream));
            driver.handle_link_stream(shell, link, stream, now);
        }
        Done::Target(name, reached) => {
            let reached = reached.map(|(stream, address)| (shell.outside_tcp(name, stream), address));
            driver.handle_target(shell, name, reached, now);
        }
        Done::Service(name, service) => {
            // Without a link the circuit has ended in the meantime.
            if let Some(link) = driver.node().came_over(name) {
                let served = shell.outside_service(name, service, link);
                driver.handle_service(shell, name, served, now);
            }
        }
        Done::Unserved(name, reason, stream) => {
            driver.node_mut().handle_failed(name, reason, now);
            drop(stream);
        }
        Done::Peeled(job, peeled, next) => driver.handle_peeled(job, peeled, &next, now),
        Done::Signed(name, time, signature) => driver.handle_signed(name, time, &signature, now),
        Done::Unsigned(name, reason) => driver.node_mut().handle_failed(name, reason, now),
    }
}

fn handle_command(driver: &mut Driver<'_, '_, TokioShell>, shell: &mut TokioShell, command: Command, now: Instant) {
    match command {
        Command::Contact(address, node, reply) => match driver.contact(address, node, now) {
            Some(link) => shell.contacts.entry(link).or_default().push(reply),
            None => drop(reply),
        },
        Command::Open(open) => {
            let opening = Opening {
                node: open.node,
                address: open.address,
                onion: &open.onion,
                keys: &open.keys,
                target: &open.target,
                options: open.options,
                first: &open.first,
            };
            let opened = driver.open(&opening, now).map(|name| {
                let (progress, watched) = watch::channel(Progress::default());
                shell.conversations.insert(name, progress);
                (name, watched)
            });
            if let Err(Ok((name, _))) = open.reply.send(opened) {
                driver.release(name, false, now);
                shell.conversations.remove(&name);
            }
        }
        Command::AttachPipe(name, pipe) => {
            let stream = Outside::Pipe(Waking::new(pipe, shell.readiness.waker(Token::Conversation(name))));
            driver.attach(shell, name, stream, now);
        }
        Command::AttachTcp(name, stream) => match TcpStream::from_std(stream) {
            Ok(stream) => {
                let stream = shell.outside_tcp(name, stream);
                driver.attach(shell, name, stream, now);
            }
            Err(error) => {
                debug!(%error, "a connection could not be attached");
                driver.release(name, false, now);
                shell.conversations.remove(&name);
            }
        },
        Command::Release(name, graceful) => {
            driver.release(name, graceful, now);
            shell.conversations.remove(&name);
        }
        Command::Rotate(secret, descriptor) => {
            shell.keys.onion.write().unwrap_or_else(PoisonError::into_inner).rotate(*secret);
            shell.descriptor = descriptor;
            shell.onion_key_since = tokio::time::Instant::now();
            driver.node_mut().handle_rotation();
            debug!("onion key rotated");
        }
        Command::Describe(descriptor) => shell.descriptor = descriptor,
        Command::Status(reply) => {
            let node = driver.node();
            let _nobody_waits = reply.send(Status {
                usage: node.usage(),
                capacity: node.capacity(),
                census: node.link_census(),
                replay: node.replay_usage(),
                onion_key_age: shell.onion_key_since.elapsed(),
                counters: *node.counters(),
                ends: shell.ends,
                rotation_due: node.is_rotation_due(),
            });
        }
        Command::Stop(_) => {}
    }
}

fn accept(driver: &mut Driver<'_, '_, TokioShell>, shell: &mut TokioShell, stream: TcpStream, now: Instant) {
    // The waker needs the link's number, which is known once the link has its place; until then the stream sleeps.
    let Some(link) = driver.reserve_link(shell, now) else {
        debug!("link refused: no place for it");
        return;
    };
    let stream = shell.link_stream(link, stream);
    driver.handle_accepted(link, stream);
    let _woken_by_its_token = driver.service_link(shell, link, now);
}
