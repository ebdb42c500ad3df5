//! What a constrained node takes from the heap: nothing but what RSA needs, whatever its peers do.

use std::net::SocketAddr;
use std::time::Duration;

use bulbil_core::crypto::identity::IdentitySecret;
use bulbil_core::driver::LinkEnd;
use bulbil_core::link::{Connector, HandshakeError};
use bulbil_core::phonebook::VerifiedDescriptor;
use bulbil_core::wire::{Descriptor, OnionKeyKind};
use bulbil_firmware_sim::config::Contact;
use bulbil_firmware_sim::linux::heap::{self, CountingHeap};
use bulbil_firmware_sim::profile;
use bulbil_tests::fixture;
use bulbil_tests::lan::{Lan, PORT, Profile, address, anything, request, source_byte};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};

#[global_allocator]
static HEAP: CountingHeap = CountingHeap;

const SOURCE: u16 = 19;

fn network(lan: &mut Lan) -> [Contact; 4] {
    [
        lan.serve(Profile::Small, 1, true, None),
        lan.serve(Profile::Small, 2, true, None),
        lan.serve(Profile::Small, 3, true, None),
        lan.serve(Profile::Small, 4, false, Some(anything())),
    ]
}

fn allocations_of<T>(work: impl FnOnce() -> T) -> u64 {
    let before = heap::usage().allocations;
    drop(work());
    heap::usage().allocations - before
}

/// What one verification of a descriptor allocates.
fn verification() -> u64 {
    let descriptor = fixture::descriptor(1, OnionKeyKind::XWing);
    allocations_of(|| VerifiedDescriptor::verify(Descriptor::parse(descriptor).expect("a descriptor"), fixture::EPOCH))
}

/// What one signature allocates: a little more or less with each blinding, hence the least and the most of many.
fn signature(identity: &IdentitySecret) -> [u64; 2] {
    let mut rng = ChaCha20Rng::seed_from_u64(7);
    let counts = (0..100).map(|_| allocations_of(|| identity.sign(&mut rng, &[b"anything"]).expect("a sound key")));
    let (least, most) = counts.fold((u64::MAX, 0), |(least, most), count| (least.min(count), most.max(count)));
    [least, most]
}

#[test]
fn after_the_start_only_rsa_allocates() {
    let (verification, signature) = (verification(), signature(fixture::identity(1)));
    assert!(verification > 0 && signature[0] > 0, "the allocator counts");
    println!("a signature: {signature:?} allocations; a verification: {verification}");
    assert!(signature[1] - signature[0] < verification, "what is not RSA's would show");
    let mut lan = Lan::new();
    let contacts = network(&mut lan);
    let host = lan.plain(9, 8);
    lan.hosts[host].source(SOURCE, 30_000, 8);
    let source = SocketAddr::new(address(9), SOURCE);
    let mut signed = request(source, b"go", Some(Duration::from_secs(1)));
    signed.sign = true;
    let client = lan.client(Profile::Small, 20, &contacts, signed);
    lan.run_until("several transfers", |lan| lan.nodes[client].board_mut().told.receipts >= 5);
    lan.run_for(Duration::from_secs(900));
    let receipts = lan.nodes[client].board_mut().told.receipts;
    assert!(receipts > 100);

    for at in 0..lan.nodes.len() {
        let (heap, told) = (lan.heap[at], lan.nodes[at].board_mut().told.clone());
        // The exit signs once for each receipt, every node once for each descriptor; the client verifies each receipt.
        let receipts_signed = if at == 3 { u64::from(receipts) } else { 0 };
        let signatures = u64::from(told.published) + receipts_signed;
        let verifications = u64::from(told.links_up) + u64::from(told.receipts);
        println!(
            "node {at}: {} allocations in {signatures} signatures and {verifications} verifications; at most {} bytes at a time",
            heap.allocations, heap.peak
        );
        // The exit may have signed one more than the client has taken in.
        let least = signatures * signature[0] + verifications * verification;
        let most = (signatures + u64::from(at == 3)) * signature[1] + verifications * verification;
        assert!((least..=most).contains(&heap.allocations), "node {at}: not within {least} to {most}");
        assert_eq!(heap.in_use, 0, "node {at} keeps something");
        assert!(heap.peak < profile::SMALL.heap, "node {at}");
    }
    assert!(lan.nodes[1].board_mut().told.published >= 3, "onion keys were rotated meanwhile");
}

/// Bytes that are under way when the flood begins.
const LONG: usize = 1_500_000;

#[test]
fn a_flood_takes_no_memory_and_an_open_circuit_goes_on() {
    let mut lan = Lan::new();
    let contacts = network(&mut lan);
    let host = lan.plain(9, 4);
    lan.hosts[host].source(SOURCE, LONG, 4);
    let source = SocketAddr::new(address(9), SOURCE);
    let under_way = |node: usize| move |lan: &mut Lan| lan.nodes[node].board_mut().told.answer.0 > 30_000;
    // This one stops reading in the middle.
    let stuck = lan.client(Profile::Small, 21, &contacts, request(source, b"go", None));
    lan.run_until("a transfer is under way", under_way(stuck));
    lan.frozen.insert(stuck);
    let steady = lan.client(Profile::Small, 20, &contacts, request(source, b"go", None));
    lan.run_until("another transfer is under way", under_way(steady));
    let before: Vec<_> = lan.heap.iter().map(|heap| heap.in_use).collect();

    let mut rng = ChaCha20Rng::seed_from_u64(11);
    let attacker = lan.plain(8, 64);
    let peers: Vec<_> = (0..48u8)
        .map(|at| {
            let victim = SocketAddr::new(address(1 + at % 4), PORT);
            (lan.hosts[attacker].connect(victim), victim)
        })
        .collect();
    let mut connections = peers.len();
    let until = lan.clock.now().after(Duration::from_secs(180));
    while lan.clock.now() < until || !lan.nodes[steady].is_done() {
        lan.step();
        for (at, &(handle, victim)) in peers.iter().enumerate() {
            let host = &mut lan.hosts[attacker];
            let socket = host.socket(handle);
            if !socket.is_open() {
                // Ten thousand a minute are enough.
                if rng.next_u32() % 256 != 0 {
                    continue;
                }
                connections += 1;
                host.reconnect(handle, victim);
                continue;
            }
            if !socket.can_send() || socket.send_queue() > 0 {
                continue;
            }
            match at / 4 % 4 {
                // Garbage, as much as is taken.
                0 => {
                    let mut bytes = [0; 600];
                    rng.fill_bytes(&mut bytes);
                    let _more_or_less = socket.send_slice(&bytes);
                }
                // Nothing at all.
                1 => {}
                // A handshake's first message, and then no eye for the answer.
                2 => {
                    let mut message = [0; bulbil_core::link::noise::MESSAGE1_LEN];
                    let _connector = Connector::start(&mut rng, &mut message);
                    let _more_or_less = socket.send_slice(&(message.len() as u16).to_be_bytes());
                    let _more_or_less = socket.send_slice(&message);
                }
                // A length that no message has.
                _ => {
                    let _more_or_less = socket.send_slice(&[0xff, 0xff, 0]);
                }
            }
        }
        for (heap, before) in lan.heap.iter().zip(&before) {
            assert_eq!(heap.in_use, *before, "the same, to the byte");
        }
    }
    let told = lan.nodes[steady].board_mut().told.clone();
    let whole: [u8; 32] = Sha256::digest((0..LONG).map(source_byte).collect::<Vec<u8>>()).into();
    assert_eq!((told.last_answer, told.failed.0), (Some((LONG as u64, whole)), 0));

    println!("{connections} connections");
    assert!(connections > 500);
    let mut reasons = Vec::new();
    for node in &mut lan.nodes[..4] {
        reasons.extend(node.board_mut().told.links_ended.iter().copied());
    }
    println!("{reasons:?}");
    let ended = |wanted: LinkEnd| reasons.iter().any(|(end, _)| *end == wanted);
    assert!(ended(LinkEnd::Handshake(HandshakeError::Length)), "lengths that no message has");
    assert!(ended(LinkEnd::Idle), "half-open links that said nothing");

    // Everybody goes away: every place comes back.
    for &(handle, _) in &peers {
        lan.hosts[attacker].socket(handle).abort();
    }
    lan.frozen.insert(steady);
    lan.run_for(Duration::from_secs(900));
    for (at, node) in lan.nodes.iter().enumerate().take(4) {
        assert_eq!(node.node().usage(), bulbil_core::node::Usage::default(), "node {at}");
        assert_eq!(node.usage().sockets, 0, "node {at}");
        assert_eq!(lan.heap[at].in_use, before[at], "node {at}");
    }
}
