//! Servers' keys that were seen before, one line each: `HOST:PORT FINGERPRINT KEY`, the key as 512 hexadecimal digits of its modulus.
//!
//! Lines are only appended, each with one write and an empty line before it, so that several commands at once lose none; of several lines for a server the last one
//! counts. Deleting a line forgets the server. A key is remembered once its server has shown that it holds it.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bulbil_core::auth::{Fingerprint, PublicKey};
use bulbil_core::wire::Target;

/// Bytes of the file that are looked at: some thousand servers.
const FILE_MAX: u64 = 4 << 20;

/// The file of known servers in a client's state directory.
pub struct KnownServers(PathBuf);

/// Why the file cannot be used; the text says what to do.
#[derive(Debug)]
pub enum KnownServersError {
    /// What the system reports.
    Io(PathBuf, std::io::Error),
    /// A line, counted from 1, that is none.
    Line(PathBuf, usize),
    /// It is longer than it may be.
    TooLong(PathBuf),
}

impl std::fmt::Display for KnownServersError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Line(path, line) => write!(
                f,
                "{} is damaged in line {line}; delete that line, and its server is met as if for the first time",
                path.display()
            ),
            Self::TooLong(path) => {
                write!(f, "{} is too long; delete the lines of servers no longer used", path.display())
            }
        }
    }
}

impl std::error::Error for KnownServersError {}

impl KnownServers {
    /// Those of the state directory `dir`.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        Self(dir.join("known_servers"))
    }

    /// Where they are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The key that `server` had, if it is known.
    ///
    /// # Errors
    /// [`KnownServersError`].
    pub fn find(&self, server: &Target) -> Result<Option<PublicKey>, KnownServersError> {
        let io = |error| KnownServersError::Io(self.0.clone(), error);
        match std::fs::metadata(&self.0) {
            Ok(metadata) if metadata.len() > FILE_MAX => return Err(KnownServersError::TooLong(self.0.clone())),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(io(error)),
        }
        let text = std::fs::read_to_string(&self.0).map_err(io)?;
        let server = server.to_string();
        let mut found = None;
        for (number, line) in (1..).zip(text.lines()) {
            let mut words = line.split_ascii_whitespace();
            if words.next() != Some(server.as_str()) {
                continue;
            }
            let key = parse(words.next(), words.next(), words.next());
            found = Some(key.ok_or_else(|| KnownServersError::Line(self.0.clone(), number))?);
        }
        Ok(found)
    }

    /// Remembers `key` as that of `server`, in place of another one. Only for a server that has answered with the key: what is
    /// merely announced may be somebody else's.
    ///
    /// # Errors
    /// [`KnownServersError`].
    pub fn remember(&self, server: &Target, key: &PublicKey) -> Result<(), KnownServersError> {
        let modulus: String = key.modulus().iter().map(|byte| format!("{byte:02x}")).collect();
        // After a line that a full disk or a crash has cut off it still begins one of its own.
        let line = format!("\n{server} {} {modulus}\n", key.fingerprint());
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.0);
        let written = file.and_then(|mut file| {
            file.write_all(line.as_bytes())?;
            file.sync_all()
        });
        written.map_err(|error| KnownServersError::Io(self.0.clone(), error))
    }
}

fn parse(fingerprint: Option<&str>, modulus: Option<&str>, more: Option<&str>) -> Option<PublicKey> {
    let fingerprint: Fingerprint = fingerprint?.parse().ok()?;
    let mut bytes = [0; 256];
    let digits = modulus?.as_bytes();
    if digits.len() != 2 * bytes.len() || more.is_some() || !digits.is_ascii() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    PublicKey::from_modulus(&bytes).ok().filter(|key| key.fingerprint() == fingerprint)
}

#[cfg(test)]
mod tests {
    use bulbil_core::auth::ServerSecret;

    use super::*;
    use crate::random::SYSTEM;
    use crate::scratch::Scratch;

    #[test]
    fn the_last_line_of_a_server_counts() {
        let dir = Scratch::new("known");
        let known = KnownServers::of(dir.path());
        let key = || ServerSecret::generate(&mut SYSTEM.clone()).public();
        let (first, second, other) = (key(), key(), key());
        let server: Target = "auth.example:7700".parse().unwrap();
        let elsewhere: Target = "auth.example:7701".parse().unwrap();
        assert_eq!(known.find(&server).unwrap(), None);
        known.remember(&server, &first).unwrap();
        known.remember(&elsewhere, &other).unwrap();
        assert_eq!(known.find(&server).unwrap(), Some(first));
        known.remember(&server, &second).unwrap();
        assert_eq!(known.find(&server).unwrap(), Some(second));
        assert_eq!(known.find(&elsewhere).unwrap(), Some(other));

        // A key that is not the line's fingerprint's is no key.
        let text = std::fs::read_to_string(known.path()).unwrap();
        let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
        let modulus = lines[0].rsplit(' ').next().unwrap();
        let mixed = format!("{}\n{}\n", lines[1], lines[2].rsplit_once(' ').unwrap().0.to_owned() + " " + modulus);
        std::fs::write(known.path(), mixed).unwrap();
        let told = known.find(&server).unwrap_err().to_string();
        assert!(told.contains("line 2"), "{told}");
        assert!(known.find(&elsewhere).unwrap().is_some());
    }

    #[test]
    fn a_line_that_was_cut_off_spoils_no_other() {
        let dir = Scratch::new("known");
        let known = KnownServers::of(dir.path());
        let key = ServerSecret::generate(&mut SYSTEM.clone()).public();
        let (server, other): (Target, Target) =
            ("auth.example:7700".parse().unwrap(), "other.example:7700".parse().unwrap());
        std::fs::write(known.path(), "other.example:7700 0123").unwrap();
        known.remember(&server, &key).unwrap();
        assert_eq!(known.find(&server).unwrap(), Some(key));
        assert!(known.find(&other).unwrap_err().to_string().contains("line 1"));
    }
}
