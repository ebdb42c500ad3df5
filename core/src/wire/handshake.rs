//! What the two sides of a link tell each other first, `PROTOCOL.md` sections 4.1 and 5: the answerer in the payload of
//! the handshake's second message ([`Answer`]), the connector in its first cell ([`Hello`]).

use core::num::{NonZeroU16, NonZeroU32};

use super::cell::{BODY_LEN, CELL_LEN, CellBody};
use super::descriptor::{DESCRIPTOR_MAX_LEN, DESCRIPTOR_MIN_LEN};
use super::{ProtocolVersion, Reader, UnixTime, WireError, Writer};

/// Bytes of an [`Answer`] before its descriptor.
const ANSWER_FIXED_LEN: usize = 2 + 8 + 2 + 2 + 4;
/// Longest encoded [`Answer`] in bytes.
pub const ANSWER_MAX_LEN: usize = ANSWER_FIXED_LEN + DESCRIPTOR_MAX_LEN;

/// How many cells one record may carry, 1 to 127.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordCells(NonZeroU16);

impl RecordCells {
    /// The most cells whose ciphertext still has a 16-bit length, `RECORD_CELLS_MAX` of section 1.
    pub const MAX: Self = Self(NonZeroU16::new(127).expect("not 0"));
    /// One cell in a record, for a node short of memory.
    pub const MIN: Self = Self(NonZeroU16::MIN);

    /// `cells` in a record, or `None` if that is not 1 to 127.
    #[must_use]
    pub const fn new(cells: u16) -> Option<Self> {
        match NonZeroU16::new(cells) {
            Some(cells) if cells.get() <= Self::MAX.0.get() => Some(Self(cells)),
            _ => None,
        }
    }

    /// The number of cells.
    #[must_use]
    pub const fn value(self) -> u16 {
        self.0.get()
    }
}

const _: () = {
    let cells = RecordCells::MAX.value() as usize;
    assert!(cells * CELL_LEN + 16 <= u16::MAX as usize && (cells + 1) * CELL_LEN + 16 > u16::MAX as usize);
};

/// Cells that the other side may send on a new circuit before it is granted more, 1 to 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InitialCredit(NonZeroU16);

impl InitialCredit {
    /// The largest initial credit.
    pub const MAX: Self = Self(NonZeroU16::new(1024).expect("not 0"));

    /// A credit of `cells`, or `None` if that is not 1 to 1024.
    #[must_use]
    pub const fn new(cells: u16) -> Option<Self> {
        match NonZeroU16::new(cells) {
            Some(cells) if cells.get() <= Self::MAX.0.get() => Some(Self(cells)),
            _ => None,
        }
    }

    /// The number of cells.
    #[must_use]
    pub const fn value(self) -> u16 {
        self.0.get()
    }
}

/// How many circuits the connector may have open on the link at once, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CircuitLimit(NonZeroU32);

impl CircuitLimit {
    /// At most `circuits`, or `None` for 0.
    #[must_use]
    pub const fn new(circuits: u32) -> Option<Self> {
        match NonZeroU32::new(circuits) {
            Some(circuits) => Some(Self(circuits)),
            None => None,
        }
    }

    /// The number of circuits.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0.get()
    }
}

/// What a side is willing to receive on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkLimits {
    /// The most cells in one record that it accepts.
    pub record_cells: RecordCells,
    /// What it lets the other side send on every new circuit: forward credit from the answerer, backward credit from
    /// the connector.
    pub credit: InitialCredit,
}

impl LinkLimits {
    fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            record_cells: RecordCells::new(reader.u16()?).ok_or(WireError::Invalid)?,
            credit: InitialCredit::new(reader.u16()?).ok_or(WireError::Invalid)?,
        })
    }

    fn emit(self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        writer.put(&self.record_cells.value().to_be_bytes())?;
        writer.put(&self.credit.value().to_be_bytes())
    }
}

/// Takes the version of the link, which is that of this crate or the link cannot be used.
fn parse_version(reader: &mut Reader<'_>) -> Result<(), WireError> {
    match ProtocolVersion::parse(reader)? {
        ProtocolVersion::V1 => Ok(()),
        _ => Err(WireError::UnknownCode),
    }
}

/// The payload of the handshake's second message, from the answerer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The answerer's clock.
    pub time: UnixTime,
    /// What the answerer receives.
    pub limits: LinkLimits,
    /// How many circuits the connector may have open.
    pub circuits: CircuitLimit,
    /// The answerer's descriptor, not yet parsed; its length is one that a descriptor can have.
    pub descriptor: &'a [u8],
}

impl<'a> Answer<'a> {
    /// Reads the whole payload.
    ///
    /// # Errors
    /// Another version ([`WireError::UnknownCode`]), limits out of range, a descriptor that is too short or too long to
    /// be one.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        parse_version(&mut reader)?;
        let time = UnixTime(reader.u64()?);
        let limits = LinkLimits::parse(&mut reader)?;
        let circuits = CircuitLimit::new(reader.u32()?).ok_or(WireError::Invalid)?;
        let descriptor = reader.rest();
        check_descriptor_len(descriptor)?;
        Ok(Self { time, limits, circuits, descriptor })
    }

    /// Writes the payload and returns its length in bytes.
    ///
    /// # Errors
    /// [`WireError::NoRoom`]; [`WireError::Truncated`] or [`WireError::Trailing`] for a descriptor whose length no
    /// descriptor has.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<usize, WireError> {
        check_descriptor_len(self.descriptor)?;
        let mut writer = Writer::new(buffer);
        writer.put(&ProtocolVersion::V1.value().to_be_bytes())?;
        writer.put(&self.time.0.to_be_bytes())?;
        self.limits.emit(&mut writer)?;
        writer.put(&self.circuits.value().to_be_bytes())?;
        writer.put(self.descriptor)?;
        Ok(writer.len())
    }
}

const fn check_descriptor_len(descriptor: &[u8]) -> Result<(), WireError> {
    if descriptor.len() < DESCRIPTOR_MIN_LEN {
        Err(WireError::Truncated)
    } else if descriptor.len() > DESCRIPTOR_MAX_LEN {
        Err(WireError::Trailing)
    } else {
        Ok(())
    }
}

/// The body of the HELLO cell, from the connector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// What the connector receives.
    pub limits: LinkLimits,
}

const _: () = assert!(2 + 2 + 2 <= BODY_LEN);

impl Hello {
    /// Reads a HELLO cell's body.
    ///
    /// # Errors
    /// Another version ([`WireError::UnknownCode`]), limits out of range, non-zero padding.
    pub fn parse(body: &CellBody) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        parse_version(&mut reader)?;
        let limits = LinkLimits::parse(&mut reader)?;
        reader.end_zeros()?;
        Ok(Self { limits })
    }

    /// Writes a HELLO cell's body, padding included.
    pub fn emit(&self, body: &mut CellBody) {
        let mut writer = Writer::new(body);
        writer
            .put(&ProtocolVersion::V1.value().to_be_bytes())
            .and_then(|()| self.limits.emit(&mut writer))
            .expect("6 bytes fit into a cell's body");
        writer.zero_rest();
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::testing::assert_rejects_padding;

    fn any_limits() -> impl Strategy<Value = LinkLimits> {
        (1..=127u16, 1..=1024u16).prop_map(|(cells, credit)| LinkLimits {
            record_cells: RecordCells::new(cells).unwrap(),
            credit: InitialCredit::new(credit).unwrap(),
        })
    }

    const LIMITS: LinkLimits = LinkLimits { record_cells: RecordCells::MAX, credit: InitialCredit::MAX };

    fn answer(descriptor: &[u8]) -> Answer<'_> {
        Answer { time: UnixTime(5), limits: LIMITS, circuits: CircuitLimit::new(9).unwrap(), descriptor }
    }

    fn emitted(answer: &Answer<'_>) -> Vec<u8> {
        let mut buffer = [0xa5; ANSWER_MAX_LEN + 1];
        let len = answer.emit(&mut buffer).unwrap();
        assert_eq!(buffer[len], 0xa5);
        buffer[..len].to_vec()
    }

    #[test]
    fn answer_layout_is_as_specified() {
        let bytes = emitted(&answer(&[7; DESCRIPTOR_MIN_LEN]));
        assert_eq!(bytes[..19], [0, 1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 127, 4, 0, 0, 0, 0, 9, 7]);
    }

    #[test]
    fn answer_rejects_truncations_and_impossible_descriptors() {
        let shortest = emitted(&answer(&[7; DESCRIPTOR_MIN_LEN]));
        for len in 0..shortest.len() {
            assert_eq!(Answer::parse(&shortest[..len]), Err(WireError::Truncated));
        }
        let mut longest = emitted(&answer(&[7; DESCRIPTOR_MAX_LEN]));
        assert_eq!(longest.len(), ANSWER_MAX_LEN);
        longest.push(7);
        assert_eq!(Answer::parse(&longest), Err(WireError::Trailing));
        let mut buffer = [0; ANSWER_MAX_LEN];
        assert_eq!(answer(&[]).emit(&mut buffer), Err(WireError::Truncated));
        for len in 0..shortest.len() {
            assert_eq!(answer(&[7; DESCRIPTOR_MIN_LEN]).emit(&mut buffer[..len]), Err(WireError::NoRoom));
        }
    }

    #[test]
    fn limits_are_checked_at_both_ends() {
        let valid = emitted(&answer(&[7; DESCRIPTOR_MIN_LEN]));
        let spoilt: [(usize, &[u8], WireError); 8] = [
            (0, &[0, 0], WireError::Invalid),
            (0, &[0, 2], WireError::UnknownCode),
            (10, &[0, 0], WireError::Invalid),
            (10, &[0, 128], WireError::Invalid),
            (12, &[0, 0], WireError::Invalid),
            (12, &[4, 1], WireError::Invalid),
            (14, &[0, 0, 0, 0], WireError::Invalid),
            (10, &[1, 1], WireError::Invalid),
        ];
        for (position, bytes, error) in spoilt {
            let mut answer = valid.clone();
            answer[position..position + bytes.len()].copy_from_slice(bytes);
            assert_eq!(Answer::parse(&answer), Err(error), "{bytes:?} at {position}");
        }
        for number in 0..=u16::MAX {
            assert_eq!(RecordCells::new(number).is_some(), (1..=127).contains(&number));
            assert_eq!(InitialCredit::new(number).is_some(), (1..=1024).contains(&number));
        }
        assert_eq!(CircuitLimit::new(0), None);
    }

    #[test]
    fn hello_rejects_versions_limits_and_padding() {
        let mut body = [0xa5; BODY_LEN];
        Hello { limits: LIMITS }.emit(&mut body);
        assert_eq!(body[..7], [0, 1, 0, 127, 4, 0, 0]);
        assert_rejects_padding(&body, 6, |body| Hello::parse(body).map(|_| ()));
        for (position, bytes, error) in [
            (0, [0, 0], WireError::Invalid),
            (0, [1, 0], WireError::UnknownCode),
            (2, [0, 0], WireError::Invalid),
            (2, [0, 128], WireError::Invalid),
            (4, [0, 0], WireError::Invalid),
            (4, [4, 1], WireError::Invalid),
        ] {
            let mut spoilt = body;
            spoilt[position..position + 2].copy_from_slice(&bytes);
            assert_eq!(Hello::parse(&spoilt), Err(error), "{bytes:?} at {position}");
        }
    }

    #[test]
    fn sizes_are_pinned() {
        assert_eq!(size_of::<LinkLimits>(), 4);
        assert_eq!(size_of::<Option<Hello>>(), 4);
        assert!(size_of::<Answer<'_>>() <= 32);
    }

    proptest! {
        #[test]
        fn hello_round_trips(limits in any_limits()) {
            let mut body = [0xa5; BODY_LEN];
            Hello { limits }.emit(&mut body);
            prop_assert_eq!(Hello::parse(&body), Ok(Hello { limits }));
        }

        #[test]
        fn hello_has_no_second_spelling(start in any::<[u8; 7]>()) {
            let mut body = [0; BODY_LEN];
            body[..7].copy_from_slice(&start);
            if let Ok(hello) = Hello::parse(&body) {
                let mut again = [0xa5; BODY_LEN];
                hello.emit(&mut again);
                prop_assert_eq!(again, body);
            }
        }

        #[test]
        fn answer_round_trips(
            limits in any_limits(),
            time in any::<u64>(),
            circuits in 1..=u32::MAX,
            descriptor in proptest::collection::vec(any::<u8>(), DESCRIPTOR_MIN_LEN..=DESCRIPTOR_MAX_LEN),
        ) {
            let circuits = CircuitLimit::new(circuits).unwrap();
            let answer = Answer { time: UnixTime(time), limits, circuits, descriptor: &descriptor };
            let bytes = emitted(&answer);
            prop_assert_eq!(Answer::parse(&bytes), Ok(answer));
        }

        #[test]
        fn answer_has_no_second_spelling(start in any::<[u8; 18]>(), credit in 0..1100u16, cells in 0..140u16) {
            let mut bytes = std::vec![3; ANSWER_FIXED_LEN + DESCRIPTOR_MIN_LEN];
            bytes[..18].copy_from_slice(&start);
            bytes[..2].copy_from_slice(&[0, 1]);
            bytes[10..12].copy_from_slice(&cells.to_be_bytes());
            bytes[12..14].copy_from_slice(&credit.to_be_bytes());
            if let Ok(answer) = Answer::parse(&bytes) {
                prop_assert_eq!(emitted(&answer), bytes);
            }
        }
    }
}
