//! A Linux TAP device as a network card for smoltcp.

use core::fmt;
use std::{
    boxed::Box,
    format,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
    string::{String, ToString},
};

use nix::{errno::Errno, libc};
use smoltcp::{
    phy::{self, Device, DeviceCapabilities, Medium},
    time::Instant,
};

use super::ifreq::{Ifreq, InterfaceName, Request};

/// The longest Ethernet frame without its checksum, in bytes: a header of 14 and 1500.
pub const FRAME_MAX: usize = 1514;

/// The kernel cuts a frame short silently where the buffer ends. One byte more shows it.
const READ_LEN: usize = FRAME_MAX + 1;

/// How many frames the stack may send back to back. The kernel queues 1000 for a TAP device; more than a window's worth would only make
/// the stack's socket buffers the limit.
const BURST: usize = 64;

/// An attached TAP device. What is written to it arrives at the kernel's side of the interface as a frame from the wire.
///
/// All memory is allocated in [`Tap::open`]. A frame that the kernel does not take (its queue is full, the interface is down) is lost, as on
/// a wire, and counted.
pub struct Tap {
    file: File,
    name: String,
    rx: Box<[u8; READ_LEN]>,
    tx: Box<[u8; FRAME_MAX]>,
    counters: Counters,
    broken: Option<Errno>,
}

/// What a TAP device has carried and lost, in frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames read.
    pub received: u64,
    /// Frames written.
    pub sent: u64,
    /// Frames longer than [`FRAME_MAX`] from the kernel, dropped: the interface has a greater MTU than the device.
    pub giants: u64,
    /// Frames that the kernel did not take.
    pub lost: u64,
}

/// Why a TAP device cannot be had, and what to do about it.
#[derive(Debug)]
pub enum TapError {
    /// There is no `/dev/net/tun`.
    NoDriver,
    /// `/dev/net/tun` may not be opened.
    NoPermission,
    /// It may be opened, but no interface made or attached.
    NotAllowed(String),
    /// Another process is attached to the interface.
    Busy(String),
    /// An interface of this name exists and is no TAP device.
    NotATap(String),
    /// Anything else.
    Io(io::Error),
}

impl fmt::Display for TapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDriver => f.write_str("there is no /dev/net/tun: load the driver (modprobe tun), or give the container the device (--device /dev/net/tun)"),
            Self::NoPermission => f.write_str("no permission to open /dev/net/tun: run as root, or let everybody open it, as most distributions do (chmod 666 /dev/net/tun): by itself it gives access to nothing"),
            Self::NotAllowed(name) => write!(f, "no permission to attach to the TAP device {name}: run the `stage` command, which makes a network namespace of its own, or run as root"),
            Self::Busy(name) => write!(f, "the TAP device {name} is in use: another process is attached to it"),
            Self::NotATap(name) => write!(f, "the interface {name} exists and is not a TAP device: choose another name"),
            Self::Io(error) => write!(f, "TAP device: {error}"),
        }
    }
}

impl core::error::Error for TapError {}

impl From<TapError> for io::Error {
    fn from(error: TapError) -> Self {
        let kind = match &error {
            TapError::NoDriver => io::ErrorKind::NotFound,
            TapError::NoPermission | TapError::NotAllowed(_) => io::ErrorKind::PermissionDenied,
            TapError::Busy(_) => io::ErrorKind::ResourceBusy,
            TapError::NotATap(_) => io::ErrorKind::InvalidInput,
            TapError::Io(error) => error.kind(),
        };
        Self::new(kind, error)
    }
}

impl Tap {
    /// Attaches to the TAP device of this name and creates it if there is none; what it creates goes when it is dropped.
    ///
    /// # Errors
    ///
    /// A [`TapError`] inside, which says what to do.
    pub fn open(name: &str) -> io::Result<Self> {
        Ok(Self {
            file: attach(name)?,
            name: name.to_string(),
            rx: Box::new([0; READ_LEN]),
            tx: Box::new([0; FRAME_MAX]),
            counters: Counters::default(),
            broken: None,
        })
    }

    /// Creates a TAP device that stays until its network namespace goes, for another process to attach to. One that is already there is
    /// kept.
    ///
    /// # Errors
    ///
    /// As [`Tap::open`].
    #[allow(unsafe_code, reason = "ioctl")]
    pub fn create_persistent(name: &str) -> io::Result<()> {
        let file = attach(name)?;
        let on: libc::c_int = 1;
        // SAFETY: TUNSETPERSIST takes its argument as a number and touches no memory of ours.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, on) };
        Errno::result(result)?;
        Ok(())
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it has carried and lost so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Why nothing can be read from the device any more, if that is so: the interface was removed. A loop that waits for the device to
    /// become readable has to ask, because it would be woken for ever.
    #[must_use]
    pub fn broken(&self) -> Option<io::Error> {
        self.broken.map(io::Error::from)
    }

    /// Reads a frame into the buffer and gives its length.
    fn read(&mut self) -> Option<usize> {
        loop {
            match self.file.read(&mut self.rx[..]) {
                Ok(0) => return None,
                Ok(len) if len > FRAME_MAX => self.counters.giants += 1,
                Ok(len) => {
                    self.counters.received += 1;
                    return Some(len);
                }
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EINTR) => {}
                    // EFAULT and EIO: the interface is down, which the stage may change.
                    Some(Errno::EAGAIN | Errno::EFAULT | Errno::EIO) => return None,
                    errno => {
                        self.broken = Some(errno.unwrap_or(Errno::EIO));
                        return None;
                    }
                },
            }
        }
    }
}

/// Opens the driver and attaches to the device `name`.
fn attach(name: &str) -> io::Result<File> {
    let interface = InterfaceName::new(name)?;
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun").map_err(
        |error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => TapError::NoDriver,
            Some(Errno::EACCES | Errno::EPERM) => TapError::NoPermission,
            _ => TapError::Io(error),
        },
    )?;
    let flags = libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI).map_err(io::Error::other)?;
    Ifreq::new(interface).with_flags(flags).send(&file, Request::AttachTun).map_err(|error| {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES) => TapError::NotAllowed(name.to_string()),
            Some(Errno::EBUSY) => TapError::Busy(name.to_string()),
            Some(Errno::EINVAL) => TapError::NotATap(name.to_string()),
            _ => TapError::Io(io::Error::new(error.kind(), format!("{name}: {error}"))),
        }
    })?;
    Ok(file)
}

/// For the loop to wait for frames.
impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Device for Tap {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        let len = self.read()?;
        let Self { file, rx, tx, counters, .. } = self;
        Some((RxToken { frame: &rx[..len] }, TxToken { file, buffer: tx, counters }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_>> {
        let Self { file, tx, counters, .. } = self;
        Some(TxToken { file, buffer: tx, counters })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_MAX;
        capabilities.max_burst_size = Some(BURST);
        capabilities
    }
}

/// A received frame.
pub struct RxToken<'a> {
    frame: &'a [u8],
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.frame)
    }
}

/// Room for a frame to send.
pub struct TxToken<'a> {
    file: &'a File,
    buffer: &'a mut [u8; FRAME_MAX],
    counters: &'a mut Counters,
}

impl phy::TxToken for TxToken<'_> {
    /// `len` is at most [`FRAME_MAX`], as the capabilities say.
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, len: usize, f: F) -> R {
        let frame = &mut self.buffer[..len];
        let result = f(frame);
        loop {
            match self.file.write(frame) {
                Ok(_) => self.counters.sent += 1,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => self.counters.lost += 1,
            }
            return result;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        let tap = || String::from("tap7");
        for (error, words, kind) in [
            (TapError::NoDriver, ["modprobe tun", "/dev/net/tun"], io::ErrorKind::NotFound),
            (TapError::NoPermission, ["run as root", "chmod"], io::ErrorKind::PermissionDenied),
            (TapError::NotAllowed(tap()), ["`stage`", "tap7"], io::ErrorKind::PermissionDenied),
            (TapError::Busy(tap()), ["another process", "tap7"], io::ErrorKind::ResourceBusy),
            (TapError::NotATap(tap()), ["another name", "tap7"], io::ErrorKind::InvalidInput),
        ] {
            let error = io::Error::from(error);
            assert_eq!(error.kind(), kind);
            for word in words {
                assert!(error.to_string().contains(word), "{error}");
            }
        }
    }

    #[test]
    fn a_bad_name_is_refused_before_the_driver_is_asked() {
        assert_eq!(Tap::open("tap%d").err().map(|error| error.kind()), Some(io::ErrorKind::InvalidInput));
        assert_eq!(Tap::create_persistent("").err().map(|error| error.kind()), Some(io::ErrorKind::InvalidInput));
    }
}
