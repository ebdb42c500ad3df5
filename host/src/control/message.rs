//! Requests and answers as lines of JSON.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::book::{NodeDetails, NodeLine, Prefix};
use super::import::Imported;
use super::report::Report;

/// The version of the protocol on the socket.
pub(crate) const VERSION: u32 = 1;
/// Longest line of a request, its end included.
pub(crate) const REQUEST_MAX: usize = 64 << 10;
/// Longest line of an answer, its end included: some 40,000 nodes.
pub(crate) const REPLY_MAX: usize = 16 << 20;

/// What is asked of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// How it is.
    Status,
    /// Every node in its phonebook.
    List,
    /// One node in its phonebook.
    Show {
        /// The beginning of its fingerprint.
        prefix: Prefix,
    },
    /// Its phonebook as a file.
    Export,
    /// To take a file's descriptors in.
    Import {
        /// The file's length; it follows behind this line.
        bytes: u64,
    },
}

/// What a node answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Ask::Status`].
    Status(Box<Report>),
    /// To [`Ask::List`], in ascending order of fingerprints.
    List(Vec<NodeLine>),
    /// To [`Ask::Show`].
    Show(Box<NodeDetails>),
    /// To [`Ask::Export`].
    Export {
        /// Descriptors in the file.
        count: u64,
        /// The file's length; it follows behind this line.
        bytes: u64,
    },
    /// To [`Ask::Import`].
    Import(Imported),
    /// To whatever the node could not or would not do.
    Error {
        /// What programs need to know.
        kind: Complaint,
        /// What people need to know.
        text: String,
    },
}

impl Reply {
    pub(crate) fn error(kind: Complaint, text: impl Into<String>) -> Self {
        Self::Error { kind, text: text.into() }
    }
}

/// Why a node does not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Complaint {
    /// The request is no request, too long, or came too slowly.
    Request,
    /// The request is of another version of this protocol.
    Version,
    /// Too much is asked at once; again in a moment.
    Busy,
    /// The node is stopping.
    Stopping,
    /// No node's fingerprint begins so.
    Unknown,
    /// Several nodes' fingerprints begin so.
    Ambiguous,
    /// The file is damaged.
    File,
}

/// A line is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LineError {
    /// The other side speaks another version.
    Version(u32),
    /// No JSON, or not this.
    Garbage(String),
}

#[derive(Deserialize)]
struct Versioned {
    bulbil: u32,
}

/// A request's line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    bulbil: u32,
    pub ask: Ask,
}

/// An answer's line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    bulbil: u32,
    pub reply: Reply,
}

impl Request {
    pub(crate) const fn new(ask: Ask) -> Self {
        Self { bulbil: VERSION, ask }
    }
}

impl Answer {
    pub(crate) const fn new(reply: Reply) -> Self {
        Self { bulbil: VERSION, reply }
    }
}

/// A line with its end.
pub(crate) fn write_line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut line =
        serde_json::to_vec(value).expect("no map has other keys than strings, and nothing fails to be written");
    line.push(b'\n');
    line
}

/// A line without its end.
pub(crate) fn read_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, LineError> {
    let garbage = |error: serde_json::Error| LineError::Garbage(error.to_string());
    // The version first: what else stands in a line of another one need not make sense here.
    let versioned: Versioned = serde_json::from_slice(line).map_err(garbage)?;
    if versioned.bulbil != VERSION {
        return Err(LineError::Version(versioned.bulbil));
    }
    serde_json::from_slice(line).map_err(garbage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(line: &str) -> Result<Ask, LineError> {
        read_line::<Request>(line.as_bytes()).map(|request| request.ask)
    }

    #[test]
    fn lines_are_these() {
        let show = Ask::Show { prefix: "AB12".parse().unwrap() };
        let cases = [
            (Ask::Status, r#"{"bulbil":1,"ask":"status"}"#),
            (Ask::List, r#"{"bulbil":1,"ask":"list"}"#),
            (show, r#"{"bulbil":1,"ask":{"show":{"prefix":"ab12"}}}"#),
            (Ask::Export, r#"{"bulbil":1,"ask":"export"}"#),
            (Ask::Import { bytes: 1 << 40 }, r#"{"bulbil":1,"ask":{"import":{"bytes":1099511627776}}}"#),
        ];
        for (value, line) in cases {
            assert_eq!(String::from_utf8(write_line(&Request::new(value.clone()))).unwrap(), format!("{line}\n"));
            assert_eq!(ask(line), Ok(value));
        }
        let refused = write_line(&Answer::new(Reply::error(Complaint::Busy, "later")));
        assert_eq!(refused, b"{\"bulbil\":1,\"reply\":{\"error\":{\"kind\":\"busy\",\"text\":\"later\"}}}\n");
    }

    #[test]
    fn other_versions_are_told_from_garbage() {
        assert_eq!(ask(r#"{"bulbil":2,"wish":["anything"]}"#), Err(LineError::Version(2)));
        for garbage in [
            "",
            "{",
            "status",
            r#"{"ask":"status"}"#,
            r#"{"bulbil":1}"#,
            r#"{"bulbil":1,"ask":"fly"}"#,
            r#"{"bulbil":1,"ask":{"import":{"bytes":-1}}}"#,
            r#"{"bulbil":1,"ask":{"show":{"prefix":"x"}}}"#,
            r#"{"bulbil":1,"ask":"status"} more"#,
            r#"{"bulbil":-1,"ask":"status"}"#,
            "\u{0}\u{0}",
        ] {
            assert!(matches!(ask(garbage), Err(LineError::Garbage(_))), "{garbage}");
        }
        assert!(ask(&"[".repeat(REQUEST_MAX)).is_err(), "not even deep nesting");
    }
}
