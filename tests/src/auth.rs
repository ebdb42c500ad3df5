//! The authentication server as a process, and what stands between it and the exit.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulbil_core::auth::client::Session;
use bulbil_core::auth::key::SessionSecret;
use bulbil_core::auth::{GREETING_LEN, PasswordKey, PublicKey, Username};
use bulbil_core::wire::Target;
use bulbil_host::auth::client::Client;
use bulbil_host::auth::route::Route;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::{IDENTITIES, identity_der};
use crate::processes::{PATIENCE, Process};

/// The cheapest Argon2id that clients accept.
pub const CHEAP: &str = "19456,2,1";

/// A running `bulbil auth serve`.
pub struct ServerProcess {
    /// The process.
    pub process: Process,
    /// What it is pinned by.
    pub fingerprint: String,
    /// Where it listens.
    pub address: SocketAddr,
}

impl ServerProcess {
    /// Starts the server of the directory `state` at `address` and waits until it is ready.
    ///
    /// # Panics
    /// It does not become ready.
    #[must_use]
    pub fn start(program: &str, state: &Path, address: SocketAddr, more: &[&str]) -> Self {
        let (state, address) = (state.to_str().expect("a plain path"), address.to_string());
        let mut arguments = vec!["auth", "serve", "--state", state, "--listen", &address, "--argon2", CHEAP];
        arguments.extend_from_slice(more);
        let mut process = Process::start(program, arguments);
        let fingerprint = process.line("fingerprint ");
        let address = process.line("listening ").parse().expect("an address");
        let ready = process.line("ready");
        assert!(ready.is_empty(), "ready is a word of its own");
        Self { process, fingerprint, address }
    }
}

/// A network in one process, and its SOCKS5 proxy.
pub struct NetProcess {
    /// The process.
    pub process: Process,
    /// The proxy.
    pub proxy: SocketAddr,
}

impl NetProcess {
    /// Starts `bulbil net` and waits until it is ready.
    ///
    /// # Panics
    /// It does not become ready.
    #[must_use]
    pub fn start(program: &str) -> Self {
        let mut process = Process::start(program, ["net", "--socks", "127.0.0.1:0"]);
        let proxy = process.line("socks ").parse().expect("an address");
        let _ready = process.line("ready");
        Self { process, proxy }
    }

    /// A client of the server at `server`, through this network.
    #[must_use]
    pub fn client(&self, server: SocketAddr) -> Client {
        Client::new(Route::socks(self.proxy), Target::from(server), PATIENCE)
    }
}

/// A session of `name` with one of the keys that never change.
///
/// # Panics
/// `name` is none.
#[must_use]
pub fn session(name: &str, server: &PublicKey, key: usize) -> Session {
    let secret = SessionSecret::from_pkcs8(identity_der(key % IDENTITIES)).expect("test keys are valid");
    Session::new(Username::new(name).expect("a good name"), server, secret)
}

/// The password key of a user with this number, as a constrained client is given it instead of a password.
#[must_use]
pub fn password_key(number: usize) -> PasswordKey {
    let mut bytes = [0x5a; 32];
    bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
    PasswordKey::new(bytes)
}

/// All bytes of one direction of one connection.
type Recording = Arc<Mutex<Vec<u8>>>;

/// Stands before a server, so that what the exit sends and what the server receives passes through it, and keeps every byte of both directions.
pub struct Recorder {
    /// Where it listens.
    pub address: SocketAddr,
    recordings: Arc<Mutex<Vec<[Recording; 2]>>>,
}

impl Recorder {
    /// Forwards to `server` from now on.
    ///
    /// # Panics
    /// There is no loopback.
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be listened on");
        let address = listener.local_addr().expect("a listener has an address");
        let recordings = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&recordings);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let both = [Recording::default(), Recording::default()];
                all.lock().unwrap_or_else(PoisonError::into_inner).push(both.clone());
                tokio::spawn(forward(client, server, both));
            }
        });
        Self { address, recordings }
    }

    /// What has passed: of each connection the client's bytes and the server's.
    ///
    /// # Panics
    /// Recording panicked.
    #[must_use]
    pub fn recorded(&self) -> Vec<[Vec<u8>; 2]> {
        let bytes = |recording: &Recording| recording.lock().expect("recording does not panic").clone();
        let all = self.recordings.lock().expect("recording does not panic");
        all.iter().map(|[client, server]| [bytes(client), bytes(server)]).collect()
    }
}

async fn forward(client: TcpStream, server: SocketAddr, [from_client, from_server]: [Recording; 2]) {
    // A server that is not there: the client's connection ends at once.
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((client_in, client_out), (server_in, server_out)) = (client.into_split(), server.into_split());
    tokio::join!(record(client_in, server_out, from_client), record(server_in, client_out, from_server));
}

async fn record(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, recording: Recording) {
    let mut part = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut part).await {
        recording.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&part[..read]);
        if to.write_all(&part[..read]).await.is_err() {
            return;
        }
    }
    let _gone = to.shutdown().await;
}

/// What somebody between the exit and the server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meddling {
    /// Nothing.
    None,
    /// Puts Argon2id's dearest parameters into the greeting.
    Dearest,
    /// Passes the server's key off as its own, and then has nothing to say to whoever seals to it.
    Silent,
    /// The same, but says something.
    Garbage,
}

/// Somebody between the exit and the server.
pub struct Middle {
    /// Where it listens.
    pub address: SocketAddr,
    how: Arc<Mutex<Meddling>>,
}

impl Middle {
    /// Forwards to `server` from now on.
    ///
    /// # Panics
    /// There is no loopback.
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be listened on");
        let address = listener.local_addr().expect("a listener has an address");
        let how = Arc::new(Mutex::new(Meddling::None));
        let this = Self { address, how: Arc::clone(&how) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let how = *how.lock().unwrap_or_else(PoisonError::into_inner);
                tokio::spawn(async move {
                    let _ended = meddle(client, server, how).await;
                });
            }
        });
        this
    }

    /// What it does with connections from now on.
    pub fn does(&self, how: Meddling) {
        *self.how.lock().unwrap_or_else(PoisonError::into_inner) = how;
    }
}

async fn meddle(mut client: TcpStream, server: SocketAddr, how: Meddling) -> std::io::Result<()> {
    let mut server = TcpStream::connect(server).await?;
    let mut greeting = [0; GREETING_LEN];
    server.read_exact(&mut greeting).await?;
    if how == Meddling::Dearest {
        // 1 GiB, 16 passes, 16 lanes.
        greeting[1..10].copy_from_slice(&[0, 0x10, 0, 0, 0, 0, 0, 16, 16]);
    }
    client.write_all(&greeting).await?;
    let mut length = [0; 2];
    client.read_exact(&mut length).await?;
    let sealed = u16::from_be_bytes(length) == 1841;
    if sealed && matches!(how, Meddling::Silent | Meddling::Garbage) {
        client.read_exact(&mut [0; 1841]).await?;
        if how == Meddling::Garbage {
            client.write_all(&1552u16.to_be_bytes()).await?;
            client.write_all(&[0x5a; 1552]).await?;
        }
        return client.shutdown().await;
    }
    server.write_all(&length).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
}

/// Resident memory of a process in bytes; `None` where the system does not tell as Linux does.
#[must_use]
pub fn resident(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// Waits for `future`, and panics if it takes much longer than it may on any machine.
///
/// # Panics
/// It does.
pub async fn patiently<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE + Duration::from_secs(240), future).await.expect("it ends")
}
