//! See [`bulbil_host_fuzz::socks`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bulbil_host_fuzz::socks::check(input));
