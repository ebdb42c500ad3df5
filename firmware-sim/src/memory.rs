//! Every buffer of a constrained node as one value that can lie in a `static`, and the profiles: how much of everything fits which machine.

use core::cell::{OnceCell, RefCell};

use bulbil_core::driver::{LINK_BUFFER_MIN, LinkPlace, OutsidePlace};
use bulbil_core::link::record::record_len;
use bulbil_core::node::{self, Resources};
use bulbil_core::phonebook::Entry;
use bulbil_core::wire::handshake::{InitialCredit, LinkLimits, RecordCells};
use smoltcp::iface::{SocketSet, SocketStorage};
use smoltcp::socket::dns::DnsQuery;

use crate::board::Board;
use crate::client::Exchange;
use crate::config::Config;
use crate::keys::Keys;
use crate::net::{self, Net, QUERIES, SocketPlace, Sockets};
use crate::shell::BoardShell;
use crate::target::Dial;

/// Bytes on their way between conversations and cells.
const SCRATCH: usize = 512;

/// Sockets beyond those of links: to refuse a newcomer with, and to finish a reset.
const SPARE: usize = 1;

/// Cells of the largest record that fits a link's buffers, whose length the handshake decides.
const RECORD_CELLS: usize = {
    let mut cells = 1;
    while record_len(cells + 1) <= LINK_BUFFER_MIN {
        cells += 1;
    }
    cells
};

/// What others may ask of a node with some profile.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Cells in a record, and the room that every circuit has from the beginning, in each direction.
    pub link: LinkLimits,
    /// Room that one direction of one circuit may grow to, in cells.
    pub window_max: u16,
    /// Circuits of one connector.
    pub circuits_per_link: u32,
    /// Onions of one link that may be here at once.
    pub onions_per_link: u16,
    /// Links of others whose handshake has not ended.
    pub half_open_links: u16,
}

/// The node's own tables, with their sizes in the type: [`Resources`] of any size.
pub trait Tables {
    /// Places for links.
    const LINKS: usize;
    /// Places for circuits.
    const CIRCUITS: usize;
    /// Places for cells.
    const CELLS: usize;
    /// Places for onions.
    const ONIONS: usize;
    /// Places for circuits of the node's own.
    const ORIGINS: usize;
    /// Circuits that one onion key can open.
    const REPLAY: usize;
    /// Empty tables.
    const EMPTY: Self;

    /// The tables, for the node.
    fn lend(&mut self) -> node::Memory<'_>;
}

impl<const L: usize, const C: usize, const I: usize, const P: usize, const N: usize, const O: usize, const R: usize>
    Tables for Resources<L, C, I, P, N, O, R>
{
    const LINKS: usize = L;
    const CIRCUITS: usize = C;
    const CELLS: usize = P;
    const ONIONS: usize = N;
    const ORIGINS: usize = O;
    const REPLAY: usize = R - R / 4;
    const EMPTY: Self = Self::new();

    fn lend(&mut self) -> node::Memory<'_> {
        Self::lend(self)
    }
}

/// All the memory of a node on board `B`, apart from the stack and RSA's heap.
///
/// | parameter | |
/// | --- | --- |
/// | `T` | the node's own tables |
/// | `LINKS`, `CIRCUITS` | as in `T` |
/// | `LINK_SOCKETS` | TCP sockets for links: one more than links |
/// | `TARGETS` | TCP sockets for an exit's targets; a conversation beyond them is answered "busy" |
/// | `SOCKETS` | all sockets: both of these, and one for names |
/// | `NODES` | places in the phonebook |
/// | `RECEIVE` | bytes that a socket holds of what came: TCP's window |
/// | `SEND` | bytes that it holds of what leaves, until they are acknowledged |
pub struct Memory<
    B: Board,
    T: Tables,
    const LINKS: usize,
    const CIRCUITS: usize,
    const LINK_SOCKETS: usize,
    const TARGETS: usize,
    const SOCKETS: usize,
    const NODES: usize,
    const RECEIVE: usize,
    const SEND: usize,
> {
    tables: T,
    links: heapless::Vec<LinkPlace<'static, BoardShell<B>>, LINKS>,
    link_buffers: [[[u8; LINK_BUFFER_MIN]; 2]; LINKS],
    outsides: [OutsidePlace<BoardShell<B>>; CIRCUITS],
    scratch: [u8; SCRATCH],
    storage: [SocketStorage<'static>; SOCKETS],
    link_sockets: heapless::Vec<SocketPlace, LINK_SOCKETS>,
    target_sockets: heapless::Vec<SocketPlace, TARGETS>,
    link_tcp: [TcpBuffers<RECEIVE, SEND>; LINK_SOCKETS],
    target_tcp: [TcpBuffers<RECEIVE, SEND>; TARGETS],
    queries: [Option<DnsQuery>; QUERIES],
    dials: [Option<Dial>; TARGETS],
    phonebook: [Option<Entry>; NODES],
    net: OnceCell<RefCell<Net>>,
    exchange: RefCell<Exchange>,
    keys: Option<Keys>,
    config: Option<Config>,
}

/// What a TCP socket holds.
struct TcpBuffers<const RECEIVE: usize, const SEND: usize> {
    receive: [u8; RECEIVE],
    send: [u8; SEND],
}

impl<const RECEIVE: usize, const SEND: usize> TcpBuffers<RECEIVE, SEND> {
    const EMPTY: Self = Self { receive: [0; RECEIVE], send: [0; SEND] };
}

/// A static structure and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// How many of it, 1 for a single structure.
    pub count: usize,
    /// Bytes of all of them.
    pub bytes: usize,
}

impl Part {
    const fn of<T>(name: &'static str, count: usize) -> Self {
        Self { name, count, bytes: size_of::<T>() * count }
    }
}

/// What is lent to a node that starts.
pub(crate) struct Lent<B: Board> {
    pub(crate) tables: node::Memory<'static>,
    pub(crate) links: &'static mut [LinkPlace<'static, BoardShell<B>>],
    pub(crate) outsides: &'static mut [OutsidePlace<BoardShell<B>>],
    pub(crate) scratch: &'static mut [u8],
    pub(crate) sockets: Sockets,
    pub(crate) dials: &'static mut [Option<Dial>],
    pub(crate) phonebook: &'static mut [Option<Entry>],
    pub(crate) net: &'static OnceCell<RefCell<Net>>,
    pub(crate) exchange: &'static RefCell<Exchange>,
    pub(crate) keys: &'static mut Option<Keys>,
    pub(crate) config: &'static mut Option<Config>,
}

impl<
    B: Board,
    T: Tables,
    const LINKS: usize,
    const CIRCUITS: usize,
    const LINK_SOCKETS: usize,
    const TARGETS: usize,
    const SOCKETS: usize,
    const NODES: usize,
    const RECEIVE: usize,
    const SEND: usize,
> Memory<B, T, LINKS, CIRCUITS, LINK_SOCKETS, TARGETS, SOCKETS, NODES, RECEIVE, SEND>
{
    /// Empty memory.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a default would be built on the stack first")]
    pub const fn new() -> Self {
        const {
            assert!(LINKS == T::LINKS && CIRCUITS == T::CIRCUITS, "the node's tables and its streams belong together");
            assert!(LINK_SOCKETS == LINKS + SPARE, "a link needs a socket, and one is to refuse newcomers with");
            assert!(SOCKETS == LINK_SOCKETS + TARGETS + 1, "every socket needs its place, and so do names");
            assert!(RECEIVE >= 1460, "TCP's window must hold a segment");
            assert!(SEND >= record_len(1), "a record with a cell should leave in one piece");
        }
        Self {
            tables: T::EMPTY,
            links: heapless::Vec::new(),
            link_buffers: [[[0; LINK_BUFFER_MIN]; 2]; LINKS],
            outsides: [const { OutsidePlace::EMPTY }; CIRCUITS],
            scratch: [0; SCRATCH],
            storage: [const { SocketStorage::EMPTY }; SOCKETS],
            link_sockets: heapless::Vec::new(),
            target_sockets: heapless::Vec::new(),
            link_tcp: [const { TcpBuffers::EMPTY }; LINK_SOCKETS],
            target_tcp: [const { TcpBuffers::EMPTY }; TARGETS],
            queries: [const { None }; QUERIES],
            dials: [const { None }; TARGETS],
            phonebook: [const { None }; NODES],
            net: OnceCell::new(),
            exchange: RefCell::new(Exchange::EMPTY),
            keys: None,
            config: None,
        }
    }

    /// What a node of this size allows others.
    #[must_use]
    pub fn limits() -> Limits {
        // What every circuit has from the beginning; the rest of the pool goes to those that use it.
        let credit = InitialCredit::new(bulbil_core::circuit::flow::WINDOW_MIN).expect("in range");
        Limits {
            link: LinkLimits { record_cells: RecordCells::new(RECORD_CELLS as u16).expect("1 to 127"), credit },
            window_max: 2 * credit.value(),
            // One neighbour may use all that there is, but for one circuit.
            circuits_per_link: (CIRCUITS as u32 - 1).max(1),
            onions_per_link: 1,
            half_open_links: (LINKS as u16 / 2).max(1),
        }
    }

    /// Every structure with its size: their sum is the size of this type, but for padding.
    #[must_use]
    pub const fn parts() -> [Part; 15] {
        [
            Part::of::<T>("node: links, circuits, cells, onions, replay tags", 1),
            Part::of::<LinkPlace<'static, BoardShell<B>>>("link streams and keys", LINKS),
            Part::of::<[[u8; LINK_BUFFER_MIN]; 2]>("link records, in and out", LINKS),
            Part::of::<OutsidePlace<BoardShell<B>>>("conversation streams", CIRCUITS),
            Part::of::<[u8; SCRATCH]>("bytes between conversations and cells", 1),
            Part::of::<SocketStorage<'static>>("sockets", SOCKETS),
            Part::of::<SocketPlace>("socket uses", LINK_SOCKETS + TARGETS),
            Part::of::<TcpBuffers<RECEIVE, SEND>>("TCP buffers of links", LINK_SOCKETS),
            Part::of::<TcpBuffers<RECEIVE, SEND>>("TCP buffers of targets", TARGETS),
            Part::of::<Option<DnsQuery>>("names being resolved", QUERIES),
            Part::of::<Option<Dial>>("targets being reached", TARGETS),
            Part::of::<Option<Entry>>("phonebook", NODES),
            Part::of::<(OnceCell<RefCell<Net>>, RefCell<Exchange>)>("network interface, own request", 1),
            Part::of::<Option<Keys>>("keys and descriptor", 1),
            Part::of::<Option<Config>>("configuration", 1),
        ]
    }

    /// The parts, for a node that starts.
    pub(crate) fn lend(&'static mut self) -> Lent<B> {
        for [input, output] in &mut self.link_buffers {
            let full = self.links.push(LinkPlace::new(input, output));
            debug_assert!(full.is_ok(), "as many places as buffers, and lent once");
        }
        fn pairs<const R: usize, const S: usize>(
            buffers: &'static mut [TcpBuffers<R, S>],
        ) -> impl Iterator<Item = [&'static mut [u8]; 2]> {
            buffers.iter_mut().map(|TcpBuffers { receive, send }| [receive.as_mut_slice(), send.as_mut_slice()])
        }
        let mut set = SocketSet::new(self.storage.as_mut_slice());
        let links = net::add_sockets(&mut set, &mut self.link_sockets, pairs(&mut self.link_tcp));
        let targets = net::add_sockets(&mut set, &mut self.target_sockets, pairs(&mut self.target_tcp));
        Lent {
            tables: self.tables.lend(),
            links: self.links.as_mut_slice(),
            outsides: &mut self.outsides,
            scratch: &mut self.scratch,
            sockets: Sockets { set, links, targets, queries: &mut self.queries },
            dials: &mut self.dials,
            phonebook: &mut self.phonebook,
            net: &self.net,
            exchange: &self.exchange,
            keys: &mut self.keys,
            config: &mut self.config,
        }
    }
}
