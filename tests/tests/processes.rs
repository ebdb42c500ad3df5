//! Nodes as processes, started from configuration files.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use bulbil_tests::processes::{NodeProcess, PATIENCE, Process, client_config, own_address, serving_config, start_node};
use bulbil_tests::scratch::Scratch;
use bulbil_tests::socks;
use bulbil_tests::targets::Target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

const PROGRAM: &str = env!("CARGO_BIN_EXE_bulbil-under-test");

/// Three relays and an exit.
fn four_nodes(dir: &Path) -> Vec<NodeProcess> {
    let configs: Vec<_> = (1..=4)
        .map(|number| {
            let role = if number == 4 { "exit" } else { "relay" };
            serving_config(dir, &format!("{role}{number}"), role, own_address(), "")
        })
        .collect();
    configs.iter().map(|config| NodeProcess::start(PROGRAM, config)).collect()
}

fn contacts(nodes: &[NodeProcess]) -> Vec<String> {
    nodes.iter().map(NodeProcess::contact).collect()
}

async fn page(proxy: SocketAddr, port: u16) -> Result<Vec<u8>, socks::Refused> {
    let fetch = async {
        let stream = socks::connect(proxy, "localhost", port, None).await?;
        Ok(socks::get(stream, "/").await?.1)
    };
    timeout(PATIENCE, fetch).await.expect("an answer within the deadline, good or bad")
}

/// What must never be in a log at its default level.
fn assert_discreet<'a>(processes: impl IntoIterator<Item = &'a Process>, secrets: &[String]) {
    for process in processes {
        let log = process.stderr();
        for secret in secrets {
            assert!(!log.contains(secret.as_str()), "{secret:?} is in the log:\n{log}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn four_processes_carry_requests_and_restart_as_the_same_nodes() {
    let dir = Scratch::new("four");
    let target = Target::start().await;
    let mut nodes = four_nodes(dir.path());
    let config = client_config(dir.path(), "client", &contacts(&nodes), "");
    let mut client = NodeProcess::start(PROGRAM, &config);
    assert!(client.listening.is_none(), "a client answers nobody");
    let proxy = client.proxy();

    let body = page(proxy, target.port()).await.unwrap();
    assert!(String::from_utf8(body).unwrap().contains("It works"));
    for name in ["relay1", "exit4", "client"] {
        let mode = dir.path().join(format!("{name}.state")).metadata().unwrap().mode();
        assert_eq!(mode & 0o777, 0o700, "{name}");
    }

    // A relay and the exit restart: same identity, new onion keys, and the client finds out by itself.
    for name in ["relay2", "exit4"] {
        let at = usize::from(name.as_bytes()[name.len() - 1] - b'1');
        let status = nodes[at].process.terminate();
        assert_eq!(status.code(), Some(0), "{}", nodes[at].process.stderr());
        let config = dir.path().join(format!("{name}.toml"));
        let restarted = NodeProcess::start(PROGRAM, &config);
        assert_eq!(restarted.contact(), nodes[at].contact());
        nodes[at] = restarted;
        page(proxy, target.port()).await.unwrap();
    }

    let mut secrets: Vec<_> = nodes.iter().map(|node| node.fingerprint.clone()).collect();
    secrets.extend(nodes.iter().map(|node| node.listening.unwrap().ip().to_string()));
    secrets.extend(["localhost".into(), "127.0.0.1".into(), format!(":{}", target.port())]);
    assert_eq!(client.process.terminate().code(), Some(0));
    for node in &mut nodes {
        assert_eq!(node.process.terminate().code(), Some(0));
    }
    assert_discreet(nodes.iter().chain([&client]).map(|node| &node.process), &secrets);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_killed_ends_the_transfer_and_the_next_request_goes_around_it() {
    let dir = Scratch::new("kill");
    let target = Target::start().await;
    let mut nodes = four_nodes(dir.path());
    // The client knows of the fifth relay from the beginning; it does not run yet.
    let fifth_address = own_address();
    let fifth_config = serving_config(dir.path(), "relay5", "relay", fifth_address, "");
    let mut keygen = Process::start(PROGRAM, ["keygen".as_ref(), "--config".as_ref(), fifth_config.as_os_str()]);
    let fingerprint = keygen.line("");
    assert!(keygen.end().success());
    let mut known = contacts(&nodes);
    known.push(format!("{fifth_address}#{fingerprint}"));
    let mut client = NodeProcess::start(PROGRAM, &client_config(dir.path(), "client", &known, ""));
    let proxy = client.proxy();

    for victim in 0..3 {
        // All three relays are on the path, the one that is killed in each of the places sooner or later.
        let mut stream = socks::connect(proxy, "127.0.0.1", target.port(), None).await.unwrap();
        socks::request(&mut stream, &format!("/bytes/{}", 1u64 << 36)).await.unwrap();
        let mut part = vec![0; 1 << 16];
        stream.read_exact(&mut part).await.unwrap();
        // A length would give a cut away; without one only the reset does.
        nodes[victim].process.kill();
        let rest = async {
            while stream.read(&mut part).await? > 0 {}
            Ok::<_, std::io::Error>(())
        };
        let ended = timeout(PATIENCE, rest).await.expect("the transfer ends");
        assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "not like an end");

        if victim == 0 {
            let fifth = NodeProcess::start(PROGRAM, &fifth_config);
            assert_eq!(fifth.fingerprint, fingerprint);
            nodes.push(fifth);
        } else {
            let config = dir.path().join(format!("relay{victim}.toml"));
            nodes[victim - 1] = NodeProcess::start(PROGRAM, &config);
        }
        page(proxy, target.port()).await.expect("another path");
    }
    let secrets: Vec<_> = known.iter().flat_map(|contact| contact.split(['#', ':'])).map(String::from).collect();
    let secrets: Vec<_> = secrets.into_iter().filter(|part| part.len() > 6).collect();
    assert_eq!(client.process.terminate().code(), Some(0));
    assert_discreet(nodes.iter().chain([&client]).map(|node| &node.process), &secrets);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_pinned_node_is_talked_to() {
    let dir = Scratch::new("pinned");
    let nodes = four_nodes(dir.path());
    let mut known = contacts(&nodes);
    let (address, _) = known[3].split_once('#').unwrap();
    known[3] = format!("{address}#{}", nodes[0].fingerprint);
    let config = client_config(dir.path(), "client", &known, "deadline_seconds = 1\n");
    let mut client = NodeProcess::start(PROGRAM, &config);
    client.process.log("answered by another node than the one pinned");
    let refused = page(client.proxy(), 80).await.unwrap_err();
    assert!(matches!(refused.code(), Some(1 | 6)), "no exit is known, which is nobody's refusal: {refused:?}");
    assert!(client.process.terminate().success());

    // The same on the command line.
    let mut arguments = vec!["send".to_owned(), "--timeout".into(), "1".into()];
    arguments.extend(known.iter().flat_map(|contact| ["--bootstrap".to_owned(), contact.clone()]));
    arguments.extend(["127.0.0.1:80".to_owned(), "hello".into()]);
    let mut send = Process::start(PROGRAM, arguments);
    assert_eq!(send.end().code(), Some(1));
    let told = send.stderr();
    assert!(told.contains("error: ") && told.contains("are the bootstrap nodes up"), "{told}");
}

#[test]
fn two_processes_do_not_share_a_state_directory() {
    let dir = Scratch::new("locked");
    let config = serving_config(dir.path(), "relay", "relay", own_address(), "");
    let mut first = NodeProcess::start(PROGRAM, &config);
    let mut second = start_node(PROGRAM, &config);
    assert_eq!(second.end().code(), Some(1));
    let told = second.stderr();
    assert!(told.starts_with("error: ") && told.contains("relay.state"), "{told}");
    assert_eq!(first.process.terminate().code(), Some(0), "the first one does not mind");

    let config = serving_config(dir.path(), "relay", "relay", own_address(), "unheard_of = 1\n");
    let mut wrong = start_node(PROGRAM, &config);
    assert_eq!(wrong.end().code(), Some(2));
    assert!(wrong.stderr().contains("unheard_of"), "{}", wrong.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn bulbil_net_serves_until_it_is_told_to_stop() {
    let target = Target::start().await;
    let mut net = Process::start(PROGRAM, ["net", "--socks", "127.0.0.1:0"]);
    let proxy = net.line("socks ").parse().unwrap();
    let _ready = net.line("ready");
    page(proxy, target.port()).await.unwrap();

    // An open transfer does not hold the end up for longer than its grace.
    let mut stream = socks::connect(proxy, "127.0.0.1", target.port(), None).await.unwrap();
    socks::request(&mut stream, "/slow?seconds=600").await.unwrap();
    let _first = stream.read_u8().await.unwrap();
    net.signal("INT");
    let rest = async {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await
    };
    assert!(timeout(PATIENCE, rest).await.unwrap().is_err(), "cut off, not ended");
    assert_eq!(net.end().code(), Some(0), "{}", net.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_neighbour_disturbs_nobody() {
    let dir = Scratch::new("hostile");
    let target = Target::start().await;
    let limits = "[limits]\nhalf_open_links = 8\nlinks = 32\n";
    let configs: Vec<_> = (1..=4)
        .map(|number| {
            let role = if number == 4 { "exit" } else { "relay" };
            serving_config(dir.path(), &format!("{role}{number}"), role, own_address(), limits)
        })
        .collect();
    let nodes: Vec<_> = configs.iter().map(|config| NodeProcess::start(PROGRAM, config)).collect();
    let client = NodeProcess::start(PROGRAM, &client_config(dir.path(), "client", &contacts(&nodes), ""));
    page(client.proxy(), target.port()).await.unwrap();

    let mut held = Vec::new();
    for node in &nodes {
        let address = node.listening.unwrap();
        // Many more links than may be half open, which say nothing, half a message, or one byte of a length.
        for number in 0..60u8 {
            let mut link = tokio::net::TcpStream::connect(address).await.unwrap();
            let beginning = vec![number; usize::from(number % 4) * 200];
            // The node may have closed it already, to make room for the next one.
            let _closed = link.write_all(&[&[4, 192][..], &beginning].concat()[..2 + beginning.len()]).await;
            held.push(link);
        }
        // Messages of garbage, of the right length and of others.
        for (length, fill) in [(1216u16, 0u8), (1216, 0xff), (1216, 0x5a), (0, 0), (1, 1), (65535, 7), (1215, 9)] {
            let mut link = tokio::net::TcpStream::connect(address).await.unwrap();
            let message = [&length.to_be_bytes()[..], &vec![fill; usize::from(length)]].concat();
            let _closed = link.write_all(&message).await;
            held.push(link);
        }
    }
    // Garbage at the proxy.
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x04\x01", b"\x05\x00", b"\x05\x01\x00\x05\x09\x00\x01", &[0xff; 4096]]
    {
        let mut stream = tokio::net::TcpStream::connect(client.proxy()).await.unwrap();
        let _closed = stream.write_all(garbage).await;
        held.push(stream);
    }
    // Old links serve on, and new ones are still made: a client that nobody has met needs one to each node.
    let newcomer = NodeProcess::start(PROGRAM, &client_config(dir.path(), "newcomer", &contacts(&nodes), ""));
    for proxy in [client.proxy(), newcomer.proxy()] {
        page(proxy, target.port()).await.expect("as usual");
    }
    drop(held);
    page(newcomer.proxy(), target.port()).await.unwrap();
}
