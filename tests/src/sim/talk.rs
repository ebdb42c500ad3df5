//! A conversation: what its client wants of it, and what has become of it.

use std::time::Duration;

use bulbil_core::client::origin::{Reached, Receipt};
use bulbil_core::node::{ConversationId, Outcome};
use bulbil_core::wire::{EndReason, Target};

use super::actor::{Actor, Behaviour};
use super::world::NodeIndex;

/// What a client wants of a conversation.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// What the target does.
    pub target: Behaviour,
    /// Bytes to say in all.
    pub request: u64,
    /// How many of them come in BEGIN, at most.
    pub first: usize,
    /// Finish after that.
    pub finish: bool,
    /// One request, one answer.
    pub once: bool,
    /// A signature is asked for.
    pub sign: bool,
    /// The application takes what comes.
    pub listens: bool,
    /// The target is the last hop's phonebook.
    pub service: bool,
    /// What the client knows of its hops' onion keys is outdated.
    pub outdated: bool,
}

impl Wish {
    /// Says `request` bytes to a target that behaves so, finishes, and listens to the end.
    #[must_use]
    pub const fn new(target: Behaviour, request: u64) -> Self {
        Self {
            target,
            request,
            first: 100,
            finish: true,
            once: false,
            sign: false,
            listens: true,
            service: false,
            outdated: false,
        }
    }

    /// Asks the last hop's phonebook instead of a target behind it.
    #[must_use]
    pub const fn of_the_phonebook(self) -> Self {
        Self { service: true, ..self }
    }

    /// Does not finish after its request.
    #[must_use]
    pub const fn open_ended(self) -> Self {
        Self { finish: false, ..self }
    }
}

/// A conversation, with both of its ends.
pub struct Talk {
    /// Who opened it.
    pub client: NodeIndex,
    /// Through whom.
    pub path: Vec<NodeIndex>,
    /// What is to be reached.
    pub target: Target,
    pub(super) wish: Wish,
    pub(super) name: ConversationId,
    pub(super) exit: Option<(NodeIndex, ConversationId)>,
    pub(super) app: Actor,
    pub(super) at_target: Option<Actor>,
    pub(super) connections: u32,
    pub(super) connected: Option<Reached>,
    pub(super) receipt: Option<Receipt>,
    pub(super) outcome: Option<Outcome>,
    pub(super) exit_outcome: Option<Outcome>,
    pub(super) ticks: u32,
    pub(super) opened: Duration,
    pub(super) first_heard: Option<Duration>,
    /// Its client has died since.
    pub(super) orphaned: bool,
    /// Its client or its exit has turned.
    pub(super) doubtful: bool,
    /// A hop has forgotten which onions it has seen, and not the key that opens this one's.
    pub(super) repeatable: bool,
}

impl Talk {
    /// What the client wanted.
    #[must_use]
    pub const fn wish(&self) -> &Wish {
        &self.wish
    }

    /// The application.
    #[must_use]
    pub const fn app(&self) -> &Actor {
        &self.app
    }

    /// The target, once the exit has reached it.
    #[must_use]
    pub const fn target(&self) -> Option<&Actor> {
        self.at_target.as_ref()
    }

    /// Bytes that the target has heard.
    #[must_use]
    pub fn target_heard(&self) -> u64 {
        self.at_target.as_ref().map_or(0, Actor::heard)
    }

    /// How often an exit was asked to connect.
    #[must_use]
    pub const fn connections(&self) -> u32 {
        self.connections
    }

    /// Whether its client has died first, so that nobody is told how it ends.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        self.orphaned && self.outcome.is_none()
    }

    /// Whether its client or its exit follows the protocol no more.
    #[must_use]
    pub const fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// Nothing that is heard from now on need be true.
    pub(super) const fn doubt(&mut self) {
        self.doubtful = true;
        self.app.doubt();
        if let Some(target) = &mut self.at_target {
            target.doubt();
        }
    }

    /// What the client was told that the last hop has reached.
    #[must_use]
    pub const fn connected(&self) -> Option<Reached> {
        self.connected
    }

    /// The receipt, if one has come.
    #[must_use]
    pub const fn receipt(&self) -> Option<&Receipt> {
        self.receipt.as_ref()
    }

    /// How it ended for the client, once it has.
    #[must_use]
    pub const fn outcome(&self) -> Option<Outcome> {
        self.outcome
    }

    /// Whether it has ended for the client, and the application has heard everything that came.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.outcome.is_some() && self.app.heard_end().is_some()
    }

    /// Whether the application has heard everything that the target said, and the target everything that it waits for.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let Some(target) = &self.at_target else { return false };
        let heard_answer = self.app.heard() == target.said();
        let heard_request = target.heard() == self.app.said() || self.wish.once;
        heard_answer && heard_request
    }

    /// How it ended for the exit, once it has.
    #[must_use]
    pub const fn exit_outcome(&self) -> Option<Outcome> {
        self.exit_outcome
    }

    /// When it was opened.
    #[must_use]
    pub const fn opened(&self) -> Duration {
        self.opened
    }

    /// When the application heard something for the first time.
    #[must_use]
    pub const fn first_heard(&self) -> Option<Duration> {
        self.first_heard
    }

    /// END as the client heard it: the reason, and the place on the path of who said it.
    #[must_use]
    pub fn end(&self) -> Option<(EndReason, usize)> {
        self.outcome?.end.map(|(reason, hop)| (reason, hop.value()))
    }
}
