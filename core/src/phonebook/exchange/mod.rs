//! The exchange of descriptors between nodes, `PROTOCOL.md` section 18.3: a conversation with the service `phonebook`, one request and one answer.
//!
//! The answerer reads a [`Request`] of bounded length, draws a sample ([`draw_sample`]) of what its phonebook's owner wants to pass on and the
//! request's [`Filter`] does not hold, and lets an [`AnswerWriter`] turn it into bytes. The asker feeds what comes to an [`AnswerReader`], which gives one
//! descriptor after the other, and says of each what it makes of it; what is refused is counted by kind in a [`Tally`]. What the asker
//! tells of itself is a matter of its [`Disclosure`]; when to ask, and when to test a node, a [`Pace`] says. Nothing here keeps descriptors: an answer of 240 KB passes through the room of one.

mod answer;
mod disclosure;
mod draw;
mod filter;
mod pace;
mod reader;
mod request;
mod tally;

pub use answer::{AnswerWriter, with_own};
pub use disclosure::{Disclosure, Held, is_joining};
pub use draw::draw_sample;
pub use filter::{FILTER_MAX_LEN, FILTER_NODES_MAX, Filter, FilterBuilder, SALT_LEN, Salt, filter_len};
pub use pace::{Due, Exchanged, Pace, Settings, TestLoad};
pub use reader::AnswerReader;
pub use request::{REQUEST_MAX_LEN, Request, SampleKind};
pub use tally::{Refused, Tally, is_validity_fault};

use crate::wire::WireError;
use crate::wire::descriptor::DESCRIPTOR_MAX_LEN;

/// The version of request and answer.
pub const EXCHANGE_VERSION: u8 = 1;

/// Bytes of a length before a descriptor.
const LENGTH_LEN: usize = 2;
/// Bytes of an answer before its descriptors: version and count.
const ANSWER_HEADER_LEN: usize = 2;
/// Longest descriptor with its length, in bytes.
const ENTRY_MAX_LEN: usize = LENGTH_LEN + DESCRIPTOR_MAX_LEN;

/// Longest answer in bytes.
pub const ANSWER_MAX_LEN: usize = ANSWER_HEADER_LEN + Want::MAX.value() as usize * ENTRY_MAX_LEN;

/// The most descriptors that an asker takes in one answer, 1 to 128.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Want(core::num::NonZeroU8);

impl Want {
    /// As many as an answer can hold.
    pub const MAX: Self = match Self::new(128) {
        Some(want) => want,
        None => panic!("128 is in range"),
    };

    /// `number` descriptors; `None` if that is not 1 to 128.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        match core::num::NonZeroU8::new(number) {
            Some(number) if number.get() <= 128 => Some(Self(number)),
            _ => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn value(self) -> u8 {
        self.0.get()
    }

    fn from_code(code: u8) -> Result<Self, WireError> {
        Self::new(code).ok_or(WireError::Invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wants_are_1_to_128() {
        for number in 0..=u8::MAX {
            assert_eq!(Want::new(number).map(Want::value), (1..=128).contains(&number).then_some(number));
            assert_eq!(Want::from_code(number).is_ok(), (1..=128).contains(&number));
        }
    }

    #[test]
    fn sizes_are_pinned() {
        assert_eq!(ANSWER_MAX_LEN, 243_330);
        assert_eq!(REQUEST_MAX_LEN, 6010);
        assert!(size_of::<AnswerReader>() <= 2064, "{}", size_of::<AnswerReader>());
        assert!(size_of::<AnswerWriter>() <= 1968, "{}", size_of::<AnswerWriter>());
    }
}
