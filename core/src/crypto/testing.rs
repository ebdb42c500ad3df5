//! What the tests of several modules share: fixed RSA keys and generators that repeat themselves.

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

/// RSA-2048 test keys, PKCS#8 DER, made by another implementation (`tests/vectors/rsa/README.md`).
pub(crate) const RSA_KEYS: [&[u8]; 6] = [
    include_bytes!("../../tests/vectors/rsa/test-key-0.der"),
    include_bytes!("../../tests/vectors/rsa/test-key-1.der"),
    include_bytes!("../../tests/vectors/rsa/test-key-2.der"),
    include_bytes!("../../tests/vectors/rsa/test-key-3.der"),
    include_bytes!("../../tests/vectors/rsa/test-key-4.der"),
    include_bytes!("../../tests/vectors/rsa/test-key-5.der"),
];

/// A generator that gives the same bytes for the same `seed`.
pub(crate) fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

/// Hands out bytes written down beforehand: the randomness of test vectors.
pub(crate) struct Scripted<'a>(pub(crate) &'a [u8]);

impl rand_core::TryRng for Scripted<'_> {
    type Error = core::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        rand_core::utils::next_word_via_fill(self)
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        rand_core::utils::next_word_via_fill(self)
    }

    fn try_fill_bytes(&mut self, destination: &mut [u8]) -> Result<(), Self::Error> {
        let (head, tail) = self.0.split_at(destination.len());
        destination.copy_from_slice(head);
        self.0 = tail;
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Scripted<'_> {}

/// Counts the bytes that are drawn: first those of `first`, written down beforehand, then those of a generator.
pub(crate) struct Counted<'a> {
    pub(crate) first: &'a [u8],
    pub(crate) rng: ChaCha20Rng,
    pub(crate) drawn: usize,
}

impl rand_core::TryRng for Counted<'_> {
    type Error = core::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        rand_core::utils::next_word_via_fill(self)
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        rand_core::utils::next_word_via_fill(self)
    }

    fn try_fill_bytes(&mut self, destination: &mut [u8]) -> Result<(), Self::Error> {
        self.drawn += destination.len();
        let (written, other) = destination.split_at_mut(destination.len().min(self.first.len()));
        let (head, tail) = self.first.split_at(written.len());
        written.copy_from_slice(head);
        self.first = tail;
        self.rng.try_fill_bytes(other)
    }
}

impl rand_core::TryCryptoRng for Counted<'_> {}
