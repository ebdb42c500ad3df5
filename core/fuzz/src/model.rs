//! What several targets share: keys, and what the protocol's texts say of layouts, written without the core.

/// The RSA-2048 keys for tests, PKCS#8 DER.
pub const RSA_KEYS: [&[u8]; 4] = [
    include_bytes!("../../tests/vectors/rsa/test-key-0.der"),
    include_bytes!("../../tests/vectors/rsa/test-key-1.der"),
    include_bytes!("../../tests/vectors/rsa/test-key-2.der"),
    include_bytes!("../../tests/vectors/rsa/test-key-3.der"),
];

/// Takes the front off a byte string, or fails.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    /// The next `len` bytes as a number, big-endian.
    pub fn number(&mut self, len: usize) -> Option<u64> {
        Some(self.take(len)?.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }
}

/// Whether all of `bytes` are zero.
pub fn zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

/// Takes an address, section 2.
pub fn address(bytes: &mut Bytes<'_>) -> Option<()> {
    let len = match bytes.number(1)? {
        1 => 4,
        2 => 16,
        _ => return None,
    };
    bytes.take(len)?;
    port(bytes)
}

/// Takes a target, section 2.
pub fn target(bytes: &mut Bytes<'_>) -> Option<()> {
    match bytes.0.first()? {
        1 | 2 => address(bytes),
        3 => {
            bytes.take(1)?;
            let len = bytes.number(1)?;
            if !name(bytes.take(len as usize)?) {
                return None;
            }
            port(bytes)
        }
        4 => (bytes.take(2)?[1] == 1).then_some(()),
        _ => None,
    }
}

fn name(name: &[u8]) -> bool {
    let allowed = |&byte: &u8| matches!(byte, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    (1..=253).contains(&name.len()) && name.iter().all(allowed) && !matches!(name[0], b'.' | b'-')
}

fn port(bytes: &mut Bytes<'_>) -> Option<()> {
    (bytes.number(2)? != 0).then_some(())
}
