//! Faults of the machine under nodes that are processes: killed at any moment, stopped and continued, without open files; targets that reset; a
//! clock that is set. What needs a disk or a resolver of its own is in `faults_namespace.rs`.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

mod client;
mod peers;

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bulbil_core::phonebook::{HopCount, PathError, Strictness};
use bulbil_core::wire::Target as Where;
use bulbil_host::node::{ClockVerdict, Node, OpenError, OpenOptions, WallClock};
use bulbil_host::state::StateDir;
use bulbil_host::target_server::matches;
use bulbil_tests::processes::{NodeProcess, Process, client_config, own_address, serving_config};
use bulbil_tests::scratch::Scratch;
use bulbil_tests::socks::{self, Refused};
use bulbil_tests::targets::{Target, big, serve_each};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use client::{HURRY, Known, Moving, SIZES, page, three_hops};
use peers::{CALM, LEN, PROGRAM, Peer, contacts, emptied, in_time, six_peers, until};

/// The moment of a fault: none is before the target is reached.
fn moment(rng: &mut ChaCha8Rng) -> Option<u64> {
    (!rng.next_u32().is_multiple_of(4)).then(|| 1 + rng.next_u64() % (LEN - 1))
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_at_any_moment_leaves_no_half_transfer_and_nothing_behind() {
    let dir = Scratch::new("kill-any");
    let target = Target::start().await;
    let port = target.port();
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut peers = six_peers(dir.path());
    let mut client = Known::start(&peers, Duration::from_secs(60)).await;
    for round in 0..9 {
        let (user, up, at) = (format!("round {round}"), rng.next_u32() % 2 == 0, moment(&mut rng));
        client.path.mark_unchanged();
        let mut moving = Moving::start(client.proxy, port, &user, up);
        in_time("a path", client.path.changed()).await.unwrap();
        if let Some(at) = at {
            moving.has_moved(at).await;
        }
        let id = client.path.borrow()[round % 3].to_string();
        let victim = peers.iter().position(|peer| peer.node.fingerprint == id).unwrap();
        peers[victim].node.process.kill();
        let ended = moving.end().await;
        let place = ["first relay", "middle relay", "exit"][round % 3];
        eprintln!("{place} killed at {at:?} of {LEN} {}: {ended:?}", if up { "up" } else { "down" });

        page(client.proxy, port, &user).await.expect("the same user goes around the dead");
        let alive = peers.iter().enumerate().filter(|(at, _)| *at != victim);
        emptied(alive.map(|(_, peer)| peer)).await;
        client.emptied().await;
        peers[victim].restart();
        let users = RefCell::new(0);
        until("whoever was killed is used again", async || {
            users.replace_with(|users| *users + 1);
            page(client.proxy, port, &format!("{user}, {}", users.borrow())).await.expect("an answer meanwhile");
            if peers[victim].report().circuits.opened > 0 { Ok(()) } else { Err(place) }
        })
        .await;
    }
    client.end().await;

    let config = client_config(dir.path(), "client", &contacts(&peers), "");
    std::fs::write(&config, std::fs::read_to_string(&config).unwrap() + CALM).unwrap();
    let mut client = Peer::start(config);
    for round in 0..3 {
        let (up, at) = (round % 2 == 0, moment(&mut rng));
        let mut moving = Moving::start(client.node.proxy(), port, "user", up);
        if let Some(at) = at {
            moving.has_moved(at).await;
        }
        client.node.process.kill();
        let ended = moving.end().await;
        eprintln!("client killed at {at:?} of {LEN} {}: {ended:?}", if up { "up" } else { "down" });
        emptied(&peers).await;
        client.restart();
        page(client.node.proxy(), port, "user").await.expect("with what it has kept");
        emptied([&client]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_stopped_is_gone_around_and_used_again_when_continued() {
    let dir = Scratch::new("stop");
    let target = Target::start().await;
    let port = target.port();
    let peers = six_peers(dir.path());
    let mut client = Known::start(&peers, Duration::from_secs(32)).await;
    for (at, place) in ["first relay", "middle relay", "exit"].into_iter().enumerate() {
        client.path.mark_unchanged();
        let mut moving = Moving::start(client.proxy, port, place, at == 1);
        in_time("a path", client.path.changed()).await.unwrap();
        moving.has_moved(LEN / 8).await;
        let id = client.path.borrow()[at].to_string();
        let victim = peers.iter().find(|peer| peer.node.fingerprint == id).unwrap();
        victim.stop().await;

        // The same user's path leads over the one that hangs; nobody says so.
        let begun = Instant::now();
        page(client.proxy, port, place).await.expect("another path within the deadline");
        eprintln!("{place} stopped: another path after {:.1} s", begun.elapsed().as_secs_f32());
        page(client.proxy, port, place).await.expect("and that one is kept");
        if big() {
            // That long is the fault, not the waiting for something.
            tokio::time::sleep(Duration::from_secs(60)).await;
            page(client.proxy, port, place).await.expect("still");
        }
        victim.node.process.signal("CONT");
        let ended = moving.end().await;
        eprintln!("{place} continued: {ended:?}");
        assert!(ended.is_ok() || big(), "a short pause breaks nothing: {ended:?}");
        let before = victim.report().circuits.opened;
        let users = RefCell::new(0);
        until("whoever was stopped is used again", async || {
            users.replace_with(|users| *users + 1);
            page(client.proxy, port, &format!("{place} {}", users.borrow())).await.expect("an answer meanwhile");
            if victim.report().circuits.opened > before { Ok(()) } else { Err(place) }
        })
        .await;
        emptied(&peers).await;
        client.emptied().await;
    }

    // A client that stops holds up nobody else, and goes on where it was.
    let config = client_config(dir.path(), "client", &contacts(&peers), CALM);
    let stopped = Peer::start(config);
    for up in [true, false] {
        let mut moving = Moving::start(stopped.node.proxy(), port, "user", up);
        moving.has_moved(LEN / 8).await;
        stopped.stop().await;
        page(client.proxy, port, "other").await.expect("as usual");
        stopped.node.process.signal("CONT");
        moving.end().await.expect("a short pause breaks nothing");
    }
    emptied(peers.iter().chain([&stopped])).await;
    client.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_open_files_a_node_says_so_once_and_goes_on_when_there_are_some() {
    let dir = Scratch::new("files");
    let target = Target::start().await;
    let begun = Instant::now();
    let limited = |name: &str, role: &str| {
        let config = serving_config(dir.path(), name, role, own_address(), CALM);
        let script = "ulimit -n 64 && exec \"$0\" node --config \"$1\"";
        let mut process = Process::start("sh", ["-c", script, PROGRAM, config.to_str().unwrap()]);
        let fingerprint = process.line("fingerprint ");
        let listening: SocketAddr = process.line("listening ").parse().unwrap();
        let _ready = process.line("ready");
        process.log("smaller tables than configured");
        (NodeProcess { process, fingerprint, listening: Some(listening), socks: None }, listening)
    };
    let (mut relay, relay_address) = limited("relay", "relay");
    let (mut exit, exit_address) = limited("exit", "exit");
    let more = format!("hops = 2\ndeadline_seconds = 8\n{CALM}");
    let client = client_config(dir.path(), "client", &[relay.contact(), exit.contact()], &more);
    let client = NodeProcess::start(PROGRAM, &client);
    let (proxy, port) = (client.proxy(), target.port());
    let serves = async |user: &str| page(proxy, port, user).await;
    until("a path", async || serves("first").await).await;

    // Many more links than there are files: the relay knows who has to give way.
    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(TcpStream::connect(relay_address).await.unwrap());
    }
    let newcomer_config = client_config(dir.path(), "newcomer", &[relay.contact(), exit.contact()], &more);
    let newcomer = NodeProcess::start(PROGRAM, &newcomer_config);
    until("a newcomer finds a place", async || page(newcomer.proxy(), port, "newcomer").await).await;
    drop(held);

    // Targets take all of the exit's files; whoever finds none is told, and nobody is cut off.
    let mut opening = JoinSet::new();
    for number in 0..80 {
        opening.spawn(async move {
            let user = format!("user {number}");
            let mut stream = socks::connect(proxy, "127.0.0.1", port, Some((&user, ""))).await?;
            socks::request(&mut stream, "/slow?seconds=600").await?;
            stream.read_exact(&mut [0; 15]).await?;
            Ok::<_, Refused>(stream)
        });
    }
    let (mut open, mut refused) = (Vec::new(), Vec::new());
    while let Some(opened) = in_time("an answer", opening.join_next()).await {
        match opened.unwrap() {
            Ok(stream) => open.push(stream),
            Err(error) => refused.push(error),
        }
    }
    eprintln!("{} conversations at an exit with 64 files, {} refused", open.len(), refused.len());
    assert!(!open.is_empty() && !refused.is_empty());
    assert!(refused.iter().all(|refused| matches!(refused.code(), Some(1 | 6))), "nobody's target: {refused:?}");
    // Nor is there a file for a link.
    let waiting = TcpStream::connect(exit_address).await.unwrap();
    exit.process.log("cannot accept connections until others end");
    for stream in &mut open {
        in_time("the next line", stream.read_u8()).await.expect("those that are open go on");
    }
    drop((open, waiting));
    until("there are files again", async || serves("last").await).await;
    for node in [&mut relay, &mut exit] {
        assert_eq!(node.process.terminate().code(), Some(0), "{}", node.process.stderr());
    }
    let most = 1 + usize::try_from(begun.elapsed().as_secs() / 60).unwrap();
    // Connections that the relay's engine has not taken yet need files beside its links: that may be too many for a moment.
    for (node, least) in [(relay, 0), (exit, 1)] {
        let log = node.process.stderr();
        assert!((least..=most).contains(&log.matches("cannot accept connections").count()), "{log}");
        assert_eq!(
            log.contains("is the limit of open files too small (ulimit -n)"),
            log.contains("cannot accept"),
            "{log}"
        );
    }
}

/// When a target breaks off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    AtOnce,
    BehindTheRequest,
    InTheAnswer,
    BehindTheAnswer,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_resets_is_no_end_for_the_client_whenever_it_does() {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\n\r\nan answer that only its end delimits";
    let dir = Scratch::new("reset");
    let peers = six_peers(dir.path());
    let client = Peer::start(client_config(dir.path(), "client", &contacts(&peers), CALM));
    for when in [Break::AtOnce, Break::BehindTheRequest, Break::InTheAnswer, Break::BehindTheAnswer] {
        let server = serve_each(move |mut stream| async move {
            let said = async {
                if when == Break::AtOnce {
                    return Ok(());
                }
                stream.read_exact(&mut [0; 5]).await?;
                let part = match when {
                    Break::BehindTheAnswer => ANSWER,
                    Break::InTheAnswer => &ANSWER[..30],
                    _ => b"",
                };
                stream.write_all(part).await?;
                if !part.is_empty() {
                    // It has arrived: what comes after it is the reset.
                    stream.read_exact(&mut [0; 4]).await?;
                }
                Ok::<_, io::Error>(())
            };
            let _gone = said.await;
            let _reset = stream.set_zero_linger();
        })
        .await;
        for up in [false, true] {
            let stream = socks::connect(client.node.proxy(), "127.0.0.1", server.port(), None).await;
            let mut stream = match stream {
                Ok(stream) => stream,
                // Before the exit has seen that it was connected.
                Err(refused) => {
                    assert_eq!((when, refused.code()), (Break::AtOnce, Some(5)), "{refused:?}");
                    continue;
                }
            };
            let mut heard = Vec::new();
            let talk = async {
                stream.write_all(b"hello").await?;
                if matches!(when, Break::InTheAnswer | Break::BehindTheAnswer) {
                    let len = if when == Break::InTheAnswer { 30 } else { ANSWER.len() };
                    let mut part = vec![0; len];
                    stream.read_exact(&mut part).await?;
                    heard = part;
                    stream.write_all(b"next").await?;
                }
                // Whoever speaks on hears of it too.
                if up {
                    loop {
                        stream.write_all(&[7; 4096]).await?;
                    }
                }
                stream.read_to_end(&mut heard).await
            };
            let error = in_time("the end", talk).await.expect_err("a reset is no end");
            let broken = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
            assert!(broken.contains(&error.kind()), "{when:?}, {up}: {error:?}");
            assert!(ANSWER.starts_with(&heard), "{when:?}: {heard:?}");
        }
    }
    emptied(peers.iter().chain([&client])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_by_hours_cuts_off_nothing_and_loses_nobody() {
    let dir = Scratch::new("clock");
    let target = Target::start().await;
    let peers = six_peers(dir.path());
    let clock = WallClock::default();
    let state = || Arc::new(StateDir::open(&dir.path().join("client")).unwrap());
    let node = three_hops(&peers).clock(clock.clone()).state(state()).start().await.unwrap();
    let says = async |hours: i64| {
        until("what the clock is said to be", async || match (node.clock().await.unwrap(), hours) {
            (ClockVerdict::Agrees, 0) => Ok(()),
            (ClockVerdict::Off { seconds, .. }, 1..) if (seconds - hours * 3600).abs() < 600 => Ok(()),
            (ClockVerdict::Off { seconds, .. }, ..=-1) if (seconds - hours * 3600).abs() < 600 => Ok(()),
            (other, _) => Err(other),
        })
        .await;
    };
    let asked = async |deadline: u64| {
        let options = OpenOptions { isolation: None, deadline: Duration::from_secs(deadline) };
        let mut circuit = node.open(Where::from(target.address), options).await?;
        circuit.connected().await.map(drop)
    };
    let met = async || {
        let known = node.known().await.unwrap();
        known.iter().filter(|known| known.met && known.failures == 0).count()
    };
    until("all are met", async || if met().await == peers.len() { Ok(()) } else { Err(met().await) }).await;
    says(0).await;
    for hours in [5i64, -7] {
        let mut circuit = node.open(Where::from(target.address), OpenOptions::default()).await.unwrap();
        let request = format!("GET /bytes/{LEN} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
        circuit.write_all(request.as_bytes()).await.unwrap();
        circuit.read_exact(&mut [0; 15]).await.unwrap();
        clock.set_ahead(hours * 3600);
        says(hours).await;
        assert_eq!(met().await, peers.len());
        // What is open does not ask what time it is.
        let mut rest = Vec::new();
        in_time("the transfer ends", circuit.read_to_end(&mut rest)).await.unwrap();
        let head = rest.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        assert!(rest.len() - head == LEN as usize && matches(0, &rest[head..]));
        // Whether descriptors are valid is the clock's word: none of them is, which is nobody's policy.
        let meanwhile = asked(2).await;
        assert_eq!(meanwhile, Err(OpenError::NoPath(PathError::NoLastHop)));
        assert!(meanwhile.unwrap_err().to_string().contains("is this machine's clock right?"));
        clock.set_ahead(0);
        says(0).await;
        until("as before", async || asked(60).await).await;
        assert_eq!(met().await, peers.len());
    }
    // What it stores while its clock is wrong is everybody, too.
    clock.set_ahead(5 * 3600);
    says(5).await;
    node.shutdown().await;
    drop(node);
    clock.set_ahead(0);
    let kept = RefCell::new(None);
    until("nobody has the state any more", async || {
        StateDir::open(&dir.path().join("client")).map(|state| *kept.borrow_mut() = Some(Arc::new(state)))
    })
    .await;
    let builder = Node::builder().sizes(SIZES).intervals(HURRY).paths(HopCount::new(3).unwrap(), Strictness::Ignore);
    let node = builder.state(kept.into_inner().unwrap()).start().await.unwrap();
    let known = node.known().await.unwrap();
    assert_eq!(known.iter().filter(|known| known.met).count(), peers.len(), "{known:?}");
    let mut circuit = node.open(Where::from(target.address), OpenOptions::default()).await.unwrap();
    circuit.connected().await.unwrap();
    drop(circuit);
    node.shutdown().await;
}
