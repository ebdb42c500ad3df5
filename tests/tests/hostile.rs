//! What neighbours on a path may try: altered cells, old onions, cells out of turn. Links would hide it, so nodes are joined without.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::cell::Cell;
use std::rc::Rc;

use bulbil_core::node::{Outcome, Violation};
use bulbil_core::wire::{CloseReason, EndReason, OnionKeyKind};
use bulbil_tests::mesh::{CellBytes, Mesh, run};
use bulbil_tests::sim::Spec;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng};

/// A client, three relays and an exit.
const FIVE: [Spec; 5] = [Spec::CLIENT, Spec::RELAY, Spec::RELAY, Spec::RELAY, Spec::EXIT];
const PATH: [usize; 4] = [1, 2, 3, 4];
const REQUEST: &[u8] = b"how many bulbils on an onion?";

/// What everybody has heard: the exits' conversations first, then the client's.
fn heard(mesh: &Mesh<'_, '_>, exit: usize) -> Vec<Vec<u8>> {
    mesh.ears(exit).map(|ear| ear.heard.clone()).collect()
}

#[test]
fn nodes_without_links_carry_too() {
    run(1, &FIVE, |mesh| {
        let name = mesh.open(0, &PATH, REQUEST).unwrap();
        mesh.settle();
        assert_eq!(mesh.ear(0, name).heard, REQUEST);
        mesh.say(0, name, b"and more");
        mesh.settle();
        assert_eq!(mesh.ear(0, name).heard, [REQUEST, b"and more"].concat());
        assert_eq!(heard(mesh, 4), [mesh.ear(0, name).heard.clone()]);
        assert!(mesh.violations().is_empty());
    });
}

#[test]
fn the_same_onion_opens_one_circuit_at_relay_and_exit() {
    for path in [&PATH[..], &[4]] {
        for rotations in 0..=1 {
            run(2, &FIVE, |mesh| {
                let (onion, keys) = mesh.onion(0, path);
                let first = mesh.open_with(0, path[0], &onion, &keys, REQUEST).unwrap();
                mesh.settle();
                for rotation in 1..=rotations {
                    mesh.rotate(path[0], rotation);
                }
                let again = mesh.open_with(0, path[0], &onion, &keys, REQUEST).unwrap();
                mesh.settle();
                let close = Some(CloseReason::OnionRejected);
                assert_eq!(mesh.ear(0, again).outcome, Some(Outcome { end: None, close }));
                assert_eq!(mesh.node(path[0]).counters().replayed, 1);
                assert_eq!((mesh.ear(0, first).heard.as_slice(), mesh.ear(0, first).outcome), (REQUEST, None));
                assert_eq!(heard(mesh, 4), [REQUEST]);
            });
        }
    }
}

#[test]
fn an_onion_replayed_in_the_middle_of_the_path_is_refused_there() {
    // A first hop that has kept what it sent to the second sends it once more.
    run(3, &FIVE, |mesh| {
        let kept = Rc::new(std::cell::RefCell::new(Vec::<CellBytes>::new()));
        let keep = Rc::clone(&kept);
        mesh.set_tamper(Box::new(move |passage, cell| {
            if (passage.from, passage.to) == (1, 2) && cell[4] == 3 {
                keep.borrow_mut().push(*cell);
            }
            // What is said of the second circuit is for nobody but the attacker.
            cell[3] != 7
        }));
        let name = mesh.open(0, &PATH, REQUEST).unwrap();
        mesh.settle();
        assert_eq!(kept.borrow().len(), 10);
        for mut cell in kept.borrow().clone() {
            cell[..4].copy_from_slice(&7u32.to_be_bytes());
            mesh.inject(1, 2, cell);
        }
        mesh.settle();
        assert_eq!((mesh.node(2).counters().replayed, mesh.node(2).counters().opened), (1, 1));
        assert_eq!(heard(mesh, 4), [REQUEST]);
        mesh.say(0, name, b"!");
        mesh.settle();
        assert_eq!(mesh.ear(0, name).heard, [REQUEST, b"!"].concat());
    });
}

#[test]
fn an_onion_for_a_key_before_the_previous_one_is_refused() {
    for kind in [OnionKeyKind::XWing, OnionKeyKind::Rsa2048] {
        let mut specs = FIVE;
        specs[1].kind = kind;
        run(4, &specs, |mesh| {
            let onions = [mesh.onion(0, &PATH), mesh.onion(0, &PATH)];
            let open = |mesh: &mut Mesh<'_, '_>, at: usize| {
                let name = mesh.open_with(0, 1, &onions[at].0, &onions[at].1, REQUEST).unwrap();
                mesh.settle();
                mesh.ear(0, name).outcome
            };
            mesh.rotate(1, 1);
            assert_eq!(open(mesh, 0), None, "the previous key is honoured");
            mesh.rotate(1, 2);
            let close = Some(CloseReason::OnionRejected);
            assert_eq!(open(mesh, 1), Some(Outcome { end: None, close }));
            assert_eq!(mesh.node(1).counters().rejected, 1);
        });
    }
}

/// One circuit beside which nothing may change, and one whose cell at `number` from `from` to `to` is altered at `byte` by `mask`.
/// Answers how the altered circuit ended for the client, and what its exit heard.
fn altered(from: usize, to: usize, number: u64, byte: usize, mask: u8) -> (Option<Outcome>, Vec<u8>) {
    run(5, &FIVE, |mesh| {
        let beside = mesh.open(0, &PATH, b"beside").unwrap();
        mesh.settle();
        // Credit is not of this circuit alone.
        let mut counted = 0;
        mesh.set_tamper(Box::new(move |passage, cell| {
            if (passage.from, passage.to) == (from, to) && cell[4] != 2 {
                if counted == number {
                    cell[byte] ^= mask;
                }
                counted += 1;
            }
            true
        }));
        let name = mesh.open(0, &PATH, REQUEST).unwrap();
        mesh.settle();
        mesh.say_if_open(0, name, b"more");
        mesh.settle();
        // Onions that never become whole are given up.
        mesh.pass(31_000);
        mesh.pass(1_000);

        let altered: Vec<u8> = mesh.ears(4).nth(1).map(|ear| ear.heard.clone()).unwrap_or_default();
        let said = [REQUEST, b"more"].concat();
        assert!(said.starts_with(&altered), "the exit hears nothing else: {altered:?}");
        assert!(said.starts_with(&mesh.ear(0, name).heard), "the client hears nothing else");
        for node in 0..5 {
            mesh.node(node).audit().unwrap();
        }
        // Bodies are not the link's business: no link ends, and the other circuit does not notice.
        if byte >= 5 {
            assert!(mesh.violations().is_empty(), "{:?}", mesh.violations());
            mesh.say(0, beside, b" goes on");
            mesh.settle();
            assert_eq!(mesh.ear(0, beside).heard, b"beside goes on");
        }
        (mesh.ear(0, name).outcome, altered)
    })
}

#[test]
fn an_altered_onion_opens_nothing_at_the_next_hop() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    // Every tenth byte of the onion to the first hop in one run or another, and samples between the others.
    for tenth in 0..509 {
        let at = 10 * tenth + (rng.next_u64() % 10) as usize;
        let (outcome, heard) = altered(0, 1, (at / 509) as u64, 5 + at % 509, 1 << (rng.next_u32() % 8));
        let close = Some(CloseReason::OnionRejected);
        assert_eq!((outcome, heard.len()), (Some(Outcome { end: None, close }), 0), "byte {at}");
    }
    for (hop, from) in PATH[..3].iter().enumerate() {
        for _ in 0..30 {
            let at = (rng.next_u64() % 5090) as usize;
            let (outcome, heard) = altered(*from, from + 1, (at / 509) as u64, 5 + at % 509, 1 << (rng.next_u32() % 8));
            let end = outcome.unwrap().end.unwrap();
            assert_eq!((end.0, end.1.value(), heard.len()), (EndReason::NextHopUnreachable, hop, 0), "byte {at}");
        }
    }
}

#[test]
fn an_altered_relay_cell_ends_the_circuit_and_is_heard_by_nobody() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for from in 0..4 {
        for _ in 0..60 {
            let (byte, mask) = (5 + (rng.next_u64() % 509) as usize, 1 << (rng.next_u32() % 8));
            // The cell behind the onion is BEGIN, the next one DATA.
            let begin = altered(from, from + 1, 10, byte, mask);
            assert_eq!(begin.1, b"", "an altered BEGIN reaches nothing");
            let end = begin.0.unwrap().end.unwrap();
            assert_eq!((end.0, end.1.value()), (EndReason::Protocol, 3), "the exit does not know the cell");
            let data = altered(from, from + 1, 11, byte, mask);
            assert_eq!(data.1, REQUEST, "what came before stays");
            assert_eq!(data.0.unwrap().end.unwrap().0, EndReason::Protocol);
            // Backward: CONNECTED first, then what the exit says back.
            let (outcome, _) = altered(from + 1, from, rng.next_u64() % 3, byte, mask);
            assert_eq!(outcome, Some(Outcome { end: None, close: Some(CloseReason::Protocol) }));
        }
    }
}

#[test]
fn an_altered_header_harms_its_link_at_most() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    for from in 0..4 {
        for byte in 0..5 {
            for bit in 0..8 {
                let _whatever_is_heard_is_right = altered(from, from + 1, rng.next_u64() % 12, byte, 1 << bit);
                let _either_way = altered(from + 1, from, rng.next_u64() % 3, byte, 1 << bit);
            }
        }
    }
}

#[test]
fn cells_that_come_twice_or_not_at_all_end_the_circuit() {
    for drop in [true, false] {
        for from in 0..4usize {
            for backward in [true, false] {
                run(9, &FIVE, |mesh| {
                    let name = mesh.open(0, &PATH, REQUEST).unwrap();
                    mesh.settle();
                    let (from, to) = if backward { (from + 1, from) } else { (from, from + 1) };
                    let last = Rc::new(Cell::new(None));
                    let kept = Rc::clone(&last);
                    mesh.set_tamper(Box::new(move |passage, cell| {
                        let hit = (passage.from, passage.to) == (from, to) && cell[4] == 4 && kept.get().is_none();
                        if hit {
                            kept.set(Some(*cell));
                        }
                        !(hit && drop)
                    }));
                    mesh.say(0, name, b"one ");
                    mesh.settle();
                    if !drop {
                        mesh.inject(from, to, last.get().unwrap());
                    }
                    mesh.say_if_open(0, name, b"two ");
                    mesh.settle();
                    let said = [REQUEST, b"one two "].concat();
                    let ears = heard(mesh, 4);
                    assert!(said.starts_with(&ears[0]) && said.starts_with(&mesh.ear(0, name).heard));
                    assert!(mesh.ear(0, name).outcome.is_some(), "drop {drop}, {from} to {to}");
                    assert!(mesh.violations().is_empty());
                });
            }
        }
    }
}

/// A cell with this circuit id, command and beginning of the body.
fn cell(circuit: u32, command: u8, body: &[u8]) -> CellBytes {
    let mut cell = [0; 514];
    cell[..4].copy_from_slice(&circuit.to_be_bytes());
    cell[4] = command;
    cell[5..5 + body.len()].copy_from_slice(body);
    cell
}

const HELLO: [u8; 6] = [0, 1, 0, 16, 0, 16];

/// Feeds cells to an exit from a connector that has said HELLO; an honest circuit through the same exit must not notice.
fn from_connector(cells: impl IntoIterator<Item = CellBytes>) -> Option<Violation> {
    run(10, &FIVE, |mesh| {
        let honest = mesh.open(0, &PATH, b"honest").unwrap();
        mesh.settle();
        let stranger = mesh.stranger(4);
        let mut violation = mesh.feed(4, stranger, cell(0, 1, &HELLO));
        for cell in cells {
            violation = violation.or_else(|| mesh.feed(4, stranger, cell));
        }
        mesh.settle();
        mesh.say(0, honest, b" still");
        mesh.settle();
        assert_eq!(mesh.ear(0, honest).heard, b"honest still");
        let usage = mesh.node(4).usage();
        if violation.is_some() {
            assert_eq!((usage.links, usage.circuits, usage.onions), (1, 1, 0), "the stranger's things are gone");
            assert_eq!(mesh.node(4).counters().violations, 1);
        }
        violation
    })
}

#[test]
fn a_connector_that_breaks_the_protocol_loses_its_link_and_nothing_else() {
    use bulbil_core::wire::WireError::{Invalid, NotZero, UnknownCode};
    let open = |circuit| cell(circuit, 3, &[7; 509]);
    let onion = |circuit| std::iter::repeat_n(open(circuit), 10);
    let relay = |circuit| cell(circuit, 4, &[9; 509]);
    let credit = |circuit: u32, cells: u16| {
        let mut body = vec![1];
        body.extend(circuit.to_be_bytes());
        body.extend(cells.to_be_bytes());
        cell(0, 2, &body)
    };
    let malformed = |error| Some(Violation::Malformed(error));
    let out_of_turn = Some(Violation::OutOfTurn);

    assert_eq!(from_connector([cell(0, 0, &[])]), None, "padding");
    assert_eq!(from_connector([cell(0, 0, &[1])]), malformed(NotZero));
    assert_eq!(from_connector([cell(0, 6, &[])]), malformed(UnknownCode));
    assert_eq!(from_connector([cell(0, 4, &[])]), malformed(Invalid), "RELAY on the link itself");
    assert_eq!(from_connector([cell(5, 1, &HELLO)]), malformed(Invalid), "HELLO on a circuit");
    assert_eq!(from_connector([cell(0, 1, &HELLO)]), out_of_turn, "HELLO twice");
    assert_eq!(from_connector([relay(1)]), Some(Violation::UnknownCircuit));
    assert_eq!(from_connector([cell(1, 5, &[0])]), Some(Violation::UnknownCircuit));
    assert_eq!(from_connector([credit(1, 1)]), Some(Violation::UnknownCircuit));
    assert_eq!(from_connector([cell(1, 5, &[9])]), malformed(UnknownCode), "an unknown reason");
    assert_eq!(from_connector([credit(1, 0)]), malformed(Invalid));
    assert_eq!(from_connector([open(5), open(6)]), out_of_turn, "onions interleaved");
    assert_eq!(from_connector([open(5), relay(5)]), out_of_turn, "a relay cell inside an onion");
    assert_eq!(from_connector([open(5), cell(5, 5, &[0]), open(4)]), out_of_turn, "an id goes back");
    assert_eq!(from_connector(onion(5).chain([open(5)])), out_of_turn, "an eleventh cell");
    assert_eq!(from_connector([open(5), cell(5, 5, &[0]), open(5), relay(5)]), None, "late cells are dropped");
    assert_eq!(from_connector([open(5), credit(5, 65_519)]), None, "all the credit there is");
    assert_eq!(from_connector([open(5), credit(5, 65_520)]), Some(Violation::CreditOverflow));
    // A whole onion waits for its job here, so that its cells wait too.
    let overrun = onion(5).chain(std::iter::repeat_n(relay(5), 16));
    assert_eq!(from_connector(overrun.clone()), None, "as much as the initial credit");
    assert_eq!(from_connector(overrun.chain([relay(5)])), Some(Violation::Overrun));
}

#[test]
fn a_connector_that_does_not_begin_with_hello_loses_its_link() {
    run(11, &FIVE, |mesh| {
        for first in [cell(0, 0, &[]), cell(1, 3, &[1]), cell(1, 4, &[1]), cell(0, 1, &[0, 2, 0, 16, 0, 16])] {
            let stranger = mesh.stranger(4);
            assert!(mesh.feed(4, stranger, first).is_some());
            assert_eq!(mesh.node(4).usage().links, 0);
        }
    });
}

#[test]
fn a_flood_of_refused_circuits_ends_the_link() {
    run(12, &[Spec::CLIENT, Spec { circuits_per_link: 1, ..Spec::EXIT }], |mesh| {
        let honest = mesh.open(0, &[1], b"honest").unwrap();
        mesh.settle();
        let stranger = mesh.stranger(1);
        assert_eq!(mesh.feed(1, stranger, cell(0, 1, &HELLO)), None);
        for part in 0..10 {
            assert_eq!(mesh.feed(1, stranger, cell(1, 3, &[part; 509])), None);
        }
        for circuit in 2..34 {
            assert_eq!(mesh.feed(1, stranger, cell(circuit, 3, &[0; 509])), None);
            // Long before it is too much, nothing more would be read.
            assert_eq!(mesh.node(1).takes_cells(stranger), circuit < 31);
        }
        assert_eq!(mesh.feed(1, stranger, cell(34, 3, &[0; 509])), Some(Violation::Flood));
        mesh.say(0, honest, b" still");
        mesh.settle();
        assert_eq!(mesh.ear(0, honest).heard, b"honest still");
    });
}

#[test]
fn an_answerer_that_breaks_the_protocol_loses_its_link_and_nothing_else() {
    let relay = |circuit| cell(circuit, 4, &[9; 509]);
    let cases: [(Vec<CellBytes>, Option<Violation>); 8] = [
        (vec![cell(0, 1, &HELLO)], Some(Violation::OutOfTurn)),
        (vec![cell(1, 3, &[1; 509])], Some(Violation::OutOfTurn)),
        (vec![cell(9, 3, &[1; 509])], Some(Violation::OutOfTurn)),
        (vec![relay(9)], Some(Violation::UnknownCircuit)),
        (vec![cell(9, 5, &[0])], Some(Violation::UnknownCircuit)),
        (vec![cell(0, 2, &[1, 0, 0, 0, 1, 0xff, 0xff])], Some(Violation::CreditOverflow)),
        (vec![cell(1, 5, &[8])], None),
        (vec![relay(1)], None),
    ];
    for (cells, expected) in cases {
        run(13, &FIVE, |mesh| {
            let honest = mesh.open(0, &[4], b"honest").unwrap();
            let lost = mesh.open(0, &[1, 4], b"lost").unwrap();
            mesh.settle();
            for cell in &cells {
                mesh.inject(1, 0, *cell);
            }
            mesh.settle();
            assert_eq!(mesh.violations().first().map(|(_, violation)| *violation), expected);
            assert!(mesh.ear(0, lost).outcome.is_some(), "a wrong cell ends the circuit, or the link with it");
            mesh.say(0, honest, b" still");
            mesh.settle();
            assert_eq!(mesh.ear(0, honest).heard, b"honest still");
            if cells[0][4] != 5 {
                // Who says CLOSE and does not mean it keeps a circuit that nobody uses.
                assert_eq!(mesh.node(1).usage().circuits, 0);
            }
        });
    }
}

#[test]
fn a_next_hop_that_speaks_before_it_has_the_whole_onion_loses_its_link() {
    run(14, &FIVE, |mesh| {
        let before = mesh.open(0, &[1, 4], b"before").unwrap();
        mesh.settle();
        assert_eq!(mesh.ear(0, before).heard, b"before");
        let early = mesh.open(0, &[1, 4], b"early").unwrap();
        mesh.inject(1, 0, cell(2, 4, &[9; 509]));
        mesh.settle();
        assert_eq!(mesh.violations(), [(0, Violation::OutOfTurn)]);
        for name in [before, early] {
            assert_eq!(mesh.ear(0, name).outcome.unwrap().close, Some(CloseReason::LinkLost));
        }
        let usage = mesh.node(0).usage();
        assert_eq!((usage.circuits, usage.onions), (0, 0));
    });
}

#[test]
fn an_onion_that_never_becomes_whole_is_given_up() {
    run(15, &[Spec::CLIENT, Spec { onions: 1, ..Spec::EXIT }], |mesh| {
        let stranger = mesh.stranger(1);
        assert_eq!(mesh.feed(1, stranger, cell(0, 1, &HELLO)), None);
        assert_eq!(mesh.feed(1, stranger, cell(1, 3, &[0; 509])), None);
        let refused = mesh.open(0, &[1], b"x").unwrap();
        mesh.settle();
        assert_eq!(mesh.ear(0, refused).outcome.unwrap().close, Some(CloseReason::Busy));
        mesh.pass(31_000);
        assert_eq!(mesh.node(1).usage().onions, 0);
        let name = mesh.open(0, &[1], b"x").unwrap();
        mesh.settle();
        assert_eq!(mesh.ear(0, name).heard, b"x");
    });
}
