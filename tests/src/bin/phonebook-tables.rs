//! Prints how nodes find each other, live through churn, withstand attackers, and what their views give away. See `bulbil_tests::metropolis`.
//!
//! `cargo run --release -p bulbil-tests --bin phonebook-tables [joins] [churn] [bits] [habits] [few] [eclipse] [quick] [seed=N]`: everything if no table is
//! named. `quick` takes small networks.

use std::time::Instant;

use bulbil_tests::metropolis::tables::churn::Habit;
use bulbil_tests::metropolis::tables::eclipse::Attack;
use bulbil_tests::metropolis::tables::{bits, churn, eclipse, joins, memory_peak};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let seed = arguments.iter().find_map(|argument| argument.strip_prefix("seed=")?.parse().ok()).unwrap_or(1);
    let tables = ["joins", "churn", "bits", "habits", "few", "eclipse"];
    let all = !tables.iter().any(|table| has(table));
    let wanted = |name: &str| all || has(name);
    let quick = has("quick");
    let begun = Instant::now();
    let mut print = |line: &str| println!("{line}");
    let note = |what: &str, since: Instant| {
        let memory = memory_peak().map_or_else(String::new, |mib| format!(", at most {mib} MiB so far"));
        eprintln!("# {what}: {:.0} s of real time{memory}", since.elapsed().as_secs_f64());
    };

    if wanted("joins") {
        println!("\n## Joining\n");
        joins::head(&mut print);
        let sizes: &[usize] = if quick { &[60, 200] } else { &[100, 1_000, 2_000] };
        for &nodes in sizes {
            let since = Instant::now();
            joins::newcomers(seed, nodes, &mut print);
            note(&format!("newcomers of {nodes}"), since);
        }
        let sizes: &[usize] = if quick { &[60] } else { &[100, 500] };
        for &nodes in sizes {
            let since = Instant::now();
            joins::all_at_once(seed, nodes, &mut print);
            note(&format!("{nodes} at once"), since);
        }
    }
    if wanted("churn") || wanted("bits") {
        println!("\n## Churn\n");
        churn::head(&mut print);
        let nodes = if quick { 100 } else { 1_000 };
        let mut views = Vec::new();
        for percent in [5, 20] {
            let since = Instant::now();
            let last = churn::row(seed, nodes, percent, Habit::SPECIFIED, &mut print);
            views.push((format!("{nodes} nodes, {percent} % an hour"), last));
            note(&format!("{percent} % an hour"), since);
        }
        println!("\n## Bits given away\n");
        bits::head(&mut print);
        let since = Instant::now();
        for (what, views) in &views {
            bits::table(seed, what, views, &mut print);
        }
        note("bits", since);
    }
    if wanted("habits") {
        println!("\n## Churn, if nodes behaved otherwise\n");
        churn::head(&mut print);
        let nodes = if quick { 60 } else { 300 };
        for percent in [5, 20] {
            for habit in std::iter::once(Habit::SPECIFIED).chain(Habit::OTHERS) {
                let since = Instant::now();
                let _views = churn::row(seed, nodes, percent, habit, &mut print);
                note(&format!("{percent} % an hour"), since);
            }
        }
    }
    let attack = |honest, nodes, addresses, groups, in_turn| Attack { honest, nodes, addresses, groups, in_turn };
    let few: &[Attack] = if quick {
        &[attack(60, 100, 1, 1, false)]
    } else {
        &[attack(100, 100, 1, 1, true), attack(100, 50, 50, 4, true), attack(50, 50, 50, 50, true)]
    };
    let many: &[Attack] = if quick {
        &[attack(150, 40, 40, 4, true)]
    } else {
        &[
            attack(2_000, 100, 100, 4, true),
            attack(2_000, 1_000, 1_000, 4, false),
            attack(2_000, 1_000, 1_000, 100, true),
            attack(2_000, 100, 1, 1, false),
        ]
    };
    for (table, attacks, title) in
        [("few", few, "The price of an eclipse where few are honest"), ("eclipse", many, "The price of an eclipse")]
    {
        if !wanted(table) {
            continue;
        }
        println!("\n## {title}\n");
        eclipse::head(&mut print);
        for &attack in attacks {
            let since = Instant::now();
            eclipse::rows(seed, attack, &mut print);
            note(&format!("{attack:?}"), since);
        }
    }
    note("all", begun);
}
