//! `bulbil net`. The body belongs to the engine's branch; this file only fixes its signature.

use crate::{cli::NetArgs, commands::Failure, shutdown::Shutdown};

/// Four nodes in one process and a SOCKS5 proxy in front of them, until `shutdown`.
///
/// # Errors
/// Always, on this branch.
#[expect(clippy::unused_async, reason = "the signature is what this file is for")]
pub async fn run(_args: &NetArgs, _shutdown: Shutdown) -> Result<(), Failure> {
    Err(Failure::Other("the engine is not part of this branch".into()))
}
