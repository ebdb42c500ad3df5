//! See [`bulbil_core_fuzz::link`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bulbil_core_fuzz::link::check(input));
