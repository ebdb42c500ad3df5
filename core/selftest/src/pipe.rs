//! Connections in memory.

use core::cell::RefCell;
use core::task::Poll;

use bulbil_core::io::ByteStream;
use embedded_io::{ErrorKind, ErrorType};

/// Bytes on their way in one direction.
const RING_LEN: usize = 8192;

/// One direction of a connection.
pub(crate) struct Ring {
    bytes: [u8; RING_LEN],
    start: usize,
    len: usize,
    finished: bool,
}

impl Ring {
    pub(crate) const EMPTY: Self = Self { bytes: [0; RING_LEN], start: 0, len: 0, finished: false };
}

/// One end of a connection.
#[derive(Clone, Copy)]
pub(crate) struct Pipe<'r> {
    incoming: &'r RefCell<Ring>,
    outgoing: &'r RefCell<Ring>,
}

impl<'r> Pipe<'r> {
    /// Both ends of a connection.
    pub(crate) const fn pair([one, other]: &'r [RefCell<Ring>; 2]) -> [Self; 2] {
        [Self { incoming: one, outgoing: other }, Self { incoming: other, outgoing: one }]
    }
}

impl ErrorType for Pipe<'_> {
    type Error = ErrorKind;
}

impl ByteStream for Pipe<'_> {
    fn try_read(&mut self, buffer: &mut [u8]) -> Poll<Result<usize, ErrorKind>> {
        let ring = &mut *self.incoming.borrow_mut();
        if ring.len == 0 && !ring.finished {
            return Poll::Pending;
        }
        let len = buffer.len().min(ring.len);
        for (place, at) in buffer[..len].iter_mut().zip(ring.start..) {
            *place = ring.bytes[at % RING_LEN];
        }
        ring.start = (ring.start + len) % RING_LEN;
        ring.len -= len;
        Poll::Ready(Ok(len))
    }

    fn try_write(&mut self, bytes: &[u8]) -> Poll<Result<usize, ErrorKind>> {
        let ring = &mut *self.outgoing.borrow_mut();
        let len = bytes.len().min(RING_LEN - ring.len);
        if len == 0 {
            return Poll::Pending;
        }
        for (byte, at) in bytes[..len].iter().zip(ring.start + ring.len..) {
            ring.bytes[at % RING_LEN] = *byte;
        }
        ring.len += len;
        Poll::Ready(Ok(len))
    }

    fn finish(&mut self) -> Result<(), ErrorKind> {
        self.outgoing.borrow_mut().finished = true;
        Ok(())
    }
}
