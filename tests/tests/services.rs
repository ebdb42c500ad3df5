//! Conversations with a service inside the last hop: there is no CONNECTED, so its answer is the first that the client hears.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::time::Duration;

use bulbil_core::client::origin::Reached;
use bulbil_core::phonebook::{HopCount, Strictness};
use bulbil_core::wire::{CloseReason, EndReason, Service, Target};
use bulbil_host::config::Bootstrap;
use bulbil_host::node::{Intervals, Node, OpenError, OpenOptions, SendOptions, ServiceCall, Sizes};
use bulbil_tests::sim::{Behaviour, Heard, Network, Spec, TalkIndex, Wish, run};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

const STEPS: u64 = 200_000;

/// As few cells at a time as a circuit can do with.
const NARROW: Spec = Spec { credit: 8, window_max: 8, record_cells: 1, ..Spec::RELAY };
/// Room for a few circuits.
const SMALL: Sizes = Sizes { links: 16, circuits: 64, cells: 2048, onions: 16, origins: 32, replay: 1 << 10 };
/// A client and four relays, none of them an exit.
const RELAYS: [Spec; 5] =
    [Spec { answers: false, relay: false, origins: 32, replay: 0, ..NARROW }, NARROW, NARROW, NARROW, NARROW];
const PATHS: [&[usize]; 2] = [&[1], &[1, 2, 3, 4]];

/// Opens, waits for the end and answers the conversation.
fn ask(network: &mut Network<'_, '_>, path: &[usize], wish: Wish) -> TalkIndex {
    let talk = network.open(0, path, wish.of_the_phonebook()).unwrap();
    network.run_until(STEPS, |network| network.talk(talk).is_over());
    talk
}

#[test]
fn relays_answer_for_their_services() {
    for (seed, path) in PATHS.into_iter().enumerate() {
        run(seed as u64, &RELAYS, |network| {
            for (behaviour, request, answer) in [
                (Behaviour::Echo, 30_000, 30_000),
                (Behaviour::Serve(40_000), 6_000, 40_000),
                (Behaviour::Answer(0), 0, 0),
            ] {
                let talk = ask(network, path, Wish::new(behaviour, request));
                let talk = network.talk(talk);
                assert_eq!(talk.end(), Some((EndReason::Done, path.len() - 1)));
                assert_eq!((talk.app().heard(), talk.app().heard_end()), (answer, Some(Heard::End)));
                assert_eq!((talk.connected(), talk.connections()), (Some(Reached::Service), 1));
                assert!(talk.is_whole());
            }
            network.settle();
        });
    }
}

#[test]
fn exits_have_services_as_well_as_targets() {
    let mut specs = RELAYS;
    specs[4].exit = true;
    run(1, &specs, |network| {
        let outside = network.open(0, PATHS[1], Wish::new(Behaviour::Echo, 5_000)).unwrap();
        let inside = ask(network, PATHS[1], Wish::new(Behaviour::Echo, 5_000));
        network.run_until(STEPS, |network| network.talk(outside).is_over());
        assert!(network.talk(inside).is_whole() && network.talk(outside).is_whole());
        assert_eq!(network.talk(inside).connected(), Some(Reached::Service));
        assert!(matches!(network.talk(outside).connected(), Some(Reached::Address(_))));
        network.settle();
    });
}

#[test]
fn a_service_is_reached_when_its_answer_comes_and_not_before() {
    run(2, &RELAYS, |network| {
        let every = Duration::from_secs(10);
        let wish = Wish::new(Behaviour::Ticker { every, size: 100, count: 2 }, 300);
        let talk = network.open(0, PATHS[1], wish.of_the_phonebook()).unwrap();
        network.run_until(STEPS, |network| network.talk(talk).target_heard() == 300);
        network.run_for(Duration::from_secs(5));
        assert_eq!(network.talk(talk).connected(), None);
        network.run_until(STEPS, |network| network.talk(talk).app().heard() == 100);
        assert_eq!(network.talk(talk).connected(), Some(Reached::Service));
        network.run_until(STEPS, |network| network.talk(talk).is_over());
        network.settle();
    });
}

#[test]
fn one_request_with_one_answer_may_be_signed() {
    run(3, &RELAYS, |network| {
        for answer in [0, 1, 9_000] {
            for sign in [false, true] {
                let wish = Wish { once: true, sign, ..Wish::new(Behaviour::Serve(answer), 700) };
                let talk = ask(network, PATHS[1], wish);
                assert_eq!(network.talk(talk).end(), Some((EndReason::Done, 3)));
                assert_eq!(
                    (network.talk(talk).app().heard(), network.talk(talk).connected()),
                    (answer, Some(Reached::Service))
                );
                assert!(!sign || network.receipt_holds(talk));
            }
        }
        network.settle();
    });
}

#[test]
fn a_service_that_is_refused_or_breaks_is_not_reached() {
    for path in PATHS {
        run(4, &RELAYS, |network| {
            let last = path.len() - 1;
            for reason in [EndReason::NoService, EndReason::Busy, EndReason::TimedOut] {
                let talk = ask(network, path, Wish::new(Behaviour::Unreached(reason), 20_000));
                assert_eq!(network.talk(talk).end(), Some((reason, last)));
                assert_eq!(network.talk(talk).connected(), None);
            }
            let talk = ask(network, path, Wish::new(Behaviour::Reset(2_000), 6_000));
            assert_eq!(network.talk(talk).end(), Some((EndReason::Reset, last)));
            assert_eq!(network.talk(talk).app().heard_end(), Some(Heard::Broken));
            network.settle();
        });
    }
}

#[test]
fn a_node_that_takes_no_circuits_has_no_services() {
    let mut specs = RELAYS;
    specs[2].relay = false;
    run(5, &specs, |network| {
        let talk = ask(network, &[2], Wish::new(Behaviour::Echo, 100));
        assert_eq!(network.talk(talk).outcome().unwrap().close, Some(CloseReason::RoleRefused));
        let talk = ask(network, &[1, 2], Wish::new(Behaviour::Echo, 100));
        assert_eq!(network.talk(talk).end(), Some((EndReason::NextHopUnreachable, 0)));
        network.settle();
    });
}

#[test]
fn a_client_that_does_not_listen_holds_its_service_up_and_nobody_else() {
    run(6, &RELAYS, |network| {
        let unread = Wish { listens: false, ..Wish::new(Behaviour::Serve(200_000), 100) };
        let unread = network.open(0, PATHS[1], unread.of_the_phonebook()).unwrap();
        network.run_until(STEPS, |network| network.talk(unread).target().is_some_and(|target| target.said() > 0));
        network.run_for(Duration::from_secs(10));
        let held_up = network.talk(unread).target().unwrap().said();
        assert!(held_up < 100_000, "{held_up}");
        let other = ask(network, PATHS[1], Wish::new(Behaviour::Serve(50_000), 100));
        assert!(network.talk(other).is_whole());
        assert_eq!(network.talk(unread).target().unwrap().said(), held_up);
        network.listen(unread, true);
        network.run_until(STEPS, |network| network.talk(unread).is_over());
        assert!(network.talk(unread).is_whole());
        network.settle();
    });
}

/// A relay on this machine that serves whoever asks, and a client that asks it directly.
async fn served(calls: mpsc::Sender<ServiceCall>) -> [Node; 2] {
    // Whoever serves here does not want to hear of exchanges.
    let calm = Intervals { exchange: None, ..Intervals::default() };
    let relay =
        Node::builder().listen("127.0.0.1:0".parse().unwrap()).relay().sizes(SMALL).intervals(calm).serve(calls);
    let relay = relay.start().await.unwrap();
    let contact = Bootstrap { address: relay.local_addr().unwrap(), fingerprint: Some(relay.fingerprint()) };
    let client = Node::builder().sizes(SMALL).paths(HopCount::new(1).unwrap(), Strictness::Ignore);
    let client = client.intervals(calm).bootstrap(contact);
    [client.start().await.unwrap(), relay]
}

async fn ask_node(client: &Node, request: &[u8]) -> Result<Vec<u8>, OpenError> {
    let options = SendOptions { sign: false, ..SendOptions::default() };
    client.send(Target::Service(Service::Phonebook), request, options).await?.whole(1 << 20).await
}

async fn stop(nodes: [Node; 2]) {
    for node in nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_serves_whoever_asks() {
    let (calls, mut serving) = mpsc::channel(8);
    let nodes = served(calls).await;
    tokio::spawn(async move {
        while let Some(mut call) = serving.recv().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                call.stream.read_to_end(&mut request).await.unwrap();
                request.reverse();
                call.stream.write_all(&request).await.unwrap();
                call.stream.shutdown().await.unwrap();
            });
        }
    });
    for len in [0, 1, 6_000, 300_000] {
        let request: Vec<u8> = (0..len).map(|at| at as u8).collect();
        let answer = ask_node(&nodes[0], &request).await.unwrap();
        assert!(answer.iter().rev().eq(&request), "{len}");
    }
    let mut stream = nodes[0].open(Target::Service(Service::Phonebook), OpenOptions::default()).await.unwrap();
    stream.write_all(b"abc").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(stream.connected().await.unwrap(), Reached::Service);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "cba");
    drop(stream);
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_does_not_serve_says_so() {
    let (calls, serving) = mpsc::channel(1);
    let nodes = served(calls).await;
    // One call waits for somebody to take it, and for a second one there is no room.
    let mut first = nodes[0].open(Target::Service(Service::Phonebook), OpenOptions::default()).await.unwrap();
    let mut second = nodes[0].open(Target::Service(Service::Phonebook), OpenOptions::default()).await.unwrap();
    // Whichever is refused may hear of it before it has said a word.
    let _heard_already = (first.write_all(b"?").await, second.write_all(b"?").await);
    let refused = tokio::select! {
        answer = first.connected() => answer,
        answer = second.connected() => answer,
    };
    assert_eq!(refused.unwrap_err(), OpenError::Ended(EndReason::Busy));
    drop((first, second, serving));
    assert_eq!(ask_node(&nodes[0], b"?").await.unwrap_err(), OpenError::Ended(EndReason::NoService));
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_refused_with_a_reason() {
    let (calls, mut serving) = mpsc::channel(1);
    let nodes = served(calls).await;
    tokio::spawn(async move {
        while let Some(call) = serving.recv().await {
            call.refuse(EndReason::Protocol);
        }
    });
    for _ in 0..20 {
        assert_eq!(ask_node(&nodes[0], b"?").await.unwrap_err(), OpenError::Ended(EndReason::Protocol));
    }
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_breaks_off_ends_what_it_served() {
    let (calls, mut serving) = mpsc::channel(1);
    let nodes = served(calls).await;
    let mut stream = nodes[0].open(Target::Service(Service::Phonebook), OpenOptions::default()).await.unwrap();
    stream.write_all(b"some of it").await.unwrap();
    let mut call = serving.recv().await.unwrap();
    let mut heard = [0; 10];
    call.stream.read_exact(&mut heard).await.unwrap();
    assert_eq!((call.service, &heard), (Service::Phonebook, b"some of it"));
    drop(stream);
    assert_eq!(call.stream.read(&mut heard).await.unwrap(), 0, "the client has gone");
    stop(nodes).await;
}
