//! An answer in the making: the descriptors of a sample, one after the other, into output of any size. `PROTOCOL.md` section 18.3.

use core::ops::Range;

use super::{ANSWER_HEADER_LEN, ENTRY_MAX_LEN, EXCHANGE_VERSION, LENGTH_LEN, Want};
use crate::phonebook::VerifiedDescriptor;
use crate::wire::{NodeId, WireError};

/// A sample with the answerer's own descriptor at its place among them. Both are in ascending order of node ids, and so is what comes out; a
/// sample should have one less than is wanted.
pub fn with_own<'d>(
    sample: impl Iterator<Item = &'d VerifiedDescriptor>,
    own: Option<&'d VerifiedDescriptor>,
) -> impl Iterator<Item = &'d VerifiedDescriptor> {
    let mut sample = sample.peekable();
    let mut own = own;
    core::iter::from_fn(move || {
        let own_first = match (sample.peek(), own) {
            (Some(next), Some(own)) => own.node() < next.node(),
            (next, _) => next.is_none(),
        };
        if own_first { own.take() } else { sample.next() }
    })
}

/// Turns descriptors into an answer: [`AnswerWriter::write`] gives bytes until it has none, then [`AnswerWriter::push`] gives it the next
/// descriptor. One that is being sent is held here, so the phonebook need not be.
pub struct AnswerWriter {
    /// Descriptors that are still to come.
    left: u8,
    last: Option<NodeId>,
    entry: [u8; ENTRY_MAX_LEN],
    /// What of `entry` is still to be written.
    pending: Range<usize>,
}

impl AnswerWriter {
    /// An answer of `count` descriptors to who wants `want`; `None` if those are more.
    #[must_use]
    pub fn new(count: usize, want: Want) -> Option<Self> {
        let count = u8::try_from(count).ok().filter(|&count| count <= want.value())?;
        let mut entry = [0; ENTRY_MAX_LEN];
        let header = entry.first_chunk_mut::<ANSWER_HEADER_LEN>()?;
        *header = [EXCHANGE_VERSION, count];
        Some(Self { left: count, last: None, entry, pending: 0..ANSWER_HEADER_LEN })
    }

    /// Moves what is to be said next to the front of `out`, and answers how many bytes that is: none only if `out` is empty, a descriptor is
    /// needed or the answer is complete.
    pub fn write(&mut self, out: &mut [u8]) -> usize {
        let rest = self.entry.get(self.pending.clone()).unwrap_or_default();
        let len = rest.len().min(out.len());
        if let (Some(out), Some(rest)) = (out.get_mut(..len), rest.get(..len)) {
            out.copy_from_slice(rest);
        }
        self.pending.start += len;
        len
    }

    /// Whether it is time for [`AnswerWriter::push`].
    #[must_use]
    pub fn needs_descriptor(&self) -> bool {
        self.pending.is_empty() && self.left > 0
    }

    /// Whether everything has been written: FIN follows.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.pending.is_empty() && self.left == 0
    }

    /// Takes the next descriptor.
    ///
    /// # Errors
    /// [`WireError::Invalid`] if it is not needed now or its node id is not greater than the one before; nothing is changed. The conversation
    /// can only be ended then, for the count has been said.
    pub fn push(&mut self, card: &VerifiedDescriptor) -> Result<(), WireError> {
        if !self.needs_descriptor() || self.last.is_some_and(|last| card.node() <= last) {
            return Err(WireError::Invalid);
        }
        let (length, place) = self.entry.split_first_chunk_mut::<LENGTH_LEN>().ok_or(WireError::NoRoom)?;
        let len = card.descriptor().emit(place)?;
        *length = u16::try_from(len).map_err(|_| WireError::Invalid)?.to_be_bytes();
        self.pending = 0..LENGTH_LEN + len;
        self.last = Some(card.node());
        self.left -= 1;
        Ok(())
    }

    /// Does both as far as `out` has room: answers how many bytes that is, none if `out` is empty or the answer is complete.
    ///
    /// # Errors
    /// As [`AnswerWriter::push`], and [`WireError::Truncated`] if there are fewer descriptors than were announced.
    pub fn fill<'d>(
        &mut self,
        cards: &mut impl Iterator<Item = &'d VerifiedDescriptor>,
        out: &mut [u8],
    ) -> Result<usize, WireError> {
        let mut len = 0;
        while let Some(room) = out.get_mut(len..).filter(|room| !room.is_empty())
            && !self.is_complete()
        {
            if self.needs_descriptor() {
                self.push(cards.next().ok_or(WireError::Truncated)?)?;
            }
            len += self.write(room);
        }
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::super::super::testing::card;
    use super::super::{ANSWER_MAX_LEN, AnswerReader};
    use super::*;

    /// So many cards in ascending order.
    fn cards(count: u16) -> Vec<VerifiedDescriptor> {
        let mut cards: Vec<_> = (0..count).map(card).collect();
        cards.sort_by_key(VerifiedDescriptor::node);
        cards
    }

    fn want(number: u8) -> Want {
        Want::new(number).unwrap()
    }

    fn whole(cards: &[VerifiedDescriptor]) -> Vec<u8> {
        let mut bytes = vec![0; ANSWER_MAX_LEN + 1];
        let mut writer = AnswerWriter::new(cards.len(), Want::MAX).unwrap();
        let len = writer.fill(&mut cards.iter(), &mut bytes).unwrap();
        assert!(writer.is_complete());
        bytes.truncate(len);
        bytes
    }

    #[test]
    fn layout_is_as_specified() {
        assert_eq!(whole(&[]), [1, 0]);
        let cards = cards(2);
        let mut expected = vec![1, 2];
        for card in &cards {
            let mut bytes = [0; 2000];
            let len = card.descriptor().emit(&mut bytes).unwrap();
            expected.extend_from_slice(&(len as u16).to_be_bytes());
            expected.extend_from_slice(&bytes[..len]);
        }
        assert_eq!(whole(&cards), expected);
    }

    #[test]
    fn no_more_than_is_wanted_and_in_order() {
        assert!(AnswerWriter::new(3, want(3)).is_some());
        assert!(AnswerWriter::new(4, want(3)).is_none() && AnswerWriter::new(256, Want::MAX).is_none());
        let cards = cards(3);
        let mut writer = AnswerWriter::new(3, want(3)).unwrap();
        assert_eq!(writer.push(&cards[0]), Err(WireError::Invalid), "the header first");
        let mut out = [0; 4000];
        assert_eq!(writer.write(&mut out), 2);
        assert_eq!(writer.write(&mut out), 0);
        assert_eq!(writer.push(&cards[1]), Ok(()));
        assert_eq!(writer.push(&cards[2]), Err(WireError::Invalid), "one at a time");
        let len = writer.write(&mut out);
        assert_eq!(len, usize::from(u16::from_be_bytes([out[0], out[1]])) + 2);
        assert_eq!(writer.push(&cards[0]), Err(WireError::Invalid), "descending");
        assert_eq!(writer.push(&cards[1]), Err(WireError::Invalid), "twice");
        assert!(writer.needs_descriptor() && !writer.is_complete());
        assert_eq!(writer.push(&cards[2]), Ok(()));
    }

    #[test]
    fn a_sample_that_ends_early_is_an_error() {
        let cards = cards(2);
        let mut writer = AnswerWriter::new(3, want(3)).unwrap();
        assert_eq!(writer.fill(&mut cards.iter(), &mut [0; 8000]), Err(WireError::Truncated));
        let mut none = AnswerWriter::new(0, want(3)).unwrap();
        assert_eq!(none.fill(&mut cards.iter(), &mut []), Ok(0));
        assert_eq!(none.fill(&mut cards.iter(), &mut [0; 8000]), Ok(2));
        assert_eq!(none.fill(&mut cards.iter(), &mut [0; 8000]), Ok(0));
    }

    #[test]
    fn ones_own_descriptor_takes_its_place() {
        let cards = cards(5);
        for own in 0..5 {
            let sample = cards.iter().enumerate().filter(|(at, _)| *at != own).map(|(_, card)| card);
            let merged: Vec<_> = with_own(sample, Some(&cards[own])).map(VerifiedDescriptor::node).collect();
            assert_eq!(merged, cards.iter().map(VerifiedDescriptor::node).collect::<Vec<_>>());
        }
        assert_eq!(with_own(cards.iter(), None).count(), 5);
        assert_eq!(with_own([].iter(), Some(&cards[0])).count(), 1);
        assert_eq!(with_own([].iter(), None).count(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn comes_out_the_same_in_pieces_of_any_size(count in 0u16..6, sizes in proptest::collection::vec(1usize..3000, 1..20)) {
            let cards = cards(count);
            let whole = whole(&cards);
            let mut writer = AnswerWriter::new(cards.len(), Want::MAX).unwrap();
            let mut source = cards.iter();
            let mut pieces = Vec::new();
            for size in sizes.iter().cycle() {
                let mut out = vec![0; *size];
                let len = writer.fill(&mut source, &mut out).unwrap();
                pieces.extend_from_slice(&out[..len]);
                if len < *size {
                    break;
                }
            }
            prop_assert!(writer.is_complete());
            prop_assert_eq!(&pieces, &whole);
            let mut reader = AnswerReader::new(Want::MAX);
            let mut rest = &whole[..];
            for card in &cards {
                let (node, descriptor) = reader.read(&mut rest).unwrap().unwrap();
                prop_assert_eq!((node, &descriptor), (card.node(), card.descriptor()));
            }
            prop_assert!(reader.read(&mut rest).unwrap().is_none());
            prop_assert_eq!(reader.finish(), Ok(()));
        }
    }
}
