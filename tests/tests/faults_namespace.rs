//! Faults that need a machine of one's own: a disk that is full, a resolver that hangs. The tests move into namespaces of their own (network and
//! mounts, without root where the kernel allows it), so that a small disk and another `/etc/resolv.conf` are nobody else's.
//!
//! Where the system gives none this says so and passes, unless `BULBIL_TEST_TAP=1`.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bulbil_firmware_sim::linux::namespace;
use bulbil_tests::processes::{NodeProcess, Process, client_config, own_address, serving_config, start_node};
use bulbil_tests::scratch::Scratch;
use bulbil_tests::socks::{self, Refused};
use bulbil_tests::targets::Target;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

const PROGRAM: &str = env!("CARGO_BIN_EXE_bulbil-under-test");
/// How long anything may take. Long: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(300);
/// Everything that is kept is written every second.
const HASTE: &str = "[phonebook]\nexchange_seconds = 1\ntest_seconds = 1\nretry_seconds = 1\nsave_seconds = 1\n";

type Anything = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    if !arguments.list
        && let Err(reason) = enter()
    {
        eprintln!("SKIPPED: there is no machine of one's own here: {reason}");
        let required = std::env::var_os("BULBIL_TEST_TAP").is_some_and(|value| value == "1");
        return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let trials = vec![
        trial("on_a_full_disk_a_node_starts_with_what_it_has_and_goes_on_when_there_is_room", full_under_a_node()),
        trial("nothing_is_begun_on_a_full_disk", full_from_the_beginning()),
        trial("a_resolver_that_hangs_is_told_and_holds_up_nobody_else", hanging_resolver()),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: &str, run: impl Future<Output = ()> + Send + 'static) -> Trial {
    Trial::test(name, move || -> Result<(), Failed> {
        Runtime::new()?.block_on(run);
        Ok(())
    })
}

/// Moves this process, which has one thread yet, into namespaces of its own.
fn enter() -> Result<(), Anything> {
    namespace::enter()?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What is mounted here is nobody else's business.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    namespace::bring_up("lo")?;
    // Whether small disks are to be had as well.
    let dir = Scratch::new("disk");
    let _disk = Disk::mount(dir.path())?;
    Ok(())
}

/// A disk of one MiB.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> nix::Result<Self> {
        mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), Some("size=1m,mode=0700"))?;
        Ok(Self(at.to_owned()))
    }

    /// Leaves no room.
    fn fill(&self) {
        let mut ballast = File::options().create(true).append(true).open(self.0.join("ballast")).unwrap();
        let full = std::iter::repeat_with(|| ballast.write_all(&[0x5a; 4096])).find_map(Result::err).unwrap();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, as a process may be about to end. It goes with the namespace at the latest.
        let _stays = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

async fn page(proxy: SocketAddr, host: &str, port: u16) -> Result<(), Refused> {
    let fetch = async {
        let (status, body) = socks::get(socks::connect(proxy, host, port, None).await?, "/").await?;
        assert!(status == 200 && body.ends_with(b"</html>\n"));
        Ok(())
    };
    timeout(PATIENCE, fetch).await.expect("an answer, good or bad")
}

/// Three relays and an exit that know each other, on a disk of their own.
fn network(dir: &Path) -> Vec<NodeProcess> {
    let mut nodes: Vec<NodeProcess> = Vec::new();
    for (name, role) in [("relay1", "relay"), ("relay2", "relay"), ("relay3", "relay"), ("exit", "exit")] {
        let config = serving_config(dir, name, role, own_address(), HASTE);
        nodes.push(NodeProcess::start(PROGRAM, &config));
    }
    nodes
}

fn contacts(nodes: &[NodeProcess]) -> Vec<String> {
    nodes.iter().map(NodeProcess::contact).collect()
}

/// Every file of a directory but for the socket and the ballast.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap())
        // What is being written is no item yet; the next start removes it.
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect();
    all.sort();
    all
}

async fn until(what: &str, mut good: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !good() {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The disk fills up under a node that runs, and is full when it starts again.
async fn full_under_a_node() {
    let dir = Scratch::new("full");
    let target = Target::start().await;
    let nodes = network(dir.path());
    std::fs::create_dir(dir.path().join("disk")).unwrap();
    let disk = Disk::mount(&dir.path().join("disk")).unwrap();
    // Client and relay in one: identity, link key, sequence number, phonebook and first hops, all of them on that disk.
    let text = format!(
        "state = \"disk/state\"\nroles = [\"relay\", \"client\"]\nlisten = [\"{}\"]\nbootstrap = {:?}\n\
         [socks]\nlisten = [\"127.0.0.1:0\"]\n[path]\nnetwork_groups = \"ignore\"\n{HASTE}",
        own_address(),
        contacts(&nodes),
    );
    let (config, state) = (dir.path().join("full.toml"), dir.path().join("disk/state"));
    std::fs::write(&config, text).unwrap();
    let mut node = NodeProcess::start(PROGRAM, &config);
    page(node.proxy(), "127.0.0.1", target.port()).await.unwrap();
    let (phonebook, guards) = (state.join("phonebook"), state.join("guards"));
    until("it is kept", || phonebook.exists() && guards.exists()).await;

    // What is half written when the disk fills up makes room once more.
    let begun = Instant::now();
    while !node.process.stderr().contains("the phonebook could not be kept; trying again") {
        assert!(begun.elapsed() < PATIENCE, "it could always be kept");
        disk.fill();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Nor does what it tried at last leave any.
    disk.fill();
    let log = node.process.stderr();
    let file = phonebook.to_str().unwrap();
    assert!(log.contains("no space left on the disk; free some and try again") && log.contains(file), "{log}");
    page(node.proxy(), "127.0.0.1", target.port()).await.expect("a full disk is no reason to stop");
    let kept = files(&state);
    node.process.kill();
    assert_eq!(files(&state), kept, "whole, and as it was");

    // Again, with what it has.
    let restarted = NodeProcess::start(PROGRAM, &config);
    assert_eq!(restarted.fingerprint, node.fingerprint);
    node = restarted;
    page(node.proxy(), "127.0.0.1", target.port()).await.expect("the old state is good for it");
    node.process.log("the descriptor's sequence number could not be kept");
    node.process.log("the phonebook could not be kept; trying again");
    assert_eq!(files(&state), kept, "nothing is replaced by less");
    disk.make_room();
    until("the phonebook is written again", || {
        files(&state).iter().any(|(path, bytes)| *path == phonebook && !kept.contains(&(path.clone(), bytes.clone())))
    })
    .await;
    node.process.log("the phonebook is kept again");
    assert_eq!(
        node.process.stderr().matches("the phonebook could not be kept").count(),
        1,
        "however often it is tried"
    );
    assert!(node.process.terminate().success());
    // What it left is good to start with, and complete.
    let mut list = Process::start(PROGRAM, ["phonebook", "list", "--json", "--state", state.to_str().unwrap()]);
    assert!(list.end().success(), "{}", list.stderr());
    for other in &nodes {
        assert!(list.stdout().contains(&other.fingerprint), "{}", list.stdout());
    }
}

/// No room for keys, for a phonebook, for a database: each says which file, and what to do; and all begin when there is room.
async fn full_from_the_beginning() {
    let dir = Scratch::new("begin");
    std::fs::create_dir(dir.path().join("disk")).unwrap();
    let disk = Disk::mount(&dir.path().join("disk")).unwrap();
    let config = serving_config(dir.path(), "disk/relay", "relay", own_address(), "");
    let text = std::fs::read_to_string(&config).unwrap().replace("disk/relay.state", "relay.state");
    std::fs::write(&config, text).unwrap();
    let state = dir.path().join("disk/relay.state");
    let auth = dir.path().join("disk/auth");
    disk.fill();
    let serve = || {
        let arguments = ["auth", "serve", "--argon2", "19456,2,1", "--listen", "127.0.0.1:0", "--state"];
        Process::start(PROGRAM, arguments.into_iter().chain([auth.to_str().unwrap()]))
    };
    let starts: [(&dyn Fn() -> Process, &str); 3] = [
        (&|| start_node(PROGRAM, &config), "disk/relay.state"),
        (&|| Process::start(PROGRAM, ["keygen", "--config", config.to_str().unwrap()]), "disk/relay.state"),
        (&serve, "disk/auth"),
    ];
    for (start, place) in starts {
        let mut process = start();
        assert_eq!(process.end().code(), Some(1), "{}", process.stderr());
        let told = process.stderr();
        assert!(told.contains("error: ") && told.contains(place), "{told}");
        assert!(told.contains("no space left on the disk; free some and try again"), "{told}");
    }
    let begun = files(&state).into_iter().chain(files(&auth));
    for (path, bytes) in begun.filter(|(path, _)| !path.ends_with("lock")) {
        assert!(bytes.is_empty() && path.ends_with("users.sqlite"), "half a file is left: {}", path.display());
    }
    disk.make_room();
    let mut relay = NodeProcess::start(PROGRAM, &config);
    assert!(relay.process.terminate().success());
    let mut server = serve();
    let _ready = server.line("ready");
    assert!(server.terminate().success());

    // And one whose users are there already: it needs room to begin, and loses nothing.
    let kept = files(&auth);
    disk.fill();
    let mut server = serve();
    assert_eq!(server.end().code(), Some(1));
    let told = server.stderr();
    assert!(told.contains("disk/auth/users.sqlite") && told.contains("free some and try again"), "{told}");
    disk.make_room();
    for (path, bytes) in kept {
        assert!(std::fs::read(&path).unwrap() == bytes, "{} is another", path.display());
    }
    let mut server = serve();
    let _ready = server.line("ready");
    assert!(server.terminate().success(), "{}", server.stderr());
}

/// A resolver that takes questions and answers none.
async fn hanging_resolver() {
    let dir = Scratch::new("resolver");
    let silent = UdpSocket::bind("127.0.0.53:53").unwrap();
    let resolv = dir.path().join("resolv.conf");
    // Longer than an exit waits.
    std::fs::write(&resolv, "nameserver 127.0.0.53\noptions timeout:30 attempts:1\n").unwrap();
    let place = std::fs::canonicalize("/etc/resolv.conf").expect("there is a file to put another one over");
    mount(Some(&resolv), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();

    let target = Target::start().await;
    let nodes = network(dir.path());
    let client = NodeProcess::start(PROGRAM, &client_config(dir.path(), "client", &contacts(&nodes), ""));
    let (proxy, port) = (client.proxy(), target.port());
    page(proxy, "127.0.0.1", port).await.unwrap();
    let mut asking = JoinSet::new();
    for number in 0..40 {
        asking.spawn(async move { page(proxy, &format!("host{number}.example.com"), 80).await });
    }
    // It has been asked: from here on all of them hang.
    let asked = tokio::task::spawn_blocking(move || {
        silent.set_read_timeout(Some(PATIENCE)).unwrap();
        silent.recv_from(&mut [0; 512]).map(|_| silent)
    });
    let silent = asked.await.unwrap().expect("the exit asks");
    let mut served = 0;
    let mut ended = Vec::new();
    for _ in 0..10 {
        page(proxy, "127.0.0.1", port).await.expect("an address needs no resolver");
        page(proxy, "localhost", port).await.expect("nor does a name that is known here");
        ended.extend(asking.try_join_next());
        served += usize::from(ended.is_empty());
    }
    assert!(served > 0, "while all of them hang");
    for refused in ended {
        assert_eq!(refused.unwrap().expect_err("nobody knows such a name").code(), Some(6));
    }
    while let Some(refused) = timeout(PATIENCE, asking.join_next()).await.expect("none of them for ever") {
        let refused = refused.unwrap().expect_err("nobody knows such a name");
        assert_eq!(refused.code(), Some(6), "it took too long: {refused:?}");
    }
    page(proxy, "localhost", port).await.expect("as before");
    drop(silent);
    nix::mount::umount(&place).unwrap();
}
