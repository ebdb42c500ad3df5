//! Nodes in processes that can be stopped, killed and started again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulbil_host::control::client::Client;
use bulbil_host::control::report::Report;
use bulbil_host::control::{Ask, Reply};
use bulbil_tests::processes::{NodeProcess, own_address, serving_config};
use tokio::time::timeout;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_bulbil-under-test");
/// How long anything may take. Long: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at whether something has come about.
pub(crate) const LOOK: Duration = Duration::from_millis(20);
/// Bytes of a transfer: many times what a path holds.
pub(crate) const LEN: u64 = 16 << 20;
/// Nothing but what a test does: no exchanges, whose circuits come and go.
pub(crate) const CALM: &str =
    "[phonebook]\nexchange_seconds = 0\ntest_seconds = 1\nretry_seconds = 1\nsave_seconds = 1\n";

/// Asks until the answer is good; `what` and the last answer tell why not.
pub(crate) async fn until<T: std::fmt::Debug>(what: &str, mut ask: impl AsyncFnMut() -> Result<(), T>) {
    let begun = Instant::now();
    while let Err(answer) = ask().await {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}: {answer:?}");
        tokio::time::sleep(LOOK).await;
    }
}

pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// A node in a process, which can be started again from the same files.
pub(crate) struct Peer {
    pub(crate) config: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) node: NodeProcess,
}

impl Peer {
    pub(crate) fn start(config: PathBuf) -> Self {
        let node = NodeProcess::start(PROGRAM, &config);
        Self { state: config.with_extension("state"), config, node }
    }

    pub(crate) fn restart(&mut self) {
        let node = NodeProcess::start(PROGRAM, &self.config);
        assert_eq!(self.node.listening, node.listening);
        assert!(node.listening.is_none() || node.fingerprint == self.node.fingerprint, "another identity");
        self.node = node;
    }

    pub(crate) fn report(&self) -> Report {
        let client = Client::connect(&self.state).unwrap().expect("the node runs");
        match client.ask(Ask::Status, &[]).unwrap().0 {
            Reply::Status(report) => *report,
            other => panic!("{other:?}"),
        }
    }

    /// Stops it, and waits until it has stopped.
    pub(crate) async fn stop(&self) {
        self.node.process.signal("STOP");
        let stat = format!("/proc/{}/stat", self.node.process.id());
        until("the process has stopped", async || {
            let stat = std::fs::read_to_string(&stat).unwrap();
            let state = stat.rsplit(") ").next().unwrap().chars().next();
            if state == Some('T') { Ok(()) } else { Err(state) }
        })
        .await;
    }
}

/// Waits until these nodes hold nothing of any circuit.
pub(crate) async fn emptied<'a>(peers: impl IntoIterator<Item = &'a Peer>) {
    for peer in peers {
        until("everything is given back", async || {
            let Report { circuits, cells, onions, .. } = peer.report();
            let held = [circuits.open, circuits.own, cells.held, cells.promised, onions.used];
            if held == [0; 5] { Ok(()) } else { Err((peer.config.clone(), held)) }
        })
        .await;
    }
}

/// Four relays and two exits: for paths of three hops there is always another one without any of the first one's nodes.
pub(crate) fn six_peers(dir: &Path) -> Vec<Peer> {
    let names = ["relay1", "relay2", "relay3", "relay4", "exit1", "exit2"];
    let config = |name: &&str| serving_config(dir, name, name.trim_end_matches(char::is_numeric), own_address(), CALM);
    names.iter().map(config).map(Peer::start).collect()
}

pub(crate) fn contacts(peers: &[Peer]) -> Vec<String> {
    peers.iter().map(|peer| peer.node.contact()).collect()
}
