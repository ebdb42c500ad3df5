//! The bulbil command.
fn main() {}
