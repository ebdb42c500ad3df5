//! Three nodes and the wires between them, in every order in which anything can happen.
//!
//! What a node does depends on nothing but its own past, so each step of each node is taken once, by the real code, and remembered; the
//! network's states are made of the nodes' states and of the records on the wires.

use std::collections::HashMap;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::actor::{self, Books, Burden, Fault, Input, Outside, Place, Record, RecordId, SIDES};
use super::{Case, Upset};
use crate::circuit::table::Side;
use crate::crypto::cgo::HopIndex;
use crate::wire::{CloseReason, EndReason};

/// A node's state.
struct Local {
    /// How it was first come by: the state before, and what happened then.
    past: Option<(u32, Input)>,
    inputs: Vec<Input>,
    outside: Outside,
    books: [Option<Books>; 2],
    clean: bool,
}

/// All states of one node that were met.
#[derive(Default)]
struct Actors {
    locals: Vec<Local>,
    known: HashMap<Vec<u8>, u32>,
    steps: HashMap<(u32, Input), (u32, Option<RecordId>)>,
}

/// The network: nodes, wires (client to relay and back, relay to exit and back), and what has gone wrong.
#[derive(Clone, Copy, Default)]
struct State {
    nodes: [u32; 3],
    wires: [Wire; 4],
    /// What may go wrong has gone wrong.
    upset: bool,
    /// A link is cut.
    cut: bool,
    /// Its near and its far end know.
    down: [bool; 2],
}

/// Something that happens to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Node(Place, Input),
    Cut,
    /// The first record on this wire, one of credit, is lost, or comes twice.
    Lose(usize),
    Double(usize),
}

/// What was found wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// Within one node.
    Node(Place, Fault),
    /// What the sender may send and what the receiver has room for differ.
    Books(String),
    /// Nothing can happen any more, and not all is done.
    Stuck(String),
    /// Something can go on for ever.
    Endless,
}

/// What was found wrong, and a shortest way there.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) wrong: Wrong,
    #[expect(dead_code, reason = "for whoever reads the failure")]
    pub(super) way: Vec<String>,
}

/// What was looked at.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    /// States of the network, and steps between them.
    pub(super) states: usize,
    pub(super) steps: usize,
    /// Steps of single nodes that were taken by the real code.
    pub(super) node_steps: usize,
    /// Ways from the beginning to an end.
    pub(super) runs: f64,
    /// States in which nothing can happen any more.
    pub(super) ends: usize,
    /// States in which only a deadline helps.
    pub(super) stalls: usize,
}

/// The wire that leaves a node at a side; the one that comes in there is its pair.
const fn wire_out(place: Place, side: Side) -> usize {
    match (place, side) {
        (Place::Client, _) => 0,
        (Place::Relay, Side::Inward) => 1,
        (Place::Relay, Side::Outward) => 2,
        (Place::Exit, _) => 3,
    }
}

pub(super) struct Network<'a> {
    case: &'a Case,
    actors: [Actors; 3],
    records: Vec<Record>,
    burdens: Vec<Burden>,
    record_ids: HashMap<Record, RecordId>,
}

impl<'a> Network<'a> {
    /// Goes every way that `case` allows.
    pub(super) fn explore(case: &'a Case) -> Result<Tally, Failure> {
        let mut network = Self {
            case,
            actors: core::array::from_fn(|_| Actors::default()),
            records: Vec::new(),
            burdens: Vec::new(),
            record_ids: HashMap::new(),
        };
        network.search()
    }

    fn search(&mut self) -> Result<Tally, Failure> {
        let plain = |wrong| Failure { wrong, way: Vec::new() };
        let mut nodes = [0; 3];
        for (place, node) in Place::ALL.into_iter().zip(&mut nodes) {
            (*node, _) = self.meet(place, None).map_err(|fault| plain(Wrong::Node(place, fault)))?;
        }
        let mut first = State { nodes, ..State::default() };
        if !self.case.opening {
            first = self.opened(first).map_err(plain)?;
        }
        let mut states = States::default();
        states.insert(&first);
        let mut came_from: Vec<Option<(u32, Step)>> = vec![None];
        // Where the steps of each state end in `targets`.
        let (mut ends, mut targets) = (Vec::new(), Vec::new());
        let mut tally = Tally::default();
        let mut at = 0;
        while at < states.len() {
            let state = states.get(at);
            let way = |wrong, last: Option<Step>| Failure { wrong, way: way_to(&came_from, at, last) };
            self.check_books(&state).map_err(|sentence| way(Wrong::Books(sentence), None))?;
            let mut steps = self.steps(&state);
            if steps.is_empty() {
                steps = self.deadlines(&state);
                tally.stalls += usize::from(!steps.is_empty());
            }
            if steps.is_empty() {
                self.check_end(&state).map_err(|sentence| way(Wrong::Stuck(sentence), None))?;
                tally.ends += 1;
            }
            let mut next = Vec::new();
            for step in steps {
                let after = self.take(&state, step).map_err(|wrong| way(wrong, Some(step)))?;
                next.push((step, after));
            }
            for (step, after) in next {
                targets.push(states.insert(&after));
                if states.len() > came_from.len() {
                    came_from.push(Some((at as u32, step)));
                }
            }
            ends.push(targets.len());
            at += 1;
        }
        tally.states = states.len();
        tally.steps = targets.len();
        tally.node_steps = self.actors.iter().map(|actors| actors.steps.len()).sum();
        tally.runs = runs(&ends, &targets).ok_or_else(|| plain(Wrong::Endless))?;
        Ok(tally)
    }

    /// The state in which the circuit is open, and nothing was said yet.
    fn opened(&mut self, mut state: State) -> Result<State, Wrong> {
        let of_network = |step: &Step| match step {
            Step::Node(_, input) => !matches!(input, Input::Write | Input::Finish | Input::LetGo | Input::Oversleep),
            _ => false,
        };
        while let Some(step) = self.steps(&state).into_iter().find(of_network) {
            state = self.take(&state, step)?;
        }
        Ok(state)
    }

    /// The state of a node after one more input, and what that sent.
    fn meet(&mut self, place: Place, past: Option<(u32, Input)>) -> Result<(u32, Option<RecordId>), Fault> {
        let actors = &mut self.actors[place as usize];
        if let Some(known) = past.and_then(|past| actors.steps.get(&past)) {
            return Ok(*known);
        }
        let mut inputs = Vec::new();
        let mut earlier = past;
        while let Some((id, input)) = earlier {
            inputs.push(input);
            earlier = actors.locals[id as usize].past;
        }
        inputs.reverse();
        let seen = actor::run(place, self.case, &inputs, &self.records)?;
        let actor::Seen { digest, record, inputs, outside, books, clean } = seen;
        let id = *actors.known.entry(digest).or_insert_with(|| {
            actors.locals.push(Local { past, inputs, outside, books, clean });
            actors.locals.len() as u32 - 1
        });
        let record = record.map(|record| {
            *self.record_ids.entry(record).or_insert_with_key(|record| {
                self.burdens.push(actor::burden(record));
                self.records.push(record.clone());
                self.records.len() as u32 - 1
            })
        });
        if let Some(past) = past {
            actors.steps.insert(past, (id, record));
        }
        Ok((id, record))
    }

    fn local(&self, state: &State, place: Place) -> &Local {
        &self.actors[place as usize].locals[state.nodes[place as usize] as usize]
    }

    /// Whether the link at this side of a node is the one that is cut, and which of its ends this is.
    fn cut_end(&self, place: Place, side: Side) -> Option<usize> {
        let Upset::Cut(near) = self.case.upset else { return None };
        match side {
            Side::Outward => (place == near).then_some(0),
            Side::Inward => (place as usize == near as usize + 1).then_some(1),
        }
    }

    fn is_down(&self, state: &State, place: Place, side: Side) -> bool {
        self.cut_end(place, side).is_some_and(|end| state.down[end])
    }

    fn steps(&self, state: &State) -> Vec<Step> {
        let mut steps = Vec::new();
        for place in Place::ALL {
            let local = self.local(state, place);
            let upsetting = |input: &Input| matches!(input, Input::LetGo | Input::Oversleep);
            let may = local.inputs.iter().filter(|input| !state.upset || !upsetting(input));
            steps.extend(may.map(|&input| Step::Node(place, input)));
            for side in SIDES.into_iter().filter(|&side| place.has(side)) {
                if let Some(&front) = state.wires[wire_out(place, side) ^ 1].ids().first()
                    && !self.is_down(state, place, side)
                {
                    steps.push(Step::Node(place, Input::Deliver(side, front)));
                }
                if state.cut && self.cut_end(place, side).is_some() && !self.is_down(state, place, side) {
                    steps.push(Step::Node(place, Input::Down(side)));
                }
            }
        }
        if !state.upset {
            steps.extend(matches!(self.case.upset, Upset::Cut(_)).then_some(Step::Cut));
            for (at, wire) in state.wires.iter().enumerate() {
                if wire.ids().first().is_some_and(|&front| self.burdens[front as usize].credit > 0) {
                    steps.extend((self.case.upset == Upset::LoseCredit).then_some(Step::Lose(at)));
                    steps.extend((self.case.upset == Upset::DoubleCredit).then_some(Step::Double(at)));
                }
            }
        }
        steps
    }

    /// The deadlines of closing circuits. Between neighbours that are both ending a circuit nothing moves any more, so each may wait for
    /// credit from the other one. That costs room until then, and nobody else waits.
    fn deadlines(&self, state: &State) -> Vec<Step> {
        let told = Place::ALL.into_iter().all(|place| !self.local(state, place).outside.is_waiting());
        let held = Place::ALL.into_iter().filter(|&place| !self.local(state, place).clean);
        held.filter(|_| state.upset && told).map(|place| Step::Node(place, Input::Expire)).collect()
    }

    fn take(&mut self, state: &State, step: Step) -> Result<State, Wrong> {
        let mut after = *state;
        match step {
            Step::Cut => (after.upset, after.cut) = (true, true),
            Step::Lose(wire) => {
                after.upset = true;
                after.wires[wire].pop();
            }
            Step::Double(wire) => {
                after.upset = true;
                let mut all = after.wires[wire].ids().to_vec();
                all.insert(0, all[0]);
                after.wires[wire] = Wire::default();
                all.into_iter().for_each(|id| after.wires[wire].push(id));
            }
            Step::Node(place, input) => {
                let past = Some((state.nodes[place as usize], input));
                let (node, record) = self.meet(place, past).map_err(|fault| Wrong::Node(place, fault))?;
                after.nodes[place as usize] = node;
                match input {
                    Input::Deliver(side, _) => after.wires[wire_out(place, side) ^ 1].pop(),
                    Input::Send(side) => {
                        let cut = state.cut && self.cut_end(place, side).is_some();
                        if let Some(record) = record.filter(|_| !cut) {
                            after.wires[wire_out(place, side)].push(record);
                        }
                    }
                    Input::Down(side) => {
                        after.wires[wire_out(place, side) ^ 1] = Wire::default();
                        if let Some(end) = self.cut_end(place, side) {
                            after.down[end] = true;
                        }
                    }
                    Input::LetGo | Input::Oversleep => after.upset = true,
                    _ => {}
                }
            }
        }
        Ok(after)
    }

    /// Between two nodes that both have the circuit, neither of which is ending it: the receiver has room for exactly what the sender may
    /// send, what is on its way, and what it was promised on the way back.
    fn check_books(&self, state: &State) -> Result<(), String> {
        if !self.case.compare_books || state.cut {
            return Ok(());
        }
        for (near, far) in [(Place::Client, Place::Relay), (Place::Relay, Place::Exit)] {
            let wires = [wire_out(near, Side::Outward), wire_out(far, Side::Inward)];
            let burdens = wires.map(|wire| state.wires[wire].ids().iter().map(|&id| self.burdens[id as usize]));
            if burdens.clone().into_iter().flatten().any(|burden| burden.open || burden.close) {
                continue;
            }
            let near_books = self.local(state, near).books[Side::Outward as usize];
            let far_books = self.local(state, far).books[Side::Inward as usize];
            let (Some(near_books), Some(far_books)) = (near_books, far_books) else { continue };
            let [out, back] = burdens;
            for (sender, receiver, there, here) in
                [(near_books, far_books, out.clone(), back.clone()), (far_books, near_books, back, out)]
            {
                let known = sender.credit
                    + there.map(|burden| burden.relay).sum::<u32>()
                    + here.map(|burden| burden.credit).sum::<u32>();
                if known != u32::from(receiver.promised) {
                    return Err(format!("{near:?} and {far:?}: {known} to come, room for {}", receiver.promised));
                }
            }
        }
        Ok(())
    }

    /// Nothing can happen any more: all must be done.
    fn check_end(&self, state: &State) -> Result<(), String> {
        for place in Place::ALL {
            let local = self.local(state, place);
            if !local.clean {
                return Err(format!("something is left at the {place:?}"));
            }
            if local.outside.is_waiting() {
                return Err(format!("the {place:?}'s conversation has not heard its end: {:?}", local.outside));
            }
        }
        if state.upset {
            return self.check_upset_end(state);
        }
        for place in [Place::Client, Place::Exit] {
            let local = self.local(state, place);
            let outside = &local.outside;
            let said = outside.said == self.case.said_by(place) && outside.finish_said;
            let heard = outside.heard == self.case.said_to(place) && outside.finish_heard;
            // With ONCE the target's end is the conversation's, whatever the client may still want to say.
            let whole = match place {
                Place::Exit => said && (heard || self.case.once),
                _ => heard && (said || self.case.once),
            };
            let end = outside.over.and_then(|outcome| outcome.end).map(|(reason, _)| reason);
            let well = if place == Place::Exit { outside.over.is_some() } else { end == Some(EndReason::Done) };
            if !(whole && well) {
                return Err(format!("not all was said and heard at the {place:?}: {outside:?}"));
            }
        }
        Ok(())
    }

    /// The same when something has gone wrong: what was to be heard all the same was heard, and what became of the conversation was told.
    fn check_upset_end(&self, state: &State) -> Result<(), String> {
        let [client, exit] = [Place::Client, Place::Exit].map(|place| &self.local(state, place).outside);
        let wrong = |what: &str| Err(format!("{what}: client {client:?}, exit {exit:?}"));
        for (hears, speaks) in [(client, exit), (exit, client)] {
            if hears.heard > speaks.said || hears.finish_heard && !(speaks.finish_said && hears.heard == speaks.said) {
                return wrong("heard is what was not said");
            }
        }
        // Who lets go asks for no word; the exit has a conversation only once the onion and BEGIN have come.
        let upset = self.case.upset;
        let told = |outside: &Outside, leaves| leaves || !outside.is_known() || outside.over.is_some();
        if !told(client, matches!(upset, Upset::Cancel | Upset::Leave)) || !told(exit, upset == Upset::Reset) {
            return wrong("somebody was not told");
        }
        let closed = |outside: &Outside| outside.over.and_then(|outcome| outcome.close);
        let finished = !exit.is_known() || closed(exit) == Some(CloseReason::Finished);
        // Nobody has to connect to a target to which nothing was said, and then it hears no end either.
        let untouched = self.case.opening && client.said == 0 && !exit.finish_heard;
        let whole = exit.heard == client.said && (exit.finish_heard == client.finish_said || untouched);
        match upset {
            Upset::Leave if !whole => wrong("not all that was said before leaving was delivered"),
            Upset::Leave | Upset::Cancel if !finished => wrong("the exit was told otherwise"),
            Upset::Reset => {
                let end = client.over.and_then(|outcome| outcome.end);
                let over_before = whole && client.finish_said && exit.finish_said;
                let reason = end.filter(|&(_, hop)| HopIndex::new(1) == Some(hop)).map(|(reason, _)| reason);
                if reason != Some(EndReason::Reset) && !(over_before && reason == Some(EndReason::Done)) {
                    return wrong("the client was not told of the reset");
                }
                // What waits for a client is delivered, however it ends.
                if client.heard != exit.said || client.finish_heard != exit.finish_said {
                    return wrong("not all that was said before the reset was delivered");
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn way_to(came_from: &[Option<(u32, Step)>], mut at: usize, last: Option<Step>) -> Vec<String> {
    let mut way: Vec<_> = last.map(|step| format!("{step:?}")).into_iter().collect();
    while let Some((before, step)) = came_from[at] {
        way.push(format!("{step:?}"));
        at = before as usize;
    }
    way.reverse();
    way
}

/// Records on their way, the next to arrive first.
#[derive(Clone, Copy, Default)]
struct Wire {
    len: u8,
    ids: [RecordId; 8],
}

impl Wire {
    fn ids(&self) -> &[RecordId] {
        &self.ids[..usize::from(self.len)]
    }

    fn push(&mut self, id: RecordId) {
        self.ids[usize::from(self.len)] = id;
        self.len += 1;
    }

    fn pop(&mut self) {
        self.ids.rotate_left(1);
        self.len -= 1;
        self.ids[usize::from(self.len)] = 0;
    }
}

/// A set of states that numbers them: many millions fit into memory.
#[derive(Default)]
struct States {
    /// All states, one behind the other, and where each ends.
    words: Vec<u16>,
    ends: Vec<usize>,
    /// Numbers plus one, where the hash of the state says or in a place behind that.
    table: Vec<u32>,
}

impl States {
    const fn len(&self) -> usize {
        self.ends.len()
    }

    fn words(&self, at: usize) -> &[u16] {
        &self.words[at.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[at]]
    }

    fn get(&self, at: usize) -> State {
        let mut words = self.words(at).iter().map(|&word| u32::from(word));
        let mut next = || words.next().unwrap();
        let nodes = core::array::from_fn(|_| next());
        let bits = next();
        let mut state = State { nodes, upset: bits & 1 != 0, cut: bits & 2 != 0, ..State::default() };
        state.down = [bits & 4 != 0, bits & 8 != 0];
        for (at, wire) in state.wires.iter_mut().enumerate() {
            (0..bits >> (4 + 3 * at) & 7).for_each(|_| wire.push(next()));
        }
        state
    }

    /// The state's number, new or old.
    fn insert(&mut self, state: &State) -> u32 {
        let mut words = [0u16; 4 + 4 * 8];
        let mut len = 4;
        let mut bits = 0;
        for (bit, set) in [state.upset, state.cut, state.down[0], state.down[1]].into_iter().enumerate() {
            bits |= u16::from(set) << bit;
        }
        for (at, wire) in state.wires.iter().enumerate() {
            assert!(wire.len < 8);
            bits |= u16::from(wire.len) << (4 + 3 * at);
            for &id in wire.ids() {
                words[len] = id.try_into().expect("fewer than 65,536 records");
                len += 1;
            }
        }
        for (word, node) in words.iter_mut().zip(state.nodes) {
            *word = node.try_into().expect("fewer than 65,536 states of a node");
        }
        words[3] = bits;
        let words = &words[..len];
        if (self.len() + 1) * 2 > self.table.len() {
            self.table = vec![0; (self.table.len() * 2).max(1 << 16)];
            for at in 0..self.len() {
                let place = self.place_of(self.words(at));
                self.table[place] = at as u32 + 1;
            }
        }
        let place = self.place_of(words);
        if self.table[place] == 0 {
            self.words.extend_from_slice(words);
            self.ends.push(self.words.len());
            self.table[place] = self.len() as u32;
        }
        self.table[place] - 1
    }

    /// Where in the table the state is, or would be.
    fn place_of(&self, words: &[u16]) -> usize {
        let hash = |hash: u64, &word: &u16| (hash.rotate_left(5) ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut place = (words.iter().fold(0, hash) >> 20) as usize & (self.table.len() - 1);
        while let Some(at) = self.table[place].checked_sub(1)
            && self.words(at as usize) != words
        {
            place = (place + 1) & (self.table.len() - 1);
        }
        place
    }
}

/// How many ways lead from the first state to one without steps; `None` if one never does.
///
/// The steps of state `i` lead to `targets[ends[i - 1]..ends[i]]`.
fn runs(ends: &[usize], targets: &[u32]) -> Option<f64> {
    let steps = |at: usize| &targets[at.checked_sub(1).map_or(0, |before| ends[before])..ends[at]];
    let mut before = vec![0u32; ends.len()];
    targets.iter().for_each(|&target| before[target as usize] += 1);
    let mut ways = vec![0.0; ends.len()];
    ways[0] = 1.0;
    let mut ready: Vec<usize> = (0..ends.len()).filter(|&at| before[at] == 0).collect();
    let (mut done, mut runs) = (0, 0.0);
    while let Some(at) = ready.pop() {
        done += 1;
        if steps(at).is_empty() {
            runs += ways[at];
        }
        for &target in steps(at) {
            let target = target as usize;
            ways[target] += ways[at];
            before[target] -= 1;
            if before[target] == 0 {
                ready.push(target);
            }
        }
    }
    (done == ends.len()).then_some(runs)
}
