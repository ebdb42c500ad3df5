//! The file of `bulbil phonebook export` and `import`: text, so that it can be mailed, cut and joined (`cat one two` is an export too).
//!
//! ```text
//! bulbil-phonebook 1
//! # anything
//! -----BEGIN BULBIL DESCRIPTOR-----
//! base64 of one signed descriptor, PROTOCOL.md section 3, 64 digits a line, padded
//! -----END BULBIL DESCRIPTOR-----
//! ```
//!
//! The first line comes first, and may come again between blocks. Outside of blocks there are comments and empty lines and nothing else.
//! Text that is otherwise is a damaged file, and none of it is used; whether a descriptor is any good is for [`super::import`] to say.

use std::fmt;

use base64ct::{Base64, Encoding};
use bulbil_core::wire::descriptor::DESCRIPTOR_MAX_LEN;

/// Most bytes of a file that is read.
pub const FILE_MAX: u64 = 64 << 20;
/// Most descriptors in one file that is read: more than a phonebook holds.
pub const DESCRIPTORS_MAX: usize = 16_384;

const MAGIC: &str = "bulbil-phonebook ";
const VERSION: &str = "1";
const BEGIN: &str = "-----BEGIN BULBIL DESCRIPTOR-----";
const END: &str = "-----END BULBIL DESCRIPTOR-----";
/// Bytes of a descriptor that make one line of base64.
const LINE_BYTES: usize = 48;
/// Longest line that is read.
const LINE_MAX: usize = 256;
/// Most base64 digits of a block.
const BLOCK_MAX: usize = DESCRIPTOR_MAX_LEN.div_ceil(3) * 4;

/// What is wrong with a file's text, and in which line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileError {
    /// It does not begin as an export does.
    NotOurs,
    /// A later version of this program wrote it.
    Version,
    /// A line that has no place there.
    Line(usize),
    /// A block that is not base64.
    Base64(usize),
    /// A block longer than any descriptor.
    TooLong(usize),
    /// It ends within a block.
    CutOff,
    /// It holds more descriptors than any phonebook.
    TooMany,
    /// It is longer than such a file can be.
    TooLarge,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOurs => write!(f, "this is not an exported phonebook: its first line is not \"{MAGIC}{VERSION}\""),
            Self::Version => f.write_str("a later version of bulbil wrote this file; use that version"),
            Self::Line(line) => write!(f, "line {line} belongs to no descriptor: the file is damaged"),
            Self::Base64(line) => {
                write!(f, "the descriptor that ends in line {line} is not base64: the file is damaged")
            }
            Self::TooLong(line) => write!(f, "line {line}: no descriptor is that long"),
            Self::CutOff => f.write_str("the file ends within a descriptor: it is cut off"),
            Self::TooMany => write!(f, "the file holds more than {DESCRIPTORS_MAX} descriptors; split it"),
            Self::TooLarge => write!(f, "the file is larger than {} MiB; split it", FILE_MAX >> 20),
        }?;
        f.write_str("; nothing was imported")
    }
}

impl std::error::Error for FileError {}

/// The text that an export begins with.
#[must_use]
pub fn heading() -> String {
    format!("{MAGIC}{VERSION}\n")
}

/// Appends the block of one encoded descriptor.
pub fn push_block(text: &mut String, descriptor: &[u8]) {
    text.push_str(BEGIN);
    text.push('\n');
    let mut digits = [0; LINE_BYTES / 3 * 4];
    for part in descriptor.chunks(LINE_BYTES) {
        text.push_str(Base64::encode(part, &mut digits).expect("a line has room for what makes one"));
        text.push('\n');
    }
    text.push_str(END);
    text.push('\n');
}

/// Where in a file the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the first line.
    Start,
    /// Between blocks.
    Between,
    /// In a block.
    Block,
}

/// Reads a file in whatever pieces it comes. Keeps no more than a line and a block of it.
#[derive(Debug)]
pub struct FileReader {
    place: Place,
    number: usize,
    line: Vec<u8>,
    block: Vec<u8>,
    count: usize,
    read: u64,
}

impl Default for FileReader {
    fn default() -> Self {
        Self { place: Place::Start, number: 0, line: Vec::new(), block: Vec::new(), count: 0, read: 0 }
    }
}

impl FileReader {
    /// Takes the next piece and gives out the descriptors that it completes, as bytes that nobody has judged.
    ///
    /// # Errors
    /// [`FileError`], after which the reader is of no more use, and what it gave out should not be used either.
    pub fn feed(&mut self, mut piece: &[u8], take: &mut impl FnMut(&[u8])) -> Result<(), FileError> {
        self.read = self.read.saturating_add(piece.len() as u64);
        if self.read > FILE_MAX {
            return Err(FileError::TooLarge);
        }
        while !piece.is_empty() {
            let end = piece.iter().position(|&byte| byte == b'\n');
            let (part, rest) = piece.split_at(end.unwrap_or(piece.len()));
            if self.line.len() + part.len() > LINE_MAX {
                return Err(if self.place == Place::Start {
                    FileError::NotOurs
                } else {
                    FileError::Line(self.number + 1)
                });
            }
            self.line.extend_from_slice(part);
            piece = rest.get(1..).unwrap_or_default();
            if end.is_some() {
                self.take_line(take)?;
            }
        }
        Ok(())
    }

    /// The file is over; answers how many descriptors it held.
    ///
    /// # Errors
    /// It is cut off, or not an export at all.
    pub fn finish(mut self, take: &mut impl FnMut(&[u8])) -> Result<usize, FileError> {
        if !self.line.is_empty() {
            self.take_line(take)?;
        }
        match self.place {
            Place::Start => Err(FileError::NotOurs),
            Place::Block => Err(FileError::CutOff),
            Place::Between => Ok(self.count),
        }
    }

    fn take_line(&mut self, take: &mut impl FnMut(&[u8])) -> Result<(), FileError> {
        let mut line = std::mem::take(&mut self.line);
        self.number += 1;
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        match (self.place, line.strip_prefix(MAGIC.as_bytes())) {
            (Place::Start | Place::Between, Some(version)) if version == VERSION.as_bytes() => {
                self.place = Place::Between;
            }
            (Place::Start | Place::Between, Some(version)) if !version.is_empty() => return Err(FileError::Version),
            (Place::Start, _) => return Err(FileError::NotOurs),
            (Place::Between, _) if line == BEGIN.as_bytes() => {
                if self.count == DESCRIPTORS_MAX {
                    return Err(FileError::TooMany);
                }
                self.place = Place::Block;
            }
            (Place::Between, _) if line.is_empty() || line.first() == Some(&b'#') => {}
            (Place::Between, _) => return Err(FileError::Line(self.number)),
            (Place::Block, _) if line == END.as_bytes() => {
                let mut bytes = [0; BLOCK_MAX / 4 * 3];
                let decoded = Base64::decode(&self.block, &mut bytes).map_err(|_| FileError::Base64(self.number))?;
                take(decoded);
                self.block.clear();
                self.count += 1;
                self.place = Place::Between;
            }
            (Place::Block, _) if self.block.len() + line.len() > BLOCK_MAX => {
                return Err(FileError::TooLong(self.number));
            }
            (Place::Block, _) if line.first() == Some(&b'-') => return Err(FileError::Line(self.number)),
            (Place::Block, _) => self.block.extend_from_slice(&line),
        }
        // Its room is used again.
        line.clear();
        self.line = line;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text_of(descriptors: &[Vec<u8>]) -> String {
        let mut text = heading();
        for descriptor in descriptors {
            push_block(&mut text, descriptor);
        }
        text
    }

    fn read_in(text: &[u8], pieces: usize) -> Result<Vec<Vec<u8>>, FileError> {
        let (mut reader, mut found) = (FileReader::default(), Vec::new());
        let mut take = |bytes: &[u8]| found.push(bytes.to_vec());
        for piece in text.chunks(pieces.max(1)) {
            reader.feed(piece, &mut take)?;
        }
        let count = reader.finish(&mut take)?;
        assert_eq!(count, found.len());
        Ok(found)
    }

    fn read(text: impl AsRef<[u8]>) -> Result<Vec<Vec<u8>>, FileError> {
        read_in(text.as_ref(), usize::MAX)
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_in_any_pieces(
            descriptors in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..DESCRIPTOR_MAX_LEN), 0..4),
            pieces in 1usize..300,
        ) {
            prop_assert_eq!(read_in(text_of(&descriptors).as_bytes(), pieces).unwrap(), descriptors);
        }

        #[test]
        fn garbage_gives_nothing(garbage in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert_eq!(read(&garbage), Err(FileError::NotOurs));
            let mut text = text_of(&[vec![1; 100]]).into_bytes();
            text.extend_from_slice(&garbage);
            if let Ok(found) = read(&text) {
                prop_assert_eq!(found.len(), 1);
            }
        }
    }

    #[test]
    fn two_files_joined_are_one_and_carriage_returns_and_comments_do_not_matter() {
        let (one, two) = (vec![vec![1; 700]], vec![vec![2; DESCRIPTOR_MAX_LEN], vec![3; 1]]);
        let both = [text_of(&one), "\n# the other\n".into(), text_of(&two)].concat();
        let expected = [one, two].concat();
        assert_eq!(read(&both).unwrap(), expected);
        assert_eq!(read(both.replace('\n', "\r\n")).unwrap(), expected);
        assert_eq!(read(both.trim_end()).unwrap(), expected, "the last line's end may be missing");
        assert_eq!(read(heading()).unwrap(), Vec::<Vec<u8>>::new(), "an empty phonebook");
    }

    #[test]
    fn every_cut_is_noticed_or_leaves_whole_descriptors() {
        let descriptors = vec![vec![5; 300], vec![6; 300]];
        let text = text_of(&descriptors);
        for len in 0..text.len() {
            match read(&text[..len]) {
                // Whole lines only: what is left is what a shorter export would be.
                Ok(found) => assert_eq!(found, descriptors[..found.len()], "{len}"),
                Err(error) => assert!(
                    matches!(error, FileError::NotOurs | FileError::CutOff | FileError::Line(_)),
                    "{len}: {error:?}"
                ),
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let text = text_of(&[vec![7; 96]]);
        let altered = |from: &str, to: &str| read(text.replacen(from, to, 1));
        assert_eq!(altered("bulbil-phonebook 1", "bulbil-phonebook 2"), Err(FileError::Version));
        assert_eq!(altered("bulbil-phonebook 1", "bulbil-phonebook"), Err(FileError::NotOurs));
        assert_eq!(altered(BEGIN, "hello"), Err(FileError::Line(2)));
        assert_eq!(altered("BwcH", "Bw!H"), Err(FileError::Base64(5)));
        assert_eq!(altered("BwcH", "Bwc"), Err(FileError::Base64(5)));
        assert_eq!(altered(END, BEGIN), Err(FileError::Line(5)));
        let long = format!("{}{BEGIN}\n{}", heading(), format!("{}\n", "A".repeat(64)).repeat(BLOCK_MAX / 64 + 1));
        assert!(matches!(read(long), Err(FileError::TooLong(_))));
        assert_eq!(read(format!("{}#{}", heading(), "x".repeat(LINE_MAX))), Err(FileError::Line(2)));
        let many = format!("{}{}", heading(), format!("{BEGIN}\nAAAA\n{END}\n").repeat(DESCRIPTORS_MAX + 1));
        assert_eq!(read(many), Err(FileError::TooMany));
        let mut reader = FileReader::default();
        reader.feed(heading().as_bytes(), &mut |_| ()).unwrap();
        let mebibyte = format!("#{}\n", "x".repeat(254)).repeat(1 << 12);
        let fed = (0..64).try_for_each(|_| reader.feed(mebibyte.as_bytes(), &mut |_| ()));
        assert_eq!(fed, Err(FileError::TooLarge));
    }
}
