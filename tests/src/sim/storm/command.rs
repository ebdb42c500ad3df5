//! The command line of storms: many of them on all cores, or one of them in every detail.

use std::num::{NonZeroU64, NonZeroUsize};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::shrink::{Part, WEATHER, attempt, catch_panics, shrink};
use super::watch::watched;
use super::{Plan, Sum};

/// What repeats a storm, with [`Part::arguments`] behind it.
pub(super) const COMMAND: &str = "cargo run -p bulbil-tests --bin storm --";

/// How many storms, if nobody says.
const SEEDS: NonZeroU64 = NonZeroU64::new(1_000).expect("not zero");

/// What the arguments ask for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Many { first: u64, seeds: NonZeroU64, threads: usize },
    Repeat(Part),
    Shrink(u64),
}

fn positive(name: &str, number: u64) -> Result<NonZeroU64, String> {
    NonZeroU64::new(number).ok_or_else(|| format!("{name} {number}: at least 1"))
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Asked, String> {
    let arguments: Vec<String> = arguments.collect();
    let (mut first, mut seeds, mut threads) = (0, SEEDS, None);
    let (mut seed, mut only, mut without, mut shrink) = (None, None, Vec::new(), None);
    let (pairs, rest) = arguments.as_chunks::<2>();
    if let [odd] = rest {
        return Err(format!("{odd}: every option has a value"));
    }
    for [name, value] in pairs {
        let number = || value.parse::<u64>().map_err(|_| format!("{name} {value}: not a number"));
        match name.as_str() {
            "--first" => first = number()?,
            // None at all would pass.
            "--seeds" => seeds = number().and_then(|number| positive(name, number))?,
            "--threads" => threads = Some(number().and_then(|number| positive(name, number))?),
            "--seed" => seed = Some(number()?),
            "--shrink" => shrink = Some(number()?),
            "--only" => {
                let steps: Result<_, _> = value.split(',').filter(|step| !step.is_empty()).map(str::parse).collect();
                only = Some(steps.map_err(|_| format!("{name} {value}: not numbers"))?);
            }
            "--without" => {
                for part in value.split(',') {
                    let known = WEATHER.into_iter().find(|known| *known == part);
                    without.push(known.ok_or_else(|| format!("{name} {part}: one of {WEATHER:?}"))?);
                }
            }
            _ => return Err(format!("{name}: --first, --seeds, --threads, --seed, --only, --without or --shrink")),
        }
    }
    let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = threads.map_or_else(cores, |threads| threads.get() as usize);
    if first.checked_add(seeds.get()).is_none() {
        return Err(format!("--first {first}: there are not so many seeds behind it"));
    }
    Ok(match (seed, shrink) {
        (Some(seed), None) => Asked::Repeat(Part { seed, only, without }),
        (None, Some(seed)) => Asked::Shrink(seed),
        (None, None) => Asked::Many { first, seeds, threads },
        (Some(_), Some(_)) => return Err("--seed or --shrink".into()),
    })
}

/// Does what the arguments ask for.
#[must_use]
pub fn run(arguments: impl Iterator<Item = String>) -> ExitCode {
    let asked = match parse(arguments) {
        Ok(asked) => asked,
        Err(wrong) => {
            eprintln!("{wrong}");
            return ExitCode::from(2);
        }
    };
    catch_panics();
    match asked {
        Asked::Repeat(part) => repeat(&part),
        Asked::Shrink(seed) => {
            report(seed);
            ExitCode::SUCCESS
        }
        Asked::Many { first, seeds, threads } => many(first, seeds, threads),
    }
}

fn repeat(part: &Part) -> ExitCode {
    let plan = part.plan();
    eprintln!("{:#?}\n{:?}, links hold at most {} bytes", plan.specs, plan.faults, plan.capacity);
    match attempt(&plan, true) {
        Ok(passed) => {
            println!("{passed:?}");
            ExitCode::SUCCESS
        }
        Err(panic) => {
            println!("{panic}");
            ExitCode::FAILURE
        }
    }
}

/// Shrinks a failing storm and says what is left of it.
fn report(seed: u64) {
    let whole = Part::whole(seed);
    let Err(panic) = attempt(&whole.plan(), false) else {
        println!("seed {seed} passes");
        return;
    };
    println!("seed {seed} fails: {panic}");
    let small = shrink(whole, Part::fails);
    let plan: Plan = small.plan();
    println!("what is left of seed {seed}: {:?}", plan.faults);
    for step in &plan.steps {
        println!("  {:?} {:?}", step.at, step.operation);
    }
    if let Err(panic) = attempt(&plan, false) {
        println!("which fails: {}", panic.lines().next().unwrap_or_default());
    }
    println!("repeat: {COMMAND} {}", small.arguments());
}

fn many(first: u64, seeds: NonZeroU64, threads: usize) -> ExitCode {
    let (next, done) = (AtomicU64::new(first), AtomicU64::new(0));
    let totals = Mutex::new((Sum::default(), Vec::new()));
    let begun = Instant::now();
    let next = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&seed| seed < first + seeds.get());
    watched(|watch| {
        let work = || {
            while let Some(seed) = next() {
                let attempt = {
                    let _under_way = watch.begin(seed);
                    attempt(&Plan::draw(seed), false)
                };
                let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
                let (sum, failed) = &mut *totals;
                match attempt {
                    Ok(passed) => sum.add(&passed),
                    Err(panic) => {
                        println!("seed {seed} fails: {}", panic.lines().next().unwrap_or_default());
                        println!("repeat: {COMMAND} {}", Part::whole(seed).arguments());
                        failed.push(seed);
                    }
                }
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                if done.is_multiple_of(500) {
                    eprintln!("{done} of {seeds} in {:.0} s", begun.elapsed().as_secs_f64());
                }
            }
        };
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    });
    let (sum, mut failed) = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.sort_unstable();
    println!(
        "{seeds} storms in {:.0} s on {threads} cores, {} failed: {} events, {} conversations of which {} ended well, {} links closed for a fault, {} onions refused that had come before",
        begun.elapsed().as_secs_f64(),
        failed.len(),
        sum.events,
        sum.talks,
        sum.done,
        sum.faulted,
        sum.replayed
    );
    let enough = sum.check();
    if let Err(little) = &enough {
        println!("{little}");
    }
    // The first few say what is wrong; the others are repeated by their numbers.
    failed.iter().take(3).for_each(|&seed| report(seed));
    if failed.is_empty() && enough.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Asked, String> {
        parse(line.split_whitespace().map(String::from))
    }

    #[test]
    fn no_storms_at_all_are_refused() {
        let (first, seeds) = (7, positive("--seeds", 3).expect("not zero"));
        assert_eq!(parsed("--first 7 --seeds 3 --threads 2"), Ok(Asked::Many { first, seeds, threads: 2 }));
        for wrong in ["--seeds 0", "--threads 0", "--seeds", "--seeds x", "--first 18446744073709551615"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
