use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::auth::testing::{name, session_secret};
use crate::crypto::testing::rng;

fn encoded(message: &Message<'_>) -> Vec<u8> {
    let mut bytes = [0xa5; MESSAGE_MAX_LEN];
    let mut writer = Writer::new(&mut bytes);
    message.emit(&mut writer).unwrap();
    let len = writer.len();
    assert!(bytes[len..].iter().all(|&byte| byte == 0xa5));
    for short in 0..len {
        assert_eq!(message.emit(&mut Writer::new(&mut std::vec![0; short])), Err(WireError::NoRoom));
    }
    bytes[..len].to_vec()
}

fn any_request() -> impl Strategy<Value = Request> {
    proptest::sample::select(&Request::ALL)
}

fn any_name() -> impl Strategy<Value = Username> {
    "[A-Za-z0-9._-]{1,64}".prop_map(|text| Username::new(&text).unwrap())
}

fn any_tag() -> impl Strategy<Value = Option<Signature>> {
    proptest::option::of(any::<[[u8; 32]; 8]>().prop_map(|parts| parts.as_flattened().try_into().unwrap()))
}

/// Raw content in which colons are frequent, or text.
fn any_content() -> impl Strategy<Value = (bool, Vec<u8>)> {
    let byte = prop_oneof![3 => any::<u8>(), 1 => Just(b':')];
    prop_oneof![
        proptest::collection::vec(byte, 0..=CONTENT_MAX_LEN).prop_map(|bytes| (false, bytes)),
        "[\\PC:]{0,200}".prop_map(|text: String| (true, text.into_bytes())),
    ]
}

proptest! {
    #[test]
    fn messages_round_trip((tag, username, request, (text, content)) in (any_tag(), any_name(), any_request(), any_content())) {
        let content = if text { Content::Text(core::str::from_utf8(&content).unwrap()) } else { Content::Raw(&content) };
        let message = Message { tag, username, request, content };
        let bytes = encoded(&message);
        prop_assert_eq!(Message::parse(&bytes), Ok(message));
    }

    #[test]
    fn what_parses_has_no_second_spelling(bytes in "[012]:[A-Za-z0-9_-]{0,3}:[a-z:]{0,4}:(log|act|sign_in|x):[\\x00-\\xff]{0,9}") {
        if let Ok(message) = Message::parse(bytes.as_bytes()) {
            prop_assert_eq!(encoded(&message), bytes.as_bytes());
        }
    }

    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b':'), Just(b'0')], 0..2000)) {
        if let Ok(message) = Message::parse(&bytes) {
            prop_assert_eq!(encoded(&message), bytes);
        }
    }
}

#[test]
fn frozen_messages() {
    let key = session_secret(1).public();
    let der = key.to_der();
    let tag = [b"1:", "_".repeat(341).as_bytes(), b"w:alice:act:read"].concat();
    let sign_in = [b"2::alice:sign_in:", &der[..]].concat();
    for (bytes, tag, username, request, content) in [
        (&b"0::-:public_key:"[..], None, "-", Request::PublicKey, Content::Raw(b"")),
        (b"0::A.b-_9:challenge:::\xff:", None, "A.b-_9", Request::Challenge, Content::Raw(b"::\xff:")),
        (b"1::alice:log:403 refused", None, "alice", Request::Log, Content::Text("403 refused")),
        (&tag, Some([0xff; SIGNATURE_LEN]), "alice", Request::Act, Content::Text("read")),
        (&sign_in, None, "alice", Request::SignIn, Content::Key(key)),
    ] {
        let message = Message { tag, username: name(username), request, content };
        assert_eq!(Message::parse(bytes), Ok(message.clone()));
        assert_eq!(encoded(&message), bytes);
    }
}

#[test]
fn malformed_messages_are_named() {
    use MessageError::*;
    let long = "x".repeat(65);
    let tag = |text: &str| [b"0:", text.as_bytes(), b":alice:act:"].concat();
    for (bytes, error) in [
        (&b""[..], Unfinished),
        (b"0", Unfinished),
        (b"0::alice:act", Unfinished),
        (b"3::alice:act:", UnknownEncoding),
        (b"::alice:act:", UnknownEncoding),
        (b"00::alice:act:", UnknownEncoding),
        (b"0:AAAA:alice:act:", BadTag),
        (&tag(&"A".repeat(341)), BadTag),
        (&tag(&"A".repeat(343)), BadTag),
        (&tag(&["A".repeat(341), "+".into()].concat()), BadTag),
        // The last four bits of 342 characters are unused and zero.
        (&tag(&["A".repeat(341), "B".into()].concat()), BadTag),
        (&tag(&["A".repeat(341), "=".into()].concat()), BadTag),
        (b"0:::act:", BadUsername),
        (b"0::al ice:act:", BadUsername),
        (b"0::\xff:act:", BadUsername),
        (&[b"0::", long.as_bytes(), b":act:"].concat(), BadUsername),
        (b"0::alice::", UnknownRequest),
        (b"0::alice:Act:", UnknownRequest),
        (b"0::alice:acts:", UnknownRequest),
        (&[b"0::alice:act:".as_slice(), &[0; CONTENT_MAX_LEN + 1]].concat(), TooLong),
        (b"1::alice:act:\xff", WrongEncoding),
        (b"2::alice:sign_in:", WrongEncoding),
    ] {
        assert_eq!(Message::parse(bytes), Err(error), "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn too_long_content_is_not_emitted() {
    let content = [0; CONTENT_MAX_LEN + 1];
    let message = Message::unsigned(name("alice"), Request::Act, Content::Raw(&content));
    assert_eq!(message.emit(&mut Writer::new(&mut [0; 2000])), Err(WireError::Invalid));
}

#[test]
fn every_truncation_of_a_signed_message_fails() {
    let (secret, binding) = (session_secret(1), Binding::from_bytes([3; 32]));
    let content = Content::Key(secret.public());
    let message = Message::signed(name("alice"), Request::SignIn, content, &secret, &binding, &mut rng(1)).unwrap();
    assert_eq!(message.verify(&secret.public(), &binding), Ok(()));
    let bytes = encoded(&message);
    for len in 0..bytes.len() {
        assert!(Message::parse(&bytes[..len]).is_err(), "{len}");
    }
    for byte in 0..=u8::MAX {
        assert!(Message::parse(&[&bytes[..], &[byte]].concat()).is_err());
    }
}

#[test]
fn signatures_cover_username_request_content_and_connection() {
    let (secret, binding) = (session_secret(1), Binding::from_bytes([3; 32]));
    let key = secret.public();
    let sign = |username, request, content| {
        Message::signed(name(username), request, content, &secret, &binding, &mut rng(1)).unwrap()
    };
    let message = sign("alice", Request::Act, Content::Text("read"));
    assert_eq!(message.verify(&session_secret(2).public(), &binding), Err(BadSignature));
    assert_eq!(message.verify(&key, &Binding::from_bytes([4; 32])), Err(BadSignature));
    for other in [
        Message { username: name("alic"), ..message.clone() },
        Message { request: Request::Disconnect, ..message.clone() },
        Message { content: Content::Text("Read"), ..message.clone() },
        Message { tag: None, ..message.clone() },
    ] {
        assert_eq!(other.verify(&key, &binding), Err(BadSignature));
    }
    // As the protocol states it.
    let by_hand: [&[u8]; 3] = [b"bulbil/1 auth message", &[3; 32], b"alice:act:read"];
    assert_eq!(key.verify(&by_hand, &message.tag.unwrap()), Ok(()));
}

#[test]
fn printing_a_message_tells_neither_user_nor_content() {
    let username = Username::new("alice").unwrap();
    for content in [Content::Raw(b"secret note"), Content::Text("secret note")] {
        let printed = std::format!("{:?}", Message::unsigned(username.clone(), Request::Act, content));
        assert!(printed.contains("Act") && printed.contains("11 bytes"), "{printed}");
        let bytes = std::format!("{:?}", b"secret");
        for secret in ["alice", "secret", bytes.trim_matches(['[', ']'])] {
            assert!(!printed.contains(secret), "{printed}");
        }
    }
}
