//! A virtual Ethernet: a switch, a clock, and devices on it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use bulbil_core::time::Instant;
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};

/// Frames that may wait for one device; more are lost, as on a real one.
const QUEUE: usize = 512;
/// Longest frame, in bytes.
const FRAME: usize = 1514;

/// A virtual clock, in milliseconds.
#[derive(Clone, Default)]
pub struct VirtualClock(Rc<Cell<u64>>);

impl VirtualClock {
    /// The time.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::from_millis(self.0.get())
    }

    /// Lets the time pass.
    pub fn advance_to(&self, to: Instant) {
        assert!(to >= self.now(), "time does not go back");
        self.0.set(to.millis());
    }
}

/// In place, so that the wire never allocates once its queues are there: what a node allocates can then be counted.
struct Frame {
    due: Instant,
    len: usize,
    bytes: [u8; FRAME],
}

#[derive(Default)]
struct Ports {
    /// What waits for each device, in the order in which it is due.
    queues: Vec<VecDeque<Frame>>,
    /// The Ethernet address seen at each.
    macs: Vec<Option<[u8; 6]>>,
    lost: u64,
}

/// A switch whose cables take a while.
#[derive(Clone)]
pub struct Switch {
    clock: VirtualClock,
    latency: u64,
    ports: Rc<RefCell<Ports>>,
}

impl Switch {
    /// A switch with nothing on it, and cables of `latency` milliseconds.
    #[must_use]
    pub fn new(clock: &VirtualClock, latency: u64) -> Self {
        Self { clock: clock.clone(), latency, ports: Rc::default() }
    }

    /// Plugs a device in.
    #[must_use]
    pub fn plug(&self) -> Port {
        let mut ports = self.ports.borrow_mut();
        ports.queues.push(VecDeque::with_capacity(QUEUE));
        ports.macs.push(None);
        Port { number: ports.queues.len() - 1, switch: self.clone() }
    }

    /// When the next frame is due at any device.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.ports.borrow().queues.iter().filter_map(|queue| queue.front()).map(|frame| frame.due).min()
    }

    /// Frames that found a full queue.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.ports.borrow().lost
    }

    fn send(&self, from: usize, bytes: &[u8]) {
        let mut ports = self.ports.borrow_mut();
        let ports = &mut *ports;
        let (Some(to), Some(sender)) = (bytes.first_chunk::<6>(), bytes[6..].first_chunk::<6>()) else { return };
        ports.macs[from] = Some(*sender);
        let only = ports.macs.iter().position(|mac| mac.as_ref() == Some(to));
        let due = Instant::from_millis(self.clock.now().millis() + self.latency);
        for (at, queue) in ports.queues.iter_mut().enumerate() {
            if at == from || only.is_some_and(|only| only != at) {
                continue;
            }
            if queue.len() == QUEUE {
                ports.lost += 1;
                continue;
            }
            let mut frame = Frame { due, len: bytes.len(), bytes: [0; FRAME] };
            frame.bytes[..bytes.len()].copy_from_slice(bytes);
            queue.push_back(frame);
        }
    }
}

/// A device on the switch.
pub struct Port {
    number: usize,
    switch: Switch,
}

impl Port {
    /// Loses what waits for the device.
    pub fn discard(&self) {
        self.switch.ports.borrow_mut().queues[self.number].clear();
    }
}

impl Device for Port {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(Arrived, Leaving<'_>)> {
        let now = self.switch.clock.now();
        let mut ports = self.switch.ports.borrow_mut();
        let queue = &mut ports.queues[self.number];
        if queue.front().is_none_or(|frame| frame.due > now) {
            return None;
        }
        let frame = queue.pop_front()?;
        drop(ports);
        Some((Arrived(frame), Leaving(self)))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Leaving<'_>> {
        Some(Leaving(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities
    }
}

/// A frame that has come.
pub struct Arrived(Frame);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0.bytes[..self.0.len])
    }
}

/// A frame that is about to leave.
pub struct Leaving<'a>(&'a Port);

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = [0; FRAME];
        let result = f(&mut bytes[..len]);
        self.0.switch.send(self.0.number, &bytes[..len]);
        result
    }
}
