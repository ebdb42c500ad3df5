//! The library, as an application uses it.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::time::Duration;

use bulbil_core::wire::Target as Where;
use bulbil_host::net::Network;
use bulbil_host::node::{EndReason, Node, OpenError, OpenOptions, Reached, SendOptions};
use bulbil_tests::targets::{Target, resetting, serve_each};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

fn to(address: std::net::SocketAddr) -> Where {
    Where::from(address)
}

/// Waits until no node of the network holds anything of any circuit.
async fn emptied(network: &Network) {
    for node in network.nodes.iter().chain([&network.client]) {
        let empty = async {
            loop {
                let usage = node.status().await.expect("the node runs").usage;
                let held = [usage.circuits, usage.cells_held, usage.cells_reserved, usage.onions, usage.origins];
                if held == [0; 5] {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, empty).await.expect("everything is given back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_and_written_like_any_other() {
    let network = Network::start().await.unwrap();
    let target = Target::start().await;
    let mut circuit = network.client.open(to(target.address), OpenOptions::default()).await.unwrap();
    // Written before anybody has answered.
    circuit
        .write_all(b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        .await
        .unwrap();
    assert_eq!(circuit.connected().await.unwrap(), Reached::Address(target.address));
    assert_eq!(circuit.path().len(), 4);
    let last = circuit.path().last().unwrap().node;
    assert_eq!(last, network.nodes[3].fingerprint(), "the exit");
    circuit.shutdown().await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, circuit.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("hello"), "{answer}");
    drop(circuit);
    emptied(&network).await;
    network.shutdown().await;
}

/// What comes before anybody reads is not lost, be it nothing but the end.
#[tokio::test(flavor = "multi_thread")]
async fn who_reads_late_still_reads_the_end() {
    let network = Network::start().await.unwrap();
    for answer in [&b""[..], b"hello"] {
        let silent = serve_each(move |mut stream| async move {
            let _written = stream.write_all(answer).await;
        })
        .await;
        let mut circuits = Vec::new();
        for _ in 0..20 {
            let mut circuit = network.client.open(to(silent), OpenOptions::default()).await.unwrap();
            circuit.connected().await.unwrap();
            circuits.push(circuit);
        }
        for mut circuit in circuits {
            let mut heard = Vec::new();
            timeout(PATIENCE, circuit.read_to_end(&mut heard)).await.expect("the end comes").unwrap();
            assert_eq!(heard, answer);
        }
    }
    emptied(&network).await;
    network.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_answered_signed_and_continued() {
    let network = Network::start().await.unwrap();
    // Answers and closes without reading on: CONNECTED, the answer and the end may come in one record.
    let hasty = serve_each(|mut stream| async move {
        let mut request = [0; 64];
        let read = stream.read(&mut request).await.unwrap_or(0);
        let _written = stream.write_all(&request[..read]).await;
    })
    .await;
    for _ in 0..20 {
        let mut answers = network.client.send(to(hasty), b"are you there?", SendOptions::default()).await.unwrap();
        assert_eq!(timeout(PATIENCE, answers.whole(1024)).await.unwrap().unwrap(), b"are you there?");
        assert_eq!(answers.receipt().unwrap().exit, network.nodes[3].fingerprint());
        assert_eq!(answers.next().await.unwrap(), None, "the end stays the end");
    }
    // Longer than fits into the first cells, with an answer of the same length.
    let long = serve_each(|mut stream| async move {
        let mut request = Vec::new();
        let _read = stream.read_to_end(&mut request).await;
        let _written = stream.write_all(&request).await;
    })
    .await;
    let request: Vec<u8> = (0..300_000u32).map(|at| at as u8).collect();
    let mut answers = network.client.send(to(long), &request, SendOptions::default()).await.unwrap();
    assert_eq!(timeout(PATIENCE, answers.whole(1 << 20)).await.unwrap().unwrap(), request);
    assert!(answers.receipt().is_some());
    let unsigned = SendOptions { sign: false, ..SendOptions::default() };
    let mut answers = network.client.send(to(long), b"no receipt", unsigned).await.unwrap();
    assert_eq!(answers.whole(10).await.unwrap(), b"no receipt");
    assert!(answers.receipt().is_none());
    let unsigned = SendOptions { sign: false, ..SendOptions::default() };
    let mut answers = network.client.send(to(long), b"too long", unsigned).await.unwrap();
    assert_eq!(answers.whole(3).await.unwrap_err(), OpenError::TooLong, "never cut without a word");

    // Both sides talk, until one closes.
    let talker = serve_each(|mut stream| async move {
        let mut word = [0; 4];
        while stream.read_exact(&mut word).await.is_ok() && word != *b"stop" {
            word.reverse();
            let _written = stream.write_all(&word).await;
        }
    })
    .await;
    let kept = SendOptions { keep_open: true, sign: false, ..SendOptions::default() };
    let mut answers = network.client.send(to(talker), b"loop", kept).await.unwrap();
    for (answer, next) in [(b"pool", b"stun"), (b"nuts", b"spam"), (b"maps", b"stop")] {
        assert_eq!(timeout(PATIENCE, answers.next()).await.unwrap().unwrap().unwrap(), answer);
        answers.say(next).await.unwrap();
    }
    assert_eq!(timeout(PATIENCE, answers.next()).await.unwrap().unwrap(), None);
    drop(answers);
    emptied(&network).await;
    network.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_went_wrong() {
    // Nobody knows a node: the error says so after the deadline, not before and not never.
    let lonely = Node::builder().start().await.unwrap();
    let short = OpenOptions { deadline: Duration::from_millis(50), ..OpenOptions::default() };
    let error = lonely.open("192.0.2.1:80".parse().unwrap(), short).await.err().unwrap();
    assert!(error.to_string().starts_with("no path: no suitable last hop is known; are the bootstrap"), "{error}");
    lonely.shutdown().await;
    assert!(lonely.status().await.is_none());
    let after = lonely.open("192.0.2.1:80".parse().unwrap(), OpenOptions::default()).await.err().unwrap();
    assert_eq!(after, OpenError::Shutdown);

    let network = Network::start().await.unwrap();
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut circuit = network.client.open(to(closed), OpenOptions::default()).await.unwrap();
    assert_eq!(circuit.connected().await.unwrap_err(), OpenError::Ended(EndReason::Refused));
    let mut circuit = network.client.open(to(closed), OpenOptions::default()).await.unwrap();
    let read = timeout(PATIENCE, circuit.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(read.kind(), std::io::ErrorKind::ConnectionRefused, "{read}");
    let error = network.client.open("10.0.0.1:25".parse().unwrap(), OpenOptions::default()).await.err().unwrap();
    assert_eq!(error.to_string(), "no path: no known exit accepts port 25");

    // A target that takes the connection and never answers: the deadline is for reaching it, and it was reached.
    let server = resetting(b"half of wh").await;
    let mut answers = network.client.send(to(server), b"hello", SendOptions::default()).await.unwrap();
    let error = timeout(PATIENCE, answers.whole(64)).await.unwrap().unwrap_err();
    assert_eq!(error, OpenError::Ended(EndReason::Reset));
    assert!(answers.receipt().is_none());
    drop((circuit, answers));
    emptied(&network).await;
    network.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_or_shut_down_is_gone() {
    let network = Network::start().await.unwrap();
    let target = Target::start().await;
    let endless = format!("GET /bytes/{} HTTP/1.1\r\nHost: t\r\n\r\n", 1u64 << 36);
    let mut open = Vec::new();
    for at in 0..8 {
        let mut circuit = network.client.open(to(target.address), OpenOptions::default()).await.unwrap();
        circuit.write_all(endless.as_bytes()).await.unwrap();
        // In all states: just opened, read from, flowing.
        if at % 2 == 0 {
            let mut part = vec![0; 1 << at];
            circuit.read_exact(&mut part).await.unwrap();
        }
        open.push(circuit);
    }
    let kept = SendOptions { keep_open: true, sign: false, ..SendOptions::default() };
    let answers = network.client.send(to(target.address), endless.as_bytes(), kept.clone()).await.unwrap();
    drop((open, answers));
    emptied(&network).await;

    // Shut down with conversations open: they end with an error, and shutting down ends.
    let mut circuit = network.client.open(to(target.address), OpenOptions::default()).await.unwrap();
    circuit.write_all(endless.as_bytes()).await.unwrap();
    let mut part = vec![0; 1 << 16];
    circuit.read_exact(&mut part).await.unwrap();
    let mut answers = network.client.send(to(target.address), endless.as_bytes(), kept).await.unwrap();
    let _first = answers.next().await.unwrap().unwrap();
    timeout(PATIENCE, network.shutdown()).await.expect("shutting down ends");
    let rest = async {
        while circuit.read(&mut part).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    assert!(timeout(PATIENCE, rest).await.unwrap().is_err(), "cut off, not ended");
    let rest = async {
        while answers.next().await?.is_some() {}
        Ok::<_, OpenError>(())
    };
    assert!(timeout(PATIENCE, rest).await.unwrap().is_err(), "cut off, not ended");
}
