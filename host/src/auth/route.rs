//! How a client's connection gets to the server: through circuits of a node in this process, or through the SOCKS5 proxy of a node that runs.

use std::io;
use std::net::SocketAddr;

use bulbil_core::wire::{Host, Target};
use rand_core::Rng;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::node::{Node, OpenError, OpenOptions};
use crate::random::SYSTEM;

/// A connection, however it came about.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A way through the network. Every connection has a circuit of its own.
#[derive(Clone)]
pub enum Route {
    /// Through circuits of this node.
    Node(Node),
    /// Through a node's SOCKS5 proxy.
    Socks(SocksRoute),
}

/// A node's SOCKS5 proxy, and the credentials that keep this client's path apart from other conversations'.
#[derive(Clone)]
pub struct SocksRoute {
    proxy: SocketAddr,
    isolation: String,
}

/// Why the server was not reached.
#[derive(Debug)]
pub enum RouteError {
    /// No circuit.
    Open(OpenError),
    /// The proxy cannot be connected to, or broke off.
    Proxy(SocketAddr, io::Error),
    /// What answers there is no SOCKS5 proxy of a node.
    NoProxy(SocketAddr),
    /// The proxy's reply, RFC 1928 section 6.
    Reply(u8),
}

impl std::fmt::Display for RouteError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open(error) => error.fmt(f),
            Self::Proxy(proxy, error) => {
                write!(
                    f,
                    "the SOCKS proxy {proxy} cannot be used: {error}; is a client node running, and does it print `socks {proxy}`?"
                )
            }
            Self::NoProxy(proxy) => {
                write!(f, "what answers at {proxy} is no SOCKS5 proxy of a bulbil node; correct --socks")
            }
            Self::Reply(code) => f.write_str(match code {
                2 => "the exit's policy forbids the server's address or port; use a network whose exit allows it",
                3 | 6 => "the exit cannot reach the server (no route, or no answer in time); is its address right?",
                4 => "the exit cannot resolve the server's name; is it spelled right?",
                5 => "nobody listens at the server's address and port; is the server running?",
                _ => "no path through the network; are the client's bootstrap nodes up, and is one of them an exit?",
            }),
        }
    }
}

impl std::error::Error for RouteError {}

impl Route {
    /// Through the SOCKS5 proxy at `proxy`.
    #[must_use]
    pub fn socks(proxy: SocketAddr) -> Self {
        Self::Socks(SocksRoute { proxy, isolation: format!("{:016x}", SYSTEM.clone().next_u64()) })
    }

    /// A connection with `target`.
    ///
    /// # Errors
    /// [`RouteError`]. Through a node's own circuits some come only when reading: what is written leaves at once.
    pub async fn connect(&self, target: &Target) -> Result<Box<dyn Stream>, RouteError> {
        match self {
            Self::Node(node) => {
                let circuit = node.open(target.clone(), OpenOptions::default()).await.map_err(RouteError::Open)?;
                Ok(Box::new(circuit))
            }
            Self::Socks(route) => Ok(Box::new(route.connect(target).await?)),
        }
    }
}

impl SocksRoute {
    async fn connect(&self, target: &Target) -> Result<TcpStream, RouteError> {
        match self.negotiate(target).await {
            Ok((stream, 0)) => Ok(stream),
            Ok((_, code)) => Err(RouteError::Reply(code)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(RouteError::NoProxy(self.proxy)),
            Err(error) => Err(RouteError::Proxy(self.proxy, error)),
        }
    }

    /// A stream and the reply's code.
    async fn negotiate(&self, target: &Target) -> io::Result<(TcpStream, u8)> {
        let mut stream = TcpStream::connect(self.proxy).await?;
        stream.set_nodelay(true)?;
        let check = |right: bool| if right { Ok(()) } else { Err(io::Error::from(io::ErrorKind::InvalidData)) };
        // Version 5, one method: user name and password (RFC 1929).
        stream.write_all(&[5, 1, 2]).await?;
        let mut chosen = [0; 2];
        stream.read_exact(&mut chosen).await?;
        check(chosen == [5, 2])?;
        let mut request = vec![1];
        for credential in [self.isolation.as_str(), "auth"] {
            request.push(u8::try_from(credential.len()).map_err(|_| io::ErrorKind::InvalidInput)?);
            request.extend_from_slice(credential.as_bytes());
        }
        stream.write_all(&request).await?;
        let mut status = [0; 2];
        stream.read_exact(&mut status).await?;
        check(status == [1, 0])?;

        let mut request = vec![5, 1, 0];
        let Target::Tcp(host, port) = target else { return Err(io::ErrorKind::InvalidInput.into()) };
        match host {
            Host::Ip(std::net::IpAddr::V4(ip)) => {
                request.push(1);
                request.extend_from_slice(&ip.octets());
            }
            Host::Ip(std::net::IpAddr::V6(ip)) => {
                request.push(4);
                request.extend_from_slice(&ip.octets());
            }
            Host::Name(name) => {
                let name = name.as_str().as_bytes();
                request.extend_from_slice(&[3, u8::try_from(name.len()).map_err(|_| io::ErrorKind::InvalidInput)?]);
                request.extend_from_slice(name);
            }
        }
        request.extend_from_slice(&port.to_be_bytes());
        stream.write_all(&request).await?;
        let mut reply = [0; 4];
        stream.read_exact(&mut reply).await?;
        let [version, code, _, family] = reply;
        check(version == 5)?;
        let address = match family {
            1 => 4,
            4 => 16,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        stream.read_exact(&mut vec![0; address + 2]).await?;
        Ok((stream, code))
    }
}
