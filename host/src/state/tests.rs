use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;
use crate::scratch::Scratch;

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().mode() & 0o7777
}

fn opened(name: &str) -> (Scratch, StateDir) {
    let scratch = Scratch::new(name);
    let state = StateDir::open(&scratch.path().join("state")).unwrap();
    (scratch, state)
}

#[test]
fn creates_a_private_directory_and_private_files() {
    let scratch = Scratch::new("state");
    let path = scratch.path().join("a/b/state");
    let state = StateDir::open(&path).unwrap();
    assert_eq!(mode(&path), 0o700);
    for item in Item::ALL {
        assert!(state.read(item).unwrap().is_none());
        state.create(item, item.name().as_bytes()).unwrap();
        assert_eq!(mode(&state.item_path(item)), 0o600);
    }
    drop(state);
    let state = StateDir::open(&path).unwrap();
    for item in Item::ALL {
        assert_eq!(state.read(item).unwrap().unwrap().as_slice(), item.name().as_bytes());
    }
}

#[test]
fn refuses_a_directory_others_may_enter() {
    let (scratch, state) = opened("state");
    drop(state);
    let path = scratch.path().join("state");
    for open_to in [0o750, 0o705, 0o710, 0o770, 0o777] {
        chmod(&path, open_to);
        let error = StateDir::open(&path).unwrap_err();
        assert!(matches!(error.problem, Problem::Accessible(mode) if mode == open_to));
        assert_eq!(mode(&path), open_to, "the remedy is the owner's to apply");
        assert!(error.to_string().contains("chmod go= "), "{error}");
    }
    chmod(&path, 0o700);
    StateDir::open(&path).unwrap();
}

#[test]
fn refuses_a_file_others_may_read() {
    let (_scratch, state) = opened("state");
    state.create(Item::Identity, b"key").unwrap();
    chmod(&state.item_path(Item::Identity), 0o640);
    let error = state.read(Item::Identity).unwrap_err();
    assert!(matches!(error.problem, Problem::Accessible(0o640)), "{error}");
    assert!(error.to_string().contains("state/identity"), "{error}");
}

#[test]
fn is_used_by_one_at_a_time() {
    let (scratch, state) = opened("state");
    let path = scratch.path().join("state");
    let error = StateDir::open(&path).unwrap_err();
    assert!(matches!(error.problem, Problem::InUse), "{error}");
    drop(state);
    StateDir::open(&path).unwrap();
}

#[test]
fn peeking_needs_no_lock_and_creates_nothing() {
    let (scratch, state) = opened("state");
    let path = scratch.path().join("state");
    assert!(peek(&path, Item::Identity).unwrap().is_none());
    state.create(Item::Identity, b"key").unwrap();
    assert_eq!(peek(&path, Item::Identity).unwrap().unwrap().as_slice(), b"key");
    let nowhere = scratch.path().join("nowhere");
    assert!(peek(&nowhere, Item::Identity).unwrap().is_none());
    assert!(!nowhere.exists());
    assert!(matches!(
        peek(&state.item_path(Item::Identity), Item::Identity).unwrap_err().problem,
        Problem::NotADirectory
    ));
    chmod(&path, 0o755);
    assert!(matches!(peek(&path, Item::Identity).unwrap_err().problem, Problem::Accessible(0o755)));
}

#[test]
fn refuses_what_is_no_directory_or_file() {
    let scratch = Scratch::new("state");
    let file = scratch.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = StateDir::open(&path).unwrap_err();
        assert!(matches!(error.problem, Problem::NotADirectory), "{error:?}");
    }
    let state = StateDir::open(&scratch.path().join("state")).unwrap();
    std::fs::create_dir(state.item_path(Item::Guards)).unwrap();
    assert!(matches!(state.read(Item::Guards).unwrap_err().problem, Problem::NotAFile));
    state.create(Item::LinkKey, b"key").unwrap();
    std::os::unix::fs::symlink(state.item_path(Item::LinkKey), state.item_path(Item::OnionKey)).unwrap();
    assert!(matches!(state.read(Item::OnionKey).unwrap_err().problem, Problem::NotAFile));
}

#[test]
fn replaces_only_when_told_to() {
    let (_scratch, state) = opened("state");
    state.create(Item::Identity, b"first").unwrap();
    assert!(matches!(state.create(Item::Identity, b"second").unwrap_err().problem, Problem::Exists));
    assert_eq!(state.read(Item::Identity).unwrap().unwrap().as_slice(), b"first");
    state.replace(Item::Identity, b"second").unwrap();
    assert_eq!(state.read(Item::Identity).unwrap().unwrap().as_slice(), b"second");
    state.remove(Item::Identity).unwrap();
    state.remove(Item::Identity).unwrap();
    assert!(state.read(Item::Identity).unwrap().is_none());

    std::fs::write(state.item_path(Item::Identity), "garbage").unwrap();
    assert!(matches!(state.create(Item::Identity, b"x").unwrap_err().problem, Problem::Exists));
    assert_eq!(std::fs::read(state.item_path(Item::Identity)).unwrap(), b"garbage");
}

#[test]
fn every_truncation_and_every_flipped_bit_is_told_apart() {
    let (_scratch, state) = opened("state");
    state.create(Item::LinkKey, b"0123456789").unwrap();
    let path = state.item_path(Item::LinkKey);
    let whole = std::fs::read(&path).unwrap();
    for len in 0..whole.len() {
        let problem = unframe(Item::LinkKey, &whole[..len]).unwrap_err();
        assert!(matches!(problem, Problem::Truncated), "{len}: {problem:?}");
    }
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(unframe(Item::LinkKey, &bytes).is_err(), "bit {bit}");
    }
    let longer = [&whole[..], b"x"].concat();
    assert!(matches!(unframe(Item::LinkKey, &longer).unwrap_err(), Problem::Altered));

    let cases: [(&[u8], &str); 6] = [
        (&whole[..whole.len() - 1], "is cut off"),
        (b"-----BEGIN PRIVATE KEY-----\n", "is not a file of bulbil"),
        (&[0xff; 4096], "is not a file of bulbil"),
        (b"bulbil-state 2 link-key 0 0\n", "later version"),
        (b"bulbil-state 1 identity 0 0\n", "another file's content"),
        (&[b'x'; (16 << 10) + HEADER_MAX + 1], "larger than"),
    ];
    for (bytes, expected) in cases {
        std::fs::write(&path, bytes).unwrap();
        let message = state.read(Item::LinkKey).unwrap_err().to_string();
        assert!(message.contains("state/link-key") && message.contains(expected), "{message}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "reading changes nothing");
    }
}

#[test]
fn refuses_what_is_too_long_to_be_read_back() {
    let (_scratch, state) = opened("state");
    let longest = vec![7; Item::LinkKey.max_len()];
    state.create(Item::LinkKey, &longest).unwrap();
    assert_eq!(*state.read(Item::LinkKey).unwrap().unwrap(), longest);
    let error = state.replace(Item::LinkKey, &[longest.as_slice(), b"x"].concat()).unwrap_err();
    assert!(matches!(error.problem, Problem::TooLong));
    assert_eq!(*state.read(Item::LinkKey).unwrap().unwrap(), longest);
}

#[test]
fn removes_what_a_crash_left_behind() {
    let (scratch, state) = opened("state");
    state.create(Item::Phonebook, b"old").unwrap();
    let temporary = state.temporary(Item::Phonebook);
    std::fs::write(&temporary, "half of the n").unwrap();
    drop(state);
    let state = StateDir::open(&scratch.path().join("state")).unwrap();
    assert!(!temporary.exists());
    assert_eq!(state.read(Item::Phonebook).unwrap().unwrap().as_slice(), b"old");
    state.replace(Item::Phonebook, b"new").unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_old_content() {
    let (_scratch, state) = opened("state");
    state.create(Item::Identity, b"old").unwrap();
    let path = state.item_path(Item::Identity);
    let temporary = state.temporary(Item::Identity);
    // Every write to /dev/full fails as on a full disk.
    let full = |_: &Path| OpenOptions::new().write(true).open("/dev/full");
    let error = write_atomic(state.path(), &temporary, &path, b"new", full).unwrap_err();
    assert!(matches!(error.problem, Problem::Full), "{error}");
    assert!(error.to_string().contains("no space left"), "{error}");
    assert_eq!(state.read(Item::Identity).unwrap().unwrap().as_slice(), b"old");
}

#[test]
fn writes_private_files_elsewhere() {
    let scratch = Scratch::new("state");
    let path = scratch.path().join("identity.der");
    write_private(&path, b"first", false).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert!(matches!(write_private(&path, b"second", false).unwrap_err().problem, Problem::Exists));
    write_private(&path, b"second", true).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"second");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1, "no temporary file is left");
    let nowhere = scratch.path().join("nowhere/identity.der");
    assert!(matches!(write_private(&nowhere, b"x", false).unwrap_err().problem, Problem::Io(_)));
}

#[test]
fn writing_elsewhere_removes_what_ended_processes_left() {
    let scratch = Scratch::new("state");
    let path = scratch.path().join("identity.der");
    let file = |name: &str| scratch.path().join(name);
    let left = [".identity.der.1.new".to_owned(), format!(".identity.der.{}.new", std::process::id())];
    let others =
        [".identity.der.new", ".identity.der.x.new", "identity.der.1.new", ".other.1.new", ".identity.der.2.1.new"];
    for name in left.iter().map(String::as_str).chain(others) {
        std::fs::write(file(name), "half of the n").unwrap();
    }
    // Its writer is at work, as far as anybody can tell.
    let written = create_held(&file(".identity.der.3.new")).unwrap();
    write_private(&path, b"new", true).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    assert!(left.iter().all(|name| !file(name).exists()));
    assert!(others.iter().all(|name| file(name).exists()));
    assert!(file(".identity.der.3.new").exists());
    drop(written);
    write_private(&path, b"newer", true).unwrap();
    assert!(!file(".identity.der.3.new").exists());
    remove_left_behind(scratch.path(), None);
    let there = |name: &&str| file(name).exists();
    assert!(others.iter().filter(|name| there(name)).eq(&[
        ".identity.der.new",
        ".identity.der.x.new",
        "identity.der.1.new"
    ]));
}

/// Some write, others clean up all the time: no write is disturbed.
#[test]
fn cleaning_up_disturbs_no_write() {
    let scratch = Scratch::new("state");
    let writing = std::sync::atomic::AtomicUsize::new(4);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (path, writing) = (scratch.path().join(format!("file{writer}")), &writing);
            scope.spawn(move || {
                for round in 0..50u8 {
                    write_private(&path, &[round], true).unwrap();
                    assert_eq!(std::fs::read(&path).unwrap(), [round]);
                }
                writing.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            });
        }
        scope.spawn(|| {
            while writing.load(std::sync::atomic::Ordering::Relaxed) > 0 {
                remove_left_behind(scratch.path(), None);
            }
        });
    });
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 4);
}

proptest! {
    #[test]
    fn framing_round_trips(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let mut file = header(Item::Guards, &bytes).into_bytes();
        prop_assert!(file.len() <= HEADER_MAX);
        file.extend_from_slice(&bytes);
        prop_assert_eq!(unframe(Item::Guards, &file).unwrap(), &bytes[..]);
    }

    #[test]
    fn any_bytes_are_an_error_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(unframe(Item::Guards, &bytes).is_err());
    }
}
