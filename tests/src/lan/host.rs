//! A plain machine on the virtual Ethernet, without onions: targets, and peers that behave badly.

use std::net::SocketAddr;

use bulbil_core::time::Instant;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

use super::wire::{Port, VirtualClock};

/// What a socket does.
enum Task {
    /// Listens, and sends back whatever comes until its peer has finished.
    Echo(u16),
    /// Listens, and answers whatever comes with so many bytes.
    Source { port: u16, len: usize, sent: usize },
    /// Has connected, and is driven by the test.
    Free,
}

/// A plain machine.
pub struct PlainHost {
    clock: VirtualClock,
    device: Port,
    interface: Interface,
    sockets: SocketSet<'static>,
    tasks: Vec<(SocketHandle, Task)>,
    next_port: u16,
}

fn leaked(len: usize) -> &'static mut [u8] {
    Box::leak(vec![0; len].into_boxed_slice())
}

/// The byte at `at` of what a source sends.
#[must_use]
pub const fn source_byte(at: usize) -> u8 {
    (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]
}

impl PlainHost {
    /// A machine at `address`/24 with room for `sockets` connections.
    #[must_use]
    pub fn new(clock: &VirtualClock, mut device: Port, number: u8, address: IpAddress, sockets: usize) -> Self {
        let mac = EthernetAddress([2, 0, 0, 0, 1, number]);
        let mut interface =
            Interface::new(Config::new(HardwareAddress::Ethernet(mac)), &mut device, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(address, 24)).expect("one address"));
        let storage: Vec<SocketStorage<'static>> =
            std::iter::repeat_with(SocketStorage::default).take(sockets).collect();
        let sockets = SocketSet::new(Box::leak(storage.into_boxed_slice()) as &mut [_]);
        Self { clock: clock.clone(), device, interface, sockets, tasks: Vec::new(), next_port: 50_000 }
    }

    fn add(&mut self, window: usize, task: Task) -> SocketHandle {
        let mut socket =
            tcp::Socket::new(tcp::SocketBuffer::new(leaked(window)), tcp::SocketBuffer::new(leaked(window)));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let handle = self.sockets.add(socket);
        self.tasks.push((handle, task));
        handle
    }

    /// Echoes at `port`, `count` connections at one time.
    pub fn echo(&mut self, port: u16, count: usize) {
        for _ in 0..count {
            self.add(4096, Task::Echo(port));
        }
    }

    /// Answers with `len` bytes at `port`, `count` connections at one time.
    pub fn source(&mut self, port: u16, len: usize, count: usize) {
        for _ in 0..count {
            self.add(8192, Task::Source { port, len, sent: 0 });
        }
    }

    /// Connects; the test drives the socket.
    pub fn connect(&mut self, to: SocketAddr) -> SocketHandle {
        let handle = self.add(2048, Task::Free);
        self.reconnect(handle, to);
        handle
    }

    /// Resets a socket and connects it again.
    pub fn reconnect(&mut self, handle: SocketHandle, to: SocketAddr) {
        self.next_port = self.next_port.checked_add(1).unwrap_or(50_000);
        let socket = self.sockets.get_mut::<tcp::Socket<'static>>(handle);
        socket.abort();
        socket.connect(self.interface.context(), to, self.next_port).expect("a sound address");
    }

    /// The socket itself.
    pub fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Does what can be done; answers when to be called again.
    pub fn poll(&mut self) -> Option<Instant> {
        let now = StackInstant::from_millis(self.clock.now().millis() as i64);
        self.interface.poll(now, &mut self.device, &mut self.sockets);
        for (handle, task) in &mut self.tasks {
            let socket = self.sockets.get_mut::<tcp::Socket<'static>>(*handle);
            match task {
                Task::Free => {}
                Task::Echo(port) => {
                    if !socket.is_open()
                        && socket.remote_endpoint().is_none_or(|_| socket.state() == tcp::State::TimeWait)
                    {
                        socket.abort();
                        socket.listen(*port).expect("a closed socket");
                    }
                    while socket.can_recv() && socket.can_send() {
                        let mut bytes = [0; 2048];
                        let room = (socket.send_capacity() - socket.send_queue()).min(bytes.len());
                        let read = socket.recv_slice(&mut bytes[..room]).expect("checked");
                        assert_eq!(socket.send_slice(&bytes[..read]), Ok(read));
                    }
                    if socket.state() == tcp::State::CloseWait && !socket.can_recv() {
                        socket.close();
                    }
                }
                Task::Source { port, len, sent } => {
                    if !socket.is_open()
                        && socket.remote_endpoint().is_none_or(|_| socket.state() == tcp::State::TimeWait)
                    {
                        socket.abort();
                        socket.listen(*port).expect("a closed socket");
                        *sent = 0;
                    }
                    if socket.can_recv() {
                        let _request = socket.recv(|bytes| (bytes.len(), ()));
                    }
                    while socket.can_send() && *sent < *len {
                        let part: Vec<u8> = (*sent..*len).take(4096).map(source_byte).collect();
                        *sent += socket.send_slice(&part).expect("checked");
                    }
                    if *sent == *len && socket.may_send() {
                        socket.close();
                    }
                }
            }
        }
        self.interface.poll(now, &mut self.device, &mut self.sockets);
        let next = self.interface.poll_at(now, &self.sockets)?;
        Some(Instant::from_millis(next.total_millis() as u64).max(self.clock.now()))
    }
}
