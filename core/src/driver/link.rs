//! A link's life: connect or accept, shake hands, carry records, end. `PROTOCOL.md` section 4.

use core::net::SocketAddr;
use core::task::Poll;
use core::time::Duration;

use embedded_io::{Error as _, ErrorKind};

use super::{Driver, More};
use crate::circuit::LinkId;
use crate::io::{ByteStream, Shell};
use crate::link::aead::TAG_LEN;
use crate::link::noise::{self, MESSAGE1_LEN, MESSAGE2_OVERHEAD};
use crate::link::record::{LENGTH_LEN, RECORD_LEN_MAX, cells_offset, record_len};
use crate::link::{
    Connector, HandshakeError, LinkKey, Opened, Opener, RecordError, RecordKey, RecordLimit, Sealer, SessionKeys,
};
use crate::node::{PeerLimits, Violation};
use crate::phonebook::{DescriptorError, VerifiedDescriptor};
use crate::time::Instant;
use crate::wire::cell::CELL_LEN;
use crate::wire::handshake::{ANSWER_MAX_LEN, Answer, CircuitLimit};
use crate::wire::{Descriptor, NodeId, WireError};

/// Longest second handshake message with its length, in bytes.
const ANSWER_FRAME_MAX: usize = LENGTH_LEN + MESSAGE2_OVERHEAD + ANSWER_MAX_LEN;

/// The least that a link's buffers must hold, each: the handshake's longest message.
pub const LINK_BUFFER_MIN: usize = ANSWER_FRAME_MAX;

const _: () = assert!(LINK_BUFFER_MIN >= record_len(1) && LINK_BUFFER_MIN > LENGTH_LEN + MESSAGE1_LEN);

/// A link whose peer takes nothing for so long is closed.
const STALL: Duration = Duration::from_secs(60);

/// Bytes that one link may bring in before others have their turn, and before what came is sent on: little enough that the cells are
/// still in the processor's cache by then.
const TURN: usize = 2 * RECORD_LEN_MAX;

/// Why a link ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkEnd {
    /// The connection was not made, or broke.
    Io(ErrorKind),
    /// The peer closed it.
    Closed,
    /// The handshake failed.
    Handshake(HandshakeError),
    /// The answer is not what an answer must be.
    Answer(WireError),
    /// The answerer's descriptor is not acceptable.
    Descriptor(DescriptorError),
    /// The answer is authentic, but not from the node that was to be met.
    WrongNode,
    /// A record failed.
    Record(RecordError),
    /// The peer broke the protocol.
    Violation(Violation),
    /// Nobody used it, for too long or while its place was needed, or its handshake took too long.
    Idle,
    /// The peer took nothing for a minute.
    Stalled,
    /// This node is shutting down.
    Shutdown,
}

impl core::fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Io(kind) => write!(f, "connection failed: {kind:?}"),
            Self::Closed => f.write_str("closed by the peer"),
            Self::Handshake(error) => write!(f, "handshake failed: {error}"),
            Self::Answer(error) => write!(f, "answer is malformed: {error}"),
            Self::Descriptor(error) => write!(f, "descriptor not acceptable: {error}"),
            Self::WrongNode => f.write_str("answered by another node than the one pinned"),
            Self::Record(error) => write!(f, "record failed: {error}"),
            Self::Violation(violation) => write!(f, "protocol violation: {violation}"),
            Self::Idle => f.write_str("idle"),
            Self::Stalled => f.write_str("the peer takes nothing"),
            Self::Shutdown => f.write_str("shutting down"),
        }
    }
}

enum State<S: Shell> {
    Free,
    /// The shell connects; the node to be met there, if known.
    Connecting(Option<NodeId>),
    /// Message 1 is out or on its way.
    AwaitingAnswer(S::LinkStream, Connector, Option<NodeId>),
    /// A peer has connected and says nothing yet.
    AwaitingConnector(S::LinkStream),
    /// Shaken hands, as answerer: nothing is sent before the first record has told us how.
    AwaitingHello(S::LinkStream, RecordKey, Opener<S::Aead>),
    Up(S::LinkStream, Sealer<S::Aead>, Opener<S::Aead>),
}

impl<S: Shell> State<S> {
    const fn stream(&mut self) -> Option<&mut S::LinkStream> {
        match self {
            Self::Free | Self::Connecting(_) => None,
            Self::AwaitingAnswer(stream, ..)
            | Self::AwaitingConnector(stream)
            | Self::AwaitingHello(stream, ..)
            | Self::Up(stream, ..) => Some(stream),
        }
    }
}

/// A link's place: its stream and keys, and a buffer each way.
pub struct LinkPlace<'b, S: Shell> {
    /// The link that was here last.
    link: Option<LinkId>,
    state: State<S>,
    input: &'b mut [u8],
    /// Bytes of `input` that have come and are not used.
    arrived: core::ops::Range<usize>,
    output: &'b mut [u8],
    /// Bytes of `output` that are to be written.
    departing: core::ops::Range<usize>,
    /// When bytes last went out, or began to wait.
    progress: Instant,
    /// Nothing was read although there may be something, because the node takes no cells now.
    paused: bool,
}

impl<'b, S: Shell> LinkPlace<'b, S> {
    /// A place without a link. Both buffers must hold [`LINK_BUFFER_MIN`] and one record of the size that this node announces
    /// (`input`) or is ready to send (`output`); longer input buffers save system calls.
    #[must_use]
    pub const fn new(input: &'b mut [u8], output: &'b mut [u8]) -> Self {
        Self {
            link: None,
            state: State::Free,
            input,
            arrived: 0..0,
            output,
            departing: 0..0,
            progress: Instant::from_millis(0),
            paused: false,
        }
    }

    fn reset(&mut self, state: State<S>) {
        self.state = state;
        (self.arrived, self.departing, self.paused) = (0..0, 0..0, false);
    }

    /// Writes what departs. `Ready` once nothing is left.
    fn write(&mut self, now: Instant) -> Poll<Result<(), LinkEnd>> {
        while !self.departing.is_empty() {
            let Some(stream) = self.state.stream() else { return Poll::Pending };
            match stream.try_write(&self.output[self.departing.clone()]) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(written)) => {
                    self.departing.start += written.min(self.departing.len());
                    self.progress = now;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(LinkEnd::Io(error.kind()))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what has come behind what is here already; answers how much that was.
    fn read(&mut self) -> Poll<Result<usize, LinkEnd>> {
        if self.arrived.end == self.input.len() {
            // The space before the bytes that wait is used up: move them to the front, at most one record's worth.
            self.input.copy_within(self.arrived.clone(), 0);
            self.arrived = 0..self.arrived.len();
        }
        let Some(stream) = self.state.stream() else { return Poll::Pending };
        match stream.try_read(&mut self.input[self.arrived.end..]) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(0)) => Poll::Ready(Err(LinkEnd::Closed)),
            Poll::Ready(Ok(read)) => {
                self.arrived.end = (self.arrived.end + read).min(self.input.len());
                Poll::Ready(Ok(read))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(LinkEnd::Io(error.kind()))),
        }
    }

    /// The handshake message at the front of what has arrived, once it is whole: where it lies.
    fn framed(&self, longest: usize) -> Result<Option<core::ops::Range<usize>>, LinkEnd> {
        let Some(length) = self.input[self.arrived.clone()].first_chunk::<LENGTH_LEN>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*length));
        if length > longest {
            return Err(LinkEnd::Handshake(HandshakeError::Length));
        }
        let start = self.arrived.start + LENGTH_LEN;
        Ok((self.arrived.end >= start + length).then_some(start..start + length))
    }
}

impl<S: Shell> Driver<'_, '_, S> {
    /// A peer has connected: the number of its link, to be used with [`Driver::handle_accepted`] at once, or `None` if there is no place
    /// for it or this node answers no links. The shell then closes the connection.
    pub fn reserve_link(&mut self, shell: &mut S, now: Instant) -> Option<LinkId> {
        if shell.descriptor().is_empty() {
            return None;
        }
        let link = self.node.accept_link(now)?;
        self.vacate(shell, link.slot());
        Some(link)
    }

    /// Drops what is left in a place whose link the node has let go of, to give the place to another.
    fn vacate(&mut self, shell: &mut S, at: usize) {
        if let Some(place) = self.links.get_mut(at)
            && let Some(old) = place.link.take_if(|old| !self.node.knows_link(*old))
        {
            place.reset(State::Free);
            shell.handle_link_end(old, LinkEnd::Idle);
        }
    }

    /// The stream of a link whose number was just reserved.
    pub fn handle_accepted(&mut self, link: LinkId, stream: S::LinkStream) {
        if let Some(place) = self.links.get_mut(link.slot()) {
            place.link = Some(link);
            place.reset(State::AwaitingConnector(stream));
        }
    }

    pub(super) fn begin_connect(
        &mut self,
        shell: &mut S,
        link: LinkId,
        address: SocketAddr,
        node: Option<NodeId>,
        _now: Instant,
    ) {
        self.vacate(shell, link.slot());
        if let Some(place) = self.links.get_mut(link.slot()) {
            place.link = Some(link);
            place.reset(State::Connecting(node));
            shell.connect_link(link, address);
        }
    }

    /// The shell has connected a link that it was asked for, or could not: [`ErrorKind::OutOfMemory`] if for want of something of this
    /// machine's own (open files, sockets, memory), which is nobody else's fault. A stream for a link that was given up is dropped.
    pub fn handle_link_stream(
        &mut self,
        shell: &mut S,
        link: LinkId,
        stream: Result<S::LinkStream, ErrorKind>,
        now: Instant,
    ) {
        let Some(place) = place_of(self.links, link) else { return };
        let State::Connecting(node) = place.state else { return };
        match stream {
            Err(kind) => self.close_link(shell, link, LinkEnd::Io(kind), now),
            Ok(stream) => {
                let mut message = [0; MESSAGE1_LEN];
                let connector = Connector::start(shell.rng(), &mut message);
                place.reset(State::AwaitingAnswer(stream, connector, node));
                if let Some((length, rest)) = place.output.split_first_chunk_mut::<LENGTH_LEN>()
                    && let Some(text) = rest.first_chunk_mut()
                {
                    *length = (MESSAGE1_LEN as u16).to_be_bytes();
                    *text = message;
                }
                place.departing = 0..LENGTH_LEN + MESSAGE1_LEN;
                place.progress = now;
                let _more = self.service_link(shell, link, now);
            }
        }
    }

    /// Ends a link from our side and drops its stream.
    pub fn close_link(&mut self, shell: &mut S, link: LinkId, end: LinkEnd, now: Instant) {
        let Some(place) = place_of(self.links, link) else {
            // Its number was taken and never used.
            self.node.handle_link_down(link, now);
            self.vacate(shell, link.slot());
            return;
        };
        let unmade = matches!((&place.state, end), (State::Connecting(_), LinkEnd::Io(ErrorKind::OutOfMemory)));
        place.reset(State::Free);
        place.link = None;
        if unmade {
            self.node.handle_link_unmade(link, now);
        } else {
            self.node.handle_link_down(link, now);
        }
        shell.handle_link_end(link, end);
    }

    /// Ends every link, and drops the streams of conversations that have not ended.
    pub fn close_all(&mut self, shell: &mut S, now: Instant) {
        for at in 0..self.links.len() {
            if let Some(link) = self.links[at].link {
                self.close_link(shell, link, LinkEnd::Shutdown, now);
            }
        }
        self.outsides.fill_with(|| super::OutsidePlace::EMPTY);
    }

    /// A link's stream may have become ready: takes in what has come and writes what waits.
    pub fn service_link(&mut self, shell: &mut S, link: LinkId, now: Instant) -> More {
        match self.take_input(shell, link, now) {
            Ok(more) => {
                self.flush_link(shell, link, now);
                if self.is_resumable(link) {
                    self.node.call_link_again(link);
                }
                more
            }
            Err(end) => {
                self.close_link(shell, link, end, now);
                More::No
            }
        }
    }

    fn take_input(&mut self, shell: &mut S, link: LinkId, now: Instant) -> Result<More, LinkEnd> {
        let mut turn = TURN;
        loop {
            loop {
                if !self.node.takes_cells(link) {
                    if let Some(place) = place_of(self.links, link) {
                        place.paused = true;
                    }
                    return Ok(More::No);
                }
                if !self.take_one(shell, link, now)? {
                    break;
                }
            }
            if turn == 0 {
                return Ok(More::Yes);
            }
            let Some(place) = place_of(self.links, link) else { return Ok(More::No) };
            place.paused = false;
            match place.read() {
                Poll::Pending => return Ok(More::No),
                Poll::Ready(read) => turn = turn.saturating_sub(read?),
            }
        }
    }

    /// Whether reading has stopped for the node's sake and can go on.
    fn is_resumable(&self, link: LinkId) -> bool {
        let place = self.links.get(link.slot()).filter(|place| place.link == Some(link));
        place.is_some_and(|place| place.paused) && self.node.takes_cells(link)
    }

    /// A link has something to send, or can be read again.
    pub(super) fn handle_wish(&mut self, shell: &mut S, link: LinkId, now: Instant) {
        self.flush_link(shell, link, now);
        if self.is_resumable(link) && self.service_link(shell, link, now) == More::Yes {
            // The turn is over; the rest comes with the next poll.
            if let Some(place) = place_of(self.links, link) {
                place.paused = true;
            }
            self.node.call_link_again(link);
        }
    }

    /// Handles the first whole message or record that has arrived; answers `false` if none is whole.
    fn take_one(&mut self, shell: &mut S, link: LinkId, now: Instant) -> Result<bool, LinkEnd> {
        let Some(place) = place_of(self.links, link) else { return Ok(false) };
        match &mut place.state {
            State::Free | State::Connecting(_) => Ok(false),
            State::AwaitingConnector(_) => self.answer(shell, link, now),
            State::AwaitingAnswer(..) => self.judge_answer(shell, link, now),
            State::AwaitingHello(_, _, opener) | State::Up(_, _, opener) => {
                let arrived = place.arrived.clone();
                match opener.open(&mut place.input[arrived.clone()]).map_err(LinkEnd::Record)? {
                    Opened::NeedMore { total } => {
                        // Move a record that would not fit to the front while it is small.
                        if arrived.is_empty() {
                            place.arrived = 0..0;
                        } else if arrived.start + total > place.input.len() {
                            place.input.copy_within(arrived.clone(), 0);
                            place.arrived = 0..arrived.len();
                        }
                        Ok(false)
                    }
                    Opened::Record { cells, consumed } => {
                        for cell in cells {
                            self.node.handle_cell(link, cell, now).map_err(LinkEnd::Violation)?;
                        }
                        place.arrived.start += consumed;
                        self.finish_hello(link);
                        Ok(true)
                    }
                }
            }
        }
    }

    /// Once HELLO has come, records can be sent.
    fn finish_hello(&mut self, link: LinkId) {
        let Some(place) = place_of(self.links, link) else { return };
        if !matches!(place.state, State::AwaitingHello(..)) {
            return;
        }
        let Some(limit) = self.node.peer_limits(link).and_then(|limits| RecordLimit::new(limits.record_cells)) else {
            return;
        };
        if let State::AwaitingHello(stream, send, opener) = core::mem::replace(&mut place.state, State::Free) {
            place.state = State::Up(stream, Sealer::new(&send, limit), opener);
        }
    }

    /// Answers a connector's message.
    // Not inlined: it happens once a link, and its frame would lie under every record.
    #[inline(never)]
    fn answer(&mut self, shell: &mut S, link: LinkId, now: Instant) -> Result<bool, LinkEnd> {
        let config = self.node.config();
        let answer = Answer {
            time: shell.unix_time().ok_or(LinkEnd::Answer(WireError::Invalid))?,
            limits: config.limits,
            circuits: CircuitLimit::new(config.circuits_per_link).ok_or(LinkEnd::Answer(WireError::Invalid))?,
            descriptor: shell.descriptor(),
        };
        let Some(place) = place_of(self.links, link) else { return Ok(false) };
        let Some(range) = place.framed(MESSAGE1_LEN)? else { return Ok(false) };
        let message: [u8; MESSAGE1_LEN] = place
            .input
            .get(range.clone())
            .and_then(|message| message.try_into().ok())
            .ok_or(LinkEnd::Handshake(HandshakeError::Length))?;
        let mut payload = [0; ANSWER_MAX_LEN];
        let payload_len = answer.emit(&mut payload).map_err(LinkEnd::Answer)?;
        let record_limit =
            RecordLimit::new(config.limits.record_cells.value()).ok_or(LinkEnd::Answer(WireError::Invalid))?;

        let (length, text) =
            place.output.split_first_chunk_mut::<LENGTH_LEN>().ok_or(LinkEnd::Handshake(HandshakeError::NoRoom))?;
        let (secret, rng) = shell.link_secret();
        let (len, keys) =
            noise::answer(secret, &message, &payload[..payload_len], text, rng).map_err(LinkEnd::Handshake)?;
        *length = (len as u16).to_be_bytes();
        place.departing = 0..LENGTH_LEN + len;
        place.progress = now;
        place.arrived.start = range.end;
        if let State::AwaitingConnector(stream) = core::mem::replace(&mut place.state, State::Free) {
            place.state = State::AwaitingHello(stream, keys.send, Opener::new(&keys.receive, record_limit));
        }
        self.node.handle_link_answered(link);
        Ok(true)
    }

    /// Judges the answer to our message: authentic, acceptable, and from the node that we meant.
    // Not inlined: it happens once a link, and its frame would lie under every record.
    #[inline(never)]
    fn judge_answer(&mut self, shell: &mut S, link: LinkId, now: Instant) -> Result<bool, LinkEnd> {
        let Some(place) = place_of(self.links, link) else { return Ok(false) };
        let Some(range) = place.framed(ANSWER_FRAME_MAX - LENGTH_LEN)? else { return Ok(false) };
        let State::AwaitingAnswer(stream, connector, expected) = core::mem::replace(&mut place.state, State::Free)
        else {
            return Ok(false);
        };
        let message = place.input.get_mut(range.clone()).ok_or(LinkEnd::Handshake(HandshakeError::Length))?;
        let established = connector.finish(message).map_err(LinkEnd::Handshake)?;
        let len = established.payload.len();
        let payload = range.end.saturating_sub(TAG_LEN + len)..range.end.saturating_sub(TAG_LEN);
        let shaken = Shaken { stream, link_key: established.link_key, keys: established.keys, payload, end: range.end };
        self.believe(shell, link, expected, shaken, now)
    }

    /// The second half of [`Driver::judge_answer`]. Not inlined: its descriptors must not lie on the stack under the handshake.
    #[inline(never)]
    fn believe(
        &mut self,
        shell: &mut S,
        link: LinkId,
        expected: Option<NodeId>,
        shaken: Shaken<S::LinkStream>,
        now: Instant,
    ) -> Result<bool, LinkEnd> {
        let own_limit = RecordLimit::new(self.node.config().limits.record_cells.value());
        let Some(place) = place_of(self.links, link) else { return Ok(false) };
        let payload = place.input.get(shaken.payload).ok_or(LinkEnd::Handshake(HandshakeError::Length))?;
        let answer = Answer::parse(payload).map_err(LinkEnd::Answer)?;
        let descriptor = Descriptor::parse(answer.descriptor).map_err(LinkEnd::Answer)?;
        if descriptor.link_key != shaken.link_key.0 {
            return Err(LinkEnd::WrongNode);
        }
        // The signature first: what an authentic node says of the time is worth hearing most when its descriptor seems out of date.
        let verified = VerifiedDescriptor::verify_stored(descriptor).map_err(LinkEnd::Descriptor)?;
        if expected.is_some_and(|expected| expected != verified.node()) {
            return Err(LinkEnd::WrongNode);
        }
        shell.handle_time(link, verified.node(), answer.time);
        verified.judge_validity(shell.unix_time().unwrap_or(answer.time)).map_err(LinkEnd::Descriptor)?;
        let peer_limit =
            RecordLimit::new(answer.limits.record_cells.value()).ok_or(LinkEnd::Answer(WireError::Invalid))?;
        let limits = PeerLimits {
            record_cells: answer.limits.record_cells.value(),
            credit: answer.limits.credit.value(),
            circuits: answer.circuits.value(),
        };
        let time = answer.time;
        let own_limit = own_limit.ok_or(LinkEnd::Answer(WireError::Invalid))?;
        place.state = State::Up(
            shaken.stream,
            Sealer::new(&shaken.keys.send, peer_limit),
            Opener::new(&shaken.keys.receive, own_limit),
        );
        place.arrived.start = shaken.end;
        self.node.handle_link_up(link, verified.node(), limits, now);
        shell.handle_descriptor(link, &verified, time);
        Ok(true)
    }

    /// Sends what is ready on a link, as far as its stream takes it.
    pub(super) fn flush_link(&mut self, shell: &mut S, link: LinkId, now: Instant) {
        if let Err(end) = self.try_flush(link, now) {
            self.close_link(shell, link, end, now);
        }
    }

    fn try_flush(&mut self, link: LinkId, now: Instant) -> Result<(), LinkEnd> {
        let Some(place) = place_of(self.links, link) else { return Ok(()) };
        loop {
            match place.write(now) {
                Poll::Pending => return Ok(()),
                Poll::Ready(written) => written?,
            }
            let State::Up(_, sealer, _) = &mut place.state else { return Ok(()) };
            let room = place.output.len().saturating_sub(record_len(1) - CELL_LEN) / CELL_LEN;
            let Some(text) = place.output.get_mut(cells_offset()..cells_offset() + room * CELL_LEN) else {
                return Ok(());
            };
            let (cells, _nothing) = text.as_chunks_mut();
            let count = self.node.poll_cells(link, cells, now);
            if count == 0 {
                return Ok(());
            }
            let len = sealer.seal(place.output, count).map_err(LinkEnd::Record)?;
            place.departing = 0..len;
            place.progress = now;
        }
    }

    pub(super) fn close_stalled_links(&mut self, shell: &mut S, now: Instant) {
        if now < self.stall_check {
            return;
        }
        self.stall_check = now.after(Duration::from_secs(1));
        for at in 0..self.links.len() {
            let place = &self.links[at];
            if let Some(link) = place.link
                && !place.departing.is_empty()
                && now >= place.progress.after(STALL)
            {
                self.close_link(shell, link, LinkEnd::Stalled, now);
            }
        }
    }

    /// A link's stream, for a shell that must look after it (to learn when it becomes ready).
    pub fn link_stream(&mut self, link: LinkId) -> Option<&mut S::LinkStream> {
        place_of(self.links, link)?.state.stream()
    }
}

/// What a handshake that ended well leaves.
struct Shaken<L> {
    stream: L,
    link_key: LinkKey,
    keys: SessionKeys,
    /// Where in the input the answer lies, decrypted.
    payload: core::ops::Range<usize>,
    /// Where in the input the message ends.
    end: usize,
}

/// The place of a link, unless it holds another one by now.
fn place_of<'p, 'b, S: Shell>(links: &'p mut [LinkPlace<'b, S>], link: LinkId) -> Option<&'p mut LinkPlace<'b, S>> {
    links.get_mut(link.slot()).filter(|place| place.link == Some(link))
}
