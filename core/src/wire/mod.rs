//! Bytes to values and back: no keys, no state, no I/O; never panics, never allocates.
//!
//! Every structure here keeps one contract. Parsing accepts exactly what emitting produces: a truncated input, a trailing byte,
//! a reserved bit or a non-zero padding byte is a [`WireError`]. Whatever can be built can be emitted and parsed back.
//! Layouts are those of `PROTOCOL.md`, whose section each module names.

pub mod address;
pub mod cell;
pub mod descriptor;
pub mod handshake;
pub mod message;
pub mod policy;
pub mod port;
pub mod time;

#[cfg(test)]
pub(crate) mod testing;

pub use address::{Host, Name, NodeId, Service, Target};
pub use cell::{CellBody, CircuitId, CloseReason, Command};
pub use descriptor::{Descriptor, OnionKey, OnionKeyKind, Roles};
pub use message::{EndReason, Message};
pub use policy::{Policy, Verdict};
pub use port::PortRange;
pub use time::UnixTime;

/// A version of the protocol, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProtocolVersion(core::num::NonZeroU16);

impl ProtocolVersion {
    /// The version that this crate speaks, `VERSION` of `PROTOCOL.md` section 1.
    pub const V1: Self = Self(core::num::NonZeroU16::MIN);

    /// Version `number`, or `None` for 0, which is no version.
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        match core::num::NonZeroU16::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn value(self) -> u16 {
        self.0.get()
    }

    /// Takes a version of any number.
    ///
    /// # Errors
    /// [`WireError::Invalid`] for 0, too few bytes.
    pub fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Self::new(reader.u16()?).ok_or(WireError::Invalid)
    }
}

/// Why bytes from a peer are not the structure they claim to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WireError {
    /// The input ends before the structure does.
    Truncated,
    /// The structure ends before the input does.
    Trailing,
    /// A code point that this version does not know.
    UnknownCode,
    /// A value outside its allowed range, or a combination that has no meaning.
    Invalid,
    /// A reserved field or padding is not zero.
    NotZero,
    /// The output has no room for the structure (the caller's fault, never a peer's).
    NoRoom,
}

impl core::fmt::Display for WireError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Truncated => "input ends too early",
            Self::Trailing => "input goes on after its end",
            Self::UnknownCode => "unknown code point",
            Self::Invalid => "value out of range",
            Self::NotZero => "reserved bytes are not zero",
            Self::NoRoom => "output buffer is too small",
        })
    }
}

impl core::error::Error for WireError {}

/// Takes values off the front of a byte string.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the beginning of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not yet taken.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`WireError::Truncated`] if fewer are left.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (head, tail) = self.rest.split_at_checked(len).ok_or(WireError::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    /// The next `N` bytes as an array.
    ///
    /// # Errors
    /// [`WireError::Truncated`] if fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], WireError> {
        let (head, tail) = self.rest.split_first_chunk().ok_or(WireError::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    /// The next byte.
    ///
    /// # Errors
    /// [`WireError::Truncated`] if none is left.
    pub fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(|&[byte]| byte)
    }

    /// The next two bytes, big-endian.
    ///
    /// # Errors
    /// [`WireError::Truncated`] if fewer are left.
    pub fn u16(&mut self) -> Result<u16, WireError> {
        self.array().copied().map(u16::from_be_bytes)
    }

    /// The next four bytes, big-endian.
    ///
    /// # Errors
    /// [`WireError::Truncated`] if fewer are left.
    pub fn u32(&mut self) -> Result<u32, WireError> {
        self.array().copied().map(u32::from_be_bytes)
    }

    /// The next eight bytes, big-endian.
    ///
    /// # Errors
    /// [`WireError::Truncated`] if fewer are left.
    pub fn u64(&mut self) -> Result<u64, WireError> {
        self.array().copied().map(u64::from_be_bytes)
    }

    /// Everything that is left; the reader is then at its end.
    pub fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }

    /// Ends the reading of a structure that fills its input.
    ///
    /// # Errors
    /// [`WireError::Trailing`] if bytes are left.
    pub fn end(self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(WireError::Trailing) }
    }

    /// Ends the reading of a structure that is padded with zero bytes.
    ///
    /// # Errors
    /// [`WireError::NotZero`] if a byte that is left is not zero.
    pub fn end_zeros(self) -> Result<(), WireError> {
        // Collecting all bits, instead of stopping at the first one, compiles to wide instructions: this is on the
        // path of every cell, and padding that is not zero never occurs on an honest one.
        if self.rest.iter().fold(0, |bits, &byte| bits | byte) == 0 { Ok(()) } else { Err(WireError::NotZero) }
    }
}

/// Puts values into a caller's buffer, from the front.
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    /// Writes from the beginning of `buffer`.
    #[must_use]
    pub const fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, len: 0 }
    }

    /// Bytes written so far.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been written.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`WireError::NoRoom`] if they do not fit; nothing is written then.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        let end = self.len.checked_add(bytes.len()).ok_or(WireError::NoRoom)?;
        self.buffer.get_mut(self.len..end).ok_or(WireError::NoRoom)?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    /// Fills what is left of the buffer with zero bytes.
    pub fn zero_rest(self) {
        if let Some(rest) = self.buffer.get_mut(self.len..) {
            rest.fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reader_takes_in_order_and_reports_both_kinds_of_misfit() {
        let mut reader = Reader::new(&[1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 5, 6]);
        assert_eq!(reader.u8(), Ok(1));
        assert_eq!(reader.u16(), Ok(2));
        assert_eq!(reader.u32(), Ok(3));
        assert_eq!(reader.u64(), Ok(4));
        assert_eq!(reader.remaining(), 2);
        assert_eq!(reader.u32(), Err(WireError::Truncated));
        assert_eq!(reader.clone().end(), Err(WireError::Trailing));
        assert_eq!(reader.clone().end_zeros(), Err(WireError::NotZero));
        assert_eq!(reader.rest(), [5, 6]);
        assert_eq!(reader.take(1), Err(WireError::Truncated));
        assert_eq!(reader.end(), Ok(()));
    }

    #[test]
    fn writer_writes_nothing_that_does_not_fit() {
        let mut buffer = [0xa5; 4];
        let mut writer = Writer::new(&mut buffer);
        assert!(writer.is_empty());
        assert_eq!(writer.put(&[1, 2]), Ok(()));
        assert_eq!(writer.put(&[3, 4, 5]), Err(WireError::NoRoom));
        assert_eq!(writer.put(&[3]), Ok(()));
        assert_eq!(writer.len(), 3);
        writer.zero_rest();
        assert_eq!(buffer, [1, 2, 3, 0]);
    }

    #[test]
    fn version_zero_is_no_version() {
        assert_eq!(ProtocolVersion::V1.value(), 1);
        assert_eq!(ProtocolVersion::parse(&mut Reader::new(&[0, 0])), Err(WireError::Invalid));
        assert_eq!(ProtocolVersion::parse(&mut Reader::new(&[0, 1])), Ok(ProtocolVersion::V1));
    }
}
