//! The challenge-response application on tokio: its server, outside the network, and its client, which reaches the server through circuits.
//!
//! The protocol is [`bulbil_core::auth`], `PROTOCOL.md` section 17. [`server`] is the server's sockets, [`database`] its users, [`place`] its
//! key; [`client`] talks to it, over a [`route`]; [`sessions`] and [`known_servers`] are what a client remembers; [`password`] and [`argon`] are
//! where its password key comes from.

pub mod argon;
pub mod client;
pub mod database;
pub mod known_servers;
pub mod password;
pub mod place;
pub mod route;
pub mod server;
pub mod sessions;
