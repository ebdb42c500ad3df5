//! Fuzz input read as the choices of a small program.

/// Takes choices off the front of an input. An input that ends is the end of the program.
pub struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    /// Reads from the beginning of `input`.
    pub const fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    /// The next byte.
    pub fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }

    /// The next two bytes, big-endian.
    pub fn word(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    /// A number below `end`, or `None` if there is none.
    pub fn below(&mut self, end: usize) -> Option<usize> {
        usize::from(self.word()?).checked_rem(end)
    }

    /// A non-empty range within `0..end`, both of whose ends are chosen.
    pub fn range(&mut self, end: usize) -> Option<core::ops::Range<usize>> {
        let (a, b) = (self.below(end)?, self.below(end)?);
        Some(a.min(b)..a.max(b) + 1)
    }

    /// Up to `len` bytes, fewer if the input ends.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        bytes
    }

    /// `N` bytes, zero where the input ends.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }
}
