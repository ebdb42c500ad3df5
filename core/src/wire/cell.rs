//! Cells, `PROTOCOL.md` section 5: `circuit u32 || command u8 || body 509`.

use super::{Reader, WireError, Writer};

/// Length of a cell's body in bytes.
pub const BODY_LEN: usize = 509;
/// Length of a cell's header: circuit id and command.
pub const HEADER_LEN: usize = 5;
/// Length of a cell in bytes.
pub const CELL_LEN: usize = HEADER_LEN + BODY_LEN;
/// Most entries of one CREDIT cell.
pub const CREDIT_ENTRIES: usize = 84;

const _: () = assert!(CELL_LEN == 514);
const _: () = assert!(CREDIT_ENTRIES == (BODY_LEN - 1) / 6);

/// A cell's body.
pub type CellBody = [u8; BODY_LEN];

/// A circuit's number on one link, chosen by the connector. Zero is the link itself and never a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CircuitId(core::num::NonZeroU32);

impl CircuitId {
    /// The circuit numbered `id`, or `None` for 0, the link itself.
    #[must_use]
    pub const fn new(id: u32) -> Option<Self> {
        match core::num::NonZeroU32::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0.get()
    }
}

/// What a cell is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Command(u8);

impl Command {
    /// Link padding, ignored.
    pub const PADDING: Self = Self(0);
    /// The connector's limits, first cell on a link.
    pub const HELLO: Self = Self(1);
    /// Room granted for more relay cells.
    pub const CREDIT: Self = Self(2);
    /// A tenth of an onion.
    pub const OPEN: Self = Self(3);
    /// A relay cell.
    pub const RELAY: Self = Self(4);
    /// The end of a circuit.
    pub const CLOSE: Self = Self(5);

    /// The byte on the wire, which is also the additional data of relay-cell encryption.
    #[must_use]
    pub const fn value(self) -> u8 {
        self.0
    }
}

/// Why a circuit is closed, as told to the neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CloseReason {
    /// The conversation is over.
    Finished = 0,
    /// The onion is not acceptable; which check failed is not told.
    OnionRejected = 1,
    /// No room for the circuit here.
    Busy = 2,
    /// The next hop cannot be reached.
    NextHopUnreachable = 3,
    /// A link of the circuit broke.
    LinkLost = 4,
    /// Nothing moved for too long.
    TimedOut = 5,
    /// Something came that the protocol does not allow.
    Protocol = 6,
    /// The node is shutting down.
    Shutdown = 7,
    /// The node does not take this role (relay or exit).
    RoleRefused = 8,
}

impl CloseReason {
    /// The reason spelled on the wire as `code`.
    ///
    /// # Errors
    /// [`WireError::UnknownCode`].
    pub const fn from_code(code: u8) -> Result<Self, WireError> {
        Ok(match code {
            0 => Self::Finished,
            1 => Self::OnionRejected,
            2 => Self::Busy,
            3 => Self::NextHopUnreachable,
            4 => Self::LinkLost,
            5 => Self::TimedOut,
            6 => Self::Protocol,
            7 => Self::Shutdown,
            8 => Self::RoleRefused,
            _ => return Err(WireError::UnknownCode),
        })
    }
}

impl core::fmt::Display for CloseReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Finished => "finished",
            Self::OnionRejected => "onion rejected",
            Self::Busy => "no room for another circuit",
            Self::NextHopUnreachable => "next hop unreachable",
            Self::LinkLost => "link lost",
            Self::TimedOut => "timed out",
            Self::Protocol => "protocol violation",
            Self::Shutdown => "node shutting down",
            Self::RoleRefused => "node does not take this role",
        })
    }
}

/// A cell that came over a link, its fixed fields checked; large bodies stay where they are.
#[derive(Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    /// Link padding.
    Padding,
    /// The connector's limits; parse the body with [`super::handshake::Hello`].
    Hello(&'a CellBody),
    /// Credit for several circuits.
    Credit(CreditEntries<'a>),
    /// Part of an onion.
    Open(CircuitId, &'a CellBody),
    /// A relay cell, to be rewritten in place.
    Relay(CircuitId, &'a mut CellBody),
    /// The end of a circuit.
    Close(CircuitId, CloseReason),
}

impl<'a> Cell<'a> {
    /// Splits a cell into its parts.
    ///
    /// # Errors
    /// Unknown commands, a command on the wrong kind of circuit id, padding that is not zero.
    pub fn parse(cell: &'a mut [u8; CELL_LEN]) -> Result<Self, WireError> {
        let ([c0, c1, c2, c3, command], body) =
            cell.split_first_chunk_mut::<HEADER_LEN>().ok_or(WireError::Truncated)?;
        let circuit = CircuitId::new(u32::from_be_bytes([*c0, *c1, *c2, *c3]));
        let body: &mut CellBody = body.try_into().map_err(|_| WireError::Truncated)?;
        match (Command(*command), circuit) {
            (Command::RELAY, Some(circuit)) => Ok(Self::Relay(circuit, body)),
            (Command::OPEN, Some(circuit)) => Ok(Self::Open(circuit, body)),
            (Command::CREDIT, None) => CreditEntries::parse(body).map(Self::Credit),
            (Command::CLOSE, Some(circuit)) => {
                let mut reader = Reader::new(body);
                let reason = CloseReason::from_code(reader.u8()?)?;
                reader.end_zeros()?;
                Ok(Self::Close(circuit, reason))
            }
            (Command::HELLO, None) => Ok(Self::Hello(body)),
            (Command::PADDING, None) => {
                Reader::new(body).end_zeros()?;
                Ok(Self::Padding)
            }
            (Command::RELAY | Command::OPEN | Command::CLOSE, None)
            | (Command::CREDIT | Command::HELLO | Command::PADDING, Some(_)) => Err(WireError::Invalid),
            _ => Err(WireError::UnknownCode),
        }
    }
}

/// Writes a cell's header.
pub fn emit_header(cell: &mut [u8; CELL_LEN], circuit: Option<CircuitId>, command: Command) {
    let (circuit_bytes, rest) = cell.split_at_mut(4);
    circuit_bytes.copy_from_slice(&circuit.map_or(0, CircuitId::value).to_be_bytes());
    if let Some(first) = rest.first_mut() {
        *first = command.value();
    }
}

/// The body of `cell`.
#[must_use]
pub fn body_mut(cell: &mut [u8; CELL_LEN]) -> &mut CellBody {
    cell.last_chunk_mut().expect("a body is shorter than a cell")
}

/// Writes a CLOSE cell.
pub fn emit_close(cell: &mut [u8; CELL_LEN], circuit: CircuitId, reason: CloseReason) {
    cell.fill(0);
    emit_header(cell, Some(circuit), Command::CLOSE);
    body_mut(cell)[0] = reason as u8;
}

/// The (circuit, cells) pairs of a CREDIT cell, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreditEntries<'a> {
    entries: &'a [u8],
}

impl<'a> CreditEntries<'a> {
    fn parse(body: &'a CellBody) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let count = usize::from(reader.u8()?);
        if count == 0 || count > CREDIT_ENTRIES {
            return Err(WireError::Invalid);
        }
        let this = Self { entries: reader.take(count * 6)? };
        reader.end_zeros()?;
        if this.clone().count() != count {
            return Err(WireError::Invalid);
        }
        Ok(this)
    }
}

impl Iterator for CreditEntries<'_> {
    type Item = (CircuitId, core::num::NonZeroU16);

    /// Ends early at an entry with a zero, which `parse` has made sure does not occur.
    fn next(&mut self) -> Option<Self::Item> {
        let mut reader = Reader::new(self.entries);
        let circuit = CircuitId::new(reader.u32().ok()?)?;
        let cells = core::num::NonZeroU16::new(reader.u16().ok()?)?;
        self.entries = reader.rest();
        Some((circuit, cells))
    }
}

/// Collects grants into a CREDIT cell.
#[derive(Debug)]
pub struct CreditWriter<'a> {
    cell: &'a mut [u8; CELL_LEN],
    count: usize,
}

impl<'a> CreditWriter<'a> {
    /// Begins a CREDIT cell in `cell`. A cell without an entry must not be sent.
    pub fn new(cell: &'a mut [u8; CELL_LEN]) -> Self {
        cell.fill(0);
        emit_header(cell, None, Command::CREDIT);
        Self { cell, count: 0 }
    }

    /// Entries so far.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Adds a grant.
    ///
    /// # Errors
    /// [`WireError::NoRoom`] if the cell is full.
    pub fn push(&mut self, circuit: CircuitId, cells: core::num::NonZeroU16) -> Result<(), WireError> {
        if self.count == CREDIT_ENTRIES {
            return Err(WireError::NoRoom);
        }
        let body = body_mut(self.cell);
        let entry = body.get_mut(1 + self.count * 6..).ok_or(WireError::NoRoom)?;
        let mut writer = Writer::new(entry);
        writer.put(&circuit.value().to_be_bytes())?;
        writer.put(&cells.get().to_be_bytes())?;
        self.count += 1;
        body[0] = self.count as u8;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use core::num::NonZeroU16;
    use std::string::ToString;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::testing::{any_bytes, assert_rejects_padding};

    const REASONS: [CloseReason; 9] = [
        CloseReason::Finished,
        CloseReason::OnionRejected,
        CloseReason::Busy,
        CloseReason::NextHopUnreachable,
        CloseReason::LinkLost,
        CloseReason::TimedOut,
        CloseReason::Protocol,
        CloseReason::Shutdown,
        CloseReason::RoleRefused,
    ];

    fn circuit(id: u32) -> CircuitId {
        CircuitId::new(id).unwrap()
    }

    fn accepts(cell: &mut [u8; CELL_LEN]) -> Result<(), WireError> {
        Cell::parse(cell).map(|_| ())
    }

    /// Writes `cell`, once parsed, into other bytes.
    fn emit(cell: &Cell<'_>) -> [u8; CELL_LEN] {
        let mut bytes = [0xa5; CELL_LEN];
        match cell {
            Cell::Padding => {
                bytes.fill(0);
                emit_header(&mut bytes, None, Command::PADDING);
            }
            Cell::Hello(body) => {
                emit_header(&mut bytes, None, Command::HELLO);
                *body_mut(&mut bytes) = **body;
            }
            Cell::Credit(entries) => {
                let mut writer = CreditWriter::new(&mut bytes);
                entries.clone().for_each(|(circuit, cells)| writer.push(circuit, cells).unwrap());
            }
            Cell::Open(circuit, body) => {
                emit_header(&mut bytes, Some(*circuit), Command::OPEN);
                *body_mut(&mut bytes) = **body;
            }
            Cell::Relay(circuit, body) => {
                emit_header(&mut bytes, Some(*circuit), Command::RELAY);
                *body_mut(&mut bytes) = **body;
            }
            Cell::Close(circuit, reason) => emit_close(&mut bytes, *circuit, *reason),
        }
        bytes
    }

    #[test]
    fn layouts_are_as_specified() {
        let mut cell = [0xa5; CELL_LEN];
        emit_close(&mut cell, circuit(0x0102_0304), CloseReason::RoleRefused);
        assert_eq!(cell[..7], [1, 2, 3, 4, 5, 8, 0]);
        let mut cell = [0xa5; CELL_LEN];
        let mut writer = CreditWriter::new(&mut cell);
        writer.push(circuit(7), NonZeroU16::new(258).unwrap()).unwrap();
        writer.push(circuit(8), NonZeroU16::MAX).unwrap();
        assert_eq!(writer.count(), 2);
        assert_eq!(cell[..19], [0, 0, 0, 0, 2, 2, 0, 0, 0, 7, 1, 2, 0, 0, 0, 8, 255, 255, 0]);
        emit_header(&mut cell, Some(circuit(u32::MAX)), Command::RELAY);
        assert_eq!(cell[..6], [255, 255, 255, 255, 4, 2], "a header leaves the body alone");
    }

    #[test]
    fn commands_belong_on_their_kind_of_circuit() {
        for command in 0..=u8::MAX {
            for id in [0, 1, u32::MAX] {
                let mut cell = [0; CELL_LEN];
                emit_header(&mut cell, CircuitId::new(id), Command(command));
                if Command(command) == Command::CREDIT {
                    // One entry, so that only the circuit of the cell itself can be wrong.
                    cell[HEADER_LEN..HEADER_LEN + 7].copy_from_slice(&[1, 0, 0, 0, 1, 0, 1]);
                }
                let of_link = matches!(command, 0..=2);
                let expected = match command {
                    0..=5 if of_link == (id == 0) => Ok(()),
                    0..=5 => Err(WireError::Invalid),
                    _ => Err(WireError::UnknownCode),
                };
                assert_eq!(accepts(&mut cell), expected, "command {command} on {id}");
            }
        }
    }

    #[test]
    fn padding_is_zero() {
        assert_rejects_padding(&[0; CELL_LEN], HEADER_LEN, accepts);
        let mut close = [0xa5; CELL_LEN];
        emit_close(&mut close, circuit(1), CloseReason::Finished);
        assert_rejects_padding(&close, HEADER_LEN + 1, accepts);
        let mut credit = [0xa5; CELL_LEN];
        CreditWriter::new(&mut credit).push(circuit(1), NonZeroU16::MIN).unwrap();
        assert_rejects_padding(&credit, HEADER_LEN + 7, accepts);
    }

    #[test]
    fn close_reasons_have_their_codes_and_their_own_texts() {
        for code in 0..=u8::MAX {
            let mut cell = [0; CELL_LEN];
            emit_header(&mut cell, Some(circuit(3)), Command::CLOSE);
            cell[HEADER_LEN] = code;
            let expected = REASONS.get(usize::from(code)).copied().ok_or(WireError::UnknownCode);
            assert_eq!(CloseReason::from_code(code), expected);
            assert_eq!(Cell::parse(&mut cell), expected.map(|reason| Cell::Close(circuit(3), reason)));
        }
        for reason in REASONS {
            assert_eq!(REASONS.iter().filter(|other| other.to_string() == reason.to_string()).count(), 1);
        }
    }

    #[test]
    fn credit_counts_and_zero_entries_are_rejected() {
        let mut full = [0xa5; CELL_LEN];
        let mut writer = CreditWriter::new(&mut full);
        for id in 1..=CREDIT_ENTRIES as u32 {
            writer.push(circuit(id), NonZeroU16::MAX).unwrap();
        }
        assert_eq!(writer.push(circuit(99), NonZeroU16::MAX), Err(WireError::NoRoom));
        assert_eq!(accepts(&mut full.clone()), Ok(()));
        for count in 0..=u8::MAX {
            let mut cell = full;
            cell[HEADER_LEN] = count;
            assert_eq!(accepts(&mut cell).is_ok(), usize::from(count) == CREDIT_ENTRIES, "{count} entries");
        }
        for entry in 0..CREDIT_ENTRIES {
            let start = HEADER_LEN + 1 + entry * 6;
            for zero in [start..start + 4, start + 4..start + 6] {
                let mut cell = full;
                cell[zero].fill(0);
                assert_eq!(accepts(&mut cell), Err(WireError::Invalid), "entry {entry}");
            }
        }
    }

    #[test]
    fn sizes_are_pinned() {
        assert_eq!(size_of::<Option<CircuitId>>(), 4);
        assert!(size_of::<Cell<'_>>() <= 24, "{}", size_of::<Cell<'_>>());
    }

    proptest! {
        #[test]
        fn credit_round_trips(entries in proptest::collection::vec((1..=u32::MAX, 1..=u16::MAX), 1..=CREDIT_ENTRIES)) {
            let entries: Vec<_> =
                entries.into_iter().map(|(id, cells)| (circuit(id), NonZeroU16::new(cells).unwrap())).collect();
            let mut cell = [0xa5; CELL_LEN];
            let mut writer = CreditWriter::new(&mut cell);
            entries.iter().for_each(|&(circuit, cells)| writer.push(circuit, cells).unwrap());
            let Ok(Cell::Credit(parsed)) = Cell::parse(&mut cell) else { panic!("not a CREDIT cell") };
            prop_assert_eq!(parsed.collect::<Vec<_>>(), entries);
        }

        #[test]
        fn bodies_are_left_in_place(id in 1..=u32::MAX, body in any_bytes::<BODY_LEN>(), relay in any::<bool>()) {
            let mut cell = [0xa5; CELL_LEN];
            emit_header(&mut cell, Some(circuit(id)), if relay { Command::RELAY } else { Command::OPEN });
            *body_mut(&mut cell) = body;
            match Cell::parse(&mut cell) {
                Ok(Cell::Relay(parsed, found)) if relay => prop_assert_eq!((parsed, &*found), (circuit(id), &body)),
                Ok(Cell::Open(parsed, found)) if !relay => prop_assert_eq!((parsed, found), (circuit(id), &body)),
                other => panic!("{other:?}"),
            }
        }

        #[test]
        fn has_no_second_spelling(id in 0..3u32, command in 0..7u8, start in proptest::collection::vec(0..3u8, 0..20)) {
            let mut cell = [0; CELL_LEN];
            emit_header(&mut cell, CircuitId::new(id), Command(command));
            cell[HEADER_LEN..HEADER_LEN + start.len()].copy_from_slice(&start);
            let before = cell;
            if let Ok(parsed) = Cell::parse(&mut cell) {
                prop_assert_eq!(emit(&parsed), before);
            }
        }
    }
}
