//! The command `bulbil`.

use std::process::ExitCode;

fn main() -> ExitCode {
    bulbil_host::commands::main(std::env::args_os())
}
