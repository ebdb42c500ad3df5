//! Messages: one request, and the answers to it.

use bulbil_core::crypto::receipt::ReceiptParts;
use bulbil_core::node::Outcome;
use bulbil_core::wire::message::BeginOptions;
use bulbil_core::wire::{NodeId, Target, UnixTime};
use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::directory::HopInfo;
use super::open::{Attempts, Opened, Purpose, error_of, settled};
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
    attempts: Attempts,
    talk: Talk,
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
        let attempts = Attempts::default();
        let talk = launch(&node, &target, &request, &options, &attempts, deadline).await?;
        Ok(Self {
            node,
            target,
            request,
            options,
            deadline,
            attempts,
            talk,
            receipt: None,
            answered: false,
            over: false,
        })
    }

    /// The path, first hop to exit.
    #[must_use]
    pub fn path(&self) -> &[HopInfo] {
        &self.talk.circuit.path
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
            let progress = timeout_at(self.deadline, settled(&mut self.talk.circuit.progress)).await;
            let progress = progress.map_err(|_| OpenError::Deadline)??;
            if progress.reached.is_some() {
                self.answered = true;
                for hop in &self.talk.circuit.path {
                    self.node.inner.directory.succeeded(hop.node);
                }
                break;
            }
            let Some(outcome) = progress.outcome else { return Err(OpenError::Shutdown) };
            let another = self.node.learn_from(&self.talk.circuit.path, &outcome, &mut self.attempts);
            if !another || !may_go_again(&outcome, &self.options) || !self.attempts.are_left() {
                self.over = true;
                return Err(error_of(&outcome).unwrap_or(OpenError::Shutdown));
            }
            self.talk =
                launch(&self.node, &self.target, &self.request, &self.options, &self.attempts, self.deadline).await?;
        }
        let mut piece = vec![0; PIPE];
        let read = self.talk.reading.read(&mut piece).await.map_err(|_| OpenError::Shutdown)?;
        if read > 0 {
            piece.truncate(read);
            return Ok(Some(piece));
        }
        self.over = true;
        self.finish().await?;
        Ok(None)
    }

    /// The whole answer in one piece.
    ///
    /// # Errors
    /// As for [`Answers::next`], and [`OpenError::TooLong`] for an answer of more than `limit` bytes.
    pub async fn whole(&mut self, limit: usize) -> Result<Vec<u8>, OpenError> {
        let mut whole = Vec::new();
        while let Some(piece) = self.next().await? {
            if piece.len() > limit - whole.len() {
                return Err(OpenError::TooLong);
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }

    /// Says more to the target, on a conversation that is kept open.
    ///
    /// # Errors
    /// The conversation is over, or was not to be kept open.
    pub async fn say(&mut self, bytes: &[u8]) -> Result<(), OpenError> {
        let broken = |answers: &Self| answers.talk.circuit.failure().unwrap_or(OpenError::Shutdown);
        if let Writing::Busy(task) = &mut self.talk.writing {
            let written = task.await;
            self.talk.writing = match written {
                Ok(Ok(writing)) => Writing::Free(writing),
                _ => Writing::Broken,
            };
        }
        match &mut self.talk.writing {
            Writing::Free(writing) => writing.write_all(bytes).await.map_err(|_| broken(self)),
            Writing::Busy(_) | Writing::Broken => Err(broken(self)),
        }
    }

    /// The verified receipt, once the answer has ended.
    #[must_use]
    pub const fn receipt(&self) -> Option<&VerifiedReceipt> {
        self.receipt.as_ref()
    }

    /// After the last byte: did it end well, and is it signed?
    async fn finish(&mut self) -> Result<(), OpenError> {
        if !self.options.keep_open {
            // END follows the answer; a circuit that breaks instead must not look like an end.
            let ended = self.talk.circuit.progress.wait_for(|progress| progress.outcome.is_some()).await;
            ended.map_err(|_| OpenError::Shutdown)?;
        }
        let outcome = self.talk.circuit.progress.borrow().outcome;
        if let Some(error) = outcome.as_ref().and_then(error_of) {
            // A path that broke while it was used is not the one for the next conversation.
            let _another =
                outcome.map(|outcome| self.node.learn_from(&self.talk.circuit.path, &outcome, &mut self.attempts));
            return Err(error);
        }
        if !self.options.sign {
            return Ok(());
        }
        let receipt = self.talk.circuit.progress.borrow().receipt.clone().ok_or(OpenError::BadReceipt)?;
        let exit = self.talk.circuit.path.last().map(|hop| hop.node).ok_or(OpenError::BadReceipt)?;
        let parts = ReceiptParts::new(exit, &self.target, &receipt.transcript, receipt.time.0);
        let parts = parts.map_err(|_| OpenError::BadReceipt)?;
        parts.verify(&self.talk.circuit.exit_identity, &receipt.signature).map_err(|_| OpenError::BadReceipt)?;
        self.receipt = Some(VerifiedReceipt { exit, time: receipt.time });
        Ok(())
    }
}

/// A request is not sent a second time unless the first one did not arrive, or it does no harm twice.
const fn may_go_again(outcome: &Outcome, options: &SendOptions) -> bool {
    options.repeatable || outcome.is_undelivered()
}

async fn launch(
    node: &Node,
    target: &Target,
    request: &[u8],
    options: &SendOptions,
    attempts: &Attempts,
    deadline: Instant,
) -> Result<Talk, OpenError> {
    let purpose = Purpose {
        target,
        last: target.into(),
        options: BeginOptions { sign: options.sign, once: !options.keep_open },
        isolation: None,
        attempts,
        first: request,
        deadline,
    };
    let circuit = node.launch(&purpose).await?;
    let (ours, engines) = duplex(PIPE);
    circuit.command(Command::AttachPipe(circuit.name, engines));
    let (reading, mut writing) = split(ours);
    let (rest, keep_open) = (request[circuit.sent..].to_vec(), options.keep_open);
    // What did not fit into BEGIN follows as the circuit takes it, while answers may come already.
    let writing = tokio::spawn(async move {
        writing.write_all(&rest).await?;
        if !keep_open {
            writing.shutdown().await?;
        }
        Ok(writing)
    });
    Ok(Talk { circuit, reading, writing: Writing::Busy(writing) })
}

/// One attempt at a conversation.
struct Talk {
    circuit: Opened,
    reading: ReadHalf<DuplexStream>,
    writing: Writing,
}

/// The way to the target.
enum Writing {
    /// The request is still being written.
    Busy(JoinHandle<io::Result<WriteHalf<DuplexStream>>>),
    /// More can be said.
    Free(WriteHalf<DuplexStream>),
    /// It broke.
    Broken,
}

#[cfg(test)]
mod tests {
    use bulbil_core::crypto::cgo::HopIndex;
    use bulbil_core::wire::{CloseReason, EndReason};

    use super::*;

    #[test]
    fn a_request_goes_twice_only_if_it_did_not_arrive_or_may_arrive_twice() {
        let closed = |reason| Outcome { end: None, close: Some(reason) };
        let [once, repeatable] = [false, true].map(|repeatable| SendOptions { repeatable, ..SendOptions::default() });
        for (reason, arrived) in [(CloseReason::Busy, false), (CloseReason::LinkLost, true)] {
            assert_eq!(may_go_again(&closed(reason), &once), !arrived, "{reason:?}");
            assert!(may_go_again(&closed(reason), &repeatable));
        }
        let next_hop_lost = Outcome { end: HopIndex::new(1).map(|hop| (EndReason::NextHopLost, hop)), close: None };
        assert!(!may_go_again(&next_hop_lost, &once) && may_go_again(&next_hop_lost, &repeatable));
    }
}
