//! The price of an eclipse: what attackers with so many addresses in so many network groups hold of a newcomer.

use std::time::Duration;

use super::{Print, percent};
use crate::metropolis::{Defences, Gang, Hold, Plan, Start, Trade, run};

/// Newcomers that the attackers want.
const VICTIMS: usize = 12;
/// How long they have lived when they are looked at.
const AGE: Duration = Duration::from_secs(3600);
/// Paths drawn of each.
const PATHS: usize = 500;
/// Nodes that attackers invent.
const INVENTIONS: usize = 1_200;

/// What is switched off.
const VARIANTS: [(&str, Defences); 7] = [
    ("all", Defences::ALL),
    ("no groups in buckets", Defences { groups_in_buckets: false, ..Defences::ALL }),
    ("no test before evict", Defences { test_before_evict: false, ..Defences::ALL }),
    ("unmet passed on", Defences { only_met_passed_on: false, ..Defences::ALL }),
    ("no guards", Defences { guards: false, ..Defences::ALL }),
    ("no groups on paths", Defences { groups_on_paths: false, ..Defences::ALL }),
    (
        "none",
        Defences {
            groups_in_buckets: false,
            test_before_evict: false,
            only_met_passed_on: false,
            guards: false,
            groups_on_paths: false,
        },
    ),
];

/// The table's head.
pub fn head(print: Print<'_>) {
    print("| addresses | groups | defences | tried | theirs | new | theirs | guards | first hop | last hop | both |");
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
}

/// The rows of one attacker, in a network of so many honest nodes.
pub fn rows(seed: u64, honest: usize, addresses: usize, groups: usize, print: Print<'_>) {
    for (name, defences) in VARIANTS {
        let hold = attack(seed, honest, addresses, groups, defences);
        print(&format!(
            "| {addresses} | {groups} | {name} | {:.0} | {} | {:.0} | {} | {} | {} | {} | {} |",
            hold.tried.0,
            percent(hold.tried.1),
            hold.new.0,
            percent(hold.new.1),
            percent(hold.guards),
            percent(hold.first),
            percent(hold.last),
            percent(hold.both),
        ));
    }
}

/// What they hold of their victims in the mean.
fn attack(seed: u64, honest: usize, addresses: usize, groups: usize, defences: Defences) -> Hold {
    let plan = Plan {
        heirs: VICTIMS,
        gang: Gang { addresses, groups, trade: Trade::Invent(INVENTIONS), announces: Duration::from_secs(20) },
        start: Start::Extras { met: 250, told: 100 },
        defences,
        ..Plan::standing(seed, honest)
    };
    run(&plan, |city| {
        city.call_gang();
        city.set_victims(city.heirs().collect());
        for victim in city.heirs() {
            city.bear(victim, &[victim * 11 % honest, victim * 17 % honest]);
        }
        city.run_for(AGE);
        let holds: Vec<Hold> = city.heirs().map(|victim| city.hold(victim, PATHS)).collect();
        Hold::mean(&holds)
    })
}
