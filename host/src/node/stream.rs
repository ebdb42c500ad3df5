//! A conversation as a stream of bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bulbil_core::client::origin::Reached;
use bulbil_core::wire::Target;
use bulbil_core::wire::message::BeginOptions;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::directory::HopInfo;
use super::open::{Attempts, Opened, Purpose, error_of, settled};
use super::{Node, OpenError, OpenOptions};
use crate::engine::Command;

/// Bytes that wait between the application and the engine, each way.
const PIPE: usize = 256 * 1024;

/// A conversation with a target through the network: [`AsyncRead`] and [`AsyncWrite`].
///
/// What is written leaves at once, without waiting for the target to be reached. Dropping it before both directions have ended
/// tells the target that the rest is not wanted.
pub struct CircuitStream {
    node: Node,
    target: Target,
    options: OpenOptions,
    deadline: Instant,
    circuit: Opened,
    attempts: Attempts,
    /// The exit has reached the target.
    reached: bool,
    pipe: Option<DuplexStream>,
}

impl CircuitStream {
    pub(super) async fn open(node: Node, target: Target, options: OpenOptions) -> Result<Self, OpenError> {
        let deadline = Instant::now() + options.deadline;
        let attempts = Attempts::default();
        let circuit = launch(&node, &target, &options, &attempts, deadline).await?;
        Ok(Self { node, target, options, deadline, circuit, attempts, reached: false, pipe: None })
    }

    /// The path, first hop to exit.
    #[must_use]
    pub fn path(&self) -> &[HopInfo] {
        &self.circuit.path
    }

    /// Waits until the exit has reached the target, and says what that is. A service inside the last hop shows only by its answer: say first
    /// what it waits for.
    ///
    /// As long as nothing has been written or read, a path that fails, or over which nobody answers for half of the time that is left, is replaced by
    /// another one, within the deadline.
    ///
    /// # Errors
    /// Why the target is not reached.
    pub async fn connected(&mut self) -> Result<Reached, OpenError> {
        loop {
            let now = Instant::now();
            // What was written may have arrived, so that it has to be this path.
            let until = match self.pipe {
                None => now + Attempts::patience(self.deadline.saturating_duration_since(now)),
                Some(_) => self.deadline,
            };
            let Ok(progress) = timeout_at(until, settled(&mut self.circuit.progress)).await else {
                self.node.learn_from_silence(&self.circuit.path, &mut self.attempts);
                if self.pipe.is_some() || until >= self.deadline || !self.attempts.are_left() {
                    return Err(OpenError::Deadline);
                }
                tracing::debug!("nobody answers; another path is tried");
                self.circuit = launch(&self.node, &self.target, &self.options, &self.attempts, self.deadline).await?;
                continue;
            };
            let progress = progress?;
            if let Some(reached) = progress.reached {
                self.reached = true;
                for hop in &self.circuit.path {
                    self.node.inner.directory.succeeded(hop.node);
                }
                return Ok(reached);
            }
            let Some(outcome) = progress.outcome else { return Err(OpenError::Shutdown) };
            let error = error_of(&outcome).unwrap_or(OpenError::Shutdown);
            let another = self.node.learn_from(&self.circuit.path, &outcome, &mut self.attempts);
            if !another || self.pipe.is_some() || !self.attempts.are_left() {
                return Err(error);
            }
            tracing::debug!(%error, "another path is tried");
            self.circuit = launch(&self.node, &self.target, &self.options, &self.attempts, self.deadline).await?;
        }
    }

    /// Moves bytes between `tcp` and the target until both directions have ended; no task of the caller's touches them.
    ///
    /// # Errors
    /// How the conversation ended, if not well. A stream that has been used already cannot be spliced: its bytes are elsewhere.
    pub async fn splice(mut self, tcp: TcpStream) -> Result<(), OpenError> {
        if self.pipe.is_some() {
            let mut tcp = tcp;
            let moved = tokio::io::copy_bidirectional(&mut self, &mut tcp).await;
            return moved.map(|_| ()).map_err(|_| self.circuit.failure().unwrap_or(OpenError::Shutdown));
        }
        // The engine has an event loop of its own; the connection moves there.
        let tcp = tcp.into_std().map_err(|_| OpenError::Shutdown)?;
        self.circuit.command(Command::AttachTcp(self.circuit.name, tcp));
        let ended = self.circuit.progress.wait_for(|progress| progress.outcome.is_some()).await;
        let outcome = ended.map_err(|_| OpenError::Shutdown)?.outcome;
        outcome.as_ref().and_then(error_of).map_or(Ok(()), Err)
    }

    fn pipe(&mut self) -> Pin<&mut DuplexStream> {
        if self.pipe.is_none() {
            let (ours, engines) = duplex(PIPE);
            self.circuit.command(Command::AttachPipe(self.circuit.name, engines));
            self.pipe = Some(ours);
        }
        Pin::new(self.pipe.as_mut().expect("made above"))
    }
}

impl Drop for CircuitStream {
    /// A path that broke while it was used is not the one for the next conversation.
    fn drop(&mut self) {
        let outcome = self.circuit.progress.borrow().outcome;
        if let Some(outcome) = outcome.filter(|_| self.reached || self.pipe.is_some()) {
            let _another = self.node.learn_from(&self.circuit.path, &outcome, &mut self.attempts);
        }
    }
}

async fn launch(
    node: &Node,
    target: &Target,
    options: &OpenOptions,
    attempts: &Attempts,
    deadline: Instant,
) -> Result<Opened, OpenError> {
    let purpose = Purpose {
        target,
        last: target.into(),
        options: BeginOptions { sign: false, once: false },
        isolation: options.isolation,
        attempts,
        first: &[],
        deadline,
    };
    node.launch(&purpose).await
}

impl AsyncRead for CircuitStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match self.pipe().poll_read(cx, buffer) {
            Poll::Ready(Ok(())) if buffer.filled().len() == before && buffer.remaining() > 0 => {
                // The end of the pipe: of the target's bytes, or of the circuit?
                match self.circuit.failure() {
                    Some(error) => Poll::Ready(Err(error.into())),
                    None => Poll::Ready(Ok(())),
                }
            }
            polled => polled,
        }
    }
}

impl AsyncWrite for CircuitStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.pipe().poll_write(cx, bytes) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.circuit.failure().map_or(error, Into::into))),
            polled => polled,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe().poll_shutdown(cx)
    }
}
