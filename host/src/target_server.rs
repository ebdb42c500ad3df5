//! A small HTTP/1.1 server to be the target of demonstrations, tests and measurements.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /` | a page |
//! | `GET /bytes/N` | N bytes, each known from its offset ([`fill`], [`matches()`]) |
//! | `POST /echo` | the body |
//! | `POST /sink` | the body's length and SHA-256, as `length N sha256 HEX` |
//! | `GET /slow?seconds=N` | one line a second |
//! | `GET /events?count=N&interval=M` | N lines, one every M milliseconds |
//! | `GET /half-close` | a page; then the server ends its direction and reads on until the client ends too |
//!
//! Bodies stream both ways, so memory does not depend on their length. Heads, bodies, connections and every wait are bounded.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, ToSocketAddrs},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::debug;

use crate::shutdown::Shutdown;

mod request;

use request::{Refusal, Request};

/// Longest head of a request in bytes.
const HEAD_MAX: usize = 16 << 10;
/// Longest body, either way: 64 GiB.
const BODY_MAX: u64 = 1 << 36;
/// Bytes read or written by one call; large, so that a stream costs few calls.
const CHUNK: usize = 256 << 10;
const CONNECTIONS: usize = 4096;
/// Time from a connection, or from the end of an answer, to the end of the next request's head.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// Time in which at least one byte of a body must move. Long, because tests hold readers still.
const STALL: Duration = Duration::from_secs(300);
/// Time and bytes for reading what a refused client still sends, so that it gets to read the refusal.
const FAREWELL: Duration = Duration::from_secs(2);
const FAREWELL_BYTES: u64 = 1 << 20;
const SECONDS_MAX: u64 = 600;
const EVENTS_MAX: u64 = 1_000_000;
const INTERVAL_MAX: u64 = 60_000;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const PAGE: &str = "<!doctype html>\n<html lang=\"en\">\n<title>Bulbil</title>\n\
    <h1>It works</h1>\n<p>This page came back through the onion.</p>\n</html>\n";

/// Fills `bytes` with those that stand from `offset` on in the endless pseudo-random stream of `/bytes`.
///
/// The eight bytes at offset 8 i are a mix of i, little-endian, so any part can be made and checked by itself.
pub fn fill(offset: u64, bytes: &mut [u8]) {
    let skip = (offset % 8) as usize;
    let (head, body) = bytes.split_at_mut(((8 - skip) % 8).min(bytes.len()));
    if !head.is_empty() {
        let word = word(offset / 8).to_le_bytes();
        head.copy_from_slice(&word[skip..skip + head.len()]);
    }
    let first = offset.div_ceil(8);
    let (words, tail) = body.as_chunks_mut::<8>();
    for (index, bytes) in (first..).zip(words.iter_mut()) {
        *bytes = word(index).to_le_bytes();
    }
    let last = word(first.wrapping_add(words.len() as u64)).to_le_bytes();
    tail.copy_from_slice(&last[..tail.len()]);
}

/// Whether `bytes` are those that [`fill`] makes for `offset`.
#[must_use]
pub fn matches(offset: u64, bytes: &[u8]) -> bool {
    let mut expected = [0; 4096];
    bytes.chunks(expected.len()).zip((offset..).step_by(expected.len())).all(|(chunk, offset)| {
        let expected = &mut expected[..chunk.len()];
        fill(offset, expected);
        chunk == expected
    })
}

/// The finalizer of splitmix64: xors of shifts and two multiplications.
const fn word(index: u64) -> u64 {
    let mut word = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The server, bound to its address.
#[derive(Debug)]
pub struct TargetServer {
    listener: TcpListener,
}

impl TargetServer {
    /// Listens on `address`; port 0 lets the system choose.
    ///
    /// # Errors
    /// What the system reports.
    pub async fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await? })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system reports.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`, then cuts off what still runs.
    pub async fn serve(self, shutdown: Shutdown) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut clients = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.requested() => return,
                Some(_) = clients.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((client, _)) => {
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                    clients.spawn(async move {
                        let _place = place;
                        let _ = client.set_nodelay(true);
                        if let Err(error) = serve_connection(client).await {
                            debug!(%error, "target connection broke");
                        }
                    });
                }
                Err(error) => {
                    debug!(%error, "target cannot accept");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Serves the requests of one connection.
///
/// # Errors
/// The connection broke or stood still for too long.
pub async fn serve_connection<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> io::Result<()> {
    let mut connection = Connection { stream, received: Vec::new() };
    loop {
        let request = match timeout(HEAD_DEADLINE, connection.request()).await {
            Ok(Ok(Some(request))) => request,
            Ok(Ok(None)) => return connection.stream.shutdown().await,
            Ok(Err(request::Error::Io(error))) => return Err(error),
            Ok(Err(request::Error::Refused(refusal))) => return connection.refuse(refusal).await,
            Err(_) if connection.received.is_empty() => return connection.stream.shutdown().await,
            Err(_) => return connection.refuse(Refusal::TIMEOUT).await,
        };
        match connection.answer(&request).await? {
            Some(refusal) => return connection.refuse(refusal).await,
            None if request.close => return connection.leave().await,
            None => {}
        }
    }
}

struct Connection<S> {
    stream: S,
    /// Read and not yet used.
    received: Vec<u8>,
}

async fn within<T>(wait: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(STALL, wait).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// The next request's head; `None` if the client has ended.
    async fn request(&mut self) -> Result<Option<Request>, request::Error> {
        loop {
            if let Some((request, used)) = request::parse(&self.received, HEAD_MAX)? {
                self.received.drain(..used);
                return Ok(Some(request));
            }
            // `parse` has refused anything that is HEAD_MAX long without an end.
            self.received.reserve(1024);
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return if self.received.is_empty() { Ok(None) } else { Err(Refusal::BAD.into()) };
            }
        }
    }

    async fn answer(&mut self, request: &Request) -> io::Result<Option<Refusal>> {
        if request.length > BODY_MAX {
            return Ok(Some(Refusal::TOO_LARGE));
        }
        let number = |name, default, max| request.number(name, default).filter(|value| *value <= max);
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/echo") => self.echo(request).await?,
            ("POST", "/sink") => self.sink(request).await?,
            ("GET", _) if request.length > 0 => return Ok(Some(Refusal::BAD)),
            ("GET", "/") => self.text(request, "text/html; charset=utf-8", PAGE).await?,
            ("GET", "/half-close") => {
                self.head(request, "text/html; charset=utf-8", PAGE.len() as u64).await?;
                self.write(PAGE.as_bytes()).await?;
                self.stream.shutdown().await?;
                let mut chunk = vec![0; CHUNK];
                while within(self.stream.read(&mut chunk)).await? > 0 {}
            }
            ("GET", "/slow") => match number("seconds", 10, SECONDS_MAX) {
                Some(seconds) => self.lines(request, seconds, Duration::from_secs(1)).await?,
                None => return Ok(Some(Refusal::BAD)),
            },
            ("GET", "/events") => match (number("count", 10, EVENTS_MAX), number("interval", 20, INTERVAL_MAX)) {
                (Some(count), Some(interval)) => self.lines(request, count, Duration::from_millis(interval)).await?,
                _ => return Ok(Some(Refusal::BAD)),
            },
            ("GET", path) => match path.strip_prefix("/bytes/").map(request::decimal) {
                Some(Some(count)) if count <= BODY_MAX => self.bytes(request, count).await?,
                Some(_) => return Ok(Some(Refusal::BAD)),
                None => return Ok(Some(Refusal::NOT_FOUND)),
            },
            ("POST", _) => return Ok(Some(Refusal::NOT_FOUND)),
            _ => return Ok(Some(Refusal::METHOD)),
        }
        Ok(None)
    }

    async fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            // Each call by itself: a slow reader is no dead one.
            let written = within(self.stream.write(bytes)).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    async fn head(&mut self, request: &Request, kind: &str, length: u64) -> io::Result<()> {
        let connection = if request.close { "close" } else { "keep-alive" };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n"
        );
        self.write(head.as_bytes()).await
    }

    async fn text(&mut self, request: &Request, kind: &str, text: &str) -> io::Result<()> {
        self.head(request, kind, text.len() as u64).await?;
        self.write(text.as_bytes()).await
    }

    async fn bytes(&mut self, request: &Request, count: u64) -> io::Result<()> {
        self.head(request, "application/octet-stream", count).await?;
        let mut chunk = vec![0; CHUNK.min(usize::try_from(count).unwrap_or(CHUNK))];
        let mut offset = 0;
        while offset < count {
            let len = chunk.len().min(usize::try_from(count - offset).unwrap_or(usize::MAX));
            let part = &mut chunk[..len];
            fill(offset, part);
            self.write(part).await?;
            offset += len as u64;
        }
        Ok(())
    }

    /// Lines of one length, so that the answer's length is known before it is over.
    async fn lines(&mut self, request: &Request, count: u64, interval: Duration) -> io::Result<()> {
        let line = |number: u64| format!("line {number:07} of {count:07}\n");
        self.head(request, "text/plain; charset=utf-8", count * line(0).len() as u64).await?;
        for number in 1..=count {
            self.write(line(number).as_bytes()).await?;
            if number < count {
                sleep(interval).await;
            }
        }
        Ok(())
    }

    async fn echo(&mut self, request: &Request) -> io::Result<()> {
        self.permit_body(request).await?;
        self.head(request, "application/octet-stream", request.length).await?;
        let (mut chunk, mut left) = (vec![0; CHUNK], request.length);
        while left > 0 {
            let len = self.body(&mut chunk, &mut left).await?;
            self.write(&chunk[..len]).await?;
        }
        Ok(())
    }

    async fn sink(&mut self, request: &Request) -> io::Result<()> {
        self.permit_body(request).await?;
        let (mut chunk, mut left, mut hash) = (vec![0; CHUNK], request.length, Sha256::new());
        while left > 0 {
            let len = self.body(&mut chunk, &mut left).await?;
            hash.update(&chunk[..len]);
        }
        let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let answer = format!("length {} sha256 {digest}\n", request.length);
        self.text(request, "text/plain; charset=utf-8", &answer).await
    }

    async fn permit_body(&mut self, request: &Request) -> io::Result<()> {
        if request.expects_permission { self.write(b"HTTP/1.1 100 Continue\r\n\r\n").await } else { Ok(()) }
    }

    /// The next bytes of a body of which `left` are to come, at least one.
    async fn body(&mut self, chunk: &mut [u8], left: &mut u64) -> io::Result<usize> {
        let most = chunk.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        let len = if self.received.is_empty() {
            within(self.stream.read(&mut chunk[..most])).await?
        } else {
            let len = most.min(self.received.len());
            chunk[..len].copy_from_slice(&self.received[..len]);
            self.received.drain(..len);
            len
        };
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *left -= len as u64;
        Ok(len)
    }

    async fn refuse(&mut self, refusal: Refusal) -> io::Result<()> {
        let Refusal { status, advice } = refusal;
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{advice}\n",
            advice.len() + 1
        );
        self.write(answer.as_bytes()).await?;
        self.leave().await
    }

    async fn leave(&mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        let rest =
            async { tokio::io::copy(&mut (&mut self.stream).take(FAREWELL_BYTES), &mut tokio::io::sink()).await };
        // The answer is complete; how the client closes no longer matters.
        let _ = timeout(FAREWELL, rest).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
