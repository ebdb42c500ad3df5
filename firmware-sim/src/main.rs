//! The command `bulbil-firmware-sim`.

fn main() {}
