use proptest::prelude::*;

use super::*;

/// Sends `request`, ends its direction, and returns all that comes back.
async fn talk(request: &[u8]) -> String {
    String::from_utf8(talk_bytes(request, 1 << 20).await).unwrap()
}

async fn talk_bytes(request: &[u8], capacity: usize) -> Vec<u8> {
    let (mut client, server) = tokio::io::duplex(capacity);
    let (mut reader, mut writer) = tokio::io::split(&mut client);
    let speak = async {
        let _ = writer.write_all(request).await;
        let _ = writer.shutdown().await;
    };
    let mut answer = Vec::new();
    // Reading and writing side by side; the server's own error, if any, shows as a short answer.
    let (_, (), _) = tokio::join!(serve_connection(server), speak, reader.read_to_end(&mut answer));
    answer
}

fn body(answer: &[u8]) -> &[u8] {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    &answer[end + 4..]
}

#[test]
fn any_part_of_the_stream_is_that_part_of_the_whole() {
    let mut whole = vec![0; 300];
    fill(0, &mut whole);
    for from in 0..40 {
        for to in from..whole.len() {
            let mut part = vec![0xa5; to - from];
            fill(from as u64, &mut part);
            assert_eq!(part, whole[from..to], "{from}..{to}");
        }
    }
    let mut large = vec![0; 10_000];
    fill(12_345, &mut large);
    assert!(matches(12_345, &large));
    assert!(!matches(12_346, &large));
    large[9_999] ^= 1;
    assert!(!matches(12_345, &large));
    fill(u64::MAX - 3, &mut [0; 3]);
    // The well-known first outputs of splitmix64 seeded with 0.
    assert_eq!([word(0), word(1), word(2)], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
}

#[tokio::test]
async fn serves_a_page() {
    let answer = talk(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains(&format!("\r\nContent-Length: {}\r\n", PAGE.len())) && answer.ends_with(PAGE), "{answer}");
}

#[tokio::test]
async fn serves_several_requests_on_one_connection() {
    let answer =
        talk(b"GET / HTTP/1.1\r\n\r\nPOST /echo HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /bytes/0 HTTP/1.1\r\n\r\n")
            .await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3, "{answer}");
    assert_eq!(answer.matches("Connection: keep-alive").count(), 3);
    for closing in ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nConnection: close\r\n\r\n"] {
        let answer = talk(format!("{closing}GET / HTTP/1.1\r\n\r\n").as_bytes()).await;
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        assert!(answer.contains("Connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn streams_known_bytes() {
    for count in [0, 1, 7, 8, 1_000_003] {
        for capacity in [1 << 20, 1000] {
            let answer = talk_bytes(format!("GET /bytes/{count} HTTP/1.0\r\n\r\n").as_bytes(), capacity).await;
            assert_eq!(body(&answer).len(), count);
            assert!(matches(0, body(&answer)));
        }
    }
}

#[tokio::test]
async fn echoes_and_counts_bodies() {
    let mut data = vec![0; 700_000];
    fill(0, &mut data);
    for expect in ["", "Expect: 100-continue\r\n"] {
        for (path, capacity) in [("echo", 1 << 21), ("echo", 777), ("sink", 777)] {
            let head = format!("POST /{path} HTTP/1.0\r\n{expect}Content-Length: {}\r\n\r\n", data.len());
            let answer = talk_bytes(&[head.as_bytes(), &data].concat(), capacity).await;
            let answer = match answer.strip_prefix(b"HTTP/1.1 100 Continue\r\n\r\n") {
                Some(rest) => rest,
                None => &answer,
            };
            if path == "echo" {
                assert!(body(answer) == data, "the echo differs");
            } else {
                let digest: String = Sha256::digest(&data).iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(body(answer), format!("length 700000 sha256 {digest}\n").as_bytes());
            }
        }
    }
    let nothing = talk(b"POST /sink HTTP/1.0\r\nContent-Length: 0\r\n\r\n").await;
    assert!(
        nothing.contains("length 0 sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        "{nothing}"
    );
}

#[tokio::test(start_paused = true)]
async fn dribbles_in_virtual_time() {
    for (request, seconds, lines) in [
        ("/slow?seconds=60", 59, 60),
        ("/events?count=5&interval=1000", 4, 5),
        ("/events?count=0", 0, 0),
        ("/slow", 9, 10),
    ] {
        let begun = tokio::time::Instant::now();
        let answer = talk(format!("GET {request} HTTP/1.1\r\n\r\n").as_bytes()).await;
        assert_eq!(begun.elapsed().as_secs(), seconds, "{request}");
        let text = std::str::from_utf8(body(answer.as_bytes())).unwrap();
        assert_eq!(text.lines().count(), lines, "{text}");
        assert!(answer.contains(&format!("Content-Length: {}\r\n", text.len())));
        assert!(lines == 0 || text.ends_with(&format!("line {lines:07} of {lines:07}\n")));
    }
}

#[tokio::test]
async fn ends_its_direction_and_reads_on() {
    let (mut client, server) = tokio::io::duplex(64 << 10);
    let server = tokio::spawn(serve_connection(server));
    client.write_all(b"GET /half-close HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(body(&answer), PAGE.as_bytes());
    // More than fits between the two, so somebody reads.
    client.write_all(&vec![7; 1 << 20]).await.unwrap();
    client.shutdown().await.unwrap();
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn refuses_with_a_reason() {
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(HEAD_MAX));
    let cases = [
        ("nonsense\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", "400"),
        ("GET  / HTTP/1.1\r\n\r\n", "400"),
        ("GET x HTTP/1.1\r\n\r\n", "400"),
        ("GET / SPDY/3\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", "400"),
        ("POST /echo HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", "400"),
        ("POST /echo HTTP/1.1\r\nContent-Length: +1\r\n\r\nx", "400"),
        ("GET /bytes/ HTTP/1.1\r\n\r\n", "400"),
        ("GET /bytes/x HTTP/1.1\r\n\r\n", "400"),
        ("GET /bytes/99999999999 HTTP/1.1\r\n\r\n", "400"),
        ("GET /slow?seconds=601 HTTP/1.1\r\n\r\n", "400"),
        ("GET /events?count=x HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost", "400"),
        ("GET /nowhere HTTP/1.1\r\n\r\n", "404"),
        ("POST /nowhere HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "404"),
        ("PUT / HTTP/1.1\r\n\r\n", "405"),
        ("POST /echo HTTP/1.1\r\n\r\n", "411"),
        ("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "411"),
        ("POST /sink HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", "413"),
        (&long, "431"),
        ("GET / HTTP/2.0\r\n\r\n", "505"),
    ];
    for (request, status) in cases {
        let answer = talk(request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?} gave {answer:?}");
        assert_eq!(
            answer.matches("HTTP/1.1 ").count(),
            1 + usize::from(answer.contains("Only HTTP/1.0 and HTTP/1.1 "))
        );
    }
    assert_eq!(talk(b"").await, "", "a client that says nothing is told nothing");
}

#[tokio::test(start_paused = true)]
async fn every_wait_ends() {
    let cases: [(&[u8], Duration, &str); 4] = [
        (b"", HEAD_DEADLINE, ""),
        (b"GET / HT", HEAD_DEADLINE + FAREWELL, "408"),
        (b"POST /sink HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc", STALL, ""),
        (b"GET /bytes/1000000 HTTP/1.1\r\n\r\n", STALL, "200"),
    ];
    for (request, time, status) in cases {
        let (mut client, server) = tokio::io::duplex(4096);
        client.write_all(request).await.unwrap();
        let begun = tokio::time::Instant::now();
        let _ = serve_connection(server).await;
        assert_eq!(begun.elapsed().as_secs(), time.as_secs(), "{request:?}");
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.get(9..).unwrap_or("").starts_with(status), "{answer}");
    }
}

#[tokio::test]
async fn serves_over_tcp_until_shutdown() {
    let server = TargetServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let serving = tokio::spawn(server.serve(shutdown.clone()));
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET /bytes/3000000 HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert!(body(&answer).len() == 3_000_000 && matches(0, body(&answer)));
    shutdown.request();
    serving.await.unwrap();
}

proptest! {
    #[test]
    fn heads_parse_the_same_however_they_arrive(
        line in "(GET|POST|X) /?[a-z/?=&0-9]{0,9} HTTP/1.[01]",
        fields in "(\r\n[A-Za-z-]{1,8}: ?[a-z0-9]{0,4}){0,3}",
    ) {
        let text = format!("{line}{fields}\r\n\r\n");
        let bytes = text.as_bytes();
        for len in 0..bytes.len() {
            prop_assert!(matches!(request::parse(&bytes[..len], HEAD_MAX), Ok(None)));
        }
        if let Ok(parsed) = request::parse(bytes, HEAD_MAX) {
            let (_, used) = parsed.unwrap();
            prop_assert_eq!(used, bytes.len());
        }
    }

    #[test]
    fn any_bytes_are_answered_or_ignored(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let answer = runtime.block_on(talk_bytes(&bytes, 4096));
        prop_assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 "));
    }
}

/// Prints what one connection delivers; run with `--release -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_throughput() {
    let server = TargetServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(server.serve(Shutdown::new()));
    let total: u64 = 8 << 30;
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    client.write_all(format!("GET /bytes/{total} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
    let begun = std::time::Instant::now();
    let (mut read, mut chunk) = (0, vec![0; 1 << 20]);
    loop {
        match client.read(&mut chunk).await.unwrap() {
            0 => break,
            len => read += len as u64,
        }
    }
    assert!(read > total);
    println!("{:.2} GB/s", read as f64 / begun.elapsed().as_secs_f64() / 1e9);
}
