//! What `bulbil status` tells. As JSON it is [`Report`] with these names; fields may be added, none changes its meaning while
//! [`Report::format`] is 1. Text for people is its `Display`.

use std::net::SocketAddr;

use bulbil_core::wire::NodeId;
use serde::{Deserialize, Serialize};

use super::book::{Counts, KeyKind, Role, hex_id};
use super::server::About;
use crate::engine::traffic::Totals;
use crate::engine::{LinkEnds, Status};

/// How a node is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// 1.
    pub format: u32,
    /// Who it is.
    pub node: Identity,
    /// Its links.
    pub links: Links,
    /// Its circuits.
    pub circuits: Circuits,
    /// Its pool of cells.
    pub cells: Cells,
    /// Onions that are arriving, being opened or leaving.
    pub onions: Filled,
    /// Its onion key; absent from a node that answers no links.
    pub onion_key: Option<OnionKeyState>,
    /// What crossed its links.
    pub traffic: Traffic,
    /// What it has refused.
    pub refused: Refused,
    /// Its phonebook and what keeps it good.
    pub phonebook: Counts,
    /// Memory that the process holds, in bytes; absent where the system does not tell.
    pub resident_bytes: Option<u64>,
}

/// Who a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// 64 hexadecimal digits. Of a client that answers no links it is one of the moment.
    #[serde(with = "hex_id")]
    pub fingerprint: NodeId,
    /// What it does.
    pub roles: Vec<Role>,
    /// Where it answers links.
    pub listening: Vec<SocketAddr>,
    /// Where others are told to reach it.
    pub advertised: Vec<SocketAddr>,
    /// Where its SOCKS5 proxy is.
    pub socks: Vec<SocketAddr>,
    /// The program's version.
    pub version: String,
    /// The protocol's version.
    pub protocol: u16,
    /// Its process id.
    pub process: u32,
    /// For how long it has been running.
    pub uptime_seconds: u64,
}

/// Places in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filled {
    /// Taken.
    pub used: usize,
    /// In all.
    pub total: usize,
}

/// A node's links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Links {
    /// In use, connected by others.
    pub up_in: usize,
    /// In use, connected by this node.
    pub up_out: usize,
    /// Shaking hands, connected by others.
    pub half_open_in: usize,
    /// Being connected or shaking hands, by this node.
    pub half_open_out: usize,
    /// About to be closed.
    pub closing: usize,
    /// Places for links.
    pub total: usize,
    /// Those that have ended since the node's start, by reason.
    pub ended: Ended,
}

/// How links have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Closed by either side in good order, or idle.
    pub closed: u64,
    /// Not made, or broken by the network.
    pub failed: u64,
    /// The handshake failed, or its answer was not acceptable.
    pub handshake: u64,
    /// Answered by another node than the one that was meant.
    pub wrong_node: u64,
    /// A record was forged or malformed.
    pub record: u64,
    /// The peer broke the protocol.
    pub violation: u64,
    /// The peer took nothing for too long.
    pub stalled: u64,
}

impl From<LinkEnds> for Ended {
    fn from(ends: LinkEnds) -> Self {
        let LinkEnds { closed, failed, handshake, wrong_node, record, violation, stalled } = ends;
        Self { closed, failed, handshake, wrong_node, record, violation, stalled }
    }
}

/// A node's circuits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circuits {
    /// Open or opening, in any role.
    pub open: usize,
    /// Places for circuits.
    pub total: usize,
    /// Of those that are open, this node's own.
    pub own: usize,
    /// Places for its own.
    pub own_total: usize,
    /// Opened for others since the node's start.
    pub opened: u64,
    /// Ended by their deadline since then.
    pub expired: u64,
}

/// A node's pool of cells, 516 bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cells {
    /// Waiting in the pool.
    pub held: usize,
    /// Held, or promised to a sender as credit.
    pub promised: usize,
    /// In all.
    pub total: usize,
}

/// A node's onion key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnionKeyState {
    /// The KEM.
    pub kind: KeyKind,
    /// For how long it has been in force.
    pub age_seconds: u64,
    /// Circuits that it has opened, of those that it may: the replay set.
    pub replay: Filled,
    /// Circuits that the key before it has opened.
    pub replay_previous: usize,
    /// Whether it is to be replaced early.
    pub rotation_due: bool,
}

/// What crossed a node's links.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Since the node's start.
    pub total: Moved,
    /// In the last ten seconds.
    pub recent: Recent,
}

/// What moved, each way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Bytes that came on links, handshakes included.
    pub bytes_in: u64,
    /// Bytes that left on links.
    pub bytes_out: u64,
    /// Relay cells that came.
    pub cells_in: u64,
    /// Relay cells that left.
    pub cells_out: u64,
}

/// What moved just now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Recent {
    /// In how many seconds: ten, or fewer after a start.
    pub seconds: f64,
    /// What moved in them.
    #[serde(flatten)]
    pub moved: Moved,
}

/// What a node has refused since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Circuits for want of room.
    pub busy: u64,
    /// Onions with a wrong authenticator, key or instruction.
    pub onions_rejected: u64,
    /// Onions seen before.
    pub onions_replayed: u64,
    /// Circuits on which something came that was not for them.
    pub circuits_garbled: u64,
    /// Cells for circuits that are gone.
    pub cells_late: u64,
    /// Links closed for a violation.
    pub violations: u64,
}

impl From<Totals> for Moved {
    fn from(totals: Totals) -> Self {
        let Totals { bytes_in, bytes_out, cells_in, cells_out } = totals;
        Self { bytes_in, bytes_out, cells_in, cells_out }
    }
}

/// What a report is made of besides the node's own status.
pub(super) struct Parts {
    pub fingerprint: NodeId,
    pub listening: Vec<SocketAddr>,
    pub uptime: std::time::Duration,
    pub traffic: Traffic,
    pub phonebook: Counts,
}

impl Report {
    pub(super) fn new(about: &About, status: &Status, parts: Parts) -> Self {
        let (usage, capacity, counters) = (&status.usage, &status.capacity, &status.counters);
        let serves = !parts.listening.is_empty();
        let advertised = match about.advertised.is_empty() {
            true => parts.listening.clone(),
            false => about.advertised.clone(),
        };
        Self {
            format: 1,
            node: Identity {
                fingerprint: parts.fingerprint,
                roles: about.roles.clone(),
                listening: parts.listening,
                advertised: if serves { advertised } else { Vec::new() },
                socks: about.socks.clone(),
                version: env!("CARGO_PKG_VERSION").into(),
                protocol: bulbil_core::wire::ProtocolVersion::V1.value(),
                process: std::process::id(),
                uptime_seconds: parts.uptime.as_secs(),
            },
            links: Links {
                up_in: status.census.answered,
                up_out: status.census.connected,
                half_open_in: status.census.answering,
                half_open_out: status.census.connecting,
                closing: status.census.closing,
                total: capacity.links,
                ended: status.ends.into(),
            },
            circuits: Circuits {
                open: usage.circuits,
                total: capacity.circuits,
                own: usage.origins,
                own_total: capacity.origins,
                opened: counters.opened,
                expired: counters.expired,
            },
            cells: Cells { held: usage.cells_held, promised: usage.cells_reserved, total: capacity.cells },
            onions: Filled { used: usage.onions, total: capacity.onions },
            onion_key: serves.then_some(OnionKeyState {
                kind: about.onion_key,
                age_seconds: status.onion_key_age.as_secs(),
                replay: Filled { used: status.replay.current, total: status.replay.capacity },
                replay_previous: status.replay.previous,
                rotation_due: status.rotation_due,
            }),
            traffic: parts.traffic,
            refused: Refused {
                busy: counters.busy,
                onions_rejected: counters.rejected,
                onions_replayed: counters.replayed,
                circuits_garbled: counters.garbled,
                cells_late: counters.late,
                violations: counters.violations,
            },
            phonebook: parts.phonebook,
            resident_bytes: resident(),
        }
    }
}

/// What the process holds of the machine's memory.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}
