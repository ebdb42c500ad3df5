//! The self-test as a program: on a Cortex-M under QEMU, which hears the verdict by semihosting, or on any machine with `std`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod cortex_m;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    /// Printed at once, however the program ends.
    struct Printed;

    impl std::fmt::Write for Printed {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            print!("{text}");
            Ok(())
        }
    }

    let mut memory = Box::new(bulbil_core_selftest::Memory::new());
    match bulbil_core_selftest::run(&mut memory, &mut Printed) {
        bulbil_core_selftest::Verdict::Passed => std::process::ExitCode::SUCCESS,
        bulbil_core_selftest::Verdict::Failed => std::process::ExitCode::FAILURE,
    }
}
