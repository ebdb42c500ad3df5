//! See [`bulbil_core_fuzz::accounts`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bulbil_core_fuzz::accounts::check(input));
