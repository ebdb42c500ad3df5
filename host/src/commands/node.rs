//! `bulbil node`.

use std::sync::Arc;

use tokio::{net::TcpListener, task::JoinSet};
use tracing::info;

use super::{Failure, print};
use crate::{
    config::Config,
    control::{About, Server, Socket},
    files, node,
    shutdown::Shutdown,
    socks::{Proxy, Settings},
    state::StateDir,
};

/// Runs the node until `shutdown`. Says on standard output who it is and where it listens, one line each:
/// `fingerprint HEX`, `listening ADDRESS`, `socks ADDRESS`, `ready`.
pub(super) async fn run(config: &Config, shutdown: Shutdown) -> Result<(), Failure> {
    let config = &files::fitted(config.clone());
    let state = Arc::new(StateDir::open(&config.state)?);
    let control = Socket::bind(&state)?;
    let mut listeners = Vec::new();
    if config.roles.client {
        for address in &config.socks.listen {
            let failed = Failure::system(format!("listen for SOCKS clients on {address}"));
            listeners.push(TcpListener::bind(address).await.map_err(failed)?);
        }
    }
    let node = node::start(config, Some(state)).await?;
    print(&format!("fingerprint {}\n", node.fingerprint()))?;
    if let Some(address) = node.local_addr() {
        print(&format!("listening {address}\n"))?;
    }
    let settings = Settings {
        connections: usize::try_from(config.socks.connections).unwrap_or(usize::MAX),
        deadline: config.path.deadline(),
    };
    let proxy = Proxy::new(node.clone(), settings);
    let mut serving = JoinSet::new();
    let mut proxies = Vec::new();
    for listener in listeners {
        let address = listener.local_addr().map_err(Failure::system("find the SOCKS proxy's address"))?;
        print(&format!("socks {address}\n"))?;
        proxies.push(address);
        serving.spawn(proxy.clone().serve(listener, shutdown.clone()));
    }
    let control = Server::new(control, node.clone(), About::new(config, proxies));
    serving.spawn(control.serve(shutdown.clone()));
    print("ready\n")?;
    let failed = tokio::select! {
        () = shutdown.requested() => false,
        () = node.stopped() => true,
    };
    if failed {
        return Err(Failure::Other(
            "the node's thread ended by itself; the log says why, and it is a bug in bulbil".into(),
        ));
    }
    while serving.join_next().await.is_some() {}
    let status = node.status().await;
    node.shutdown().await;
    if let Some(status) = status {
        info!(counters = ?status.counters, links = ?status.ends, "what the node did and refused");
    }
    info!(socks = ?proxy.counts(), "node stopped");
    Ok(())
}
