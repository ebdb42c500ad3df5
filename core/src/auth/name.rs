//! What a user is called.

use crate::wire::WireError;

/// The longest username in bytes.
pub const USERNAME_MAX_LEN: usize = 64;

/// A username: 1 to 64 bytes of `[A-Za-z0-9._-]`. Upper and lower case differ.
///
/// Its `Debug` form does not show it, so that it reaches no log by accident.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Username(heapless::String<USERNAME_MAX_LEN, u8>);

impl Username {
    /// The username spelled as `text`.
    ///
    /// # Errors
    /// [`WireError::Invalid`] if it is empty, too long or has other characters.
    pub fn new(text: &str) -> Result<Self, WireError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if text.is_empty() || !text.bytes().all(allowed) {
            return Err(WireError::Invalid);
        }
        heapless::String::try_from(text).map(Self).map_err(|_| WireError::Invalid)
    }

    /// The username of messages that concern no user: `-`. (Somebody may also be called that; it does not matter.)
    #[must_use]
    pub fn nobody() -> Self {
        Self::new("-").expect("a hyphen is allowed")
    }

    /// The username.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl core::fmt::Debug for Username {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Username(..)")
    }
}

impl core::str::FromStr for Username {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self, WireError> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usernames_are_1_to_64_of_their_alphabet() {
        for good in ["a", "-", "..", "Az09._-", &"x".repeat(64)] {
            assert_eq!(Username::new(good).unwrap().as_str(), good);
        }
        for bad in ["", " ", "a b", "a:b", "a\n", "a/b", "\u{fc}", "a\0", &"x".repeat(65)] {
            assert_eq!(Username::new(bad), Err(WireError::Invalid), "{bad:?}");
        }
    }

    #[test]
    fn debug_output_hides_the_name() {
        assert!(!std::format!("{:?}", Username::new("alice").unwrap()).contains("alice"));
    }
}
