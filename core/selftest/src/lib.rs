//! The core's self-test, for machines on which its tests cannot run for want of an operating system.
//!
//! [`run`] does every check, prints each by its name, and answers the verdict. What it needs of the machine is memory ([`Memory`]), a heap
//! for RSA and somewhere to print to; `main.rs` provides that on a Cortex-M that QEMU emulates, and on any machine with `std`.
#![no_std]
#![forbid(unsafe_code)]

mod alike;
mod circuit;
mod machine;
mod onion;
mod pipe;
mod vectors;

use core::fmt::Write;

pub use circuit::Memory;

/// What a check has found: nothing, or what is wrong.
type Check = Result<(), &'static str>;

/// Fails the check unless something is so.
macro_rules! ensure {
    ($holds:expr, $otherwise:literal) => {
        if !$holds {
            return Err($otherwise);
        }
    };
}
use ensure;

/// What all checks together have found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Every check has passed.
    Passed,
    /// At least one has not.
    Failed,
}

/// Does all checks and prints what they find to `out`; what cannot be printed is found all the same.
pub fn run(memory: &mut Memory, out: &mut dyn Write) -> Verdict {
    let mut tally = Tally { out, passed: 0, failed: 0 };
    for (name, check) in vectors::CHECKS {
        tally.note(name, check());
    }
    for (name, check) in alike::digests().iter().zip(vectors::ALIKE).map(|(ours, theirs)| (ours.0, *ours == theirs)) {
        tally.note(name, if check { Ok(()) } else { Err("not what the machine has that built this") });
    }
    tally.note("onions for four hops", onion::check());
    tally.note("a circuit through three relays and an exit", circuit::check(memory));
    tally.conclude()
}

struct Tally<'o> {
    out: &'o mut dyn Write,
    passed: usize,
    failed: usize,
}

impl Tally<'_> {
    fn note(&mut self, name: &str, found: Check) {
        let _unprinted = match found {
            Ok(()) => {
                self.passed += 1;
                writeln!(self.out, "ok      {name}")
            }
            Err(wrong) => {
                self.failed += 1;
                writeln!(self.out, "FAILED  {name}: {wrong}")
            }
        };
    }

    fn conclude(self) -> Verdict {
        let total = self.passed + self.failed;
        let verdict = if self.failed == 0 && self.passed > 0 { Verdict::Passed } else { Verdict::Failed };
        let word = if verdict == Verdict::Passed { "PASSED" } else { "FAILED" };
        let _unprinted = writeln!(self.out, "self-test {word}: {} of {total} checks", self.passed);
        verdict
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::boxed::Box;
    use std::string::String;

    use super::*;

    #[test]
    fn everything_passes() {
        let mut printed = String::new();
        let verdict = run(&mut Box::new(Memory::new()), &mut printed);
        assert_eq!(verdict, Verdict::Passed, "{printed}");
        assert!(printed.lines().count() > 15, "{printed}");
    }

    #[test]
    fn one_failure_is_the_verdict() {
        let mut printed = String::new();
        let mut tally = Tally { out: &mut printed, passed: 0, failed: 0 };
        tally.note("one", Ok(()));
        tally.note("other", Err("wrong"));
        assert_eq!(tally.conclude(), Verdict::Failed);
        assert_eq!(printed, "ok      one\nFAILED  other: wrong\nself-test FAILED: 1 of 2 checks\n");
        let nothing = Tally { out: &mut printed, passed: 0, failed: 0 };
        assert_eq!(nothing.conclude(), Verdict::Failed);
    }
}
