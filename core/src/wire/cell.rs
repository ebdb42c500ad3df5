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
const _: () = assert!(1 + CREDIT_ENTRIES * 6 <= BODY_LEN && 1 + (CREDIT_ENTRIES + 1) * 6 > BODY_LEN);

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
