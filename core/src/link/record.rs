//! Records, `PROTOCOL.md` section 4.2: `length u16 || ciphertext || tag 16`, the ciphertext of 1 to N whole cells, in
//! place.
//!
//! A [`Sealer`] and the peer's [`Opener`] count records and change keys in step, so a record can be opened once, in its
//! order, and with none missing before it. The length is not authenticated by itself, and need not be: another length
//! is another ciphertext.

use zeroize::Zeroizing;

use super::aead::{KEY_LEN, RecordAead, RecordKey, TAG_LEN};
use crate::wire::cell::CELL_LEN;

/// Bytes of the length in front of a record's ciphertext.
pub const LENGTH_LEN: usize = 2;
/// Most cells in one record: more would not fit the length.
pub const RECORD_CELLS_MAX: usize = 127;
/// Bytes of the longest record, its length field included.
pub const RECORD_LEN_MAX: usize = record_len(RECORD_CELLS_MAX);
/// Records in one direction after which that direction's key is replaced.
pub const REKEY_INTERVAL: u64 = 1 << 20;

const _: () = assert!(ciphertext_len(RECORD_CELLS_MAX) <= 65_535 && ciphertext_len(RECORD_CELLS_MAX + 1) > 65_535);

/// Bytes on the wire of a record of `cells` cells.
#[must_use]
pub const fn record_len(cells: usize) -> usize {
    LENGTH_LEN + ciphertext_len(cells)
}

/// Where the first cell lies in a record.
#[must_use]
pub const fn cells_offset() -> usize {
    LENGTH_LEN
}

/// What the length field says for a record of `cells` cells.
const fn ciphertext_len(cells: usize) -> usize {
    cells * CELL_LEN + TAG_LEN
}

/// The most cells that a node accepts in one record, 1 to [`RECORD_CELLS_MAX`], as it announced in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordLimit(u8);

impl RecordLimit {
    /// One cell: what a node short of memory announces.
    pub const ONE: Self = Self(1);
    /// As many as the length field can tell.
    pub const MAX: Self = Self(RECORD_CELLS_MAX as u8);

    /// The limit of `cells` cells, or `None` unless it lies in 1 to [`RECORD_CELLS_MAX`].
    #[must_use]
    pub const fn new(cells: u16) -> Option<Self> {
        if cells >= 1 && cells as usize <= RECORD_CELLS_MAX { Some(Self(cells as u8)) } else { None }
    }

    /// The limit in cells.
    #[must_use]
    pub const fn cells(self) -> usize {
        self.0 as usize
    }
}

/// Why a record cannot be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordError {
    /// The peer's length field is not that of 1 to N whole cells.
    Length,
    /// The peer's record does not open: forged, altered, replayed or out of order.
    Forged,
    /// An earlier record failed, and after that none is accepted.
    Failed,
    /// The direction's 2^64 - 1 nonces are used up; the link has to be replaced.
    Exhausted,
    /// The caller's fault: no cells, or more than the peer accepts.
    CellCount,
    /// The caller's fault: the buffer is shorter than the record.
    NoRoom,
}

impl core::fmt::Display for RecordError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Length => "record length is not that of whole cells within the limit",
            Self::Forged => "record is not authentic",
            Self::Failed => "an earlier record failed",
            Self::Exhausted => "nonces of the link are used up",
            Self::CellCount => "number of cells is not one that the peer accepts",
            Self::NoRoom => "buffer is shorter than the record",
        })
    }
}

impl core::error::Error for RecordError {}

/// One direction's cipher and counter: Noise's CipherState (section 5.1), its key replaced at fixed counts.
pub(super) struct CipherState<A> {
    aead: A,
    /// The next record's nonce, which is also the number of records so far.
    nonce: u64,
    rekey_interval: u64,
}

impl<A: RecordAead> CipherState<A> {
    pub(super) fn new(key: &RecordKey) -> Self {
        Self { aead: A::new(key.as_bytes()), nonce: 0, rekey_interval: REKEY_INTERVAL }
    }

    pub(super) fn seal(&mut self, text: &mut [u8]) -> Result<[u8; TAG_LEN], RecordError> {
        let tag = self.aead.seal(self.usable_nonce()?, text);
        self.advance();
        Ok(tag)
    }

    pub(super) fn open(&mut self, text: &mut [u8], tag: &[u8; TAG_LEN]) -> Result<(), RecordError> {
        self.aead.open(self.usable_nonce()?, text, tag).map_err(|_| RecordError::Forged)?;
        self.advance();
        Ok(())
    }

    /// The nonce for the next record. The greatest number is kept for REKEY.
    fn usable_nonce(&self) -> Result<u64, RecordError> {
        if self.nonce == u64::MAX { Err(RecordError::Exhausted) } else { Ok(self.nonce) }
    }

    /// Counts a record that was sealed or opened under [`Self::usable_nonce`].
    fn advance(&mut self) {
        self.nonce += 1;
        if self.nonce.is_multiple_of(self.rekey_interval) {
            self.rekey();
        }
    }

    /// Noise's REKEY: the key becomes the first 32 bytes of the encryption of 32 zero bytes under the greatest nonce.
    pub(super) fn rekey(&mut self) {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        let _unused_tag = self.aead.seal(u64::MAX, &mut *key);
        self.aead = A::new(&key);
    }
}

/// Seals the records of the direction that this node sends in.
pub struct Sealer<A> {
    state: CipherState<A>,
    limit: RecordLimit,
}

impl<A: RecordAead> Sealer<A> {
    /// Begins with the link's sending key and the limit that the peer announced.
    #[must_use]
    pub fn new(key: &RecordKey, limit: RecordLimit) -> Self {
        Self { state: CipherState::new(key), limit }
    }

    /// The most cells that one record may carry to this peer.
    #[must_use]
    pub const fn limit(&self) -> RecordLimit {
        self.limit
    }

    /// Makes a record of the `cells` cells that lie in `buffer` from [`cells_offset`], and answers its length,
    /// [`record_len`] of `cells`: send that many bytes from the buffer's beginning, in the order of sealing.
    ///
    /// # Errors
    /// [`RecordError::CellCount`], [`RecordError::NoRoom`], [`RecordError::Exhausted`]; nothing has changed then.
    pub fn seal(&mut self, buffer: &mut [u8], cells: usize) -> Result<usize, RecordError> {
        if cells == 0 || cells > self.limit.cells() {
            return Err(RecordError::CellCount);
        }
        let total = record_len(cells);
        let record = buffer.get_mut(..total).ok_or(RecordError::NoRoom)?;
        let (length, sealed) = record.split_first_chunk_mut::<LENGTH_LEN>().ok_or(RecordError::NoRoom)?;
        let (text, tag) = sealed.split_last_chunk_mut::<TAG_LEN>().ok_or(RecordError::NoRoom)?;
        *tag = self.state.seal(text)?;
        *length = (ciphertext_len(cells) as u16).to_be_bytes();
        Ok(total)
    }
}

/// What [`Opener::open`] made of the bytes so far.
pub enum Opened<'b> {
    /// The record is not complete; ask again when `total` bytes (from the record's beginning) are there. While the
    /// length itself is missing that is only the length's end.
    NeedMore {
        /// Bytes from the record's beginning, at most [`record_len`] of the limit.
        total: usize,
    },
    /// A record, decrypted where it lay.
    Record {
        /// Its cells, 1 to the limit.
        cells: &'b mut [[u8; CELL_LEN]],
        /// The record's bytes, the next record begins after them.
        consumed: usize,
    },
}

/// Opens the records of the direction that this node receives in.
pub struct Opener<A> {
    /// `None` once a record has failed, so that the key is gone too.
    state: Option<CipherState<A>>,
    limit: RecordLimit,
}

impl<A: RecordAead> Opener<A> {
    /// Begins with the link's receiving key and the limit that this node announced.
    #[must_use]
    pub fn new(key: &RecordKey, limit: RecordLimit) -> Self {
        Self { state: Some(CipherState::new(key)), limit }
    }

    /// Opens the record that begins at the beginning of `buffer`, as far as it has arrived; what follows it is left
    /// alone.
    ///
    /// The buffer needs room for [`record_len`] of the announced limit and never for more: a length is judged as soon
    /// as it is there.
    ///
    /// # Errors
    /// [`RecordError::Length`] and [`RecordError::Forged`] for what the peer sent, [`RecordError::Exhausted`]; the link
    /// is to be closed, and every later call answers [`RecordError::Failed`].
    pub fn open<'b>(&mut self, buffer: &'b mut [u8]) -> Result<Opened<'b>, RecordError> {
        let state = self.state.as_mut().ok_or(RecordError::Failed)?;
        let opened = Self::open_under(state, self.limit, buffer);
        if opened.is_err() {
            self.state = None;
        }
        opened
    }

    fn open_under<'b>(
        state: &mut CipherState<A>,
        limit: RecordLimit,
        buffer: &'b mut [u8],
    ) -> Result<Opened<'b>, RecordError> {
        let Some((length, rest)) = buffer.split_first_chunk_mut::<LENGTH_LEN>() else {
            return Ok(Opened::NeedMore { total: LENGTH_LEN });
        };
        let length = usize::from(u16::from_be_bytes(*length));
        let cells_len = length.checked_sub(TAG_LEN).ok_or(RecordError::Length)?;
        if cells_len == 0 || cells_len % CELL_LEN != 0 || cells_len / CELL_LEN > limit.cells() {
            return Err(RecordError::Length);
        }
        let consumed = LENGTH_LEN + length;
        let Some((text, tag)) = rest.get_mut(..length).and_then(|sealed| sealed.split_last_chunk_mut::<TAG_LEN>())
        else {
            return Ok(Opened::NeedMore { total: consumed });
        };
        state.open(text, tag)?;
        let (cells, _nothing) = text.as_chunks_mut::<CELL_LEN>();
        Ok(Opened::Record { cells, consumed })
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::super::aead::PortableAead;
    use super::*;

    type Cells = Vec<[u8; CELL_LEN]>;

    /// A sealer and an opener that change keys every `rekey_interval` records.
    fn pair(rekey_interval: u64) -> (Sealer<PortableAead>, Opener<PortableAead>) {
        let state = || CipherState { rekey_interval, ..CipherState::new(&RecordKey::new([9; KEY_LEN])) };
        (Sealer { state: state(), limit: RecordLimit::MAX }, Opener { state: Some(state()), limit: RecordLimit::MAX })
    }

    fn cells(count: usize, seed: u8) -> Cells {
        (0..count).map(|cell| core::array::from_fn(|i| (i + cell * 7) as u8 ^ seed)).collect()
    }

    fn seal(sealer: &mut Sealer<PortableAead>, cells: &Cells) -> Vec<u8> {
        let mut buffer = vec![0xa5; record_len(cells.len())];
        buffer[cells_offset()..][..cells.len() * CELL_LEN].copy_from_slice(cells.as_flattened());
        assert_eq!(sealer.seal(&mut buffer, cells.len()), Ok(buffer.len()));
        buffer
    }

    /// The cells and the length of the record at the beginning of `bytes`, `None` while it is incomplete.
    fn open(opener: &mut Opener<PortableAead>, bytes: &mut [u8]) -> Result<Option<(Cells, usize)>, RecordError> {
        opener.open(bytes).map(|opened| match opened {
            Opened::NeedMore { .. } => None,
            Opened::Record { cells, consumed } => Some((cells.to_vec(), consumed)),
        })
    }

    /// Two of these are held for every link. What they take is the cipher's round keys and hash table.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_links_ciphers_stay_small() {
        assert_eq!((size_of::<Sealer<PortableAead>>(), size_of::<Opener<PortableAead>>()), (416, 432));
    }

    #[test]
    fn sizes_are_those_of_the_protocol() {
        assert_eq!((record_len(1), RECORD_LEN_MAX), (532, 65_296));
        assert_eq!(RecordLimit::new(0), None);
        assert_eq!(RecordLimit::new(1), Some(RecordLimit::ONE));
        assert_eq!(RecordLimit::new(127), Some(RecordLimit::MAX));
        assert_eq!(RecordLimit::new(128), None);
        assert_eq!(RecordLimit::new(257), None);
    }

    proptest! {
        #[test]
        fn any_split_of_the_stream_gives_the_same_cells(
            counts in prop::collection::vec(1_usize..6, 1..6),
            splits in prop::collection::vec(1_usize..1500, 1..20),
            rekey_interval in 1_u64..4,
        ) {
            let (mut sealer, mut opener) = pair(rekey_interval);
            let sent: Vec<Cells> = counts.iter().enumerate().map(|(i, &count)| cells(count, i as u8)).collect();
            let stream: Vec<u8> = sent.iter().flat_map(|cells| seal(&mut sealer, cells)).collect();
            let (mut received, mut buffer, mut rest) = (vec![], vec![], stream.as_slice());
            let mut splits = splits.iter().cycle();
            while !rest.is_empty() {
                let (piece, later) = rest.split_at(rest.len().min(*splits.next().unwrap()));
                rest = later;
                buffer.extend_from_slice(piece);
                while let Some((cells, consumed)) = open(&mut opener, &mut buffer).unwrap() {
                    received.push(cells);
                    buffer.drain(..consumed);
                }
            }
            prop_assert_eq!(received, sent);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn no_bytes_panic_or_open(mut bytes in prop::collection::vec(any::<u8>(), 0..1200), head in 0_usize..3) {
            if let (Some(length), true) = (bytes.first_chunk_mut(), head > 0) {
                *length = (ciphertext_len(head) as u16).to_be_bytes();
            }
            prop_assert!(!matches!(open(&mut pair(2).1, &mut bytes), Ok(Some(_))));
        }
    }

    #[test]
    fn every_truncation_waits_for_exactly_what_is_missing() {
        let (mut sealer, mut opener) = pair(REKEY_INTERVAL);
        let mut record = seal(&mut sealer, &cells(2, 1));
        for len in 0..record.len() {
            let before = record.clone();
            match opener.open(&mut record[..len]) {
                Ok(Opened::NeedMore { total }) if len < 2 => assert_eq!(total, 2),
                Ok(Opened::NeedMore { total }) => assert_eq!(total, before.len()),
                _ => panic!("{len} bytes are not a record"),
            }
            assert_eq!(record, before, "waiting changes nothing");
        }
        assert_eq!(open(&mut opener, &mut record), Ok(Some((cells(2, 1), record_len(2)))));
    }

    #[test]
    fn every_flipped_bit_fails_and_poisons_the_opener() {
        let mut record = seal(&mut pair(REKEY_INTERVAL).0, &cells(1, 1));
        for bit in 0..record.len() * 8 {
            let mut altered = record.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            let mut opener = pair(REKEY_INTERVAL).1;
            let expected = if bit < LENGTH_LEN * 8 { RecordError::Length } else { RecordError::Forged };
            assert_eq!(open(&mut opener, &mut altered), Err(expected), "bit {bit}");
            assert_eq!(open(&mut opener, &mut record), Err(RecordError::Failed), "after bit {bit}");
        }
    }

    #[test]
    fn replayed_reordered_and_dropped_records_fail() {
        for rekey_interval in [1, 2, REKEY_INTERVAL] {
            let mut sealer = pair(rekey_interval).0;
            let records: [Vec<u8>; 3] = core::array::from_fn(|i| seal(&mut sealer, &cells(1, i as u8)));
            for (order, good) in [([0, 0], 1), ([1, 0], 0), ([0, 2], 1), ([2, 2], 0)] {
                let mut opener = pair(rekey_interval).1;
                for (i, which) in order.into_iter().take(good + 1).enumerate() {
                    let opened = open(&mut opener, &mut records[which].clone());
                    assert_eq!(opened.err(), (i == good).then_some(RecordError::Forged), "{order:?} at {i}");
                }
            }
        }
    }

    #[test]
    fn impossible_lengths_are_refused_before_anything_else_arrives() {
        let valid = |length: usize, limit: usize| (1..=limit).any(|cells| length == cells * 514 + 16);
        for limit in [RecordLimit::ONE, RecordLimit::new(32).unwrap(), RecordLimit::MAX] {
            for length in 0..=u16::MAX {
                let mut opener = Opener { limit, ..pair(REKEY_INTERVAL).1 };
                match (opener.open(&mut length.to_be_bytes()), valid(length.into(), limit.cells())) {
                    (Ok(Opened::NeedMore { total }), true) => assert_eq!(total, 2 + usize::from(length)),
                    (Err(RecordError::Length), false) => {}
                    _ => panic!("length {length}, limit {limit:?}"),
                }
            }
        }
    }

    #[test]
    fn keys_change_in_step_and_the_old_key_opens_nothing_more() {
        let (mut sealer, mut opener) = pair(3);
        let mut never = pair(REKEY_INTERVAL).1;
        for i in 0..10 {
            let record = seal(&mut sealer, &cells(1, i));
            assert_eq!(open(&mut opener, &mut record.clone()), Ok(Some((cells(1, i), record_len(1)))), "record {i}");
            let without_rekey = open(&mut never, &mut record.clone()).err();
            let expected = [None, Some(RecordError::Forged), Some(RecordError::Failed)];
            assert_eq!(without_rekey, expected[usize::from(i).saturating_sub(2).min(2)], "record {i}");
        }
    }

    #[test]
    fn nonces_end_before_the_one_that_rekey_uses() {
        let (mut sealer, mut opener) = pair(REKEY_INTERVAL);
        sealer.state.nonce = u64::MAX - 1;
        opener.state.as_mut().unwrap().nonce = u64::MAX - 1;
        let mut record = seal(&mut sealer, &cells(1, 0));
        assert_eq!(open(&mut opener, &mut record), Ok(Some((cells(1, 0), record_len(1)))));
        let mut buffer = [0xa5; record_len(1)];
        assert_eq!(sealer.seal(&mut buffer, 1), Err(RecordError::Exhausted));
        assert_eq!(buffer, [0xa5; record_len(1)], "a failed seal changes nothing");
        assert_eq!(open(&mut opener, &mut record), Err(RecordError::Exhausted));
    }

    #[test]
    fn sealer_refuses_what_the_peer_would_refuse() {
        let mut sealer = Sealer { limit: RecordLimit::new(3).unwrap(), ..pair(REKEY_INTERVAL).0 };
        let mut buffer = vec![0; record_len(3)];
        for cells in [0, 4, 127, usize::MAX] {
            assert_eq!(sealer.seal(&mut buffer, cells), Err(RecordError::CellCount));
        }
        for len in 0..record_len(3) {
            assert_eq!(sealer.seal(&mut buffer[..len], 3), Err(RecordError::NoRoom));
        }
        assert_eq!(sealer.state.nonce, 0);
        assert_eq!(sealer.seal(&mut buffer, 3), Ok(record_len(3)));
    }
}
