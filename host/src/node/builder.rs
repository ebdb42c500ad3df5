//! From a description to a running node.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bulbil_core::crypto::identity::IdentitySecret;
use bulbil_core::crypto::kem::{OnionKeys, OnionSecret};
use bulbil_core::link::LinkSecret;
use bulbil_core::node::{Config, Patience};
use bulbil_core::phonebook::{Grouping, Guards, HopCount, Strictness};
use bulbil_core::wire::handshake::{InitialCredit, LinkLimits, RecordCells};
use bulbil_core::wire::policy::{Policy, Verdict};
use bulbil_core::wire::{NodeId, OnionKeyKind, Roles};
use rand_core::Rng as _;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::directory::{self, Directory};
use super::gossip::{self, EXCHANGE, Gossip, Intervals};
use super::keeper;
use super::rotation::{Card, Rotation};
use super::sequence::Sequence;
use super::stored::Stored;
use super::{Inner, Node, StartError};
use crate::config::{self, Bootstrap, NetworkGroups};
use crate::engine::clock::WallClock;
use crate::engine::memory::Sizes;
use crate::engine::readiness::Readiness;
use crate::engine::service::{ServiceCall, Services};
use crate::engine::shell::{CONNECTING, Keys, LinkEnds, SIGNING, Shown, TokioShell};
use crate::engine::traffic::Traffic;
use crate::engine::workers::Workers;
use crate::engine::{Command, Engine};
use crate::random::SYSTEM;
use crate::state::{Item, StateDir};

/// Without any answer during so many times as long as it takes from exchange to exchange, failures are not counted.
const LONELY: u32 = 5;
/// Calls for services that may wait to be taken.
const CALLS: usize = crate::engine::service::PLACES;
/// Circuits that are built at one time; the others wait.
const BUILDING: usize = 64;

/// Describes a node; [`NodeBuilder::start`] starts it.
pub struct NodeBuilder {
    listen: Vec<SocketAddr>,
    advertise: Vec<SocketAddr>,
    relay: bool,
    exit: bool,
    policy: Policy,
    bootstrap: Vec<Bootstrap>,
    identity: Option<IdentitySecret>,
    link: Option<LinkSecret>,
    onion_kind: OnionKeyKind,
    rotation: Duration,
    hops: HopCount,
    strictness: Strictness,
    reuse: Duration,
    sizes: Sizes,
    circuits_per_link: u32,
    onions_per_link: u16,
    half_open_links: u16,
    patience: Patience,
    workers: usize,
    state: Option<Arc<StateDir>>,
    intervals: Intervals,
    clock: WallClock,
    services: Option<mpsc::Sender<ServiceCall>>,
}

impl Default for NodeBuilder {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            advertise: Vec::new(),
            relay: false,
            exit: false,
            policy: Policy::default(),
            bootstrap: Vec::new(),
            identity: None,
            link: None,
            onion_kind: OnionKeyKind::XWing,
            rotation: Duration::from_secs(3600),
            hops: HopCount::default(),
            strictness: Strictness::default(),
            reuse: Duration::from_secs(600),
            sizes: Sizes::default(),
            circuits_per_link: 4096,
            onions_per_link: 512,
            half_open_links: 128,
            patience: Patience::DEFAULT,
            workers: 0,
            state: None,
            intervals: Intervals::default(),
            clock: WallClock::default(),
            services: None,
        }
    }
}

impl NodeBuilder {
    /// Answers links at `address`; port 0 lets the system choose. A node that listens nowhere is a client only.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen.push(address);
        self
    }

    /// Tells others to use `address` instead of those listened on; at most four.
    #[must_use]
    pub fn advertise(mut self, address: SocketAddr) -> Self {
        self.advertise.push(address);
        self
    }

    /// Passes circuits on.
    #[must_use]
    pub const fn relay(mut self) -> Self {
        self.relay = true;
        self
    }

    /// Ends circuits and connects to targets as `policy` allows.
    #[must_use]
    pub fn exit(mut self, policy: Policy) -> Self {
        (self.exit, self.policy) = (true, policy);
        self
    }

    /// Hands conversations that ask for a service of this node to `calls`, at most 128 at a time and 32 over one link. When these are taken, one that was
    /// not said to be heard ([`ServiceCall::heard`]) gives way; without one, or without room in `calls`, the newcomer is refused. Without this
    /// the node passes its phonebook on itself.
    #[must_use]
    pub fn serve(mut self, calls: mpsc::Sender<ServiceCall>) -> Self {
        self.services = Some(calls);
        self
    }

    /// Asks this node for its descriptor at the start, and again from time to time.
    #[must_use]
    pub fn bootstrap(mut self, contact: Bootstrap) -> Self {
        self.bootstrap.push(contact);
        self
    }

    /// Who the node is. Without this it makes itself an identity that is kept nowhere.
    #[must_use]
    pub fn identity(mut self, identity: IdentitySecret) -> Self {
        self.identity = Some(identity);
        self
    }

    /// The key that its links are answered with. Without this it makes itself one.
    #[must_use]
    pub fn link_key(mut self, link: LinkSecret) -> Self {
        self.link = Some(link);
        self
    }

    /// The kind of its onion keys, and for how long it uses one.
    #[must_use]
    pub const fn onion_key(mut self, kind: OnionKeyKind, rotation: Duration) -> Self {
        (self.onion_kind, self.rotation) = (kind, rotation);
        self
    }

    /// How its own paths are chosen.
    #[must_use]
    pub const fn paths(mut self, hops: HopCount, strictness: Strictness) -> Self {
        (self.hops, self.strictness) = (hops, strictness);
        self
    }

    /// How often it does what keeps its phonebook good.
    #[must_use]
    pub const fn intervals(mut self, intervals: Intervals) -> Self {
        self.intervals = intervals;
        self
    }

    /// What it takes for the time. For tests of a clock that is wrong.
    #[doc(hidden)]
    #[must_use]
    pub fn clock(mut self, clock: WallClock) -> Self {
        self.clock = clock;
        self
    }

    /// Keeps first hops, phonebook and the number of its last descriptor in `state`, and begins with those that are kept there. It stays locked until
    /// the node is shut down.
    #[must_use]
    pub fn state(mut self, state: Arc<StateDir>) -> Self {
        self.state = Some(state);
        self
    }

    /// How much it can hold.
    #[must_use]
    pub const fn sizes(mut self, sizes: Sizes) -> Self {
        self.sizes = sizes;
        self
    }

    /// Starts the node.
    ///
    /// # Errors
    /// An address that cannot be listened on, a state directory that cannot be used, or settings that contradict each other; the text says what to do.
    pub async fn start(self) -> Result<Node, StartError> {
        if (self.relay || self.exit) && self.listen.is_empty() {
            return Err(StartError(
                "a relay or an exit needs an address to listen on (`listen` in the configuration)".into(),
            ));
        }
        let (guards, stored) = match &self.state {
            Some(state) => load(Arc::clone(state)).await?,
            None => (Guards::new(), None),
        };
        let sequence = Sequence::load(self.state.clone())?;
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for address in &self.listen {
            let failed = |error| StartError(format!("cannot listen on {address}: {error}; is another node using it?"));
            let listener = listen(address).map_err(failed)?;
            addresses.push(listener.local_addr().map_err(failed)?);
            listeners.push(listener);
        }
        let threads = match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let workers = Workers::start(threads).map_err(|error| StartError(format!("cannot start threads: {error}")))?;
        let advertised = if self.advertise.is_empty() { addresses.clone() } else { self.advertise.clone() };
        let serving = !listeners.is_empty();

        let (identity, link, kind) = (self.identity, self.link, self.onion_kind);
        let keys = workers.call(move || {
            let link = link.unwrap_or_else(|| LinkSecret::generate(&mut SYSTEM.clone()));
            let onion = OnionSecret::generate(kind, &mut SYSTEM.clone());
            // A client that answers no links shows itself to nobody, and needs no RSA key.
            let identity = identity.or_else(|| serving.then(|| IdentitySecret::generate(&mut SYSTEM.clone())));
            let node = identity.as_ref().map_or_else(random_node, IdentitySecret::node_id);
            Keys { identity, link, onion: RwLock::new(OnionKeys::new(onion, None)), node }
        });
        let keys = Arc::new(keys.await.ok_or_else(|| StartError("key generation failed".into()))?);
        let node_id = keys.node;
        // Onions name the next hop's address; on the public network they must not make us call on private ones.
        let public = Policy::public();
        let is_public = |address: &SocketAddr| public.decide(*address) == Verdict::Accept;
        let neighbours = advertised.iter().any(is_public).then(|| public.clone());
        let policy = own_addresses_apart(self.policy, advertised.iter().filter(|&address| is_public(address)))?;
        let card = Card {
            roles: Roles { relay: self.relay, exit: self.exit, constrained: false },
            addresses: advertised,
            policy: policy.clone(),
            rotation: self.rotation,
            clock: self.clock.clone(),
            sequence,
        };
        let signing = Arc::clone(&keys);
        let signed = workers.call(move || (card.sign_current(&signing), card));
        let (signed, card) = signed.await.ok_or_else(|| StartError("the descriptor could not be signed".into()))?;
        let signed = signed?;
        let descriptor = signed.as_ref().map(|signed| signed.bytes.clone()).unwrap_or_default();
        let (own, own_shown) = watch::channel(signed);

        let config = Config {
            node: keys.node,
            relay: self.relay,
            exit: self.exit,
            limits: LinkLimits {
                record_cells: RecordCells::MAX,
                credit: InitialCredit::new(INITIAL_CREDIT).expect("in range"),
            },
            window_max: window_max(self.sizes.cells),
            circuits_per_link: self.circuits_per_link,
            onions_per_link: self.onions_per_link,
            half_open_links: self.half_open_links,
            patience: self.patience,
        };
        let intervals = self.intervals;
        let directory = Directory::start(directory::Settings {
            own: keys.node,
            reuse: self.reuse,
            guards: guards.clone(),
            stored,
            // Where network groups do not matter to paths, they must not matter to the buckets: all would lie in one.
            grouping: if self.strictness == Strictness::Ignore { Grouping::Address } else { Grouping::Network },
            retry: intervals.retry,
            lonely: intervals.exchange.unwrap_or(EXCHANGE) * LONELY,
            clock: self.clock.clone(),
        });
        let (commands, asked) = mpsc::unbounded_channel();
        let (done, finished) = mpsc::unbounded_channel();
        let audience = {
            let directory = directory.clone();
            Box::new(move |address, shown: Shown<'_>| directory.show(address, shown))
        };
        let (calls, called) = mpsc::channel(CALLS);
        let calls = self.services.or_else(|| serving.then_some(calls));
        let traffic = Arc::new(Traffic::default());
        let shell = TokioShell {
            keys: Arc::clone(&keys),
            descriptor,
            policy: Arc::new(policy),
            workers: workers.clone(),
            readiness: Arc::new(Readiness::default()),
            done,
            conversations: std::collections::HashMap::new(),
            contacts: std::collections::HashMap::new(),
            audience,
            addresses: std::collections::HashMap::new(),
            clock: self.clock.clone(),
            neighbours,
            connecting: Arc::new(Semaphore::new(CONNECTING)),
            services: Services::new(calls),
            signing: Arc::new(Semaphore::new(SIGNING)),
            ends: LinkEnds::default(),
            traffic: Arc::clone(&traffic),
            onion_key_since: tokio::time::Instant::now(),
            random: SYSTEM,
        };
        let engine = Engine { config, sizes: self.sizes, shell, listeners, commands: asked, done: finished };
        let running = engine.start().map_err(|error| StartError(format!("cannot start the node's thread: {error}")))?;
        let running = running.await.unwrap_or(Err("its thread ended"));
        running.map_err(|error| StartError(format!("the node's settings do not fit together: {error}")))?;

        let mut tasks = JoinSet::new();
        for contact in self.bootstrap {
            tasks.spawn(keeper::stay_in_touch(contact, commands.clone(), serving, directory.clone()));
        }
        if serving {
            let jumps = directory.jumps();
            let rotation = Rotation { keys, card, kind: self.onion_kind, own, jumps };
            tasks.spawn(rotation.run(workers.clone(), commands.clone()));
            let server = gossip::Server {
                directory: directory.clone(),
                workers: workers.clone(),
                own: own_shown.clone(),
                clock: self.clock.clone(),
            };
            tasks.spawn(gossip::serve(server, called));
        }
        let inner = Arc::new(Inner {
            node: node_id,
            addresses,
            commands: commands.clone(),
            directory: directory.clone(),
            workers,
            building: Semaphore::new(BUILDING),
            hops: self.hops,
            strictness: self.strictness,
            reuse_paths: !self.reuse.is_zero(),
            started: tokio::time::Instant::now(),
            clock: self.clock,
            intervals,
            traffic,
            keeping: std::sync::Mutex::new(None),
            tasks: std::sync::Mutex::new(tasks),
        });
        let gossip = Gossip { node: Arc::downgrade(&inner), directory, commands, own: own_shown, intervals };
        inner.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).spawn(gossip.run());
        let node = Node { inner };
        if let Some(state) = self.state {
            node.keep(state, guards);
        }
        Ok(node)
    }
}

/// An exit's policy, with its own public addresses refused first: what its owner keeps from the outside must not be reached through it.
fn own_addresses_apart<'a>(policy: Policy, own: impl Iterator<Item = &'a SocketAddr>) -> Result<Policy, StartError> {
    let rules: Vec<String> = own
        .map(|address| match address.ip() {
            IpAddr::V4(ip) => format!("reject {ip}/32:*"),
            IpAddr::V6(ip) => format!("reject [{ip}]/128:*"),
        })
        .chain(policy.to_string().lines().map(str::to_owned))
        .collect();
    let too_long = "the exit policy has too many rules; up to four places are needed for the node's own addresses";
    rules.join("\n").parse().map_err(|_| StartError(too_long.into()))
}

fn listen(address: &SocketAddr) -> std::io::Result<std::net::TcpListener> {
    // With SO_REUSEADDR, which the standard library sets: a restarted node does not wait for its old connections to be forgotten.
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Room that every circuit has from the beginning, in each direction: enough for a small answer without waiting.
const INITIAL_CREDIT: u16 = 16;

/// One direction of one circuit may take a 16th of the pool, and not more than half a MiB: more would wait in slower memory and arrive no sooner.
fn window_max(cells: usize) -> u16 {
    u16::try_from((cells / 16).clamp(usize::from(INITIAL_CREDIT), 1024)).unwrap_or(1024)
}

fn random_node() -> NodeId {
    let mut id = [0; 32];
    SYSTEM.clone().fill_bytes(&mut id);
    NodeId(id)
}

/// Starts a node as `config` says; without `state` under an identity of the moment that is kept nowhere.
///
/// # Errors
/// A state directory that cannot be used, an address that cannot be listened on; the text says what to do.
pub async fn start(config: &config::Config, state: Option<Arc<StateDir>>) -> Result<Node, StartError> {
    let limits = &config.limits;
    let to_u16 = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    let to_usize = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
    let mut builder = Node::builder()
        .onion_key(config.onion_key.kind, config.onion_key.rotation())
        .paths(
            u8::try_from(config.path.hops).ok().and_then(HopCount::new).unwrap_or_default(),
            match config.path.network_groups {
                NetworkGroups::Require => Strictness::Require,
                NetworkGroups::Prefer => Strictness::Prefer,
                NetworkGroups::Ignore => Strictness::Ignore,
            },
        )
        .sizes(Sizes {
            links: to_usize(limits.links),
            circuits: to_usize(limits.circuits),
            cells: to_usize(limits.cells),
            onions: to_usize(limits.onions),
            origins: to_usize(limits.circuits),
            ..Sizes::default()
        });
    builder.reuse = config.path.reuse();
    builder.circuits_per_link = limits.circuits_per_link;
    builder.onions_per_link = to_u16(limits.jobs_per_link);
    builder.half_open_links = to_u16(limits.half_open_links);
    builder.patience = Patience { idle: limits.circuit_idle(), handshake: limits.handshake(), ..Patience::DEFAULT };
    builder.workers = to_usize(limits.workers);
    builder.relay = config.roles.relay;
    if config.roles.exit {
        builder = builder.exit(config.exit.policy.clone());
    }
    builder.intervals = config.phonebook.intervals();
    builder.bootstrap.clone_from(&config.bootstrap);
    builder.advertise.clone_from(&config.advertise);
    if config.roles.relay || config.roles.exit {
        builder.listen.clone_from(&config.listen);
    }
    if let Some(state) = &state
        && !builder.listen.is_empty()
    {
        let (identity, link) = load_keys(state)?;
        builder = builder.identity(identity).link_key(link);
    }
    if config.roles.client && config.bootstrap.is_empty() {
        tracing::warn!("no bootstrap nodes: this client knows nobody to open a path through; add `bootstrap` entries");
    }
    builder.state = state;
    builder.start().await
}

/// First hops and phonebook of before.
async fn load(state: Arc<StateDir>) -> Result<(Guards, Option<Stored>), StartError> {
    let guards = load_guards(&state)?;
    let loaded = tokio::task::spawn_blocking(move || Stored::load(&state)).await;
    let loaded = loaded.map_err(|_| StartError("the phonebook could not be read".into()))?;
    Ok((guards, loaded.map_err(|error| StartError(error.to_string()))?))
}

/// The first hops of before. A file that holds something else is an error, not a reason to draw new ones: that is what an attacker would like.
fn load_guards(state: &StateDir) -> Result<Guards, StartError> {
    let bytes = state.read(Item::Guards).map_err(|error| StartError(error.to_string()))?;
    let guards = Guards::from_bytes(bytes.as_ref().map_or(&[][..], |bytes| bytes.as_slice()));
    guards.map_err(|_| {
        let path = state.item_path(Item::Guards);
        StartError(format!("{} does not hold guards; remove it to draw new first hops", path.display()))
    })
}

/// The keys that survive a restart. Onion keys do not: a node that came back with an old one, but without its replay tags, would
/// open the same onion twice.
fn load_keys(state: &StateDir) -> Result<(IdentitySecret, LinkSecret), StartError> {
    let wrong = |item: Item| {
        StartError(format!(
            "{} does not hold a key; restore it, or remove it to get a new one",
            state.item_path(item).display()
        ))
    };
    let failed = |error: crate::state::StateError| StartError(error.to_string());
    let identity = match state.read(Item::Identity).map_err(failed)? {
        Some(der) => IdentitySecret::from_pkcs8(&der).map_err(|_| wrong(Item::Identity))?,
        None => {
            let der = crate::identity::generate();
            state.create(Item::Identity, &der).map_err(failed)?;
            IdentitySecret::from_pkcs8(&der).map_err(|_| wrong(Item::Identity))?
        }
    };
    let link = match state.read(Item::LinkKey).map_err(failed)? {
        Some(bytes) => {
            let bytes: [u8; 32] = bytes.as_slice().try_into().map_err(|_| wrong(Item::LinkKey))?;
            LinkSecret::from_bytes(bytes)
        }
        None => {
            let link = LinkSecret::generate(&mut SYSTEM.clone());
            state.create(Item::LinkKey, link.to_bytes().as_ref()).map_err(failed)?;
            link
        }
    };
    Ok((identity, link))
}

/// So that the channel's end is in one place.
pub(super) type Commands = mpsc::UnboundedSender<Command>;
