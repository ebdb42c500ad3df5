//! One node on a TAP device: its static memory, its thread with a measured stack, its loop, its signals.

use core::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::{
    consts::{SIGINT, SIGTERM, SIGUSR1},
    flag,
    low_level::pipe,
};
use smoltcp::phy::{PcapMode, PcapWriter};
use static_cell::{ConstStaticCell, StaticCell};

use super::{
    board::{LinuxBoard, StateError},
    config_file::{ConfigError, NodeFile, Profile},
    faults::Faulty,
    pcap::Capture,
    report::{HeapGauge, Layout, Measured, Report, layout},
    stack::{StackGauge, run_measured},
    tap::Tap,
};
use crate::{
    board::{Clock as _, Entropy as _},
    config::Config,
    node::{ConstrainedNode, StartError},
    profile::{Medium, Small},
};

/// The stack of the node's thread: far more than any profile allows, so that what goes beyond is measured instead of fatal.
const STACK: usize = 1 << 20;
/// The exit code after a second signal: that of a shell for a program ended by SIGINT.
const INTERRUPTED: i32 = 130;

/// The device: what crosses the TAP is captured, and what goes wrong goes wrong between there and the node.
type Wire = Faulty<PcapWriter<Tap, Capture>>;

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object on one line.
    Json,
}

/// How to run a node, beyond its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Print the memory report at the end, and fail if the node did not fit its profile.
    pub report: Option<Format>,
    /// End when standard input does: whoever started the node is gone.
    pub tethered: bool,
}

/// Why a node did not run, or not to its end.
#[derive(Debug)]
pub enum RunError {
    /// The configuration.
    Config(ConfigError),
    /// The state directory.
    State(StateError),
    /// The node itself.
    Start(StartError),
    /// Something the system refused, and what was attempted.
    System(&'static str, io::Error),
    /// The TAP device is gone.
    Gone(io::Error),
    /// A process runs one node.
    Twice,
    /// The node needed more than its profile allows; the report says what.
    DoesNotFit,
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::State(error) => error.fmt(f),
            Self::Start(error) => error.fmt(f),
            Self::System(attempt, error) => write!(f, "cannot {attempt}: {error}"),
            Self::Gone(error) => write!(f, "the TAP device is gone ({error}); make it again and start the node again"),
            Self::Twice => f.write_str("a process runs one node: its memory is static"),
            Self::DoesNotFit => f.write_str("the node needed more memory than its profile allows; see the report"),
        }
    }
}

impl core::error::Error for RunError {}

/// A profile's memory that no node has been started in.
struct Fresh<M>(M);

#[expect(unsafe_code, reason = "the memory of a running node cannot leave its thread, that of no node can")]
mod fresh {
    use super::{Fresh, LinuxBoard, Medium, Small};

    // SAFETY: until a node is started in it, it refers to nothing and nothing refers to it; and one is started by the thread that has taken
    // it, on which it stays.
    unsafe impl Send for Fresh<Small<LinuxBoard>> {}
    // SAFETY: as above.
    unsafe impl Send for Fresh<Medium<LinuxBoard>> {}
}

static SMALL: ConstStaticCell<Fresh<Small<LinuxBoard>>> = ConstStaticCell::new(Fresh(Small::new()));
static MEDIUM: ConstStaticCell<Fresh<Medium<LinuxBoard>>> = ConstStaticCell::new(Fresh(Medium::new()));
static NODE: StaticCell<ConstrainedNode<Wire, LinuxBoard>> = StaticCell::new();

/// What signals ask for.
struct Signals {
    stop: Arc<AtomicBool>,
    report: Arc<AtomicBool>,
    /// Readable after a signal, so that the loop wakes up.
    woken: UnixStream,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        let (woken, waker) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let (stop, report) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        for signal in [SIGTERM, SIGINT] {
            // The second one ends the process. In this order, so that the first one does not.
            flag::register_conditional_shutdown(signal, INTERRUPTED, Arc::clone(&stop))?;
            flag::register(signal, Arc::clone(&stop))?;
            pipe::register(signal, waker.try_clone()?)?;
        }
        flag::register(SIGUSR1, Arc::clone(&report))?;
        pipe::register(SIGUSR1, waker)?;
        Ok(Self { stop, report, woken })
    }

    fn drain(&mut self) {
        while matches!(self.woken.read(&mut [0; 64]), Ok(1..)) {}
    }
}

/// Runs a node until a signal or its end.
///
/// Prints on standard output `fingerprint HEX`, and `ready` once others can use the node; a client's answers; reports. Prints one when SIGUSR1 comes.
///
/// # Errors
/// [`RunError`]; the text says what to do.
pub fn run(file: &NodeFile, options: Options) -> Result<(), RunError> {
    let config = file.node().map_err(RunError::Config)?;
    let state = LinuxBoard::new(&file.state, file.linux.clock, file.linux.log);
    let mut board = state.map_err(RunError::State)?;
    let tap = Tap::open(&file.network.tap).map_err(|error| RunError::System("open the TAP device", error))?;
    let readable = tap.as_fd().try_clone_to_owned();
    let readable = readable.map_err(|error| RunError::System("watch the TAP device", error))?;
    let capture = match &file.linux.pcap {
        Some(path) => Capture::create(path).map_err(|error| RunError::System("begin the capture", error))?,
        None => Capture::off(),
    };
    let seed = board.rng().next_u64();
    let wire = Faulty::new(PcapWriter::new(tap, capture, PcapMode::Both), file.linux.faults, seed);
    let signals = Signals::listen().map_err(|error| RunError::System("listen for signals", error))?;
    let layout = layout(file.profile);
    let mut start = Some(Start { config, board, wire });
    let around = Around { layout, serving: file.roles.relay || file.roles.exit, readable, signals, options };
    // Lent, so that it does not lie on the stack that is measured.
    let (start, mut around) = (&mut start, around);
    let ended = run_measured(STACK, |gauge| match file.profile {
        Profile::Small => {
            let memory = SMALL.try_take().ok_or(RunError::Twice)?;
            around.live(gauge, start, |Start { wire, board, config }| {
                ConstrainedNode::start(&mut memory.0, wire, board, config)
            })
        }
        Profile::Medium => {
            let memory = MEDIUM.try_take().ok_or(RunError::Twice)?;
            around.live(gauge, start, |Start { wire, board, config }| {
                ConstrainedNode::start(&mut memory.0, wire, board, config)
            })
        }
    });
    ended.map_err(|error| RunError::System("start the node's thread", error))?
}

/// What a node is started with.
struct Start {
    config: Config,
    board: LinuxBoard,
    wire: Wire,
}

type Running = ConstrainedNode<Wire, LinuxBoard>;

/// What there is around a node that runs.
struct Around {
    layout: Layout,
    serving: bool,
    readable: OwnedFd,
    signals: Signals,
    options: Options,
}

/// What is measured on the node's own thread.
#[derive(Clone, Copy)]
struct Gauges<'a> {
    stack: &'a StackGauge,
    heap: HeapGauge,
}

impl Gauges<'_> {
    fn measure(&self) -> Measured {
        self.heap.measure(self.stack.high_water())
    }
}

impl Around {
    /// On the node's own thread: start it, and turn its loop until it has stopped.
    fn live(
        &mut self,
        stack: &StackGauge,
        parts: &mut Option<Start>,
        start: impl FnOnce(Start) -> Result<Running, StartError>,
    ) -> Result<(), RunError> {
        // The buffers of standard input and output are not the node's.
        print(format_args!(""));
        let _buffered = io::stdin();
        let mut gauges = Gauges { stack, heap: HeapGauge::begin() };
        let node = begin(parts, start)?;
        gauges.heap.handle_started();
        print(format_args!("fingerprint {}\n", node.fingerprint()));
        self.turn(node, &gauges)?;
        let Some(format) = self.options.report else { return Ok(()) };
        if self.report(node, &gauges, format) { Ok(()) } else { Err(RunError::DoesNotFit) }
    }

    /// The loop, until the node has stopped.
    fn turn(&mut self, node: &mut Running, gauges: &Gauges<'_>) -> Result<(), RunError> {
        let mut ready = false;
        let mut failed = None;
        while !node.is_stopped() {
            if self.signals.stop.load(Ordering::Relaxed) || failed.is_some() {
                node.stop();
            }
            if self.signals.report.swap(false, Ordering::Relaxed) {
                self.report(node, gauges, self.options.report.unwrap_or(Format::Text));
            }
            let now = node.board_mut().now();
            node.device_mut().release(stack_time(now));
            let due = node.poll();
            if !ready && (!self.serving || node.board_mut().told().published) {
                ready = true;
                print(format_args!("ready\n"));
            }
            if failed.is_none() {
                failed = node.device_mut().device().get_ref().broken();
            }
            let release = node.device_mut().poll_at().map(|at| u64::try_from(at.total_millis()).unwrap_or(0));
            let until = release.map_or(due.millis(), |release| due.millis().min(release));
            let now = node.board_mut().now();
            let wait = Duration::from_millis(until.saturating_sub(now.millis()));
            // Without a device nothing wakes us but the time.
            if wait.is_zero() || failed.is_some() {
                continue;
            }
            if self::wait(&self.readable, &mut self.signals, self.options.tethered, wait)? {
                self.signals.stop.store(true, Ordering::Relaxed);
            }
        }
        failed.map_or(Ok(()), |error| Err(RunError::Gone(error)))
    }

    /// Prints what the node has needed so far, and answers whether that fits its profile. Not inlined, as it is no part of the node.
    #[inline(never)]
    fn report(&self, node: &mut Running, gauges: &Gauges<'_>, format: Format) -> bool {
        let report = Report::new(&self.layout, gauges.measure(), node);
        match format {
            Format::Text => print(format_args!("{report}")),
            Format::Json => {
                let mut output = io::stdout().lock();
                let _ = serde_json::to_writer(&mut output, &report).map_err(io::Error::from);
                let _ = output.write_all(b"\n").and_then(|()| output.flush());
            }
        }
        report.fits
    }
}

/// Starts the node where it stays. Not inlined: what this takes of the stack is over before the loop begins.
#[inline(never)]
fn begin(
    parts: &mut Option<Start>,
    start: impl FnOnce(Start) -> Result<Running, StartError>,
) -> Result<&'static mut Running, RunError> {
    let (place, parts) = NODE.try_uninit().zip(parts.take()).ok_or(RunError::Twice)?;
    Ok(place.write(start(parts).map_err(RunError::Start)?))
}

fn stack_time(now: bulbil_core::time::Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_millis(i64::try_from(now.millis()).unwrap_or(i64::MAX))
}

/// Waits for a frame, a signal or the time. Answers whether whoever started the node is gone.
fn wait(readable: &OwnedFd, signals: &mut Signals, tethered: bool, time: Duration) -> Result<bool, RunError> {
    let input = io::stdin();
    let interest = |tethered: bool| if tethered { PollFlags::POLLIN } else { PollFlags::empty() };
    let mut watched = [
        PollFd::new(readable.as_fd(), PollFlags::POLLIN),
        PollFd::new(signals.woken.as_fd(), PollFlags::POLLIN),
        PollFd::new(input.as_fd(), interest(tethered)),
    ];
    // Without a tether its end must not be noticed either, which poll reports unasked.
    let count = if tethered { 3 } else { 2 };
    let time = PollTimeout::try_from(time).unwrap_or(PollTimeout::from(u16::MAX));
    match poll(&mut watched[..count], time) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(errno) => return Err(RunError::System("wait for the TAP device", errno.into())),
    }
    let happened = |at: usize| watched.get(at).and_then(PollFd::any).unwrap_or(false);
    let (signalled, loose) = (happened(1), tethered && happened(2));
    if signalled {
        signals.drain();
    }
    Ok(loose)
}

/// Writes to standard output at once. Whoever closed it does not want to know.
fn print(text: fmt::Arguments<'_>) {
    let mut output = io::stdout().lock();
    let _ = output.write_fmt(text).and_then(|()| output.flush());
}
