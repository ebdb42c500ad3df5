//! A node's books, circuit by circuit and link by link, to be compared with what somebody else has counted: a neighbour, a wire, a model.
//! For tests and for hunting bugs.

use super::Node;
use super::port::Stage;
use super::role::Role;
use crate::circuit::LinkId;
use crate::circuit::flow::Flow;
use crate::circuit::table::{ConversationId, End, Side};
use crate::time::Instant;
use crate::wire::CloseReason;

/// One direction of a circuit. All counts are cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowBooks {
    /// Waiting to be sent on.
    pub waiting: usize,
    /// Those that the sender may still send.
    pub promised: usize,
    /// Room that is free again and that the sender has not been told of.
    pub due: usize,
    /// Those that the receiver lets this node send.
    pub credit: u32,
}

impl FlowBooks {
    fn of(flow: &Flow) -> Self {
        let (waiting, promised) = (usize::from(flow.waiting().len()), usize::from(flow.promised()));
        Self { waiting, promised, due: usize::from(flow.due()), credit: flow.credit() }
    }
}

/// What a circuit is at the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleBooks {
    /// Only its refusal is left to be sent.
    Refused,
    /// Its onion arrives or is being opened.
    Opening,
    /// A hop in the middle.
    Passing,
    /// The last hop.
    Exiting,
    /// The node's own.
    Client,
}

/// A circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CircuitBooks {
    /// Its name, which also names its conversation if it has one.
    pub name: ConversationId,
    /// What it is here.
    pub role: RoleBooks,
    /// Its end toward the client.
    pub inward: End,
    /// Its end away from the client.
    pub outward: End,
    /// Away from the client.
    pub forward: FlowBooks,
    /// Toward the client.
    pub backward: FlowBooks,
    /// Why it is ending, if it is.
    pub ending: Option<CloseReason>,
    /// When it is given up unless something moves.
    pub deadline: Instant,
}

/// A link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkBooks {
    /// Its name.
    pub link: LinkId,
    /// Inward if the peer connected it, outward if this node did.
    pub side: Side,
    /// Whether both sides have shaken hands and told their limits.
    pub up: bool,
    /// Whether its owner holds cells and has not asked for more since: they may not have left.
    pub unsent: bool,
    /// Whether its owner is to close it.
    pub closing: bool,
    /// Circuits that have an end on it.
    pub circuits: usize,
    /// The highest circuit id used on it.
    pub last_id: u32,
    /// Circuits refused, whose CLOSE has not been sent.
    pub refusals: usize,
}

impl Node<'_> {
    /// Every circuit, in the order of their places in the table.
    pub fn circuit_books(&self) -> impl Iterator<Item = CircuitBooks> {
        self.table.iter().map(|(index, entry)| CircuitBooks {
            name: self.table.name(index),
            role: match entry.role {
                Role::Refused => RoleBooks::Refused,
                Role::Opening { .. } => RoleBooks::Opening,
                Role::Passing(..) => RoleBooks::Passing,
                Role::Exiting(..) => RoleBooks::Exiting,
                Role::Client(..) => RoleBooks::Client,
            },
            inward: entry.inward,
            outward: entry.outward,
            forward: FlowBooks::of(&entry.forward),
            backward: FlowBooks::of(&entry.backward),
            ending: entry.farewell,
            deadline: entry.deadline,
        })
    }

    /// Every link, in the order of their places in the table.
    pub fn link_books(&self) -> impl Iterator<Item = LinkBooks> {
        self.ports.iter().map(|(link, port)| LinkBooks {
            link,
            side: port.side,
            up: matches!(port.stage, Stage::Up(_)),
            unsent: port.unsent,
            closing: port.stage == Stage::Closing,
            circuits: port.circuits as usize,
            last_id: port.last_id,
            refusals: port.refusals.len(),
        })
    }

    /// Onions that were handed out with [`Node::poll_job`] and have not come back.
    #[must_use]
    pub fn jobs_out(&self) -> usize {
        self.onions.abandoned(|_, _| false)
    }
}
