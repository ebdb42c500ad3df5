//! Turns the outside vectors into Rust, works out what [`alike`] yields on this machine, and places the linker script.

use std::env;
use std::fmt::{Debug, Write};
use std::fs;
use std::path::Path;

use serde_json::Value;

#[path = "src/alike.rs"]
mod alike;

const VECTORS: &str = "../tests/vectors";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=memory.x");
    println!("cargo:rerun-if-changed=src/alike.rs");
    println!("cargo:rerun-if-changed={VECTORS}");
    let out = env::var("OUT_DIR").expect("cargo says where to write");
    let out = Path::new(&out);

    let mut rust = String::new();
    x_wing(&mut rust);
    descriptors(&mut rust);
    relay_cells(&mut rust);
    constant(&mut rust, "ALIKE", "[(&str, [u8; 32]); alike::COUNT]", &alike::digests());
    fs::write(out.join("vectors.rs"), rust).expect("the folder is cargo's");

    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        fs::copy("memory.x", out.join("memory.x")).expect("the folder is cargo's");
        println!("cargo:rustc-link-search={}", out.display());
        println!("cargo:rustc-link-arg-bins=-Tlink.x");
    }
}

fn constant(rust: &mut String, name: &str, kind: &str, value: &impl Debug) {
    writeln!(rust, "pub(crate) const {name}: {kind} = {value:?};").expect("a string takes all");
}

fn file(name: &str) -> Value {
    let text = fs::read_to_string(Path::new(VECTORS).join(name)).expect("the vectors are in the repository");
    serde_json::from_str(&text).expect("vectors are JSON")
}

fn list(value: &Value, count: usize) -> &[Value] {
    let list = value.as_array().expect("a list");
    assert_eq!(list.len(), count, "vectors");
    list
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().expect("a string")).expect("hexadecimal digits")
}

/// Seed, randomness of the encapsulation, public key, ciphertext, shared secret.
fn x_wing(rust: &mut String) {
    let vectors = file("xwing.json");
    let vectors = list(&vectors, 3).iter();
    let fields = vectors.map(|vector| ["seed", "eseed", "pk", "ct", "ss"].map(|name| Bytes(bytes(&vector[name]))));
    constant(rust, "X_WING", "[[&[u8]; 5]; 3]", &fields.collect::<Vec<_>>());
}

/// Kind of the onion key, node id, the descriptor.
fn descriptors(rust: &mut String) {
    let vectors = file("descriptor.json");
    let vectors = list(&vectors["descriptors"], 2).iter().map(|vector| {
        let kind = vector["onion_key_kind"].as_u64().expect("a number");
        (kind, vector["node"].as_str().expect("a string").to_owned(), Bytes(bytes(&vector["descriptor"])))
    });
    constant(rust, "DESCRIPTORS", "[(u64, &str, &[u8]); 2]", &vectors.collect::<Vec<_>>());
}

/// Of the reference vectors for relay cells the states that a circuit begins with can be reached from outside the core: those where everything
/// is zero. Tag and message of the cell that comes out of a relay backward, of one forward, of one that makes it, of a client with three hops.
fn relay_cells(rust: &mut String) {
    let vectors = file("cgo.json");
    let cells =
        [("cgo_relay", 6, 0), ("cgo_relay", 6, 1), ("cgo_relay_originate", 3, 0), ("cgo_client_originate", 7, 0)];
    let cells = cells.map(|(name, count, at)| {
        let vector = &list(&vectors[name], count)[at];
        let zero = |value: &Value| bytes(value).iter().all(|&byte| byte == 0);
        let states = vector["states"].as_array().map_or(std::slice::from_ref(&vector["state"]), Vec::as_slice);
        let all = states.iter().flat_map(|state| state.as_object().expect("an object").values());
        assert!(all.chain([&vector["ad"]]).all(zero), "{name} {at} does not begin with zeros");
        assert!(["tag", "payload", "message"].iter().filter_map(|field| vector.get(field)).all(zero));
        Bytes([bytes(&vector["output"]["tag"]), bytes(&vector["output"]["payload"])].concat())
    });
    constant(rust, "RELAY_CELLS", "[&[u8]; 4]", &cells);
}

/// Printed as a slice.
struct Bytes(Vec<u8>);

impl Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "&{:?}", self.0)
    }
}
