//! The directory of signed descriptors that every node keeps for itself, and the choice of paths from it: `PROTOCOL.md`
//! sections 11 and 18.
//!
//! A [`Phonebook`] has a fixed capacity, given by its owner as [`Shelves`] of entries: `tried` for the nodes that this node has met,
//! `new` for those that it has heard of. Only a [`VerifiedDescriptor`] gets in. Time
//! is an argument and comes from the node's wall clock; when that is set back or forward, descriptors count as not yet
//! valid or as expired until it is right again, and nothing else happens.

mod book;
mod cache;
mod clock;
mod dispute;
mod entry;
mod epoch;
pub mod exchange;
mod feelers;
mod group;
mod guards;
mod path;
mod sample;
mod shelves;
pub mod steward;
mod storage;
#[cfg(test)]
mod testing;
mod verified;

pub use book::{Counts, Inserted, Phonebook, Refusal};
pub use cache::{CachedPath, IsolationKey, PATH_LIFETIME, PathCache};
pub use clock::{CLOCK_PEERS_MAX, CLOCK_PEERS_MIN, CLOCK_TOLERANCE, ClockVerdict, PeerClocks};
pub use dispute::{EVIDENCE_MAX, Evidence};
pub use entry::{Entry, FAILURE_PAUSE, FAILURES_MAX, FAILURES_MAX_UNMET, Source};
pub use epoch::{EPOCH_LEN, Epoch};
pub use feelers::{REVISIT, Test};
pub use group::{Grouping, NetworkGroup};
pub use guards::{GUARD_PATIENCE, GUARD_REVIEW_MAX, GUARDS_KEPT_MAX, GUARDS_LEN_MAX, GUARDS_MAX, Guards};
pub use path::{
    HopCount, LastHop, PATH_MAX, Path, PathError, PathHop, PathRequest, Strictness, TRIED_LAST_MIN, TRIED_RELAYS_MIN,
};
pub use sample::{SAMPLE_MAX, Sample};
pub use shelves::{
    BUCKET, BUCKETS_PER_GROUP, BUCKETS_PER_SOURCE, BookKey, GROUP_SHARE, NEW_PLACES, SWAPS_MAX, Shelves, TRIED_PER_IP,
    TRIED_PLACES,
};
pub use storage::{ANCHORS_MAX, Anchors, StorageError, StoredBook, StoredEntry};
pub use verified::{DescriptorError, VerifiedDescriptor};
