//! A small SOCKS5 client, and a small HTTP client over what it opens.

use std::io;
use std::net::SocketAddr;

use bulbil_host::target_server::matches;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Why the proxy gave no connection.
#[derive(Debug)]
pub enum Refused {
    /// The reply's code, RFC 1928 section 6.
    Reply(u8),
    /// The proxy itself broke off.
    Io(io::Error),
}

impl Refused {
    /// The reply's code, if there was a reply.
    #[must_use]
    pub const fn code(&self) -> Option<u8> {
        match self {
            Self::Reply(code) => Some(*code),
            Self::Io(_) => None,
        }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Connects to `host` (a name or an address) through `proxy`, with credentials if there are any.
///
/// # Errors
/// See [`Refused`].
///
/// # Panics
/// A name or credential is too long, or the proxy does not speak SOCKS5.
pub async fn connect(
    proxy: SocketAddr,
    host: &str,
    port: u16,
    credentials: Option<(&str, &str)>,
) -> Result<TcpStream, Refused> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.set_nodelay(true)?;
    let short = |text: &str| {
        let mut bytes = vec![u8::try_from(text.len()).expect("short")];
        bytes.extend_from_slice(text.as_bytes());
        bytes
    };
    let method = if credentials.is_some() { 2 } else { 0 };
    stream.write_all(&[5, 1, method]).await?;
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).await?;
    assert_eq!(chosen, [5, method]);
    if let Some((name, password)) = credentials {
        stream.write_all(&[&[1][..], &short(name), &short(password)].concat()).await?;
        let mut status = [0; 2];
        stream.read_exact(&mut status).await?;
        assert_eq!(status, [1, 0]);
    }
    let address = match host.parse() {
        Ok(std::net::IpAddr::V4(ip)) => [&[1][..], &ip.octets()].concat(),
        Ok(std::net::IpAddr::V6(ip)) => [&[4][..], &ip.octets()].concat(),
        Err(_) => [vec![3], short(host)].concat(),
    };
    stream.write_all(&[&[5, 1, 0][..], &address, &port.to_be_bytes()].concat()).await?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).await?;
    assert_eq!((reply[0], reply[2], reply[3]), (5, 0, 1));
    if reply[1] == 0 { Ok(stream) } else { Err(Refused::Reply(reply[1])) }
}

/// An answer's head: its status and its length, if it says so.
async fn head<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<(u16, Option<u64>)> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        if text.len() > 4096 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        text.push(stream.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&text).to_ascii_lowercase();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, length))
}

/// Asks for `path` on a fresh connection and answers status and body.
///
/// # Errors
/// The connection breaks, or ends before the body does.
pub async fn get(mut stream: TcpStream, path: &str) -> io::Result<(u16, Vec<u8>)> {
    request(&mut stream, path).await?;
    let (status, length) = head(&mut stream).await?;
    let mut body = Vec::new();
    stream.read_to_end(&mut body).await?;
    match length {
        Some(length) if length != body.len() as u64 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok((status, body)),
    }
}

/// Sends a request for `path`.
///
/// # Errors
/// The connection breaks.
pub async fn request(stream: &mut TcpStream, path: &str) -> io::Result<()> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: target\r\nConnection: close\r\n\r\n").as_bytes()).await
}

/// Downloads `/bytes/len` and checks every byte; answers how many came before the end.
///
/// # Errors
/// The connection breaks.
///
/// # Panics
/// A byte is wrong.
pub async fn download(mut stream: TcpStream, len: u64) -> io::Result<u64> {
    request(&mut stream, &format!("/bytes/{len}")).await?;
    let mut stream = BufReader::with_capacity(256 << 10, stream);
    let (status, length) = head(&mut stream).await?;
    assert_eq!((status, length), (200, Some(len)));
    let (mut chunk, mut offset) = (vec![0; 256 << 10], 0);
    loop {
        match stream.read(&mut chunk).await? {
            0 => return Ok(offset),
            read => {
                assert!(matches(offset, &chunk[..read]), "a wrong byte after {offset}");
                offset += read as u64;
            }
        }
    }
}

/// Uploads the first `len` bytes of the same stream to `/sink`, and answers what the server says of them.
///
/// # Errors
/// The connection breaks.
pub async fn upload(mut stream: TcpStream, len: u64) -> io::Result<String> {
    let head_text =
        format!("POST /sink HTTP/1.1\r\nHost: target\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n");
    stream.write_all(head_text.as_bytes()).await?;
    let (mut chunk, mut offset) = (vec![0; 256 << 10], 0);
    while offset < len {
        let part = chunk.len().min(usize::try_from(len - offset).unwrap_or(usize::MAX));
        bulbil_host::target_server::fill(offset, &mut chunk[..part]);
        stream.write_all(&chunk[..part]).await?;
        offset += part as u64;
    }
    let _head = head(&mut stream).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// What `/sink` answers if it got the first `len` bytes.
#[must_use]
pub fn receipt_of(len: u64) -> String {
    use sha2::{Digest, Sha256};
    let (mut hash, mut chunk, mut offset) = (Sha256::new(), vec![0; 256 << 10], 0);
    while offset < len {
        let part = chunk.len().min(usize::try_from(len - offset).unwrap_or(usize::MAX));
        bulbil_host::target_server::fill(offset, &mut chunk[..part]);
        hash.update(&chunk[..part]);
        offset += part as u64;
    }
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("length {len} sha256 {digest}\n")
}
