//! A simulated node's memory, limits and driver.

use std::time::Duration;

use bulbil_core::circuit::index::{IndexSlot, index_len};
use bulbil_core::circuit::pool::PoolSlot;
use bulbil_core::driver::{Driver, LINK_BUFFER_MIN, LinkPlace, OutsidePlace, Places};
use bulbil_core::link::record::record_len;
use bulbil_core::node::{Config, Memory, Node, NodeCircuit, OriginSlot, Patience, PortSlot};
use bulbil_core::relay::onions::OnionSlot;
use bulbil_core::time::Instant;
use bulbil_core::wire::handshake::{InitialCredit, LinkLimits, RecordCells};
use bulbil_core::wire::{NodeId, OnionKeyKind};
use rand_chacha::ChaCha20Rng;

use super::pipes::StreamId;
use super::shell::{Jobs, SimShell};

/// What a node is to be.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// It has an identity and answers links; otherwise it is only a client.
    pub answers: bool,
    /// Its onion key.
    pub kind: OnionKeyKind,
    /// It passes circuits on.
    pub relay: bool,
    /// It connects to targets.
    pub exit: bool,
    /// Where it opens onions and signs.
    pub jobs: Jobs,
    /// Places for links.
    pub links: usize,
    /// Places for circuits.
    pub circuits: usize,
    /// Places for cells.
    pub cells: usize,
    /// Places for onions.
    pub onions: usize,
    /// Places for circuits of its own.
    pub origins: usize,
    /// Replay tags a key; a set is full at three quarters.
    pub replay: usize,
    /// The room that a circuit has from the beginning, in cells.
    pub credit: u16,
    /// The room that a direction of a circuit may grow to.
    pub window_max: u16,
    /// Cells in one record.
    pub record_cells: u16,
    /// Circuits of one connector.
    pub circuits_per_link: u32,
    /// Onions of one connector.
    pub onions_per_link: u16,
    /// How long it waits.
    pub patience: Patience,
}

impl Spec {
    /// A relay of middling size.
    pub const RELAY: Self = Self {
        answers: true,
        kind: OnionKeyKind::XWing,
        relay: true,
        exit: false,
        jobs: Jobs::Elsewhere(Duration::from_millis(5)),
        links: 8,
        circuits: 32,
        cells: 2048,
        onions: 8,
        origins: 0,
        replay: 256,
        credit: 16,
        window_max: 64,
        record_cells: 16,
        circuits_per_link: 32,
        onions_per_link: 8,
        patience: Patience::DEFAULT,
    };

    /// An exit, which is also a relay.
    pub const EXIT: Self = Self { exit: true, ..Self::RELAY };

    /// A client that answers no links.
    pub const CLIENT: Self = Self { answers: false, relay: false, origins: 32, replay: 0, ..Self::RELAY };

    /// All roles at once.
    pub const ALL: Self = Self { exit: true, origins: 32, ..Self::RELAY };

    pub(crate) fn config(&self, node: NodeId) -> Config {
        Config {
            half_open_links: 64,
            node,
            relay: self.relay,
            exit: self.exit,
            limits: LinkLimits {
                record_cells: RecordCells::new(self.record_cells).expect("1 to 127"),
                credit: InitialCredit::new(self.credit).expect("1 to 1024"),
            },
            window_max: self.window_max,
            circuits_per_link: self.circuits_per_link,
            onions_per_link: self.onions_per_link,
            patience: self.patience,
        }
    }
}

fn filled<T>(len: usize, make: impl FnMut() -> T) -> Vec<T> {
    std::iter::repeat_with(make).take(len).collect()
}

/// A node's tables and buffers.
pub(crate) struct Tables {
    links: Vec<PortSlot>,
    circuits: Vec<NodeCircuit>,
    index: Vec<IndexSlot>,
    cells: Vec<PoolSlot>,
    onions: Vec<OnionSlot>,
    origins: Vec<OriginSlot>,
    replay: [Vec<u64>; 2],
    buffers: Vec<[Vec<u8>; 2]>,
    outsides: Vec<OutsidePlace<SimShell>>,
    scratch: Vec<u8>,
}

/// What of a node's tables the node itself takes.
pub(crate) struct Lent<'m> {
    pub(crate) memory: Memory<'m>,
    pub(super) outsides: &'m mut [OutsidePlace<SimShell>],
    pub(super) scratch: &'m mut [u8],
}

impl Tables {
    pub(crate) fn new(spec: &Spec) -> Self {
        let buffer = LINK_BUFFER_MIN.max(record_len(usize::from(spec.record_cells)));
        Self {
            links: filled(spec.links, || PortSlot::EMPTY),
            circuits: filled(spec.circuits, || NodeCircuit::EMPTY),
            index: vec![IndexSlot::default(); index_len(spec.circuits)],
            cells: vec![PoolSlot::EMPTY; spec.cells],
            onions: filled(spec.onions, || OnionSlot::EMPTY),
            origins: filled(spec.origins, || OriginSlot::EMPTY),
            replay: [vec![0; spec.replay], vec![0; spec.replay]],
            buffers: filled(spec.links, || [vec![0; buffer], vec![0; buffer]]),
            outsides: filled(spec.circuits, || OutsidePlace::EMPTY),
            scratch: vec![0; 4096],
        }
    }

    pub(crate) fn lend(&mut self) -> (Lent<'_>, Vec<LinkPlace<'_, SimShell>>) {
        let [current, previous] = &mut self.replay;
        let memory = Memory {
            links: &mut self.links,
            circuits: &mut self.circuits,
            index: &mut self.index,
            cells: &mut self.cells,
            onions: &mut self.onions,
            origins: &mut self.origins,
            replay: [current, previous],
        };
        let places = self.buffers.iter_mut().map(|[input, output]| LinkPlace::new(input, output)).collect();
        (Lent { memory, outsides: &mut self.outsides, scratch: &mut self.scratch }, places)
    }
}

/// A machine's monotonic clock. It runs as fast as the true time and may jump; where it would go back it stands still, as the core asks of an
/// owner.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Clock {
    /// Milliseconds.
    ahead: i64,
    /// What it has shown at the last jump, in milliseconds.
    shown: u64,
}

impl Clock {
    /// What it shows when the true time is so many milliseconds.
    pub(super) fn at(&self, millis: u64) -> Instant {
        Instant::from_millis(millis.saturating_add_signed(self.ahead).max(self.shown))
    }

    /// It jumps by so many milliseconds.
    pub(super) fn jump(&mut self, millis: u64, by: i64) {
        self.shown = self.at(millis).millis();
        self.ahead += by;
    }

    /// The true time in milliseconds when it shows this instant.
    pub(super) fn when(&self, instant: Instant) -> u64 {
        instant.millis().saturating_add_signed(-self.ahead)
    }
}

/// A node with its driver and its machine.
pub(super) struct SimNode<'m, 'b> {
    pub(super) driver: Driver<'m, 'b, SimShell>,
    pub(super) shell: SimShell,
    pub(super) spec: Spec,
    /// The node is cut off and does nothing more, or not yet.
    pub(super) dead: bool,
    /// It has died and still has what it had.
    pub(super) stale: bool,
    /// For which instant the timer is set.
    pub(super) timer: Option<Instant>,
    pub(super) clock: Clock,
    /// Microseconds of true time until which its machine sleeps.
    pub(super) asleep_until: u64,
    /// Which of its onion keys it has; the latest that it ever made is the one after all others.
    pub(super) onion_key: usize,
    pub(super) onion_keys_made: usize,
    /// Streams that are to be serviced.
    pub(super) ready: Vec<Token>,
    /// Which link or conversation a stream was given to.
    pub(super) tokens: std::collections::BTreeMap<StreamId, Token>,
    /// Whose links they are.
    pub(super) peers: std::collections::BTreeMap<bulbil_core::circuit::LinkId, super::NodeIndex>,
    /// Memory for its next lives.
    spares: Vec<Life<'m, 'b>>,
}

/// Memory for one life of a node.
pub(super) type Life<'m, 'b> = (Lent<'m>, &'m mut [LinkPlace<'b, SimShell>]);

/// What a stream belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Link(bulbil_core::circuit::LinkId),
    Conversation(bulbil_core::node::ConversationId),
}

fn drive<'m, 'b>(spec: &Spec, shell: &mut SimShell, (lent, places): Life<'m, 'b>) -> Driver<'m, 'b, SimShell> {
    let rng: &mut ChaCha20Rng = &mut shell.rng;
    let node = Node::new(spec.config(shell.node), lent.memory, rng).expect("specs are sound");
    Driver::new(node, Places { links: places, outsides: lent.outsides, scratch: lent.scratch })
}

impl<'m, 'b> SimNode<'m, 'b> {
    pub(super) fn new(
        spec: Spec,
        mut shell: SimShell,
        life: Life<'m, 'b>,
        spares: Vec<Life<'m, 'b>>,
        dead: bool,
    ) -> Self {
        Self {
            driver: drive(&spec, &mut shell, life),
            shell,
            spec,
            dead,
            stale: false,
            timer: None,
            clock: Clock::default(),
            asleep_until: 0,
            onion_key: 0,
            onion_keys_made: 0,
            ready: Vec::new(),
            tokens: std::collections::BTreeMap::new(),
            peers: std::collections::BTreeMap::new(),
            spares,
        }
    }

    /// Whether the node can begin once more.
    pub(super) const fn has_spare(&self) -> bool {
        !self.spares.is_empty()
    }

    /// The node begins once more, with nothing but its keys: its streams are dropped, its tables empty.
    pub(super) fn begin_again(&mut self, now: Instant) {
        // Streams lie in memory that the driver has only borrowed.
        self.driver.close_all(&mut self.shell, now);
        if let Some(life) = self.spares.pop() {
            self.driver = drive(&self.spec, &mut self.shell, life);
        }
        self.stale = false;
        self.ready.clear();
        self.peers.clear();
        (self.timer, self.asleep_until) = (None, 0);
        self.shell.notices.clear();
        self.shell.ended.clear();
        self.shell.link_ends.clear();
        self.shell.over.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_back_stands_still_until_it_has_caught_up() {
        let mut clock = Clock::default();
        clock.jump(1_000, -400);
        let shown = [1_000, 1_400, 1_401].map(|millis| clock.at(millis).millis());
        assert_eq!(shown, [1_000, 1_000, 1_001]);
        clock.jump(2_000, 5_000);
        assert_eq!(clock.at(2_000).millis(), 6_600);
        assert_eq!(clock.when(Instant::from_millis(6_600)), 2_000);
    }
}
