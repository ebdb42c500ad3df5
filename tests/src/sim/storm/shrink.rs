//! A failing storm is made as small as it can be, and said in words that repeat it.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::plan::Plan;
use super::{Passed, run};
use crate::sim::Faults;

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps what panics say instead of printing it, for [`attempt`]. For the whole process.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("no message");
        let place = panic.location().map_or_else(String::new, ToString::to_string);
        LAST.set(format!("{place}: {text}"));
    }));
}

/// Runs a storm.
///
/// # Errors
/// What its panic said, if [`catch_panics`] was called.
pub fn attempt(plan: &Plan, verbose: bool) -> Result<Passed, String> {
    catch_unwind(AssertUnwindSafe(|| run(plan, verbose))).map_err(|_| LAST.take())
}

/// Names of the weather's parts, for [`Part::without`].
pub const WEATHER: [&str; 7] = ["splitting", "trickle", "connects-lost", "link-life", "jobs", "connects", "targets"];

/// What is left of a storm: some of its steps, and some of its weather.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The storm.
    pub seed: u64,
    /// Which steps of its plan, or all of them.
    pub only: Option<Vec<usize>>,
    /// What of its weather is left out.
    pub without: Vec<&'static str>,
}

impl Part {
    /// All of it.
    #[must_use]
    pub const fn whole(seed: u64) -> Self {
        Self { seed, only: None, without: Vec::new() }
    }

    /// The plan of this part.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let mut plan = Plan::draw(self.seed);
        if let Some(only) = &self.only {
            plan.steps = only.iter().filter_map(|&step| plan.steps.get(step).cloned()).collect();
        }
        for &without in &self.without {
            match without {
                "splitting" => plan.faults.splitting = Faults::NONE.splitting,
                "trickle" => plan.faults.trickle = Faults::NONE.trickle,
                "connects-lost" => plan.faults.connects_lost = Faults::NONE.connects_lost,
                "link-life" => plan.faults.link_life = Faults::NONE.link_life,
                "jobs" => plan.faults.jobs = Faults::NONE.jobs,
                "connects" => plan.faults.connects = Faults::NONE.connects,
                "targets" => plan.faults.targets = Faults::NONE.targets,
                _ => {}
            }
        }
        plan
    }

    /// The arguments that repeat it.
    #[must_use]
    pub fn arguments(&self) -> String {
        let mut text = format!("--seed {}", self.seed);
        if let Some(only) = &self.only {
            let only: Vec<String> = only.iter().map(ToString::to_string).collect();
            let _written = write!(text, " --only {}", only.join(","));
        }
        if !self.without.is_empty() {
            let _written = write!(text, " --without {}", self.without.join(","));
        }
        text
    }

    /// Whether it fails, if [`catch_panics`] was called.
    #[must_use]
    pub fn fails(&self) -> bool {
        attempt(&self.plan(), false).is_err()
    }
}

/// The smallest part of a storm that was found to fail as well: first halves of its steps are left out, then quarters, down to one by
/// one, then the parts of its weather; and again as long as that makes it smaller.
#[must_use]
pub fn shrink(part: Part, mut fails: impl FnMut(&Part) -> bool) -> Part {
    let mut best = part;
    let mut steps = best.only.clone().unwrap_or_else(|| (0..Plan::draw(best.seed).steps.len()).collect());
    loop {
        let before = steps.len();
        let mut chunk = steps.len().div_ceil(2).max(1);
        loop {
            let mut from = 0;
            while from < steps.len() {
                let mut fewer = steps.clone();
                fewer.drain(from..(from + chunk).min(steps.len()));
                let candidate = Part { only: Some(fewer.clone()), ..best.clone() };
                if fails(&candidate) {
                    (steps, best) = (fewer, candidate);
                } else {
                    from += chunk;
                }
            }
            if chunk == 1 {
                break;
            }
            chunk = chunk.div_ceil(2);
        }
        for name in WEATHER {
            if !best.without.contains(&name) {
                let mut candidate = best.clone();
                candidate.without.push(name);
                if fails(&candidate) {
                    best = candidate;
                }
            }
        }
        if steps.len() == before {
            return best;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failure_needs_is_all_that_is_left() {
        let needed = |part: &Part| {
            let only = part.only.clone().unwrap_or_default();
            [3, 17].iter().all(|step| only.contains(step)) && !part.without.contains(&"jobs")
        };
        let small = shrink(Part::whole(5), needed);
        assert_eq!(small.only, Some(vec![3, 17]));
        assert_eq!(small.without.len(), WEATHER.len() - 1);
    }

    #[test]
    fn a_part_of_a_storm_says_how_it_is_repeated() {
        let part = Part { seed: 7, only: Some(vec![1, 4]), without: vec!["jobs", "trickle"] };
        assert_eq!(part.arguments(), "--seed 7 --only 1,4 --without jobs,trickle");
        assert_eq!(Part::whole(7).arguments(), "--seed 7");
        let (all, some) = (Part::whole(7).plan(), part.plan());
        assert_eq!(some.steps.len(), 2);
        assert_eq!(some.steps[1].at, all.steps[4].at);
        assert_eq!((some.faults.jobs, some.faults.trickle), (None, 0));
    }
}
