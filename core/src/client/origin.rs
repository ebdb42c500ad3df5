//! The client's side of a conversation: which relay messages may come from which hop, and what each means. No cells, no sockets.

use core::net::SocketAddr;

use crate::conversation::Halves;
use crate::crypto::cgo::{ClientBackward, ClientForward, HopIndex};
use crate::crypto::receipt::TranscriptDigest;
use crate::relay::exit::OutOfTurn;
use crate::wire::descriptor::RSA_LEN;
use crate::wire::{EndReason, Message, UnixTime};

/// How far the conversation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The onion and BEGIN are on their way.
    Opening,
    /// The exit has reached the target.
    Connected,
    /// Somebody on the path ended it.
    Ended(EndReason, HopIndex),
    /// Bytes that had come were thrown away because nobody took them.
    Truncated,
}

/// A signed answer: what the exit's identity vouches for.
#[derive(Clone)]
pub struct Receipt {
    /// When the exit signed, by its clock.
    pub time: UnixTime,
    /// Digests of the request as we sent it and of the answer as we received it.
    pub transcript: TranscriptDigest,
    /// The exit's signature, not yet verified ([`crate::crypto::receipt::ReceiptParts`]): its identity key is in its descriptor.
    pub signature: [u8; RSA_LEN],
}

/// A conversation at its client.
pub struct Origin {
    /// The layers for cells away from us.
    pub forward: ClientForward,
    /// The layers for cells toward us.
    pub backward: ClientBackward,
    exit: HopIndex,
    stage: Stage,
    /// Where the exit has connected to; stays known when the conversation ends, because both may come in one record.
    connected: Option<SocketAddr>,
    transcript: Option<TranscriptDigest>,
    receipt: Option<Receipt>,
    /// The receipt has come: bytes after it would not be what the exit vouches for.
    receipted: bool,
    /// Which directions are finished.
    pub halves: Halves,
}

/// What to do with a message that came from the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// Bytes from the target, to be kept in order.
    Data,
    /// Nothing more; the cell is used up.
    Used,
}

/// Whether any hop may give this reason, not only the exit: it concerns the path, not the target.
const fn of_a_relay(reason: EndReason) -> bool {
    matches!(
        reason,
        EndReason::TimedOut
            | EndReason::NextHopUnreachable
            | EndReason::NextHopLost
            | EndReason::Busy
            | EndReason::Protocol
            | EndReason::Shutdown
            | EndReason::Internal
    )
}

impl Origin {
    /// A conversation that begins; `sign` if an answer's receipt is asked for.
    #[must_use]
    pub fn new(forward: ClientForward, backward: ClientBackward, exit: HopIndex, sign: bool) -> Self {
        Self {
            forward,
            backward,
            exit,
            stage: Stage::Opening,
            connected: None,
            transcript: sign.then(TranscriptDigest::new),
            receipt: None,
            receipted: false,
            halves: Halves::default(),
        }
    }

    /// The hop that our messages go to.
    #[must_use]
    pub const fn exit(&self) -> HopIndex {
        self.exit
    }

    /// The address that the exit has connected to, once it has.
    #[must_use]
    pub const fn connected(&self) -> Option<SocketAddr> {
        self.connected
    }

    /// Why and by which hop the conversation was ended, once it is.
    #[must_use]
    pub const fn ended(&self) -> Option<(EndReason, HopIndex)> {
        match self.stage {
            Stage::Ended(reason, hop) => Some((reason, hop)),
            _ => None,
        }
    }

    /// What had come is thrown away: however the conversation was ended, it did not end well.
    pub const fn handle_truncated(&mut self) {
        self.stage = Stage::Truncated;
        self.halves.finish_received = false;
    }

    /// Takes the receipt, if one has come.
    pub const fn take_receipt(&mut self) -> Option<Receipt> {
        self.receipt.take()
    }

    /// Bytes of the request leave.
    pub fn handle_request(&mut self, bytes: &[u8]) {
        if let Some(transcript) = &mut self.transcript {
            transcript.update_request(bytes);
        }
    }

    /// Takes a message that `hop` sent.
    ///
    /// # Errors
    /// The message may not come now or not from this hop: somebody on the path breaks the protocol.
    pub fn handle(&mut self, hop: HopIndex, message: &Message<'_>) -> Result<Received, OutOfTurn> {
        let open = !matches!(self.stage, Stage::Ended(..) | Stage::Truncated);
        let talking = self.stage == Stage::Connected && !self.halves.finish_received && hop == self.exit;
        match *message {
            Message::Drop => Ok(Received::Used),
            // Any hop may say that it cannot go on; only the exit speaks of the target.
            Message::End(reason) if open && (hop == self.exit || of_a_relay(reason)) => {
                self.stage = Stage::Ended(reason, hop);
                // The exit spares a FIN where END says the same.
                self.halves.finish_received |= reason == EndReason::Done;
                Ok(Received::Used)
            }
            Message::Connected { address } if self.stage == Stage::Opening && hop == self.exit => {
                self.stage = Stage::Connected;
                self.connected = Some(address);
                Ok(Received::Used)
            }
            Message::Data(bytes) if talking && !self.receipted => {
                if let Some(transcript) = &mut self.transcript {
                    transcript.update_answer(bytes);
                }
                Ok(Received::Data)
            }
            Message::Receipt { time, signature } if talking => {
                let transcript = self.transcript.take().ok_or(OutOfTurn)?;
                self.receipted = true;
                self.receipt = Some(Receipt { time, transcript, signature: *signature });
                Ok(Received::Used)
            }
            Message::Fin if talking => {
                self.halves.finish_received = true;
                Ok(Received::Used)
            }
            _ => Err(OutOfTurn),
        }
    }
}
