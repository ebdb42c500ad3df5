//! The reference vectors of `tests/vectors/cgo.json`, which come from outside; without the file nothing here compiles.

use super::{SEED_LEN, Seed};
use crate::wire::cell::{BODY_LEN, CellBody};
use serde_json::Value;
use std::vec::Vec;

/// The vectors called `name`, of which there must be `count`.
pub(super) fn list(name: &str, count: usize) -> Vec<Value> {
    let mut all: Value = serde_json::from_str(include_str!("../../../tests/vectors/cgo.json")).unwrap();
    let Value::Array(vectors) = all[name].take() else { panic!("no list {name}") };
    assert_eq!(vectors.len(), count, "vectors in {name}");
    vectors
}

/// A hexadecimal string of exactly `N` bytes.
pub(super) fn bytes<const N: usize>(value: &Value) -> [u8; N] {
    hex::decode(value.as_str().unwrap()).unwrap().try_into().unwrap()
}

/// A key of 64 bytes, and a nonce unless the vector has none.
pub(super) fn seed(key: &Value, nonce: Option<&Value>) -> Seed {
    let mut seed = [0; SEED_LEN];
    seed[..64].copy_from_slice(&bytes::<64>(key));
    if let Some(nonce) = nonce {
        seed[64..].copy_from_slice(&bytes::<16>(nonce));
    }
    Seed::from_bytes(seed)
}

/// A body from its tag and the rest.
pub(super) fn body(tag: &Value, rest: &Value) -> CellBody {
    let mut body = [0; BODY_LEN];
    body[..16].copy_from_slice(&bytes::<16>(tag));
    body[16..].copy_from_slice(&bytes::<493>(rest));
    body
}
