//! Host nodes and constrained nodes on one bridge, in a network namespace of the test's own: constrained nodes are processes on TAP devices.
//!
//! Without the usual harness, because a namespace can only be entered before the first thread starts. Where the kernel allows no namespace or no TAP
//! device, this says so and passes, unless `BULBIL_TEST_TAP=1` is set.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream as KernelStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bulbil_core::link::Connector;
use bulbil_core::link::noise::MESSAGE1_LEN;
use bulbil_core::phonebook::{HopCount, Strictness};
use bulbil_core::wire::cell::BODY_LEN;
use bulbil_core::wire::{Policy, Target};
use bulbil_firmware_sim::linux::config_file::Profile;
use bulbil_firmware_sim::linux::stage::{NodeSpec, RunningNode, Stage, host_addresses, pinned};
use bulbil_host::config::Bootstrap;
use bulbil_host::node::{CircuitStream, Intervals, Node, OpenOptions, SendOptions, Sizes};
use bulbil_host::random::SYSTEM;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::time::timeout;

const MIB: usize = 1 << 20;
/// How long anything may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(300);
const SIZES: Sizes = Sizes { links: 64, circuits: 256, cells: 8192, onions: 64, origins: 128, replay: 1 << 14 };

static STAGE: OnceLock<Mutex<Stage>> = OnceLock::new();

fn main() -> ExitCode {
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    if !arguments.list {
        let stage = Stage::enter().and_then(|_| Stage::new(env!("CARGO_BIN_EXE_firmware-under-test")));
        match stage {
            Ok(stage) => assert!(STAGE.set(Mutex::new(stage)).is_ok(), "there is one stage"),
            Err(reason) => {
                eprintln!("the stage cannot be set here: {reason}");
                let required = std::env::var_os("BULBIL_TEST_TAP").is_some_and(|value| value == "1");
                return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
            }
        }
    }
    let trials = vec![
        trial("requests_cross_paths_of_every_mix", every_mix),
        trial("64_mib_each_way_cross_a_constrained_relay", bulk),
        trial("eight_circuits_share_a_constrained_relay_fairly", fair),
        trial("transfers_survive_loss", || impaired(&["loss=1", "loss=5"])),
        trial("transfers_survive_reordering_and_duplicates", || impaired(&["reorder=10", "duplicate=10"])),
        trial("transfers_survive_100_ms_of_delay", || impaired(&["delay=100ms"])),
        trial("transfers_survive_everything_at_once", || {
            impaired(&["loss=2,reorder=5,duplicate=2,corrupt=1,delay=20ms"]);
        }),
        trial("a_flood_is_refused_and_takes_no_memory", flood),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: &str, run: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || -> Result<(), Failed> {
        run();
        Ok(())
    })
}

fn start(spec: NodeSpec) -> RunningNode {
    let stage = STAGE.get().expect("the stage is set");
    let node = stage.lock().unwrap_or_else(PoisonError::into_inner).start(&spec).unwrap();
    node.wait_ready().unwrap();
    node
}

fn relay(profile: Profile) -> RunningNode {
    start(NodeSpec { profile, relay: true, ..NodeSpec::default() })
}

fn everywhere() -> Policy {
    "accept *:*".parse().unwrap()
}

fn host(number: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(host_addresses(number).0), 0)
}

/// Hosts ask for no descriptors: an exchange of theirs would have a place that a test counts on.
const CALM: Intervals = Intervals {
    exchange: None,
    test: Duration::from_secs(600),
    retry: Duration::from_secs(600),
    save: Duration::from_secs(3600),
};

async fn host_node(number: u8, relay: bool, exit: bool) -> Node {
    let builder = Node::builder().listen(host(number)).sizes(SIZES).intervals(CALM);
    let builder = if relay { builder.relay() } else { builder };
    if exit { builder.exit(everywhere()) } else { builder }.start().await.unwrap()
}

fn contact(node: &Node) -> Bootstrap {
    pinned(node.local_addr().unwrap(), node.fingerprint())
}

/// A client that knows these nodes and puts `hops` of them on its paths.
async fn client(contacts: &[Bootstrap], hops: u8) -> Node {
    let builder = Node::builder().sizes(SIZES).intervals(CALM).paths(HopCount::new(hops).unwrap(), Strictness::Ignore);
    let node = contacts.iter().fold(builder, |builder, contact| builder.bootstrap(*contact)).start().await.unwrap();
    timeout(PATIENCE, node.ready(PATIENCE)).await.unwrap().unwrap();
    node
}

/// Serves every connection on a host's address with `serve`.
async fn target<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(tokio::net::TcpStream) -> F + Send + 'static,
) -> Target {
    let listener = TcpListener::bind(host(4)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    Target::from(address)
}

async fn echo() -> Target {
    target(|mut stream| async move {
        let (mut from, mut to) = stream.split();
        let _broken_off = tokio::io::copy(&mut from, &mut to).await;
        let _broken_off = to.shutdown().await;
    })
    .await
}

/// The byte at `at` of what is sent.
const fn pattern(at: usize) -> u8 {
    (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]
}

/// Sends `len` bytes through an echo and reads them back at the same time, byte for byte.
async fn there_and_back(circuit: CircuitStream, len: usize) {
    let (mut from, mut to) = tokio::io::split(circuit);
    let sending = async {
        let mut sent = 0;
        while sent < len {
            let part: Vec<u8> = (sent..len.min(sent + 64 * 1024)).map(pattern).collect();
            to.write_all(&part).await.unwrap();
            sent += part.len();
        }
        to.shutdown().await.unwrap();
    };
    let receiving = async {
        let mut received = 0;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from.read(&mut buffer).await.unwrap();
            if read == 0 {
                break;
            }
            let right = buffer[..read].iter().enumerate().all(|(at, byte)| *byte == pattern(received + at));
            assert!(right, "a wrong byte within {read} at {received}");
            received += read;
        }
        assert_eq!(received, len);
    };
    timeout(PATIENCE, async { tokio::join!(sending, receiving) }).await.expect("in time");
}

fn every_mix() {
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let hosts = [host_node(1, true, false).await, host_node(2, true, true).await];
        let relays = [relay(Profile::Small), relay(Profile::Small)];
        let exit = start(NodeSpec { exit: Some(vec!["accept *:*".into()]), ..NodeSpec::default() });
        let target = echo().await;
        let constrained = [relays[0].fingerprint(), relays[1].fingerprint(), exit.fingerprint()];
        let all = [contact(&hosts[0]), contact(&hosts[1]), relays[0].pinned(), relays[1].pinned(), exit.pinned()];
        let mut seen = BTreeSet::new();
        let mut requests = 0;
        // The exit on a host takes all three relays that are left; the constrained one any three of the four.
        let wanted = 3 + 6;
        while seen.len() < wanted {
            // First hops are guards, which a client keeps: another client has others.
            let client = client(&all, 4).await;
            for _ in 0..8 {
                assert!(requests < 400, "only these mixes came up: {seen:?}");
                requests += 1;
                let mut circuit = client.open(target.clone(), OpenOptions::default()).await.unwrap();
                circuit.write_all(b"which way?").await.unwrap();
                circuit.shutdown().await.unwrap();
                let mut answer = Vec::new();
                timeout(PATIENCE, circuit.read_to_end(&mut answer)).await.unwrap().unwrap();
                assert_eq!(answer, b"which way?");
                let mix: String =
                    circuit.path().iter().map(|hop| if constrained.contains(&hop.node) { 'c' } else { 'h' }).collect();
                assert_eq!(mix.len(), 4);
                seen.insert(mix);
            }
            let mut answers = client.send(target.clone(), b"sign this", SendOptions::default()).await.unwrap();
            assert_eq!(timeout(PATIENCE, answers.whole(1024)).await.unwrap().unwrap(), b"sign this");
            assert!(answers.receipt().is_some());
            client.shutdown().await;
        }
        println!("{requests} requests: {seen:?}");
    });
}

fn bulk() {
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let hosts = [host_node(1, true, false).await, host_node(2, true, false).await, host_node(3, false, true).await];
        for (profile, len) in [(Profile::Small, 64 * MIB), (Profile::Medium, 16 * MIB)] {
            let relay = relay(profile);
            let contacts = [contact(&hosts[0]), contact(&hosts[1]), relay.pinned(), contact(&hosts[2])];
            let client = client(&contacts, 4).await;
            let target = echo().await;
            let circuit = client.open(target, OpenOptions::default()).await.unwrap();
            assert!(circuit.path().iter().any(|hop| hop.node == relay.fingerprint()));
            there_and_back(circuit, len).await;
            let report = relay.report().unwrap();
            let cells = (len / BODY_LEN) as u64;
            assert!(report.done.forward > cells && report.done.backward > cells, "it went through this relay");
            client.shutdown().await;
        }
    });
}

fn fair() {
    const CIRCUITS: usize = 8;
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let exit = host_node(1, false, true).await;
        let relay = relay(Profile::Medium);
        let client = client(&[relay.pinned(), contact(&exit)], 2).await;
        let endless = target(|mut stream| async move {
            let bytes = vec![7; 64 * 1024];
            while stream.write_all(&bytes).await.is_ok() {}
        })
        .await;
        let counts: Arc<[AtomicUsize; CIRCUITS]> = Arc::default();
        let begun: Arc<OnceLock<[usize; CIRCUITS]>> = Arc::default();
        let mut tasks = tokio::task::JoinSet::new();
        for at in 0..CIRCUITS {
            // One after another: a relay of this size has room for few onions at a time, and says "busy" to the rest.
            let mut circuit = client.open(endless.clone(), OpenOptions::default()).await.unwrap();
            circuit.connected().await.unwrap();
            let (counts, begun) = (Arc::clone(&counts), Arc::clone(&begun));
            tasks.spawn(async move {
                let mut buffer = vec![0; 16 * 1024];
                loop {
                    let read = circuit.read(&mut buffer).await.unwrap();
                    assert!(read > 0, "an endless answer");
                    counts[at].fetch_add(read, Ordering::Relaxed);
                    let now: [usize; CIRCUITS] = std::array::from_fn(|at| counts[at].load(Ordering::Relaxed));
                    // What each gets from the moment at which all of them are well under way.
                    if now.iter().all(|count| *count > MIB / 16) {
                        let begun = begun.get_or_init(|| now);
                        let since: [usize; CIRCUITS] = std::array::from_fn(|at| now[at].saturating_sub(begun[at]));
                        if since.iter().all(|count| *count > MIB) {
                            return since;
                        }
                    }
                    assert!(now.iter().sum::<usize>() < 64 * MIB, "one gets nothing while the others do: {now:?}");
                }
            });
        }
        let first = timeout(PATIENCE, tasks.join_next()).await.unwrap().unwrap().unwrap();
        let (least, most) = (first.iter().min().unwrap(), first.iter().max().unwrap());
        println!("bytes until the last one had a MiB: {first:?}");
        assert!(4 * most < 5 * least, "{first:?}");
        tasks.shutdown().await;
        assert_eq!(relay.report().unwrap().done.busy, 0);
    });
}

fn impaired(faults: &[&str]) {
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let exit = host_node(1, false, true).await;
        for text in faults {
            let spec = NodeSpec { relay: true, faults: text.parse().unwrap(), ..NodeSpec::default() };
            let relay = start(spec);
            let client = client(&[relay.pinned(), contact(&exit)], 2).await;
            let circuit = client.open(echo().await, OpenOptions::default()).await.unwrap();
            there_and_back(circuit, MIB / 4).await;
            client.shutdown().await;
        }
    });
}

/// What somebody who floods a port does with a connection.
fn attack(number: usize, victim: SocketAddr) -> Option<KernelStream> {
    let mut stream = KernelStream::connect_timeout(&victim, Duration::from_millis(300)).ok()?;
    stream.set_nonblocking(true).ok()?;
    match number % 4 {
        0 => {
            let _more_or_less = stream.write(&[0x5a; 3000]);
        }
        1 => {}
        // A handshake's first message, and no eye for the answer.
        2 => {
            let mut message = [0; MESSAGE1_LEN];
            let _connector = Connector::start(&mut SYSTEM.clone(), &mut message);
            let _more_or_less = stream.write(&(message.len() as u16).to_be_bytes());
            let _more_or_less = stream.write(&message);
        }
        _ => {
            let _more_or_less = stream.write(&[0xff, 0xff, 0]);
        }
    }
    Some(stream)
}

fn flood() {
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let exit = host_node(1, false, true).await;
        let relay = relay(Profile::Small);
        let steady = client(&[relay.pinned(), contact(&exit)], 2).await;
        let echo = echo().await;
        let mut circuit = steady.open(echo.clone(), OpenOptions::default()).await.unwrap();
        let goes_on = async |circuit: &mut CircuitStream| {
            let line = [0x42; 2000];
            circuit.write_all(&line).await.unwrap();
            let mut back = [0; 2000];
            timeout(PATIENCE, circuit.read_exact(&mut back)).await.expect("an open circuit goes on").unwrap();
            assert_eq!(line, back);
        };
        goes_on(&mut circuit).await;
        let before = relay.report().unwrap();

        // A reader that never reads, of an answer without end.
        let endless = target(|mut stream| async move {
            let bytes = vec![7; 64 * 1024];
            while stream.write_all(&bytes).await.is_ok() {}
        })
        .await;
        let mut unread = steady.open(endless, OpenOptions::default()).await.unwrap();
        unread.connected().await.unwrap();

        // Links: far more than there are places for.
        let mut held = Vec::new();
        for number in 0..60 {
            held.extend(attack(number, relay.address()));
            goes_on(&mut circuit).await;
        }
        let during = relay.report().unwrap();
        // A connection that was refused or given up has been reset, or ended.
        let mut refused = 0;
        for stream in &mut held {
            let mut buffer = [0; 16 * 1024];
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) => break refused += 1,
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(_) => break refused += 1,
                }
            }
        }
        drop(held);

        // Circuits and onions: far more than there are places for, through the same relay.
        let crowd = client(&[relay.pinned(), contact(&exit)], 2).await;
        let mut opening = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let (crowd, target) = (crowd.clone(), echo.clone());
            opening.spawn(async move {
                let options = OpenOptions { deadline: Duration::from_secs(8), ..OpenOptions::default() };
                let mut circuit = crowd.open(target, options).await.map_err(|error| error.to_string())?;
                circuit.connected().await.map_err(|error| error.to_string())?;
                Ok::<_, String>(circuit)
            });
        }
        let (mut open, mut reasons) = (Vec::new(), BTreeSet::new());
        while let Some(opened) = opening.join_next().await {
            match opened.unwrap() {
                Ok(circuit) => open.push(circuit),
                Err(reason) => {
                    reasons.insert(reason);
                }
            }
            goes_on(&mut circuit).await;
        }
        println!("{refused} connections refused; {} circuits open; others: {reasons:?}", open.len());
        let full = relay.report().unwrap();
        assert!(refused > 30, "{refused} of 60");
        assert!(!open.is_empty() && open.len() < full.places.circuits, "{} circuits", open.len());
        assert!(!reasons.is_empty() && full.done.busy > 0, "the rest is told why: {reasons:?}");
        drop((open, unread));
        crowd.shutdown().await;
        goes_on(&mut circuit).await;
        let after = relay.report().unwrap();
        for (when, report) in [("during", &during), ("full", &full), ("after", &after)] {
            assert_eq!(report.measured.heap_in_use, before.measured.heap_in_use, "{when}: the same, to the byte");
        }
    });
}
