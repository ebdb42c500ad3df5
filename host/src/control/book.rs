//! What the control socket asks of the phonebook, and what it hears: values only, so that whoever owns the phonebook answers in an instant
//! and somebody else makes text of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bulbil_core::phonebook::VerifiedDescriptor;
use bulbil_core::wire::{NodeId, OnionKeyKind, Roles};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::message::{Complaint, Reply};

/// A question to the owner of a running node's phonebook. Whoever asked may have gone before it is answered.
pub(crate) enum Question {
    /// How much there is.
    Count(oneshot::Sender<Counts>),
    /// Every node, in ascending order of fingerprints.
    List(oneshot::Sender<Vec<NodeLine>>),
    /// The nodes whose fingerprints begin so.
    Find(Prefix, oneshot::Sender<Found>),
    /// Every descriptor that may be passed on: not expired, not in dispute.
    Export(oneshot::Sender<Vec<Arc<VerifiedDescriptor>>>),
    /// Take these in, as heard and not met.
    Import(Vec<VerifiedDescriptor>, oneshot::Sender<Taken>),
}

/// What a node offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It passes circuits on.
    Relay,
    /// It ends circuits and connects to targets.
    Exit,
    /// It opens circuits of its own; never in a descriptor.
    Client,
    /// It is short of memory.
    Constrained,
}

impl Role {
    /// What a descriptor says.
    #[must_use]
    pub fn of(roles: Roles) -> Vec<Self> {
        let all = [(roles.relay, Self::Relay), (roles.exit, Self::Exit), (roles.constrained, Self::Constrained)];
        all.into_iter().filter_map(|(has, role)| has.then_some(role)).collect()
    }

    /// As in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Exit => "exit",
            Self::Client => "client",
            Self::Constrained => "constrained",
        }
    }
}

/// The kind of an onion key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// RSA-2048.
    Rsa2048,
    /// X25519 and ML-KEM-768.
    XWing,
}

impl KeyKind {
    /// As in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rsa2048 => "rsa2048",
            Self::XWing => "x-wing",
        }
    }
}

impl From<OnionKeyKind> for KeyKind {
    fn from(kind: OnionKeyKind) -> Self {
        match kind {
            OnionKeyKind::Rsa2048 => Self::Rsa2048,
            OnionKeyKind::XWing => Self::XWing,
        }
    }
}

/// Where in the phonebook a node lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shelf {
    /// Met by this node itself.
    Tried,
    /// Heard of.
    New,
}

impl Shelf {
    /// As in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tried => "tried",
            Self::New => "new",
        }
    }
}

/// One node of the phonebook, as `bulbil phonebook list` shows it. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLine {
    /// Who, 64 hexadecimal digits.
    #[serde(with = "hex_id")]
    pub fingerprint: NodeId,
    /// What it offers.
    pub roles: Vec<Role>,
    /// Its first address.
    pub address: SocketAddr,
    /// Where it lies.
    pub shelf: Shelf,
    /// How often in a row it did not answer.
    pub failures: u8,
    /// When this node last met it itself.
    pub last_met: Option<u64>,
    /// The last second of its descriptor's validity.
    pub valid_until: u64,
    /// The kind of its onion key.
    pub onion_key: KeyKind,
    /// Whether its owner wants it kept whatever happens.
    pub pinned: bool,
    /// Whether its key is used twice: two descriptors with one sequence number.
    pub disputed: bool,
}

/// One node, as `bulbil phonebook show` shows it: all of [`NodeLine`], and this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDetails {
    /// What `list` shows.
    #[serde(flatten)]
    pub line: NodeLine,
    /// All its addresses, the preferred one first.
    pub addresses: Vec<SocketAddr>,
    /// Ports that it connects to as an exit, as `80` or `8000-8999`.
    pub exit_ports: Vec<String>,
    /// Grows with each of its descriptors.
    pub sequence: u64,
    /// The first second of its descriptor's validity.
    pub valid_from: u64,
    /// Highest protocol version that it speaks.
    pub protocol: u16,
    /// The X25519 key that it proves on its links, hexadecimal.
    pub link_key: String,
}

/// The nodes that a prefix names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nobody.
    Nobody,
    /// One.
    One(Box<NodeDetails>),
    /// Several: the first [`FOUND_MAX`] of them in ascending order, and how many there are.
    Several(Vec<NodeId>, usize),
}

impl Found {
    /// What is told to whoever asked for `prefix`.
    pub(crate) fn reply(self, prefix: &Prefix) -> Reply {
        match self {
            Self::One(details) => Reply::Show(details),
            Self::Nobody => {
                let text = format!("no node in the phonebook has a fingerprint that begins with {prefix}");
                Reply::error(Complaint::Unknown, text)
            }
            Self::Several(nodes, count) => {
                let mut text = format!("{count} nodes have fingerprints that begin with {prefix}; write more of it:");
                for node in &nodes {
                    text.push_str(&format!("\n  {node}"));
                }
                if count > nodes.len() {
                    text.push_str(&format!("\n  and {} more", count - nodes.len()));
                }
                Reply::error(Complaint::Ambiguous, text)
            }
        }
    }
}

/// Nodes that an ambiguous prefix is answered with, at most.
pub(crate) const FOUND_MAX: usize = 8;

/// How much is in the phonebook, and what its node does to keep it good.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Nodes that this node has met itself.
    pub tried: usize,
    /// Nodes heard of.
    pub new: usize,
    /// Nodes in dispute, on either shelf.
    pub disputed: usize,
    /// Pinned nodes, on either shelf.
    pub pinned: usize,
    /// Nodes whose descriptors have expired, on either shelf.
    pub expired: usize,
    /// How many fit, on both shelves.
    pub capacity: usize,
    /// Exchanges with other nodes; absent from a node that exchanges nothing.
    pub exchanges: Option<Exchanges>,
    /// Tests whether nodes are there; absent from a node that tests nobody.
    pub tests: Option<Tests>,
    /// Whether other nodes agree with this one about the time.
    pub clock: Clock,
}

/// Exchanges of descriptors since the node's start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchanges {
    /// Nodes asked.
    pub asked: u64,
    /// Of these, answers taken in to their end.
    pub answered: u64,
    /// Of these, conversations that failed and answers refused.
    pub failed: u64,
    /// Requests of others that were answered.
    pub served: u64,
    /// Requests of others that were refused.
    pub turned_away: u64,
    /// Descriptors that were new, or newer than what was known.
    pub taken: u64,
    /// Descriptors and answers refused, by reason; reasons that have not occurred may be absent.
    pub refused: BTreeMap<String, u64>,
}

/// Tests since the node's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tests {
    /// Begun.
    pub begun: u64,
    /// Of these, answered by the node that was meant.
    pub answered: u64,
    /// Of these, not.
    pub failed: u64,
}

/// Whether other nodes agree with this one about the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Clock {
    /// Too few have said what time it is.
    #[default]
    Unknown,
    /// They do.
    Agrees,
    /// They do not: the clock is in doubt.
    Off {
        /// How far this node's clock is ahead of the others' median.
        seconds: i64,
        /// How many others that is the median of.
        peers: u8,
    },
}

/// What became of descriptors that an import has handed to the phonebook.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The node was not known.
    pub added: u64,
    /// The node was known by an older descriptor.
    pub updated: u64,
    /// The node was known by the same or a newer descriptor.
    pub known: u64,
    /// There was no room.
    pub full: u64,
    /// It is the node's own.
    pub own: u64,
    /// It is in dispute, or puts its node in dispute: one sequence number, two descriptors.
    pub disputed: u64,
    /// Its validity was over.
    pub expired: u64,
}

impl Taken {
    /// Adds what another part of the same import gave.
    pub(crate) const fn add(&mut self, other: &Self) {
        self.added += other.added;
        self.updated += other.updated;
        self.known += other.known;
        self.full += other.full;
        self.own += other.own;
        self.disputed += other.disputed;
        self.expired += other.expired;
    }
}

/// The beginning of a fingerprint: 1 to 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(String);

impl Prefix {
    /// Whether `node`'s fingerprint begins so.
    #[must_use]
    pub fn matches(&self, node: &NodeId) -> bool {
        let digits = node.0.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        self.0.chars().zip(digits).all(|(wanted, digit)| wanted.to_digit(16) == Some(u32::from(digit)))
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            true => Ok(Self(text.to_ascii_lowercase())),
            false => Err("write the first digits of a fingerprint: 1 to 64 of 0-9 and a-f".into()),
        }
    }
}

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.0
    }
}

/// Node ids as text.
pub(crate) mod hex_id {
    use bulbil_core::wire::NodeId;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(node: &NodeId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(node)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NodeId, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| D::Error::custom("a fingerprint has 64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_the_beginning_of_a_fingerprint_in_either_case() {
        let node = NodeId(std::array::from_fn(|at| 0xa0 + at as u8));
        for good in ["a", "A0", "a0a1", "A0a1a", &node.to_string()] {
            assert!(good.parse::<Prefix>().unwrap().matches(&node), "{good}");
        }
        for other in ["b", "a1", "a0a2", "a0a1b"] {
            assert!(!other.parse::<Prefix>().unwrap().matches(&node), "{other}");
        }
        for wrong in ["", "g", "a0 ", "a0:a1", &"a".repeat(65), "é"] {
            assert!(wrong.parse::<Prefix>().is_err(), "{wrong}");
            assert!(serde_json::from_value::<Prefix>(wrong.into()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_line_is_the_same_after_json() {
        let line = NodeLine {
            fingerprint: NodeId([7; 32]),
            roles: vec![Role::Relay, Role::Constrained],
            address: "[2001:db8::7]:9001".parse().unwrap(),
            shelf: Shelf::Tried,
            failures: 2,
            last_met: Some(1_700_000_000),
            valid_until: 1_700_003_600,
            onion_key: KeyKind::XWing,
            pinned: true,
            disputed: false,
        };
        let json = serde_json::to_value(&line).unwrap();
        assert_eq!(json["fingerprint"], "07".repeat(32));
        assert_eq!((&json["onion_key"], &json["shelf"]), (&"x-wing".into(), &"tried".into()));
        assert_eq!(serde_json::from_value::<NodeLine>(json).unwrap(), line);
        let clock = serde_json::to_string(&Clock::Off { seconds: -7200, peers: 5 }).unwrap();
        assert_eq!(clock, r#"{"verdict":"off","seconds":-7200,"peers":5}"#);
    }
}
