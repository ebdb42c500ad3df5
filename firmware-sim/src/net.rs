//! The network stack: smoltcp's interface, and a fixed table of TCP sockets with what each is used for.
//!
//! Link sockets and target sockets are apart, so that targets cannot take the places of links nor the other way round. A few link sockets
//! more than links let a socket finish its reset, or refuse a newcomer, while every link is in use.

use core::cell::RefCell;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use bulbil_core::circuit::LinkId;
use bulbil_core::node::ConversationId;
use bulbil_core::time::Instant;
use bulbil_core::wire::EndReason;
use embedded_io::ErrorKind;
use smoltcp::iface::{self, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::Device;
use smoltcp::socket::dns::{self, DnsQuery, GetQueryResultError, StartQueryError};
use smoltcp::socket::tcp::{self, ConnectError, State};
use smoltcp::wire::{DnsQueryType, HardwareAddress, IpAddress, IpCidr};

use crate::config;
use crate::stream::TcpStream;

/// Sockets that listen at one time: as many connections can arrive in one turn.
const BACKLOG: usize = 2;
/// A peer that has not finished TCP's handshake after so long loses its socket.
const HALF_OPEN: Duration = Duration::from_secs(3);
/// How long a finished connection has to deliver what it holds and to be closed by its peer.
const LINGER: Duration = Duration::from_secs(30);
/// How long a reset has to leave: its peer's Ethernet address may have to be asked for.
const RESET: Duration = Duration::from_secs(1);
/// A connection whose peer acknowledges nothing for so long is broken.
const SILENCE: Duration = Duration::from_secs(60);
/// Frames that one turn takes in before others have theirs.
const FRAMES: usize = 16;
/// First port of those that connections of our own leave from.
const EPHEMERAL: u16 = 0xc000;
/// Names that are being resolved at one time.
pub(crate) const QUERIES: usize = 2;
/// Addresses of one name that are tried.
pub(crate) const NAME_ADDRESSES: usize = smoltcp::config::DNS_MAX_RESULT_COUNT;

/// A place in the table of sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SocketIndex(usize);

/// A name that is being resolved.
#[derive(Clone, Copy)]
pub(crate) struct Query(dns::QueryHandle);

/// What a socket is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Free,
    /// Waits for a peer to connect, or is in the middle of it since then.
    Listening(Option<Instant>),
    /// Connects, for a link that wants it.
    Connecting(LinkId),
    /// A link's stream.
    Link(LinkId),
    /// Connects to a target, or is its conversation's stream.
    Target(ConversationId),
    /// Its stream is gone; what it holds is still being delivered, at most until then.
    Lingering(Instant),
    /// It was aborted; its reset has until then to leave.
    Resetting(Instant),
}

/// A socket and its use.
pub struct SocketPlace {
    handle: SocketHandle,
    used: Use,
}

/// Sockets that belong to no stack yet.
pub(crate) struct Sockets {
    pub(crate) set: SocketSet<'static>,
    pub(crate) links: &'static mut [SocketPlace],
    pub(crate) targets: &'static mut [SocketPlace],
    pub(crate) queries: &'static mut [Option<DnsQuery>],
}

/// The stack.
pub struct Net {
    interface: Interface,
    sockets: SocketSet<'static>,
    links: &'static mut [SocketPlace],
    targets: &'static mut [SocketPlace],
    resolver: Option<SocketHandle>,
    /// Where links are answered.
    port: Option<u16>,
    next_port: u16,
    now: Instant,
}

fn stack_time(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_millis(i64::try_from(now.millis()).unwrap_or(i64::MAX))
}

/// Makes a TCP socket of each pair of a receive and a send buffer, and a place for it in the table.
pub(crate) fn add_sockets<const N: usize>(
    sockets: &mut SocketSet<'static>,
    places: &'static mut heapless::Vec<SocketPlace, N>,
    buffers: impl Iterator<Item = [&'static mut [u8]; 2]>,
) -> &'static mut [SocketPlace] {
    for [receive, send] in buffers.take(N) {
        let mut socket = tcp::Socket::new(tcp::SocketBuffer::new(receive), tcp::SocketBuffer::new(send));
        // Records are written whole: waiting for more would only delay their last bytes.
        socket.set_nagle_enabled(false);
        // With windows of a few segments, the peer waits for every acknowledgement.
        socket.set_ack_delay(None);
        let place = SocketPlace { handle: sockets.add(socket), used: Use::Free };
        if places.push(place).is_err() {
            break;
        }
    }
    places.as_mut_slice()
}

impl Net {
    /// The stack as `config` describes it.
    pub(crate) fn new<D: Device>(
        config: &config::Network,
        serving: bool,
        device: &mut D,
        seed: u64,
        sockets: Sockets,
        now: Instant,
    ) -> Result<Self, &'static str> {
        let Sockets { set: mut sockets, links, targets, queries } = sockets;
        let mut settings = iface::Config::new(HardwareAddress::Ethernet(config.mac));
        settings.random_seed = seed;
        let mut interface = Interface::new(settings, device, stack_time(now));
        let mut fits = true;
        interface.update_ip_addrs(|addresses| {
            for &(address, prefix) in &config.addresses {
                let longest = if address.is_ipv4() { 32 } else { 128 };
                fits &= prefix <= longest
                    && addresses.push(IpCidr::new(IpAddress::from(address), prefix.min(longest))).is_ok();
            }
        });
        if !fits {
            return Err("an address has a prefix that is too long, or there are too many addresses");
        }
        let routes = interface.routes_mut();
        let no_route = "there is no room for the routes to the gateways";
        if let Some(gateway) = config.gateway_v4 {
            routes.add_default_ipv4_route(gateway).map_err(|_| no_route)?;
        }
        if let Some(gateway) = config.gateway_v6 {
            routes.add_default_ipv6_route(gateway).map_err(|_| no_route)?;
        }
        let servers: heapless::Vec<IpAddress, { config::RESOLVERS_MAX }> =
            config.resolvers.iter().map(|&server| IpAddress::from(server)).collect();
        let resolver = (!servers.is_empty()).then(|| sockets.add(dns::Socket::new(&servers, queries)));
        let port = serving.then_some(config.port);
        // Ports of an earlier life may still be known to peers.
        let next_port = EPHEMERAL | (seed >> 32) as u16;
        Ok(Self { interface, sockets, links, targets, resolver, port, next_port, now })
    }

    /// Takes in what has come and sends what waits. Answers whether anything may have changed for a socket.
    pub(crate) fn poll<D: Device>(&mut self, device: &mut D, now: Instant) -> bool {
        self.now = now;
        let time = stack_time(now);
        let mut changed = false;
        self.interface.poll_maintenance(time);
        for _ in 0..FRAMES {
            match self.interface.poll_ingress_single(time, device, &mut self.sockets) {
                PollIngressSingleResult::None => break,
                PollIngressSingleResult::PacketProcessed => {}
                PollIngressSingleResult::SocketStateChanged => changed = true,
            }
        }
        changed |= self.interface.poll_egress(time, device, &mut self.sockets) == PollResult::SocketStateChanged;
        self.tidy();
        changed
    }

    /// How long the stack can be left alone if nothing comes.
    pub(crate) fn poll_delay(&mut self, now: Instant) -> Option<Duration> {
        let delay = self.interface.poll_delay(stack_time(now), &self.sockets);
        let tidying = self.places().filter_map(|place| match place.used {
            Use::Listening(Some(since)) => Some(now.until(since.after(HALF_OPEN))),
            Use::Lingering(until) | Use::Resetting(until) => Some(now.until(until)),
            _ => None,
        });
        delay.map(Duration::from).into_iter().chain(tidying).min()
    }

    fn places(&self) -> impl Iterator<Item = &SocketPlace> {
        self.links.iter().chain(self.targets.iter())
    }

    fn place(&mut self, socket: SocketIndex) -> &mut SocketPlace {
        let links = self.links.len();
        if socket.0 < links { &mut self.links[socket.0] } else { &mut self.targets[socket.0 - links] }
    }

    /// The socket itself.
    pub(crate) fn tcp(&mut self, socket: SocketIndex) -> &mut tcp::Socket<'static> {
        let handle = self.place(socket).handle;
        self.sockets.get_mut(handle)
    }

    /// What the socket is used for.
    pub(crate) fn used(&mut self, socket: SocketIndex) -> Use {
        self.place(socket).used
    }

    /// Every socket, links' first.
    pub(crate) fn indices(&self) -> impl Iterator<Item = SocketIndex> + use<> {
        (0..self.links.len() + self.targets.len()).map(SocketIndex)
    }

    /// Sockets that are free and keep nothing from before.
    fn tidy(&mut self) {
        let now = self.now;
        for place in self.links.iter_mut().chain(self.targets.iter_mut()) {
            let socket = self.sockets.get_mut::<tcp::Socket<'static>>(place.handle);
            match place.used {
                Use::Lingering(until) => {
                    if !socket.is_open() && socket.state() != State::TimeWait {
                        place.used = Use::Free;
                    } else if now >= until {
                        socket.abort();
                        place.used = Use::Resetting(now.after(RESET));
                    }
                }
                // A reset that has not left yet still has a peer.
                Use::Resetting(until) if now >= until || socket.remote_endpoint().is_none() => place.used = Use::Free,
                Use::Listening(since) => match (socket.state(), since) {
                    (State::SynReceived, None) => place.used = Use::Listening(Some(now)),
                    (State::SynReceived, Some(since)) if now >= since.after(HALF_OPEN) => {
                        socket.abort();
                        place.used = Use::Resetting(now.after(RESET));
                    }
                    (State::Listen, Some(_)) => place.used = Use::Listening(None),
                    (State::Closed, _) => place.used = Use::Free,
                    _ => {}
                },
                _ => {}
            }
        }
        self.listen();
    }

    /// Keeps sockets listening, but one free for a link of our own as long as possible.
    fn listen(&mut self) {
        let Some(port) = self.port else { return };
        let listening = |place: &&SocketPlace| matches!(place.used, Use::Listening(None));
        let mut missing = BACKLOG.saturating_sub(self.links.iter().filter(listening).count());
        for place in self.links.iter_mut() {
            if missing == 0 {
                break;
            }
            if place.used == Use::Free {
                let socket = self.sockets.get_mut::<tcp::Socket<'static>>(place.handle);
                if socket.listen(port).is_ok() {
                    socket.set_timeout(Some(SILENCE.into()));
                    place.used = Use::Listening(None);
                    missing -= 1;
                }
            }
        }
    }

    /// The next connection that a peer has made. The caller uses it ([`Net::stream`]) or drops it ([`Net::let_go`]).
    pub(crate) fn poll_accepted(&mut self) -> Option<SocketIndex> {
        let arrived = |place: &SocketPlace| {
            matches!(place.used, Use::Listening(_)) && {
                let state = self.sockets.get::<tcp::Socket<'static>>(place.handle).state();
                !matches!(state, State::Listen | State::SynReceived | State::Closed)
            }
        };
        self.links.iter().position(arrived).map(SocketIndex)
    }

    /// Begins to connect. A free socket is taken, or one that nobody needs as much.
    fn connect(&mut self, of_links: bool, to: SocketAddr, used: Use) -> Result<SocketIndex, ErrorKind> {
        let (first, places) = if of_links { (0, &*self.links) } else { (self.links.len(), &*self.targets) };
        let waits_only = |place: &SocketPlace| {
            let socket = self.sockets.get::<tcp::Socket<'static>>(place.handle);
            match place.used {
                Use::Listening(None) => socket.state() == State::Listen,
                // Both sides are done; TCP only waits for stragglers.
                Use::Lingering(_) => socket.state() == State::TimeWait,
                _ => false,
            }
        };
        let free = places.iter().position(|place| place.used == Use::Free);
        let at = free.or_else(|| places.iter().rposition(waits_only)).ok_or(ErrorKind::OutOfMemory)?;
        let socket = SocketIndex(first + at);
        let port = self.free_port();
        let handle = self.place(socket).handle;
        let tcp = self.sockets.get_mut::<tcp::Socket<'static>>(handle);
        tcp.abort();
        match tcp.connect(self.interface.context(), to, port) {
            Ok(()) => {
                tcp.set_timeout(Some(SILENCE.into()));
                self.place(socket).used = used;
                Ok(socket)
            }
            Err(ConnectError::Unaddressable) => {
                self.place(socket).used = Use::Free;
                Err(ErrorKind::AddrNotAvailable)
            }
            Err(ConnectError::InvalidState) => Err(ErrorKind::Other),
        }
    }

    /// Begins to connect a link.
    pub(crate) fn connect_link(&mut self, link: LinkId, to: SocketAddr) -> Result<(), ErrorKind> {
        self.connect(true, to, Use::Connecting(link)).map(|_socket| ())
    }

    /// Begins to connect to a target.
    pub(crate) fn connect_target(&mut self, name: ConversationId, to: SocketAddr) -> Result<SocketIndex, ErrorKind> {
        self.connect(false, to, Use::Target(name))
    }

    /// Gives up connecting a link that nobody wants any more.
    pub(crate) fn forget_link(&mut self, link: LinkId) {
        if let Some(socket) = self.indices().find(|&socket| self.used(socket) == Use::Connecting(link)) {
            self.let_go(socket);
        }
    }

    /// A port for a connection of our own that no other socket uses.
    fn free_port(&mut self) -> u16 {
        loop {
            self.next_port = self.next_port.wrapping_add(1) | EPHEMERAL;
            let taken = |place: &SocketPlace| {
                let socket = self.sockets.get::<tcp::Socket<'static>>(place.handle);
                socket.local_endpoint().is_some_and(|local| local.port == self.next_port)
            };
            if self.port != Some(self.next_port) && !self.places().any(taken) {
                return self.next_port;
            }
        }
    }

    /// A socket's stream is gone, or it was never wanted: what was finished is still delivered, anything else is reset.
    pub(crate) fn let_go(&mut self, socket: SocketIndex) {
        let now = self.now;
        let tcp = self.tcp(socket);
        let finished = matches!(
            tcp.state(),
            State::FinWait1 | State::FinWait2 | State::Closing | State::LastAck | State::TimeWait
        );
        if finished {
            self.place(socket).used = Use::Lingering(now.after(LINGER));
        } else {
            tcp.abort();
            self.place(socket).used = Use::Resetting(now.after(RESET));
        }
    }

    /// Whether this is one of our own addresses.
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        self.interface.has_ip_addr(IpAddress::from(address))
    }

    /// Begins to resolve a name.
    ///
    /// # Errors
    /// What the client is told: busy if other names are being resolved, not resolved if there is no name server or the name cannot be asked for.
    pub(crate) fn resolve(&mut self, name: &str, v6: bool) -> Result<Query, EndReason> {
        let socket = self.sockets.get_mut::<dns::Socket<'static>>(self.resolver.ok_or(EndReason::NotResolved)?);
        let kind = if v6 { DnsQueryType::Aaaa } else { DnsQueryType::A };
        socket.start_query(self.interface.context(), name, kind).map(Query).map_err(|error| match error {
            StartQueryError::NoFreeSlot => EndReason::Busy,
            StartQueryError::InvalidName | StartQueryError::NameTooLong => EndReason::NotResolved,
        })
    }

    /// Gives a query up.
    pub(crate) fn cancel(&mut self, query: Query) {
        if let Some(handle) = self.resolver {
            self.sockets.get_mut::<dns::Socket<'static>>(handle).cancel_query(query.0);
        }
    }

    /// What a name has been resolved to, once that is known: nothing, if that failed.
    pub(crate) fn poll_resolved(&mut self, query: Query) -> Option<heapless::Vec<IpAddr, NAME_ADDRESSES>> {
        let socket = self.sockets.get_mut::<dns::Socket<'static>>(self.resolver?);
        match socket.get_query_result(query.0) {
            Err(GetQueryResultError::Pending) => None,
            Err(GetQueryResultError::Failed) => Some(heapless::Vec::new()),
            Ok(addresses) => Some(addresses.iter().map(|&address| IpAddr::from(address)).collect()),
        }
    }

    /// Whether addresses of that family can be reached at all.
    pub(crate) fn has_family(&self, v6: bool) -> bool {
        self.interface.ip_addrs().iter().any(|cidr| match cidr {
            IpCidr::Ipv4(_) => !v6,
            IpCidr::Ipv6(_) => v6,
        })
    }

    /// Sets what a socket is used for.
    pub(crate) fn set_used(&mut self, socket: SocketIndex, used: Use) {
        self.place(socket).used = used;
    }

    /// How many sockets are used for something, listening apart.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.places().filter(|place| !matches!(place.used, Use::Free | Use::Listening(None))).count()
    }
}

/// The stream on a socket.
pub(crate) const fn stream(net: &'static RefCell<Net>, socket: SocketIndex) -> TcpStream {
    TcpStream::new(net, socket)
}
