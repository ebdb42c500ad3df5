//! A stage for nodes: a network namespace of one's own, without root where the kernel allows it, with a bridge and addresses.
//!
//! Everything by system calls: nothing needs to be installed.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};
use std::{
    format, fs, io,
    net::UdpSocket,
    os::fd::{AsFd, AsRawFd},
    string::String,
    thread,
    time::Instant,
};

use nix::{
    errno::Errno,
    libc,
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid},
};

use super::ifreq::{Ifreq, InterfaceName, Request};

/// How the namespace was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// With the rights that the process had: a network namespace alone.
    WithRights,
    /// In a user namespace, in which the process is root and outside of which it is who it was.
    AsUser,
}

/// Why there is no namespace, and what to do about it.
#[derive(Debug)]
pub enum NamespaceError {
    /// The process has several threads already; only the calling one would have moved.
    Threads,
    /// The kernel refused.
    Refused(Errno),
    /// The user namespace was made, but this file in it could not be written.
    Map(&'static str, io::Error),
    /// What the process asks about itself is not to be had.
    Proc(io::Error),
}

impl fmt::Display for NamespaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Threads => f.write_str("a namespace is entered before the process starts its first thread"),
            Self::Proc(error) => write!(f, "/proc/self/task: {error}"),
            Self::Refused(errno) => write!(f, "no network namespace: {}; {}", errno.desc(), advice()),
            Self::Map(file, error) => write!(f, "no network namespace: {file}: {error}; {}", advice()),
        }
    }
}

impl core::error::Error for NamespaceError {}

/// What stands in the way, as far as the kernel's settings tell.
fn advice() -> &'static str {
    let setting = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if setting("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        "enable user namespaces (sysctl kernel.unprivileged_userns_clone=1), or run as root"
    } else if setting("/proc/sys/user/max_user_namespaces") == Some(0) {
        "enable user namespaces (sysctl user.max_user_namespaces=10000), or run as root"
    } else if setting("/proc/sys/user/max_net_namespaces") == Some(0) {
        "enable network namespaces (sysctl user.max_net_namespaces=10000)"
    } else if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        "AppArmor restricts user namespaces: allow them (sysctl kernel.apparmor_restrict_unprivileged_userns=0), or run as root"
    } else {
        "run as root, and in a container with its privileges (docker run --privileged)"
    }
}

/// Moves the process into a new network namespace, empty but for a loopback interface that is down. It ends with its processes.
///
/// With the right to do so nothing else changes; without it a user namespace is made as well, in which the process is root. Threads and
/// processes started later are in it too.
///
/// # Errors
///
/// If the process has several threads, or the kernel or its settings do not allow it.
pub fn enter() -> Result<Entered, NamespaceError> {
    if fs::read_dir("/proc/self/task").map_err(NamespaceError::Proc)?.count() != 1 {
        return Err(NamespaceError::Threads);
    }
    // First without a user namespace: in one, root could not read other users' files any more.
    if unshare(CloneFlags::CLONE_NEWNET).is_ok() {
        return Ok(Entered::WithRights);
    }
    // Inside, and until they are mapped, the ids are nobody's.
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(NamespaceError::Refused)?;
    // Without this the kernel takes no group map from a process without rights.
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("0 {user} 1"))?;
    write("/proc/self/gid_map", &format!("0 {group} 1"))?;
    Ok(Entered::AsUser)
}

fn write(file: &'static str, text: &str) -> Result<(), NamespaceError> {
    fs::write(file, text).map_err(|error| NamespaceError::Map(file, error))
}

/// Brings an interface up: `lo`, which then has 127.0.0.1 and ::1, or a TAP device.
///
/// # Errors
///
/// The system's, with the interface's name.
pub fn bring_up(interface: &str) -> io::Result<()> {
    let name = InterfaceName::new(interface)?;
    let socket = socket()?;
    let mut request = Ifreq::new(name);
    request.send(&socket, Request::GetFlags).map_err(about(interface))?;
    let up = libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    let flags = request.flags() | up;
    request.with_flags(flags).send(&socket, Request::SetFlags).map_err(about(interface))
}

/// Any socket will do to speak about interfaces with.
fn socket() -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
}

fn about(interface: &str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("interface {interface}: {error}"))
}

/// Sets one of an interface's IPv6 parameters and says whether it did: where `/proc/sys` cannot be written (some containers) it stays as
/// it is.
fn tune(interface: &str, parameter: &str, value: &str) -> bool {
    fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/{parameter}"), value).is_ok()
}

/// A bridge: the wire that TAP devices are attached to, and the host's own addresses on it.
///
/// It does not speak the spanning tree protocol, so a new port forwards at once.
#[derive(Debug)]
pub struct Bridge {
    name: String,
}

impl Bridge {
    /// Makes a bridge with these addresses and prefix lengths and brings it up. They can be used as soon as this returns, also before
    /// anything is attached; where `/proc/sys` cannot be written, IPv6 ones only a second or two after the first device has come.
    ///
    /// # Errors
    ///
    /// The system's, with what was to be done.
    pub fn create(name: &str, addresses: &[(IpAddr, u8)]) -> io::Result<Self> {
        let interface = InterfaceName::new(name)?;
        let socket = socket()?;
        Ifreq::new(interface).send(&socket, Request::AddBridge).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOPKG | libc::ENOTTY) => io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel has no bridges: load the driver (modprobe bridge)",
            ),
            _ => about(name)(error),
        })?;
        // A bridge takes the least address of its ports, and another one when a port is attached: neighbours would speak to the old one until
        // they ask again. One that was set stays.
        let mut hardware = Ifreq::new(interface);
        hardware.send(&socket, Request::GetHardwareAddress).map_err(about(name))?;
        hardware.send(&socket, Request::SetHardwareAddress).map_err(about(name))?;
        // Nobody else can have the addresses; to ask would take a second, in which they cannot be used. The kernel asks if either says so.
        let unasked = ["all", name].map(|interface| tune(interface, "accept_dad", "0")) == [true; 2];
        bring_up(name)?;
        let mut label = 0;
        for (address, prefix) in addresses {
            let name = if address.is_ipv4() && label > 0 { format!("{name}:{label}") } else { String::from(name) };
            match address {
                IpAddr::V4(address) => {
                    label += 1;
                    add_ipv4(&socket, &name, *address, *prefix)
                }
                IpAddr::V6(address) => add_ipv6(&socket, interface, *address, *prefix)
                    .and_then(|()| if unasked { wait_for(*address) } else { Ok(()) }),
            }
            .map_err(|error| io::Error::new(error.kind(), format!("{address}/{prefix} on {name}: {error}")))?;
        }
        Ok(Self { name: String::from(name) })
    }

    /// A bridge that was created before, by its name.
    #[must_use]
    pub fn existing(name: &str) -> Self {
        Self { name: String::from(name) }
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Attaches a TAP device that exists, and brings it up.
    ///
    /// # Errors
    ///
    /// The system's, with the device's name.
    pub fn attach(&self, tap: &str) -> io::Result<()> {
        let (bridge, port) = (InterfaceName::new(&self.name)?, InterfaceName::new(tap)?);
        let socket = socket()?;
        let index = index_of(&socket, port).map_err(about(tap))?;
        // The port is the wire's end, not one of the host's own: no address, no router solicitations from it.
        tune(tap, "disable_ipv6", "1");
        Ifreq::new(bridge).with_index(index).send(&socket, Request::AddBridgePort).map_err(about(tap))?;
        bring_up(tap)
    }
}

fn index_of(socket: &UdpSocket, interface: InterfaceName) -> io::Result<libc::c_int> {
    let mut request = Ifreq::new(interface);
    request.send(socket, Request::GetIndex)?;
    Ok(request.index())
}

/// The mask that leaves `prefix` bits of an IPv4 address.
fn mask(prefix: u8) -> io::Result<Ipv4Addr> {
    let host_bits = 32_u32.checked_sub(u32::from(prefix)).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0)))
}

/// `label` is the interface's name, or one with `:1` behind it for a further address.
fn add_ipv4(socket: &UdpSocket, label: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let mask = mask(prefix)?;
    let label = InterfaceName::new(label)?;
    Ifreq::new(label).with_ipv4(address).send(socket, Request::SetAddress)?;
    Ifreq::new(label).with_ipv4(mask).send(socket, Request::SetNetmask)
}

#[allow(unsafe_code, reason = "ioctl")]
fn add_ipv6(socket: &UdpSocket, interface: InterfaceName, address: Ipv6Addr, prefix: u8) -> io::Result<()> {
    let mut request = libc::in6_ifreq {
        ifr6_addr: libc::in6_addr { s6_addr: address.octets() },
        ifr6_prefixlen: u32::from(prefix),
        ifr6_ifindex: index_of(socket, interface)?,
    };
    let ipv6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    // SAFETY: of an IPv6 socket this request reads a `struct in6_ifreq`, and that is what the pointer is to.
    let result = unsafe { libc::ioctl(ipv6.as_fd().as_raw_fd(), libc::SIOCSIFADDR as libc::Ioctl, &raw mut request) };
    Errno::result(result)?;
    Ok(())
}

/// Waits until the address can be used: also without asking whether somebody has it, the kernel comes to it a moment later.
fn wait_for(address: Ipv6Addr) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match UdpSocket::bind((address, 0)) {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(1));
            }
            other => return other.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn masks() {
        for (prefix, expected) in
            [(0, [0, 0, 0, 0]), (8, [255, 0, 0, 0]), (20, [255, 255, 240, 0]), (32, [255, 255, 255, 255])]
        {
            assert_eq!(mask(prefix).unwrap().octets(), expected);
        }
        assert_eq!(mask(33).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_process_with_threads_does_not_enter() {
        // One beside the caller's, however the harness runs this.
        let error = thread::scope(|scope| scope.spawn(enter).join().unwrap()).unwrap_err();
        assert!(matches!(error, NamespaceError::Threads), "{error}");
    }

    #[test]
    fn errors_say_what_to_do() {
        for error in [
            NamespaceError::Refused(Errno::EPERM),
            NamespaceError::Map("/proc/self/uid_map", io::Error::from_raw_os_error(libc::EPERM)),
        ] {
            let text = error.to_string();
            assert!(
                text.contains("no network namespace") && text.contains("; ") && text.contains("not permitted"),
                "{text}"
            );
        }
    }

    #[test]
    fn an_interface_that_is_not_there_is_named() {
        assert!(bring_up("not-there").unwrap_err().to_string().contains("not-there"));
    }
}
