//! What a shell must provide for the [`crate::driver`]: byte streams, key operations, a calendar. Written as contracts.
//!
//! Nothing here blocks and nothing here waits: an operation that cannot be done now answers [`Poll::Pending`], and from then on it is the
//! shell's duty to call the driver again for that stream once it might succeed ([`crate::driver::Driver::service_link`],
//! [`crate::driver::Driver::service_conversation`]). A spurious call costs little; a missing one stalls the stream.
//!
//! This differs from `embedded_io::Read` and `Write` (whose calls block until something is done, however their `ReadReady` answers) in
//! just that, which is why the traits are our own; errors are embedded-io's, classified by their `kind()`.

use core::net::SocketAddr;
use core::task::Poll;

use embedded_io::ErrorType;
use rand_core::CryptoRng;

use crate::circuit::LinkId;
use crate::client::origin::{Reached, Receipt};
use crate::crypto::onion::{Onion, OnionRejected, Peeled};
use crate::crypto::receipt::TranscriptDigest;
use crate::driver::LinkEnd;
use crate::link::LinkSecret;
use crate::link::aead::RecordAead;
use crate::node::{ConversationId, Outcome};
use crate::phonebook::VerifiedDescriptor;
use crate::relay::onions::OnionIndex;
use crate::wire::descriptor::RSA_LEN;
use crate::wire::{NodeId, Target, UnixTime};

/// One reliable, ordered connection: TCP, or something that behaves like it.
pub trait ByteStream: ErrorType {
    /// Takes bytes that have come, at most `buffer.len()` (never 0), and answers how many.
    ///
    /// `Ready(Ok(0))`: the peer has finished and everything was taken; it stays so. `Pending`: nothing is here now. An error is final: the
    /// stream is not used again. May take fewer bytes than are here.
    fn try_read(&mut self, buffer: &mut [u8]) -> Poll<Result<usize, Self::Error>>;

    /// Hands over bytes to be sent (never none), and answers how many of them, at least 1, were taken.
    ///
    /// `Pending`: no room now. An error is final.
    fn try_write(&mut self, bytes: &[u8]) -> Poll<Result<usize, Self::Error>>;

    /// Says that nothing more will be written; the peer reads the end after what was written. Reading goes on. At once, and once.
    ///
    /// A stream that is dropped before this was called has broken off: its peer must be able to tell that from an end (TCP: a reset).
    ///
    /// # Errors
    /// Final, as for the others.
    fn finish(&mut self) -> Result<(), Self::Error>;
}

/// An answer to sign: `PROTOCOL.md` section 9, RECEIPT.
pub struct Statement<'a> {
    /// What was asked.
    pub target: &'a Target,
    /// Digests of request and answer.
    pub transcript: TranscriptDigest,
}

/// The machine around a node.
///
/// Calls that say "later" are answered through the driver's `handle_*` of the same name, exactly once each; an answer for something
/// that has gone in the meantime is ignored there.
pub trait Shell {
    /// Connections between nodes.
    type LinkStream: ByteStream;
    /// What conversations are attached to: a target's connection at an exit, an application at a client.
    type OutsideStream: ByteStream;
    /// The AEAD behind link records.
    type Aead: RecordAead;

    /// Connects to `address` for `link`; later [`crate::driver::Driver::handle_link_stream`].
    fn connect_link(&mut self, link: LinkId, address: SocketAddr);

    /// Resolves and connects to `target` under the exit policy; later [`crate::driver::Driver::handle_target`]. For a service of this node:
    /// attaches it, or refuses (`PROTOCOL.md` section 9, END 9), later [`crate::driver::Driver::handle_service`].
    ///
    /// A node that is no exit is asked for services only.
    fn connect_target(&mut self, conversation: ConversationId, target: &Target);

    /// Opens `onion` with [`crate::crypto::onion::peel`]: in place and at once (`Some`), or in a copy and later
    /// [`crate::driver::Driver::handle_peeled`].
    fn peel(&mut self, job: OnionIndex, onion: &mut Onion) -> Option<Result<Peeled, OnionRejected>>;

    /// Signs an answer at once (`Some`), or later [`crate::driver::Driver::handle_signed`].
    fn sign(&mut self, conversation: ConversationId, statement: Statement<'_>) -> Option<(UnixTime, [u8; RSA_LEN])>;

    /// The secret of this node's link key, and randomness fit for keys.
    fn link_secret(&mut self) -> (&LinkSecret, &mut dyn CryptoRng);

    /// This node's own signed descriptor as it goes into handshakes; empty if the node answers no links.
    fn descriptor(&self) -> &[u8];

    /// Seconds since 1970, as well as the machine knows. `None` if it does not know at all: then it has no descriptor yet, and takes each
    /// answerer's word for the time in which to judge that answerer's own descriptor.
    fn unix_time(&self) -> Option<UnixTime>;

    /// Randomness fit for keys.
    fn rng(&mut self) -> &mut dyn CryptoRng;

    /// A node that we connected to takes `time` for the time. It has proved who it is; that its descriptor is refused for its validity may come
    /// next, because one of the two clocks is wrong.
    fn handle_time(&mut self, _link: LinkId, _node: NodeId, _time: UnixTime) {}

    /// A node that we connected to has shown its descriptor, and `time` is what it takes for the time.
    fn handle_descriptor(&mut self, link: LinkId, descriptor: &VerifiedDescriptor, time: UnixTime);

    /// A link has ended, or was never opened.
    fn handle_link_end(&mut self, link: LinkId, end: LinkEnd);

    /// The last hop of one of our conversations has reached the target.
    fn handle_connected(&mut self, conversation: ConversationId, reached: Reached);

    /// The receipt of one of our conversations has come; to be verified with the exit's identity.
    fn handle_receipt(&mut self, conversation: ConversationId, receipt: Receipt);

    /// A conversation is over, at an exit or of our own.
    fn handle_over(&mut self, conversation: ConversationId, outcome: Outcome);
}
