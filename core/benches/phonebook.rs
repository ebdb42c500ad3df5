//! What a host pays for its phonebook of 2,000 nodes: paths, samples, tests.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use bulbil_core::phonebook::{
    BookKey, EVIDENCE_MAX, Grouping, Guards, LastHop, NEW_PLACES, PathRequest, Phonebook, Shelves, Source,
    TRIED_PLACES, VerifiedDescriptor,
};
use bulbil_core::wire::descriptor::{DESCRIPTOR_MAX_LEN, SIGNING_CONTEXT, XWING_KEY_LEN};
use bulbil_core::wire::{Descriptor, NodeId, OnionKey, PortRange, ProtocolVersion, Roles, UnixTime};
use criterion::{Criterion, criterion_group, criterion_main};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use rsa::{BoxedUint, Pss, RsaPrivateKey};
use sha2::{Digest, Sha256};

const NODES: usize = 2000;
const NOW: UnixTime = UnixTime(1_700_000_000);

/// Enough different identities: every pair of the primes of these keys makes one.
const KEYS: usize = 34;

/// A signed relay, every fourth an exit, in a network group of its own.
fn signed(number: usize, key: &RsaPrivateKey, rng: &mut ChaCha20Rng) -> Option<Arc<VerifiedDescriptor>> {
    let exit = number.is_multiple_of(4);
    let [.., high, low] = number.to_be_bytes();
    let mut descriptor = Descriptor {
        identity: key.n().to_be_bytes().as_ref().try_into().ok()?,
        sequence: 1,
        valid_from: UnixTime(NOW.0 - 10),
        valid_until: UnixTime(NOW.0 + 10_000),
        protocol: ProtocolVersion::V1,
        roles: Roles { relay: true, exit, constrained: false },
        link_key: [1; 32],
        onion_key: OnionKey::XWing([2; XWING_KEY_LEN]),
        addresses: [SocketAddr::from(([high, low, 1, 1], 9000))].into_iter().collect(),
        exit_ports: exit.then_some(PortRange::ALL).into_iter().collect(),
        signature: [0; 256],
    };
    let mut bytes = [0; DESCRIPTOR_MAX_LEN];
    let len = descriptor.emit_unsigned(&mut bytes).ok()?;
    let hash = Sha256::new().chain_update(SIGNING_CONTEXT).chain_update(bytes.get(..len)?).finalize();
    let signature = key.sign_with_rng(rng, Pss::<Sha256>::new_with_salt(32), &hash).ok()?;
    descriptor.signature.copy_from_slice(&signature);
    VerifiedDescriptor::verify(descriptor, NOW).ok().map(Arc::new)
}

fn cards(rng: &mut ChaCha20Rng) -> Vec<Arc<VerifiedDescriptor>> {
    let keys = (0..KEYS).map(|_| RsaPrivateKey::new(rng, 2048).expect("a key can be made"));
    let primes: Vec<BoxedUint> =
        keys.flat_map(|key| key.primes().iter().map(|prime| prime.as_ref().clone()).collect::<Vec<_>>()).collect();
    let mut cards = Vec::new();
    for (at, p) in primes.iter().enumerate() {
        for q in primes.iter().skip(at + 1) {
            if cards.len() < NODES
                && let Ok(key) = RsaPrivateKey::from_p_q(p.clone(), q.clone(), BoxedUint::from(65_537u64))
            {
                cards.extend(signed(cards.len(), &key, rng));
            }
        }
    }
    assert_eq!(cards.len(), NODES);
    cards
}

fn phonebook(c: &mut Criterion) {
    let rng = &mut ChaCha20Rng::seed_from_u64(1);
    let cards = cards(rng);
    let (mut tried, mut new) = (vec![None; TRIED_PLACES], vec![None; NEW_PLACES]);
    let mut evidence = vec![None; EVIDENCE_MAX];
    let shelves = Shelves { tried: &mut tried, new: &mut new, evidence: &mut evidence };
    let mut book = Phonebook::new(shelves, None, BookKey::generate(rng), Grouping::Network);
    for card in &cards {
        let _ = book.insert(Arc::clone(card), Source::Met, NOW).expect("half full, no bucket overflows");
    }

    let mut guards = Guards::new();
    for (name, port) in [("any exit", None), ("exit for a port", Some(443))] {
        let request = PathRequest::new(LastHop::Exit { port }, NOW);
        c.bench_function(&format!("path of 4, {name}, {NODES} nodes"), |b| {
            b.iter(|| book.choose_path(&request, &mut guards, rng).expect("there are enough"));
        });
    }
    let request = PathRequest::new(LastHop::Exit { port: None }, NOW);
    c.bench_function(&format!("path of 4 with fresh guards, {NODES} nodes"), |b| {
        b.iter(|| book.choose_path(&request, &mut Guards::new(), rng).expect("there are enough"));
    });
    let known = cards.last().expect("there are nodes").node();
    c.bench_function(&format!("look-up, {NODES} nodes"), |b| b.iter(|| book.get(black_box(&known)).is_some()));
    c.bench_function(&format!("look-up of nobody, {NODES} nodes"), |b| {
        b.iter(|| book.get(black_box(&NodeId([7; 32]))).is_none());
    });
    c.bench_function(&format!("sample of 128, {NODES} nodes"), |b| {
        b.iter(|| book.sample(128, NOW, rng, |_| false).count());
    });
    c.bench_function(&format!("epoch sample of 128, {NODES} nodes"), |b| {
        b.iter(|| book.epoch_sample(128, NOW).count());
    });
    c.bench_function(&format!("what to test next, {NODES} nodes"), |b| b.iter(|| book.next_test(NOW, rng)));
    c.bench_function(&format!("known descriptor again, {NODES} nodes"), |b| {
        b.iter(|| book.insert(Arc::clone(cards.last().expect("there are nodes")), Source::Announced, NOW).is_err());
    });
}

criterion_group!(benches, phonebook);
criterion_main!(benches);
