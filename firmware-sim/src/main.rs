//! The command `bulbil-firmware-sim`.

use std::process::ExitCode;

use bulbil_firmware_sim::linux::{cli, heap::CountingHeap};

/// Counts what the node takes, for the memory report.
#[global_allocator]
static HEAP: CountingHeap = CountingHeap;

fn main() -> ExitCode {
    cli::main(std::env::args_os())
}
