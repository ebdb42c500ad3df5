//! What a link costs: a handshake of both sides, and sealing and opening records with the portable cipher and with
//! ring's.
#![allow(clippy::unwrap_used, reason = "a bench that fails may panic")]

use std::hint::black_box;
use std::time::Duration;

use bulbil_core::link::aead::{KEY_LEN, OpenFailed, TAG_LEN, noise_nonce};
use bulbil_core::link::noise::{MESSAGE1_LEN, MESSAGE2_OVERHEAD};
use bulbil_core::link::record::{RECORD_LEN_MAX, record_len};
use bulbil_core::link::{
    Connector, LinkSecret, Opened, Opener, PortableAead, RecordAead, RecordKey, RecordLimit, Sealer, answer,
};
use bulbil_core::wire::cell::CELL_LEN;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// What a host might use instead of the portable cipher.
struct RingAead(LessSafeKey);

impl RecordAead for RingAead {
    fn new(key: &[u8; KEY_LEN]) -> Self {
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap()))
    }

    fn seal(&self, nonce: u64, buffer: &mut [u8]) -> [u8; TAG_LEN] {
        let nonce = Nonce::assume_unique_for_key(noise_nonce(nonce));
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::empty(), buffer).unwrap();
        tag.as_ref().try_into().unwrap()
    }

    fn open(&self, nonce: u64, buffer: &mut [u8], tag: &[u8; TAG_LEN]) -> Result<(), OpenFailed> {
        let nonce = Nonce::assume_unique_for_key(noise_nonce(nonce));
        let opened = self.0.open_in_place_separate_tag(nonce, Aad::empty(), (*tag).into(), buffer, 0..);
        opened.map(drop).map_err(|_| OpenFailed)
    }
}

fn records<A: RecordAead>(criterion: &mut Criterion, cipher: &str) {
    let key = RecordKey::new([7; KEY_LEN]);
    for direction in ["seal", "open"] {
        let mut group = criterion.benchmark_group(format!("link/{direction}/{cipher}"));
        for cells in [1, 8, 32, 127] {
            group.throughput(Throughput::Bytes((cells * CELL_LEN) as u64));
            let mut sealer = Sealer::<A>::new(&key, RecordLimit::MAX);
            let mut buffer = vec![0; RECORD_LEN_MAX];
            group.bench_with_input(BenchmarkId::from_parameter(cells), &cells, |bencher, &cells| {
                if direction == "seal" {
                    return bencher.iter(|| sealer.seal(black_box(&mut buffer), cells).unwrap());
                }
                // Opening destroys its input, so each round opens the next record of one stream.
                let mut opener = Opener::<A>::new(&key, RecordLimit::MAX);
                let mut sealer = Sealer::<A>::new(&key, RecordLimit::MAX);
                let next = || {
                    let mut record = vec![0; record_len(cells)];
                    sealer.seal(&mut record, cells).unwrap();
                    record
                };
                bencher.iter_batched_ref(
                    next,
                    |record| matches!(opener.open(black_box(record)).unwrap(), Opened::Record { .. }),
                    BatchSize::NumIterations(16),
                );
            });
        }
    }
}

fn record_ciphers(criterion: &mut Criterion) {
    records::<PortableAead>(criterion, "portable");
    records::<RingAead>(criterion, "ring");
}

fn handshake(criterion: &mut Criterion) {
    let mut rng = ChaCha20Rng::from_seed([1; 32]);
    let secret = LinkSecret::generate(&mut rng);
    let payload = [0; 2000];
    let (mut message1, mut message2) = ([0; MESSAGE1_LEN], [0; MESSAGE2_OVERHEAD + 2000]);

    let mut group = criterion.benchmark_group("link/handshake");
    group.bench_function("start", |bencher| bencher.iter(|| Connector::start(&mut rng, &mut message1)));
    group.bench_function("answer", |bencher| {
        bencher.iter(|| answer(&secret, &message1, &payload, &mut message2, &mut rng).ok().unwrap());
    });
    group.bench_function("both sides", |bencher| {
        bencher.iter(|| {
            let connector = Connector::start(&mut rng, &mut message1);
            answer(&secret, &message1, &payload, &mut message2, &mut rng).ok().unwrap();
            connector.finish(&mut message2).ok().unwrap().keys
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    targets = record_ciphers, handshake
}
criterion_main!(benches);
