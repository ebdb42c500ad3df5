//! The Linux shell under a node, on a stage of its own: bridge, TAP devices, faults and captures, with the kernel's TCP as the other side.
//!
//! Without the harness, because a namespace can only be entered before the first thread starts.

#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::{
    collections::HashSet,
    fs,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::Path,
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use bulbil_firmware_sim::linux::{
    faults::{Faults, Faulty},
    heap::{self, CountingHeap},
    namespace::{self, Bridge},
    pcap::Capture,
    tap::{FRAME_MAX, Tap},
};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smoltcp::{
    iface::{Config, Interface, SocketSet, SocketStorage},
    phy::{Device, PcapMode, PcapWriter, TxToken},
    socket::{Socket, tcp},
    time::Instant,
    wire::{EthernetAddress, HardwareAddress, IpCidr},
};

#[global_allocator]
static HEAP: CountingHeap = CountingHeap;

const BRIDGE: &str = "stage0";
const PORT: u16 = 7;
/// How long a peer may be silent before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A TAP device and the addresses that the stack on it has.
#[derive(Clone, Copy)]
struct Board {
    tap: &'static str,
    number: u8,
}

impl Board {
    fn ipv4(self) -> IpAddr {
        Ipv4Addr::new(10, 9, 0, self.number).into()
    }

    fn ipv6(self) -> IpAddr {
        Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, u16::from(self.number)).into()
    }
}

/// The host's addresses on the bridge: two networks of each family.
fn host_addresses() -> [(IpAddr, u8); 4] {
    [
        (Ipv4Addr::new(10, 9, 0, 1).into(), 24),
        (Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1).into(), 64),
        (Ipv4Addr::new(192, 168, 77, 1).into(), 30),
        (Ipv6Addr::new(0xfd0a, 0, 0, 0, 0, 0, 0, 1).into(), 48),
    ]
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut gone = None;
    if !arguments.list {
        match prepare() {
            Ok(tap) => gone = tap,
            Err(reason) => {
                eprintln!("the stage cannot be set here: {reason}");
                let required = std::env::var_os("BULBIL_TEST_TAP").is_some_and(|value| value == "1");
                return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
            }
        }
    }
    let trials = [
        ("the_loopback_interface_is_up", loopback as fn() -> Result<(), Failed>),
        ("the_bridge_has_its_addresses", addresses),
        ("what_cannot_be_is_named", refusals),
        ("taps_are_opened_or_refused_with_a_reason", opening),
        ("what_an_interface_that_is_down_does_not_take_is_lost", down),
        ("a_stack_on_the_tap_answers", plain),
        ("a_bad_network_is_only_slower", impaired),
        ("flipped_bits_are_found", corrupted),
    ];
    let mut trials = Vec::from(trials.map(|(name, run)| Trial::test(name, run)));
    let missing = gone.is_none();
    let removed = Trial::test("a_device_that_is_removed_says_so", || gone.map_or(Ok(()), removed));
    trials.push(removed.with_ignored_flag(missing));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Enters the namespace, while there is one thread, and builds what all trials share. Gives a device back whose interface was removed, if
/// there is an `ip` to remove it with.
fn prepare() -> Result<Option<Tap>, Box<dyn std::error::Error>> {
    let entered = namespace::enter()?;
    eprintln!("entered a network namespace: {entered:?}");
    // All rights in the namespace do not open /dev/net/tun.
    let tap = Tap::open("gone0")?;
    namespace::bring_up("lo")?;
    Bridge::create(BRIDGE, &host_addresses())?;
    // At once, as `Bridge::create` promises.
    for (address, _) in host_addresses() {
        UdpSocket::bind((address, 0)).map_err(|error| format!("{address}: {error}"))?;
    }
    // Here and not in a trial: a child has copies of all open devices for a moment, and what is open is not gone.
    let removed = Command::new("ip").args(["link", "delete", "gone0"]).status();
    Ok(if removed.is_ok_and(|status| status.success()) { Some(tap) } else { None })
}

/// A TAP device on the bridge, for this board.
fn attached(board: Board) -> io::Result<Tap> {
    Tap::create_persistent(board.tap)?;
    Bridge::existing(BRIDGE).attach(board.tap)?;
    Tap::open(board.tap)
}

fn loopback() -> Result<(), Failed> {
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let listener = TcpListener::bind((address, 0))?;
        TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE)?;
    }
    Ok(())
}

fn addresses() -> Result<(), Failed> {
    for (address, _) in host_addresses() {
        let listener = TcpListener::bind((address, 0)).map_err(|error| format!("{address}: {error}"))?;
        let local = listener.local_addr()?;
        let mut client = TcpStream::connect_timeout(&local, PATIENCE).map_err(|error| format!("{local}: {error}"))?;
        let (mut server, _) = listener.accept()?;
        client.write_all(b"bulbil")?;
        let mut answer = [0; 6];
        server.read_exact(&mut answer)?;
        assert_eq!(&answer, b"bulbil");
    }
    // The prefixes decide what is on the wire; what is beside them is nowhere.
    for (target, reachable) in [
        (IpAddr::from([10, 9, 0, 200]), true),
        ([10, 9, 1, 1].into(), false),
        ([10, 8, 0, 1].into(), false),
        ([192, 168, 77, 2].into(), true),
        ([192, 168, 77, 5].into(), false),
        ([0xfd09, 0, 0, 0, 0, 0, 0, 0x99].into(), true),
        ([0xfd09, 0, 0, 1, 0, 0, 0, 0x99].into(), false),
        ([0xfd0a, 0, 0, 1, 0, 0, 0, 0x99].into(), true),
        ([0xfd0a, 0, 1, 0, 0, 0, 0, 0x99].into(), false),
    ] {
        let any = if target.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        let connected = UdpSocket::bind((any, 0))?.connect((target, 9));
        assert_eq!(connected.is_ok(), reachable, "{target}: {connected:?}");
    }
    Ok(())
}

fn refusals() -> Result<(), Failed> {
    let error = Bridge::create("bad0", &[(Ipv4Addr::new(10, 1, 0, 1).into(), 33)]).unwrap_err().to_string();
    assert!(error.contains("10.1.0.1/33 on bad0"), "{error}");
    let error = Bridge::create(BRIDGE, &[]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    let error = Bridge::existing(BRIDGE).attach("not-there").unwrap_err().to_string();
    assert!(error.contains("not-there"), "{error}");
    Ok(())
}

fn opening() -> Result<(), Failed> {
    let tap = Tap::open("open0")?;
    assert_eq!(tap.name(), "open0");
    let error = Tap::open("open0").err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    assert!(error.to_string().contains("open0"), "{error}");
    let error = Tap::open(BRIDGE).err().unwrap();
    assert!(error.to_string().contains("not a TAP device"), "{error}");
    drop(tap);
    assert!(namespace::bring_up("open0").is_err(), "it went with its only user");
    Tap::create_persistent("open0")?;
    Tap::create_persistent("open0")?;
    drop(Tap::open("open0")?);
    namespace::bring_up("open0")?;
    Ok(())
}

fn down() -> Result<(), Failed> {
    let mut tap = Tap::open("down0")?;
    assert!(tap.receive(Instant::ZERO).is_none());
    assert!(tap.broken().is_none(), "it may come up yet");
    tap.transmit(Instant::ZERO).unwrap().consume(FRAME_MAX, |frame| frame.fill(0xff));
    assert_eq!((tap.counters().sent, tap.counters().lost), (0, 1));
    namespace::bring_up("down0")?;
    tap.transmit(Instant::ZERO).unwrap().consume(FRAME_MAX, |frame| frame.fill(0xff));
    assert_eq!((tap.counters().sent, tap.counters().lost), (1, 1));
    Ok(())
}

fn removed(mut tap: Tap) -> Result<(), Failed> {
    assert!(tap.receive(Instant::ZERO).is_none());
    assert!(tap.broken().is_some());
    Ok(())
}

fn plain() -> Result<(), Failed> {
    let board = Board { tap: "plain0", number: 20 };
    let path = std::env::temp_dir().join(format!("bulbil-stage-{}.pcap", std::process::id()));
    talk(board, Capture::create(&path)?, Faults::default(), |board| {
        echo(board.ipv4(), 30_000)?;
        echo(board.ipv6(), 30_000)
    })?;
    let lengths = packets(&path)?;
    assert!(lengths.iter().all(|len| (14..=FRAME_MAX).contains(len)));
    assert!(lengths.iter().sum::<usize>() > 120_000, "both ways, both families: {lengths:?}");
    fs::remove_file(path)?;
    Ok(())
}

fn impaired() -> Result<(), Failed> {
    let board = Board { tap: "bad1", number: 21 };
    let device = talk(board, Capture::off(), "loss=5,duplicate=1,reorder=2,delay=20ms".parse()?, |board| {
        echo(board.ipv4(), 100_000)?;
        echo(board.ipv6(), 100_000)
    })?;
    for tally in [device.sent(), device.received()] {
        assert!(tally.lost > 0 && tally.duplicated + tally.reordered > 0, "{tally:?}");
    }
    Ok(())
}

fn corrupted() -> Result<(), Failed> {
    let board = Board { tap: "bad2", number: 22 };
    let device = talk(board, Capture::off(), "corrupt=5,delay=1ms".parse()?, |board| echo(board.ipv4(), 100_000))?;
    assert!(device.sent().corrupted > 0 && device.received().corrupted > 0);
    Ok(())
}

/// Sends so many bytes to the board and expects them back.
fn echo(address: IpAddr, len: usize) -> Result<(), Failed> {
    let peer = SocketAddr::new(address, PORT);
    let begun = std::time::Instant::now();
    let stream = loop {
        match TcpStream::connect_timeout(&peer, PATIENCE) {
            // The kernel asks for three seconds who has the address; the board may be without a core for so long.
            Err(error) if error.kind() == io::ErrorKind::HostUnreachable && begun.elapsed() < PATIENCE => {}
            other => break other.map_err(|error| format!("{peer}: {error}"))?,
        }
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let sent: Vec<u8> = (0_u8..251).cycle().take(len).collect();
    let mut received = Vec::new();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            (&stream).write_all(&sent)?;
            stream.shutdown(Shutdown::Write)
        });
        (&stream).read_to_end(&mut received)?;
        writer.join().unwrap()
    })?;
    assert!(received == sent, "{} of {len} bytes came back, or others", received.len());
    Ok(())
}

type Wire = Faulty<PcapWriter<Tap, Capture>>;

/// Runs an echo on the board while `f` talks to it, and gives the device back.
fn talk(
    board: Board,
    capture: Capture,
    faults: Faults,
    f: impl FnOnce(Board) -> Result<(), Failed>,
) -> Result<Wire, Failed> {
    let mut device = Faulty::new(PcapWriter::new(attached(board)?, capture, PcapMode::Both), faults, 2);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let serving = scope.spawn(|| serve(board, &mut device, &stop));
        let result = f(board);
        stop.store(true, Ordering::Relaxed);
        serving.join().map_err(|_| "the board panicked")?;
        result
    })?;
    Ok(device)
}

/// The poll loop of a board that sends back what it receives.
fn serve(board: Board, device: &mut Wire, stop: &AtomicBool) {
    let started = std::time::Instant::now();
    let clock = || Instant::from_micros(i64::try_from(started.elapsed().as_micros()).unwrap());
    let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress([2, 0, 0, 0, 0, board.number])));
    config.random_seed = u64::from(board.number);
    let mut interface = Interface::new(config, device, clock());
    interface.update_ip_addrs(|addresses| {
        addresses.push(IpCidr::new(board.ipv4().into(), 24)).unwrap();
        addresses.push(IpCidr::new(board.ipv6().into(), 64)).unwrap();
    });
    // Two: while one still waits for the last acknowledgement, the other listens.
    let mut buffers = [[[0; 8192]; 2]; 2];
    let mut storage = [SocketStorage::EMPTY; 2];
    let mut sockets = SocketSet::new(&mut storage[..]);
    for [rx, tx] in &mut buffers {
        let (rx, tx) = (tcp::SocketBuffer::new(&mut rx[..]), tcp::SocketBuffer::new(&mut tx[..]));
        let mut socket = tcp::Socket::new(rx, tx);
        socket.listen(PORT).unwrap();
        sockets.add(socket);
    }
    let before = heap::usage();
    while !stop.load(Ordering::Relaxed) {
        let now = clock();
        device.release(now);
        interface.poll(now, device, &mut sockets);
        for (_, socket) in sockets.iter_mut() {
            match socket {
                Socket::Tcp(socket) => echo_back(socket),
                _ => unreachable!("there are only such"),
            }
        }
        // After the echo there may be something to send at once.
        interface.poll(now, device, &mut sockets);
        let next = [interface.poll_at(now, &sockets), device.poll_at()].into_iter().flatten().min();
        // Not for ever, to look at `stop`; rounded up, because a loop that wakes up too early turns for nothing.
        let wait = match next {
            Some(next) if next <= now => 0,
            Some(next) => (next - now).total_micros().div_ceil(1000).min(50),
            None => 50,
        };
        let tap = device.device().get_ref();
        assert!(tap.broken().is_none());
        let timeout = PollTimeout::from(u8::try_from(wait).unwrap());
        poll(&mut [PollFd::new(tap.as_fd(), PollFlags::POLLIN)], timeout).unwrap();
    }
    assert_eq!(heap::usage().allocations, before.allocations, "device, faults and capture allocate at the start only");
}

fn echo_back(socket: &mut tcp::Socket<'_>) {
    while socket.can_recv() && socket.can_send() {
        let mut piece = [0; 512];
        let room = (socket.send_capacity() - socket.send_queue()).min(piece.len());
        let len = socket.recv_slice(&mut piece[..room]).unwrap();
        assert_eq!(socket.send_slice(&piece[..len]), Ok(len));
    }
    match socket.state() {
        tcp::State::CloseWait if !socket.can_recv() => socket.close(),
        tcp::State::Closed => socket.listen(PORT).unwrap(),
        _ => {}
    }
}

/// The lengths of the packets of a capture, each of which must begin where the one before ends.
fn packets(path: &Path) -> Result<Vec<usize>, Failed> {
    let file = fs::read(path)?;
    let word = |place: usize| u32::from_ne_bytes(file[place..place + 4].try_into().unwrap());
    assert_eq!((word(0), word(20)), (0xa1b2_c3d4, 1), "magic and Ethernet");
    let mut lengths = Vec::new();
    let mut kinds = HashSet::new();
    let mut place = 24;
    while place < file.len() {
        let (captured, original) = (word(place + 8), word(place + 12));
        assert_eq!(captured, original);
        let len = usize::try_from(captured)?;
        lengths.push(len);
        kinds.insert(u16::from_be_bytes(file[place + 28..place + 30].try_into().unwrap()));
        place += 16 + len;
    }
    assert_eq!(place, file.len());
    for kind in [0x0800, 0x0806, 0x86dd] {
        assert!(kinds.contains(&kind), "IPv4, ARP and IPv6: {kinds:x?}");
    }
    Ok(lengths)
}
