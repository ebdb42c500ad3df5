//! A whole network under load: 1 GiB through four node processes, beside a chain of four plain TCP forwarders, and circuits opened a
//! second. `cargo bench -p bulbil-tests --bench network`.
//!
//! The processes are this program again with another argument, so that nothing else has to be built. Everything is on loopback and stops
//! by itself. CPU seconds are the kernel's own account of each process (`/proc/PID/stat`, 10 ms steps), taken before and after.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use bulbil_core::phonebook::{HopCount, Strictness};
use bulbil_core::wire::policy::Policy;
use bulbil_core::wire::{NodeId, Target};
use bulbil_host::config::Bootstrap;
use bulbil_host::node::{Node, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const GIB: u64 = 1 << 30;
const BLOCK: usize = 256 * 1024;
/// Circuits opened for the rate, and how many of them at one time.
const CIRCUITS: usize = 3000;
const AT_ONCE: usize = 48;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["relay", address] => node(address.parse()?, false),
        ["exit", address] => node(address.parse()?, true),
        ["forward", to] => forward(to.parse()?),
        ["serve"] => serve(),
        // Cargo calls benches with `--bench`, and tests of benches with nothing.
        _ if arguments.iter().any(|argument| argument == "--bench") => measure(),
        _ => Ok(()),
    }
}

/// Says where we are, and stays until the parent closes our input.
fn until_told(line: &str) {
    println!("{line}");
    let _ended = std::io::stdin().read_to_end(&mut Vec::new());
}

fn node(address: SocketAddr, exit: bool) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let builder = Node::builder().listen(address);
    let builder = if exit { builder.exit(Policy::loopback()) } else { builder.relay() };
    let node = runtime.block_on(builder.start())?;
    let address = node.local_addr().ok_or("no address")?;
    until_told(&format!("{address}#{}", node.fingerprint()));
    if std::env::var_os("BULBIL_BENCH_STATUS").is_some() {
        eprintln!("{:?}", runtime.block_on(node.status()));
    }
    runtime.block_on(node.shutdown());
    Ok(())
}

/// The simplest thing that a relay is compared with: copies bytes, both ways.
fn forward(to: SocketAddr) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.local_addr()?;
    runtime.spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut to = tokio::net::TcpStream::connect(to).await?;
                from.set_nodelay(true)?;
                to.set_nodelay(true)?;
                tokio::io::copy_bidirectional_with_sizes(&mut from, &mut to, BLOCK, BLOCK).await
            });
        }
    });
    until_told(&address.to_string());
    Ok(())
}

/// Serves bytes: the client says how many it wants (8 bytes), and gets them; 0 means that it sends until it ends, and is told how many.
fn serve() -> Result<(), Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    until_told(&address.to_string());
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut wanted = [0; 8];
    stream.read_exact(&mut wanted)?;
    let mut left = u64::from_be_bytes(wanted);
    let mut block = vec![0x5a; BLOCK];
    if left == 0 {
        let mut received = 0u64;
        loop {
            match stream.read(&mut block)? {
                0 => return stream.write_all(&received.to_be_bytes()),
                read => received += read as u64,
            }
        }
    }
    while left > 0 {
        let len = left.min(BLOCK as u64) as usize;
        stream.write_all(&block[..len])?;
        left -= len as u64;
    }
    Ok(())
}

/// A child process, ended by closing its input.
struct Process {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    says: String,
}

impl Process {
    fn start(name: &str, arguments: &[&str]) -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut says = String::new();
        BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut says)?;
        let input = child.stdin.take();
        Ok(Self { name: name.to_owned(), child, input, says: says.trim().to_owned() })
    }

    fn cpu(&self) -> f64 {
        cpu_of(&self.child.id().to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.input.take();
        let _ended = self.child.wait();
    }
}

/// User and system seconds of a process.
fn cpu_of(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |field: usize| after_name.split_whitespace().nth(field).and_then(|ticks| ticks.parse::<f64>().ok());
    // Fields 14 and 15 of proc(5), counted here from the one after the name; 100 ticks a second on every Linux that Rust runs on.
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / 100.0
}

fn report(title: &str, bytes: u64, took: Duration, processes: &[Process], before: &[f64]) {
    let gigabytes = bytes as f64 / 1e9;
    println!(
        "{title:<34} {:>6.2} Gbit/s  {:>6.0} MB/s  {:>6.2} s",
        gigabytes * 8.0 / took.as_secs_f64(),
        gigabytes * 1000.0 / took.as_secs_f64(),
        took.as_secs_f64()
    );
    let mut all = 0.0;
    for (process, before) in processes.iter().zip(before) {
        let used = process.cpu() - before;
        all += used;
        println!("    {:<30} {:>6.2} CPU s/GB", process.name, used / gigabytes);
    }
    let own = cpu_of("self") - before.last().copied().unwrap_or_default();
    println!("    {:<30} {:>6.2} CPU s/GB", "client (this process)", own / gigabytes);
    println!("    {:<30} {:>6.2} CPU s/GB", "everything", (all + own) / gigabytes);
}

fn cpus(processes: &[Process]) -> Vec<f64> {
    processes.iter().map(Process::cpu).chain([cpu_of("self")]).collect()
}

async fn download(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), bytes: u64) -> Result<(), Failure> {
    stream.write_all(&bytes.to_be_bytes()).await?;
    let mut block = vec![0; BLOCK];
    let mut received = 0;
    while received < bytes {
        match stream.read(&mut block).await? {
            0 => return Err(format!("the transfer ended after {received} bytes").into()),
            read => received += read as u64,
        }
    }
    Ok(())
}

async fn upload(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), bytes: u64) -> Result<(), Failure> {
    stream.write_all(&0u64.to_be_bytes()).await?;
    let block = vec![0x5a; BLOCK];
    for _ in 0..bytes / BLOCK as u64 {
        stream.write_all(&block).await?;
    }
    stream.shutdown().await?;
    let mut received = [0; 8];
    stream.read_exact(&mut received).await?;
    if u64::from_be_bytes(received) == bytes { Ok(()) } else { Err("bytes were lost".into()) }
}

fn measure() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let server = Process::start("source and sink", &["serve"])?;
    let mut processes = vec![server];
    for number in 1..=4u8 {
        let role = if number < 4 { "relay" } else { "exit" };
        let address = format!("127.67.0.{number}:0");
        processes.push(Process::start(&format!("{role} {number}"), &[role, &address])?);
    }
    let target: SocketAddr = processes[0].says.parse()?;
    let mut builder = Node::builder().paths(HopCount::default(), Strictness::Ignore);
    for node in &processes[1..] {
        let (address, fingerprint) = node.says.split_once('#').ok_or("a node said nothing")?;
        let fingerprint: NodeId = fingerprint.parse().map_err(|_| "no fingerprint")?;
        builder = builder.bootstrap(Bootstrap { address: address.parse()?, fingerprint: Some(fingerprint) });
    }
    let client = runtime.block_on(builder.start())?;
    runtime.block_on(client.ready(Duration::from_secs(20)))?;
    let bytes = std::env::var("BULBIL_BENCH_BYTES").ok().and_then(|bytes| bytes.parse().ok()).unwrap_or(GIB);

    println!("{bytes} bytes in one stream through four nodes, each a process of its own");
    for (title, direction) in [("download through four nodes", true), ("upload through four nodes", false)] {
        runtime.block_on(async {
            let mut stream = client.open(Target::from(target), OpenOptions::default()).await?;
            stream.connected().await?;
            let (before, begun) = (cpus(&processes), Instant::now());
            if direction {
                download(&mut stream, bytes).await?;
            } else {
                upload(&mut stream, bytes).await?;
            }
            report(title, bytes, begun.elapsed(), &processes, &before);
            Ok::<_, Failure>(())
        })?;
    }
    first_bytes(&runtime, &client, target)?;
    circuits(&runtime, &client, target, &processes)?;
    runtime.block_on(client.shutdown());
    processes.truncate(1);

    println!("\nthe same through four plain TCP forwarders");
    let mut next = target;
    for number in (1..=4).rev() {
        let process = Process::start(&format!("forwarder {number}"), &["forward", &next.to_string()])?;
        next = process.says.parse()?;
        processes.push(process);
    }
    for (title, direction) in [("download through forwarders", true), ("upload through forwarders", false)] {
        runtime.block_on(async {
            let mut stream = tokio::net::TcpStream::connect(next).await?;
            stream.set_nodelay(true)?;
            let (before, begun) = (cpus(&processes), Instant::now());
            if direction {
                download(&mut stream, bytes).await?;
            } else {
                upload(&mut stream, bytes).await?;
            }
            report(title, bytes, begun.elapsed(), &processes, &before);
            Ok::<_, Failure>(())
        })?;
    }
    Ok(())
}

/// From nothing but links to the first byte of an answer: path, onion, four private-key operations, connection, answer.
fn first_bytes(runtime: &tokio::runtime::Runtime, client: &Node, target: SocketAddr) -> Result<(), Failure> {
    let mut times = Vec::new();
    for _ in 0..101 {
        let begun = Instant::now();
        runtime.block_on(async {
            let mut stream = client.open(Target::from(target), OpenOptions::default()).await?;
            download(&mut stream, 1).await
        })?;
        times.push(begun.elapsed());
    }
    times.sort();
    println!(
        "first byte over a new circuit        median {:.2} ms, 9 of 10 within {:.2} ms",
        times[50].as_secs_f64() * 1e3,
        times[90].as_secs_f64() * 1e3
    );
    Ok(())
}

/// Circuits opened a second: each built, sent, opened by four nodes, its target connected, and the client told.
fn circuits(
    runtime: &tokio::runtime::Runtime,
    client: &Node,
    target: SocketAddr,
    processes: &[Process],
) -> Result<(), Failure> {
    let (before, begun) = (cpus(processes), Instant::now());
    runtime.block_on(async {
        let mut opening = tokio::task::JoinSet::new();
        for number in 0..CIRCUITS {
            if number >= AT_ONCE {
                opening.join_next().await.ok_or("no task")???;
            }
            let client = client.clone();
            opening.spawn(async move {
                let mut stream = client.open(Target::from(target), OpenOptions::default()).await?;
                stream.connected().await?;
                download(&mut stream, 1).await
            });
        }
        while let Some(opened) = opening.join_next().await {
            opened??;
        }
        Ok::<_, Failure>(())
    })?;
    let took = begun.elapsed();
    println!("{:<34} {:>6.0} a second", "circuits opened and used", CIRCUITS as f64 / took.as_secs_f64());
    for (process, before) in processes.iter().zip(&before) {
        println!("    {:<30} {:>6.0} CPU us each", process.name, (process.cpu() - before) * 1e6 / CIRCUITS as f64);
    }
    let own = cpu_of("self") - before.last().copied().unwrap_or_default();
    println!("    {:<30} {:>6.0} CPU us each", "client (this process)", own * 1e6 / CIRCUITS as f64);
    Ok(())
}
