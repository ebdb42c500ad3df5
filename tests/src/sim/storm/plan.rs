//! What is to happen in a storm, drawn from its seed before it begins: so that any part of it can be left out.

use std::time::Duration;

use bulbil_core::node::Patience;
use bulbil_core::wire::{EndReason, OnionKeyKind};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng};

use crate::sim::{Behaviour, Faults, Jobs, NodeIndex, Spec, State, Treason, Trick, Wish};

/// Nodes in a storm.
pub const NODES: usize = 6;
/// Times that a node may begin.
pub const LIVES: usize = 3;

/// Chance from a seed.
pub struct Dice(ChaCha8Rng);

impl Dice {
    /// The dice of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number less than `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// True once in so many times.
    pub fn one_in(&mut self, number: u64) -> bool {
        self.below(number) == 0
    }

    fn node(&mut self) -> NodeIndex {
        self.below(NODES as u64) as usize
    }

    fn millis(&mut self, bound: u64) -> Duration {
        Duration::from_millis(self.below(bound))
    }
}

/// Something that is done to the network. Conversations are numbered in the order of the whole plan.
#[derive(Debug, Clone)]
pub enum Operation {
    /// A conversation is opened; its application may come later.
    Open {
        /// Its number.
        talk: usize,
        /// Who opens it.
        client: NodeIndex,
        /// Through whom.
        path: Vec<NodeIndex>,
        /// What for.
        wish: Wish,
        /// When its application comes, if not at once: with the [`Operation::Attach`] of its number.
        detached: bool,
    },
    /// The conversation's application comes.
    Attach(usize),
    /// The client lets go of it, gracefully or not.
    Release(usize, bool),
    /// The application listens from now on, or does not.
    Listen(usize, bool),
    /// The target does.
    TargetListens(usize, bool),
    /// The application says something more, and finishes if that was the last.
    Say(usize, u64, bool),
    /// The links between two nodes are cut.
    Cut(NodeIndex, NodeIndex),
    /// They are cut when the first has written so many bytes more.
    CutAfter(NodeIndex, NodeIndex, usize),
    /// A node takes a new onion key.
    Rotate(NodeIndex),
    /// A node takes nothing new any more.
    Stop(NodeIndex),
    /// A node dies, silently or not.
    Die(NodeIndex, bool),
    /// It comes back.
    Rise(NodeIndex, State),
    /// A node's machine sleeps.
    Sleep(NodeIndex, Duration),
    /// The clock that a node's deadlines go by jumps by so many milliseconds.
    Jump(NodeIndex, i64),
    /// A node's calendar is set so many seconds wrong.
    Clock(NodeIndex, i64),
    /// A node turns.
    Turn(NodeIndex, Treason),
    /// A node that has turned says so many things that nobody has asked for.
    Intrude(NodeIndex, usize),
}

/// An operation and its time.
#[derive(Debug, Clone)]
pub struct Step {
    /// Since the beginning.
    pub at: Duration,
    /// What is done.
    pub operation: Operation,
}

/// A storm that is to be.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where its chance comes from.
    pub seed: u64,
    /// The nodes.
    pub specs: Vec<Spec>,
    /// Bytes that links hold, at most.
    pub capacity: u64,
    /// What goes wrong all the time.
    pub faults: Faults,
    /// Who may turn.
    pub suspects: Vec<NodeIndex>,
    /// What is done, in order of time.
    pub steps: Vec<Step>,
}

/// Nodes with room for what is asked of them.
fn roomy(specs: Vec<Spec>) -> Vec<Spec> {
    let roomy = |spec: Spec| Spec {
        relay: true,
        exit: true,
        links: 16,
        circuits: 64,
        cells: 64 * 64,
        onions: 24,
        origins: 32,
        replay: 256,
        circuits_per_link: 32,
        onions_per_link: 16,
        ..spec
    };
    specs.into_iter().map(roomy).collect()
}

/// Nodes of every size, most of them too small for what is asked of them.
#[must_use]
pub fn specs(dice: &mut Dice) -> Vec<Spec> {
    let patience = Patience {
        handshake: Duration::from_secs(4),
        opening: Duration::from_secs(6),
        idle: Duration::from_secs(20),
        draining: Duration::from_secs(8),
        link_idle: Duration::from_secs(10),
    };
    (0..NODES)
        .map(|_| {
            let credit = 8 + dice.below(20) as u16;
            Spec {
                kind: if dice.one_in(8) { OnionKeyKind::Rsa2048 } else { OnionKeyKind::XWing },
                relay: !dice.one_in(8),
                exit: !dice.one_in(4),
                jobs: dice.pick(&[
                    Jobs::InPlace,
                    Jobs::Elsewhere(Duration::from_millis(1)),
                    Jobs::Elsewhere(Duration::from_secs(2)),
                ]),
                links: 2 + dice.below(10) as usize,
                circuits: 2 + dice.below(14) as usize,
                cells: usize::from(credit) * (2 + dice.below(30) as usize),
                onions: 1 + dice.below(8) as usize,
                origins: 1 + dice.below(8) as usize,
                replay: 8 + dice.below(100) as usize,
                credit,
                window_max: dice.below(100) as u16,
                record_cells: dice.pick(&[1, 2, 12, 127]),
                circuits_per_link: 1 + dice.below(12) as u32,
                onions_per_link: 1 + dice.below(4) as u16,
                patience,
                ..Spec::ALL
            }
        })
        .collect()
}

/// Any behaviour that a target may have.
#[must_use]
pub fn behaviour(dice: &mut Dice) -> Behaviour {
    match dice.below(12) {
        0 => Behaviour::Sink,
        1 => Behaviour::Source,
        2 => Behaviour::Deaf,
        3 => Behaviour::Serve(dice.below(30_000)),
        4 => Behaviour::Answer(dice.below(30_000)),
        5 => Behaviour::Ticker { every: Duration::from_millis(400), size: 700, count: 5 },
        6 => Behaviour::Reset(dice.below(5_000)),
        7 => Behaviour::Unreached(dice.pick(&[EndReason::Refused, EndReason::NotResolved, EndReason::Forbidden])),
        8 => Behaviour::Silent,
        _ => Behaviour::Echo,
    }
}

/// Any conversation: client, path and what is wanted of it.
#[must_use]
pub fn conversation(dice: &mut Dice) -> (NodeIndex, Vec<NodeIndex>, Wish) {
    let client = dice.node();
    let mut others: Vec<usize> = (0..NODES).filter(|&node| node != client).collect();
    let path = (0..=dice.below(4)).map(|_| others.swap_remove(dice.below(others.len() as u64) as usize)).collect();
    let wish = Wish {
        service: false,
        first: dice.below(400) as usize,
        finish: !dice.one_in(3),
        once: dice.one_in(4),
        sign: dice.one_in(20),
        outdated: dice.one_in(20),
        listens: !dice.one_in(6),
        ..Wish::new(behaviour(dice), dice.below(20_000))
    };
    (client, path, wish)
}

fn faults(dice: &mut Dice) -> Faults {
    if dice.one_in(3) {
        return Faults { splitting: true, trickle: dice.pick(&[0, 5]), ..Faults::NONE };
    }
    let rarely = |dice: &mut Dice, one_in, span: Duration| dice.one_in(one_in).then_some(span);
    let longest = Duration::from_millis(dice.pick(&[100, 2_000, 12_000]));
    let link_life = Duration::from_millis(500 + dice.below(20_000));
    Faults {
        splitting: !dice.one_in(8),
        trickle: dice.pick(&[0, 0, 0, 2, 10, 40]),
        connects_lost: dice.pick(&[0, 0, 100, 2_000]),
        link_life: rarely(dice, 4, link_life),
        jobs: rarely(dice, 2, longest),
        connects: rarely(dice, 3, longest),
        targets: rarely(dice, 3, longest),
    }
}

fn treason(dice: &mut Dice) -> Treason {
    let count = dice.pick(&[1, 1, 2, 5]);
    Treason { tricks: (0..count).map(|_| dice.pick(&Trick::ALL)).collect(), one_in: dice.pick(&[1, 4, 20, 80]) }
}

impl Plan {
    /// The storm of this seed.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let dice = &mut dice;
        let specs = if dice.one_in(2) { roomy(specs(dice)) } else { specs(dice) };
        let capacity = 1_000 + dice.below(60_000);
        let faults = faults(dice);
        let traitors = dice.pick(&[0, 0, 1, 1, 2]);
        let suspects: Vec<_> = (0..traitors).map(|_| dice.node()).collect();
        let (mut at, mut talks, mut steps) = (Duration::ZERO, 0, Vec::new());
        let mut push = |at, operation| steps.push(Step { at, operation });
        for &node in &suspects {
            let when = Duration::from_micros(dice.below(20_000_000));
            push(when, Operation::Turn(node, treason(dice)));
            for _ in 0..dice.below(8) {
                let later = when + dice.millis(10_000);
                push(later, Operation::Intrude(node, 1 + dice.below(4) as usize));
            }
        }
        // Of so many operations, twenty are not merely another conversation.
        let calm = dice.pick(&[20, 40, 120]);
        for _ in 0..dice.pick(&[30, 60, 90]) {
            let some = |dice: &mut Dice| dice.below(talks as u64) as usize;
            let operation = match dice.below(calm) {
                4 => Operation::Cut(dice.node(), dice.node()),
                5 if talks > 0 => Operation::Release(some(dice), dice.one_in(2)),
                6 if talks > 0 => Operation::Listen(some(dice), !dice.one_in(3)),
                7 if talks > 0 => Operation::TargetListens(some(dice), !dice.one_in(3)),
                8 if dice.one_in(2) => Operation::Rotate(dice.node()),
                9 => Operation::CutAfter(dice.node(), dice.node(), dice.below(9_000) as usize),
                10 if dice.one_in(2) => {
                    let (node, silently) = (dice.node(), dice.one_in(3));
                    let longest = dice.pick(&[500, 20_000]);
                    let back = at + dice.millis(longest);
                    push(back, Operation::Rise(node, dice.pick(&[State::Fresh, State::Kept, State::Older])));
                    Operation::Die(node, silently)
                }
                11 if dice.one_in(2) => {
                    let span = dice.pick(&[3, 90, 900, 7_200, 3 * 86_400, 40 * 86_400]);
                    let ahead = dice.below(2 * span + 1).cast_signed() - span.cast_signed();
                    Operation::Clock(dice.node(), ahead)
                }
                14 if dice.one_in(2) => {
                    let longest = dice.pick(&[300, 5_000, 5_000, 90_000]);
                    Operation::Sleep(dice.node(), dice.millis(longest))
                }
                15 if dice.one_in(2) => {
                    let span = dice.pick(&[400, 3_000, 30_000, 90_000]);
                    Operation::Jump(dice.node(), dice.below(2 * span + 1).cast_signed() - span.cast_signed())
                }
                12 if dice.one_in(40) => Operation::Stop(dice.node()),
                13 if talks > 0 => Operation::Say(some(dice), dice.below(2_000), dice.one_in(3)),
                _ => {
                    let (client, path, wish) = conversation(dice);
                    let detached = dice.one_in(8);
                    let talk = talks;
                    talks += 1;
                    if detached {
                        push(at + dice.millis(5_000), Operation::Attach(talk));
                    }
                    Operation::Open { talk, client, path, wish, detached }
                }
            };
            push(at, operation);
            let gap = if dice.one_in(12) { 5_000_000 } else { 250_000 };
            at += Duration::from_micros(dice.below(gap));
        }
        steps.sort_by_key(|step| step.at);
        Self { seed, specs, capacity, faults, suspects, steps }
    }
}
