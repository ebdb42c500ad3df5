//! Storms: small networks under random use, in which everything goes wrong that can. What makes a storm fail is the simulator's own
//! checks, which are always on (`sim`), and what is said here of how conversations end.
//!
//! A storm is drawn from its seed ([`Plan::draw`]), run ([`run`]), and when it fails made as small as it can be ([`shrink`]).

pub mod command;
pub mod plan;
pub mod shrink;
pub mod watch;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bulbil_core::wire::EndReason;

pub use self::plan::{Operation, Plan, Step};
use crate::sim::{Behaviour, Heard, Network, TalkIndex, run_lives};

/// Events in one storm beyond which something is taken to run in circles.
const EVENTS_MAX: u64 = 20_000_000;

/// What a storm came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// Stands for everything that has happened.
    pub trace: u64,
    /// Events.
    pub events: u64,
    /// Conversations that were opened.
    pub talks: usize,
    /// Of those, how many ended well.
    pub done: usize,
    /// Links that ended by somebody's fault.
    pub faulted: usize,
    /// Onions that were refused because they had come before, as far as those who refused them live.
    pub replayed: u64,
}

/// Storms from which on their sums are demanded.
const SUMS_FROM: usize = 200;

/// What many storms came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// Storms that have passed.
    pub storms: usize,
    /// Their events.
    pub events: u64,
    /// Their conversations.
    pub talks: usize,
    /// Of those, how many ended well.
    pub done: usize,
    /// Links that ended by somebody's fault.
    pub faulted: usize,
    /// Onions that were refused because they had come before.
    pub replayed: u64,
}

impl Sum {
    /// One more storm has passed.
    pub const fn add(&mut self, passed: &Passed) {
        self.storms += 1;
        self.events += passed.events;
        self.talks += passed.talks;
        self.done += passed.done;
        self.faulted += passed.faulted;
        self.replayed += passed.replayed;
    }

    /// Storms in which nothing goes on, or in which nobody turns, would show nothing. Of fewer than 200 nothing is demanded.
    ///
    /// # Errors
    /// What there is too little of.
    pub fn check(&self) -> Result<(), String> {
        if self.storms < SUMS_FROM {
            return Ok(());
        }
        if self.talks < self.storms || self.done <= self.talks / 10 {
            return Err(format!("hardly a conversation ends well: {self:?}"));
        }
        if self.faulted <= self.storms / 4 {
            return Err(format!("hardly a link ends by a fault: {self:?}"));
        }
        if self.replayed == 0 {
            return Err(format!("nobody sends an onion twice: {self:?}"));
        }
        Ok(())
    }
}

/// A storm under way.
struct Storm<'n, 'm, 'b> {
    network: &'n mut Network<'m, 'b>,
    /// Which conversations of the plan were opened, and as what.
    opened: HashMap<usize, TalkIndex>,
    released: HashSet<TalkIndex>,
    attached: HashSet<TalkIndex>,
}

/// Runs a storm to its end. Panics if anything is not as it should be; with `verbose`, says what happens.
#[must_use]
pub fn run(plan: &Plan, verbose: bool) -> Passed {
    run_lives(plan.seed, &plan.specs, plan::LIVES, |network| {
        network.set_verbose(verbose);
        network.set_capacity(1_000, plan.capacity);
        network.set_faults(&plan.faults);
        for &node in &plan.suspects {
            network.suspect(node, plan.seed ^ node as u64);
        }
        let mut storm = Storm { network, opened: HashMap::new(), released: HashSet::new(), attached: HashSet::new() };
        for (number, step) in plan.steps.iter().enumerate() {
            storm.wait(step.at);
            if verbose {
                eprintln!("{:?} #{number}: {:?}", storm.network.now(), step.operation);
            }
            storm.apply(&step.operation);
        }
        storm.end()
    })
}

impl Storm<'_, '_, '_> {
    fn wait(&mut self, until: Duration) {
        let span = until.saturating_sub(self.network.now());
        self.network.run_for(span);
        assert!(self.network.steps() < EVENTS_MAX, "runs in circles:\n{}", self.network.describe());
    }

    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Open { talk, client, path, wish, detached } => {
                if !self.network.is_up(*client) {
                    return;
                }
                // That a node is full is no failure.
                let Ok(name) = self.network.open_detached(*client, path, *wish) else { return };
                self.opened.insert(*talk, name);
                if !detached {
                    self.attach(name);
                }
            }
            Operation::Rise(node, state) => self.network.rise(*node, *state),
            Operation::Sleep(node, span) => self.network.sleep(*node, *span),
            Operation::Jump(node, millis) => self.network.jump(*node, *millis),
            Operation::Die(node, silently) => {
                let _it_may_have_no_life_left = self.network.die(*node, *silently);
            }
            Operation::Cut(one, other) => self.network.cut(*one, *other),
            Operation::CutAfter(one, other, bytes) => self.network.cut_after(*one, *other, *bytes),
            Operation::Rotate(node) => self.network.rotate(*node),
            Operation::Stop(node) => self.network.stop(*node),
            Operation::Clock(node, ahead) => self.network.set_clock(*node, *ahead),
            Operation::Turn(node, treason) => self.network.turn(*node, treason.clone()),
            Operation::Intrude(node, cells) => self.network.intrude(*node, *cells),
            Operation::Attach(talk)
            | Operation::Release(talk, _)
            | Operation::Listen(talk, _)
            | Operation::TargetListens(talk, _)
            | Operation::Say(talk, ..) => {
                if let Some(&talk) = self.opened.get(talk) {
                    self.apply_to(talk, operation);
                }
            }
        }
    }

    fn apply_to(&mut self, talk: TalkIndex, operation: &Operation) {
        match *operation {
            Operation::Attach(_) => self.attach(talk),
            Operation::Release(_, graceful) => {
                self.network.release(talk, graceful);
                self.released.insert(talk);
            }
            Operation::Listen(_, listening) => self.network.listen(talk, listening),
            Operation::TargetListens(_, listening) => self.network.target_listens(talk, listening),
            Operation::Say(_, len, last) if !self.network.talk(talk).wish().finish => {
                self.network.say(talk, len, last);
            }
            _ => {}
        }
    }

    fn attach(&mut self, talk: TalkIndex) {
        let alive = !self.network.talk(talk).is_lost() && !self.released.contains(&talk);
        if alive && self.attached.insert(talk) {
            self.network.attach_app(talk);
        }
    }

    /// Everybody listens, what has no end is let go of, and everything must come to its end.
    fn end(&mut self) -> Passed {
        for talk in 0..self.network.talks().len() {
            self.attach(talk);
            self.network.listen(talk, true);
            if self.network.talk(talk).wish().target != Behaviour::Deaf {
                self.network.target_listens(talk, true);
            }
            if self.network.talk(talk).wish().target == Behaviour::Source {
                self.network.release(talk, false);
                self.released.insert(talk);
            }
        }
        let network = &mut *self.network;
        network.settle();
        let mut done = 0;
        for (number, talk) in network.talks().iter().enumerate() {
            if self.released.contains(&number) || talk.is_lost() {
                continue;
            }
            assert!(talk.outcome().is_some(), "conversation {number} does not end:\n{}", network.describe());
            let well = talk.end().is_some_and(|(reason, _)| reason == EndReason::Done);
            done += usize::from(well);
            if !well || talk.is_doubtful() {
                continue;
            }
            // Everybody listens: what ended well has been heard, unless nobody is left to hear it, and it is whole.
            let ended = if talk.orphaned { talk.is_over() } else { talk.app.heard_end() == Some(Heard::End) };
            assert!(ended || talk.orphaned, "conversation {number} does not hear its end:\n{}", network.describe());
            assert!(!ended || talk.is_whole(), "conversation {number}:\n{}", network.describe());
        }
        network.settle_links();
        Passed {
            trace: network.trace_hash(),
            events: network.steps(),
            talks: network.talks().len(),
            done,
            faulted: network.faulted_links(),
            replayed: (0..plan::NODES).map(|node| network.counters(node).replayed).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_storms_in_which_too_little_happens_are_found() {
        let enough = Sum { storms: 200, events: 1, talks: 1_000, done: 101, faulted: 51, replayed: 1 };
        assert_eq!(enough.check(), Ok(()));
        let nothing = Sum { storms: 200, ..Sum::default() };
        let too_little = [
            nothing,
            Sum { talks: 199, ..enough },
            Sum { done: 100, ..enough },
            Sum { faulted: 50, ..enough },
            Sum { replayed: 0, ..enough },
        ];
        for sum in too_little {
            assert!(sum.check().is_err(), "{sum:?}");
        }
        assert_eq!(Sum { storms: 199, ..nothing }.check(), Ok(()), "a few storms may be calm");
    }
}
