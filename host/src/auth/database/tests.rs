use std::os::unix::fs::PermissionsExt;
use std::thread;

use bulbil_core::auth::record::Presence;
use bulbil_core::auth::{PublicKey, ServerSecret};

use super::*;
use crate::random::SYSTEM;
use crate::scratch::Scratch;

/// A record of `name` with these counters, as the core would have made it.
fn record(name: &str, revision: u64, sessions: u64, session: Option<&PublicKey>) -> UserRecord {
    let mut bytes = vec![1];
    bytes.extend_from_slice(&revision.to_be_bytes());
    bytes.extend_from_slice(&sessions.to_be_bytes());
    bytes.push(name.len() as u8);
    let mut padded = [0; 64];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    bytes.extend_from_slice(&padded);
    bytes.extend_from_slice(&[7; 32]);
    bytes.push(1);
    bytes.extend_from_slice(&[0; 4 * 32]);
    bytes.push(session.is_some().into());
    bytes.extend_from_slice(session.map_or([0; 256].as_slice(), |session| session.modulus()));
    bytes.extend_from_slice(&[0; 2 + 1024]);
    UserRecord::decode(&bytes).unwrap()
}

#[test]
fn only_the_expected_revision_is_replaced() {
    let dir = Scratch::new("database");
    let path = dir.path().join("users.sqlite");
    let (mut users, writing) = Database::open(&path, USERS_MAX).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let alice = Username::new("alice").unwrap();
    let stored = |users: &mut Database| users.load(&alice).unwrap().map(|record| record.revision().0);
    assert_eq!(stored(&mut users), None);
    assert_eq!(users.replace(Some(Revision(1)), &record("alice", 2, 0, None)), Ok(Replaced::Conflict));
    assert_eq!(users.replace(None, &record("alice", 1, 0, None)), Ok(Replaced::Stored));
    assert_eq!(users.replace(None, &record("alice", 1, 0, None)), Ok(Replaced::Conflict));
    assert_eq!(users.replace(Some(Revision(1)), &record("alice", 2, 1, None)), Ok(Replaced::Stored));
    assert_eq!(users.replace(Some(Revision(1)), &record("alice", 2, 9, None)), Ok(Replaced::Conflict));
    assert_eq!(users.load(&alice).unwrap().unwrap().sessions().0, 1);
    // Another case is another user.
    assert_eq!(users.replace(None, &record("Alice", 1, 0, None)), Ok(Replaced::Stored));
    drop(users);
    writing.end();

    let (mut users, _writing) = Database::open(&path, USERS_MAX).unwrap();
    assert_eq!(stored(&mut users), Some(2));
}

#[test]
fn of_changes_at_once_from_one_revision_one_counts() {
    let dir = Scratch::new("database");
    let (users, _writing) = Database::open(&dir.path().join("users.sqlite"), USERS_MAX).unwrap();
    let outcomes: Vec<_> = thread::scope(|scope| {
        let attempt = |thread: usize| {
            let mut users = users.clone();
            move || -> Vec<_> {
                (0..20)
                    .map(|number| {
                        let name = format!("user{}", (number + thread) % 20);
                        users.replace(None, &record(&name, 1, 0, None)).unwrap()
                    })
                    .collect()
            }
        };
        let threads: Vec<_> = (0..16).map(|thread| scope.spawn(attempt(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(outcomes.len(), 320);
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Replaced::Stored).count(), 20);
}

#[test]
fn another_process_lists_while_the_server_writes() {
    let dir = Scratch::new("database");
    let path = dir.path().join("users.sqlite");
    let session = ServerSecret::generate(&mut SYSTEM.clone()).public();
    let (mut users, writing) = Database::open(&path, USERS_MAX).unwrap();
    users.replace(None, &record("bob", 3, 2, Some(&session))).map(drop).unwrap();
    users.replace(None, &record("alice", 1, 0, None)).map(drop).unwrap();
    assert!(*users.load(&Username::new("bob").unwrap()).unwrap().unwrap().presence() == Presence::Connected(session));
    let listed = || {
        let mut all = Vec::new();
        list(&path, |user| all.push(user)).unwrap();
        all
    };
    let user = |name: &str, connected, sessions| Listed { username: name.to_owned(), connected, sessions };
    let expected = [user("alice", false, 0), user("bob", true, 2)];
    assert_eq!(listed(), expected);
    drop(users);
    writing.end();
    assert_eq!(listed(), expected);
}

#[test]
fn other_files_are_not_touched() {
    let dir = Scratch::new("database");
    let path = dir.path().join("users.sqlite");
    let error = list(&path, |_| {}).unwrap_err().to_string();
    assert!(error.contains("users.sqlite"), "{error}");
    std::fs::write(&path, "no database, but text that somebody needs").unwrap();
    assert!(Database::open(&path, USERS_MAX).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"no database, but text that somebody needs");
    let other = dir.path().join("other.sqlite");
    Connection::open(&other).unwrap().execute("CREATE TABLE things (name TEXT)", []).unwrap();
    let before = std::fs::read(&other).unwrap();
    let error = Database::open(&other, USERS_MAX).err().unwrap().to_string();
    assert!(error.contains("no database of this version"), "{error}");
    assert!(std::fs::read(&other).unwrap() == before, "not even the mode of its journal");
}

fn names(path: &Path) -> Vec<String> {
    let mut all = Vec::new();
    list(path, |user| all.push(user.username)).unwrap();
    all
}

#[test]
fn beyond_the_bound_nobody_signs_up_and_the_others_go_on() {
    let dir = Scratch::new("database");
    let path = dir.path().join("users.sqlite");
    let (mut users, writing) = Database::open(&path, 2).unwrap();
    assert_eq!(users.replace(None, &record("alice", 1, 0, None)), Ok(Replaced::Stored));
    assert_eq!(users.replace(None, &record("alice", 1, 0, None)), Ok(Replaced::Conflict), "takes no room");
    assert_eq!(users.replace(None, &record("bob", 1, 0, None)), Ok(Replaced::Stored));
    assert_eq!(users.replace(None, &record("carol", 1, 0, None)), Err(StorageFailed));
    assert_eq!(users.replace(None, &record("alice", 1, 0, None)), Ok(Replaced::Conflict), "as ever");
    assert_eq!(users.replace(Some(Revision(1)), &record("alice", 2, 1, None)), Ok(Replaced::Stored));
    drop(users);
    writing.end();
    // Also of those who were there before; and a greater bound makes room.
    for (bound, outcome) in [(1, Err(StorageFailed)), (2, Err(StorageFailed)), (3, Ok(Replaced::Stored))] {
        let (mut users, writing) = Database::open(&path, bound).unwrap();
        assert_eq!(users.replace(None, &record("carol", 1, 0, None)), outcome, "{bound}");
        drop(users);
        writing.end();
    }
    assert_eq!(names(&path), ["alice", "bob", "carol"]);
}

#[test]
fn a_full_disk_refuses_what_does_not_fit_and_nothing_else() {
    let dir = Scratch::new("database");
    let path = dir.path().join("users.sqlite");
    let full = |writer: &Connection| {
        writer.pragma_update_and_check(None, "max_page_count", 40, |row| row.get::<_, i64>(0)).map(drop)
    };
    let (mut users, writing) = Database::open_limited(&path, USERS_MAX, full).unwrap();
    let mut stored = Vec::new();
    let refused = loop {
        let name = format!("user{:03}", stored.len());
        match users.replace(None, &record(&name, 1, 0, None)) {
            Ok(outcome) => assert_eq!(outcome, Replaced::Stored),
            Err(StorageFailed) => break name,
        }
        stored.push(name);
        assert!(stored.len() < 1000, "the bound does not hold");
    };
    assert!(stored.len() > 10);
    assert_eq!(users.load(&Username::new(&refused).unwrap()).unwrap().map(drop), None);
    // Who is there goes on: a changed record takes the place of the old one.
    for name in &stored {
        assert_eq!(users.replace(Some(Revision(1)), &record(name, 2, 1, None)), Ok(Replaced::Stored), "{name}");
    }
    assert_eq!(names(&path), stored);
    drop(users);
    writing.end();
    // With room again, also who was refused.
    let (mut users, _writing) = Database::open(&path, USERS_MAX).unwrap();
    assert_eq!(users.replace(None, &record(&refused, 1, 0, None)), Ok(Replaced::Stored));
    stored.push(refused);
    assert_eq!(names(&path), stored);
}
