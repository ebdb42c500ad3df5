//! The attacks that `PROTOCOL.md` names in sections 15 and 17.6, each with the tests that show the answer: that these tests are there.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The cells of the table in a section, without its head.
fn table<'a>(protocol: &'a str, section: &str) -> Vec<Vec<&'a str>> {
    let (_, text) = protocol.split_once(section).unwrap();
    let lines = text.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    lines.skip(2).map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// The functions behind `#[test]` and the like, and the trials that a test of its own kind gives names to.
fn tests_in(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            tests_in(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let attributed = text.split("#[test]").skip(1).chain(text.split("#[tokio::test").skip(1));
            let functions = attributed.filter_map(|text| text.split_once("fn ")?.1.split_once('('));
            names.extend(functions.map(|(name, _)| name.to_owned()));
            let trials = text.split("trial(\"").skip(1).filter_map(|text| text.split_once('"'));
            names.extend(trials.map(|(name, _)| name.to_owned()));
        }
    }
}

#[test]
fn every_attack_has_an_answer_and_every_answer_a_test() {
    let protocol = fs::read_to_string(top().join("core/PROTOCOL.md")).unwrap();
    let mut tests = BTreeSet::new();
    for part in ["core/src", "core/tests", "host/src", "firmware-sim/src", "tests"] {
        tests_in(&top().join(part), &mut tests);
    }
    assert!(!tests.contains("there_is_no_such_test") && tests.len() > 100, "{} tests", tests.len());
    for (section, attacks) in [("## 15. Attacks and answers", 20), ("### 17.6 Attacks and answers", 14)] {
        let rows = table(&protocol, section);
        assert!(rows.len() >= attacks, "{section}: {} rows", rows.len());
        for row in rows {
            let [attack, answer, shown] = row[..] else { panic!("three cells: {row:?}") };
            assert!(!answer.is_empty(), "{attack}");
            let named: Vec<_> = shown.split(", ").map(|name| name.trim_matches('`')).collect();
            let missing: Vec<_> = named.iter().filter(|&&name| !tests.contains(name)).collect();
            assert!(missing.is_empty(), "{attack}: there is no {missing:?}");
        }
    }
}
