use std::boxed::Box;
use std::vec::Vec;

use ctr::cipher::StreamCipher;
use hmac::Mac;
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::build::{Layer, Layers, assemble};
use super::layer::{LayerKeys, truncated};
use super::peel::peel_with;
use super::*;
use crate::crypto::kem::{
    DecapsulationFailed, EncapsulationFailed, KeyEpoch, OnionKeys, OnionSecret, SharedSecret, XWingSecret,
};
use crate::crypto::replay::ReplayTag;
use crate::crypto::testing::{RSA_KEYS, rng};
use crate::wire::{OnionKey, OnionKeyKind};

/// A node that can be put at any place of a path.
struct Node {
    id: NodeId,
    address: SocketAddr,
    public: OnionKey,
    keys: OnionKeys,
}

impl Node {
    /// The `index`-th node, with an onion key of `kind`.
    fn new(index: usize, kind: OnionKeyKind) -> Self {
        let secret = secret(index, kind);
        let address = if index.is_multiple_of(2) { "192.0.2.1:9001" } else { "[2001:db8::7]:443" };
        Self {
            id: NodeId([index as u8 + 1; 32]),
            address: address.parse().unwrap(),
            public: secret.public(),
            keys: OnionKeys::new(secret, None),
        }
    }

    const fn spec(&self) -> HopSpec<'_> {
        HopSpec { node: self.id, key: &self.public, address: self.address }
    }

    fn peel(&self, onion: &mut Onion) -> Result<Peeled, OnionRejected> {
        peel(onion, &self.id, &self.keys, &mut rng(77))
    }
}

fn secret(index: usize, kind: OnionKeyKind) -> OnionSecret {
    match kind {
        OnionKeyKind::Rsa2048 => OnionSecret::import(kind, RSA_KEYS[index]).unwrap(),
        OnionKeyKind::XWing => OnionSecret::generate(kind, &mut rng(index as u64)),
    }
}

/// Every sequence of key kinds of every length a path can have.
fn mixes() -> impl Iterator<Item = Vec<OnionKeyKind>> {
    (1..=PATH_MAX).flat_map(|len| {
        (0..1u8 << len).map(move |mix| {
            let kind = |hop| if mix >> hop & 1 == 0 { OnionKeyKind::XWing } else { OnionKeyKind::Rsa2048 };
            (0..len).map(kind).collect()
        })
    })
}

fn nodes(kinds: &[OnionKeyKind]) -> Vec<Node> {
    kinds.iter().enumerate().map(|(index, &kind)| Node::new(index, kind)).collect()
}

fn built(nodes: &[Node], seed: u64) -> (Box<Onion>, heapless::Vec<HopKeys, PATH_MAX>) {
    let path: Vec<_> = nodes.iter().map(Node::spec).collect();
    // Bytes that are never written would show.
    let mut onion = Box::new([0xa5; ONION_LEN]);
    let keys = build(&path, &mut onion, &mut rng(seed)).unwrap();
    (onion, keys)
}

#[test]
fn every_path_peels_to_its_end() {
    for kinds in mixes() {
        let nodes = nodes(&kinds);
        let (mut onion, keys) = built(&nodes, 1);
        assert_eq!(keys.len(), nodes.len());
        let mut tags = Vec::new();
        for (hop, node) in nodes.iter().enumerate() {
            let peeled = node.peel(&mut onion).unwrap();
            let expected = nodes
                .get(hop + 1)
                .map_or(Instruction::Last, |next| Instruction::Next { address: next.address, node: next.id });
            assert_eq!(peeled.instruction, expected, "{kinds:?}, hop {hop}");
            assert_eq!(*peeled.keys.forward, *keys[hop].forward);
            assert_eq!(*peeled.keys.backward, *keys[hop].backward);
            assert_ne!(*peeled.keys.forward, *peeled.keys.backward);
            assert_eq!(peeled.epoch, KeyEpoch::FIRST);
            assert!(!tags.contains(&peeled.replay_tag));
            tags.push(peeled.replay_tag);
        }
    }
}

/// The protocol's text, step by step: `b || 0^(|ct| + 16 + 64)` through the cipher, 64 bytes off its front.
#[test]
fn peeling_is_as_written() {
    for kinds in [[OnionKeyKind::XWing, OnionKeyKind::Rsa2048], [OnionKeyKind::Rsa2048, OnionKeyKind::XWing]] {
        let nodes = nodes(&kinds);
        let (mut onion, _) = built(&nodes, 2);
        let (ciphertext_len, shared) = match nodes[0].keys.current() {
            OnionSecret::Rsa2048(secret) => (256, Rsa2048::decapsulate(secret, &onion[..256], &mut rng(0))),
            OnionSecret::XWing(secret) => (1120, XWing::decapsulate(secret, &onion[..1120], &mut rng(0))),
        };
        let (ciphertext, rest) = onion.split_at(ciphertext_len);
        let (mac, body) = rest.split_at(16);

        let mut info = nodes[0].id.0.to_vec();
        info.push(kinds[0] as u8);
        info.extend_from_slice(&Sha256::digest(ciphertext));
        let mut okm = [0; 216];
        let hkdf = hkdf::Hkdf::<Sha256>::new(Some(b"bulbil/1 onion"), shared.unwrap().as_slice());
        hkdf.expand(&info, &mut okm).unwrap();
        let expected_mac = <hmac::Hmac<Sha256> as hmac::KeyInit>::new_from_slice(&okm[..32]).unwrap();
        assert_eq!(mac, &expected_mac.chain_update(body).finalize().into_bytes()[..16]);

        let mut plain = body.to_vec();
        plain.resize(body.len() + ciphertext_len + 16 + 64, 0);
        assert_eq!(plain.len(), 5154);
        let stream_key: [u8; 16] = okm[32..48].try_into().unwrap();
        <ctr::Ctr128BE<aes::Aes128> as ctr::cipher::KeyIvInit>::new(&stream_key.into(), &[0; 16].into())
            .apply_keystream(&mut plain);
        let peeled = nodes[0].peel(&mut onion).unwrap();
        assert_eq!(plain[0], 1);
        assert_eq!(plain[20..52], nodes[1].id.0);
        assert_eq!(plain[52..64], [0; 12]);
        assert_eq!(plain[64..], onion[..]);
        assert_eq!(peeled.replay_tag, ReplayTag::from_bytes(okm[48..56].try_into().unwrap()));
        assert_eq!(*peeled.keys.forward, okm[56..136]);
        assert_eq!(*peeled.keys.backward, okm[136..]);
    }
}

/// A KEM that is cheap and as malleable as can be: the secret does not depend on the ciphertext at all.
enum Constant {}

impl Kem for Constant {
    const KIND: OnionKeyKind = OnionKeyKind::XWing;
    const CIPHERTEXT_LEN: usize = 100;
    type Public = [u8; 32];
    type Secret = [u8; 32];

    fn encapsulate(
        public: &[u8; 32],
        ciphertext: &mut [u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<SharedSecret, EncapsulationFailed> {
        rng.fill_bytes(ciphertext);
        Ok(Zeroizing::new(*public))
    }

    fn decapsulate(secret: &[u8; 32], _: &[u8], _: &mut dyn CryptoRng) -> Result<SharedSecret, DecapsulationFailed> {
        Ok(Zeroizing::new(*secret))
    }
}

fn built_cheaply(hops: u8, seed: u64) -> Box<Onion> {
    let rng = &mut rng(seed);
    let mut onion = Box::new([0xa5; ONION_LEN]);
    let mut layers = Layers::new();
    for hop in 0..hops {
        let start = layers.last().map_or(0, Layer::end);
        let mut layer = Layer::encapsulate::<Constant>(start, &NodeId([hop; 32]), &[hop; 32], &mut onion, rng).unwrap();
        if hop + 1 < hops {
            layer.set_next("192.0.2.1:1".parse().unwrap(), NodeId([hop + 1; 32]));
        }
        assert!(layers.push(layer).is_ok());
    }
    assemble(&layers, &mut onion, rng).unwrap();
    onion
}

fn peel_cheaply(onion: &mut Onion, hop: u8) -> Result<Peeled, OnionRejected> {
    peel_with::<Constant>(onion, &NodeId([hop; 32]), &[hop; 32], KeyEpoch::FIRST, &mut rng(0))
}

/// Every bit of the onion, whichever hop the byte is meant for.
#[test]
fn every_flipped_bit_is_caught_at_once() {
    let onion = built_cheaply(3, 3);
    let mut altered = onion.clone();
    for at in 0..ONION_LEN {
        for bit in 0..8 {
            altered[at] ^= 1 << bit;
            assert!(peel_cheaply(&mut altered, 0).err() == Some(OnionRejected::NotAuthentic), "byte {at}, bit {bit}");
            altered[at] ^= 1 << bit;
        }
    }
    assert_eq!(altered, onion, "a rejected onion is left alone");
    for hop in 0..3 {
        assert!(peel_cheaply(&mut altered, hop).is_ok());
    }
}

/// The same in the middle of the path, where the pads of earlier hops are part of the onion.
#[test]
fn every_byte_flipped_on_the_way_is_caught_at_the_next_hop() {
    let mut onion = built_cheaply(4, 4);
    for hop in 0..4 {
        for at in 0..ONION_LEN {
            let bit = 1 << ((at + usize::from(hop)) % 8);
            onion[at] ^= bit;
            assert!(peel_cheaply(&mut onion, hop).err() == Some(OnionRejected::NotAuthentic), "hop {hop}, byte {at}");
            onion[at] ^= bit;
        }
        assert!(peel_cheaply(&mut onion, hop).is_ok());
    }
}

/// A sample of the same with real keys, and a byte on every border.
#[test]
fn flipped_bits_are_caught_under_both_kinds() {
    for (kind, ciphertext_len, step) in [(OnionKeyKind::XWing, 1120, 61), (OnionKeyKind::Rsa2048, 256, 127)] {
        let nodes = nodes(&[kind; 2]);
        let (mut onion, _) = built(&nodes, 5);
        let borders = [0, ciphertext_len - 1, ciphertext_len, ciphertext_len + 15, ciphertext_len + 16];
        for node in &nodes {
            for at in (0..ONION_LEN).step_by(step).chain(borders).chain([ONION_LEN - 1]) {
                let before = onion.clone();
                onion[at] ^= 1 << (at % 8);
                let altered = onion.clone();
                assert!(node.peel(&mut onion).err() == Some(OnionRejected::NotAuthentic), "{kind:?}, byte {at}");
                assert_eq!(onion, altered);
                onion = before;
            }
            assert!(node.peel(&mut onion).is_ok());
        }
    }
}

#[test]
fn onions_of_nobody_are_rejected() {
    let nodes = nodes(&[OnionKeyKind::XWing, OnionKeyKind::Rsa2048]);
    for byte in [0, 0xff, 0x42] {
        let mut onion = [byte; ONION_LEN];
        for node in &nodes {
            assert!(node.peel(&mut onion).err() == Some(OnionRejected::NotAuthentic));
            assert_eq!(onion, [byte; ONION_LEN]);
        }
    }
}

#[test]
fn only_the_node_it_is_meant_for_peels() {
    for kind in [OnionKeyKind::XWing, OnionKeyKind::Rsa2048] {
        let (node, other) = (Node::new(0, kind), Node::new(1, kind));
        let (mut onion, _) = built(core::slice::from_ref(&node), 6);
        let result = peel(&mut onion, &node.id, &other.keys, &mut rng(0));
        assert!(result.err() == Some(OnionRejected::NotAuthentic), "another key");
        let result = peel(&mut onion, &other.id, &node.keys, &mut rng(0));
        assert!(result.err() == Some(OnionRejected::NotAuthentic), "another id");
        assert!(node.peel(&mut onion).is_ok());
    }
}

#[test]
fn the_previous_key_is_honoured_and_the_one_before_is_not() {
    use OnionKeyKind::{Rsa2048 as Rsa, XWing as Wing};
    for [first, second, third] in [[Wing, Wing, Wing], [Rsa, Wing, Rsa], [Wing, Rsa, Rsa], [Rsa, Rsa, Wing]] {
        let mut node = Node::new(0, first);
        let (onion, _) = built(core::slice::from_ref(&node), 7);

        node.keys.rotate(secret(4, second));
        let peeled = node.peel(&mut onion.clone()).unwrap();
        assert_eq!((peeled.instruction, peeled.epoch), (Instruction::Last, KeyEpoch::FIRST));
        node.public = node.keys.current().public();
        let (fresh, _) = built(core::slice::from_ref(&node), 8);
        assert_eq!(node.peel(&mut fresh.clone()).unwrap().epoch, KeyEpoch::FIRST.next());

        node.keys.rotate(secret(5, third));
        assert!(node.peel(&mut onion.clone()).err() == Some(OnionRejected::NotAuthentic));
        assert_eq!(node.peel(&mut fresh.clone()).unwrap().epoch, KeyEpoch::FIRST.next());
        node.keys.forget_previous();
        assert!(node.peel(&mut fresh.clone()).err() == Some(OnionRejected::NotAuthentic));
    }
}

#[test]
fn an_onion_peeled_twice_shows_the_same_tag() {
    let nodes = nodes(&[OnionKeyKind::XWing; 2]);
    let (onion, _) = built(&nodes, 9);
    let tag = nodes[0].peel(&mut onion.clone()).unwrap().replay_tag;
    assert_eq!(nodes[0].peel(&mut onion.clone()).unwrap().replay_tag, tag);
    let (other, _) = built(&nodes, 10);
    assert_ne!(nodes[0].peel(&mut other.clone()).unwrap().replay_tag, tag);
}

/// A last hop that saw zeros, or the same bytes in two onions, would learn how long the path is.
#[test]
fn the_last_hop_sees_random_padding() {
    for hops in 1..=4u8 {
        let plain = |seed| {
            let mut onion = built_cheaply(hops, seed);
            for hop in 0..hops - 1 {
                let _ = peel_cheaply(&mut onion, hop).unwrap();
            }
            let last = hops - 1;
            let body = &mut onion[Constant::CIPHERTEXT_LEN + MAC_LEN..];
            let (kind, secret) = (Constant::KIND, Zeroizing::new([last; 32]));
            // The ciphertext's hash is part of the keys, so they are derived as the hop does it.
            let mut bytes = body.to_vec();
            let keys = LayerKeys::derive(&secret, &NodeId([last; 32]), kind, &onion[..Constant::CIPHERTEXT_LEN]);
            keys.stream().apply_keystream(&mut bytes);
            assert_eq!(bytes[..INSTRUCTION_LEN], [0; INSTRUCTION_LEN]);
            bytes[INSTRUCTION_LEN..].to_vec()
        };
        let (one, other) = (plain(11), plain(12));
        for window in one.windows(4).zip(other.windows(4)) {
            assert_ne!(window.0, [0; 4]);
            assert_ne!(window.0, window.1);
        }
    }
}

#[test]
fn randomness_is_the_callers() {
    for kinds in [[OnionKeyKind::XWing; 2], [OnionKeyKind::Rsa2048; 2]] {
        let nodes = nodes(&kinds);
        let (onion, keys) = built(&nodes, 13);
        let (same, same_keys) = built(&nodes, 13);
        let (other, other_keys) = built(&nodes, 14);
        assert_eq!(onion, same);
        assert_eq!(*keys[1].forward, *same_keys[1].forward);
        assert_ne!(*keys[1].forward, *other_keys[1].forward);
        let equal = onion.iter().zip(other.iter()).filter(|(a, b)| a == b).count();
        assert!(equal < 100, "{equal} of 5090 bytes are equal");
    }
}

/// Made by this implementation: a change of the format does not go unnoticed.
#[test]
fn frozen_onion() {
    use OnionKeyKind::{Rsa2048 as Rsa, XWing as Wing};
    let nodes = nodes(&[Wing, Rsa, Wing, Rsa]);
    let (onion, _) = built(&nodes, 15);
    assert_eq!(hex::encode(Sha256::digest(*onion)), "16da192401444ad932005f4396d032bdabdbbc0623e648f2b5f5fbfeff545609");
}

#[test]
fn paths_have_one_to_four_hops() {
    let node = Node::new(0, OnionKeyKind::XWing);
    let mut onion = [0; ONION_LEN];
    let result = build(&[], &mut onion, &mut rng(16));
    assert!(result.err() == Some(BuildError::PathLength));
    let result = build(&[node.spec(); PATH_MAX + 1], &mut onion, &mut rng(16));
    assert!(result.err() == Some(BuildError::PathLength));
    assert!(build(&[node.spec(); PATH_MAX], &mut onion, &mut rng(16)).is_ok());
}

#[test]
fn hops_that_cannot_be_are_named() {
    let good = Node::new(0, OnionKeyKind::XWing);
    let mut onion = [0; ONION_LEN];
    for key in [OnionKey::XWing([0xff; 1216]), OnionKey::Rsa2048([0; 256])] {
        let bad = HopSpec { key: &key, ..good.spec() };
        let result = build(&[good.spec(), good.spec(), bad], &mut onion, &mut rng(17));
        assert!(result.err() == Some(BuildError::InvalidKey { hop: 2 }));
    }
    let bad = HopSpec { address: "192.0.2.1:0".parse().unwrap(), ..good.spec() };
    let result = build(&[good.spec(), bad, good.spec()], &mut onion, &mut rng(17));
    assert!(result.err() == Some(BuildError::InvalidAddress { hop: 1 }));
    assert!(build(&[bad, good.spec()], &mut onion, &mut rng(17)).is_ok(), "nobody is told the first hop's address");
}

/// A client may authenticate any instruction; only what it could also emit is taken.
#[test]
fn instructions_are_strict() {
    let next = Instruction::Next { address: "192.0.2.1:9001".parse().unwrap(), node: NodeId([7; 32]) };
    let next_v6 = Instruction::Next { address: "[2001:db8::1]:9001".parse().unwrap(), node: NodeId([0; 32]) };
    for instruction in [Instruction::Last, next, next_v6] {
        let mut bytes = [0xa5; INSTRUCTION_LEN];
        instruction.emit(&mut bytes).unwrap();
        assert_eq!(Instruction::parse(&bytes), Ok(instruction));
        // An accepted change means another instruction, and is its one encoding.
        for at in 0..INSTRUCTION_LEN {
            for bit in 0..8 {
                let mut altered = bytes;
                altered[at] ^= 1 << bit;
                if let Ok(other) = Instruction::parse(&altered) {
                    assert_ne!(other, instruction);
                    let mut again = [0xa5; INSTRUCTION_LEN];
                    other.emit(&mut again).unwrap();
                    assert_eq!(again, altered);
                }
            }
        }
    }
    let mut last = [0; INSTRUCTION_LEN];
    for at in 0..INSTRUCTION_LEN {
        last[at] = 2;
        assert!(Instruction::parse(&last).is_err());
        last[at] = 0;
    }
}

#[test]
fn an_authentic_onion_with_a_meaningless_instruction_is_rejected_and_left_alone() {
    let mut onion = built_cheaply(1, 18);
    let keys = LayerKeys::derive(
        &Zeroizing::new([0; 32]),
        &NodeId([0; 32]),
        Constant::KIND,
        &onion[..Constant::CIPHERTEXT_LEN],
    );
    let body = Constant::CIPHERTEXT_LEN + MAC_LEN;
    // The first byte is the instruction's kind, 0; the cipher passes the change on to the plaintext.
    onion[body] ^= 2;
    let mac = truncated(keys.mac().chain_update(&onion[body..]));
    onion[body - MAC_LEN..body].copy_from_slice(&mac);
    let before = onion.clone();
    assert!(peel_cheaply(&mut onion, 0).err() == Some(OnionRejected::Instruction));
    assert_eq!(onion, before);
}

#[test]
fn keys_of_expanded_secrets_stay_small() {
    assert!(size_of::<OnionKeys>() <= 2 * size_of::<XWingSecret>() + 64);
    assert_eq!(size_of::<HopKeys>(), 2 * SEED_LEN);
}
