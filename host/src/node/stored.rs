//! The phonebook in the state directory.

use std::collections::HashMap;
use std::sync::Arc;

use bulbil_core::phonebook::{
    Anchors, BookKey, EVIDENCE_MAX, Entry, Evidence, Grouping, NEW_PLACES, Shelves, StoredBook, TRIED_PLACES,
    VerifiedDescriptor,
};
use bulbil_core::wire::descriptor::RSA_LEN;
use bulbil_core::wire::{Descriptor, NodeId, UnixTime};
use zeroize::Zeroizing;

use super::control::Book;
use crate::random::SYSTEM;
use crate::state::{Item, Problem, StateDir, StateError};

/// The memory of a host's phonebook.
pub(crate) struct Tables {
    tried: Vec<Option<Entry<Arc<VerifiedDescriptor>>>>,
    new: Vec<Option<Entry<Arc<VerifiedDescriptor>>>>,
    evidence: Vec<Option<Evidence<Arc<VerifiedDescriptor>>>>,
}

impl Tables {
    /// Empty.
    pub(crate) fn new() -> Self {
        Self { tried: vec![None; TRIED_PLACES], new: vec![None; NEW_PLACES], evidence: vec![None; EVIDENCE_MAX] }
    }

    /// For a phonebook.
    pub(crate) fn shelves(&mut self) -> Shelves<'_, Arc<VerifiedDescriptor>> {
        Shelves { tried: &mut self.tried, new: &mut self.new, evidence: &mut self.evidence }
    }
}

/// The phonebook that is kept in `state`, or an empty one with a key of its own if none is. Every descriptor is verified again, 0.1 ms each.
///
/// # Errors
/// The file is damaged or not ours; nothing is changed then.
pub(crate) fn read<'m>(
    tables: &'m mut Tables,
    state: &StateDir,
    own: Option<NodeId>,
    grouping: Grouping,
    now: UnixTime,
) -> Result<(Book<'m>, Anchors), StateError> {
    let Some(bytes) = state.read(Item::Phonebook)? else {
        let key = BookKey::generate(&mut SYSTEM.clone());
        return Ok((Book::new(tables.shelves(), own, key, grouping), Anchors::new()));
    };
    let damaged = |_| StateError { path: state.item_path(Item::Phonebook), problem: Problem::Garbage };
    let stored = StoredBook::parse(&bytes).map_err(damaged)?;
    let book = Book::restore(tables.shelves(), own, grouping, &stored, now, verified);
    Ok((book, stored.anchors().clone()))
}

/// A phonebook of an earlier run, its descriptors verified, on its way to whoever will own it.
pub(crate) struct Stored {
    bytes: Zeroizing<Vec<u8>>,
    /// By signature.
    cards: HashMap<[u8; RSA_LEN], Arc<VerifiedDescriptor>>,
}

impl Stored {
    /// Reads what is kept in `state`, and verifies every descriptor, 0.1 ms each.
    ///
    /// # Errors
    /// The file is damaged or not ours; nothing is changed then.
    pub(crate) fn load(state: &StateDir) -> Result<Option<Self>, StateError> {
        let Some(bytes) = state.read(Item::Phonebook)? else { return Ok(None) };
        let damaged = |_| StateError { path: state.item_path(Item::Phonebook), problem: Problem::Garbage };
        let descriptors = StoredBook::parse(&bytes).map_err(damaged)?;
        let descriptors = descriptors.entries().filter_map(|entry| entry.descriptor().ok());
        let cards = descriptors.filter_map(verified).map(|card| (card.descriptor().signature, card)).collect();
        Ok(Some(Self { bytes, cards }))
    }

    /// The phonebook in `tables`.
    pub(crate) fn restore<'m>(
        self,
        tables: &'m mut Tables,
        own: NodeId,
        grouping: Grouping,
        now: UnixTime,
    ) -> (Book<'m>, Anchors) {
        let verify = |descriptor: Descriptor| match self.cards.get(&descriptor.signature) {
            Some(card) if *card.descriptor() == descriptor => Some(Arc::clone(card)),
            // Evidence of a dispute, which is seldom.
            _ => verified(descriptor),
        };
        let stored = StoredBook::parse(&self.bytes).expect("it was parsed when it was loaded");
        let book = Book::restore(tables.shelves(), Some(own), grouping, &stored, now, verify);
        (book, stored.anchors().clone())
    }
}

fn verified(descriptor: Descriptor) -> Option<Arc<VerifiedDescriptor>> {
    VerifiedDescriptor::verify_stored(descriptor).ok().map(Arc::new)
}

/// Keeps the phonebook in `state`, in place of what was there.
///
/// # Errors
/// What the system reports; what was there then is untouched.
pub(crate) fn write(state: &StateDir, book: &Book<'_>, anchors: &Anchors) -> Result<(), StateError> {
    let mut bytes = Zeroizing::new(Vec::new());
    book.emit(anchors, &mut |piece: &[u8]| bytes.extend_from_slice(piece));
    state.replace(Item::Phonebook, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::signed;
    use crate::engine::shell::unix_time;
    use crate::node::control::{import, list};
    use crate::scratch::Scratch;

    fn verified(number: usize) -> VerifiedDescriptor {
        VerifiedDescriptor::verify(signed(number, |_| ()), unix_time()).unwrap()
    }

    #[test]
    fn what_was_written_is_read_and_a_damaged_file_is_left_alone() {
        let scratch = Scratch::new("stored");
        let state = StateDir::open(&scratch.path().join("state")).unwrap();
        let (mut tables, mut again) = (Tables::new(), Tables::new());
        let (mut book, mut anchors) = read(&mut tables, &state, None, Grouping::Network, unix_time()).unwrap();
        assert!(book.is_empty() && !state.item_path(Item::Phonebook).exists(), "reading makes nothing");
        import(&mut book, vec![verified(0), verified(1)], unix_time());
        anchors.note(verified(1).node());
        write(&state, &book, &anchors).unwrap();
        let (restored, kept) = read(&mut again, &state, None, Grouping::Network, unix_time()).unwrap();
        assert_eq!((list(&restored), kept), (list(&book), anchors.clone()));

        let own = Some(verified(0).node());
        let mut own_tables = Tables::new();
        let (others, _) = read(&mut own_tables, &state, own, Grouping::Address, unix_time()).unwrap();
        assert_eq!(others.len(), 1, "never the node itself");

        // A good frame around something else, and a damaged frame.
        state.replace(Item::Phonebook, b"something else").unwrap();
        let path = state.item_path(Item::Phonebook);
        for cut in [false, true] {
            let mut bytes = std::fs::read(&path).unwrap();
            if cut {
                bytes.pop();
                std::fs::write(&path, &bytes).unwrap();
            }
            let error = read(&mut Tables::new(), &state, None, Grouping::Network, unix_time()).map(drop).unwrap_err();
            assert!(error.to_string().contains("restore it from a backup"), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
    }
}
