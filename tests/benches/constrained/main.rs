//! What a constrained relay carries and what that costs, beside a TCP forwarder on the same stack with the same windows, in the same run.
//!
//! `cargo bench -p bulbil-tests --bench constrained`. Needs network namespaces and TAP devices, and valgrind for the instructions; says so where
//! they are missing.

mod forwarder;
mod instructions;
mod throughput;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).filter(|argument| *argument != "--bench").collect();
    match arguments[..] {
        [] => {}
        // The parts that are processes of their own.
        ["forward", tap] => return forwarder::run(tap),
        ["count", what, kib] => return instructions::count(what, kib),
        _ => {
            eprintln!("this benchmark takes no arguments");
            return ExitCode::FAILURE;
        }
    }
    // Before the first thread starts: the namespace can only be entered then.
    throughput::run();
    instructions::run();
    ExitCode::SUCCESS
}
