//! Links come and go: who gets a place, who gives way, and which link a circuit takes. `PROTOCOL.md` sections 7 and 13.

use core::net::SocketAddr;

use super::port::{PeerLimits, Port, Stage};
use super::{LinkWish, Node};
use crate::circuit::table::{End, Side};
use crate::circuit::{CircuitIndex, LinkId};
use crate::time::Instant;
use crate::wire::NodeId;

/// Links to one node that may be open or opening at once. More than one is needed when the node allows few circuits on each.
const LINKS_PER_NODE: usize = 8;

impl Node<'_> {
    /// A peer has connected: takes a place for its link, or `None` if all are taken (the owner closes the connection). The place may
    /// have been another link's: see [`Node::connect_link`].
    ///
    /// Too many half-open links cost the oldest of them its place, not the newcomer: otherwise whoever opens links and says nothing
    /// keeps everybody else out, while an honest handshake is over long before it is the oldest. Others' links may take three
    /// quarters of the places; beyond that, one of them that has been without circuits for longest goes, then a half-open one. The
    /// rest is for the links that this node needs itself.
    pub fn accept_link(&mut self, now: Instant) -> Option<LinkId> {
        if self.stopping {
            return None;
        }
        let of_others = |port: &Port| port.side == Side::Inward && port.stage != Stage::Closing;
        let half_open = |port: &Port| of_others(port) && port.limits().is_none();
        if self.ports.iter().filter(|(_, port)| half_open(port)).count() >= usize::from(self.config.half_open_links) {
            self.evict(half_open);
        }
        let share = self.ports.capacity() - self.ports.capacity() / 4;
        if self.ports.iter().filter(|(_, port)| of_others(port)).count() >= share
            && !self.evict(|port| of_others(port) && port.is_idle())
            && !self.evict(half_open)
        {
            return None;
        }
        self.place_link(Port::answered(now.after(self.config.patience.handshake)), now)
    }

    /// Takes a place for a link. If all are taken, that of a link which is being closed without circuits, or else of the idle one that
    /// would be closed first: a small table must not refuse what is needed for the sake of what may be. Only a full table is searched.
    fn place_link(&mut self, port: Port, now: Instant) -> Option<LinkId> {
        if self.ports.is_full() {
            let giving_way = self.ports.iter().filter(|(_, port)| port.gives_way());
            let (link, _) = giving_way.min_by_key(|(_, port)| (port.stage != Stage::Closing, port.deadline))?;
            self.handle_link_down(link, now);
        }
        let link = self.ports.insert(port)?;
        self.arm(now);
        Some(link)
    }

    /// Has that link closed, of those that `may_go`, which will reach its deadline first; answers whether there is one.
    fn evict(&mut self, may_go: impl Fn(&Port) -> bool) -> bool {
        let oldest = self.ports.iter().filter(|(_, port)| may_go(port)).min_by_key(|(_, port)| port.deadline);
        let Some((link, _)) = oldest else { return false };
        if let Some(port) = self.ports.get_mut(link) {
            port.stage = Stage::Closing;
            self.ports.touch(link);
        }
        true
    }

    /// A link on which a circuit to `node` can be opened: one that is up, one that is being connected to the same address, or a new
    /// one. `None` if no place is free, or the node makes us hold too many links to it.
    pub(super) fn link_to(&mut self, address: SocketAddr, node: NodeId, now: Instant) -> Option<LinkId> {
        let takes = |opening: bool| {
            move |(_, port): &(LinkId, &Port)| port.takes_circuit(&node) && opening == port.limits().is_none()
        };
        if let Some((link, _)) = self.ports.iter().find(takes(false)) {
            return Some(link);
        }
        // Where a node is said to be is the word of whoever built the onion: a wrong address must not hold up those with the right one.
        let same = |entry: &(LinkId, &Port)| entry.1.address == Some(address);
        if let Some((link, _)) = self.ports.iter().filter(same).find(takes(true)) {
            return Some(link);
        }
        let links = self.ports.iter().filter(|(_, port)| port.side == Side::Outward && port.peer == Some(node)).count();
        if links >= LINKS_PER_NODE {
            return None;
        }
        self.connect_link(address, Some(node), now)
    }

    /// Wants a new link to `address`, to be met by `node` if that is known. `None` if no place is free, nor taken by a link that nobody
    /// misses.
    ///
    /// Such a link gives way without [`LinkWish::Close`]: the owner finds that the new link's slot is the old one's, drops what it had
    /// there, and [`Node::knows_link`] no longer knows the old one.
    pub fn connect_link(&mut self, address: SocketAddr, node: Option<NodeId>, now: Instant) -> Option<LinkId> {
        let link = self.place_link(Port::wanted(node, address, now.after(self.config.patience.handshake)), now)?;
        self.ports.touch(link);
        Some(link)
    }

    /// The next link that wants something, and what.
    pub fn poll_link(&mut self) -> Option<(LinkId, LinkWish)> {
        loop {
            let link = self.ports.poll_ready()?;
            let Some(port) = self.ports.get_mut(link) else { continue };
            match (port.stage, port.address) {
                (Stage::Wanted, Some(address)) => {
                    port.stage = Stage::Opening;
                    return Some((link, LinkWish::Connect { address, node: port.peer }));
                }
                (Stage::Up(_), _) => return Some((link, LinkWish::Send)),
                (Stage::Closing, _) => return Some((link, LinkWish::Close)),
                _ => {}
            }
        }
    }

    /// What a link's peer allows, once the link is up.
    #[must_use]
    pub fn peer_limits(&self, link: LinkId) -> Option<&PeerLimits> {
        self.ports.get(link)?.limits()
    }

    /// A link that we answered has shaken hands: its HELLO comes next.
    pub fn handle_link_answered(&mut self, link: LinkId) {
        if let Some(port) = self.ports.get_mut(link) {
            port.stage = Stage::AwaitingHello;
        }
    }

    /// A link that we connected has shaken hands with `node`.
    pub fn handle_link_up(&mut self, link: LinkId, node: NodeId, limits: PeerLimits, now: Instant) {
        let idle = now.after(self.link_idle(Side::Outward));
        let Some(port) = self.ports.get_mut(link) else { return };
        port.stage = Stage::Up(limits);
        port.peer = Some(node);
        port.deadline = idle;
        let mut left = port.circuits;
        self.ports.touch(link);
        self.close_spare(link, node);
        for at in 0..self.table.capacity() as u32 {
            if left == 0 {
                break;
            }
            let Some(entry) = self.table.get_mut(CircuitIndex(at)) else { continue };
            if matches!(entry.outward, End::Link(outward, _) if outward == link) {
                let credited = entry.forward.handle_credit(limits.credit);
                debug_assert!(credited.is_ok(), "an initial credit is at most 1024");
                left -= 1;
            }
        }
    }

    /// Closes other links to `node` that nobody uses: one is enough, and the newest has shown the newest descriptor.
    fn close_spare(&mut self, link: LinkId, node: NodeId) {
        let spare = |(other, port): &(LinkId, &Port)| {
            *other != link
                && port.side == Side::Outward
                && port.peer == Some(node)
                && port.limits().is_some()
                && port.circuits == 0
        };
        loop {
            let other = self.ports.iter().find(spare).map(|(other, _)| other);
            let Some(other) = other else { return };
            if let Some(port) = self.ports.get_mut(other) {
                port.stage = Stage::Closing;
                self.ports.touch(other);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;
    use std::boxed::Box;
    use std::vec::Vec;

    use super::*;
    use crate::circuit::flow::WINDOW_MIN;
    use crate::crypto::cgo::{ClientBackward, HopIndex, SEED_LEN, Seed};
    use crate::crypto::kem::KeyEpoch;
    use crate::crypto::onion::{HopKeys, Instruction, ONION_CELLS, Peeled};
    use crate::crypto::replay::ReplayTag;
    use crate::crypto::testing::rng;
    use crate::node::arrival::message_of;
    use crate::node::timers::TICK;
    use crate::node::{Config, Memory, Patience, Resources};
    use crate::wire::cell::{self, CELL_LEN, Cell, Command};
    use crate::wire::handshake::{Hello, InitialCredit, LinkLimits, RecordCells};
    use crate::wire::message::Message;
    use crate::wire::{CircuitId, CloseReason, EndReason};

    type Small = Resources<4, 8, 32, 128, 8, 2, 512>;

    const LIMITS: PeerLimits = PeerLimits { record_cells: 1, credit: WINDOW_MIN, circuits: 8 };

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1000)
    }

    fn node(memory: &mut Small) -> Node<'_> {
        node_in(memory.lend())
    }

    fn node_in(memory: Memory<'_>) -> Node<'_> {
        let limits = LinkLimits { record_cells: RecordCells::MIN, credit: InitialCredit::new(WINDOW_MIN).unwrap() };
        let config = Config {
            half_open_links: 2,
            node: NodeId([1; 32]),
            relay: true,
            exit: false,
            limits,
            window_max: WINDOW_MIN,
            circuits_per_link: 8,
            onions_per_link: 8,
            patience: Patience::DEFAULT,
        };
        Node::new(config, memory, &mut rng(1)).unwrap()
    }

    fn wish(node: &mut Node<'_>, number: u8, now: Instant) -> Option<LinkId> {
        node.connect_link(SocketAddr::from(([192, 0, 2, number], 1)), Some(NodeId([number; 32])), now)
    }

    /// Sends what is ready, as an owner does whose stream takes everything.
    fn flush(node: &mut Node<'_>, link: LinkId, now: Instant) {
        let mut out = [[0; CELL_LEN]; 1];
        while node.poll_cells(link, &mut out, now) > 0 {}
    }

    /// A link to another node, up and without circuits.
    fn outward(node: &mut Node<'_>, number: u8, now: Instant) -> LinkId {
        let link = wish(node, number, now).unwrap();
        node.handle_link_up(link, NodeId([number; 32]), LIMITS, now);
        flush(node, link, now);
        link
    }

    fn hand(node: &mut Node<'_>, link: LinkId, circuit: u32, command: Command, now: Instant) {
        let mut bytes = [0; CELL_LEN];
        cell::emit_header(&mut bytes, CircuitId::new(circuit), command);
        if command == Command::HELLO {
            Hello { limits: node.config().limits }.emit(cell::body_mut(&mut bytes));
        }
        node.handle_cell(link, &mut bytes, now).unwrap();
    }

    /// Another node's link, up and without circuits.
    fn inward(node: &mut Node<'_>, now: Instant) -> Option<LinkId> {
        let link = node.accept_link(now)?;
        node.handle_link_answered(link);
        hand(node, link, 0, Command::HELLO, now);
        flush(node, link, now);
        Some(link)
    }

    fn known(node: &Node<'_>, links: &[LinkId]) -> Vec<bool> {
        node.audit().unwrap();
        links.iter().map(|&link| node.knows_link(link)).collect()
    }

    #[test]
    fn a_wrong_address_holds_up_nobody_who_has_the_right_one() {
        let mut memory = Box::new(Small::new());
        let mut node = node(&mut memory);
        let address = |last| SocketAddr::from(([192, 0, 2, last], 1));
        let mut link_to = |last| node.link_to(address(last), NodeId([7; 32]), at(0));
        let wrong = link_to(1).unwrap();
        let right = link_to(2).unwrap();
        assert_ne!(wrong, right);
        assert_eq!([link_to(1), link_to(2)], [Some(wrong), Some(right)], "of one address one link");
        node.handle_link_up(right, NodeId([7; 32]), LIMITS, at(1));
        assert_eq!(node.link_to(address(1), NodeId([7; 32]), at(1)), Some(right), "one that is up is the best answer");
        // The wrong address was one of the node's after all: its link is newer, and one is enough.
        while node.poll_link().is_some() {}
        node.handle_link_up(wrong, NodeId([7; 32]), LIMITS, at(2));
        let wishes: Vec<_> = core::iter::from_fn(|| node.poll_link()).collect();
        assert_eq!(wishes, [(wrong, LinkWish::Send), (right, LinkWish::Close)]);
        node.handle_link_down(right, at(2));
        assert_eq!((known(&node, &[wrong, right]), node.usage().links), (Vec::from([true, false]), 1));
    }

    #[test]
    fn one_node_at_many_addresses_takes_a_few_links_only() {
        // Whoever builds onions makes up addresses, and the places for links must not all go to that.
        let mut memory = Box::new(Resources::<16, 8, 32, 128, 8, 2, 512>::new());
        let mut node = node_in(memory.lend());
        let mut link_to =
            |number, last| node.link_to(SocketAddr::from(([192, 0, 2, last], 1)), NodeId([number; 32]), at(0));
        let links: Vec<_> = (0..LINKS_PER_NODE as u8).map(|last| link_to(7, last).unwrap()).collect();
        assert_eq!(link_to(7, 99), None);
        assert_eq!(link_to(7, 0), Some(links[0]), "what there is can be used");
        assert!(link_to(8, 99).is_some(), "and so can the other places");
    }

    #[test]
    fn idle_links_give_their_places_to_links_that_are_needed_the_longest_idle_first() {
        let mut memory = Box::new(Small::new());
        let mut node = node(&mut memory);
        let idle: Vec<_> = (0..4).map(|number| outward(&mut node, 10 + number, at(u64::from(number)))).collect();
        assert_eq!(known(&node, &idle), [true; 4], "a full table is no reason to close anything");

        // Several at one moment, without the owner having done anything in between.
        for taken in 0..4 {
            let link = wish(&mut node, 20 + taken, at(9)).unwrap();
            assert_eq!(link.slot(), idle[usize::from(taken)].slot());
            let expected: Vec<_> = (0..4).map(|place| place > taken).collect();
            assert_eq!(known(&node, &idle), expected);
        }
        // Links that are being connected are nobody's to take.
        assert_eq!((wish(&mut node, 30, at(9)), node.accept_link(at(9))), (None, None));
        // Each of the new ones is asked for, and nothing is said about the old ones, whose numbers mean nothing any more.
        for taken in 0..4 {
            let (_, wish) = node.poll_link().unwrap();
            assert!(matches!(wish, LinkWish::Connect { node: Some(node), .. } if node == NodeId([20 + taken; 32])));
        }
        assert_eq!(node.poll_link(), None);
        node.handle_link_down(idle[0], at(9));
        assert_eq!(node.usage().links, 4);
    }

    #[test]
    fn a_link_whose_circuit_may_be_on_its_way_goes_last() {
        let mut memory = Box::new(Small::new());
        let mut node = node(&mut memory);
        let old = outward(&mut node, 10, at(0));
        let (one, other) = (inward(&mut node, at(1)).unwrap(), inward(&mut node, at(100)).unwrap());
        let new = outward(&mut node, 11, at(100));
        let links = [old, one, new, other];
        for taken in 0..4 {
            wish(&mut node, 20 + taken, at(100)).unwrap();
            let expected: Vec<_> = (0..4).map(|place| place > taken).collect();
            assert_eq!(known(&node, &links), expected);
        }
    }

    #[test]
    fn links_that_somebody_uses_keep_their_places() {
        let mut memory = Box::new(Small::new());
        let mut node = node(&mut memory);
        let links: Vec<_> = (0..3).map(|_| inward(&mut node, at(0)).unwrap()).collect();
        for &link in &links {
            hand(&mut node, link, 1, Command::OPEN, at(0));
        }
        let own = wish(&mut node, 10, at(0)).unwrap();
        for _ in 0..10 {
            assert_eq!(wish(&mut node, 11, at(1)), None);
            assert_eq!(node.accept_link(at(1)), None, "others' links have their three quarters");
        }
        assert_eq!(known(&node, &links), [true; 3]);

        // Its HELLO has to leave first.
        let mut out = [[0; CELL_LEN]; 1];
        node.handle_link_up(own, NodeId([10; 32]), LIMITS, at(1));
        assert_eq!(wish(&mut node, 11, at(1)), None);
        assert_eq!(node.poll_cells(own, &mut out, at(1)), 1);
        assert_eq!(wish(&mut node, 11, at(1)), None);
        assert_eq!(node.poll_cells(own, &mut out, at(1)), 0);
        wish(&mut node, 11, at(1)).unwrap();
        assert_eq!((known(&node, &links), node.knows_link(own)), (Vec::from([true; 3]), false));
    }

    /// What a client is told over `link` of its circuit 1, whose next hop is another node, when the link to that ends so.
    fn told(end: impl FnOnce(&mut Node<'_>, LinkId)) -> (EndReason, CloseReason) {
        let mut memory = Box::new(Small::new());
        let mut node = node(&mut memory);
        let client = inward(&mut node, at(0)).unwrap();
        for _ in 0..ONION_CELLS {
            hand(&mut node, client, 1, Command::OPEN, at(0));
        }
        let (job, _) = node.poll_job().unwrap();
        let backward = Seed::from_bytes([9; SEED_LEN]);
        let peeled = Peeled {
            instruction: Instruction::Next { address: SocketAddr::from(([192, 0, 2, 7], 1)), node: NodeId([7; 32]) },
            keys: HopKeys { forward: [8; SEED_LEN].into(), backward: [9; SEED_LEN].into() },
            replay_tag: ReplayTag::from_bytes([1; 8]),
            epoch: KeyEpoch::FIRST,
        };
        node.handle_peeled(job, Ok(peeled), at(0));
        let link = loop {
            if let (link, LinkWish::Connect { .. }) = node.poll_link().unwrap() {
                break link;
            }
        };
        end(&mut node, link);
        node.audit().unwrap();
        // The client takes records of one cell.
        let mut out = [[[0; CELL_LEN]; 1]; 2];
        assert_eq!(out.each_mut().map(|cell| node.poll_cells(client, cell, at(1))), [1, 1]);
        let [[relay], [close]] = &mut out;
        let Ok(Cell::Relay(_, body)) = Cell::parse(relay) else { panic!("not END") };
        let hop = ClientBackward::new([&backward]).unwrap().receive(Command::RELAY, body);
        assert_eq!(hop, HopIndex::new(0));
        let Ok(Message::End(reason)) = Message::parse(message_of(body)) else { panic!("not END") };
        let Ok(Cell::Close(_, close)) = Cell::parse(close) else { panic!("not CLOSE") };
        (reason, close)
    }

    #[test]
    fn a_link_that_this_machine_cannot_make_is_not_the_next_hops_fault() {
        let down = told(|node, link| node.handle_link_down(link, at(1)));
        assert_eq!(down, (EndReason::NextHopUnreachable, CloseReason::NextHopUnreachable));
        let unmade = told(|node, link| {
            node.handle_link_unmade(link, at(1));
            assert_eq!(node.counters().busy, 1);
        });
        assert_eq!(unmade, (EndReason::Busy, CloseReason::Busy));
    }

    #[test]
    fn a_link_is_not_idle_while_its_last_cells_may_wait() {
        let mut memory = Box::new(Small::new());
        let mut node = node(&mut memory);
        let links: Vec<_> = (0..3).map(|_| inward(&mut node, at(0)).unwrap()).collect();
        let own = wish(&mut node, 10, at(0)).unwrap();
        node.stop();
        for &link in &links {
            hand(&mut node, link, 1, Command::OPEN, at(0));
        }
        assert_eq!(wish(&mut node, 11, at(1)), None, "refusals are still to be said");
        let mut out = [[0; CELL_LEN]; 1];
        for &link in &links {
            assert_eq!(node.poll_cells(link, &mut out, at(1)), 1);
            assert_eq!((out[0][4], out[0][5]), (Command::CLOSE.value(), CloseReason::Shutdown as u8));
        }
        assert_eq!(wish(&mut node, 11, at(1)), None, "the owner still has them");
        assert_eq!(node.poll_cells(links[2], &mut out, at(1)), 0);
        wish(&mut node, 11, at(1)).unwrap();
        assert_eq!((known(&node, &links), node.knows_link(own)), (Vec::from([true, true, false]), true));
    }

    #[test]
    fn a_link_lives_after_a_refused_circuit_as_long_as_after_any_other() {
        let mut memory = Box::new(Small::new());
        let mut node = node(&mut memory);
        let idle = Patience::DEFAULT.link_idle + Patience::DEFAULT.handshake;
        let link = inward(&mut node, at(0)).unwrap();
        node.stop();
        let refused = at(0).after(idle - Duration::from_secs(1));
        hand(&mut node, link, 1, Command::OPEN, refused);
        let wishes = |node: &mut Node<'_>, now| {
            node.handle_timeout(now);
            core::iter::from_fn(|| node.poll_link()).collect::<Vec<_>>()
        };
        assert_eq!(wishes(&mut node, at(0).after(idle)), [(link, LinkWish::Send)]);
        let mut out = [[0; CELL_LEN]; 1];
        assert_eq!(node.poll_cells(link, &mut out, at(0).after(idle)), 1);
        assert_eq!((out[0][4], out[0][5]), (Command::CLOSE.value(), CloseReason::Shutdown as u8));
        flush(&mut node, link, at(0).after(idle));
        let last = refused.after(idle);
        assert_eq!(wishes(&mut node, Instant::from_millis(last.millis() - 1)), []);
        assert_eq!(wishes(&mut node, last.after(TICK)), [(link, LinkWish::Close)]);
    }

    #[test]
    fn the_place_of_a_link_that_is_being_closed_is_free_for_the_newcomer() {
        let mut memory = Box::new(Small::new());
        let mut node = node(&mut memory);
        let own = [wish(&mut node, 10, at(0)).unwrap(), wish(&mut node, 11, at(0)).unwrap()];
        let silent = [node.accept_link(at(1)).unwrap(), node.accept_link(at(2)).unwrap()];
        let newcomer = node.accept_link(at(3)).unwrap();
        assert_eq!(newcomer.slot(), silent[0].slot());
        assert_eq!((known(&node, &own), known(&node, &silent)), (Vec::from([true; 2]), Vec::from([false, true])));
    }

    #[test]
    fn others_take_no_more_than_three_quarters_of_the_places() {
        let mut memory = Box::new(Small::new());
        let mut node = node(&mut memory);
        let own: Vec<_> = (0..4).map(|number| outward(&mut node, 10 + number, at(0))).collect();
        for second in 0..40 {
            let link = inward(&mut node, at(1 + second)).unwrap();
            assert!(node.knows_link(link));
        }
        assert_eq!(
            known(&node, &own),
            [false, false, false, true],
            "what nobody needed is gone, but not the last quarter"
        );
        // Idle ones of others go when this node needs links itself.
        let needed: Vec<_> = (0..3).map(|number| wish(&mut node, 20 + number, at(60)).unwrap()).collect();
        assert_eq!(known(&node, &needed), [true; 3]);
    }

    #[test]
    fn a_table_with_room_displaces_nobody() {
        let mut memory = Box::new(Small::new());
        let mut node = node(&mut memory);
        let links: Vec<_> = (0..3).map(|number| outward(&mut node, 10 + number, at(0))).collect();
        wish(&mut node, 20, at(200)).unwrap();
        assert_eq!(known(&node, &links), [true; 3]);
    }
}
