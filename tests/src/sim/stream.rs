//! One end of a virtual pipe as the driver sees it.

use std::rc::Rc;
use std::task::Poll;

use bulbil_core::io::ByteStream;
use embedded_io::{ErrorKind, ErrorType};

use super::pipes::{Read, StreamId};
use super::world::{Owner, Shared};

/// One end of a virtual pipe. Dropping it closes it.
pub(crate) struct SimStream {
    world: Shared,
    end: StreamId,
}

impl SimStream {
    pub(super) fn new(world: &Shared, end: StreamId, owner: Owner) -> Self {
        world.borrow_mut().set_owner(end, owner);
        Self { world: Rc::clone(world), end }
    }

    pub(crate) const fn id(&self) -> StreamId {
        self.end
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.world.borrow_mut().close(self.end);
    }
}

impl ErrorType for SimStream {
    type Error = ErrorKind;
}

impl ByteStream for SimStream {
    fn try_read(&mut self, buffer: &mut [u8]) -> Poll<Result<usize, ErrorKind>> {
        match self.world.borrow_mut().read(self.end, buffer) {
            Read::Bytes(len) => Poll::Ready(Ok(len)),
            Read::Pending => Poll::Pending,
            Read::End => Poll::Ready(Ok(0)),
            Read::Broken => Poll::Ready(Err(ErrorKind::ConnectionReset)),
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> Poll<Result<usize, ErrorKind>> {
        assert!(!bytes.is_empty(), "wrote nothing");
        match self.world.borrow_mut().write(self.end, bytes) {
            Some(0) => Poll::Pending,
            Some(len) => Poll::Ready(Ok(len)),
            None => Poll::Ready(Err(ErrorKind::BrokenPipe)),
        }
    }

    fn finish(&mut self) -> Result<(), ErrorKind> {
        self.world.borrow_mut().finish(self.end);
        Ok(())
    }
}
