//! The application as a whole, in one process and without a network.

mod adversary;
mod alike;
mod model;
mod scenario;
