//! A bad network between a device and the stack: loss, duplicates, reordering, flipped bits, delay.
//!
//! Both directions are impaired alike, each by decisions of its own that depend on the seed and on the frames of that direction only. All
//! memory is allocated at the start.

mod faulty;

use core::{fmt, str::FromStr, time::Duration};
use std::{
    string::{String, ToString},
    vec::Vec,
};

pub use faulty::{Faulty, QUEUE_FRAMES, RxToken, Tally, TxToken};

/// The longest delay that may be asked for.
const TIME_MAX: Duration = Duration::from_secs(60);

/// A share of all frames, in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PerMille(u16);

impl PerMille {
    /// All of them.
    pub const ALL: Self = Self(1000);

    /// So many thousandths; `None` above 1000.
    #[must_use]
    pub const fn new(thousandths: u16) -> Option<Self> {
        if thousandths <= 1000 { Some(Self(thousandths)) } else { None }
    }

    /// Reads a percentage with at most one decimal: `5`, `0.5`, `5%`.
    fn from_percent(text: &str) -> Option<Self> {
        let text = text.strip_suffix('%').unwrap_or(text);
        let (whole, tenth) = text.split_once('.').unwrap_or((text, "0"));
        if tenth.len() != 1 {
            return None;
        }
        Self::new(number::<u16>(whole)?.checked_mul(10)?.checked_add(number(tenth)?)?)
    }
}

/// In per cent, as it is read.
impl fmt::Display for PerMille {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0 / 10)?;
        if self.0.is_multiple_of(10) { Ok(()) } else { write!(f, ".{}", self.0 % 10) }
    }
}

/// Decimal digits alone; `parse` would take a sign as well.
fn number<N: FromStr>(text: &str) -> Option<N> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// What happens to frames, in each direction. Written `loss=5,duplicate=1,reorder=2,corrupt=0.1,delay=100ms,jitter=10ms`, shares in per
/// cent, any part left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Frames that are lost.
    pub loss: PerMille,
    /// Frames that arrive twice.
    pub duplicate: PerMille,
    /// Frames that wait 5 ms longer than the others.
    pub reorder: PerMille,
    /// Frames of which one bit is flipped.
    pub corrupt: PerMille,
    /// How long every frame waits, in each direction: a round trip takes twice that.
    pub delay: Duration,
    /// How much longer or shorter than `delay` it may wait, evenly spread. Frames may overtake each other by that.
    pub jitter: Duration,
}

impl Faults {
    /// Whether nothing happens to any frame.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Why a description of faults was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultsError {
    /// Not `key=value`.
    NotAPair(String),
    /// A key that there is not.
    UnknownKey(String),
    /// A key that was there before.
    Repeated(String),
    /// Not a percentage of 0 to 100 with at most one decimal.
    NotAPercentage(String),
    /// Not a time.
    NotATime(String),
}

impl fmt::Display for FaultsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAPair(text) => write!(f, "`{text}` is not KEY=VALUE, as in loss=5,delay=100ms"),
            Self::UnknownKey(key) => {
                write!(f, "there is no fault `{key}`; there are loss, duplicate, reorder, corrupt, delay and jitter")
            }
            Self::Repeated(key) => write!(f, "`{key}` is given twice"),
            Self::NotAPercentage(text) => {
                write!(f, "`{text}`: a share is given in per cent, 0 to 100, with at most one decimal, as in loss=0.5")
            }
            Self::NotATime(text) => {
                write!(f, "`{text}`: a time is a whole number with us, ms or s, up to 60s, as in delay=100ms")
            }
        }
    }
}

impl core::error::Error for FaultsError {}

impl FromStr for Faults {
    type Err = FaultsError;

    fn from_str(text: &str) -> Result<Self, FaultsError> {
        let mut faults = Self::default();
        let mut seen: Vec<&str> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| FaultsError::NotAPair(part.to_string()))?;
            if seen.contains(&key) {
                return Err(FaultsError::Repeated(key.to_string()));
            }
            seen.push(key);
            let share = || PerMille::from_percent(value).ok_or_else(|| FaultsError::NotAPercentage(part.to_string()));
            let time = || time_from(value).ok_or_else(|| FaultsError::NotATime(part.to_string()));
            match key {
                "loss" => faults.loss = share()?,
                "duplicate" => faults.duplicate = share()?,
                "reorder" => faults.reorder = share()?,
                "corrupt" => faults.corrupt = share()?,
                "delay" => faults.delay = time()?,
                "jitter" => faults.jitter = time()?,
                _ => return Err(FaultsError::UnknownKey(key.to_string())),
            }
        }
        Ok(faults)
    }
}

/// Reads `250us`, `100ms`, `2s`; at most a minute.
fn time_from(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, unit) = text.split_at(digits);
    let count = number(count)?;
    let time = match unit {
        "us" => Duration::from_micros(count),
        "ms" => Duration::from_millis(count),
        "s" => Duration::from_secs(count),
        _ => return None,
    };
    (time <= TIME_MAX).then_some(time)
}

/// As it is read; `none` where there are none.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            return f.write_str("none");
        }
        let mut comma = "";
        for (key, share) in
            [("loss", self.loss), ("duplicate", self.duplicate), ("reorder", self.reorder), ("corrupt", self.corrupt)]
        {
            if share > PerMille::default() {
                write!(f, "{comma}{key}={share}")?;
                comma = ",";
            }
        }
        for (key, time) in [("delay", self.delay), ("jitter", self.jitter)] {
            if time.is_zero() {
                continue;
            }
            let micros = time.as_micros();
            match (micros.is_multiple_of(1_000_000), micros.is_multiple_of(1000)) {
                (true, _) => write!(f, "{comma}{key}={}s", micros / 1_000_000)?,
                (_, true) => write!(f, "{comma}{key}={}ms", micros / 1000)?,
                _ => write!(f, "{comma}{key}={micros}us")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_understood() {
        let faults: Faults = "loss=5,duplicate=1,reorder=2.5%,corrupt=0.1,delay=100ms,jitter=250us".parse().unwrap();
        assert_eq!(
            faults,
            Faults {
                loss: PerMille(50),
                duplicate: PerMille(10),
                reorder: PerMille(25),
                corrupt: PerMille(1),
                delay: Duration::from_millis(100),
                jitter: Duration::from_micros(250),
            }
        );
        assert_eq!(faults.to_string(), "loss=5,duplicate=1,reorder=2.5,corrupt=0.1,delay=100ms,jitter=250us");
        assert_eq!("".parse::<Faults>().map(|faults| faults.is_none()), Ok(true));
        assert_eq!(Faults::default().to_string(), "none");
        assert_eq!("loss=100, delay=1s".parse::<Faults>().unwrap().to_string(), "loss=100,delay=1s");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("loss", ["`loss` is not", "KEY=VALUE"]),
            ("lost=5", ["`lost`", "loss, duplicate, reorder, corrupt, delay and jitter"]),
            ("loss=5,loss=6", ["`loss`", "twice"]),
            ("loss=101", ["`loss=101`", "per cent"]),
            ("loss=100.1", ["`loss=100.1`", "per cent"]),
            ("loss=0.25", ["`loss=0.25`", "per cent"]),
            ("loss=-1", ["`loss=-1`", "per cent"]),
            ("loss=+1", ["`loss=+1`", "per cent"]),
            ("loss=", ["`loss=`", "per cent"]),
            ("delay=100", ["`delay=100`", "ms"]),
            ("delay=ms", ["`delay=ms`", "ms"]),
            ("jitter=61s", ["`jitter=61s`", "60s"]),
            ("delay=99999999999999999999s", ["`delay=9999", "60s"]),
        ] {
            let error = text.parse::<Faults>().unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "{text}: {error}");
            }
        }
    }

    proptest! {
        #[test]
        fn display_and_parse_agree(shares in proptest::array::uniform4(0_u16..=1000), times in proptest::array::uniform2(0_u64..=60_000_000)) {
            let [loss, duplicate, reorder, corrupt] = shares.map(PerMille);
            let [delay, jitter] = times.map(Duration::from_micros);
            let faults = Faults { loss, duplicate, reorder, corrupt, delay, jitter };
            let text = if faults.is_none() { String::new() } else { faults.to_string() };
            prop_assert_eq!(text.parse::<Faults>(), Ok(faults));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<Faults>();
        }
    }
}
