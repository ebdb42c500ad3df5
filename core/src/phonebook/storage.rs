//! The phonebook between two runs, `PROTOCOL.md` section 18.8.
//!
//! | field | bytes | |
//! | --- | --- | --- |
//! | format | 1 | 1 |
//! | key | 32 | of the buckets |
//! | anchors | 1 + n x 32 | count 0 to 4, node ids, the latest first |
//! | entries | 2 + n x (19 + descriptor) | count, then each |
//! | evidence | 1 + n x (8 + 2 descriptors) | count, then noted `u64` and both |
//! | digest | 32 | SHA-256 over all before |
//!
//! An entry is `flags u8 (bit 0 tried, 1 pinned, 2 in dispute) || failures u8 || source 5 || last met u32 || last try u32 || disputed until u32`, and its
//! descriptor. A descriptor is preceded by its length, `u16`.

use core::borrow::Borrow;

use heapless::Vec;
use sha2::{Digest, Sha256};

use super::dispute::contradict;
use super::entry::{Entry, History, Source};
use super::shelves::{BookKey, Shelves, Slot, Vacancy};
use super::{Evidence, Grouping, NetworkGroup, Phonebook, VerifiedDescriptor};
use crate::wire::descriptor::DESCRIPTOR_MAX_LEN;
use crate::wire::{Descriptor, NodeId, Reader, UnixTime, WireError};

/// Nodes that a node asks first after a start.
pub const ANCHORS_MAX: usize = 4;

const FORMAT: u8 = 1;
const DIGEST_LEN: usize = 32;
const TRIED: u8 = 1 << 0;
const PINNED: u8 = 1 << 1;
const DISPUTED: u8 = 1 << 2;

/// The last nodes that have answered an exchange. After a start they are asked first: whoever wants to surround a node by waiting for
/// its restart finds it with neighbours that he has not chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Anchors {
    nodes: Vec<NodeId, ANCHORS_MAX>,
}

impl Anchors {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { nodes: Vec::new() }
    }

    /// A node has answered an exchange.
    pub fn note(&mut self, node: NodeId) {
        self.forget(&node);
        if self.nodes.is_full() {
            self.nodes.pop();
        }
        self.nodes.insert(0, node).expect("room was made");
    }

    /// A node has not answered: it is the next to give way. Others than those that have answered do not take its place.
    pub fn demote(&mut self, node: &NodeId) {
        if let Some(at) = self.nodes.iter().position(|known| known == node) {
            let node = self.nodes.remove(at);
            self.nodes.push(node).expect("it was one of them");
        }
    }

    /// A node has left the phonebook.
    pub fn forget(&mut self, node: &NodeId) {
        self.nodes.retain(|known| known != node);
    }

    /// The anchors, the latest first.
    #[must_use]
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }
}

/// Why stored bytes are no phonebook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StorageError {
    /// The digest does not fit: not all of it was written, or it was changed since.
    Damaged,
    /// It is of another format, or of none.
    Malformed(WireError),
}

impl core::fmt::Display for StorageError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Damaged => f.write_str("stored phonebook is damaged"),
            Self::Malformed(error) => write!(f, "stored phonebook is malformed: {error}"),
        }
    }
}

impl core::error::Error for StorageError {}

impl From<WireError> for StorageError {
    fn from(error: WireError) -> Self {
        Self::Malformed(error)
    }
}

/// A node out of storage. Its descriptor is to be verified before it is believed.
#[derive(Debug, Clone, Copy)]
pub struct StoredEntry<'a> {
    descriptor: &'a [u8],
    history: History,
}

impl<'a> StoredEntry<'a> {
    fn parse(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let flags = reader.u8()?;
        if flags & !(TRIED | PINNED | DISPUTED) != 0 {
            return Err(WireError::NotZero);
        }
        let history = History {
            failures: reader.u8()?,
            source: Source::from_stored(*reader.array()?)?,
            last_met: reader.u32()?,
            last_try: reader.u32()?,
            valid_until: reader.u32()?,
            tried: flags & TRIED != 0,
            pinned: flags & PINNED != 0,
            disputed: flags & DISPUTED != 0,
        };
        Ok(Self { history, descriptor: parse_descriptor(reader)? })
    }

    /// Its descriptor, not verified.
    ///
    /// # Errors
    /// [`WireError`] if the bytes are none.
    pub fn descriptor(&self) -> Result<Descriptor, WireError> {
        Descriptor::parse(self.descriptor)
    }

    /// Whether it had been met, and had a place among those.
    #[must_use]
    pub const fn is_tried(&self) -> bool {
        self.history.tried
    }

    /// Whether the owner wanted it kept.
    #[must_use]
    pub const fn is_pinned(&self) -> bool {
        self.history.pinned
    }
}

/// A phonebook out of storage, whose lengths, counts and digest are right.
#[derive(Clone)]
pub struct StoredBook<'a> {
    key: BookKey,
    anchors: Anchors,
    entry_count: u16,
    entries: Reader<'a>,
    evidence_count: u8,
    evidence: Reader<'a>,
}

impl<'a> StoredBook<'a> {
    /// Looks through all of `bytes`.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, StorageError> {
        let (content, digest) = bytes.split_last_chunk::<DIGEST_LEN>().ok_or(WireError::Truncated)?;
        if <[u8; DIGEST_LEN]>::from(Sha256::digest(content)) != *digest {
            return Err(StorageError::Damaged);
        }
        let mut reader = Reader::new(content);
        if reader.u8()? != FORMAT {
            return Err(WireError::UnknownCode.into());
        }
        let key = BookKey::new(*reader.array()?);
        let mut anchors = Anchors::new();
        for _ in 0..reader.u8()? {
            let node = NodeId(*reader.array()?);
            if anchors.nodes.contains(&node) || anchors.nodes.push(node).is_err() {
                return Err(WireError::Invalid.into());
            }
        }
        let entry_count = reader.u16()?;
        let entries = reader.clone();
        for _ in 0..entry_count {
            StoredEntry::parse(&mut reader)?;
        }
        let evidence_count = reader.u8()?;
        let evidence = reader.clone();
        for _ in 0..evidence_count {
            parse_evidence(&mut reader)?;
        }
        reader.end()?;
        Ok(Self { key, anchors, entry_count, entries, evidence_count, evidence })
    }

    /// The key of its buckets.
    #[must_use]
    pub const fn key(&self) -> &BookKey {
        &self.key
    }

    /// Whom to ask first.
    #[must_use]
    pub const fn anchors(&self) -> &Anchors {
        &self.anchors
    }

    /// The nodes.
    pub fn entries(&self) -> impl Iterator<Item = StoredEntry<'a>> {
        let mut reader = self.entries.clone();
        (0..self.entry_count).map_while(move |_| StoredEntry::parse(&mut reader).ok())
    }

    fn evidence(&self) -> impl Iterator<Item = (UnixTime, [&'a [u8]; 2])> {
        let mut reader = self.evidence.clone();
        (0..self.evidence_count).map_while(move |_| parse_evidence(&mut reader).ok())
    }
}

fn parse_descriptor<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], WireError> {
    let len = usize::from(reader.u16()?);
    reader.take(len)
}

fn parse_evidence<'a>(reader: &mut Reader<'a>) -> Result<(UnixTime, [&'a [u8]; 2]), WireError> {
    Ok((UnixTime(reader.u64()?), [parse_descriptor(reader)?, parse_descriptor(reader)?]))
}

impl Source {
    const MET: [u8; NetworkGroup::LEN] = [0; NetworkGroup::LEN];

    const fn to_stored(self) -> [u8; NetworkGroup::LEN] {
        match self {
            Self::Met => Self::MET,
            Self::Peer(group) => group.to_bytes(),
            Self::Announced => [2, 0, 0, 0, 0],
            Self::Stored => [3, 0, 0, 0, 0],
        }
    }

    fn from_stored(bytes: [u8; NetworkGroup::LEN]) -> Result<Self, WireError> {
        match bytes {
            Self::MET => Ok(Self::Met),
            [2, 0, 0, 0, 0] => Ok(Self::Announced),
            [3, 0, 0, 0, 0] => Ok(Self::Stored),
            group => NetworkGroup::from_bytes(group).map(Self::Peer),
        }
    }
}

/// Hands bytes on, and keeps their digest.
struct Output<'s, S> {
    sink: &'s mut S,
    digest: Sha256,
}

impl<S: FnMut(&[u8])> Output<'_, S> {
    fn put(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        (self.sink)(bytes);
    }

    fn put_descriptor(&mut self, card: &VerifiedDescriptor) {
        let mut bytes = [0; DESCRIPTOR_MAX_LEN];
        let len = card.descriptor().emit(&mut bytes).expect("it was written before, to be verified");
        self.put(&(len as u16).to_be_bytes());
        self.put(bytes.get(..len).unwrap_or_default());
    }
}

impl<'m, C: Borrow<VerifiedDescriptor> + Clone> Phonebook<'m, C> {
    /// Writes all that should survive, in pieces. They hold the bucket key, so they are as secret as that.
    pub fn emit<S: FnMut(&[u8])>(&self, anchors: &Anchors, sink: &mut S) {
        let mut output = Output { sink, digest: Sha256::new() };
        output.put(&[FORMAT]);
        output.put(self.key.as_bytes());
        output.put(&[anchors.nodes.len() as u8]);
        anchors.nodes.iter().for_each(|node| output.put(&node.0));
        output.put(&(self.len() as u16).to_be_bytes());
        for entry in self.iter() {
            let history = entry.history();
            let flag = |bit, set| if set { bit } else { 0 };
            let flags = flag(TRIED, history.tried) | flag(PINNED, history.pinned) | flag(DISPUTED, history.disputed);
            output.put(&[flags, history.failures]);
            output.put(&history.source.to_stored());
            for seconds in [history.last_met, history.last_try, history.valid_until] {
                output.put(&seconds.to_be_bytes());
            }
            output.put_descriptor(entry.card().borrow());
        }
        let evidence = || self.evidence().take(u8::MAX.into());
        output.put(&[evidence().count() as u8]);
        for Evidence { pair, noted } in evidence() {
            output.put(&noted.0.to_be_bytes());
            pair.iter().for_each(|card| output.put_descriptor(card.borrow()));
        }
        let digest = output.digest.finalize();
        sink(&digest);
    }

    /// The phonebook of an earlier run. `verify` checks each descriptor again, as with [`VerifiedDescriptor::verify_stored`]; those that it
    /// refuses are left out, and so are those that find no place because a shelf is shorter now.
    ///
    /// What has expired comes back too, because the clock may be wrong: [`Phonebook::set_clock_in_doubt`].
    #[must_use]
    pub fn restore(
        shelves: Shelves<'m, C>,
        own: Option<NodeId>,
        grouping: Grouping,
        stored: &StoredBook<'_>,
        now: UnixTime,
        mut verify: impl FnMut(Descriptor) -> Option<C>,
    ) -> Self {
        let mut book = Self::new(shelves, own, stored.key.clone(), grouping);
        for stored in stored.entries() {
            let Some(card) = stored.descriptor().ok().and_then(&mut verify) else { continue };
            let verified: &VerifiedDescriptor = card.borrow();
            if own == Some(verified.node()) || book.find(&verified.node()).is_some() {
                continue;
            }
            let group = grouping.group_of(verified.address());
            let mut entry = Entry::new(card, group, stored.history.source);
            entry.recall(stored.history);
            if let Some(slot) = book.place_restored(&entry, stored.is_tried(), now) {
                book.put(slot, entry);
            }
        }
        for (noted, pair) in stored.evidence() {
            let [first, second] = pair.map(|bytes| Descriptor::parse(bytes).ok().and_then(&mut verify));
            if let Some((first, second)) = first.zip(second)
                && contradict(first.borrow(), second.borrow())
            {
                book.keep_evidence(Evidence { pair: [first, second], noted });
            }
        }
        book
    }

    fn place_restored(&self, entry: &Entry<C>, tried: bool, now: UnixTime) -> Option<Slot> {
        let vacancy =
            if tried && !self.is_constrained() { self.place_in_tried(entry, None, now) } else { Vacancy::None };
        match vacancy {
            Vacancy::Place(slot) if self.entry(slot).is_none() => Some(slot),
            Vacancy::Place(_) | Vacancy::IfSilent(_) | Vacancy::None => self.place_in_new(entry, None, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec as StdVec;

    use super::super::testing::{Card, NOW, Room, later, node, shared, with};
    use super::super::{Inserted, NEW_PLACES, Refusal, TRIED_PLACES};
    use super::*;

    const PEER: Source = Source::Peer(NetworkGroup::V6([9, 9, 0, 1]));

    fn stored(book: &Phonebook<'_, Card>, anchors: &Anchors) -> StdVec<u8> {
        let mut bytes = StdVec::new();
        book.emit(anchors, &mut |piece: &[u8]| bytes.extend_from_slice(piece));
        bytes
    }

    fn take(descriptor: Descriptor) -> Option<Card> {
        Some(shared(descriptor))
    }

    /// A bit of everything.
    fn fill(book: &mut Phonebook<'_, Card>) {
        for number in 0..40 {
            book.insert(with(number, |_| ()), Source::Met, later(number.into())).unwrap();
        }
        for (number, source) in (40..).zip([PEER, Source::Announced, Source::Stored]) {
            book.insert(with(number, |_| ()), source, NOW).unwrap();
        }
        book.set_pinned(&node(3), true);
        book.set_pinned(&node(41), true);
        book.record_failure(&node(4), true, later(100));
        book.record_failure(&node(40), true, later(101));
        assert!(book.insert(with(5, |d| d.valid_until = later(90_000)), PEER, later(7)).is_err());
        book.insert(with(6, |d| (d.sequence, d.valid_until) = (2, later(5))), PEER, NOW).unwrap();
    }

    fn anchors(numbers: impl IntoIterator<Item = u16>) -> Anchors {
        let mut anchors = Anchors::new();
        numbers.into_iter().for_each(|number| anchors.note(node(number)));
        anchors
    }

    #[test]
    fn comes_back_as_it_was() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let mut book = room.book();
        fill(&mut book);
        let bytes = stored(&book, &anchors([1, 2]));
        let read = StoredBook::parse(&bytes).unwrap();
        assert_eq!(read.anchors().nodes(), [node(2), node(1)]);
        assert_eq!(read.entries().count(), 43);
        assert_eq!(read.entries().filter(StoredEntry::is_tried).count(), 40);
        assert_eq!(read.entries().filter(StoredEntry::is_pinned).count(), 2);

        let mut other = Room::new(TRIED_PLACES, NEW_PLACES);
        // Long after: what has expired comes back, too.
        let now = later(200_000);
        let mut again = Phonebook::restore(other.shelves(), None, Grouping::Network, &read, now, take);
        assert_eq!(stored(&again, read.anchors()), bytes, "each in its bucket, with all that was known of it");
        assert_eq!(again.counts(), book.counts());
        for entry in book.iter() {
            let back = again.get(&entry.node()).unwrap();
            assert_eq!(back.history(), entry.history());
            assert_eq!(back.group(), entry.group());
            assert_eq!(back.is_expired_at(later(86_461)), entry.is_expired_at(later(86_461)));
        }
        let evidence = again.evidence().next().unwrap();
        assert_eq!((evidence.node(), evidence.noted()), (node(5), later(7)));
        assert_eq!(again.insert(with(5, |d| d.sequence = 9), PEER, NOW), Err(Refusal::Disputed));
        again.remove_expired(later(86_461));
        assert_eq!(
            again.len(),
            41,
            "who was met, the pinned, and the one in dispute whose other descriptor is still valid"
        );
        again.remove_expired(later(90_061));
        assert_eq!(again.len(), 40);
    }

    #[test]
    fn what_does_not_verify_is_left_out() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let mut book = room.book();
        fill(&mut book);
        let bytes = stored(&book, &Anchors::new());
        let read = StoredBook::parse(&bytes).unwrap();
        let mut other = Room::new(TRIED_PLACES, NEW_PLACES);
        let forged = [node(1), node(5)];
        let verify = |descriptor: Descriptor| (!forged.contains(&descriptor.node_id())).then(|| shared(descriptor));
        let own = Some(node(7));
        let mut again = Phonebook::restore(other.shelves(), own, Grouping::Network, &read, NOW, verify);
        assert_eq!((again.len(), again.evidence().count()), (40, 0));
        assert_eq!(again.insert(with(7, |d| d.sequence = 5), PEER, NOW), Err(Refusal::Own));
        assert_eq!(again.insert(with(1, |_| ()), PEER, NOW), Ok(Inserted::Added));
    }

    #[test]
    fn shorter_shelves_take_what_fits() {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let mut book = room.book();
        fill(&mut book);
        let bytes = stored(&book, &Anchors::new());
        let read = StoredBook::parse(&bytes).unwrap();
        for (tried, new) in [(8, 8), (0, 10), (8, 0), (0, 0), (64, 64)] {
            let mut other = Room::new(tried, new);
            let again = Phonebook::restore(other.shelves(), None, Grouping::Network, &read, NOW, take);
            assert!(again.len() <= tried + new);
            assert!(again.iter().filter(|entry| entry.is_tried()).count() <= if tried == 0 { new } else { tried });
            assert!(tried + new < 128 || again.len() == 43);
        }
    }

    #[test]
    fn pinned_ones_of_one_group_come_back_to_a_constrained_node() {
        let made = |number| shared(super::super::testing::in_group(super::super::testing::descriptor(number), 1));
        let mut room = Room::new(0, 4);
        let mut book = room.book();
        for number in 0..4 {
            book.insert(made(number), Source::Met, NOW).unwrap();
            book.set_pinned(&node(number), true);
        }
        let bytes = stored(&book, &Anchors::new());
        let mut other = Room::new(0, 4);
        let read = StoredBook::parse(&bytes).unwrap();
        let again = Phonebook::restore(other.shelves(), None, Grouping::Network, &read, NOW, take);
        assert_eq!(stored(&again, &Anchors::new()), bytes);
    }

    #[test]
    fn an_empty_one_comes_back_with_its_key() {
        let mut room = Room::new(64, 64);
        let bytes = stored(&room.book(), &anchors(0..9));
        assert_eq!(bytes.len(), 1 + 32 + 1 + 4 * 32 + 2 + 1 + 32);
        let read = StoredBook::parse(&bytes).unwrap();
        assert_eq!(read.key().as_bytes(), &[7; 32]);
        assert_eq!(read.anchors().nodes(), [8, 7, 6, 5].map(node));
    }

    /// `bytes` with a digest that fits.
    fn resealed(mut bytes: StdVec<u8>) -> StdVec<u8> {
        bytes.extend_from_slice(&Sha256::digest(&bytes));
        bytes
    }

    #[test]
    fn every_truncation_extension_and_change_is_refused() {
        let mut room = Room::new(64, 64);
        let mut book = room.book();
        for number in 0..2 {
            book.insert(with(number, |_| ()), Source::Met, NOW).unwrap();
        }
        assert!(book.insert(with(1, |d| d.link_key = [0; 32]), PEER, NOW).is_err());
        let bytes = stored(&book, &anchors([1]));
        let content = &bytes[..bytes.len() - DIGEST_LEN];
        assert!(StoredBook::parse(&resealed(content.to_vec())).is_ok());
        for len in 0..bytes.len() {
            assert!(StoredBook::parse(&bytes[..len]).is_err(), "{len}");
        }
        for len in 0..content.len() {
            // Even if whoever wrote it believes it to be whole.
            let error = StoredBook::parse(&resealed(content[..len].to_vec())).err();
            assert_eq!(error, Some(StorageError::Malformed(WireError::Truncated)), "{len}");
        }
        for byte in [0, 1, 0xff] {
            let mut longer = bytes.clone();
            longer.push(byte);
            assert_eq!(StoredBook::parse(&longer).err(), Some(StorageError::Damaged));
            let mut longer = content.to_vec();
            longer.push(byte);
            let error = StoredBook::parse(&resealed(longer)).err();
            assert_eq!(error, Some(StorageError::Malformed(WireError::Trailing)));
        }
        for position in (0..bytes.len()).step_by(11) {
            let mut changed = bytes.clone();
            changed[position] ^= 0x10;
            assert_eq!(StoredBook::parse(&changed).err(), Some(StorageError::Damaged), "{position}");
        }
        let entry = 1 + 32 + 1 + 32 + 2;
        for (position, value, error) in [
            (0, 2, WireError::UnknownCode),
            (entry, 8, WireError::NotZero),
            (entry + 2, 9, WireError::UnknownCode),
            (33, 5, WireError::Invalid),
        ] {
            let mut changed = content.to_vec();
            changed[position] = value;
            let found = StoredBook::parse(&resealed(changed)).err();
            assert!(
                found == Some(StorageError::Malformed(error)) || position == 33 && found.is_some(),
                "{position} {found:?}"
            );
        }
    }

    #[test]
    fn the_latest_four_are_anchors() {
        let mut anchors = anchors([1, 2, 3, 2, 4, 5]);
        assert_eq!(anchors.nodes(), [5, 4, 2, 3].map(node));
        anchors.demote(&node(5));
        anchors.demote(&node(9));
        assert_eq!(anchors.nodes(), [4, 2, 3, 5].map(node));
        anchors.note(node(6));
        assert_eq!(anchors.nodes(), [6, 4, 2, 3].map(node));
        anchors.forget(&node(4));
        anchors.forget(&node(9));
        assert_eq!(anchors.nodes(), [6, 2, 3].map(node));
    }
}
