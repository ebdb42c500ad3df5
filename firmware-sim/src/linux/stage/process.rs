//! A constrained node as a process, from its start to its end.

use core::{fmt, net::SocketAddr, time::Duration};
use std::{
    format,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    string::String,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
    vec::Vec,
};

use bulbil_core::wire::NodeId;
use bulbil_host::config::Bootstrap;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{MOMENT, StageError, pinned};
use crate::linux::report::Report;

/// Lines that an output is kept of; what comes after them is read and forgotten.
const LINES_MAX: usize = 100_000;
/// How long a node has to stop in good order: its own patience is two seconds.
const STOPPING: Duration = Duration::from_secs(10);
/// How often one that stops is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What a process has written so far, line by line.
#[derive(Default)]
struct Output {
    lines: Mutex<(Vec<String>, Closed)>,
    grown: Condvar,
}

/// Whether there will be no more.
type Closed = bool;

impl Output {
    fn lock(&self) -> MutexGuard<'_, (Vec<String>, Closed)> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: String) {
        let mut lines = self.lock();
        if lines.0.len() < LINES_MAX {
            lines.0.push(line);
        }
        self.grown.notify_all();
    }

    fn close(&self) {
        self.lock().1 = true;
        self.grown.notify_all();
    }

    /// The first line from `from` on that `take` makes something of, as soon as there is one.
    fn wait<T>(&self, from: usize, patience: Duration, mut take: impl FnMut(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + patience;
        let mut lines = self.lock();
        let mut seen = from;
        loop {
            while let Some(line) = lines.0.get(seen) {
                seen += 1;
                if let Some(taken) = take(line) {
                    return Some(taken);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.1 || left.is_zero() {
                return None;
            }
            lines = self.grown.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Reads `from` to its end, on a thread of its own, so that the process never waits for us.
fn follow(from: impl Read + Send + 'static) -> Arc<Output> {
    let output = Arc::new(Output::default());
    let read = Arc::clone(&output);
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            read.push(String::from_utf8_lossy(&line).trim_end().into());
            line.clear();
        }
        read.close();
    });
    output
}

/// How a node has ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status: a failure also if it did not fit its profile.
    pub status: ExitStatus,
    /// The memory report that it printed last.
    pub report: Option<Report>,
    /// What it wrote on standard output, line by line.
    pub output: Vec<String>,
    /// What it wrote on standard error.
    pub log: Vec<String>,
}

/// A constrained node that runs as a process of its own. Dropped, it is ended at once.
pub struct RunningNode {
    child: Child,
    output: Arc<Output>,
    log: Arc<Output>,
    fingerprint: NodeId,
    address: SocketAddr,
}

impl fmt::Debug for RunningNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RunningNode({}, process {})", self.address, self.child.id())
    }
}

impl RunningNode {
    pub(super) fn start(
        executable: &Path,
        configuration: &Path,
        address: SocketAddr,
        verbose: bool,
    ) -> Result<Self, StageError> {
        let mut command = Command::new(executable);
        command.arg("run").arg("--config").arg(configuration).args(["--report=json", "--tethered"]);
        if verbose {
            command.arg("--verbose");
        }
        // Its standard input closes with this process, however that ends.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let attempt = format!("start {}", executable.display());
        let mut child = command.spawn().map_err(StageError::system(attempt))?;
        let (Some(output), Some(log)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(StageError::Node("a node has no outputs".into()));
        };
        let (output, log) = (follow(output), follow(log));
        let mut node = Self { child, output, log, fingerprint: NodeId([0; 32]), address };
        let fingerprint = |line: &str| line.strip_prefix("fingerprint ")?.parse().ok();
        node.fingerprint = node.output.wait(0, MOMENT, fingerprint).ok_or_else(|| node.complain("did not start"))?;
        Ok(node)
    }

    /// Who the node is.
    #[must_use]
    pub const fn fingerprint(&self) -> NodeId {
        self.fingerprint
    }

    /// Where it answers links.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How others pin it.
    #[must_use]
    pub fn pinned(&self) -> Bootstrap {
        pinned(self.address, self.fingerprint)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until others can use the node.
    ///
    /// # Errors
    /// It has ended, or is not ready in time: without a clock of its own it needs a contact that answers.
    pub fn wait_ready(&self) -> Result<(), StageError> {
        self.wait_line(MOMENT, |line| (line == "ready").then_some(()))
    }

    /// Waits for a line of standard output, the first that `take` makes something of.
    ///
    /// # Errors
    /// There is none within `patience`, or the node has ended.
    pub fn wait_line<T>(&self, patience: Duration, take: impl FnMut(&str) -> Option<T>) -> Result<T, StageError> {
        self.output.wait(0, patience, take).ok_or_else(|| self.complain("did not do what it should in time"))
    }

    /// What it has written on standard output so far: `fingerprint`, `ready`, answers, reports.
    #[must_use]
    pub fn output(&self) -> Vec<String> {
        self.output.lock().0.clone()
    }

    /// What it has written on standard error so far.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.log.lock().0.clone()
    }

    /// What it has needed so far.
    ///
    /// # Errors
    /// It does not answer.
    pub fn report(&self) -> Result<Report, StageError> {
        let from = self.output.lock().0.len();
        self.signal(Signal::SIGUSR1)?;
        let report = self.output.wait(from, MOMENT, |line| serde_json::from_str(line).ok());
        report.ok_or_else(|| self.complain("did not report"))
    }

    fn signal(&self, signal: Signal) -> Result<(), StageError> {
        let pid = i32::try_from(self.child.id()).map_err(|_| StageError::Node("a process without a number".into()))?;
        kill(Pid::from_raw(pid), signal).map_err(|errno| StageError::System("signal a node".into(), errno.into()))
    }

    /// Stops it in good order.
    ///
    /// # Errors
    /// It does not stop; it is then ended.
    pub fn stop(mut self) -> Result<Ended, StageError> {
        // One that has ended by itself cannot be signalled; how it ended says the rest.
        let _ended_already = self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + STOPPING;
        let status = loop {
            match self.child.try_wait().map_err(StageError::system("wait for a node"))? {
                Some(status) => break status,
                None if Instant::now() < deadline => thread::sleep(LOOK),
                None => return Err(self.complain("did not stop")),
            }
        };
        for output in [&self.output, &self.log] {
            let _closed = output.wait(usize::MAX, MOMENT, |_| None::<()>);
        }
        let output = self.output();
        let report = output.iter().rev().find_map(|line| serde_json::from_str(line).ok());
        Ok(Ended { status, report, output, log: self.log() })
    }

    fn complain(&self, what: &str) -> StageError {
        let mut text = format!("the constrained node at {} {what}", self.address);
        let log = self.log();
        if !log.is_empty() {
            text.push_str("; it said last:");
        }
        for line in log.iter().rev().take(12).rev() {
            text.push_str("\n  ");
            text.push_str(line);
        }
        StageError::Node(text)
    }
}

impl Drop for RunningNode {
    /// By its own id, and waited for, so that nothing of it is left.
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _gone = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_as_they_come_and_missed_when_the_output_closes() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let output = follow(reader);
        std::io::Write::write_all(&mut writer, b"one\r\ntwo\nthr").unwrap();
        let find = |text: &'static str| move |line: &str| (line == text).then_some(());
        assert_eq!(output.wait(0, MOMENT, find("two")), Some(()));
        assert_eq!(output.wait(2, Duration::ZERO, find("two")), None, "looked for behind it");
        std::io::Write::write_all(&mut writer, b"ee\nno\xffutf8").unwrap();
        assert_eq!(output.wait(0, MOMENT, find("three")), Some(()));
        drop(writer);
        assert_eq!(output.wait(0, MOMENT, find("four")), None);
        assert_eq!(output.lock().0, ["one", "two", "three", "no\u{fffd}utf8"]);
    }
}
