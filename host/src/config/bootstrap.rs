//! Nodes to ask for the network at first.

use std::{fmt, net::SocketAddr, str::FromStr};

use bulbil_core::wire::NodeId;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::reachable;

/// A node to ask first: `address:port#fingerprint`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bootstrap {
    /// Where it listens.
    pub address: SocketAddr,
    /// Who must answer there; `None` takes whoever does.
    pub fingerprint: Option<NodeId>,
}

impl fmt::Display for Bootstrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fingerprint {
            Some(fingerprint) => write!(f, "{}#{fingerprint}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

/// Why a text names no bootstrap node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootstrapError {
    /// The part before `#` is not an IP address and a port.
    Address,
    /// The port is 0 or the address is one that nobody can be reached at.
    Unusable,
    /// The part after `#` is not a fingerprint.
    Fingerprint,
}

impl fmt::Display for BootstrapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => {
                "a bootstrap node is written as `address:port#fingerprint` with a numeric address, \
                 such as 192.0.2.7:9001#… or [2001:db8::7]:9001#…"
            }
            Self::Unusable => "nobody can be reached at this address; it needs a port and must name one host",
            Self::Fingerprint => {
                "the fingerprint after `#` must be 64 hexadecimal digits; `bulbil keygen --show` prints it on the node"
            }
        })
    }
}

impl std::error::Error for BootstrapError {}

impl FromStr for Bootstrap {
    type Err = BootstrapError;

    fn from_str(text: &str) -> Result<Self, BootstrapError> {
        let (address, fingerprint) = match text.split_once('#') {
            Some((address, fingerprint)) => {
                (address, Some(fingerprint.parse().map_err(|_| BootstrapError::Fingerprint)?))
            }
            None => (text, None),
        };
        let address: SocketAddr = address.parse().map_err(|_| BootstrapError::Address)?;
        if !reachable(address) {
            return Err(BootstrapError::Unusable);
        }
        Ok(Self { address, fingerprint })
    }
}

impl<'de> Deserialize<'de> for Bootstrap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error: BootstrapError| D::Error::custom(format_args!("\"{text}\": {error}")))
    }
}
