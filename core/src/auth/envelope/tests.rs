use std::vec::Vec;

use super::*;
use crate::auth::message::{CONTENT_MAX_LEN, Content, Request};
use crate::auth::testing::{name, server_key, server_secret};
use crate::crypto::testing::{RSA_KEYS, Scripted, rng};

fn hello() -> Message<'static> {
    Message::unsigned(name("alice"), Request::Act, Content::Raw(b"hello"))
}

/// A greeted server, the client's channel, and its first frame without the length.
fn opened(server: Option<&PublicKey>, seed: u64) -> (Greeter, Channel, Vec<u8>) {
    let rng = &mut rng(seed);
    let greeter = Greeter::new(KdfParameters::DEFAULT, rng);
    let greeting = Greeting::parse(greeter.greeting()).unwrap();
    let (mut channel, opening) = Channel::connect(&greeting, server, rng).unwrap();
    let mut frame = Frame::new();
    channel.seal(&hello(), Some(&opening), &mut frame).unwrap();
    let bytes = frame.as_ref()[LENGTH_LEN..].to_vec();
    assert_eq!(Expected::Opening.frame_len([frame.as_ref()[0], frame.as_ref()[1]]), Ok(bytes.len()));
    (greeter, channel, bytes)
}

fn sealed(channel: &mut Channel, message: &Message<'_>) -> Vec<u8> {
    let mut frame = Frame::new();
    channel.seal(message, None, &mut frame).unwrap();
    assert_eq!(Expected::Sealed.frame_len([frame.as_ref()[0], frame.as_ref()[1]]), Ok(SEALED_LEN));
    frame.as_ref()[LENGTH_LEN..].to_vec()
}

#[test]
fn both_ends_read_each_other_in_order() {
    for server in [Some(&server_key()), None] {
        let (greeter, mut client, mut frame) = opened(server, 1);
        let (mut other, message) = greeter.accept(&server_secret(), &mut frame, &mut rng(2)).unwrap();
        assert_eq!(message, b"0::alice:act:hello");
        assert_eq!(client.binding(), other.binding());
        assert_eq!(other.is_authentic(), server.is_some());
        for round in 0..3 {
            let long = [round; CONTENT_MAX_LEN];
            let message = Message::unsigned(name(&"x".repeat(64)), Request::PublicKey, Content::Raw(&long));
            let mut frame = sealed(&mut client, &message);
            assert_eq!(Message::parse(other.open(&mut frame).unwrap()), Ok(message.clone()));
            let mut frame = sealed(&mut other, &message);
            assert_eq!(Message::parse(client.open(&mut frame).unwrap()), Ok(message.clone()));
        }
    }
}

#[test]
fn frozen_opening() {
    // The server's X25519 secret is 32 times 0x2a, the client's randomness that of seed 9. The frame's hash stands for its
    // layout and all derivations.
    let greeter = Greeter::new(KdfParameters::DEFAULT, &mut Scripted(&[0x2a; 32]));
    let greeting = Greeting::parse(greeter.greeting()).unwrap();
    let (mut channel, opening) = Channel::connect(&greeting, Some(&server_key()), &mut rng(9)).unwrap();
    let mut frame = Frame::new();
    channel.seal(&hello(), Some(&opening), &mut frame).unwrap();
    assert_eq!(hex::encode(greeter.greeting()), FROZEN_GREETING);
    assert_eq!(hex::encode(Sha256::digest(frame.as_ref())), FROZEN_FRAME);
    assert_eq!(hex::encode(channel.binding().as_bytes()), FROZEN_BINDING);
}
const FROZEN_GREETING: &str = "0100010000000000030407aaff3e9fc167275544f4c3a6a17cd837f2ec6e78cd8a57b1e3dfb3cc035a76";
const FROZEN_FRAME: &str = "5628477772deafc3bac0e6e1f3dd934611c2197265400138459b8062054264e5";
const FROZEN_BINDING: &str = "290732f836946325e48b0dd1e8fb3c818fe19a4b3b244c72c99fe4707735d7e5";

/// The section's formulas once more, from the bytes on the connection and the server's secrets alone.
#[test]
fn keys_are_those_of_the_protocol() {
    use aes_gcm::aead::AeadInOut;
    use aes_gcm::{Aes256Gcm, KeyInit};
    let dh = [0x2a; 32];
    let greeter = Greeter::new(KdfParameters::DEFAULT, &mut Scripted(&dh));
    let greeting = Greeting::parse(greeter.greeting()).unwrap();
    let (mut channel, opening) = Channel::connect(&greeting, Some(&server_key()), &mut rng(9)).unwrap();
    let mut frame = Frame::new();
    channel.seal(&hello(), Some(&opening), &mut frame).unwrap();

    let frame = frame.as_ref();
    assert_eq!(frame[..3], [&(frame.len() as u16 - 2).to_be_bytes()[..], &[1]].concat());
    let (client_dh, ciphertext) = (&frame[3..35], &frame[35..291]);
    let label = b"bulbil/1 auth";
    let secret = server_secret().receive(label, ciphertext.try_into().unwrap(), &mut rng(1)).unwrap();
    let shared =
        StaticSecret::from(dh).diffie_hellman(&x25519_dalek::PublicKey::from(<[u8; 32]>::try_from(client_dh).unwrap()));
    let transcript =
        [b"bulbil/1 auth channel\x01", &greeting.bytes[..], client_dh, ciphertext, server_key().modulus()].concat();
    let binding = Sha256::digest(transcript);
    let mut keys = [0; 64];
    let input = [&shared.as_bytes()[..], secret.as_slice()].concat();
    Hkdf::<Sha256>::new(Some(&binding), &input).expand(b"bulbil/1 auth keys", &mut keys).unwrap();
    let mut padded = frame[291..frame.len() - 16].to_vec();
    let tag: [u8; 16] = frame[frame.len() - 16..].try_into().unwrap();
    let cipher = Aes256Gcm::new_from_slice(&keys[..32]).unwrap();
    cipher.decrypt_inout_detached(&[0; 12].into(), b"", padded.as_mut_slice().into(), &tag.into()).unwrap();
    assert_eq!(padded.len(), 1536);
    assert_eq!(padded[..20], *b"\x00\x120::alice:act:hello");
    assert!(padded[20..].iter().all(|&byte| byte == 0));
}

#[test]
fn an_altered_first_frame_opens_nothing() {
    let (_, _, good) = opened(Some(&server_key()), 1);
    for at in (0..good.len()).step_by(41).chain([0, 1, 32, 33, 288, 289, good.len() - 1]) {
        let (greeter, _, mut frame) = opened(Some(&server_key()), 1);
        frame[at] ^= 0x04;
        assert_eq!(greeter.accept(&server_secret(), &mut frame, &mut rng(2)).err(), Some(ChannelFailed), "{at}");
    }
}

#[test]
fn misfits_open_nothing() {
    let (_, _, good) = opened(Some(&server_key()), 1);
    for len in (0..good.len()).step_by(7).chain([good.len() - 1]) {
        let greeter = opened(None, 1).0;
        assert!(greeter.accept(&server_secret(), &mut good[..len].to_vec(), &mut rng(2)).is_err());
    }
    let greeter = opened(None, 1).0;
    assert!(greeter.accept(&server_secret(), &mut [&good[..], &[0]].concat(), &mut rng(2)).is_err());
    for field in 0..=u16::MAX {
        let bytes = field.to_be_bytes();
        assert_eq!(Expected::Opening.frame_len(bytes).is_ok(), [1841, 1585].contains(&field), "{field}");
        assert_eq!(Expected::Sealed.frame_len(bytes).is_ok(), field == 1552, "{field}");
    }
}

#[test]
fn frames_fit_one_connection_server_and_direction() {
    let (_, _, first) = opened(Some(&server_key()), 1);
    // Replayed to another connection of the same server.
    let greeter = opened(None, 2).0;
    assert!(greeter.accept(&server_secret(), &mut first.clone(), &mut rng(3)).is_err());
    // At another server.
    let (greeter, ..) = opened(None, 1);
    let other = ServerSecret::from_pkcs8(RSA_KEYS[1]).unwrap();
    assert!(greeter.accept(&other, &mut first.clone(), &mut rng(3)).is_err());

    let (greeter, mut client, mut first) = opened(Some(&server_key()), 1);
    let (mut server, _) = greeter.accept(&server_secret(), &mut first, &mut rng(3)).unwrap();
    let (one, two) = (sealed(&mut client, &hello()), sealed(&mut client, &hello()));
    assert_ne!(one, two);
    // Reflected, out of order, twice.
    assert!(client.open(&mut one.clone()).is_err());
    assert!(server.open(&mut two.clone()).is_err());
    assert!(server.open(&mut one.clone()).is_ok());
    assert!(server.open(&mut one.clone()).is_err());
    assert!(server.open(&mut two.clone()).is_ok());
}

#[test]
fn a_greeting_that_was_tampered_with_opens_nothing() {
    let rng = &mut rng(1);
    let greeter = Greeter::new(KdfParameters::DEFAULT, rng);
    let mut bytes = *greeter.greeting();
    // Cheaper hashing, still within the client's bounds.
    bytes[1..10].copy_from_slice(&[0, 0, 0x4c, 0, 0, 0, 0, 2, 1]);
    let greeting = Greeting::parse(&bytes).unwrap();
    assert_eq!(greeting.parameters(), KdfParameters::FLOOR);
    let (mut channel, opening) = Channel::connect(&greeting, Some(&server_key()), rng).unwrap();
    let mut frame = Frame::new();
    channel.seal(&hello(), Some(&opening), &mut frame).unwrap();
    let mut frame = frame.as_ref()[LENGTH_LEN..].to_vec();
    assert!(greeter.accept(&server_secret(), &mut frame, rng).is_err());
}

#[test]
fn greetings_are_checked() {
    let good = *Greeter::new(KdfParameters::DEFAULT, &mut rng(1)).greeting();
    assert!(Greeting::parse(&good).is_ok());
    for (at, byte, error) in [
        (0, 2, WireError::UnknownCode),
        (1, 1, WireError::Invalid),
        (8, 1, WireError::Invalid),
        (9, 0, WireError::Invalid),
    ] {
        let mut bad = good;
        bad[at] = byte;
        assert_eq!(Greeting::parse(&bad), Err(error), "{at}");
    }
    // A point of small order.
    let mut bad = good;
    bad[10..].fill(0);
    let greeting = Greeting::parse(&bad).unwrap();
    assert!(Channel::connect(&greeting, Some(&server_key()), &mut rng(2)).is_err());
}

#[test]
fn all_frames_have_one_length() {
    let (_, mut client, first) = opened(Some(&server_key()), 1);
    assert_eq!(first.len() + LENGTH_LEN, FRAME_MAX_LEN);
    let short = Message::unsigned(name("a"), Request::Log, Content::Raw(&[]));
    let long = Message::unsigned(name(&"a".repeat(64)), Request::PublicKey, Content::Raw(&[1; CONTENT_MAX_LEN]));
    assert_eq!(sealed(&mut client, &short).len(), sealed(&mut client, &long).len());
}

#[test]
fn refused_content_uses_no_nonce() {
    let (greeter, mut client, mut first) = opened(Some(&server_key()), 1);
    let (mut server, _) = greeter.accept(&server_secret(), &mut first, &mut rng(3)).unwrap();
    let long = Message::unsigned(name("a"), Request::Act, Content::Raw(&[1; CONTENT_MAX_LEN + 1]));
    assert_eq!(client.seal(&long, None, &mut Frame::new()), Err(WireError::Invalid));
    assert!(server.open(&mut sealed(&mut client, &hello())).is_ok());
}

#[test]
fn padding_is_zero() {
    let (greeter, client, mut first) = opened(Some(&server_key()), 1);
    let (mut server, _) = greeter.accept(&server_secret(), &mut first, &mut rng(3)).unwrap();
    let mut seal = |nonce, head: &[u8], last| {
        let mut padded = [0; PADDED_LEN];
        padded[..head.len()].copy_from_slice(head);
        padded[PADDED_LEN - 1] = last;
        let tag = client.sealer.seal(nonce, &mut padded);
        server.open(&mut [&padded[..], &tag].concat()).map(<[u8]>::to_vec)
    };
    assert_eq!(seal(1, b"\x00\x01a", 0), Ok(b"a".to_vec()));
    assert_eq!(seal(2, b"\x00\x01a", 1), Err(ChannelFailed));
    assert_eq!(seal(3, b"\x00\x01ab", 0), Err(ChannelFailed));
    assert_eq!(seal(4, b"\x05\xff", 0), Err(ChannelFailed));
    assert_eq!(seal(5, b"\x05\xfe", 0).map(|message| message.len()), Ok(PADDED_LEN - 2));
}
