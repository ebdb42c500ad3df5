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
/// Between two announcements of all attackers together.
const PRESSURE: Duration = Duration::from_millis(200);
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

/// Somebody who wants newcomers of a network for himself.
#[derive(Debug, Clone, Copy)]
pub struct Attack {
    /// Honest nodes that there are.
    pub honest: usize,
    /// Nodes of his.
    pub nodes: usize,
    /// IP addresses that these are at.
    pub addresses: usize,
    /// Network groups that these are in.
    pub groups: usize,
    /// Each defence is switched off in turn; otherwise only all of them.
    pub in_turn: bool,
}

/// The table's head.
pub fn head(print: Print<'_>) {
    print(
        "| honest | theirs | addresses | groups | victims | defences | tried | theirs | new | theirs | guards | first hop | last hop | both | ever both in 500 paths |",
    );
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
}

/// The rows of one attacker.
pub fn rows(seed: u64, attack: Attack, print: Print<'_>) {
    for (name, defences) in VARIANTS {
        if attack.in_turn || name == "all" || name == "none" {
            row(seed, attack, name, defences, false, print);
        }
    }
    row(seed, attack, "all", Defences::ALL, true, print);
}

fn row(seed: u64, attack: Attack, name: &str, defences: Defences, clients: bool, print: Print<'_>) {
    let hold = hold(seed, attack, defences, clients);
    let Attack { honest, nodes, addresses, groups, .. } = attack;
    print(&format!(
        "| {honest} | {nodes} | {addresses} | {groups} | {} | {name} | {:.0} | {} | {:.0} | {} | {} | {} | {} | {} | {} |",
        if clients { "clients" } else { "relays" },
        hold.tried.0,
        percent(hold.tried.1),
        hold.new.0,
        percent(hold.new.1),
        percent(hold.guards),
        percent(hold.first),
        percent(hold.last),
        percent(hold.both),
        percent(hold.ever),
    ));
}

/// What they hold of their victims in the mean.
fn hold(seed: u64, attack: Attack, defences: Defences, clients: bool) -> Hold {
    let Attack { honest, nodes, addresses, groups, .. } = attack;
    // As much pressure from few as from many.
    let announces = PRESSURE * nodes as u32;
    let plan = Plan {
        heirs: VICTIMS,
        clients: if clients { VICTIMS } else { 0 },
        gang: Gang { nodes, addresses, groups, trade: Trade::Invent(INVENTIONS), announces },
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
