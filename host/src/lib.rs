//! Bulbil on tokio: nodes with sockets, clocks and files, a SOCKS5 proxy, and the command `bulbil`.
//!
//! The protocol itself is `bulbil_core`. Here, from the outside in: [`cli`] takes the command line, [`commands`] carries it
//! out; [`config`], [`state`], [`identity`], [`logging`] and [`shutdown`] are what a process needs around a node; [`node`] is the
//! node; [`control`] is how its owner asks it; [`socks`] is a proxy in front of one; [`auth`] is an application over the network; [`target_server`], [`demo`] and [`net`] show a whole network on one machine.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed test may panic"))]

/// The README's example, compiled with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

pub mod auth;
pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod demo;
mod engine;
mod files;
pub mod identity;
pub mod logging;
pub mod net;
pub mod node;
pub mod random;
pub mod shutdown;
pub mod socks;
pub mod state;
pub mod target_server;

#[cfg(test)]
mod scratch;
