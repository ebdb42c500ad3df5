//! A node's books, circuit by circuit and link by link, so that a test can lay them beside those of the neighbours: what one holds room
//! for, the other may send.

use super::Node;
use super::port::Stage;
use super::role::Role;
use crate::circuit::LinkId;
use crate::circuit::flow::Flow;
use crate::circuit::table::{ConversationId, End, Side};
use crate::time::Instant;

/// What a circuit is at a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its onion was not accepted.
    Refused,
    /// Its onion arrives or is being opened.
    Opening,
    /// The node is a hop in the middle.
    Passing,
    /// The node is the last hop.
    Exiting,
    /// The circuit is the node's own.
    Client,
}

/// One direction of a circuit; numbers of cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowBooks {
    /// Here, to be sent on.
    pub waiting: u16,
    /// What the sender may still send.
    pub promised: u16,
    /// Room that is free again and not yet announced.
    pub due: u16,
    /// What the receiver lets this node send.
    pub credit: u32,
}

impl From<&Flow> for FlowBooks {
    fn from(flow: &Flow) -> Self {
        Self { waiting: flow.waiting().len(), promised: flow.promised(), due: flow.due(), credit: flow.credit() }
    }
}

/// A circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CircuitBooks {
    /// Its name, if it has a conversation here.
    pub name: ConversationId,
    /// What it is.
    pub standing: Standing,
    /// The end toward the client.
    pub inward: End,
    /// The end away from the client.
    pub outward: End,
    /// Cells from the client.
    pub forward: FlowBooks,
    /// Cells to the client.
    pub backward: FlowBooks,
    /// It is ending and takes no more cells.
    pub closing: bool,
    /// When it is given up unless something moves.
    pub deadline: Instant,
}

/// A link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkBooks {
    /// Its name.
    pub link: LinkId,
    /// Inward if the peer connected, outward if this node did.
    pub side: Side,
    /// It is in use: both sides' limits are known.
    pub up: bool,
    /// Its owner holds cells, and has not asked for more since: they may not have left.
    pub unsent: bool,
}

impl Node<'_> {
    /// Every circuit.
    pub fn circuit_books(&self) -> impl Iterator<Item = CircuitBooks> {
        self.table.iter().map(|(index, entry)| CircuitBooks {
            name: self.table.name(index),
            standing: match entry.role {
                Role::Refused => Standing::Refused,
                Role::Opening { .. } => Standing::Opening,
                Role::Passing(..) => Standing::Passing,
                Role::Exiting(..) => Standing::Exiting,
                Role::Client(..) => Standing::Client,
            },
            inward: entry.inward,
            outward: entry.outward,
            forward: (&entry.forward).into(),
            backward: (&entry.backward).into(),
            closing: entry.farewell.is_some(),
            deadline: entry.deadline,
        })
    }

    /// Every link.
    pub fn link_books(&self) -> impl Iterator<Item = LinkBooks> {
        self.ports.iter().map(|(link, port)| LinkBooks {
            link,
            side: port.side,
            up: matches!(port.stage, Stage::Up(_)),
            unsent: port.unsent,
        })
    }

    /// Onions that were handed out with [`Node::poll_job`] and have not come back.
    #[must_use]
    pub fn jobs_out(&self) -> usize {
        self.onions.abandoned(|_, _| false)
    }
}
