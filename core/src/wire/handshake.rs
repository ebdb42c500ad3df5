//! Link handshake payloads.
