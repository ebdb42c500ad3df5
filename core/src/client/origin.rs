//! The client's side of a conversation: which relay messages may come from which hop, and what each means. No cells, no sockets.

use core::net::SocketAddr;

use crate::conversation::Halves;
use crate::crypto::cgo::{ClientBackward, ClientForward, HopIndex};
use crate::crypto::receipt::TranscriptDigest;
use crate::relay::exit::OutOfTurn;
use crate::wire::descriptor::RSA_LEN;
use crate::wire::message::BeginOptions;
use crate::wire::{EndReason, Message, Target, UnixTime};

/// How far the conversation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The onion and BEGIN are on their way.
    Opening,
    /// The last hop has reached the target.
    Connected,
    /// Somebody on the path ended it.
    Ended(EndReason, HopIndex),
    /// Bytes that had come were thrown away because nobody took them.
    Truncated,
}

/// What the last hop has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// A target of the network, at this address.
    Address(SocketAddr),
    /// A service inside the last hop. CONNECTED is not sent for one: it counts as reached when the first part of its answer comes.
    Service,
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
    /// The target is a service inside the exit.
    service: bool,
    stage: Stage,
    /// What the exit has reached; stays known when the conversation ends, because both may come in one record.
    reached: Option<Reached>,
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
    /// A conversation with `target` that begins, asking for `options`.
    #[must_use]
    pub fn new(
        forward: ClientForward,
        backward: ClientBackward,
        exit: HopIndex,
        target: &Target,
        options: BeginOptions,
    ) -> Self {
        Self {
            forward,
            backward,
            exit,
            service: matches!(target, Target::Service(_)),
            stage: Stage::Opening,
            reached: None,
            transcript: options.sign.then(TranscriptDigest::new),
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

    /// What the exit has reached, once it has.
    #[must_use]
    pub const fn reached(&self) -> Option<Reached> {
        self.reached
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
        // A service may answer at once.
        let connected = self.stage == Stage::Connected || self.service && self.stage == Stage::Opening;
        let talking = connected && !self.halves.finish_received && hop == self.exit;
        match *message {
            Message::Drop => Ok(Received::Used),
            // Any hop may say that it cannot go on; only the exit speaks of the target.
            Message::End(reason) if open && (hop == self.exit || of_a_relay(reason)) => {
                if reason == EndReason::Done && hop == self.exit {
                    self.hear_service();
                }
                self.stage = Stage::Ended(reason, hop);
                // The exit spares a FIN where END says the same.
                self.halves.finish_received |= reason == EndReason::Done;
                Ok(Received::Used)
            }
            Message::Connected { address } if self.stage == Stage::Opening && !self.service && hop == self.exit => {
                self.stage = Stage::Connected;
                self.reached = Some(Reached::Address(address));
                Ok(Received::Used)
            }
            Message::Data(bytes) if talking && !self.receipted => {
                self.hear_service();
                if let Some(transcript) = &mut self.transcript {
                    transcript.update_answer(bytes);
                }
                Ok(Received::Data)
            }
            Message::Receipt { time, signature } if talking => {
                let transcript = self.transcript.take().ok_or(OutOfTurn)?;
                self.hear_service();
                self.receipted = true;
                self.receipt = Some(Receipt { time, transcript, signature: *signature });
                Ok(Received::Used)
            }
            Message::Fin if talking => {
                self.hear_service();
                self.halves.finish_received = true;
                Ok(Received::Used)
            }
            _ => Err(OutOfTurn),
        }
    }

    /// A part of the answer has come: if it is a service's, that has been reached.
    fn hear_service(&mut self) {
        if self.service && self.stage == Stage::Opening {
            self.stage = Stage::Connected;
            self.reached = Some(Reached::Service);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::cgo::Seed;
    use crate::wire::Service;

    const DATA: Message<'static> = Message::Data(b"answer");
    const RECEIPT: Message<'static> = Message::Receipt { time: UnixTime(1), signature: &[0; RSA_LEN] };

    fn hop(at: usize) -> HopIndex {
        HopIndex::new(at).unwrap()
    }

    fn address() -> SocketAddr {
        "192.0.2.1:80".parse().unwrap()
    }

    fn connected() -> Message<'static> {
        Message::Connected { address: address() }
    }

    /// Over two hops.
    fn origin(target: &Target) -> Origin {
        let seeds = [1, 2].map(|byte| Seed::from_bytes([byte; 80]));
        let forward = ClientForward::new(&seeds).unwrap();
        let backward = ClientBackward::new(&seeds).unwrap();
        Origin::new(forward, backward, hop(1), target, BeginOptions { sign: true, once: false })
    }

    fn of_target() -> Origin {
        origin(&address().into())
    }

    fn of_service() -> Origin {
        origin(&Target::Service(Service::Phonebook))
    }

    #[test]
    fn a_target_is_reached_with_connected_and_says_nothing_before() {
        for message in [DATA, Message::Fin, RECEIPT] {
            assert_eq!(of_target().handle(hop(1), &message), Err(OutOfTurn), "{message:?}");
        }
        let mut origin = of_target();
        assert_eq!(origin.handle(hop(0), &connected()), Err(OutOfTurn), "not from the exit");
        assert_eq!(origin.handle(hop(1), &connected()), Ok(Received::Used));
        assert_eq!(origin.reached(), Some(Reached::Address(address())));
        assert_eq!(origin.handle(hop(1), &connected()), Err(OutOfTurn), "once");
        assert_eq!(origin.handle(hop(1), &DATA), Ok(Received::Data));
        let mut ended = of_target();
        assert_eq!(ended.handle(hop(1), &Message::End(EndReason::Done)), Ok(Received::Used));
        assert_eq!(ended.reached(), None);
    }

    #[test]
    fn a_service_is_reached_with_the_first_part_of_its_answer() {
        let end = Message::End(EndReason::Done);
        for (message, means) in
            [(DATA, Received::Data), (Message::Fin, Received::Used), (RECEIPT, Received::Used), (end, Received::Used)]
        {
            let mut origin = of_service();
            assert_eq!(origin.reached(), None);
            assert_eq!(origin.handle(hop(1), &message), Ok(means), "{message:?}");
            assert_eq!(origin.reached(), Some(Reached::Service), "{message:?}");
        }
    }

    #[test]
    fn connected_does_not_come_from_a_service() {
        let mut origin = of_service();
        assert_eq!(origin.handle(hop(1), &connected()), Err(OutOfTurn));
        assert_eq!(origin.handle(hop(1), &DATA), Ok(Received::Data));
        assert_eq!(origin.handle(hop(1), &connected()), Err(OutOfTurn));
    }

    #[test]
    fn what_is_not_the_answer_does_not_reach_a_service() {
        for message in [DATA, Message::Fin, RECEIPT, Message::End(EndReason::Done)] {
            let mut origin = of_service();
            assert_eq!(origin.handle(hop(0), &message), Err(OutOfTurn), "{message:?}");
            assert_eq!(origin.reached(), None);
        }
        for reason in [EndReason::NoService, EndReason::Busy, EndReason::Reset] {
            let mut origin = of_service();
            assert_eq!(origin.handle(hop(1), &Message::End(reason)), Ok(Received::Used));
            assert_eq!((origin.reached(), origin.ended()), (None, Some((reason, hop(1)))));
            assert_eq!(origin.handle(hop(1), &DATA), Err(OutOfTurn), "behind END");
        }
        let mut origin = of_service();
        assert_eq!(origin.handle(hop(0), &Message::Drop), Ok(Received::Used));
        assert_eq!(origin.reached(), None);
    }
}
