//! The inputs that every search begins with. `tests/corpus.rs` of the core writes them into the corpora and checks that
//! they are there.

use core::num::NonZeroU16;

use bulbil_core::auth::ServerSecret;
use bulbil_core::auth::record::RECORD_LEN;
use bulbil_core::wire::cell::{self, CELL_LEN, CloseReason, Command, CreditWriter};
use bulbil_core::wire::handshake::{Answer, CircuitLimit, Hello, InitialCredit, LinkLimits, RecordCells};
use bulbil_core::wire::message::{BeginOptions, MESSAGE_LEN};
use bulbil_core::wire::policy::Policy;
use bulbil_core::wire::{CircuitId, EndReason, Message, NodeId, UnixTime};
use sha2::{Digest, Sha256};

use super::descriptor;
use super::model::RSA_KEYS;

/// An input and the name of its file.
pub type Seed = (&'static str, Vec<u8>);

/// Users who sign up, sign in, act and go, from one computer and from two, and somebody who has seen it.
pub fn accounts() -> Vec<Seed> {
    let seeds = [
        ("sign-up-and-in", vec![0, 0, 0, 2, 0, 4, 0, 7, 1, 0, 7, 2, 0, 8]),
        ("wrong-password", vec![0, 0, 0, 2, 0, 16, 0, 7, 2]),
        ("another-computer", vec![0, 0, 0, 2, 0, 4, 1, 2, 1, 4, 0, 7, 1, 0, 8, 1, 7, 3, 1, 8]),
        ("name-taken", vec![0, 0, 1, 12, 3, 1, 3, 2, 3, 4]),
        ("unknown-user", vec![0, 2, 0, 4, 0, 7, 2, 0, 8]),
        ("late-without-a-disk", vec![0, 0, 0, 2, 1, 225, 0, 244]),
        ("late", vec![0, 0, 0, 2, 1, 225, 0, 4]),
        ("signed-in-already", vec![0, 0, 0, 2, 0, 4, 0, 2, 0, 9, 0, 2]),
        ("sent-again", vec![0, 0, 0, 10, 0, 0, 0, 2, 0, 4, 1, 10, 0, 2, 0, 8, 0, 10, 0, 3]),
        ("altered", vec![0, 11, 0, 200, 1, 0, 0, 0, 11, 7, 0, 255, 0, 2, 0, 11, 0, 1, 1, 0, 2, 0, 4]),
        ("length-of-the-shorter-opening", vec![0, 0, 2, 47, 0, 0, 0]),
        ("broken-disk", vec![0, 240, 0, 0, 0, 242, 0, 2, 0, 244, 0, 2, 0, 4, 0, 247, 1, 0, 248, 0, 7, 2]),
        ("sixteen-refusals", [0, 7, 2].repeat(18)),
    ];
    seeds.into()
}

/// Wires that split, alter, lose, insert and end.
pub fn link() -> Vec<Seed> {
    // Room, then pieces of this length, many times, both ways.
    let pieces = |piece: u16, times: usize| {
        let [high, low] = piece.to_be_bytes();
        [&[0, 0xc0, 0xc1][..], &[0, high, low, 1, high, low].repeat(times)].concat()
    };
    let whole = [0, 0xc0, 0xc1, 0, 0x04, 0xc2];
    let after = |steps: &[u8]| [&whole, steps].concat();
    // Found: one end's stream breaks while the bytes behind its answer have not been read yet.
    let broken = [
        &b"\x00\xc0\xc1\x00\x00\x01\x01\x00\x01\x00\x00\x01\x01\x00\x01\x00\x00\x01\x31\x32\x37\x2e\x30\x2e\
          \x30\x2e\x31\x01\x00\x01\x00\x00\x01\x01\x00\x80\x01\x3b\x41"[..],
        &[0xff; 51],
        b"\x00\x00\x01\x01\x00\x01\x00\x00\x41\x01\x00\x01\x00\x00\x01\x01\x00\x01\x00\x00\x01\x01\x00\x01\
          \x01\x00\x01\x00\x00\x01\x04\xfb\x01\x04\xfb\xc2\x00\x36\x35\x35\x33\x35\x04\x01\x0b\xc8\x46\x4a\
          \x36\xfb\x56\x39\xc4\x5d\xd9\xbb\xfb\xfa\x70\x8f\x68\xdf\x7d\x57\xc4\x96\x75\xff\xff\xff\xff\xb6\
          \xe6\x90\xf3\x34\x2c\x51\xee\x6c\x0a\x0a\x87\x2d\x61\xca",
        &[0xe1; 100],
        b"\x7a\x13\xed\x01\xb8\x5f\xf0\xb3\xcc\xff\x28\x90\x00\x01\x01\x00\x01\x00\x00\x01\x01\x00\xc8",
    ];
    let seeds = [
        ("at-once", vec![0x0f]),
        ("pieces-of-1", pieces(1, 60)),
        ("pieces-of-600", pieces(600, 30)),
        ("length-and-rest", [&[3, 0xc0, 0xc1][..], &[0, 0, 2, 0, 0x04, 0xc0, 1, 0, 2]].concat()),
        ("little-room", [&[0][..], &[0x80, 200, 0x81, 200, 0, 0x10, 0, 1, 0x10, 0].repeat(10)].concat()),
        ("question-altered", vec![0, 0xc0, 0xc1, 0xf0, 0, 40, 1]),
        ("question-longer", vec![0, 0xc0, 0xc1, 0xf0, 0, 1, 1]),
        ("question-cut-off", vec![0, 0xc0, 0xc1, 0, 0, 9, 0xfe]),
        ("answer-altered", after(&[0xf1, 1, 0, 1])),
        ("answer-shorter", after(&[0xf7, 1, 0, 1, 9])),
        ("answer-longer", after(&[0xfb, 1, 0, 4, 1, 2, 3, 4])),
        ("answer-cut-off", after(&[1, 1, 0, 0xff])),
        ("record-altered", after(&[1, 0x0c, 0, 1, 0x0c, 0, 0xf0, 0, 99, 1])),
        ("broken-behind-the-answer", broken.concat()),
        ("record-lost", after(&[1, 0x0c, 0, 1, 0x0c, 0, 0xf6, 0, 0, 2, 19])),
    ];
    seeds.into()
}

/// Messages of every request, records, challenges and frames of the application, the kind before each.
pub fn auth() -> Vec<Seed> {
    let with_kind = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let message = |text: &str| with_kind(0, text.as_bytes());
    let secret = ServerSecret::from_pkcs8(RSA_KEYS[0]);
    let public = secret.expect("a test key is valid").public();
    let tag = "A".repeat(342);
    let nonce = "0123456789abcdef".repeat(3);
    let record = |name: &str, devices: u8, connected: u8| {
        let mut bytes = [0; RECORD_LEN];
        bytes[0] = 1;
        bytes[8] = 7;
        bytes[16] = 3;
        bytes[17] = name.len() as u8;
        bytes[18..][..name.len()].copy_from_slice(name.as_bytes());
        bytes[114] = devices;
        bytes[115..][..32 * usize::from(devices)].fill(9);
        bytes[243] = connected;
        if connected == 1 {
            bytes[244..][..256].copy_from_slice(public.modulus());
        }
        bytes[501] = 4;
        bytes[502..506].copy_from_slice(b"note");
        with_kind(1, &bytes)
    };
    let seeds = [
        ("public-key", message("0::-:public_key:")),
        ("key", with_kind(0, &[b"2::-:public_key:".as_slice(), &public.to_der()].concat())),
        (
            "sign-up",
            with_kind(0, &[format!("0:{tag}:alice:sign_up:").as_bytes(), &[0xa5; 32], &public.to_der()].concat()),
        ),
        ("sign-in", with_kind(0, &[format!("2:{tag}:alice:sign_in:").as_bytes(), &public.to_der()].concat())),
        ("challenge", message(&format!("1::alice:challenge:bonjour_alice_{nonce}"))),
        ("act-write", message(&format!("0:{tag}:alice:act:write:a:b::c"))),
        ("disconnect", message(&format!("0:{tag}:alice:disconnect:"))),
        ("log", message("1::alice:log:202 signed in, session 7")),
        ("tag-with-unused-bits", message(&format!("0:{}B:alice:disconnect:", &tag[1..]))),
        ("unfinished", message("0::alice:sign_up")),
        ("unknown-request", message("0::alice:sign_off:")),
        ("unknown-encoding", message("3::alice:act:")),
        ("no-text", with_kind(0, b"1::alice:log:\xff")),
        ("too-long", message(&format!("0::alice:act:{}", "x".repeat(1101)))),
        ("record-registered", record("alice", 1, 0)),
        ("record-connected", record("a.b-c_d", 4, 1)),
        ("record-no-device", record("alice", 0, 0)),
        ("record-too-many-devices", record("alice", 5, 0)),
        ("record-cut", record("alice", 1, 1)[..400].to_vec()),
        ("status", with_kind(2, b"429 retry after 30 s")),
        ("status-leading-zero", with_kind(2, b"429 retry after 030 s")),
        ("challenge-text", with_kind(2, format!("bonjour_al_ice_{nonce}").as_bytes())),
        ("challenge-short", with_kind(2, format!("bonjour_alice_{}", &nonce[1..]).as_bytes())),
        ("greeting", with_kind(2, &[&[1, 0, 0, 0x4c, 0, 0, 0, 0, 2, 1][..], &[7; 32]].concat())),
        ("frame-garbage", with_kind(3, &[&[7, 0x31, 1][..], &[0x5a; 1840]].concat())),
        ("frame-discovery", with_kind(3, &[&[6, 0x31, 2][..], &[9; 1584]].concat())),
        ("frame-short", with_kind(3, &[7, 0x31, 1])),
        ("frame-length", with_kind(3, &[0xff, 0xff])),
    ];
    seeds.into()
}

/// Cells of every kind, without the zero bytes at their end.
pub fn cell() -> Vec<Seed> {
    let circuit = CircuitId::new(0x0102_0304).expect("not 0");
    let with_header = |circuit, command, body: &[u8]| {
        let mut bytes = [0; CELL_LEN];
        cell::emit_header(&mut bytes, circuit, command);
        bytes[cell::HEADER_LEN..][..body.len()].copy_from_slice(body);
        bytes
    };
    let close = |reason| {
        let mut bytes = [0; CELL_LEN];
        cell::emit_close(&mut bytes, circuit, reason);
        bytes
    };
    let credit = |entries: u32| {
        let mut bytes = [0; CELL_LEN];
        let mut writer = CreditWriter::new(&mut bytes);
        for id in 1..=entries {
            let circuit = CircuitId::new(id * 0x0101).expect("not 0");
            writer.push(circuit, NonZeroU16::MAX).expect("fits");
        }
        bytes
    };
    let hello = |cells, credit| {
        let mut bytes = with_header(None, Command::HELLO, &[]);
        Hello { limits: limits(cells, credit) }.emit(cell::body_mut(&mut bytes));
        bytes
    };
    let seeds = [
        ("padding", with_header(None, Command::PADDING, &[])),
        ("padding-not-zero", with_header(None, Command::PADDING, &[0, 1])),
        ("padding-on-circuit", with_header(Some(circuit), Command::PADDING, &[])),
        ("hello-least", hello(1, 1)),
        ("hello-most", hello(127, 1024)),
        ("hello-version-2", with_header(None, Command::HELLO, &[0, 2, 0, 1, 0, 1])),
        ("hello-too-much", with_header(None, Command::HELLO, &[0, 1, 0, 128, 4, 1])),
        ("credit-1", credit(1)),
        ("credit-84", credit(84)),
        ("credit-none", with_header(None, Command::CREDIT, &[0])),
        ("credit-85", with_header(None, Command::CREDIT, &[[85].as_slice(), &[1; 508]].concat())),
        ("credit-of-zero", with_header(None, Command::CREDIT, &[1, 0, 0, 0, 1, 0, 0])),
        ("open", with_header(Some(circuit), Command::OPEN, &[0xff; cell::BODY_LEN])),
        ("relay", with_header(Some(circuit), Command::RELAY, &[0xff; cell::BODY_LEN])),
        ("relay-on-link", with_header(None, Command::RELAY, &[1])),
        ("close-finished", close(CloseReason::Finished)),
        ("close-role-refused", close(CloseReason::RoleRefused)),
        ("close-unknown", with_header(Some(circuit), Command::CLOSE, &[9])),
    ];
    seeds.map(|(name, bytes)| (name, without_zeros(&bytes))).into()
}

/// Relay messages of every kind, without the zero bytes at their end.
pub fn message() -> Vec<Seed> {
    let begin = |target: &str, sign, once, first| {
        let target = target.parse().expect("a target");
        emitted(&Message::Begin { options: BeginOptions { sign, once }, target, first })
    };
    let longest = format!("{}:65535", "n".repeat(253));
    let full = [0x5a; 490];
    let address = |text: &str| Message::Connected { address: text.parse().expect("an address") };
    let receipt = Message::Receipt { time: UnixTime(1_800_000_000), signature: &[9; 256] };
    vec![
        ("begin-v4", begin("192.0.2.1:80", false, false, b"hi")),
        ("begin-v6", begin("[2001:db8::1]:443", true, false, b"")),
        ("begin-name", begin("example.org:443", false, true, b"GET / HTTP/1.1\r\n\r\n")),
        ("begin-longest", begin(&longest, true, true, &full[..232])),
        ("begin-service", begin("phonebook", true, true, b"")),
        ("begin-name-of-digits", vec![1, 0, 14, 0, 3, 9, b'1', b'9', b'2', b'.', b'0', b'.', b'2', b'.', b'1', 0, 80]),
        ("begin-dot", vec![1, 0, 8, 0, 3, 3, b'.', b'a', b'b', 0, 80]),
        ("begin-flags", vec![1, 0, 3, 4, 4, 1]),
        ("connected-v4", emitted(&address("192.0.2.1:80"))),
        ("connected-v6", emitted(&address("[::ffff:192.0.2.1]:80"))),
        ("data-1", emitted(&Message::Data(&[7]))),
        ("data-490", emitted(&Message::Data(&full))),
        ("data-none", vec![3, 0, 0]),
        ("data-491", vec![3, 1, 0xeb, 1]),
        ("fin", emitted(&Message::Fin)),
        ("fin-with-data", vec![4, 0, 1, 0]),
        ("end-done", emitted(&Message::End(EndReason::Done))),
        ("end-cancelled", emitted(&Message::End(EndReason::Cancelled))),
        ("end-unknown", vec![5, 0, 1, 15]),
        ("drop", emitted(&Message::Drop)),
        ("receipt", emitted(&receipt)),
    ]
}

fn emitted(message: &Message<'_>) -> Vec<u8> {
    let mut bytes = [0; MESSAGE_LEN];
    message.emit(&mut bytes).expect("the message is sound");
    without_zeros(&bytes)
}

/// Signed descriptors, alone and in a link's Answer, and ones that break a rule each.
pub fn descriptor() -> Vec<Seed> {
    let [relay, exit] = descriptor::signed() else { panic!("two are signed") };
    let mut buffer = [0; 4096];
    let answer = Answer {
        time: UnixTime(1_800_000_000),
        limits: limits(127, 64),
        circuits: CircuitLimit::new(1000).expect("not 0"),
        descriptor: exit,
    };
    let len = answer.emit(&mut buffer).expect("the answer is sound");
    let spoilt = |descriptor: &[u8], at: usize, byte: u8| {
        let mut bytes = descriptor.to_vec();
        bytes[at] ^= byte;
        bytes
    };
    vec![
        ("signed-relay", relay.clone()),
        ("signed-exit", exit.clone()),
        ("answer", buffer[..len].to_vec()),
        ("forged-sequence", spoilt(relay, 264, 1)),
        ("forged-signature", spoilt(exit, exit.len() - 1, 1)),
        ("even-modulus", spoilt(relay, 256, 1)),
        ("reserved-role", spoilt(relay, 283, 8)),
        ("exit-without-ports", spoilt(relay, 283, 2)),
        ("ports-touch", spoilt(exit, exit.len() - 256 - 7, 1)),
        ("truncated", relay[..relay.len() - 1].to_vec()),
    ]
}

/// Requests, answers, filters and samples, as [`super::exchange`] reads them.
pub fn exchange() -> Vec<Seed> {
    let [relay, exit] = descriptor::signed() else { panic!("two are signed") };
    let with_length = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
    let request = |head: [u8; 3], filter: &[u8], own: &[u8]| {
        [&[0], &head[..], &[9; 8], &with_length(filter), &with_length(own)].concat()
    };
    // Nodes that nobody can sign for, in the order of their ids.
    let mut others: Vec<_> = (0..3)
        .map(|number| {
            let mut other = relay.clone();
            other[100] = number;
            other
        })
        .collect();
    others.sort_by_key(|other| <[u8; 32]>::from(Sha256::digest(&other[1..257])));
    let answer = |head: &[u8], cards: &[&Vec<u8>]| {
        let cards: Vec<u8> = cards.iter().flat_map(|card| with_length(card)).collect();
        [&[1], head, &cards].concat()
    };
    // Wanted: 3. Whether signatures count; pieces of 101 bytes.
    let (strict, lax) = ([2, 1, 0, 100], [2, 0, 0, 100]);
    let head = |kind: [u8; 4], version: u8, count: u8| [&kind[..], &[version, count]].concat();
    let [first, second, third] = &others[..] else { panic!("there are three") };
    let whole = answer(&head(lax, 1, 3), &[first, second, third]);
    let mut flags = first.clone();
    flags[283] |= 8;
    vec![
        ("request", request([1, 1, 100], &[], &[])),
        ("request-filter", request([1, 1, 128], &[0x5a; 40], &[])),
        ("request-full-filter", request([1, 1, 1], &[0xff; 16], &[])),
        ("request-longest-filter-and-announces", request([1, 1, 100], &[0x5a; 4096], exit)),
        ("request-announces", request([1, 1, 100], &[0x5a; 3], exit)),
        ("request-epoch", request([1, 2, 8], &[0x5a; 3], relay)),
        ("request-version", request([2, 1, 100], &[], &[])),
        ("request-kind", request([1, 3, 100], &[], &[])),
        ("request-want-0", request([1, 1, 0], &[], &[])),
        ("request-want-129", request([1, 1, 129], &[], &[])),
        ("request-announces-nothing", request([1, 1, 1], &[], &relay[1..])),
        ("request-filter-too-long", [&[0, 1, 1, 1][..], &[9; 8], &[0x10, 1], &[0; 4099]].concat()),
        ("answer-empty", answer(&head(strict, 1, 0), &[])),
        ("answer-signed", answer(&head(strict, 1, 1), &[exit])),
        ("answer-forged", answer(&head(strict, 1, 1), &[first])),
        ("answer-three", whole.clone()),
        ("answer-unordered", answer(&head(lax, 1, 2), &[second, first])),
        ("answer-twice", answer(&head(lax, 1, 2), &[relay, exit])),
        ("answer-malformed", answer(&head(lax, 1, 1), &[&flags])),
        ("answer-short", answer(&head(lax, 1, 1), &[&relay[..100].to_vec()])),
        ("answer-version", answer(&head(lax, 2, 0), &[])),
        ("answer-too-many", answer(&head(lax, 1, 4), &[first])),
        ("answer-trailing", [&whole[..], &[0]].concat()),
        ("answer-cut-off", whole[..whole.len() - 1].to_vec()),
        ("answer-cut-in-length", whole[..8].to_vec()),
        ("filter", [&[2, 0, 100, 0, 3][..], &[7; 8], &[1, 1, 2, 2, 3, 3]].concat()),
        ("filter-little-room", [&[2, 0, 1, 0, 200][..], &[7; 8], &[1, 1, 2, 2, 3, 3]].concat()),
        ("filter-no-room", [&[2, 0, 0, 0, 200][..], &[7; 8], &[1, 1]].concat()),
        ("filter-longest", [&[2, 0x13, 0x87, 0xff, 0xff][..], &[7; 8], &[1, 1, 3, 3]].concat()),
        ("writer", vec![3, 1, 1, 0, 1, 255]),
        ("writer-pieces", [&[3, 1, 127, 1][..], &[11; 30]].concat()),
        ("writer-twice", vec![3, 2, 2, 1, 0, 255, 255, 255]),
        ("writer-none", vec![3, 0, 2, 0, 1, 255]),
        ("writer-too-many", vec![3, 9, 2]),
    ]
}

/// Policies, targets and a node id.
pub fn text() -> Vec<Seed> {
    let texts = [
        ("policy-default", Policy::default().to_string()),
        ("policy-loopback", Policy::loopback().to_string()),
        (
            "policy-commented",
            "# mail\nreject *:25 # spam\r\n\n\taccept  192.0.2.0/24:80-443\naccept [2001:db8::]/32:*\n".into(),
        ),
        ("policy-mapped", "accept [::ffff:192.0.2.1]:80\n".into()),
        ("policy-host-bits", "accept *:80\naccept 192.0.2.1/24:80\n".into()),
        ("policy-plus", "accept *:+80\n".into()),
        ("policy-gaps", (1..=12).map(|port| format!("accept *:{}\n", port * port)).collect()),
        ("policy-full", "reject 192.0.2.1:1-2\n".repeat(33)),
        ("target-v4", "192.0.2.1:80".into()),
        ("target-v6", "[2001:db8::1]:443".into()),
        ("target-scope", "[fe80::1%1]:443".into()),
        ("target-name", "example.org:443".into()),
        ("target-plus", "192.0.2.1:+80".into()),
        ("target-service", "phonebook".into()),
        ("node-id", NodeId([0x9a; 32]).to_string()),
        ("node-id-capitals", NodeId([0x9a; 32]).to_string().to_uppercase()),
    ];
    texts.map(|(name, text)| (name, text.into_bytes())).into()
}

/// What may happen to a link, as [`super::record`] reads it.
pub fn record() -> Vec<Seed> {
    let seeds: [(&str, &[u8]); 11] = [
        // Limits: 4 cells, 1 cell, 127 cells.
        ("in-order", &[3, 0, 3, 0, 1, 0, 2, 3, 0xff, 0xff]),
        ("byte-by-byte", &[0, 0, 0, 3, 0, 1, 3, 0, 1, 3, 0, 1, 3, 2, 0, 3, 0, 30]),
        ("largest", &[0xff, 0, 126, 3, 0, 2, 3, 0xff, 0x0e, 3, 0, 1]),
        ("flipped", &[1, 0, 1, 0, 0, 5, 0, 40, 1, 3, 0xff, 0xff]),
        ("length-flipped", &[1, 0, 1, 5, 0, 1, 2, 3, 0xff, 0xff]),
        ("length-impossible", &[1, 0, 1, 8, 0, 0, 2, 0, 1, 3, 0, 2]),
        ("second-lost", &[0, 0, 0, 0, 1, 0, 2, 6, 2, 20, 4, 39, 3, 0xff, 0xff]),
        ("repeated", &[0, 0, 0, 3, 2, 20, 9, 0, 0, 0, 3, 2, 20]),
        ("failed-then-honest", &[0, 0, 0, 5, 0, 9, 1, 3, 2, 20, 0, 1, 3, 2, 20, 0, 2]),
        ("copied-within", &[3, 0, 3, 7, 0, 0, 0, 40, 0, 99, 3, 0xff, 0xff]),
        ("foreign-behind", &[0, 0, 0, 8, 2, 20, 4, 2, 18, 1, 1, 3, 2, 24]),
    ];
    seeds.map(|(name, bytes)| (name, bytes.to_vec())).into()
}

/// What may happen to an onion, as [`super::onion`] reads it.
pub fn onion() -> Vec<Seed> {
    // After the first byte: which of two onions, at which hop (times 2), given to which node (times 8).
    let given = |hop: u8, node: u8| hop << 1 | node << 3;
    // Authentic layers: the 64 bytes of an instruction and what the rest is filled with.
    let authentic = |start: &[u8], id: u8, fill: u8| {
        let mut bytes = vec![1];
        bytes.extend_from_slice(start);
        bytes.resize(1 + 20, 0);
        bytes.resize(1 + 52, id);
        bytes.resize(1 + 64, 0);
        bytes.push(fill);
        bytes
    };
    let v6 = [[1, 2].as_slice(), &[0x20; 16], &[1, 187]].concat();
    let rsa = |mut seed: Vec<u8>| {
        seed[0] |= 0xf0;
        seed
    };
    vec![
        ("hop-1", vec![0, given(0, 0)]),
        ("hop-2-previous-key", vec![0, given(1, 1) | 1]),
        ("hop-3", vec![0, given(2, 2)]),
        ("hop-4", vec![0, given(3, 3) | 1]),
        ("wrong-node", vec![0, given(0, 2)]),
        ("ciphertext-flipped", vec![0, given(0, 0), 0, 0, 31, 0x80]),
        ("mac-flipped", vec![0, given(0, 0), 0, 0x04, 0x60, 1]),
        ("last-byte-flipped", vec![0, given(2, 2), 0, 0x13, 0xe1, 1]),
        ("flipped-back", vec![0, given(3, 3), 0, 0, 9, 1, 0, 0, 9, 1]),
        ("rest-of-another", vec![0, given(0, 0), 4, 1, 0x04, 0x70, 0x13, 0xe1]),
        ("replaced-by-another", vec![0, given(0, 0), 4, 1, 0, 0, 0x13, 0xe1]),
        ("rotated", vec![0, given(1, 1), 3, 4, 0xb0]),
        ("zeroed", vec![0, given(1, 1), 1, 0x10, 0, 0x13, 0xe1, 0]),
        ("authentic-last", authentic(&[0], 0, 0x5a)),
        ("authentic-last-with-id", authentic(&[0], 1, 0)),
        ("authentic-next-v4", authentic(&[1, 1, 192, 0, 2, 1, 0x23, 0x29], 7, 0)),
        ("authentic-next-v6", authentic(&v6, 7, 0xff)),
        ("authentic-port-0", authentic(&[1, 1, 192, 0, 2, 1, 0, 0], 7, 0)),
        ("authentic-v4-padding", authentic(&[1, 1, 192, 0, 2, 1, 0, 80, 1], 7, 0)),
        ("authentic-family-3", authentic(&[1, 3, 192, 0, 2, 1, 0, 80], 7, 0)),
        ("authentic-kind-2", authentic(&[2], 0, 0)),
        ("rsa-hop-1", rsa(vec![0, given(0, 0)])),
        ("rsa-hop-2-previous-key", rsa(vec![0, given(1, 1)])),
        ("rsa-hop-4", rsa(vec![0, given(3, 3) | 1])),
        ("rsa-ciphertext-flipped", rsa(vec![0, given(0, 0), 0, 0, 31, 0x80])),
        ("rsa-mac-flipped", rsa(vec![0, given(2, 2), 0, 1, 0, 1])),
        ("rsa-authentic-last", rsa(authentic(&[0], 0, 0x5a))),
        ("rsa-authentic-next-v6", rsa(authentic(&v6, 7, 0xff))),
    ]
}

/// What may happen to a node, as [`super::node`] reads it.
pub fn node() -> Vec<Seed> {
    // A link with credit 101; a whole onion; its job; what it tells the node to do.
    let opened = |told: u8| [0, 100, 1, 0, 0, 3, 4, 0, told];
    let (exit, relay, rejected) = (opened(0xf0), opened(5), opened(0xff));
    let (exit, relay) = (&exit[..], &relay[..]);
    const BEGIN: &[u8] = &[6, 0, 0, 0, 5];
    const CONNECT: &[u8] = &[13, 0, 200, 0, 0];
    const SAY: &[u8] = &[7, 0, 0, 99, 99];
    const SAY_FIN: &[u8] = &[7, 0, 0, 0, 0];
    const ANSWER: &[u8] = &[13, 0, 9, 7, 0];
    const ANSWER_FIN: &[u8] = &[13, 0, 96, 0, 0];
    const READ: &[u8] = &[13, 0, 200, 7, 0];
    const PUMP: &[u8] = &[12, 0, 255];
    const LINK_UP: &[u8] = &[12, 0, 200];
    // Circuits that end and have not been told so, on two links.
    const REJECT: &[u8] = &[1, 0, 0, 3, 4, 0, 0xff];
    const REJECT_1: &[u8] = &[1, 1, 0, 3, 4, 0, 0xff];
    const LATER: &[u8] = &[14, 255];
    const BEGIN_SERVICE: &[u8] = &[6, 0, 0, 0x1c, 5];
    // Noise on the circuit of the first link, and of the second.
    const NOISE: &[u8] = &[8, 0, 0, 7, 8, 0, 0, 9];
    const NOISE_BACK: &[u8] = &[8, 1, 0, 7, 8, 1, 0, 9];
    let seeds: [(&str, &[&[u8]]); 25] = [
        ("onion-rejected", &[&[0], &rejected, PUMP]),
        ("role-refused", &[&[2], exit, PUMP]),
        ("exit", &[&[0], exit, BEGIN, CONNECT, SAY, READ, PUMP]),
        ("exit-answers", &[&[0], exit, BEGIN, CONNECT, ANSWER, PUMP, &[9, 0, 0, 200], ANSWER, PUMP]),
        ("exit-signs", &[&[0], exit, &[6, 0, 0, 1, 5], CONNECT, SAY_FIN, READ, ANSWER, ANSWER_FIN, READ, PUMP]),
        ("exit-finishes", &[&[0], exit, BEGIN, CONNECT, ANSWER_FIN, SAY_FIN, READ, READ, READ, PUMP]),
        ("exit-refuses", &[&[0], exit, BEGIN, &[13, 0, 0, 0, 0], PUMP]),
        ("early-cells", &[&[0, 0, 100, 1, 0, 0], BEGIN, SAY, &[3, 4, 0, 0xf0], CONNECT, READ]),
        ("client-lost-while-connecting", &[&[0], exit, BEGIN, &[15, 0], CONNECT, READ]),
        ("circuits-full", &[&[0, 0, 100, 0, 100], REJECT, REJECT, REJECT, REJECT, REJECT_1, REJECT_1, &[1, 1, 0]]),
        ("closed-behind-early-cells", &[&[0, 0, 100, 1, 0, 0], BEGIN, &[10, 0, 0, 0]]),
        ("beyond-credit", &[&[0], exit, BEGIN, SAY, SAY, SAY, SAY, SAY, SAY, SAY, SAY, SAY]),
        ("service", &[&[0], exit, BEGIN_SERVICE, CONNECT, SAY, READ, ANSWER, PUMP, ANSWER_FIN, PUMP]),
        ("service-at-relay", &[&[2], exit, BEGIN_SERVICE, CONNECT, SAY_FIN, READ, ANSWER, ANSWER_FIN, PUMP]),
        ("target-at-relay", &[&[2], exit, BEGIN, SAY, CONNECT, PUMP]),
        ("passing", &[&[0], relay, BEGIN, LINK_UP, PUMP, &[8, 1, 0, 7], PUMP]),
        (
            "window-used-up",
            &[&[0], exit, BEGIN, CONNECT, SAY, SAY, SAY, SAY, SAY, SAY, SAY, READ, READ, PUMP, SAY, READ, PUMP],
        ),
        (
            "windows-used-up-passing",
            &[
                &[0],
                relay,
                NOISE,
                NOISE,
                NOISE,
                NOISE,
                LINK_UP,
                PUMP,
                PUMP,
                NOISE,
                NOISE_BACK,
                NOISE_BACK,
                NOISE_BACK,
                NOISE_BACK,
                PUMP,
                PUMP,
                PUMP,
                NOISE_BACK,
                PUMP,
                PUMP,
            ],
        ),
        // Only a part of the onion has left.
        ("next-hop-speaks-before-it-has-the-onion", &[&[0], relay, LINK_UP, &[12, 0, 8], &[8, 1, 0, 7], REJECT, PUMP]),
        ("next-hop-unreachable", &[&[0], relay, BEGIN, &[12, 0, 0], PUMP]),
        ("next-hop-lost", &[&[0], relay, BEGIN, LINK_UP, PUMP, &[15, 1], PUMP]),
        ("expires", &[&[0], exit, BEGIN, CONNECT, LATER, LATER, LATER, PUMP, LATER, PUMP]),
        // A node that stops; 298 s, and 101 s after the refusal.
        ("refused-when-its-link-is-idle-soon", &[&[0, 0, 100, 14, 0, 14, 122], &[1, 0, 0], &[14, 71], PUMP]),
        // Beside a link on which garbage is said; the owner comes to it only when the node has had it closed.
        (
            "refused-on-a-link-that-was-idle",
            &[
                &[0, 0, 200, 0, 0, 0, 255],
                &[50, 0, 0, 1, 0, 0, 50, 50, 0, 0, 44, 114, 3, 0],
                &[43, 50, 0, 0, 0, 3, 3],
                &[0; 19],
                &[43, 50, 0, 0, 239, 0, 3],
                &[0; 19],
                &[18, 18, 0, 206, 243, 12, 5, 0],
            ],
        ),
        ("own-circuit", &[&[0, 14, 9, 3], &[5; 8], LINK_UP, PUMP, ANSWER, PUMP, &[8, 0, 0, 7]]),
    ];
    seeds.map(|(name, parts)| (name, parts.concat())).into()
}

fn limits(cells: u16, credit: u16) -> LinkLimits {
    LinkLimits {
        record_cells: RecordCells::new(cells).expect("1 to 127"),
        credit: InitialCredit::new(credit).expect("1 to 1024"),
    }
}

fn without_zeros(bytes: &[u8]) -> Vec<u8> {
    let len = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    bytes[..len].to_vec()
}
