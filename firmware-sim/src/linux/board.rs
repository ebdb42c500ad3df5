//! A Linux machine as a board: its clock, its generator, a directory for keys, standard output and error to speak to the owner.
//!
//! Nothing here allocates once the board is made, so that what a run's heap shows is the node's.

use core::fmt;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use bulbil_core::{time::Instant, wire::UnixTime};
use bulbil_host::random::{SYSTEM, SystemRandom};
use rand_core::CryptoRng;

use crate::board::{Clock, Entropy, Event, Item, KeyStore, Observer, StorageFailed};

/// The identity's file in the state directory, as `bulbil keygen --for-device` names it.
pub const IDENTITY: &str = "identity.der";
/// The link key's file.
pub const LINK_KEY: &str = "link.key";
/// The guards' file.
pub const GUARDS: &str = "guards";

/// How much is told on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What somebody must act on.
    Quiet,
    /// What happens to the node. Names no address, host or key.
    Normal,
    /// What happens to links as well, and with addresses.
    Verbose,
}

/// Where the calendar comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calendar {
    /// The system's clock.
    System,
    /// Nowhere: the node has to ask its contacts, as on a board without a clock.
    None,
}

/// Why a state directory cannot be used; the text says what to do.
#[derive(Debug)]
pub enum StateError {
    /// It cannot be looked at or made.
    Io(PathBuf, io::Error),
    /// Others than the owner may read a key.
    Accessible(PathBuf),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "cannot use {} of the state directory: {error}", path.display()),
            Self::Accessible(path) => {
                write!(f, "others may read {0}; if they should not have: chmod go= '{0}'", path.display())
            }
        }
    }
}

impl core::error::Error for StateError {}

/// A file of the state directory and the one beside it that becomes it.
struct Place {
    path: PathBuf,
    fresh: PathBuf,
}

impl Place {
    fn new(dir: &Path, name: &str) -> Self {
        Self { path: dir.join(name), fresh: dir.join(std::format!("{name}.new")) }
    }

    fn load(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut len = 0;
        while let Some(rest) = buffer.get_mut(len..).filter(|rest| !rest.is_empty()) {
            match file.read(rest)? {
                0 => return Ok(Some(len)),
                read => len += read,
            }
        }
        match file.read(&mut [0])? {
            0 => Ok(Some(len)),
            _ => Err(io::ErrorKind::FileTooLarge.into()),
        }
    }

    /// Beside the old one, synced, and put in its place: after a crash there is the old one or the new one.
    fn store(&self, dir: &Path, bytes: &[u8]) -> io::Result<()> {
        match fs::remove_file(&self.fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&self.fresh, &self.path)?;
        File::open(dir)?.sync_all()
    }
}

/// The state directory.
struct Store {
    dir: PathBuf,
    identity: Place,
    link_key: Place,
    guards: Place,
}

impl Store {
    fn open(dir: &Path) -> Result<Self, StateError> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |error| StateError::Io(path, error)
        };
        std::os::unix::fs::DirBuilderExt::mode(fs::DirBuilder::new().recursive(true), 0o700)
            .create(dir)
            .map_err(failed(dir))?;
        let store = Self {
            dir: dir.to_path_buf(),
            identity: Place::new(dir, IDENTITY),
            link_key: Place::new(dir, LINK_KEY),
            guards: Place::new(dir, GUARDS),
        };
        for Place { path, .. } in [&store.identity, &store.link_key] {
            match fs::metadata(path) {
                Ok(metadata) if metadata.mode() & 0o077 != 0 => return Err(StateError::Accessible(path.clone())),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(path)(error)),
                _ => {}
            }
        }
        Ok(store)
    }

    const fn place(&self, item: Item) -> &Place {
        match item {
            Item::Identity => &self.identity,
            Item::LinkKey => &self.link_key,
            Item::Guards => &self.guards,
        }
    }
}

/// What the node has told so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// It has published its first descriptor.
    pub published: bool,
    /// Links that were refused for want of a place.
    pub links_refused: u64,
    /// Answers to its own request.
    pub answers: u64,
    /// Failures of its own request.
    pub failures: u64,
}

/// The board.
pub struct LinuxBoard {
    begun: std::time::Instant,
    calendar: Calendar,
    random: SystemRandom,
    store: Store,
    level: LogLevel,
    told: Told,
    /// The answer that is being printed does not end with a line's end yet.
    mid_line: bool,
}

impl LinuxBoard {
    /// A board that keeps its keys in `state`, which is made if it does not exist.
    ///
    /// # Errors
    /// The directory cannot be used, or keys in it can be read by others.
    pub fn new(state: &Path, calendar: Calendar, level: LogLevel) -> Result<Self, StateError> {
        Ok(Self {
            begun: std::time::Instant::now(),
            calendar,
            random: SYSTEM,
            store: Store::open(state)?,
            level,
            told: Told::default(),
            mid_line: false,
        })
    }

    /// What the node has told so far.
    #[must_use]
    pub const fn told(&self) -> Told {
        self.told
    }

    /// One line on standard error. Whoever closed it does not want to know.
    fn say(&self, level: LogLevel, line: fmt::Arguments<'_>) {
        if self.level >= level {
            let _ = writeln!(io::stderr().lock(), "{line}");
        }
    }

    fn print(&mut self, bytes: &[u8]) {
        let mut output = io::stdout().lock();
        let _ = output.write_all(bytes).and_then(|()| output.flush());
        if let Some(last) = bytes.last() {
            self.mid_line = *last != b'\n';
        }
    }

    fn end_answer(&mut self, receipt: Option<bool>) {
        if self.mid_line {
            self.print(b"\n");
        }
        self.print(match receipt {
            None => b"answered\n",
            Some(true) => b"answered, and the exit's signature is good\n",
            Some(false) => b"answered, but the exit's signature is missing or wrong\n",
        });
    }
}

impl Clock for LinuxBoard {
    fn now(&mut self) -> Instant {
        Instant::from_millis(u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn unix_time(&mut self) -> Option<UnixTime> {
        match self.calendar {
            Calendar::System => SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|time| UnixTime(time.as_secs())),
            Calendar::None => None,
        }
    }
}

impl Entropy for LinuxBoard {
    fn rng(&mut self) -> &mut dyn CryptoRng {
        &mut self.random
    }
}

impl KeyStore for LinuxBoard {
    fn load(&mut self, item: Item, buffer: &mut [u8]) -> Result<Option<usize>, StorageFailed> {
        let place = self.store.place(item);
        place.load(buffer).map_err(|error| {
            self.say(LogLevel::Quiet, format_args!("cannot read {}: {error}", place.path.display()));
            StorageFailed
        })
    }

    fn store(&mut self, item: Item, bytes: &[u8]) -> Result<(), StorageFailed> {
        let place = self.store.place(item);
        place.store(&self.store.dir, bytes).map_err(|error| {
            self.say(LogLevel::Quiet, format_args!("cannot write {}: {error}", place.path.display()));
            StorageFailed
        })
    }
}

impl Observer for LinuxBoard {
    fn handle_event(&mut self, event: Event<'_>) {
        use LogLevel::{Normal, Quiet, Verbose};
        match event {
            Event::Published => {
                self.told.published = true;
                self.say(Normal, format_args!("published a descriptor for the current onion key"));
            }
            Event::Met(contact) if self.level == Verbose => {
                self.say(Verbose, format_args!("met the contact at {contact}"));
            }
            Event::Met(_) => self.say(Normal, format_args!("met a contact")),
            Event::LinkUp => self.say(Verbose, format_args!("a link is up")),
            Event::LinkEnded(end) => self.say(Verbose, format_args!("a link ended: {end}")),
            Event::LinkRefused => {
                self.told.links_refused += 1;
                // So that a flood of links is not a flood of lines.
                if self.told.links_refused.is_power_of_two() {
                    let so_far = self.told.links_refused;
                    self.say(Normal, format_args!("every place for a link is taken; {so_far} refused so far"));
                }
            }
            Event::Connected(target) => self.say(Verbose, format_args!("the exit has reached the target at {target}")),
            Event::Answer(bytes) => self.print(bytes),
            Event::Answered { receipt } => {
                self.told.answers += 1;
                self.end_answer(receipt);
            }
            Event::RequestFailed(outcome) => {
                self.told.failures += 1;
                match (outcome.end, outcome.close) {
                    (Some((reason, _)), _) => self.say(Normal, format_args!("the request failed: {reason}")),
                    (None, Some(reason)) => self.say(Normal, format_args!("the request's circuit closed: {reason}")),
                    (None, None) => self.say(Normal, format_args!("the request failed")),
                }
            }
            Event::NoPath => self.say(
                Normal,
                format_args!(
                    "no path can be chosen yet; are the contacts up, are they enough for the hops, and is one of them an exit?"
                ),
            ),
            Event::StorageFailed(item) => {
                self.say(Quiet, format_args!("{item:?} was not kept; the node goes on with what it has in memory"));
            }
            Event::RotationFailed => {
                self.say(Quiet, format_args!("no new onion key could be published; trying again soon"));
            }
        }
    }
}

#[cfg(test)]
mod tests;
