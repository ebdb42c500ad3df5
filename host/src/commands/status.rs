//! `bulbil status`.

use std::path::Path;

use super::{Failure, print};
use crate::{
    cli::StatusArgs,
    control::{Ask, Reply, client::Client, client::ClientError},
};

pub(super) fn run(args: &StatusArgs) -> Result<(), Failure> {
    let (dir, _) = args.place.resolve()?;
    let Some(client) = Client::connect(&dir)? else {
        return Err(Failure::Other(format!("no node runs with the state directory {}{}", dir.display(), advice(&dir))));
    };
    match client.ask(Ask::Status, &[])?.0 {
        Reply::Status(report) if args.json => print_json(&report),
        Reply::Status(report) => print(&report.to_string()),
        _ => Err(unasked()),
    }
}

/// What to do about a node that does not run.
fn advice(dir: &Path) -> &'static str {
    match dir.try_exists() {
        Ok(false) => ", which does not exist; is the path right?",
        _ => "; start it: bulbil node --config FILE",
    }
}

/// An answer to something else than what was asked.
pub(super) fn unasked() -> Failure {
    Failure::Other(
        "the node answered something else than it was asked; is it of the same version as this program?".into(),
    )
}

/// Writes `value` to standard output, as one line.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::Other(error.to_string()))?;
    print(&format!("{text}\n"))
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Other(error.to_string())
    }
}
