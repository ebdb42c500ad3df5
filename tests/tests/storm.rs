//! Random networks under random use, with links cut at random. The simulator's own checks are the test: bounds, books, order of bytes,
//! and that everything is given back in the end.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::time::Duration;

use bulbil_core::node::Patience;
use bulbil_core::wire::{EndReason, OnionKeyKind};
use bulbil_tests::sim::{Behaviour, Jobs, Network, Spec, Wish, run};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng};

const NODES: usize = 6;

struct Dice(ChaCha8Rng);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    fn one_in(&mut self, number: u64) -> bool {
        self.below(number) == 0
    }
}

/// Nodes of every size, most of them too small for what is asked of them.
fn specs(dice: &mut Dice) -> Vec<Spec> {
    let patience = Patience {
        handshake: Duration::from_secs(4),
        opening: Duration::from_secs(6),
        idle: Duration::from_secs(20),
        draining: Duration::from_secs(8),
        link_idle: Duration::from_secs(10),
    };
    (0..NODES)
        .map(|_| {
            let credit = 8 + dice.below(20) as u16;
            Spec {
                kind: if dice.one_in(8) { OnionKeyKind::Rsa2048 } else { OnionKeyKind::XWing },
                relay: !dice.one_in(8),
                exit: !dice.one_in(4),
                jobs: dice.pick(&[
                    Jobs::InPlace,
                    Jobs::Elsewhere(Duration::from_millis(1)),
                    Jobs::Elsewhere(Duration::from_secs(2)),
                ]),
                links: 2 + dice.below(10) as usize,
                circuits: 2 + dice.below(14) as usize,
                cells: usize::from(credit) * (2 + dice.below(30) as usize),
                onions: 1 + dice.below(8) as usize,
                origins: 1 + dice.below(8) as usize,
                replay: 8 + dice.below(100) as usize,
                credit,
                window_max: dice.below(100) as u16,
                record_cells: dice.pick(&[1, 2, 12, 127]),
                circuits_per_link: 1 + dice.below(12) as u32,
                onions_per_link: 1 + dice.below(4) as u16,
                patience,
                ..Spec::ALL
            }
        })
        .collect()
}

fn behaviour(dice: &mut Dice) -> Behaviour {
    match dice.below(12) {
        0 => Behaviour::Sink,
        1 => Behaviour::Source,
        2 => Behaviour::Deaf,
        3 => Behaviour::Serve(dice.below(30_000)),
        4 => Behaviour::Answer(dice.below(30_000)),
        5 => Behaviour::Ticker { every: Duration::from_millis(400), size: 700, count: 5 },
        6 => Behaviour::Reset(dice.below(5_000)),
        7 => Behaviour::Unreached(dice.pick(&[EndReason::Refused, EndReason::NotResolved, EndReason::Forbidden])),
        8 => Behaviour::Silent,
        _ => Behaviour::Echo,
    }
}

fn open(network: &mut Network<'_, '_>, dice: &mut Dice) {
    let client = dice.below(NODES as u64) as usize;
    let mut others: Vec<usize> = (0..NODES).filter(|&node| node != client).collect();
    let path: Vec<usize> =
        (0..=dice.below(4)).map(|_| others.swap_remove(dice.below(others.len() as u64) as usize)).collect();
    let wish = Wish {
        service: false,
        first: dice.below(400) as usize,
        finish: !dice.one_in(3),
        once: dice.one_in(4),
        sign: dice.one_in(20),
        listens: !dice.one_in(6),
        ..Wish::new(behaviour(dice), dice.below(20_000))
    };
    let _full_is_fine = network.open(client, &path, wish);
}

fn storm(seed: u64, steps: u32) -> (u64, u64) {
    let mut dice = Dice::new(seed);
    let specs = specs(&mut dice);
    run(seed, &specs, |network| {
        network.set_capacity(1_000, 1_000 + dice.below(60_000));
        let mut released = Vec::new();
        for _ in 0..steps {
            match dice.below(16) {
                0..4 => open(network, &mut dice),
                4 => {
                    let (one, other) = (dice.below(NODES as u64) as usize, dice.below(NODES as u64) as usize);
                    network.cut(one, other);
                }
                5 if !network.talks().is_empty() => {
                    let talk = dice.below(network.talks().len() as u64) as usize;
                    network.release(talk, dice.one_in(2));
                    released.push(talk);
                }
                6 | 7 if !network.talks().is_empty() => {
                    let talk = dice.below(network.talks().len() as u64) as usize;
                    network.listen(talk, !dice.one_in(3));
                }
                8 if dice.one_in(4) => network.rotate(dice.below(NODES as u64) as usize),
                9 => network.run_for(Duration::from_millis(dice.below(5_000))),
                _ => network.run_for(Duration::from_millis(dice.below(200))),
            }
        }
        for talk in 0..network.talks().len() {
            network.listen(talk, true);
            if network.talk(talk).wish().target == Behaviour::Source {
                network.release(talk, false);
                released.push(talk);
            }
        }
        network.settle();
        for talk in (0..network.talks().len()).filter(|talk| !released.contains(talk)) {
            let talk = network.talk(talk);
            assert!(talk.outcome().is_some(), "every conversation ends:\n{}", network.describe());
            // What ended well is whole.
            if talk.end().is_some_and(|(reason, _)| reason == EndReason::Done) && talk.is_over() {
                assert!(talk.is_whole(), "{}", network.describe());
            }
        }
        (network.trace_hash(), network.steps())
    })
}

#[test]
fn whatever_happens_bounds_hold_and_everything_is_given_back() {
    // `STORM_SEED=17 STORM_COUNT=1` repeats one, more seeds look further.
    let variable = |name| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let first = variable("STORM_SEED").unwrap_or(0);
    for seed in first..first + variable("STORM_COUNT").unwrap_or(200) {
        eprintln!("seed {seed}");
        storm(seed, 60);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let first = storm(4711, 40);
    assert_eq!(first, storm(4711, 40));
    assert_ne!(first.0, storm(4712, 40).0);
}

/// Without cuts and with room for everything, every conversation ends as it should: no stall hides behind a deadline.
fn calm(seed: u64) {
    let mut dice = Dice::new(seed);
    let specs: Vec<_> = specs(&mut dice)
        .into_iter()
        .map(|spec| Spec {
            relay: true,
            exit: true,
            links: 32,
            circuits: 64,
            cells: 64 * 200,
            onions: 64,
            origins: 64,
            replay: 256,
            circuits_per_link: 64,
            onions_per_link: 64,
            patience: Patience::DEFAULT,
            ..spec
        })
        .collect();
    run(seed, &specs, |network| {
        network.set_capacity(600, 600 + dice.below(20_000));
        for _ in 0..12 {
            open(network, &mut dice);
            network.run_for(Duration::from_millis(dice.below(300)));
        }
        let endless = |wish: &Wish| match wish.target {
            Behaviour::Source | Behaviour::Deaf | Behaviour::Silent => true,
            Behaviour::Reset(after) => after > wish.request,
            _ => false,
        };
        for talk in 0..network.talks().len() {
            let wish = *network.talk(talk).wish();
            if endless(&wish) {
                network.release(talk, dice.one_in(2));
            } else {
                network.listen(talk, true);
                if !wish.finish {
                    network.say(talk, 10, true);
                }
            }
        }
        for talk in 0..network.talks().len() {
            let wish = *network.talk(talk).wish();
            if endless(&wish) {
                continue;
            }
            network.run_until(400_000, |network| network.talk(talk).is_over());
            let end = network.talk(talk).end().map(|(reason, _)| reason);
            match wish.target {
                Behaviour::Unreached(reason) => assert_eq!(end, Some(reason)),
                Behaviour::Reset(_) => assert_eq!(end, Some(EndReason::Reset)),
                _ => {
                    assert_eq!(end, Some(EndReason::Done), "talk {talk}:\n{}", network.describe());
                    // What the exit has written may still be on its way to the target.
                    network.run_for(Duration::from_millis(200));
                    assert!(network.talk(talk).is_whole(), "talk {talk}:\n{}", network.describe());
                }
            }
        }
        assert!(network.now() < Duration::from_secs(300), "nothing waited for a deadline: {:?}", network.now());
        network.settle();
        for node in 0..NODES {
            let counters = network.counters(node);
            assert_eq!((counters.violations, counters.garbled, counters.rejected, counters.busy), (0, 0, 0, 0));
        }
    });
}

#[test]
fn in_calm_weather_every_conversation_ends_well() {
    let variable = |name| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let first = variable("STORM_SEED").unwrap_or(0);
    for seed in first..first + variable("STORM_COUNT").unwrap_or(60) {
        eprintln!("seed {seed}");
        calm(seed);
    }
}
