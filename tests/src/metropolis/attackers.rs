//! Nodes that do something else than they should. They are real nodes with real links, which relay as they should (so that they are met and
//! kept); what is false is what they say of the network.

use std::rc::Rc;
use std::time::Duration;

use bulbil_core::phonebook::VerifiedDescriptor;
use bulbil_core::phonebook::exchange::{Request, Want};
use bulbil_core::wire::{Descriptor, Roles, UnixTime};
use rand_core::Rng as _;

use super::geography::rented;
use super::serve::answer_of;
use super::{Alarm, Card, City};
use crate::fixture;
use crate::sim::NodeIndex;

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trade {
    /// What it should.
    Honest,
    /// Tells of its own gang and of nobody else, whatever it is asked, and makes itself known to the victims again and again.
    Eclipse,
    /// The same, and fills up with nodes that do not exist: so many different ones.
    Invent(usize),
    /// Answers what is no answer, one kind after another.
    Forge,
    /// Signs two descriptors with the same sequence number, and shows now one and now the other.
    Equivocate,
    /// Honest, but for its clock, which is ahead by so many seconds.
    WrongClock(i64),
}

/// Attackers who work together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gang {
    /// Nodes, each with an identity and a port of its own.
    pub nodes: usize,
    /// IP addresses that they share.
    pub addresses: usize,
    /// Network groups that these are in.
    pub groups: usize,
    /// What they do.
    pub trade: Trade,
    /// How often each makes itself or an invention known to a victim.
    pub announces: Duration,
}

impl Gang {
    /// Nobody.
    pub const NONE: Self =
        Self { nodes: 0, addresses: 1, groups: 1, trade: Trade::Honest, announces: Duration::from_secs(3600) };

    /// So many nodes, each at an IP address of its own.
    #[must_use]
    pub const fn apart(nodes: usize, groups: usize, trade: Trade, announces: Duration) -> Self {
        Self { nodes, addresses: nodes, groups, trade, announces }
    }
}

/// What is wrong with a forger's answers, in turn.
const FORGERIES: usize = 9;

/// What attackers share.
#[derive(Default)]
pub(super) struct Hoard {
    /// Nodes that do not exist.
    inventions: Vec<Card>,
    /// Whom they want to get hold of; everybody, if nobody is named.
    victims: Vec<NodeIndex>,
    /// Answers that forgers have given.
    forged: usize,
}

impl City<'_, '_, '_> {
    /// The first node of the gang.
    #[must_use]
    pub fn gang(&self) -> std::ops::Range<NodeIndex> {
        let first = self.plan.founders + self.plan.heirs;
        first..first + self.plan.gang.nodes
    }

    /// Whom attackers turn to.
    pub fn set_victims(&mut self, victims: Vec<NodeIndex>) {
        self.hoard.victims = victims;
    }

    /// What an attacker does from time to time.
    pub(super) fn ply(&mut self, node: NodeIndex) {
        match self.citizens[node].trade {
            Trade::Honest | Trade::Forge => return,
            Trade::WrongClock(ahead) => {
                self.net.set_ahead(node, ahead);
                return;
            }
            Trade::Equivocate => self.show_another_face(node),
            Trade::Eclipse => self.press(node, None),
            Trade::Invent(most) => {
                let invention = self.invent(most);
                self.press(node, Some(invention));
            }
        }
        let pause = self.spread(self.plan.gang.announces);
        self.set_alarm(node, pause, Alarm::Trade);
    }

    /// Asks a victim, to tell it of a member of the gang or of an invention.
    fn press(&mut self, node: NodeIndex, invention: Option<Card>) {
        let everybody = self.plan.founders + self.plan.heirs;
        let number = self.rng.next_u64() as usize;
        let victim = match self.hoard.victims.as_slice() {
            [] => number % everybody,
            victims => victims[number % victims.len()],
        };
        let Some(victim) = self.citizens[victim].card().cloned() else { return };
        let announced = match invention {
            Some(card) if self.rng.next_u32().is_multiple_of(2) => card,
            _ => {
                let gang = self.gang();
                let member = gang.start + self.rng.next_u32() as usize % gang.len();
                let Some(card) = self.citizens[member].card().cloned() else { return };
                card
            }
        };
        let bytes = bytes_of(&announced);
        // While it asks somebody else it has no time for this.
        let _busy = self.tell(node, &victim, &bytes);
    }

    /// One of the nodes that the gang invents, if it does.
    pub(super) fn any_invention(&mut self) -> Option<Card> {
        match self.plan.gang.trade {
            Trade::Invent(most) if self.plan.gang.nodes > 0 => Some(self.invent(most)),
            _ => None,
        }
    }

    /// One of so many nodes that do not exist.
    fn invent(&mut self, most: usize) -> Card {
        let number = self.rng.next_u64() as usize % most;
        while self.hoard.inventions.len() <= number {
            let number = self.hoard.inventions.len();
            let identity = fixture::IDENTITIES + self.citizens.len() + number;
            // Addresses cost nothing as long as nobody has to be there: a thousand groups, beyond the hosts that the gang has.
            let address = rented(40_000_000 + number, usize::MAX, 1_000);
            let now = UnixTime(fixture::EPOCH.0 + self.now().as_secs());
            let card = fixture::Card {
                number: identity,
                sequence: 1,
                valid_from: UnixTime(now.0 - 60),
                valid_until: UnixTime(now.0 + 48 * 3600),
                roles: Roles { relay: true, exit: true, constrained: false },
                onion_key: self.citizens[0].card().expect("founders have one").descriptor().onion_key.clone(),
                address,
            };
            let bytes = card.sign(number as u64);
            let card = self.card_of(&bytes);
            self.hoard.inventions.push(card);
        }
        Card::clone(&self.hoard.inventions[number])
    }

    /// Two descriptors with one sequence number, one after the other.
    fn show_another_face(&mut self, node: NodeIndex) {
        let variant = self.rng.next_u64() % 2;
        let bytes: Rc<[u8]> = self.signed(node, variant).into();
        let card = self.card_of(&bytes);
        self.net.set_descriptor(node, Rc::clone(&bytes));
        self.citizens[node].own = Some((bytes, card));
    }

    /// What an attacker answers; `None` if it answers honestly.
    pub(super) fn false_answer(&mut self, node: NodeIndex, request: &Request<'_>) -> Option<Vec<u8>> {
        let want = request.want;
        match self.citizens[node].trade {
            Trade::Honest | Trade::Equivocate | Trade::WrongClock(_) => None,
            Trade::Eclipse => Some(self.own_people(want, 0)),
            Trade::Invent(most) => Some(self.own_people(want, most)),
            Trade::Forge => Some(self.forgery(node, want)),
        }
    }

    /// The gang, and inventions as far as there is room.
    fn own_people(&mut self, want: Want, inventions: usize) -> Vec<u8> {
        let want_len = usize::from(want.value());
        let mut people: Vec<Card> = self.gang().filter_map(|node| self.citizens[node].card().cloned()).collect();
        // With inventions to tell, half of the answer is theirs.
        let room = if inventions > 0 { want_len / 2 } else { want_len };
        while people.len() > room {
            let gone = self.rng.next_u64() as usize % people.len();
            people.swap_remove(gone);
        }
        for _ in 0..2 * want_len {
            if inventions > 0 && people.len() < want_len {
                let invention = self.invent(inventions);
                if people.iter().all(|card| card.node() != invention.node()) {
                    people.push(invention);
                }
            }
        }
        people.sort_unstable_by_key(|card| card.node());
        answer_of(people.iter().map(|card| &**card), None, want).expect("at most as many as wanted, in order")
    }

    /// What is no answer. Each time it is wrong in another way.
    fn forgery(&mut self, node: NodeIndex, want: Want) -> Vec<u8> {
        let kind = self.hoard.forged % FORGERIES;
        self.hoard.forged += 1;
        let mut cards: Vec<Card> = self.living().filter_map(|citizen| citizen.card().cloned()).take(3).collect();
        cards.sort_unstable_by_key(|card| card.node());
        let mut bodies: Vec<Vec<u8>> = cards.iter().map(|card| bytes_of(card)).collect();
        let mut count = bodies.len();
        let mut version = 1;
        match kind {
            // Each of them, because whoever asks does not verify what is said of itself.
            0 => bodies.iter_mut().for_each(|body| body[400] ^= 1),
            1 => bodies[0] = self.expired(node),
            2 => bodies.reverse(),
            3 => count = usize::from(want.value()) + 1,
            4 => bodies[0][0] = 9,
            5 => version = 2,
            6 => count += 1,
            7 => count -= 1,
            _ => bodies[1] = bodies[0].clone(),
        }
        let mut answer = vec![version, count as u8];
        for body in bodies {
            answer.extend_from_slice(&(body.len() as u16).to_be_bytes());
            answer.extend_from_slice(&body);
        }
        answer
    }

    /// The node's own descriptor of yesterday.
    fn expired(&self, node: NodeIndex) -> Vec<u8> {
        let citizen = &self.citizens[node];
        let now = fixture::EPOCH.0 + self.now().as_secs();
        let card = fixture::Card {
            number: citizen.identity,
            sequence: 1,
            valid_from: UnixTime(now - 100_000),
            valid_until: UnixTime(now - 50_000),
            roles: Roles { relay: true, exit: true, constrained: false },
            onion_key: citizen.card().expect("it answers").descriptor().onion_key.clone(),
            address: citizen.address,
        };
        card.sign(1)
    }
}

/// A descriptor as it is on the wire.
pub(super) fn bytes_of(card: &VerifiedDescriptor) -> Vec<u8> {
    let mut bytes = [0; bulbil_core::wire::descriptor::DESCRIPTOR_MAX_LEN];
    let descriptor: &Descriptor = card.descriptor();
    let len = descriptor.emit(&mut bytes).expect("it was verified");
    bytes[..len].to_vec()
}
