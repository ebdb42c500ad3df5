//! The node's own request: one fixed message, sent through the network again and again, and its answer.

use core::cell::RefCell;
use core::convert::Infallible;
use core::task::Poll;
use core::time::Duration;

use bulbil_core::client::origin::Receipt;
use bulbil_core::crypto::onion::{HopSpec, build};
use bulbil_core::crypto::receipt::ReceiptParts;
use bulbil_core::driver::Driver;
use bulbil_core::io::ByteStream;
use bulbil_core::node::{ConversationId, Outcome, Plan, Suspect};
use bulbil_core::phonebook::{Guards, LastHop, PATH_MAX, Path, PathRequest};
use bulbil_core::time::Instant;
use bulbil_core::wire::message::{BeginOptions, begin_room};
use bulbil_core::wire::{EndReason, NodeId, UnixTime};
use embedded_io::ErrorType;

use crate::board::{Board, Event, Item, StorageFailed};
use crate::config::Request;
use crate::shell::{BoardShell, Outside};

/// Bytes of an answer on their way to the board.
const ANSWER: usize = 512;
/// Pause after a failure, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// How often in a row a request that has not arrived is sent again.
const RESENT_MAX: u8 = 16;
/// Nodes that are avoided because they have just failed.
const AVOIDED: usize = 4;

/// What passes between the circuit and the board.
pub(crate) struct Exchange {
    answer: heapless::Vec<u8, ANSWER>,
    finished: bool,
}

impl Exchange {
    pub(crate) const EMPTY: Self = Self { answer: heapless::Vec::new(), finished: false };
}

/// The application's end of the node's own circuit: asks nothing beyond what left with BEGIN, and takes the answer.
pub struct OwnStream(&'static RefCell<Exchange>);

impl ErrorType for OwnStream {
    type Error = Infallible;
}

impl OwnStream {
    pub(crate) fn try_read(&self) -> Poll<Result<usize, Infallible>> {
        Poll::Ready(Ok(0))
    }

    pub(crate) fn try_write(&self, bytes: &[u8]) -> Poll<Result<usize, Infallible>> {
        let mut exchange = self.0.borrow_mut();
        let room = (exchange.answer.capacity() - exchange.answer.len()).min(bytes.len());
        match bytes.get(..room) {
            Some(bytes) if room > 0 && exchange.answer.extend_from_slice(bytes).is_ok() => Poll::Ready(Ok(room)),
            _ => Poll::Pending,
        }
    }

    pub(crate) fn finish(&self) {
        self.0.borrow_mut().finished = true;
    }
}

/// What the driver has said of the request that is under way.
#[derive(Default)]
pub(crate) struct Progress {
    name: Option<ConversationId>,
    /// The exit has reached the target.
    pub(crate) connected: bool,
    pub(crate) receipt: Option<Receipt>,
    pub(crate) outcome: Option<Outcome>,
}

impl Progress {
    pub(crate) fn is_of(&self, name: ConversationId) -> bool {
        self.name == Some(name)
    }
}

/// How far the request is.
enum Stage {
    /// To be sent then.
    Waiting(Instant),
    /// On its way.
    Open { path: heapless::Vec<NodeId, PATH_MAX> },
    /// Answered, or failed after it may have arrived, and not to be sent again.
    Done,
}

/// The client.
pub(crate) struct Client {
    request: Request,
    exchange: &'static RefCell<Exchange>,
    guards: Guards,
    stage: Stage,
    pause: Duration,
    avoid: heapless::Vec<NodeId, AVOIDED>,
    /// How often in a row the request was sent again because it had not arrived.
    resent: u8,
    /// The owner knows that no path can be chosen.
    complained: bool,
}

impl Client {
    pub(crate) fn new<B: Board>(
        request: Request,
        exchange: &'static RefCell<Exchange>,
        board: &mut B,
        now: Instant,
    ) -> Self {
        let guards = load_guards(board).unwrap_or_else(|StorageFailed| {
            board.handle_event(Event::StorageFailed(Item::Guards));
            Guards::new()
        });
        let stage = Stage::Waiting(now);
        Self {
            request,
            exchange,
            guards,
            stage,
            pause: PAUSE.0,
            avoid: heapless::Vec::new(),
            resent: 0,
            complained: false,
        }
    }

    /// When [`Client::poll`] has something to do at the latest, if nothing comes.
    pub(crate) const fn poll_timeout(&self) -> Option<Instant> {
        match self.stage {
            Stage::Waiting(until) => Some(until),
            _ => None,
        }
    }

    /// Whether the request is neither under way nor to be sent again.
    pub(crate) const fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// Sends the request when it is time, and hands over what has come; answers whether there was any of that.
    pub(crate) fn poll<B: Board>(
        &mut self,
        driver: &mut Driver<'static, 'static, BoardShell<B>>,
        shell: &mut BoardShell<B>,
    ) -> bool {
        match &self.stage {
            Stage::Waiting(until) if shell.now >= *until => {
                self.send(driver, shell);
                true
            }
            Stage::Open { .. } => {
                let has_come = !self.exchange.borrow().answer.is_empty() || shell.progress.outcome.is_some();
                self.take(driver, shell);
                has_come
            }
            _ => false,
        }
    }

    /// No path yet, or no room: later.
    fn postpone(&mut self, now: Instant) {
        self.stage = Stage::Waiting(now.after(self.pause));
        self.pause = (self.pause * 2).min(PAUSE.1);
    }

    fn send<B: Board>(&mut self, driver: &mut Driver<'static, 'static, BoardShell<B>>, shell: &mut BoardShell<B>) {
        let now = shell.now;
        let Some(time) = shell.time else { return self.stage = Stage::Waiting(now.after(PAUSE.0)) };
        match self.choose(shell, time) {
            Some(path) => self.launch(driver, shell, &path),
            None => self.postpone(now),
        }
    }

    /// A path, if there is one.
    #[inline(never)]
    fn choose<B: Board>(&mut self, shell: &mut BoardShell<B>, time: UnixTime) -> Option<Path> {
        let wanted = PathRequest {
            hops: self.request.hops,
            last: LastHop::from(&self.request.target),
            strictness: self.request.strictness,
            avoid: &self.avoid,
            now: time,
            draw_guards: true,
        };
        let kept = self.guards.to_bytes();
        let path = shell.phonebook.choose_path(&wanted, &mut self.guards, shell.board.rng());
        keep_guards(&self.guards, &kept, &mut shell.board);
        if path.is_err() {
            // Those that were avoided may be all that there is.
            if self.avoid.is_empty() && !core::mem::replace(&mut self.complained, true) {
                shell.board.handle_event(Event::NoPath);
            }
            self.avoid.clear();
        }
        path.ok()
    }

    /// Builds the onion and sends it on its way. Not inlined, as that takes more of the stack than most.
    #[inline(never)]
    fn launch<B: Board>(
        &mut self,
        driver: &mut Driver<'static, 'static, BoardShell<B>>,
        shell: &mut BoardShell<B>,
        path: &Path,
    ) {
        let (now, Request { target, bytes, .. }) = (shell.now, &self.request);
        let hops: heapless::Vec<HopSpec<'_>, PATH_MAX> = path
            .hops()
            .iter()
            .filter_map(|hop| {
                let key = &shell.phonebook.descriptor_of(hop)?.onion_key;
                Some(HopSpec { node: hop.node, key, address: hop.address })
            })
            .collect();
        let Some(first) = path.hops().first() else { return self.postpone(now) };
        debug_assert!(bytes.len() <= begin_room(target));
        let plan = Plan {
            node: first.node,
            address: first.address,
            target,
            options: BeginOptions { sign: self.request.sign, once: true },
            first: bytes,
        };
        let rng = shell.board.rng();
        let opened = driver.open_in_place(&plan, |onion| build(&hops, onion, rng).ok(), now);
        drop(hops);
        let Ok(name) = opened else { return self.postpone(now) };
        self.stage = Stage::Open { path: path.hops().iter().map(|hop| hop.node).collect() };
        *self.exchange.borrow_mut() = Exchange::EMPTY;
        shell.progress = Progress { name: Some(name), connected: false, receipt: None, outcome: None };
        driver.attach(shell, name, Outside::Own(OwnStream(self.exchange)), now);
    }

    #[inline(never)]
    fn take<B: Board>(&mut self, driver: &mut Driver<'static, 'static, BoardShell<B>>, shell: &mut BoardShell<B>) {
        let mut exchange = self.exchange.borrow_mut();
        if !exchange.answer.is_empty() {
            shell.board.handle_event(Event::Answer(&exchange.answer));
            exchange.answer.clear();
            if let Some(name) = shell.progress.name {
                driver.node_mut().call_again(name);
            }
        }
        let finished = exchange.finished;
        drop(exchange);
        let lost = shell.progress.name.is_none_or(|name| !driver.node().knows(name));
        let unknown = lost.then_some(Outcome { end: None, close: None });
        let Some(outcome) = shell.progress.outcome.or(unknown) else { return };
        let Stage::Open { path } = core::mem::replace(&mut self.stage, Stage::Done) else { return };
        let Progress { receipt, connected, .. } = core::mem::take(&mut shell.progress);
        let whole = finished && matches!(outcome.end, None | Some((EndReason::Done, _)));
        if whole {
            let receipt = self.request.sign.then(|| {
                let exit = path.last().zip(receipt);
                exit.is_some_and(|(exit, receipt)| self.verifies(shell, *exit, &receipt))
            });
            shell.board.handle_event(Event::Answered { receipt });
            if let Some(time) = shell.time {
                path.iter().for_each(|node| shell.phonebook.record_success(node, time));
                // Now that others answer: who cannot be used is not out of reach for want of a connection.
                let kept = self.guards.to_bytes();
                self.guards.review(&shell.phonebook, time);
                keep_guards(&self.guards, &kept, &mut shell.board);
            }
            (self.pause, self.resent) = (PAUSE.0, 0);
            self.avoid.clear();
        } else {
            self.learn(&outcome, &path, shell);
            shell.board.handle_event(Event::RequestFailed(outcome));
        }
        match self.request.every {
            // What may have arrived is not sent a second time before its time; and why a circuit closed any relay can make up, so that is not
            // believed for ever.
            _ if !whole && !connected && outcome.is_undelivered() && self.resent < RESENT_MAX => {
                self.resent += 1;
                self.postpone(shell.now);
            }
            Some(every) => {
                self.resent = 0;
                self.stage = Stage::Waiting(shell.now.after(every));
            }
            None => {}
        }
    }

    fn verifies<B: Board>(&self, shell: &BoardShell<B>, exit: NodeId, receipt: &Receipt) -> bool {
        let parts = ReceiptParts::new(exit, &self.request.target, &receipt.transcript, receipt.time.0);
        let identity = shell.phonebook.get(&exit).map(|entry| &entry.descriptor().identity);
        parts.ok().zip(identity).is_some_and(|(parts, identity)| parts.verify(identity, &receipt.signature).is_ok())
    }

    fn learn<B: Board>(&mut self, outcome: &Outcome, path: &[NodeId], shell: &mut BoardShell<B>) {
        let Some(suspect) = outcome.suspect(path.len()) else { return };
        if let Suspect::Hop(hop) = suspect
            && let Some(&node) = path.get(hop.value())
        {
            if let Some(time) = shell.time {
                shell.phonebook.record_failure(&node, false, time);
            }
            if self.avoid.is_full() {
                self.avoid.clear();
            }
            let _room_was_made = self.avoid.push(node);
        }
        shell.contacts.doubt(shell.now);
    }
}

fn load_guards<B: Board>(board: &mut B) -> Result<Guards, StorageFailed> {
    let mut bytes = [0; crate::board::ITEM_MAX_LEN];
    let len = board.load(Item::Guards, &mut bytes)?.unwrap_or(0);
    // What cannot be read is as good as none.
    Ok(Guards::from_bytes(bytes.get(..len).unwrap_or(&[])).unwrap_or_default())
}

/// Keeps the guards if they are not as they were kept last.
fn keep_guards<B: Board>(guards: &Guards, kept: &[u8], board: &mut B) {
    let bytes = guards.to_bytes();
    if bytes != *kept && board.store(Item::Guards, &bytes).is_err() {
        board.handle_event(Event::StorageFailed(Item::Guards));
    }
}

impl ErrorType for Outside {
    type Error = embedded_io::ErrorKind;
}

impl ByteStream for Outside {
    fn try_read(&mut self, buffer: &mut [u8]) -> Poll<Result<usize, Self::Error>> {
        match self {
            Self::Target(stream) => stream.try_read(buffer),
            Self::Own(stream) => stream.try_read().map_err(|never| match never {}),
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> Poll<Result<usize, Self::Error>> {
        match self {
            Self::Target(stream) => stream.try_write(bytes),
            Self::Own(stream) => stream.try_write(bytes).map_err(|never| match never {}),
        }
    }

    fn finish(&mut self) -> Result<(), Self::Error> {
        match self {
            Self::Target(stream) => stream.finish(),
            Self::Own(stream) => {
                stream.finish();
                Ok(())
            }
        }
    }
}
