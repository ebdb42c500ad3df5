//! The constrained node.
#![no_std]
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed test may panic"))]

#[cfg(any(test, feature = "linux"))]
extern crate std;

#[cfg(feature = "linux")]
pub mod linux;
