//! See [`bulbil_host_fuzz::config`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bulbil_host_fuzz::config::check(input));
