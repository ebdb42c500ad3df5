//! An onion for four hops, of both kinds of onion key, built and peeled.

use bulbil_core::crypto::kem::{OnionKeys, OnionSecret};
use bulbil_core::crypto::onion::{HopSpec, Instruction, ONION_LEN, build, peel};
use bulbil_core::wire::{NodeId, OnionKey, OnionKeyKind};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use crate::{Check, ensure};

const HOPS: usize = 4;

/// Every hop learns where to send it on and the keys that the client has for it, and nobody can peel another's layer or an altered one.
pub(crate) fn check() -> Check {
    let rng = &mut ChaCha20Rng::seed_from_u64(1);
    let rsa = include_bytes!("../../tests/vectors/rsa/test-key-3.der");
    let rsa = OnionSecret::import(OnionKeyKind::Rsa2048, rsa).map_err(|_| "a key does not parse")?;
    let mut made = || OnionSecret::generate(OnionKeyKind::XWing, rng);
    let keys: [OnionKeys; HOPS] = [made(), rsa, made(), made()].map(|secret| OnionKeys::new(secret, None));
    let public: [OnionKey; HOPS] = keys.each_ref().map(|keys| keys.current().public());
    let path: [HopSpec<'_>; HOPS] = core::array::from_fn(|at| HopSpec {
        node: NodeId([at as u8; 32]),
        key: &public[at],
        address: ([192, 0, 2, 1 + at as u8], 9000).into(),
    });
    let mut onion = [0; ONION_LEN];
    let client = build(&path, &mut onion, rng).map_err(|_| "not built")?;
    ensure!(client.len() == HOPS, "keys for another number of hops");
    let mut tags = [None; HOPS];
    for (at, (own, theirs)) in keys.iter().zip(&client).enumerate() {
        let node = NodeId([at as u8; 32]);
        let mut altered = onion;
        altered[ONION_LEN - 1] ^= 0x80;
        ensure!(peel(&mut altered, &node, own, rng).is_err(), "an altered onion is peeled");
        ensure!(peel(&mut { onion }, &NodeId([9; 32]), own, rng).is_err(), "another node peels it");
        let peeled = peel(&mut onion, &node, own, rng).map_err(|_| "not peeled")?;
        let next = path.get(at + 1).map(|hop| Instruction::Next { address: hop.address, node: hop.node });
        ensure!(peeled.instruction == next.unwrap_or(Instruction::Last), "another instruction");
        ensure!(peeled.keys.forward == theirs.forward, "another key forward");
        ensure!(peeled.keys.backward == theirs.backward, "another key backward");
        ensure!(!tags.contains(&Some(peeled.replay_tag)), "a replay tag comes twice");
        tags[at] = Some(peeled.replay_tag);
    }
    Ok(())
}
