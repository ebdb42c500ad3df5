//! The constrained node: one loop over the network stack, the core's driver, and what looks after both.

use core::cell::RefCell;
use core::net::SocketAddr;
use core::time::Duration;

use bulbil_core::driver::{Driver, More, Places};
use bulbil_core::node::{self, Node, Patience};
use bulbil_core::phonebook::{BookKey, Grouping, Phonebook, Shelves};
use bulbil_core::time::Instant;
use bulbil_core::wire::{NodeId, Policy, Verdict};
use embedded_io::ErrorKind;
use smoltcp::phy::Device;
use smoltcp::socket::tcp::State;

use crate::board::{Board, Event};
use crate::calendar::Calendar;
use crate::client::{Client, Progress};
use crate::config::Config;
use crate::contacts::Contacts;
use crate::keys::{Care, KeyError, Keys, Stored};
use crate::memory::{Lent, Limits, Memory, Tables};
use crate::net::{self, Net, Use};
use crate::shell::{BoardShell, Outside};
use crate::target::Dials;

/// Rounds of work in one [`ConstrainedNode::poll`].
const ROUNDS: usize = 8;
/// How long a node that stops waits for its circuits to end.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// How long a constrained node waits for others: less than a host, because its places are few.
const PATIENCE: Patience = Patience {
    handshake: Duration::from_secs(10),
    opening: Duration::from_secs(20),
    idle: Duration::from_secs(300),
    draining: Duration::from_secs(20),
    link_idle: Duration::from_secs(60),
};

/// Why a node does not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartError {
    /// The configuration contradicts itself; the sentence says where.
    Config(&'static str),
    /// There are no keys to start with.
    Keys(KeyError),
}

impl core::fmt::Display for StartError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Config(sentence) => f.write_str(sentence),
            Self::Keys(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for StartError {}

/// A node with its device, its board and its memory.
pub struct ConstrainedNode<D: Device, B: Board> {
    device: D,
    net: &'static RefCell<Net>,
    driver: Driver<'static, 'static, BoardShell<B>>,
    shell: BoardShell<B>,
    client: Option<Client>,
    /// When a node that stops gives up its circuits.
    stopping: Option<Instant>,
}

impl<D: Device, B: Board> ConstrainedNode<D, B> {
    /// Starts a node. It does nothing until it is polled.
    ///
    /// # Errors
    /// [`StartError`]; the sentence says what to do.
    pub fn start<
        T: Tables,
        const LINKS: usize,
        const CIRCUITS: usize,
        const LINK_SOCKETS: usize,
        const TARGETS: usize,
        const SOCKETS: usize,
        const NODES: usize,
        const RECEIVE: usize,
        const SEND: usize,
    >(
        memory: &'static mut Memory<B, T, LINKS, CIRCUITS, LINK_SOCKETS, TARGETS, SOCKETS, NODES, RECEIVE, SEND>,
        device: D,
        mut board: B,
        config: Config,
    ) -> Result<Self, StartError> {
        config.check().map_err(StartError::Config)?;
        let now = board.now();
        let keys = Stored::load(&config, &mut board).map_err(StartError::Keys)?;
        let limits = Memory::<B, T, LINKS, CIRCUITS, LINK_SOCKETS, TARGETS, SOCKETS, NODES, RECEIVE, SEND>::limits();
        Self::assemble(memory.lend(), &limits, device, board, (config, keys), now)
    }

    /// Not inlined: what it takes of the stack must not lie under what loading an RSA key takes.
    #[inline(never)]
    fn assemble(
        lent: Lent<B>,
        limits: &Limits,
        mut device: D,
        mut board: B,
        (mut config, keys): (Config, Stored),
        now: Instant,
    ) -> Result<Self, StartError> {
        if config.client.is_some() && config.contacts.len() > lent.phonebook.len() {
            return Err(StartError::Config(
                "a client has room for fewer contacts in this profile; name fewer, or take a larger one",
            ));
        }
        let seed = board.rng().next_u64();
        let serving = config.is_serving();
        let stack = Net::new(&config.network, serving, &mut device, seed, lent.sockets, now);
        let stack = RefCell::new(stack.map_err(StartError::Config)?);
        let net = lent.net.get_or_init(|| stack);
        let keys = lent.keys.insert(Keys::new(keys, now));
        let node = Node::new(core_config(&config, keys.node(), limits), lent.tables, board.rng());
        let node = node.map_err(StartError::Config)?;
        let driver = Driver::new(node, Places { links: lent.links, outsides: lent.outsides, scratch: lent.scratch });
        let client = config.client.take().map(|request| Client::new(request, lent.exchange, &mut board, now));
        let config: &Config = lent.config.insert(config);
        let shelves = Shelves { tried: &mut [], new: lent.phonebook, evidence: &mut [] };
        let shell = BoardShell {
            net,
            phonebook: Phonebook::new(shelves, Some(keys.node()), BookKey::generate(board.rng()), Grouping::Network),
            keys,
            contacts: Contacts::new(&config.contacts, now),
            calendar: Calendar::default(),
            dials: Dials::new(lent.dials),
            public: is_public(config),
            config,
            progress: Progress::default(),
            failed_links: heapless::Deque::new(),
            failed_targets: heapless::Deque::new(),
            now,
            time: None,
            has_clock: false,
            board,
        };
        Ok(Self { device, net, driver, shell, client, stopping: None })
    }

    /// Does everything that has become possible, and answers when to be called again at the latest. Call it earlier when the device has a
    /// frame; an instant that has passed means at once.
    pub fn poll(&mut self) -> Instant {
        let now = self.shell.tick();
        self.look_after_keys(now);
        self.visit_contacts(now);
        let mut busy = true;
        for _ in 0..ROUNDS {
            busy = self.net.borrow_mut().poll(&mut self.device, now);
            busy |= self.service_sockets(now);
            self.tell_failures(now);
            self.reach_targets(now);
            if let Some(client) = &mut self.client {
                busy |= client.poll(&mut self.driver, &mut self.shell);
            }
            self.driver.handle_timeout(&mut self.shell, now);
            busy |= self.driver.drain(&mut self.shell, now) == More::Yes;
            if !busy {
                break;
            }
        }
        self.finish_stopping(now);
        if busy { now } else { self.poll_timeout(now) }
    }

    fn poll_timeout(&self, now: Instant) -> Instant {
        let shell = &self.shell;
        let idle = self.net.borrow_mut().poll_delay(now).map(|delay| now.after(delay));
        let deadlines = [
            idle,
            self.driver.poll_timeout(),
            shell.keys.poll_timeout(),
            self.is_visiting().then(|| shell.contacts.poll_timeout()).flatten(),
            shell.dials.poll_timeout(),
            self.client.as_ref().and_then(Client::poll_timeout),
            self.stopping.map(|_| now.after(Duration::from_millis(20))),
        ];
        let next = deadlines.into_iter().flatten().min();
        // Stalled links are looked for every second.
        next.unwrap_or(now.after(Duration::from_secs(3600))).min(now.after(Duration::from_secs(1)))
    }

    /// Looks at every socket: new links, links and targets that have been reached, and whatever has come. Answers whether there may be more.
    #[inline(never)]
    fn service_sockets(&mut self, now: Instant) -> bool {
        let mut busy = false;
        loop {
            let accepted = self.net.borrow_mut().poll_accepted();
            let Some(socket) = accepted else { break };
            match self.driver.reserve_link(&mut self.shell, now) {
                Some(link) => {
                    self.net.borrow_mut().set_used(socket, Use::Link(link));
                    self.driver.handle_accepted(link, net::stream(self.net, socket));
                }
                None => {
                    self.net.borrow_mut().let_go(socket);
                    self.shell.board.handle_event(Event::LinkRefused);
                }
            }
        }
        let indices = self.net.borrow().indices();
        for socket in indices {
            let used = self.net.borrow_mut().used(socket);
            match used {
                Use::Connecting(link) => {
                    let state = self.net.borrow_mut().tcp(socket).state();
                    let stream = match state {
                        State::SynSent | State::SynReceived => continue,
                        State::Closed => {
                            self.net.borrow_mut().let_go(socket);
                            Err(ErrorKind::ConnectionRefused)
                        }
                        _ => {
                            self.net.borrow_mut().set_used(socket, Use::Link(link));
                            Ok(net::stream(self.net, socket))
                        }
                    };
                    self.driver.handle_link_stream(&mut self.shell, link, stream, now);
                    busy = true;
                }
                Use::Link(link) => busy |= self.driver.service_link(&mut self.shell, link, now) == More::Yes,
                Use::Target(name) => self.driver.service_conversation(&mut self.shell, name, now),
                Use::Free | Use::Listening(_) | Use::Lingering(_) | Use::Resetting(_) => {}
            }
        }
        busy
    }

    /// What could not even be begun.
    fn tell_failures(&mut self, now: Instant) {
        while let Some((link, kind)) = self.shell.failed_links.pop_front() {
            self.driver.handle_link_stream(&mut self.shell, link, Err(kind), now);
        }
        while let Some((name, reason)) = self.shell.failed_targets.pop_front() {
            self.driver.node_mut().handle_failed(name, reason, now);
        }
    }

    #[inline(never)]
    fn reach_targets(&mut self, now: Instant) {
        loop {
            let Some(policy) = &self.shell.config.exit else { return };
            let node = self.driver.node();
            let reached = self.shell.dials.poll(&mut self.net.borrow_mut(), policy, |name| node.knows(name), now);
            let Some((name, reached)) = reached else { return };
            let reached = reached.map(|(socket, address)| (Outside::Target(net::stream(self.net, socket)), address));
            self.driver.handle_target(&mut self.shell, name, reached, now);
        }
    }

    #[inline(never)]
    fn look_after_keys(&mut self, now: Instant) {
        let full = self.driver.node().is_rotation_due();
        let shell = &mut self.shell;
        let time = (now, shell.time);
        match shell.keys.look_after(shell.config, time, full, shell.board.rng()) {
            Care::Nothing => {}
            Care::Published => shell.board.handle_event(Event::Published),
            Care::Rotated => {
                self.driver.node_mut().handle_rotation();
                shell.board.handle_event(Event::Published);
            }
            Care::Failed => shell.board.handle_event(Event::RotationFailed),
        }
    }

    #[inline(never)]
    fn visit_contacts(&mut self, now: Instant) {
        if !self.is_visiting() {
            return;
        }
        if let Some((at, contact)) = self.shell.contacts.poll(now) {
            let link = self.driver.contact(contact.address, Some(contact.fingerprint), now);
            self.shell.contacts.begin(at, link, now);
        }
    }

    /// A client needs a path, and a board without a clock the time; a relay or an exit with a clock needs nobody.
    const fn is_visiting(&self) -> bool {
        self.stopping.is_none() && (self.client.is_some() || !self.shell.has_clock)
    }

    /// Takes no more links and circuits; [`ConstrainedNode::is_stopped`] once those that are open have ended, or after two seconds.
    pub fn stop(&mut self) {
        self.driver.node_mut().stop();
        self.stopping.get_or_insert(self.shell.now.after(STOP_GRACE));
    }

    fn finish_stopping(&mut self, now: Instant) {
        let Some(deadline) = self.stopping else { return };
        if self.driver.node().usage().circuits == 0 || now >= deadline {
            self.driver.close_all(&mut self.shell, now);
            // The resets leave with this.
            self.net.borrow_mut().poll(&mut self.device, now);
            self.stopping = Some(Instant::default());
        }
    }

    /// Whether a node that was told to stop has closed everything.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopping == Some(Instant::default())
    }

    /// Who the node is.
    #[must_use]
    pub const fn fingerprint(&self) -> NodeId {
        self.shell.keys.node()
    }

    /// The core's state machine, to look at.
    #[must_use]
    pub const fn node(&self) -> &Node<'static> {
        self.driver.node()
    }

    /// The board.
    pub const fn board_mut(&mut self) -> &mut B {
        &mut self.shell.board
    }

    /// The device.
    pub const fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Whether the node's own request is done and will not be sent again.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.client.as_ref().is_some_and(Client::is_done)
    }

    /// How full the tables outside the core are.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage { sockets: self.net.borrow().in_use(), dials: self.shell.dials.len(), nodes: self.shell.phonebook.len() }
    }
}

/// How full the tables outside the core are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Sockets that are in use or finish.
    pub sockets: usize,
    /// Targets that are being reached.
    pub dials: usize,
    /// Nodes in the phonebook.
    pub nodes: usize,
}

fn core_config(config: &Config, node: NodeId, limits: &Limits) -> node::Config {
    node::Config {
        node,
        relay: config.relay,
        exit: config.exit.is_some(),
        limits: limits.link,
        window_max: limits.window_max,
        circuits_per_link: limits.circuits_per_link,
        onions_per_link: limits.onions_per_link,
        half_open_links: limits.half_open_links,
        patience: PATIENCE,
    }
}

/// Whether one of the node's own addresses is on the public network.
fn is_public(config: &Config) -> bool {
    let public = Policy::public();
    let mut own = config.network.addresses.iter();
    own.any(|(address, _)| public.decide(SocketAddr::new(*address, config.network.port.max(1))) == Verdict::Accept)
}
