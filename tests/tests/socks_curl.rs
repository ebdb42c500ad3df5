//! What comes through the SOCKS5 proxy: with a small client of our own, and with curl where there is one.
//!
//! `BULBIL_TEST_BIG=1` runs the transfers with 1 GiB and the slow server for a minute.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bulbil_host::net::Network;
use bulbil_host::node::Node;
use bulbil_host::shutdown::Shutdown;
use bulbil_host::socks::{Proxy, Settings};
use bulbil_tests::socks::{self, connect, download, get, receipt_of, upload};
use bulbil_tests::targets::{Target, big, resetting, serve_each};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Longer than anything here takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(600);

/// Bytes of a large transfer.
fn large() -> u64 {
    if big() { 1 << 30 } else { 64 << 20 }
}

/// A network, a proxy in front of it, and a server behind it.
struct World {
    network: Network,
    proxy: SocketAddr,
    target: Target,
    stop: Shutdown,
}

impl World {
    async fn start() -> Self {
        let network = Network::start().await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (proxy, stop) = (listener.local_addr().unwrap(), Shutdown::new());
        let settings = Settings { connections: 1024, deadline: Duration::from_secs(60) };
        tokio::spawn(Proxy::new(network.client.clone(), settings).serve(listener, stop.clone()));
        Self { network, proxy, target: Target::start().await, stop }
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.network.nodes.iter().chain([&self.network.client])
    }

    /// Waits until no node holds anything of any circuit.
    async fn emptied(&self) {
        let all_gone = async {
            for node in self.nodes() {
                loop {
                    let usage = node.status().await.expect("the node runs").usage;
                    if (usage.circuits, usage.cells_held, usage.cells_reserved, usage.onions, usage.origins)
                        == (0, 0, 0, 0, 0)
                    {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        timeout(Duration::from_secs(60), all_gone).await.expect("everything is given back");
    }

    async fn end(self) {
        self.emptied().await;
        self.stop.request();
        self.network.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_by_name_and_by_address_of_both_families() {
    let world = World::start().await;
    let fetch = async |host: &str, port| {
        let stream = connect(world.proxy, host, port, None).await.unwrap();
        let (status, body) = get(stream, "/").await.unwrap();
        assert!(status == 200 && body.starts_with(b"<!doctype html>"));
    };
    fetch("127.0.0.1", world.target.port()).await;
    fetch("localhost", world.target.port()).await;
    fetch("LocalHost", world.target.port()).await;
    match Target::start_on("[::1]").await {
        Ok(target) => fetch("::1", target.port()).await,
        Err(error) => eprintln!("skipped: no IPv6 here ({error})"),
    }
    let stream = connect(world.proxy, "localhost", world.target.port(), Some(("name", "password"))).await.unwrap();
    assert_eq!(get(stream, "/").await.unwrap().0, 200);
    let stream = connect(world.proxy, "localhost", world.target.port(), Some(("", ""))).await.unwrap();
    assert_eq!(get(stream, "/nothing-here").await.unwrap().0, 404);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_tell_the_reason() {
    let world = World::start().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    for (host, port, reply) in [
        ("127.0.0.1", closed, 5),
        ("nonexistent.invalid", 80, 4),
        ("10.0.0.1", 80, 2),
        ("169.254.169.254", 80, 2),
        // No exit of this network says that it takes this port, so nobody has to be asked.
        ("127.0.0.1", 25, 2),
        ("example.com", 0, 1),
    ] {
        let refused = timeout(Duration::from_secs(30), connect(world.proxy, host, port, None)).await.unwrap();
        assert_eq!(refused.unwrap_err().code(), Some(reply), "{host}:{port}");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_transfers_arrive_byte_for_byte_both_ways() {
    let world = World::start().await;
    let open = || connect(world.proxy, "127.0.0.1", world.target.port(), None);
    let begun = Instant::now();
    let downloaded = download(open().await.unwrap(), large()).await.unwrap();
    eprintln!("down: {} MiB in {:?}", large() >> 20, begun.elapsed());
    assert_eq!(downloaded, large());
    let begun = Instant::now();
    let answer = upload(open().await.unwrap(), large()).await.unwrap();
    eprintln!("up: {} MiB in {:?}", large() >> 20, begun.elapsed());
    assert_eq!(answer, receipt_of(large()));
    // Both at once on one circuit.
    let len = large() / 8;
    let (mut reading, mut writing) = open().await.unwrap().into_split();
    let head = format!("POST /echo HTTP/1.1\r\nHost: target\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n");
    writing.write_all(head.as_bytes()).await.unwrap();
    let sending = tokio::spawn(async move {
        let (mut chunk, mut offset) = (vec![0; 1 << 16], 0);
        while offset < len {
            bulbil_host::target_server::fill(offset, &mut chunk);
            writing.write_all(&chunk).await.unwrap();
            offset += chunk.len() as u64;
        }
        writing
    });
    let (mut body, mut text) = (Vec::new(), vec![0; 1]);
    while !text.ends_with(b"\r\n\r\n") {
        text.push(reading.read_u8().await.unwrap());
    }
    reading.read_to_end(&mut body).await.unwrap();
    assert!(body.len() as u64 == len && bulbil_host::target_server::matches(0, &body));
    drop(sending.await.unwrap());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_downloads_at_the_same_time_all_arrive() {
    const EACH: u64 = 200_000;
    let world = World::start().await;
    let mut running = JoinSet::new();
    for number in 0..200 {
        let (proxy, port) = (world.proxy, world.target.port());
        running.spawn(async move {
            let name = format!("user-{number}");
            let stream = connect(proxy, "127.0.0.1", port, Some((&name, ""))).await.unwrap();
            assert_eq!(download(stream, EACH).await.unwrap(), EACH);
        });
    }
    let begun = Instant::now();
    timeout(PATIENCE, async {
        while let Some(done) = running.join_next().await {
            done.unwrap();
        }
    })
    .await
    .unwrap();
    eprintln!("200 downloads of {EACH} bytes in {:?}", begun.elapsed());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_half_closing_servers_are_waited_for() {
    let world = World::start().await;
    let open = || connect(world.proxy, "127.0.0.1", world.target.port(), None);
    let seconds = if big() { 60 } else { 3 };
    let (_, body) = get(open().await.unwrap(), &format!("/slow?seconds={seconds}")).await.unwrap();
    assert_eq!(String::from_utf8(body).unwrap().lines().count(), seconds);

    // The server ends its direction; ours goes on until we end it, and only then is the circuit gone.
    let mut stream = open().await.unwrap();
    socks::request(&mut stream, "/half-close").await.unwrap();
    let mut page = Vec::new();
    stream.read_to_end(&mut page).await.unwrap();
    assert!(page.ends_with(b"</html>\n"));
    stream.write_all(b"still here").await.unwrap();
    // Its own exchanges count, too.
    assert!(world.network.client.status().await.unwrap().usage.origins >= 1);
    stream.shutdown().await.unwrap();

    // We end our direction first; the answer to what was said comes all the same.
    let server = serve_each(|mut stream| async move {
        let mut said = Vec::new();
        let _read = stream.read_to_end(&mut said).await;
        said.reverse();
        let _written = stream.write_all(&said).await;
    })
    .await;
    let mut stream = connect(world.proxy, "127.0.0.1", server.port(), None).await.unwrap();
    stream.write_all(b"drawer").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"reward");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_break_on_one_side_is_a_break_on_the_other() {
    let world = World::start().await;
    // The server resets in the middle of an answer whose length it has not said.
    let server = resetting(b"HTTP/1.1 200 OK\r\n\r\nhalf of wh").await;
    let mut stream = connect(world.proxy, "127.0.0.1", server.port(), None).await.unwrap();
    socks::request(&mut stream, "/").await.unwrap();
    let mut answer = Vec::new();
    let error = stream.read_to_end(&mut answer).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    // The client goes away in the middle: the server hears of it, as a reset, and every circuit goes.
    let (heard, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let server = serve_each(move |mut stream| {
        let heard = heard.clone();
        async move {
            let chunk = vec![7; 1 << 16];
            let ended = loop {
                if let Err(error) = stream.write_all(&chunk).await {
                    break error.kind();
                }
            };
            // Without the other half of the connection a server would take an upload for complete.
            let mut rest = Vec::new();
            heard.send((ended, stream.read_to_end(&mut rest).await.is_err())).unwrap();
        }
    })
    .await;
    for abrupt in [true, false] {
        let mut stream = connect(world.proxy, "127.0.0.1", server.port(), None).await.unwrap();
        let mut part = vec![0; 1 << 16];
        stream.read_exact(&mut part).await.unwrap();
        if abrupt {
            stream.set_zero_linger().unwrap();
        }
        drop(stream);
        let (ended, _) = timeout(Duration::from_secs(60), ends.recv()).await.unwrap().unwrap();
        assert!(matches!(ended, std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe), "{ended}");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_gets_everything_after_everybody_else_has_gone() {
    let world = World::start().await;
    let len = 2 << 20;
    let mut stream = connect(world.proxy, "127.0.0.1", world.target.port(), None).await.unwrap();
    socks::request(&mut stream, &format!("/bytes/{len}")).await.unwrap();
    // Both directions end, so the whole answer waits along the path. At full size it is read for longer than a circuit that closes may
    // stand still (a minute): what counts is that it does not stand still.
    stream.shutdown().await.unwrap();
    let pause = Duration::from_millis(if big() { 3000 } else { 10 });
    let mut all = Vec::new();
    let mut part = vec![0; 1 << 16];
    loop {
        match stream.read(&mut part).await.unwrap() {
            0 => break,
            read => all.extend_from_slice(&part[..read]),
        }
        tokio::time::sleep(pause).await;
    }
    let body = all.len() - len;
    assert!(all.starts_with(b"HTTP/1.1 200 OK") && bulbil_host::target_server::matches(0, &all[body..]));
    world.end().await;
}

/// Runs curl through the proxy; answers its exit code and output, or `None` where there is no curl.
async fn curl(proxy: SocketAddr, arguments: &[&str]) -> Option<(i32, Vec<u8>, String)> {
    let mut command = std::process::Command::new("curl");
    command.args(["-sS", "--max-time", "300", "--socks5-hostname", &proxy.to_string()]).args(arguments);
    command.env_remove("no_proxy").env_remove("NO_PROXY").stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    match output {
        Ok(output) => {
            let code = output.status.code().expect("curl is not killed");
            Some((code, output.stdout, String::from_utf8_lossy(&output.stderr).into_owned()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: no curl");
            None
        }
        Err(error) => panic!("curl: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_gets_the_right_answer_or_error() {
    let world = World::start().await;
    let base = format!("http://localhost:{}", world.target.port());
    let Some((code, page, told)) = curl(world.proxy, &[&base]).await else { return };
    assert!(code == 0 && page.starts_with(b"<!doctype html>"), "{told}");

    let curl = async |arguments: &[&str]| curl(world.proxy, arguments).await.unwrap();
    let credentials = ["--proxy-user", "name:password", &base];
    assert_eq!(curl(&credentials).await.0, 0);
    let (code, body, _) = curl(&[&format!("{base}/bytes/3000000")]).await;
    assert!(code == 0 && body.len() == 3_000_000 && bulbil_host::target_server::matches(0, &body));
    let (code, echoed, _) = curl(&["--data-binary", "@Cargo.toml", &format!("{base}/echo")]).await;
    assert!(code == 0 && echoed == std::fs::read("Cargo.toml").unwrap());
    let (code, lines, _) = curl(&[&format!("{base}/slow?seconds=2")]).await;
    assert!(code == 0 && String::from_utf8(lines).unwrap().lines().count() == 2);
    assert_eq!(curl(&[&format!("{base}/half-close")]).await.0, 0);

    // 97: the proxy's handshake failed; curl prints the reply's code.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    for (url, reply) in [
        (format!("http://127.0.0.1:{closed}/"), "(5)"),
        ("http://nonexistent.invalid/".to_owned(), "(4)"),
        ("http://10.0.0.1/".to_owned(), "(2)"),
        ("http://127.0.0.1:25/".to_owned(), "(2)"),
    ] {
        let (code, _, told) = curl(&[&url]).await;
        assert!(code == 97 && told.contains(reply), "{url}: {code} {told}");
    }
    // 56: reading failed. Not 0, although no length was said.
    let server = resetting(b"HTTP/1.1 200 OK\r\n\r\nhalf of wh").await;
    let (code, _, told) = curl(&[&format!("http://{server}/")]).await;
    assert_eq!(code, 56, "{told}");
    // 28: curl gave up, and the circuit goes with it.
    let (code, ..) = curl(&["--max-time", "1", &format!("{base}/slow?seconds=600")]).await;
    assert_eq!(code, 28);
    world.end().await;
}
