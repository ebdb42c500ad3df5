use std::sync::Mutex;

use bulbil_core::wire::{CloseReason, Host, Name};
use proptest::prelude::*;
use tokio::io::DuplexStream;

use super::*;

/// Answers every target with a fixed outcome, and greets and echoes where it connects.
#[derive(Clone)]
struct Fake {
    outcome: Result<(), OpenError>,
    /// Whether the target never answers.
    silent: bool,
    opened: Arc<Mutex<Vec<(Target, OpenOptions)>>>,
}

struct FakeCircuit {
    outcome: Result<(), OpenError>,
    silent: bool,
}

impl Fake {
    fn new(outcome: Result<(), OpenError>) -> Self {
        Self { outcome, silent: false, opened: Arc::default() }
    }

    fn targets(&self) -> Vec<String> {
        self.opened.lock().unwrap().iter().map(|(target, _)| target.to_string()).collect()
    }

    fn keys(&self) -> Vec<[u8; 32]> {
        self.opened.lock().unwrap().iter().map(|(_, options)| options.isolation.unwrap().0).collect()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Dialer<S> for Fake {
    type Circuit = FakeCircuit;

    async fn open(&self, target: Target, options: OpenOptions) -> Result<FakeCircuit, OpenError> {
        self.opened.lock().unwrap().push((target, options));
        Ok(FakeCircuit { outcome: self.outcome, silent: self.silent })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Circuit<S> for FakeCircuit {
    async fn connected(&mut self) -> Result<(), OpenError> {
        if self.silent {
            std::future::pending::<()>().await;
        }
        self.outcome
    }

    async fn splice(self, mut client: S) -> Result<(), OpenError> {
        send(&mut client, b"hello ").await.unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        send(&mut client, &all).await.unwrap();
        Ok(())
    }
}

fn proxy(dialer: Fake) -> Proxy<Fake> {
    Proxy::new(dialer, Settings { connections: 8, deadline: Duration::from_secs(60) })
}

/// Sends `bytes` in pieces of `piece` bytes, ends its direction, and returns all that the proxy answers.
async fn talk_in_pieces(proxy: &Proxy<Fake>, bytes: &[u8], piece: usize) -> Vec<u8> {
    let (mut client, server) = tokio::io::duplex(piece.max(1));
    let (mut reader, mut writer) = tokio::io::split(&mut client);
    let speak = async {
        // The proxy may close before it has read all.
        let _ = writer.write_all(bytes).await;
        let _ = writer.shutdown().await;
    };
    let mut answer = Vec::new();
    let (_, (), _) = tokio::join!(proxy.serve_client(server), speak, reader.read_to_end(&mut answer));
    answer
}

async fn talk(proxy: &Proxy<Fake>, bytes: &[u8]) -> Vec<u8> {
    talk_in_pieces(proxy, bytes, 4096).await
}

const NO_AUTH: &[u8] = &[5, 1, 0];

fn connect(kind: u8, address: &[u8], port: u16) -> Vec<u8> {
    [&[5, 1, 0, kind][..], address, &port.to_be_bytes()].concat()
}

fn name(name: &[u8], port: u16) -> Vec<u8> {
    connect(3, &[&[u8::try_from(name.len()).unwrap()], name].concat(), port)
}

fn anonymous(request: &[u8]) -> Vec<u8> {
    [NO_AUTH, request].concat()
}

fn password(username: &[u8], password: &[u8], request: &[u8]) -> Vec<u8> {
    let len = |bytes: &[u8]| u8::try_from(bytes.len()).unwrap();
    [&[5, 1, 2, 1, len(username)], username, &[len(password)], password, request].concat()
}

fn reply(code: u8) -> [u8; 10] {
    [5, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

#[tokio::test]
async fn connects_to_addresses_and_names_and_reads_nothing_beyond_the_request() {
    let longest = "a".repeat(253);
    let cases = [
        (connect(1, &[192, 0, 2, 7], 80), "192.0.2.7:80".to_owned()),
        (connect(4, &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7], 443), "[2001:db8::7]:443".to_owned()),
        (name(b"example.com", 443), "example.com:443".to_owned()),
        (name(longest.as_bytes(), 1), format!("{longest}:1")),
        (name(b"192.0.2.7", 80), "192.0.2.7:80".to_owned()),
        (name(b"2001:db8::7", 80), "[2001:db8::7]:80".to_owned()),
        (name(b"[2001:db8::7]", 65535), "[2001:db8::7]:65535".to_owned()),
    ];
    for (request, target) in cases {
        let fake = Fake::new(Ok(()));
        let proxy = proxy(fake.clone());
        let bytes = [&anonymous(&request)[..], b"payload"].concat();
        let expected = [&[5, 0][..], &reply(0), b"hello payload"].concat();
        for piece in [1, 2, 3, 5, 4096] {
            assert_eq!(talk_in_pieces(&proxy, &bytes, piece).await, expected, "{target} by {piece}");
        }
        assert_eq!(fake.targets(), vec![target; 5]);
        assert_eq!(proxy.counts(), Counts { opened: 5, ..Counts::default() });
    }
    let fake = Fake::new(Ok(()));
    talk(&proxy(fake.clone()), &anonymous(&name(b"192.0.2.7", 80))).await;
    assert!(matches!(fake.opened.lock().unwrap()[0].0, Target::Tcp(Host::Ip(_), 80)), "an address is no name");
}

#[tokio::test]
async fn accepts_any_credentials() {
    let request = name(b"example.com", 80);
    let longest = [0xff; 255];
    for (user, pass) in
        [(&b"user"[..], &b"pass"[..]), (b"", b""), (b"", b"x"), (b"\xff\x00", b"\xfe"), (&longest, &longest)]
    {
        let fake = Fake::new(Ok(()));
        let answer = talk(&proxy(fake.clone()), &password(user, pass, &request)).await;
        assert_eq!(answer, [&[5, 2, 1, 0][..], &reply(0), b"hello "].concat());
        assert_eq!(fake.targets(), ["example.com:80"]);
    }
}

#[tokio::test]
async fn chooses_the_method() {
    let request = name(b"example.com", 80);
    for method in 0..=255 {
        let fake = Fake::new(Ok(()));
        let bytes = match method {
            2 => password(b"u", b"p", &request),
            _ => [&[5, 1, method][..], &request].concat(),
        };
        let answer = talk(&proxy(fake.clone()), &bytes).await;
        let expected = if matches!(method, 0 | 2) { method } else { 0xff };
        assert_eq!(&answer[..2], [5, expected], "method {method}");
        assert_eq!(fake.targets().len(), usize::from(expected != 0xff));
    }
    assert_eq!(talk(&proxy(Fake::new(Ok(()))), &[5, 0]).await, [5, 0xff]);

    let both = [&[5, 3, 0, 1, 2, 1, 1, b'u', 1, b'p'][..], &request].concat();
    assert!(talk(&proxy(Fake::new(Ok(()))), &both).await.starts_with(&[5, 2, 1, 0, 5, 0]));
    let many: Vec<u8> = [&[5, 255][..], &[9; 254], &[0], &request].concat();
    assert!(talk(&proxy(Fake::new(Ok(()))), &many).await.starts_with(&[5, 0, 5, 0]));
}

#[tokio::test]
async fn isolates_by_credentials_and_destination() {
    let fake = Fake::new(Ok(()));
    let proxy = proxy(fake.clone());
    let requests = [
        anonymous(&name(b"example.com", 80)),
        anonymous(&name(b"example.com", 443)),
        anonymous(&name(b"example.org", 80)),
        anonymous(&connect(1, &[192, 0, 2, 7], 80)),
        password(b"ab", b"c", &name(b"example.com", 80)),
        password(b"a", b"bc", &name(b"example.com", 80)),
        password(b"abc", b"", &name(b"example.com", 80)),
        password(b"", b"abc", &name(b"example.com", 80)),
        // Ports that differ as the bytes of upper and lower case letters do.
        anonymous(&name(b"example.com", 0x4141)),
        anonymous(&name(b"example.com", 0x6161)),
    ];
    for request in &requests {
        talk(&proxy, request).await;
    }
    let keys: std::collections::HashSet<_> = fake.keys().into_iter().collect();
    assert_eq!(keys.len(), requests.len());

    talk(&proxy, &anonymous(&name(b"EXAMPLE.com", 80))).await;
    talk(&proxy, &anonymous(&name(b"example.com", 80))).await;
    let keys = fake.keys();
    assert!(keys[requests.len()..].iter().all(|key| *key == keys[0]));
}

#[tokio::test]
async fn replies_tell_the_reason() {
    let cases = [
        (OpenError::Ended(EndReason::Refused), 5),
        (OpenError::Ended(EndReason::NotResolved), 4),
        (OpenError::Ended(EndReason::Forbidden), 2),
        (OpenError::Ended(EndReason::TimedOut), 6),
        (OpenError::Ended(EndReason::Unreachable), 3),
        (OpenError::Ended(EndReason::Reset), 5),
        (OpenError::Ended(EndReason::NextHopUnreachable), 1),
        (OpenError::Ended(EndReason::NextHopLost), 1),
        (OpenError::Ended(EndReason::Busy), 1),
        (OpenError::Ended(EndReason::Done), 1),
        (OpenError::Closed(CloseReason::LinkLost), 1),
        (OpenError::Deadline, 6),
        (OpenError::Shutdown, 1),
    ];
    for (error, code) in cases {
        let proxy = proxy(Fake::new(Err(error)));
        let bytes = [&anonymous(&name(b"example.com", 80))[..], b"sent too early"].concat();
        assert_eq!(talk(&proxy, &bytes).await, [&[5, 0][..], &reply(code)].concat(), "{error:?}");
        assert_eq!(proxy.counts(), Counts { failed: 1, ..Counts::default() });
    }
}

#[tokio::test]
async fn refuses_what_it_does_not_do() {
    let refused = |code: u8| [&[5, 0][..], &reply(code)].concat();
    let cases: [(Vec<u8>, Vec<u8>); 17] = [
        (anonymous(&[5, 2, 0, 1, 192, 0, 2, 7, 0, 80]), refused(7)),
        (anonymous(&[5, 3, 0, 1, 192, 0, 2, 7, 0, 80]), refused(7)),
        (anonymous(&[5, 0, 0, 9]), refused(7)),
        (anonymous(&[5, 1, 0, 2, 192, 0, 2, 7, 0, 80]), refused(8)),
        (anonymous(&[5, 1, 0, 0, 192, 0, 2, 7, 0, 80]), refused(8)),
        (anonymous(&[4, 1, 0, 1, 192, 0, 2, 7, 0, 80]), refused(1)),
        (anonymous(&[5, 1, 1, 1, 192, 0, 2, 7, 0, 80]), refused(1)),
        (anonymous(&connect(1, &[192, 0, 2, 7], 0)), refused(1)),
        (anonymous(&name(b"", 80)), refused(4)),
        (anonymous(&name(b"two words", 80)), refused(4)),
        (anonymous(&name(b"nul\0", 80)), refused(4)),
        (anonymous(&name("bücher.example".as_bytes(), 80)), refused(4)),
        (anonymous(&name(&[0xff; 3], 80)), refused(4)),
        (anonymous(&name(b"-dash", 80)), refused(4)),
        (anonymous(&name(&[b'a'; 254], 80)), refused(4)),
        (anonymous(&name(&[b'a'; 255], 80)), refused(4)),
        (vec![5, 1, 2, 2, 1, b'u', 1, b'p'], vec![5, 2, 1, 1]),
    ];
    for (bytes, expected) in cases {
        let fake = Fake::new(Ok(()));
        let proxy = proxy(fake.clone());
        assert_eq!(talk(&proxy, &bytes).await, expected, "{bytes:?}");
        assert_eq!(fake.targets().len(), 0);
        assert_eq!(proxy.counts(), Counts { rejected: 1, ..Counts::default() });
    }
}

#[tokio::test]
async fn tells_other_protocols_apart() {
    for request in
        ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT example.com:443 HTTP/1.1\r\n\r\n", "POST / HTTP/1.0\r\n"]
    {
        let answer = talk(&proxy(Fake::new(Ok(()))), request.as_bytes()).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
        assert!(answer.split_once("\r\n\r\n").unwrap().1.contains("SOCKS5 proxy"), "{answer}");
    }
    assert_eq!(talk(&proxy(Fake::new(Ok(()))), &[4, 1, 0, 80, 192, 0, 2, 7, 0]).await, [0, 91, 0, 0, 0, 0, 0, 0]);
    for first in (0..=255).filter(|first| !matches!(first, 4 | 5 | b'A'..=b'Z')) {
        let fake = Fake::new(Ok(()));
        assert!(talk(&proxy(fake.clone()), &[first, 1, 0, 5, 1, 0, 1]).await.is_empty(), "{first}");
        assert_eq!(fake.targets().len(), 0);
    }
}

#[tokio::test]
async fn a_request_cut_off_anywhere_opens_nothing() {
    let requests = [
        anonymous(&connect(1, &[192, 0, 2, 7], 80)),
        anonymous(&connect(4, &[7; 16], 80)),
        anonymous(&name(b"example.com", 80)),
        password(b"user", b"pass", &name(b"example.com", 80)),
    ];
    for request in requests {
        for len in 0..request.len() {
            let fake = Fake::new(Ok(()));
            let proxy = proxy(fake.clone());
            talk(&proxy, &request[..len]).await;
            assert_eq!(fake.targets().len(), 0, "{len} bytes of {request:?}");
            assert_eq!(proxy.counts(), Counts { rejected: 1, ..Counts::default() });
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stalls_loses_its_place_after_ten_seconds() {
    let request = password(b"user", b"pass", &name(b"example.com", 80));
    for len in 0..request.len() {
        let fake = Fake::new(Ok(()));
        let proxy = proxy(fake.clone());
        let (mut client, server) = tokio::io::duplex(4096);
        client.write_all(&request[..len]).await.unwrap();
        let begun = tokio::time::Instant::now();
        proxy.serve_client(server).await;
        assert_eq!(begun.elapsed().as_secs(), HANDSHAKE.as_secs(), "{len}");
        assert_eq!(proxy.counts(), Counts { handshake_timeouts: 1, ..Counts::default() });
        assert_eq!(fake.targets().len(), 0);
    }
}

/// A byte now and then does not prolong the deadline.
#[tokio::test(start_paused = true)]
async fn a_client_that_dribbles_loses_its_place_after_ten_seconds() {
    let request = password(b"user", b"pass", &name(b"example.com", 80));
    let proxy = proxy(Fake::new(Ok(())));
    let (mut client, server) = tokio::io::duplex(1);
    let begun = tokio::time::Instant::now();
    let dribble = async {
        for byte in request {
            tokio::time::sleep(Duration::from_secs(3)).await;
            if client.write_all(&[byte]).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(
        async {
            proxy.serve_client(server).await;
            assert_eq!(begun.elapsed().as_secs(), 10);
        },
        dribble
    );
    assert_eq!(proxy.counts().handshake_timeouts, 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_take_its_answer_is_left() {
    let proxy = proxy(Fake::new(Err(OpenError::Shutdown)));
    let (mut client, server) = tokio::io::duplex(64);
    client.write_all(&anonymous(&name(b"example.com", 80))).await.unwrap();
    let begun = tokio::time::Instant::now();
    proxy.serve_client(server).await;
    assert_eq!(begun.elapsed().as_secs(), FAREWELL.as_secs(), "it never closes its side");
}

#[tokio::test(start_paused = true)]
async fn a_silent_target_is_a_timeout() {
    let mut fake = Fake::new(Ok(()));
    fake.silent = true;
    let proxy = proxy(fake);
    let begun = tokio::time::Instant::now();
    let answer = talk(&proxy, &anonymous(&name(b"example.com", 80))).await;
    assert_eq!(answer, [&[5, 0][..], &reply(6)].concat());
    assert_eq!(begun.elapsed(), Duration::from_secs(60) + LATENESS);
}

#[tokio::test]
async fn connections_are_bounded_and_places_come_back() {
    let proxy = Proxy::new(Fake::new(Ok(())), Settings { connections: 2, deadline: Duration::from_secs(60) });
    let first = proxy.place().unwrap();
    let second = proxy.clone().place().unwrap();
    assert!(proxy.place().is_none());
    drop(first);
    let third = proxy.place().unwrap();
    assert!(proxy.place().is_none());
    drop((second, third));
    assert_eq!(proxy.counts(), Counts { accepted: 3, over_limit: 2, ..Counts::default() });
}

#[tokio::test]
async fn serves_over_tcp_until_shutdown() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = Proxy::new(Fake::new(Ok(())), Settings { connections: 1, deadline: Duration::from_secs(60) });
    let shutdown = Shutdown::new();
    let serving = tokio::spawn(proxy.clone().serve(listener, shutdown.clone()));

    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(&anonymous(&name(b"example.com", 80))).await.unwrap();
    let mut answer = [0; 18];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[2..], [&reply(0)[..], b"hello "].concat());

    // The only place is taken: the next one is closed without a byte.
    let mut next = TcpStream::connect(address).await.unwrap();
    assert_eq!(next.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert_eq!(proxy.counts().over_limit, 1);

    shutdown.request();
    client.write_all(b"to the end").await.unwrap();
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"to the end");
    serving.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_name_is_never_taken_for_another_kind_of_target() {
    let fake = Fake::new(Ok(()));
    talk(&proxy(fake.clone()), &anonymous(&name(b"phonebook", 80))).await;
    let expected = Target::Tcp(Host::Name(Name::new("phonebook").unwrap()), 80);
    assert_eq!(fake.opened.lock().unwrap()[0].0, expected);
}

proptest! {
    #[test]
    fn any_bytes_end_in_an_answer_of_ours(bytes in proptest::collection::vec(any::<u8>(), 0..64), auth in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let bytes = if auth { anonymous(&bytes) } else { bytes };
        let answer = runtime.block_on(talk(&proxy(Fake::new(Ok(()))), &bytes));
        let ours: [&[u8]; 3] = [&[5], &[0, 91], b"HTTP/1.1 400"];
        let known = answer.is_empty() || ours.iter().any(|beginning| answer.starts_with(beginning));
        prop_assert!(known, "{:?}", answer);
    }
}

/// `DuplexStream` and `TcpStream` are served by the same code.
const _: fn(&Proxy<Fake>, DuplexStream) = |proxy, client| drop(proxy.serve_client(client));
