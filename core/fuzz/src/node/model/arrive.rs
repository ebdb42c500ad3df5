//! What comes: cells from peers, whether they may come, and onions that have been opened.

use bulbil_core::circuit::LinkId;
use bulbil_core::node::{Node, Violation};
use bulbil_core::wire::cell::{CELL_LEN, Cell};
use bulbil_core::wire::handshake::Hello;
use bulbil_core::wire::{CloseReason, WireError};

use super::{
    CIRCUITS_PER_LINK, CREDIT, Circuit, End, Exit, Flow, Model, ONIONS_PER_LINK, PARTS, Peeled, Phase, Progress,
    REFUSALS, Role, Said, Stage, TAGS,
};

/// What becomes of a relay cell.
enum Fate {
    /// It waits, and says this to whoever takes it.
    Kept(Said),
    Used,
    /// The conversation is over.
    Ended,
    /// This node does not do that.
    Refused,
    /// An honest path does not send that.
    Garbage,
}

impl Model {
    /// What the node has to say to a cell.
    pub(in super::super) fn cell(
        &mut self,
        link: LinkId,
        mut bytes: [u8; CELL_LEN],
        said: Said,
    ) -> Result<(), Violation> {
        let Some(line) = self.lines.get_mut(&link) else { return Err(Violation::OutOfTurn) };
        if line.phase == Phase::Closing {
            return Ok(());
        }
        let up = matches!(line.phase, Phase::Up(_));
        match Cell::parse(&mut bytes)? {
            Cell::Padding if up => Ok(()),
            Cell::Hello(body) if line.phase == Phase::AwaitingHello => {
                line.phase = Phase::Up(Hello::parse(body)?.limits.credit.value());
                Ok(())
            }
            Cell::Open(id, body) if up && !line.outward => {
                self.open_part(link, id.value(), body.first_chunk().copied().unwrap_or_default())
            }
            Cell::Relay(id, _) if up => self.relay_cell(link, id.value(), said),
            Cell::Credit(entries) if up => {
                for (id, cells) in entries {
                    let Some(at) = self.known(link, id.value())? else { continue };
                    let outward = self.lines[&link].outward;
                    let credit = &mut self.circuits[at].leaving(outward).credit;
                    if *credit + u32::from(cells.get()) > 65_535 {
                        return Err(Violation::CreditOverflow);
                    }
                    *credit += u32::from(cells.get());
                }
                Ok(())
            }
            Cell::Close(id, reason) if up => {
                if let Some(at) = self.known(link, id.value())? {
                    self.closed(at, self.lines[&link].outward, reason);
                }
                Ok(())
            }
            _ => Err(Violation::OutOfTurn),
        }
    }

    /// The circuit that a cell is for; `None` if it is gone, an error if it never was.
    fn known(&self, link: LinkId, id: u32) -> Result<Option<usize>, Violation> {
        match self.at(link, id) {
            None if self.lines.get(&link).is_none_or(|line| id > line.last_id) => Err(Violation::UnknownCircuit),
            found => Ok(found),
        }
    }

    fn open_part(&mut self, link: LinkId, id: u32, label: [u8; 6]) -> Result<(), Violation> {
        let line = self.lines.get_mut(&link).ok_or(Violation::OutOfTurn)?;
        if let Some(number) = line.arriving {
            if id != line.last_id {
                return Err(Violation::OutOfTurn);
            }
            line.parts += 1;
            let whole = line.parts == PARTS;
            let progress = if whole { Progress::Waiting } else { Progress::Arriving(line.parts) };
            if whole {
                line.arriving = None;
                self.queue_onion(number, progress);
            } else if let Some(onion) = self.onion(number) {
                onion.progress = progress;
            }
            return Ok(());
        }
        if id <= line.last_id {
            line.parts += 1;
            // The rest of a refused onion, and no more than that.
            return if id == line.last_id && line.parts <= PARTS { Ok(()) } else { Err(Violation::OutOfTurn) };
        }
        (line.last_id, line.parts) = (id, 1);
        let credit = u32::from(line.credit());
        let onions = self.onions.iter().filter(|onion| onion.from == Some(link)).count();
        let full = self.circuits_at(link) >= CIRCUITS_PER_LINK || onions >= ONIONS_PER_LINK;
        let refusal = match self.stopping {
            true => Some(CloseReason::Shutdown),
            false => (full || !self.has_room_for_a_circuit()).then_some(CloseReason::Busy),
        };
        if let Some(reason) = refusal {
            let now = self.now;
            let line = self.lines.get_mut(&link).ok_or(Violation::OutOfTurn)?;
            line.refused = now;
            if line.refusals.len() == REFUSALS {
                return Err(Violation::Flood);
            }
            line.refusals.push_back((id, reason));
            return Ok(());
        }
        let onion = self.new_onion(Some(link), Progress::Arriving(1), label);
        if let Some(line) = self.lines.get_mut(&link) {
            line.arriving = Some(onion);
        }
        let promised = usize::from(CREDIT);
        self.circuits.push(Circuit {
            name: None,
            role: Role::Opening { closed: false },
            inward: End::Link(link, id),
            outward: End::Nobody,
            forward: Flow { promised, ..Flow::default() },
            backward: Flow { promised, credit, ..Flow::default() },
            ending: None,
            deadline: Default::default(),
            in_step: false,
            onion: Some(onion),
        });
        Ok(())
    }

    fn relay_cell(&mut self, link: LinkId, id: u32, said: Said) -> Result<(), Violation> {
        let Some(at) = self.known(link, id)? else { return Ok(()) };
        let (outward, arriving) = (self.lines[&link].outward, self.lines[&link].arriving);
        let circuit = &mut self.circuits[at];
        if let Role::Opening { closed } = circuit.role
            && (closed || (circuit.onion.is_some() && circuit.onion == arriving))
        {
            return Err(Violation::OutOfTurn);
        }
        if circuit.ending.is_some() {
            return Ok(());
        }
        if outward && circuit.onion.is_some() {
            return Err(Violation::OutOfTurn);
        }
        if circuit.entering(outward).promised == 0 {
            return Err(Violation::Overrun);
        }
        self.receive(at, outward, said);
        Ok(())
    }

    /// A cell comes for which its sender has room.
    fn receive(&mut self, at: usize, from_outward: bool, said: Said) {
        let fate = if from_outward { self.fate_backward(at) } else { self.fate_forward(at, said) };
        let circuit = &mut self.circuits[at];
        match fate {
            Fate::Kept(said) => circuit.entering(from_outward).push(said),
            Fate::Used => {
                let flow = circuit.entering(from_outward);
                (flow.promised, flow.due) = (flow.promised - 1, flow.due + 1);
            }
            Fate::Ended => self.end_conversation(at, None),
            Fate::Refused => self.refuse(at, CloseReason::RoleRefused),
            Fate::Garbage => self.abort(at, CloseReason::Protocol),
        }
    }

    fn fate_backward(&mut self, at: usize) -> Fate {
        match &mut self.circuits[at].role {
            Role::Passing { answered } => {
                *answered = true;
                Fate::Kept(Said::Noise)
            }
            // Nobody here knows the keys of the hops that the node's own circuits have.
            _ => Fate::Garbage,
        }
    }

    fn fate_forward(&mut self, at: usize, said: Said) -> Fate {
        let circuit = &mut self.circuits[at];
        let understood = circuit.in_step && said != Said::Noise;
        match &mut circuit.role {
            Role::Opening { .. } => Fate::Kept(said),
            Role::Passing { .. } if understood => {
                if said == Said::Drop {
                    Fate::Used
                } else {
                    Fate::Garbage
                }
            }
            Role::Passing { .. } => {
                circuit.in_step = false;
                Fate::Kept(Said::Noise)
            }
            Role::Exiting(exit) if understood => {
                let begun = !matches!(exit.stage, Stage::AwaitingBegin | Stage::Over);
                match said {
                    Said::Drop => Fate::Used,
                    Said::Begin { service, sign, once, first } if exit.stage == Stage::AwaitingBegin => {
                        (exit.stage, exit.service, exit.sign, exit.once) = (Stage::Asking, service, sign, once);
                        match first {
                            _ if !self.exit && !service => Fate::Refused,
                            0 => Fate::Used,
                            first => Fate::Kept(Said::Data(first)),
                        }
                    }
                    Said::Data(_) if begun && !exit.finished => Fate::Kept(said),
                    Said::Fin if begun && !exit.finished => {
                        exit.finished = true;
                        Fate::Used
                    }
                    Said::End if begun => Fate::Ended,
                    _ => Fate::Garbage,
                }
            }
            _ => Fate::Garbage,
        }
    }

    /// An onion comes back from the private-key operation; the node has heard of it, and says which link a next hop is on.
    pub(in super::super) fn peeled(&mut self, onion: u64, peeled: Option<Peeled>, node: &Node<'_>) {
        let at = self.circuits.iter().position(|circuit| circuit.onion == Some(onion) && circuit.ending.is_none());
        let Some(at) = at else {
            return self.onions.retain(|other| other.number != onion);
        };
        let closed = matches!(self.circuits[at].role, Role::Opening { closed: true });
        match self.accept(at, onion, peeled, node) {
            Err(reason) => {
                self.free_onion(at);
                self.circuits[at].role = Role::Refused;
                self.wind_up(at, reason, None);
            }
            Ok(()) => {
                self.early_cells(at);
                if closed {
                    self.wind_up(at, CloseReason::Finished, Some(false));
                }
            }
        }
        self.sweep();
    }

    fn accept(&mut self, at: usize, onion: u64, peeled: Option<Peeled>, node: &Node<'_>) -> Result<(), CloseReason> {
        let peeled = peeled.ok_or(CloseReason::OnionRejected)?;
        let seen = match self.epoch.checked_sub(peeled.epoch) {
            Some(0) => &mut self.seen[0],
            Some(1) => &mut self.seen[1],
            _ => return Err(CloseReason::OnionRejected),
        };
        if seen.contains(&peeled.tag) {
            return Err(CloseReason::OnionRejected);
        }
        if seen.len() == TAGS {
            return Err(CloseReason::Busy);
        }
        seen.insert(peeled.tag);
        let End::Link(link, id) = self.circuits[at].inward else { panic!("an onion that came from nowhere") };
        self.circuits[at].in_step = self.lines[&link].number.is_some_and(|number| (number, id) == peeled.keys);
        match peeled.next {
            None if self.exit || self.relay => {
                self.free_onion(at);
                self.circuits[at].outward = End::Outside;
                self.circuits[at].role = Role::Exiting(Exit {
                    stage: Stage::AwaitingBegin,
                    sign: false,
                    once: false,
                    service: false,
                    finished: false,
                    told: false,
                    answered: false,
                    taken: 0,
                });
            }
            Some(1) => return Err(CloseReason::OnionRejected),
            Some(to) if self.relay => {
                self.circuits[at].role = Role::Passing { answered: false };
                let Some((link, id)) = self.extension(to, node) else {
                    self.free_onion(at);
                    self.abort(at, CloseReason::Busy);
                    return Ok(());
                };
                self.circuits[at].outward = End::Link(link, id);
                self.circuits[at].forward.credit += u32::from(self.lines[&link].credit());
                self.queue_onion(onion, Progress::Leaving(0));
            }
            _ => return Err(CloseReason::RoleRefused),
        }
        Ok(())
    }

    /// What came behind the onion is taken out and received again, in order.
    fn early_cells(&mut self, at: usize) {
        for _ in 0..self.circuits[at].forward.waiting.len() {
            let circuit = &mut self.circuits[at];
            if circuit.ending.is_some() {
                return;
            }
            let Some(said) = circuit.forward.waiting.pop_front() else { return };
            circuit.forward.promised += 1;
            self.receive(at, false, said);
        }
    }
}

/// Two ways of being malformed are one to the model.
pub(in super::super) fn alike(model: Result<(), Violation>, node: Result<(), Violation>) -> bool {
    let class = |result: Result<(), Violation>| match result {
        Err(Violation::Malformed(_)) => Err(Violation::Malformed(WireError::Truncated)),
        other => other,
    };
    class(model) == class(node)
}
