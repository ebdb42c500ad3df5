//! The command line, and what its commands do.

use core::fmt;
use std::{
    borrow::ToOwned as _,
    ffi::OsString,
    format,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    string::String,
};

use clap::{Args, Parser, Subcommand};

use super::{
    config_file::{NodeFile, Profile, default_toml},
    faults::Faults,
    run::{self, Format, Options, RunError},
    stage,
};

/// A constrained Bulbil node on this machine: the same code as on a microcontroller, on a TAP device, with its memory measured.
#[derive(Debug, Parser)]
#[command(name = "bulbil-firmware-sim", version, arg_required_else_help = true, propagate_version = true)]
#[command(
    after_help = "To begin: bulbil-firmware-sim stage\n\nExit codes: 0 done, 1 failed or did not fit its profile, 2 wrong usage or \
configuration, 130 ended by a second Ctrl-C."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Set up a network of host nodes and constrained nodes in a namespace of its own and send requests through it, each step explained
    Stage(StageArgs),
    /// Run one constrained node on a TAP device as a configuration file says
    Run(RunArgs),
}

/// `bulbil-firmware-sim stage`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Needs /dev/net/tun, and either user namespaces or root. Touches nothing outside of its own network namespace, which goes with it."
)]
pub struct StageArgs {
    /// Memory of the constrained nodes
    #[arg(long, value_enum, default_value_t = Profile::Small)]
    pub profile: Profile,
    /// Write what crosses the first constrained relay's TAP device to FILE, for Wireshark
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// Make the constrained nodes' network bad, as loss=5,duplicate=1,reorder=2,corrupt=0.1,delay=100ms,jitter=10ms (shares in per cent)
    #[arg(long, value_name = "FAULTS", default_value = "", hide_default_value = true)]
    pub faults: Faults,
    /// Print every constrained node's memory report at the end, and fail if one does not fit its profile
    #[arg(long)]
    pub report: bool,
    /// Leave the network running afterwards, with a SOCKS5 proxy, until Ctrl-C
    #[arg(long)]
    pub keep: bool,
}

/// `bulbil-firmware-sim run`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "To begin: bulbil keygen --for-device device\n          bulbil-firmware-sim run --print-config > node.toml, then edit it\n\n\
SIGUSR1 prints the memory report while the node runs. SIGTERM or Ctrl-C stops it in good order, a second one at once."
)]
pub struct RunArgs {
    /// The configuration, a TOML file
    #[arg(long, value_name = "FILE", required_unless_present = "print_config")]
    pub config: Option<PathBuf>,
    /// Print the default configuration, every field with a comment
    #[arg(long, exclusive = true)]
    pub print_config: bool,
    /// The TAP device, over what the configuration says
    #[arg(long, value_name = "NAME")]
    pub tap: Option<String>,
    /// How much memory the node has, over what the configuration says
    #[arg(long, value_enum)]
    pub profile: Option<Profile>,
    /// Write what crosses the TAP device to FILE, for Wireshark
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// Make the network bad, as loss=5,duplicate=1,reorder=2,corrupt=0.1,delay=100ms,jitter=10ms (shares in per cent)
    #[arg(long, value_name = "FAULTS")]
    pub faults: Option<Faults>,
    /// Print the memory report at the end, and fail if the node did not fit its profile
    #[arg(long, value_enum, value_name = "FORMAT", num_args = 0..=1, default_missing_value = "text")]
    pub report: Option<Format>,
    /// Tell more on standard error, addresses too
    #[arg(long)]
    pub verbose: bool,
    /// End when standard input does
    #[arg(long, hide = true)]
    pub tethered: bool,
}

impl RunArgs {
    /// `file` with what the command line says put over it.
    #[must_use]
    pub fn over(&self, mut file: NodeFile) -> NodeFile {
        if let Some(tap) = &self.tap {
            file.network.tap.clone_from(tap);
        }
        file.profile = self.profile.unwrap_or(file.profile);
        file.linux.faults = self.faults.unwrap_or(file.linux.faults);
        if self.pcap.is_some() {
            file.linux.pcap.clone_from(&self.pcap);
        }
        if self.verbose {
            file.linux.log = super::board::LogLevel::Verbose;
        }
        file
    }
}

/// Why a command failed: its text says what to do, and its code whether to write something differently.
#[derive(Debug)]
pub struct Failure {
    text: String,
    code: u8,
}

impl Failure {
    /// Something went wrong while running.
    pub(super) fn new(error: impl fmt::Display) -> Self {
        Self { text: format!("{error}"), code: 1 }
    }

    /// Something is to be written differently.
    fn usage(error: impl fmt::Display) -> Self {
        Self { text: format!("{error}"), code: 2 }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl core::error::Error for Failure {}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Config(_) | RunError::Start(crate::node::StartError::Config(_)) => Self::usage(error),
            error => Self::new(error),
        }
    }
}

/// The command `bulbil-firmware-sim` with these arguments, the first of which is its own name. No thread may have been started.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output, errors to standard error; where neither can be written nothing is left to say.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let ended = match cli.command {
        Command::Run(args) => run_node(&args),
        Command::Stage(args) => stage::demo::run(&args),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "error: {failure}");
            ExitCode::from(failure.code)
        }
    }
}

fn run_node(args: &RunArgs) -> Result<(), Failure> {
    // clap has made sure that it is one or the other.
    let Some(path) = &args.config else {
        return io::stdout().write_all(default_toml().as_bytes()).map_err(Failure::new);
    };
    let file = args.over(NodeFile::load(path).map_err(Failure::usage)?);
    Ok(run::run(&file, Options { report: args.report, tethered: args.tethered })?)
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use clap::CommandFactory as _;

    use super::*;

    fn run_args(arguments: &[&str]) -> Result<RunArgs, clap::Error> {
        let arguments = ["bulbil-firmware-sim", "run"].iter().chain(arguments).map(OsString::from);
        Cli::try_parse_from(arguments).map(|cli| match cli.command {
            Command::Run(args) => args,
            Command::Stage(_) => unreachable!("run was asked for"),
        })
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_command_line_goes_over_the_file() {
        let args = run_args(&[
            "--config=x",
            "--tap=tap9",
            "--profile=medium",
            "--pcap=y",
            "--faults=loss=1,delay=2ms",
            "--report",
            "--verbose",
        ])
        .unwrap();
        assert_eq!(args.report, Some(Format::Text));
        let file = args.over(NodeFile::default());
        assert_eq!((file.network.tap.as_str(), file.profile), ("tap9", Profile::Medium));
        assert_eq!(file.linux.faults.to_string(), "loss=1,delay=2ms");
        assert_eq!((file.linux.pcap, file.linux.log), (Some("y".into()), crate::linux::board::LogLevel::Verbose));
        let args = run_args(&["--config=x", "--report=json"]).unwrap();
        assert_eq!(args.report, Some(Format::Json));
        assert_eq!(args.over(NodeFile::default()), NodeFile::default());
    }

    #[test]
    fn wrong_usage_is_refused() {
        for arguments in [
            &[][..],
            &["--print-config", "--config=x"],
            &["--config=x", "--faults=loss=101"],
            &["--config=x", "--profile=large"],
            &["--config=x", "--report=xml"],
        ] {
            assert!(run_args(arguments).is_err(), "{arguments:?}");
        }
        assert!(run_args(&["--print-config"]).is_ok_and(|args| args.print_config));
    }
}
