//! The constrained node on Linux.
