//! `bulbil auth serve`.

use tokio::net::TcpListener;
use tracing::info;

use crate::auth::{place::Place, server::AuthServer};
use crate::cli::ServeArgs;
use crate::commands::{Failure, print};
use crate::shutdown::Shutdown;

/// Runs the server until `shutdown`. Says on standard output who it is and where it listens: `fingerprint HEX`, `listening ADDRESS`, `ready`.
pub(in crate::commands) async fn run(args: &ServeArgs, shutdown: Shutdown) -> Result<(), Failure> {
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
    drop(server);
    kept.end(writing);
    Ok(())
}
