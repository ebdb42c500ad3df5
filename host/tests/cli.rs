//! The command `bulbil` as a process: what it prints and how it exits.

#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::{
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).into_os_string().into_string().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn bulbil(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulbil"));
    command.args(arguments).stdin(Stdio::null()).env_remove("BULBIL_LOG").output().unwrap()
}

fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn assert_fails(arguments: &[&str], code: i32, parts: &[&str]) {
    let output = bulbil(arguments);
    let errors = std::str::from_utf8(&output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
    assert!(errors.starts_with("error: "), "{errors}");
    assert_eq!(out(&output), "");
    for part in parts {
        assert!(errors.contains(part), "{arguments:?} gave {errors:?} without {part:?}");
    }
}

#[test]
fn help_succeeds_and_wrong_usage_exits_with_2() {
    let help = bulbil(&["--help"]);
    assert!(help.status.success());
    for command in ["demo", "net", "node", "keygen", "send"] {
        assert!(out(&help).contains(command));
        assert!(bulbil(&[command, "--help"]).status.success());
    }
    assert_fails(&["fly"], 2, &["fly"]);
    assert_fails(&["node"], 2, &["--config", "--print-config"]);
}

#[test]
fn the_printed_configuration_is_the_default() {
    let printed = bulbil(&["node", "--print-config"]);
    assert!(printed.status.success());
    let config: bulbil_host::config::Config = out(&printed).parse().unwrap();
    assert_eq!(config, bulbil_host::config::Config::default());
}

#[test]
fn nobody_reading_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bulbil"))
        .args(["node", "--print-config"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}

#[test]
fn a_wrong_configuration_exits_with_2() {
    let scratch = Scratch::new("config");
    let file = scratch.path("node.toml");
    assert_fails(&["node", "--config", &file], 2, &["node.toml", "No such file"]);
    std::fs::write(&file, "[limits]\ncells = 1\n").unwrap();
    assert_fails(&["node", "--config", &file], 2, &["node.toml", "line 2", "cells = 1", "--print-config"]);
    std::fs::write(&file, "bootstrap = [\"192.0.2.1:1\"]").unwrap();
    assert_fails(
        &["send", "--config", &file, "example.com:80", "x"],
        2,
        &["node.toml", "`bootstrap`", "no fingerprint"],
    );
    assert_fails(&["send", "--bootstrap", "192.0.2.1:1", "example.com:80", "x"], 2, &["no fingerprint"]);

    std::fs::write(&file, "").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_bulbil"))
        .args(["node", "--config", &file])
        .env("BULBIL_LOG", "bulbil=loud")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("BULBIL_LOG"));
}

#[test]
fn makes_shows_keeps_and_replaces_an_identity() {
    let scratch = Scratch::new("keygen");
    let dir = scratch.path("state");
    assert_fails(&["keygen", "--state", &dir, "--show"], 1, &["no identity", "bulbil keygen --state"]);
    assert!(!std::fs::exists(&dir).unwrap(), "showing makes nothing");

    let made = bulbil(&["keygen", "--state", &dir]);
    assert!(made.status.success(), "{made:?}");
    let fingerprint = out(&made).to_owned();
    assert_eq!(fingerprint.trim_end().len(), 64);
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);

    assert_fails(&["keygen", "--state", &dir], 1, &["identity exists already", "--force"]);
    assert_eq!(out(&bulbil(&["keygen", "--state", &dir, "--show"])), fingerprint);

    let config = scratch.path("node.toml");
    std::fs::write(&config, "state = \"state\"").unwrap();
    assert_eq!(out(&bulbil(&["keygen", "--config", &config, "--show"])), fingerprint);

    let replaced = bulbil(&["keygen", "--state", &dir, "--force"]);
    assert!(replaced.status.success());
    assert_ne!(out(&replaced), fingerprint);

    std::fs::write(scratch.path("state/identity"), "garbage").unwrap();
    assert_fails(&["keygen", "--state", &dir, "--show"], 1, &["state/identity", "restore it from a backup"]);
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_fails(&["keygen", "--state", &dir, "--show"], 1, &["mode 755", "chmod go="]);
    assert_fails(&["keygen", "--state", &dir, "--force"], 1, &["mode 755", "chmod go="]);
}

#[test]
fn writes_an_identity_to_a_file() {
    let scratch = Scratch::new("keygen-out");
    let file = scratch.path("key.der");
    let made = bulbil(&["keygen", "--out", &file]);
    assert!(made.status.success(), "{made:?}");
    let der = std::fs::read(&file).unwrap();
    assert_eq!(out(&made), format!("{}\n", bulbil_host::identity::fingerprint(&der).unwrap()));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_fails(&["keygen", "--out", &file], 1, &["key.der exists already", "--force"]);
    assert_eq!(std::fs::read(&file).unwrap(), der);
    assert!(bulbil(&["keygen", "--out", &file, "--force"]).status.success());
    assert_ne!(std::fs::read(&file).unwrap(), der);
    assert_fails(&["keygen", "--out", &scratch.path("nowhere/key.der")], 1, &["nowhere/key.der"]);
}

#[test]
fn a_message_that_is_too_long_is_refused_before_anything_starts() {
    let big = std::fs::File::open("/dev/zero").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_bulbil"))
        .args(["send", "--bootstrap", "127.0.0.1:1", "--allow-unpinned", "example.com:80"])
        .stdin(big)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("16 MiB"));
}
