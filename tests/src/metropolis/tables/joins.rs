//! How long it takes to know everybody, and what it costs.

use std::time::Duration;

use super::{Print, bytes, median, time};
use crate::metropolis::{City, Plan, Start, run};
use crate::sim::NodeIndex;

/// Newcomers of a standing network.
const NEWCOMERS: usize = 10;
/// How often somebody looks.
const LOOK: Duration = Duration::from_secs(10);

/// How far somebody has come, and what it cost until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Reached {
    after: Duration,
    rounds: u64,
    bytes: u64,
}

/// When somebody first knew (or had met) nine of ten, 99 of a hundred and all of those who are there.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    known: [Option<Reached>; 3],
    met: [Option<Reached>; 3],
}

/// Parts of a thousand.
const MARKS: [usize; 3] = [900, 990, 1_000];

impl Progress {
    fn note(
        &mut self,
        city: &City<'_, '_, '_>,
        node: NodeIndex,
        there: &std::collections::HashSet<bulbil_core::wire::NodeId>,
    ) {
        if self.is_done() {
            return;
        }
        let citizen = city.citizen(node);
        let view = city.view_of(node, there);
        let (sent, received) = city.network().traffic(node);
        let reached =
            Reached { after: city.now() - citizen.born, rounds: citizen.counts.asked, bytes: sent + received };
        for (marks, part) in [(&mut self.known, view.known), (&mut self.met, view.met)] {
            for (mark, place) in MARKS.iter().zip(marks) {
                if place.is_none() && part * 1_000 >= view.there * mark {
                    *place = Some(reached);
                }
            }
        }
    }

    const fn is_done(&self) -> bool {
        self.met[1].is_some() && self.known[2].is_some()
    }
}

/// The medians over `all` of what `part` says, if all have come that far. Each by itself: whoever was the fifth to arrive need not have been
/// the fifth in asking.
fn middle(all: &[Progress], part: impl Fn(&Progress) -> Option<Reached>) -> Option<Reached> {
    let reached: Vec<_> = all.iter().map(part).collect::<Option<_>>()?;
    let after: Vec<_> = reached.iter().map(|reached| reached.after).collect();
    let rounds: Vec<_> = reached.iter().map(|reached| reached.rounds).collect();
    let bytes: Vec<_> = reached.iter().map(|reached| reached.bytes).collect();
    Some(Reached { after: median(&after)?, rounds: median(&rounds)?, bytes: median(&bytes)? })
}

fn row(what: &str, nodes: usize, all: &[Progress], print: Print<'_>) {
    let known = middle(all, |progress| progress.known[1]);
    let whole = middle(all, |progress| progress.known[2]);
    let met = middle(all, |progress| progress.met[1]);
    let last = all.iter().map(|progress| progress.met[1]).max().flatten();
    print(&format!(
        "| {nodes} | {what} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        known.map_or("-".to_owned(), |reached| reached.rounds.to_string()),
        time(known.map(|reached| reached.after)),
        bytes(known.map(|reached| reached.bytes)),
        whole.map_or("-".to_owned(), |reached| reached.rounds.to_string()),
        time(whole.map(|reached| reached.after)),
        bytes(whole.map(|reached| reached.bytes)),
        met.map_or("-".to_owned(), |reached| reached.rounds.to_string()),
        time(met.map(|reached| reached.after)),
        bytes(met.map(|reached| reached.bytes)),
        time(last.map(|reached| reached.after)),
    ));
}

/// Ten newcomers join a network of so many nodes, each knowing one of them.
pub fn newcomers(seed: u64, nodes: usize, print: Print<'_>) {
    let plan = Plan { heirs: NEWCOMERS, ..Plan::standing(seed, nodes - NEWCOMERS) };
    run(&plan, |city| {
        city.run_for(Duration::from_secs(60));
        for heir in city.heirs() {
            city.bear(heir, &[heir * 7 % plan.founders]);
        }
        let mut all = [Progress::default(); NEWCOMERS];
        let there = city.there();
        city.run_until(LOOK, Duration::from_secs(4 * 3600), |city| {
            city.heirs().zip(&mut all).for_each(|(heir, progress)| progress.note(city, heir, &there));
            all.iter().all(Progress::is_done)
        });
        row("ten newcomers, each knows one", nodes, &all, print);
        let heard = city.living().map(|citizen| {
            let now = bulbil_core::wire::UnixTime(crate::fixture::EPOCH.0 + city.now().as_secs());
            let of = city.heirs().filter(|&heir| heir != citizen.node);
            of.filter(|&heir| citizen.knows(&city.citizen(heir).id, now)).count()
        });
        let heard: usize = heard.sum();
        let of = NEWCOMERS * (nodes - 1);
        print(&format!(
            "| | of {of} entries of newcomers in the others' phonebooks there are {heard} by then | | | | | | | | | |"
        ));
    });
}

/// All nodes begin at once, knowing the first four.
pub fn all_at_once(seed: u64, nodes: usize, print: Print<'_>) {
    let plan = Plan { start: Start::FourKnown, ..Plan::standing(seed, nodes) };
    run(&plan, |city| {
        let mut all = vec![Progress::default(); nodes];
        let there = city.there();
        city.run_until(3 * LOOK, Duration::from_secs(4 * 3600), |city| {
            all.iter_mut().enumerate().for_each(|(node, progress)| progress.note(city, node, &there));
            all.iter().all(Progress::is_done)
        });
        row("all at once, knowing four", nodes, &all, print);
    });
}

/// The table's head.
pub fn head(print: Print<'_>) {
    print(
        "| nodes | who | rounds until 99 % known | time | bytes | rounds until all known | time | bytes | rounds until 99 % met | time | bytes | of the slowest |",
    );
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
}
