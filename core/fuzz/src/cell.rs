//! Cells, `PROTOCOL.md` section 5: the parser accepts exactly what the section allows and changes nothing, and what it
//! understood is emitted as the very same bytes.

use bulbil_core::wire::cell::{self, CELL_LEN, Cell, Command, CreditWriter};
use bulbil_core::wire::handshake::Hello;

use super::model::{Bytes, zeros};

/// The input is a cell; one that is too short is filled up with zero bytes.
pub fn check(input: &[u8]) {
    let mut bytes = [0; CELL_LEN];
    let len = input.len().min(CELL_LEN);
    bytes[..len].copy_from_slice(&input[..len]);

    let mut parsed_in = bytes;
    let parsed = Cell::parse(&mut parsed_in);
    assert_eq!(parsed.is_ok(), allowed(&bytes), "{parsed:?}");
    if let Ok(cell) = &parsed {
        // Bytes that are not written show in one of the two.
        for background in [0xa5, 0x5a] {
            assert_eq!(emitted(cell, background), bytes, "{cell:?}");
        }
    }
    if let Ok(Cell::Hello(body)) = parsed {
        let hello = Hello::parse(body);
        assert_eq!(hello.is_ok(), allowed_hello(body), "{hello:?}");
        if let Ok(hello) = hello {
            let mut emitted = [0xa5; 509];
            hello.emit(&mut emitted);
            assert_eq!(emitted, *body, "{hello:?}");
        }
    }
    assert_eq!(parsed_in, bytes, "parsing changed the cell");
}

fn allowed(cell: &[u8; CELL_LEN]) -> bool {
    let on_link = cell[..4] == [0; 4];
    let body = &cell[5..];
    match cell[4] {
        0 => on_link && zeros(body),
        1 => on_link,
        2 => on_link && allowed_credit(body).is_some(),
        3 | 4 => !on_link,
        5 => !on_link && body[0] <= 8 && zeros(&body[1..]),
        _ => false,
    }
}

fn allowed_credit(body: &[u8]) -> Option<()> {
    let mut bytes = Bytes(body);
    let count = bytes.number(1).filter(|count| (1..=84).contains(count))?;
    for _ in 0..count {
        let (circuit, cells) = (bytes.number(4)?, bytes.number(2)?);
        if circuit == 0 || cells == 0 {
            return None;
        }
    }
    zeros(bytes.0).then_some(())
}

fn allowed_hello(body: &[u8]) -> bool {
    let mut bytes = Bytes(body);
    bytes.number(2) == Some(1)
        && bytes.number(2).is_some_and(|record_cells| (1..=127).contains(&record_cells))
        && bytes.number(2).is_some_and(|credit| (1..=1024).contains(&credit))
        && zeros(bytes.0)
}

fn emitted(parsed: &Cell<'_>, background: u8) -> [u8; CELL_LEN] {
    let mut bytes = [background; CELL_LEN];
    match parsed {
        Cell::Padding => {
            bytes.fill(0);
            cell::emit_header(&mut bytes, None, Command::PADDING);
        }
        Cell::Hello(body) => {
            cell::emit_header(&mut bytes, None, Command::HELLO);
            *cell::body_mut(&mut bytes) = **body;
        }
        Cell::Credit(entries) => {
            let mut writer = CreditWriter::new(&mut bytes);
            for (circuit, cells) in entries.clone() {
                writer.push(circuit, cells).expect("no more entries than one cell has");
            }
        }
        Cell::Open(circuit, body) => {
            cell::emit_header(&mut bytes, Some(*circuit), Command::OPEN);
            *cell::body_mut(&mut bytes) = **body;
        }
        Cell::Relay(circuit, body) => {
            cell::emit_header(&mut bytes, Some(*circuit), Command::RELAY);
            *cell::body_mut(&mut bytes) = **body;
        }
        Cell::Close(circuit, reason) => cell::emit_close(&mut bytes, *circuit, *reason),
    }
    bytes
}
