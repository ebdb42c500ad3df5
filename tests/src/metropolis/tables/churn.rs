//! Whether requests get through while nodes come and go.

use std::time::Duration;

use bulbil_core::phonebook::exchange::Settings;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng};

use super::bits::{self, Views};
use super::{Print, percent};
use crate::metropolis::{City, Counts, Plan, run};
use crate::sim::NodeIndex;

/// Before anything is counted.
const WARMING_UP: u64 = 30;
/// Minutes that are counted.
const MINUTES: u64 = 45;

/// A network in which a part of the nodes dies each hour, and as many are born.
pub struct Churn {
    per_hour: u64,
    rng: ChaCha20Rng,
    next: NodeIndex,
    /// Thousandths of a death that were not yet due.
    rest: u64,
}

impl Churn {
    /// `percent` of the nodes in an hour.
    #[must_use]
    pub fn new(seed: u64, city: &City<'_, '_, '_>, percent: u64) -> Self {
        let nodes = city.living().count() as u64;
        Self {
            per_hour: nodes * percent,
            rng: ChaCha20Rng::seed_from_u64(seed ^ 0x63_6875_726e),
            next: city.heirs().start,
            rest: 0,
        }
    }

    /// A minute passes.
    pub fn pass_minute(&mut self, city: &mut City<'_, '_, '_>) {
        // A hundredth of a node an hour makes one in 6,000 a minute.
        self.rest += self.per_hour;
        let deaths = self.rest / 6_000;
        self.rest %= 6_000;
        let mut moments: Vec<u64> = (0..deaths).map(|_| self.rng.next_u64() % 60_000).collect();
        moments.sort_unstable();
        let mut passed = 0;
        for moment in moments {
            city.run_for(Duration::from_millis(moment - passed));
            passed = moment;
            let living: Vec<NodeIndex> = city.living().map(|citizen| citizen.node).collect();
            let victim = living[self.rng.next_u64() as usize % living.len()];
            // Half of them without a word.
            if self.rng.next_u32().is_multiple_of(2) {
                city.kill(victim);
            } else {
                city.silence(victim);
            }
            let known = [0; 3].map(|_| living[self.rng.next_u64() as usize % living.len()]);
            if city.heirs().contains(&self.next) {
                city.bear(self.next, &known);
                self.next += 1;
            }
        }
        city.run_for(Duration::from_millis(60_000 - passed));
    }
}

fn sum(city: &City<'_, '_, '_>) -> Counts {
    // Of the dead as well: what they had begun was begun.
    city.citizens().iter().fold(Counts::default(), |sum, citizen| Counts {
        requests: sum.requests + citizen.counts.requests,
        at_once: sum.at_once + citizen.counts.at_once,
        in_time: sum.in_time + citizen.counts.in_time,
        lost: sum.lost + citizen.counts.lost,
        pathless: sum.pathless + citizen.counts.pathless,
        ..sum
    })
}

/// The table's head.
pub fn head(print: Print<'_>) {
    print(
        "| nodes | churn an hour | nodes behave | requests | first path | in 30 s | lost | of entries met: gone | newcomers: met after a quarter of an hour | bytes a node and minute |",
    );
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
}

/// How nodes behave in a row.
#[derive(Debug, Clone, Copy)]
pub struct Habit {
    name: &'static str,
    test_idle: Duration,
    avoid_failing: bool,
}

impl Habit {
    /// As they are.
    pub const SPECIFIED: Self = Self { name: "as specified", test_idle: Duration::from_secs(30), avoid_failing: false };
    /// What might be better: nodes whose last try failed are passed over when paths are chosen, and not passed on; everybody is met again
    /// within an hour as long as there are not more than 900; both.
    pub const OTHERS: [Self; 3] = [
        Self { name: "failing nodes neither used nor passed on", avoid_failing: true, ..Self::SPECIFIED },
        Self { name: "a test every 4 s", test_idle: Duration::from_secs(4), ..Self::SPECIFIED },
        Self { name: "both", test_idle: Duration::from_secs(4), avoid_failing: true },
    ];
}

/// One row, and the views that nodes have at the end.
pub fn row(seed: u64, nodes: usize, percent_an_hour: u64, habit: Habit, print: Print<'_>) -> Views {
    let heirs = nodes * percent_an_hour as usize * (WARMING_UP + MINUTES) as usize / 6_000 + 1;
    let plan = Plan {
        heirs,
        rotation: Some(Duration::from_secs(3600)),
        requests: Some(Duration::from_secs(300)),
        settings: Settings { test_idle: habit.test_idle, ..Settings::DEFAULT },
        avoid_failing: habit.avoid_failing,
        ..Plan::standing(seed, nodes)
    };
    run(&plan, |city| {
        let mut churn = Churn::new(seed, city, percent_an_hour);
        for _ in 0..WARMING_UP {
            churn.pass_minute(city);
        }
        let before = sum(city);
        let traffic = |city: &City<'_, '_, '_>| -> u64 {
            (0..city.citizens().len()).map(|node| city.network().traffic(node)).map(|(sent, got)| sent + got).sum()
        };
        let bytes_before = traffic(city);
        for _ in 0..MINUTES {
            churn.pass_minute(city);
            city.tidy();
        }
        let bytes = (traffic(city) - bytes_before) / (nodes as u64 * MINUTES);
        let after = sum(city);
        let (in_time, lost) = (after.in_time - before.in_time, after.lost - before.lost);
        let ended = (in_time + lost).max(1) as f64;
        let there = city.there();
        let views: Vec<_> = city.living().map(|citizen| (citizen, city.view_of(citizen.node, &there))).collect();
        let gone: usize = views.iter().map(|(citizen, _)| city.gone_of_met(citizen.node, &there)).sum();
        let met: usize = views.iter().map(|(_, view)| view.met).sum();
        let young = views.iter().filter(|(citizen, _)| {
            let age = city.now() - citizen.born;
            citizen.node >= plan.founders && (Duration::from_secs(900)..Duration::from_secs(1800)).contains(&age)
        });
        let young: Vec<f64> = young.map(|(_, view)| view.met as f64 / view.there as f64).collect();
        let young_met = young.iter().sum::<f64>() / young.len().max(1) as f64;
        print(&format!(
            "| {nodes} | {percent_an_hour} % | {} | {} | {} | {} | {} | {} | {} | {} kB |",
            habit.name,
            in_time + lost,
            percent((after.at_once - before.at_once) as f64 / ended),
            percent(in_time as f64 / ended),
            lost,
            percent(gone as f64 / (gone + met).max(1) as f64),
            percent(young_met),
            bytes.div_ceil(1_000),
        ));
        bits::views(city)
    })
}
