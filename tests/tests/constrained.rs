//! Constrained nodes among themselves, on a virtual Ethernet.

use std::net::SocketAddr;
use std::time::Duration;

use bulbil_tests::lan::{Lan, Profile, address, anything, request, source_byte};
use sha2::{Digest as _, Sha256};

/// Three relays and an exit.
fn network(lan: &mut Lan, profile: Profile) -> [bulbil_firmware_sim::config::Contact; 4] {
    [
        lan.serve(profile, 1, true, None),
        lan.serve(profile, 2, true, None),
        lan.serve(profile, 3, true, None),
        lan.serve(profile, 4, false, Some(anything())),
    ]
}

fn source_digest(len: usize) -> [u8; 32] {
    Sha256::digest((0..len).map(source_byte).collect::<Vec<u8>>()).into()
}

#[test]
fn a_request_crosses_four_constrained_nodes_and_is_answered() {
    for profile in [Profile::Small, Profile::Medium] {
        let mut lan = Lan::new();
        let contacts = network(&mut lan, profile);
        let target = lan.plain(9, 4);
        lan.hosts[target].echo(7, 2);
        lan.hosts[target].source(19, 100_000, 2);

        let echo = SocketAddr::new(address(9), 7);
        let client = lan.client(profile, 20, &contacts, request(echo, b"hello", None));
        lan.run_until("the echo comes back", |lan| lan.nodes[client].is_done());
        let told = &lan.nodes[client].board_mut().told;
        assert_eq!((told.answered, told.failed.0), (1, 0));
        assert_eq!(told.last_answer, Some((5, Sha256::digest(b"hello").into())));

        let source = SocketAddr::new(address(9), 19);
        let client = lan.client(profile, 21, &contacts, request(source, b"go", None));
        lan.run_until("the bytes arrive", |lan| lan.nodes[client].is_done());
        let told = &lan.nodes[client].board_mut().told;
        assert_eq!(told.last_answer, Some((100_000, source_digest(100_000))));
        lan.audit();
    }
}

#[test]
fn an_hour_of_requests_loses_no_place() {
    let mut lan = Lan::new();
    let contacts = network(&mut lan, Profile::Small);
    let target = lan.plain(9, 16);
    lan.hosts[target].echo(7, 8);
    let echo = SocketAddr::new(address(9), 7);
    let clients: Vec<_> = (0..2)
        .map(|at| {
            let every = Duration::from_millis(3000 + 700 * u64::from(at));
            lan.client(Profile::Small, 20 + at, &contacts, request(echo, b"hello", Some(every)))
        })
        .collect();
    lan.run_for(Duration::from_secs(3600));
    lan.audit();
    for &client in &clients {
        let told = &lan.nodes[client].board_mut().told;
        println!("answered {} failed {:?}", told.answered, told.failed);
    }
    for node in &lan.nodes {
        println!("{:?} {:?} {:?}", node.node().usage(), node.usage(), node.node().counters());
    }
}
