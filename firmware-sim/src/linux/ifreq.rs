//! Requests about one network interface: the `ioctl`s that take a `struct ifreq`.
//!
//! The kernel copies the whole structure in and out (40 bytes on 64-bit machines), so it is always passed whole.

use core::net::Ipv4Addr;
use std::{
    format, io,
    os::fd::{AsFd, AsRawFd},
};

use nix::{errno::Errno, libc};

/// An interface's name as the kernel takes it: 1 to 15 bytes, padded with zeros.
#[derive(Clone, Copy)]
pub(super) struct InterfaceName([libc::c_char; libc::IFNAMSIZ]);

impl InterfaceName {
    /// A name that the kernel would take as it is. `%` is refused because the kernel would read it as a pattern; a label (`br0:1`) is
    /// a name as well.
    ///
    /// # Errors
    ///
    /// `InvalidInput`, saying what a name may be.
    pub(super) fn new(name: &str) -> io::Result<Self> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b'%';
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name == "." || name == ".." || !name.bytes().all(allowed)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "`{name}` cannot be an interface's name: it takes 1 to 15 characters, without spaces, `/` and `%`"
                ),
            ));
        }
        let mut bytes = [0; libc::IFNAMSIZ];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        Ok(Self(bytes))
    }
}

/// What is asked of the kernel. Closed, so that only requests that take a `struct ifreq` can be sent with one.
#[derive(Clone, Copy)]
pub(super) enum Request {
    AttachTun,
    GetIndex,
    GetFlags,
    SetFlags,
    GetHardwareAddress,
    SetHardwareAddress,
    SetAddress,
    SetNetmask,
    /// Reads the name only, which is at the structure's beginning.
    AddBridge,
    AddBridgePort,
}

impl Request {
    fn code(self) -> libc::Ioctl {
        // From <linux/sockios.h>, the same on every architecture; not in `libc`.
        const SIOCBRADDBR: libc::Ioctl = 0x89a0;
        const SIOCBRADDIF: libc::Ioctl = 0x89a2;
        match self {
            Self::AttachTun => libc::TUNSETIFF,
            Self::GetIndex => libc::SIOCGIFINDEX as libc::Ioctl,
            Self::GetFlags => libc::SIOCGIFFLAGS as libc::Ioctl,
            Self::SetFlags => libc::SIOCSIFFLAGS as libc::Ioctl,
            Self::GetHardwareAddress => libc::SIOCGIFHWADDR as libc::Ioctl,
            Self::SetHardwareAddress => libc::SIOCSIFHWADDR as libc::Ioctl,
            Self::SetAddress => libc::SIOCSIFADDR as libc::Ioctl,
            Self::SetNetmask => libc::SIOCSIFNETMASK as libc::Ioctl,
            Self::AddBridge => SIOCBRADDBR,
            Self::AddBridgePort => SIOCBRADDIF,
        }
    }
}

/// A `struct ifreq`: a name and one value, whose meaning depends on the request.
pub(super) struct Ifreq(libc::ifreq);

impl Ifreq {
    /// About the interface of this name, all values zero.
    #[allow(unsafe_code, reason = "a union without an initialiser that covers all of it")]
    pub(super) fn new(name: InterfaceName) -> Self {
        // SAFETY: integers and a pointer, for which all bits zero is a value.
        let mut ifreq: libc::ifreq = unsafe { core::mem::zeroed() };
        ifreq.ifr_name = name.0;
        Self(ifreq)
    }

    /// With interface flags (`IFF_...`).
    pub(super) fn with_flags(mut self, flags: libc::c_short) -> Self {
        self.0.ifr_ifru.ifru_flags = flags;
        self
    }

    /// With the number of another interface.
    pub(super) fn with_index(mut self, index: libc::c_int) -> Self {
        self.0.ifr_ifru.ifru_ifindex = index;
        self
    }

    /// With an IPv4 address (or a netmask).
    pub(super) fn with_ipv4(mut self, address: Ipv4Addr) -> Self {
        // A `sockaddr_in` in a `sockaddr`'s place: the family, two bytes of port, then the address.
        let mut data = [0; 14];
        for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        self.0.ifr_ifru.ifru_addr = libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data };
        self
    }

    /// The flags of the answer to [`Request::GetFlags`].
    #[allow(unsafe_code, reason = "reads a union")]
    pub(super) fn flags(&self) -> libc::c_short {
        // SAFETY: every bit of the union is initialised (zero, or what the kernel wrote), and every bit pattern is an integer.
        unsafe { self.0.ifr_ifru.ifru_flags }
    }

    /// The number in the answer to [`Request::GetIndex`].
    #[allow(unsafe_code, reason = "reads a union")]
    pub(super) fn index(&self) -> libc::c_int {
        // SAFETY: as in `flags`.
        unsafe { self.0.ifr_ifru.ifru_ifindex }
    }

    /// Sends it to the kernel, which may write its answer into it.
    ///
    /// # Errors
    ///
    /// The system's.
    #[allow(unsafe_code, reason = "ioctl")]
    pub(super) fn send(&mut self, to: impl AsFd, request: Request) -> io::Result<()> {
        // SAFETY: each `Request` makes the kernel read and write a `struct ifreq` at most, and that is what the pointer is to.
        let result = unsafe { libc::ioctl(to.as_fd().as_raw_fd(), request.code(), &raw mut self.0) };
        Errno::result(result)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn the_structure_is_whole() {
        if cfg!(target_pointer_width = "64") {
            assert_eq!(size_of::<Ifreq>(), 40);
        }
    }

    #[test]
    fn names_are_taken_or_refused_with_a_reason() {
        for good in ["a", "tap0", "br0:1", "fifteen-letters"] {
            assert!(InterfaceName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "sixteen-letters!", "tap 0", "tap/0", "tap%d", "tap\0", ".", "..", "täp"] {
            let error = InterfaceName::new(bad).err().unwrap();
            assert!(error.to_string().contains("1 to 15 characters"), "{error}");
        }
    }

    #[test]
    fn values_are_read_back() {
        let name = InterfaceName::new("lo").unwrap();
        let flags = libc::c_short::try_from(libc::IFF_UP).unwrap();
        assert_eq!(Ifreq::new(name).with_flags(flags).flags(), flags);
        assert_eq!(Ifreq::new(name).with_index(7).index(), 7);
    }

    #[test]
    fn the_kernel_answers() {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let mut request = Ifreq::new(InterfaceName::new("lo").unwrap());
        request.send(&socket, Request::GetIndex).unwrap();
        assert_eq!(request.index(), 1, "the loopback interface is the first of every namespace");
        let mut request = Ifreq::new(InterfaceName::new("not-there").unwrap());
        let error = request.send(&socket, Request::GetIndex).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
