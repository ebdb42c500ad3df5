//! See [`bulbil_core_fuzz::exchange`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bulbil_core_fuzz::exchange::check(input));
