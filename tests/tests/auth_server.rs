//! The authentication server in bad times: killed in the middle of its work, flooded, and with fifty clients at once. Everything through circuits, but
//! for what an attacker sends, who need not.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::collections::BTreeSet;
use std::path::Path;

use bulbil_core::auth::{PublicKey, SessionNumber, Status};
use bulbil_host::auth::client::{Client, Said, TalkError};
use bulbil_host::auth::{database, place};
use bulbil_tests::auth::{NetProcess, ServerProcess, password_key, patiently, resident, session};
use bulbil_tests::processes::own_address;
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

/// Signs a user up at a server that is killed now and then: again and again until the answer is clear.
async fn sign_up(client: &Client, server: &PublicKey, number: usize, lives: &mut watch::Receiver<usize>) {
    let mut lost_an_answer = false;
    // One attempt for each of the server's lives is all that may fail.
    for _ in 0..=KILLS {
        let life = *lives.borrow_and_update();
        let attempt = async {
            let mut session = session(&name(number), server, number);
            client.connect(server).await?.sign_up(&mut session, &password_key(number)).await
        };
        match attempt.await {
            Ok(Said::Log(Status::SignedUp)) => return,
            // The lost answer would have been that it was done.
            Ok(Said::Log(Status::NameTaken)) if lost_an_answer => return,
            Ok(said) => panic!("{said:?} to {number}"),
            Err(error) => {
                eprintln!("{number}, life {life}: {error}");
                lost_an_answer = true;
                lives.wait_for(|now| *now > life).await.expect("the server is started again");
            }
        }
    }
    panic!("{number} was not signed up in any of the server's lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9_in_the_middle_of_1000_sign_ups() {
    let dir = Scratch::new("auth-kill");
    let state = dir.path().join("server");
    let net = NetProcess::start(PROGRAM);
    let address = own_address();
    let mut running = ServerProcess::start(PROGRAM, &state, address, &[]);
    let server = net.client(address).discover().await.unwrap();
    assert_eq!(server.fingerprint().to_string(), running.fingerprint);

    let (life, lives) = watch::channel(0);
    let acknowledged = watch::Sender::new(BTreeSet::new());
    let mut clients = JoinSet::new();
    for start in 0..CLIENTS {
        let (client, server, mut lives) = (net.client(address), server.clone(), lives.clone());
        let acknowledged = acknowledged.clone();
        clients.spawn(async move {
            for number in (start..SIGN_UPS).step_by(CLIENTS) {
                sign_up(&client, &server, number, &mut lives).await;
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
        running.process.kill();
        let before = acknowledged.borrow().clone();
        // What was said to be there is there, at once and without repair by anybody.
        let there: BTreeSet<_> = stored(&state).into_iter().map(|(name, _)| name).collect();
        assert!(before.is_subset(&there), "{:?} are lost", before.difference(&there).collect::<Vec<_>>());
        running = ServerProcess::start(PROGRAM, &state, address, &[]);
        life.send_modify(|life| *life += 1);
    }
    patiently(async { while clients.join_next().await.transpose().unwrap().is_some() {} }).await;

    let expected: Vec<_> = (0..SIGN_UPS).map(|number| (name(number), 0)).collect();
    assert_eq!(stored(&state), expected);

    // Counters: sign-ins, a kill in their middle, and sign-ins again; a number comes once.
    let mut heard = vec![0; 40];
    for round in 0..4 {
        for (number, heard) in heard.iter_mut().enumerate() {
            let mut session = session(&name(number), &server, number + round);
            let mut conversation = net.client(address).connect(&server).await.unwrap();
            match conversation.sign_in(&mut session, &password_key(number)).await.unwrap() {
                Said::Log(Status::SignedIn(SessionNumber(now))) => {
                    assert!(now > *heard, "{now} after {heard}");
                    *heard = now;
                }
                said => panic!("{said:?}"),
            }
            if number == 20 {
                running.process.kill();
                running = ServerProcess::start(PROGRAM, &state, address, &[]);
            }
        }
    }
    assert!(heard.iter().all(|heard| *heard == 4), "{heard:?}");
    assert!(running.process.terminate().success());
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

/// An honest client's whole visit.
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
