//! Messages: one request, and the answers to it.

use bulbil_core::crypto::receipt::ReceiptParts;
use bulbil_core::wire::message::BeginOptions;
use bulbil_core::wire::{NodeId, Target, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, timeout_at};

use super::directory::HopInfo;
use super::open::{ATTEMPTS, Opened, Purpose, error_of, settled};
use super::{Node, OpenError, SendOptions};
use crate::engine::Command;

/// Bytes that wait between the application and the engine, each way.
const PIPE: usize = 64 * 1024;

/// The exit's word for an answer, its signature verified: that this exit carried this request to this target and this answer back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifiedReceipt {
    /// The exit that signed.
    pub exit: NodeId,
    /// When it signed, by its clock.
    pub time: UnixTime,
}

/// The answers to a request, as they come.
pub struct Answers {
    node: Node,
    target: Target,
    request: Vec<u8>,
    options: SendOptions,
    deadline: Instant,
    avoid: Vec<NodeId>,
    attempts: usize,
    circuit: Opened,
    pipe: DuplexStream,
    receipt: Option<VerifiedReceipt>,
    /// Bytes have come, or the end.
    answered: bool,
    over: bool,
}

impl Answers {
    pub(super) async fn send(
        node: Node,
        target: Target,
        request: Vec<u8>,
        options: SendOptions,
    ) -> Result<Self, OpenError> {
        let deadline = Instant::now() + options.deadline;
        let (circuit, pipe) = launch(&node, &target, &request, &options, &[], deadline).await?;
        Ok(Self {
            node,
            target,
            request,
            options,
            deadline,
            avoid: Vec::new(),
            attempts: 1,
            circuit,
            pipe,
            receipt: None,
            answered: false,
            over: false,
        })
    }

    /// The path, first hop to exit.
    #[must_use]
    pub fn path(&self) -> &[HopInfo] {
        &self.circuit.path
    }

    /// The next piece of the answer, as it came; `None` once it has ended well. If the answer was to be signed, the end is good only with a
    /// good signature.
    ///
    /// # Errors
    /// Why there is no answer, or not the whole of it.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, OpenError> {
        if self.over {
            return Ok(None);
        }
        while !self.answered {
            let progress = timeout_at(self.deadline, settled(&mut self.circuit.progress)).await;
            let progress = progress.map_err(|_| OpenError::Deadline)??;
            if progress.connected.is_some() {
                self.answered = true;
                for hop in &self.circuit.path {
                    self.node.inner.directory.succeeded(hop.node);
                }
                break;
            }
            let Some(outcome) = progress.outcome else { return Err(OpenError::Shutdown) };
            let another = self.node.learn_from(&self.circuit.path, &outcome, &mut self.avoid);
            if !another || self.attempts >= ATTEMPTS {
                self.over = true;
                return Err(error_of(&outcome).unwrap_or(OpenError::Shutdown));
            }
            self.attempts += 1;
            let (circuit, pipe) =
                launch(&self.node, &self.target, &self.request, &self.options, &self.avoid, self.deadline).await?;
            (self.circuit, self.pipe) = (circuit, pipe);
        }
        let mut piece = vec![0; PIPE];
        let read = self.pipe.read(&mut piece).await.map_err(|_| OpenError::Shutdown)?;
        if read > 0 {
            piece.truncate(read);
            return Ok(Some(piece));
        }
        self.over = true;
        self.finish().await?;
        Ok(None)
    }

    /// The whole answer in one piece, at most `limit` bytes of it.
    ///
    /// # Errors
    /// As for [`Answers::next`].
    pub async fn whole(&mut self, limit: usize) -> Result<Vec<u8>, OpenError> {
        let mut whole = Vec::new();
        while let Some(piece) = self.next().await? {
            whole.extend_from_slice(&piece[..piece.len().min(limit - whole.len())]);
        }
        Ok(whole)
    }

    /// Says more to the target, on a conversation that is kept open.
    ///
    /// # Errors
    /// The conversation is over, or was not to be kept open.
    pub async fn say(&mut self, bytes: &[u8]) -> Result<(), OpenError> {
        self.pipe.write_all(bytes).await.map_err(|_| self.failure().unwrap_or(OpenError::Shutdown))
    }

    /// The verified receipt, once the answer has ended.
    #[must_use]
    pub const fn receipt(&self) -> Option<&VerifiedReceipt> {
        self.receipt.as_ref()
    }

    fn failure(&self) -> Option<OpenError> {
        self.circuit.progress.borrow().outcome.as_ref().and_then(error_of)
    }

    /// After the last byte: did it end well, and is it signed?
    async fn finish(&mut self) -> Result<(), OpenError> {
        if !self.options.keep_open {
            // END follows the answer; a circuit that breaks instead must not look like an end.
            let ended = self.circuit.progress.wait_for(|progress| progress.outcome.is_some()).await;
            ended.map_err(|_| OpenError::Shutdown)?;
        }
        if let Some(error) = self.failure() {
            return Err(error);
        }
        if !self.options.sign {
            return Ok(());
        }
        let receipt = self.circuit.progress.borrow().receipt.clone().ok_or(OpenError::BadReceipt)?;
        let exit = self.circuit.path.last().map(|hop| hop.node).ok_or(OpenError::BadReceipt)?;
        let parts = ReceiptParts::new(exit, &self.target, &receipt.transcript, receipt.time);
        let parts = parts.map_err(|_| OpenError::BadReceipt)?;
        parts.verify(&self.circuit.exit_identity, &receipt.signature).map_err(|_| OpenError::BadReceipt)?;
        self.receipt = Some(VerifiedReceipt { exit, time: receipt.time });
        Ok(())
    }
}

async fn launch(
    node: &Node,
    target: &Target,
    request: &[u8],
    options: &SendOptions,
    avoid: &[NodeId],
    deadline: Instant,
) -> Result<(Opened, DuplexStream), OpenError> {
    let purpose = Purpose {
        target,
        options: BeginOptions { sign: options.sign, once: !options.keep_open },
        isolation: None,
        avoid,
        first: request,
        deadline,
    };
    let circuit = node.launch(&purpose).await?;
    let (ours, engines) = duplex(PIPE);
    let _engine_gone = node.inner.commands.send(Command::AttachPipe(circuit.name, engines));
    let rest = request[circuit.sent..].to_vec();
    if rest.is_empty() && options.keep_open {
        return Ok((circuit, ours));
    }
    let (reading, mut writing) = tokio::io::split(ours);
    let keep_open = options.keep_open;
    let feeding = tokio::spawn(async move {
        // What does not fit follows as the circuit takes it; if it breaks, the reader learns why.
        let _circuit_gone = writing.write_all(&rest).await;
        if !keep_open {
            let _circuit_gone = writing.shutdown().await;
        }
        writing
    });
    let _ = feeding;
    Ok((circuit, reading.unsplit(todo_writer())))
}
