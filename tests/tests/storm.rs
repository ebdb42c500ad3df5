//! Random networks under random use, in any weather. The simulator's own checks are the test: books, credit and cells between neighbours,
//! order of bytes, deadlines, and that everything is given back in the end. Many more of them: `cargo run -p bulbil-tests --bin storm`.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::time::Duration;

use bulbil_core::node::Patience;
use bulbil_core::wire::EndReason;
use bulbil_tests::sim::storm::plan::{Dice, NODES, conversation, specs};
use bulbil_tests::sim::storm::watch::watched;
use bulbil_tests::sim::storm::{Plan, Sum, run as storm};
use bulbil_tests::sim::{Behaviour, Network, Spec, Wish, run};

fn open(network: &mut Network<'_, '_>, dice: &mut Dice) {
    let (client, path, wish) = conversation(dice);
    let _full_is_fine = network.open(client, &path, wish);
}

/// Says how a storm that failed is repeated.
struct Repeat(u64);

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "repeat: cargo run -p bulbil-tests --bin storm -- --seed {0}; make it small: --shrink {0}",
                self.0
            );
        }
    }
}

#[test]
fn whatever_happens_bounds_hold_and_everything_is_given_back() {
    // `STORM_SEED=17 STORM_COUNT=1` repeats one, more seeds look further.
    let variable = |name| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let first = variable("STORM_SEED").unwrap_or(0);
    let mut sum = Sum::default();
    watched(|watch| {
        for seed in first..first + variable("STORM_COUNT").unwrap_or(200) {
            let (_repeat, _under_way) = (Repeat(seed), watch.begin(seed));
            sum.add(&storm(&Plan::draw(seed), false));
        }
    });
    assert_eq!(sum.check(), Ok(()));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let first = storm(&Plan::draw(4711), false);
    assert_eq!(first, storm(&Plan::draw(4711), false));
    assert_ne!(first.trace, storm(&Plan::draw(4712), false).trace);
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

#[test]
fn who_is_put_to_sleep_again_does_not_wake_up_earlier() {
    run(1, &[Spec::CLIENT, Spec::EXIT], |network| {
        network.sleep(1, Duration::from_secs(60));
        network.sleep(1, Duration::from_secs(1));
        network.run_for(Duration::from_secs(59));
        assert!(!network.is_up(1), "what came in the meantime is put off until the first sleep ends");
        network.run_for(Duration::from_secs(2));
        assert!(network.is_up(1));
    });
}
