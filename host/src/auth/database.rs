//! The server's users, in SQLite.
//!
//! Why SQLite and not redb: both survive `kill -9` and a power failure at any moment by design. SQLite's write-ahead log
//! also lets another process read while the server writes, so that `bulbil auth users` and a backup (`sqlite3 FILE .backup`) work on a running server;
//! redb locks its file for one process. The price is C code, compiled in, of the most tested kind there is.
//!
//! Writes go to one thread. It takes what has arrived, up to `BATCH` changes, into one transaction and syncs once for
//! all of them; only then are they acknowledged. So the more clients wait for the disk, the less each of them costs. The
//! comparison of revisions happens within that transaction, so two changes made from the same revision never both count.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bulbil_core::auth::record::RECORD_LEN;
use bulbil_core::auth::{Replaced, Revision, StorageFailed, UserRecord, Username, Users};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, ffi, params};
use tokio::sync::watch;
use tracing::{error, info, warn};
use zeroize::Zeroizing;

/// Accounts that a server makes unless it is told another number: anybody may sign up, and what that costs the disk is bounded.
///
/// They take half a gigabyte: 10,000 sign-ups in no order made a file of 46.9 MB (a record is too long for a page of the tree and gets one of
/// its own), and while the server runs there is a log of some megabytes beside it, however many users there are.
pub const USERS_MAX: u32 = 100_000;
/// Most changes in one transaction.
const BATCH: usize = 256;
/// How long to wait for another process that holds the file (a backup, a checkpoint).
const BUSY: Duration = Duration::from_secs(10);
/// "bulb": tells the file from another program's.
const APPLICATION: i32 = 0x6275_6c62;
const SCHEMA: i32 = 1;

/// Why the database cannot be used, and where it is; the text says what to do.
#[derive(Debug)]
pub struct DatabaseError {
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug)]
enum Problem {
    Sqlite(rusqlite::Error),
    Io(std::io::Error),
    /// A database of another program, or of a later version.
    Foreign,
    /// A record that the core does not understand.
    Damaged,
    /// It was in use.
    Lost(Lost),
}

impl std::fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.path.display();
        match &self.problem {
            Problem::Sqlite(error) => {
                write!(f, "the database {path} cannot be used: {error}")?;
                // To be opened at all it needs room for its log and its index.
                let index = error.sqlite_extended_error_code() == Some(ffi::SQLITE_IOERR_SHMSIZE);
                if index || Fault::of(error) == Fault::Room {
                    f.write_str("; if there is no space left on the disk, free some and try again")?;
                }
                Ok(())
            }
            Problem::Io(error) => write!(f, "the database {path} cannot be opened: {error}"),
            Problem::Foreign => {
                write!(
                    f,
                    "{path} is no database of this version of bulbil; name another directory or use the version that made it"
                )
            }
            Problem::Damaged => write!(f, "{path} holds a damaged record; restore it from a backup"),
            Problem::Lost(Lost::Failed(error)) => write!(
                f,
                "the database {path} failed for good: {error}; look after its disk, restore it from a backup if it is damaged, and start the server again"
            ),
            Problem::Lost(Lost::Panicked) => write!(
                f,
                "the thread that writes {path} panicked, which is a bug; what was acknowledged is stored: report the panic and start the server again"
            ),
        }
    }
}

impl std::error::Error for DatabaseError {}

/// Where a database is and, once that is so, why it is of no more use.
struct Standing {
    path: PathBuf,
    lost: watch::Sender<Option<Lost>>,
}

impl Standing {
    fn lose(&self, lost: Lost) {
        // What came first is the reason for the rest.
        self.lost.send_modify(|known| *known = known.take().or(Some(lost)));
    }

    /// Errors of SQLite name no user.
    fn report(&self, problem: rusqlite::Error) -> StorageFailed {
        error!(%problem, "the database of users failed");
        if Fault::of(&problem) == Fault::Database {
            self.lose(Lost::Failed(Arc::new(problem)));
        }
        StorageFailed
    }
}

/// Why the database is lost to a running server.
#[derive(Debug, Clone)]
enum Lost {
    Failed(Arc<rusqlite::Error>),
    /// The thread that writes has.
    Panicked,
}

/// Whom an error of SQLite concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The change that met it.
    Change,
    /// Changes, as long as there is no room for them.
    Room,
    /// Whatever comes at this moment.
    Moment,
    /// Whatever comes from now on.
    Database,
}

impl Fault {
    fn of(problem: &rusqlite::Error) -> Self {
        let (Some(code), Some(extended)) = (problem.sqlite_error_code(), problem.sqlite_extended_error_code()) else {
            // A statement that does not fit the tables, or a value that does not fit what is read.
            return match problem {
                rusqlite::Error::SqlInputError { .. } => Self::Database,
                _ => Self::Change,
            };
        };
        match code {
            ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch => Self::Change,
            ErrorCode::DiskFull => Self::Room,
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::OutOfMemory
            | ErrorCode::OperationInterrupted
            | ErrorCode::FileLockingProtocolFailed
            // Too many open files.
            | ErrorCode::CannotOpen => Self::Moment,
            // A quota is reported like this, not as a full disk, and the system's own number is not to be had without unsafe code. A disk that
            // is broken is met here, too: what was to be written is undone and not acknowledged, so nothing is lost by going on, and
            // as soon as it does not sync or read either, the server ends.
            ErrorCode::SystemIoFailure if extended == ffi::SQLITE_IOERR_WRITE => Self::Room,
            ErrorCode::SystemIoFailure
                if [ffi::SQLITE_IOERR_NOMEM, ffi::SQLITE_IOERR_SHMSIZE, ffi::SQLITE_IOERR_LOCK].contains(&extended) =>
            {
                Self::Moment
            }
            // Damaged, removed, read-only, or on a disk that does not sync: after that nobody knows what it holds.
            _ => Self::Database,
        }
    }
}

/// Attaches the path to what SQLite reports.
fn at(path: &Path) -> impl Fn(rusqlite::Error) -> DatabaseError {
    move |error| DatabaseError { path: path.to_owned(), problem: Problem::Sqlite(error) }
}

/// A change that waits for the disk.
struct Change {
    previous: Option<Revision>,
    username: Username,
    record: Zeroizing<[u8; RECORD_LEN]>,
    done: SyncSender<Result<Replaced, StorageFailed>>,
}

impl Change {
    fn tell(&self, outcome: Result<Replaced, StorageFailed>) {
        // Whoever asked may be gone, as a client's connection that was closed.
        let _gone = self.done.send(outcome);
    }
}

/// A handle to the users; clones share them. Calls block on the disk.
#[derive(Clone)]
pub struct Database {
    reader: Arc<Mutex<Connection>>,
    changes: Sender<Change>,
    standing: Arc<Standing>,
}

/// The thread that writes; it ends when the last [`Database`] is gone, or when the database is lost.
pub struct Writing(JoinHandle<()>);

impl Writing {
    /// Waits until everything is written and the file is closed. Drop all handles before.
    pub fn end(self) {
        self.0.join().expect("the thread catches panics");
    }
}

impl Database {
    /// Opens the database at `path`; makes it, with mode 0600, if there is none. While there are `users_max` users or more, new ones
    /// are not stored ([`StorageFailed`]); those that there are go on.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn open(path: &Path, users_max: u32) -> Result<(Self, Writing), DatabaseError> {
        Self::open_limited(path, users_max, |_| Ok(()))
    }

    /// `limit` is given the writing connection: what it sets lasts as long as that.
    pub(super) fn open_limited(
        path: &Path,
        users_max: u32,
        limit: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(Self, Writing), DatabaseError> {
        let io = |error| DatabaseError { path: path.to_owned(), problem: Problem::Io(error) };
        // SQLite gives the log beside it the same mode.
        OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(io)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut writer = Connection::open_with_flags(path, flags).map_err(at(path))?;
        prepare(&mut writer, path)?;
        limit(&writer).map_err(at(path))?;
        let reader = open_reader(path)?;
        let users: u32 = reader.query_row("SELECT count(*) FROM users", [], |row| row.get(0)).map_err(at(path))?;
        let mut room = Room { users, users_max, told: false, full: false };
        Self::start(path, reader, move |arriving| write(&mut writer, &mut room, arriving)).map_err(io)
    }

    /// Has a thread of its own do `work` with the changes as they arrive. It is done when no more can; if it fails or panics, the database is
    /// lost.
    fn start(
        path: &Path,
        reader: Connection,
        work: impl FnOnce(&Receiver<Change>) -> rusqlite::Result<()> + Send + 'static,
    ) -> std::io::Result<(Self, Writing)> {
        let standing = Arc::new(Standing { path: path.to_owned(), lost: watch::Sender::new(None) });
        let (changes, arriving) = channel();
        let told = Arc::clone(&standing);
        let writing = move || match catch_unwind(AssertUnwindSafe(|| work(&arriving))) {
            Ok(Ok(())) => {}
            Ok(Err(problem)) => told.lose(Lost::Failed(Arc::new(problem))),
            Err(_) => told.lose(Lost::Panicked),
        };
        let thread = std::thread::Builder::new().name("users".into()).spawn(writing)?;
        Ok((Self { reader: Arc::new(Mutex::new(reader)), changes, standing }, Writing(thread)))
    }

    /// Why the database is of no more use, if that is so. From then on every change fails.
    #[must_use]
    pub fn failure(&self) -> Option<DatabaseError> {
        let lost = self.standing.lost.borrow().clone()?;
        Some(DatabaseError { path: self.standing.path.clone(), problem: Problem::Lost(lost) })
    }

    /// Waits until it is of no more use.
    pub async fn lost(&self) -> DatabaseError {
        let mut lost = self.standing.lost.subscribe();
        loop {
            if let Some(failure) = self.failure() {
                return failure;
            }
            lost.changed().await.expect("the sender lives in `self`");
        }
    }
}

impl Users for Database {
    fn load(&mut self, username: &Username) -> Result<Option<UserRecord>, StorageFailed> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = fetch(&reader, username).map_err(|problem| self.standing.report(problem))?;
        bytes.map(|bytes| UserRecord::decode(&bytes).map_err(|_| damaged())).transpose()
    }

    fn replace(&mut self, previous: Option<Revision>, record: &UserRecord) -> Result<Replaced, StorageFailed> {
        let (done, outcome) = sync_channel(1);
        let change = Change { previous, username: record.username().clone(), record: record.encode(), done };
        self.changes.send(change).map_err(|_| StorageFailed)?;
        outcome.recv().map_err(|_| StorageFailed)?
    }
}

/// A user as `bulbil auth users` lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// What the user is called.
    pub username: String,
    /// Whether there is a session.
    pub connected: bool,
    /// How many sessions there have been.
    pub sessions: u64,
}

/// The users in the database at `path`, which a server may be using, in the order of their names.
///
/// # Errors
/// [`DatabaseError`].
pub fn list(path: &Path, mut each: impl FnMut(Listed)) -> Result<(), DatabaseError> {
    let reader = open_reader(path)?;
    let mut select = reader.prepare("SELECT record FROM users ORDER BY username").map_err(at(path))?;
    let mut rows = select.query([]).map_err(at(path))?;
    while let Some(row) = rows.next().map_err(at(path))? {
        let record = Zeroizing::new(row.get::<_, Vec<u8>>(0).map_err(at(path))?);
        let damaged = |_| DatabaseError { path: path.to_owned(), problem: Problem::Damaged };
        let record = UserRecord::decode(&record).map_err(damaged)?;
        each(Listed {
            username: record.username().as_str().to_owned(),
            connected: matches!(record.presence(), bulbil_core::auth::record::Presence::Connected(_)),
            sessions: record.sessions().0,
        });
    }
    Ok(())
}

fn open_reader(path: &Path) -> Result<Connection, DatabaseError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let reader = Connection::open_with_flags(path, flags).map_err(at(path))?;
    reader.busy_timeout(BUSY).map_err(at(path))?;
    check(&reader, path)?;
    Ok(reader)
}

fn check(connection: &Connection, path: &Path) -> Result<(), DatabaseError> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0)).map_err(at(path));
    match (number("application_id")?, number("user_version")?) {
        (APPLICATION, SCHEMA) => Ok(()),
        _ => Err(DatabaseError { path: path.to_owned(), problem: Problem::Foreign }),
    }
}

fn prepare(writer: &mut Connection, path: &Path) -> Result<(), DatabaseError> {
    let fail = at(path);
    writer.busy_timeout(BUSY).map_err(&fail)?;
    // Before anything is set: the mode of the journal would stay with another program's file.
    let tables = |connection: &Connection| {
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
    };
    if tables(writer).map_err(&fail)? != 0 {
        check(writer, path)?;
    }
    let _mode: String = writer.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(&fail)?;
    // Synced at every commit, not only before the log is copied back: what is acknowledged survives a power failure.
    writer.pragma_update(None, "synchronous", "FULL").map_err(&fail)?;
    // What is replaced holds secrets.
    writer.pragma_update(None, "secure_delete", "ON").map_err(&fail)?;
    let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&fail)?;
    if tables(&transaction).map_err(&fail)? == 0 {
        let create = "CREATE TABLE users (username TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID, STRICT";
        transaction.execute(create, []).map_err(&fail)?;
        transaction.pragma_update(None, "application_id", APPLICATION).map_err(&fail)?;
        transaction.pragma_update(None, "user_version", SCHEMA).map_err(&fail)?;
    }
    transaction.commit().map_err(&fail)?;
    check(writer, path)
}

fn fetch(connection: &Connection, username: &Username) -> rusqlite::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut select = connection.prepare_cached("SELECT record FROM users WHERE username = ?1")?;
    Ok(select.query_row([username.as_str()], |row| row.get(0)).optional()?.map(Zeroizing::new))
}

fn damaged() -> StorageFailed {
    error!("the database of users holds a damaged record; restore it from a backup");
    StorageFailed
}

/// How many users there may be. Only the writing thread makes users, and none is ever deleted, so it need not count again.
struct Room {
    users: u32,
    users_max: u32,
    /// Whether the operator has been told that there may be no more.
    told: bool,
    /// Whether the operator has been told that the disk is full, and it has not been found otherwise since.
    full: bool,
}

/// Carries changes out until nobody can send any more.
///
/// # Errors
/// The database has failed for good.
fn write(writer: &mut Connection, room: &mut Room, arriving: &Receiver<Change>) -> rusqlite::Result<()> {
    let mut batch = Vec::with_capacity(BATCH);
    while let Ok(first) = arriving.recv() {
        batch.push(first);
        batch.extend(arriving.try_iter().take(BATCH - 1));
        carry_out(writer, room, &batch)?;
        batch.clear();
    }
    Ok(())
}

/// Carries out a batch and tells those who wait for it. What is not told, because the database has failed for good, has not happened as
/// far as they know: they notice that nobody will tell.
fn carry_out(writer: &mut Connection, room: &mut Room, batch: &[Change]) -> rusqlite::Result<()> {
    let problem = match commit(writer, room, batch) {
        Ok(outcomes) => {
            batch.iter().zip(outcomes).for_each(|(change, outcome)| change.tell(outcome));
            return Ok(());
        }
        Err(problem) => problem,
    };
    match Fault::of(&problem) {
        // One of them is at fault, or does not fit where others do: each for itself.
        Fault::Change | Fault::Room if batch.len() > 1 => {
            return batch.iter().try_for_each(|change| carry_out(writer, room, std::slice::from_ref(change)));
        }
        Fault::Room => {
            if !std::mem::replace(&mut room.full, true) {
                error!(%problem, "no room on the disk for changes; make some");
            }
        }
        Fault::Change | Fault::Moment => error!(%problem, "the database of users failed"),
        Fault::Database => return Err(problem),
    }
    batch.iter().for_each(|change| change.tell(Err(StorageFailed)));
    Ok(())
}

/// Carries out a batch in one transaction. If it does not commit, nothing of it has happened.
fn commit(
    writer: &mut Connection,
    room: &mut Room,
    batch: &[Change],
) -> rusqlite::Result<Vec<Result<Replaced, StorageFailed>>> {
    let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut left = room.users_max.saturating_sub(room.users);
    let before = left;
    let outcomes = batch.iter().map(|change| apply(&transaction, &mut left, change));
    let outcomes = outcomes.collect::<rusqlite::Result<Vec<_>>>()?;
    transaction.commit()?;
    room.users += before - left;
    if outcomes.contains(&Ok(Replaced::Stored)) && std::mem::take(&mut room.full) {
        info!("there is room on the disk again");
    }
    if left == 0 && !std::mem::replace(&mut room.told, true) {
        warn!(users = room.users, "there is no room for more users; auth serve --users makes room");
    }
    Ok(outcomes)
}

/// Makes a change; `left` are the users that there may be besides.
fn apply(
    transaction: &Transaction<'_>,
    left: &mut u32,
    change: &Change,
) -> rusqlite::Result<Result<Replaced, StorageFailed>> {
    let stored = fetch(transaction, &change.username)?.map(|bytes| UserRecord::decode(&bytes)).transpose();
    let Ok(stored) = stored else { return Ok(Err(damaged())) };
    if stored.as_ref().map(UserRecord::revision) != change.previous {
        return Ok(Ok(Replaced::Conflict));
    }
    if stored.is_none() {
        match left.checked_sub(1) {
            Some(rest) => *left = rest,
            None => return Ok(Err(StorageFailed)),
        }
    }
    let mut replace = transaction.prepare_cached("INSERT OR REPLACE INTO users (username, record) VALUES (?1, ?2)")?;
    replace.execute(params![change.username.as_str(), change.record.as_slice()])?;
    Ok(Ok(Replaced::Stored))
}

#[cfg(test)]
pub(super) mod tests;
