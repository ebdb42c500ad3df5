//! Nodes find each other: processes that know one address each, and nodes in this process where something has to be set that no
//! configuration sets.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bulbil_core::crypto::identity::IdentitySecret;
use bulbil_core::phonebook::{HopCount, StoredBook, Strictness};
use bulbil_core::wire::policy::Policy;
use bulbil_core::wire::{OnionKeyKind, Service, Target as Where};
use bulbil_host::config::Bootstrap;
use bulbil_host::control::book::{NodeLine, Shelf};
use bulbil_host::control::client::Client;
use bulbil_host::control::{Ask, Reply};
use bulbil_host::node::{
    ClockVerdict, EndReason, Intervals, Known, Node, NodeBuilder, OpenError, SendOptions, Sizes, WallClock,
};
use bulbil_host::state::StateDir;
use bulbil_tests::fixture;
use bulbil_tests::processes::{NodeProcess, Process, own_address, start_node};
use bulbil_tests::scratch::Scratch;
use bulbil_tests::socks;
use bulbil_tests::targets::{Target, serve_each};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

const PROGRAM: &str = env!("CARGO_BIN_EXE_bulbil-under-test");

/// How long something may take that depends on many nodes. Long, because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at whether it has come about.
const LOOK: Duration = Duration::from_millis(200);

/// Asks until the answer is good; `what` and the last answer tell why not.
async fn until<T: std::fmt::Debug>(what: &str, mut ask: impl AsyncFnMut() -> Result<(), T>) {
    let begun = Instant::now();
    while let Err(answer) = ask().await {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}: {answer:?}");
        tokio::time::sleep(LOOK).await;
    }
    eprintln!("{what}: after {:.1} s", begun.elapsed().as_secs_f32());
}

/// A node in a process of its own, small and in a hurry.
fn config(dir: &Path, name: &str, roles: &[&str], contacts: &[String]) -> PathBuf {
    let listen =
        if roles.contains(&"relay") || roles.contains(&"exit") { vec![own_address().to_string()] } else { vec![] };
    let text = format!(
        "state = \"{name}.state\"\nroles = {roles:?}\nlisten = {listen:?}\nbootstrap = {contacts:?}\n\
         [socks]\nlisten = [\"127.0.0.1:0\"]\n[exit]\npolicy = [\"accept *:*\"]\n[path]\nnetwork_groups = \"ignore\"\n\
         [phonebook]\nexchange_seconds = 1\ntest_seconds = 1\nretry_seconds = 1\nsave_seconds = 1\n\
         [limits]\nlinks = 64\nhalf_open_links = 32\ncircuits = 256\ncircuits_per_link = 128\ncells = 4096\nonions = 64\n\
         jobs_per_link = 32\nworkers = 1\n"
    );
    let path = dir.join(format!("{name}.toml"));
    std::fs::write(&path, text).unwrap();
    path
}

/// A running process and where its state lies.
struct Member {
    name: String,
    state: PathBuf,
    node: NodeProcess,
}

impl Member {
    fn start(dir: &Path, name: &str, roles: &[&str], contacts: &[String]) -> Self {
        let node = NodeProcess::start(PROGRAM, &config(dir, name, roles, contacts));
        Self { name: name.into(), state: dir.join(format!("{name}.state")), node }
    }

    fn serves(&self) -> bool {
        self.node.listening.is_some()
    }

    /// Its phonebook.
    fn list(&self) -> Vec<NodeLine> {
        let client = Client::connect(&self.state).unwrap().expect("the node runs");
        match client.ask(Ask::List, &[]).unwrap().0 {
            Reply::List(lines) => lines,
            other => panic!("{other:?}"),
        }
    }
}

fn ids<'a>(members: impl IntoIterator<Item = &'a Member>) -> BTreeSet<String> {
    members.into_iter().filter(|member| member.serves()).map(|member| member.node.fingerprint.clone()).collect()
}

/// Waits until every one of `members` knows exactly those of them that answer links, and has met them all.
async fn all_know_all(what: &str, members: &[Member]) {
    let all = ids(members);
    until(what, async || {
        let lacking: Vec<_> = members
            .iter()
            .filter_map(|member| {
                let list = member.list();
                let known: BTreeSet<_> = list.iter().map(|line| line.fingerprint.to_string()).collect();
                let mut wanted = all.clone();
                wanted.remove(&member.node.fingerprint);
                let met = list.iter().filter(|line| line.shelf == Shelf::Tried).count();
                let good = known == wanted && met == wanted.len();
                (!good).then(|| (member.name.clone(), known.len(), met))
            })
            .collect();
        if lacking.is_empty() { Ok(()) } else { Err(lacking) }
    })
    .await;
}

async fn page(proxy: SocketAddr, port: u16) -> Result<Vec<u8>, socks::Refused> {
    let fetch = async {
        let stream = socks::connect(proxy, "localhost", port, None).await?;
        Ok(socks::get(stream, "/").await?.1)
    };
    tokio::time::timeout(PATIENCE, fetch).await.expect("an answer within the deadline, good or bad")
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_processes_that_know_one_address_each_outlive_the_four_that_they_began_with() {
    let dir = Scratch::new("twenty");
    let target = Target::start().await;
    let mut members: Vec<Member> = Vec::new();
    // Three relays and an exit; the others have the first one's address.
    for number in 1..=4 {
        let contacts: Vec<_> = members.first().iter().map(|first| first.node.contact()).collect();
        let role = if number == 4 { "exit" } else { "relay" };
        members.push(Member::start(dir.path(), &format!("primordial{number}"), &[role], &contacts));
    }
    // Each has the address of one that was there before, of all ages; the last is a client.
    for number in 5..=20 {
        let contact = members[number * 7 % members.len()].node.contact();
        let role = match number {
            20 => "client",
            _ if number % 4 == 0 => "exit",
            _ => "relay",
        };
        members.push(Member::start(dir.path(), &format!("{role}{number}"), &[role], &[contact]));
    }
    let proxy = members[19].node.proxy();
    page(proxy, target.port()).await.expect("a client needs not know all of them");
    all_know_all("all know all", &members).await;
    for _ in 0..5 {
        page(proxy, target.port()).await.unwrap();
    }

    let mut dead: Vec<_> = members.drain(..4).collect();
    for member in &mut dead {
        member.node.process.kill();
    }
    for _ in 0..20 {
        page(proxy, target.port()).await.expect("a way around the dead");
    }
    // Whichever of the survivors a newcomer knows, an exit among them.
    let newcomers: Vec<_> = ["relay5", "exit8", "relay14"]
        .iter()
        .map(|known| {
            let contact = members.iter().find(|member| member.name == *known).unwrap().node.contact();
            Member::start(dir.path(), &format!("newcomer-{known}"), &["relay", "client"], &[contact])
        })
        .collect();
    for newcomer in &newcomers {
        page(newcomer.node.proxy(), target.port()).await.expect("a way for somebody new");
    }
    members.extend(newcomers);
    all_know_all("the dead have left every phonebook, and the newcomers are in all", &members).await;
    page(proxy, target.port()).await.unwrap();

    // Nobody who was met is named in a log.
    let secrets: Vec<_> = ids(&members).into_iter().collect();
    for member in &mut members {
        assert!(member.node.process.terminate().success(), "{}: {}", member.name, member.node.process.stderr());
        let log = member.node.process.stderr();
        assert!(!secrets.iter().any(|secret| log.contains(secret)), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_knows_survives_its_end_however_it_ends() {
    let dir = Scratch::new("kept");
    let mut members: Vec<Member> = Vec::new();
    for number in 1..=4 {
        let contacts: Vec<_> = members.first().iter().map(|first| first.node.contact()).collect();
        members.push(Member::start(dir.path(), &format!("relay{number}"), &["relay"], &contacts));
    }
    all_know_all("four know each other", &members).await;
    let all = ids(&members);
    let mut last = members.pop().unwrap();
    let kept = last.state.join("phonebook");
    until("all three are written", async || match written(&kept) {
        3 => Ok(()),
        fewer => Err(fewer),
    })
    .await;

    // From now on it has nobody's address but those that it has kept.
    let text = std::fs::read_to_string(dir.path().join("relay4.toml")).unwrap();
    let without: String =
        text.lines().filter(|line| !line.starts_with("bootstrap")).map(|line| format!("{line}\n")).collect();
    std::fs::write(dir.path().join("relay4.toml"), without).unwrap();
    for round in 0..4 {
        // In the middle of a write, sooner or later, and once for certain: this is what one leaves behind.
        last.node.process.kill();
        if round == 3 {
            std::fs::write(last.state.join(".phonebook.new"), b"bulbil-state 1 phonebook 999999 00").unwrap();
        }
        last.node = NodeProcess::start(PROGRAM, &dir.path().join("relay4.toml"));
        let known: BTreeSet<_> = last.list().iter().map(|line| line.fingerprint.to_string()).collect();
        let mut wanted = all.clone();
        wanted.remove(&last.node.fingerprint);
        assert_eq!(known, wanted, "round {round}");
        // And it is told of by others again: its new onion key is heard of.
        let begun = modified(&kept);
        until("it is written again", async || if modified(&kept) > begun { Ok(()) } else { Err(begun) }).await;
    }

    // A file that was damaged is nothing to go on with, nor to throw away.
    assert!(last.node.process.terminate().success());
    let mut bytes = std::fs::read(&kept).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&kept, &bytes).unwrap();
    let mut damaged = start_node(PROGRAM, &dir.path().join("relay4.toml"));
    assert_eq!(damaged.end().code(), Some(1));
    let told = damaged.stderr();
    assert!(told.starts_with("error: ") && told.contains("relay4.state/phonebook"), "{told}");
    assert!(told.contains("move it away and start anew"), "{told}");
    assert_eq!(std::fs::read(&kept).unwrap(), bytes, "it was left as it is");
    std::fs::remove_file(&kept).unwrap();
    let anew: Process = NodeProcess::start(PROGRAM, &dir.path().join("relay4.toml")).process;
    drop(anew);
}

/// How many nodes are in the file of a phonebook.
fn written(path: &Path) -> usize {
    let Ok(bytes) = std::fs::read(path) else { return 0 };
    let content = bytes.splitn(2, |byte| *byte == b'\n').nth(1).expect("a first line and the content");
    StoredBook::parse(content).expect("a whole phonebook").entries().count()
}

fn modified(path: &Path) -> std::time::SystemTime {
    path.metadata().unwrap().modified().unwrap()
}

/// Milliseconds, so that nobody waits.
const INTERVALS: Intervals = Intervals {
    exchange: Some(Duration::from_millis(400)),
    test: Duration::from_millis(100),
    retry: Duration::from_secs(1),
    save: Duration::from_secs(300),
};
const SMALL: Sizes = Sizes { links: 64, circuits: 1024, cells: 8192, onions: 256, origins: 512, replay: 1 << 16 };

fn node(contacts: &[&Node]) -> NodeBuilder {
    let builder = Node::builder().sizes(SMALL).intervals(INTERVALS).paths(HopCount::default(), Strictness::Ignore);
    contacts.iter().fold(builder, |builder, contact| {
        let (address, fingerprint) = (contact.local_addr().unwrap(), Some(contact.fingerprint()));
        builder.bootstrap(Bootstrap { address, fingerprint })
    })
}

/// Three relays and an exit that know each other.
async fn four(change: impl Fn(NodeBuilder) -> NodeBuilder) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for number in 0..4 {
        let contacts: Vec<_> = nodes.first().into_iter().collect();
        let builder = change(node(&contacts).listen(own_address()));
        let builder = if number == 3 { builder.exit(Policy::loopback()) } else { builder.relay() };
        nodes.push(builder.start().await.unwrap());
    }
    for each in &nodes {
        knows(each, 3).await;
    }
    nodes
}

async fn knows(node: &Node, count: usize) {
    until("all are met", async || {
        let known = node.known().await.unwrap();
        if known.iter().filter(|known| known.met).count() == count { Ok(()) } else { Err(known) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_clock_is_hours_wrong_says_so_and_forgets_nobody() {
    let nodes = four(|builder| builder).await;
    let clock = WallClock::default();
    let wrong = node(&[&nodes[0]]).clock(clock.clone()).listen(own_address()).relay().start().await.unwrap();
    knows(&wrong, 4).await;
    until("the clock is right", async || match wrong.clock().await.unwrap() {
        ClockVerdict::Agrees => Ok(()),
        other => Err(other),
    })
    .await;

    for hours in [5i64, -7] {
        clock.set_ahead(hours * 3600);
        until("the clock is wrong", async || match wrong.clock().await.unwrap() {
            ClockVerdict::Off { seconds, peers: 3.. } if (seconds - hours * 3600).abs() < 600 => Ok(()),
            other => Err(other),
        })
        .await;
        // Everybody refuses everybody's descriptor now, many times over.
        let refused = async || wrong.status().await.unwrap().ends.handshake;
        let before = refused().await;
        until("links are refused", async || {
            let now = refused().await;
            if now >= before + 8 { Ok(()) } else { Err(now) }
        })
        .await;
        let known = wrong.known().await.unwrap();
        assert_eq!(known.len(), 4, "{known:?}");
        assert!(known.iter().all(|known| known.met && known.failures == 0), "{known:?}");
    }

    clock.set_ahead(0);
    until("the clock is right again", async || match wrong.clock().await.unwrap() {
        ClockVerdict::Agrees => Ok(()),
        other => Err(other),
    })
    .await;
    knows(&wrong, 4).await;
    for node in nodes.iter().chain([&wrong]) {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_clock_is_set_signs_its_descriptor_anew() {
    let clock = WallClock::default();
    // Its descriptor is valid for three hours, of which it believes that they have just begun.
    clock.set_ahead(-(2 * 3600 + 40 * 60));
    let late = node(&[]).clock(clock.clone()).listen(own_address()).relay().start().await.unwrap();
    let other = node(&[&late]).listen(own_address()).relay().start().await.unwrap();
    knows(&other, 1).await;
    let sequence = async || other.known().await.unwrap().first().map_or(0, |known| known.sequence);
    let before = sequence().await;
    clock.set_ahead(0);
    until("it is known by its new descriptor", async || {
        let now = sequence().await;
        if now > before + 2 * 3_600_000 { Ok(()) } else { Err((before, now)) }
    })
    .await;
    late.shutdown().await;
    other.shutdown().await;
}

/// A target that gives back what it is sent.
async fn echo() -> SocketAddr {
    serve_each(|mut stream| async move {
        let mut request = Vec::new();
        let _read = stream.read_to_end(&mut request).await;
        let _written = stream.write_all(&request).await;
    })
    .await
}

/// Waits until a request over a whole path is answered.
async fn reaches(client: &Node, echo: SocketAddr) {
    until("a request is answered", async || {
        let options = SendOptions { sign: false, ..SendOptions::default() };
        let mut answers = client.send(Where::from(echo), b"there?", options).await?;
        answers.whole(64).await.map(|answer| assert_eq!(answer, b"there?"))
    })
    .await;
}

/// Four hours: longer than any descriptor is valid.
const LATER: i64 = 4 * 3600;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_off_for_four_hours_begins_with_all_that_it_knew() {
    let dir = Scratch::new("off");
    let clock = WallClock::default();
    let nodes = four(|builder| builder.clock(clock.clone())).await;
    let state = async || {
        let opened = RefCell::new(None);
        until("nobody has the state any more", async || {
            StateDir::open(&dir.path().join("state")).map(|state| *opened.borrow_mut() = Some(Arc::new(state)))
        })
        .await;
        opened.into_inner().unwrap()
    };
    let echo = echo().await;
    let client = node(&[&nodes[0]]).clock(clock.clone()).state(state().await).start().await.unwrap();
    knows(&client, 4).await;
    reaches(&client, echo).await;
    client.shutdown().await;
    drop(client);
    let guards = || std::fs::read(dir.path().join("state/guards")).unwrap();
    let kept = guards();

    // Everybody else lives on, and signs descriptors anew.
    clock.set_ahead(LATER);
    let client = node(&[]).clock(clock.clone()).state(state().await).start().await.unwrap();
    let known = client.known().await.unwrap();
    assert_eq!(known.iter().filter(|known| known.met).count(), 4, "{known:?}");
    reaches(&client, echo).await;
    knows(&client, 4).await;
    let renewed = |then: &[Known], now: &[Known]| {
        then.iter().zip(now).all(|(then, now)| then.node == now.node && then.sequence < now.sequence)
    };
    until("all are known by new descriptors", async || {
        let now = client.known().await.unwrap();
        if renewed(&known, &now) { Ok(()) } else { Err(now) }
    })
    .await;
    assert_eq!(guards(), kept);
    for node in nodes.iter().chain([&client]) {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_cut_off_for_four_hours_finds_its_way_back() {
    let clock = WallClock::default();
    let addresses: Vec<_> = (0..4).map(|_| own_address()).collect();
    let others = async || {
        let mut nodes: Vec<Node> = Vec::new();
        for (number, address) in addresses.iter().enumerate() {
            let contacts: Vec<_> = nodes.first().into_iter().collect();
            let identity = IdentitySecret::from_pkcs8(fixture::identity_der(number)).unwrap();
            let builder = node(&contacts).clock(clock.clone()).listen(*address).identity(identity);
            let builder = if number == 3 { builder.exit(Policy::loopback()) } else { builder.relay() };
            nodes.push(builder.start().await.unwrap());
        }
        nodes
    };
    let nodes = others().await;
    let echo = echo().await;
    let client = node(&[]).clock(clock.clone());
    let client = nodes.iter().fold(client, |client, node| {
        client.bootstrap(Bootstrap { address: node.local_addr().unwrap(), fingerprint: Some(node.fingerprint()) })
    });
    let client = client.start().await.unwrap();
    knows(&client, 4).await;
    reaches(&client, echo).await;

    // All at once: while one still answers, the failures of the others are theirs.
    let ending: JoinSet<()> = nodes.iter().cloned().map(|node| async move { node.shutdown().await }).collect();
    ending.join_all().await;
    let fails = async |more: u64| {
        let failed = async || client.status().await.unwrap().ends.failed;
        let before = failed().await;
        until("nobody answers", async || {
            let now = failed().await;
            if now >= before + more { Ok(()) } else { Err(now) }
        })
        .await;
    };
    fails(8).await;
    clock.set_ahead(LATER);
    fails(8).await;
    let known = client.known().await.unwrap();
    assert_eq!(known.iter().filter(|known| known.met).count(), 4, "{known:?}");

    let nodes = others().await;
    reaches(&client, echo).await;
    knows(&client, 4).await;
    for node in nodes.iter().chain([&client]) {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_under_traffic_and_no_request_is_lost() {
    let period = Duration::from_secs(6);
    let nodes = four(|builder| builder.onion_key(OnionKeyKind::XWing, period)).await;
    let client = node(&[&nodes[0]]).start().await.unwrap();
    knows(&client, 4).await;
    let echo = echo().await;
    let sequences = async || -> Vec<u64> { client.known().await.unwrap().iter().map(|known| known.sequence).collect() };
    let before = sequences().await;
    let begun = Instant::now();
    let mut sent = 0u32;
    // As long as every key takes to be replaced, and the one that replaced it.
    while sent < 300 || begun.elapsed() < 3 * period {
        let options = SendOptions { sign: sent.is_multiple_of(10), ..SendOptions::default() };
        let request = sent.to_be_bytes();
        let mut answers = client.send(Where::from(echo), &request, options).await.unwrap();
        assert_eq!(answers.whole(64).await.unwrap(), request, "request {sent}");
        sent += 1;
    }
    eprintln!("{sent} requests in {:.1} s", begun.elapsed().as_secs_f32());
    let after = sequences().await;
    assert!(before.iter().zip(&after).all(|(before, after)| after > before), "{before:?} {after:?}");
    for node in nodes.iter().chain([&client]) {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_for_descriptors_is_refused() {
    let nodes = four(|builder| builder).await;
    let client = node(&[&nodes[0]]).start().await.unwrap();
    knows(&client, 4).await;
    let too_long = [&[1, 1, 128][..], &[0; 9000]].concat();
    for request in [&b""[..], b"hello", &[1, 1, 0], &[2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &too_long] {
        let options = SendOptions { sign: false, ..SendOptions::default() };
        let mut answers = client.send(Where::Service(Service::Phonebook), request, options).await.unwrap();
        let error = answers.whole(1 << 20).await.unwrap_err();
        assert_eq!(error, OpenError::Ended(EndReason::Protocol), "{request:?}");
    }
    for node in nodes.iter().chain([&client]) {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phonebook_is_passed_on_over_a_whole_path() {
    let nodes = four(|builder| builder).await;
    let client = node(&[&nodes[0]]).start().await.unwrap();
    knows(&client, 4).await;
    let request = [&[1, 1, 128][..], &[0; 12]].concat();
    // Who is asked may not have met all others yet, and what it passes on is up to a second old.
    until("three others, and itself", async || {
        let options = SendOptions { sign: true, ..SendOptions::default() };
        let mut answers = client.send(Where::Service(Service::Phonebook), &request, options).await.unwrap();
        let answer = answers.whole(1 << 20).await.unwrap();
        if answer[..2] == [1, 4] { Ok(()) } else { Err(answer[..2].to_vec()) }
    })
    .await;
    assert!(client.known().await.unwrap().iter().all(|known| known.failures == 0));
    for node in nodes.iter().chain([&client]) {
        node.shutdown().await;
    }
}
