//! Conversations: what targets and applications say and hear, in cells.

use bulbil_core::node::{ConversationId, Output};

use super::{Circuit, End, Model, Role, Said, Stage};

/// Payload of one relay message, and cells of a conversation's room that are kept for control messages.
const DATA_MAX: usize = 490;
const CONTROL_ROOM: usize = 4;

/// What the model expects of a conversation's output.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Heard {
    Nothing,
    Bytes(usize),
    Finish,
    Over,
}

impl From<Output> for Heard {
    fn from(output: Output) -> Self {
        match output {
            Output::Nothing => Self::Nothing,
            Output::Bytes(count) => Self::Bytes(count),
            Output::Finish => Self::Finish,
            Output::Over(_) => Self::Over,
        }
    }
}

/// What the node may ask of its owner.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Asked {
    Nothing,
    Connect,
    Sign,
}

impl Circuit {
    /// A message of the node's own.
    fn say(&mut self) {
        if self.ending.is_none() {
            let flow = if matches!(self.role, Role::Client { .. }) { &mut self.forward } else { &mut self.backward };
            flow.push(Said::Noise);
        }
    }
}

impl Model {
    pub(in super::super) fn ask(&mut self, name: ConversationId) -> Asked {
        let Some(at) = self.named(name) else { return Asked::Nothing };
        let circuit = &mut self.circuits[at];
        if circuit.ending.is_some() && circuit.forward.waiting.is_empty() {
            return Asked::Nothing;
        }
        let Role::Exiting(exit) = &mut circuit.role else { return Asked::Nothing };
        match exit.stage {
            Stage::Unsigned => {
                (exit.stage, exit.sign) = (Stage::Signing, false);
                Asked::Sign
            }
            Stage::Asking => {
                exit.stage = Stage::Connecting;
                Asked::Connect
            }
            _ => Asked::Nothing,
        }
    }

    /// The target is reached; who asked for an address hears of it.
    pub(in super::super) fn reached(&mut self, name: ConversationId) {
        let Some(at) = self.named(name) else { return };
        let circuit = &mut self.circuits[at];
        let Role::Exiting(exit) = &mut circuit.role else { return };
        if exit.stage == Stage::Connecting {
            exit.stage = Stage::Open;
            if !exit.service {
                circuit.say();
            }
        }
    }

    pub(in super::super) fn failed(&mut self, name: ConversationId) {
        let Some(at) = self.named(name) else { return };
        if matches!(&self.circuits[at].role, Role::Exiting(exit) if exit.stage != Stage::Over) {
            self.end_conversation(at, Some(false));
        }
        self.sweep();
    }

    pub(in super::super) fn signed(&mut self, name: ConversationId) {
        let Some(at) = self.named(name) else { return };
        let circuit = &mut self.circuits[at];
        let Role::Exiting(exit) = &mut circuit.role else { return };
        if exit.stage == Stage::Signing {
            exit.stage = Stage::Open;
            circuit.say();
            self.answer_is_whole(at);
        }
        self.sweep();
    }

    fn answer_is_whole(&mut self, at: usize) {
        let Role::Exiting(exit) = &mut self.circuits[at].role else { return };
        exit.answered = true;
        if exit.stage == Stage::Open && (exit.once || exit.told) {
            self.end_conversation(at, Some(true));
        } else {
            self.circuits[at].say();
        }
    }

    /// The outside says so many bytes; answers how many of them have room.
    pub(in super::super) fn input(&mut self, name: ConversationId, len: usize) -> usize {
        let Some(at) = self.named(name) else { return 0 };
        let circuit = &mut self.circuits[at];
        let promised = match &circuit.role {
            _ if circuit.ending.is_some() => 0,
            Role::Exiting(exit) if exit.stage == Stage::Open && !exit.answered => circuit.backward.promised,
            Role::Client { finished: false } => circuit.forward.promised,
            _ => 0,
        };
        let taken = len.min(promised.saturating_sub(CONTROL_ROOM) * DATA_MAX);
        (0..taken.div_ceil(DATA_MAX)).for_each(|_| circuit.say());
        taken
    }

    pub(in super::super) fn input_finished(&mut self, name: ConversationId) {
        let Some(at) = self.named(name) else { return };
        let circuit = &mut self.circuits[at];
        if circuit.ending.is_some() {
            return;
        }
        match &mut circuit.role {
            Role::Exiting(exit) if exit.stage == Stage::Open && !exit.answered => {
                if exit.sign {
                    exit.stage = Stage::Unsigned;
                } else {
                    self.answer_is_whole(at);
                }
            }
            Role::Client { finished } if !*finished => {
                *finished = true;
                circuit.say();
            }
            _ => {}
        }
        self.sweep();
    }

    /// The owner lets go of a conversation.
    pub(in super::super) fn let_go(&mut self, name: ConversationId, graceful: bool) {
        let Some(at) = self.named(name) else { return };
        let circuit = &mut self.circuits[at];
        match circuit.role {
            Role::Client { .. } if circuit.inward == End::Outside => {
                if !graceful {
                    circuit.say();
                }
                self.wind_up(at, bulbil_core::wire::CloseReason::Finished, Some(false));
            }
            Role::Exiting(_) if circuit.outward == End::Outside => {
                self.end_conversation(at, Some(false));
                self.wind_up(at, bulbil_core::wire::CloseReason::Finished, Some(true));
            }
            _ => {}
        }
        self.sweep();
    }

    /// What the outside hears next, into so much room.
    pub(in super::super) fn output(&mut self, name: ConversationId, room: usize) -> Heard {
        let Some(at) = self.named(name) else { return Heard::Nothing };
        let circuit = &mut self.circuits[at];
        let exit = match &mut circuit.role {
            Role::Exiting(exit) => exit,
            Role::Client { .. } if circuit.inward == End::Outside && circuit.ending.is_some() => {
                self.wind_up(at, bulbil_core::wire::CloseReason::Finished, Some(false));
                self.sweep();
                return Heard::Over;
            }
            _ => return Heard::Nothing,
        };
        let ready = !matches!(exit.stage, Stage::AwaitingBegin | Stage::Asking | Stage::Connecting);
        let waits = !circuit.forward.waiting.is_empty();
        if circuit.outward != End::Outside || (!ready && waits && circuit.ending.is_some()) {
            return Heard::Nothing;
        }
        if ready && waits {
            let lens = circuit.forward.waiting.iter().map(bytes_of);
            let (mut count, mut taken) = (0, exit.taken);
            for len in lens {
                if count + len - taken > room {
                    break;
                }
                (count, taken) = (count + len - taken, 0);
            }
            return Heard::Bytes(if count == 0 { room } else { count });
        }
        if ready && exit.finished && !exit.told {
            exit.told = true;
            if exit.stage == Stage::Open && exit.answered {
                self.end_conversation(at, Some(true));
                self.sweep();
            }
            return Heard::Finish;
        }
        if exit.stage == Stage::Over || circuit.ending.is_some() {
            self.wind_up(at, bulbil_core::wire::CloseReason::Finished, Some(true));
            self.sweep();
            return Heard::Over;
        }
        Heard::Nothing
    }

    /// The outside has taken so many bytes.
    pub(in super::super) fn written(&mut self, name: ConversationId, count: usize) {
        let Some(at) = self.named(name) else { return };
        let circuit = &mut self.circuits[at];
        let Role::Exiting(exit) = &mut circuit.role else { return };
        exit.taken += count;
        while let Some(len) = circuit.forward.waiting.front().map(bytes_of)
            && exit.taken >= len
        {
            exit.taken -= len;
            circuit.forward.waiting.pop_front();
            circuit.forward.due += usize::from(circuit.ending.is_none());
        }
    }
}

/// Bytes for the target in a cell that waits.
fn bytes_of(said: &Said) -> usize {
    if let Said::Data(len) = said { *len } else { panic!("{said:?} waits for a target") }
}
