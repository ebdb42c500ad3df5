//! What all parts of a simulated network share: virtual time, what is going to happen, the pipes, and the generator behind all chance.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;

use bulbil_core::circuit::LinkId;
use bulbil_core::crypto::onion::{Onion, OnionRejected, Peeled};
use bulbil_core::node::ConversationId;
use bulbil_core::relay::onions::OnionIndex;
use bulbil_core::wire::{Target, UnixTime};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng};

/// A node's number in its network.
pub type NodeIndex = usize;

/// A conversation's number in its network.
pub type TalkIndex = usize;

/// Who is called when a pipe becomes ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    /// A node's link, by its place in the streams that the network keeps for the node.
    Link(NodeIndex, StreamId),
    /// What a node's conversation is attached to.
    Outside(NodeIndex, StreamId),
    /// The application of a conversation.
    App(TalkIndex),
    /// The target of a conversation.
    Target(TalkIndex),
    /// Nobody any more, or not yet.
    Nobody,
}

/// One end of a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StreamId(pub(super) usize);

impl StreamId {
    /// The other end of the same pipe.
    pub(super) const fn peer(self) -> Self {
        Self(self.0 ^ 1)
    }
}

/// Something that is going to happen.
pub(super) enum Event {
    /// The first segment on the way to this end arrives.
    Arrive(StreamId),
    /// The writer at this end learns of room.
    Room(StreamId),
    /// The writer at this end learns that nobody reads.
    Unread(StreamId),
    /// Both ends of the pipe learn that it is cut.
    Cut(StreamId),
    Connect(NodeIndex, LinkId, SocketAddr),
    Target(NodeIndex, ConversationId, Box<Target>),
    Peeled(NodeIndex, OnionIndex, Box<Result<Peeled, OnionRejected>>, Box<Onion>),
    Signed(NodeIndex, ConversationId, UnixTime, Box<[u8; 256]>),
    Timer(NodeIndex),
    /// The target says something more.
    Tick(TalkIndex),
}

struct Segment {
    bytes: Vec<u8>,
    /// The writer has finished behind these bytes.
    finish: bool,
    /// The writer has gone without having finished.
    abandon: bool,
}

/// One end of a pipe, with the direction toward it.
struct End {
    owner: Owner,
    flight: VecDeque<Segment>,
    flight_len: usize,
    arrived: VecDeque<u8>,
    capacity: usize,
    latency: u64,
    last_arrival: u64,
    /// The other end will write no more, and everything has arrived.
    finished: bool,
    /// The other end is gone without having finished, and everything has arrived.
    abandoned: bool,
    /// The pipe is cut.
    cut: bool,
    /// This end was told that it cannot write: the other end is gone.
    unread: bool,
    /// This end has finished writing.
    finish_sent: bool,
    /// This end is dropped.
    gone: bool,
    reader_waits: bool,
    writer_waits: bool,
    is_link: bool,
}

/// Everything that is chance or time.
pub(super) struct World {
    /// Microseconds since the start.
    pub(super) now: u64,
    pub(super) rng: ChaCha8Rng,
    queue: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    pub(super) woken: BTreeSet<Owner>,
    ends: Vec<End>,
    trace: u64,
    /// Microseconds that a byte travels, least and most; each pipe draws its own.
    pub(super) latency: (u64, u64),
    /// Bytes that a pipe holds in one direction, least and most.
    pub(super) capacity: (u64, u64),
    /// Whether reads and writes take fewer bytes than they could, now and then.
    pub(super) splitting: bool,
}

/// The world, shared by the streams in it.
pub(super) type Shared = Rc<RefCell<World>>;

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: 0,
            rng: ChaCha8Rng::seed_from_u64(seed),
            queue: BTreeMap::new(),
            sequence: 0,
            woken: BTreeSet::new(),
            ends: Vec::new(),
            trace: 0xcbf2_9ce4_8422_2325,
            latency: (1_000, 30_000),
            capacity: (2_000, 100_000),
            splitting: true,
        }
    }

    /// Notes what happened, so that two runs can be compared.
    pub(super) fn trace(&mut self, words: &[u64]) {
        for word in [self.now].iter().chain(words) {
            for byte in word.to_le_bytes() {
                self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
    }

    pub(super) const fn trace_hash(&self) -> u64 {
        self.trace
    }

    /// A number of the range, both ends included.
    pub(super) fn draw(&mut self, (least, most): (u64, u64)) -> u64 {
        least + self.rng.next_u64() % (most - least + 1)
    }

    pub(super) fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), event);
    }

    /// After some travel.
    pub(super) fn later(&mut self, event: Event) {
        let delay = self.draw(self.latency);
        self.at(self.now + delay, event);
    }

    /// Goes to the next event.
    pub(super) fn next(&mut self) -> Option<Event> {
        let ((at, _), event) = self.queue.pop_first()?;
        self.now = at;
        Some(event)
    }

    /// When the next event is due.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// A new pipe; answers its two ends. A link's if it is not told its capacity.
    pub(super) fn pipe(&mut self, capacity: Option<usize>) -> (StreamId, StreamId) {
        let first = StreamId(self.ends.len());
        let latency = self.draw(self.latency);
        for _ in 0..2 {
            let len = capacity.unwrap_or(self.draw(self.capacity) as usize);
            self.ends.push(End {
                owner: Owner::Nobody,
                flight: VecDeque::new(),
                flight_len: 0,
                arrived: VecDeque::new(),
                capacity: len,
                latency,
                last_arrival: 0,
                finished: false,
                abandoned: false,
                cut: false,
                unread: false,
                finish_sent: false,
                gone: false,
                reader_waits: false,
                writer_waits: false,
                is_link: capacity.is_none(),
            });
        }
        (first, first.peer())
    }

    pub(super) fn set_owner(&mut self, end: StreamId, owner: Owner) {
        self.ends[end.0].owner = owner;
    }

    pub(super) fn owner(&self, end: StreamId) -> Owner {
        self.ends[end.0].owner
    }

    /// How many of `len` bytes a call takes.
    fn chunk(&mut self, len: usize) -> usize {
        if !self.splitting {
            return len;
        }
        match self.rng.next_u32() % 8 {
            0 => 1 + self.rng.next_u64() as usize % len.min(40),
            1 => 1 + self.rng.next_u64() as usize % len,
            _ => len,
        }
    }

    /// Bytes that may be written at `end`: `None` if it is broken.
    pub(super) fn write(&mut self, end: StreamId, bytes: &[u8]) -> Option<usize> {
        let this = &self.ends[end.0];
        assert!(!this.finish_sent, "written after the finish");
        if this.cut || this.unread {
            return None;
        }
        let to = &self.ends[end.peer().0];
        let room = to.capacity.saturating_sub(to.flight_len + to.arrived.len());
        if room == 0 {
            self.ends[end.0].writer_waits = true;
            return Some(0);
        }
        let len = self.chunk(bytes.len().min(room));
        self.send(end, Segment { bytes: bytes[..len].to_vec(), finish: false, abandon: false });
        Some(len)
    }

    fn send(&mut self, from: StreamId, segment: Segment) {
        let jitter = self.rng.next_u64() % 500;
        let to = &mut self.ends[from.peer().0];
        to.flight_len += segment.bytes.len();
        to.flight.push_back(segment);
        to.last_arrival = to.last_arrival.max(self.now + to.latency + jitter);
        let at = to.last_arrival;
        self.at(at, Event::Arrive(from.peer()));
    }

    pub(super) fn finish(&mut self, end: StreamId) {
        if !std::mem::replace(&mut self.ends[end.0].finish_sent, true) {
            self.send(end, Segment { bytes: Vec::new(), finish: true, abandon: false });
        }
    }

    /// Takes bytes that have arrived at `end`.
    pub(super) fn read(&mut self, end: StreamId, buffer: &mut [u8]) -> Read {
        assert!(!buffer.is_empty(), "read without room");
        let available = self.ends[end.0].arrived.len();
        if available > 0 {
            let len = self.chunk(available.min(buffer.len()));
            let this = &mut self.ends[end.0];
            for (place, byte) in buffer.iter_mut().zip(this.arrived.drain(..len)) {
                *place = byte;
            }
            let latency = this.latency;
            if self.ends[end.peer().0].writer_waits {
                self.at(self.now + latency, Event::Room(end.peer()));
            }
            return Read::Bytes(len);
        }
        let this = &mut self.ends[end.0];
        if this.cut || this.abandoned {
            Read::Broken
        } else if this.finished {
            Read::End
        } else {
            this.reader_waits = true;
            Read::Pending
        }
    }

    /// The end is not used any more: the other end reads what was sent and then, unless this one has finished, that the pipe is broken; and it
    /// cannot write.
    pub(super) fn close(&mut self, end: StreamId) {
        if std::mem::replace(&mut self.ends[end.0].gone, true) {
            return;
        }
        self.ends[end.0].owner = Owner::Nobody;
        // Links end without ceremony; their records tell whether anything is missing.
        if self.ends[end.0].is_link {
            self.finish(end);
        } else if !std::mem::replace(&mut self.ends[end.0].finish_sent, true) {
            self.send(end, Segment { bytes: Vec::new(), finish: false, abandon: true });
        }
        let at = self.now + self.ends[end.0].latency;
        self.at(at, Event::Unread(end.peer()));
    }

    /// Breaks the pipe at both ends; what is on its way is lost.
    pub(super) fn cut(&mut self, end: StreamId) {
        let at = self.now + self.ends[end.0].latency;
        self.at(at, Event::Cut(end));
    }

    /// Whether both ends are still in use.
    pub(super) fn is_open(&self, end: StreamId) -> bool {
        !self.ends[end.0].gone && !self.ends[end.peer().0].gone && !self.ends[end.0].cut
    }

    fn wake_reader(&mut self, end: StreamId) {
        if std::mem::take(&mut self.ends[end.0].reader_waits) {
            self.woken.insert(self.ends[end.0].owner);
        }
    }

    fn wake_writer(&mut self, end: StreamId) {
        if std::mem::take(&mut self.ends[end.0].writer_waits) {
            self.woken.insert(self.ends[end.0].owner);
        }
    }

    /// What happens to a pipe. Only who waits is woken: a driver that forgets to ask again stalls here as it would on a real machine.
    pub(super) fn handle_pipe(&mut self, event: &Event) {
        match *event {
            Event::Arrive(end) => {
                let this = &mut self.ends[end.0];
                if this.cut {
                    return;
                }
                if let Some(segment) = this.flight.pop_front() {
                    let len = segment.bytes.len();
                    this.flight_len -= len;
                    this.arrived.extend(segment.bytes);
                    this.finished |= segment.finish;
                    this.abandoned |= segment.abandon;
                    self.trace(&[1, end.0 as u64, len as u64]);
                    self.wake_reader(end);
                }
            }
            Event::Room(end) => self.wake_writer(end),
            Event::Unread(end) => {
                self.ends[end.0].unread = true;
                self.wake_writer(end);
            }
            Event::Cut(end) => {
                for end in [end, end.peer()] {
                    let this = &mut self.ends[end.0];
                    this.cut = true;
                    this.flight.clear();
                    this.flight_len = 0;
                    this.arrived.clear();
                    self.wake_reader(end);
                    self.wake_writer(end);
                }
            }
            _ => {}
        }
    }
}

/// What came of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    Bytes(usize),
    Pending,
    End,
    Broken,
}
