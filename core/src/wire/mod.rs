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

pub use address::{Host, Name, NodeId, Service, Target};
pub use cell::{CellBody, CircuitId, CloseReason, Command};
pub use descriptor::{Descriptor, OnionKey, OnionKeyKind, Roles};
pub use message::{EndReason, Message};

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
        if self.rest.iter().all(|&byte| byte == 0) { Ok(()) } else { Err(WireError::NotZero) }
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
