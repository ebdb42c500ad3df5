//! Replays every file of the fuzz corpora (`fuzz/corpus/<target>/`) through the functions that the fuzz targets run.
//!
//! The seeds in the corpora come from `fuzz/src/seeds.rs`. After a change there, or of a layout:
//! `cargo test -p bulbil-core --test corpus -- --ignored write_seeds`. The `found-*` files are
//! the fewest of a long search's finds that reach whatever code it reached: libFuzzer's
//! `-set_cover_merge=1 -use_counters=0 INTO FOUND`. An input that failed becomes a seed with a name that says why.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use fuzz::seeds::Seed;

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "a crate of its own when it fuzzes")]
mod fuzz;

struct Target {
    name: &'static str,
    check: fn(&[u8]),
    seeds: fn() -> Vec<Seed>,
}

const TARGETS: [Target; 11] = [
    Target { name: "accounts", check: fuzz::accounts::check, seeds: fuzz::seeds::accounts },
    Target { name: "auth", check: fuzz::auth::check, seeds: fuzz::seeds::auth },
    Target { name: "cell", check: fuzz::cell::check, seeds: fuzz::seeds::cell },
    Target { name: "link", check: fuzz::link::check, seeds: fuzz::seeds::link },
    Target { name: "message", check: fuzz::message::check, seeds: fuzz::seeds::message },
    Target { name: "descriptor", check: fuzz::descriptor::check, seeds: fuzz::seeds::descriptor },
    Target { name: "exchange", check: fuzz::exchange::check, seeds: fuzz::seeds::exchange },
    Target { name: "text", check: fuzz::text::check, seeds: fuzz::seeds::text },
    Target { name: "record", check: fuzz::record::check, seeds: fuzz::seeds::record },
    Target { name: "onion", check: fuzz::onion::check, seeds: fuzz::seeds::onion },
    Target { name: "node", check: fuzz::node::check, seeds: fuzz::seeds::node },
];

fn fuzz_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz")
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

fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("no target {name}"))
}

#[test]
fn replays_accounts() {
    target("accounts").replay();
}

#[test]
fn replays_auth() {
    target("auth").replay();
}

#[test]
fn replays_cell() {
    target("cell").replay();
}

#[test]
fn replays_link() {
    target("link").replay();
}

#[test]
fn replays_message() {
    target("message").replay();
}

#[test]
fn replays_descriptor() {
    target("descriptor").replay();
}

#[test]
fn replays_exchange() {
    target("exchange").replay();
}

#[test]
fn replays_text() {
    target("text").replay();
}

#[test]
fn replays_record() {
    target("record").replay();
}

#[test]
fn replays_onion() {
    target("onion").replay();
}

#[test]
fn replays_node() {
    target("node").replay();
}

/// A target that is fuzzed but not replayed would rot.
#[test]
fn every_fuzz_target_is_replayed() {
    let folder = fs::read_dir(fuzz_folder().join("fuzz_targets")).expect("the fuzz targets");
    let mut fuzzed: Vec<_> = folder
        .map(|entry| entry.expect("a file").path().file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    fuzzed.sort();
    let mut replayed: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    replayed.sort_unstable();
    assert_eq!(fuzzed, replayed);
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
