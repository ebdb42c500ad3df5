//! The command line of storms: many of them on all cores, or one of them in every detail.

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::shrink::{Part, WEATHER, attempt, catch_panics, shrink};
use super::{Passed, Plan};

/// What repeats a storm, with [`Part::arguments`] behind it.
const COMMAND: &str = "cargo run -p bulbil-tests --bin storm --";

/// What the arguments ask for.
enum Asked {
    Many { first: u64, seeds: u64, threads: usize },
    Repeat(Part),
    Shrink(u64),
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Asked, String> {
    let arguments: Vec<String> = arguments.collect();
    let (mut first, mut seeds, mut threads) = (0, 1_000, None);
    let (mut seed, mut only, mut without, mut shrink) = (None, None, Vec::new(), None);
    let (pairs, rest) = arguments.as_chunks::<2>();
    if let [odd] = rest {
        return Err(format!("{odd}: every option has a value"));
    }
    for [name, value] in pairs {
        let number = || value.parse::<u64>().map_err(|_| format!("{name} {value}: not a number"));
        match name.as_str() {
            "--first" => first = number()?,
            "--seeds" => seeds = number()?,
            "--threads" => threads = NonZeroUsize::new(number()? as usize),
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
    let threads = threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
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

fn many(first: u64, seeds: u64, threads: usize) -> ExitCode {
    let (next, done) = (AtomicU64::new(first), AtomicU64::new(0));
    let totals = Mutex::new((Passed { trace: 0, events: 0, talks: 0, done: 0, faulted: 0, replayed: 0 }, Vec::new()));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    let attempt = attempt(&Plan::draw(seed), false);
                    let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
                    let (sum, failed) = &mut *totals;
                    match attempt {
                        Ok(passed) => {
                            sum.events += passed.events;
                            sum.talks += passed.talks;
                            sum.done += passed.done;
                            sum.faulted += passed.faulted;
                            sum.replayed += passed.replayed;
                        }
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
            });
        }
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
    // The first few say what is wrong; the others are repeated by their numbers.
    failed.iter().take(3).for_each(|&seed| report(seed));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
