//! The SOCKS5 proxy: RFC 1928 with CONNECT, RFC 1929 credentials as isolation key.
//!
//! Names are passed on unresolved: the exit resolves them. Every connection gets a circuit of its own; which path it takes
//! follows from the isolation key, a hash over credentials (any are accepted, also empty ones) and destination. The reply says
//! success only when the exit has connected, and otherwise why not, see [`Reply`].
//!
//! A client has ten seconds for its handshake and a place in a bounded number of connections, so one that dribbles or says
//! nothing costs little. Whoever speaks HTTP to the port gets a page that explains; SOCKS4 is refused in its own words.
//!
//! Written here because no crate fits. `fast-socks5` 1.0 writes user names, passwords and targets to its log, answers with
//! `write` instead of `write_all`, refuses empty and non-UTF-8 credentials, closes on clients of HTTP and SOCKS4
//! without a word, and brings six dependencies that nothing else here needs. `socks5-proto` and `socks5-impl` are under the
//! GPL.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bulbil_core::{phonebook::PathError, wire::Target};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tracing::{debug, info, warn};

use crate::{
    files::Refusals,
    logging::Redacted,
    node::{CircuitStream, EndReason, Node, OpenError, OpenOptions},
    shutdown::Shutdown,
};

mod request;

pub use request::{Rejection, Request};

/// Time for a client's handshake, from its connection to its complete request.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// How much later than its deadline a circuit may say why it is not open. It knows better than we do, who know only that time is up.
const LATENESS: Duration = Duration::from_secs(1);
/// Time to take leave of a client that was refused.
const FAREWELL: Duration = Duration::from_secs(2);
/// Bytes read and thrown away after a refusal, so that closing with unread bytes does not make the system discard the reply.
const FAREWELL_BYTES: u64 = 64 << 10;
/// Time that running connections get at shutdown before they are cut off.
const GRACE: Duration = Duration::from_secs(5);
/// Pause after the system refuses to accept a connection (out of file descriptors, mostly), instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens circuits for clients that are connected over `S`; [`Node`] does, and tests put something smaller in its place.
pub trait Dialer<S>: Clone + Send + Sync + 'static {
    /// One conversation with a target.
    type Circuit: Circuit<S>;

    /// Opens a circuit to `target`; returns as soon as the onion is on its way.
    fn open(
        &self,
        target: Target,
        options: OpenOptions,
    ) -> impl Future<Output = Result<Self::Circuit, OpenError>> + Send;
}

/// An open circuit, as the proxy uses it.
pub trait Circuit<S>: Send {
    /// Waits until the exit has connected.
    fn connected(&mut self) -> impl Future<Output = Result<(), OpenError>> + Send;

    /// Moves bytes between `client` and the target until both directions have ended.
    fn splice(self, client: S) -> impl Future<Output = Result<(), OpenError>> + Send;
}

impl Dialer<TcpStream> for Node {
    type Circuit = CircuitStream;

    async fn open(&self, target: Target, options: OpenOptions) -> Result<CircuitStream, OpenError> {
        Self::open(self, target, options).await
    }
}

impl Circuit<TcpStream> for CircuitStream {
    async fn connected(&mut self) -> Result<(), OpenError> {
        Self::connected(self).await.map(|_reached| ())
    }

    async fn splice(self, client: TcpStream) -> Result<(), OpenError> {
        Self::splice(self, client).await
    }
}

/// What a client is told, RFC 1928 section 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reply {
    /// The exit has connected.
    Succeeded = 0,
    /// No path, a node or link on it failed, or the exit is busy: not the target's fault.
    GeneralFailure = 1,
    /// The exit's policy forbids the target.
    NotAllowed = 2,
    /// The target's network or host cannot be reached from the exit.
    NetworkUnreachable = 3,
    /// The name does not resolve, or is none.
    HostUnreachable = 4,
    /// The target refuses the connection, or resets it as soon as it is there.
    ConnectionRefused = 5,
    /// The target, or the way to it, took too long.
    TtlExpired = 6,
    /// The command is not CONNECT.
    CommandNotSupported = 7,
    /// The address is of an unknown type.
    AddressTypeNotSupported = 8,
}

impl Reply {
    /// The reply's bytes. The bound address is all zeros: the exit's own address toward the target is not known here.
    #[must_use]
    pub const fn bytes(self) -> [u8; 10] {
        [request::VERSION, self as u8, 0, request::TYPE_IPV4, 0, 0, 0, 0, 0, 0]
    }
}

impl From<&OpenError> for Reply {
    fn from(error: &OpenError) -> Self {
        match error {
            OpenError::Ended(EndReason::Refused | EndReason::Reset) => Self::ConnectionRefused,
            OpenError::Ended(EndReason::NotResolved) => Self::HostUnreachable,
            OpenError::Ended(EndReason::Forbidden) | OpenError::NoPath(PathError::NoExitForPort(_)) => Self::NotAllowed,
            OpenError::Ended(EndReason::Unreachable) => Self::NetworkUnreachable,
            OpenError::Ended(EndReason::TimedOut) | OpenError::Deadline => Self::TtlExpired,
            _ => Self::GeneralFailure,
        }
    }
}

/// The proxy's bounds.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Connections at one time, over all listeners; more are closed at once.
    pub connections: usize,
    /// Time within which a target must answer.
    pub deadline: Duration,
}

/// What the proxy has done since its start.
#[derive(Debug, Default)]
pub struct Counters {
    accepted: AtomicU64,
    over_limit: AtomicU64,
    handshake_timeouts: AtomicU64,
    rejected: AtomicU64,
    failed: AtomicU64,
    opened: AtomicU64,
    broken: AtomicU64,
}

/// Values of [`Counters`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that got a place.
    pub accepted: u64,
    /// Connections closed at once because every place was taken.
    pub over_limit: u64,
    /// Clients that did not finish their handshake in time.
    pub handshake_timeouts: u64,
    /// Clients whose handshake was no proper SOCKS5 CONNECT.
    pub rejected: u64,
    /// Requests answered with a failure.
    pub failed: u64,
    /// Requests answered with success.
    pub opened: u64,
    /// Of those opened, the ones that ended with an error later.
    pub broken: u64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A SOCKS5 proxy; clones are the same one, so several listeners share its bounds.
#[derive(Debug, Clone)]
pub struct Proxy<D> {
    dialer: D,
    settings: Settings,
    places: Arc<Semaphore>,
    counters: Arc<Counters>,
    /// Whether the log has said that every place is taken. It says so again only after half of them were free, so that a flood of
    /// clients is not a flood of lines.
    full: Arc<AtomicBool>,
}

impl<D> Proxy<D> {
    /// A proxy that opens its circuits with `dialer`.
    pub fn new(dialer: D, settings: Settings) -> Self {
        let places = Arc::new(Semaphore::new(settings.connections.min(Semaphore::MAX_PERMITS)));
        Self { dialer, settings, places, counters: Arc::default(), full: Arc::default() }
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &*self.counters;
        Counts {
            accepted: read(&counters.accepted),
            over_limit: read(&counters.over_limit),
            handshake_timeouts: read(&counters.handshake_timeouts),
            rejected: read(&counters.rejected),
            failed: read(&counters.failed),
            opened: read(&counters.opened),
            broken: read(&counters.broken),
        }
    }

    /// A place for one connection, if there is one.
    fn place(&self) -> Option<OwnedSemaphorePermit> {
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => {
                if self.places.available_permits() > self.settings.connections / 2 {
                    self.full.store(false, Ordering::Relaxed);
                }
                count(&self.counters.accepted);
                Some(place)
            }
            Err(_) => {
                count(&self.counters.over_limit);
                if !self.full.swap(true, Ordering::Relaxed) {
                    warn!(connections = self.settings.connections, "every SOCKS connection is taken; more are closed");
                }
                None
            }
        }
    }

    /// Serves the clients that connect to `listener` until `shutdown`; then no more are accepted, and those connected have
    /// five seconds to end.
    pub async fn serve(self, listener: TcpListener, shutdown: Shutdown)
    where
        D: Dialer<TcpStream>,
    {
        let mut clients = JoinSet::new();
        let mut refusals = Refusals::default();
        loop {
            let accepted = tokio::select! {
                () = shutdown.requested() => break,
                Some(_) = clients.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            let client = match accepted {
                Ok((client, _)) => client,
                Err(error) => {
                    if refusals.note("SOCKS clients", &error) {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                    continue;
                }
            };
            let Some(place) = self.place() else { continue };
            let proxy = self.clone();
            clients.spawn(async move {
                let _place = place;
                // Requests and replies are small and waited for; a client that is gone already fails at its first read.
                let _ = client.set_nodelay(true);
                proxy.serve_client(client).await;
            });
        }
        drop(listener);
        if timeout(GRACE, async { while clients.join_next().await.is_some() {} }).await.is_err() {
            info!(connections = clients.len(), "cutting off SOCKS connections that go on");
        }
    }

    /// Serves one client from its first byte to the end of its circuit.
    pub async fn serve_client<S>(&self, mut client: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
        D: Dialer<S>,
    {
        let counters = &*self.counters;
        let request = match timeout(HANDSHAKE, request::read(&mut client)).await {
            Ok(Ok(request)) => request,
            Ok(Err(rejection)) => {
                debug!(reason = %rejection, "SOCKS client rejected");
                count(&counters.rejected);
                return farewell(client, rejection.answer()).await;
            }
            Err(_) => {
                debug!("SOCKS client did not finish its handshake in time");
                return count(&counters.handshake_timeouts);
            }
        };
        let target = Redacted(request.target.clone());
        let circuit = match timeout(self.settings.deadline + LATENESS, self.connect(request)).await {
            Ok(Ok(circuit)) => circuit,
            failure => {
                let error = failure.map_or(OpenError::Deadline, |result| match result {
                    Ok(_) => OpenError::Shutdown,
                    Err(error) => error,
                });
                debug!(%target, %error, "SOCKS request failed");
                count(&counters.failed);
                return farewell(client, &Reply::from(&error).bytes()).await;
            }
        };
        match timeout(HANDSHAKE, send(&mut client, &Reply::Succeeded.bytes())).await {
            Ok(Ok(())) => count(&counters.opened),
            // Gone, or it does not read ten bytes: dropping the circuit closes it.
            _ => return count(&counters.failed),
        }
        debug!(%target, "SOCKS request connected");
        if let Err(error) = circuit.splice(client).await {
            debug!(%target, %error, "SOCKS connection broke");
            count(&counters.broken);
        }
    }

    async fn connect<S>(&self, request: Request) -> Result<D::Circuit, OpenError>
    where
        D: Dialer<S>,
    {
        let options = OpenOptions { isolation: Some(request.isolation), deadline: self.settings.deadline };
        let mut circuit = self.dialer.open(request.target, options).await?;
        circuit.connected().await?;
        Ok(circuit)
    }
}

async fn send<S: AsyncWrite + Unpin>(client: &mut S, bytes: &[u8]) -> io::Result<()> {
    client.write_all(bytes).await?;
    client.flush().await
}

/// Says why not, and closes in such a way that the client gets to read it.
async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(mut client: S, answer: &[u8]) {
    if answer.is_empty() {
        return;
    }
    let leave = async {
        send(&mut client, answer).await?;
        client.shutdown().await?;
        tokio::io::copy(&mut (&mut client).take(FAREWELL_BYTES), &mut tokio::io::sink()).await
    };
    // A client that does not wait for its answer loses nothing but the answer.
    let _ = timeout(FAREWELL, leave).await;
}

#[cfg(test)]
mod tests;
