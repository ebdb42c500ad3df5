//! A node: the state machine of all its links, circuits and conversations, in whatever mix of roles. No I/O, no clock, no generator.
//!
//! The owner (the [`crate::driver`]) feeds it what happens and carries out what it asks for:
//!
//! | what happens | what to do next |
//! | --- | --- |
//! | [`Node::accept_link`], [`Node::handle_link_up`], [`Node::handle_link_down`], [`Node::handle_link_unmade`] | [`Node::poll_link`]: a link wants to be connected or has output |
//! | [`Node::handle_cell`]: a cell came, to be rewritten in place | [`Node::poll_cells`]: cells to be sent on a link |
//! | [`Node::handle_peeled`]: a private-key operation is done | [`Node::poll_job`]: an onion to be opened |
//! | [`Node::handle_input`], [`Node::handle_written`], ... for a conversation | [`Node::poll_conversation`], [`Node::poll_ask`], [`Node::poll_output`] |
//! | [`Node::handle_timeout`] | [`Node::poll_timeout`] |
//!
//! After each event, drain the polls until they answer `None`; anything may have become ready.
//!
//! The folders below say who owns what: [`crate::circuit`] the mechanics (pool, credit, tables), [`crate::relay`] and [`crate::client`] what
//! a circuit means at its role, and the modules here how a cell finds its circuit (`arrival`), how links come and
//! go (`links`), how a circuit opens (`opening`), sends (`output`), talks to the outside (`talk`) and ends (`closing`).

mod arrival;
mod audit;
mod books;
mod census;
mod closing;
pub mod config;
#[cfg(test)]
mod exhaustive;
mod links;
mod opening;
mod outcome;
mod output;
pub mod port;
mod resources;
mod role;
mod talk;
mod timers;

use core::net::SocketAddr;
use core::time::Duration;

use rand_core::CryptoRng;

use crate::circuit::index::{Index, IndexSlot};
use crate::circuit::list::List;
use crate::circuit::pool::{Pool, PoolSlot};
use crate::circuit::table::{CircuitSlot, Listed, Side, Table};
use crate::circuit::{CircuitIndex, LinkId};
use crate::client::origin::Origin;
use crate::crypto::kem::KeyEpoch;
use crate::crypto::onion::ONION_CELLS;
use crate::crypto::replay::{ReplayEpochs, ReplaySet};
use crate::relay::onions::{OnionSlot, Onions};
use crate::time::Instant;
use crate::wire::{NodeId, WireError};

pub use crate::circuit::table::ConversationId;
pub use books::{CircuitBooks, FlowBooks, LinkBooks, RoleBooks};
pub use census::{Capacity, LinkCensus, ReplayUsage};
pub use config::{Config, Patience};
pub use opening::{OpenRefused, Opening, Plan};
pub use outcome::{Outcome, Suspect};
pub use port::{PeerLimits, PortSlot};
use port::{Ports, REFUSALS};
pub use resources::Resources;
use role::Role;
pub use talk::{Ask, Output};

/// A place for the layers of one of our own circuits.
pub struct OriginSlot(Option<Origin>);

impl OriginSlot {
    /// A place that is free.
    pub const EMPTY: Self = Self(None);
}

/// The memory of a node: every table is as long as its owner makes it, and nothing else grows.
pub struct Memory<'m> {
    /// Links, answered and connected.
    pub links: &'m mut [PortSlot],
    /// Circuits in any role.
    pub circuits: &'m mut [NodeCircuit],
    /// The index of circuits: at least four places for each circuit, and a power of two, such as [`crate::circuit::index::index_len`].
    pub index: &'m mut [IndexSlot],
    /// Cells of all circuits.
    pub cells: &'m mut [PoolSlot],
    /// Onions that arrive, are opened or leave.
    pub onions: &'m mut [OnionSlot],
    /// Our own circuits.
    pub origins: &'m mut [OriginSlot],
    /// Replay tags of the current and of the previous onion key.
    pub replay: [&'m mut [u64]; 2],
}

/// One place of the circuit table.
pub type NodeCircuit = CircuitSlot<Role>;

/// How a peer broke the protocol; its link is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Violation {
    /// A cell does not parse.
    Malformed(WireError),
    /// A cell that this side may not send, or not now.
    OutOfTurn,
    /// A circuit id that was never opened.
    UnknownCircuit,
    /// A relay cell without credit.
    Overrun,
    /// More credit than a circuit can use.
    CreditOverflow,
    /// More circuits begun and refused at once than whole onions fit into a record.
    Flood,
}

impl From<WireError> for Violation {
    fn from(error: WireError) -> Self {
        Self::Malformed(error)
    }
}

impl core::fmt::Display for Violation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Malformed(error) => write!(f, "malformed cell: {error}"),
            Self::OutOfTurn => f.write_str("cell out of turn"),
            Self::UnknownCircuit => f.write_str("cell for a circuit that was never opened"),
            Self::Overrun => f.write_str("relay cell without credit"),
            Self::CreditOverflow => f.write_str("more credit than a circuit can use"),
            Self::Flood => f.write_str("too many onions begun at once"),
        }
    }
}

/// What a link wants from the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkWish {
    /// Connect it, and refuse an answer that is not from `node`.
    Connect {
        /// Where to.
        address: SocketAddr,
        /// Whom to find there, if that is known.
        node: Option<NodeId>,
    },
    /// Take its cells with [`Node::poll_cells`].
    Send,
    /// Close it: it has been idle, or its handshake took too long.
    Close,
}

/// What this node has done and refused since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Relay cells that came from clients' side.
    pub forward: u64,
    /// Relay cells that came from the far side.
    pub backward: u64,
    /// Relay cells sent, either way.
    pub sent: u64,
    /// Circuits opened here, as relay or exit.
    pub opened: u64,
    /// Onions rejected: authenticator, key, instruction.
    pub rejected: u64,
    /// Onions seen before.
    pub replayed: u64,
    /// Circuits refused for want of room.
    pub busy: u64,
    /// Cells for circuits that are gone.
    pub late: u64,
    /// Circuits ended because what came on them was not for them.
    pub garbled: u64,
    /// Links closed for a violation.
    pub violations: u64,
    /// Circuits ended by their deadline.
    pub expired: u64,
}

/// The state machine of a node.
pub struct Node<'m> {
    config: Config,
    pool: Pool<'m>,
    table: Table<'m, Role>,
    index: Index<'m>,
    ports: Ports<'m>,
    onions: Onions<'m>,
    origins: &'m mut [OriginSlot],
    replay: ReplayEpochs<'m>,
    /// The current key's replay set has filled up and the key should be rotated.
    rotation_due: bool,
    /// Conversations that want the driver.
    attention: List,
    next_tick: Option<Instant>,
    stopping: bool,
    counters: Counters,
}

impl<'m> Node<'m> {
    /// A node without links and with its first onion key. `rng` keys the tables that peers could otherwise aim at.
    ///
    /// # Errors
    /// The sentence says what is wrong with the configuration or the memory.
    pub fn new(config: Config, memory: Memory<'m>, rng: &mut dyn CryptoRng) -> Result<Self, &'static str> {
        config.check()?;
        if memory.index.len() < memory.circuits.len().saturating_mul(4) || !memory.index.len().is_power_of_two() {
            return Err("the index needs four places for each circuit, and a power of two of them");
        }
        if memory.cells.len() < 2 * usize::from(config.limits.credit.value()) {
            return Err("the pool cannot hold the initial credit of one circuit");
        }
        memory.circuits.fill_with(|| CircuitSlot::EMPTY);
        memory.origins.fill_with(|| OriginSlot::EMPTY);
        let [current, previous] = memory.replay;
        Ok(Self {
            config,
            pool: Pool::new(memory.cells),
            table: Table::new(memory.circuits),
            index: Index::new(memory.index, [rng.next_u64(), rng.next_u64()]),
            ports: Ports::new(memory.links),
            onions: Onions::new(memory.onions),
            origins: memory.origins,
            replay: ReplayEpochs::new(KeyEpoch::FIRST, ReplaySet::new(current, rng), ReplaySet::new(previous, rng)),
            rotation_due: false,
            attention: List::default(),
            next_tick: None,
            stopping: false,
            counters: Counters::default(),
        })
    }

    /// Roles and limits.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// What happened so far.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether there is such a link.
    #[must_use]
    pub fn knows_link(&self, link: LinkId) -> bool {
        self.ports.get(link).is_some()
    }

    /// Whether more may be read from a link. Not while refusals wait to be sent that the next record's onions could add to.
    #[must_use]
    pub fn takes_cells(&self, link: LinkId) -> bool {
        // Onions that a record can begin, if none of them is cut short.
        let onions = usize::from(self.config.limits.record_cells.value()) / ONION_CELLS + 2;
        self.ports.get(link).is_some_and(|port| port.refusals.len() + onions <= REFUSALS)
    }

    /// Has a link polled again.
    pub fn call_link_again(&mut self, link: LinkId) {
        self.ports.touch(link);
    }

    /// How full the tables are.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            links: self.ports.len(),
            circuits: self.table.len(),
            cells_held: self.pool.held(),
            cells_reserved: self.pool.reserved(),
            onions: self.onions.len(),
            origins: self.origins.iter().filter(|slot| slot.0.is_some()).count(),
        }
    }

    /// The owner has replaced its onion key: what was current is now previous.
    pub fn handle_rotation(&mut self) {
        self.replay.rotate();
        self.rotation_due = false;
    }

    /// Whether an onion key's replay set is full, or the current one's nearly, so that the key should be rotated early.
    #[must_use]
    pub const fn is_rotation_due(&self) -> bool {
        self.rotation_due || self.replay.current().is_nearly_full()
    }

    /// Takes no more links and circuits from others; what is open goes on until it ends.
    pub const fn stop(&mut self) {
        self.stopping = true;
    }

    /// How long a link may be without circuits. Who answered waits longer, so that the connector, who alone knows whether it is about to
    /// open a circuit, closes first.
    fn link_idle(&self, side: Side) -> Duration {
        match side {
            Side::Outward => self.config.patience.link_idle,
            Side::Inward => self.config.patience.link_idle + self.config.patience.handshake,
        }
    }

    fn list_output(&mut self, index: CircuitIndex, side: Side, link: LinkId) {
        if let Some(port) = self.ports.get_mut(link) {
            port.output.push(self.table.slots(), index.slot(), Listed::Output(side));
            self.ports.touch(link);
        }
    }

    fn list_grant(&mut self, index: CircuitIndex, side: Side, link: LinkId) {
        if let Some(port) = self.ports.get_mut(link) {
            port.grants.push(self.table.slots(), index.slot(), Listed::Grant(side));
            self.ports.touch(link);
        }
    }

    fn list_attention(&mut self, index: CircuitIndex) {
        self.attention.push(self.table.slots(), index.slot(), Listed::Attention);
    }
}

/// How full a node's tables are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Links, answered and connected, opening or up.
    pub links: usize,
    /// Circuits in any role.
    pub circuits: usize,
    /// Cells in the pool.
    pub cells_held: usize,
    /// Cells in the pool or promised to a sender.
    pub cells_reserved: usize,
    /// Onions arriving, being opened or leaving.
    pub onions: usize,
    /// Our own circuits.
    pub origins: usize,
}
