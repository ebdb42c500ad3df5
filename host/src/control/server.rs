//! Serving the socket: few at a time, briefly, and never at the node's cost.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tracing::debug;

use super::book::{KeyKind, Question, Role};
use super::file::FILE_MAX;
use super::gauge::{self, Gauge};
use super::import::{self, Unjudged};
use super::message::{self, Answer, Ask, Complaint, LineError, REPLY_MAX, REQUEST_MAX, Reply, Request};
use super::report::{Parts, Report, Traffic};
use super::socket::Socket;
use crate::config::Config;
use crate::engine::shell::unix_time;
use crate::files::Refusals;
use crate::node::Node;
use crate::shutdown::Shutdown;

/// Connections at one time.
pub(super) const CONNECTIONS: usize = 8;
/// How long a request may take to come, how long its answer to be taken, and how long the node may take to say something.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Between the beginnings of two requests' work: what the node spends on them is bounded, whoever asks how often.
const SPACING: Duration = Duration::from_millis(50);
/// After the system refuses to accept a connection, for want of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a file that are read at once.
const PIECE: usize = 64 << 10;
/// Descriptors that the phonebook takes in at once; between two such parts it does what others need.
const PART: usize = 64;

/// What a node's configuration says that a report repeats.
#[derive(Debug, Clone)]
pub struct About {
    /// What it does.
    pub roles: Vec<Role>,
    /// Where others are told to reach it; none if that is where it listens.
    pub advertised: Vec<SocketAddr>,
    /// Where its SOCKS5 proxy listens.
    pub socks: Vec<SocketAddr>,
    /// The kind of its onion keys.
    pub onion_key: KeyKind,
}

impl About {
    /// What `config` says; where the proxy listens in truth is for its owner to say.
    #[must_use]
    pub fn new(config: &Config, socks: Vec<SocketAddr>) -> Self {
        let roles =
            [(config.roles.relay, Role::Relay), (config.roles.exit, Role::Exit), (config.roles.client, Role::Client)];
        Self {
            roles: roles.into_iter().filter_map(|(has, role)| has.then_some(role)).collect(),
            advertised: config.advertise.clone(),
            socks,
            onion_key: config.onion_key.kind.into(),
        }
    }
}

/// A socket and the node that is asked there.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
    desk: Arc<Desk>,
}

impl Server {
    /// Nobody is served before [`Self::serve`].
    #[must_use]
    pub fn new(socket: Socket, node: Node, about: About) -> Self {
        let desk = Desk {
            node,
            about,
            gauge: Mutex::default(),
            next: tokio::sync::Mutex::new(Instant::now()),
            importing: Semaphore::new(1),
        };
        Self { socket, desk: Arc::new(desk) }
    }

    /// Answers until `shutdown`; requests that are not answered by then are cut off, and the socket is removed.
    pub async fn serve(self, shutdown: Shutdown) {
        let Self { socket, desk } = self;
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut serving = JoinSet::new();
        let mut refusals = Refusals::default();
        let mut ticks = interval(gauge::INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                _ = ticks.tick() => desk.sample(),
                Some(_) = serving.join_next() => {}
                accepted = socket.listener.accept() => match accepted {
                    Ok((stream, _)) => match Arc::clone(&places).try_acquire_owned() {
                        Ok(place) => {
                            let desk = Arc::clone(&desk);
                            serving.spawn(async move {
                                desk.handle(stream).await;
                                drop(place);
                            });
                        }
                        Err(_) => turn_away(stream),
                    },
                    Err(error) => {
                        if refusals.note("control", &error) {
                            sleep(ACCEPT_PAUSE).await;
                        }
                    }
                }
            }
        }
    }
}

/// Says why, without waiting for anything.
fn turn_away(stream: UnixStream) {
    let reply =
        Reply::error(Complaint::Busy, "the node is talking to as many others as it does at one time; try again");
    let line = message::write_line(&Answer::new(reply));
    // A new connection has room for a line; whoever does not get it sees the end.
    let _told = stream.into_std().and_then(|mut stream| stream.write_all(&line));
}

/// A request that has come as a whole.
enum Asked<'d> {
    Plain(Ask),
    Import(Vec<Box<[u8]>>, SemaphorePermit<'d>),
}

/// A reply, and the file that belongs to it.
type Told = (Reply, String);

/// What all connections share.
#[derive(Debug)]
struct Desk {
    node: Node,
    about: About,
    gauge: Mutex<Gauge>,
    /// Held while a request is worked on; not before this moment is the next one.
    next: tokio::sync::Mutex<Instant>,
    /// One import at a time: its descriptors are in memory.
    importing: Semaphore,
}

impl Desk {
    fn sample(&self) {
        let mut gauge = self.gauge.lock().unwrap_or_else(PoisonError::into_inner);
        gauge.push(Instant::now(), self.node.traffic());
    }

    async fn handle(&self, stream: UnixStream) {
        let mut stream = BufReader::new(stream);
        let (reply, file) = match timeout(PATIENCE, self.read(&mut stream)).await {
            Ok(Ok(Some(asked))) => self.answer(asked).await,
            // Somebody looked whether anybody is here.
            Ok(Ok(None)) => return,
            Ok(Err(complaint)) => (complaint, String::new()),
            Err(_) => {
                let text = format!("the request did not come within {} s", PATIENCE.as_secs());
                (Reply::error(Complaint::Request, text), String::new())
            }
        };
        let mut line = message::write_line(&Answer::new(reply));
        if line.len() > REPLY_MAX {
            line = message::write_line(&Answer::new(Reply::error(Complaint::Request, "the answer is too long")));
        }
        let stream = stream.get_mut();
        let write = async {
            stream.write_all(&line).await?;
            stream.write_all(file.as_bytes()).await?;
            stream.shutdown().await
        };
        match timeout(PATIENCE, write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "a control request's answer was not taken"),
            Err(_) => debug!("a control request's answer was taken too slowly"),
        }
    }

    /// The request, or what to tell about it; nothing if nothing came.
    async fn read(&self, stream: &mut BufReader<UnixStream>) -> Result<Option<Asked<'_>>, Reply> {
        let bad = |text: &str| Reply::error(Complaint::Request, text);
        let broken = |_| bad("the request broke off");
        let mut line = Vec::new();
        stream.take(REQUEST_MAX as u64).read_until(b'\n', &mut line).await.map_err(broken)?;
        if line.pop_if(|end| *end == b'\n').is_none() {
            return match line.len() {
                0 => Ok(None),
                REQUEST_MAX => Err(bad("a request's line has at most 64 KiB")),
                _ => Err(bad("a request is a whole line")),
            };
        }
        let request: Request = message::read_line(&line).map_err(|error| match error {
            LineError::Version(version) => Reply::error(
                Complaint::Version,
                format!(
                    "this node speaks version {} of the control protocol, not {version}; use the same version of bulbil for both",
                    message::VERSION
                ),
            ),
            LineError::Garbage(error) => bad(&format!("this is no request: {error}")),
        })?;
        let Ask::Import { bytes } = request.ask else { return Ok(Some(Asked::Plain(request.ask))) };
        if bytes > FILE_MAX {
            return Err(Reply::error(Complaint::File, super::file::FileError::TooLarge.to_string()));
        }
        let permit = self
            .importing
            .try_acquire()
            .map_err(|_| Reply::error(Complaint::Busy, "another import is going on; try again when that has ended"))?;
        let damaged = |error: super::file::FileError| Reply::error(Complaint::File, error.to_string());
        let mut unjudged = Unjudged::default();
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut piece = vec![0; PIECE.min(left)];
        while left > 0 {
            let room = piece.len().min(left);
            let read = stream.read(piece.get_mut(..room).unwrap_or_default()).await.map_err(broken)?;
            if read == 0 {
                return Err(bad("the file ended before its stated length; nothing was imported"));
            }
            unjudged.feed(piece.get(..read).unwrap_or_default()).map_err(damaged)?;
            left -= read;
        }
        Ok(Some(Asked::Import(unjudged.finish().map_err(damaged)?, permit)))
    }

    async fn answer(&self, asked: Asked<'_>) -> Told {
        let answered = match asked {
            Asked::Plain(ask) => {
                let mut next = self.next.lock().await;
                sleep_until(*next).await;
                *next = Instant::now() + SPACING;
                self.answer_plain(ask).await
            }
            Asked::Import(descriptors, permit) => {
                let imported = self.import(descriptors).await;
                drop(permit);
                imported
            }
        };
        answered.unwrap_or_else(|complaint| (complaint, String::new()))
    }

    async fn answer_plain(&self, ask: Ask) -> Result<Told, Reply> {
        let reply = match ask {
            Ask::Status => self.report().await?,
            Ask::List => Reply::List(self.phonebook(Question::List).await?),
            Ask::Show { prefix } => self.phonebook(|reply| Question::Find(prefix.clone(), reply)).await?.reply(&prefix),
            Ask::Export => return self.export().await,
            Ask::Import { .. } => Reply::error(Complaint::Request, "an import has a file"),
        };
        Ok((reply, String::new()))
    }

    async fn report(&self) -> Result<Reply, Reply> {
        let status = in_time(self.node.status()).await?;
        let phonebook = self.phonebook(Question::Count).await?;
        let totals = self.node.traffic();
        let recent = self.gauge.lock().unwrap_or_else(PoisonError::into_inner).since_oldest(Instant::now(), totals);
        let parts = Parts {
            fingerprint: self.node.fingerprint(),
            listening: self.node.addresses().to_vec(),
            uptime: self.node.uptime(),
            traffic: Traffic { total: totals.into(), recent },
            phonebook,
        };
        Ok(Reply::Status(Box::new(Report::new(&self.about, &status, parts))))
    }

    async fn export(&self) -> Result<Told, Reply> {
        let descriptors = self.phonebook(Question::Export).await?;
        let count = descriptors.len() as u64;
        let text = tokio::task::spawn_blocking(move || import::export(descriptors.iter().map(AsRef::as_ref)));
        let text = text.await.map_err(|_| stopping())?;
        Ok((Reply::Export { count, bytes: text.len() as u64 }, text))
    }

    async fn import(&self, descriptors: Vec<Box<[u8]>>) -> Result<Told, Reply> {
        // Signatures are verified on a thread that nothing else waits for.
        let judged = tokio::task::spawn_blocking(move || import::judge(&descriptors, unix_time()));
        let (good, mut counts) = judged.await.map_err(|_| stopping())?;
        let mut good = good.into_iter();
        loop {
            let part: Vec<_> = good.by_ref().take(PART).collect();
            if part.is_empty() {
                return Ok((Reply::Import(counts), String::new()));
            }
            counts.taken.add(&self.phonebook(|reply| Question::Import(part, reply)).await?);
        }
    }

    async fn phonebook<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, Reply> {
        in_time(self.node.ask_phonebook(question)).await
    }
}

fn stopping() -> Reply {
    Reply::error(Complaint::Stopping, "the node is stopping")
}

/// What a part of the node answers, unless that takes too long.
async fn in_time<T>(answer: impl Future<Output = Option<T>>) -> Result<T, Reply> {
    match timeout(PATIENCE, answer).await {
        Ok(answer) => answer.ok_or_else(stopping),
        Err(_) => Err(Reply::error(Complaint::Busy, "the node has no time to answer; try again")),
    }
}
