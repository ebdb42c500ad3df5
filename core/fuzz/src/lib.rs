//! What the fuzz targets check. Each module is a target: a function that takes any input and panics if the core does
//! not do with it what `PROTOCOL.md` says, which every target states in its own words instead of asking the core.
//!
//! The core's `tests/corpus.rs` includes these files, so that `cargo test` replays the corpora on a stable compiler and
//! says how the seeds in them are made. To look for more, from the top of the repository:
//!
//! ```text
//! cargo +nightly fuzz run --fuzz-dir core/fuzz cell          # or another module here; stops at the first failure
//! cargo +nightly fuzz run --fuzz-dir core/fuzz cell -- -dict=core/fuzz/all.dict -max_total_time=120
//! cargo fuzz run --fuzz-dir core/fuzz --sanitizer none cell  # where there is no nightly compiler
//! ```

pub mod accounts;
pub mod auth;
pub mod cell;
pub mod descriptor;
pub mod exchange;
pub mod link;
pub mod message;
pub mod model;
pub mod node;
pub mod onion;
pub mod record;
pub mod script;
pub mod seeds;
pub mod text;
