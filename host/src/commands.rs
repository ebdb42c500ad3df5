//! What the commands do, and how they fail.

use std::{
    ffi::OsString,
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;

use crate::{
    cli::{AuthCommand, Cli, Command, ConnectArgs, LogArgs, quiet},
    config::{Config, ConfigError, Log},
    control::SocketError,
    demo,
    logging::{self, LogError},
    net,
    node::{OpenError, StartError},
    shutdown::Shutdown,
    state::StateError,
};

mod auth;
mod keygen;
mod node;
mod phonebook;
mod send;
mod status;

/// Why a command failed; its text says what to do.
#[derive(Debug)]
pub enum Failure {
    /// The configuration, or what the command line makes of it.
    Config(ConfigError),
    /// The log cannot begin.
    Log(LogError),
    /// The state directory or a key file.
    State(StateError),
    /// Something the system refused, and what was attempted.
    System(String, io::Error),
    /// The conversation with the target.
    Conversation(OpenError),
    /// Anything else, told as it is.
    Other(String),
}

impl Failure {
    /// 2 for what the user has to write differently, 1 for what went wrong while running.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Log(_) => 2,
            Self::State(_) | Self::System(..) | Self::Conversation(_) | Self::Other(_) => 1,
        }
    }

    /// For `map_err` on an I/O operation that `attempt` describes ("listen on …").
    pub fn system(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let attempt = attempt.into();
        move |error| Self::System(attempt, error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Log(error) => error.fmt(f),
            Self::State(error) => error.fmt(f),
            Self::System(attempt, error) => {
                write!(f, "cannot {attempt}: {error}")?;
                match error.kind() {
                    io::ErrorKind::AddrInUse => f.write_str("; another program listens there, choose another address"),
                    io::ErrorKind::AddrNotAvailable => f.write_str("; choose an address of this machine"),
                    io::ErrorKind::PermissionDenied => {
                        f.write_str("; ports below 1024 need privileges, choose a higher one")
                    }
                    _ => Ok(()),
                }
            }
            Self::Conversation(error) => write!(f, "the target could not be talked to: {error}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Failure {}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Self::State(error)
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self::Conversation(error)
    }
}

impl From<SocketError> for Failure {
    fn from(error: SocketError) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::Other(error.to_string())
    }
}

/// The command `bulbil` with these arguments, the first of which is its own name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output, errors to standard error; where neither can be written nothing is left to say.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "error: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let begin_log = |base: &Log, args: &LogArgs| logging::init(&args.over(base));
    match cli.command {
        Command::Demo(args) => {
            begin_log(&quiet(), &cli.log)?;
            block_on(demo::run(&args))
        }
        Command::Net(args) => {
            begin_log(&quiet(), &cli.log)?;
            block_on(async { net::run(&args, on_signals()?).await })
        }
        Command::Node(args) => {
            // clap has made sure that it is one or the other.
            let Some(path) = args.config else { return print(&crate::config::default_toml()) };
            let config = Config::load(&path)?;
            begin_log(&config.log, &cli.log)?;
            block_on(async { node::run(&config, on_signals()?).await })
        }
        Command::Status(args) => {
            begin_log(&quiet(), &cli.log)?;
            status::run(&args)
        }
        Command::Phonebook(command) => {
            begin_log(&quiet(), &cli.log)?;
            phonebook::run(&command)
        }
        Command::Keygen(args) => {
            begin_log(&quiet(), &cli.log)?;
            keygen::run(&args)
        }
        Command::Send(args) => {
            let config = args.client()?;
            begin_log(&config.log, &cli.log)?;
            let message = send::message(args.message.as_deref())?;
            block_on(async { send::run(&args, &config, &message, on_signals()?).await })
        }
        Command::Auth(command) => run_auth(command, &cli.log),
    }
}

fn run_auth(command: AuthCommand, log: &LogArgs) -> Result<(), Failure> {
    /// The client of the moment, and the log that goes with it.
    fn client(args: &ConnectArgs, log: &LogArgs) -> Result<Option<Config>, Failure> {
        let config = args.client()?;
        let base = config.as_ref().map_or_else(quiet, |config| config.log.clone());
        logging::init(&log.over(&base))?;
        Ok(config)
    }
    match command {
        AuthCommand::Serve(args) => {
            logging::init(&log.over(&Log::default()))?;
            block_on(async { auth::serve(&args, on_signals()?).await })
        }
        AuthCommand::SignUp(args) => {
            let config = client(&args.connect, log)?;
            block_on(auth::sign_up(&args, config))
        }
        AuthCommand::SignIn(args) => {
            let config = client(&args.connect, log)?;
            block_on(auth::sign_in(&args, config))
        }
        AuthCommand::Act(args) => {
            let config = client(&args.connect, log)?;
            block_on(auth::act(&args, config))
        }
        AuthCommand::Disconnect(args) => {
            let config = client(&args, log)?;
            block_on(auth::disconnect(&args, config))
        }
        AuthCommand::Users(args) => {
            logging::init(&log.over(&quiet()))?;
            auth::users(&args)
        }
    }
}

fn on_signals() -> Result<Shutdown, Failure> {
    Shutdown::on_signals().map_err(Failure::system("listen for signals"))
}

fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::system("start the worker threads"))?;
    let result = runtime.block_on(future);
    // Not waiting for a name that is being looked up or a disk that hangs.
    runtime.shutdown_background();
    result
}

/// Writes to standard output. That nobody reads on is no failure (`bulbil node --print-config | head`).
fn print(text: &str) -> Result<(), Failure> {
    write_out(text.as_bytes())
}

fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::System("write the output".into(), error))
        }
        _ => Ok(()),
    }
}
