use std::{format, os::unix::fs::PermissionsExt, string::ToString, vec, vec::Vec};

use super::*;
use crate::{
    board::ITEM_MAX_LEN,
    linux::{heap, scratch::Scratch},
};

fn board(dir: &Path) -> LinuxBoard {
    LinuxBoard::new(dir, Calendar::System, LogLevel::Quiet).unwrap()
}

fn load(board: &mut LinuxBoard, item: Item) -> Result<Option<Vec<u8>>, StorageFailed> {
    let mut buffer = [0xaa; ITEM_MAX_LEN];
    Ok(board.load(item, &mut buffer)?.map(|len| buffer[..len].to_vec()))
}

#[test]
fn what_is_stored_is_loaded_by_the_next_board() {
    let scratch = Scratch::new("board").unwrap();
    let dir = scratch.path().join("made/here");
    for (item, bytes) in [
        (Item::Guards, vec![7; 96]),
        (Item::Guards, vec![]),
        (Item::LinkKey, vec![9; 32]),
        (Item::Identity, vec![3; ITEM_MAX_LEN]),
    ] {
        board(&dir).store(item, &bytes).unwrap();
        assert_eq!(load(&mut board(&dir), item), Ok(Some(bytes)));
    }
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
    for name in [IDENTITY, LINK_KEY, GUARDS] {
        assert_eq!(fs::metadata(dir.join(name)).unwrap().mode() & 0o777, 0o600, "{name}");
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 3, "nothing is left beside them");
}

#[test]
fn nothing_stored_is_none_and_too_much_is_an_error() {
    let scratch = Scratch::new("board").unwrap();
    let mut board = board(scratch.path());
    assert_eq!(load(&mut board, Item::Identity), Ok(None));
    board.store(Item::Identity, &[1; ITEM_MAX_LEN + 1]).unwrap();
    assert_eq!(load(&mut board, Item::Identity), Err(StorageFailed));
    fs::create_dir(scratch.path().join(GUARDS)).unwrap();
    assert_eq!(load(&mut board, Item::Guards), Err(StorageFailed));
    assert_eq!(board.store(Item::Guards, &[1]), Err(StorageFailed));
}

#[test]
fn a_crash_in_the_middle_of_a_write_keeps_the_old_one() {
    let scratch = Scratch::new("board").unwrap();
    board(scratch.path()).store(Item::Guards, b"old").unwrap();
    fs::write(scratch.path().join(format!("{GUARDS}.new")), b"ha").unwrap();
    assert_eq!(load(&mut board(scratch.path()), Item::Guards), Ok(Some(b"old".to_vec())));
    board(scratch.path()).store(Item::Guards, b"new").unwrap();
    assert_eq!(load(&mut board(scratch.path()), Item::Guards), Ok(Some(b"new".to_vec())));
}

#[test]
fn keys_that_others_may_read_are_refused() {
    let scratch = Scratch::new("board").unwrap();
    let path = scratch.path().join(LINK_KEY);
    fs::write(&path, [1; 32]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = LinuxBoard::new(scratch.path(), Calendar::System, LogLevel::Quiet).err().unwrap();
    assert!(error.to_string().contains("link.key") && error.to_string().contains("chmod go="), "{error}");
}

#[test]
fn time_goes_on_and_the_calendar_may_be_missing() {
    let scratch = Scratch::new("board").unwrap();
    let mut board = board(scratch.path());
    let (first, second) = (board.now(), board.now());
    assert!(first <= second);
    assert!(board.unix_time().is_some_and(|time| time.0 > 1_700_000_000));
    board.calendar = Calendar::None;
    assert_eq!(board.unix_time(), None);
}

#[test]
fn nothing_allocates_once_the_board_is_made() {
    let scratch = Scratch::new("board").unwrap();
    let mut board = board(scratch.path());
    board.level = LogLevel::Verbose;
    // Standard output allocates its buffer when it is first used.
    board.print(b"");
    let before = heap::usage();
    let mut buffer = [0; ITEM_MAX_LEN];
    for _ in 0..3 {
        board.store(Item::Guards, &[1; 96]).unwrap();
        board.load(Item::Guards, &mut buffer).unwrap();
        board.load(Item::Identity, &mut buffer).unwrap();
        board.rng().fill_bytes(&mut buffer);
        board.now();
        board.unix_time();
        for event in [
            Event::Published,
            Event::Met(([10, 0, 0, 1], 7).into()),
            Event::LinkRefused,
            Event::Answer(b"half a line"),
            Event::Answered { receipt: Some(true) },
            Event::NoPath,
            Event::StorageFailed(Item::Guards),
            Event::RotationFailed,
        ] {
            board.handle_event(event);
        }
    }
    assert_eq!(heap::usage().allocations, before.allocations);
    assert_eq!(board.told().answers, 3);
}
