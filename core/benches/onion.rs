//! What a client pays to build an onion and a relay to peel it, to remember it and to sign.

use std::hint::black_box;
use std::time::Duration;

use bulbil_core::crypto::identity::{IdentitySecret, verify};
use bulbil_core::crypto::kem::{Kem, OnionKeys, OnionSecret, Rsa2048, RsaOnionSecret, XWing, XWingSecret};
use bulbil_core::crypto::onion::{HopSpec, ONION_LEN, build, peel};
use bulbil_core::crypto::replay::{ReplaySet, ReplayTag};
use bulbil_core::wire::{NodeId, OnionKeyKind};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

const RSA_KEY: &[u8] = include_bytes!("../tests/vectors/rsa/test-key-0.der");

fn onion(c: &mut Criterion) {
    let rng = &mut ChaCha20Rng::seed_from_u64(1);
    for (name, kind) in [("x-wing", OnionKeyKind::XWing), ("rsa2048", OnionKeyKind::Rsa2048)] {
        let secret = match kind {
            OnionKeyKind::XWing => OnionSecret::generate(kind, rng),
            OnionKeyKind::Rsa2048 => OnionSecret::import(kind, RSA_KEY).expect("the test key is sound"),
        };
        let public = secret.public();
        let node = NodeId([1; 32]);
        let hop = HopSpec { node, key: &public, address: ([192, 0, 2, 1], 9001).into() };
        let mut onion = [0; ONION_LEN];

        c.bench_function(&format!("build, 4 hops, {name}"), |b| b.iter(|| build(&[hop; 4], &mut onion, rng)));
        let _ = build(&[hop; 4], &mut onion, rng).expect("the path is sound");
        let keys = OnionKeys::new(secret, None);
        c.bench_function(&format!("peel, {name}"), |b| {
            b.iter_batched_ref(|| onion, |onion| peel(onion, &node, &keys, rng).is_ok(), BatchSize::SmallInput);
        });
    }
}

fn kem(c: &mut Criterion) {
    let rng = &mut ChaCha20Rng::seed_from_u64(2);
    let secret = XWingSecret::generate(rng);
    let (public, mut ciphertext) = (secret.public(), [0; XWing::CIPHERTEXT_LEN]);
    c.bench_function("x-wing generate", |b| b.iter(|| XWingSecret::generate(rng)));
    c.bench_function("x-wing encapsulate", |b| b.iter(|| XWing::encapsulate(&public, &mut ciphertext, rng)));
    c.bench_function("x-wing decapsulate", |b| b.iter(|| XWing::decapsulate(&secret, &ciphertext, rng)));

    let secret = RsaOnionSecret::from_pkcs8(RSA_KEY).expect("the test key is sound");
    let (public, mut ciphertext) = (secret.public(), [0; Rsa2048::CIPHERTEXT_LEN]);
    c.bench_function("rsa2048 encapsulate", |b| b.iter(|| Rsa2048::encapsulate(&public, &mut ciphertext, rng)));
    c.bench_function("rsa2048 decapsulate", |b| b.iter(|| Rsa2048::decapsulate(&secret, &ciphertext, rng)));
}

fn replay(c: &mut Criterion) {
    let rng = &mut ChaCha20Rng::seed_from_u64(3);
    let mut memory = vec![0; 1 << 16];
    let mut set = ReplaySet::new(&mut memory, rng);
    let mut next = 0u64;
    // Filled and cleared over and over: the mean over all fillings, clearing included.
    c.bench_function("replay insert, 65536 slots", |b| {
        b.iter(|| {
            next = next.wrapping_add(0x9e37_79b9_7f4a_7c15);
            if set.len() == set.capacity() {
                set.clear();
            }
            set.insert(ReplayTag::from_bytes(black_box(next).to_be_bytes()))
        });
    });
}

fn identity(c: &mut Criterion) {
    let rng = &mut ChaCha20Rng::seed_from_u64(4);
    let secret = IdentitySecret::from_pkcs8(RSA_KEY).expect("the test key is sound");
    let (public, parts) = (secret.public(), [[7; 700].as_slice()]);
    let signature = secret.sign(rng, &parts).expect("the test key is sound");
    c.bench_function("sign", |b| b.iter(|| secret.sign(rng, black_box(&parts))));
    c.bench_function("verify", |b| b.iter(|| verify(&public, black_box(&parts), &signature)));
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = onion, kem, replay, identity
}
criterion_main!(benches);
