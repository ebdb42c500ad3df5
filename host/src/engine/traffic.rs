//! What crosses a node's links, counted so that others can read it while the node works: nobody has to wake the engine for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use bulbil_core::io::ByteStream;
use bulbil_core::node::Counters;
use embedded_io::ErrorType;
use tokio::net::TcpStream;

use super::stream::{StreamError, Waking};

/// What has crossed a node's links since its start. Only the engine writes it.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    cells_in: AtomicU64,
    cells_out: AtomicU64,
}

/// [`Traffic`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Bytes read from links, handshakes and records.
    pub bytes_in: u64,
    /// Bytes written to links.
    pub bytes_out: u64,
    /// Relay cells that came.
    pub cells_in: u64,
    /// Relay cells that left.
    pub cells_out: u64,
}

impl Traffic {
    /// Takes the cells over from the node.
    pub(crate) fn note_cells(&self, counters: &Counters) {
        self.cells_in.store(counters.forward + counters.backward, Ordering::Relaxed);
        self.cells_out.store(counters.sent, Ordering::Relaxed);
    }

    /// How much it is by now. Its numbers may be a moment apart.
    pub(crate) fn totals(&self) -> Totals {
        Totals {
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            cells_in: self.cells_in.load(Ordering::Relaxed),
            cells_out: self.cells_out.load(Ordering::Relaxed),
        }
    }
}

/// A link's connection whose bytes are counted.
pub(crate) struct Metered {
    stream: Waking<TcpStream>,
    traffic: Arc<Traffic>,
}

impl Metered {
    pub(crate) const fn new(stream: Waking<TcpStream>, traffic: Arc<Traffic>) -> Self {
        Self { stream, traffic }
    }
}

impl ErrorType for Metered {
    type Error = StreamError;
}

/// Adds to a counter that nobody else adds to.
fn add(counter: &AtomicU64, moved: &Poll<Result<usize, StreamError>>) {
    if let Poll::Ready(Ok(bytes)) = moved {
        counter.store(counter.load(Ordering::Relaxed) + *bytes as u64, Ordering::Relaxed);
    }
}

impl ByteStream for Metered {
    fn try_read(&mut self, buffer: &mut [u8]) -> Poll<Result<usize, StreamError>> {
        let read = self.stream.try_read(buffer);
        add(&self.traffic.bytes_in, &read);
        read
    }

    fn try_write(&mut self, bytes: &[u8]) -> Poll<Result<usize, StreamError>> {
        let written = self.stream.try_write(bytes);
        add(&self.traffic.bytes_out, &written);
        written
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        self.stream.finish()
    }
}
