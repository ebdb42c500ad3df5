//! Replays every file of the corpora of the host's fuzz targets (`core/fuzz/host/corpus/<target>/`) through the functions that those run.
//!
//! The seeds in the corpora come from `core/fuzz/host/src/seeds.rs`. After a change there, or of the printed default configuration:
//! `cargo test -p bulbil-host --test corpus -- --ignored write_seeds`. An input that failed becomes a seed with a name that says why.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use fuzz::seeds::Seed;

#[path = "../../core/fuzz/host/src/lib.rs"]
#[allow(unreachable_pub, dead_code, reason = "a crate of its own when it fuzzes, and what it shares with the core's")]
mod fuzz;

struct Target {
    name: &'static str,
    check: fn(&[u8]),
    seeds: fn() -> Vec<Seed>,
}

const TARGETS: [Target; 2] = [
    Target { name: "config", check: fuzz::config::check, seeds: fuzz::seeds::config },
    Target { name: "socks", check: fuzz::socks::check, seeds: fuzz::seeds::socks },
];

fn fuzz_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../core/fuzz/host")
}

impl Target {
    fn corpus(&self) -> PathBuf {
        fuzz_folder().join("corpus").join(self.name)
    }

    /// Replays the whole corpus, so that one failure does not hide the next.
    fn replay(&self) {
        let folder = fs::read_dir(self.corpus()).unwrap_or_else(|error| panic!("no corpus of {}: {error}", self.name));
        let mut files: Vec<_> = folder.map(|entry| entry.expect("a file").path()).collect();
        files.sort();
        assert!(!files.is_empty(), "the corpus of {} is empty", self.name);
        let failed: Vec<_> = files
            .iter()
            .filter(|path| {
                let input = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                catch_unwind(AssertUnwindSafe(|| (self.check)(&input))).is_err()
            })
            .collect();
        assert!(failed.is_empty(), "{} fails on {failed:?}", self.name);
    }
}

#[test]
fn replays_config() {
    TARGETS[0].replay();
}

#[test]
fn replays_socks() {
    TARGETS[1].replay();
}

/// A target that is fuzzed but not replayed would rot.
#[test]
fn every_fuzz_target_is_replayed() {
    let folder = fs::read_dir(fuzz_folder().join("fuzz_targets")).expect("the fuzz targets");
    let mut fuzzed: Vec<_> = folder
        .map(|entry| entry.expect("a file").path().file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    fuzzed.sort();
    assert_eq!(fuzzed, TARGETS.map(|target| target.name));
}

#[test]
fn seeds_are_in_the_corpora() {
    for target in &TARGETS {
        for (name, seed) in (target.seeds)() {
            let stored = fs::read(target.corpus().join(name)).ok();
            assert!(stored == Some(seed), "seed {name} of {} is not there as it is made; see above", target.name);
        }
    }
}

#[test]
#[ignore = "writes into the repository"]
fn write_seeds() {
    for target in &TARGETS {
        fs::create_dir_all(target.corpus()).expect("a folder to write to");
        for (name, seed) in (target.seeds)() {
            fs::write(target.corpus().join(name), seed).expect("a file to write to");
        }
    }
}
