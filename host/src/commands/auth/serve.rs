//! `bulbil auth serve`.

use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::auth::{place::Place, server::AuthServer};
use crate::cli::ServeArgs;
use crate::commands::{Failure, print};
use crate::files::allowed;
use crate::shutdown::Shutdown;

/// Open files that the server needs for itself: its database, its listener, standard streams, the runtime's own.
const OWN_FILES: u64 = 64;
/// Fewer connections than that are not worth serving; also the least that `--connections` takes.
const CONNECTIONS_MIN: u32 = 4;

/// Runs the server until `shutdown`, or until its database fails for good. Says on standard output who it is and where it listens:
/// `fingerprint HEX`, `listening ADDRESS`, `ready`.
pub(in crate::commands) async fn run(args: &ServeArgs, shutdown: Shutdown) -> Result<(), Failure> {
    let args = ServeArgs { connections: connections(args.connections), ..args.clone() };
    let place = Place::open(&args.state, args.argon2)?;
    if !place.fresh && place.parameters != args.argon2 {
        info!("the server keeps the Argon2id parameters that it was made with");
    }
    let (database, writing) = place.database(args.users)?;
    let listener = TcpListener::bind(args.listen);
    let listener = listener.await.map_err(Failure::system(format!("listen on {}", args.listen)))?;
    let address = listener.local_addr().map_err(Failure::system("find the server's address"))?;
    let (server, kept) = AuthServer::new(place, database, args.limits());
    print(&format!("fingerprint {}\nlistening {address}\nready\n", server.fingerprint()))?;
    server.clone().serve(listener, shutdown).await;
    info!(counts = ?server.counts(), "what the server did and refused");
    let failure = server.failure();
    drop(server);
    kept.end(writing);
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}

/// As many of the `wanted` connections as the system lets this process open files for, once the limit is raised as far as it may be. With
/// more the server would not know who has to give way: whom the system refuses it never sees.
fn connections(wanted: u32) -> u32 {
    let files = u64::from(wanted) + OWN_FILES;
    // Where the system does not tell, it is tried.
    let Some(allowed) = allowed(files).filter(|&allowed| allowed < files) else { return wanted };
    let possible = u32::try_from(allowed.saturating_sub(OWN_FILES)).unwrap_or(wanted).max(CONNECTIONS_MIN);
    warn!(possible, wanted, "fewer connections than --connections: the limit of open files is too small (ulimit -Hn)");
    possible
}
