//! Runs storms: small simulated networks in which everything goes wrong that can. See `bulbil_tests::sim::storm`.
//!
//! Not in a release build: checks of arithmetic and debug assertions belong to what is checked.
//!
//! `cargo run -p bulbil-tests --bin storm -- --seeds 10000` runs so many, on all cores, from seed `--first` on. One that fails is shrunk,
//! and the command that repeats it is printed. `--seed X [--only STEPS] [--without WEATHER]` repeats one and says what happens;
//! `--shrink X` shrinks one.

fn main() -> std::process::ExitCode {
    bulbil_tests::sim::storm::command::run(std::env::args().skip(1))
}
