//! The state directory: keys and what else survives a restart.
//!
//! The directory belongs to its owner alone (mode 0700, files 0600) and to one process at a time (a lock file). A file is
//! replaced as a whole: written beside the old one, synced, renamed over it, the directory synced; so a crash or a full disk
//! leaves either the old content or the new one.
//!
//! A file begins with one line, `bulbil-state 1 NAME LENGTH SHA-256`, and the bytes follow. So a file that is cut off,
//! altered, or another one's copy is told apart from a good one, and is never used or replaced unasked. `tail -n +2` gives
//! the bare bytes (of the identity: PKCS#8 DER).
//!
//! Calls block on the disk; from async code use `spawn_blocking`.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::{DirBuilder, File, Metadata, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

const MAGIC: &str = "bulbil-state";
const VERSION: &str = "1";
/// More than the longest first line: magic, version, name, a length of 20 digits, 64 digits of hash, 4 blanks, the line's end.
const HEADER_MAX: usize = 160;
const LOCK: &str = "lock";

/// What the directory keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Item {
    /// The RSA identity key, PKCS#8 DER.
    Identity,
    /// The X25519 link key.
    LinkKey,
    /// The onion key in force.
    OnionKey,
    /// The onion key before it.
    PreviousOnionKey,
    /// The long-lived first hops.
    Guards,
    /// Known descriptors.
    Phonebook,
    /// The sequence number of the last own descriptor.
    Sequence,
    /// An authentication server's parameters and RSA key.
    AuthServer,
}

impl Item {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Identity,
        Self::LinkKey,
        Self::OnionKey,
        Self::PreviousOnionKey,
        Self::Guards,
        Self::Phonebook,
        Self::Sequence,
        Self::AuthServer,
    ];

    /// The file's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::LinkKey => "link-key",
            Self::OnionKey => "onion-key",
            Self::PreviousOnionKey => "onion-key-previous",
            Self::Guards => "guards",
            Self::Phonebook => "phonebook",
            Self::Sequence => "sequence",
            Self::AuthServer => "auth-server",
        }
    }

    /// Most bytes that are read or written.
    #[must_use]
    pub const fn max_len(self) -> usize {
        match self {
            Self::Identity
            | Self::LinkKey
            | Self::OnionKey
            | Self::PreviousOnionKey
            | Self::Sequence
            | Self::AuthServer => 16 << 10,
            Self::Guards => 1 << 20,
            Self::Phonebook => 256 << 20,
        }
    }
}

/// What went wrong with the state directory, where, and what to do.
#[derive(Debug)]
pub struct StateError {
    /// The file or directory.
    pub path: PathBuf,
    /// What went wrong.
    pub problem: Problem,
}

/// What can go wrong with the state directory.
#[derive(Debug)]
pub enum Problem {
    /// The path names something else than a directory.
    NotADirectory,
    /// Others than the owner may enter or read it; the mode's last nine bits.
    Accessible(u32),
    /// It belongs to another user.
    Foreign,
    /// Another process uses the directory.
    InUse,
    /// Something else than a plain file stands in a file's place.
    NotAFile,
    /// The first line is not one of ours: the file is something else or was overwritten.
    Garbage,
    /// A later version of this program wrote it.
    Version,
    /// It is the file of another item.
    Mismatch,
    /// It ends before its stated length.
    Truncated,
    /// Its bytes are not those that were written.
    Altered,
    /// It is longer than this kind of file can be.
    TooLong,
    /// It exists already.
    Exists,
    /// There is no room on the disk, or the user's share of it is used up.
    Full,
    /// The disk is mounted without permission to write.
    ReadOnly,
    /// It is missing, while what is of no use without it is there.
    Missing,
    /// Anything else that the system reports.
    Io(io::Error),
}

impl StateError {
    fn new(path: &Path, problem: Problem) -> Self {
        Self { path: path.to_owned(), problem }
    }

    fn io(path: &Path, error: io::Error) -> Self {
        Self::new(
            path,
            match error.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Problem::Full,
                ErrorKind::ReadOnlyFilesystem => Problem::ReadOnly,
                ErrorKind::NotADirectory => Problem::NotADirectory,
                _ => Problem::Io(error),
            },
        )
    }
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        let aside = format_args!("restore it from a backup, or move it away and start anew");
        match &self.problem {
            Problem::NotADirectory => {
                write!(f, "{path} is not a directory; name another state directory or move it away")
            }
            Problem::Accessible(mode) => write!(
                f,
                "{path} is accessible to other users (mode {mode:03o}) and holds secret keys; run: chmod go= '{path}'"
            ),
            Problem::Foreign => {
                write!(f, "{path} belongs to another user; run as that user, or name another state directory")
            }
            Problem::InUse => {
                write!(f, "{path} is in use by another bulbil process; stop that one, or name another state directory")
            }
            Problem::NotAFile => write!(f, "{path} is not a plain file; move it away"),
            Problem::Garbage => write!(f, "{path} is not a file of bulbil or was overwritten; {aside}"),
            Problem::Version => write!(f, "{path} was written by a later version of bulbil; use that version"),
            Problem::Mismatch => write!(f, "{path} holds another file's content; {aside}"),
            Problem::Truncated => write!(f, "{path} is cut off; {aside}"),
            Problem::Altered => write!(f, "{path} was altered or damaged; {aside}"),
            Problem::TooLong => write!(f, "{path} is larger than such a file can be; {aside}"),
            Problem::Exists => write!(f, "{path} exists already and is not replaced"),
            Problem::Full => write!(f, "cannot write {path}: no space left on the disk; free some and try again"),
            Problem::ReadOnly => {
                write!(f, "cannot write {path}: the file system is read-only; name another state directory")
            }
            Problem::Missing => write!(
                f,
                "{path} is missing, and what else is in the directory is of no use without it; restore it from the backup, or name another state directory to start anew"
            ),
            Problem::Io(error) => write!(f, "{path}: {error}"),
        }
    }
}

impl std::error::Error for StateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.problem {
            Problem::Io(error) => Some(error),
            _ => None,
        }
    }
}

/// The state directory, locked for this process as long as the value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Holds the lock; closing the file releases it, also when the process is killed.
    _lock: File,
    /// One write at a time, because the temporary file of an item has one name.
    writing: Mutex<()>,
}

impl StateDir {
    /// Opens the directory at `path` and locks it. Creates it, with mode 0700, if it does not exist.
    ///
    /// # Errors
    /// A directory that others may enter, that belongs to another user or is in use; what the system reports.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let metadata = private_dir(path)?;
        let lock_path = path.join(LOCK);
        let lock = lock_file(&lock_path)?;
        let owner = lock.metadata().map_err(|error| StateError::io(&lock_path, error))?.uid();
        if owner != metadata.uid() {
            return Err(StateError::new(path, Problem::Foreign));
        }
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateError::new(path, Problem::InUse)),
            Err(TryLockError::Error(error)) => return Err(StateError::io(&lock_path, error)),
        }
        let this = Self { path: path.to_owned(), _lock: lock, writing: Mutex::new(()) };
        for item in Item::ALL {
            // What a crash in the middle of a write has left.
            match std::fs::remove_file(this.temporary(item)) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(StateError::io(&this.temporary(item), error));
                }
                _ => {}
            }
        }
        Ok(this)
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where `item` lies.
    #[must_use]
    pub fn item_path(&self, item: Item) -> PathBuf {
        self.path.join(item.name())
    }

    fn temporary(&self, item: Item) -> PathBuf {
        self.path.join(format!(".{}.new", item.name()))
    }

    /// The bytes of `item`, or `None` if it was never written.
    ///
    /// # Errors
    /// A file that others may read, that is cut off, altered or not ours. Nothing is changed on the disk.
    pub fn read(&self, item: Item) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
        read_item(&self.item_path(item), item)
    }

    /// Writes `item` for the first time.
    ///
    /// # Errors
    /// [`Problem::Exists`] if there is one, whatever its state; what the system reports.
    pub fn create(&self, item: Item, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.item_path(item);
        match path.symlink_metadata() {
            Ok(_) => Err(StateError::new(&path, Problem::Exists)),
            Err(error) if error.kind() == ErrorKind::NotFound => self.replace(item, bytes),
            Err(error) => Err(StateError::io(&path, error)),
        }
    }

    /// Writes `item`, in place of what was there.
    ///
    /// # Errors
    /// [`Problem::TooLong`] beyond [`Item::max_len`]; what the system reports. The old content then is untouched.
    pub fn replace(&self, item: Item, bytes: &[u8]) -> Result<(), StateError> {
        if bytes.len() > item.max_len() {
            return Err(StateError::new(&self.item_path(item), Problem::TooLong));
        }
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut content = Zeroizing::new(Vec::with_capacity(HEADER_MAX + bytes.len()));
        content.extend_from_slice(header(item, bytes).as_bytes());
        content.extend_from_slice(bytes);
        write_atomic(&self.path, &self.temporary(item), &self.item_path(item), &content, create_private)
    }

    /// Removes `item`; that there is none is no error.
    ///
    /// # Errors
    /// What the system reports.
    pub fn remove(&self, item: Item) -> Result<(), StateError> {
        let path = self.item_path(item);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(StateError::io(&path, error)),
            _ => sync_dir(&self.path),
        }
    }
}

/// The bytes of `item` in the directory `dir`, which another process may be using: a file is only ever replaced as a
/// whole. Changes and creates nothing.
///
/// # Errors
/// As [`StateDir::open`], the lock excepted, and [`StateDir::read`].
pub fn peek(dir: &Path, item: Item) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
    match dir.metadata() {
        Ok(metadata) if metadata.is_dir() => check_private(dir, &metadata)?,
        Ok(_) => return Err(StateError::new(dir, Problem::NotADirectory)),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StateError::io(dir, error)),
    }
    read_item(&dir.join(item.name()), item)
}

fn read_item(path: &Path, item: Item) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
    let fail = |error| StateError::io(path, error);
    // Not following a link: the link's target might lie where others can change it.
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    if !metadata.is_file() {
        return Err(StateError::new(path, Problem::NotAFile));
    }
    check_private(path, &metadata)?;
    let limit = item.max_len() + HEADER_MAX;
    let expected = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    if expected > limit {
        return Err(StateError::new(path, Problem::TooLong));
    }
    // Sized beforehand, so that no half-filled buffer is reallocated and left in memory with a key in it.
    let mut bytes = Zeroizing::new(Vec::with_capacity(expected + 1));
    let file = File::open(path).map_err(fail)?;
    file.take(expected as u64).read_to_end(&mut bytes).map_err(fail)?;
    let content = unframe(item, &bytes).map_err(|problem| StateError::new(path, problem))?;
    Ok(Some(Zeroizing::new(content.to_vec())))
}

/// Makes sure that there is a directory at `path` which only its owner may enter: creates it, with mode 0700, if it does not exist.
///
/// # Errors
/// A directory that others may enter, or something else than a directory; what the system reports.
pub fn private_dir(path: &Path) -> Result<Metadata, StateError> {
    let fail = |error| StateError::io(path, error);
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => StateError::new(path, Problem::NotADirectory),
        _ => fail(error),
    })?;
    let metadata = path.metadata().map_err(fail)?;
    if !metadata.is_dir() {
        return Err(StateError::new(path, Problem::NotADirectory));
    }
    check_private(path, &metadata)?;
    Ok(metadata)
}

/// Writes `bytes` to the new file `path` with mode 0600, as a whole or not at all.
///
/// # Errors
/// [`Problem::Exists`] unless `replace`; what the system reports.
pub fn write_private(path: &Path, bytes: &[u8], replace: bool) -> Result<(), StateError> {
    if !replace && path.symlink_metadata().is_ok() {
        return Err(StateError::new(path, Problem::Exists));
    }
    let Some(name) = path.file_name() else {
        return Err(StateError::new(path, Problem::NotAFile));
    };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    remove_left_behind(dir, Some(name));
    let temporary = temporary_of(name, &std::process::id().to_string());
    write_atomic(dir, &dir.join(temporary), path, bytes, create_held)
}

/// The temporary file beside `name`, of the process with this id.
fn temporary_of(name: &OsStr, process: &str) -> OsString {
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{process}.new"));
    temporary
}

/// Removes the temporary files in `dir` whose processes ended in the middle of [`write_private`]: those of the file `name`,
/// or, in a directory in which everything is ours, all. What cannot be removed stays.
pub fn remove_left_behind(dir: &Path, name: Option<&OsStr>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if is_temporary(&entry.file_name(), name) && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            // Another process may be faster; and what others put into a common directory is theirs to remove.
            let _stays = remove_if_free(&entry.path());
        }
    }
}

/// Whoever writes a temporary file holds its lock: one that is free belongs to nobody who still runs.
fn remove_if_free(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    file.try_lock()?;
    // In between its writer may have finished it, and begun another one of this name.
    if is_at(&file, path)? { std::fs::remove_file(path) } else { Ok(()) }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    match path.symlink_metadata() {
        Ok(metadata) => Ok(metadata.ino() == file.metadata()?.ino()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether this is what [`write_private`] calls its temporary files, of the file `name` or any.
fn is_temporary(file: &OsStr, name: Option<&OsStr>) -> bool {
    let parts = file.as_encoded_bytes().strip_prefix(b".").and_then(|rest| rest.strip_suffix(b".new"));
    let Some(parts) = parts else { return false };
    let Some(dot) = parts.iter().rposition(|&byte| byte == b'.') else { return false };
    let (of, process) = parts.split_at(dot);
    let digits = process.get(1..).is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit));
    digits && !of.is_empty() && name.is_none_or(|name| name.as_encoded_bytes() == of)
}

fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// A new file whose lock is held until it is closed, so that nobody takes it for one left behind.
fn create_held(path: &Path) -> io::Result<File> {
    loop {
        let file = create_private(path)?;
        file.lock()?;
        // In between somebody may have found it without a lock, and removed it.
        if is_at(&file, path)? {
            return Ok(file);
        }
    }
}

/// The file at `path` to hold a lock on, which is made, with mode 0600, if it does not exist.
///
/// # Errors
/// What the system reports.
pub fn lock_file(path: &Path) -> Result<File, StateError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    file.map_err(|error| StateError::io(path, error))
}

fn write_atomic(
    dir: &Path,
    temporary: &Path,
    path: &Path,
    content: &[u8],
    create: impl FnOnce(&Path) -> io::Result<File>,
) -> Result<(), StateError> {
    let fail = |error| StateError::io(path, error);
    let mut file = create(temporary).map_err(fail)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| std::fs::rename(temporary, path)) {
        // The first error is the one to tell; what is left here is removed at the next start.
        let _ = std::fs::remove_file(temporary);
        return Err(fail(error));
    }
    sync_dir(dir)
}

/// Makes a rename or removal in `dir` last over a power failure.
fn sync_dir(dir: &Path) -> Result<(), StateError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| StateError::io(dir, error))
}

pub(crate) fn check_private(path: &Path, metadata: &Metadata) -> Result<(), StateError> {
    match metadata.mode() & 0o777 {
        mode if mode & 0o077 != 0 => Err(StateError::new(path, Problem::Accessible(mode))),
        _ => Ok(()),
    }
}

fn header(item: Item, bytes: &[u8]) -> String {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{MAGIC} {VERSION} {} {} {digest}\n", item.name(), bytes.len())
}

/// The content of a file, if its first line says so.
fn unframe(item: Item, file: &[u8]) -> Result<&[u8], Problem> {
    if file.is_empty() {
        return Err(Problem::Truncated);
    }
    let head = file.get(..HEADER_MAX).unwrap_or(file);
    let Some(end) = head.iter().position(|&byte| byte == b'\n') else {
        // Cut off within a first line that began as ours does.
        let cut = file.len() < HEADER_MAX
            && file.starts_with(MAGIC.get(..file.len().min(MAGIC.len())).unwrap_or(MAGIC).as_bytes());
        return Err(if cut { Problem::Truncated } else { Problem::Garbage });
    };
    let (line, rest) = file.split_at(end);
    let content = rest.get(1..).unwrap_or_default();
    let fields = std::str::from_utf8(line).map_err(|_| Problem::Garbage)?;
    let mut fields = fields.split(' ');
    if fields.next() != Some(MAGIC) {
        return Err(Problem::Garbage);
    }
    if fields.next() != Some(VERSION) {
        return Err(Problem::Version);
    }
    if fields.next() != Some(item.name()) {
        return Err(Problem::Mismatch);
    }
    let len: usize = fields.next().and_then(|len| len.parse().ok()).ok_or(Problem::Garbage)?;
    if content.len() < len {
        return Err(Problem::Truncated);
    }
    // Length and hash of what is there, spelled as we spell them, must give the line that is there.
    if header(item, content).as_bytes() != file.get(..=end).unwrap_or_default() {
        return Err(Problem::Altered);
    }
    Ok(content)
}

#[cfg(test)]
mod tests;
