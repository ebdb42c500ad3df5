//! The phonebook between two runs, `PROTOCOL.md` section 18.8.
//!
//! | field | bytes | |
//! | --- | --- | --- |
//! | format | 1 | 1 |
//! | key | 32 | of the buckets |
//! | anchors | 1 + n x 32 | count 0 to 4, node ids, the latest first |
//! | entries | 2 + n x (18 + descriptor) | count, then each |
//! | evidence | 1 + n x (8 + 2 descriptors) | count, then noted `u64` and both |
//! | digest | 32 | SHA-256 over all before |
//!
//! An entry is `flags u8 (bit 0 tried, 1 pinned, 2 in dispute) || failures u8 || source 5 || last met u32 || last try u32 || disputed until u32`, and its
//! descriptor. A descriptor is preceded by its length, `u16`.

use core::borrow::Borrow;

use heapless::Vec;
use sha2::{Digest, Sha256};

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

    /// A node has not answered.
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
        let len = card.descriptor().emit(&mut bytes).unwrap_or(0);
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
            if let Some((first, second)) = first.zip(second) {
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
