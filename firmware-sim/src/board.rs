//! What a board provides besides its network device: time, randomness, storage for keys. Porting the node means implementing these.

use core::net::SocketAddr;

use bulbil_core::driver::LinkEnd;
use bulbil_core::node::Outcome;
use bulbil_core::time::Instant;
use bulbil_core::wire::UnixTime;
use rand_core::CryptoRng;

/// Time.
pub trait Clock {
    /// Milliseconds since an origin of the board's choice; never goes back.
    fn now(&mut self) -> Instant;

    /// The calendar, if the board has one that it trusts. A node without one believes the median of its pinned contacts, and answers no links
    /// before it has met the first of them.
    fn unix_time(&mut self) -> Option<UnixTime>;
}

/// Randomness.
pub trait Entropy {
    /// A generator fit for keys, seeded by the hardware: every secret of the node hangs on it.
    fn rng(&mut self) -> &mut dyn CryptoRng;
}

/// What survives a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Item {
    /// The RSA-2048 identity, PKCS#8 DER, at most [`ITEM_MAX_LEN`] bytes. Provisioned from outside; never written by the node.
    Identity,
    /// The X25519 secret that links are answered with, 32 bytes. Written once, if it was not provisioned.
    LinkKey,
    /// The first hops of the node's own paths, at most [`GUARDS_LEN_MAX`](bulbil_core::phonebook::GUARDS_LEN_MAX) bytes. Written when they change, which is rare.
    Guards,
}

/// The longest item, in bytes: an RSA-2048 key with its factors takes about 1.2 KB.
pub const ITEM_MAX_LEN: usize = 1280;

/// The storage does not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StorageFailed;

/// Storage for keys: flash, a secure element, a file. Who can read it can be the node.
pub trait KeyStore {
    /// Reads an item to the front of `buffer`, which holds [`ITEM_MAX_LEN`] bytes, and answers its length; `None` if there is none.
    ///
    /// # Errors
    /// [`StorageFailed`], also for an item that is longer than the buffer.
    fn load(&mut self, item: Item, buffer: &mut [u8]) -> Result<Option<usize>, StorageFailed>;

    /// Writes an item so that after a loss of power there is the old one or the new one.
    ///
    /// # Errors
    /// [`StorageFailed`]; the node goes on with what it has in memory.
    fn store(&mut self, item: Item, bytes: &[u8]) -> Result<(), StorageFailed>;
}

/// What a node tells its owner. None of it is needed for the node to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The node has a descriptor for its current onion key and answers links.
    Published,
    /// A pinned contact has answered.
    Met(SocketAddr),
    /// A node that we connected to has shown an acceptable descriptor.
    LinkUp,
    /// A link has ended.
    LinkEnded(LinkEnd),
    /// A peer has connected and there was no place for its link.
    LinkRefused,
    /// The exit has reached the target of our own request, at this address.
    Connected(SocketAddr),
    /// Bytes of the answer to our own request, in order.
    Answer(&'a [u8]),
    /// The answer is whole. Whether the exit's signature verifies, if one was asked for.
    Answered {
        /// `Some(true)`: the receipt came and is right.
        receipt: Option<bool>,
    },
    /// Our own request failed; what came of its answer is void. It is sent again soon if it cannot have arrived, else when its time comes.
    RequestFailed(Outcome),
    /// No path can be chosen yet for our own request.
    NoPath,
    /// The storage did not take an item; the node goes on.
    StorageFailed(Item),
    /// No new onion key could be published; the node keeps the one that it has and tries again.
    RotationFailed,
}

/// Is told what happens: a log, a light, a test.
pub trait Observer {
    /// Something happened.
    fn handle_event(&mut self, event: Event<'_>);
}

/// Everything that a board provides.
pub trait Board: Clock + Entropy + KeyStore + Observer + 'static {}

impl<T: Clock + Entropy + KeyStore + Observer + 'static> Board for T {}
