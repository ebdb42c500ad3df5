//! `bulbil` as processes: started from configuration files, watched by what they print, ended by their own pid.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a process may take to be ready, or to end. Long: the machine may be busy; a process that works takes a second.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running `bulbil`; killed when dropped.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    stderr: Arc<Mutex<Vec<u8>>>,
    stderr_reader: Option<JoinHandle<()>>,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `program` with `arguments`.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn start<S: AsRef<std::ffi::OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).env_remove("BULBIL_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{program} does not start: {error}"));
        let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            // Ends with the process, or when nobody listens any more.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let captured = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&captured);
        let stderr_reader = thread::spawn(move || {
            let (mut stderr, mut part) = (stderr, [0; 4096]);
            while let Ok(read @ 1..) = stderr.read(&mut part) {
                into.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&part[..read]);
            }
        });
        Self { child, lines, seen: Vec::new(), stderr: captured, stderr_reader: Some(stderr_reader), status: None }
    }

    /// Waits for a line that begins with `word`, and answers what follows it.
    ///
    /// # Panics
    /// The process ends without it, or says nothing for too long.
    pub fn line(&mut self, word: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if let Some(rest) = line.strip_prefix(word) {
                        return rest.trim().to_owned();
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("no line {word:?} in time: {}", self.told()),
                Err(RecvTimeoutError::Disconnected) => panic!("ended without a line {word:?}: {}", self.told()),
            }
        }
    }

    /// The lines of standard output that were waited for, and those before them; all of them once it has ended.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.seen.join("\n")
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn told(&self) -> String {
        format!("{:?}\n{}", self.seen, self.stderr())
    }

    /// What it has written to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Waits until it has written `text` to standard error.
    ///
    /// # Panics
    /// It does not.
    pub fn log(&self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.stderr().contains(text) {
            assert!(Instant::now() < until, "no {text:?} in the log in time: {}", self.told());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends it SIGKILL and waits for its end.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal("KILL");
        self.end()
    }

    /// Sends it SIGTERM and waits for its end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.end()
    }

    /// Sends it a signal, `name` without SIG.
    ///
    /// # Panics
    /// It has ended, or there is no shell to send the signal with.
    pub fn signal(&self, name: &str) {
        assert!(self.status.is_none(), "an ended process gets no signals");
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.child.id())]).status();
        assert!(sent.expect("there is a shell").success());
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It does not end.
    pub fn end(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        // Its standard output ends with it: something to wait for that can be given up.
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("does not end: {}", self.told()),
            }
        }
        let status = self.child.wait().expect("a child can be waited for");
        self.status = Some(status);
        if let Some(reader) = self.stderr_reader.take() {
            reader.join().expect("reading does not panic");
        }
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            // Both fail only for a child that has ended by itself.
            let _ended = self.child.kill();
            let _waited = self.child.wait();
        }
    }
}

/// A `bulbil node` and what it said at its start.
pub struct NodeProcess {
    /// The process.
    pub process: Process,
    /// Who it is.
    pub fingerprint: String,
    /// Where it answers links, if it does.
    pub listening: Option<SocketAddr>,
    /// Where its SOCKS5 proxy is, if it has one.
    pub socks: Option<SocketAddr>,
}

impl NodeProcess {
    /// Starts a node from a configuration file and waits until it is ready.
    ///
    /// # Panics
    /// It does not become ready.
    #[must_use]
    pub fn start(program: &str, config: &Path) -> Self {
        let mut process = start_node(program, config);
        let fingerprint = process.line("fingerprint ");
        let ready = process.line("ready");
        assert!(ready.is_empty(), "ready is a word of its own");
        let address = |word| {
            let line = process.seen.iter().find_map(|line| line.strip_prefix(word))?;
            Some(line.parse().unwrap_or_else(|error| panic!("{line:?} is no address: {error}")))
        };
        let (listening, socks) = (address("listening "), address("socks "));
        Self { process, fingerprint, listening, socks }
    }

    /// How others name it in `bootstrap`.
    ///
    /// # Panics
    /// It listens nowhere.
    #[must_use]
    pub fn contact(&self) -> String {
        format!("{}#{}", self.listening.expect("it listens"), self.fingerprint)
    }

    /// The proxy's address.
    ///
    /// # Panics
    /// It has none.
    #[must_use]
    pub fn proxy(&self) -> SocketAddr {
        self.socks.expect("it has a proxy")
    }
}

/// Starts `bulbil node --config`, without waiting for anything.
#[must_use]
pub fn start_node(program: &str, config: &Path) -> Process {
    Process::start(program, ["node".as_ref(), "--config".as_ref(), config.as_os_str()])
}

/// A loopback address that nobody else uses: connections come from 127.0.0.1, so no port of it is taken by one of them, and a node that
/// restarts finds its own free.
#[must_use]
pub fn own_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    SocketAddr::from((Ipv4Addr::new(127, 128 | high >> 1, low, 1), 20_000 + (u16::from(high & 1) << 12) + number))
}

/// Writes the configuration of a node that serves at `address`, its state beside the file; answers the file.
///
/// # Panics
/// The directory cannot be written to.
#[must_use]
pub fn serving_config(dir: &Path, name: &str, role: &str, address: SocketAddr, more: &str) -> PathBuf {
    let text = format!(
        "state = \"{name}.state\"\nroles = [\"{role}\"]\nlisten = [\"{address}\"]\n\
         [exit]\npolicy = [\"reject *:25\", \"reject 10.0.0.0/8:*\", \"accept *:*\"]\n\
         [path]\nnetwork_groups = \"ignore\"\n{more}"
    );
    write_config(dir, name, &text)
}

/// Writes the configuration of a client with a SOCKS5 proxy that knows `contacts`; answers the file.
///
/// # Panics
/// The directory cannot be written to.
#[must_use]
pub fn client_config(dir: &Path, name: &str, contacts: &[String], more: &str) -> PathBuf {
    let text = format!(
        "state = \"{name}.state\"\nroles = [\"client\"]\nbootstrap = {contacts:?}\n[socks]\nlisten = [\"127.0.0.1:0\"]\n\
         [path]\nnetwork_groups = \"ignore\"\n{more}"
    );
    write_config(dir, name, &text)
}

fn write_config(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(format!("{name}.toml"));
    std::fs::write(&path, text).expect("a scratch directory can be written to");
    path
}
