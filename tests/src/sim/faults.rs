//! What may go wrong in a simulated network, beyond what its nodes do: links that break anywhere, jobs that take their time, nodes that
//! die and come back, calendars that jump, and nodes that turn.

use std::time::Duration;

use bulbil_core::crypto::kem::OnionKeys;
use bulbil_core::driver::LinkEnd;

use super::shell::Notice;
use super::turncoat::{Treason, Turncoat};
use super::wire;
use super::world::{Delays, Event, NodeIndex};
use super::{Network, fixture};

/// How bad the weather is: what goes wrong all the time. What goes wrong once is done by the methods of [`Network`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// Reads and writes take less than they could, now and then.
    pub splitting: bool,
    /// Of 100 reads and writes, how many take one to three bytes.
    pub trickle: u32,
    /// Of 10,000 attempts to connect, how many fail although somebody listens.
    pub connects_lost: u64,
    /// How long a link lives on average before it is cut.
    pub link_life: Option<Duration>,
    /// How long a private-key operation may take: so they end in any order.
    pub jobs: Option<Duration>,
    /// How long it may take to make a link.
    pub connects: Option<Duration>,
    /// How long it may take to reach a target.
    pub targets: Option<Duration>,
}

impl Faults {
    /// Nothing goes wrong.
    pub const NONE: Self = Self {
        splitting: false,
        trickle: 0,
        connects_lost: 0,
        link_life: None,
        jobs: None,
        connects: None,
        targets: None,
    };
}

/// With which onion key a node comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A new one.
    Fresh,
    /// The one that it had last.
    Kept,
    /// The one before that, if there is one, as from an old backup.
    Older,
}

impl Network<'_, '_> {
    /// Watches all links from now on, and checks neighbours against each other after every call of a node. To be said before the first link.
    pub(crate) fn watch(&mut self) {
        self.watching = true;
        wire::watch();
    }

    /// Prints what happens.
    pub const fn set_verbose(&mut self, verbose: bool) {
        self.verbose = verbose;
    }

    /// What goes wrong all the time.
    pub fn set_faults(&mut self, faults: &Faults) {
        let micros = |span: Option<Duration>| span.map(|span| span.as_micros() as u64);
        let mut world = self.world.borrow_mut();
        world.splitting = faults.splitting;
        world.trickle = faults.trickle;
        world.connects_lost = faults.connects_lost;
        world.link_life = micros(faults.link_life).unwrap_or_default();
        world.delays =
            Delays { jobs: micros(faults.jobs), connects: micros(faults.connects), targets: micros(faults.targets) };
    }

    /// Cuts every link between two nodes once `one` has written so many bytes more there: in the middle of a record, as likely as not.
    pub fn cut_after(&mut self, one: NodeIndex, other: NodeIndex, bytes: usize) {
        for end in self.links_between(one, Some(other)) {
            self.world.borrow_mut().light_fuse(end, bytes);
        }
    }

    /// Whether the node is there and awake.
    #[must_use]
    pub fn is_up(&self, node: NodeIndex) -> bool {
        !self.nodes[node].dead && !self.is_asleep(&self.nodes[node])
    }

    /// The node dies. Silently: its links stay with nobody at their other end, as after a power cut; otherwise they break. Answers `false`
    /// if it could not come back, and then it lives on.
    pub fn die(&mut self, node: NodeIndex, silently: bool) -> bool {
        if self.nodes[node].dead || !self.nodes[node].has_spare() {
            return false;
        }
        self.world.borrow_mut().end_life(node);
        let now = self.instant_of(node);
        if silently {
            (self.nodes[node].dead, self.nodes[node].stale) = (true, true);
            self.nodes[node].asleep_until = 0;
        } else {
            self.kill(node);
            self.nodes[node].begin_again(now);
        }
        self.nodes[node].ready.clear();
        self.names.retain(|(on, _), _| *on != node);
        self.ended.retain(|(on, _)| *on != node);
        for talk in self.talks.iter_mut().filter(|talk| talk.client == node) {
            talk.orphaned = true;
        }
        self.forget_dropped();
        self.run_woken(None);
        true
    }

    /// A node that has died comes back with nothing but its keys: its tables and its replay sets are empty. It makes a new onion key first, as
    /// it must when it has not kept the replay tags, or lives on an old one all the same.
    pub fn rise(&mut self, node: NodeIndex, state: State) {
        let now = self.instant_of(node);
        let this = &mut self.nodes[node];
        if !this.dead {
            return;
        }
        if this.stale {
            this.begin_again(now);
        }
        this.dead = false;
        match state {
            State::Fresh => {
                this.onion_keys_made += 1;
                this.onion_key = this.onion_keys_made;
            }
            State::Kept => {}
            State::Older => this.onion_key = this.onion_key.saturating_sub(1),
        }
        if let Some(identity) = this.shell.identity {
            let secret = |rotation| fixture::onion_secret(identity, this.spec.kind, rotation);
            this.shell.onion = Some(OnionKeys::new(secret(this.onion_key), None));
            self.world.borrow_mut().addresses.insert(fixture::address(identity), node);
        }
        if state != State::Fresh {
            let through = self.talks.iter_mut().filter(|talk| talk.path.contains(&node));
            through.for_each(|talk| talk.repeatable = true);
        }
        self.forget_dropped();
        self.run_woken(Some(node));
    }

    /// The node's machine sleeps so long: it hears nothing and does nothing, and then everything at once.
    pub fn sleep(&mut self, node: NodeIndex, span: Duration) {
        if self.nodes[node].dead {
            return;
        }
        for node in &mut self.nodes {
            node.shell.slept = node.shell.slept.max(span.as_secs() + 1);
        }
        let mut world = self.world.borrow_mut();
        // Who sleeps already does not wake up earlier for it: what came meanwhile is put off until then.
        let awake = self.nodes[node].asleep_until.max(world.now + span.as_micros() as u64);
        self.nodes[node].asleep_until = awake;
        world.at(awake, Event::Timer(node));
    }

    /// The clock that the node's deadlines go by jumps by so many milliseconds; instead of going back it stands still.
    pub fn jump(&mut self, node: NodeIndex, millis: i64) {
        let mut world = self.world.borrow_mut();
        let now = world.now;
        self.nodes[node].clock.jump(now / 1000, millis);
        world.at(now, Event::Timer(node));
    }

    /// The node's calendar is set so many seconds wrong. All clocks may disagree from now on.
    pub fn set_clock(&mut self, node: NodeIndex, ahead: i64) {
        for node in &mut self.nodes {
            node.shell.clocks_jump = true;
        }
        self.nodes[node].shell.ahead = ahead;
    }

    /// The node may turn one day. To be said before its first link.
    pub fn suspect(&mut self, node: NodeIndex, seed: u64) {
        wire::with(|wire| wire.turncoats.insert(node, Turncoat::new(seed)));
    }

    /// The node follows the protocol no more.
    pub fn turn(&mut self, node: NodeIndex, treason: Treason) {
        wire::with(|wire| {
            if let Some(turncoat) = wire.turncoats.get_mut(&node) {
                turncoat.turn(treason);
            }
        });
        let concerns = |talk: &super::Talk| talk.client == node || talk.path.last() == Some(&node);
        self.talks.iter_mut().filter(|talk| concerns(talk)).for_each(super::Talk::doubt);
    }

    /// A node that has turned says so many things that nobody has asked for, on links of its own.
    pub fn intrude(&mut self, node: NodeIndex, cells: usize) {
        for _ in 0..cells {
            let records = wire::with(|wire| {
                if !wire.has_turned(node) {
                    return Vec::new();
                }
                let lanes = wire.lanes_of(node);
                let mut records = Vec::new();
                for (end, lane) in lanes {
                    let wire::Wire { lanes, turncoats, .. } = wire;
                    let Some(turncoat) = turncoats.get_mut(&node) else { continue };
                    if self.world.borrow().is_open(end) {
                        let cells = turncoat.rogue_cells(lanes, lane);
                        records.extend(cells.into_iter().filter_map(|cell| Some((end, wire.inject(lane, cell)?))));
                    }
                }
                records
            });
            for (end, record) in records.unwrap_or_default() {
                self.world.borrow_mut().send_bytes(end, record);
            }
        }
    }

    /// Links that ended by the fault of whoever was at the other end.
    #[must_use]
    pub fn faulted_links(&self) -> usize {
        let faulted = |end: &LinkEnd| matches!(end, LinkEnd::Violation(_) | LinkEnd::Record(_));
        self.nodes.iter().flat_map(|node| &node.shell.link_ends).filter(|(_, end)| faulted(end)).count()
    }

    pub(super) fn has_turned(&self, node: NodeIndex) -> bool {
        self.watching && wire::with(|wire| wire.has_turned(node)).unwrap_or_default()
    }

    pub(super) fn has_any_turned(&self) -> bool {
        self.watching && wire::with(|wire| wire.has_any_turned()).unwrap_or_default()
    }

    pub(super) fn print_notice(&self, node: NodeIndex, notice: &Notice) {
        let now = self.now();
        match notice {
            Notice::Connected(name, reached) => eprintln!("{now:?} node {node}: {name:?} has reached {reached:?}"),
            Notice::Receipt(name, _) => eprintln!("{now:?} node {node}: {name:?} has a receipt"),
            Notice::Over(name, outcome) => eprintln!("{now:?} node {node}: {name:?} is over: {outcome:?}"),
        }
    }
}
