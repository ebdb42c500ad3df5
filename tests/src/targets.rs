//! Servers outside the network that behave well or badly.

use std::net::SocketAddr;

use bulbil_host::shutdown::Shutdown;
use bulbil_host::target_server::TargetServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Whether tests run at full size (1 GiB each way, a minute of waiting) instead of one that suits every run.
#[must_use]
pub fn big() -> bool {
    std::env::var_os("BULBIL_TEST_BIG").is_some_and(|value| value != "0" && !value.is_empty())
}

/// A running [`TargetServer`]; stopped when dropped.
pub struct Target {
    /// Where it is.
    pub address: SocketAddr,
    stop: Shutdown,
}

impl Target {
    /// Starts one on `ip`, loopback of either family.
    ///
    /// # Errors
    /// The address cannot be listened on, as `::1` on a machine without IPv6.
    pub async fn start_on(ip: &str) -> std::io::Result<Self> {
        let server = TargetServer::bind(format!("{ip}:0")).await?;
        let (address, stop) = (server.local_addr()?, Shutdown::new());
        tokio::spawn(server.serve(stop.clone()));
        Ok(Self { address, stop })
    }

    /// Starts one on 127.0.0.1.
    ///
    /// # Panics
    /// There is no loopback.
    pub async fn start() -> Self {
        Self::start_on("127.0.0.1").await.expect("loopback can be listened on")
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.stop.request();
    }
}

/// A server that does with each connection what `serve` does.
///
/// # Panics
/// There is no loopback.
pub async fn serve_each<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be listened on");
    let address = listener.local_addr().expect("a listener has an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// A server that reads a request's head, answers `answer` and then breaks off with a reset.
pub async fn resetting(answer: &'static [u8]) -> SocketAddr {
    serve_each(move |mut stream| async move {
        let mut request = [0; 1024];
        let read = stream.read(&mut request).await;
        if read.is_ok() && stream.write_all(answer).await.is_ok() {
            let _gone = stream.set_zero_linger();
        }
    })
    .await
}
