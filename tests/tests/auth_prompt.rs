//! Where passwords and notes come from: a terminal, which does not show passwords, and standard input.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use bulbil_tests::auth::{NetProcess, ServerProcess};
use bulbil_tests::processes::{PATIENCE, own_address};
use bulbil_tests::scratch::Scratch;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{LocalFlags, tcgetattr};

const PROGRAM: &str = env!("CARGO_BIN_EXE_bulbil-under-test");
const PASSWORD: &str = "tulips are no onions";
/// Names the terminal to this program when it is started again by [`Terminal::start`].
const TERMINAL: &str = "BULBIL_TEST_TERMINAL";
/// And the arguments of `bulbil`, a line each.
const ARGUMENTS: &str = "BULBIL_TEST_ARGUMENTS";

/// A pseudo-terminal, seen from where somebody sits and types.
struct Terminal {
    master: PtyMaster,
    seen: Vec<u8>,
}

impl Terminal {
    fn new() -> Self {
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        Self { master, seen: Vec::new() }
    }

    fn path(&self) -> String {
        ptsname_r(&self.master).unwrap()
    }

    /// Runs `bulbil` with this as its controlling terminal. To become the leader of a session in between, this program is started again
    /// and becomes `bulbil` itself.
    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "becomes_bulbil_on_a_terminal", "--nocapture"]);
        command.env(TERMINAL, self.path()).env(ARGUMENTS, arguments.join("\n"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap()
    }

    /// Reads what has been shown for a moment; `false` once nobody has the terminal open any more.
    fn look(&mut self) -> bool {
        let mut polled = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, PollTimeout::from(50u8)).unwrap() == 0 {
            return true;
        }
        let mut part = [0; 4096];
        // Linux says EIO when the other end is closed.
        let Ok(read @ 1..) = self.master.read(&mut part) else { return false };
        self.seen.extend_from_slice(&part[..read]);
        true
    }

    /// Looks until `done`.
    #[track_caller]
    fn wait(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done(self) {
            let open = self.look();
            assert!(open || done(self), "ended without {what}: {}", self.shown());
            assert!(Instant::now() < until, "no {what} in time: {}", self.shown());
        }
    }

    /// Waits for a prompt, and until the terminal has stopped to echo what is typed; then types a line.
    #[track_caller]
    fn answer(&mut self, prompt: &str, line: &str) {
        self.wait(prompt, |this| this.shown().contains(prompt));
        self.wait("silence", |this| {
            !tcgetattr(this.master.as_fd()).unwrap().local_flags.intersects(LocalFlags::ECHO | LocalFlags::ECHONL)
        });
        self.master.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Everything that was shown until the command ended, and whether it succeeded.
    fn end(mut self, mut child: Child) -> (String, bool) {
        let until = Instant::now() + PATIENCE;
        while self.look() {
            assert!(Instant::now() < until, "does not end: {}", self.shown());
        }
        (self.shown(), child.wait().unwrap().success())
    }
}

/// Started by [`Terminal::start`]; otherwise there is nothing to test.
#[test]
fn becomes_bulbil_on_a_terminal() {
    let Some(terminal) = std::env::var_os(TERMINAL) else { return };
    let arguments = std::env::var(ARGUMENTS).unwrap();
    // The first terminal that the leader of a session opens is the session's.
    nix::unistd::setsid().unwrap();
    let terminal = OpenOptions::new().read(true).write(true).open(terminal).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(arguments.lines()).env_remove("BULBIL_LOG").env_remove(TERMINAL).env_remove(ARGUMENTS);
    command.stdin(terminal.try_clone().unwrap()).stdout(terminal.try_clone().unwrap()).stderr(terminal);
    panic!("{}", command.exec());
}

/// So that the other test would see a password that is shown.
#[test]
fn a_terminal_shows_what_is_typed_unless_told_otherwise() {
    let mut terminal = Terminal::new();
    let _open = OpenOptions::new().read(true).write(true).open(terminal.path()).unwrap();
    terminal.master.write_all(format!("{PASSWORD}\n").as_bytes()).unwrap();
    terminal.wait("echo", |this| this.shown().contains(PASSWORD));
}

fn arguments<'a>(
    command: &'a str,
    state: &'a Path,
    proxy: &'a str,
    more: &[&'a str],
    account: &'a str,
) -> Vec<&'a str> {
    let head = ["auth", command, "--state", state.to_str().unwrap(), "--socks", proxy];
    [&head[..], more, &[account]].concat()
}

#[test]
fn a_typed_password_is_not_shown() {
    let dir = Scratch::new("auth-terminal");
    let net = NetProcess::start(PROGRAM);
    let server = ServerProcess::start(PROGRAM, &dir.path().join("server"), own_address(), &[]);
    let (proxy, account) = (net.proxy.to_string(), format!("alice@{}", server.address));
    let prompt = format!("Password for {account}: ");
    let typed = |command, computer: &str, more: &[&str], lines: &[(&str, &str)]| {
        let mut terminal = Terminal::new();
        let child = terminal.start(&arguments(command, &dir.path().join(computer), &proxy, more, &account));
        for (prompt, line) in lines {
            terminal.answer(prompt, line);
        }
        let (shown, success) = terminal.end(child);
        for (_, line) in lines {
            assert!(!shown.contains(line), "{shown}");
        }
        (shown, success)
    };
    let (shown, success) =
        typed("sign-up", "first", &[], &[(&prompt, PASSWORD), ("The same again: ", "tulips are onions")]);
    assert!(!success && shown.contains("the two passwords differ"), "{shown}");
    let (shown, success) = typed("sign-up", "first", &[], &[(&prompt, PASSWORD), ("The same again: ", PASSWORD)]);
    assert!(success && shown.contains("signed up; now"), "{shown}");
    let (shown, success) = typed("sign-in", "first", &[], &[(&prompt, PASSWORD)]);
    assert!(success && shown.contains("signed in, session 1"), "{shown}");
    // Standard input that is a terminal.
    let (shown, success) = typed("sign-in", "second", &["--password-stdin"], &[(&prompt, PASSWORD)]);
    assert!(success && shown.contains("signed in, session 2"), "{shown}");
}

#[test]
fn passwords_and_notes_come_from_standard_input() {
    let dir = Scratch::new("auth-stdin");
    let net = NetProcess::start(PROGRAM);
    let server = ServerProcess::start(PROGRAM, &dir.path().join("server"), own_address(), &[]);
    let (proxy, account) = (net.proxy.to_string(), format!("alice@{}", server.address));
    let state = dir.path().join("alice");
    let piped = |command, more: &[&str], rest: &[&str], input: &[u8]| {
        let mut arguments = arguments(command, &state, &proxy, more, &account);
        arguments.extend_from_slice(rest);
        let mut bulbil = Command::new(PROGRAM);
        bulbil.args(arguments).env_remove("BULBIL_LOG");
        let mut bulbil = bulbil.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Whoever refuses a long note has not read to its end.
        let _unread = bulbil.stdin.take().unwrap().write_all(input);
        let output = bulbil.wait_with_output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let line = format!("{PASSWORD}\nnot a part of it\n");
    let stdin = &["--password-stdin"];
    assert_eq!(piped("sign-up", stdin, &[], line.as_bytes()).0, "signed up; now: bulbil auth sign-in\n");
    assert!(piped("sign-in", stdin, &[], b"tulips\n").1.contains("the password is wrong"));
    assert!(piped("sign-in", stdin, &[], b"").1.contains("the password is empty"));
    assert_eq!(piped("sign-in", stdin, &[], PASSWORD.as_bytes()).0, "signed in, session 1\n");
    let note = "water the onions:\n  daily\n";
    assert_eq!(piped("act", &[], &["write", "-"], note.as_bytes()).0, "note kept\n");
    assert!(piped("act", &[], &["write", "-"], &[b'x'; 1025]).1.contains("1024 bytes"));
    assert_eq!(piped("act", &[], &["read"], b"").0, note);
}
