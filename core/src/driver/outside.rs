//! Conversations and the streams that they are attached to: a target at an exit, an application at a client. `PROTOCOL.md` section 12.

use core::net::SocketAddr;
use core::task::Poll;

use super::{Driver, More};
use crate::io::{ByteStream, Shell, Statement};
use crate::node::{Ask, ConversationId, Outcome, Output};
use crate::time::Instant;
use crate::wire::EndReason;

/// Reads and writes of one conversation before others have their turn.
const TURN: usize = 8;

/// What a conversation is attached to.
pub struct OutsidePlace<S: Shell> {
    name: Option<ConversationId>,
    stream: Option<S::OutsideStream>,
    /// The stream has said that nothing more comes.
    finished: bool,
    /// The network has; the stream does not know, because it is not attached yet.
    finish_due: bool,
    /// The shell knows that the conversation is connected.
    announced: bool,
}

impl<S: Shell> OutsidePlace<S> {
    /// A place without a conversation.
    pub const EMPTY: Self = Self { name: None, stream: None, finished: false, finish_due: false, announced: false };
}

impl<S: Shell> Driver<'_, '_, S> {
    /// The place of a conversation, cleared if it was an older one's.
    pub(super) fn claim(
        &mut self,
        name: ConversationId,
        stream: Option<S::OutsideStream>,
    ) -> Option<&mut OutsidePlace<S>> {
        let place = self.outsides.get_mut(name.index().slot())?;
        if place.name != Some(name) {
            *place = OutsidePlace { name: Some(name), ..OutsidePlace::EMPTY };
        }
        if stream.is_some() {
            place.stream = stream;
        }
        Some(place)
    }

    /// Attaches a stream to one of our own conversations. Until then what comes waits, under credit, and so does its end.
    pub fn attach(&mut self, shell: &mut S, name: ConversationId, stream: S::OutsideStream, now: Instant) {
        if self.node.knows(name) {
            self.claim(name, Some(stream));
            self.service_conversation(shell, name, now);
        }
    }

    /// The shell has reached a target, or could not: `reason` is what the client is told.
    pub fn handle_target(
        &mut self,
        shell: &mut S,
        name: ConversationId,
        stream: Result<(S::OutsideStream, SocketAddr), EndReason>,
        now: Instant,
    ) {
        match stream {
            Ok((stream, address)) if self.node.knows(name) => {
                self.claim(name, Some(stream));
                self.node.handle_connected(name, address, now);
                self.service_conversation(shell, name, now);
            }
            Ok(_) => {}
            Err(reason) => self.node.handle_failed(name, reason, now),
        }
    }

    /// The shell has a service for a conversation that asks for it, or not: `reason` is what the client is told.
    pub fn handle_service(
        &mut self,
        shell: &mut S,
        name: ConversationId,
        stream: Result<S::OutsideStream, EndReason>,
        now: Instant,
    ) {
        match stream {
            Ok(stream) if self.node.knows(name) => {
                self.claim(name, Some(stream));
                self.node.handle_served(name, now);
                self.service_conversation(shell, name, now);
            }
            Ok(_) => {}
            Err(reason) => self.node.handle_failed(name, reason, now),
        }
    }

    /// The owner of one of our conversations lets go of it. Ungracefully: the target is told that the answer is not wanted.
    pub fn release(&mut self, name: ConversationId, graceful: bool, now: Instant) {
        self.node.close_conversation(name, graceful, now);
        self.forget(name);
    }

    fn forget(&mut self, name: ConversationId) {
        if let Some(place) = self.outsides.get_mut(name.index().slot())
            && place.name == Some(name)
        {
            *place = OutsidePlace::EMPTY;
        }
    }

    /// A conversation's stream may have become ready, or the network has something for it.
    pub fn service_conversation(&mut self, shell: &mut S, name: ConversationId, now: Instant) {
        if !self.node.knows(name) {
            self.forget(name);
            return;
        }
        self.ask(shell, name, now);
        if self.write_out(shell, name, now) == More::Yes || self.read_in(shell, name, now) == More::Yes {
            self.node.call_again(name);
        }
    }

    fn ask(&mut self, shell: &mut S, name: ConversationId, now: Instant) {
        match self.node.poll_ask(name) {
            Some(Ask::Connect(target)) => {
                shell.connect_target(name, target);
                self.claim(name, None);
            }
            Some(Ask::Sign(target, transcript)) => {
                if let Some((time, signature)) = shell.sign(name, Statement { target, transcript }) {
                    self.node.handle_signed(name, time, &signature, now);
                }
            }
            None => {}
        }
        let reached = self.node.reached(name);
        if let Some(reached) = reached
            && let Some(place) = self.claim(name, None)
            && !core::mem::replace(&mut place.announced, true)
        {
            shell.handle_connected(name, reached);
        }
        if let Some(receipt) = self.node.take_receipt(name) {
            shell.handle_receipt(name, receipt);
        }
    }

    /// Network to outside.
    fn write_out(&mut self, shell: &mut S, name: ConversationId, now: Instant) -> More {
        for _ in 0..TURN {
            if !self.finish_if_due(name) {
                self.lose(shell, name, now);
                return More::No;
            }
            match self.node.poll_output(name, self.scratch, now) {
                Output::Nothing => return More::No,
                Output::Over(outcome) => {
                    // In this order: who reads the stream's end finds the outcome there already.
                    shell.handle_over(name, outcome);
                    self.forget(name);
                    return More::No;
                }
                Output::Finish => {
                    if let Some(place) = self.claim(name, None) {
                        place.finish_due = true;
                    }
                }
                Output::Bytes(len) => {
                    let bytes = self.scratch.get(..len).unwrap_or(&[]);
                    let Some(stream) = stream_of(self.outsides, name) else { return More::No };
                    match stream.try_write(bytes) {
                        Poll::Pending => return More::No,
                        Poll::Ready(Ok(written)) => self.node.handle_written(name, written.min(len), now),
                        Poll::Ready(Err(_)) => {
                            self.lose(shell, name, now);
                            return More::No;
                        }
                    }
                }
            }
        }
        More::Yes
    }

    /// Outside to network.
    fn read_in(&mut self, shell: &mut S, name: ConversationId, now: Instant) -> More {
        for _ in 0..TURN {
            let room = self.node.input_room(name).min(self.scratch.len());
            let Some(place) = self.outsides.get_mut(name.index().slot()) else { return More::No };
            if room == 0 || place.finished || place.name != Some(name) {
                return More::No;
            }
            let Some(stream) = &mut place.stream else { return More::No };
            match stream.try_read(&mut self.scratch[..room]) {
                Poll::Pending => return More::No,
                Poll::Ready(Ok(0)) => {
                    place.finished = true;
                    self.node.handle_input_finished(name, now);
                    return More::No;
                }
                Poll::Ready(Ok(read)) => {
                    let taken = self.node.handle_input(name, &self.scratch[..read.min(room)], now);
                    debug_assert_eq!(taken, read.min(room), "room was asked for first");
                }
                Poll::Ready(Err(_)) => {
                    self.lose(shell, name, now);
                    return More::No;
                }
            }
        }
        More::Yes
    }

    /// The outside broke: an exit tells the client that the target has reset, a client lets go of the circuit.
    fn lose(&mut self, shell: &mut S, name: ConversationId, now: Instant) {
        self.node.handle_failed(name, EndReason::Reset, now);
        self.node.close_conversation(name, false, now);
        // In this order: who finds the stream broken finds the outcome there already.
        shell.handle_over(name, Outcome { end: None, close: None });
        self.forget(name);
    }

    /// Tells the stream that nothing more comes, once both that is so and there is a stream; whether it took it.
    fn finish_if_due(&mut self, name: ConversationId) -> bool {
        let place = self.outsides.get_mut(name.index().slot()).filter(|place| place.name == Some(name));
        let Some(OutsidePlace { stream: Some(stream), finish_due, .. }) = place else { return true };
        !core::mem::take(finish_due) || stream.finish().is_ok()
    }
}

fn stream_of<S: Shell>(outsides: &mut [OutsidePlace<S>], name: ConversationId) -> Option<&mut S::OutsideStream> {
    let place = outsides.get_mut(name.index().slot())?;
    place.stream.as_mut().filter(|_| place.name == Some(name))
}
