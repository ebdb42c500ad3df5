//! A TCP connection of smoltcp as the driver sees it.

use core::cell::RefCell;
use core::task::Poll;

use bulbil_core::io::ByteStream;
use embedded_io::{ErrorKind, ErrorType};
use smoltcp::socket::tcp::RecvError;

use crate::net::{Net, SocketIndex};

/// One connection. Dropped before it was finished, it is reset.
pub struct TcpStream {
    net: &'static RefCell<Net>,
    socket: SocketIndex,
}

impl TcpStream {
    pub(crate) const fn new(net: &'static RefCell<Net>, socket: SocketIndex) -> Self {
        Self { net, socket }
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.net.borrow_mut().let_go(self.socket);
    }
}

impl ErrorType for TcpStream {
    type Error = ErrorKind;
}

impl ByteStream for TcpStream {
    fn try_read(&mut self, buffer: &mut [u8]) -> Poll<Result<usize, ErrorKind>> {
        let mut net = self.net.borrow_mut();
        match net.tcp(self.socket).recv_slice(buffer) {
            Ok(0) => Poll::Pending,
            Ok(read) => Poll::Ready(Ok(read)),
            Err(RecvError::Finished) => Poll::Ready(Ok(0)),
            Err(RecvError::InvalidState) => Poll::Ready(Err(ErrorKind::ConnectionReset)),
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> Poll<Result<usize, ErrorKind>> {
        let mut net = self.net.borrow_mut();
        match net.tcp(self.socket).send_slice(bytes) {
            Ok(0) => Poll::Pending,
            Ok(written) => Poll::Ready(Ok(written)),
            Err(_) => Poll::Ready(Err(ErrorKind::BrokenPipe)),
        }
    }

    fn finish(&mut self) -> Result<(), ErrorKind> {
        let mut net = self.net.borrow_mut();
        let socket = net.tcp(self.socket);
        if !socket.may_send() {
            return Err(ErrorKind::BrokenPipe);
        }
        socket.close();
        Ok(())
    }
}
