//! Peeling an onion, `PROTOCOL.md` section 6. An onion that was built is peeled by its hop to the expected instruction,
//! keys and next onion; one that differs in any way, or that another node is given, is rejected and left as it was. And
//! layers that are authentic but hold anything at all are peeled just as a second implementation, here, peels them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::OnceLock;

use aes::Aes128;
use bulbil_core::crypto::kem::{Kem, OnionKeys, OnionSecret, Rsa2048, SharedSecret, XWing};
use bulbil_core::crypto::onion::{HopSpec, Instruction, ONION_LEN, Onion, OnionRejected, Peeled, build, peel};
use bulbil_core::wire::{NodeId, OnionKey, OnionKeyKind};
use ctr::cipher::{KeyIvInit, StreamCipher};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use sha2::{Digest, Sha256};

use super::model::{Bytes, RSA_KEYS, zeros};
use super::script::Script;

const MAC_LEN: usize = 16;
const INSTRUCTION_LEN: usize = 64;
const HOPS: usize = 4;

/// The input is a [`Script`]: which onion, what is done to it and who gets it. One in sixteen is about RSA, which takes twenty times as long.
pub fn check(input: &[u8]) {
    static X_WING: OnceLock<World> = OnceLock::new();
    static RSA: OnceLock<World> = OnceLock::new();
    let mut script = Script::new(input);
    let Some(choice) = script.byte() else { return };
    let world = match choice {
        ..0xf0 => X_WING.get_or_init(|| World::new(OnionKeyKind::XWing)),
        0xf0.. => RSA.get_or_init(|| World::new(OnionKeyKind::Rsa2048)),
    };
    if choice & 1 == 0 {
        check_altered(world, &mut script);
    } else {
        check_authentic(world, &mut script);
    }
}

struct Node {
    id: NodeId,
    address: SocketAddr,
    public: OnionKey,
    keys: OnionKeys,
}

/// An onion as hop after hop gets it, and what the client knows of each.
struct Opening {
    onions: [Box<Onion>; HOPS],
    keys: Vec<bulbil_core::crypto::onion::HopKeys>,
}

struct World {
    kind: OnionKeyKind,
    /// The second node's key of the path is its previous one. Its current one is of x-wing.
    nodes: [Node; HOPS],
    openings: [Opening; 2],
    /// A ciphertext for the first node and the secret in it.
    sealed: (Vec<u8>, SharedSecret),
}

impl World {
    fn new(kind: OnionKeyKind) -> Self {
        let rng = &mut ChaCha20Rng::seed_from_u64(1);
        let nodes = [0, 1, 2, 3].map(|index| {
            let mut generate = |kind| match kind {
                OnionKeyKind::Rsa2048 => {
                    OnionSecret::import(kind, RSA_KEYS[usize::from(index)]).expect("a test key is sound")
                }
                OnionKeyKind::XWing => OnionSecret::generate(kind, rng),
            };
            let secret = generate(kind);
            let public = secret.public();
            let keys = match index {
                1 => OnionKeys::new(generate(OnionKeyKind::XWing), Some(secret)),
                _ => OnionKeys::new(secret, None),
            };
            let address = if index == 2 { "[2001:db8::7]:443" } else { "192.0.2.1:9001" };
            Node { id: NodeId([index + 1; 32]), address: address.parse().expect("an address"), public, keys }
        });
        let openings = [(); 2].map(|()| {
            let path = nodes.each_ref().map(|node| HopSpec { node: node.id, key: &node.public, address: node.address });
            let mut onion = Box::new([0xa5; ONION_LEN]);
            let keys = build(&path, &mut onion, rng).expect("the path is sound").into_iter().collect();
            let onions = nodes.each_ref().map(|node| {
                let here = onion.clone();
                let _ = peel(&mut onion, &node.id, &node.keys, rng).expect("built for this hop");
                here
            });
            Opening { onions, keys }
        });
        let mut ciphertext = vec![0; kind_and_len(kind).1];
        let secret = match &nodes[0].public {
            OnionKey::Rsa2048(public) => Rsa2048::encapsulate(public, &mut ciphertext, rng),
            OnionKey::XWing(public) => XWing::encapsulate(public, &mut ciphertext, rng),
        };
        Self { kind, nodes, openings, sealed: (ciphertext, secret.expect("the key is sound")) }
    }
}

/// The number of a kind of onion key, and how many bytes its ciphertexts have.
const fn kind_and_len(kind: OnionKeyKind) -> (u8, usize) {
    match kind {
        OnionKeyKind::Rsa2048 => (1, 256),
        OnionKeyKind::XWing => (2, 1120),
    }
}

fn offer(node: &Node, onion: &mut Onion) -> Result<Peeled, OnionRejected> {
    peel(onion, &node.id, &node.keys, &mut ChaCha20Rng::seed_from_u64(2))
}

fn check_altered(world: &World, script: &mut Script<'_>) {
    let Some(choice) = script.byte().map(usize::from) else { return };
    let (which, hop, receiver) = (choice & 1, choice >> 1 & 3, choice >> 3 & 3);
    let original = &world.openings[which].onions[hop];
    let mut onion = original.clone();
    for _ in 0..16 {
        if alter(&mut onion, world, script).is_none() {
            break;
        }
    }
    let altered = onion.clone();
    let peeled = offer(&world.nodes[receiver], &mut onion);

    // However it came about, an onion that this hop may get is fine.
    let Some(opening) = world.openings.iter().find(|opening| opening.onions[receiver] == altered) else {
        assert_eq!(peeled.err(), Some(OnionRejected::NotAuthentic));
        return assert!(onion == altered, "a rejected onion was changed");
    };
    let peeled = peeled.unwrap_or_else(|error| panic!("{error}, but this hop may get it"));
    let (instruction, next) = match world.nodes.get(receiver + 1) {
        Some(next) => (Instruction::Next { address: next.address, node: next.id }, &opening.onions[receiver + 1]),
        None => (Instruction::Last, &altered),
    };
    assert_eq!(peeled.instruction, instruction);
    assert!(onion == *next, "the next onion is another one");
    assert_eq!(*peeled.keys.forward, *opening.keys[receiver].forward);
    assert_eq!(*peeled.keys.backward, *opening.keys[receiver].backward);
}

fn alter(onion: &mut Onion, world: &World, script: &mut Script<'_>) -> Option<()> {
    match script.byte()? % 6 {
        0 => {
            let (at, mask) = (script.below(ONION_LEN)?, script.byte()?);
            onion[at] ^= mask;
        }
        1 => onion[script.range(ONION_LEN)?].fill(script.byte()?),
        2 => {
            let range = script.range(ONION_LEN)?;
            let to = script.below(ONION_LEN - range.len() + 1)?;
            onion.copy_within(range, to);
        }
        3 => onion.rotate_left(script.below(ONION_LEN)?),
        4 => {
            let choice = usize::from(script.byte()?);
            let other = &world.openings[choice & 1].onions[choice >> 1 & 3];
            let range = script.range(ONION_LEN)?;
            onion[range.clone()].copy_from_slice(&other[range]);
        }
        _ => {
            let at = script.below(ONION_LEN)?;
            let bytes = script.bytes(64);
            let len = bytes.len().min(ONION_LEN - at);
            onion[at..at + len].copy_from_slice(&bytes[..len]);
        }
    }
    Some(())
}

fn check_authentic(world: &World, script: &mut Script<'_>) {
    let (node, (ciphertext, secret)) = (&world.nodes[0], &world.sealed);
    let body_at = ciphertext.len() + MAC_LEN;
    let body_len = ONION_LEN - body_at;
    let instruction: [u8; INSTRUCTION_LEN] = script.array();
    let fill = script.byte().unwrap_or_default();

    let mut okm = [0; 216];
    let info = [&node.id.0[..], &[kind_and_len(world.kind).0], &Sha256::digest(ciphertext)].concat();
    Hkdf::<Sha256>::new(Some(b"bulbil/1 onion"), &**secret).expand(&info, &mut okm).expect("216 bytes");
    let (mac_key, rest) = okm.split_at(32);
    let (stream_key, rest) = rest.split_at(16);
    let (replay_tag, seeds) = rest.split_at(8);

    // `b`, and behind it what the hop appends.
    let mut body = vec![fill; body_len];
    body[..INSTRUCTION_LEN].copy_from_slice(&instruction);
    body.resize(body_len + body_at + INSTRUCTION_LEN, 0);
    let mut keystream = ctr::Ctr128BE::<Aes128>::new_from_slices(stream_key, &[0; 16]).expect("16 bytes each");
    keystream.apply_keystream(&mut body);
    let mut onion = Box::new([0; ONION_LEN]);
    onion[..ciphertext.len()].copy_from_slice(ciphertext);
    onion[body_at..].copy_from_slice(&body[..body_len]);
    let mac = Hmac::<Sha256>::new_from_slice(mac_key).expect("any length").chain_update(&onion[body_at..]).finalize();
    onion[ciphertext.len()..body_at].copy_from_slice(&mac.into_bytes()[..MAC_LEN]);
    let offered = onion.clone();

    let peeled = offer(node, &mut onion);
    let Some(expected) = meaning(&instruction) else {
        assert_eq!(peeled.err(), Some(OnionRejected::Instruction));
        return assert!(onion == offered, "a rejected onion was changed");
    };
    let peeled = peeled.unwrap_or_else(|error| panic!("{error}, but it means {expected:?}"));
    assert_eq!(peeled.instruction, expected);
    assert_eq!(peeled.replay_tag.to_bytes(), *replay_tag);
    assert_eq!([*peeled.keys.forward, *peeled.keys.backward].as_flattened(), seeds);
    match expected {
        Instruction::Last => assert!(onion == offered, "the last hop's onion was changed"),
        Instruction::Next { .. } => {
            // All that follows the instruction was `fill`, and what was appended is the keystream itself.
            let kept = body_len - INSTRUCTION_LEN;
            assert!(onion[..kept].iter().all(|&byte| byte == fill), "what was kept of the onion is wrong");
            assert!(onion[kept..] == body[body_len..], "what was appended to the onion is wrong");
        }
    }
}

/// What an instruction says, if anything.
fn meaning(instruction: &[u8; INSTRUCTION_LEN]) -> Option<Instruction> {
    let mut bytes = Bytes(instruction);
    match bytes.number(1)? {
        0 => zeros(bytes.0).then_some(Instruction::Last),
        1 => {
            let mut address = Bytes(bytes.take(19)?);
            let family = address.number(1)?;
            let ip = match family {
                1 => Ipv4Addr::from_bits(address.number(4)? as u32).into(),
                2 => Ipv6Addr::from(<[u8; 16]>::try_from(address.take(16)?).ok()?).into(),
                _ => return None,
            };
            let port = address.number(2).filter(|&port| port != 0)? as u16;
            let node = NodeId(bytes.take(32)?.try_into().ok()?);
            let address = zeros(address.0).then_some(SocketAddr::new(ip, port))?;
            zeros(bytes.0).then_some(Instruction::Next { address, node })
        }
        _ => None,
    }
}
