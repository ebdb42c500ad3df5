//! Bytes a second over TAP, and the relay's processor time for them.

use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bulbil_core::phonebook::{HopCount, Strictness};
use bulbil_core::wire::Target;
use bulbil_firmware_sim::linux::config_file::Profile;
use bulbil_firmware_sim::linux::namespace::Bridge;
use bulbil_firmware_sim::linux::stage::{BRIDGE, NodeSpec, Stage, host_addresses, pinned};
use bulbil_firmware_sim::linux::tap::Tap;
use bulbil_host::node::{Node, OpenOptions, Sizes};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::forwarder;

/// Bytes of one run.
const LEN: usize = 96 << 20;
/// Runs, of which the median counts.
const RUNS: usize = 5;
const SIZES: Sizes = Sizes { links: 64, circuits: 256, cells: 8192, onions: 64, origins: 128, replay: 1 << 14 };

struct Run {
    mbit: f64,
    cpu_per_gb: f64,
}

pub(crate) fn run() {
    let stage = Stage::enter().and_then(|_| Stage::new(env!("CARGO_BIN_EXE_firmware-under-test")));
    let mut stage = match stage {
        Ok(stage) => stage,
        Err(reason) => return println!("over TAP: not measured, {reason}"),
    };
    println!("over TAP, {} MiB a run, median of {RUNS} (least to most)", LEN >> 20);
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    runtime.block_on(async {
        for profile in [Profile::Small, Profile::Medium] {
            let relay = stage.start(&NodeSpec { profile, relay: true, ..NodeSpec::default() }).expect("a relay");
            relay.wait_ready().expect("a relay");
            let runs = through_relay(relay.pid(), relay.pinned()).await;
            show(&format!("{profile} relay, one circuit, from the exit to the client"), &runs);
            drop(relay);
        }
        let tap = "bulbil-plain";
        Tap::create_persistent(tap).expect("TAP devices");
        Bridge::existing(BRIDGE).attach(tap).expect("a bridge");
        let executable = std::env::current_exe().expect("a path");
        let mut plain =
            Command::new(executable).args(["forward", tap]).stdout(Stdio::piped()).spawn().expect("a process");
        let runs = through_forwarder(&mut plain).await;
        show("smoltcp TCP forwarder, no onions, the medium profile's windows", &runs);
        let _ended_already = plain.kill();
        let _gone = plain.wait();
    });
}

fn show(what: &str, runs: &[Run]) {
    let spread = |of: fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        (values[values.len() / 2], values[0], values[values.len() - 1])
    };
    let (mbit, cpu) = (spread(|run| run.mbit), spread(|run| run.cpu_per_gb));
    println!(
        "  {what}: {:.0} ({:.0}-{:.0}) Mbit/s, {:.2} ({:.2}-{:.2}) CPU s/GB",
        mbit.0, mbit.1, mbit.2, cpu.0, cpu.1, cpu.2
    );
}

/// Serves `LEN` bytes so many times to every connection.
async fn source(address: SocketAddr, times: usize) -> SocketAddr {
    let listener = TcpListener::bind(address).await.expect("an address of the stage");
    let address = listener.local_addr().expect("a listener has an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let bytes = vec![7; 1 << 20];
                for _ in 0..(times * LEN) >> 20 {
                    if stream.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                let _broken_off = stream.shutdown().await;
            });
        }
    });
    address
}

fn host(number: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(host_addresses(number).0), 0)
}

async fn through_relay(pid: u32, relay: bulbil_host::config::Bootstrap) -> Vec<Run> {
    let exit = Node::builder().listen(host(1)).sizes(SIZES).exit("accept *:*".parse().expect("a policy"));
    let exit = exit.start().await.expect("an exit");
    let contact = pinned(exit.local_addr().expect("it listens"), exit.fingerprint());
    let client = Node::builder().sizes(SIZES).paths(HopCount::new(2).expect("1 to 4"), Strictness::Ignore);
    let client = client.bootstrap(relay).bootstrap(contact).start().await.expect("a client");
    client.ready(Duration::from_secs(20)).await.expect("a path");
    let target = Target::from(source(host(4), 1).await);
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        let mut circuit = client.open(target.clone(), OpenOptions::default()).await.expect("a circuit");
        circuit.connected().await.expect("a target");
        runs.push(measure(pid, &mut circuit).await);
    }
    client.shutdown().await;
    exit.shutdown().await;
    runs
}

async fn through_forwarder(plain: &mut Child) -> Vec<Run> {
    let mut ready = [0; 6];
    std::io::Read::read_exact(plain.stdout.as_mut().expect("piped"), &mut ready).expect("it starts");
    // It takes one connection: the runs are parts of it.
    source(forwarder::TARGET, RUNS).await;
    let address = SocketAddr::from((forwarder::ADDRESS, forwarder::PORT));
    let mut runs = Vec::new();
    let mut stream = TcpStream::connect(address).await.expect("the forwarder");
    for _ in 0..RUNS {
        runs.push(measure(plain.id(), &mut stream).await);
    }
    runs
}

/// Reads `LEN` bytes and looks at the clock and at the process.
async fn measure(pid: u32, from: &mut (impl AsyncRead + Unpin)) -> Run {
    let (begun, cpu) = (Instant::now(), cpu_seconds(pid));
    let mut buffer = vec![0; 256 * 1024];
    let mut left = LEN;
    while left > 0 {
        let read = from.read(&mut buffer).await.expect("a whole answer");
        assert!(read > 0, "{left} bytes are missing");
        left -= read;
    }
    let seconds = begun.elapsed().as_secs_f64();
    Run { mbit: LEN as f64 * 8.0 / 1e6 / seconds, cpu_per_gb: (cpu_seconds(pid) - cpu) / (LEN as f64 / 1e9) }
}

/// User and system time of a process so far.
fn cpu_seconds(pid: u32) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    // Of every thread: nanoseconds on a processor, the first of three numbers.
    let nanos = tasks.flatten().filter_map(|task| {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<u64>().ok()
    });
    nanos.sum::<u64>() as f64 / 1e9
}
