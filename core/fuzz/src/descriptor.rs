//! Descriptors, `PROTOCOL.md` section 3: the parser accepts exactly what the section allows, emits it as the very same
//! bytes, and only the bytes that the identity signed verify.

use std::sync::OnceLock;

use bulbil_core::crypto::identity::{self, IdentitySecret};
use bulbil_core::link::LinkKey;
use bulbil_core::phonebook::VerifiedDescriptor;
use bulbil_core::wire::descriptor::{DESCRIPTOR_MAX_LEN, DESCRIPTOR_MIN_LEN, SIGNING_CONTEXT};
use bulbil_core::wire::handshake::Answer;
use bulbil_core::wire::{Descriptor, OnionKey, PortRange, ProtocolVersion, Roles, UnixTime, WireError};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use sha2::{Digest, Sha256};

use super::model::{self, Bytes, RSA_KEYS};

/// When the signed descriptors are valid.
const NOW: UnixTime = UnixTime(1_800_000_000);

/// The input is a descriptor, or a link's Answer with one.
pub fn check(input: &[u8]) {
    check_descriptor(input);
    check_answer(input);
}

fn check_descriptor(input: &[u8]) {
    let parsed = Descriptor::parse(input);
    assert_eq!(parsed.is_ok(), allowed(input).is_some(), "{parsed:?}");
    let Ok(descriptor) = parsed else { return };

    let len = input.len();
    assert!((DESCRIPTOR_MIN_LEN..=DESCRIPTOR_MAX_LEN).contains(&len));
    for background in [0xa5, 0x5a] {
        let mut emitted = [background; DESCRIPTOR_MAX_LEN];
        assert_eq!(descriptor.emit(&mut emitted), Ok(len));
        assert_eq!(emitted[..len], *input);
        assert!(emitted[len..].iter().all(|&byte| byte == background), "wrote past its end");
    }
    assert_eq!(descriptor.emit(&mut vec![0; len - 1]), Err(WireError::NoRoom));
    assert_eq!(descriptor.node_id().0, *Sha256::digest(&input[1..257]));

    let misfits = [0, len / 2, len - 256, len - 1];
    assert!(misfits.iter().all(|&end| Descriptor::parse(&input[..end]).is_err()), "accepted a part of itself");
    let extended = |byte| [input, &[byte]].concat();
    assert!([0, 1, 0xff].into_iter().all(|byte| Descriptor::parse(&extended(byte)).is_err()), "accepted more");

    let clock = [0, descriptor.valid_from.0, descriptor.valid_until.0, NOW.0, u64::MAX];
    for now in clock.into_iter().flat_map(|now| [now, now.saturating_add(61), now.saturating_sub(61)]) {
        let from = u128::from(descriptor.valid_from.0);
        let until = u128::from(descriptor.valid_until.0);
        let valid = from <= u128::from(now) + 60 && u128::from(now) <= until + 60;
        assert_eq!(descriptor.is_valid_at(UnixTime(now)), valid, "at {now}");
    }

    let verified = VerifiedDescriptor::verify(descriptor, NOW);
    assert_eq!(verified.is_ok(), signed().iter().any(|signed| signed == input), "{verified:?}");
}

fn check_answer(input: &[u8]) {
    let parsed = Answer::parse(input);
    let descriptor = input.get(18..);
    let allowed = {
        let mut bytes = Bytes(input);
        bytes.number(2) == Some(1)
            && bytes.take(8).is_some()
            && bytes.number(2).is_some_and(|record_cells| (1..=127).contains(&record_cells))
            && bytes.number(2).is_some_and(|credit| (1..=1024).contains(&credit))
            && bytes.number(4).is_some_and(|circuits| circuits >= 1)
            && (DESCRIPTOR_MIN_LEN..=DESCRIPTOR_MAX_LEN).contains(&bytes.0.len())
    };
    assert_eq!(parsed.is_ok(), allowed, "{:?}", parsed.as_ref().err());
    let Ok(answer) = parsed else { return };
    assert_eq!(Some(answer.descriptor), descriptor);
    let mut emitted = vec![0xa5; input.len()];
    assert_eq!(answer.emit(&mut emitted), Ok(input.len()));
    assert_eq!(emitted, input);
    check_descriptor(answer.descriptor);
}

/// Whether section 3 allows the descriptor, signature apart.
pub fn allowed(input: &[u8]) -> Option<()> {
    let modulus = |modulus: &[u8]| (modulus[0] & 0x80 != 0 && modulus[255] & 1 != 0).then_some(());
    let mut bytes = Bytes(input);
    bytes.number(1).filter(|&format| format == 1)?;
    modulus(bytes.take(256)?)?;
    bytes.take(8)?;
    let (from, until) = (bytes.number(8)?, bytes.number(8)?);
    bytes.number(2).filter(|&version| from < until && version >= 1)?;
    let roles = bytes.number(1).filter(|&roles| roles < 8)?;
    bytes.take(32)?;
    match bytes.number(1)? {
        1 => modulus(bytes.take(256)?)?,
        2 => bytes.take(1216).map(|_| ())?,
        _ => return None,
    }
    for _ in 0..bytes.number(1).filter(|count| (1..=4).contains(count))? {
        model::address(&mut bytes)?;
    }
    let ranges = bytes.number(1).filter(|&count| count <= 8 && (count == 0) == (roles & 2 == 0))?;
    // What the first range may begin with: 1, and every other one leaves a port between itself and the one before.
    let mut least = 1;
    for _ in 0..ranges {
        let (low, high) = (bytes.number(2)?, bytes.number(2)?);
        if low < least || low > high {
            return None;
        }
        least = high + 2;
    }
    bytes.take(256)?;
    bytes.0.is_empty().then_some(())
}

/// The only descriptors that verify: one with either kind of onion key, by the first of [`RSA_KEYS`].
pub fn signed() -> &'static [Vec<u8>] {
    static SIGNED: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SIGNED.get_or_init(|| {
        let rng = &mut ChaCha20Rng::seed_from_u64(1);
        let secret = IdentitySecret::from_pkcs8(RSA_KEYS[0]).expect("the test key is sound");
        let ranges =
            |bounds: &[(u16, u16)]| bounds.iter().filter_map(|&(low, high)| PortRange::new(low, high)).collect();
        let relay = Descriptor {
            identity: secret.public(),
            sequence: 7,
            valid_from: UnixTime(NOW.0 - 3600),
            valid_until: UnixTime(NOW.0 + 3600),
            protocol: ProtocolVersion::V1,
            roles: Roles { relay: true, exit: false, constrained: false },
            link_key: LinkKey([3; 32]).0,
            onion_key: OnionKey::Rsa2048(secret.public()),
            addresses: [([192, 0, 2, 1], 9001).into()].into_iter().collect(),
            exit_ports: ranges(&[]),
            signature: [0; 256],
        };
        let exit = Descriptor {
            roles: Roles { relay: true, exit: true, constrained: true },
            onion_key: OnionKey::XWing([4; 1216]),
            addresses: [([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 443).into(), ([192, 0, 2, 1], 9001).into()]
                .into_iter()
                .collect(),
            exit_ports: ranges(&[(1, 24), (26, 79), (443, 65535)]),
            ..relay.clone()
        };
        let mut sign = |mut descriptor: Descriptor| {
            let mut buffer = [0; DESCRIPTOR_MAX_LEN];
            let len = descriptor.emit_unsigned(&mut buffer).expect("the descriptor is sound");
            descriptor.signature = secret.sign(rng, &[SIGNING_CONTEXT, &buffer[..len]]).expect("the key is sound");
            identity::verify(&descriptor.identity, &[SIGNING_CONTEXT, &buffer[..len]], &descriptor.signature)
                .expect("signed a moment ago");
            let len = descriptor.emit(&mut buffer).expect("the descriptor is sound");
            buffer[..len].to_vec()
        };
        vec![sign(relay), sign(exit)]
    })
}
