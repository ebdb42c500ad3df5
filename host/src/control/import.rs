//! Judging the descriptors of a file: each is verified as if it had come from a stranger.

use bulbil_core::phonebook::{DescriptorError, VerifiedDescriptor};
use bulbil_core::wire::{Descriptor, UnixTime};
use serde::{Deserialize, Serialize};

use super::book::Taken;
use super::file::{FileError, FileReader};

/// What became of a file's descriptors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Descriptors in the file.
    pub read: u64,
    /// What the phonebook made of those that are good.
    #[serde(flatten)]
    pub taken: Taken,
    /// Those that are none: they do not parse, or are longer than any.
    pub malformed: u64,
    /// Those that their nodes did not sign.
    pub forged: u64,
    /// Those whose validity has not begun.
    pub not_yet_valid: u64,
}

impl Imported {
    /// Whether the file held descriptors and not one of them is of any use, then and before.
    #[must_use]
    pub const fn is_useless(&self) -> bool {
        self.read > 0 && self.taken.added + self.taken.updated + self.taken.known + self.taken.own == 0
    }

    /// Every count but the first with what it counts, in the order in which they matter.
    #[must_use]
    pub const fn named(&self) -> [(u64, &'static str); 10] {
        let Self { read: _, taken, malformed, forged, not_yet_valid } = *self;
        [
            (taken.added, "added"),
            (taken.updated, "updated"),
            (taken.known, "known already"),
            (taken.own, "the node's own"),
            (taken.full, "without room"),
            (malformed, "malformed"),
            (forged, "forged"),
            (taken.expired, "expired"),
            (not_yet_valid, "not yet valid"),
            (taken.disputed, "in dispute"),
        ]
    }
}

/// A file's descriptors, read and not yet judged.
#[derive(Debug, Default)]
pub struct Unjudged {
    reader: FileReader,
    descriptors: Vec<Box<[u8]>>,
}

impl Unjudged {
    /// Takes the next piece of the file.
    ///
    /// # Errors
    /// The file is damaged; then none of it is to be used.
    pub fn feed(&mut self, piece: &[u8]) -> Result<(), FileError> {
        let Self { reader, descriptors } = self;
        reader.feed(piece, &mut |bytes| descriptors.push(bytes.into()))
    }

    /// The file is over.
    ///
    /// # Errors
    /// It is cut off, or no export at all.
    pub fn finish(self) -> Result<Vec<Box<[u8]>>, FileError> {
        let Self { reader, mut descriptors } = self;
        reader.finish(&mut |bytes| descriptors.push(bytes.into()))?;
        Ok(descriptors)
    }
}

/// Verifies descriptors, about 0.1 ms each, and counts those that are no good. [`Imported::taken`] is for the phonebook to say, the
/// expired ones excepted.
#[must_use]
pub fn judge(descriptors: &[Box<[u8]>], now: UnixTime) -> (Vec<VerifiedDescriptor>, Imported) {
    let mut counts = Imported { read: descriptors.len() as u64, ..Imported::default() };
    let mut good = Vec::new();
    for bytes in descriptors {
        let verified = Descriptor::parse(bytes)
            .map_err(DescriptorError::Malformed)
            .and_then(|descriptor| VerifiedDescriptor::verify(descriptor, now));
        match verified {
            Ok(verified) => good.push(verified),
            Err(DescriptorError::Malformed(_)) => counts.malformed += 1,
            Err(DescriptorError::Signature) => counts.forged += 1,
            Err(DescriptorError::Expired) => counts.taken.expired += 1,
            Err(DescriptorError::NotYetValid) => counts.not_yet_valid += 1,
        }
    }
    (good, counts)
}

/// A file with these descriptors, in their order.
#[must_use]
pub fn export<'d>(descriptors: impl IntoIterator<Item = &'d VerifiedDescriptor>) -> String {
    let mut text = super::file::heading();
    let mut bytes = [0; bulbil_core::wire::descriptor::DESCRIPTOR_MAX_LEN];
    for verified in descriptors {
        // What was parsed or signed is emitted again.
        if let Ok(len) = verified.descriptor().emit(&mut bytes) {
            super::file::push_block(&mut text, bytes.get(..len).unwrap_or_default());
        }
    }
    text
}
