//! Where a password comes from: the terminal without echo, a file, or standard input; never the command line, which others on the machine can read.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;

use zeroize::Zeroizing;

/// Longest password in bytes.
pub const PASSWORD_MAX: usize = 1024;

/// A password, wiped when dropped.
pub type Password = Zeroizing<Vec<u8>>;

/// Where a password comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Source {
    /// The terminal.
    #[default]
    Terminal,
    /// The first line of this file.
    File(PathBuf),
    /// The first line of standard input.
    Stdin,
}

/// Why there is no password; the text says what to do.
#[derive(Debug)]
pub enum PasswordError {
    /// There is no terminal.
    NoTerminal(io::Error),
    /// The file or standard input cannot be read.
    Unreadable(String, io::Error),
    /// Nothing was given.
    Empty,
    /// More than [`PASSWORD_MAX`] bytes.
    TooLong,
    /// Two different ones were given when it was asked for twice.
    Different,
    /// Ctrl-C was typed instead.
    Interrupted,
}

impl std::fmt::Display for PasswordError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoTerminal(error) => {
                write!(f, "no terminal to ask for the password ({error}); use --password-file FILE or --password-stdin")
            }
            Self::Unreadable(place, error) => write!(f, "the password cannot be read from {place}: {error}"),
            Self::Empty => f.write_str("the password is empty; give one"),
            Self::TooLong => write!(f, "the password is longer than {PASSWORD_MAX} bytes; give a shorter one"),
            Self::Different => f.write_str("the two passwords differ; try again"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for PasswordError {}

impl Source {
    /// Gets the password of `account`; a new one is asked for twice, where somebody types it.
    ///
    /// # Errors
    /// [`PasswordError`].
    pub fn get(&self, account: &str, new: bool) -> Result<Password, PasswordError> {
        match self {
            Self::Terminal => {
                let first = ask(&format!("Password for {account}: "))?;
                if new && ask("The same again: ")? != first {
                    return Err(PasswordError::Different);
                }
                Ok(first)
            }
            Self::File(path) => {
                let unreadable = |error| PasswordError::Unreadable(path.display().to_string(), error);
                first_line(File::open(path).map_err(unreadable)?).map_err(|error| error.or(unreadable))
            }
            Self::Stdin => {
                // Typed after all, and then without echo.
                if io::stdin().is_terminal() {
                    return Self::Terminal.get(account, new);
                }
                let unreadable = |error| PasswordError::Unreadable("standard input".into(), error);
                // Not through the buffer of standard input, which is never wiped.
                let input = io::stdin().as_fd().try_clone_to_owned().map_err(unreadable)?;
                first_line(File::from(input)).map_err(|error| error.or(unreadable))
            }
        }
    }
}

fn ask(prompt: &str) -> Result<Password, PasswordError> {
    let typed = rpassword::prompt_password(prompt).map_err(|error| match error.kind() {
        io::ErrorKind::Interrupted => PasswordError::Interrupted,
        _ => PasswordError::NoTerminal(error),
    })?;
    checked(Zeroizing::new(typed.into_bytes()))
}

enum LineError {
    Io(io::Error),
    Password(PasswordError),
}

impl LineError {
    fn or(self, unreadable: impl FnOnce(io::Error) -> PasswordError) -> PasswordError {
        match self {
            Self::Io(error) => unreadable(error),
            Self::Password(error) => error,
        }
    }
}

/// Reads no longer than until the line ends: a pipe may stay open.
fn first_line(mut input: impl Read) -> Result<Password, LineError> {
    // Sized beforehand, so that no part of it is left where a growing buffer was.
    let mut bytes = Zeroizing::new(vec![0; PASSWORD_MAX + 2]);
    let mut len = 0;
    let end = loop {
        let Some(free @ [_, ..]) = bytes.get_mut(len..) else { break len };
        let read = match input.read(free) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(LineError::Io)?,
        };
        let newline = free.iter().take(read).position(|&byte| byte == b'\n');
        match newline {
            Some(at) => break len + at,
            None if read == 0 => break len,
            None => len += read,
        }
    };
    bytes.truncate(end);
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    checked(bytes).map_err(LineError::Password)
}

fn checked(password: Password) -> Result<Password, PasswordError> {
    match password.len() {
        0 => Err(PasswordError::Empty),
        1..=PASSWORD_MAX => Ok(password),
        _ => Err(PasswordError::TooLong),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_file_s_first_line_is_the_password() {
        let dir = Scratch::new("password");
        let path = dir.path().join("file");
        let get = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            Source::File(path.clone()).get("alice", true)
        };
        for content in [&b"tulip"[..], b"tulip\n", b"tulip\r\n", b"tulip\nsecond line"] {
            assert_eq!(get(content).unwrap().as_slice(), b"tulip");
        }
        assert_eq!(get(b" t\xff ").unwrap().as_slice(), b" t\xff ", "blanks and any bytes count");
        assert_eq!(get(&[b'x'; PASSWORD_MAX]).unwrap().len(), PASSWORD_MAX);
        assert!(matches!(get(&[b'x'; PASSWORD_MAX + 1]), Err(PasswordError::TooLong)));
        assert!(matches!(get(b""), Err(PasswordError::Empty)));
        assert!(matches!(get(b"\n"), Err(PasswordError::Empty)));
        assert!(matches!(get(&[b'x'; 5 * PASSWORD_MAX]), Err(PasswordError::TooLong)));
        let mut longest = vec![b'x'; PASSWORD_MAX];
        longest.extend(b"\r\nsecond line");
        assert_eq!(get(&longest).unwrap().len(), PASSWORD_MAX);
        let missing = Source::File(dir.path().join("none")).get("alice", false).unwrap_err().to_string();
        assert!(missing.contains("none"), "{missing}");
    }

    #[test]
    fn a_pipe_that_stays_open_is_not_waited_for() {
        let (reader, writer) = io::pipe().unwrap();
        (&writer).write_all(b"tulip\nmore").unwrap();
        assert_eq!(first_line(&reader).ok().unwrap().as_slice(), b"tulip");
        // A line that comes in pieces.
        assert_eq!(first_line(b"tu".chain(&b"lip\n"[..]).chain(reader)).ok().unwrap().as_slice(), b"tulip");
        // Only now.
        drop(writer);
    }
}
