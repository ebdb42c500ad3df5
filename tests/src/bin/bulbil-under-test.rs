//! The command `bulbil` under another name: tests find the programs of their own package only.

use std::process::ExitCode;

fn main() -> ExitCode {
    bulbil_host::commands::main(std::env::args_os())
}
