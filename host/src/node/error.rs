//! Why a circuit is not opened or ends, and why a node does not start.

use bulbil_core::node::OpenRefused;
use bulbil_core::phonebook::PathError;
use bulbil_core::wire::{CloseReason, EndReason};

/// Why a circuit could not be opened, or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// Somebody on the path ended the conversation: the exit about the target, or a relay about its next hop.
    Ended(EndReason),
    /// The circuit closed without a word to us.
    Closed(CloseReason),
    /// No path can be chosen from what the node knows.
    NoPath(PathError),
    /// This node has no room for another circuit.
    Refused(OpenRefused),
    /// The exit's signature is wrong or missing.
    BadReceipt,
    /// The answer is longer than the caller takes.
    TooLong,
    /// The target was not reached in time.
    Deadline,
    /// The node is shutting down.
    Shutdown,
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ended(reason) => write!(f, "the conversation ended: {reason}"),
            Self::Closed(reason) => write!(f, "the circuit closed: {reason}"),
            Self::NoPath(error) => {
                write!(f, "no path: {error}")?;
                f.write_str(match error {
                    PathError::NoLastHop => "; are the bootstrap nodes up and reachable, is one of them an exit, and is this machine's clock right?",
                    PathError::TooFewRelays { .. } => {
                        "; are the bootstrap nodes up and reachable, and are they enough?"
                    }
                    _ => "",
                })
            }
            Self::Refused(error) => write!(f, "the circuit was not opened: {error}"),
            Self::BadReceipt => {
                f.write_str("the exit was asked to sign the answer, and its signature is missing, wrong, or made before it had the whole request")
            }
            Self::TooLong => f.write_str("the answer is longer than was to be taken"),
            Self::Deadline => f.write_str("the target was not reached in time"),
            Self::Shutdown => f.write_str("the node is shutting down"),
        }
    }
}

impl std::error::Error for OpenError {}

impl From<OpenError> for std::io::Error {
    fn from(error: OpenError) -> Self {
        let kind = match error {
            OpenError::Ended(EndReason::Refused) => std::io::ErrorKind::ConnectionRefused,
            OpenError::Ended(EndReason::TimedOut) | OpenError::Deadline => std::io::ErrorKind::TimedOut,
            OpenError::Ended(EndReason::Forbidden) | OpenError::NoPath(PathError::NoExitForPort(_)) => {
                std::io::ErrorKind::PermissionDenied
            }
            OpenError::Ended(EndReason::NotResolved | EndReason::Unreachable) => std::io::ErrorKind::HostUnreachable,
            OpenError::Shutdown => std::io::ErrorKind::NotConnected,
            _ => std::io::ErrorKind::ConnectionReset,
        };
        Self::new(kind, error)
    }
}

/// Why a node does not start; the text says what to do.
#[derive(Debug)]
pub struct StartError(pub String);

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}
