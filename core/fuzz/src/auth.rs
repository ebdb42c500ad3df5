//! The challenge-response application, `PROTOCOL.md` section 17: messages, stored records and challenges are accepted exactly where the section
//! allows them and emitted as the very same bytes; a connection takes no frame but those of its lengths, and stays closed once it has failed.

use bulbil_core::auth::challenge::Challenge;
use bulbil_core::auth::envelope::Greeting;
use bulbil_core::auth::message::{CONTENT_MAX_LEN, Content, MESSAGE_MAX_LEN, Message};
use bulbil_core::auth::record::{RECORD_LEN, UserRecord};
use bulbil_core::auth::{Allowance, GREETING_LEN, KdfParameters, Server, ServerSecret, Status, Username};
use bulbil_core::wire::Writer;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use super::model::RSA_KEYS;

const REQUESTS: [&str; 7] = ["public_key", "sign_up", "sign_in", "challenge", "act", "disconnect", "log"];
/// What the DER of an RSA-2048 key is but for its modulus.
const DER_HEAD: &str = "30820122300d06092a864886f70d01010105000382010f003082010a0282010100";
const DER_TAIL: [u8; 5] = [2, 3, 1, 0, 1];

/// The first byte says what the rest is.
pub fn check(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 4 {
        0 => check_message(rest),
        1 => check_record(rest),
        2 => check_texts(rest),
        _ => check_frame(rest),
    }
}

fn check_message(input: &[u8]) {
    let parsed = Message::parse(input);
    assert_eq!(parsed.is_ok(), allowed(input).is_some(), "{parsed:?}");
    let Ok(message) = parsed else { return };
    let mut emitted = [0xa5; MESSAGE_MAX_LEN];
    let mut writer = Writer::new(&mut emitted);
    assert_eq!(message.emit(&mut writer), Ok(()));
    assert_eq!(writer.len(), input.len());
    assert_eq!(emitted[..input.len()], *input);
    if let Content::Raw(content) = message.content {
        assert!(input.ends_with(content));
    }
}

/// `encoding:tag:username:request:content`.
fn allowed(input: &[u8]) -> Option<()> {
    let mut fields = input.splitn(5, |&byte| byte == b':');
    let [encoding, tag, username, request] = std::array::from_fn(|_| fields.next());
    let (encoding, tag, username, request, content) = (encoding?, tag?, username?, request?, fields.next()?);
    let digit = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-".contains(byte);
    // The last of 342 digits has two bits to give.
    let signature = tag.len() == 342 && tag.iter().all(digit) && b"AQgw".contains(tag.last()?);
    let good = (tag.is_empty() || signature)
        && is_name(username)
        && REQUESTS.iter().any(|known| known.as_bytes() == request)
        && content.len() <= CONTENT_MAX_LEN
        && match encoding {
            b"0" => true,
            b"1" => std::str::from_utf8(content).is_ok(),
            b"2" => is_key(content),
            _ => false,
        };
    good.then_some(())
}

fn is_key(der: &[u8]) -> bool {
    let head: Vec<u8> =
        (0..DER_HEAD.len()).step_by(2).map(|at| u8::from_str_radix(&DER_HEAD[at..][..2], 16).unwrap_or(0)).collect();
    let modulus = der.strip_prefix(head.as_slice()).and_then(|rest| rest.strip_suffix(&DER_TAIL));
    modulus.is_some_and(is_modulus)
}

fn is_modulus(bytes: &[u8]) -> bool {
    bytes.len() == 256 && bytes[0] >= 0x80 && bytes[255] % 2 == 1
}

fn is_name(bytes: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    (1..=64).contains(&bytes.len()) && bytes.iter().all(allowed)
}

fn check_record(input: &[u8]) {
    // So that a short input reaches every field, what it lacks is zero.
    let mut padded = [0; RECORD_LEN];
    let len = input.len().min(RECORD_LEN);
    padded[..len].copy_from_slice(&input[..len]);
    let decoded = UserRecord::decode(&padded);
    assert_eq!(decoded.is_ok(), is_record(&padded));
    if let Ok(record) = decoded {
        assert_eq!(*record.encode(), padded);
    }
    assert!(input.len() == RECORD_LEN || UserRecord::decode(input).is_err(), "a record of another length");
}

/// Version, revision, sessions; then name, password key, known session keys, session and note, each with what it does not use zero.
fn is_record(bytes: &[u8; RECORD_LEN]) -> bool {
    let zero = |from: usize, to: usize| bytes[from..to].iter().all(|&byte| byte == 0);
    let (name, keys) = (usize::from(bytes[17]), usize::from(bytes[114]));
    let note = usize::from(u16::from_be_bytes([bytes[500], bytes[501]]));
    let session = match bytes[243] {
        0 => zero(244, 500),
        1 => is_modulus(&bytes[244..500]),
        _ => false,
    };
    let fits = bytes[0] == 1 && !zero(1, 9) && name <= 64 && is_name(&bytes[18..18 + name.min(64)]);
    fits && zero(18 + name, 82)
        && (1..=4).contains(&keys)
        && zero(115 + 32 * keys, 243)
        && session
        && note <= 1024
        && zero(502 + note, 1526)
}

/// A code and its text; three of them end with a number.
fn is_status(text: &str) -> bool {
    let plain = [
        "201 signed up",
        "204 disconnected",
        "205 note kept",
        "400 not understood",
        "403 refused",
        "409 name taken",
        "503 unavailable",
    ];
    let session = ["202 signed in, session ", "203 already signed in, session "];
    let number = |digits: &str| digits.parse().ok().filter(|number: &u64| number.to_string() == digits);
    let wait = text.strip_prefix("429 retry after ").and_then(|rest| rest.strip_suffix(" s")).and_then(number);
    plain.contains(&text)
        || session.iter().any(|head| text.strip_prefix(head).and_then(number).is_some())
        || wait.is_some_and(|seconds| seconds <= u32::MAX.into())
}

/// Version 1, memory, passes and lanes within the bounds of clients, and any key.
fn is_greeting(bytes: &[u8; GREETING_LEN]) -> bool {
    let number = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    bytes[0] == 1
        && (19 << 10..=1 << 20).contains(&number(1))
        && (2..=16).contains(&number(5))
        && (1..=16).contains(&bytes[9])
}

fn check_texts(input: &[u8]) {
    let text = match std::str::from_utf8(input) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&input[..error.valid_up_to()]).expect("valid up to there"),
    };
    let status = Status::parse(text);
    assert_eq!(status.is_some(), is_status(text));
    if let Some(status) = status {
        assert_eq!(status.text().as_ref(), text);
    }
    assert_eq!(Username::new(text).is_ok(), is_name(text.as_bytes()));
    // A challenge for somebody whose name has underscores may look like another's: only the one who is meant answers.
    let nonce_at = text.len().checked_sub(49);
    for (at, _) in text.match_indices('_') {
        let Some(name) = text.strip_prefix("bonjour_").and_then(|rest| rest.get(..at.checked_sub(8)?)) else {
            continue;
        };
        let Ok(username) = Username::new(name) else { continue };
        let nonce = &text[at + 1..];
        let hex = nonce.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        let right = nonce_at == Some(at) && hex;
        assert_eq!(Challenge::parse(text, &username).is_some(), right, "{text} for {name}");
    }
    if let Some(bytes) = input.first_chunk() {
        let greeting = Greeting::parse(bytes);
        assert_eq!(greeting.is_ok(), is_greeting(bytes));
        if let Ok(greeting) = greeting {
            let parameters = greeting.parameters();
            let fields = [parameters.memory(), parameters.passes(), parameters.lanes().into()].map(u32::to_be_bytes);
            assert_eq!([&fields[0], &fields[1], &fields[2][3..]].concat(), bytes[1..10]);
        }
    }
}

fn check_frame(input: &[u8]) {
    // One for each thread: where nothing atomic has 64 bits, threads cannot share one.
    thread_local! {
        static SERVER: Server<Vec<Allowance>> = {
            let secret = ServerSecret::from_pkcs8(RSA_KEYS[0]).expect("a test key is valid");
            Server::new(secret, KdfParameters::FLOOR, vec![Allowance::new()], &mut ChaCha20Rng::seed_from_u64(1))
        };
    }
    SERVER.with(|server| check_frame_of(server, input));
}

fn check_frame_of(server: &Server<Vec<Allowance>>, input: &[u8]) {
    let rng = &mut ChaCha20Rng::seed_from_u64(2);
    let (mut connection, _) = server.greet(rng);
    let Some((field, body)) = input.split_first_chunk() else { return };
    let len = connection.frame_len(*field).ok();
    assert_eq!(len, [1841, 1585].into_iter().find(|&len| usize::from(u16::from_be_bytes(*field)) == len));
    // A frame that its sender could not seal, of whatever length the shell brings: refused, and nothing is answered any more.
    if len.is_some() {
        assert!(connection.receive(server, &mut body.to_vec(), rng).is_err());
    }
    assert!(connection.frame_len(1841u16.to_be_bytes()).is_err());
    assert!(connection.receive(server, &mut vec![0; 1841], rng).is_err());
}
