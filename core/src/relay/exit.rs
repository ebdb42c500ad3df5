//! The exit's side of a conversation: which relay messages may come when, and what each means. No cells, no sockets.

use crate::conversation::Halves;
use crate::crypto::receipt::TranscriptDigest;
use crate::wire::message::BeginOptions;
use crate::wire::{EndReason, Message, Target};

/// How far the conversation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The client has not said what it wants.
    AwaitingBegin,
    /// The target is known; the owner has not been asked to connect.
    Asking,
    /// The owner connects.
    Connecting,
    /// Bytes go both ways.
    Open,
    /// The answer is whole and the owner is to be asked for a signature.
    Unsigned,
    /// The owner signs.
    Signing,
    /// END is said; the owner has not let go of the target.
    Over,
}

/// A conversation at its exit.
pub struct Exit {
    stage: Stage,
    options: BeginOptions,
    target: Option<Target>,
    transcript: Option<TranscriptDigest>,
    /// Which directions are finished.
    pub halves: Halves,
}

/// What to do with a message that came from the client.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// The conversation begins; these bytes go to the target first.
    Begin(&'a [u8]),
    /// Bytes for the target, to be kept in order.
    Data,
    /// Nothing more; the cell is used up.
    Used,
    /// The client ends the conversation.
    Ended(EndReason),
}

/// A message that may not come now, or not from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfTurn;

impl Default for Exit {
    fn default() -> Self {
        Self::new()
    }
}

impl Exit {
    /// A conversation whose BEGIN has not come.
    #[must_use]
    pub fn new() -> Self {
        Self {
            stage: Stage::AwaitingBegin,
            options: BeginOptions { sign: false, once: false },
            target: None,
            transcript: None,
            halves: Halves::default(),
        }
    }

    /// How far the conversation has come.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// What the client wants to reach, once it has said so.
    #[must_use]
    pub const fn target(&self) -> Option<&Target> {
        self.target.as_ref()
    }

    /// Takes a message from the client.
    ///
    /// # Errors
    /// The message may not come now: the client breaks the protocol.
    pub fn handle<'a>(&mut self, message: Message<'a>) -> Result<Received<'a>, OutOfTurn> {
        let begun = !matches!(self.stage, Stage::AwaitingBegin | Stage::Over);
        match message {
            Message::Drop => Ok(Received::Used),
            Message::Begin { options, target, first } if self.stage == Stage::AwaitingBegin => {
                self.stage = Stage::Asking;
                self.options = options;
                self.target = Some(target);
                self.transcript = options.sign.then(TranscriptDigest::new);
                if let Some(transcript) = &mut self.transcript {
                    transcript.update_request(first);
                }
                Ok(Received::Begin(first))
            }
            Message::Data(bytes) if begun && !self.halves.finish_received => {
                if let Some(transcript) = &mut self.transcript {
                    transcript.update_request(bytes);
                }
                Ok(Received::Data)
            }
            Message::Fin if begun && !self.halves.finish_received => {
                self.halves.finish_received = true;
                Ok(Received::Used)
            }
            Message::End(reason) if begun => Ok(Received::Ended(reason)),
            _ => Err(OutOfTurn),
        }
    }

    /// The owner is asked to connect to the target: answers it once.
    pub fn ask_connect(&mut self) -> Option<&Target> {
        if self.stage != Stage::Asking {
            return None;
        }
        self.stage = Stage::Connecting;
        self.target.as_ref()
    }

    /// The target is connected; answers `false` if nobody asked for that.
    pub fn handle_connected(&mut self) -> bool {
        let asked = self.stage == Stage::Connecting;
        if asked {
            self.stage = Stage::Open;
        }
        asked
    }

    /// Bytes from the target go to the client.
    pub fn handle_answer(&mut self, bytes: &[u8]) {
        if let Some(transcript) = &mut self.transcript {
            transcript.update_answer(bytes);
        }
    }

    /// The target has finished; answers whether a signature has to be made before the client is told.
    pub fn handle_finished(&mut self) -> bool {
        let sign = self.stage == Stage::Open && self.transcript.is_some();
        if sign {
            self.stage = Stage::Unsigned;
        }
        sign
    }

    /// The owner is asked for a signature: answers what to sign, once.
    pub fn ask_sign(&mut self) -> Option<(&Target, TranscriptDigest)> {
        if self.stage != Stage::Unsigned {
            return None;
        }
        self.stage = Stage::Signing;
        Some((self.target.as_ref()?, self.transcript.take()?))
    }

    /// The signature is made; answers `false` if nobody asked for one.
    pub fn handle_signed(&mut self) -> bool {
        let asked = self.stage == Stage::Signing;
        if asked {
            self.stage = Stage::Open;
        }
        asked
    }

    /// Whether nothing is left to be said in either direction.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        matches!(self.stage, Stage::Open)
            && self.halves.finish_sent
            && (self.options.once || self.halves.finish_delivered)
    }

    /// The conversation is over. Unless it ended well and the target got everything, what it got must not look like the whole request.
    pub const fn end(&mut self, whole: bool) {
        self.stage = Stage::Over;
        self.halves.finish_received &= whole;
    }
}
