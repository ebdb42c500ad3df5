use std::path::PathBuf;

use bulbil_core::auth::client::{self, Act, Discovery, Session};
use bulbil_core::auth::envelope::Greeting;
use bulbil_core::auth::key::SessionSecret;
use bulbil_core::auth::{GREETING_LEN, KdfParameters, PasswordKey, SessionNumber, Username};
use nix::errno::Errno;
use tokio::io::{DuplexStream, duplex};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, yield_now};

use super::*;
use crate::auth::database::tests::{make_room, nearly_full};
use crate::auth::database::{Database, USERS_MAX};
use crate::auth::place::users_path;
use crate::scratch::Scratch;

struct World {
    server: AuthServer,
    users: PathBuf,
    _kept: PlaceKept,
    _writing: Writing,
    _dir: Scratch,
}

fn world() -> World {
    world_with(|_| Ok(()))
}

/// `limit` is given the database's writing connection.
fn world_with(limit: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<()>) -> World {
    let dir = Scratch::new("auth-server");
    let path = dir.path().join("server");
    let place = Place::open(&path, KdfParameters::FLOOR).unwrap();
    let users = users_path(&path);
    let (database, writing) = Database::open_limited(&users, USERS_MAX, limit).unwrap();
    let (server, kept) = AuthServer::new(place, database, Limits::default());
    World { server, users, _kept: kept, _writing: writing, _dir: dir }
}

/// A client's side of a conversation.
struct Talk<S> {
    stream: S,
    connection: client::Connection,
    session: Session,
    frame: Frame,
}

const PASSWORD_KEY: PasswordKey = PasswordKey::new([7; 32]);

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
    async fn new(mut stream: S, name: &str, server: &PublicKey) -> Self {
        let mut greeting = [0; GREETING_LEN];
        stream.read_exact(&mut greeting).await.unwrap();
        let greeting = Greeting::parse(&greeting).unwrap();
        let connection = client::Connection::new(&greeting, server, &mut SYSTEM.clone()).unwrap();
        let key = include_bytes!("../../../../core/tests/vectors/rsa/test-key-0.der");
        let session = Session::new(Username::new(name).unwrap(), server, SessionSecret::from_pkcs8(key).unwrap());
        Self { stream, connection, session, frame: Frame::new() }
    }

    async fn send(&mut self) {
        self.stream.write_all(self.frame.as_ref()).await.unwrap();
    }

    /// What is answered: a status, or the note, or nothing if that is a challenge.
    async fn reply(&mut self) -> Result<Vec<u8>, Option<Status>> {
        let mut field = [0; LENGTH_LEN];
        self.stream.read_exact(&mut field).await.unwrap();
        let mut reply = vec![0; self.connection.frame_len(field).unwrap()];
        self.stream.read_exact(&mut reply).await.unwrap();
        match self.connection.handle(&mut self.session, &mut reply).unwrap() {
            client::Reply::Note(note) => Ok(note.to_vec()),
            client::Reply::Log(status) => Err(Some(status)),
            client::Reply::Challenged => Err(None),
        }
    }

    async fn send_sign_up(&mut self) {
        self.connection.sign_up(&self.session, &PASSWORD_KEY, &mut SYSTEM.clone(), &mut self.frame).unwrap();
        self.send().await;
    }

    async fn sign_up(&mut self) -> Status {
        self.send_sign_up().await;
        self.reply().await.unwrap_err().unwrap()
    }

    async fn sign_in(&mut self) -> Status {
        self.connection.sign_in(&self.session, &mut SYSTEM.clone(), &mut self.frame).unwrap();
        self.send().await;
        if let Err(Some(status)) = self.reply().await {
            return status;
        }
        self.connection.answer(&self.session, &PASSWORD_KEY, &mut self.frame).unwrap();
        self.send().await;
        self.reply().await.unwrap_err().unwrap()
    }

    async fn act(&mut self, act: Act<'_>) -> Result<Vec<u8>, Option<Status>> {
        self.connection.act(&self.session, act, &mut SYSTEM.clone(), &mut self.frame).unwrap();
        self.send().await;
        self.reply().await
    }
}

/// The server on a socket: what is connected to, and what ends with it.
async fn listening(world: &World, shutdown: &Shutdown) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (address, tokio::spawn(world.server.clone().serve(listener, shutdown.clone())))
}

/// A client's end of a connection that is being served.
fn connect(world: &World) -> (DuplexStream, JoinHandle<()>) {
    let (ours, theirs) = duplex(64 << 10);
    let shared = Arc::clone(&world.server.shared);
    let serving = tokio::spawn(async move {
        let seat = shared.admit(SocketAddr::from(([192, 0, 2, 1], 1))).unwrap();
        shared.converse(theirs, &seat).await;
    });
    (ours, serving)
}

async fn greeting(stream: &mut DuplexStream) -> Greeting {
    let mut greeting = [0; GREETING_LEN];
    stream.read_exact(&mut greeting).await.unwrap();
    Greeting::parse(&greeting).unwrap()
}

/// Virtual time: deadlines pass when nothing else can happen.
#[tokio::test(start_paused = true)]
async fn who_says_nothing_or_half_is_closed_in_time() {
    let world = world();
    for (said, deadline) in [(&b""[..], 30), (&[6], 20), (&[7, 0x31], 20), (&[7, 0x31, 1, 2, 3], 20)] {
        let (mut stream, serving) = connect(&world);
        let _greeting = greeting(&mut stream).await;
        let before = tokio::time::Instant::now();
        stream.write_all(said).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(before.elapsed().as_secs(), deadline, "{said:?}");
        serving.await.unwrap();
    }
    assert!(world.server.shared.places().admit(IpAddr::from([192, 0, 2, 1])).is_some_and(|one| !one.evicted));
}

#[tokio::test]
async fn a_wrong_length_is_refused_before_its_bytes() {
    let world = world();
    for length in [0u16, 1, 1551, 1552, 1584, 1586, 1840, 1842, u16::MAX] {
        let (mut stream, serving) = connect(&world);
        let _greeting = greeting(&mut stream).await;
        stream.write_all(&length.to_be_bytes()).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "{length}");
        serving.await.unwrap();
    }
    let (mut stream, serving) = connect(&world);
    let _greeting = greeting(&mut stream).await;
    stream.write_all(&1841u16.to_be_bytes()).await.unwrap();
    stream.write_all(&[0x5a; 1841]).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "garbage of the right length");
    serving.await.unwrap();
    assert_eq!(world.server.counts().failed, 10);
}

#[tokio::test(start_paused = true)]
async fn an_answered_client_may_pause_for_a_minute() {
    let world = world();
    let (mut stream, serving) = connect(&world);
    let greeting = greeting(&mut stream).await;
    let mut frame = Frame::new();
    let discovery = Discovery::new(&greeting, &mut SYSTEM.clone(), &mut frame).unwrap();
    stream.write_all(frame.as_ref()).await.unwrap();
    let mut field = [0; LENGTH_LEN];
    stream.read_exact(&mut field).await.unwrap();
    let mut reply = vec![0; discovery.frame_len(field).unwrap()];
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(discovery.handle(&mut reply).unwrap(), *world.server.public());
    let before = tokio::time::Instant::now();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(before.elapsed().as_secs(), 60);
    serving.await.unwrap();
    let counts = world.server.counts();
    assert_eq!((counts.accepted, counts.answered, counts.failed), (1, 1, 0));
}

#[test]
fn addresses_are_grouped_by_who_may_own_them() {
    let of = |text: &str| group(text.parse().unwrap());
    assert_eq!(of("192.0.2.1:1"), of("[::ffff:192.0.2.1]:2"));
    assert_ne!(of("192.0.2.1:1"), of("192.0.2.2:1"));
    assert_eq!(of("[2001:db8::1]:1"), of("[2001:db8::ffff:2]:1"));
    assert_ne!(of("[2001:db8::1]:1"), of("[2001:db8:0:1::1]:1"));
}

#[test]
fn only_want_of_resources_makes_others_give_way() {
    for (code, exhaustion) in [
        (Errno::EMFILE, true),
        (Errno::ENFILE, true),
        (Errno::ENOMEM, true),
        (Errno::ECONNABORTED, false),
        (Errno::EPERM, false),
    ] {
        assert_eq!(is_exhaustion(&io::Error::from_raw_os_error(code as i32)), exhaustion, "{code}");
    }
    assert!(!is_exhaustion(&io::Error::other("no number")));
}

#[tokio::test]
async fn after_shutdown_what_is_in_work_is_answered_and_nothing_else_begins() {
    let world = world();
    let shutdown = Shutdown::new();
    let (address, serving) = listening(&world, &shutdown).await;
    let public = world.server.public().clone();
    let connect = async |name| Talk::new(TcpStream::connect(address).await.unwrap(), name, &public).await;
    let (mut alice, mut bob) = (connect("alice").await, connect("bob").await);
    let mut carol = connect("carol").await;
    assert_eq!(carol.sign_up().await, Status::SignedUp);

    // Somebody else writes: what alice asks takes as long as that.
    let blocker = rusqlite::Connection::open(&world.users).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    alice.send_sign_up().await;
    while world.server.shared.answering.available_permits() == ANSWERING {
        yield_now().await;
    }
    shutdown.request();
    // Those that only wait are closed: the server has heard of it.
    for waiting in [&mut bob.stream, &mut carol.stream] {
        assert_eq!(waiting.read(&mut [0]).await.unwrap(), 0);
    }
    // If this were taken as a request, it would count as failed.
    alice.stream.write_all(&1552u16.to_be_bytes()).await.unwrap();
    alice.stream.write_all(&[0x5a; 1552]).await.unwrap();
    blocker.execute_batch("COMMIT").unwrap();
    assert_eq!(alice.reply().await, Err(Some(Status::SignedUp)));
    serving.await.unwrap();
    let counts = world.server.counts();
    assert_eq!((counts.accepted, counts.answered, counts.signed_up, counts.failed), (3, 2, 2, 0));
    assert!(world.server.failure().is_none());
}

#[tokio::test]
async fn with_a_full_database_file_nobody_signs_up_and_all_else_goes_on() {
    let world = world_with(nearly_full);
    let public = world.server.public().clone();
    let mut serving = JoinSet::new();
    let mut talk = async |name: &str| {
        let (stream, server) = connect(&world);
        serving.spawn(server);
        Talk::new(stream, name, &public).await
    };
    let mut alice = talk("alice").await;
    assert_eq!(alice.sign_up().await, Status::SignedUp);
    let mut refused = None;
    for number in 0..20 {
        let name = format!("user{number}");
        let mut newcomer = talk(&name).await;
        match newcomer.sign_up().await {
            Status::SignedUp => {}
            status => {
                assert_eq!(status, Status::Unavailable);
                refused = Some(newcomer);
                break;
            }
        }
    }
    let mut refused = refused.expect("the bound holds");
    assert_eq!(refused.sign_up().await, Status::Unavailable, "again, on the same connection");
    assert_eq!(alice.sign_in().await, Status::SignedIn(SessionNumber(1)));
    assert_eq!(alice.act(Act::Write(b"water the onions")).await, Err(Some(Status::NoteKept)));
    assert_eq!(alice.act(Act::Read).await, Ok(b"water the onions".to_vec()));
    assert!(world.server.failure().is_none());
    make_room(&world.users);
    assert_eq!(refused.sign_up().await, Status::SignedUp);
    assert_eq!(refused.sign_in().await, Status::SignedIn(SessionNumber(1)));
}

/// How many send garbage at any time, each of them one frame.
const FLOODERS: usize = 32;

/// Garbage costs the server's private key as much as honest requests do, so its sender cannot be told apart before. What is counted is how much
/// garbage is judged while an honest client waits for an answer: whatever the machine, no more than was there before, and what comes
/// in while the threads of this test, which do the work of both sides, wait for a core. If newcomers went first, it would have no bound.
#[tokio::test(flavor = "multi_thread")]
async fn others_garbage_holds_a_request_up_no_longer_than_its_turn() {
    const VISITS: usize = 40;
    let world = world();
    let (address, serving) = listening(&world, &Shutdown::new()).await;
    let public = world.server.public().clone();
    let connect = async || Talk::new(TcpStream::connect(address).await.unwrap(), "alice", &public).await;
    let mut alice = connect().await;
    assert_eq!(alice.sign_up().await, Status::SignedUp);
    assert_eq!(alice.sign_in().await, Status::SignedIn(SessionNumber(1)));

    let mut flood = JoinSet::new();
    for _ in 0..FLOODERS {
        let public = public.clone();
        flood.spawn(async move {
            let mut silent = std::collections::VecDeque::new();
            loop {
                // One that says nothing, too: all places are taken.
                silent.push_back(TcpStream::connect(address).await.unwrap());
                silent.drain(..silent.len().saturating_sub(25));
                let mut flooder = Talk::new(TcpStream::connect(address).await.unwrap(), "mallory", &public).await;
                // That it is garbage shows at its end only.
                flooder.connection.confirm(&mut flooder.frame).unwrap();
                let mut garbage = flooder.frame.as_ref().to_vec();
                *garbage.last_mut().unwrap() ^= 1;
                flooder.stream.write_all(&garbage).await.unwrap();
                let _closed = flooder.stream.read_to_end(&mut Vec::new()).await;
            }
        });
    }
    let judged = || world.server.counts().failed;
    while judged() < 10 * FLOODERS as u64 {
        yield_now().await;
    }
    let mut waited = Vec::new();
    for _ in 0..VISITS {
        // Nothing is tried again: who was closed, or not answered, has failed. And nothing waits for the disk, which has its own pace.
        let mut alice = connect().await;
        let before = judged();
        assert_eq!(alice.sign_in().await, Status::AlreadySignedIn(SessionNumber(1)));
        waited.push(judged() - before);
        let before = judged();
        assert_eq!(alice.act(Act::Read).await, Ok(Vec::new()));
        waited.push(judged() - before);
    }
    waited.sort_unstable();
    let nth = |tenths| waited[waited.len() * tenths / 10];
    let counts = world.server.counts();
    println!("judged while waiting: median {}, nine of ten at most {}; {counts:?}", nth(5), nth(9));
    assert!(nth(5) <= 2 * FLOODERS as u64, "{waited:?}");
    // The longest tell how long this thread was without a core.
    assert!(nth(9) <= 20 * FLOODERS as u64, "{waited:?}");
    assert!(counts.evicted > 0 && counts.refused == 0, "{counts:?}");
    flood.shutdown().await;
    serving.abort();
}

#[tokio::test]
async fn a_server_whose_database_is_lost_stops_by_itself() {
    let world = world();
    let (address, serving) = listening(&world, &Shutdown::new()).await;
    let mut alice = Talk::new(TcpStream::connect(address).await.unwrap(), "alice", world.server.public()).await;
    assert_eq!(alice.sign_up().await, Status::SignedUp);
    rusqlite::Connection::open(&world.users).unwrap().execute("DROP TABLE users", []).unwrap();
    assert_eq!(alice.sign_in().await, Status::Unavailable);
    serving.await.unwrap();
    assert_eq!(alice.stream.read(&mut [0]).await.unwrap(), 0);
    let told = world.server.failure().unwrap().to_string();
    assert!(told.contains("failed for good") && told.contains("start the server again"), "{told}");
}
