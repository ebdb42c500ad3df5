//! Conversations through whole networks: what goes in at one end comes out at the other, and how they end.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::time::Duration;

use bulbil_core::driver::LinkEnd;
use bulbil_core::node::{Outcome, Patience};
use bulbil_core::wire::{CloseReason, EndReason, OnionKeyKind};
use bulbil_tests::sim::{Behaviour, Heard, Jobs, Network, Spec, TalkIndex, Wish, run};

const STEPS: u64 = 200_000;

/// A client, three relays and an exit.
const FIVE: [Spec; 5] = [Spec::CLIENT, Spec::RELAY, Spec::RELAY, Spec::RELAY, Spec::EXIT];
const PATH: [usize; 4] = [1, 2, 3, 4];

fn finish(network: &mut Network<'_, '_>, talk: TalkIndex) {
    network.run_until(STEPS, |network| network.talk(talk).is_over());
}

/// Opens, waits for the end, and answers who ended it why.
fn end_of(network: &mut Network<'_, '_>, path: &[usize], wish: Wish) -> Option<(EndReason, usize)> {
    let talk = network.open(0, path, wish).unwrap();
    finish(network, talk);
    network.talk(talk).end()
}

#[test]
fn a_request_travels_through_four_nodes_and_its_answer_comes_back() {
    run(1, &FIVE, |network| {
        let talk = network.open(0, &PATH, Wish::new(Behaviour::Echo, 20_000)).unwrap();
        finish(network, talk);
        let talk = network.talk(talk);
        assert_eq!(talk.end(), Some((EndReason::Done, 3)));
        assert_eq!((talk.app().heard(), talk.app().heard_end()), (20_000, Some(Heard::End)));
        assert!(talk.is_whole() && talk.connected().is_some());
        network.settle();
    });
}

#[test]
fn the_first_answer_takes_one_round_trip_once_links_are_up() {
    run(2, &FIVE, |network| {
        let flight = Duration::from_millis(10);
        network.set_latency(flight, flight);
        let warm_up = Wish::new(Behaviour::Echo, 100);
        assert_eq!(end_of(network, &PATH, warm_up), Some((EndReason::Done, 3)));
        let talk = network.open(0, &PATH, Wish { first: 100, ..Wish::new(Behaviour::Echo, 100) }).unwrap();
        finish(network, talk);
        let talk = network.talk(talk);
        // Five flights to the target (four links, and the exit's connection), four jobs of at most 5 ms, the way back, and the pipes at
        // either end.
        let took = talk.first_heard().unwrap() - talk.opened();
        assert!(took <= 15 * flight, "{took:?}");
        network.settle();
    });
}

#[test]
fn paths_of_every_length_and_mix_of_onion_keys_carry() {
    for hops in 1..=4 {
        for mix in 0..1 << hops {
            let mut specs = FIVE;
            for (hop, spec) in specs[1..].iter_mut().enumerate() {
                spec.kind = if mix >> hop & 1 == 1 { OnionKeyKind::Rsa2048 } else { OnionKeyKind::XWing };
                spec.exit = true;
            }
            run(u64::from(mix as u8), &specs, |network| {
                let talk = network.open(0, &PATH[..hops], Wish::new(Behaviour::Echo, 3_000)).unwrap();
                finish(network, talk);
                assert_eq!(network.talk(talk).end(), Some((EndReason::Done, hops - 1)), "mix {mix:b}");
                assert!(network.talk(talk).is_whole());
                network.settle();
            });
        }
    }
}

#[test]
fn either_side_may_finish_first() {
    for seed in 0..10 {
        run(seed, &FIVE, |network| {
            let client_first = network.open(0, &PATH, Wish::new(Behaviour::Serve(15_000), 9_000)).unwrap();
            let target_first = network.open(0, &PATH, Wish::new(Behaviour::Answer(9_000), 40_000)).unwrap();
            finish(network, client_first);
            finish(network, target_first);
            for talk in [client_first, target_first] {
                let talk = network.talk(talk);
                assert_eq!(talk.end(), Some((EndReason::Done, 3)));
                assert!(talk.is_whole());
                assert_eq!(talk.target().unwrap().heard_end(), Some(Heard::End));
            }
            network.settle();
        });
    }
}

/// A proxy's client is attached only once it has been told that the target is reached: until then the target may have come and gone.
#[test]
fn an_application_that_comes_late_hears_everything_and_its_end() {
    for answer in [0, 1, 1000] {
        run(answer, &FIVE, |network| {
            let wish = Wish { first: 0, ..Wish::new(Behaviour::Answer(answer), 300) };
            let talk = network.open_detached(0, &PATH, wish).unwrap();
            network.run_until(STEPS, |network| network.talk(talk).connected().is_some());
            network.run_for(Duration::from_secs(1));
            network.attach_app(talk);
            finish(network, talk);
            let talk = network.talk(talk);
            assert_eq!((talk.app().heard(), talk.app().heard_end()), (answer, Some(Heard::End)));
            assert_eq!(talk.end(), Some((EndReason::Done, 3)));
            assert!(talk.is_whole());
            network.settle();
        });
    }
}

#[test]
fn request_response_ends_with_the_answer_though_the_client_has_not_finished() {
    run(3, &FIVE, |network| {
        let wish = Wish { once: true, ..Wish::new(Behaviour::Answer(5_000), 1_000).open_ended() };
        let talk = network.open(0, &PATH, wish).unwrap();
        finish(network, talk);
        assert_eq!(network.talk(talk).end(), Some((EndReason::Done, 3)));
        assert_eq!(network.talk(talk).app().heard(), 5_000);
        network.settle();
    });
}

#[test]
fn a_signed_answer_comes_with_a_receipt_that_holds() {
    for jobs in [Jobs::InPlace, Jobs::Elsewhere(Duration::from_millis(50))] {
        let mut specs = FIVE;
        specs[4].jobs = jobs;
        run(4, &specs, |network| {
            for once in [true, false] {
                let wish = Wish { once, sign: true, ..Wish::new(Behaviour::Serve(7_000), 3_000) };
                let signed = network.open(0, &PATH, wish).unwrap();
                finish(network, signed);
                assert_eq!(network.talk(signed).end(), Some((EndReason::Done, 3)));
                assert!(network.talk(signed).is_whole());
                assert!(network.receipt_holds(signed));
            }
            let unsigned = network.open(0, &PATH, Wish::new(Behaviour::Serve(10), 10)).unwrap();
            finish(network, unsigned);
            assert!(network.talk(unsigned).receipt().is_none());
            network.settle();
        });
    }
}

#[test]
fn a_circuit_kept_open_carries_many_answers() {
    run(5, &FIVE, |network| {
        let ticker = Behaviour::Ticker { every: Duration::from_secs(60), size: 1_200, count: 20 };
        let talk = network.open(0, &PATH, Wish::new(ticker, 100).open_ended()).unwrap();
        network.run_for(Duration::from_secs(10 * 60 + 30));
        assert_eq!(network.talk(talk).app().heard(), 10 * 1_200);
        network.run_for(Duration::from_secs(10 * 60));
        assert_eq!((network.talk(talk).app().heard(), network.talk(talk).outcome()), (20 * 1_200, None));
        network.say(talk, 50, true);
        finish(network, talk);
        assert_eq!(network.talk(talk).end(), Some((EndReason::Done, 3)));
        assert!(network.talk(talk).is_whole());
        network.settle();
    });
}

#[test]
fn an_exit_says_why_a_target_is_not_reached() {
    run(6, &FIVE, |network| {
        for reason in [
            EndReason::Refused,
            EndReason::NotResolved,
            EndReason::Forbidden,
            EndReason::TimedOut,
            EndReason::Unreachable,
            EndReason::NoService,
        ] {
            let wish = Wish::new(Behaviour::Unreached(reason), 30_000);
            assert_eq!(end_of(network, &PATH, wish), Some((reason, 3)));
        }
        assert_eq!(end_of(network, &PATH, Wish::new(Behaviour::Reset(5_000), 9_000)), Some((EndReason::Reset, 3)));
        network.settle();
    });
}

#[test]
fn a_hop_that_cannot_be_reached_is_named_by_the_one_before_it() {
    for gone in 2..=4 {
        run(7, &FIVE, |network| {
            network.kill(gone);
            let end = end_of(network, &PATH, Wish::new(Behaviour::Echo, 100));
            assert_eq!(end, Some((EndReason::NextHopUnreachable, gone - 2)));
        });
    }
    run(7, &FIVE, |network| {
        network.kill(1);
        let talk = network.open(0, &PATH, Wish::new(Behaviour::Echo, 100)).unwrap();
        finish(network, talk);
        let close = Some(CloseReason::NextHopUnreachable);
        assert_eq!(network.talk(talk).outcome(), Some(Outcome { end: None, close }));
        network.settle();
    });
}

#[test]
fn a_hop_lost_in_the_middle_of_a_transfer_is_named_by_the_one_before_it() {
    for lost in 1..=4usize {
        run(8, &FIVE, |network| {
            let talk = network.open(0, &PATH, Wish::new(Behaviour::Source, 100)).unwrap();
            network.run_until(STEPS, |network| network.talk(talk).app().heard() > 50_000);
            if lost % 2 == 0 {
                network.kill(lost);
            } else {
                network.cut(lost - 1, lost);
            }
            finish(network, talk);
            let outcome = network.talk(talk).outcome().unwrap();
            match lost {
                1 => assert_eq!(outcome, Outcome { end: None, close: Some(CloseReason::LinkLost) }),
                _ => assert_eq!(network.talk(talk).end(), Some((EndReason::NextHopLost, lost - 2))),
            }
            network.settle();
        });
    }
}

#[test]
fn who_does_not_take_a_role_says_so() {
    let mut specs = FIVE;
    specs[2].relay = false;
    run(9, &specs, |network| {
        let refused = |network: &mut Network<'_, '_>, path: &[usize]| {
            let talk = network.open(0, path, Wish::new(Behaviour::Echo, 2_000)).unwrap();
            finish(network, talk);
            (network.talk(talk).end(), network.talk(talk).outcome().unwrap().close)
        };
        let reason = Some(CloseReason::RoleRefused);
        // A first hop tells the client itself, and anybody could have; a later one is named by the hop before it.
        assert_eq!(refused(network, &[1]), (None, reason));
        assert_eq!(refused(network, &[2, 4]), (None, reason));
        assert_eq!(refused(network, &[4, 1]).0, Some((EndReason::NextHopUnreachable, 0)));
        assert_eq!(refused(network, &[1, 2, 4]).0, Some((EndReason::NextHopUnreachable, 0)));
        assert_eq!(refused(network, &[4, 1, 3]).0, Some((EndReason::NextHopUnreachable, 1)));
        network.settle();
        assert_eq!(network.counters(4).violations + network.counters(1).violations, 0);
    });
}

/// Opens two circuits to a node that has room for one; answers how the second ends.
fn second(spec: Spec) -> Outcome {
    run(10, &[Spec::CLIENT, spec], |network| {
        let first = network.open(0, &[1], Wish::new(Behaviour::Echo, 100).open_ended()).unwrap();
        let second = network.open(0, &[1], Wish::new(Behaviour::Echo, 100)).unwrap();
        finish(network, second);
        assert_eq!(network.counters(1).busy, 1);
        network.run_until(STEPS, |network| network.talk(first).app().heard() == 100);
        network.release(first, true);
        // There is room again.
        let third = network.open(0, &[1], Wish::new(Behaviour::Echo, 100)).unwrap();
        finish(network, third);
        assert_eq!(network.talk(third).end(), Some((EndReason::Done, 0)));
        network.settle();
        network.talk(second).outcome().unwrap()
    })
}

#[test]
fn a_node_without_room_refuses_and_goes_on() {
    let slow = Spec { jobs: Jobs::Elsewhere(Duration::from_secs(1)), ..Spec::EXIT };
    for spec in [
        Spec { circuits: 1, ..Spec::EXIT },
        Spec { cells: 3 * usize::from(Spec::EXIT.credit), window_max: 0, ..Spec::EXIT },
        Spec { onions: 1, ..slow },
        Spec { onions_per_link: 1, ..slow },
    ] {
        assert_eq!(second(spec), Outcome { end: None, close: Some(CloseReason::Busy) });
    }
}

#[test]
fn a_client_keeps_to_the_circuits_that_a_link_may_have() {
    run(11, &[Spec::CLIENT, Spec { circuits_per_link: 1, ..Spec::EXIT }], |network| {
        let warm_up = end_of(network, &[1], Wish::new(Behaviour::Echo, 100));
        assert_eq!(warm_up, Some((EndReason::Done, 0)));
        // While a link is being made its limit is not known; so one after the other.
        let mut talks = Vec::new();
        for _ in 0..3 {
            let talk = network.open(0, &[1], Wish::new(Behaviour::Echo, 1_000).open_ended()).unwrap();
            network.run_until(STEPS, |network| network.talk(talk).app().heard() == 1_000);
            talks.push(talk);
        }
        for talk in talks {
            network.say(talk, 10, true);
            finish(network, talk);
            assert_eq!(network.talk(talk).end(), Some((EndReason::Done, 0)));
        }
        assert_eq!((network.usage(0).links, network.counters(1).busy), (3, 0));
        network.settle();
    });
}

#[test]
fn a_full_replay_set_refuses_until_the_key_is_rotated() {
    run(12, &[Spec::CLIENT, Spec { replay: 4, ..Spec::EXIT }], |network| {
        for _ in 0..3 {
            assert_eq!(end_of(network, &[1], Wish::new(Behaviour::Echo, 10)), Some((EndReason::Done, 0)));
        }
        let refused = network.open(0, &[1], Wish::new(Behaviour::Echo, 10)).unwrap();
        finish(network, refused);
        assert_eq!(network.talk(refused).outcome().unwrap().close, Some(CloseReason::Busy));
        assert!(network.is_rotation_due(1));
        network.rotate(1);
        assert!(!network.is_rotation_due(1));
        assert_eq!(end_of(network, &[1], Wish::new(Behaviour::Echo, 10)), Some((EndReason::Done, 0)));
        network.settle();
    });
}

#[test]
fn a_silent_target_and_an_idle_conversation_end_by_deadline() {
    let patience = Patience { idle: Duration::from_secs(20), ..Patience::DEFAULT };
    let impatient = Spec { patience, ..Spec::EXIT };
    for (spec, by) in [([impatient, Spec::EXIT], 0), ([Spec::EXIT, impatient], 1)] {
        run(13, &[Spec::CLIENT, spec[0], spec[1]], |network| {
            for wish in [Wish::new(Behaviour::Silent, 100), Wish::new(Behaviour::Echo, 100).open_ended()] {
                let before = network.now();
                let end = end_of(network, &[1, 2], wish);
                assert_eq!(end, Some((EndReason::TimedOut, by)), "{:?}", wish.target);
                let took = (network.now() - before).as_secs();
                assert!((20..25).contains(&took), "{took}");
            }
            network.settle();
        });
    }
}

#[test]
fn a_client_that_goes_leaves_nothing_behind() {
    for graceful in [true, false] {
        for seed in 0..20 {
            run(seed, &FIVE, |network| {
                let talk = network.open(0, &PATH, Wish { first: 300, ..Wish::new(Behaviour::Sink, 300) }).unwrap();
                // Some go before the onion is opened, some before the target is connected.
                network.run_for(Duration::from_millis(seed * 20));
                network.release(talk, graceful);
                network.settle();
                if graceful {
                    assert_eq!(network.talk(talk).target_heard(), 300, "what was said is delivered, seed {seed}");
                }
            });
        }
    }
}

#[test]
fn a_node_that_stops_takes_nothing_new_and_ends_nothing() {
    run(14, &FIVE, |network| {
        let talk = network.open(0, &PATH, Wish::new(Behaviour::Echo, 100).open_ended()).unwrap();
        network.run_until(STEPS, |network| network.talk(talk).app().heard() == 100);
        network.stop(2);
        let refused = end_of(network, &PATH, Wish::new(Behaviour::Echo, 100));
        assert_eq!(refused, Some((EndReason::NextHopUnreachable, 0)));
        network.say(talk, 5_000, true);
        finish(network, talk);
        assert_eq!(network.talk(talk).end(), Some((EndReason::Done, 3)));
        network.settle();
    });
}

#[test]
fn links_close_when_nobody_uses_them_the_connector_first() {
    run(15, &FIVE, |network| {
        assert_eq!(end_of(network, &PATH, Wish::new(Behaviour::Echo, 100)), Some((EndReason::Done, 3)));
        network.run_for(Duration::from_secs(290));
        assert_eq!(network.usage(2).links, 2);
        network.run_for(Duration::from_secs(30));
        for node in 0..5 {
            assert_eq!(network.usage(node).links, 0);
        }
        assert_eq!((network.link_ends(0), network.link_ends(4)), (vec![LinkEnd::Idle], vec![LinkEnd::Closed]));
    });
}

#[test]
fn links_that_nobody_uses_give_way_in_a_relay_that_holds_four() {
    let small = Spec { links: 4, ..Spec::RELAY };
    run(16, &[Spec::CLIENT, small, Spec::EXIT, Spec::EXIT, Spec::EXIT, Spec::EXIT, Spec::EXIT], |network| {
        let wish = Wish::new(Behaviour::Echo, 1_000);
        for exit in [2, 3, 4] {
            assert_eq!(end_of(network, &[1, exit], wish), Some((EndReason::Done, 1)));
            network.run_for(Duration::from_secs(5));
        }
        assert_eq!((network.usage(1).links, network.link_ends(1)), (4, vec![]));
        // Two at once, and one that stays.
        let talks = [network.open(0, &[1, 5], wish).unwrap(), network.open(0, &[1, 6], wish.open_ended()).unwrap()];
        finish(network, talks[0]);
        assert_eq!(network.talk(talks[0]).end(), Some((EndReason::Done, 1)));
        assert_eq!((network.usage(1).links, network.link_ends(1)), (4, vec![LinkEnd::Idle; 2]));
        // Then every exit in turn, through the places that are left.
        for exit in [2, 3, 4, 5, 2, 3, 4, 5] {
            assert_eq!(end_of(network, &[1, exit], wish), Some((EndReason::Done, 1)));
        }
        assert!(network.link_ends(1).iter().all(|end| *end == LinkEnd::Idle));
        network.say(talks[1], 1_000, true);
        finish(network, talks[1]);
        assert_eq!(network.talk(talks[1]).end(), Some((EndReason::Done, 1)));
        assert_eq!(network.counters(1).busy, 0);
        network.settle();
    });
}
