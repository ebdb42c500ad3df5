//! The demo's second half: an authentication server outside the network, and what honest users and others do with it.

use std::fs::DirBuilder;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bulbil_core::auth::client::{Act, Session};
use bulbil_core::auth::key::SessionSecret;
use bulbil_core::auth::{KdfParameters, PasswordKey, PublicKey, SessionNumber, Status, Username};
use bulbil_core::wire::Target;
use rand_core::Rng as _;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use super::{failed, milliseconds};
use crate::auth::argon;
use crate::auth::client::{Client, Said, TalkError};
use crate::auth::database::{USERS_MAX, Writing};
use crate::auth::place::Place;
use crate::auth::route::Route;
use crate::auth::server::{AuthServer, Limits, PlaceKept};
use crate::commands::Failure;
use crate::net::Network;
use crate::node::Node;
use crate::random::SYSTEM;
use crate::shutdown::Shutdown;

const USER: &str = "alice";
const PASSWORD: &[u8] = b"correct horse battery staple";
const NOTE: &[u8] = b"water the onions";
/// Time for each answer. Long: the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs the whole scenario.
pub(super) async fn scenario(network: &Network) -> Result<(), Failure> {
    println!("\n5. Sign up, sign in by challenge, act and disconnect at a server outside the network");
    let server = Server::start().await?;
    let outcome = steps(network, &server).await;
    server.stop().await;
    outcome
}

/// A directory of the moment; removed when dropped, on whatever path.
struct Moment(PathBuf);

impl Moment {
    /// Nobody else may be in it or have made it: its name cannot be guessed, and one that is there already is refused.
    fn new() -> Result<Self, Failure> {
        let mut name = [0; 16];
        SYSTEM.clone().fill_bytes(&mut name);
        let path = std::env::temp_dir().join(format!("bulbil-demo-{:032x}", u128::from_be_bytes(name)));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(Failure::system(format!("make the directory {}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Moment {
    fn drop(&mut self) {
        // What stays in the directory for temporary files is the system's to remove.
        let _left_behind = std::fs::remove_dir_all(&self.0);
    }
}

/// The server, in a directory of the moment.
struct Server {
    address: SocketAddr,
    server: AuthServer,
    kept: PlaceKept,
    writing: Writing,
    stop: Shutdown,
    serving: tokio::task::JoinHandle<()>,
    dir: Moment,
}

impl Server {
    async fn start() -> Result<Self, Failure> {
        let dir = Moment::new()?;
        let place = Place::open(&dir.0, KdfParameters::DEFAULT)?;
        let (database, writing) = place.database(USERS_MAX)?;
        let (server, kept) = AuthServer::new(place, database, Limits::default());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.map_err(Failure::system("start the authentication server on loopback"))?;
        let address = listener.local_addr().map_err(Failure::system("find the authentication server's address"))?;
        let stop = Shutdown::new();
        let serving = tokio::spawn(server.clone().serve(listener, stop.clone()));
        Ok(Self { address, server, kept, writing, stop, serving, dir })
    }

    async fn stop(self) {
        self.stop.request();
        let _panicked = self.serving.await;
        let (server, kept, writing, dir) = (self.server, self.kept, self.writing, self.dir);
        let ended = spawn_blocking(move || {
            drop(server);
            kept.end(writing);
            drop(dir);
        });
        let _panicked = ended.await;
    }
}

/// A computer: a client node of its own, and its session.
struct Computer {
    node: Node,
    client: Client,
    server: PublicKey,
    session: Session,
}

impl Computer {
    fn new(node: Node, server: &Server, session: Session) -> Self {
        let client = Client::new(Route::Node(node.clone()), Target::from(server.address), DEADLINE);
        Self { node, client, server: server.server.public().clone(), session }
    }

    async fn sign_up(&mut self, key: &PasswordKey) -> Result<Said, TalkError> {
        self.client.connect(&self.server).await?.sign_up(&mut self.session, key).await
    }

    async fn sign_in(&mut self, key: &PasswordKey) -> Result<Said, TalkError> {
        self.client.connect(&self.server).await?.sign_in(&mut self.session, key).await
    }

    async fn act(&mut self, act: Act<'_>) -> Result<Said, TalkError> {
        self.client.connect(&self.server).await?.act(&mut self.session, act).await
    }

    async fn disconnect(&mut self) -> Result<Said, TalkError> {
        self.client.connect(&self.server).await?.disconnect(&mut self.session).await
    }
}

/// Keys and sessions take a while to make.
async fn blocking<T: Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    spawn_blocking(make).await.map_err(|error| failed("a worker thread", error))
}

async fn session(server: &PublicKey) -> Result<Session, Failure> {
    let server = server.clone();
    blocking(move || Session::new(user(), &server, SessionSecret::generate(&mut SYSTEM.clone()))).await
}

async fn hashed(
    password: &'static [u8],
    server: &PublicKey,
    parameters: KdfParameters,
) -> Result<PasswordKey, Failure> {
    let server = server.clone();
    blocking(move || argon::password_key(password, &server, &user(), parameters)).await
}

fn user() -> Username {
    Username::new(USER).expect("letters")
}

async fn steps(network: &Network, server: &Server) -> Result<(), Failure> {
    let public = server.server.public().clone();
    let mut first = Computer::new(network.client.clone(), server, session(&public).await?);

    // What the operator said is what the network brings.
    let found = first.client.discover().await.map_err(|error| failed("asking for the server's key", error))?;
    if found != public {
        return Err(failed("the server's key", "its fingerprint is not the one that is pinned"));
    }
    println!(
        "   server at {}, outside the network; its key, asked for through a circuit, has the pinned fingerprint",
        server.address
    );
    println!("   {}", found.fingerprint());
    let parameters =
        first.client.confirm(&public).await.map_err(|error| failed("asking for Argon2id's parameters", error))?;
    let before = Instant::now();
    let right = hashed(PASSWORD, &public, parameters).await?;
    println!(
        "   password hashed with Argon2id ({} MiB, {} passes) in {}",
        parameters.memory() >> 10,
        parameters.passes(),
        milliseconds(before.elapsed())
    );
    let wrong = hashed(b"correct horse battery", &public, parameters).await?;

    let another = || async { network.another_client().await };
    let mut impostor = Computer::new(another().await?, server, session(&public).await?);
    let mut second = Computer::new(another().await?, server, session(&public).await?);
    let outcome = play(&mut first, &mut second, &mut impostor, &right, &wrong).await;
    impostor.node.shutdown().await;
    second.node.shutdown().await;
    outcome
}

async fn play(
    first: &mut Computer,
    second: &mut Computer,
    impostor: &mut Computer,
    right: &PasswordKey,
    wrong: &PasswordKey,
) -> Result<(), Failure> {
    let signed_in = |number| Said::Log(Status::SignedIn(SessionNumber(number)));
    let log = Said::Log;
    let note = || Said::Note(Zeroizing::new(NOTE.to_vec()));
    println!("   {:<62} {:<34} came, after", "step", "expected");

    step("alice signs up", log(Status::SignedUp), first.sign_up(right)).await?;
    step("somebody signs up under the same name", log(Status::NameTaken), impostor.sign_up(wrong)).await?;
    step("alice signs in with a wrong password", log(Status::Refused), first.sign_in(wrong)).await?;
    step("alice signs in", signed_in(1), first.sign_in(right)).await?;
    step("alice writes her note", log(Status::NoteKept), first.act(Act::Write(NOTE))).await?;
    step("an impostor on another node tries to disconnect alice", log(Status::Refused), impostor.disconnect()).await?;
    step("... to read her note", log(Status::Refused), impostor.act(Act::Read)).await?;
    step("... to sign in as alice, guessing", log(Status::Refused), impostor.sign_in(wrong)).await?;
    step("alice, undisturbed, reads her note", note(), first.act(Act::Read)).await?;
    let again = log(Status::AlreadySignedIn(SessionNumber(1)));
    step("alice signs in again while connected, no password asked", again, first.sign_in(wrong)).await?;
    step("alice disconnects", log(Status::Disconnected), first.disconnect()).await?;
    step("alice, disconnected, tries to read her note", log(Status::Refused), first.act(Act::Read)).await?;
    step("alice's first computer signs in", signed_in(2), first.sign_in(right)).await?;
    step("alice's second computer signs in", signed_in(3), second.sign_in(right)).await?;
    step("the first one, outdated now, tries to disconnect", log(Status::Refused), first.disconnect()).await?;
    step("... and to write", log(Status::Refused), first.act(Act::Write(b"too late"))).await?;
    step("the second one reads the note", note(), second.act(Act::Read)).await?;
    step("the second one disconnects", log(Status::Disconnected), second.disconnect()).await
}

fn told(said: &Said) -> String {
    match said {
        Said::Log(status) => status.to_string(),
        Said::Note(note) => format!("note {:?}", String::from_utf8_lossy(note)),
        Said::Challenged => "a challenge".into(),
    }
}

/// Takes a step, says what was expected and what came, and fails unless they are the same.
async fn step(
    title: &str,
    expected: Said,
    outcome: impl Future<Output = Result<Said, TalkError>>,
) -> Result<(), Failure> {
    let before = Instant::now();
    let outcome = outcome.await;
    let came = outcome.as_ref().map_or_else(ToString::to_string, told);
    println!("   {title:<62} {:<34} {came}, {}", told(&expected), milliseconds(before.elapsed()));
    match outcome {
        Ok(said) if said == expected => Ok(()),
        _ => Err(failed(title, format_args!("{} was expected, {came} came", told(&expected)))),
    }
}
