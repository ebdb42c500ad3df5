//! The command line: what it takes, and what it checks before anything runs.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use bulbil_core::wire::Target;
use clap::{Args, Parser, Subcommand};

mod auth;
mod control;

pub use auth::{
    Account, ActArgs, ActWhat, AuthCommand, ConnectArgs, Door, PasswordArgs, ServeArgs, SignInArgs, SignUpArgs,
    UsersArgs,
};
pub use control::{ExportArgs, ImportArgs, ListArgs, NodePlace, PhonebookCommand, ShowArgs, StatusArgs};

use crate::config::{Bootstrap, Config, DEFAULT_SOCKS, Log, LogFormat, LogLevel, Socks};

/// Onion routing, small and fast.
#[derive(Debug, Parser)]
#[command(name = "bulbil", version, arg_required_else_help = true, propagate_version = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 ended by a second Ctrl-C.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// The log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start four nodes, a web server and an authentication server in this process, use them through circuits and show how it went
    Demo(DemoArgs),
    /// Start four nodes in this process and a SOCKS5 proxy in front of them, until Ctrl-C
    Net(NetArgs),
    /// Run one node as a configuration file says
    Node(NodeArgs),
    /// Show how a running node is: links, circuits, memory, phonebook, throughput
    Status(StatusArgs),
    /// Look at a node's phonebook, or carry descriptors from one node to another
    #[command(subcommand)]
    Phonebook(PhonebookCommand),
    /// Make a node's identity, or show its fingerprint
    Keygen(KeygenArgs),
    /// Send one message to a target and print its answer
    Send(Box<SendArgs>),
    /// Sign up and in at an authentication server through the network, or run one
    #[command(subcommand)]
    Auth(AuthCommand),
}

/// How much the log tells, over what a configuration file says.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Log (to standard error)")]
pub struct LogArgs {
    /// How much the log tells
    #[arg(long = "log", global = true, value_name = "LEVEL")]
    pub level: Option<LogLevel>,
    /// The shape of the log's lines
    #[arg(long = "log-format", global = true, value_name = "FORMAT")]
    pub format: Option<LogFormat>,
    /// Write addresses, names and fingerprints into the log, which are left out otherwise
    #[arg(long = "log-sensitive", global = true)]
    pub sensitive: bool,
}

impl LogArgs {
    /// `base` with what the command line says put over it.
    #[must_use]
    pub fn over(&self, base: &Log) -> Log {
        Log {
            level: self.level.unwrap_or(base.level),
            format: self.format.unwrap_or(base.format),
            sensitive: self.sensitive || base.sensitive,
        }
    }
}

/// `bulbil demo`.
#[derive(Debug, Clone, Default, Args)]
pub struct DemoArgs {}

/// `bulbil net`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example: bulbil net, and in another terminal: curl --socks5-hostname 127.0.0.1:1080 http://example.com/"
)]
pub struct NetArgs {
    /// Where the SOCKS5 proxy listens; port 0 lets the system choose
    #[arg(long, value_name = "ADDRESS", default_value_t = DEFAULT_SOCKS, value_parser = loopback)]
    pub socks: SocketAddr,
}

/// The exit of `bulbil net` connects to everything this machine can reach, so nobody else may use it.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| String::from("write an IP address and port, as 127.0.0.1:1080"))?;
    match address.ip().is_loopback() {
        true => Ok(address),
        false => Err(String::from("the proxy of a test network listens on loopback only, as 127.0.0.1:1080")),
    }
}

/// `bulbil node`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "To begin: bulbil node --print-config > node.toml, then edit it.")]
#[group(required = true, multiple = false)]
pub struct NodeArgs {
    /// The configuration, a TOML file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the default configuration, every field with a comment
    #[arg(long)]
    pub print_config: bool,
}

/// `bulbil keygen`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Prints the fingerprint: what others write behind `#` in `bootstrap` to recognise the node.\n\n\
    A constrained device makes no keys of its own but the onion key. --for-device writes those that it needs, as bare bytes for \
    include_bytes! or a flash partition: DIR/identity.der is its RSA-2048 identity (PKCS#8 DER), DIR/link.key its X25519 link key \
    (32 bytes). Who has these files is the device: keep them out of version control."
)]
pub struct KeygenArgs {
    /// Where the identity belongs.
    #[command(flatten)]
    pub place: KeyPlace,
    /// Print the fingerprint of the identity that is there, and change nothing
    #[arg(long, conflicts_with_all = ["force", "out", "for_device"])]
    pub show: bool,
    /// Replace an identity that is there; the node then is another one to everybody
    #[arg(long)]
    pub force: bool,
}

/// Where an identity belongs: exactly one of these.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct KeyPlace {
    /// The state directory of a node, made if it does not exist
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// The configuration whose state directory is meant
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A file to write the key to as PKCS#8 DER
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// A directory for a constrained device's keys, identity.der and link.key; made if it does not exist
    #[arg(long, value_name = "DIR")]
    pub for_device: Option<PathBuf>,
}

/// `bulbil send`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example: printf 'GET / HTTP/1.0\\r\\n\\r\\n' | bulbil send --config client.toml example.com:80"
)]
pub struct SendArgs {
    /// How the network is found.
    #[command(flatten)]
    pub network: Network,
    /// Accept bootstrap nodes without #FINGERPRINT; whoever sits between can then answer in their place
    #[arg(long, conflicts_with = "config")]
    pub allow_unpinned: bool,
    /// Print answers as they come until the target ends, instead of waiting for one whole answer; they are not signed
    #[arg(long)]
    pub keep_open: bool,
    /// Send the message once more if its path is lost before the answer, though it may have arrived: for messages that do no harm twice
    #[arg(long)]
    pub repeatable: bool,
    /// Do not ask the exit to sign the answer
    #[arg(long)]
    pub no_sign: bool,
    /// Seconds within which the target must answer, over what the configuration says
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=600))]
    pub timeout: Option<u32>,
    /// Nodes on the path, the exit included, over what the configuration says
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=4))]
    pub hops: Option<u32>,
    /// Where to: a name or address and a port
    #[arg(value_parser = target, value_name = "HOST:PORT")]
    pub target: Target,
    /// The message; left out or -, it is read from standard input
    pub message: Option<OsString>,
}

/// How the network is found: exactly one of these.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct Network {
    /// A configuration; of it are used bootstrap, allow_unpinned, path and log
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A node to ask for the network; may be given several times
    #[arg(long, value_name = "ADDRESS#FINGERPRINT")]
    pub bootstrap: Vec<Bootstrap>,
}

fn target(text: &str) -> Result<Target, String> {
    text.parse()
        .map_err(|_| String::from("write a name or IP address and a port, as example.com:80 or [2001:db8::7]:80"))
}

impl SendArgs {
    /// The configuration of the client that sends: of no state, and with no proxy.
    ///
    /// # Errors
    /// Whatever is wrong with the file, or with the bootstrap nodes.
    pub fn client(&self) -> Result<Config, crate::config::ConfigError> {
        let mut config = match &self.network.config {
            Some(path) => {
                let file = Config::load(path)?;
                Config {
                    bootstrap: file.bootstrap,
                    allow_unpinned: file.allow_unpinned,
                    path: file.path,
                    log: file.log,
                    ..Config::default()
                }
            }
            None => Config {
                bootstrap: self.network.bootstrap.clone(),
                allow_unpinned: self.allow_unpinned,
                log: quiet(),
                ..Config::default()
            },
        };
        config.socks = Socks { listen: Vec::new(), ..Socks::default() };
        config.path.deadline_seconds = self.timeout.unwrap_or(config.path.deadline_seconds);
        config.path.hops = self.hops.unwrap_or(config.path.hops);
        config.check()?;
        Ok(config)
    }

    /// Whether the exit is asked to sign. An answer without an end has nothing to sign.
    #[must_use]
    pub const fn sign(&self) -> bool {
        !self.no_sign && !self.keep_open
    }

    /// Time within which the target must answer, as [`Self::client`] says.
    #[must_use]
    pub fn deadline(config: &Config) -> Duration {
        config.path.deadline()
    }
}

/// The log of commands whose output matters: only what is odd.
#[must_use]
pub fn quiet() -> Log {
    Log { level: LogLevel::Warn, ..Log::default() }
}

#[cfg(test)]
mod tests;
