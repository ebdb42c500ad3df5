//! Link records, `PROTOCOL.md` section 4.2, on a wire that splits, alters, loses, repeats and reorders: what comes out is
//! exactly what went in, up to the first byte that is not the sender's; then there is an error, and nothing for ever.

use bulbil_core::link::aead::RecordKey;
use bulbil_core::link::record::{cells_offset, record_len};
use bulbil_core::link::{Opened, Opener, PortableAead, RecordError, RecordLimit, Sealer};

use super::script::Script;

const CELL_LEN: usize = 514;
const OVERHEAD: usize = 2 + 16;
/// Enough for every way in which few records can interact.
const WIRE_MAX: usize = 1 << 16;
/// As for the wire.
const STEPS_MAX: usize = 64;

/// A sent record: where it ends on the wire, and the cells in it.
struct Sent {
    end: usize,
    cells: Vec<u8>,
}

/// The whole system: a sender, a wire in an attacker's hands, a receiver.
struct Link {
    limit: RecordLimit,
    sealer: Sealer<PortableAead>,
    opener: Opener<PortableAead>,
    /// What the sender put on the wire, and which records that is.
    honest: Vec<u8>,
    sent: Vec<Sent>,
    /// On the wire, not yet at the receiver.
    wire: Vec<u8>,
    /// Everything that arrived, as it arrived.
    arrived: Vec<u8>,
    /// The receiver's buffer: what arrived and belongs to no opened record.
    buffer: Vec<u8>,
    opened: usize,
    failed: bool,
}

/// The input is a [`Script`] of what happens to a link.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    let limit = match script.byte() {
        // Mostly small, since records of many cells take long and teach little.
        Some(byte @ 0xf0..) => RecordLimit::new(u16::from(byte & 0x0f) * 8 + 7),
        Some(byte) => RecordLimit::new(u16::from(byte % 4) + 1),
        None => return,
    };
    let limit = limit.expect("1 to 127");
    let key = RecordKey::new([7; 32]);
    let mut link = Link {
        limit,
        sealer: Sealer::new(&key, limit),
        opener: Opener::new(&key, limit),
        honest: Vec::new(),
        sent: Vec::new(),
        wire: Vec::new(),
        arrived: Vec::new(),
        buffer: Vec::new(),
        opened: 0,
        failed: false,
    };
    for _ in 0..STEPS_MAX {
        if link.step(&mut script).is_none() {
            break;
        }
    }
    let rest = link.wire.len();
    link.deliver(rest);
}

impl Link {
    fn step(&mut self, script: &mut Script<'_>) -> Option<()> {
        match script.byte()? % 10 {
            0..=2 => self.send(usize::from(script.byte()?)),
            3 | 4 => {
                let len = script.below(self.wire.len() + 1)?;
                self.deliver(len);
            }
            5 => {
                let at = script.below(self.wire.len())?;
                self.wire[at] ^= script.byte()?;
            }
            6 => {
                let range = script.range(self.wire.len())?;
                self.wire.drain(range);
            }
            7 => {
                let range = script.range(self.wire.len())?;
                let at = script.below(self.wire.len() + 1)?;
                let copy = self.wire[range].to_vec();
                self.insert(at, &copy);
            }
            8 => {
                let at = script.below(self.wire.len() + 1)?;
                let len = usize::from(script.byte()? % 32);
                self.insert(at, script.bytes(len));
            }
            _ => {
                // A record that was sent comes again, whole, where one might be expected.
                let which = script.below(self.sent.len())?;
                let start = which.checked_sub(1).map_or(0, |before| self.sent[before].end);
                let copy = self.honest[start..self.sent[which].end].to_vec();
                let at = if script.byte()? & 1 == 0 { 0 } else { self.wire.len() };
                self.insert(at, &copy);
            }
        }
        Some(())
    }

    fn insert(&mut self, at: usize, bytes: &[u8]) {
        if self.wire.len() + self.arrived.len() + bytes.len() <= WIRE_MAX {
            self.wire.splice(at..at, bytes.iter().copied());
        }
    }

    fn send(&mut self, choice: usize) {
        let count = 1 + choice % self.limit.cells();
        let total = record_len(count);
        if self.honest.len() + self.wire.len() + total > WIRE_MAX {
            return;
        }
        let tell = |at: usize| (at as u8).wrapping_mul(31) ^ self.sent.len() as u8 ^ choice as u8;
        let cells: Vec<u8> = (0..count * CELL_LEN).map(tell).collect();
        let mut record = vec![0xa5; total];
        record[cells_offset()..][..cells.len()].copy_from_slice(&cells);
        assert_eq!(self.sealer.seal(&mut record, count), Ok(total));
        assert_eq!(total, cells.len() + OVERHEAD);
        self.honest.extend_from_slice(&record);
        self.wire.extend_from_slice(&record);
        self.sent.push(Sent { end: self.honest.len(), cells });
    }

    /// The next `len` bytes reach the receiver.
    fn deliver(&mut self, len: usize) {
        for byte in self.wire.drain(..len) {
            self.arrived.push(byte);
            self.buffer.push(byte);
        }
        while self.open() {}
    }

    /// Lets the receiver try once; whether a record came out.
    fn open(&mut self) -> bool {
        let before = self.buffer.clone();
        let start = self.opened.checked_sub(1).map_or(0, |last| self.sent[last].end);
        let honest = self.sent.get(self.opened).filter(|next| {
            let record = self.arrived.get(start..next.end);
            record.is_some_and(|record| *record == self.honest[start..next.end])
        });
        let largest = record_len(self.limit.cells());
        match self.opener.open(&mut self.buffer) {
            Ok(Opened::Record { cells, consumed }) => {
                assert!(!self.failed, "a record after a failure");
                let honest = honest.expect("a record that was not sent next");
                assert_eq!(cells.as_flattened(), honest.cells);
                assert_eq!(start + consumed, honest.end);
                assert_eq!(self.buffer[consumed..], before[consumed..], "what follows the record was touched");
                self.buffer.drain(..consumed);
                self.opened += 1;
                true
            }
            Ok(Opened::NeedMore { total }) => {
                assert!(!self.failed && honest.is_none());
                assert_eq!(self.buffer, before);
                assert!(total > before.len() && total <= largest, "asks for {total} bytes");
                match before.first_chunk() {
                    None => assert_eq!(total, 2),
                    Some(&length) => assert_eq!(total, 2 + usize::from(u16::from_be_bytes(length))),
                }
                false
            }
            Err(error) => {
                assert!(honest.is_none(), "{error} for what was sent");
                let length = before.first_chunk().map(|&length| usize::from(u16::from_be_bytes(length)));
                let possible = |length: usize| (1..=self.limit.cells()).any(|count| length == count * CELL_LEN + 16);
                let expected = match length {
                    _ if self.failed => RecordError::Failed,
                    Some(length) if !possible(length) => RecordError::Length,
                    Some(length) if before.len() >= 2 + length => RecordError::Forged,
                    _ => panic!("{error} before a record was there"),
                };
                assert_eq!(error, expected);
                // What it holds is of no use any more; what comes later is refused whatever it is.
                self.buffer.clear();
                self.failed = true;
                false
            }
        }
    }
}
