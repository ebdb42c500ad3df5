//! What a peer, a client or a target may do to a driver: answer as somebody else, flood, break, leave early.

mod bench;
mod peer;

use core::net::SocketAddr;
use core::time::Duration;
use std::vec::Vec;

use bench::{Bench, CREDIT, NOW, Stream, TIME, keys, run};
use embedded_io::ErrorKind;
use peer::{Circuit, Peer, answer_as, cell};

use super::{LinkEnd, More};
use crate::node::ConversationId;
use crate::wire::message::BeginOptions;
use crate::wire::{CloseReason, Command, EndReason, Message, Service, Target};

/// Opens a circuit of one hop over the peer's link that begins like this, and answers its conversation.
fn begun(
    bench: &mut Bench<'_, '_>,
    peer: &mut Peer,
    id: u32,
    target: &Target,
    then: &[Message<'_>],
) -> (Circuit, ConversationId) {
    let mut circuit = Circuit::new(id, &[(bench.shell.keys.node, bench.shell.keys.onion.current().public())]);
    peer.say(&circuit.open());
    let begin = Message::Begin { options: BeginOptions::default(), target: target.clone(), first: b"first " };
    peer.say(&[circuit.say(&begin)]);
    let then: Vec<_> = then.iter().map(|message| circuit.say(message)).collect();
    peer.say(&then);
    bench.serve(peer.link);
    let (name, asked) = bench.shell.targets.pop().unwrap();
    assert_eq!(asked, *target);
    assert_eq!(bench.driver.node().came_over(name), Some(peer.link));
    (circuit, name)
}

/// Opens a circuit that leads through the driver's node to another one.
fn passing(bench: &mut Bench<'_, '_>) -> (Peer, Circuit) {
    let mut peer = Peer::connect(bench);
    let next = keys(1);
    let own = (bench.shell.keys.node, bench.shell.keys.onion.current().public());
    let circuit = Circuit::new(1, &[own, (next.node, next.onion.current().public())]);
    peer.say(&circuit.open());
    bench.serve(peer.link);
    (peer, circuit)
}

fn target() -> Target {
    SocketAddr::from(([198, 51, 100, 1], 80)).into()
}

#[test]
fn a_node_without_a_descriptor_takes_no_links() {
    run(|bench| {
        let descriptor = core::mem::take(&mut bench.shell.keys.descriptor);
        assert_eq!(bench.driver.reserve_link(&mut bench.shell, NOW), None);
        assert_eq!(bench.driver.node().usage().links, 0);
        bench.shell.keys.descriptor = descriptor;
        Peer::connect(bench);
        let census = bench.driver.node().link_census();
        assert_eq!((census.answered, bench.driver.node().usage().links), (1, 1));
    });
}

#[test]
fn an_answerer_that_shows_another_nodes_descriptor_is_refused() {
    // The descriptor is as authentic as can be, and anybody has it; the link key in it is not the one that shook hands.
    let (shown, own) = (keys(1), keys(2));
    for expected in [Some(shown.node), None] {
        run(|bench| {
            answer_as(bench, expected, &own.link, &shown.descriptor);
            assert_eq!(bench.shell.ends, [LinkEnd::WrongNode]);
            assert_eq!((&bench.shell.met, &bench.shell.times), (&Vec::new(), &Vec::new()), "nothing it says counts");
            assert_eq!(bench.driver.node().usage().links, 0);
        });
    }
}

#[test]
fn an_answerer_that_is_not_the_node_to_be_met_is_refused() {
    let (meant, other) = (keys(1), keys(2));
    for (expected, accepted) in [(Some(meant.node), false), (Some(other.node), true), (None, true)] {
        run(|bench| {
            answer_as(bench, expected, &other.link, &other.descriptor);
            if accepted {
                assert_eq!((&bench.shell.ends, &bench.shell.met), (&Vec::new(), &Vec::from([other.node])));
                assert_eq!(bench.shell.times, [TIME]);
            } else {
                assert_eq!(bench.shell.ends, [LinkEnd::WrongNode]);
                assert_eq!((&bench.shell.met, &bench.shell.times), (&Vec::new(), &Vec::new()));
            }
        });
    }
}

#[test]
fn whoever_takes_no_refusals_is_not_read_from_until_they_have_left() {
    run(|bench| {
        let mut peer = Peer::connect(bench);
        peer.stream.0.borrow_mut().full = true;
        // Two circuits are allowed; of each of the others one cell is enough for a refusal.
        let opens: Vec<_> = (1..=100).flat_map(|id| [cell(id, Command::OPEN, &[7]); 10]).collect();
        peer.say(&opens);
        bench.serve(peer.link);
        let left = peer.stream.0.borrow().said.len();
        assert!(left > opens.len() * 514 / 2, "{left} bytes wait at the peer and not here");
        for _ in 0..3 {
            bench.serve(peer.link);
            assert_eq!(peer.stream.0.borrow().said.len(), left);
        }
        // It reads: all is refused that is to be refused, and nothing of that was a violation.
        peer.stream.0.borrow_mut().full = false;
        bench.serve(peer.link);
        assert_eq!(peer.stream.0.borrow().said.len(), 0);
        let close = |cell: &[u8; 514]| cell[4] == Command::CLOSE.value();
        assert_eq!(peer.hear().iter().filter(|cell| close(cell)).count(), 100);
        let counters = bench.driver.node().counters();
        assert_eq!((counters.violations, counters.busy + counters.rejected), (0, 100));
        assert!(counters.busy > counters.rejected, "of those that found room the onions were none");
        assert_eq!(bench.shell.ends, []);
    });
}

#[test]
fn whoever_says_very_much_leaves_others_their_turn() {
    run(|bench| {
        let mut peer = Peer::connect(bench);
        let circuits = [1, 2].map(|id| begun(bench, &mut peer, id, &target(), &[]).0);
        let mut other = Peer::connect(bench);
        // Not read for the sake of refusals at first, so that what comes behind is read by polling.
        peer.stream.0.borrow_mut().full = true;
        let opens: Vec<_> = (3..60).map(|id| cell(id, Command::OPEN, &[7])).collect();
        peer.say(&opens);
        peer.say(&std::vec![cell(0, Command::PADDING, &[]); 9_000]);
        let all = peer.stream.0.borrow().said.len();
        assert_eq!(bench.driver.service_link(&mut bench.shell, peer.link, NOW), More::No);
        peer.stream.0.borrow_mut().full = false;
        assert_eq!(bench.driver.drain(&mut bench.shell, NOW), More::Yes, "the work in one call is bounded");
        assert!((1..all).contains(&peer.stream.0.borrow().said.len()));
        // Somebody else is served in between, however much there is to do.
        other.say(&[cell(1, Command::OPEN, &[7])]);
        assert_eq!(bench.driver.service_link(&mut bench.shell, other.link, NOW), More::No);
        assert_eq!(bench.driver.node().usage().circuits, 3);
        // From its stream as well no more is read at once than in a turn.
        assert_eq!(bench.driver.service_link(&mut bench.shell, peer.link, NOW), More::Yes);
        assert_ne!(peer.stream.0.borrow().said.len(), 0);
        bench.serve(peer.link);
        assert_eq!(peer.stream.0.borrow().said.len(), 0);
        peer.say(&circuits.map(|circuit| circuit.close(CloseReason::TimedOut)));
        bench.serve(peer.link);
        assert_eq!(bench.driver.node().usage().circuits, 1, "the other's");
        assert_eq!((&bench.shell.ends, bench.driver.node().counters().violations), (&Vec::new(), 0));
    });
}

#[test]
fn whoever_takes_nothing_for_a_minute_loses_its_link_and_nobody_else() {
    run(|bench| {
        let (mut silent, mut other) = (Peer::connect(bench), Peer::connect(bench));
        silent.stream.0.borrow_mut().full = true;
        for peer in [&mut silent, &mut other] {
            // No onion: that this is refused is to be said.
            peer.say(&[cell(1, Command::OPEN, &[7]); 10]);
            bench.serve(peer.link);
        }
        assert_eq!((silent.hear().len(), other.hear().len()), (0, 1));
        bench.driver.handle_timeout(&mut bench.shell, NOW.after(Duration::from_secs(59)));
        assert_eq!(bench.shell.ends, []);
        bench.driver.handle_timeout(&mut bench.shell, NOW.after(Duration::from_secs(61)));
        assert_eq!(bench.shell.ends, [LinkEnd::Stalled]);
        let node = bench.driver.node();
        assert_eq!((node.knows_link(silent.link), node.knows_link(other.link)), (false, true));
    });
}

#[test]
fn a_target_that_breaks_at_the_end_of_the_request_is_said_to_have_reset() {
    run(|bench| {
        let mut peer = Peer::connect(bench);
        let (mut circuit, name) = begun(bench, &mut peer, 1, &target(), &[Message::Data(b"request"), Message::Fin]);
        let stream = Stream::default();
        stream.0.borrow_mut().breaks = true;
        let reached = Ok((stream.clone(), SocketAddr::from(([198, 51, 100, 1], 80))));
        bench.driver.handle_target(&mut bench.shell, name, reached, NOW);
        bench.serve(peer.link);
        assert_eq!((stream.0.borrow().heard.as_slice(), stream.0.borrow().finished), (&b"first request"[..], true));
        let said = circuit.understand(&mut peer.hear());
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(said[1], (0, std::format!("{:?}", Message::End(EndReason::Reset))));
        assert_eq!((bench.shell.over.len(), bench.driver.node().knows(name)), (1, false));
        assert_eq!(bench.driver.node().usage().circuits, 0);
    });
}

#[test]
fn a_service_that_is_not_given_is_refused_with_the_reason() {
    run(|bench| {
        let mut peer = Peer::connect(bench);
        let service = Target::Service(Service::Phonebook);
        let (mut circuit, name) = begun(bench, &mut peer, 1, &service, &[]);
        bench.driver.handle_service(&mut bench.shell, name, Err(EndReason::Busy), NOW);
        bench.serve(peer.link);
        let said = circuit.understand(&mut peer.hear());
        assert_eq!(said, [(0, std::format!("{:?}", Message::End(EndReason::Busy)))]);
        assert_eq!(bench.driver.node().usage().circuits, 0);
    });
}

#[test]
fn what_is_attached_after_the_client_has_gone_is_dropped() {
    run(|bench| {
        let mut peer = Peer::connect(bench);
        for (id, target) in [(1, Target::Service(Service::Phonebook)), (2, target())] {
            let (circuit, name) = begun(bench, &mut peer, id, &target, &[]);
            peer.say(&[circuit.close(CloseReason::TimedOut)]);
            bench.serve(peer.link);
            assert!(!bench.driver.node().knows(name));
            // The shell may not have heard of that yet.
            bench.driver.service_conversation(&mut bench.shell, name, NOW);
            let stream = Stream::default();
            if id == 1 {
                bench.driver.handle_service(&mut bench.shell, name, Ok(stream.clone()), NOW);
            } else {
                let reached = Ok((stream.clone(), SocketAddr::from(([198, 51, 100, 1], 80))));
                bench.driver.handle_target(&mut bench.shell, name, reached, NOW);
            }
            bench.serve(peer.link);
            assert_eq!(stream.0.borrow().heard, b"", "nobody's bytes");
            assert_eq!(std::rc::Rc::strong_count(&stream.0), 1, "the driver has let go of it");
            assert_eq!(bench.driver.node().usage().circuits, 0);
        }
    });
}

#[test]
fn what_a_client_has_said_before_it_went_is_still_delivered() {
    run(|bench| {
        let mut peer = Peer::connect(bench);
        let (circuit, name) = begun(bench, &mut peer, 1, &target(), &[Message::Data(b"all"), Message::Fin]);
        peer.say(&[circuit.close(CloseReason::Finished)]);
        bench.serve(peer.link);
        // The target is not reached yet, and until then nothing can be done.
        bench.driver.service_conversation(&mut bench.shell, name, NOW);
        assert!(bench.driver.node().knows(name) && bench.shell.over.is_empty());
        let stream = Stream::default();
        let reached = Ok((stream.clone(), SocketAddr::from(([198, 51, 100, 1], 80))));
        bench.driver.handle_target(&mut bench.shell, name, reached, NOW);
        bench.serve(peer.link);
        assert_eq!((stream.0.borrow().heard.as_slice(), stream.0.borrow().finished), (&b"first all"[..], true));
        assert_eq!((bench.shell.over.len(), bench.driver.node().usage().circuits), (1, 0));
        assert_eq!(circuit_cells(&mut peer), 0, "to the client nothing is said any more");
    });
}

fn circuit_cells(peer: &mut Peer) -> usize {
    peer.hear().iter().filter(|cell| cell[4] == Command::RELAY.value()).count()
}

#[test]
fn a_hop_in_the_middle_takes_padding_and_nothing_else() {
    for (message, expected) in [(Message::Drop, 0), (Message::Fin, 1), (Message::Data(b"for whom?"), 1)] {
        run(|bench| {
            let (mut peer, mut circuit) = passing(bench);
            assert_eq!((bench.shell.links.len(), bench.driver.node().counters().opened), (1, 1));
            for _ in 0..CREDIT {
                peer.say(&[circuit.tell(0, &message)]);
                bench.serve(peer.link);
            }
            assert_eq!(bench.driver.node().counters().garbled, expected);
            assert_eq!((&bench.shell.ends, bench.driver.node().counters().violations), (&Vec::new(), 0));
            let said = circuit.understand(&mut peer.hear());
            if expected == 0 {
                // Padding is used up here, and its room is given back.
                assert_eq!((said.len(), bench.driver.node().usage().circuits), (0, 1));
            } else {
                assert_eq!(said, [(0, std::format!("{:?}", Message::End(EndReason::Protocol)))]);
            }
        });
    }
}

#[test]
fn a_link_that_this_machine_cannot_make_is_said_to_be_so_only_while_it_is_being_made() {
    let ends = [
        (Err(ErrorKind::OutOfMemory), EndReason::Busy),
        (Err(ErrorKind::ConnectionRefused), EndReason::NextHopUnreachable),
        // The connection was made: what breaks it is no want of this machine.
        (Ok(()), EndReason::NextHopUnreachable),
    ];
    for (made, expected) in ends {
        run(|bench| {
            let (mut peer, mut circuit) = passing(bench);
            let link = bench.shell.links.pop().unwrap();
            bench.driver.handle_link_stream(&mut bench.shell, link, made.map(|()| Stream::default()), NOW);
            if made.is_ok() {
                bench.driver.close_link(&mut bench.shell, link, LinkEnd::Io(ErrorKind::OutOfMemory), NOW);
            }
            bench.serve(peer.link);
            assert_eq!(bench.shell.ends, [LinkEnd::Io(made.err().unwrap_or(ErrorKind::OutOfMemory))]);
            let said = circuit.understand(&mut peer.hear());
            assert_eq!(said, [(0, std::format!("{:?}", Message::End(expected)))]);
            assert_eq!(bench.driver.node().counters().busy, u64::from(expected == EndReason::Busy));
        });
    }
}
