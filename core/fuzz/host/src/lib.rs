//! What the host's fuzz targets check, as the core's do (`core/fuzz/src/lib.rs`): each module is a target, a function that takes any input
//! and panics if the host does not do with it what its documentation says, stated here in other words.
//!
//! The host's `tests/corpus.rs` includes these files, so that `cargo test` replays the corpora. To look for more, from the top:
//!
//! ```text
//! cargo +nightly fuzz run --fuzz-dir core/fuzz/host socks    # or config; stops at the first failure
//! cargo +nightly fuzz run --fuzz-dir core/fuzz/host socks -- -dict=core/fuzz/host/all.dict -max_total_time=120
//! cargo fuzz run --fuzz-dir core/fuzz/host --sanitizer none socks   # where there is no nightly compiler
//! ```

pub mod config;
#[path = "../../src/script.rs"]
pub mod script;
pub mod seeds;
pub mod socks;
