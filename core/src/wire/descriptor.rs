//! Descriptors, `PROTOCOL.md` section 3.

/// Bytes of an RSA-2048 modulus, signature or ciphertext.
pub const RSA_LEN: usize = 256;
/// Bytes of an X-Wing encapsulation key.
pub const XWING_KEY_LEN: usize = 1216;

/// The kind of a node's onion key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OnionKeyKind {
    /// RSA-2048 OAEP-SHA-256.
    Rsa2048 = 1,
    /// X25519 and ML-KEM-768.
    XWing = 2,
}

/// A node's public onion key.
#[derive(Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "without an allocator the larger key has to lie in place")]
pub enum OnionKey {
    /// A modulus; the exponent is 65537.
    Rsa2048([u8; RSA_LEN]),
    /// An X-Wing encapsulation key.
    XWing([u8; XWING_KEY_LEN]),
}

/// What a node offers to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// It passes circuits on.
    pub relay: bool,
    /// It ends circuits and connects to targets.
    pub exit: bool,
    /// It is short of memory.
    pub constrained: bool,
}

/// A node's signed contact card.
#[derive(Clone)]
pub struct Descriptor {}
