//! A client that tells who is where on its paths, and transfers that are checked byte for byte.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use bulbil_core::phonebook::{HopCount, Strictness};
use bulbil_core::wire::{NodeId, Target as Where};
use bulbil_host::node::{CircuitStream, Intervals, Node, NodeBuilder, OpenError, OpenOptions, Sizes};
use bulbil_host::shutdown::Shutdown;
use bulbil_host::socks::{Circuit, Dialer, Proxy, Settings};
use bulbil_host::target_server::{fill, matches};
use bulbil_tests::socks::{self, Refused, receipt_of};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::peers::{LEN, Peer, contacts, in_time, until};

/// Opens circuits as a node does, and tells whoever looks over which path.
#[derive(Clone)]
pub(crate) struct Watched {
    pub(crate) node: Node,
    pub(crate) path: watch::Sender<Vec<NodeId>>,
}

pub(crate) struct WatchedCircuit {
    circuit: CircuitStream,
    pub(crate) path: watch::Sender<Vec<NodeId>>,
}

impl WatchedCircuit {
    fn tell(self) -> Self {
        self.path.send_replace(self.circuit.path().iter().map(|hop| hop.node).collect());
        self
    }
}

impl Dialer<TcpStream> for Watched {
    type Circuit = WatchedCircuit;

    async fn open(&self, target: Where, options: OpenOptions) -> Result<WatchedCircuit, OpenError> {
        let circuit = self.node.open(target, options).await?;
        Ok(WatchedCircuit { circuit, path: self.path.clone() }.tell())
    }
}

impl Circuit<TcpStream> for WatchedCircuit {
    async fn connected(&mut self) -> Result<(), OpenError> {
        self.circuit.connected().await.map(drop)
    }

    async fn splice(self, client: TcpStream) -> Result<(), OpenError> {
        self.tell().circuit.splice(client).await
    }
}

pub(crate) const SIZES: Sizes =
    Sizes { links: 64, circuits: 256, cells: 8192, onions: 64, origins: 128, replay: 1 << 12 };
pub(crate) const HURRY: Intervals = Intervals {
    exchange: None,
    test: Duration::from_millis(100),
    retry: Duration::from_secs(1),
    save: Duration::from_secs(300),
};

pub(crate) fn three_hops(peers: &[Peer]) -> NodeBuilder {
    let builder = Node::builder().sizes(SIZES).intervals(HURRY).paths(HopCount::new(3).unwrap(), Strictness::Ignore);
    contacts(peers).iter().fold(builder, |builder, contact| builder.bootstrap(contact.parse().unwrap()))
}

/// A client in this process behind a real proxy, so that a test knows who is where on a path.
pub(crate) struct Known {
    pub(crate) node: Node,
    pub(crate) proxy: SocketAddr,
    pub(crate) path: watch::Receiver<Vec<NodeId>>,
    stop: Shutdown,
}

impl Known {
    pub(crate) async fn start(peers: &[Peer], deadline: Duration) -> Self {
        let node = three_hops(peers).start().await.unwrap();
        until("all are met", async || {
            let met = node.known().await.unwrap().iter().filter(|known| known.met).count();
            if met == peers.len() { Ok(()) } else { Err(met) }
        })
        .await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (proxy, stop) = (listener.local_addr().unwrap(), Shutdown::new());
        let (sender, path) = watch::channel(Vec::new());
        let watched = Watched { node: node.clone(), path: sender };
        tokio::spawn(Proxy::new(watched, Settings { connections: 64, deadline }).serve(listener, stop.clone()));
        Self { node, proxy, path, stop }
    }

    pub(crate) async fn emptied(&self) {
        until("the client has given everything back", async || {
            let usage = self.node.status().await.unwrap().usage;
            let held = [usage.circuits, usage.origins, usage.cells_held, usage.cells_reserved, usage.onions];
            if held == [0; 5] { Ok(()) } else { Err(held) }
        })
        .await;
    }

    pub(crate) async fn end(self) {
        self.stop.request();
        self.node.shutdown().await;
    }
}

pub(crate) async fn page(proxy: SocketAddr, port: u16, user: &str) -> Result<(), Refused> {
    let fetch = async {
        let stream = socks::connect(proxy, "127.0.0.1", port, Some((user, ""))).await?;
        let (status, body) = socks::get(stream, "/").await?;
        assert!(status == 200 && body.ends_with(b"</html>\n"));
        Ok(())
    };
    in_time("an answer, good or bad", fetch).await
}

/// Moves [`LEN`] bytes and checks each; whoever counts on nothing but the connection's end must not take a part for the whole.
pub(crate) async fn transfer(
    (proxy, port): (SocketAddr, u16),
    user: String,
    up: bool,
    progress: watch::Sender<u64>,
) -> Result<(), Refused> {
    let mut stream = socks::connect(proxy, "127.0.0.1", port, Some((&user, ""))).await?;
    if up {
        let head = format!("POST /sink HTTP/1.1\r\nHost: t\r\nContent-Length: {LEN}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let (mut chunk, mut offset) = (vec![0; 32 << 10], 0);
        while offset < LEN {
            fill(offset, &mut chunk);
            stream.write_all(&chunk).await?;
            offset += chunk.len() as u64;
            progress.send_replace(offset);
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        assert!(answer.ends_with(&receipt_of(LEN)), "silently short: {answer:?}");
        return Ok(());
    }
    socks::request(&mut stream, &format!("/bytes/{LEN}")).await?;
    let mut stream = BufReader::new(stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::UnexpectedEof, "silently short in the head: {head:?}");
                return Err(error.into());
            }
        }
    }
    let (mut chunk, mut offset) = (vec![0; 32 << 10], 0);
    loop {
        match stream.read(&mut chunk).await? {
            0 => break,
            read => {
                assert!(matches(offset, &chunk[..read]), "a wrong byte after {offset}");
                offset += read as u64;
                progress.send_replace(offset);
            }
        }
    }
    assert_eq!(offset, LEN, "silently short");
    Ok(())
}

/// A transfer on its way.
pub(crate) struct Moving {
    pub(crate) task: JoinHandle<Result<(), Refused>>,
    pub(crate) progress: watch::Receiver<u64>,
}

impl Moving {
    pub(crate) fn start(proxy: SocketAddr, port: u16, user: &str, up: bool) -> Self {
        let (sender, progress) = watch::channel(0);
        Self { task: tokio::spawn(transfer((proxy, port), user.into(), up, sender)), progress }
    }

    pub(crate) async fn has_moved(&mut self, bytes: u64) {
        let moved = in_time("bytes move", self.progress.wait_for(|moved| *moved >= bytes)).await;
        moved.expect("the transfer goes on until something happens");
    }

    pub(crate) async fn end(self) -> Result<(), Refused> {
        in_time("the transfer ends", self.task).await.expect("whole, or with an error")
    }
}
