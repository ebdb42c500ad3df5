//! The challenge-response application with separate processes: four nodes, the server, two clients, and the command line of each user.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bulbil_core::auth::client::Standing;
use bulbil_core::auth::{KdfParameters, SessionNumber, Username};
use bulbil_core::wire::Target;
use bulbil_host::auth::argon;
use bulbil_host::auth::known_servers::KnownServers;
use bulbil_host::auth::sessions::Sessions;
use bulbil_tests::auth::{Meddling, Middle, NetProcess, Recorder, ServerProcess};
use bulbil_tests::processes::{NodeProcess, Process, client_config, own_address, serving_config};
use bulbil_tests::scratch::Scratch;

const PROGRAM: &str = env!("CARGO_BIN_EXE_bulbil-under-test");
const USER: &str = "alice.among-the_onions";
const PASSWORD: &str = "tulips are no onions";
const NOTE: &str = "water the onions: daily";

/// How a command ended.
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ended {
    /// It did what it should, and said so.
    #[track_caller]
    fn done(self, says: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (0, says), "{}", self.stderr);
    }

    /// It failed, and said why.
    #[track_caller]
    fn failed(self, says: &str) {
        let as_told = self.code == 1 && self.stderr.contains("error: ") && self.stderr.contains(says);
        assert!(as_told, "{says:?} expected, {}: {}{}", self.code, self.stdout, self.stderr);
    }
}

/// A user's computer: a state directory, and the way into the network.
struct Computer {
    state: PathBuf,
    door: Vec<String>,
    account: String,
}

impl Computer {
    fn new(state: PathBuf, proxy: SocketAddr, server: SocketAddr) -> Self {
        Self { state, door: vec!["--socks".into(), proxy.to_string()], account: format!("{USER}@{server}") }
    }

    fn run(&self, command: &str, options: &[&str], rest: &[&str]) -> Ended {
        ended(self.start(command, options, rest))
    }

    fn start(&self, command: &str, options: &[&str], rest: &[&str]) -> Process {
        let state = self.state.to_str().unwrap();
        let mut arguments = vec!["auth", command, "--state", state];
        arguments.extend(self.door.iter().map(String::as_str));
        arguments.extend_from_slice(options);
        arguments.push(&self.account);
        arguments.extend_from_slice(rest);
        Process::start(PROGRAM, arguments)
    }

    /// With a password from a file.
    fn with_password(&self, command: &str, password: &str) -> Ended {
        self.run(command, &["--password-file", &self.password_file(password)], &[])
    }

    fn password_file(&self, password: &str) -> String {
        let file = self.state.with_extension("password");
        std::fs::write(&file, password).unwrap();
        file.to_str().unwrap().to_owned()
    }
}

fn ended(mut process: Process) -> Ended {
    let code = process.end().code().unwrap();
    Ended { code, stdout: process.stdout(), stderr: process.stderr() }
}

fn users(state: &Path) -> String {
    let ended = ended(Process::start(PROGRAM, ["auth", "users", "--state", state.to_str().unwrap()]));
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    ended.stdout
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_seed_s_scenario_through_four_nodes_whose_exit_sees_ciphertext_only() {
    let dir = Scratch::new("auth");
    let nodes: Vec<_> = (1..=4)
        .map(|number| {
            let role = if number == 4 { "exit" } else { "relay" };
            let config = serving_config(dir.path(), &format!("{role}{number}"), role, own_address(), "");
            NodeProcess::start(PROGRAM, &config)
        })
        .collect();
    let contacts: Vec<_> = nodes.iter().map(NodeProcess::contact).collect();
    let client = |name| NodeProcess::start(PROGRAM, &client_config(dir.path(), name, &contacts, ""));
    let (client1, client2) = (client("client1"), client("client2"));
    let state = dir.path().join("server");
    let mut server = ServerProcess::start(PROGRAM, &state, own_address(), &[]);
    let recorder = Recorder::start(server.address).await;

    let at = recorder.address;
    let first = Computer::new(dir.path().join("first"), client1.proxy(), at);
    let second = Computer::new(dir.path().join("second"), client2.proxy(), at);
    let impostor = Computer::new(dir.path().join("impostor"), client2.proxy(), at);

    // The way to the server is pinned by what its operator says.
    let wrong = "00".repeat(32);
    first.run("disconnect", &["--fingerprint", &wrong], &[]).failed("not the one that --fingerprint names");
    let met = first.run("disconnect", &["--fingerprint", &server.fingerprint], &[]);
    assert!(!met.stderr.contains("first time"), "{}", met.stderr);
    met.failed("bulbil auth sign-in");

    first.with_password("sign-in", PASSWORD).failed("the password is wrong, or there is no such user");
    first.with_password("sign-up", PASSWORD).done("signed up; now: bulbil auth sign-in");
    first.with_password("sign-up", PASSWORD).failed("is taken");
    first.with_password("sign-in", "tulips").failed("the password is wrong");
    first.with_password("sign-in", PASSWORD).done("signed in, session 1");
    first.run("act", &[], &["write", NOTE]).done("note kept");
    first.run("act", &[], &["write", &"x".repeat(1025)]).failed("1024 bytes");

    // On another node, with a session of its own; it meets the server for the first time.
    let met = impostor.with_password("sign-in", "guessed");
    assert!(met.stderr.contains("first time") && met.stderr.contains(&server.fingerprint), "{}", met.stderr);
    met.failed("the password is wrong");
    impostor.run("disconnect", &[], &[]).failed("refused");
    impostor.run("act", &[], &["read"]).failed("refused");

    // Undisturbed, and connected: nobody is asked for a password (there is no terminal to ask on).
    first.run("act", &[], &["read"]).done(NOTE);
    first.run("sign-in", &[], &[]).done("already signed in on this computer, session 1");
    first.run("disconnect", &[], &[]).done("disconnected");
    first.run("act", &[], &["read"]).failed("refused");
    first.run("sign-in", &[], &[]).failed("--password-file");

    // A second computer.
    first.with_password("sign-in", PASSWORD).done("signed in, session 2");
    second.with_password("sign-in", PASSWORD).done("signed in, session 3");
    first.run("disconnect", &[], &[]).failed("another computer has signed in since");
    first.run("act", &[], &["write", "too late"]).failed("refused");
    second.run("act", &[], &["read"]).done(NOTE);
    assert_eq!(users(&state), format!("{USER} connected 3 sessions"), "while the server runs");

    // A client started for the purpose does as well.
    let door = contacts.iter().flat_map(|contact| ["--bootstrap".to_owned(), contact.clone()]).collect();
    Computer { door, ..second }.run("disconnect", &[], &[]).done("disconnected");

    // The server restarts as the same one.
    assert_eq!(server.process.terminate().code(), Some(0), "{}", server.process.stderr());
    assert_eq!(users(&state), format!("{USER} disconnected 3 sessions"), "while it does not");
    let mut server = ServerProcess::start(PROGRAM, &state, server.address, &[]);
    first.with_password("sign-in", PASSWORD).done("signed in, session 4");
    first.run("act", &[], &["read"]).done(NOTE);
    assert_eq!(server.process.terminate().code(), Some(0));

    // What passed between the exit and the server.
    let name = Username::new(USER).unwrap();
    let key = KnownServers::of(&first.state).find(&Target::from(at)).unwrap().unwrap();
    let session = Sessions::of(&first.state).unwrap();
    let file = session.path(&key, &name);
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    let session = session.load(&key, &name).unwrap().unwrap();
    let password_key = argon::password_key(PASSWORD.as_bytes(), &key, &name, KdfParameters::FLOOR);
    let mut secrets: Vec<Vec<u8>> = [
        USER,
        PASSWORD,
        NOTE,
        "sign_up",
        "sign_in",
        "public_key",
        "challenge",
        "disconnect",
        ":act:",
        ":log:",
        "bonjour",
        "signed",
        "refused",
        "write:",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    let public = session.public();
    for bytes in [key.modulus().as_slice(), public.modulus(), password_key.as_bytes(), &key.to_der()[..40]] {
        // As they are, and at the places where base64 or hexadecimal digits would begin.
        secrets.push(bytes[..16].to_vec());
        secrets.push(bytes[bytes.len() - 16..].to_vec());
        secrets.push(bytes[..16].iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect());
    }
    let recorded = recorder.recorded();
    assert!(recorded.len() >= 25, "every command has connected: {}", recorded.len());
    for [from_client, from_server] in &recorded {
        for secret in &secrets {
            let seen = contains(from_client, secret) || contains(from_server, secret);
            assert!(!seen, "{:?} was seen", String::from_utf8_lossy(secret));
        }
        // Only lengths that tell how many messages there were, one reply to each.
        let (replies, rest) = ((from_server.len() - 42) / 1554, (from_server.len() - 42) % 1554);
        assert_eq!(rest, 0);
        let more = replies.saturating_sub(1) * 1554;
        let expected: &[usize] = if replies == 0 { &[0] } else { &[1843 + more, 1587 + more] };
        assert!(expected.contains(&from_client.len()), "{} bytes for {replies} replies", from_client.len());
    }

    // And nobody wrote a name into a log.
    for process in nodes.iter().chain([&client1, &client2]).map(|node| &node.process).chain([&server.process]) {
        let log = process.stderr();
        assert!(!log.contains(USER) && !log.contains(&server.fingerprint), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_is_refused_until_it_is_pinned() {
    let dir = Scratch::new("auth-key");
    let net = NetProcess::start(PROGRAM);
    let address = own_address();
    let mut before = ServerProcess::start(PROGRAM, &dir.path().join("before"), address, &[]);
    let alice = Computer::new(dir.path().join("alice"), net.proxy, address);
    alice.with_password("sign-up", PASSWORD).done("signed up; now: bulbil auth sign-in");
    alice.with_password("sign-in", PASSWORD).done("signed in, session 1");
    assert!(before.process.terminate().success());

    let after = ServerProcess::start(PROGRAM, &dir.path().join("after"), address, &[]);
    for refused in [
        alice.with_password("sign-in", PASSWORD),
        alice.with_password("sign-up", PASSWORD),
        alice.run("act", &[], &["read"]),
        alice.run("disconnect", &[], &[]),
    ] {
        let told = refused.stderr.clone();
        assert!(told.contains(&before.fingerprint) && told.contains(&after.fingerprint), "{told}");
        refused.failed("HAS CHANGED");
    }
    assert_eq!(users(&dir.path().join("after")), "");
    let pinned = ["--fingerprint", after.fingerprint.as_str()];
    alice.run("disconnect", &pinned, &[]).failed("bulbil auth sign-in");
    alice.with_password("sign-up", PASSWORD).done("signed up; now: bulbil auth sign-in");
    alice.run("act", &["--fingerprint", &before.fingerprint], &["read"]).failed("not the one that --fingerprint names");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_reached_is_told_apart() {
    let dir = Scratch::new("auth-nobody");
    let net = NetProcess::start(PROGRAM);
    let nobody = own_address();
    let alice = Computer::new(dir.path().join("alice"), net.proxy, nobody);
    alice.run("disconnect", &[], &[]).failed("nobody listens at the server's address");
    let no_proxy = Computer::new(dir.path().join("alice"), nobody, nobody);
    no_proxy.run("disconnect", &[], &[]).failed("is a client node running");
    let no_account = ["auth", "disconnect", "--socks", "127.0.0.1:1", "alice"];
    assert_eq!(ended(Process::start(PROGRAM, no_account)).code, 2);
}

/// A server that announces a key which it does not hold is not remembered, whether the key is pinned or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_only_announced_is_not_remembered() {
    let dir = Scratch::new("auth-announced");
    let net = NetProcess::start(PROGRAM);
    let server = ServerProcess::start(PROGRAM, &dir.path().join("server"), own_address(), &[]);
    let middle = Middle::start(server.address).await;
    let alice = Computer::new(dir.path().join("alice"), net.proxy, middle.address);
    let known = KnownServers::of(&alice.state);
    for how in [Meddling::Silent, Meddling::Garbage] {
        middle.does(how);
        for options in [&[][..], &["--fingerprint", &server.fingerprint]] {
            // Nobody is asked for a password either: there would be no terminal.
            let told = alice.run("sign-up", options, &[]);
            assert!(told.stderr.contains(&server.fingerprint), "{}", told.stderr);
            assert!(!told.stderr.contains("first time"), "{}", told.stderr);
            told.failed("does not show that it holds it");
            assert!(!known.path().exists());
        }
    }
    middle.does(Meddling::None);
    let met = alice.with_password("sign-up", PASSWORD);
    assert!(met.stderr.contains("first time"), "{}", met.stderr);
    met.done("signed up; now: bulbil auth sign-in");
    let remembered = known.find(&Target::from(middle.address)).unwrap().unwrap();
    assert_eq!(remembered.fingerprint().to_string(), server.fingerprint);
}

/// Whoever changes the greeting makes no client hash, and none ask for a password.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_the_server_says_how_passwords_are_hashed() {
    let dir = Scratch::new("auth-greeting");
    let net = NetProcess::start(PROGRAM);
    let server = ServerProcess::start(PROGRAM, &dir.path().join("server"), own_address(), &[]);
    let middle = Middle::start(server.address).await;
    let alice = Computer::new(dir.path().join("alice"), net.proxy, middle.address);
    for command in ["sign-up", "sign-in"] {
        middle.does(Meddling::None);
        alice.run(command, &[], &[]).failed("no terminal to ask for the password");
        middle.does(Meddling::Dearest);
        alice.run(command, &[], &[]).failed("the server closed the connection without an answer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_at_once_have_one_session() {
    let dir = Scratch::new("auth-at-once");
    let net = NetProcess::start(PROGRAM);
    let state = dir.path().join("server");
    let server = ServerProcess::start(PROGRAM, &state, own_address(), &[]);
    let first = Computer::new(dir.path().join("first"), net.proxy, server.address);
    first.with_password("sign-up", PASSWORD).done("signed up; now: bulbil auth sign-in");
    // On a computer that has no session yet.
    let second = Computer::new(dir.path().join("second"), net.proxy, server.address);
    let file = second.password_file(PASSWORD);
    let commands: Vec<_> = (0..4).map(|_| second.start("sign-in", &["--password-file", &file], &[])).collect();
    let mut said: Vec<_> = commands.into_iter().map(ended).collect();
    said.sort_by_key(|ended| ended.stdout.len());
    let mut said = said.into_iter();
    said.next().unwrap().done("signed in, session 1");
    said.for_each(|ended| ended.done("already signed in on this computer, session 1"));
    assert_eq!(users(&state), format!("{USER} connected 1 session"));
    second.run("act", &[], &["write", NOTE]).done("note kept");
    let sessions = Sessions::of(&second.state).unwrap();
    let key = KnownServers::of(&second.state).find(&Target::from(server.address)).unwrap().unwrap();
    let session = sessions.load(&key, &Username::new(USER).unwrap()).unwrap().unwrap();
    assert_eq!(session.standing(), Standing::SignedIn(SessionNumber(1)));
}
