//! Constrained nodes among themselves, on a virtual Ethernet with a virtual clock.

use std::net::SocketAddr;
use std::time::Duration;

use bulbil_core::wire::{CloseReason, EndReason, NodeId, Target};
use bulbil_firmware_sim::config::{Config, Contact};
use bulbil_firmware_sim::node::StartError;
use bulbil_firmware_sim::profile::Small;
use bulbil_tests::lan::{Lan, LanBoard, LanNode, Profile, address, anything, config, request, source_byte};
use sha2::{Digest as _, Sha256};

const ECHO: u16 = 7;
const SOURCE: u16 = 19;
const MINUTE: Duration = Duration::from_secs(60);

/// Three relays and an exit.
fn network(lan: &mut Lan, profile: Profile) -> [Contact; 4] {
    [
        lan.serve(profile, 1, true, None),
        lan.serve(profile, 2, true, None),
        lan.serve(profile, 3, true, None),
        lan.serve(profile, 4, false, Some(anything())),
    ]
}

/// A plain machine that echoes and answers with `len` bytes.
fn target(lan: &mut Lan, len: usize) -> [SocketAddr; 2] {
    let host = lan.plain(9, 24);
    lan.hosts[host].echo(ECHO, 12);
    lan.hosts[host].source(SOURCE, len, 12);
    [SocketAddr::new(address(9), ECHO), SocketAddr::new(address(9), SOURCE)]
}

fn source_digest(len: usize) -> [u8; 32] {
    Sha256::digest((0..len).map(source_byte).collect::<Vec<u8>>()).into()
}

#[test]
fn a_request_crosses_four_constrained_nodes_and_is_answered() {
    for profile in [Profile::Small, Profile::Medium] {
        let mut lan = Lan::new();
        let contacts = network(&mut lan, profile);
        let [echo, source] = target(&mut lan, 100_000);

        let client = lan.client(profile, 20, &contacts, request(echo, b"hello", None));
        lan.run_until("the echo comes back", |lan| lan.nodes[client].is_done());
        let told = &lan.nodes[client].board_mut().told;
        assert_eq!((told.answered, told.failed.0), (1, 0));
        assert_eq!(told.last_answer, Some((5, Sha256::digest(b"hello").into())));

        let client = lan.client(profile, 21, &contacts, request(source, b"go", None));
        lan.run_until("the bytes arrive", |lan| lan.nodes[client].is_done());
        let told = &lan.nodes[client].board_mut().told;
        assert_eq!(told.last_answer, Some((100_000, source_digest(100_000))));
    }
}

#[test]
fn a_constrained_exit_signs_what_it_answered() {
    let mut lan = Lan::new();
    let contacts = network(&mut lan, Profile::Small);
    let [echo, _] = target(&mut lan, 0);
    let mut wanted = request(echo, b"sign this", None);
    wanted.sign = true;
    let client = lan.client(Profile::Small, 20, &contacts, wanted);
    lan.run_until("the receipt comes", |lan| lan.nodes[client].is_done());
    let told = &lan.nodes[client].board_mut().told;
    assert_eq!((told.answered, told.receipts), (1, 1));
}

#[test]
fn an_exit_says_why_a_target_is_not_reached() {
    let mut lan = Lan::new();
    let relays = [1, 2, 3].map(|number| lan.serve(Profile::Small, number, true, None));
    let policy = "reject *:25\naccept *:*".parse().expect("a policy");
    let exit = lan.serve(Profile::Small, 4, false, Some(policy));
    let contacts = [relays[0], relays[1], relays[2], exit];
    lan.plain(9, 1);
    let named: Target = "example.com:80".parse().expect("a target");
    let refused = SocketAddr::new(address(9), 81);
    let own = SocketAddr::new(address(4), 9001);
    let silent = SocketAddr::new(address(200), 80);
    for (number, target, reason) in [
        (20, refused.into(), EndReason::Refused),
        (21, own.into(), EndReason::Forbidden),
        (22, named, EndReason::NotResolved),
        (23, silent.into(), EndReason::TimedOut),
    ] {
        let mut wanted = request(refused, b"anybody there?", None);
        wanted.target = target;
        let client = lan.client(Profile::Small, number, &contacts, wanted);
        lan.run_until("the exit says why", |lan| lan.nodes[client].is_done());
        let told = &lan.nodes[client].board_mut().told;
        assert_eq!(told.answered, 0);
        let outcome = told.failed.1.expect("it failed");
        assert_eq!(outcome.end.map(|(reason, hop)| (reason, hop.value())), Some((reason, 3)));
    }
}

#[test]
fn a_node_without_a_calendar_learns_the_time_from_its_contacts() {
    let mut lan = Lan::new();
    let contacts = network(&mut lan, Profile::Small);
    let [echo, _] = target(&mut lan, 0);
    let client = lan.client(Profile::Small, 20, &contacts, request(echo, b"what time is it?", None));
    lan.nodes[client].board_mut().calendar = false;
    lan.run_until("the echo comes back", |lan| lan.nodes[client].is_done());
    assert_eq!(lan.nodes[client].board_mut().told.answered, 1);
}

#[test]
fn a_client_goes_on_when_a_relay_hangs_and_comes_back() {
    let mut lan = Lan::new();
    let contacts = network(&mut lan, Profile::Small);
    let [echo, _] = target(&mut lan, 0);
    let every = Some(Duration::from_secs(2));
    let client = lan.client(Profile::Small, 20, &contacts, request(echo, b"still there?", every));
    lan.run_until("it works", |lan| lan.nodes[client].board_mut().told.answered >= 5);
    // With three relays there is no way around the one that hangs.
    lan.frozen.insert(1);
    lan.run_for(3 * MINUTE);
    let (before, failed) = (lan.nodes[client].board_mut().told.answered, lan.nodes[client].board_mut().told.failed.0);
    assert!(failed > 0);
    lan.frozen.clear();
    lan.run_until("it works again", |lan| lan.nodes[client].board_mut().told.answered >= before + 5);
}

/// Clients come and go, some in the middle of a transfer and without a word; targets answer, refuse, or send a lot.
#[test]
fn an_hour_of_churn_loses_no_place() {
    let mut lan = Lan::new();
    let contacts = network(&mut lan, Profile::Small);
    let [echo, source] = target(&mut lan, 60_000);
    let refusing = SocketAddr::new(address(9), 81);
    let steady = lan.client(Profile::Small, 20, &contacts, request(echo, b"hello", Some(Duration::from_millis(2500))));
    let refused = lan.client(Profile::Small, 21, &contacts, request(refusing, b"hello", Some(Duration::from_secs(7))));
    let mut visitors = Vec::new();
    for minute in 0..60u8 {
        // The one that came before is cut off, wherever it is.
        lan.frozen.extend(visitors.last());
        let wanted = request(source, b"go", Some(Duration::from_millis(1000 + u64::from(minute) * 370 % 4000)));
        visitors.push(lan.client(Profile::Small, 30 + minute, &contacts, wanted));
        lan.run_for(MINUTE);
    }
    lan.frozen.extend(visitors.iter().chain([&steady, &refused]));
    // Longer than any deadline: what was cut off is given up, and links without circuits are closed.
    lan.run_for(15 * MINUTE);
    let mut told = |node: usize| lan.nodes[node].board_mut().told.clone();
    let (steady, refused) = (told(steady), told(refused));
    let loads: u32 = visitors.iter().map(|&visitor| told(visitor).answered).sum();
    println!(
        "answered {}, failed {}; refused {}; downloads {loads}",
        steady.answered, steady.failed.0, refused.failed.0
    );
    assert!(steady.answered > 800 && loads > 500 && refused.failed.0 > 300);
    // Keys that rotate early because of so many circuits cost some of them a second try.
    assert!(steady.failed.0 * 10 < steady.answered, "{} of {} failed", steady.failed.0, steady.answered);
    for (at, node) in lan.nodes.iter_mut().enumerate().take(4) {
        let ended = node.board_mut().told.links_ended.clone();
        println!("node {at}: {:?}, {ended:?}", node.node().counters());
        assert_eq!(node.node().counters().violations, 0, "node {at}: everybody keeps to the protocol");
        assert_eq!(node.node().usage(), bulbil_core::node::Usage::default(), "node {at}");
        assert_eq!((node.usage().sockets, node.usage().dials), (0, 0), "node {at}");
    }
}

/// The answer that is under way when the crowd comes, in bytes.
const LONG: usize = 1_000_000;

#[test]
fn a_crowd_is_refused_with_reasons_while_an_open_circuit_goes_on() {
    let mut lan = Lan::new();
    let contacts = network(&mut lan, Profile::Small);
    let [_, long] = target(&mut lan, LONG);
    let steady = lan.client(Profile::Small, 20, &contacts, request(long, b"go", None));
    lan.run_until("the transfer is under way", |lan| lan.nodes[steady].board_mut().told.answer.0 > 50_000);

    let other = lan.plain(8, 24);
    lan.hosts[other].source(SOURCE, 20_000, 12);
    let short = SocketAddr::new(address(8), SOURCE);
    let every = Some(Duration::from_millis(1));
    let crowd: Vec<_> =
        (0..12).map(|at| lan.client(Profile::Small, 30 + at, &contacts, request(short, b"go", every))).collect();
    lan.run_until("the long answer is whole", |lan| lan.nodes[steady].is_done());
    lan.run_for(2 * MINUTE);
    let told = lan.nodes[steady].board_mut().told.clone();
    assert_eq!((told.answered, told.failed.0), (1, 0));
    assert_eq!(told.last_answer, Some((LONG as u64, source_digest(LONG))));
    let busy: u64 = lan.nodes.iter().take(4).map(|node| node.node().counters().busy).sum();
    assert!(busy > 0, "twelve clients do not fit four links and five circuits");
    let (mut answered, mut failed) = (0, 0);
    for &client in &crowd {
        let told = &lan.nodes[client].board_mut().told;
        (answered, failed) = (answered + told.answered, failed + told.failed.0);
        let Some(outcome) = told.failed.1 else { continue };
        // Of the path, never of the target: whoever got through was served.
        let of_the_path = match (outcome.end, outcome.close) {
            (Some((reason, _)), _) => matches!(
                reason,
                EndReason::Busy | EndReason::NextHopUnreachable | EndReason::NextHopLost | EndReason::TimedOut
            ),
            (None, Some(reason)) => matches!(
                reason,
                CloseReason::Busy
                    | CloseReason::NextHopUnreachable
                    | CloseReason::LinkLost
                    | CloseReason::OnionRejected
                    | CloseReason::TimedOut
            ),
            (None, None) => false,
        };
        assert!(of_the_path, "{outcome:?}");
    }
    println!("crowd: {answered} answered, {failed} failed, {busy} refused as busy");
    assert!(answered > 20 && failed > 20);
}

#[test]
fn contacts_are_visited_for_paths_and_for_the_time_and_strangers_are_not_believed() {
    let mut lan = Lan::new();
    let contacts = network(&mut lan, Profile::Small);
    let [echo, _] = target(&mut lan, 0);
    // A relay that knows the time has no reason to visit anybody; one without a clock hears all that it may ask.
    let start = |lan: &mut Lan, number: u8, calendar: bool| {
        let mut board = LanBoard::new(&lan.clock, u64::from(number), Some(5));
        board.calendar = calendar;
        let contacts = heapless::Vec::from_slice(&contacts[..3]).expect("few");
        lan.start(Profile::Small, Config { relay: true, contacts, ..config(number) }, board)
    };
    let with = start(&mut lan, 5, true);
    lan.run_for(Duration::from_secs(5));
    lan.frozen.insert(with);
    let without = start(&mut lan, 6, false);
    lan.run_until("it has met everybody", |lan| lan.nodes[without].board_mut().told.met == 3);
    assert_eq!(lan.nodes[with].board_mut().told.met, 0);
    assert!(lan.nodes[without].board_mut().told.published > 0);

    let client = lan.client(Profile::Small, 20, &contacts, request(echo, b"hello", None));
    lan.run_until("the echo comes back", |lan| lan.nodes[client].is_done());
    assert_eq!(lan.nodes[client].usage().nodes, 4);
    for node in &lan.nodes[..3] {
        assert_eq!(node.usage().nodes, 0, "whom an onion made it meet is nobody's contact");
    }
}

#[test]
fn more_contacts_than_a_client_has_room_for_are_refused_at_the_start() {
    let lan = Lan::new();
    let contact = Contact { address: SocketAddr::new(address(1), 9001), fingerprint: NodeId([1; 32]) };
    let contacts = heapless::Vec::from_slice(&[contact; 5]).expect("few");
    let wanted = request(SocketAddr::new(address(9), ECHO), b"hello", None);
    let config = Config { client: Some(wanted), contacts, ..config(20) };
    let memory = Box::leak(Box::new(Small::new()));
    let started = LanNode::start(memory, lan.switch.plug(), LanBoard::new(&lan.clock, 1, None), config);
    assert!(matches!(started.err(), Some(StartError::Config(sentence)) if sentence.contains("fewer contacts")));
}

/// Somebody begins TCP's handshake four times a second and never finishes it.
#[test]
fn half_open_connections_keep_nobody_out() {
    let mut lan = Lan::new();
    let contacts = network(&mut lan, Profile::Small);
    let [echo, _] = target(&mut lan, 0);
    let every = Some(Duration::from_secs(2));
    let client = lan.client(Profile::Small, 20, &contacts, request(echo, b"hello", every));
    lan.run_until("it works", |lan| lan.nodes[client].board_mut().told.answered >= 3);
    let attacker = lan.plain(8, 160);
    let victims = contacts.map(|contact| contact.address);
    let half_open: Vec<_> = (0..160).map(|at| lan.hosts[attacker].connect(victims[at % 4])).collect();
    let before = lan.nodes[client].board_mut().told.answered;
    let mut next = 0;
    for _ in 0..600 {
        for _ in 0..4 {
            // The answer to its SYN finds nobody any more, and no reset leaves.
            let handle = half_open[next % half_open.len()];
            lan.hosts[attacker].reconnect(handle, victims[next % 4]);
            next += 1;
        }
        let _sent = lan.hosts[attacker].poll();
        lan.mute.insert(attacker);
        lan.run_for(Duration::from_millis(500));
        lan.mute.clear();
        lan.hosts[attacker].forget_arrived();
    }
    let told = &lan.nodes[client].board_mut().told;
    println!("answered {}, failed {}", told.answered - before, told.failed.0);
    assert!(told.answered - before > 50);
}
