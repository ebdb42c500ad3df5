//! Conversations with a service inside the last hop: there is no CONNECTED, so its answer is the first that the client hears.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::time::Duration;

use bulbil_core::client::origin::Reached;
use bulbil_core::wire::{CloseReason, EndReason};
use bulbil_tests::sim::{Behaviour, Heard, Network, Spec, TalkIndex, Wish, run};

const STEPS: u64 = 200_000;

/// As few cells at a time as a circuit can do with.
const NARROW: Spec = Spec { credit: 8, window_max: 8, record_cells: 1, ..Spec::RELAY };
/// A client and four relays, none of them an exit.
const RELAYS: [Spec; 5] =
    [Spec { answers: false, relay: false, origins: 32, replay: 0, ..NARROW }, NARROW, NARROW, NARROW, NARROW];
const PATHS: [&[usize]; 2] = [&[1], &[1, 2, 3, 4]];

/// Opens, waits for the end and answers the conversation.
fn ask(network: &mut Network<'_, '_>, path: &[usize], wish: Wish) -> TalkIndex {
    let talk = network.open(0, path, wish.of_the_phonebook()).unwrap();
    network.run_until(STEPS, |network| network.talk(talk).is_over());
    talk
}

#[test]
fn relays_answer_for_their_services() {
    for (seed, path) in PATHS.into_iter().enumerate() {
        run(seed as u64, &RELAYS, |network| {
            for (behaviour, request, answer) in [
                (Behaviour::Echo, 30_000, 30_000),
                (Behaviour::Serve(40_000), 6_000, 40_000),
                (Behaviour::Answer(0), 0, 0),
            ] {
                let talk = ask(network, path, Wish::new(behaviour, request));
                let talk = network.talk(talk);
                assert_eq!(talk.end(), Some((EndReason::Done, path.len() - 1)));
                assert_eq!((talk.app().heard(), talk.app().heard_end()), (answer, Some(Heard::End)));
                assert_eq!((talk.connected(), talk.connections()), (Some(Reached::Service), 1));
                assert!(talk.is_whole());
            }
            network.settle();
        });
    }
}

#[test]
fn exits_have_services_as_well_as_targets() {
    let mut specs = RELAYS;
    specs[4].exit = true;
    run(1, &specs, |network| {
        let outside = network.open(0, PATHS[1], Wish::new(Behaviour::Echo, 5_000)).unwrap();
        let inside = ask(network, PATHS[1], Wish::new(Behaviour::Echo, 5_000));
        network.run_until(STEPS, |network| network.talk(outside).is_over());
        assert!(network.talk(inside).is_whole() && network.talk(outside).is_whole());
        assert_eq!(network.talk(inside).connected(), Some(Reached::Service));
        assert!(matches!(network.talk(outside).connected(), Some(Reached::Address(_))));
        network.settle();
    });
}

#[test]
fn a_service_is_reached_when_its_answer_comes_and_not_before() {
    run(2, &RELAYS, |network| {
        let every = Duration::from_secs(10);
        let wish = Wish::new(Behaviour::Ticker { every, size: 100, count: 2 }, 300);
        let talk = network.open(0, PATHS[1], wish.of_the_phonebook()).unwrap();
        network.run_until(STEPS, |network| network.talk(talk).target_heard() == 300);
        network.run_for(Duration::from_secs(5));
        assert_eq!(network.talk(talk).connected(), None);
        network.run_until(STEPS, |network| network.talk(talk).app().heard() == 100);
        assert_eq!(network.talk(talk).connected(), Some(Reached::Service));
        network.run_until(STEPS, |network| network.talk(talk).is_over());
        network.settle();
    });
}

#[test]
fn one_request_with_one_answer_may_be_signed() {
    run(3, &RELAYS, |network| {
        for answer in [0, 1, 9_000] {
            for sign in [false, true] {
                let wish = Wish { once: true, sign, ..Wish::new(Behaviour::Serve(answer), 700) };
                let talk = ask(network, PATHS[1], wish);
                assert_eq!(network.talk(talk).end(), Some((EndReason::Done, 3)));
                assert_eq!(
                    (network.talk(talk).app().heard(), network.talk(talk).connected()),
                    (answer, Some(Reached::Service))
                );
                assert!(!sign || network.receipt_holds(talk));
            }
        }
        network.settle();
    });
}

#[test]
fn a_service_that_is_refused_or_breaks_is_not_reached() {
    for path in PATHS {
        run(4, &RELAYS, |network| {
            let last = path.len() - 1;
            for reason in [EndReason::NoService, EndReason::Busy, EndReason::TimedOut] {
                let talk = ask(network, path, Wish::new(Behaviour::Unreached(reason), 20_000));
                assert_eq!(network.talk(talk).end(), Some((reason, last)));
                assert_eq!(network.talk(talk).connected(), None);
            }
            let talk = ask(network, path, Wish::new(Behaviour::Reset(2_000), 6_000));
            assert_eq!(network.talk(talk).end(), Some((EndReason::Reset, last)));
            assert_eq!(network.talk(talk).app().heard_end(), Some(Heard::Broken));
            network.settle();
        });
    }
}

#[test]
fn a_node_that_takes_no_circuits_has_no_services() {
    let mut specs = RELAYS;
    specs[2].relay = false;
    run(5, &specs, |network| {
        let talk = ask(network, &[2], Wish::new(Behaviour::Echo, 100));
        assert_eq!(network.talk(talk).outcome().unwrap().close, Some(CloseReason::RoleRefused));
        let talk = ask(network, &[1, 2], Wish::new(Behaviour::Echo, 100));
        assert_eq!(network.talk(talk).end(), Some((EndReason::NextHopUnreachable, 0)));
        network.settle();
    });
}

#[test]
fn a_client_that_does_not_listen_holds_its_service_up_and_nobody_else() {
    run(6, &RELAYS, |network| {
        let unread = Wish { listens: false, ..Wish::new(Behaviour::Serve(200_000), 100) };
        let unread = network.open(0, PATHS[1], unread.of_the_phonebook()).unwrap();
        network.run_until(STEPS, |network| network.talk(unread).target().is_some_and(|target| target.said() > 0));
        network.run_for(Duration::from_secs(10));
        let held_up = network.talk(unread).target().unwrap().said();
        assert!(held_up < 100_000, "{held_up}");
        let other = ask(network, PATHS[1], Wish::new(Behaviour::Serve(50_000), 100));
        assert!(network.talk(other).is_whole());
        assert_eq!(network.talk(unread).target().unwrap().said(), held_up);
        network.listen(unread, true);
        network.run_until(STEPS, |network| network.talk(unread).is_over());
        assert!(network.talk(unread).is_whole());
        network.settle();
    });
}
