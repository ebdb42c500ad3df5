//! The encrypted connection between two nodes, `PROTOCOL.md` section 4: bytes in, cells out, no I/O.
//!
//! [`noise`] agrees on keys: the connector stays anonymous, the answerer proves its static link key and sends a
//! payload. [`record`] carries whole cells under those keys, in place, with the cipher of [`aead`], which a host may
//! replace.

pub mod aead;
pub mod key;
pub mod noise;
pub mod record;
mod symmetric;

pub use aead::{PortableAead, RecordAead, RecordKey};
pub use key::{LinkKey, LinkSecret};
pub use noise::{Connector, Established, HandshakeError, SessionKeys, answer};
pub use record::{Opened, Opener, RecordError, RecordLimit, Sealer};
