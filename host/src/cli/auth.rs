//! `bulbil auth`.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use bulbil_core::auth::{Fingerprint, KdfParameters, Username};
use bulbil_core::wire::Target;
use clap::{Args, Subcommand};

use crate::auth::database::USERS_MAX;
use crate::auth::password::Source;
use crate::auth::server::Limits;
use crate::config::{Bootstrap, Config, ConfigError, Socks};

/// `bulbil auth`.
#[derive(Debug, Subcommand)]
#[command(after_help = "To begin, with a network on this machine (each line in a terminal of its own):\n\n  \
    bulbil net\n  \
    bulbil auth serve --state server\n  \
    bulbil auth sign-up --socks 127.0.0.1:1080 alice@127.0.0.1:7700\n\n\
    then, as sign-up: sign-in, act write - (reads a note from standard input), act read, disconnect.")]
pub enum AuthCommand {
    /// Run an authentication server, until Ctrl-C
    Serve(ServeArgs),
    /// Make an account: a name at a server, and a password
    SignUp(Box<SignUpArgs>),
    /// Begin a session on this computer; a session on another one ends
    SignIn(Box<SignInArgs>),
    /// Read or write your private note at the server, within a session
    Act(Box<ActArgs>),
    /// End the session
    Disconnect(Box<ConnectArgs>),
    /// List the users of a server on this machine, whether it runs or not
    Users(UsersArgs),
}

/// `bulbil auth serve`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Prints `fingerprint HEX`, what users may pin the server by, then `listening ADDRESS` and `ready`. The server knows nothing of \
    the network: let an exit's policy allow its address and port. Its directory holds its key and its users, names, password keys and \
    notes: who has it can sign in as anybody there. Back it up with the server stopped, or users.sqlite with `sqlite3 users.sqlite '.backup FILE'`."
)]
pub struct ServeArgs {
    /// The server's directory, made if it does not exist: its key and its users
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// Where to listen; port 0 lets the system choose
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7700")]
    pub listen: SocketAddr,
    /// Connections at one time; more than the default needs more open files (ulimit -n)
    #[arg(long, value_name = "COUNT", default_value_t = 768, value_parser = clap::value_parser!(u32).range(4..=100_000))]
    pub connections: u32,
    /// Accounts in all, about 10 KiB of disk each; sign-ups beyond are refused as unavailable
    #[arg(long, value_name = "COUNT", default_value_t = USERS_MAX, value_parser = clap::value_parser!(u32).range(1..))]
    pub users: u32,
    /// How clients hash passwords (Argon2id), for a new server only: KiB of memory, passes, lanes; at least 19456,2,1
    #[arg(long, value_name = "KIB,PASSES,LANES", default_value = "65536,3,4", value_parser = argon2)]
    pub argon2: KdfParameters,
}

impl ServeArgs {
    /// What clients may take.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let connections = usize::try_from(self.connections).unwrap_or(usize::MAX);
        // Three quarters for one address, as exits have many users.
        Limits { connections, per_address: connections - connections / 4, ..Limits::default() }
    }
}

fn argon2(text: &str) -> Result<KdfParameters, String> {
    let numbers: Option<Vec<u32>> = text.split(',').map(|number| number.trim().parse().ok()).collect();
    let parameters = match numbers.as_deref() {
        Some([memory, passes, lanes]) => {
            u8::try_from(*lanes).ok().and_then(|lanes| KdfParameters::new(*memory, *passes, lanes))
        }
        _ => None,
    };
    parameters.ok_or_else(|| {
        "write KiB of memory, passes and lanes, from 19456,2,1 (below that clients refuse) to 1048576,16,16".into()
    })
}

/// A user at a server: `USER@HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The user.
    pub username: Username,
    /// The server.
    pub server: Target,
}

impl FromStr for Account {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (username, server) =
            text.split_once('@').ok_or("write the user and the server, as alice@auth.example:7700")?;
        let username = Username::new(username)
            .map_err(|_| "a user's name has 1 to 64 letters, digits, dots, hyphens and underscores")?;
        let server = super::target(server)?;
        if !matches!(server, Target::Tcp(..)) {
            return Err("the server is a host and a port, as alice@auth.example:7700".into());
        }
        Ok(Self { username, server })
    }
}

/// The way into the network: exactly one of these.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct Door {
    /// The SOCKS5 proxy of a node that runs, as `bulbil net` or `bulbil node` print it
    #[arg(long, value_name = "ADDRESS")]
    pub socks: Option<SocketAddr>,
    /// A configuration for a client of the moment; of it are used bootstrap, allow_unpinned, path and log
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A node to ask for the network, for a client of the moment; may be given several times
    #[arg(long, value_name = "ADDRESS#FINGERPRINT")]
    pub bootstrap: Vec<Bootstrap>,
}

/// What every command that talks to a server takes; `bulbil auth disconnect` takes nothing else.
#[derive(Debug, Clone, Args)]
pub struct ConnectArgs {
    /// The way into the network.
    #[command(flatten)]
    pub door: Door,
    /// Accept --bootstrap nodes without #FINGERPRINT; whoever sits between can then answer in their place
    #[arg(long, conflicts_with_all = ["socks", "config"])]
    pub allow_unpinned: bool,
    /// The server's fingerprint, as its operator tells it; another key is refused. Without it the key of the first time is remembered
    #[arg(long, value_name = "HEX", value_parser = fingerprint)]
    pub fingerprint: Option<Fingerprint>,
    /// Where sessions and known servers are kept; left out, bulbil in $XDG_STATE_HOME or ~/.local/state
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Seconds for each step: reaching the server, and each answer
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub timeout: u32,
    /// Who, and where
    #[arg(value_name = "USER@HOST:PORT")]
    pub account: Account,
}

fn fingerprint(text: &str) -> Result<Fingerprint, String> {
    text.parse().map_err(|_| "a fingerprint has 64 hexadecimal digits; the server prints it when it starts".into())
}

impl ConnectArgs {
    /// Time for each step.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.timeout.into())
    }

    /// The configuration of the client of the moment; `None` if a proxy is used.
    ///
    /// # Errors
    /// Whatever is wrong with the file, or with the bootstrap nodes.
    pub fn client(&self) -> Result<Option<Config>, ConfigError> {
        if self.door.socks.is_some() {
            return Ok(None);
        }
        let file = self.door.config.as_deref().map(Config::load).transpose()?;
        let mut config = match file {
            Some(file) => Config {
                bootstrap: file.bootstrap,
                allow_unpinned: file.allow_unpinned,
                path: file.path,
                log: file.log,
                ..Config::default()
            },
            None => Config {
                bootstrap: self.door.bootstrap.clone(),
                allow_unpinned: self.allow_unpinned,
                log: super::quiet(),
                ..Config::default()
            },
        };
        config.socks = Socks { listen: Vec::new(), ..Socks::default() };
        config.check()?;
        Ok(Some(config))
    }
}

/// Where the password comes from; left out, it is asked for without echo.
#[derive(Debug, Clone, Default, Args)]
#[group(multiple = false)]
pub struct PasswordArgs {
    /// Take the password from the first line of a file, instead of asking for it
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Take the password from the first line of standard input, instead of asking for it
    #[arg(long)]
    pub password_stdin: bool,
}

impl PasswordArgs {
    /// Where the password comes from.
    #[must_use]
    pub fn source(&self) -> Source {
        match &self.password_file {
            Some(path) => Source::File(path.clone()),
            None if self.password_stdin => Source::Stdin,
            None => Source::Terminal,
        }
    }
}

/// `bulbil auth sign-up`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example: bulbil auth sign-up --socks 127.0.0.1:1080 alice@auth.example:7700")]
pub struct SignUpArgs {
    /// Who and where.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// The password.
    #[command(flatten)]
    pub password: PasswordArgs,
}

/// `bulbil auth sign-in`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example: bulbil auth sign-in --socks 127.0.0.1:1080 alice@auth.example:7700\n\n\
    While this computer has the session, the server asks for no password. The session's key is kept in the state directory (mode 0600) and \
    used again for the next session: a computer that has signed up or in before (the latest 4) is not held up by strangers who guess passwords.")]
pub struct SignInArgs {
    /// Who and where.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// The password.
    #[command(flatten)]
    pub password: PasswordArgs,
}

/// `bulbil auth act`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    bulbil auth act --socks 127.0.0.1:1080 alice@auth.example:7700 write - < note.txt\n  \
    bulbil auth act --socks 127.0.0.1:1080 alice@auth.example:7700 read\n  \
    bulbil auth act --socks 127.0.0.1:1080 alice@auth.example:7700 write 'water the onions'\n\n\
    With - the note is read from standard input. Other users of the machine can read the arguments of a command while it runs: write a note \
    that they must not see with -.")]
pub struct ActArgs {
    /// Who and where.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// What to do.
    #[command(subcommand)]
    pub what: ActWhat,
}

/// What to do with the note.
#[derive(Debug, Clone, Subcommand)]
pub enum ActWhat {
    /// Print the note
    Read,
    /// Put another note in its place
    Write {
        /// -, to read the note from standard input (at most 1024 bytes); or the note itself, which other users of the machine can read while the command runs
        note: OsString,
    },
}

/// `bulbil auth users`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Prints a line for each user: name, connected or disconnected, and how many sessions there have been."
)]
pub struct UsersArgs {
    /// The server's directory
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_users_at_servers() {
        let account: Account = "a.b-c_D@auth.example:7700".parse().unwrap();
        assert_eq!((account.username.as_str(), account.server.to_string().as_str()), ("a.b-c_D", "auth.example:7700"));
        assert!("alice@[::1]:7700".parse::<Account>().is_ok());
        for (wrong, says) in [
            ("alice", "alice@auth.example:7700"),
            ("@host:1", "letters, digits"),
            ("al ice@host:1", "letters, digits"),
            ("alice@host", "example.com:80"),
            ("alice@host:0", "example.com:80"),
            ("alice@phonebook", "host and a port"),
        ] {
            let told = wrong.parse::<Account>().unwrap_err();
            assert!(told.contains(says), "{wrong}: {told}");
        }
    }

    #[test]
    fn argon2_is_within_what_clients_accept() {
        assert_eq!(argon2("19456,2,1"), Ok(KdfParameters::FLOOR));
        assert_eq!(argon2("65536,3,4"), Ok(KdfParameters::DEFAULT));
        for wrong in ["", "19455,2,1", "19456,1,1", "19456,2", "19456,2,1,1", "19456,2,256", "x,2,1"] {
            assert!(argon2(wrong).unwrap_err().contains("19456,2,1"), "{wrong}");
        }
    }
}
