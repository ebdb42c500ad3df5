//! A TCP forwarder on smoltcp, without onions: what the stack itself costs.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::time::Instant as Clock;

use bulbil_firmware_sim::linux::tap::Tap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::phy::Device;
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

/// Bytes of a TCP window: those of the medium profile's links, two whole segments.
pub(crate) const WINDOW: usize = 2920;
/// Where it listens on the stage.
pub(crate) const ADDRESS: [u8; 4] = [10, 77, 0, 240];
pub(crate) const PORT: u16 = 9000;
/// Where what it takes goes: a host's address on the stage.
pub(crate) const TARGET: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 5)), 9000);

/// One connection in, one out, and everything from each to the other.
pub(crate) struct Forwarder {
    interface: Interface,
    sockets: SocketSet<'static>,
    pair: [SocketHandle; 2],
    target: SocketAddr,
}

fn leaked<T>(items: impl IntoIterator<Item = T>) -> &'static mut [T] {
    Box::leak(items.into_iter().collect())
}

impl Forwarder {
    pub(crate) fn new(device: &mut impl Device, address: IpAddress, target: SocketAddr) -> Self {
        let mac = EthernetAddress([2, 0, 0, 0, 2, 1]);
        let mut interface = Interface::new(Config::new(HardwareAddress::Ethernet(mac)), device, Instant::ZERO);
        interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(address, 24)).expect("one address"));
        let mut sockets = SocketSet::new(leaked([const { SocketStorage::EMPTY }; 2]));
        let pair = [(); 2].map(|()| {
            let [receive, send] = [(); 2].map(|()| tcp::SocketBuffer::new(leaked(vec![0; WINDOW])));
            let mut socket = tcp::Socket::new(receive, send);
            socket.set_nagle_enabled(false);
            socket.set_ack_delay(None);
            sockets.add(socket)
        });
        sockets.get_mut::<tcp::Socket<'static>>(pair[0]).listen(PORT).expect("a closed socket");
        Self { interface, sockets, pair, target }
    }

    pub(crate) fn poll(&mut self, device: &mut impl Device, now: Instant) -> Option<Instant> {
        loop {
            self.interface.poll(now, device, &mut self.sockets);
            let arrived = self.sockets.get::<tcp::Socket<'static>>(self.pair[0]).is_active();
            let onward = self.sockets.get_mut::<tcp::Socket<'static>>(self.pair[1]);
            if arrived && !onward.is_open() {
                onward.connect(self.interface.context(), self.target, 50_000).expect("a sound address");
            }
            let [inward, outward] = self.pair;
            let moved = self.pump(inward, outward) + self.pump(outward, inward);
            if moved == 0 {
                break;
            }
        }
        self.interface.poll_at(now, &self.sockets)
    }

    fn pump(&mut self, from: SocketHandle, to: SocketHandle) -> usize {
        let socket = self.sockets.get::<tcp::Socket<'static>>(to);
        let room = if socket.can_send() { socket.send_capacity() - socket.send_queue() } else { 0 };
        let mut bytes = [0; WINDOW];
        let source = self.sockets.get_mut::<tcp::Socket<'static>>(from);
        let read = if room > 0 { source.recv_slice(&mut bytes[..room]).unwrap_or(0) } else { 0 };
        if read > 0 {
            let sent = self.sockets.get_mut::<tcp::Socket<'static>>(to).send_slice(&bytes[..read]);
            assert_eq!(sent, Ok(read));
        }
        read
    }
}

/// Forwards on a TAP device until it is ended.
pub(crate) fn run(tap: &str) -> ExitCode {
    let mut device = Tap::open(tap).expect("the benchmark has made the device");
    let [a, b, c, d] = ADDRESS;
    let mut forwarder = Forwarder::new(&mut device, IpAddress::v4(a, b, c, d), TARGET);
    let start = Clock::now();
    println!("ready");
    loop {
        let now = Instant::from_micros(start.elapsed().as_micros() as i64);
        let due = forwarder.poll(&mut device, now);
        let wait = due.map_or(1000, |due| (due - now).total_millis().min(1000));
        let mut fds = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        let _interrupted = poll(&mut fds, PollTimeout::from(wait as u16));
    }
}
