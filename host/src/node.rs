//! Signatures only, to be replaced by the engine on tokio.
#![allow(missing_docs, clippy::unused_async, unused_variables, reason = "replaced as a whole")]

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bulbil_core::wire::{CloseReason, NodeId, Target};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{config::Config, state::StateDir};

pub type IsolationKey = [u8; 32];

pub use bulbil_core::wire::EndReason;

#[derive(Debug, Clone)]
pub struct OpenOptions {
    pub isolation: Option<IsolationKey>,
    pub deadline: Duration,
}

#[derive(Debug, Clone)]
pub struct SendOptions {
    pub keep_open: bool,
    pub sign: bool,
    pub deadline: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    Ended(EndReason),
    Closed(CloseReason),
    NoPath,
    Deadline,
    Shutdown,
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for OpenError {}

#[derive(Debug)]
pub struct StartError(pub String);

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone)]
pub struct Node;

/// Starts a node as `config` says; without `state` under an identity of the moment that is kept nowhere.
pub async fn start(config: &Config, state: Option<StateDir>) -> Result<Node, StartError> {
    Err(StartError(String::from("the engine is not part of this branch")))
}

impl Node {
    pub async fn open(&self, target: Target, options: OpenOptions) -> Result<CircuitStream, OpenError> {
        Err(OpenError::Shutdown)
    }

    pub async fn send(&self, target: Target, request: &[u8], options: SendOptions) -> Result<Answers, OpenError> {
        Err(OpenError::Shutdown)
    }

    #[must_use]
    pub fn fingerprint(&self) -> NodeId {
        NodeId([0; 32])
    }

    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        None
    }

    pub async fn shutdown(&self) {}
}

#[derive(Debug)]
pub struct Answers;

impl Answers {
    /// The next piece of the answer; `None` when it has ended.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, OpenError> {
        Ok(None)
    }

    /// The exit's verified signature, after the end of an answer that was to be signed.
    #[must_use]
    pub fn receipt(&self) -> Option<&Receipt> {
        None
    }
}

#[derive(Debug)]
pub struct Receipt {
    pub exit: NodeId,
    pub time: u64,
}

#[derive(Debug)]
pub struct CircuitStream;

impl CircuitStream {
    pub async fn connected(&mut self) -> Result<SocketAddr, OpenError> {
        Err(OpenError::Shutdown)
    }

    pub async fn splice(self, tcp: TcpStream) -> Result<(), OpenError> {
        Ok(())
    }
}

impl AsyncRead for CircuitStream {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for CircuitStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
