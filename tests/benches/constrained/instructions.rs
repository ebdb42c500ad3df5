//! Instructions for each cell, counted by callgrind on a virtual Ethernet: the same every time.

use std::net::SocketAddr;
use std::process::{Command, ExitCode};

use bulbil_core::phonebook::HopCount;
use bulbil_core::time::Instant;
use bulbil_core::wire::message::DATA_MAX;
use bulbil_tests::lan::{Lan, LanNode, PlainHost, Port, Profile, Switch, VirtualClock, address, anything, request};
use smoltcp::wire::IpAddress;

use super::forwarder::{self, Forwarder};

/// Sizes of the two transfers whose difference counts, in KiB: what opening the circuit costs is in both.
const KIB: [usize; 2] = [256, 2304];
const SOURCE: u16 = 19;

/// All that is counted.
#[inline(never)]
fn counted_relay(node: &mut LanNode) -> Instant {
    node.poll()
}

#[inline(never)]
fn counted_forwarder(
    plain: &mut Forwarder,
    device: &mut Port,
    now: smoltcp::time::Instant,
) -> Option<smoltcp::time::Instant> {
    plain.poll(device, now)
}

/// One transfer, in a process of its own; prints the cells, or their worth of bytes, that went through.
pub(crate) fn count(what: &str, kib: &str) -> ExitCode {
    let len = kib.parse::<usize>().expect("a number") * 1024;
    match what {
        "relay" => println!("{}", relay(len)),
        "forwarder" => println!("{}", forward(len)),
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

fn relay(len: usize) -> u64 {
    let mut lan = Lan::new();
    let relay = lan.serve(Profile::Medium, 1, true, None);
    let exit = lan.serve(Profile::Medium, 2, false, Some(anything()));
    let host = lan.plain(9, 1);
    lan.hosts[host].source(SOURCE, len, 1);
    let mut wanted = request(SocketAddr::new(address(9), SOURCE), b"go", None);
    wanted.hops = HopCount::new(2).expect("1 to 4");
    let client = lan.client(Profile::Medium, 20, &[relay, exit], wanted);
    while !lan.nodes[client].is_done() {
        lan.step_with(|at, node| if at == 0 { counted_relay(node) } else { node.poll() });
    }
    assert_eq!(lan.nodes[client].board_mut().told.answered, 1);
    lan.nodes[0].node().counters().backward
}

fn forward(len: usize) -> u64 {
    let clock = VirtualClock::default();
    let switch = Switch::new(&clock, 1);
    let mut device = switch.plug();
    let ip = |number| IpAddress::from(address(number));
    let mut plain = Forwarder::new(&mut device, ip(1), SocketAddr::new(address(9), SOURCE));
    let mut target = PlainHost::new(&clock, switch.plug(), 9, ip(9), 1);
    target.source(SOURCE, len, 1);
    let mut client = PlainHost::new(&clock, switch.plug(), 20, ip(20), 1);
    let stream = client.connect(SocketAddr::new(address(1), forwarder::PORT));
    let mut received = 0;
    while received < len {
        let now = clock.now();
        let due = counted_forwarder(&mut plain, &mut device, smoltcp::time::Instant::from_millis(now.millis() as i64));
        let due = due.map(|due| Instant::from_millis(due.total_millis() as u64));
        let next = [due, target.poll(), client.poll(), switch.next_due()].into_iter().flatten().min();
        while let Ok(read @ 1..) = client.socket(stream).recv(|bytes| (bytes.len(), bytes.len())) {
            received += read;
        }
        let next = next.unwrap_or(Instant::from_millis(now.millis() + 1));
        clock.advance_to(next.max(Instant::from_millis(now.millis() + 1)));
    }
    (received / DATA_MAX) as u64
}

pub(crate) fn run() {
    println!("instructions for each cell of {DATA_MAX} bytes (callgrind, x86-64 with its AES instructions)");
    for (what, name) in
        [("relay", "medium relay, links and relay-cell encryption"), ("forwarder", "smoltcp TCP forwarder, no onions")]
    {
        let counts = KIB.map(|kib| callgrind(what, kib));
        match counts {
            [Some(few), Some(many)] => {
                let each = (many.0 - few.0) as f64 / (many.1 - few.1) as f64;
                println!("  {name}: {each:.0}");
            }
            _ => println!("  {name}: not measured; is valgrind installed?"),
        }
    }
}

/// Instructions and cells of one transfer.
fn callgrind(what: &str, kib: usize) -> Option<(u64, u64)> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--toggle-collect=*counted_{what}*"))
        .arg(std::env::current_exe().ok()?)
        .args(["count", what, &kib.to_string()])
        .output()
        .ok()?;
    let cells = String::from_utf8(output.stdout).ok()?.trim().parse().ok()?;
    let said = String::from_utf8(output.stderr).ok()?;
    let collected = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok())?;
    Some((collected, cells))
}
