//! The exchange of descriptors, `PROTOCOL.md` section 18.3: requests are accepted exactly where the section allows them and emitted as the very
//! same bytes; an answer is read, and refused, the same in whatever pieces it comes; a filter holds what was put in, by the bits of the section.

use std::sync::OnceLock;

use bulbil_core::phonebook::VerifiedDescriptor;
use bulbil_core::phonebook::exchange::{
    ANSWER_MAX_LEN, AnswerReader, AnswerWriter, FILTER_MAX_LEN, Filter, FilterBuilder, REQUEST_MAX_LEN, Refused,
    Request, Salt, SampleKind, Want,
};
use bulbil_core::wire::{Descriptor, NodeId, UnixTime, WireError};
use sha2::{Digest, Sha256};

use super::descriptor::{self, allowed};
use super::model::Bytes;
use super::script::Script;

/// The first byte says what the rest is.
pub fn check(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let _the_script_is_over = match kind % 4 {
        0 => {
            check_request(rest);
            None
        }
        1 => check_answer(rest),
        2 => check_filter(rest),
        _ => check_writer(rest),
    };
}

fn check_request(input: &[u8]) {
    let parsed = Request::parse(input);
    assert_eq!(parsed.is_ok(), request_allowed(input).is_some(), "{parsed:?}");
    let Ok(request) = parsed else { return };
    assert!(input.len() <= REQUEST_MAX_LEN);
    let mut emitted = [0xa5; REQUEST_MAX_LEN];
    assert_eq!(request.emit(&mut emitted), Ok(input.len()));
    assert_eq!(emitted[..input.len()], *input);
    assert!(emitted[input.len()..].iter().all(|&byte| byte == 0xa5), "wrote past its end");
    assert_eq!(request.emit(&mut vec![0; input.len() - 1]), Err(WireError::NoRoom));
    assert_eq!((request.kind as u8, request.want.value()), (input[1], input[2]));
    assert_eq!(request.kind == SampleKind::Epoch, input[1] == 2);
    if let Some(announcement) = request.announcement {
        assert!(input.ends_with(announcement) && matches!(request.announced(), Some(Ok(_))));
    }
    let node = NodeId([input[3]; 32]);
    let bits = &input[13..][..request.filter.as_bytes().len()];
    assert_eq!(request.filter.holds(&node, 7), holds(bits, &input[3..11], &node, 7));
    for end in [0, 11, input.len() - 1] {
        assert!(Request::parse(&input[..end]).is_err(), "accepted a part of itself");
    }
    assert!(Request::parse(&[input, &[0]].concat()).is_err(), "accepted more");
}

fn request_allowed(input: &[u8]) -> Option<()> {
    let mut bytes = Bytes(input);
    bytes.number(1).filter(|&version| version == 1)?;
    bytes.number(1).filter(|kind| (1..=2).contains(kind))?;
    bytes.number(1).filter(|want| (1..=128).contains(want))?;
    bytes.take(8)?;
    let filter = bytes.number(2).filter(|&len| len <= 4096)?;
    bytes.take(filter as usize)?;
    let announcement = bytes.number(2)?;
    let announcement = bytes.take(announcement as usize)?;
    if !announcement.is_empty() {
        allowed(announcement)?;
    }
    bytes.0.is_empty().then_some(())
}

/// Section 18.3's bits.
fn bits(len: usize, salt: &[u8], node: &NodeId, sequence: u64) -> Vec<usize> {
    let digest = Sha256::digest([b"bulbil/1 filter", salt, &node.0, &sequence.to_be_bytes()].concat());
    (0..6).map(|i| Bytes(&digest[4 * i..]).number(4).expect("32 bytes") as usize % (8 * len)).collect()
}

fn holds(filter: &[u8], salt: &[u8], node: &NodeId, sequence: u64) -> bool {
    !filter.is_empty()
        && bits(filter.len(), salt, node, sequence).into_iter().all(|bit| filter[bit / 8] >> (bit % 8) & 1 == 1)
}

/// How many are wanted, whether signatures count, the length of pieces; then the answer.
fn check_answer(input: &[u8]) -> Option<()> {
    let mut script = Script::new(input);
    let want = Want::new(1 + script.byte()? % 128)?;
    let strict = script.byte()? & 1 != 0;
    let piece = 1 + script.below(3000)?;
    let answer = script.bytes(usize::MAX);
    let verdict = |descriptor: &[u8]| {
        if strict && !descriptor::signed().iter().any(|signed| signed == descriptor) {
            Err(Refused::Signature)
        } else {
            Ok(())
        }
    };
    let (nodes, ended) = read(answer, want, verdict);

    for piece in [piece, answer.len().max(1)] {
        let mut reader = AnswerReader::new(want);
        let mut found = Vec::new();
        let mut feed = || {
            for mut piece in answer.chunks(piece) {
                while let Some((node, descriptor)) = reader.read(&mut piece)? {
                    found.push(node);
                    let mut bytes = [0; 2000];
                    let len = descriptor.emit(&mut bytes).expect("it was parsed");
                    reader.judge(verdict(&bytes[..len]))?;
                }
                assert!(piece.is_empty());
            }
            reader.finish()
        };
        let result = feed();
        assert_eq!(result, ended);
        assert_eq!(found, nodes);
        let tally = reader.tally();
        let refused = tally.iter().filter(|(_, count)| *count > 0).collect::<Vec<_>>();
        assert_eq!(refused, ended.err().map(|refused| (refused, 1)).into_iter().collect::<Vec<_>>());
        assert_eq!(tally.taken() as usize, nodes.len() - usize::from(ended == Err(Refused::Signature)));
        assert_eq!(reader.is_complete(), ended.is_ok());
        assert!(ended.is_err() || reader.is_full() == (nodes.len() == usize::from(want.value())));
    }
    Some(())
}

/// The section's words on the whole answer: the nodes that come out of it, and how it ends.
fn read(
    answer: &[u8],
    want: Want,
    verdict: impl Fn(&[u8]) -> Result<(), Refused>,
) -> (Vec<NodeId>, Result<(), Refused>) {
    let mut nodes = Vec::new();
    let mut bytes = Bytes(answer);
    let mut all = || {
        let header = bytes.take(2).ok_or(Refused::CutOff)?;
        if header[0] != 1 {
            return Err(Refused::Version);
        }
        if header[1] > want.value() {
            return Err(Refused::TooMany);
        }
        for _ in 0..header[1] {
            let len = bytes.number(2).ok_or(Refused::CutOff)?;
            if !(838..=1899).contains(&len) {
                return Err(Refused::Malformed);
            }
            let descriptor = bytes.take(len as usize).ok_or(Refused::CutOff)?;
            allowed(descriptor).ok_or(Refused::Malformed)?;
            let node = NodeId(Sha256::digest(&descriptor[1..257]).into());
            if nodes.last().is_some_and(|last| node <= *last) {
                return Err(Refused::Unordered);
            }
            nodes.push(node);
            verdict(descriptor)?;
        }
        if bytes.0.is_empty() { Ok(()) } else { Err(Refused::Trailing) }
    };
    let ended = all();
    (nodes, ended)
}

/// The room and the number of nodes for which the filter is made; then the nodes.
fn check_filter(input: &[u8]) -> Option<()> {
    let mut script = Script::new(input);
    let (room, expected) = (usize::from(script.word()? % 5000), usize::from(script.word()?));
    let salt = Salt(script.array());
    let mut storage = vec![0xa5; room];
    let mut builder = FilterBuilder::new(salt, expected, &mut storage);
    let mut nodes = Vec::new();
    while let Some(byte) = script.byte()
        && nodes.len() < 200
    {
        let node = (NodeId([byte; 32]), u64::from(script.byte().unwrap_or_default()));
        builder.insert(&node.0, node.1);
        nodes.push(node);
    }
    let filter = builder.finish();
    let len = (10 * expected).div_ceil(8).min(4096).min(room);
    let mut expected = vec![0; len];
    for (node, sequence) in nodes.iter().filter(|_| len > 0) {
        for bit in bits(len, &salt.0, node, *sequence) {
            expected[bit / 8] |= 1 << (bit % 8);
        }
    }
    assert_eq!(filter.as_bytes(), expected);
    assert_eq!(Filter::new(salt, &expected), Ok(filter));
    for byte in 0..=u8::MAX {
        let node = NodeId([byte; 32]);
        assert_eq!(filter.holds(&node, 3), holds(&expected, &salt.0, &node, 3));
    }
    assert!(len == 0 || nodes.iter().all(|(node, sequence)| filter.holds(node, *sequence)));
    assert!(storage[len..].iter().all(|&byte| byte == 0xa5), "wrote past its end");
    assert!(Filter::new(salt, &[0; FILTER_MAX_LEN + 1]).is_err());
    Some(())
}

/// Descriptors announced, and wanted; then which of the two signed ones comes next, and into how much room.
fn check_writer(input: &[u8]) -> Option<()> {
    let mut script = Script::new(input);
    let (count, want) = (script.byte()?, Want::new(1 + script.byte()? % 128)?);
    static CARDS: OnceLock<Vec<VerifiedDescriptor>> = OnceLock::new();
    let cards = CARDS.get_or_init(|| descriptor::signed().iter().map(|signed| card(signed)).collect());
    let writer = AnswerWriter::new(usize::from(count), want);
    assert_eq!(writer.is_some(), count <= want.value());
    let mut writer = writer?;
    let mut answer = Vec::new();
    let mut expected = vec![1, count];
    let mut left = count;
    while let Some(choice) = script.byte() {
        let mut out = vec![0xa5; usize::from(choice) * 8];
        let len = writer.write(&mut out);
        assert!(out[len..].iter().all(|&byte| byte == 0xa5));
        answer.extend_from_slice(&out[..len]);
        assert!(expected.starts_with(&answer));
        let written = answer.len() == expected.len();
        assert!(written || len == out.len(), "there was room for more");
        assert_eq!((writer.needs_descriptor(), writer.is_complete()), (written && left > 0, written && left == 0));
        // Both are of one node, so that only the first can come.
        let at = usize::from(choice & 1);
        let taken = writer.push(&cards[at]).is_ok();
        assert_eq!(taken, written && left > 0 && expected.len() == 2);
        if taken {
            let bytes = &descriptor::signed()[at];
            expected.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
            expected.extend_from_slice(bytes);
            left -= 1;
        }
    }
    assert!(answer.len() <= ANSWER_MAX_LEN);
    Some(())
}

fn card(signed: &[u8]) -> VerifiedDescriptor {
    let descriptor = Descriptor::parse(signed).expect("it is sound");
    VerifiedDescriptor::verify(descriptor, UnixTime(1_800_000_000)).expect("it is signed")
}
