//! Nodes that find each other: small networks of the simulator behind the tables (`cargo run --release -p bulbil-tests --bin phonebook-tables`).
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::time::Duration;

use bulbil_tests::metropolis::{City, Plan, Start, run};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Whether everybody knows and has met everybody.
fn all_met(city: &City<'_, '_, '_>) -> bool {
    let there = city.there();
    city.living().all(|citizen| {
        let view = city.view_of(citizen.node, &there);
        view.met == view.there
    })
}

#[test]
fn sixty_nodes_that_know_four_find_each_other() {
    let plan = Plan { start: Start::FourKnown, audit_stride: 1, splitting: true, ..Plan::standing(1, 60) };
    run(&plan, |city| {
        let found = city.run_until(10 * SECOND, HOUR, |city| all_met(city));
        for citizen in city.living().take(5) {
            println!("{:?} {:?} {:?} {:?}", city.view(citizen.node), citizen.counts, citizen.tally, city.now());
        }
        assert!(found);
    });
}
