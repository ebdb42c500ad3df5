//! Relay messages, `PROTOCOL.md` section 9: the parser accepts exactly what the section allows, and what it understood
//! is emitted as the very same bytes.

use bulbil_core::wire::Message;
use bulbil_core::wire::message::{MESSAGE_LEN, begin_room, data_room_mut, emit_data_header};

use super::model::{self, Bytes, zeros};

/// The input is a message; one that is too short is filled up with zero bytes.
pub fn check(input: &[u8]) {
    let mut bytes = [0; MESSAGE_LEN];
    let len = input.len().min(MESSAGE_LEN);
    bytes[..len].copy_from_slice(&input[..len]);

    let parsed = Message::parse(&bytes);
    assert_eq!(parsed.is_ok(), allowed(&bytes).is_some(), "{parsed:?}");
    let Ok(message) = parsed else { return };
    // Bytes that are not written show in one of the two.
    for background in [0xa5, 0x5a] {
        let mut emitted = [background; MESSAGE_LEN];
        message.emit(&mut emitted).expect("what was parsed can be emitted");
        assert_eq!(emitted, bytes, "{message:?}");
    }
    match message {
        Message::Data(data) => {
            let mut emitted = [0xa5; MESSAGE_LEN];
            data_room_mut(&mut emitted)[..data.len()].copy_from_slice(data);
            emit_data_header(&mut emitted, data.len()).expect("a length that was parsed");
            assert_eq!(emitted, bytes);
        }
        Message::Begin { target, first, .. } => {
            let room = begin_room(&target);
            assert!(first.len() <= room);
            assert_eq!(room, 490 - 1 - target.encoded_len());
            // A name that spells an address reads back as the address, with the same text and so the same meaning.
            let text = target.to_string();
            assert_eq!(text.parse().map(|again: bulbil_core::wire::Target| again.to_string()), Ok(text));
        }
        _ => {}
    }
}

fn allowed(message: &[u8; MESSAGE_LEN]) -> Option<()> {
    let mut bytes = Bytes(message);
    let command = bytes.number(1)?;
    let len = bytes.number(2)?;
    let mut data = Bytes(bytes.take(len as usize)?);
    if !zeros(bytes.0) {
        return None;
    }
    match command {
        1 => {
            data.number(1).filter(|&flags| flags <= 3)?;
            model::target(&mut data)?;
            data.0 = &[];
        }
        2 => model::address(&mut data)?,
        3 => {
            data.take(1)?;
            data.0 = &[];
        }
        4 | 6 => {}
        5 => {
            data.number(1).filter(|&reason| reason <= 14)?;
        }
        7 => {
            data.take(8 + 256)?;
        }
        _ => return None,
    }
    data.0.is_empty().then_some(())
}
