//! Conversations and the outside: the target's bytes at an exit, the application's at a client. `PROTOCOL.md` sections 9 and 12.

use core::net::SocketAddr;

use super::arrival::message_of;
use super::role::Role;
use super::{Node, Outcome};
use crate::circuit::table::{ConversationId, End, Side};
use crate::circuit::{CircuitIndex, LinkId};
use crate::client::origin::{Origin, Reached, Receipt};
use crate::conversation::Halves;
use crate::crypto::cgo::TAG_LEN;
use crate::crypto::receipt::TranscriptDigest;
use crate::relay::exit::{Exit, Stage};
use crate::time::Instant;
use crate::wire::cell::{BODY_LEN, CellBody};
use crate::wire::descriptor::RSA_LEN;
use crate::wire::message::{DATA_MAX, Message, data_room_mut, emit_data_header};
use crate::wire::{CloseReason, Command, EndReason, Target, UnixTime};

/// Cells of an outgoing flow's room that bytes may not take: a conversation says at most CONNECTED, RECEIPT, FIN and END besides.
const CONTROL_ROOM: u16 = 4;

const _: () = assert!(CONTROL_ROOM < crate::circuit::flow::WINDOW_MIN);

/// What an exit's conversation needs from the owner.
#[expect(
    clippy::large_enum_variant,
    reason = "made once a conversation, taken apart at once, and there is no allocator"
)]
pub enum Ask<'a> {
    /// Connect to the target; answer with [`Node::handle_connected`], for a service with [`Node::handle_served`], or with
    /// [`Node::handle_failed`].
    Connect(&'a Target),
    /// Sign the answer (`PROTOCOL.md` section 9, RECEIPT); answer with [`Node::handle_signed`].
    Sign(&'a Target, TranscriptDigest),
}

/// What goes from the network to the outside next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Nothing now.
    Nothing,
    /// So many bytes are in the buffer; tell how many were written with [`Node::handle_written`].
    Bytes(usize),
    /// Nothing more will come: shut down that half of the outside.
    Finish,
    /// The conversation is over; forget it.
    Over(Outcome),
}

/// Where a conversation's bytes go to when they leave this node.
fn going_out(role: &Role) -> Option<Side> {
    match role {
        Role::Exiting(..) => Some(Side::Outward),
        Role::Client(..) => Some(Side::Inward),
        Role::Opening { .. } | Role::Passing(..) | Role::Refused => None,
    }
}

impl Node<'_> {
    /// The next conversation that wants the driver: there may be something to ask, to take out or room to put in.
    pub fn poll_conversation(&mut self) -> Option<ConversationId> {
        let at = self.attention.pop(self.table.slots(), crate::circuit::table::Listed::Attention)?;
        Some(self.table.name(CircuitIndex(at as u32)))
    }

    /// Whether the conversation still has an end here.
    #[must_use]
    pub fn knows(&self, name: ConversationId) -> bool {
        let entry = self.table.find(name).and_then(|index| self.table.get(index));
        entry.is_some_and(|entry| entry.inward == End::Conversation || entry.outward == End::Conversation)
    }

    /// The link over which the client's cells of a conversation come: many clients' where the neighbour is a relay. `None` if the client is this node.
    #[must_use]
    pub fn came_over(&self, name: ConversationId) -> Option<LinkId> {
        match self.table.get(self.table.find(name)?)?.inward {
            End::Link(link, _) => Some(link),
            End::Conversation | End::Detached => None,
        }
    }

    /// Has the conversation polled again, after others.
    pub fn call_again(&mut self, name: ConversationId) {
        if let Some(index) = self.table.find(name) {
            self.list_attention(index);
        }
    }

    fn exit_mut(&mut self, name: ConversationId) -> Option<(CircuitIndex, &mut Exit)> {
        let index = self.table.find(name)?;
        match &mut self.table.get_mut(index)?.role {
            Role::Exiting(_, exit) => Some((index, exit)),
            _ => None,
        }
    }

    fn origin_mut(&mut self, name: ConversationId) -> Option<&mut Origin> {
        let index = self.table.find(name)?;
        match &self.table.get(index)?.role {
            Role::Client(origin, _) => self.origins.get_mut(origin.0 as usize)?.0.as_mut(),
            _ => None,
        }
    }

    fn halves_mut(&mut self, name: ConversationId) -> Option<&mut Halves> {
        let index = self.table.find(name)?;
        match &mut self.table.get_mut(index)?.role {
            Role::Exiting(_, exit) => Some(&mut exit.halves),
            Role::Client(origin, _) => {
                self.origins.get_mut(origin.0 as usize)?.0.as_mut().map(|origin| &mut origin.halves)
            }
            _ => None,
        }
    }

    /// What an exit's conversation needs from the owner, once.
    pub fn poll_ask(&mut self, name: ConversationId) -> Option<Ask<'_>> {
        let entry = self.table.find(name).and_then(|index| self.table.get(index))?;
        if entry.farewell.is_some() && entry.forward.waiting().is_empty() {
            return None;
        }
        let (_, exit) = self.exit_mut(name)?;
        if exit.stage() == Stage::Unsigned {
            return exit.ask_sign().map(|(target, transcript)| Ask::Sign(target, transcript));
        }
        exit.ask_connect().map(Ask::Connect)
    }

    /// Encrypts and queues a message of this node. The caller has seen to it that there is room.
    fn say(&mut self, index: CircuitIndex, message: &Message<'_>) {
        let mut body = [0; BODY_LEN];
        let emitted = message.emit(message_of(&mut body));
        debug_assert!(emitted.is_ok(), "only messages that fit are said");
        if emitted.is_ok() {
            self.send_message(index, &mut body);
        }
    }

    fn send_message(&mut self, index: CircuitIndex, body: &mut CellBody) {
        let Some(entry) = self.table.get_mut(index) else { return };
        if entry.farewell.is_some() {
            // The circuit ended while the outside was connecting or signing, and its room is given back.
            return;
        }
        let Some(side) = going_out(&entry.role).map(Side::opposite) else { return };
        let flow = entry.leaving(side);
        let Ok(place) = flow.push(&mut self.pool) else {
            debug_assert!(false, "room for control messages is kept free");
            return;
        };
        match &mut entry.role {
            Role::Exiting(hop, _) => hop.originate(body),
            Role::Client(origin, _) => {
                let Some(origin) = self.origins.get_mut(origin.0 as usize).and_then(|slot| slot.0.as_mut()) else {
                    return;
                };
                let exit = origin.exit();
                let originated = origin.forward.originate(exit, Command::RELAY, body);
                debug_assert!(originated.is_ok(), "the exit is a hop of the path");
            }
            Role::Opening { .. } | Role::Passing(..) | Role::Refused => return,
        }
        *place = *body;
        let sendable = entry.leaving(side).sendable() && entry.role.is_sending();
        if sendable && let End::Link(link, _) = entry.end(side) {
            self.list_output(index, side, link);
        }
    }

    /// The owner has reached the target, at `address`.
    pub fn handle_connected(&mut self, name: ConversationId, address: SocketAddr, now: Instant) {
        if let Some(index) = self.open_outside(name, now) {
            self.say(index, &Message::Connected { address });
        }
    }

    /// The owner has attached the service that was asked for. The client hears of it by the service's answer: there is no CONNECTED.
    pub fn handle_served(&mut self, name: ConversationId, now: Instant) {
        let _nothing_to_say = self.open_outside(name, now);
    }

    /// Bytes may go both ways from now on; `None` if nobody asked for that.
    fn open_outside(&mut self, name: ConversationId, now: Instant) -> Option<CircuitIndex> {
        let idle = now.after(self.config.patience.idle);
        let (index, exit) = self.exit_mut(name)?;
        if !exit.handle_connected() {
            return None;
        }
        if let Some(entry) = self.table.get_mut(index) {
            entry.deadline = idle;
        }
        self.list_attention(index);
        Some(index)
    }

    /// The owner could not reach the target, or has lost it.
    pub fn handle_failed(&mut self, name: ConversationId, reason: EndReason, now: Instant) {
        if let Some((index, exit)) = self.exit_mut(name)
            && exit.stage() != Stage::Over
        {
            self.end_conversation(index, Some(reason), CloseReason::Finished, now);
        }
    }

    /// The owner has signed the answer.
    pub fn handle_signed(&mut self, name: ConversationId, time: UnixTime, signature: &[u8; RSA_LEN], now: Instant) {
        let Some((index, exit)) = self.exit_mut(name) else { return };
        if exit.handle_signed() {
            self.say(index, &Message::Receipt { time, signature });
            self.finish_target(name, index, now);
        }
    }

    /// How many bytes [`Node::handle_input`] takes now; zero until the conversation is open.
    #[must_use]
    pub fn input_room(&self, name: ConversationId) -> usize {
        let Some(entry) = self.table.find(name).and_then(|index| self.table.get(index)) else { return 0 };
        if entry.farewell.is_some() {
            return 0;
        }
        let promised = match &entry.role {
            Role::Exiting(_, exit) if exit.stage() == Stage::Open && !exit.halves.finish_sent => {
                entry.backward.promised()
            }
            Role::Client(origin, _) => match self.origins.get(origin.0 as usize).and_then(|slot| slot.0.as_ref()) {
                Some(origin) if !origin.halves.finish_sent && origin.ended().is_none() => entry.forward.promised(),
                _ => 0,
            },
            _ => 0,
        };
        usize::from(promised.saturating_sub(CONTROL_ROOM)) * DATA_MAX
    }

    /// Takes bytes from the outside, as many as [`Node::input_room`] allows, and answers how many it took.
    pub fn handle_input(&mut self, name: ConversationId, bytes: &[u8], now: Instant) -> usize {
        let room = self.input_room(name).min(bytes.len());
        let Some(index) = self.table.find(name) else { return 0 };
        let bytes = &bytes[..room];
        if bytes.is_empty() {
            return 0;
        }
        if let Some((_, exit)) = self.exit_mut(name) {
            exit.handle_answer(bytes);
        } else if let Some(origin) = self.origin_mut(name) {
            origin.handle_request(bytes);
        }
        let mut body = [0; BODY_LEN];
        for chunk in bytes.chunks(DATA_MAX) {
            let message = message_of(&mut body);
            let (payload, padding) = data_room_mut(message).split_at_mut(chunk.len());
            payload.copy_from_slice(chunk);
            padding.fill(0);
            let emitted = emit_data_header(message, chunk.len());
            debug_assert!(emitted.is_ok(), "a chunk is never empty or too long");
            self.send_message(index, &mut body);
        }
        if let Some(entry) = self.table.get_mut(index) {
            entry.deadline = now.after(self.config.patience.idle);
        }
        room
    }

    /// The outside has nothing more to say.
    pub fn handle_input_finished(&mut self, name: ConversationId, now: Instant) {
        let Some(index) = self.table.find(name) else { return };
        if self.table.get(index).is_none_or(|entry| entry.farewell.is_some()) {
            return;
        }
        if let Some((_, exit)) = self.exit_mut(name) {
            if exit.stage() != Stage::Open || exit.halves.finish_sent {
                return;
            }
            if exit.handle_finished() {
                self.list_attention(index);
            } else {
                self.finish_target(name, index, now);
            }
        } else if let Some(origin) = self.origin_mut(name)
            && !core::mem::replace(&mut origin.halves.finish_sent, true)
            && origin.ended().is_none()
        {
            self.say(index, &Message::Fin);
        }
    }

    /// The target's answer is whole: FIN, or END if that was the conversation.
    fn finish_target(&mut self, name: ConversationId, index: CircuitIndex, now: Instant) {
        let Some((_, exit)) = self.exit_mut(name) else { return };
        exit.halves.finish_sent = true;
        if exit.is_finished() {
            self.end_conversation(index, Some(EndReason::Done), CloseReason::Finished, now);
        } else {
            self.say(index, &Message::Fin);
        }
    }

    /// What goes to the outside next; bytes are copied to the front of `buffer` and stay here until [`Node::handle_written`].
    pub fn poll_output(&mut self, name: ConversationId, buffer: &mut [u8], now: Instant) -> Output {
        let Some(index) = self.table.find(name) else { return Output::Nothing };
        let Some(entry) = self.table.get(index) else { return Output::Nothing };
        let (flow, halves, over, ready) = match &entry.role {
            Role::Exiting(_, exit) => {
                let ready = !matches!(exit.stage(), Stage::AwaitingBegin | Stage::Asking | Stage::Connecting);
                if !ready && entry.farewell.is_some() && !entry.forward.waiting().is_empty() {
                    // The client has said all and gone; the target is still to hear it.
                    return Output::Nothing;
                }
                (&entry.forward, exit.halves, exit.stage() == Stage::Over, ready)
            }
            Role::Client(origin, _) => {
                let Some(origin) = self.origins.get(origin.0 as usize).and_then(|slot| slot.0.as_ref()) else {
                    return Output::Nothing;
                };
                (&entry.backward, origin.halves, origin.ended().is_some(), true)
            }
            Role::Opening { .. } | Role::Passing(..) | Role::Refused => return Output::Nothing,
        };
        let side = if matches!(entry.role, Role::Client(..)) { Side::Inward } else { Side::Outward };
        if entry.end(side) != End::Conversation {
            return Output::Nothing;
        }
        if ready && !flow.waiting().is_empty() {
            let mut len = 0;
            let mut taken = usize::from(halves.taken);
            for body in self.pool.iter(flow.waiting()) {
                let payload = payload_of(body).get(taken..).unwrap_or(&[]);
                let Some(place) = buffer.get_mut(len..len + payload.len()) else {
                    if len == 0
                        && let Some(part) = payload.get(..buffer.len())
                    {
                        buffer.copy_from_slice(part);
                        len = part.len();
                    }
                    break;
                };
                place.copy_from_slice(payload);
                len += payload.len();
                taken = 0;
            }
            return Output::Bytes(len);
        }
        // Before the outcome: a stream that is let go of without its end counts as broken.
        if ready && halves.finish_received && !halves.finish_delivered {
            if let Some(halves) = self.halves_mut(name) {
                halves.finish_delivered = true;
            }
            if let Some((_, exit)) = self.exit_mut(name)
                && exit.is_finished()
            {
                // Both directions are done; the owner learns it with the next poll.
                self.end_conversation(index, Some(EndReason::Done), CloseReason::Finished, now);
            }
            return Output::Finish;
        }
        if over || entry.farewell.is_some() {
            let close = entry.farewell;
            let end = self.origin_mut(name).and_then(|origin| origin.ended());
            self.detach_conversation(index, side, now);
            return Output::Over(Outcome { end, close });
        }
        Output::Nothing
    }

    /// Lets the owner go: an exit's circuit goes on to the client, a client's to its path.
    fn detach_conversation(&mut self, index: CircuitIndex, side: Side, now: Instant) {
        self.wind_up(index, CloseReason::Finished, Some(side), now);
    }

    /// `written` bytes of the last [`Output::Bytes`] are out of our hands.
    pub fn handle_written(&mut self, name: ConversationId, written: usize, now: Instant) {
        let Some(index) = self.table.find(name) else { return };
        let growth = self.config.growth();
        let patience = self.config.patience;
        let Some(mut taken) = self.halves_mut(name).map(|halves| usize::from(halves.taken) + written) else { return };
        let Some(entry) = self.table.get_mut(index) else { return };
        let Some(side) = going_out(&entry.role) else { return };
        // Who takes what waits, however slowly, gets all of it. Our own application may take its time as before.
        let draining = entry.farewell.is_some() && matches!(entry.role, Role::Exiting(..));
        entry.deadline = now.after(if draining { patience.draining } else { patience.idle });
        let flow = entry.leaving(side);
        while let Some(len) = self.pool.front(flow.waiting()).map(|body| payload_of(body).len())
            && taken >= len
        {
            taken -= len;
            flow.pop_local(&mut self.pool, growth);
        }
        if let Some(halves) = self.halves_mut(name) {
            halves.taken = taken as u16;
        }
        self.announce_room(index, side.opposite());
        self.list_attention(index);
    }

    /// The owner lets go of the conversation: gracefully if everything it said was to be delivered, or at once.
    pub fn close_conversation(&mut self, name: ConversationId, graceful: bool, now: Instant) {
        let Some(index) = self.table.find(name) else { return };
        let Some(entry) = self.table.get(index) else { return };
        match entry.role {
            Role::Client(..) if entry.inward == End::Conversation => {
                if !graceful && entry.farewell.is_none() {
                    self.say(index, &Message::End(EndReason::Cancelled));
                }
                self.wind_up(index, CloseReason::Finished, Some(Side::Inward), now);
            }
            Role::Exiting(..) if entry.outward == End::Conversation => {
                self.end_conversation(index, Some(EndReason::Reset), CloseReason::Finished, now);
                self.wind_up(index, CloseReason::Finished, Some(Side::Outward), now);
            }
            _ => {}
        }
    }

    /// What the exit has reached, once our own conversation is told.
    #[must_use]
    pub fn reached(&mut self, name: ConversationId) -> Option<Reached> {
        self.origin_mut(name)?.reached()
    }

    /// The receipt of our own conversation, once it has come; the owner verifies it.
    pub fn take_receipt(&mut self, name: ConversationId) -> Option<Receipt> {
        self.origin_mut(name)?.take_receipt()
    }
}

/// The payload of a DATA message that was checked when it came.
fn payload_of(body: &CellBody) -> &[u8] {
    let message = &body[TAG_LEN..];
    let len = usize::from(u16::from_be_bytes([message[1], message[2]]));
    message.get(crate::wire::message::DATA_OFFSET..crate::wire::message::DATA_OFFSET + len).unwrap_or(&[])
}
