//! Reading a client's request. Nothing is read beyond it: what follows belongs to the target.

use std::{fmt, io, net::IpAddr};

use bulbil_core::wire::{Host, Name, Target, Writer, address::TARGET_MAX_LEN};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use zeroize::Zeroizing;

use super::{Reply, send};
use crate::node::IsolationKey;

pub(super) const VERSION: u8 = 5;
const VERSION_4: u8 = 4;
const METHOD_NONE: u8 = 0;
const METHOD_PASSWORD: u8 = 2;
const METHOD_UNACCEPTABLE: u8 = 0xff;
const PASSWORD_VERSION: u8 = 1;
const COMMAND_CONNECT: u8 = 1;
pub(super) const TYPE_IPV4: u8 = 1;
const TYPE_NAME: u8 = 3;
const TYPE_IPV6: u8 = 4;

/// Refusal of RFC 1929 credentials; any status but 0.
const CREDENTIALS_REFUSED: [u8; 2] = [PASSWORD_VERSION, 1];
/// "Request rejected or failed" in SOCKS4.
const SOCKS4_REFUSED: [u8; 8] = [0, 91, 0, 0, 0, 0, 0, 0];
const HTTP_REFUSED: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    Content-Type: text/plain; charset=utf-8\r\n\
    Connection: close\r\n\
    \r\n\
    This is a SOCKS5 proxy of Bulbil, not an HTTP proxy and not a web server.\n\
    Set it as the SOCKS5 proxy of your program and let the proxy resolve names, for example:\n\
    curl --socks5-hostname HOST:PORT URL\n";

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Where to.
    pub target: Target,
    /// Requests with the same key may take the same path.
    pub isolation: IsolationKey,
}

/// Why a client's bytes are no request.
#[derive(Debug)]
pub enum Rejection {
    /// The connection ended or broke in the middle.
    Ended(io::Error),
    /// It speaks HTTP.
    Http,
    /// It speaks SOCKS4.
    Socks4,
    /// It speaks something else; the first byte.
    Version(u8),
    /// It offers no way to authenticate that we have.
    Method,
    /// The credentials are not those of RFC 1929.
    Credentials,
    /// The request does not begin as RFC 1928 says.
    Malformed,
    /// A command other than CONNECT.
    Command(u8),
    /// An unknown type of address.
    AddressType(u8),
    /// What stands in place of a name cannot be one.
    Name,
    /// Port 0.
    Port,
}

impl Rejection {
    /// What to tell the client before closing; empty if nothing fits.
    #[must_use]
    pub fn answer(&self) -> &'static [u8] {
        const GENERAL: [u8; 10] = Reply::GeneralFailure.bytes();
        const COMMAND: [u8; 10] = Reply::CommandNotSupported.bytes();
        const ADDRESS_TYPE: [u8; 10] = Reply::AddressTypeNotSupported.bytes();
        const NAME: [u8; 10] = Reply::HostUnreachable.bytes();
        match self {
            Self::Ended(_) | Self::Version(_) => &[],
            Self::Http => HTTP_REFUSED,
            Self::Socks4 => &SOCKS4_REFUSED,
            Self::Method => &[VERSION, METHOD_UNACCEPTABLE],
            Self::Credentials => &CREDENTIALS_REFUSED,
            Self::Malformed | Self::Port => &GENERAL,
            Self::Command(_) => &COMMAND,
            Self::AddressType(_) => &ADDRESS_TYPE,
            Self::Name => &NAME,
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(error) => write!(f, "ended in the handshake: {error}"),
            Self::Http => f.write_str("speaks HTTP"),
            Self::Socks4 => f.write_str("speaks SOCKS4"),
            Self::Version(version) => write!(f, "speaks no SOCKS (first byte {version})"),
            Self::Method => f.write_str("offers no acceptable authentication method"),
            Self::Credentials => f.write_str("malformed credentials"),
            Self::Malformed => f.write_str("malformed request"),
            Self::Command(command) => write!(f, "command {command} is not supported"),
            Self::AddressType(kind) => write!(f, "address type {kind} is not supported"),
            Self::Name => f.write_str("malformed name"),
            Self::Port => f.write_str("port 0"),
        }
    }
}

impl From<io::Error> for Rejection {
    fn from(error: io::Error) -> Self {
        Self::Ended(error)
    }
}

/// A user name and password of at most 255 bytes each, of any content.
#[derive(Default)]
struct Credentials {
    username: Zeroizing<Vec<u8>>,
    password: Zeroizing<Vec<u8>>,
}

async fn array<const N: usize, S: AsyncRead + Unpin>(client: &mut S) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Bytes with one byte of length before them.
async fn short<S: AsyncRead + Unpin>(client: &mut S) -> io::Result<Zeroizing<Vec<u8>>> {
    let [len] = array(client).await?;
    let mut bytes = Zeroizing::new(vec![0; usize::from(len)]);
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Takes a client from its first byte to its complete request.
///
/// # Errors
/// Anything else than a SOCKS5 CONNECT; the caller sends [`Rejection::answer`].
pub(super) async fn read<S: AsyncRead + AsyncWrite + Unpin>(client: &mut S) -> Result<Request, Rejection> {
    match array(client).await? {
        [VERSION] => {}
        [VERSION_4] => return Err(Rejection::Socks4),
        // HTTP methods are spelled in capitals, and no version of SOCKS will be that high.
        [b'A'..=b'Z'] => return Err(Rejection::Http),
        [version] => return Err(Rejection::Version(version)),
    }
    let methods = short(client).await?;
    // Who offers credentials may have some, and they tell its conversations apart.
    let credentials = if methods.contains(&METHOD_PASSWORD) {
        send(client, &[VERSION, METHOD_PASSWORD]).await?;
        let [version] = array(client).await?;
        if version != PASSWORD_VERSION {
            return Err(Rejection::Credentials);
        }
        let credentials = Credentials { username: short(client).await?, password: short(client).await? };
        send(client, &[PASSWORD_VERSION, 0]).await?;
        credentials
    } else if methods.contains(&METHOD_NONE) {
        send(client, &[VERSION, METHOD_NONE]).await?;
        Credentials::default()
    } else {
        return Err(Rejection::Method);
    };

    let [version, command, reserved, kind] = array(client).await?;
    if version != VERSION || reserved != 0 {
        return Err(Rejection::Malformed);
    }
    if command != COMMAND_CONNECT {
        return Err(Rejection::Command(command));
    }
    let host = match kind {
        TYPE_IPV4 => Some(Host::Ip(IpAddr::from(array::<4, _>(client).await?))),
        TYPE_IPV6 => Some(Host::Ip(IpAddr::from(array::<16, _>(client).await?))),
        TYPE_NAME => parse_host(&short(client).await?),
        kind => return Err(Rejection::AddressType(kind)),
    };
    let port = u16::from_be_bytes(array(client).await?);
    let host = host.ok_or(Rejection::Name)?;
    if port == 0 {
        return Err(Rejection::Port);
    }
    let target = Target::Tcp(host, port);
    let isolation = isolation(&credentials, &target);
    Ok(Request { target, isolation })
}

/// A name, or an address that a client has put in a name's place.
fn parse_host(text: &[u8]) -> Option<Host> {
    let text = std::str::from_utf8(text).ok()?;
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    match bare.parse() {
        Ok(ip) => Some(Host::Ip(ip)),
        Err(_) => Name::new(text).ok().map(Host::Name),
    }
}

/// SHA-256 over credentials and destination; a name's case makes no difference, as in the DNS.
fn isolation(credentials: &Credentials, target: &Target) -> IsolationKey {
    let mut hash = Sha256::new();
    hash.update(b"bulbil/1 socks isolation");
    for part in [&credentials.username, &credentials.password] {
        // Lengths keep ("ab", "c") and ("a", "bc") apart.
        hash.update([u8::try_from(part.len()).unwrap_or(u8::MAX)]);
        hash.update(part.as_slice());
    }
    let mut encoded = [0; TARGET_MAX_LEN];
    let mut writer = Writer::new(&mut encoded);
    let target = lowercase(target);
    target.emit(&mut writer).expect("the longest target fits and the port is not 0");
    hash.update(encoded);
    IsolationKey(hash.finalize().into())
}

fn lowercase(target: &Target) -> Target {
    match target {
        Target::Tcp(Host::Name(name), port) => {
            let name = Name::new(&name.as_str().to_ascii_lowercase());
            Target::Tcp(Host::Name(name.expect("a name in lower case is a name")), *port)
        }
        other => other.clone(),
    }
}
