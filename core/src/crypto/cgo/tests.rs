//! The hops of a path and its client together.

use super::*;
use crate::wire::cell::Command;
use proptest::prelude::*;
use std::vec::Vec;

const AD: Command = Command::RELAY;

fn seeds(salt: u8) -> [Seed; PATH_MAX] {
    core::array::from_fn(|hop| Seed::from_bytes(core::array::from_fn(|i| salt ^ (hop * SEED_LEN + i) as u8)))
}

fn hop(index: usize) -> HopIndex {
    HopIndex::new(index).unwrap()
}

/// A message that differs with every `number`.
fn message(number: usize) -> Message {
    core::array::from_fn(|i| (number.wrapping_mul(31) + i * 7) as u8)
}

/// A body with the message and, in the tag's place, what nobody may rely on.
fn body_with(message: &Message) -> CellBody {
    let mut body = [0xa5; BODY_LEN];
    *halves(&mut body).1 = *message;
    body
}

/// Something that happens to a cell on the link before (forward) or after (backward) the hop of this index.
type Tamper<'a> = &'a dyn Fn(usize, &mut CellBody);
const HONEST: Tamper<'static> = &|_, _| ();

/// A path of four hops and its client.
struct Circuit {
    client_forward: ClientForward,
    client_backward: ClientBackward,
    forward: Vec<RelayForward>,
    backward: Vec<RelayBackward>,
}

impl Circuit {
    fn new() -> Self {
        Self::with_paths(&seeds(0), &seeds(0xff), &seeds(0), &seeds(0xff))
    }

    /// The client's idea of the seeds, and the relays'.
    fn with_paths(
        client_forward: &[Seed],
        client_backward: &[Seed],
        relay_forward: &[Seed],
        relay_backward: &[Seed],
    ) -> Self {
        Self {
            client_forward: ClientForward::new(client_forward).unwrap(),
            client_backward: ClientBackward::new(client_backward).unwrap(),
            forward: relay_forward.iter().map(RelayForward::new).collect(),
            backward: relay_backward.iter().map(RelayBackward::new).collect(),
        }
    }

    /// Sends a message to the hop; who recognised the cell, and what they read.
    fn send(&mut self, to: usize, message: &Message, tamper: Tamper<'_>) -> Option<(usize, Message)> {
        let mut body = body_with(message);
        self.client_forward.originate(hop(to), AD, &mut body).unwrap();
        for (index, relay) in self.forward.iter_mut().enumerate() {
            tamper(index, &mut body);
            if relay.receive(AD, &mut body) {
                return Some((index, *halves(&mut body).1));
            }
        }
        None
    }

    /// Sends a message from the hop; whom the client takes it to be from, and what it reads.
    fn answer(&mut self, from: usize, message: &Message, tamper: Tamper<'_>) -> Option<(usize, Message)> {
        let mut body = body_with(message);
        self.backward[from].originate(AD, &mut body);
        tamper(from, &mut body);
        for (index, relay) in self.backward[..from].iter_mut().enumerate().rev() {
            relay.pass(AD, &mut body);
            tamper(index, &mut body);
        }
        let sender = self.client_backward.receive(AD, &mut body)?;
        Some((sender.value(), *halves(&mut body).1))
    }
}

fn flip(body: &mut CellBody, bit: usize) {
    body[bit / 8] ^= 1 << (bit % 8);
}

#[test]
fn cells_reach_the_hop_they_are_for_and_come_back() {
    let mut circuit = Circuit::new();
    for number in 0..1000 {
        let message = message(number);
        let to = number * number % 7 % PATH_MAX;
        assert_eq!(circuit.send(to, &message, HONEST), Some((to, message)));
        let from = (number * 5 + number / 3) % PATH_MAX;
        assert_eq!(circuit.answer(from, &message, HONEST), Some((from, message)));
    }
}

#[test]
fn shorter_paths() {
    for len in 1..=PATH_MAX {
        let (f, b) = (&seeds(0)[..len], &seeds(0xff)[..len]);
        let mut circuit = Circuit::with_paths(f, b, f, b);
        for number in 0..20 {
            let message = message(number);
            let hop = number % len;
            assert_eq!(circuit.send(hop, &message, HONEST), Some((hop, message)));
            assert_eq!(circuit.answer(hop, &message, HONEST), Some((hop, message)));
        }
    }
}

/// Equal messages never look alike on a link, nor do they carry anything of the message.
#[test]
fn cells_on_the_links_are_all_different() {
    let mut circuit = Circuit::new();
    let seen = core::cell::RefCell::new(std::collections::BTreeSet::new());
    let tamper: Tamper<'_> = &|_, body| {
        assert!(body.chunks_exact(16).all(|block| seen.borrow_mut().insert(block.to_vec())), "a block came twice");
    };
    for _ in 0..50 {
        assert!(circuit.send(3, &[0; MESSAGE_LEN], tamper).is_some());
        assert!(circuit.answer(3, &[0; MESSAGE_LEN], tamper).is_some());
    }
}

/// A bit flipped on any link ends the conversation with every hop beyond it: nobody recognises that cell or a later
/// one. The hops before it do not notice.
#[test]
fn a_flipped_bit_forward_is_the_end() {
    for link in 0..PATH_MAX {
        for bit in 0..8 * BODY_LEN {
            let mut circuit = Circuit::new();
            assert!(circuit.send(3, &message(0), HONEST).is_some());
            let tamper: Tamper<'_> = &|at, body| {
                if at == link {
                    flip(body, bit);
                }
            };
            assert_eq!(circuit.send(3, &message(1), tamper), None, "link {link}, bit {bit}");
            for later in link..PATH_MAX {
                assert_eq!(circuit.send(later, &message(2), HONEST), None, "link {link}, bit {bit}, hop {later}");
            }
            if let Some(before) = link.checked_sub(1) {
                assert_eq!(circuit.send(before, &message(3), HONEST), Some((before, message(3))));
            }
        }
    }
}

/// The same toward the client: it hears nothing from the sender any more, but still from the hops before the link, who
/// can thus say why the circuit ends.
#[test]
fn a_flipped_bit_backward_is_the_end() {
    for link in 0..PATH_MAX {
        for bit in 0..8 * BODY_LEN {
            let mut circuit = Circuit::new();
            assert!(circuit.answer(3, &message(0), HONEST).is_some());
            let tamper: Tamper<'_> = &|at, body| {
                if at == link {
                    flip(body, bit);
                }
            };
            assert_eq!(circuit.answer(3, &message(1), tamper), None, "link {link}, bit {bit}");
            for number in 2..5 {
                assert_eq!(circuit.answer(3, &message(number), HONEST), None, "link {link}, bit {bit}");
            }
            if let Some(before) = link.checked_sub(1) {
                assert_eq!(circuit.answer(before, &message(3), HONEST), Some((before, message(3))));
            }
        }
    }
}

/// An altered cell is no guess at how it was altered: half of all its bits change at the next hop.
#[test]
fn an_altered_cell_turns_to_noise() {
    let mut honest = RelayForward::new(&seeds(0)[0]);
    let mut reference = [7; BODY_LEN];
    assert!(!honest.receive(AD, &mut reference));
    for bit in (0..8 * BODY_LEN).step_by(61) {
        let mut relay = RelayForward::new(&seeds(0)[0]);
        let mut body = [7; BODY_LEN];
        flip(&mut body, bit);
        assert!(!relay.receive(AD, &mut body));
        let changed: u32 = body.iter().zip(&reference).map(|(a, b)| (a ^ b).count_ones()).sum();
        // 4072 fair coins: 2036 with a standard deviation of 32.
        assert!((1800..2300).contains(&changed), "bit {bit}: {changed} bits changed");
    }
}

#[test]
fn a_cell_that_is_lost_repeated_or_overtaken_is_the_end() {
    let cells = |client: &mut ClientForward| -> Vec<CellBody> {
        let make = |number| {
            let mut body = body_with(&message(number));
            client.originate(hop(0), AD, &mut body).unwrap();
            body
        };
        (0..4).map(make).collect()
    };
    for order in [&[1, 2, 3][..], &[0, 2, 3], &[1, 0, 2, 3], &[0, 0, 1, 2, 3]] {
        let seed = &seeds(0)[0];
        let cells = cells(&mut ClientForward::new([seed]).unwrap());
        let mut relay = RelayForward::new(seed);
        let wrong = order.iter().enumerate().position(|(place, &number)| place != number).unwrap();
        for (place, &number) in order.iter().enumerate() {
            assert_eq!(relay.receive(AD, &mut cells[number].clone()), place < wrong, "{order:?}, place {place}");
        }
    }
}

#[test]
fn layers_in_the_wrong_order_are_noise() {
    let right = [0, 1, 2, 3];
    for wrong in [[1, 0, 2, 3], [0, 2, 1, 3], [0, 1, 3, 2], [3, 2, 1, 0], [1, 2, 3, 0]] {
        let pick = |salt: u8, order: [usize; 4]| order.map(|i| seeds(salt)[i].clone());
        let mut circuit = Circuit::with_paths(&pick(0, right), &pick(0xff, right), &pick(0, wrong), &pick(0xff, wrong));
        assert_eq!(circuit.send(3, &message(0), HONEST), None, "{wrong:?}");
        assert_eq!(circuit.answer(3, &message(0), HONEST), None, "{wrong:?}");
    }
}

#[test]
fn the_command_is_authenticated() {
    let seed = &seeds(0)[0];
    let mut body = body_with(&message(0));
    ClientForward::new([seed]).unwrap().originate(hop(0), Command::RELAY, &mut body).unwrap();
    assert!(!RelayForward::new(seed).receive(Command::OPEN, &mut body));
    let mut body = body_with(&message(0));
    RelayBackward::new(seed).originate(Command::RELAY, &mut body);
    assert_eq!(ClientBackward::new([seed]).unwrap().receive(Command::OPEN, &mut body), None);
}

/// What is in the tag's place before a cell is made does not show in it.
#[test]
fn the_old_tag_does_not_matter() {
    let cells = [0x00, 0xa5, 0xff].map(|filling| {
        let mut forward = [filling; BODY_LEN];
        *halves(&mut forward).1 = message(0);
        let mut backward = forward;
        ClientForward::new(&seeds(0)).unwrap().originate(hop(3), AD, &mut forward).unwrap();
        RelayBackward::new(&seeds(0)[0]).originate(AD, &mut backward);
        (forward, backward)
    });
    assert!(cells.iter().all(|cell| *cell == cells[0]));
}

#[test]
fn hop_indices() {
    for index in 0..PATH_MAX {
        assert_eq!(HopIndex::new(index).unwrap().value(), index);
    }
    for beyond in [PATH_MAX, 255, 256, usize::MAX] {
        assert_eq!(HopIndex::new(beyond), None);
    }
}

proptest! {
    /// Any messages, any hops, any seeds, both directions interleaved.
    #[test]
    fn any_conversation_is_understood(
        salt: [u8; 2],
        cells in prop::collection::vec(
            (any::<bool>(), 0..PATH_MAX, prop::collection::vec(any::<u8>(), MESSAGE_LEN)),
            1..20,
        ),
    ) {
        let (f, b) = (seeds(salt[0]), seeds(salt[1]));
        let mut circuit = Circuit::with_paths(&f, &b, &f, &b);
        for (forward, hop, content) in cells {
            let content: Message = content.try_into().unwrap();
            let result =
                if forward { circuit.send(hop, &content, HONEST) } else { circuit.answer(hop, &content, HONEST) };
            prop_assert_eq!(result, Some((hop, content)));
        }
    }

    /// Any other bytes in a cell's place, on any link.
    #[test]
    fn no_forgery_is_recognised(
        link in 0..PATH_MAX,
        forgery in prop::collection::vec(any::<u8>(), BODY_LEN),
    ) {
        let mut circuit = Circuit::new();
        let tamper: Tamper<'_> = &|at, body| if at == link { body.copy_from_slice(&forgery) };
        prop_assert_eq!(circuit.send(3, &message(0), tamper), None);
        prop_assert_eq!(circuit.send(3, &message(1), HONEST), None);
        prop_assert_eq!(circuit.answer(3, &message(0), tamper), None);
        prop_assert_eq!(circuit.answer(3, &message(1), HONEST), None);
    }
}
