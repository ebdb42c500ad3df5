//! A whole network of nodes that find each other: real nodes with real links, onions, phonebooks and exchanges, by the thousand, in one
//! process and in virtual time. All chance comes from one seed: the same seed gives the same run, to the byte.
//!
//! [`run`] makes the network that a [`Plan`] describes and hands it as a [`City`] to a test or to a table, which lets time pass
//! ([`City::run_for`]), has nodes born and die, and looks into phonebooks. What takes part:
//!
//! - `geography`: addresses, in network groups of very different size;
//! - `registry`: each distinct descriptor's signature is really checked, once;
//! - `citizen`, `life`: who lives at a node, birth, death, restarts and new keys;
//! - `pace`, `visits`, `talk`, `serve`, `request`: when it asks and tests, links to see who is there, exchanges from both ends, and requests to a
//!   target along a path;
//! - `attackers`: nodes that do something else, as ordinary code;
//! - `measure`: what tables are made of.
//!
//! What a node does with its phonebook is decided by what decides it on a host: [`bulbil_core::phonebook::steward::Steward`] (whom to ask, whom to test,
//! what counts as a failure, clock, anchors, guards), [`bulbil_core::phonebook::exchange::Pace`] (when),
//! [`bulbil_core::phonebook::exchange::Disclosure`] (what a request says of the asker, over which path it goes), and the core's samples, readers and storage. What is around
//! that, a host's tasks with their intervals and deadlines, is written again here for virtual time. It differs from a host in this:
//!
//! - identities share primes ([`crate::fixture::population`]), and a signature is checked once and not once by each node (links check theirs each time);
//! - tables of links and circuits are small; no node runs out of file descriptors, and a link that cannot be made fails at once or never;
//! - a node has fewer circuits than a host has places for exchanges that others begin, even over one link: there is no share for each link, and no silent
//!   asker has to make room for another;
//! - a steward looks at clock and phonebook every 10 s and not every second;
//! - an answer is drawn from the phonebook as it is, and not from a list of up to a second ago;
//! - bootstrap nodes are visited until they have been met and again when they have left the phonebook, but not because a path has failed;
//! - a request has a path of its own each time (on a host those of one isolation key share one for ten minutes); another path is tried after 10 s without an
//!   answer, six in all, without a pause between them, and whether the first request was delivered does not matter;
//! - onion keys rotate by the clock alone, and not when a replay set is full; [`Plan::validity`] and [`Plan::rotation`] say when;
//! - who is measured is looked into, and nodes of attackers, of [`Start::Extras`] and all that is switched off in [`Defences`] do less or something else than
//!   a host, as is said there.

mod attackers;
mod citizen;
mod geography;
mod life;
mod measure;
mod pace;
mod registry;
mod request;
mod serve;
pub mod tables;
mod talk;
mod visits;

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use bulbil_core::node::Patience;
use bulbil_core::phonebook::exchange::Settings;
use bulbil_core::phonebook::{Grouping, Strictness};
use bulbil_core::wire::{NodeId, OnionKeyKind};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng};

pub use self::attackers::{Gang, Trade};
pub use self::citizen::{Book, Citizen, Counts, Places};
use self::citizen::{Kept, ShelfMemory};
pub use self::geography::Geography;
pub use self::measure::{Hold, View, bits_given_away};
pub use self::registry::{Card, Registry};
use crate::fixture;
use crate::sim::resident::Letter;
use crate::sim::{Jobs, Network, NodeIndex, Settler, Spec, settle};

/// A node of middling size, with all roles; it opens onions elsewhere, in half a millisecond.
const TOWNSMAN: Spec = Spec {
    answers: true,
    kind: OnionKeyKind::XWing,
    relay: true,
    exit: true,
    jobs: Jobs::Elsewhere(Duration::from_micros(500)),
    links: 20,
    circuits: 28,
    cells: 768,
    onions: 8,
    origins: 6,
    replay: 2_048,
    credit: 8,
    window_max: 64,
    record_cells: 5,
    circuits_per_link: 8,
    onions_per_link: 4,
    patience: Patience { link_idle: Duration::from_secs(45), ..Patience::DEFAULT },
};

/// A node that only answers.
const EXTRA: Spec = Spec { links: 10, circuits: 14, cells: 400, onions: 4, origins: 2, replay: 1_024, ..TOWNSMAN };

/// A node that answers no links.
const CLIENT: Spec = Spec { answers: false, relay: false, exit: false, replay: 0, ..TOWNSMAN };

/// What stands against an attacker; all of it, unless a table shows what one of them is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defences {
    /// Buckets by network group, and no more than two nodes of one IP address in `tried`. Without: every address and port is a group of its own
    /// ([`Grouping::Address`], a setting for test networks).
    pub groups_in_buckets: bool,
    /// Who was met longest ago is tested before it gives way. Without: it gives way at once.
    pub test_before_evict: bool,
    /// Only nodes that were met are passed on. Without: all that are known.
    pub only_met_passed_on: bool,
    /// First hops are a few that stay. Without: a new one for each path.
    pub guards: bool,
    /// No two hops in one network group. Without: any hops.
    pub groups_on_paths: bool,
}

impl Defences {
    /// All of them.
    pub const ALL: Self = Self {
        groups_in_buckets: true,
        test_before_evict: true,
        only_met_passed_on: true,
        guards: true,
        groups_on_paths: true,
    };

    const fn grouping(self) -> Grouping {
        if self.groups_in_buckets { Grouping::Network } else { Grouping::Address }
    }

    const fn strictness(self) -> Strictness {
        if self.groups_on_paths { Strictness::Prefer } else { Strictness::Ignore }
    }
}

/// Whom founders know at the beginning, and whether they do anything but answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// They have all met each other.
    AllMet,
    /// They know the addresses of the first four.
    FourKnown,
    /// They stand for a network around those who matter: each has met so many random others, attackers among them, has been told by attackers of
    /// so many inventions, and only answers. Their tables and phonebooks are small.
    Extras {
        /// Nodes that each has met.
        met: usize,
        /// Inventions that each has been told of.
        told: usize,
    },
}

/// What network there is to be.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Behind all chance.
    pub seed: u64,
    /// Honest nodes that are there from the beginning.
    pub founders: usize,
    /// Honest nodes that may be born later.
    pub heirs: usize,
    /// Nodes of attackers; they are born when they are called.
    pub gang: Gang,
    /// Every n-th honest node is an exit as well as a relay.
    pub exit_every: usize,
    /// Whom founders know.
    pub start: Start,
    /// Of the honest nodes that may be born later the last ones that are only clients: they answer no links.
    pub clients: usize,
    /// Restarts that there may be, of all nodes together.
    pub restarts: usize,
    /// How long phonebooks are.
    pub places: Places,
    /// What stands against attackers.
    pub defences: Defences,
    /// How often nodes ask and test.
    pub settings: Settings,
    /// How long a descriptor is valid from its signature on: three rotations on a host.
    pub validity: Duration,
    /// Nodes whose last try failed are on no path as long as there are others, and are not passed on: what core does not do.
    pub avoid_failing: bool,
    /// How long an onion key is used.
    pub rotation: Option<Duration>,
    /// Time between two requests of a node.
    pub requests: Option<Duration>,
    /// Of 10,000 attempts to connect, how many fail.
    pub connects_lost: u64,
    /// How long a link lives on average before it is cut.
    pub link_life: Option<Duration>,
    /// Travelling time, least and most.
    pub latency: (Duration, Duration),
    /// Reads and writes take fewer bytes than they could, now and then.
    pub splitting: bool,
    /// One call of a node in so many is followed by an audit of its books; with 1 neighbours' books are compared as well.
    ///
    /// An audit looks at every place of every table, and a city of 2,000 nodes calls them hundreds of millions of times: there one call in
    /// thousands is all that there is time for. What is wrong in a node's books stays wrong until its circuit ends. Small cities look at each, but
    /// for one that lives for a day.
    pub audit_stride: u64,
}

impl Plan {
    /// So many honest nodes who know each other, on a network as good as the Internet: links of 10 to 150 ms, one connection in a hundred
    /// fails, links are cut after six hours on average.
    #[must_use]
    pub const fn standing(seed: u64, founders: usize) -> Self {
        Self {
            seed,
            founders,
            heirs: 0,
            gang: Gang::NONE,
            exit_every: 4,
            start: Start::AllMet,
            clients: 0,
            restarts: 0,
            places: Places::HOST,
            defences: Defences::ALL,
            settings: Settings::DEFAULT,
            validity: Duration::from_secs(3 * 3600),
            avoid_failing: false,
            rotation: None,
            requests: None,
            connects_lost: 100,
            link_life: Some(Duration::from_secs(6 * 3600)),
            latency: (Duration::from_millis(10), Duration::from_millis(150)),
            splitting: false,
            audit_stride: 10_007,
        }
    }

    /// The nodes that are only clients.
    #[must_use]
    pub const fn clients(&self) -> std::ops::Range<NodeIndex> {
        let honest = self.founders + self.heirs;
        honest - self.clients..honest
    }
}

/// What a resident's alarm is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alarm {
    /// The pace of tests and exchanges.
    Pace,
    /// An exchange has taken too long.
    Exchange(u64),
    /// A conversation with the own phonebook has taken too long.
    Serving(u64),
    Request,
    /// A request has taken too long.
    Deadline(u64),
    Rotate,
    /// What attackers do from time to time.
    Trade,
    /// A bootstrap node, by its number.
    Bootstrap(u64),
    /// The steward looks at clock and phonebook.
    Look,
}

impl Alarm {
    const fn code(self) -> u64 {
        match self {
            Self::Pace => 0,
            Self::Exchange(number) => number << 8 | 1,
            Self::Serving(number) => number << 8 | 2,
            Self::Request => 3,
            Self::Deadline(number) => number << 8 | 4,
            Self::Rotate => 5,
            Self::Trade => 6,
            Self::Bootstrap(number) => number << 8 | 7,
            Self::Look => 8,
        }
    }

    const fn from_code(code: u64) -> Self {
        match code & 0xff {
            0 => Self::Pace,
            1 => Self::Exchange(code >> 8),
            2 => Self::Serving(code >> 8),
            3 => Self::Request,
            4 => Self::Deadline(code >> 8),
            5 => Self::Rotate,
            7 => Self::Bootstrap(code >> 8),
            8 => Self::Look,
            _ => Self::Trade,
        }
    }
}

/// A network of nodes that find each other.
pub struct City<'s, 'm, 'b> {
    net: Network<'m, 'b>,
    citizens: Vec<Citizen<'s>>,
    registry: Registry,
    plan: Rc<Plan>,
    /// What attackers share.
    hoard: attackers::Hoard,
    /// For what concerns nobody alone.
    rng: ChaCha20Rng,
    /// Numbers for whatever must be told apart later.
    numbers: u64,
    /// Whose name is whose.
    names: HashMap<NodeId, NodeIndex>,
    /// What nodes that were stopped have kept.
    kept: HashMap<NodeIndex, Kept>,
    /// For phonebooks of nodes that start again.
    spare: Vec<&'s mut ShelfMemory>,
}

/// Makes the network and gives it to `test`. Founders are there, and their clocks have begun.
pub fn run<T>(plan: &Plan, test: impl FnOnce(&mut City<'_, '_, '_>) -> T) -> T {
    let honest = plan.founders + plan.heirs;
    let all = honest + plan.gang.nodes;
    let mut geography = Geography::new(plan.seed);
    let addresses: Vec<_> = (0..all)
        .map(
            |node| {
                if node < honest { geography.settle() } else { geography.rent(plan.gang.addresses, plan.gang.groups) }
            },
        )
        .collect();
    let is_extra = |node: usize| matches!(plan.start, Start::Extras { .. }) && !(plan.founders..honest).contains(&node);
    let is_exit = |node: usize| node >= honest || node.is_multiple_of(plan.exit_every);
    let settlers: Vec<_> = (0..all)
        .map(|node| Settler {
            spec: match (plan.clients().contains(&node), is_extra(node)) {
                (true, _) => CLIENT,
                (false, true) => Spec { exit: is_exit(node), ..EXTRA },
                (false, false) => Spec { exit: is_exit(node), ..TOWNSMAN },
            },
            identity: (!plan.clients().contains(&node)).then_some(fixture::IDENTITIES + node),
            address: None,
            descriptor: Rc::from([]),
            resident: true,
            born: false,
        })
        .collect();
    let mut memory: Vec<_> =
        (0..all).map(|node| ShelfMemory::new(if is_extra(node) { Places::EXTRA } else { plan.places })).collect();
    let mut spare: Vec<_> = (0..plan.restarts).map(|_| ShelfMemory::new(plan.places)).collect();
    settle(plan.seed, &settlers, |net| {
        let citizens = memory.iter_mut().zip(&addresses).enumerate().map(|(node, (memory, &address))| {
            let identity = fixture::IDENTITIES + node;
            let mut citizen = Citizen::new(node, identity, address, plan, memory);
            citizen.exit = is_exit(node);
            if node >= honest {
                citizen.trade = plan.gang.trade;
            }
            citizen
        });
        let citizens: Vec<_> = citizens.collect();
        let names = citizens.iter().map(|citizen| (citizen.id, citizen.node)).collect();
        let mut city = City {
            net,
            citizens,
            registry: Registry::default(),
            plan: Rc::new(plan.clone()),
            hoard: attackers::Hoard::default(),
            rng: ChaCha20Rng::seed_from_u64(plan.seed ^ 0x6369_7479),
            numbers: 0,
            names,
            kept: HashMap::new(),
            spare: spare.iter_mut().collect(),
        };
        city.found();
        test(&mut city)
    })
}

impl<'s, 'm, 'b> City<'s, 'm, 'b> {
    fn found(&mut self) {
        let plan = Rc::clone(&self.plan);
        self.net.set_audit_stride(plan.audit_stride);
        if plan.audit_stride == 1 {
            self.net.watch();
        }
        self.net.set_weather(plan.connects_lost, plan.link_life);
        self.net.set_latency(plan.latency.0, plan.latency.1);
        self.net.set_inside_latency(Duration::from_micros(50));
        self.net.set_capacity(65_536, 65_536);
        self.net.set_splitting(plan.splitting);
        for node in 0..plan.founders {
            self.prepare(node);
        }
        match plan.start {
            Start::AllMet => self.introduce(0..plan.founders),
            Start::FourKnown => {}
            Start::Extras { met, told } => {
                self.gang().for_each(|node| self.prepare(node));
                self.acquaint(met, told);
            }
        }
        for node in 0..plan.founders {
            let known = if plan.start == Start::FourKnown { (0..4.min(plan.founders)).collect() } else { Vec::new() };
            self.bear(node, &known);
        }
    }

    /// Time since the start.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.net.now()
    }

    /// Lets so much time pass.
    pub fn run_for(&mut self, span: Duration) {
        let end = self.now() + span;
        while self.net.is_due_before(end) {
            self.net.step();
            self.deliver();
        }
        self.net.wait_until(end);
    }

    /// Lets time pass until `reached`, looking every `look`, at most for `most`. Answers whether it was reached.
    pub fn run_until(&mut self, look: Duration, most: Duration, mut reached: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now() + most;
        while self.now() < end {
            if reached(self) {
                return true;
            }
            self.run_for(look);
        }
        reached(self)
    }

    /// Everybody hears what there is to hear.
    fn deliver(&mut self) {
        while let Some((node, letter)) = self.net.take_letter() {
            if self.net.is_alive(node) {
                self.handle(node, letter);
            }
        }
    }

    fn handle(&mut self, node: NodeIndex, letter: Letter) {
        match letter {
            Letter::Time(other, address, time) => self.handle_time(node, other, address, time),
            Letter::Met(link, address, descriptor) => self.handle_met(node, link, address, &descriptor),
            Letter::LinkEnded(link, end) => self.handle_link_ended(node, link, end),
            Letter::Asked(name, target) => self.handle_asked(node, name, &target),
            Letter::Over(name, outcome) => self.handle_over(node, name, outcome),
            Letter::Ready(stream) => self.handle_ready(node, stream),
            Letter::Alarm(code) => match Alarm::from_code(code) {
                Alarm::Pace => self.handle_pace(node),
                Alarm::Exchange(number) => self.handle_late_exchange(node, number),
                Alarm::Serving(number) => self.handle_late_service(node, number),
                Alarm::Request => self.begin_request(node),
                Alarm::Deadline(number) => self.handle_deadline(node, number),
                Alarm::Rotate => self.rotate(node),
                Alarm::Trade => self.ply(node),
                Alarm::Bootstrap(number) => self.visit_bootstrap(node, number as usize),
                Alarm::Look => self.look(node),
            },
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn set_alarm(&self, node: NodeIndex, after: Duration, alarm: Alarm) {
        self.net.set_alarm(node, after, alarm.code());
    }

    /// `period`, give or take a fifth.
    fn spread(&mut self, period: Duration) -> Duration {
        let part = self.rng.next_u32() % 1_000;
        period * 4 / 5 + period * 2 * part / 5_000
    }

    /// Whoever lives there.
    #[must_use]
    pub fn citizen(&self, node: NodeIndex) -> &Citizen<'s> {
        &self.citizens[node]
    }

    /// Everybody, the dead and the unborn too.
    #[must_use]
    pub fn citizens(&self) -> &[Citizen<'s>] {
        &self.citizens
    }

    /// The nodes that are there.
    pub fn living(&self) -> impl Iterator<Item = &Citizen<'s>> {
        self.citizens.iter().filter(|citizen| self.net.is_alive(citizen.node))
    }

    /// The network under it all.
    #[must_use]
    pub const fn network(&self) -> &Network<'m, 'b> {
        &self.net
    }

    /// Descriptors that were checked.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }
}
