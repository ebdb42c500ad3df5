//! The log: to standard error, for people or as JSON.
//!
//! Who talks to whom is what an onion router hides, so addresses, names of hosts, fingerprints and keys go into a log line
//! only within [`Redacted`], which prints `[redacted]` unless the owner asked for them (`log.sensitive`).

use std::{
    fmt, io,
    io::IsTerminal,
    sync::atomic::{AtomicBool, Ordering},
};

use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer,
    fmt::{MakeWriter, format::FmtSpan},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::config::{Log, LogFormat, LogLevel};

/// The environment variable that overrides the level: a level, or directives such as `warn,bulbil_host::socks=debug`.
pub const ENVIRONMENT: &str = "BULBIL_LOG";

static SENSITIVE: AtomicBool = AtomicBool::new(false);

/// A value that tells who somebody is or talks to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Redacted<T>(pub T);

impl<T: fmt::Display> fmt::Display for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if SENSITIVE.load(Ordering::Relaxed) { self.0.fmt(f) } else { f.write_str("[redacted]") }
    }
}

impl<T: fmt::Debug> fmt::Debug for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if SENSITIVE.load(Ordering::Relaxed) { self.0.fmt(f) } else { f.write_str("[redacted]") }
    }
}

/// Why the log cannot begin.
#[derive(Debug)]
pub enum LogError {
    /// The environment variable holds no directives.
    Directives(String),
    /// A log has begun before.
    Twice,
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directives(error) => write!(
                f,
                "the environment variable {ENVIRONMENT} is not understood ({error}); set it to error, warn, info, debug or \
                 trace, or unset it"
            ),
            Self::Twice => f.write_str("the log was set up before"),
        }
    }
}

impl std::error::Error for LogError {}

/// Begins the log of this process.
///
/// # Errors
/// See [`LogError`].
pub fn init(settings: &Log) -> Result<(), LogError> {
    let directives = std::env::var(ENVIRONMENT).ok();
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let subscriber = subscriber(settings, directives.as_deref(), colour, io::stderr)?;
    subscriber.try_init().map_err(|_| LogError::Twice)?;
    SENSITIVE.store(settings.sensitive, Ordering::Relaxed);
    Ok(())
}

const fn level_name(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    }
}

fn subscriber<W>(
    settings: &Log,
    directives: Option<&str>,
    colour: bool,
    writer: W,
) -> Result<impl Subscriber + Send + Sync, LogError>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let directives = match directives.map(str::trim) {
        None | Some("") => level_name(settings.level),
        Some(directives) => directives,
    };
    let filter = EnvFilter::try_new(directives).map_err(|error| LogError::Directives(error.to_string()))?;
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_span_events(FmtSpan::NONE).with_ansi(colour);
    let layer = match settings.format {
        LogFormat::Human => layer.with_target(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).boxed(),
    };
    Ok(tracing_subscriber::registry().with(filter).with(layer))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log(settings: &Log, directives: Option<&str>) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = subscriber(settings, directives, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target = %Redacted("example.com:80"), circuits = 3, "open");
            tracing::debug!("detail {:?}", Redacted("192.0.2.1"));
        });
        captured.text()
    }

    /// One test, because the flag belongs to the process and tests run side by side.
    #[test]
    fn writes_lines_and_redacts() {
        let human = Log::default();
        let text = log(&human, None);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("INFO open target=[redacted] circuits=3"), "{text}");

        let json = Log { format: LogFormat::Json, level: LogLevel::Debug, ..Log::default() };
        let text = log(&json, None);
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["level"], "INFO");
        assert_eq!(lines[0]["message"], "open");
        assert_eq!(lines[0]["circuits"], 3);
        assert!(!text.contains("example.com") && !text.contains("192.0.2.1"), "{text}");

        assert_eq!(log(&human, Some("error")), "");
        assert_eq!(log(&human, Some("debug")).lines().count(), 2);
        assert_eq!(log(&human, Some(" ")).lines().count(), 1, "an empty variable is as good as none");
        assert!(matches!(
            subscriber(&human, Some("bulbil=loud"), false, io::sink).map(drop),
            Err(LogError::Directives(_))
        ));

        SENSITIVE.store(true, Ordering::Relaxed);
        let text = log(&human, Some("debug"));
        SENSITIVE.store(false, Ordering::Relaxed);
        assert!(text.contains("target=example.com:80") && text.contains("detail \"192.0.2.1\""), "{text}");
    }
}
