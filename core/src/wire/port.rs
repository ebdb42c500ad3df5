//! Ranges of TCP ports, used in descriptors (`PROTOCOL.md` section 3) and exit policies (section 12).

use super::{Reader, WireError, Writer};

/// An inclusive range of TCP ports. Port 0 is in none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortRange {
    low: u16,
    high: u16,
}

impl PortRange {
    /// Every port, 1 to 65535.
    pub const ALL: Self = Self { low: 1, high: u16::MAX };

    /// Bytes on the wire.
    pub const LEN: usize = 4;

    /// The ports from `low` to `high`, both included; `None` if there are none or port 0 is among them.
    #[must_use]
    pub const fn new(low: u16, high: u16) -> Option<Self> {
        if low == 0 || low > high { None } else { Some(Self { low, high }) }
    }

    /// Only `port`; `None` for port 0.
    #[must_use]
    pub const fn single(port: u16) -> Option<Self> {
        Self::new(port, port)
    }

    /// The first port.
    #[must_use]
    pub const fn low(self) -> u16 {
        self.low
    }

    /// The last port.
    #[must_use]
    pub const fn high(self) -> u16 {
        self.high
    }

    /// Whether `port` is in the range.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.low <= port && port <= self.high
    }

    /// Whether at least one port lies between this range and the later `next`.
    pub(crate) const fn is_apart_from(self, next: Self) -> bool {
        // `low` is never 0.
        self.high < next.low - 1
    }

    /// Takes a range.
    ///
    /// # Errors
    /// [`WireError::Invalid`] for an empty range or port 0, too few bytes.
    pub fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Self::new(reader.u16()?, reader.u16()?).ok_or(WireError::Invalid)
    }

    /// Puts the range.
    ///
    /// # Errors
    /// [`WireError::NoRoom`].
    pub fn emit(self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        writer.put(&self.low.to_be_bytes())?;
        writer.put(&self.high.to_be_bytes())
    }
}

impl core::fmt::Display for PortRange {
    /// `*`, `80` or `80-443`.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::ALL => f.write_str("*"),
            Self { low, high } if low == high => write!(f, "{low}"),
            Self { low, high } => write!(f, "{low}-{high}"),
        }
    }
}

impl core::str::FromStr for PortRange {
    type Err = WireError;

    /// Parses `*`, `80` or `80-443`.
    fn from_str(text: &str) -> Result<Self, WireError> {
        if text == "*" {
            return Ok(Self::ALL);
        }
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        let port = |digits: &str| {
            // `u16::from_str` would also take a plus sign.
            if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
        };
        port(low).zip(port(high)).and_then(|(low, high)| Self::new(low, high)).ok_or(WireError::Invalid)
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::testing::{Canonical, any_port_range, assert_canonical};

    impl Canonical for PortRange {
        fn decode(bytes: &[u8]) -> Result<Self, WireError> {
            let mut reader = Reader::new(bytes);
            let range = Self::parse(&mut reader)?;
            reader.end().map(|()| range)
        }

        fn encode(&self, buffer: &mut [u8]) -> Result<usize, WireError> {
            let mut writer = Writer::new(buffer);
            self.emit(&mut writer)?;
            Ok(writer.len())
        }
    }

    #[test]
    fn rejects_port_zero_empty_ranges_and_odd_spellings() {
        assert_eq!(PortRange::new(0, 80), None);
        assert_eq!(PortRange::new(81, 80), None);
        assert_eq!(PortRange::decode(&[0, 0, 0, 80]), Err(WireError::Invalid));
        for text in ["", "0", "0-5", "5-4", "+5", "5-", "-5", "1-2-3", "65536", "**", "http", " 5", "1-+3"] {
            assert_eq!(text.parse::<PortRange>(), Err(WireError::Invalid), "{text}");
        }
        assert_eq!("*".parse(), Ok(PortRange::ALL));
        assert_eq!("1-65535".parse(), Ok(PortRange::ALL));
    }

    #[test]
    fn touching_ranges_are_not_apart() {
        let range = |low, high| PortRange::new(low, high).unwrap();
        assert!(range(1, 24).is_apart_from(range(26, 30)));
        assert!(!range(1, 25).is_apart_from(range(26, 30)));
        assert!(!range(1, 30).is_apart_from(range(26, 30)));
        assert!(!range(26, 30).is_apart_from(range(1, 24)));
    }

    proptest! {
        #[test]
        fn round_trips(range in any_port_range()) {
            assert_canonical(&range);
            prop_assert_eq!(range.to_string().parse(), Ok(range));
        }
    }
}
