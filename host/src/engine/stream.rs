//! Tokio's streams as the core's [`ByteStream`]s.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bulbil_core::io::ByteStream;
use embedded_io::{ErrorKind, ErrorType};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

use super::service::Place;
use crate::files::is_exhaustion;

/// An error of a stream, with embedded-io's kinds.
#[derive(Debug)]
pub(crate) struct StreamError(pub(crate) io::Error);

impl std::fmt::Display for StreamError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for StreamError {}

impl embedded_io::Error for StreamError {
    fn kind(&self) -> ErrorKind {
        kind_of(&self.0)
    }
}

/// The kind of an operating system's error.
pub(crate) fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        // Of open files, mostly: nothing that the other side has to do with.
        _ if is_exhaustion(error) => ErrorKind::OutOfMemory,
        io::ErrorKind::ConnectionRefused => ErrorKind::ConnectionRefused,
        io::ErrorKind::ConnectionReset => ErrorKind::ConnectionReset,
        io::ErrorKind::ConnectionAborted => ErrorKind::ConnectionAborted,
        io::ErrorKind::NotConnected => ErrorKind::NotConnected,
        io::ErrorKind::BrokenPipe => ErrorKind::BrokenPipe,
        io::ErrorKind::TimedOut => ErrorKind::TimedOut,
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        io::ErrorKind::OutOfMemory => ErrorKind::OutOfMemory,
        _ => ErrorKind::Other,
    }
}

/// A stream that wakes the engine by its token.
pub(crate) struct Waking<T> {
    stream: T,
    waker: Waker,
}

impl<T> Waking<T> {
    pub(crate) const fn new(stream: T, waker: Waker) -> Self {
        Self { stream, waker }
    }
}

impl<T> ErrorType for Waking<T> {
    type Error = StreamError;
}

impl<T: AsyncRead + AsyncWrite + Unpin> ByteStream for Waking<T> {
    fn try_read(&mut self, buffer: &mut [u8]) -> Poll<Result<usize, StreamError>> {
        // Tokio's poll_read remembers a short read, so that finding nothing more costs no system call.
        let mut buffer = ReadBuf::new(buffer);
        let polled = Pin::new(&mut self.stream).poll_read(&mut Context::from_waker(&self.waker), &mut buffer);
        polled.map(|read| read.map(|()| buffer.filled().len()).map_err(StreamError))
    }

    fn try_write(&mut self, bytes: &[u8]) -> Poll<Result<usize, StreamError>> {
        let polled = Pin::new(&mut self.stream).poll_write(&mut Context::from_waker(&self.waker), bytes);
        match polled {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(StreamError(io::ErrorKind::WriteZero.into()))),
            polled => polled.map_err(StreamError),
        }
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        match Pin::new(&mut self.stream).poll_shutdown(&mut Context::from_waker(&self.waker)) {
            Poll::Ready(Err(error)) => Err(StreamError(error)),
            // Neither TCP nor a duplex pipe has anything to wait for here.
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }
}

/// A TCP connection whose peer is told by a reset that it broke off, unless it was finished: else half an answer that only the end
/// of the connection delimits would pass for the whole. From the beginning, and not only when dropped, because a process that is killed drops nothing:
/// the system closes what it had open.
pub(crate) struct Breakable {
    waking: Waking<TcpStream>,
}

impl Breakable {
    pub(crate) fn new(stream: TcpStream, waker: Waker) -> Self {
        // Fails for a connection that is broken already.
        let _broken = stream.set_zero_linger();
        Self { waking: Waking::new(stream, waker) }
    }
}

impl ErrorType for Breakable {
    type Error = StreamError;
}

impl ByteStream for Breakable {
    fn try_read(&mut self, buffer: &mut [u8]) -> Poll<Result<usize, StreamError>> {
        self.waking.try_read(buffer)
    }

    fn try_write(&mut self, bytes: &[u8]) -> Poll<Result<usize, StreamError>> {
        self.waking.try_write(bytes)
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        // What is still on its way to the peer, and the end behind it, arrive whatever becomes of this process.
        #[expect(deprecated, reason = "setting it may block, and this is unsetting it")]
        let _broken = self.waking.stream.set_linger(None);
        self.waking.finish()
    }
}

/// What a conversation can be attached to.
pub(crate) enum Outside {
    /// A target's connection, or a local client's that was handed over.
    Tcp(Breakable),
    /// An application in this process.
    Pipe(Waking<DuplexStream>),
    /// A service of this node, and its place.
    Service { pipe: Waking<DuplexStream>, _place: Arc<Place> },
}

impl ErrorType for Outside {
    type Error = StreamError;
}

impl ByteStream for Outside {
    fn try_read(&mut self, buffer: &mut [u8]) -> Poll<Result<usize, StreamError>> {
        match self {
            Self::Tcp(stream) => stream.try_read(buffer),
            Self::Pipe(stream) | Self::Service { pipe: stream, .. } => stream.try_read(buffer),
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> Poll<Result<usize, StreamError>> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Pipe(stream) | Self::Service { pipe: stream, .. } => stream.try_write(bytes),
        }
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        match self {
            Self::Tcp(stream) => stream.finish(),
            Self::Pipe(stream) | Self::Service { pipe: stream, .. } => stream.finish(),
        }
    }
}
