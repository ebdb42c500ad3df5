//! The command `bulbil-firmware-sim` under another name: tests find the programs of their own package only.

use std::process::ExitCode;

use bulbil_firmware_sim::linux::{cli, heap::CountingHeap};

/// Counts what the node takes, as the command itself does.
#[global_allocator]
static HEAP: CountingHeap = CountingHeap;

fn main() -> ExitCode {
    cli::main(std::env::args_os())
}
