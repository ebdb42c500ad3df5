//! Relay-cell encryption: what one cell costs a relay, an exit and a client.
//!
//! The goal is at most 350 ns for a cell and hop in a default x86-64 release build. The client's figures are
//! for four hops: divide by four.

use bulbil_core::crypto::cgo::{
    ClientBackward, ClientForward, HopIndex, PATH_MAX, RelayBackward, RelayForward, SEED_LEN, Seed,
};
use bulbil_core::wire::cell::{BODY_LEN, CELL_LEN, CellBody, Command};
use criterion::{
    BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use std::hint::black_box;
use std::time::Duration;

const AD: Command = Command::RELAY;
/// Enough that their states, 96 bytes each, do not fit the second-level cache of most processors.
const MANY: usize = 20_000;

fn seeds() -> [Seed; PATH_MAX] {
    core::array::from_fn(|hop| Seed::from_bytes(core::array::from_fn(|i| (hop * SEED_LEN + i) as u8)))
}

fn last_hop() -> HopIndex {
    HopIndex::new(PATH_MAX - 1).expect("a path has a last hop")
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group.throughput(Throughput::Bytes(CELL_LEN as u64));
    group
}

fn relay(criterion: &mut Criterion) {
    let mut group = group(criterion, "cgo/relay");
    let [seed, ..] = seeds();
    let mut body = [7; BODY_LEN];

    let mut forward = RelayForward::new(&seed);
    group.bench_function("forward pass", |b| b.iter(|| forward.receive(AD, black_box(&mut body))));

    let mut circuits: Vec<RelayForward> = (0..MANY).map(|_| RelayForward::new(&seed)).collect();
    let mut next = 0;
    group.bench_function("forward pass, one of 20000 circuits", |b| {
        b.iter(|| {
            // A prime stride, so that the processor does not see the next circuit coming.
            next = (next + 7919) % MANY;
            circuits[next].receive(AD, black_box(&mut body))
        });
    });

    let mut backward = RelayBackward::new(&seed);
    group.bench_function("backward pass", |b| b.iter(|| backward.pass(AD, black_box(&mut body))));

    let mut backward = RelayBackward::new(&seed);
    group.bench_function("originate, with key update", |b| b.iter(|| backward.originate(AD, black_box(&mut body))));

    let mut client = ClientForward::new([&seed]).expect("a path of one hop");
    let mut exit = RelayForward::new(&seed);
    let first = HopIndex::new(0).expect("a path has a first hop");
    group.bench_function("recognise, with key update", |b| {
        let cell = || {
            let mut body: CellBody = [7; BODY_LEN];
            client.originate(first, AD, &mut body).expect("the path has a first hop");
            body
        };
        b.iter_batched_ref(cell, |body| assert!(exit.receive(AD, body)), BatchSize::SmallInput);
    });
}

fn client(criterion: &mut Criterion) {
    let mut group = group(criterion, "cgo/client, 4 hops");
    let seeds = seeds();
    let mut body = [7; BODY_LEN];

    let mut forward = ClientForward::new(&seeds).expect("a path of four hops");
    group.bench_function("forward", |b| b.iter(|| forward.originate(last_hop(), AD, black_box(&mut body))));

    let mut relays: Vec<RelayBackward> = seeds.iter().map(RelayBackward::new).collect();
    let mut backward = ClientBackward::new(&seeds).expect("a path of four hops");
    group.bench_function("backward", |b| {
        let cell = || {
            let mut body: CellBody = [7; BODY_LEN];
            let (exit, before) = relays.split_last_mut().expect("a path of four hops");
            exit.originate(AD, &mut body);
            before.iter_mut().rev().for_each(|relay| relay.pass(AD, &mut body));
            body
        };
        let receive = |body: &mut CellBody| assert_eq!(backward.receive(AD, body), Some(last_hop()));
        b.iter_batched_ref(cell, receive, BatchSize::SmallInput);
    });
}

criterion_group!(benches, relay, client);
criterion_main!(benches);
