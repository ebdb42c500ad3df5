//! Virtual pipes: latency, bounded capacity, partial reads and writes, breaking. A pipe whose ends are both dropped gives its place to a
//! later one; events on their way to the old one are told apart by its generation.

use std::collections::VecDeque;

use rand_core::Rng as _;

use super::wire;
use super::world::{Event, NodeIndex, Owner, World};

/// One end of a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StreamId {
    slot: u32,
    generation: u32,
}

impl StreamId {
    /// The other end of the same pipe.
    pub(super) const fn peer(self) -> Self {
        Self { slot: self.slot ^ 1, ..self }
    }
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
    generation: u32,
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
    /// Bytes that may still be written before the pipe is cut.
    fuse: Option<usize>,
}

impl End {
    const fn new(generation: u32, capacity: usize, latency: u64, is_link: bool) -> Self {
        Self {
            generation,
            owner: Owner::Nobody,
            flight: VecDeque::new(),
            flight_len: 0,
            arrived: VecDeque::new(),
            capacity,
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
            is_link,
            fuse: None,
        }
    }
}

/// Every pipe.
#[derive(Default)]
pub(super) struct Pipes {
    ends: Vec<End>,
    /// First ends of pipes that nobody uses.
    free: Vec<u32>,
    /// Ends that were dropped, for whoever keeps a list of them.
    dropped: Vec<(NodeIndex, StreamId)>,
}

impl Pipes {
    /// Pipes in use.
    pub(super) const fn len(&self) -> usize {
        self.ends.len() / 2 - self.free.len()
    }

    fn is_live(&self, id: StreamId) -> bool {
        self.ends[id.slot as usize].generation == id.generation
    }

    fn end(&self, id: StreamId) -> &End {
        debug_assert!(self.is_live(id), "a stream outlives its pipe");
        &self.ends[id.slot as usize]
    }

    fn end_mut(&mut self, id: StreamId) -> &mut End {
        debug_assert!(self.is_live(id), "a stream outlives its pipe");
        &mut self.ends[id.slot as usize]
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

impl World {
    /// A new pipe; answers its two ends. A link's if it is not told its capacity.
    pub(super) fn pipe(&mut self, capacity: Option<usize>) -> (StreamId, StreamId) {
        // A stream between a node and what it is attached to does not cross the network.
        let range = if capacity.is_some() { self.inside_latency.unwrap_or(self.latency) } else { self.latency };
        let latency = self.draw(range);
        let capacities = [0; 2].map(|_| capacity.unwrap_or_else(|| self.draw(self.capacity) as usize));
        let slot = self.pipes.free.pop().unwrap_or_else(|| {
            let slot = u32::try_from(self.pipes.ends.len()).expect("fewer pipes than that");
            self.pipes.ends.extend([End::new(0, 0, 0, false), End::new(0, 0, 0, false)]);
            slot
        });
        let first = StreamId { slot, generation: self.pipes.ends[slot as usize].generation };
        for (id, room) in [first, first.peer()].into_iter().zip(capacities) {
            *self.pipes.end_mut(id) = End::new(id.generation, room, latency, capacity.is_none());
        }
        (first, first.peer())
    }

    pub(super) fn set_owner(&mut self, end: StreamId, owner: Owner) {
        self.pipes.end_mut(end).owner = owner;
    }

    /// Whose end it is; nobody's if its pipe is gone.
    pub(super) fn owner(&self, end: StreamId) -> Owner {
        if self.pipes.is_live(end) { self.pipes.end(end).owner } else { Owner::Nobody }
    }

    /// Ends of nodes that were dropped since the last call.
    pub(super) fn take_dropped(&mut self) -> Vec<(NodeIndex, StreamId)> {
        std::mem::take(&mut self.pipes.dropped)
    }

    /// How many of `len` bytes a call takes.
    fn chunk(&mut self, len: usize) -> usize {
        if self.trickle > 0 && self.rng.next_u32() % 100 < self.trickle {
            return len.min(1 + self.rng.next_u64() as usize % 3);
        }
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
        let this = self.pipes.end(end);
        assert!(!this.finish_sent, "written after the finish");
        if this.is_link {
            wire::with(|wire| wire.bind(end));
        }
        if this.cut || this.unread || this.fuse == Some(0) {
            return None;
        }
        let to = self.pipes.end(end.peer());
        let room = to.capacity.saturating_sub(to.flight_len + to.arrived.len());
        if room == 0 {
            self.pipes.end_mut(end).writer_waits = true;
            return Some(0);
        }
        let mut len = self.chunk(bytes.len().min(room));
        if let Some(fuse) = &mut self.pipes.end_mut(end).fuse {
            len = len.min(*fuse);
            *fuse -= len;
            if *fuse == 0 {
                self.cut_at(end, self.now);
            }
        }
        let mut bytes = bytes[..len].to_vec();
        if let Owner::Link(node, _) = self.pipes.end(end).owner {
            self.count_sent(node, len);
            wire::with(|wire| wire.mangle(node, &mut bytes));
        }
        self.send_bytes(end, bytes);
        if self.pipes.end(end).is_link {
            for record in wire::with(|wire| wire.handle_written(end, len)).unwrap_or_default() {
                self.send_bytes(end, record);
            }
        }
        Some(len)
    }

    /// Sends these bytes whatever the pipe's capacity.
    pub(super) fn send_bytes(&mut self, end: StreamId, bytes: Vec<u8>) {
        self.send(end, Segment { bytes, finish: false, abandon: false });
    }

    /// The pipe is cut as soon as so many bytes more were written at `end`, whatever record they belong to.
    pub(super) fn light_fuse(&mut self, end: StreamId, bytes: usize) {
        self.pipes.end_mut(end).fuse = Some(bytes.max(1));
    }

    /// Whether whoever has this end will hear when there is something to read, or has no more to hear.
    pub(super) fn listens(&self, end: StreamId) -> bool {
        let this = self.pipes.end(end);
        this.reader_waits || this.cut || this.finished || this.abandoned
    }

    /// Whether whoever has this end waits for room to write.
    pub(super) fn waits_for_room(&self, end: StreamId) -> bool {
        self.pipes.end(end).writer_waits
    }

    fn send(&mut self, from: StreamId, segment: Segment) {
        let jitter = self.rng.next_u64() % 500;
        let now = self.now;
        let to = self.pipes.end_mut(from.peer());
        to.flight_len += segment.bytes.len();
        to.flight.push_back(segment);
        to.last_arrival = to.last_arrival.max(now + to.latency + jitter);
        let at = to.last_arrival;
        self.at(at, Event::Arrive(from.peer()));
    }

    pub(super) fn finish(&mut self, end: StreamId) {
        if !std::mem::replace(&mut self.pipes.end_mut(end).finish_sent, true) {
            self.send(end, Segment { bytes: Vec::new(), finish: true, abandon: false });
        }
    }

    /// Takes bytes that have arrived at `end`.
    pub(super) fn read(&mut self, end: StreamId, buffer: &mut [u8]) -> Read {
        assert!(!buffer.is_empty(), "read without room");
        let available = self.pipes.end(end).arrived.len();
        if available > 0 {
            let len = self.chunk(available.min(buffer.len()));
            let this = self.pipes.end_mut(end);
            let (front, back) = this.arrived.as_slices();
            let in_front = len.min(front.len());
            buffer[..in_front].copy_from_slice(&front[..in_front]);
            buffer[in_front..len].copy_from_slice(&back[..len - in_front]);
            this.arrived.drain(..len);
            let at = self.now + self.pipes.end(end).latency;
            if self.pipes.end(end.peer()).writer_waits {
                self.at(at, Event::Room(end.peer()));
            }
            return Read::Bytes(len);
        }
        let this = self.pipes.end_mut(end);
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
        let this = self.pipes.end_mut(end);
        if std::mem::replace(&mut this.gone, true) {
            return;
        }
        let owner = std::mem::replace(&mut this.owner, Owner::Nobody);
        if let Owner::Link(node, _) | Owner::Outside(node, _) | Owner::Resident(node, _) = owner {
            self.pipes.dropped.push((node, end));
        }
        if self.pipes.end(end.peer()).gone {
            self.free(end);
            return;
        }
        // Links end without ceremony; their records tell whether anything is missing.
        if self.pipes.end(end).is_link {
            self.finish(end);
        } else if !std::mem::replace(&mut self.pipes.end_mut(end).finish_sent, true) {
            self.send(end, Segment { bytes: Vec::new(), finish: false, abandon: true });
        }
        let at = self.now + self.pipes.end(end).latency;
        self.at(at, Event::Unread(end.peer()));
    }

    fn free(&mut self, end: StreamId) {
        for id in [end, end.peer()] {
            *self.pipes.end_mut(id) = End::new(id.generation.wrapping_add(1), 0, 0, false);
        }
        self.pipes.free.push(end.slot & !1);
    }

    /// Breaks the pipe at both ends; what is on its way is lost.
    pub(super) fn cut(&mut self, end: StreamId) {
        let at = self.now + self.pipes.end(end).latency;
        self.cut_at(end, at);
    }

    /// The same at a time to come.
    pub(super) fn cut_at(&mut self, end: StreamId, at: u64) {
        self.at(at, Event::Cut(end));
    }

    /// Whether both ends are still in use.
    pub(super) fn is_open(&self, end: StreamId) -> bool {
        self.pipes.is_live(end)
            && !self.pipes.end(end).gone
            && !self.pipes.end(end.peer()).gone
            && !self.pipes.end(end).cut
    }

    fn wake_reader(&mut self, end: StreamId) {
        let this = self.pipes.end_mut(end);
        if std::mem::take(&mut this.reader_waits) {
            let owner = this.owner;
            self.woken.insert(owner);
        }
    }

    fn wake_writer(&mut self, end: StreamId) {
        let this = self.pipes.end_mut(end);
        if std::mem::take(&mut this.writer_waits) {
            let owner = this.owner;
            self.woken.insert(owner);
        }
    }

    /// What happens to a pipe. Only who waits is woken: a driver that forgets to ask again stalls here as it would on a real machine.
    pub(super) fn handle_pipe(&mut self, event: &Event) {
        let (Event::Arrive(end) | Event::Room(end) | Event::Unread(end) | Event::Cut(end)) = *event else { return };
        if !self.pipes.is_live(end) {
            return;
        }
        match event {
            Event::Arrive(_) => {
                let this = self.pipes.end_mut(end);
                if this.cut {
                    return;
                }
                if let Some(segment) = this.flight.pop_front() {
                    let len = segment.bytes.len();
                    this.flight_len -= len;
                    this.arrived.extend(segment.bytes);
                    this.finished |= segment.finish;
                    this.abandoned |= segment.abandon;
                    if let Owner::Link(node, _) = this.owner {
                        self.count_received(node, len);
                    }
                    self.trace(&[1, u64::from(end.slot), len as u64]);
                    self.wake_reader(end);
                }
            }
            Event::Room(_) => self.wake_writer(end),
            Event::Unread(_) => {
                self.pipes.end_mut(end).unread = true;
                self.wake_writer(end);
            }
            _ => {
                for end in [end, end.peer()] {
                    let this = self.pipes.end_mut(end);
                    this.cut = true;
                    this.flight.clear();
                    this.flight_len = 0;
                    this.arrived.clear();
                    self.wake_reader(end);
                    self.wake_writer(end);
                }
            }
        }
    }
}
