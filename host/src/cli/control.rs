//! The command line of `bulbil status` and `bulbil phonebook`.

use std::path::PathBuf;

use bulbil_core::phonebook::Grouping;
use clap::{Args, Subcommand};

use crate::config::{Config, ConfigError, NetworkGroups};
use crate::control::book::Prefix;

/// Which node is meant: exactly one of these.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct NodePlace {
    /// The state directory of the node
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// The configuration of the node
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl NodePlace {
    /// The node's state directory, and what counts as a network group there.
    ///
    /// # Errors
    /// Whatever is wrong with the configuration.
    pub fn resolve(&self) -> Result<(PathBuf, Grouping), ConfigError> {
        let Some(file) = &self.config else {
            // clap has made sure that it is one or the other.
            return Ok((self.state.clone().unwrap_or_default(), Grouping::Network));
        };
        let config = Config::load(file)?;
        let grouping = match config.path.network_groups {
            NetworkGroups::Ignore => Grouping::Address,
            NetworkGroups::Require | NetworkGroups::Prefer => Grouping::Network,
        };
        Ok((config.state, grouping))
    }
}

/// `bulbil status`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Exit code 1 if no node runs there. Addresses and the fingerprint are shown because you ask; they do not go to logs."
)]
pub struct StatusArgs {
    /// The node.
    #[command(flatten)]
    pub place: NodePlace,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `bulbil phonebook`: each asks the node that runs, or if none does, uses the phonebook in its state directory.
#[derive(Debug, Clone, Subcommand)]
pub enum PhonebookCommand {
    /// List the nodes that a node knows, one a line
    List(ListArgs),
    /// Show all that is known of one node
    Show(ShowArgs),
    /// Write the descriptors that a node knows to a file, for another node to import
    #[command(
        after_help = "The file is text: blocks that can be mailed, cut and joined. What has expired or is in dispute is left out."
    )]
    Export(ExportArgs),
    /// Take the descriptors of a file in; each is verified first
    #[command(
        after_help = "A damaged file changes nothing. Exit code 1 if there were descriptors and none was of any use."
    )]
    Import(ImportArgs),
}

/// `bulbil phonebook list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// The node.
    #[command(flatten)]
    pub place: NodePlace,
    /// Print one JSON array instead of text
    #[arg(long)]
    pub json: bool,
}

/// `bulbil phonebook show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// The node.
    #[command(flatten)]
    pub place: NodePlace,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// The first digits of a fingerprint, as many as tell it from others
    #[arg(value_name = "FINGERPRINT-PREFIX")]
    pub prefix: Prefix,
}

/// `bulbil phonebook export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// The node.
    #[command(flatten)]
    pub place: NodePlace,
    /// Where to; - or nothing is standard output
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,
}

/// `bulbil phonebook import`.
#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// The node.
    #[command(flatten)]
    pub place: NodePlace,
    /// Print the counts as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Where from; - is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}
