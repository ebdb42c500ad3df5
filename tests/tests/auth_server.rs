//! The authentication server in bad times: killed in the middle of its work, flooded, and with fifty clients at once. Everything through circuits, but
//! for what an attacker sends, who need not.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use bulbil_core::auth::client::Act;
use bulbil_core::auth::{PublicKey, SessionNumber, Status};
use bulbil_host::auth::client::{Client, Said, TalkError};
use bulbil_host::auth::{database, place};
use bulbil_tests::auth::{NetProcess, ServerProcess, password_key, patiently, resident, session};
use bulbil_tests::fixture::IDENTITIES;
use bulbil_tests::processes::{Process, own_address};
use bulbil_tests::scratch::Scratch;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

const PROGRAM: &str = env!("CARGO_BIN_EXE_bulbil-under-test");

const SIGN_UPS: usize = 1000;
const CLIENTS: usize = 8;
const KILLS: usize = 5;

fn name(number: usize) -> String {
    format!("user-{number:04}")
}

fn signed_in(number: u64) -> Said {
    Said::Log(Status::SignedIn(SessionNumber(number)))
}

fn stored(state: &Path) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    // Every record is decoded: one that is half there fails.
    database::list(&place::users_path(state), |user| all.push((user.username, user.sessions))).unwrap();
    all
}

/// A server that is killed now and then, and started again at the same address.
struct Mortal {
    running: ServerProcess,
    state: PathBuf,
    /// How many times it was started again.
    life: watch::Sender<usize>,
}

impl Mortal {
    fn start(state: PathBuf) -> Self {
        let running = ServerProcess::start(PROGRAM, &state, own_address(), &[]);
        Self { running, state, life: watch::Sender::new(0) }
    }

    fn kill(&mut self) {
        self.running.process.kill();
    }

    fn revive(&mut self) {
        self.running = ServerProcess::start(PROGRAM, &self.state, self.running.address, &[]);
        self.life.send_modify(|life| *life += 1);
    }
}

/// Asks until there is an answer: once in each of the server's lives is all that may fail. Answers what was said, and how many answers
/// may have been lost before: whoever did not reach the server has asked nothing.
async fn ask<F: Future<Output = Result<Said, TalkError>>>(
    who: &str,
    lives: &mut watch::Receiver<usize>,
    attempt: impl Fn() -> F,
) -> (Said, u64) {
    let mut lost = 0;
    for _ in 0..=KILLS {
        let life = *lives.borrow_and_update();
        match attempt().await {
            Ok(said) => return (said, lost),
            Err(error) => {
                eprintln!("{who}, life {life}: {error}");
                lost += u64::from(!matches!(error, TalkError::Route(_)));
                lives.wait_for(|now| *now > life).await.expect("the server is started again");
            }
        }
    }
    panic!("{who} got no answer in any of the server's lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9_in_the_middle_of_1000_sign_ups() {
    let dir = Scratch::new("auth-kill");
    let net = NetProcess::start(PROGRAM);
    let mut mortal = Mortal::start(dir.path().join("server"));
    let address = mortal.running.address;
    let server = net.client(address).discover().await.unwrap();
    assert_eq!(server.fingerprint().to_string(), mortal.running.fingerprint);

    let acknowledged = watch::Sender::new(BTreeSet::new());
    let mut clients = JoinSet::new();
    for start in 0..CLIENTS {
        let (client, server, mut lives) = (net.client(address), server.clone(), mortal.life.subscribe());
        let acknowledged = acknowledged.clone();
        clients.spawn(async move {
            for number in (start..SIGN_UPS).step_by(CLIENTS) {
                let sign_up = || async {
                    let mut session = session(&name(number), &server, number);
                    client.connect(&server).await?.sign_up(&mut session, &password_key(number)).await
                };
                match ask(&name(number), &mut lives, sign_up).await {
                    (Said::Log(Status::SignedUp), _) => {}
                    // A lost answer would have been that it was done.
                    (Said::Log(Status::NameTaken), 1..) => {}
                    said => panic!("{said:?} to {number}"),
                }
                acknowledged.send_modify(|all| {
                    all.insert(name(number));
                });
            }
        });
    }
    let mut progress = acknowledged.subscribe();
    for kill in 1..=KILLS {
        let due = kill * SIGN_UPS / (KILLS + 1);
        patiently(progress.wait_for(|all| all.len() >= due)).await.unwrap();
        mortal.kill();
        let before = acknowledged.borrow().clone();
        // What was said to be there is there, at once and without repair by anybody.
        let there: BTreeSet<_> = stored(&mortal.state).into_iter().map(|(name, _)| name).collect();
        assert!(before.is_subset(&there), "{:?} are lost", before.difference(&there).collect::<Vec<_>>());
        mortal.revive();
    }
    patiently(async { while clients.join_next().await.transpose().unwrap().is_some() {} }).await;

    let expected: Vec<_> = (0..SIGN_UPS).map(|number| (name(number), 0)).collect();
    assert_eq!(stored(&mortal.state), expected);
    assert!(mortal.running.process.terminate().success());
}

/// Sessions between one kill and the next.
const SIGN_INS: usize = 60;
/// Computers of each user, with three keys each.
const COMPUTERS: usize = IDENTITIES / 3;

/// What the clients of one user have heard.
#[derive(Clone, Default)]
struct Heard {
    numbers: BTreeSet<u64>,
    /// Answers that were lost: no more sessions than that were begun without being heard of.
    lost: u64,
}

impl Heard {
    fn highest(&self) -> u64 {
        self.numbers.last().copied().unwrap_or(0)
    }
}

/// Eight clients, two for each of four users, never pause: whenever the server is killed, requests of each kind are on their way, in work
/// or answered. Each sign-in begins another session, because its key is not that of the session there is.
#[tokio::test(flavor = "multi_thread")]
async fn session_numbers_only_grow_though_kill_9_comes_in_the_middle_of_sign_ins() {
    let dir = Scratch::new("auth-kill-sessions");
    let net = NetProcess::start(PROGRAM);
    let mut mortal = Mortal::start(dir.path().join("server"));
    let address = mortal.running.address;
    let server = net.client(address).discover().await.unwrap();
    let users = CLIENTS / COMPUTERS;
    for user in 0..users {
        let mut conversation = net.client(address).connect(&server).await.unwrap();
        let signed_up = conversation.sign_up(&mut session(&name(user), &server, 0), &password_key(user)).await.unwrap();
        assert_eq!(signed_up, Said::Log(Status::SignedUp));
    }

    let heard = watch::Sender::new(vec![Heard::default(); users]);
    let enough = watch::Sender::new(false);
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let (client, server, mut lives) = (net.client(address), server.clone(), mortal.life.subscribe());
        let (heard, enough) = (heard.clone(), enough.subscribe());
        let (user, computer) = (number % users, number / users);
        clients.spawn(async move {
            let mut last = 0;
            for round in 0.. {
                if *enough.borrow() {
                    break;
                }
                let sign_in = || async {
                    let mut session = session(&name(user), &server, computer * 3 + round % 3);
                    client.connect(&server).await?.sign_in(&mut session, &password_key(user)).await
                };
                let (now, lost) = match ask(&name(user), &mut lives, sign_in).await {
                    (Said::Log(Status::SignedIn(SessionNumber(now))), lost) => (now, lost),
                    // The lost answer would have been that this session had begun.
                    (Said::Log(Status::AlreadySignedIn(SessionNumber(now))), lost @ 1..) => (now, lost),
                    said => panic!("{said:?} to computer {computer} of {user}"),
                };
                assert!(now > last, "{now} after {last}");
                last = now;
                heard.send_modify(|heard| {
                    assert!(heard[user].numbers.insert(now), "{now} of {user} comes twice");
                    heard[user].lost += lost;
                });
            }
        });
    }
    let mut progress = heard.subscribe();
    let total = |heard: &Vec<Heard>| heard.iter().map(|heard| heard.numbers.len()).sum::<usize>();
    for kill in 1..=KILLS {
        patiently(progress.wait_for(|heard| total(heard) >= kill * SIGN_INS)).await.unwrap();
        mortal.kill();
        let before = heard.borrow().clone();
        for ((name, stored), heard) in stored(&mortal.state).into_iter().zip(before) {
            assert!(stored >= heard.highest(), "{name}: {stored} stored, {} heard", heard.highest());
        }
        mortal.revive();
    }
    patiently(progress.wait_for(|heard| total(heard) >= (KILLS + 1) * SIGN_INS)).await.unwrap();
    enough.send_replace(true);
    patiently(async { while clients.join_next().await.transpose().unwrap().is_some() {} }).await;

    let stored = stored(&mortal.state);
    assert_eq!(stored.len(), users);
    for ((name, stored), heard) in stored.into_iter().zip(&*heard.borrow()) {
        let unheard = stored.checked_sub(heard.numbers.len() as u64).expect("what is heard of is stored");
        assert!(stored >= heard.highest() && unheard <= heard.lost, "{name}: {stored} stored, {:?}", heard.numbers);
    }
    let lost: u64 = heard.borrow().iter().map(|heard| heard.lost).sum();
    println!("{lost} answers were lost in {KILLS} kills");
    assert!(lost > 0, "nobody was ever in flight");
    assert!(mortal.running.process.terminate().success());
}

/// Fifty clients, each a user of its own, each ten times.
#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_sign_ins_by_fifty_clients_at_once() {
    let dir = Scratch::new("auth-fifty");
    let net = NetProcess::start(PROGRAM);
    let mut running = ServerProcess::start(PROGRAM, &dir.path().join("server"), own_address(), &[]);
    let server = net.client(running.address).discover().await.unwrap();
    let mut clients = JoinSet::new();
    for number in 0..50 {
        let (client, server) = (net.client(running.address), server.clone());
        clients.spawn(async move {
            let (mut session, key) = (session(&name(number), &server, number), password_key(number));
            let mut first = client.connect(&server).await?;
            assert_eq!(first.sign_up(&mut session, &key).await?, Said::Log(Status::SignedUp));
            for time in 1..=10 {
                let mut conversation = client.connect(&server).await?;
                assert_eq!(conversation.sign_in(&mut session, &key).await?, signed_in(time));
                assert_eq!(conversation.disconnect(&mut session).await?, Said::Log(Status::Disconnected));
            }
            Ok::<_, TalkError>(())
        });
    }
    while let Some(client) = patiently(clients.join_next()).await {
        client.unwrap().unwrap();
    }
    let expected: Vec<_> = (0..50).map(|number| (name(number), 10)).collect();
    assert_eq!(stored(&dir.path().join("server")), expected);
    assert!(running.process.terminate().success());
}

/// An honest client's whole visit, in which nothing is tried again. How long it takes says more of the machine than of the server; that a flood does
/// not hold it up is counted where the server is in the same process: `others_garbage_holds_a_request_up_no_longer_than_its_turn`, a test of
/// the server's module.
async fn visit(client: &Client, server: &PublicKey, time: u64) -> Result<(), TalkError> {
    let mut session = session("honest", server, 1);
    let mut conversation = client.connect(server).await?;
    assert_eq!(conversation.sign_in(&mut session, &password_key(1)).await?, signed_in(time));
    assert_eq!(conversation.disconnect(&mut session).await?, Said::Log(Status::Disconnected));
    Ok(())
}

/// Most growth of the server's memory while it is flooded. 10,000 connections would take ten times as much, 1 GiB needs no explanation.
const GROWTH: u64 = 32 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_silence_and_garbage_keep_nobody_out_and_fill_no_memory() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let silent = 10_000;
    // Where the system allows fewer files, the oldest are closed by us: the server has closed them already.
    let held_max = silent.min(usize::try_from(hard).unwrap_or(usize::MAX).saturating_sub(500));

    let dir = Scratch::new("auth-flood");
    let net = NetProcess::start(PROGRAM);
    let mut running = ServerProcess::start(PROGRAM, &dir.path().join("server"), own_address(), &[]);
    let (address, id) = (running.address, running.process.id());
    let client = net.client(address);
    let server = client.discover().await.unwrap();
    let mut conversation = client.connect(&server).await.unwrap();
    let mut honest = session("honest", &server, 1);
    let signed_up = conversation.sign_up(&mut honest, &password_key(1)).await.unwrap();
    assert_eq!(signed_up, Said::Log(Status::SignedUp));
    let mut times = 0;
    for _ in 0..5 {
        times += 1;
        visit(&client, &server, times).await.unwrap();
    }
    let before = resident(id);

    // Garbage, empty connections, half messages: some closed by the server at once, the others held.
    let mut held = std::collections::VecDeque::new();
    let half = [&1841u16.to_be_bytes()[..], &[0x5a; 900]].concat();
    let garbage = [&1841u16.to_be_bytes()[..], &[0x5a; 1841]].concat();
    for said in [&b""[..], b"G", b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4096], &[0; 4096], &half, &garbage] {
        for _ in 0..50 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _closed = stream.write_all(said).await;
            held.push_back(stream);
        }
    }
    times += 1;
    visit(&client, &server, times).await.unwrap();

    // A message of 1 GiB: the server has closed long before its end.
    for announced in [0xff, 0, 7] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let part = vec![announced; 1 << 20];
        let sent = async {
            for _ in 0..1 << 10 {
                stream.write_all(&part).await?;
            }
            Ok::<_, std::io::Error>(())
        };
        assert!(patiently(sent).await.is_err(), "1 GiB was taken");
    }

    // 10,000 connections that say nothing, from the address that the honest one's come from, too.
    for number in 1..=silent {
        held.push_back(TcpStream::connect(address).await.unwrap());
        if held.len() > held_max {
            held.pop_front();
        }
        if number % 1000 == 0 {
            times += 1;
            visit(&client, &server, times).await.unwrap();
        }
    }
    for _ in 0..20 {
        times += 1;
        visit(&client, &server, times).await.unwrap();
    }
    if let (Some(before), Some(after)) = (before, resident(id)) {
        println!("{} KiB before, {} KiB while flooded", before >> 10, after >> 10);
        assert!(after < before + GROWTH, "{before} bytes became {after}");
    }
    drop(held);
    times += 1;
    visit(&client, &server, times).await.unwrap();
    assert!(running.process.terminate().success(), "{}", running.process.stderr());
}

/// Newcomers come on and on, more than there are places, while an honest client visits: no visit has to be repeated.
#[tokio::test(flavor = "multi_thread")]
async fn newcomers_in_waves_do_not_keep_others_out() {
    let dir = Scratch::new("auth-flow");
    let net = NetProcess::start(PROGRAM);
    let mut running =
        ServerProcess::start(PROGRAM, &dir.path().join("server"), own_address(), &["--connections", "64"]);
    let client = net.client(running.address);
    let server = client.discover().await.unwrap();
    let mut honest = session("honest", &server, 1);
    let mut conversation = client.connect(&server).await.unwrap();
    let signed_up = conversation.sign_up(&mut honest, &password_key(1)).await.unwrap();
    assert_eq!(signed_up, Said::Log(Status::SignedUp));
    let mut held = std::collections::VecDeque::new();
    for time in 1..=25 {
        for _ in 0..40 {
            held.push_back(TcpStream::connect(running.address).await.unwrap());
        }
        held.drain(..held.len().saturating_sub(200));
        visit(&client, &server, time).await.unwrap();
    }
    assert!(running.process.terminate().success());
}

/// What the disk holds is gone, under a server that runs: it does not go on for ever saying that it is not there.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_database_is_damaged_ends_and_says_what_to_do() {
    let dir = Scratch::new("auth-damaged");
    let state = dir.path().join("server");
    let net = NetProcess::start(PROGRAM);
    let mut running = ServerProcess::start(PROGRAM, &state, own_address(), &[]);
    let client = net.client(running.address);
    let server = client.discover().await.unwrap();
    let mut honest = session("honest", &server, 1);
    let mut conversation = client.connect(&server).await.unwrap();
    let signed_up = conversation.sign_up(&mut honest, &password_key(1)).await.unwrap();
    assert_eq!(signed_up, Said::Log(Status::SignedUp));
    for file in ["users.sqlite", "users.sqlite-wal"] {
        let path = state.join(file);
        let len = usize::try_from(path.metadata().unwrap().len()).unwrap();
        std::fs::write(&path, vec![0x5a; len]).unwrap();
    }
    assert_eq!(conversation.begin(&mut honest).await.unwrap(), Said::Log(Status::Unavailable));
    assert_eq!(running.process.end().code(), Some(1));
    let told = running.process.stderr();
    assert!(told.contains("error: the database") && told.contains("restore it from a backup"), "{told}");
}

/// On a disk of its own, in a namespace of its own; where the system gives none, or has no `unshare`, this says so and passes, unless
/// `BULBIL_TEST_TAP=1`.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_nothing_changes_until_there_is_room() {
    let dir = Scratch::new("auth-full");
    let disk = dir.path().to_str().unwrap();
    let mount = "mount -t tmpfs -o size=2m none \"$0\"";
    let possible = Command::new("unshare").args(["-rm", "sh", "-c", mount, disk]).status();
    if !possible.as_ref().is_ok_and(ExitStatus::success) {
        eprintln!("SKIPPED: no disk to fill: {possible:?}");
        assert!(std::env::var_os("BULBIL_TEST_TAP").is_none_or(|value| value != "1"), "and it is required");
        return;
    }
    let net = NetProcess::start(PROGRAM);
    let serve = format!("{mount} && exec \"$1\" auth serve --state \"$0/server\" --listen \"$2\" --argon2 19456,2,1");
    let listen = own_address().to_string();
    let mut process = Process::start("unshare", ["-rm", "sh", "-c", &serve, disk, PROGRAM, &listen]);
    let address = process.line("listening ").parse().unwrap();
    let client = net.client(address);
    let server = client.discover().await.unwrap();
    let mut honest = session("honest", &server, 1);
    let mut conversation = client.connect(&server).await.unwrap();
    let signed_up = conversation.sign_up(&mut honest, &password_key(1)).await.unwrap();
    assert_eq!(signed_up, Said::Log(Status::SignedUp));
    assert_eq!(conversation.sign_in(&mut honest, &password_key(1)).await.unwrap(), signed_in(1));
    let kept = || Said::Log(Status::NoteKept);
    assert_eq!(conversation.act(&mut honest, Act::Write(b"before")).await.unwrap(), kept());

    // The disk as its server sees it.
    let ballast = PathBuf::from(format!("/proc/{}/root{disk}/ballast", process.id()));
    let mut filling = std::fs::File::create(&ballast).unwrap();
    let full = std::iter::repeat_with(|| filling.write_all(&[0x5a; 4096])).find_map(Result::err).unwrap();
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    let unavailable = || Said::Log(Status::Unavailable);
    for time in 0..3 {
        assert_eq!(conversation.act(&mut honest, Act::Write(b"meanwhile")).await.unwrap(), unavailable(), "{time}");
        let note = conversation.act(&mut honest, Act::Read).await.unwrap();
        assert_eq!(note, Said::Note(b"before".to_vec().into()));
    }
    let mut newcomer = session("newcomer", &server, 2);
    let mut other = client.connect(&server).await.unwrap();
    assert_eq!(other.sign_up(&mut newcomer, &password_key(2)).await.unwrap(), unavailable());
    std::fs::remove_file(ballast).unwrap();
    drop(filling);
    assert_eq!(conversation.act(&mut honest, Act::Write(b"after")).await.unwrap(), kept());
    assert_eq!(other.sign_up(&mut newcomer, &password_key(2)).await.unwrap(), Said::Log(Status::SignedUp));
    assert!(process.terminate().success());
    let log = process.stderr();
    for once in ["no room on the disk for changes", "there is room on the disk again"] {
        assert_eq!(log.matches(once).count(), 1, "{log}");
    }
}

/// With fewer open files than connections it would be the system that refuses newcomers, and nobody would give way.
#[tokio::test(flavor = "multi_thread")]
async fn with_few_open_files_there_are_fewer_connections_and_nobody_is_kept_out() {
    let dir = Scratch::new("auth-files");
    let net = NetProcess::start(PROGRAM);
    let (state, address) = (dir.path().join("server"), own_address().to_string());
    let serve = "ulimit -n 100 && exec \"$0\" auth serve --state \"$1\" --listen \"$2\" --argon2 19456,2,1";
    let mut process = Process::start("sh", ["-c", serve, PROGRAM, state.to_str().unwrap(), &address]);
    let address = process.line("listening ").parse().unwrap();
    let client = net.client(address);
    let server = client.discover().await.unwrap();
    let mut conversation = client.connect(&server).await.unwrap();
    let signed_up = conversation.sign_up(&mut session("honest", &server, 1), &password_key(1)).await.unwrap();
    assert_eq!(signed_up, Said::Log(Status::SignedUp));
    let mut held = Vec::new();
    for time in 1..=5 {
        for _ in 0..100 {
            held.push(TcpStream::connect(address).await.unwrap());
        }
        visit(&client, &server, time).await.unwrap();
    }
    assert!(process.terminate().success());
    let log = process.stderr();
    assert!(log.contains("possible=36 wanted=768") && !log.contains("cannot accept"), "{log}");
}
