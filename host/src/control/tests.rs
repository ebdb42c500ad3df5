//! The socket as strangers and friends meet it.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bulbil_core::phonebook::VerifiedDescriptor;
use bulbil_core::wire::{NodeId, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::book::{Shelf, Taken};
use super::client::{Client, ClientError};
use super::import::{Imported, export};
use super::server::{CONNECTIONS, PATIENCE};
use super::testing::{file_of, signed};
use super::*;
use crate::config::Config;
use crate::engine::shell::unix_time;
use crate::node::{Node, Sizes};
use crate::scratch::Scratch;
use crate::shutdown::Shutdown;
use crate::state::StateDir;

/// A client that knows nobody, and its socket.
struct Fixture {
    scratch: Scratch,
    node: Node,
    shutdown: Shutdown,
    serving: tokio::task::JoinHandle<()>,
}

impl Fixture {
    async fn start() -> Self {
        let scratch = Scratch::new("control");
        let state = Arc::new(StateDir::open(&scratch.path().join("state")).unwrap());
        let socket = Socket::bind(&state).unwrap();
        let sizes = Sizes { links: 8, circuits: 16, cells: 1024, onions: 8, origins: 8, replay: 64 };
        let node = Node::builder().sizes(sizes).start().await.unwrap();
        let about = About::new(&Config::default(), vec!["127.0.0.1:1080".parse().unwrap()]);
        let shutdown = Shutdown::new();
        let server = Server::new(socket, node.clone(), about);
        let serving = tokio::spawn(server.serve(shutdown.clone()));
        Self { scratch, node, shutdown, serving }
    }

    fn dir(&self) -> PathBuf {
        self.scratch.path().join("state")
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir().join(SOCKET_NAME)).await.unwrap()
    }

    /// What comes back for these bytes.
    async fn answer(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        // It may refuse without reading all.
        let _refused = stream.write_all(request.as_ref()).await;
        let _refused = stream.shutdown().await;
        read(&mut stream).await
    }

    /// As the commands ask.
    async fn ask(&self, ask: Ask, file: &str) -> Result<(Reply, Vec<u8>), ClientError> {
        let (dir, file) = (self.dir(), file.to_owned());
        let asked = move || Client::connect(&dir).unwrap().expect("a node runs").ask(ask, file.as_bytes());
        tokio::task::spawn_blocking(asked).await.unwrap()
    }

    async fn import(&self, file: &str) -> Result<Imported, ClientError> {
        match self.ask(Ask::Import { bytes: file.len() as u64 }, file).await?.0 {
            Reply::Import(imported) => Ok(imported),
            other => panic!("{other:?}"),
        }
    }

    async fn list(&self) -> Vec<book::NodeLine> {
        match self.ask(Ask::List, "").await.unwrap().0 {
            Reply::List(lines) => lines,
            other => panic!("{other:?}"),
        }
    }

    async fn end(mut self) {
        self.shutdown.request();
        (&mut self.serving).await.unwrap();
        self.node.shutdown().await;
        assert!(!self.dir().join(SOCKET_NAME).exists(), "removed at a good end");
        assert!(Client::connect(&self.dir()).unwrap().is_none());
    }
}

async fn read(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    // A refusal that left something unread ends with a reset behind the answer.
    let _end = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

fn complaint(answer: &str, kind: &str, text: &str) {
    let json: serde_json::Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{answer:?}: {error}"));
    assert_eq!((&json["bulbil"], &json["reply"]["error"]["kind"]), (&1.into(), &kind.into()), "{answer}");
    assert!(json["reply"]["error"]["text"].as_str().unwrap().contains(text), "{answer} without {text:?}");
}

fn refused(error: ClientError) -> (Complaint, String) {
    match error {
        ClientError::Refused(kind, text) => (kind, text),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_socket_is_its_owners_alone_and_a_stale_one_is_replaced() {
    let scratch = Scratch::new("socket");
    let state = Arc::new(StateDir::open(&scratch.path().join("state")).unwrap());
    let path = state.path().join(SOCKET_NAME);
    for stale in [false, true] {
        if stale {
            // What a killed process leaves.
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            assert!(Client::connect(state.path()).unwrap().is_none(), "nobody listens there");
        }
        let socket = Socket::bind(&state).unwrap();
        let metadata = path.symlink_metadata().unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
        assert!(Client::connect(state.path()).unwrap().is_some());
        drop(socket);
        assert!(!path.exists());
    }
    std::fs::write(&path, "mine").unwrap();
    assert!(Socket::bind(&state).unwrap_err().to_string().contains("move it away"));
    assert_eq!(std::fs::read(&path).unwrap(), b"mine", "not ours to remove");
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_is_an_error_that_says_so() {
    let scratch = Scratch::new("long");
    let room = 107 - scratch.path().as_os_str().len() - "//control".len();
    for (len, fits) in [(room, true), (room + 1, false)] {
        let dir = scratch.path().join("d".repeat(len));
        let state = Arc::new(StateDir::open(&dir).unwrap());
        match Socket::bind(&state) {
            Ok(_) => assert!(fits),
            Err(error) => {
                assert!(!fits && error.to_string().contains("108 bytes, and a socket's may have 107"), "{error}");
            }
        }
        assert_eq!(Client::connect(&dir).is_ok(), fits);
    }
}

#[tokio::test]
async fn garbage_is_told_so_and_hurts_nobody() {
    let node = Fixture::start().await;
    let long = format!("{{\"bulbil\":1,\"ask\":\"{}\"}}\n", "x".repeat(64 << 10));
    let cases: [(&[u8], &str, &str); 11] = [
        (b"\n", "request", "no request"),
        (b"\0\xff\xfe\n", "request", "no request"),
        (b"GET / HTTP/1.1\r\n\r\n", "request", "no request"),
        (b"{\"bulbil\":1,\"ask\":\"fly\"}\n", "request", "unknown variant"),
        (b"{\"bulbil\":7,\"ask\":\"fly\"}\n", "version", "version 1 of the control protocol, not 7"),
        (b"{\"bulbil\":1,\"ask\":\"status\"}", "request", "whole line"),
        (long.as_bytes(), "request", "64 KiB"),
        (b"{\"bulbil\":1,\"ask\":{\"show\":{\"prefix\":\"\"}}}\n", "request", "first digits"),
        (b"{\"bulbil\":1,\"ask\":{\"show\":{\"prefix\":\"00\"}}}\n", "unknown", "begins with 00"),
        (b"{\"bulbil\":1,\"ask\":{\"import\":{\"bytes\":67108865}}}\n", "file", "64 MiB"),
        (
            b"{\"bulbil\":1,\"ask\":{\"import\":{\"bytes\":20}}}\nbulbil-phonebook 1\n",
            "request",
            "before its stated length",
        ),
    ];
    for (request, kind, text) in cases {
        complaint(&node.answer(request).await, kind, text);
    }
    assert_eq!(node.answer("").await, "", "somebody who only looked");
    let all_bytes: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    complaint(&node.answer(all_bytes).await, "request", "no request");
    assert!(
        node.answer("{\"bulbil\":1,\"ask\":\"status\"}\nand more")
            .await
            .starts_with("{\"bulbil\":1,\"reply\":{\"status\":")
    );
    node.end().await;
}

#[tokio::test]
async fn who_is_slow_is_sent_away() {
    let node = Fixture::start().await;
    // From here on time passes only while everybody waits.
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    for part in ["", "{\"bulbil\":1,", "{\"bulbil\":1,\"ask\":{\"import\":{\"bytes\":1000}}}\nbulbil-"] {
        let mut slow = node.connect().await;
        slow.write_all(part.as_bytes()).await.unwrap();
        complaint(&read(&mut slow).await, "request", "did not come within 30 s");
    }
    assert!(begun.elapsed() >= 3 * PATIENCE);
    tokio::time::resume();
    node.end().await;
}

#[tokio::test]
async fn as_many_as_there_is_room_for_and_the_next_is_told() {
    let node = Fixture::start().await;
    let mut holding = Vec::new();
    for _ in 0..CONNECTIONS {
        holding.push(node.connect().await);
    }
    let mut one_too_many = node.connect().await;
    complaint(&read(&mut one_too_many).await, "busy", "try again");
    // What others hold up is not in the way of those who are in.
    let mut last = holding.pop().unwrap();
    last.write_all(b"{\"bulbil\":1,\"ask\":\"list\"}\n").await.unwrap();
    assert_eq!(read(&mut last).await, "{\"bulbil\":1,\"reply\":{\"list\":[]}}\n");
    drop(holding);
    // As soon as the server has seen that they have gone.
    loop {
        match node.ask(Ask::Status, "").await {
            Ok((Reply::Status(_), _)) => break,
            other => assert_eq!(refused(other.unwrap_err()).0, Complaint::Busy),
        }
    }
    node.end().await;
}

#[tokio::test]
async fn a_report_tells_of_its_node() {
    let node = Fixture::start().await;
    let Reply::Status(report) = node.ask(Ask::Status, "").await.unwrap().0 else { panic!("a status was asked for") };
    assert_eq!(report.node.fingerprint, node.node.fingerprint());
    assert_eq!((report.node.roles.as_slice(), report.node.listening.len()), (&[book::Role::Client][..], 0));
    assert_eq!((report.node.process, report.node.version.as_str()), (std::process::id(), env!("CARGO_PKG_VERSION")));
    assert_eq!((report.links.total, report.circuits.total, report.circuits.own_total), (8, 16, 8));
    assert_eq!((report.cells.promised, report.cells.total, report.onions.total), (0, 1024, 8));
    assert_eq!(report.onion_key, None, "it answers no links");
    assert!(report.resident_bytes.unwrap() > 1 << 20);
    assert!(report.traffic.recent.seconds <= 10.5);
    let text = report.to_string();
    for part in [
        &format!("node          {}\n", node.node.fingerprint()),
        "roles         client\n",
        "listening     nowhere\n",
        "socks         127.0.0.1:1080\n",
        "links         0 up (0 in, 0 out), 0 half open (0 in, 0 out), 0 closing; places 8\n",
        "cells         0 held, 0 promised, of 1024\n",
        "phonebook     0 tried, 0 new, 0 in dispute, 0 pinned, 0 expired; places 6144\n",
        "exchanges     0 asked (0 answered, 0 failed), 0 served, 0 turned away; 0 descriptors taken\n",
        "tests         0 begun, 0 answered, 0 failed\n",
        "clock         too few",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert!(!text.contains("onion key"), "{text}");
    node.end().await;
}

#[tokio::test]
async fn an_import_takes_what_is_good_and_counts_what_is_not() {
    let node = Fixture::start().await;
    let good = signed(0, |_| ());
    let [mut forged, mut altered] = [signed(1, |_| ()), signed(1, |_| ())];
    forged.signature[200] ^= 1;
    altered.sequence += 1;
    let expired = signed(1, |descriptor| descriptor.valid_until = UnixTime(unix_time().0 - 120));
    let early = signed(1, |descriptor| descriptor.valid_from = UnixTime(unix_time().0 + 600));
    let mut text = file_of(&[good.clone(), forged, altered, expired, early, good.clone()]);
    file::push_block(&mut text, b"something else");
    let expected = Imported {
        read: 7,
        taken: Taken { added: 1, known: 1, expired: 1, ..Taken::default() },
        malformed: 1,
        forged: 2,
        not_yet_valid: 1,
    };
    assert_eq!(node.import(&text).await.unwrap(), expected);
    let lines = node.list().await;
    assert_eq!(lines.len(), 1);
    assert_eq!((lines[0].fingerprint, lines[0].shelf, lines[0].last_met), (good.node_id(), Shelf::New, None));

    let newer = signed(0, |descriptor| descriptor.sequence += 1);
    let twin = signed(0, |descriptor| (descriptor.sequence, descriptor.link_key) = (8, [8; 32]));
    let taken = |taken| Imported { read: 1, taken, ..Imported::default() };
    let updated = node.import(&file_of(std::slice::from_ref(&newer))).await.unwrap();
    assert_eq!(updated, taken(Taken { updated: 1, ..Taken::default() }));
    let older = node.import(&file_of(&[good])).await.unwrap();
    assert_eq!(older, taken(Taken { known: 1, ..Taken::default() }));

    // What one exports the other imports; joined with what somebody else has exported, too.
    let (exported, file) = node.ask(Ask::Export, "").await.unwrap();
    assert_eq!(exported, Reply::Export { count: 1, bytes: file.len() as u64 });
    let other = Fixture::start().await;
    let joined = format!("{}\n{}", String::from_utf8(file).unwrap(), file_of(&[signed(1, |_| ())]));
    assert_eq!(other.import(&joined).await.unwrap().taken, Taken { added: 2, ..Taken::default() });
    let listed = other.list().await;
    assert!(listed.is_sorted_by_key(|line| line.fingerprint) && listed.len() == 2);
    let Reply::Show(details) =
        other.ask(Ask::Show { prefix: newer.node_id().to_string()[..20].parse().unwrap() }, "").await.unwrap().0
    else {
        panic!("a node was asked for")
    };
    assert_eq!((details.sequence, details.addresses.as_slice()), (8, newer.addresses.as_slice()));
    assert_eq!(
        (details.valid_from, &details.line),
        (newer.valid_from.0, listed.iter().find(|line| line.fingerprint == newer.node_id()).unwrap())
    );

    // The same sequence number and other bytes: it is in dispute, which is exported to nobody.
    let disputed = node.import(&file_of(&[twin])).await.unwrap();
    assert_eq!(disputed, taken(Taken { disputed: 1, ..Taken::default() }));
    assert!(disputed.is_useless());
    assert_eq!(node.ask(Ask::Export, "").await.unwrap().0, Reply::Export { count: 0, bytes: 19 });
    node.end().await;
    other.end().await;
}

#[tokio::test]
async fn a_damaged_file_changes_nothing() {
    let node = Fixture::start().await;
    let text = file_of(&[signed(0, |_| ()), signed(1, |_| ())]);
    let cut = &text[..text.len() - 40];
    let garbled = format!("{text}garbage\n");
    for (damaged, what) in [
        (cut, "cut off"),
        (&garbled, "belongs to no descriptor"),
        ("", "not an exported phonebook"),
        (&text[1..], "not an exported phonebook"),
    ] {
        let (kind, told) = refused(node.import(damaged).await.unwrap_err());
        assert_eq!(kind, Complaint::File);
        assert!(told.contains(what) && told.contains("nothing was imported"), "{told}");
        assert!(node.list().await.is_empty());
    }
    // Two at a time are one too many.
    let mut first = node.connect().await;
    first
        .write_all(format!("{{\"bulbil\":1,\"ask\":{{\"import\":{{\"bytes\":{}}}}}}}\n", text.len()).as_bytes())
        .await
        .unwrap();
    first.write_all(&text.as_bytes()[..100]).await.unwrap();
    loop {
        match node.import("bulbil-phonebook 1\n").await {
            // The first one has not begun yet.
            Ok(imported) => assert_eq!(imported, Imported::default()),
            Err(error) => break assert_eq!(refused(error).0, Complaint::Busy),
        }
    }
    first.write_all(&text.as_bytes()[100..]).await.unwrap();
    assert!(read(&mut first).await.contains("\"added\":2"));
    node.end().await;
}

#[test]
fn an_ambiguous_prefix_lists_whom_it_may_mean() {
    let found = book::Found::Several((0..8).map(|number| NodeId([number; 32])).collect(), 20);
    let Reply::Error { kind, text } = found.reply(&"0".parse().unwrap()) else { panic!("it is ambiguous") };
    assert_eq!(kind, Complaint::Ambiguous);
    assert_eq!(text.lines().count(), 10, "{text}");
    assert!(text.starts_with("20 nodes") && text.contains(&"07".repeat(32)) && text.ends_with("and 12 more"), "{text}");
}

#[test]
fn an_export_is_what_was_verified() {
    let descriptors = [signed(0, |_| ()), signed(1, |_| ())];
    let verified = descriptors.clone().map(|descriptor| VerifiedDescriptor::verify(descriptor, unix_time()).unwrap());
    assert_eq!(export(&verified), file_of(&descriptors));
    assert!(Client::connect(Path::new("/nonexistent")).unwrap().is_none());
}
