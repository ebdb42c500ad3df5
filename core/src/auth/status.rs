//! What the server's `log` messages say, `PROTOCOL.md` section 17.2.

use core::fmt::Write as _;
use core::time::Duration;

/// How many times a user has signed in: the number of the session that the last time began. Never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SessionNumber(pub u64);

/// How a request went. As content of a `log` it is a three-digit code and a text, always the same for the same code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// 201: the account exists now.
    SignedUp,
    /// 202: a new session has begun, and every older one of this user is over.
    SignedIn(SessionNumber),
    /// 203: this session goes on; nothing has changed.
    AlreadySignedIn(SessionNumber),
    /// 204: the session is over.
    Disconnected,
    /// 205: the note is stored.
    NoteKept,
    /// 400: not a message, or not one for the server, or not now.
    NotUnderstood,
    /// 403: wrong or late answer, unknown user, or a session that is not the user's current one.
    Refused,
    /// 409: somebody has that name.
    NameTaken,
    /// 429: too many wrong answers; whole seconds to wait.
    RetryAfter(u32),
    /// 503: the server could not store or read the account. What was asked may or may not have been done; asking again does no
    /// harm.
    Unavailable,
}

/// Bytes of the longest text: 31 and the 20 digits of 2^64 - 1.
const TEXT_MAX: usize = 51;

impl Status {
    /// `wait` in whole seconds, rounded up.
    pub(super) fn retry_after(wait: Duration) -> Self {
        let seconds = wait.as_millis().div_ceil(1000);
        Self::RetryAfter(u32::try_from(seconds).unwrap_or(u32::MAX))
    }

    const fn head(self) -> &'static str {
        match self {
            Self::SignedUp => "201 signed up",
            Self::SignedIn(_) => "202 signed in, session ",
            Self::AlreadySignedIn(_) => "203 already signed in, session ",
            Self::Disconnected => "204 disconnected",
            Self::NoteKept => "205 note kept",
            Self::NotUnderstood => "400 not understood",
            Self::Refused => "403 refused",
            Self::NameTaken => "409 name taken",
            Self::RetryAfter(_) => "429 retry after ",
            Self::Unavailable => "503 unavailable",
        }
    }

    const fn number(self) -> Option<u64> {
        match self {
            Self::SignedIn(SessionNumber(number)) | Self::AlreadySignedIn(SessionNumber(number)) => Some(number),
            Self::RetryAfter(seconds) => Some(seconds as u64),
            _ => None,
        }
    }

    const fn tail(self) -> &'static str {
        if matches!(self, Self::RetryAfter(_)) { " s" } else { "" }
    }

    /// The status with its code and text.
    #[must_use]
    pub fn text(self) -> StatusText {
        let mut text = heapless::String::new();
        write!(text, "{self}").expect("the capacity is that of the longest text");
        StatusText(text)
    }

    /// The status that `text` spells, or `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        const WITH_NUMBER: [Status; 3] =
            [Status::SignedIn(SessionNumber(0)), Status::AlreadySignedIn(SessionNumber(0)), Status::RetryAfter(0)];
        const PLAIN: [Status; 7] = [
            Status::SignedUp,
            Status::Disconnected,
            Status::NoteKept,
            Status::NotUnderstood,
            Status::Refused,
            Status::NameTaken,
            Status::Unavailable,
        ];
        if let Some(status) = PLAIN.into_iter().find(|status| status.head() == text) {
            return Some(status);
        }
        let (kind, digits) = WITH_NUMBER
            .into_iter()
            .find_map(|kind| Some((kind, text.strip_prefix(kind.head())?.strip_suffix(kind.tail())?)))?;
        let number: u64 = digits.parse().ok()?;
        let status = match kind {
            Self::SignedIn(_) => Self::SignedIn(SessionNumber(number)),
            Self::AlreadySignedIn(_) => Self::AlreadySignedIn(SessionNumber(number)),
            _ => Self::RetryAfter(number.try_into().ok()?),
        };
        // One spelling each: no leading zeros, no plus sign.
        (status.text().as_ref() == text).then_some(status)
    }
}

impl core::fmt::Display for Status {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.head())?;
        if let Some(number) = self.number() {
            write!(f, "{number}")?;
        }
        f.write_str(self.tail())
    }
}

/// A status spelled out.
pub struct StatusText(heapless::String<TEXT_MAX>);

impl AsRef<str> for StatusText {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Status; 13] = [
        Status::SignedUp,
        Status::SignedIn(SessionNumber(1)),
        Status::SignedIn(SessionNumber(u64::MAX)),
        Status::AlreadySignedIn(SessionNumber(0)),
        Status::AlreadySignedIn(SessionNumber(u64::MAX)),
        Status::Disconnected,
        Status::NoteKept,
        Status::NotUnderstood,
        Status::Refused,
        Status::NameTaken,
        Status::RetryAfter(1),
        Status::RetryAfter(u32::MAX),
        Status::Unavailable,
    ];

    #[test]
    fn statuses_have_one_spelling() {
        for status in ALL {
            let text = status.text();
            assert_eq!(Status::parse(text.as_ref()), Some(status));
            for len in 0..text.as_ref().len() {
                assert_ne!(Status::parse(&text.as_ref()[..len]), Some(status));
            }
        }
        for bad in [
            "",
            "201",
            "202 signed in, session 01",
            "202 signed in, session +1",
            "202 signed in, session ",
            "429 retry after 4294967296 s",
            "429 retry after 3",
        ] {
            assert_eq!(Status::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn waits_are_rounded_up() {
        assert_eq!(Status::retry_after(Duration::from_millis(1)), Status::RetryAfter(1));
        assert_eq!(Status::retry_after(Duration::from_secs(30)), Status::RetryAfter(30));
    }
}
