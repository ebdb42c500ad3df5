//! The server's sockets: connections, deadlines, and threads for the private-key operations and the disk.
//!
//! Everything that a client may make it hold is bounded: connections in all and from one address, the bytes of a frame (the
//! core's bound, checked as soon as the two length bytes are there, before room is made for the rest), the time without a request, the time
//! for a whole one, the private-key operations at one time (as many as cores) and the answers in work (`ANSWERING`).
//! Who gives way when there are too many connections is `places`' to decide.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bulbil_core::auth::server::{Answered, Connection};
use bulbil_core::auth::{Allowance, ChannelFailed, Fingerprint, Frame, LENGTH_LEN, PublicKey, Server, Status};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};
use zeroize::Zeroizing;

use super::database::{Database, DatabaseError, Writing};
use super::place::Place;
use crate::files::is_exhaustion;
use crate::random::SYSTEM;
use crate::shutdown::Shutdown;

mod places;

use places::{PlaceId, Places};

/// Answers in work at one time. More than cores, because most of them wait for the disk together: one commit serves them all.
const ANSWERING: usize = 64;
/// 8 MiB of allowances. A half holds 524,288: more than the known session keys of all users, and 3 times what one core can
/// keep in debt.
const ALLOWANCES: usize = 1 << 20;
/// How long accepting waits after the system refused (usually: too many open files).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long answers in work may take when the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// What clients may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all. Each is an open file and up to 10 KiB.
    pub connections: usize,
    /// Connections from one address (IPv6: from one /64). All users of an exit share its address, so it must not be small.
    pub per_address: usize,
    /// Time from connecting to the first request's first byte.
    pub opening: Duration,
    /// Time from an answer to the next request's first byte.
    pub idle: Duration,
    /// Time from a request's first byte to its last, and for an answer to be taken.
    pub frame: Duration,
}

impl Default for Limits {
    /// 768 connections fit into the 1,024 open files that most systems allow.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connections: 768, per_address: 576, opening: seconds(30), idle: seconds(60), frame: seconds(20) }
    }
}

/// What the server has done so far.
#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicU64,
    evicted: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    answered: AtomicU64,
    signed_up: AtomicU64,
    signed_in: AtomicU64,
    opening_nanos: AtomicU64,
    answering_nanos: AtomicU64,
}

/// What the server has done so far; no names in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Connections taken.
    pub accepted: u64,
    /// Connections that had to give way to others.
    pub evicted: u64,
    /// Connections refused, because none could give way.
    pub refused: u64,
    /// Connections closed for what the client sent.
    pub failed: u64,
    /// Requests answered.
    pub answered: u64,
    /// Accounts made.
    pub signed_up: u64,
    /// Sessions begun.
    pub signed_in: u64,
    /// Time in opening frames, over all threads: mostly one private-key operation a connection.
    pub opening: Duration,
    /// Time in answering them, over all threads: a signature's verification, and waiting for the disk.
    pub answering: Duration,
}

impl Counters {
    fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            accepted: count(&self.accepted),
            evicted: count(&self.evicted),
            refused: count(&self.refused),
            failed: count(&self.failed),
            answered: count(&self.answered),
            signed_up: count(&self.signed_up),
            signed_in: count(&self.signed_in),
            opening: Duration::from_nanos(count(&self.opening_nanos)),
            answering: Duration::from_nanos(count(&self.answering_nanos)),
        }
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

fn add_time(counter: &AtomicU64, since: Instant) {
    add(counter, u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX));
}

/// What all connections share.
struct Shared {
    server: Server<Vec<Allowance>>,
    database: Database,
    limits: Limits,
    /// Private-key operations at one time.
    opening: Arc<Semaphore>,
    answering: Arc<Semaphore>,
    places: Mutex<Places>,
    counters: Counters,
    started: Instant,
}

/// Why a connection ended, other than by the client.
#[derive(Debug)]
enum Ended {
    /// What the client sent is no frame of this connection.
    Channel,
    /// The client took too long.
    Deadline,
    Io(io::Error),
    /// A thread panicked.
    Panicked,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Channel => ChannelFailed.fmt(f),
            Self::Deadline => f.write_str("took too long"),
            Self::Io(error) => error.fmt(f),
            Self::Panicked => f.write_str("a thread panicked"),
        }
    }
}

impl From<ChannelFailed> for Ended {
    fn from(_: ChannelFailed) -> Self {
        Self::Channel
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The server. Clones speak of the same one.
#[derive(Clone)]
pub struct AuthServer {
    shared: Arc<Shared>,
}

impl AuthServer {
    /// The server of `place`, whose users are in `database`.
    #[must_use]
    pub fn new(place: Place, database: Database, limits: Limits) -> (Self, PlaceKept) {
        let Place { state, secret, parameters, .. } = place;
        let allowances = (0..ALLOWANCES).map(|_| Allowance::new()).collect();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = Shared {
            server: Server::new(secret, parameters, allowances, &mut SYSTEM.clone()),
            database,
            limits,
            opening: Arc::new(Semaphore::new(cores)),
            answering: Arc::new(Semaphore::new(ANSWERING)),
            places: Mutex::new(Places::new(limits.connections, limits.per_address)),
            counters: Counters::default(),
            started: Instant::now(),
        };
        (Self { shared: Arc::new(shared) }, PlaceKept(state))
    }

    /// The server's public key.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        self.shared.server.public()
    }

    /// What clients pin the server by.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.public().fingerprint()
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.counters.counts()
    }

    /// Why it does not serve any more, if that is because its users can no longer be stored.
    #[must_use]
    pub fn failure(&self) -> Option<DatabaseError> {
        self.shared.database.failure()
    }

    /// Serves until `shutdown`, or until the database fails for good ([`Self::failure`]); then no request is taken any more, and those in work
    /// are answered.
    pub async fn serve(self, listener: TcpListener, shutdown: Shutdown) {
        let mut clients = JoinSet::new();
        // Warned of once until it is over.
        let mut exhausted = false;
        loop {
            let accepted = tokio::select! {
                () = shutdown.requested() => break,
                failure = self.shared.database.lost() => {
                    error!(%failure, "the server stops");
                    break;
                }
                Some(_) = clients.join_next() => continue,
                // Whoever had to give way keeps an open file until its task has run.
                accepted = listener.accept(), if clients.len() <= self.shared.limits.connections => accepted,
            };
            match accepted {
                Ok((stream, from)) => {
                    if core::mem::take(&mut exhausted) {
                        info!("connections are accepted again");
                    }
                    let Some(seat) = self.shared.admit(from) else { continue };
                    let shared = Arc::clone(&self.shared);
                    clients.spawn(async move {
                        let _unsupported = stream.set_nodelay(true);
                        shared.converse(stream, &seat).await;
                    });
                }
                Err(error) if is_exhaustion(&error) => {
                    if !core::mem::replace(&mut exhausted, true) {
                        warn!(%error, "cannot accept connections; is the limit of open files too small?");
                    }
                    self.shared.places().evict_one();
                    sleep(ACCEPT_PAUSE).await;
                }
                // The client gave up before it was served: nobody else has to suffer for it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    debug!(%error, "a connection was not accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        self.shared.places().close();
        let finished = async { while clients.join_next().await.is_some() {} };
        // What is not answered by then is cut off; whatever it changed is stored whole or not at all.
        let _cut_off = timeout(GRACE, finished).await;
    }
}

/// Keeps the state directory locked.
pub struct PlaceKept(#[expect(dead_code, reason = "held for its lock")] crate::state::StateDir);

impl PlaceKept {
    /// Waits until the database is closed, then gives the directory free. Drop the server before.
    pub fn end(self, writing: Writing) {
        writing.end();
    }
}

/// A connection's place, given back when dropped.
struct Seat {
    shared: Arc<Shared>,
    id: PlaceId,
    evicted: Arc<Notify>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.places().leave(self.id);
    }
}

/// Whom an address belongs to, as far as addresses tell: a household has a /64.
fn group(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) & !u128::from(u64::MAX)).into()),
        ip @ IpAddr::V4(_) => ip,
    }
}

impl Shared {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> bulbil_core::time::Instant {
        let millis = self.started.elapsed().as_millis();
        bulbil_core::time::Instant::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    fn admit(self: &Arc<Self>, from: SocketAddr) -> Option<Seat> {
        let admitted = self.places().admit(group(from));
        match admitted {
            Some(admitted) => {
                add(&self.counters.accepted, 1);
                add(&self.counters.evicted, admitted.evicted.into());
                Some(Seat { shared: Arc::clone(self), id: admitted.id, evicted: admitted.notice })
            }
            None => {
                add(&self.counters.refused, 1);
                None
            }
        }
    }

    async fn converse<S: AsyncRead + AsyncWrite + Unpin>(self: &Arc<Self>, stream: S, seat: &Seat) {
        let ended = tokio::select! {
            // In this order: an answer that is there goes out before the connection gives way.
            biased;
            ended = self.requests(stream, seat) => ended,
            () = seat.evicted.notified() => Ok(()),
        };
        if let Err(ended) = ended {
            if matches!(ended, Ended::Channel) {
                add(&self.counters.failed, 1);
            }
            debug!(%ended, "a client's connection ended");
        }
    }

    async fn requests<S: AsyncRead + AsyncWrite + Unpin>(
        self: &Arc<Self>,
        mut stream: S,
        seat: &Seat,
    ) -> Result<(), Ended> {
        let (mut connection, greeting) = self.server.greet(&mut SYSTEM.clone());
        self.write(&mut stream, &greeting).await?;
        let (mut patience, mut opened) = (self.limits.opening, false);
        loop {
            let mut field = [0; LENGTH_LEN];
            let read = timeout(patience, stream.read(&mut field)).await.map_err(|_| Ended::Deadline)??;
            if read == 0 {
                return Ok(());
            }
            let rest = async {
                if let Some(missing @ [_, ..]) = field.get_mut(read..) {
                    stream.read_exact(missing).await?;
                }
                let mut body = Zeroizing::new(vec![0; connection.frame_len(field)?]);
                stream.read_exact(&mut body).await?;
                Ok::<_, Ended>(body)
            };
            let body = timeout(self.limits.frame, rest).await.map_err(|_| Ended::Deadline)??;
            let Some((back, reply)) = self.answer(connection, body, &mut opened, seat).await? else { return Ok(()) };
            connection = back;
            let go_on = self.places().waits(seat.id, connection.is_authentic());
            self.write(&mut stream, (*reply).as_ref()).await?;
            if !go_on || connection.is_closed() {
                return Ok(());
            }
            patience = self.limits.idle;
        }
    }

    async fn write<S: AsyncWrite + Unpin>(&self, stream: &mut S, bytes: &[u8]) -> Result<(), Ended> {
        timeout(self.limits.frame, stream.write_all(bytes)).await.map_err(|_| Ended::Deadline)??;
        Ok(())
    }

    /// Opens and answers a frame on another thread; `None` if that may not begin any more.
    async fn answer(
        self: &Arc<Self>,
        mut connection: Connection,
        mut body: Zeroizing<Vec<u8>>,
        opened: &mut bool,
        seat: &Seat,
    ) -> Result<Option<(Connection, Box<Frame>)>, Ended> {
        let never = "nobody closes the semaphores";
        // Only a first frame needs the private key: what comes later does not queue behind whoever connects. The
        // private key is waited for first, so that those who wait for it hold nothing that others need.
        let opening = match core::mem::replace(opened, true) {
            false => Some(Arc::clone(&self.opening).acquire_owned().await.expect(never)),
            true => None,
        };
        let answering = Arc::clone(&self.answering).acquire_owned().await.expect(never);
        // Not before: who has sent garbage and waits in the queue may have to give way.
        if !self.places().busy(seat.id) {
            return Ok(None);
        }
        let shared = Arc::clone(self);
        let answered = spawn_blocking(move || {
            let _answering = answering;
            let counters = &shared.counters;
            let began = Instant::now();
            let incoming = connection.receive(&shared.server, &mut body, &mut SYSTEM.clone());
            add_time(&counters.opening_nanos, began);
            drop(opening);
            let (began, mut reply) = (Instant::now(), Box::new(Frame::new()));
            let (mut users, now) = (shared.database.clone(), shared.now());
            let answered =
                connection.answer(&shared.server, incoming?, &mut users, now, &mut SYSTEM.clone(), &mut reply)?;
            add_time(&counters.answering_nanos, began);
            add(&counters.answered, 1);
            match answered {
                Answered::Log(Status::SignedUp) => add(&counters.signed_up, 1),
                Answered::Log(Status::SignedIn(_)) => add(&counters.signed_in, 1),
                _ => {}
            }
            Ok::<_, ChannelFailed>((connection, reply))
        });
        Ok(Some(answered.await.map_err(|_| Ended::Panicked)??))
    }
}

#[cfg(test)]
mod tests;
