//! The control socket of nodes that are processes, as `bulbil status` and `bulbil phonebook` use it.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use bulbil_tests::processes::{NodeProcess, PATIENCE, Process, client_config, own_address, serving_config, start_node};
use bulbil_tests::scratch::Scratch;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_bulbil-under-test");

/// What a command printed, and how it ended.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

fn bulbil(arguments: &str, dir: &Path) -> Ended {
    let mut process =
        Process::start(PROGRAM, arguments.split_whitespace().map(|word| word.replace("DIR", dir.to_str().unwrap())));
    let code = process.end().code();
    Ended { code, out: process.stdout(), err: process.stderr() }
}

fn done(arguments: &str, dir: &Path) -> String {
    let ended = bulbil(arguments, dir);
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{arguments}");
    ended.out
}

fn failed(arguments: &str, dir: &Path, why: &str) {
    let ended = bulbil(arguments, dir);
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""), "{arguments}: {}", ended.err);
    assert!(ended.err.starts_with("error: ") && ended.err.contains(why), "{arguments}: {}", ended.err);
}

fn json(arguments: &str, dir: &Path) -> Value {
    serde_json::from_str(&done(arguments, dir)).unwrap()
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o7777
}

/// Asks until the answer is good: nodes meet when they meet.
fn until(mut good: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !good() {
        assert!(begun.elapsed() < PATIENCE, "not in time");
    }
}

#[test]
fn the_status_of_a_node_is_there_as_long_as_the_node() {
    let scratch = Scratch::new("status");
    let dir = scratch.path();
    failed("status --state DIR/relay.state", dir, "does not exist");
    let address = own_address();
    let config = serving_config(dir, "relay", "relay", address, "");
    let mut relay = NodeProcess::start(PROGRAM, &config);
    let socket = dir.join("relay.state/control");
    assert!(socket.symlink_metadata().unwrap().file_type().is_socket());
    assert_eq!((mode(&socket), mode(&dir.join("relay.state"))), (0o600, 0o700));

    let text = done("status --config DIR/relay.toml", dir);
    for part in [
        &format!("node          {}\n", relay.fingerprint),
        "roles         relay\n",
        &format!("listening     {address}\n"),
        &format!("process       {}, up ", relay.process.id()),
        "MiB resident\n",
        "links         0 up",
        "onion key     x-wing, ",
        "has opened 0 circuits of ",
        "phonebook     0 tried, 0 new",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }

    // Somebody links to it, and it can be seen.
    let client = NodeProcess::start(PROGRAM, &client_config(dir, "client", &[relay.contact()], ""));
    let mut status = Value::Null;
    until(|| {
        status = json("status --state DIR/relay.state --json", dir);
        status["links"]["up_in"].as_u64() > Some(0)
    });
    assert_eq!((&status["format"], &status["node"]["fingerprint"]), (&1.into(), &relay.fingerprint.clone().into()));
    assert_eq!(status["node"]["advertised"][0], address.to_string());
    assert_eq!((&status["node"]["roles"][0], &status["links"]["up_out"]), (&"relay".into(), &0.into()));
    assert!(status["traffic"]["total"]["bytes_in"].as_u64() > Some(1000), "a handshake at least: {status}");
    assert!(status["traffic"]["recent"]["bytes_out"].as_u64() > Some(1000), "{status}");
    assert_eq!((&status["cells"]["total"], &status["onion_key"]["kind"]), (&131_072.into(), &"x-wing".into()));
    until(|| json("status --state DIR/client.state --json", dir)["phonebook"]["tried"] == 1);
    let of_client = json("status --state DIR/client.state --json", dir);
    // A test of the node that it has just met is a link of its own: there may be two.
    assert!(of_client["links"]["up_out"].as_u64() > Some(0), "{of_client}");
    assert_eq!(
        (&of_client["onion_key"], &of_client["node"]["socks"][0]),
        (&Value::Null, &client.proxy().to_string().into())
    );

    // A second node for the same state ends, and the first one's socket is untouched.
    let mut second = start_node(PROGRAM, &config);
    assert_eq!(second.end().code(), Some(1));
    assert!(second.stderr().contains("in use by another bulbil process"), "{}", second.stderr());
    done("status --config DIR/relay.toml", dir);

    // Killed, it leaves its socket, which is in nobody's way.
    relay.process.kill();
    assert!(socket.symlink_metadata().is_ok());
    failed("status --config DIR/relay.toml", dir, "no node runs with the state directory");
    let mut again = NodeProcess::start(PROGRAM, &config);
    assert_eq!(mode(&socket), 0o600);
    done("status --config DIR/relay.toml", dir);
    assert_eq!(again.process.terminate().code(), Some(0));
    assert!(socket.symlink_metadata().is_err(), "removed at a good end");
    failed("status --config DIR/relay.toml", dir, "start it");
    for log in [again.process.stderr(), client.process.stderr()] {
        assert!(!log.contains(&relay.fingerprint) && !log.contains(&address.to_string()), "{log}");
    }
}

#[test]
fn a_phonebook_goes_from_one_node_to_another_whether_they_run_or_not() {
    let scratch = Scratch::new("phonebook");
    let dir = scratch.path();
    let mut relays: Vec<_> = (1..=2)
        .map(|number| serving_config(dir, &format!("relay{number}"), "relay", own_address(), ""))
        .map(|config| NodeProcess::start(PROGRAM, &config))
        .collect();
    let contacts: Vec<_> = relays.iter().map(NodeProcess::contact).collect();
    let client = NodeProcess::start(PROGRAM, &client_config(dir, "one", &contacts, ""));
    until(|| json("phonebook list --state DIR/one.state --json", dir).as_array().unwrap().len() == 2);
    let text = done("phonebook list --config DIR/one.toml", dir);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("FINGERPRINT"), "{text}");
    for relay in &relays {
        let line = lines.iter().find(|line| line.starts_with(&relay.fingerprint)).unwrap();
        let address = relay.listening.unwrap().to_string();
        for word in ["relay", &address, "tried", "  in ", "x-wing"] {
            assert!(line.contains(word), "{word:?} is missing in {line}");
        }
        assert!(!line.contains("never"), "it was met: {line}");
    }
    let shown = done(&format!("phonebook show --state DIR/one.state {}", &relays[0].fingerprint[..40]), dir);
    assert!(shown.starts_with(&format!("node          {}\n", relays[0].fingerprint)), "{shown}");
    failed("phonebook show --state DIR/one.state 0123456789abcdef", dir, "begins with 0123456789abcdef");

    // To a file and to standard output alike, and from there into one that runs and one that does not.
    assert_eq!(done("phonebook export --state DIR/one.state DIR/nodes.txt", dir), "2 descriptors");
    let exported = std::fs::read_to_string(dir.join("nodes.txt")).unwrap();
    assert_eq!(exported.lines().collect::<Vec<_>>().join("\n"), done("phonebook export --state DIR/one.state", dir));
    assert_eq!(exported.matches("-----BEGIN BULBIL DESCRIPTOR-----").count(), 2);
    // Otherwise whoever is told of them meets them soon.
    for relay in &mut relays {
        relay.process.kill();
    }
    let mut other = NodeProcess::start(PROGRAM, &client_config(dir, "other", &[], ""));
    for said in ["2 descriptors: 2 added", "2 descriptors: 2 known already"] {
        assert_eq!(done("phonebook import --config DIR/other.toml DIR/nodes.txt", dir), said);
    }
    assert_eq!(json("status --config DIR/other.toml --json", dir)["phonebook"]["new"], 2);
    let shelves = json("phonebook list --config DIR/other.toml --json", dir);
    assert!(shelves.as_array().unwrap().iter().all(|node| node["shelf"] == "new" && node["last_met"].is_null()));
    assert_eq!(other.process.terminate().code(), Some(0));

    failed("phonebook list --state DIR/nobody.state", dir, "there is no state directory");
    assert!(!dir.join("nobody.state").exists(), "looking makes nothing");
    Command::new(PROGRAM)
        .args(["keygen", "--state"])
        .arg(dir.join("third.state"))
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(done("phonebook list --state DIR/third.state", dir), "");
    // Through a pipe, joined with another copy.
    std::fs::write(dir.join("twice.txt"), exported.repeat(2)).unwrap();
    let import = Command::new(PROGRAM)
        .args(["phonebook", "import", "--json", "-", "--state"])
        .arg(dir.join("third.state"))
        .stdin(std::fs::File::open(dir.join("twice.txt")).unwrap())
        .output()
        .unwrap();
    let counts: Value = serde_json::from_slice(&import.stdout).unwrap();
    assert_eq!((&counts["read"], &counts["added"], &counts["known"]), (&4.into(), &2.into(), &2.into()));
    let stored = dir.join("third.state/phonebook");
    assert_eq!(mode(&stored), 0o600);
    assert_eq!(done("phonebook export --state DIR/third.state -", dir), exported.trim_end());
    assert_eq!(json("phonebook list --state DIR/third.state --json", dir).as_array().unwrap().len(), 2);

    // What is no good changes nothing, and says so.
    let before = std::fs::read(&stored).unwrap();
    let middle = exported.find("=\n").or(exported.find("\n-----END")).unwrap() - 20;
    let mut forged = exported.clone().into_bytes();
    forged[middle] = if forged[middle] == b'A' { b'B' } else { b'A' };
    for (name, content, said) in [
        ("cut", &exported.as_bytes()[..exported.len() - 10], "nothing was imported"),
        ("garbage", b"\x7fELF\0\0", "not an exported phonebook"),
    ] {
        std::fs::write(dir.join(name), content).unwrap();
        failed(&format!("phonebook import --state DIR/third.state DIR/{name}"), dir, said);
        failed(&format!("phonebook import --state DIR/one.state DIR/{name}"), dir, said);
    }
    std::fs::write(dir.join("forged"), forged).unwrap();
    for state in ["third", "one"] {
        let said = done(&format!("phonebook import --state DIR/{state}.state DIR/forged"), dir);
        assert_eq!(said, "2 descriptors: 1 known already, 1 forged");
    }
    failed("phonebook import --state DIR/third.state DIR/missing", dir, "cannot read");
    assert_eq!(std::fs::read(&stored).unwrap(), before);

    // While somebody else has the directory, and no node answers.
    std::fs::remove_file(dir.join("one.state/control")).unwrap();
    failed("phonebook list --state DIR/one.state", dir, "does not answer");
    for process in relays.iter().chain([&client, &other]) {
        let log = process.process.stderr();
        assert!(relays.iter().all(|relay| !log.contains(&relay.fingerprint)), "{log}");
    }
}
