//! The memory report: what a board would need for what this run did, beside what the profile allows.

use core::fmt;
use std::borrow::Cow;

use bulbil_core::node::{Counters, Usage};
use serde::{Deserialize, Serialize};
use smoltcp::phy::Device;

use super::{
    board::LinuxBoard,
    config_file::Profile,
    heap::HeapUsage,
    tap::{FRAME_MAX, Tap},
};
use crate::{
    memory::{Memory, Part, Tables},
    node::ConstrainedNode,
    profile::{Budget, MEDIUM, Medium, SMALL, Small},
};

/// Lines of structures: those of the memory, what lies between them, the node itself, its device's frames.
pub const LINES: usize = 18;

/// Frames that a device holds at least: one that comes and one that leaves.
const FRAMES: usize = 2;

/// A static structure and its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// What it is.
    pub name: Cow<'static, str>,
    /// How many of it.
    pub count: usize,
    /// Bytes of all of them.
    pub bytes: usize,
}

impl Line {
    const fn new(name: &'static str, count: usize, bytes: usize) -> Self {
        Self { name: Cow::Borrowed(name), count, bytes }
    }
}

impl From<Part> for Line {
    fn from(Part { name, count, bytes }: Part) -> Self {
        Self::new(name, count, bytes)
    }
}

/// Everything of a profile that is there from the beginning and stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Which profile.
    pub profile: Profile,
    /// Its structures.
    pub lines: [Line; LINES],
    /// Places in its tables.
    pub places: Places,
    /// What all must fit.
    pub budget: Budget,
}

/// Places in a profile's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// For links.
    pub links: usize,
    /// For circuits.
    pub circuits: usize,
    /// For cells.
    pub cells: usize,
    /// For onions.
    pub onions: usize,
    /// For circuits of the node's own.
    pub origins: usize,
    /// For sockets of links and targets.
    pub sockets: usize,
    /// In the phonebook.
    pub nodes: usize,
    /// Circuits that one onion key can open.
    pub replay: usize,
    /// Bytes of TCP's window.
    pub tcp_window: usize,
}

/// The node itself, without its device.
const NODE_BYTES: usize = size_of::<ConstrainedNode<Tap, LinuxBoard>>() - size_of::<Tap>();
/// What a board's device driver holds for frames.
const FRAME_BYTES: usize = FRAMES * FRAME_MAX;

/// Bytes that are there from the beginning with memory `M`.
const fn static_bytes<M>() -> usize {
    size_of::<M>() + NODE_BYTES + FRAME_BYTES
}

const fn fits<M>(budget: Budget) -> bool {
    static_bytes::<M>() + budget.stack + budget.heap <= budget.total
}

const _: () = assert!(fits::<Small<LinuxBoard>>(SMALL), "the small profile does not fit its machine");
const _: () = assert!(fits::<Medium<LinuxBoard>>(MEDIUM), "the medium profile does not fit its machine");

/// What a profile is made of.
#[must_use]
pub fn layout(profile: Profile) -> Layout {
    match profile {
        Profile::Small => layout_of(profile, SMALL, None::<&Small<LinuxBoard>>),
        Profile::Medium => layout_of(profile, MEDIUM, None::<&Medium<LinuxBoard>>),
    }
}

fn layout_of<
    T: Tables,
    const LINKS: usize,
    const CIRCUITS: usize,
    const LINK_SOCKETS: usize,
    const TARGETS: usize,
    const SOCKETS: usize,
    const NODES: usize,
    const RECEIVE: usize,
    const SEND: usize,
>(
    profile: Profile,
    budget: Budget,
    _memory: Option<&Memory<LinuxBoard, T, LINKS, CIRCUITS, LINK_SOCKETS, TARGETS, SOCKETS, NODES, RECEIVE, SEND>>,
) -> Layout {
    let parts = Memory::<LinuxBoard, T, LINKS, CIRCUITS, LINK_SOCKETS, TARGETS, SOCKETS, NODES, RECEIVE, SEND>::parts();
    let whole =
        size_of::<Memory<LinuxBoard, T, LINKS, CIRCUITS, LINK_SOCKETS, TARGETS, SOCKETS, NODES, RECEIVE, SEND>>();
    let padding = whole.saturating_sub(parts.iter().map(|part| part.bytes).sum());
    let rest = [
        Line::new("between them, and lengths", 1, padding),
        Line::new("the node itself: driver, contacts, own paths", 1, NODE_BYTES),
        Line::new("the device's frames, in and out", FRAMES, FRAME_BYTES),
    ];
    let mut lines = parts.into_iter().map(Line::from).chain(rest);
    Layout {
        profile,
        lines: core::array::from_fn(|_| lines.next().unwrap_or(Line::new("", 0, 0))),
        places: Places {
            links: T::LINKS,
            circuits: T::CIRCUITS,
            cells: T::CELLS,
            onions: T::ONIONS,
            origins: T::ORIGINS,
            sockets: LINK_SOCKETS + TARGETS,
            nodes: NODES,
            replay: T::REPLAY,
            tcp_window: RECEIVE,
        },
        budget,
    }
}

/// What was measured while running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Most bytes of stack.
    pub stack_peak: usize,
    /// Bytes of heap that the start left in use: the identity.
    pub heap_identity: usize,
    /// Bytes of heap in use now.
    pub heap_in_use: usize,
    /// Most bytes of heap at a time.
    pub heap_peak: usize,
    /// Allocations since the node's start.
    pub allocations: u64,
}

/// The heap of a run, on the thread that runs the node.
#[derive(Debug, Clone, Copy)]
pub struct HeapGauge {
    before: HeapUsage,
    started: HeapUsage,
}

impl HeapGauge {
    /// From here on it is the node's. Called on the node's thread right before its start.
    #[must_use]
    pub fn begin() -> Self {
        super::heap::reset_peak();
        let before = super::heap::usage();
        Self { before, started: before }
    }

    /// The node has started.
    pub fn handle_started(&mut self) {
        self.started = super::heap::usage();
    }

    /// What the node has taken so far.
    #[must_use]
    pub fn measure(&self, stack_peak: usize) -> Measured {
        let now = super::heap::usage();
        Measured {
            stack_peak,
            heap_identity: self.started.in_use.saturating_sub(self.before.in_use),
            heap_in_use: now.in_use.saturating_sub(self.before.in_use),
            heap_peak: now.peak.saturating_sub(self.before.in_use),
            allocations: now.allocations - self.started.allocations,
        }
    }
}

/// How full the tables are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InUse {
    /// Links.
    pub links: usize,
    /// Circuits.
    pub circuits: usize,
    /// Cells in the pool.
    pub cells_held: usize,
    /// Cells in the pool or promised to a sender.
    pub cells_reserved: usize,
    /// Onions.
    pub onions: usize,
    /// Circuits of the node's own.
    pub origins: usize,
    /// Sockets.
    pub sockets: usize,
    /// Targets that are being reached.
    pub dials: usize,
    /// Nodes in the phonebook.
    pub nodes: usize,
}

impl InUse {
    fn new(node: Usage, around: crate::node::Usage) -> Self {
        Self {
            links: node.links,
            circuits: node.circuits,
            cells_held: node.cells_held,
            cells_reserved: node.cells_reserved,
            onions: node.onions,
            origins: node.origins,
            sockets: around.sockets,
            dials: around.dials,
            nodes: around.nodes,
        }
    }
}

/// What the node has done and refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in the core's `Counters`, and `links_refused` of the board")]
pub struct Done {
    pub forward: u64,
    pub backward: u64,
    pub sent: u64,
    pub opened: u64,
    pub rejected: u64,
    pub replayed: u64,
    pub busy: u64,
    pub late: u64,
    pub garbled: u64,
    pub violations: u64,
    pub expired: u64,
    pub links_refused: u64,
}

impl Done {
    const fn new(counters: &Counters, links_refused: u64) -> Self {
        let &Counters { forward, backward, sent, opened, rejected, replayed, busy, late, garbled, violations, expired } =
            counters;
        Self {
            forward,
            backward,
            sent,
            opened,
            rejected,
            replayed,
            busy,
            late,
            garbled,
            violations,
            expired,
            links_refused,
        }
    }
}

/// The report. To make one and to write it, as text or as JSON, allocates nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Which profile.
    pub profile: Profile,
    /// Static structures.
    pub structures: [Line; LINES],
    /// Bytes of all of them.
    pub static_bytes: usize,
    /// What was measured.
    pub measured: Measured,
    /// Structures, stack and heap, each at its most.
    pub total: usize,
    /// What the profile may use in all.
    pub budget_total: usize,
    /// Of that, stack.
    pub budget_stack: usize,
    /// Of that, heap.
    pub budget_heap: usize,
    /// Whether it fits.
    pub fits: bool,
    /// Places in the tables.
    pub places: Places,
    /// How full they are.
    pub in_use: InUse,
    /// What the node has done and refused.
    pub done: Done,
}

impl Report {
    /// What a node has needed so far.
    #[must_use]
    pub fn new<D: Device>(layout: &Layout, measured: Measured, node: &mut ConstrainedNode<D, LinuxBoard>) -> Self {
        let links_refused = node.board_mut().told().links_refused;
        let in_use = InUse::new(node.node().usage(), node.usage());
        Self::of(layout, measured, in_use, Done::new(node.node().counters(), links_refused))
    }

    fn of(layout: &Layout, measured: Measured, in_use: InUse, done: Done) -> Self {
        let Layout { profile, lines, places, budget } = layout;
        let static_bytes = lines.iter().map(|line| line.bytes).sum();
        let total = static_bytes + measured.stack_peak + measured.heap_peak;
        let Budget { total: most, stack, heap } = *budget;
        Self {
            profile: *profile,
            structures: lines.clone(),
            static_bytes,
            measured,
            total,
            budget_total: most,
            budget_stack: stack,
            budget_heap: heap,
            fits: total <= most && measured.stack_peak <= stack && measured.heap_peak <= heap,
            places: *places,
            in_use,
            done,
        }
    }

    /// Whether it fits the profile's machine, in words.
    #[must_use]
    pub const fn verdict(&self) -> Verdict<'_> {
        Verdict(self)
    }
}

/// The last line of a report.
pub struct Verdict<'a>(&'a Report);

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        write!(f, "fits {} KiB: ", report.budget_total / 1024)?;
        if report.fits {
            return write!(f, "yes, {} bytes left", report.budget_total - report.total);
        }
        f.write_str("NO")?;
        for (name, used, most) in [
            ("in all", report.total, report.budget_total),
            ("of stack", report.measured.stack_peak, report.budget_stack),
            ("of heap", report.measured.heap_peak, report.budget_heap),
        ] {
            if used > most {
                write!(f, ", {} bytes {name} over", used - most)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { measured, places, in_use, done, .. } = self;
        writeln!(f, "memory of a node, profile {}, in bytes", self.profile)?;
        for Line { name, count, bytes } in &self.structures {
            match count {
                0 => {}
                1 => writeln!(f, "  {bytes:>7}        {name}")?,
                count => writeln!(f, "  {bytes:>7}  {count:>3} x  {name}")?,
            }
        }
        writeln!(f, "  {:>7}        static structures in all", self.static_bytes)?;
        writeln!(f, "  {:>7}        stack, high-water mark (of {})", measured.stack_peak, self.budget_stack)?;
        writeln!(
            f,
            "  {:>7}        RSA heap, peak (of {}; the identity takes {}, in use now {})",
            measured.heap_peak, self.budget_heap, measured.heap_identity, measured.heap_in_use
        )?;
        writeln!(f, "  {:>7}        total", self.total)?;
        writeln!(
            f,
            "in use: {}/{} links, {}/{} circuits, {}/{} cells ({} held), {}/{} onions, {}/{} own circuits, {}/{} sockets, {}/{} nodes known",
            in_use.links,
            places.links,
            in_use.circuits,
            places.circuits,
            in_use.cells_reserved,
            places.cells,
            in_use.cells_held,
            in_use.onions,
            places.onions,
            in_use.origins,
            places.origins,
            in_use.sockets,
            places.sockets,
            in_use.nodes,
            places.nodes,
        )?;
        writeln!(
            f,
            "so far: {} circuits opened, {} cells forward, {} backward; {} refused as busy, {} links refused, {} onions rejected, {} replayed, \
             {} circuits expired, {} garbled, {} violations, {} late cells; {} allocations",
            done.opened,
            done.forward,
            done.backward,
            done.busy,
            done.links_refused,
            done.rejected,
            done.replayed,
            done.expired,
            done.garbled,
            done.violations,
            done.late,
            measured.allocations,
        )?;
        writeln!(f, "{}", self.verdict())
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, string::ToString, vec::Vec};

    use super::*;

    fn report(profile: Profile, measured: Measured) -> Report {
        Report::of(
            &layout(profile),
            measured,
            InUse { links: 3, ..InUse::default() },
            Done { opened: 7, ..Done::default() },
        )
    }

    const MODEST: Measured =
        Measured { stack_peak: 20_000, heap_identity: 3000, heap_in_use: 3000, heap_peak: 8000, allocations: 12 };

    #[test]
    fn structures_sum_up_to_the_whole() {
        for profile in [Profile::Small, Profile::Medium] {
            let report = report(profile, MODEST);
            let whole = match profile {
                Profile::Small => size_of::<Small<LinuxBoard>>(),
                Profile::Medium => size_of::<Medium<LinuxBoard>>(),
            };
            assert_eq!(report.static_bytes, whole + NODE_BYTES + FRAME_BYTES);
            assert_eq!(report.structures.iter().map(|line| line.bytes).sum::<usize>(), report.static_bytes);
            assert!(report.structures.iter().all(|line| line.count > 0), "as many lines as there are structures");
            assert_eq!(report.total, report.static_bytes + 28_000);
        }
    }

    #[test]
    fn every_structure_and_the_verdict_are_printed() {
        let report = report(Profile::Small, MODEST);
        let text = report.to_string();
        for Line { name, bytes, .. } in &report.structures {
            assert!(
                text.lines().any(|line| line.contains(&**name) && line.contains(&bytes.to_string())),
                "{name}: {text}"
            );
        }
        for words in ["3/", "7 circuits opened", "20000        stack", "8000        RSA heap", "takes 3000"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let left = SMALL.total - report.total;
        assert_eq!(text.lines().last(), Some(&*std::format!("fits 192 KiB: yes, {left} bytes left")));
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let deep = report(Profile::Medium, Measured { stack_peak: MEDIUM.stack + 1, ..MODEST });
        assert!(!deep.fits && deep.verdict().to_string().ends_with("NO, 1 bytes of stack over"), "{}", deep.verdict());
        let wide = report(Profile::Medium, Measured { heap_peak: MEDIUM.heap + 8, ..MODEST });
        assert!(!wide.fits && wide.verdict().to_string().ends_with("NO, 8 bytes of heap over"), "{}", wide.verdict());
        let both = report(Profile::Small, Measured { stack_peak: 1 << 20, ..MODEST });
        assert!(both.verdict().to_string().contains("bytes in all over"), "{}", both.verdict());
    }

    #[test]
    fn json_reads_back() {
        let report = report(Profile::Small, MODEST);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }

    #[test]
    fn reporting_allocates_nothing() {
        let layout = layout(Profile::Small);
        let mut output = Vec::with_capacity(1 << 16);
        let gauge = HeapGauge::begin();
        let report = Report::of(&layout, gauge.measure(0), InUse::default(), Done::default());
        write!(output, "{report}").unwrap();
        serde_json::to_writer(&mut output, &report).unwrap();
        assert_eq!(gauge.measure(0), Measured::default());
    }
}
