//! The tables that `cargo run --release -p bulbil-tests --bin phonebook-tables` prints.

pub mod bits;
pub mod churn;
pub mod eclipse;
pub mod joins;

use std::time::Duration;

/// Takes a table line by line.
pub type Print<'p> = &'p mut dyn FnMut(&str);

/// The middle one; of an even number, the upper.
fn median<T: Copy + Ord>(values: &[T]) -> Option<T> {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

/// A time for people.
fn time(span: Option<Duration>) -> String {
    match span.map(|span| span.as_secs()) {
        None => "-".to_owned(),
        Some(seconds @ 0..600) => format!("{seconds} s"),
        Some(seconds) => format!("{} min", (seconds + 30) / 60),
    }
}

/// Bytes for people.
fn bytes(len: Option<u64>) -> String {
    match len {
        None => "-".to_owned(),
        Some(len @ 0..10_000_000) => format!("{} kB", len.div_ceil(1_000)),
        Some(len) => format!("{:.1} MB", len as f64 / 1e6),
    }
}

/// A share for people.
fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// The most memory that the process has had, in MiB, as far as the system tells.
#[must_use]
pub fn memory_peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib / 1024)
}
