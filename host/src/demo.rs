//! `bulbil demo`. The body belongs to the engine's branch; this file only fixes its signature.

use crate::{cli::DemoArgs, commands::Failure};

/// Four nodes and a web server in one process, and a page fetched through them.
///
/// # Errors
/// Always, on this branch.
#[expect(clippy::unused_async, reason = "the signature is what this file is for")]
pub async fn run(_args: &DemoArgs) -> Result<(), Failure> {
    Err(Failure::Other("the engine is not part of this branch".into()))
}
