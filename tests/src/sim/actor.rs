//! What is attached to conversations: applications at clients and targets behind exits. Every byte that they say follows a pattern, and
//! every byte that they hear is checked against the other's: nothing lost, nothing twice, nothing out of order.

use std::time::Duration;

use bulbil_core::wire::EndReason;

use super::pipes::Read;
use super::stream::SimStream;
use super::world::World;

/// What a target does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Says back what it hears, to the end.
    Echo,
    /// Hears everything, says nothing, and finishes when the client has.
    Sink,
    /// Talks without end, and hears.
    Source,
    /// Says nothing and takes nothing.
    Deaf,
    /// When the client has finished, answers so many bytes and finishes.
    Serve(u64),
    /// Answers so many bytes and finishes at once; still hears.
    Answer(u64),
    /// Says something now and then, and finishes after the last time.
    Ticker {
        /// Between two answers.
        every: Duration,
        /// Bytes of one answer.
        size: u64,
        /// How many answers.
        count: u32,
    },
    /// Breaks the connection after so many bytes heard.
    Reset(u64),
    /// Cannot be reached.
    Unreached(EndReason),
    /// Never answers whether it can be reached.
    Silent,
}

/// The byte at `offset` of the stream that `key` names.
fn pattern(key: u64, offset: u64) -> u8 {
    let mut word = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (offset >> 3);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (word ^ (word >> 31)).to_le_bytes()[(offset & 7) as usize]
}

/// The first `len` bytes of the stream that `key` names.
pub(super) fn beginning(key: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|offset| pattern(key, offset)).collect()
}

/// How what was heard has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The other side has finished.
    End,
    /// The connection broke.
    Broken,
}

/// An application or a target.
pub struct Actor {
    stream: Option<SimStream>,
    speaks: u64,
    said: u64,
    /// Bytes to say in all, so far as is known.
    to_say: u64,
    hears: u64,
    heard: u64,
    heard_end: Option<Heard>,
    listening: bool,
    echo: bool,
    /// Bytes to add once the other side has finished.
    answer: u64,
    finish: Finish,
    finished: bool,
    reset_after: Option<u64>,
    /// Whoever is at the other end may say anything.
    wary: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finish {
    Never,
    WhenSaid,
    WhenHeard,
}

impl Actor {
    pub(super) const fn app(
        stream: Option<SimStream>,
        speaks: u64,
        hears: u64,
        first: u64,
        to_say: u64,
        finish: bool,
    ) -> Self {
        Self {
            stream,
            speaks,
            said: first,
            to_say,
            hears,
            heard: 0,
            heard_end: None,
            listening: true,
            echo: false,
            answer: 0,
            finish: if finish { Finish::WhenSaid } else { Finish::Never },
            finished: false,
            reset_after: None,
            wary: false,
        }
    }

    pub(super) const fn target(stream: SimStream, speaks: u64, hears: u64, behaviour: Behaviour) -> Self {
        let mut this = Self::app(Some(stream), speaks, hears, 0, 0, false);
        match behaviour {
            Behaviour::Echo => {
                this.echo = true;
                this.finish = Finish::WhenHeard;
            }
            Behaviour::Sink => this.finish = Finish::WhenHeard,
            Behaviour::Source => this.to_say = u64::MAX,
            Behaviour::Deaf => this.listening = false,
            Behaviour::Serve(len) => {
                this.answer = len;
                this.finish = Finish::WhenHeard;
            }
            Behaviour::Answer(len) => {
                this.to_say = len;
                this.finish = Finish::WhenSaid;
            }
            Behaviour::Reset(after) => this.reset_after = Some(after),
            Behaviour::Ticker { .. } | Behaviour::Unreached(_) | Behaviour::Silent => {}
        }
        this
    }

    /// What comes from now on may be anything.
    pub(super) const fn doubt(&mut self) {
        self.wary = true;
    }

    pub(super) fn attach(&mut self, stream: SimStream) {
        self.stream = Some(stream);
    }

    /// Bytes said so far; the connection may still hold some.
    #[must_use]
    pub const fn said(&self) -> u64 {
        self.said
    }

    /// Bytes heard so far, all of them right.
    #[must_use]
    pub const fn heard(&self) -> u64 {
        self.heard
    }

    /// How what was heard has ended, once it has.
    #[must_use]
    pub const fn heard_end(&self) -> Option<Heard> {
        self.heard_end
    }

    /// Whether nothing more is said.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.finished
    }

    pub(super) const fn say_more(&mut self, len: u64, last: bool) {
        self.to_say = self.to_say.saturating_add(len);
        if last {
            self.finish = Finish::WhenSaid;
        }
    }

    pub(super) const fn listen(&mut self, listening: bool) {
        self.listening = listening;
    }

    /// Does what can be done now.
    pub(super) fn run(&mut self, world: &mut World) {
        let Some(end) = self.stream.as_ref().map(SimStream::id) else { return };
        let mut buffer = [0; 4096];
        while self.listening && self.heard_end.is_none() {
            match world.read(end, &mut buffer) {
                Read::Pending => break,
                Read::Broken => self.heard_end = Some(Heard::Broken),
                Read::End => {
                    self.heard_end = Some(Heard::End);
                    self.to_say = self.to_say.saturating_add(std::mem::take(&mut self.answer));
                }
                Read::Bytes(len) => {
                    for (&byte, offset) in buffer[..len].iter().zip(self.heard..) {
                        let right = self.wary || byte == pattern(self.hears, offset);
                        assert!(right, "byte {offset} of stream {} is wrong", self.hears);
                    }
                    self.heard += len as u64;
                    if self.echo {
                        self.to_say += len as u64;
                    }
                    if self.reset_after.is_some_and(|after| self.heard >= after) {
                        world.cut(end);
                    }
                }
            }
        }
        if self.finished {
            return;
        }
        while self.said < self.to_say {
            let len = (self.to_say - self.said).min(buffer.len() as u64) as usize;
            for (place, offset) in buffer[..len].iter_mut().zip(self.said..) {
                *place = pattern(self.speaks, offset);
            }
            match world.write(end, &buffer[..len]) {
                None => {
                    // Nobody listens; what else there was to say does not matter.
                    self.finished = true;
                    return;
                }
                Some(0) => return,
                Some(written) => self.said += written as u64,
            }
        }
        let finish = match self.finish {
            Finish::Never => false,
            Finish::WhenSaid => true,
            Finish::WhenHeard => self.heard_end.is_some(),
        };
        if finish {
            self.finished = true;
            world.finish(end);
        }
    }
}
