//! Flow control through whole networks: memory bounded by credit, nothing lost, and nobody starved.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::time::Duration;

use bulbil_core::wire::EndReason;
use bulbil_tests::sim::{Behaviour, Network, Spec, TalkIndex, Wish, run};

const STEPS: u64 = 2_000_000;
const FIVE: [Spec; 5] = [Spec::CLIENT, Spec::RELAY, Spec::RELAY, Spec::RELAY, Spec::EXIT];
const PATH: [usize; 4] = [1, 2, 3, 4];

/// Lets time pass; at no step does any node hold more cells than one direction of one circuit may have room for, or promise more than
/// two such directions have.
fn run_bounded(network: &mut Network<'_, '_>, window: usize, mut reached: impl FnMut(&Network<'_, '_>) -> bool) {
    let credit = usize::from(Spec::RELAY.credit);
    network.run_until(STEPS, |network| {
        for node in 0..5 {
            let usage = network.usage(node);
            assert!(usage.cells_held <= window, "node {node}: {usage:?}");
            assert!(usage.cells_reserved <= window + window.max(credit), "node {node}: {usage:?}");
        }
        reached(network)
    });
}

/// Until nothing has moved for a second.
fn stalled(last: &mut (u64, Duration), network: &Network<'_, '_>, moved: u64) -> bool {
    if last.0 != moved {
        *last = (moved, network.now());
    }
    network.now() - last.1 > Duration::from_secs(1)
}

#[test]
fn a_still_reader_stops_the_target_and_loses_nothing_when_it_goes_on() {
    for seed in 0..4 {
        run(seed, &FIVE, |network| {
            let window = usize::from(Spec::RELAY.window_max);
            let wish = Wish { listens: false, ..Wish::new(Behaviour::Source, 100).open_ended() };
            let talk = network.open(0, &PATH, wish).unwrap();
            network.run_until(STEPS, |network| network.talk(talk).target().is_some());
            let said = |network: &Network<'_, '_>| network.talk(talk).target().unwrap().said();
            let mut last = (u64::MAX, Duration::ZERO);
            run_bounded(network, window, |network| stalled(&mut last, network, said(network)));
            // The exit has stopped reading: what the target has said is what five windows and two pipes hold.
            let stood_at = said(network);
            network.run_for(Duration::from_secs(120));
            assert_eq!(said(network), stood_at);
            let most = 5 * window as u64 * 490 + 2 * 8192 + 490;
            assert!(stood_at <= most, "{stood_at} of {most}");
            assert!(network.usage(4).cells_held > 0 && network.usage(0).cells_held > 0, "cells wait everywhere");

            network.listen(talk, true);
            run_bounded(network, window, |network| network.talk(talk).app().heard() > stood_at + 500_000);
            network.release(talk, false);
            network.settle();
        });
    }
}

#[test]
fn a_still_target_stops_the_client_and_loses_nothing_when_it_goes_on() {
    for seed in 0..4 {
        run(seed, &FIVE, |network| {
            let window = usize::from(Spec::RELAY.window_max);
            let total = 1_000_000;
            let talk = network.open(0, &PATH, Wish::new(Behaviour::Deaf, total)).unwrap();
            let said = |network: &Network<'_, '_>| network.talk(talk).app().said();
            let mut last = (u64::MAX, Duration::ZERO);
            run_bounded(network, window, |network| stalled(&mut last, network, said(network)));
            let stood_at = said(network);
            network.run_for(Duration::from_secs(120));
            assert_eq!(said(network), stood_at);
            assert!(stood_at <= 5 * window as u64 * 490 + 2 * 8192 + 490, "{stood_at}");

            network.target_listens(talk, true);
            run_bounded(network, window, |network| network.talk(talk).target_heard() == total);
            network.release(talk, true);
            network.settle();
        });
    }
}

#[test]
fn many_still_readers_hold_no_more_than_the_pool() {
    // A pool for four circuits at the least; a dozen are tried, and those that get in stand still.
    let credit = usize::from(Spec::RELAY.credit);
    let small = Spec { cells: 8 * credit, ..Spec::EXIT };
    run(5, &[Spec { onions: 16, ..Spec::CLIENT }, small], |network| {
        let talks: Vec<_> = (0..12)
            .map(|_| {
                let wish = Wish { listens: false, ..Wish::new(Behaviour::Source, 100).open_ended() };
                network.open(0, &[1], wish).unwrap()
            })
            .collect();
        network.run_for(Duration::from_secs(60));
        let refused = |network: &Network<'_, '_>, talk: TalkIndex| network.talk(talk).outcome().is_some();
        let open: Vec<_> = talks.into_iter().filter(|&talk| !refused(network, talk)).collect();
        assert!((1..=4).contains(&open.len()), "{}", open.len());
        assert!(network.usage(1).cells_held > 0);
        for &talk in &open {
            network.listen(talk, true);
        }
        for &talk in &open {
            network.run_until(STEPS, |network| network.talk(talk).app().heard() > 100_000);
        }
        for talk in open {
            network.release(talk, false);
        }
        network.settle();
    });
}

/// How long an answer takes, most and on average, for a chat that goes on for a while.
fn chat(network: &mut Network<'_, '_>, talk: TalkIndex) -> (Duration, Duration) {
    let mut times = Vec::new();
    for _ in 0..30 {
        let before = network.now();
        let heard = network.talk(talk).app().heard();
        network.say(talk, 100, false);
        network.run_until(STEPS, |network| network.talk(talk).app().heard() == heard + 100);
        times.push(network.now() - before);
        network.run_for(Duration::from_millis(70));
    }
    (*times.iter().max().unwrap(), times.iter().sum::<Duration>() / times.len() as u32)
}

/// Two clients and two exits around one relay.
const STAR: [Spec; 5] = [Spec::CLIENT, Spec::RELAY, Spec::EXIT, Spec::EXIT, Spec::CLIENT];

#[test]
fn bulk_does_not_starve_a_chat_on_the_same_links() {
    run(6, &STAR, |network| {
        let flight = Duration::from_millis(10);
        network.set_latency(flight, flight);
        network.set_splitting(false);
        // Links that hold little are busy all the time: 16 KiB a round trip.
        network.set_capacity(16_384, 16_384);
        let talk = network.open(0, &[1, 2], Wish::new(Behaviour::Echo, 100).open_ended()).unwrap();
        network.run_for(Duration::from_secs(1));
        let (quiet_most, quiet) = chat(network, talk);

        let bulk = network.open(0, &[1, 2], Wish::new(Behaviour::Source, 100).open_ended()).unwrap();
        network.run_for(Duration::from_secs(1));
        let before = (network.now(), network.talk(bulk).app().heard());
        let (most, average) = chat(network, talk);
        let rate = (network.talk(bulk).app().heard() - before.1) as f64 / (network.now() - before.0).as_secs_f64();

        assert!(rate > 200_000.0, "the bulk transfer moves all the time: {rate} bytes/s");
        // What waits before a chat's cell on each busy link is what the pipe holds and a turn of four cells: a round trip a link.
        assert!(average <= quiet + 4 * flight, "{average:?} beside bulk, {quiet:?} alone");
        assert!(most <= quiet_most + 8 * flight, "{most:?} beside bulk, {quiet_most:?} alone");
        network.release(bulk, false);
        network.say(talk, 1, true);
        network.run_until(STEPS, |network| network.talk(talk).is_over());
        assert_eq!(network.talk(talk).end(), Some((EndReason::Done, 1)));
        network.settle();
    });
}

#[test]
fn eight_bulk_transfers_share_equally() {
    run(7, &STAR, |network| {
        let flight = Duration::from_millis(10);
        network.set_latency(flight, flight);
        network.set_splitting(false);
        network.set_capacity(16_384, 16_384);
        // Two clients, two exits, one relay; the links between are shared by four circuits each.
        let talks: Vec<_> = (0..8)
            .map(|number| {
                let wish = Wish::new(Behaviour::Source, 100).open_ended();
                network.open([0, 4][number % 2], &[1, 2 + number / 4], wish).unwrap()
            })
            .collect();
        network.run_for(Duration::from_secs(2));
        let before: Vec<_> = talks.iter().map(|&talk| network.talk(talk).app().heard()).collect();
        network.run_for(Duration::from_secs(10));
        let heard = talks.iter().zip(before).map(|(&talk, before)| network.talk(talk).app().heard() - before);
        let heard: Vec<_> = heard.collect();
        let (least, most) = (heard.iter().min().unwrap(), heard.iter().max().unwrap());
        assert!(*least > 100_000 && *most as f64 <= *least as f64 * 1.25, "{heard:?}");
        for talk in talks {
            network.release(talk, false);
        }
        network.settle();
    });
}
