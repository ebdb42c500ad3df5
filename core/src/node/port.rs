//! A link as circuits see it: who opens circuits on it, what the peer allows, and what is ready to be sent.

use core::net::SocketAddr;

use crate::circuit::LinkId;
use crate::circuit::list::{Hook, Hooked, List};
use crate::circuit::table::Side;
use crate::relay::onions::OnionIndex;
use crate::time::Instant;
use crate::wire::{CircuitId, CloseReason, NodeId};

/// Refusals that may wait for a link at once. Before there is no room for those that another record of whole onions could bring, nothing
/// more is read from the link; so only a peer that begins onions without sending the rest can bring more.
pub const REFUSALS: usize = 32;

const _: () = assert!(REFUSALS >= 2 * (crate::link::record::RECORD_CELLS_MAX / crate::crypto::onion::ONION_CELLS + 2));

/// What a link's peer allows, as announced in its handshake payload or HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLimits {
    /// Most cells in one record.
    pub record_cells: u16,
    /// Credit that every circuit has from the beginning, for cells that we send.
    pub credit: u16,
    /// Circuits that we may have open at once; 0 on links that we answered.
    pub circuits: u32,
}

/// How far a link has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Wanted: the owner has not been asked to connect.
    Wanted,
    /// The owner connects and shakes hands, as connector or as answerer.
    Opening,
    /// An answered link whose HELLO has not come.
    AwaitingHello,
    /// In use.
    Up(PeerLimits),
    /// To be closed by the owner: idle too long, or its handshake took too long.
    Closing,
}

/// The circuit side of a link.
pub struct Port {
    /// How far the link has come.
    pub stage: Stage,
    /// Which side of its circuits the link is: inward if the peer connected, outward if we did.
    pub side: Side,
    /// The node that this link is for, if we connected and know it.
    pub peer: Option<NodeId>,
    /// Where to connect to, if we connect.
    pub address: Option<SocketAddr>,
    /// Circuits on this link.
    pub circuits: u32,
    /// The highest circuit id used.
    pub last_id: u32,
    /// Cells of its onion that have come.
    pub parts: usize,
    /// HELLO is still to be sent.
    pub hello_due: bool,
    /// Circuits with cells or a farewell to send here.
    pub output: List,
    /// Circuits with room to announce here.
    pub grants: List,
    /// Onions that leave here.
    pub leaving: List,
    /// The onion that arrives here, and the circuit that it opens.
    pub arriving: Option<(CircuitId, OnionIndex)>,
    /// Onions of this link that are here.
    pub onions: u16,
    /// Refusals to be sent.
    pub refusals: heapless::Deque<(CircuitId, CloseReason), REFUSALS>,
    /// Cells were handed out, and the owner has not asked for more since: they may not have left.
    pub unsent: bool,
    /// When to give up an opening or unused link.
    pub deadline: Instant,
}

impl Port {
    /// A link that the peer has connected.
    #[must_use]
    pub fn answered(deadline: Instant) -> Self {
        Self::new(Stage::Opening, Side::Inward, None, None, deadline)
    }

    /// A link that we want.
    #[must_use]
    pub fn wanted(peer: Option<NodeId>, address: SocketAddr, deadline: Instant) -> Self {
        Self::new(Stage::Wanted, Side::Outward, peer, Some(address), deadline)
    }

    fn new(stage: Stage, side: Side, peer: Option<NodeId>, address: Option<SocketAddr>, deadline: Instant) -> Self {
        Self {
            stage,
            side,
            peer,
            address,
            circuits: 0,
            last_id: 0,
            parts: 0,
            hello_due: side == Side::Outward,
            output: List::default(),
            grants: List::default(),
            leaving: List::default(),
            arriving: None,
            onions: 0,
            refusals: heapless::Deque::new(),
            unsent: false,
            deadline,
        }
    }

    /// What the peer allows, once the link is up.
    #[must_use]
    pub const fn limits(&self) -> Option<&PeerLimits> {
        match &self.stage {
            Stage::Up(limits) => Some(limits),
            _ => None,
        }
    }

    /// Whether there is something to be sent here, as far as the port knows: a circuit that stands in its lists may prove to have nothing.
    #[must_use]
    pub fn has_output(&self) -> bool {
        let lists = [&self.output, &self.grants, &self.leaving];
        self.hello_due || !self.refusals.is_empty() || lists.into_iter().any(|list| !list.is_empty())
    }

    /// Whether nobody misses the link: it is up, without circuits, and everything for it has left.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.limits().is_some() && self.circuits == 0 && !self.hello_due && !self.unsent && self.refusals.is_empty()
    }

    /// Whether the link's place may be given to another at once: it is idle, or is closed anyway and takes no circuit with it.
    #[must_use]
    pub fn gives_way(&self) -> bool {
        self.is_idle() || (self.stage == Stage::Closing && self.circuits == 0)
    }

    /// Whether another circuit may be opened here by us.
    #[must_use]
    pub fn takes_circuit(&self, node: &NodeId) -> bool {
        self.side == Side::Outward
            && self.peer.as_ref() == Some(node)
            && self.last_id < u32::MAX
            && match self.stage {
                Stage::Wanted | Stage::Opening => true,
                Stage::Up(limits) => self.circuits < limits.circuits,
                Stage::AwaitingHello | Stage::Closing => false,
            }
    }
}

/// A place for a link.
pub struct PortSlot {
    port: Option<Port>,
    /// Counts the links that this place has held.
    generation: u16,
    hook: Hook,
}

impl PortSlot {
    /// A place without a link.
    pub const EMPTY: Self = Self { port: None, generation: 0, hook: Hook::NONE };
}

#[derive(Debug, Clone, Copy)]
struct Ready;

impl Hooked<Ready> for PortSlot {
    fn hook(&mut self, _: Ready) -> &mut Hook {
        &mut self.hook
    }
}

/// The table of links over caller-given places.
pub struct Ports<'m> {
    slots: &'m mut [PortSlot],
    /// Links that want the driver.
    ready: List,
    used: usize,
}

impl<'m> Ports<'m> {
    /// A table without links; more than 65,536 places are not used.
    #[must_use]
    pub fn new(slots: &'m mut [PortSlot]) -> Self {
        let len = slots.len().min(1 << 16);
        let slots = &mut slots[..len];
        slots.fill_with(|| PortSlot::EMPTY);
        Self { slots, ready: List::default(), used: 0 }
    }

    /// Links in the table.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.used
    }

    /// Whether no link is in the table.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Whether no place is free.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.used == self.slots.len()
    }

    /// Adds a link; `None` if the table is full.
    pub fn insert(&mut self, port: Port) -> Option<LinkId> {
        let at = self.slots.iter().position(|slot| slot.port.is_none())?;
        self.slots[at].port = Some(port);
        self.used += 1;
        Some(LinkId::new(at as u16, self.slots[at].generation))
    }

    /// Removes a link. Its lists must be empty.
    pub fn remove(&mut self, link: LinkId) -> Option<Port> {
        self.get(link)?;
        self.ready.remove(self.slots, link.slot(), Ready);
        let slot = self.slots.get_mut(link.slot())?;
        let port = slot.port.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.used -= 1;
        Some(port)
    }

    /// The link.
    #[must_use]
    pub fn get(&self, link: LinkId) -> Option<&Port> {
        self.slots.get(link.slot()).filter(|slot| slot.generation == link.generation())?.port.as_ref()
    }

    /// The link.
    pub fn get_mut(&mut self, link: LinkId) -> Option<&mut Port> {
        self.slots.get_mut(link.slot()).filter(|slot| slot.generation == link.generation())?.port.as_mut()
    }

    /// Asks for the driver's attention to a link.
    pub fn touch(&mut self, link: LinkId) {
        if self.get(link).is_some() {
            self.ready.push(self.slots, link.slot(), Ready);
        }
    }

    /// Whether the link wants the driver's attention.
    #[must_use]
    pub fn is_ready(&self, link: LinkId) -> bool {
        self.get(link).is_some() && self.slots[link.slot()].hook.is_listed()
    }

    /// The next link that wants the driver.
    pub fn poll_ready(&mut self) -> Option<LinkId> {
        let at = self.ready.pop(self.slots, Ready)?;
        Some(LinkId::new(at as u16, self.slots[at].generation))
    }

    /// Every link.
    pub fn iter(&self) -> impl Iterator<Item = (LinkId, &Port)> {
        let all = (0u16..=u16::MAX).zip(self.slots.iter());
        let used = all.filter_map(|(at, slot)| Some((LinkId::new(at, slot.generation), slot.port.as_ref()?)));
        // Links take the first free place, so those in use lie in front: the search ends with the last of them.
        used.take(self.used)
    }

    /// The link in the place numbered `at`.
    #[must_use]
    pub fn at(&self, at: usize) -> Option<LinkId> {
        let slot = self.slots.get(at).filter(|slot| slot.port.is_some())?;
        Some(LinkId::new(at as u16, slot.generation))
    }

    /// The number of places.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.slots.len()
    }
}
