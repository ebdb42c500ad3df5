//! A whole network in one process, on loopback: what `bulbil net` runs, and `bulbil demo` shows.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bulbil_core::phonebook::{HopCount, Strictness};
use bulbil_core::wire::policy::Policy;
use tokio::net::TcpListener;

use crate::cli::NetArgs;
use crate::commands::Failure;
use crate::config::Bootstrap;
use crate::node::{Node, NodeBuilder, Sizes, StartError};
use crate::shutdown::Shutdown;
use crate::socks::{Proxy, Settings};

/// Room for a network of one's own, five nodes in one process.
const SMALL: Sizes = Sizes { links: 256, circuits: 4096, cells: 1 << 15, onions: 512, origins: 2048, replay: 1 << 17 };
/// How long a network on one machine may take to find itself.
const READY: Duration = Duration::from_secs(60);

/// Four primordial nodes, three relays and an exit, each on its own loopback address, and a client that knows them.
pub struct Network {
    /// Relays, then the exit.
    pub nodes: Vec<Node>,
    /// A node that answers nobody and opens circuits.
    pub client: Node,
}

impl Network {
    /// Starts the five nodes and waits until the client can choose a path.
    ///
    /// # Errors
    /// No loopback address can be listened on, or the nodes do not find each other.
    pub async fn start() -> Result<Self, StartError> {
        let mut starting = Vec::new();
        for number in 1..=4u8 {
            // Port 0: several networks can run on one machine.
            let address = SocketAddr::from((Ipv4Addr::new(127, 66, 0, number), 0));
            let builder = Node::builder().listen(address).sizes(SMALL);
            let builder = if number < 4 { builder.relay() } else { builder.exit(Policy::loopback()) };
            starting.push(tokio::spawn(builder.start()));
        }
        let mut nodes = Vec::new();
        for node in starting {
            nodes.push(node.await.map_err(|error| StartError(format!("a node failed to start: {error}")))??);
        }
        let client = Self::started_client(&nodes).await?;
        Ok(Self { nodes, client })
    }

    /// Another client, a node of its own that can choose a path. Shutting it down is the caller's.
    ///
    /// # Errors
    /// It does not find the others.
    pub async fn another_client(&self) -> Result<Node, StartError> {
        Self::started_client(&self.nodes).await
    }

    async fn started_client(nodes: &[Node]) -> Result<Node, StartError> {
        let client = Self::client_of(nodes).start().await?;
        client.ready(READY).await.map_err(|error| StartError(format!("the nodes do not find each other: {error}")))?;
        Ok(client)
    }

    /// A client that knows `nodes`, all of them on this machine.
    fn client_of(nodes: &[Node]) -> NodeBuilder {
        let builder = Node::builder().sizes(SMALL).paths(HopCount::default(), Strictness::Ignore);
        nodes.iter().fold(builder, |builder, node| match node.local_addr() {
            Some(address) => builder.bootstrap(Bootstrap { address, fingerprint: Some(node.fingerprint()) }),
            None => builder,
        })
    }

    /// Stops all nodes.
    pub async fn shutdown(self) {
        self.client.shutdown().await;
        let stopping: Vec<_> =
            self.nodes.into_iter().map(|node| tokio::spawn(async move { node.shutdown().await })).collect();
        for node in stopping {
            let _panicked = node.await;
        }
    }
}

/// Four nodes in one process and a SOCKS5 proxy in front of them, until `shutdown`.
///
/// # Errors
/// An address that cannot be listened on.
pub async fn run(args: &NetArgs, shutdown: Shutdown) -> Result<(), Failure> {
    let listener = TcpListener::bind(args.socks)
        .await
        .map_err(Failure::system(format!("listen for SOCKS clients on {}", args.socks)))?;
    let address = listener.local_addr().map_err(Failure::system("find the SOCKS proxy's address"))?;
    let network = Network::start().await?;
    println!("four nodes run in this process: three relays and an exit");
    println!("socks {address}");
    println!("try:  curl --socks5-hostname {address} http://localhost:8000/   (with a server of yours on port 8000)");
    println!("ready");
    let settings = Settings { connections: 1024, deadline: Duration::from_secs(60) };
    Proxy::new(network.client.clone(), settings).serve(listener, shutdown).await;
    network.shutdown().await;
    Ok(())
}
