//! See [`bulbil_core_fuzz::message`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bulbil_core_fuzz::message::check(input));
