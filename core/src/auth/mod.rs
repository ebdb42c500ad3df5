//! The challenge-response application, `PROTOCOL.md` section 17: an authentication server outside the network, and its client.
//!
//! It knows nothing of onions; its bytes travel as those of any conversation. No I/O: frames in, frames out.
//!
//! - [`envelope`]: what the exit sees. [`message`]: what is in it.
//! - [`challenge`] and [`password`]: how a user proves the password without sending it.
//! - [`server`]: one [`server::Connection`] for each client; [`record`]: what is stored of a user, and where;
//!   `throttle`: how guessing is slowed.
//! - [`client`]: a [`client::Session`] that outlives its connections, and the connections.
//!
//! RSA operations allocate, as in [`crypto`](crate::crypto); nothing else does.

pub mod challenge;
pub mod client;
pub mod envelope;
pub mod key;
pub mod message;
pub mod name;
pub mod password;
pub mod record;
pub mod server;
pub mod status;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod throttle;

pub use envelope::{ChannelFailed, FRAME_MAX_LEN, Frame, GREETING_LEN, LENGTH_LEN};
pub use key::{Fingerprint, PublicKey, ServerSecret};
pub use name::Username;
pub use password::{KdfParameters, PasswordKey};
pub use record::{Replaced, Revision, StorageFailed, UserRecord, Users};
pub use server::Server;
pub use status::{SessionNumber, Status};
pub use throttle::{Allowance, WRONG_ANSWER_WAIT, WRONG_ANSWERS_FREE};
