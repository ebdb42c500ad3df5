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

/// Leaves room for a few users only, until another connection drops the table `ballast`.
pub(in crate::auth) fn nearly_full(writer: &Connection) -> rusqlite::Result<()> {
    writer.execute_batch("CREATE TABLE ballast (bytes BLOB); INSERT INTO ballast VALUES (zeroblob(100000))")?;
    let pages = writer.pragma_query_value(None, "page_count", |row| row.get::<_, i64>(0))?;
    writer.pragma_update_and_check(None, "max_page_count", pages + 6, |row| row.get::<_, i64>(0)).map(drop)
}

/// Makes room in the database at `path`.
pub(in crate::auth) fn make_room(path: &Path) {
    Connection::open(path).unwrap().execute("DROP TABLE ballast", []).unwrap();
}

/// A change as the writing thread gets it, and where its outcome goes.
fn change(previous: Option<u64>, record: &UserRecord) -> (Change, Receiver<Result<Replaced, StorageFailed>>) {
    let (done, outcome) = sync_channel(1);
    let previous = previous.map(Revision);
    (Change { previous, username: record.username().clone(), record: record.encode(), done }, outcome)
}

/// A writing connection with tables, and its bound on users.
fn writer(path: &Path) -> (Connection, Room) {
    let (users, writing) = Database::open(path, USERS_MAX).unwrap();
    drop(users);
    writing.end();
    let mut writer = Connection::open(path).unwrap();
    prepare(&mut writer, path).unwrap();
    (writer, Room { users: 0, users_max: USERS_MAX, told: false, full: false })
}

#[test]
fn a_change_that_cannot_be_made_fails_alone() {
    let dir = Scratch::new("database");
    let path = dir.path().join("users.sqlite");
    let (mut writer, mut room) = writer(&path);
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON users WHEN NEW.username = 'mallory' \
                  BEGIN SELECT RAISE(ABORT, 'not this one'); END";
    writer.execute(refuse, []).unwrap();
    let made = ["alice", "mallory", "bob", "alice"].map(|name| change(None, &record(name, 1, 0, None)));
    let (batch, outcomes): (Vec<_>, Vec<_>) = made.into_iter().unzip();
    carry_out(&mut writer, &mut room, &batch).unwrap();
    let outcomes: Vec<_> = outcomes.iter().map(|outcome| outcome.recv().unwrap()).collect();
    let expected = [Ok(Replaced::Stored), Err(StorageFailed), Ok(Replaced::Stored), Ok(Replaced::Conflict)];
    assert_eq!(outcomes, expected);
    assert_eq!((names(&path), room.users), (vec!["alice".to_owned(), "bob".to_owned()], 2));
}

#[test]
fn in_a_full_batch_what_fits_is_stored() {
    let dir = Scratch::new("database");
    let path = dir.path().join("users.sqlite");
    let (mut writer, mut room) = writer(&path);
    nearly_full(&writer).unwrap();
    let mut carry_out = |changes: Vec<(Option<u64>, UserRecord)>| -> Vec<_> {
        let made = changes.iter().map(|(previous, record)| change(*previous, record));
        let (batch, outcomes): (Vec<_>, Vec<_>) = made.unzip();
        carry_out(&mut writer, &mut room, &batch).unwrap();
        outcomes.iter().map(|outcome| outcome.recv().unwrap()).collect()
    };
    let alice = carry_out(vec![(None, record("alice", 1, 0, None))]);
    assert_eq!(alice, [Ok(Replaced::Stored)]);
    let mut batch: Vec<_> = (0..20).map(|number| (None, record(&format!("user{number:02}"), 1, 0, None))).collect();
    batch.push((Some(1), record("alice", 2, 1, None)));
    let outcomes = carry_out(batch);
    let (alice, others) = outcomes.split_last().unwrap();
    assert_eq!(*alice, Ok(Replaced::Stored), "takes no room");
    let stored = others.iter().take_while(|outcome| **outcome == Ok(Replaced::Stored)).count();
    assert!((1..10).contains(&stored), "{stored} fit");
    assert!(others[stored..].iter().all(|outcome| *outcome == Err(StorageFailed)));
    assert_eq!(names(&path).len(), 1 + stored);
    make_room(&path);
    let last = carry_out(vec![(None, record("user19", 1, 0, None))]);
    assert_eq!(last, [Ok(Replaced::Stored)]);
}

#[tokio::test]
async fn when_the_writing_thread_panics_the_database_is_lost() {
    let dir = Scratch::new("database");
    let path = dir.path().join("users.sqlite");
    let (mut writer, mut room) = writer(&path);
    let reader = open_reader(&path).unwrap();
    let work = move |arriving: &Receiver<Change>| {
        carry_out(&mut writer, &mut room, &[arriving.recv().unwrap()])?;
        let _unanswered = arriving.recv();
        panic!("as this test wants it");
    };
    let (mut users, writing) = Database::start(&path, reader, work).unwrap();
    assert_eq!(users.replace(None, &record("alice", 1, 0, None)), Ok(Replaced::Stored));
    assert!(users.failure().is_none());
    assert_eq!(users.replace(None, &record("bob", 1, 0, None)), Err(StorageFailed), "nobody answers");
    let told = users.lost().await.to_string();
    assert!(told.contains("users.sqlite") && told.contains("panicked") && told.contains("start the server"), "{told}");
    assert_eq!(users.replace(None, &record("carol", 1, 0, None)), Err(StorageFailed), "at once");
    assert_eq!(users.clone().failure().map(|failure| failure.to_string()), Some(told));
    drop(users);
    writing.end();
    assert_eq!(names(&path), ["alice"]);
}

#[tokio::test]
async fn what_fails_for_good_is_said_whether_reading_or_writing_meets_it() {
    let alice = Username::new("alice").unwrap();
    for reads in [false, true] {
        let dir = Scratch::new("database");
        let path = dir.path().join("users.sqlite");
        let (mut users, writing) = Database::open(&path, USERS_MAX).unwrap();
        Connection::open(&path).unwrap().execute("DROP TABLE users", []).unwrap();
        match reads {
            true => assert_eq!(users.load(&alice).map(drop), Err(StorageFailed)),
            false => assert_eq!(users.replace(None, &record("alice", 1, 0, None)), Err(StorageFailed)),
        }
        let told = users.lost().await.to_string();
        assert!(told.contains("failed for good") && told.contains("backup"), "{told}");
        drop(users);
        writing.end();
    }
}

#[test]
fn what_passes_is_told_apart_from_what_stays() {
    let of = |code: i32| Fault::of(&rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
    for (code, fault) in [
        (ffi::SQLITE_CONSTRAINT_TRIGGER, Fault::Change),
        (ffi::SQLITE_TOOBIG, Fault::Change),
        (ffi::SQLITE_FULL, Fault::Room),
        (ffi::SQLITE_IOERR_WRITE, Fault::Room),
        (ffi::SQLITE_BUSY, Fault::Moment),
        (ffi::SQLITE_BUSY_SNAPSHOT, Fault::Moment),
        (ffi::SQLITE_NOMEM, Fault::Moment),
        (ffi::SQLITE_IOERR_NOMEM, Fault::Moment),
        (ffi::SQLITE_CANTOPEN, Fault::Moment),
        (ffi::SQLITE_CORRUPT, Fault::Database),
        (ffi::SQLITE_NOTADB, Fault::Database),
        (ffi::SQLITE_READONLY_DBMOVED, Fault::Database),
        (ffi::SQLITE_IOERR_FSYNC, Fault::Database),
        (ffi::SQLITE_IOERR_READ, Fault::Database),
        (ffi::SQLITE_ERROR, Fault::Database),
    ] {
        assert_eq!(of(code), fault, "{code}");
    }
    assert_eq!(Fault::of(&rusqlite::Error::QueryReturnedNoRows), Fault::Change);
}

/// What is said of [`USERS_MAX`], and in the README; measured so with 10,000 users.
#[test]
fn a_user_takes_five_kilobytes_of_disk() {
    const USERS: usize = 1000;
    const THREADS: usize = 16;
    let dir = Scratch::new("database");
    let path = dir.path().join("users.sqlite");
    let (users, writing) = Database::open(&path, USERS_MAX).unwrap();
    thread::scope(|scope| {
        for start in 0..THREADS {
            let mut users = users.clone();
            scope.spawn(move || {
                for number in (start..USERS).step_by(THREADS) {
                    // In no order, as people come.
                    let name = format!("{:05}.{number}", number * 7919 % 10_007);
                    assert_eq!(users.replace(None, &record(&name, 1, 0, None)), Ok(Replaced::Stored));
                }
            });
        }
    });
    let log = std::fs::metadata(path.with_extension("sqlite-wal")).unwrap().len();
    assert!(log < 8 << 20, "a log of {log} bytes");
    drop(users);
    // The last connection writes the log back into the file, and removes it.
    writing.end();
    assert!(!path.with_extension("sqlite-wal").exists());
    let each = path.metadata().unwrap().len() / USERS as u64;
    println!("{each} bytes a user, a log of {log}");
    assert!((4000..5600).contains(&each), "{each} bytes a user");
}
