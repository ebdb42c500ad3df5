use proptest::prelude::*;

use super::*;
use crate::auth::testing::{name, password, session_secret};
use crate::wire::testing::assert_rejects_misfits;

fn signed_up(username: &str, key: u8) -> UserRecord {
    UserRecord::new(name(username), password(key), &session_secret(1).public())
}

fn sample() -> UserRecord {
    let mut record = signed_up("alice", 7);
    for key in 1..=5 {
        record = record.connected(&session_secret(key).public()).unwrap();
    }
    record.with_note(b"a note").unwrap()
}

#[test]
fn records_round_trip() {
    let connected = sample();
    for record in [signed_up(&"x".repeat(64), 0), connected.disconnected().unwrap(), connected] {
        let bytes = record.encode();
        assert!(UserRecord::decode(bytes.as_slice()).unwrap() == record);
        assert_rejects_misfits(bytes.as_slice(), |bytes| UserRecord::decode(bytes).map(|_| ()));
    }
    assert_eq!(RECORD_LEN, 1526);
}

#[test]
fn frozen_record() {
    use sha2::Digest;
    assert_eq!(hex::encode(sha2::Sha256::digest(sample().encode().as_slice())), FROZEN);
}
const FROZEN: &str = "0164e33d05082e8cedde4352a1cbb09b4448f502216894b09b29e46f8594f9e3";

#[test]
fn a_record_begins_with_the_key_that_signed_up() {
    let key = |index: usize| session_secret(index).public();
    let mut record = signed_up("alice", 7);
    assert!(record.knows(&key(1).fingerprint()) && !record.knows(&key(2).fingerprint()));
    assert!(*record.presence() == Presence::Disconnected);
    // The key goes as others do: when four others have signed in since.
    for index in 2..=5 {
        assert!(record.knows(&key(1).fingerprint()), "{index}");
        record = record.connected(&key(index)).unwrap();
    }
    assert!(!record.knows(&key(1).fingerprint()));
}

#[test]
fn a_record_knows_one_key_to_four() {
    let at = 1 + 8 + 8 + 65 + 32;
    let mut bytes = signed_up("alice", 7).encode();
    assert_eq!(bytes[at], 1);
    for count in [0, 5] {
        bytes[at] = count;
        assert!(matches!(UserRecord::decode(bytes.as_slice()), Err(WireError::Invalid)));
    }
    bytes[at..][..33].fill(0);
    assert!(matches!(UserRecord::decode(bytes.as_slice()), Err(WireError::Invalid)));
}

#[test]
fn what_storage_was_never_given_is_refused() {
    let devices = 1 + 8 + 8 + 65 + 32;
    let presence = devices + 1 + 4 * 32;
    let good = signed_up("alice", 7).encode();
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = byte;
        UserRecord::decode(&bytes).err()
    };
    assert_eq!(changed(0, 2), Some(WireError::UnknownCode), "a version to come");
    assert_eq!(changed(8, 0), Some(WireError::Invalid), "revision 0");
    for device in 1..4 {
        assert_eq!(changed(devices + 1 + 32 * device, 1), Some(WireError::NotZero), "a place that is not counted");
    }
    assert_eq!(changed(presence, 2), Some(WireError::UnknownCode));
    assert_eq!(changed(presence + 1, 1), Some(WireError::NotZero), "the key of no session");
    assert!(UserRecord::decode(good.as_slice()).is_ok());
}

#[test]
fn changes_count_and_keep_the_rest() {
    let record = sample();
    assert_eq!((record.revision(), record.sessions()), (Revision(7), SessionNumber(5)));
    assert!(!record.knows(&session_secret(1).public().fingerprint()));
    for key in 2..=5 {
        assert!(record.knows(&session_secret(key).public().fingerprint()));
    }
    // A computer that is known takes no second place.
    let again = record.connected(&session_secret(2).public()).unwrap();
    assert!((2..=5).all(|key| again.knows(&session_secret(key).public().fingerprint())));
    let ended = again.disconnected().unwrap();
    assert_eq!((ended.revision(), ended.sessions(), ended.note()), (Revision(9), SessionNumber(6), &b"a note"[..]));
    assert!(*ended.presence() == Presence::Disconnected);
    assert!(ended.with_note(&[0; NOTE_MAX_LEN]).is_some());
    assert!(ended.with_note(&[0; NOTE_MAX_LEN + 1]).is_none());
}

#[test]
fn counters_do_not_wrap() {
    let mut bytes = sample().encode();
    bytes[1..9].fill(0xff);
    let record = UserRecord::decode(bytes.as_slice()).unwrap();
    assert!(record.disconnected().is_none() && record.connected(&session_secret(1).public()).is_none());
    let mut bytes = sample().encode();
    bytes[9..17].fill(0xff);
    let record = UserRecord::decode(bytes.as_slice()).unwrap();
    assert!(record.disconnected().is_some() && record.connected(&session_secret(1).public()).is_none());
}

proptest! {
    #[test]
    fn what_decodes_has_no_second_spelling(changes in proptest::collection::vec((0..RECORD_LEN, any::<u8>()), 0..4)) {
        let mut bytes = sample().disconnected().unwrap().encode();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Ok(record) = UserRecord::decode(bytes.as_slice()) {
            prop_assert!(*record.encode() == *bytes);
        }
    }
}
