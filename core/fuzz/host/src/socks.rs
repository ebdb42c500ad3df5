//! The SOCKS5 proxy and what a client says to it. A model of RFC 1928 and RFC 1929 says what comes back, what is asked for and how much of
//! the client's bytes that takes; and so it is in whatever pieces the bytes come. What is asked for is encoded as it came, and another
//! client's credentials or another destination have another isolation key.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bulbil_core::wire::{Host, Target};
use bulbil_host::node::{EndReason, OpenError, OpenOptions};
use bulbil_host::socks::{Circuit, Dialer, Proxy, Settings};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How opening a circuit may end, and the reply code of RFC 1928 for it.
const OUTCOMES: [(Result<(), OpenError>, u8); 8] = [
    (Ok(()), 0),
    (Err(OpenError::Ended(EndReason::Internal)), 1),
    (Err(OpenError::Ended(EndReason::Forbidden)), 2),
    (Err(OpenError::Ended(EndReason::Unreachable)), 3),
    (Err(OpenError::Ended(EndReason::NotResolved)), 4),
    (Err(OpenError::Ended(EndReason::Refused)), 5),
    (Err(OpenError::Deadline), 6),
    (Err(OpenError::Shutdown), 1),
];

/// The first byte says how the circuit opens, the second one in what pieces the rest comes, which is what the client says.
pub fn check(input: &[u8]) {
    let Some((&[outcome, pieces], said)) = input.split_first_chunk() else { return };
    // Half of the clients get their circuit.
    let outcome = usize::from(outcome).checked_sub(128).map_or(0, |choice| choice % OUTCOMES.len());
    let (expected, isolation) = (Expected::of(said, OUTCOMES[outcome].1), |said: &[u8]| {
        let heard = talk(said, 0, 0);
        heard.opened.and_then(|opened| opened.isolation)
    });
    for pieces in [0, 1, 2 + u64::from(pieces)] {
        let heard = talk(said, outcome, pieces);
        assert_eq!(heard.answer, expected.answer, "pieces {pieces}");
        let opened = heard.opened.as_ref().map(|opened| (&opened.target, opened.read));
        assert_eq!(opened, expected.target.as_ref().map(|target| (target, expected.read)), "pieces {pieces}");
        // What follows the request is the target's, all of it.
        let rest = expected.target.as_ref().filter(|_| OUTCOMES[outcome].1 == 0).map(|_| &said[expected.read..]);
        assert_eq!(heard.rest.as_deref(), rest, "pieces {pieces}");
    }
    let Some(target) = &expected.target else { return };
    let request = &said[expected.request..expected.read];
    let encoded = encode(target);
    if request[3] == 3 && matches!(target, Target::Tcp(Host::Ip(_), _)) {
        // An address that was spelled as a name asks for the same as the address itself.
        let spelled = [&said[..expected.request], &encoded].concat();
        assert_eq!(Expected::of(&spelled, 0).target.as_ref(), Some(target));
        assert!(isolation(&spelled) == isolation(&said[..expected.read]));
    } else {
        assert_eq!(encoded, request);
    }

    let (greeting, own) = (&said[..expected.request], isolation(said));
    let with = |greeting: &[u8], request: &[u8]| isolation(&[greeting, request].concat());
    assert!(own.is_some());
    assert!(with(greeting, &swap_case(request)) == own, "a name's case makes another destination");
    let mut elsewhere = encoded.clone();
    let port = elsewhere.len() - 1;
    elsewhere[port] ^= 0x10;
    if elsewhere[port - 1..] != [0, 0] {
        assert!(with(greeting, &elsewhere) != own, "another destination shares the path");
    }
    if let Some([username, password]) = &expected.credentials {
        let greet = |username: &[u8], password: &[u8]| {
            let short = |text: &[u8]| [&[text.len() as u8], text].concat();
            [&[5, 1, 2, 1][..], &short(username), &short(password)].concat()
        };
        assert!(with(&greet(username, password), request) == own);
        if let Some((last, shorter)) = username.split_last().filter(|_| password.len() < 255) {
            let longer = [&[*last], password.as_slice()].concat();
            assert!(with(&greet(shorter, &longer), request) != own, "other credentials share the path");
        }
        if username.len() + password.len() > 0 {
            assert!(with(&[5, 1, 0], request) != own, "no credentials share the path of some");
        }
    } else {
        assert!(with(&[5, 1, 2, 1, 0, 0], request) == own, "empty credentials are none");
    }
}

/// What the two RFCs make of a client's bytes.
struct Expected {
    answer: Vec<u8>,
    target: Option<Target>,
    /// Bytes before the request, and before what belongs to the target.
    request: usize,
    read: usize,
    credentials: Option<[Vec<u8>; 2]>,
}

impl Expected {
    fn of(said: &[u8], outcome: u8) -> Self {
        let mut client = Client { said, read: 0 };
        let mut expected = Self { answer: Vec::new(), target: None, request: 0, read: 0, credentials: None };
        // Bytes that do not come: nothing more is said.
        let _cut_off = expected.serve(&mut client, outcome);
        expected.read = client.read;
        expected
    }

    fn serve(&mut self, client: &mut Client<'_>, outcome: u8) -> Option<()> {
        let reply = |code: u8| [5, code, 0, 1, 0, 0, 0, 0, 0, 0];
        match client.take(1)? {
            [5] => {}
            [4] => {
                self.answer.extend([0, 91, 0, 0, 0, 0, 0, 0]);
                return None;
            }
            [first] => {
                if first.is_ascii_uppercase() {
                    self.answer.extend_from_slice(HTTP);
                }
                return None;
            }
            _ => return None,
        }
        let methods = client.short()?;
        if methods.contains(&2) {
            self.answer.extend([5, 2]);
            if client.take(1)? != [1] {
                self.answer.extend([1, 1]);
                return None;
            }
            self.credentials = Some([client.short()?.to_vec(), client.short()?.to_vec()]);
            self.answer.extend([1, 0]);
        } else {
            let accepted = methods.contains(&0);
            self.answer.extend([5, if accepted { 0 } else { 0xff }]);
            accepted.then_some(())?;
        }
        self.request = client.read;
        let &[version, command, reserved, kind] = client.take(4)? else { return None };
        let host = match kind {
            _ if version != 5 || reserved != 0 => Err(1),
            _ if command != 1 => Err(7),
            1 => Ok(Some(Host::Ip(Ipv4Addr::from_bits(client.number(4)? as u32).into()))),
            3 => Ok(named(client.short()?)),
            4 => Ok(Some(Host::Ip(Ipv6Addr::from_bits(client.number(16)?).into()))),
            _ => Err(8),
        };
        let target = match host {
            Err(code) => Err(code),
            Ok(host) => match (host, client.number(2)?) {
                (None, _) => Err(4),
                (Some(_), 0) => Err(1),
                (Some(host), port) => Ok(Target::Tcp(host, port as u16)),
            },
        };
        self.answer.extend(reply(target.as_ref().map_or_else(|&code| code, |_| outcome)));
        self.target = target.ok();
        Some(())
    }
}

const HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    Content-Type: text/plain; charset=utf-8\r\n\
    Connection: close\r\n\
    \r\n\
    This is a SOCKS5 proxy of Bulbil, not an HTTP proxy and not a web server.\n\
    Set it as the SOCKS5 proxy of your program and let the proxy resolve names, for example:\n\
    curl --socks5-hostname HOST:PORT URL\n";

/// A name that the network takes, or an address in a name's place, in brackets or not.
fn named(text: &[u8]) -> Option<Host> {
    let text = std::str::from_utf8(text).ok()?;
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    if let Ok(ip) = inner.unwrap_or(text).parse::<IpAddr>() {
        return Some(Host::Ip(ip));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let name = (1..=253).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with(['.', '-']);
    name.then(|| Host::Name(bulbil_core::wire::Name::new(text).expect("a name")))
}

struct Client<'a> {
    said: &'a [u8],
    read: usize,
}

impl<'a> Client<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let bytes = self.said.get(self.read..self.read + len)?;
        self.read += len;
        Some(bytes)
    }

    fn number(&mut self, len: usize) -> Option<u128> {
        Some(self.take(len)?.iter().fold(0, |number, &byte| number << 8 | u128::from(byte)))
    }

    fn short(&mut self) -> Option<&'a [u8]> {
        let len = self.number(1)?;
        self.take(len as usize)
    }
}

/// The request for a target.
fn encode(target: &Target) -> Vec<u8> {
    let Target::Tcp(host, port) = target else { panic!("SOCKS5 knows no services") };
    let mut bytes = vec![5, 1, 0];
    match host {
        Host::Ip(IpAddr::V4(ip)) => bytes.extend([&[1], &ip.octets()[..]].concat()),
        Host::Ip(IpAddr::V6(ip)) => bytes.extend([&[4], &ip.octets()[..]].concat()),
        Host::Name(name) => {
            bytes.extend([3, name.as_str().len() as u8]);
            bytes.extend_from_slice(name.as_str().as_bytes());
        }
    }
    bytes.extend(port.to_be_bytes());
    bytes
}

/// The same request, a name in it in other letters.
fn swap_case(request: &[u8]) -> Vec<u8> {
    let mut request = request.to_vec();
    if request[3] == 3 {
        let end = request.len() - 2;
        for byte in request[5..end].iter_mut().filter(|byte| byte.is_ascii_alphabetic()) {
            *byte ^= 0x20;
        }
    }
    request
}

/// What the proxy did.
#[derive(Default)]
struct Heard {
    answer: Vec<u8>,
    opened: Option<Opened>,
    /// What the circuit was given to take to the target.
    rest: Option<Vec<u8>>,
}

struct Opened {
    target: Target,
    isolation: Option<bulbil_core::phonebook::IsolationKey>,
    /// Bytes of the client's that were read by then.
    read: usize,
}

/// The client's end: what it says, in pieces, and what it is told.
#[derive(Default)]
struct Line {
    said: VecDeque<u8>,
    read: usize,
    heard: Heard,
    /// Decides the length of the pieces; 0: all at once, 1: single bytes.
    pieces: u64,
    turn: u64,
}

impl Line {
    /// How many bytes go now; 0 for none yet.
    fn piece(&mut self) -> usize {
        self.turn = self.turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(self.pieces | 1);
        match self.pieces {
            0 => usize::MAX,
            1 => 1,
            _ => (self.turn >> 40) as usize % 8,
        }
    }
}

#[derive(Clone, Default)]
struct Stream(Arc<Mutex<Line>>);

impl Stream {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().expect("nobody panics with it in hand")
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut line = self.line();
        let len = line.piece().min(line.said.len()).min(buffer.remaining());
        if len == 0 && !line.said.is_empty() && buffer.remaining() > 0 {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        line.read += len;
        let bytes: Vec<u8> = line.said.drain(..len).collect();
        buffer.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut line = self.line();
        let len = line.piece().min(bytes.len());
        if len == 0 && !bytes.is_empty() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        line.heard.answer.extend_from_slice(&bytes[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[derive(Clone)]
struct Opener {
    stream: Stream,
    outcome: Result<(), OpenError>,
}

impl Dialer<Stream> for Opener {
    type Circuit = Self;

    async fn open(&self, target: Target, options: OpenOptions) -> Result<Self, OpenError> {
        let mut line = self.stream.line();
        let read = line.read;
        let opened = Opened { target, isolation: options.isolation, read };
        assert!(line.heard.opened.replace(opened).is_none(), "one connection, one circuit");
        // Half of the failures are known at once.
        let at_once = line.pieces & 1 == 0;
        drop(line);
        self.outcome.as_ref().map_err(|error| *error).or_else(|error| if at_once { Err(error) } else { Ok(&()) })?;
        Ok(self.clone())
    }
}

impl Circuit<Stream> for Opener {
    async fn connected(&mut self) -> Result<(), OpenError> {
        self.outcome
    }

    async fn splice(self, client: Stream) -> Result<(), OpenError> {
        let mut line = client.line();
        assert!(self.outcome.is_ok(), "a circuit that did not open has nothing to carry");
        let rest = line.said.drain(..).collect();
        line.heard.rest = Some(rest);
        Ok(())
    }
}

/// Lets a client say this, in these pieces, and then finish.
fn talk(said: &[u8], outcome: usize, pieces: u64) -> Heard {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    }
    let stream = Stream::default();
    *stream.line() = Line { said: said.iter().copied().collect(), pieces, ..Line::default() };
    let opener = Opener { stream: stream.clone(), outcome: OUTCOMES[outcome].0 };
    let proxy = Proxy::new(opener, Settings { connections: 1, deadline: Duration::from_secs(60) });
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let client: Pin<&mut dyn Future<Output = ()>> = pin!(proxy.serve_client(stream.clone()));
            client.await;
        });
    });
    std::mem::take(&mut stream.line().heard)
}
