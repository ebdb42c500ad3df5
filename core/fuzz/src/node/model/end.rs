//! How circuits end. Those without ends stay in the list until the step is over, so that nobody's place in it changes.

use bulbil_core::circuit::LinkId;
use bulbil_core::node::ConversationId;
use bulbil_core::time::Instant;
use bulbil_core::wire::CloseReason;

use super::{CELLS, End, Model, Phase, Progress, Role, Said, Stage};

impl Model {
    /// A circuit begins to end; `from` is the side that is gone already, outward or not.
    pub(super) fn wind_up(&mut self, at: usize, reason: CloseReason, from: Option<bool>) {
        let circuit = &mut self.circuits[at];
        let reason = *circuit.ending.get_or_insert(reason);
        circuit.forward.stop();
        circuit.backward.stop();
        if reason != CloseReason::Finished {
            circuit.forward.close();
            if let Role::Exiting(exit) = &mut circuit.role {
                exit.finished = false;
            }
        }
        let deliver =
            !circuit.forward.waiting.is_empty() && from == Some(false) && !matches!(circuit.role, Role::Opening { .. });
        if !deliver && !self.next_hop_has_heard(at, from != Some(true)) {
            self.detach(at, true);
        }
        if let Some(outward) = from {
            self.detach(at, outward);
        }
    }

    /// Forgets a circuit's onion, unless it has begun to leave and is to be completed; answers whether the next hop, if there is one, has to
    /// hear the circuit's end.
    fn next_hop_has_heard(&mut self, at: usize, complete: bool) -> bool {
        let Some(number) = self.circuits[at].onion else { return true };
        let Some(progress) = self.onion(number).map(|onion| onion.progress) else { return true };
        match progress {
            Progress::Leaving(parts) if parts > 0 && complete => true,
            Progress::Leaving(parts) => {
                self.free_onion(at);
                parts > 0
            }
            // It comes back to nobody.
            Progress::Working => {
                self.circuits[at].role = Role::Refused;
                self.circuits[at].onion = None;
                true
            }
            Progress::Arriving(_) | Progress::Waiting => {
                self.circuits[at].role = Role::Refused;
                self.free_onion(at);
                true
            }
        }
    }

    pub(super) fn free_onion(&mut self, at: usize) {
        let Some(number) = self.circuits[at].onion.take() else { return };
        self.onions.retain(|onion| onion.number != number);
        for line in self.lines.values_mut().filter(|line| line.arriving == Some(number)) {
            line.arriving = None;
        }
    }

    pub(super) fn detach(&mut self, at: usize, outward: bool) {
        let circuit = &mut self.circuits[at];
        *circuit.end(outward) = End::Nobody;
        circuit.leaving(outward).close();
        if circuit.inward == End::Nobody && circuit.outward == End::Nobody {
            circuit.forward.close();
            circuit.backward.close();
            self.free_onion(at);
        }
    }

    /// Circuits that nobody is attached to are gone.
    pub(super) fn sweep(&mut self) {
        self.circuits.retain(|circuit| circuit.inward != End::Nobody || circuit.outward != End::Nobody);
    }

    /// END to the client, behind what waits for it, if there are keys, and room for a cell.
    pub(super) fn say_end(&mut self, at: usize) {
        let circuit = &mut self.circuits[at];
        if circuit.ending.is_some()
            || !matches!(circuit.inward, End::Link(..))
            || !matches!(circuit.role, Role::Passing { .. } | Role::Exiting(_))
        {
            return;
        }
        circuit.backward.stop();
        if self.reserved() < CELLS {
            self.circuits[at].backward.waiting.push_back(Said::Noise);
        }
    }

    pub(super) fn abort(&mut self, at: usize, reason: CloseReason) {
        self.say_end(at);
        self.refuse(at, reason);
    }

    pub(super) fn refuse(&mut self, at: usize, reason: CloseReason) {
        if let Role::Exiting(exit) = &mut self.circuits[at].role {
            exit.stage = Stage::Over;
            exit.finished = false;
        }
        self.wind_up(at, reason, None);
    }

    /// The conversation is over; with END for the client if `well` says how.
    pub(super) fn end_conversation(&mut self, at: usize, well: Option<bool>) {
        if well.is_some() {
            self.say_end(at);
        }
        let circuit = &mut self.circuits[at];
        if let Role::Exiting(exit) = &mut circuit.role {
            exit.stage = Stage::Over;
            exit.finished &= well == Some(true) && circuit.forward.waiting.is_empty();
        }
        circuit.forward.close();
        self.wind_up(at, CloseReason::Finished, None);
    }

    /// A peer says CLOSE.
    pub(super) fn closed(&mut self, at: usize, outward: bool, reason: CloseReason) {
        if outward && matches!(self.circuits[at].role, Role::Passing { answered: false }) {
            self.say_end(at);
        }
        let circuit = &mut self.circuits[at];
        if !outward
            && reason == CloseReason::Finished
            && !circuit.forward.waiting.is_empty()
            && let Role::Opening { closed } = &mut circuit.role
        {
            *closed = true;
            return;
        }
        self.wind_up(at, reason, Some(outward));
        self.sweep();
    }

    /// Circuits in the order in which the node looks at them.
    fn by_place(&self) -> Vec<usize> {
        let mut order: Vec<_> = (0..self.circuits.len()).collect();
        order.sort_by_key(|&at| self.circuits[at].name.map(ConversationId::index));
        order
    }

    pub(in super::super) fn link_down(&mut self, link: LinkId) {
        let Some(line) = self.lines.get(&link) else { return };
        let was_up = matches!(line.phase, Phase::Up(_));
        for at in self.by_place() {
            if matches!(self.circuits[at].inward, End::Link(on, _) if on == link) {
                self.wind_up(at, CloseReason::LinkLost, Some(false));
            }
            if matches!(self.circuits[at].outward, End::Link(on, _) if on == link) {
                self.say_end(at);
                // No next hop is left that could take the rest.
                let _ = self.next_hop_has_heard(at, false);
                let reason = if was_up { CloseReason::LinkLost } else { CloseReason::NextHopUnreachable };
                self.wind_up(at, reason, Some(true));
            }
        }
        self.sweep();
        for onion in self.onions.iter_mut().filter(|onion| onion.from == Some(link)) {
            onion.from = None;
        }
        self.lines.remove(&link);
    }

    /// Time has passed. If something is `due`, the node looks at its deadlines at this moment.
    pub(in super::super) fn time(&mut self, now: Instant, due: bool) {
        self.now = now;
        if !due {
            return;
        }
        for at in self.by_place() {
            let circuit = &mut self.circuits[at];
            if now < circuit.deadline {
                continue;
            }
            if circuit.ending.is_none() {
                self.abort(at, CloseReason::TimedOut);
                continue;
            }
            circuit.ending = Some(CloseReason::TimedOut);
            circuit.forward.close();
            circuit.backward.close();
            if let Role::Exiting(exit) = &mut circuit.role {
                exit.finished = false;
            }
            self.wind_up(at, CloseReason::TimedOut, None);
        }
        self.sweep();
    }
}
