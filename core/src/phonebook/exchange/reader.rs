//! An answer as it comes, in pieces of any size: one descriptor after the other, in the room of one. `PROTOCOL.md` section 18.3.

use super::{ANSWER_HEADER_LEN, EXCHANGE_VERSION, Exchanged, LENGTH_LEN, Refused, Tally, Want};
use crate::wire::descriptor::{DESCRIPTOR_MAX_LEN, DESCRIPTOR_MIN_LEN};
use crate::wire::{Descriptor, NodeId};

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Version and count.
    Header,
    /// The length of a descriptor.
    Length,
    /// A descriptor of so many bytes.
    Body(usize),
    /// FIN.
    Complete,
    /// Nothing that would be looked at.
    Stopped(Refused),
}

/// Reads an answer.
///
/// The owner calls [`AnswerReader::read`] with what has come, and again until that answers `None`. It verifies each descriptor that it is
/// given and says with [`AnswerReader::judge`] what became of it. With the end of what comes it calls [`AnswerReader::finish`]. What was
/// taken before a refusal stays taken.
pub struct AnswerReader {
    want: Want,
    stage: Stage,
    buffer: [u8; DESCRIPTOR_MAX_LEN],
    /// Bytes of `buffer` that have come.
    filled: usize,
    count: u8,
    /// Descriptors that are still to come.
    left: u8,
    last: Option<NodeId>,
    tally: Tally,
}

impl AnswerReader {
    /// Nothing has come yet.
    #[must_use]
    pub fn new(want: Want) -> Self {
        Self {
            want,
            stage: Stage::Header,
            buffer: [0; DESCRIPTOR_MAX_LEN],
            filled: 0,
            count: 0,
            left: 0,
            last: None,
            tally: Tally::default(),
        }
    }

    /// Takes bytes off the front of `input`, up to the end of a descriptor. `None`: everything was taken and more must come.
    ///
    /// The descriptor parses, and its node id is greater than those before; whether it is signed and valid is for the owner to find out.
    ///
    /// # Errors
    /// The answer is refused: what comes from now on is not looked at, and every further call answers the same.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<(NodeId, Descriptor)>, Refused> {
        loop {
            let need = match self.stage {
                Stage::Header => ANSWER_HEADER_LEN,
                Stage::Length => LENGTH_LEN,
                Stage::Body(len) => len,
                Stage::Complete if input.is_empty() => return Ok(None),
                Stage::Complete => return Err(self.stop(Refused::Trailing)),
                Stage::Stopped(refused) => return Err(refused),
            };
            if !self.gather(need, input) {
                return Ok(None);
            }
            match self.stage {
                Stage::Header => self.begin()?,
                Stage::Length => self.expect_body()?,
                _ => return self.take_body(need).map(Some),
            }
        }
    }

    /// Moves bytes into the buffer until it holds `need`; answers whether it does. If so, the next call begins anew.
    fn gather(&mut self, need: usize, input: &mut &[u8]) -> bool {
        let missing = need.saturating_sub(self.filled).min(input.len());
        let (head, rest) = input.split_at(missing);
        if let Some(place) = self.buffer.get_mut(self.filled..self.filled + missing) {
            place.copy_from_slice(head);
        }
        *input = rest;
        self.filled += missing;
        let whole = self.filled == need;
        if whole {
            self.filled = 0;
        }
        whole
    }

    fn begin(&mut self) -> Result<(), Refused> {
        let [version, count, ..] = self.buffer;
        if version != EXCHANGE_VERSION {
            return Err(self.stop(Refused::Version));
        }
        if count > self.want.value() {
            return Err(self.stop(Refused::TooMany));
        }
        (self.count, self.left) = (count, count);
        self.stage = self.after_body();
        Ok(())
    }

    const fn after_body(&self) -> Stage {
        if self.left == 0 { Stage::Complete } else { Stage::Length }
    }

    fn expect_body(&mut self) -> Result<(), Refused> {
        let [high, low, ..] = self.buffer;
        let len = usize::from(u16::from_be_bytes([high, low]));
        if !(DESCRIPTOR_MIN_LEN..=DESCRIPTOR_MAX_LEN).contains(&len) {
            return Err(self.stop(Refused::Malformed));
        }
        self.stage = Stage::Body(len);
        Ok(())
    }

    fn take_body(&mut self, len: usize) -> Result<(NodeId, Descriptor), Refused> {
        let parsed = Descriptor::parse(self.buffer.get(..len).unwrap_or_default());
        let descriptor = parsed.map_err(|_| self.stop(Refused::Malformed))?;
        let node = descriptor.node_id();
        if self.last.is_some_and(|last| node <= last) {
            return Err(self.stop(Refused::Unordered));
        }
        self.last = Some(node);
        self.left = self.left.saturating_sub(1);
        self.stage = self.after_body();
        Ok((node, descriptor))
    }

    /// What became of the descriptor that was read last: taken, or refused.
    ///
    /// # Errors
    /// The same refusal, if it is the answerer's fault ([`Refused::is_fault`]): the rest is refused with it.
    pub fn judge(&mut self, verdict: Result<(), Refused>) -> Result<(), Refused> {
        match verdict {
            Ok(()) => self.tally.take(),
            Err(refused) if refused.is_fault() => return Err(self.stop(refused)),
            Err(refused) => self.pass_over(refused),
        }
        Ok(())
    }

    /// The descriptor that was read last is refused, and nobody blamed: a validity, for one, while our own clock is in doubt.
    pub fn pass_over(&mut self, refused: Refused) {
        self.tally.refuse(refused);
    }

    /// Nothing more comes.
    ///
    /// # Errors
    /// The answer is not whole, or was refused before.
    pub fn finish(&mut self) -> Result<(), Refused> {
        match self.stage {
            Stage::Complete => Ok(()),
            Stage::Stopped(refused) => Err(refused),
            Stage::Header | Stage::Length | Stage::Body(_) => Err(self.stop(Refused::CutOff)),
        }
    }

    fn stop(&mut self, refused: Refused) -> Refused {
        if let Stage::Stopped(first) = self.stage {
            return first;
        }
        self.tally.refuse(refused);
        self.stage = Stage::Stopped(refused);
        refused
    }

    /// Whether every descriptor has been read.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.stage == Stage::Complete
    }

    /// What a whole answer comes to: whether it is worth while to ask again soon. It is if there were as many descriptors as were wanted and at least a
    /// quarter of them was taken: who does not say all that it knows, or cannot, is told of known nodes however few it lacks.
    #[must_use]
    pub const fn outcome(&self) -> Exchanged {
        if self.is_full() && 4 * self.tally.taken() >= self.count as u64 { Exchanged::Full } else { Exchanged::Partial }
    }

    /// Whether the answer has as many descriptors as were wanted.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.count == self.want.value()
    }

    /// What was taken and refused of this answer.
    #[must_use]
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::super::super::testing::{card, descriptor};
    use super::*;

    /// Descriptors in the order of their node ids.
    fn descriptors(count: u16) -> Vec<Descriptor> {
        let mut descriptors: Vec<_> = (0..count).map(descriptor).collect();
        descriptors.sort_by_key(Descriptor::node_id);
        descriptors
    }

    /// An answer with these descriptors, whatever their order, that announces `count`.
    fn answer(count: usize, descriptors: &[Descriptor]) -> Vec<u8> {
        let mut answer = Vec::from([1, count as u8]);
        for descriptor in descriptors {
            let mut bytes = [0; DESCRIPTOR_MAX_LEN];
            let len = descriptor.emit(&mut bytes).unwrap();
            answer.extend_from_slice(&(len as u16).to_be_bytes());
            answer.extend_from_slice(&bytes[..len]);
        }
        answer
    }

    fn want(number: u8) -> Want {
        Want::new(number).unwrap()
    }

    /// Feeds it in pieces; answers what was read, how it ended and what was counted.
    fn feed(want: Want, bytes: &[u8], piece: usize) -> (Vec<NodeId>, Result<(), Refused>, Tally) {
        let mut reader = AnswerReader::new(want);
        let mut nodes = Vec::new();
        let mut read = || {
            for mut piece in bytes.chunks(piece) {
                while let Some((node, descriptor)) = reader.read(&mut piece)? {
                    assert_eq!(node, descriptor.node_id());
                    nodes.push(node);
                    reader.judge(Ok(()))?;
                }
                assert!(piece.is_empty(), "everything is taken");
            }
            reader.finish()
        };
        let ended = read();
        if let Err(refused) = ended {
            assert_eq!(reader.read(&mut &bytes[..]).map(|_| ()), Err(refused), "stays refused");
            assert_eq!(reader.finish(), Err(refused));
            assert_eq!(reader.judge(Err(Refused::Signature)), Err(refused));
        }
        (nodes, ended, *reader.tally())
    }

    fn refusal(want: Want, bytes: &[u8]) -> (usize, Option<Refused>) {
        let whole = feed(want, bytes, bytes.len().max(1));
        assert_eq!(feed(want, bytes, 1), whole, "pieces make no difference");
        let (nodes, ended, tally) = whole;
        assert_eq!(tally.taken(), nodes.len() as u64);
        assert_eq!(tally.iter().map(|(_, count)| count).sum::<u64>(), u64::from(ended.is_err()), "counted once");
        if let Err(refused) = ended {
            assert_eq!(tally.refused(refused), 1);
        }
        (nodes.len(), ended.err())
    }

    #[test]
    fn takes_what_is_in_order() {
        for count in [0, 1, 5] {
            let bytes = answer(count, &descriptors(count as u16));
            assert_eq!(refusal(want(5), &bytes), (count, None));
        }
    }

    #[test]
    fn refuses_each_fault_by_its_name_and_keeps_what_came_before() {
        let good = descriptors(3);
        let bytes = answer(3, &good);
        let mut other_version = bytes.clone();
        other_version[0] = 2;
        assert_eq!(refusal(want(3), &other_version), (0, Some(Refused::Version)));
        assert_eq!(refusal(want(2), &bytes), (0, Some(Refused::TooMany)));
        for (order, taken) in [([1, 0, 2], 1), ([0, 2, 1], 2)] {
            let bytes = answer(3, &order.map(|at: usize| good[at].clone()));
            assert_eq!(refusal(want(3), &bytes), (taken, Some(Refused::Unordered)));
        }
        let twice = answer(2, &[good[0].clone(), good[0].clone()]);
        assert_eq!(refusal(want(3), &twice), (1, Some(Refused::Unordered)));
        let mut malformed = answer(2, &good[..2]);
        let second = 2 + (malformed.len() - 2) / 2;
        malformed[second + 2] = 9;
        assert_eq!(refusal(want(3), &malformed), (1, Some(Refused::Malformed)));
        for byte in [0, 1, 0xff] {
            let mut longer = bytes.clone();
            longer.push(byte);
            assert_eq!(refusal(want(3), &longer), (3, Some(Refused::Trailing)));
        }
        assert_eq!(refusal(want(3), &answer(2, &good)), (2, Some(Refused::Trailing)));
    }

    #[test]
    fn every_answer_that_ends_early_is_cut_off() {
        let bytes = answer(2, &descriptors(2));
        let entry = (bytes.len() - 2) / 2;
        for len in 0..bytes.len() {
            let whole = len.saturating_sub(2) / entry;
            assert_eq!(feed(want(2), &bytes[..len], 700).1, Err(Refused::CutOff), "{len}");
            assert_eq!(feed(want(2), &bytes[..len], 700).0.len(), whole, "{len}");
        }
    }

    #[test]
    fn an_impossible_length_is_refused_before_its_bytes_come() {
        for len in [0, 1, DESCRIPTOR_MIN_LEN - 1, DESCRIPTOR_MAX_LEN + 1, 0xffff] {
            let [high, low] = (len as u16).to_be_bytes();
            assert_eq!(refusal(want(1), &[1, 1, high, low]), (0, Some(Refused::Malformed)), "{len}");
        }
        for len in [DESCRIPTOR_MIN_LEN, DESCRIPTOR_MAX_LEN] {
            let [high, low] = (len as u16).to_be_bytes();
            assert_eq!(refusal(want(1), &[1, 1, high, low]), (0, Some(Refused::CutOff)), "{len}");
        }
    }

    #[test]
    fn verdicts_are_counted_and_only_faults_end_the_reading() {
        let bytes = answer(3, &descriptors(3));
        for kind in Refused::ALL {
            let mut reader = AnswerReader::new(want(3));
            let mut rest = &bytes[..];
            assert!(reader.read(&mut rest).unwrap().is_some());
            assert_eq!(reader.judge(Err(kind)), if kind.is_fault() { Err(kind) } else { Ok(()) });
            assert_eq!(reader.read(&mut rest).is_err(), kind.is_fault());
            assert_eq!((reader.tally().refused(kind), reader.tally().taken()), (1, 0));
        }
        let mut in_doubt = AnswerReader::new(want(3));
        let mut rest = &bytes[..];
        for _ in 0..3 {
            assert!(in_doubt.read(&mut rest).unwrap().is_some());
            in_doubt.pass_over(Refused::Validity);
        }
        assert_eq!(in_doubt.finish(), Ok(()));
        assert_eq!(in_doubt.tally().refused(Refused::Validity), 3);
    }

    #[test]
    fn full_answers_and_complete_ones_are_told_apart() {
        let bytes = answer(2, &descriptors(2));
        for (wanted, full) in [(2, true), (3, false)] {
            let mut reader = AnswerReader::new(want(wanted));
            let mut rest = &bytes[..bytes.len() - 1];
            while reader.read(&mut rest).unwrap().is_some() {}
            assert!(!reader.is_complete());
            let mut rest = &bytes[bytes.len() - 1..];
            assert_eq!(reader.read(&mut rest).unwrap().unwrap().0, card(0).node().max(card(1).node()));
            assert!(reader.is_complete());
            assert_eq!(reader.is_full(), full);
        }
        assert!(!AnswerReader::new(want(1)).is_full());
    }

    #[test]
    fn more_is_to_be_had_where_a_quarter_was_new() {
        let bytes = answer(5, &descriptors(5));
        for (wanted, taken, outcome) in [
            (5, 0, Exchanged::Partial),
            (5, 1, Exchanged::Partial),
            (5, 2, Exchanged::Full),
            (5, 5, Exchanged::Full),
            (6, 5, Exchanged::Partial),
        ] {
            let mut reader = AnswerReader::new(want(wanted));
            let mut rest = &bytes[..];
            for at in 0..5 {
                assert!(reader.read(&mut rest).unwrap().is_some());
                reader.judge(if at < taken { Ok(()) } else { Err(Refused::NotNewer) }).unwrap();
            }
            assert_eq!(reader.outcome(), outcome, "{taken} of {wanted}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn pieces_make_no_difference_whatever_comes(
            spoil in proptest::collection::vec((0usize..6000, any::<u8>()), 0..3),
            piece in 1usize..3000,
            cut in 0usize..6000,
        ) {
            let mut bytes = answer(3, &descriptors(3));
            bytes.truncate(cut.max(1));
            for (at, byte) in spoil {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            prop_assert_eq!(feed(want(3), &bytes, piece), feed(want(3), &bytes, bytes.len()));
        }
    }
}
