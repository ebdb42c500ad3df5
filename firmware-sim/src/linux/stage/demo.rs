//! `bulbil-firmware-sim stage`: a network of host nodes and constrained nodes, and what can be done with it, each step shown with its times.

use core::{fmt::Display, net::SocketAddr, time::Duration};
use std::{
    collections::BTreeMap,
    format,
    io::{self, Write as _},
    println,
    string::{String, ToString},
    time::Instant,
    vec,
    vec::Vec,
};

use bulbil_core::{
    phonebook::{HopCount, Strictness},
    wire::{Policy, Target},
};
use bulbil_host::{
    config::{Bootstrap, NetworkGroups},
    identity,
    node::{HopInfo, Node, NodeBuilder, OpenOptions, SendOptions, Sizes},
    shutdown::Shutdown,
    socks::{Proxy, Settings},
    target_server::{TargetServer, fill, matches},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::{JoinHandle, block_in_place},
    time::timeout,
};

use super::{NodeSpec, PORT, RunningNode, Stage, host_addresses, pinned};
use crate::linux::{
    cli::{Failure, StageArgs},
    config_file::RequestSettings,
    namespace::Entered,
    report::Report,
};

/// Where the exits of the stage connect to: its own network.
const POLICY: [&str; 2] = ["accept 10.77.0.0/24:*", "accept [fd77::]/64:*"];
/// Room for a host node of a small network.
const SIZES: Sizes = Sizes { links: 64, circuits: 1024, cells: 1 << 13, onions: 64, origins: 512, replay: 1 << 14 };
/// Everything together, so that a script never waits for ever.
const ALL: Duration = Duration::from_secs(600);
/// The client knows enough nodes within so long.
const READY: Duration = Duration::from_secs(30);
/// One page has come within so long.
const PAGE: Duration = Duration::from_secs(120);
/// Paths that one client draws: its guards decide who is first, and another client has others.
const DRAWN_EACH: usize = 20;
/// Paths are drawn until every mix has been seen, or so many,
const DRAWN_MAX: usize = 300;
/// or for so long.
const DRAWING: Duration = Duration::from_secs(300);
/// Longest answer that is taken but for bulk transfers, in bytes.
const ANSWER_MAX: usize = 1 << 16;
/// Bytes of a bulk transfer, on a good network and on a bad one.
const BULK: (usize, usize) = (4 << 20, 1 << 15);

/// Hosts' numbers on the bridge.
mod host {
    pub(super) const RELAY: u8 = 1;
    pub(super) const EXIT: u8 = 2;
    pub(super) const SOCKS: u8 = 3;
    pub(super) const SERVER: u8 = 4;
}

/// A path as kinds of nodes, first hop to exit.
type Mix = Vec<&'static str>;

/// Sets the stage and plays what there is to see on it.
///
/// # Errors
/// The first step that does not go as it should.
pub fn run(args: &StageArgs) -> Result<(), Failure> {
    let begun = Instant::now();
    // Before the first thread.
    let entered = Stage::enter().map_err(Failure::new)?;
    let executable = std::env::current_exe().map_err(Failure::new)?;
    let stage = Stage::new(executable).map_err(Failure::new)?;
    println!(
        "A network namespace of its own, entered {}, with a bridge: after {}",
        match entered {
            Entered::WithRights => "with this user's rights",
            Entered::AsUser => "without root",
        },
        milliseconds(begun.elapsed())
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::new)?;
    runtime.block_on(async {
        let shutdown = Shutdown::on_signals().map_err(Failure::new)?;
        let played = tokio::select! {
            played = timeout(ALL, play(stage, entered, args)) => {
                played.unwrap_or_else(|_| Err(failed("the stage", format_args!("not over after {} s", ALL.as_secs()))))?
            }
            () = shutdown.requested() => return Err(Failure::new("interrupted")),
        };
        let outcome = match args.keep {
            true => keep(&played, entered, &shutdown).await,
            false => Ok(()),
        };
        let ended = played.end(args).await;
        outcome.and(ended)?;
        println!("\nAll steps went as they should.");
        Ok(())
    })
}

fn milliseconds(span: Duration) -> String {
    format!("{:.1} ms", span.as_secs_f64() * 1000.0)
}

fn failed(step: &str, error: impl Display) -> Failure {
    Failure::new(format_args!("{step}: {error}"))
}

fn short(fingerprint: &impl Display) -> String {
    let text = fingerprint.to_string();
    format!("{}...", text.get(..16).unwrap_or(&text))
}

/// The network.
struct Cast {
    stage: Stage,
    host_relay: Node,
    host_exit: Node,
    constrained: Vec<(&'static str, RunningNode)>,
    client: Node,
    target: SocketAddr,
    stop: Shutdown,
    serving: JoinHandle<()>,
}

/// All steps.
async fn play(stage: Stage, entered: Entered, args: &StageArgs) -> Result<Cast, Failure> {
    let mut cast = Cast::assemble(stage, entered, args).await?;
    mixes(&cast, args).await?;
    signed(&cast).await?;
    bulk(&cast, args).await?;
    constrained_client(&mut cast, args).await?;
    Ok(cast)
}

impl Cast {
    async fn assemble(mut stage: Stage, entered: Entered, args: &StageArgs) -> Result<Self, Failure> {
        let begun = Instant::now();
        // RSA keys take their time; three at once.
        let identities: Vec<_> = (0..3).map(|_| tokio::task::spawn_blocking(identity::generate)).collect();
        let policy: Policy = POLICY.join("\n").parse().map_err(|error| failed("the exit policy", error))?;
        let at = |number| SocketAddr::from((host_addresses(number).0, PORT));
        let begin = |builder: NodeBuilder| async {
            builder.sizes(SIZES).start().await.map_err(|error| failed("starting a host node", error))
        };
        let (host_relay, host_exit) = tokio::try_join!(
            begin(Node::builder().listen(at(host::RELAY)).relay()),
            begin(Node::builder().listen(at(host::EXIT)).relay().exit(policy)),
        )?;
        let server = TargetServer::bind(SocketAddr::from((host_addresses(host::SERVER).0, 8080))).await;
        let server = server.map_err(|error| failed("starting the web server", error))?;
        let target = server.local_addr().map_err(Failure::new)?;
        let stop = Shutdown::new();
        let serving = tokio::spawn(server.serve(stop.clone()));

        let pcap = args.pcap.as_ref().map(std::path::absolute).transpose().map_err(Failure::new)?;
        let bare = NodeSpec { profile: args.profile, faults: args.faults, ..NodeSpec::default() };
        let specs = [
            ("constrained relay 1", NodeSpec { relay: true, pcap, ..bare.clone() }),
            ("constrained relay 2", NodeSpec { relay: true, ipv6: true, ..bare.clone() }),
            ("constrained exit", NodeSpec { exit: Some(POLICY.map(String::from).into()), ..bare }),
        ];
        let mut constrained = Vec::new();
        for ((name, spec), identity) in specs.into_iter().zip(identities) {
            let identity = Some(identity.await.map_err(Failure::new)?);
            let started = block_in_place(|| stage.start(&NodeSpec { identity, ..spec })).map_err(Failure::new)?;
            constrained.push((name, started));
        }
        block_in_place(|| constrained.iter().try_for_each(|(_, node)| node.wait_ready())).map_err(Failure::new)?;

        let mut cast =
            Self { stage, client: host_relay.clone(), host_relay, host_exit, constrained, target, stop, serving };
        cast.client = cast.client_of(&cast.everybody(), 4).await?;
        let root = matches!(entered, Entered::AsUser).then_some(" (root only in here)").unwrap_or_default();
        println!(
            "\nA network of two host nodes and three constrained ones, ready after {}{root}:",
            milliseconds(begun.elapsed())
        );
        let host = |name: &str, node: &Node| {
            if let Some(address) = node.local_addr() {
                println!("  {name:<20} {address:<20} {}  in this process", short(&node.fingerprint()));
            }
        };
        host("host relay", &cast.host_relay);
        host("host relay and exit", &cast.host_exit);
        for (name, node) in &cast.constrained {
            let (address, id) = (node.address().to_string(), short(&node.fingerprint()));
            println!("  {name:<20} {address:<20} {id}  process {}, {} profile", node.pid(), args.profile);
        }
        println!("  web server at {target}, outside the network");
        if !args.faults.is_none() {
            println!("  in front of every constrained node, each way: {}", args.faults);
        }
        Ok(cast)
    }

    fn everybody(&self) -> Vec<Bootstrap> {
        let hosts = [&self.host_relay, &self.host_exit];
        let hosts = hosts.into_iter().filter_map(|node| Some(pinned(node.local_addr()?, node.fingerprint())));
        hosts.chain(self.constrained.iter().map(|(_, node)| node.pinned())).collect()
    }

    /// A client that knows these nodes.
    async fn client_of(&self, contacts: &[Bootstrap], hops: u8) -> Result<Node, Failure> {
        let hops = HopCount::new(hops).unwrap_or_default();
        let builder = Node::builder().sizes(SIZES).paths(hops, Strictness::Ignore);
        let builder = contacts.iter().fold(builder, |builder, &contact| builder.bootstrap(contact));
        let client = builder.start().await.map_err(|error| failed("starting a client", error))?;
        client.ready(READY).await.map_err(|error| failed("the client's first path", error))?;
        Ok(client)
    }

    fn contact(&self, name: &str) -> Result<Bootstrap, Failure> {
        let node = self.constrained.iter().find(|(known, _)| *known == name);
        node.map(|(_, node)| node.pinned()).ok_or_else(|| failed(name, "is not on the stage"))
    }

    fn hosts_contact(node: &Node) -> Result<Bootstrap, Failure> {
        let address = node.local_addr().ok_or_else(|| failed("a host node", "has no address"))?;
        Ok(pinned(address, node.fingerprint()))
    }

    fn mix(&self, path: &[HopInfo]) -> Mix {
        let is_host =
            |hop: &HopInfo| [&self.host_relay, &self.host_exit].iter().any(|node| node.fingerprint() == hop.node);
        path.iter().map(|hop| if is_host(hop) { "host" } else { "constrained" }).collect()
    }

    /// Ends everything, by its own id, and tells what it has needed.
    async fn end(self, args: &StageArgs) -> Result<(), Failure> {
        println!("\nWhat the constrained nodes have needed, in bytes:");
        self.client.shutdown().await;
        let mut misfit = None;
        let mut texts = Vec::new();
        for (name, node) in self.constrained {
            let ended = block_in_place(|| node.stop()).map_err(Failure::new)?;
            let Some(report) = ended.report else { return Err(failed(name, "ended without a report")) };
            let Report { static_bytes, measured, total, .. } = &report;
            println!(
                "  {name:<20} {static_bytes} static + {} stack + {} RSA heap = {total}; {}",
                measured.stack_peak,
                measured.heap_peak,
                report.verdict()
            );
            if !report.fits {
                misfit = Some(failed(name, report.verdict()));
            } else if !ended.status.success() {
                return Err(failed(name, format_args!("ended with {}: {}", ended.status, ended.log.join("; "))));
            }
            texts.push(format!("\n{name}: {report}"));
        }
        self.host_relay.shutdown().await;
        self.host_exit.shutdown().await;
        self.stop.request();
        let _panicked = self.serving.await;
        if args.report {
            let mut output = io::stdout().lock();
            output.write_all(texts.concat().as_bytes()).map_err(Failure::new)?;
            return misfit.map_or(Ok(()), Err);
        }
        Ok(())
    }
}

/// A page through `client`, and the path that it took.
async fn fetch(client: &Node, target: SocketAddr, path: &str) -> Result<(Vec<HopInfo>, Vec<u8>), Failure> {
    let fetched = async {
        let step = |error: io::Error| failed("fetching a page", error);
        let opened = client.open(Target::from(target), OpenOptions::default()).await;
        let mut circuit = opened.map_err(|error| failed("opening a circuit", error))?;
        // Until the target is reached a path that fails is replaced by another one, which then is the one to show.
        circuit.connected().await.map_err(|error| failed("reaching the web server", error))?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
        circuit.write_all(request.as_bytes()).await.map_err(step)?;
        let mut page = Vec::new();
        circuit.read_to_end(&mut page).await.map_err(step)?;
        Ok((circuit.path().to_vec(), page))
    };
    timeout(PAGE, fetched).await.map_err(|_| failed("fetching a page", "it did not come in time"))?
}

async fn mixes(cast: &Cast, args: &StageArgs) -> Result<(), Failure> {
    println!(
        "\n1. A page of the web server, over four hops, each time over another path, until every mix of nodes was met"
    );
    // Three of four relays, two of them constrained, before either exit.
    let possible = if args.faults.is_none() { 9 } else { 1 };
    let mut seen: BTreeMap<Mix, usize> = BTreeMap::new();
    let begun = Instant::now();
    let mut drawn = 0;
    let mut another: Option<Node> = None;
    while drawn < DRAWN_MAX && begun.elapsed() < DRAWING && seen.len() < 9 {
        if drawn % DRAWN_EACH == DRAWN_EACH - 1 {
            let next = cast.client_of(&cast.everybody(), 4).await?;
            if let Some(last) = another.replace(next) {
                last.shutdown().await;
            }
        }
        let before = Instant::now();
        let (path, page) = fetch(another.as_ref().unwrap_or(&cast.client), cast.target, "/").await?;
        drawn += 1;
        if !page.starts_with(b"HTTP/1.1 200 OK\r\n") || !page.ends_with(b"</html>\n") {
            return Err(failed("the page", "it is not the web server's"));
        }
        let mix = cast.mix(&path);
        let times = seen.entry(mix.clone()).or_default();
        *times += 1;
        if *times == 1 {
            println!("   {:<54} {} bytes after {}", mix.join(" > "), page.len(), milliseconds(before.elapsed()));
        }
    }
    if let Some(last) = another {
        last.shutdown().await;
    }
    println!("   {drawn} pages over {} mixes of paths, {}", seen.len(), milliseconds(begun.elapsed()));
    if seen.len() < possible {
        return Err(failed("the paths", format_args!("{} of {possible} mixes were met", seen.len())));
    }
    Ok(())
}

async fn signed(cast: &Cast) -> Result<(), Failure> {
    println!("\n2. One message through both constrained relays to the constrained exit, which signs the answer");
    let contacts = [
        Cast::hosts_contact(&cast.host_relay)?,
        cast.contact("constrained relay 1")?,
        cast.contact("constrained relay 2")?,
        cast.contact("constrained exit")?,
    ];
    let client = cast.client_of(&contacts, 4).await?;
    let text = "hello from the other side of an onion";
    let request = format!(
        "POST /echo HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        cast.target,
        text.len()
    );
    let before = Instant::now();
    // A node of few places lets go of links that nobody uses, and whose message was on its way to one cannot tell whether it arrived. An
    // echo may be asked for twice.
    let options = SendOptions { repeatable: true, ..SendOptions::default() };
    let sent = client.send(Target::from(cast.target), request.as_bytes(), options).await;
    let mut answers = sent.map_err(|error| failed("sending the message", error))?;
    let answer = answers.whole(ANSWER_MAX).await.map_err(|error| failed("reading the answer", error))?;
    let receipt = answers.receipt().ok_or_else(|| failed("the answer", "it is not signed"))?;
    if !answer.ends_with(text.as_bytes()) {
        return Err(failed("the answer", "it is not what was sent"));
    }
    println!("   {}", cast.mix(answers.path()).join(" > "));
    println!("   answered with {} bytes after {}", answer.len(), milliseconds(before.elapsed()));
    println!("   signed by {} at Unix time {}; the signature is good", short(&receipt.exit), receipt.time.0);
    client.shutdown().await;
    Ok(())
}

async fn bulk(cast: &Cast, args: &StageArgs) -> Result<(), Failure> {
    let len = if args.faults.is_none() { BULK.0 } else { BULK.1 };
    println!("\n3. {} KiB each way through constrained relay 1, to the exit on a host", len / 1024);
    let contacts = [cast.contact("constrained relay 1")?, Cast::hosts_contact(&cast.host_exit)?];
    let client = cast.client_of(&contacts, 2).await?;
    let before = Instant::now();
    let (_, answer) = fetch(&client, cast.target, &format!("/bytes/{len}")).await?;
    let down = before.elapsed();
    let body = answer.len().checked_sub(len).and_then(|head| answer.get(head..));
    if !body.is_some_and(|body| matches(0, body)) {
        return Err(failed(
            "the transfer down",
            format_args!("{} bytes came, and not those that were sent", answer.len()),
        ));
    }
    let mut body = vec![0; len];
    fill(0, &mut body);
    let head =
        format!("POST /echo HTTP/1.1\r\nHost: {}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n", cast.target);
    let before = Instant::now();
    let both = timeout(PAGE, echo(&client, cast.target, head.as_bytes(), &body)).await;
    let echoed = both.map_err(|_| failed("the echo", "it did not come in time"))??;
    let both = before.elapsed();
    if !echoed.ends_with(&body) {
        return Err(failed("the echo", "it is not what was sent"));
    }
    let rate = |took: Duration| len as f64 * 8.0 / took.as_secs_f64() / 1e6;
    println!("   down: every byte right after {}, {:.1} Mbit/s", milliseconds(down), rate(down));
    println!(
        "   up and down at once: every byte right after {}, {:.1} Mbit/s each way",
        milliseconds(both),
        rate(both)
    );
    client.shutdown().await;
    Ok(())
}

/// Sends `body` and reads the answer at the same time.
async fn echo(client: &Node, target: SocketAddr, head: &[u8], body: &[u8]) -> Result<Vec<u8>, Failure> {
    let step = |error: io::Error| failed("the echo", error);
    let opened = client.open(Target::from(target), OpenOptions::default()).await;
    let mut circuit = opened.map_err(|error| failed("opening a circuit", error))?;
    circuit.connected().await.map_err(|error| failed("reaching the web server", error))?;
    let (mut reading, mut writing) = tokio::io::split(circuit);
    let up = async {
        writing.write_all(head).await?;
        writing.write_all(body).await?;
        writing.flush().await
    };
    let mut answer = Vec::new();
    let (written, read) = tokio::join!(up, reading.read_to_end(&mut answer));
    written.map_err(step)?;
    read.map_err(step)?;
    Ok(answer)
}

async fn constrained_client(cast: &mut Cast, args: &StageArgs) -> Result<(), Failure> {
    println!("\n4. A constrained client, without a clock, sends its fixed request through a path of its own");
    let contacts = vec![
        Cast::hosts_contact(&cast.host_relay)?,
        cast.contact("constrained relay 1")?,
        cast.contact("constrained relay 2")?,
        cast.contact("constrained exit")?,
    ];
    let request = RequestSettings {
        target: Target::from(cast.target),
        text: "GET / HTTP/1.0\r\n\r\n".into(),
        // What may have arrived is sent again at its time only.
        every_seconds: Some(30),
        sign: true,
        hops: HopCount::default(),
        network_groups: NetworkGroups::Ignore,
    };
    let spec = NodeSpec {
        profile: args.profile,
        faults: args.faults,
        request: Some(request),
        contacts,
        clock: crate::linux::board::Calendar::None,
        ..NodeSpec::default()
    };
    let before = Instant::now();
    let node = block_in_place(|| cast.stage.start(&spec)).map_err(Failure::new)?;
    let answered = block_in_place(|| node.wait_line(PAGE, |line| line.strip_prefix("answered").map(String::from)));
    let answered = answered.map_err(Failure::new)?;
    println!("   answered{answered}, {} after its start", milliseconds(before.elapsed()));
    let output = node.output();
    for line in output.iter().skip_while(|line| !line.starts_with("HTTP/")).filter(|line| line.contains("It works")) {
        println!("   | {line}");
    }
    if !answered.ends_with("is good") || !output.iter().any(|line| line.contains("It works")) {
        return Err(failed("the constrained client", "its answer is not the signed page"));
    }
    cast.constrained.push(("constrained client", node));
    Ok(())
}

/// Leaves the network running, with a proxy in front of the client.
async fn keep(cast: &Cast, entered: Entered, shutdown: &Shutdown) -> Result<(), Failure> {
    let listener = TcpListener::bind((host_addresses(host::SOCKS).0, 1080)).await;
    let listener = listener.map_err(|error| failed("starting the proxy", error))?;
    let address = listener.local_addr().map_err(Failure::new)?;
    let enter = match entered {
        Entered::WithRights => format!("nsenter -t {} -n", std::process::id()),
        Entered::AsUser => format!("nsenter -t {} -U -n --preserve-credentials", std::process::id()),
    };
    println!(
        "\nThe network stays until Ctrl-C. Its addresses exist in its namespace only; from another terminal, try:"
    );
    println!("  {enter} curl --socks5-hostname {address} http://{}/      a page through four hops", cast.target);
    println!("  {enter} ping {}                               a constrained node answers", host_addresses(11).0);
    println!("  {enter} tcpdump -i bulbil11                             what crosses its TAP device");
    for (name, node) in &cast.constrained {
        println!("  kill -TERM {:<10} {name} stops in good order", node.pid());
    }
    println!("socks {address}\nready");
    let settings = Settings { connections: 64, deadline: PAGE };
    Proxy::new(cast.client.clone(), settings).serve(listener, shutdown.clone()).await;
    Ok(())
}
