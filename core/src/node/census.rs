//! What a node's owner may want to see of it: links by direction, the size of the tables, how much of an onion key's life is used up.

use super::Node;
use super::port::Stage;
use crate::circuit::table::Side;

/// A node's links, counted by who opened them and how far they have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkCensus {
    /// In use, connected by others.
    pub answered: usize,
    /// In use, connected by us.
    pub connected: usize,
    /// Shaking hands, connected by others.
    pub answering: usize,
    /// Wanted, being connected or shaking hands, by us.
    pub connecting: usize,
    /// About to be closed.
    pub closing: usize,
}

/// How much a node's tables can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capacity {
    /// Links, answered and connected.
    pub links: usize,
    /// Circuits in any role.
    pub circuits: usize,
    /// Cells in the pool, 516 bytes each.
    pub cells: usize,
    /// Onions arriving, being opened or leaving.
    pub onions: usize,
    /// Our own circuits.
    pub origins: usize,
}

/// Circuits that onion keys have opened, of those that they may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReplayUsage {
    /// Under the current key.
    pub current: usize,
    /// Most that one key may open.
    pub capacity: usize,
    /// Under the key before it.
    pub previous: usize,
}

impl Node<'_> {
    /// The links, counted.
    #[must_use]
    pub fn link_census(&self) -> LinkCensus {
        let mut census = LinkCensus::default();
        for (_, port) in self.ports.iter() {
            *match (port.stage, port.side) {
                (Stage::Closing, _) => &mut census.closing,
                (Stage::Up(_), Side::Inward) => &mut census.answered,
                (Stage::Up(_), Side::Outward) => &mut census.connected,
                (_, Side::Inward) => &mut census.answering,
                (_, Side::Outward) => &mut census.connecting,
            } += 1;
        }
        census
    }

    /// The tables' sizes.
    #[must_use]
    pub fn capacity(&self) -> Capacity {
        Capacity {
            links: self.ports.capacity(),
            circuits: self.table.capacity(),
            cells: self.pool.capacity(),
            onions: self.onions.capacity(),
            origins: self.origins.len(),
        }
    }

    /// What the replay sets hold.
    #[must_use]
    pub fn replay_usage(&self) -> ReplayUsage {
        let (current, previous) = (self.replay.current(), self.replay.previous());
        ReplayUsage { current: current.len(), capacity: current.capacity(), previous: previous.len() }
    }
}

#[cfg(test)]
mod tests {
    use core::net::SocketAddr;
    use std::boxed::Box;

    use super::*;
    use crate::circuit::flow::WINDOW_MIN;
    use crate::crypto::testing::rng;
    use crate::node::{Config, Patience, PeerLimits, Resources, Usage};
    use crate::time::Instant;
    use crate::wire::NodeId;
    use crate::wire::handshake::{InitialCredit, LinkLimits, RecordCells};

    #[test]
    fn every_link_is_counted_once() {
        let mut memory = Box::new(Resources::<4, 8, 32, 128, 6, 2, 512>::new());
        let limits = LinkLimits { record_cells: RecordCells::MIN, credit: InitialCredit::new(WINDOW_MIN).unwrap() };
        let config = Config {
            half_open_links: 1,
            node: NodeId([1; 32]),
            relay: true,
            exit: false,
            limits,
            window_max: WINDOW_MIN,
            circuits_per_link: 8,
            onions_per_link: 8,
            patience: Patience::DEFAULT,
        };
        let mut node = Node::new(config, memory.lend(), &mut rng(1)).unwrap();
        let now = Instant::from_millis(0);
        assert_eq!(node.link_census(), LinkCensus::default());
        let up = node.connect_link(SocketAddr::from(([192, 0, 2, 1], 1)), Some(NodeId([2; 32])), now).unwrap();
        node.handle_link_up(up, NodeId([2; 32]), PeerLimits { record_cells: 1, credit: 8, circuits: 8 }, now);
        let _connecting = node.connect_link(SocketAddr::from(([192, 0, 2, 2], 1)), None, now).unwrap();
        let _half_open = node.accept_link(now).unwrap();
        // The second half-open link costs the first one its place.
        let _half_open = node.accept_link(now).unwrap();
        let census = node.link_census();
        assert_eq!(census, LinkCensus { answered: 0, connected: 1, answering: 1, connecting: 1, closing: 1 });
        assert_eq!(node.usage(), Usage { links: 4, ..Usage::default() });
        assert_eq!(node.capacity(), Capacity { links: 4, circuits: 8, cells: 128, onions: 6, origins: 2 });
        assert_eq!(node.replay_usage(), ReplayUsage { current: 0, capacity: 384, previous: 0 });
    }
}
