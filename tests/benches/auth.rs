//! Sign-ins a second, and where the time goes: `cargo bench -p bulbil-tests --bench auth`.
//!
//! The server is this program again as a process of its own; network and clients are in this one. Clients are given their password keys: Argon2id is
//! theirs to compute, not the server's, and is measured by itself.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bulbil_core::auth::client::{Connection, Session};
use bulbil_core::auth::envelope::Greeting;
use bulbil_core::auth::{Frame, GREETING_LEN, KdfParameters, LENGTH_LEN, PasswordKey, PublicKey, Status};
use bulbil_core::wire::Target;
use bulbil_host::auth::argon;
use bulbil_host::auth::client::{Client, Said};
use bulbil_host::auth::place::Place;
use bulbil_host::auth::route::Route;
use bulbil_host::auth::server::{AuthServer, Limits};
use bulbil_host::net::Network;
use bulbil_host::node::Node;
use bulbil_host::random::SYSTEM;
use bulbil_host::shutdown::Shutdown;
use bulbil_tests::auth::{password_key, session};
use bulbil_tests::scratch::Scratch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const CLIENTS: usize = 50;
const SIGN_INS_EACH: usize = 40;
const DEADLINE: Duration = Duration::from_secs(60);

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve", state] => serve(Path::new(state)),
        // Cargo calls benches with `--bench`, and tests of benches with nothing.
        _ if arguments.iter().any(|argument| argument == "--bench") => measure(),
        _ => Ok(()),
    }
}

/// The server, until the parent closes our input; then says what it did.
fn serve(state: &Path) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let place = Place::open(state, KdfParameters::FLOOR)?;
    let (database, _writing) = place.database(bulbil_host::auth::database::USERS_MAX)?;
    let (server, _kept) = AuthServer::new(place, database, Limits::default());
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    println!("{}", listener.local_addr()?);
    runtime.spawn(server.clone().serve(listener, Shutdown::new()));
    let _ended = std::io::stdin().read_to_end(&mut Vec::new());
    let counts = server.counts();
    let each = |time: Duration| time.as_secs_f64() * 1000.0 / counts.accepted.max(1) as f64;
    println!(
        "    a connection takes: private-key operation and decryption {:.2} ms, answering (signature's verification, SIV, waiting for the disk with others) {:.2} ms of a thread",
        each(counts.opening),
        each(counts.answering)
    );
    println!(
        "    server {:.2} ms of CPU a connection; {} connections",
        cpu() * 1000.0 / counts.accepted.max(1) as f64,
        counts.accepted
    );
    Ok(())
}

/// User and system seconds of this process (`/proc/self/stat`, 10 ms steps; 0 where there is none).
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |field: usize| after_name.split_whitespace().nth(field).and_then(|ticks| ticks.parse::<f64>().ok());
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / 100.0
}

#[derive(Clone)]
enum Way {
    /// Through circuits, each sign-in on a new one.
    Circuits(Node),
    /// By TCP from this process: what the server does without a network before it.
    Direct,
}

fn measure() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let network = Network::start().await?;
        run("through circuits of four nodes", Way::Circuits(network.client.clone()), &network.client).await?;
        run("without a network", Way::Direct, &network.client).await?;
        network.shutdown().await;
        Ok::<_, Failure>(())
    })?;
    let server = session("x", &public_key()?, 1);
    for (name, parameters) in [("floor", KdfParameters::FLOOR), ("default", KdfParameters::DEFAULT)] {
        let before = Instant::now();
        let key = argon::password_key(b"tulip", &server.public(), server.username(), parameters);
        std::hint::black_box(key.as_bytes());
        println!(
            "Argon2id, once a sign-in, at the client, {name} ({} MiB, {} passes): {:.0} ms",
            parameters.memory() >> 10,
            parameters.passes(),
            before.elapsed().as_secs_f64() * 1000.0
        );
    }
    Ok(())
}

fn public_key() -> Result<PublicKey, Failure> {
    let secret = bulbil_core::auth::ServerSecret::from_pkcs8(bulbil_tests::fixture::identity_der(0));
    Ok(secret.map_err(|_| "a test key is invalid")?.public())
}

async fn run(title: &str, way: Way, finder: &Node) -> Result<(), Failure> {
    let dir = Scratch::new("auth-bench");
    let mut child = Command::new(std::env::current_exe()?)
        .args(["serve".as_ref(), dir.path().join("server").as_os_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut says = BufReader::new(child.stdout.take().ok_or("no output")?);
    let mut line = String::new();
    says.read_line(&mut line)?;
    let address: SocketAddr = line.trim().parse()?;
    let client = |node: &Node| Client::new(Route::Node(node.clone()), Target::from(address), DEADLINE);
    let key = client(finder).discover().await?;

    let mut users = Vec::new();
    for number in 0..CLIENTS {
        let (mut session, password) = (session(&format!("user{number}"), &key, number), password_key(number));
        let said = client(finder).connect(&key).await?.sign_up(&mut session, &password).await?;
        assert_eq!(said, Said::Log(Status::SignedUp));
        let other = bulbil_tests::auth::session(&format!("user{number}"), &key, number + 1);
        users.push(([session, other], password));
    }
    let (begun, own) = (Instant::now(), cpu());
    let mut clients = JoinSet::new();
    for (computers, password) in users {
        clients.spawn(sign_in_often(way.clone(), address, key.clone(), computers, password));
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    let took = begun.elapsed().as_secs_f64();
    let sign_ins = (CLIENTS * SIGN_INS_EACH) as f64;
    println!("{title}: {:.0} sign-ins a second ({CLIENTS} clients, {sign_ins} sign-ins, {took:.1} s)", sign_ins / took);
    println!(
        "    this process (clients{}) {:.2} ms of CPU a sign-in",
        network_in(&way),
        (cpu() - own) * 1000.0 / sign_ins
    );
    drop(child.stdin.take());
    let mut rest = String::new();
    says.read_to_string(&mut rest)?;
    print!("{rest}");
    child.wait()?;
    Ok(())
}

const fn network_in(way: &Way) -> &'static str {
    match way {
        Way::Circuits(_) => " and the network's five nodes",
        Way::Direct => "",
    }
}

/// Two computers in turn, so that each time is a challenge and a new session.
async fn sign_in_often(
    way: Way,
    address: SocketAddr,
    key: PublicKey,
    mut computers: [Session; 2],
    password: PasswordKey,
) -> Result<(), Failure> {
    for time in 0..SIGN_INS_EACH {
        let session = &mut computers[time % 2];
        let said = match &way {
            Way::Circuits(node) => {
                let client = Client::new(Route::Node(node.clone()), Target::from(address), DEADLINE);
                match client.connect(&key).await?.sign_in(session, &password).await? {
                    Said::Log(status) => Some(status),
                    _ => None,
                }
            }
            Way::Direct => sign_in_directly(address, &key, session, &password).await?,
        };
        if !matches!(said, Some(Status::SignedIn(_))) {
            return Err(format!("{said:?} instead of a session").into());
        }
    }
    Ok(())
}

async fn sign_in_directly(
    address: SocketAddr,
    key: &PublicKey,
    session: &mut Session,
    password: &PasswordKey,
) -> Result<Option<Status>, Failure> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut greeting = [0; GREETING_LEN];
    stream.read_exact(&mut greeting).await?;
    let greeting = Greeting::parse(&greeting)?;
    let mut connection = Connection::new(&greeting, key, &mut SYSTEM.clone())?;
    let mut frame = Frame::new();
    connection.sign_in(session, &mut SYSTEM.clone(), &mut frame)?;
    let mut status = None;
    for _round in 0..2 {
        stream.write_all(frame.as_ref()).await?;
        let mut field = [0; LENGTH_LEN];
        stream.read_exact(&mut field).await?;
        let mut reply = vec![0; connection.frame_len(field)?];
        stream.read_exact(&mut reply).await?;
        match connection.handle(session, &mut reply)? {
            bulbil_core::auth::client::Reply::Challenged => connection.answer(session, password, &mut frame)?,
            bulbil_core::auth::client::Reply::Log(told) => {
                status = Some(told);
                break;
            }
            bulbil_core::auth::client::Reply::Note(_) => break,
        }
    }
    Ok(status)
}
