//! The pseudorandom function: an AES-CTR keystream under K whose counter block is `UH(B, T)` with its low six bits
//! cleared, beginning at block 0 to cover a message (t = 0) or at block 31 to replace a hop's keys (t = 1).

use super::{BLOCK_LEN, Key, MESSAGE_LEN, Message, SEED_LEN, Seed, Tag, xor_block};
use aes::cipher::consts::U16;
use aes::cipher::typenum::Unsigned;
use aes::cipher::{
    Array, BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit, ParBlocks,
};
use aes::{Aes128Enc, Block};
use polyval::{Polyval, universal_hash::UniversalHash};
use zeroize::Zeroizing;

/// Blocks of keystream that cover a message; the block after them is the first of t = 1.
const MESSAGE_BLOCKS: u8 = MESSAGE_LEN.div_ceil(BLOCK_LEN) as u8;
/// The counter's bits that are cleared, so that counting up never carries.
const COUNTER_MASK: u8 = 0x3f;

const _: () = assert!(MESSAGE_BLOCKS == 31);
const _: () = assert!(MESSAGE_BLOCKS as usize + SEED_LEN.div_ceil(BLOCK_LEN) <= COUNTER_MASK as usize + 1);

/// The pseudorandom function under its two keys.
pub(super) struct Prf<'a> {
    /// K, the block cipher's.
    pub(super) block_key: &'a Key,
    /// B, the hash's.
    pub(super) hash_key: &'a Key,
}

impl Prf<'_> {
    /// The stream that `PRF(tweak, 0)` and `PRF(tweak, 1)` are parts of.
    pub(super) fn keystream(&self, tweak: &Tag) -> Keystream {
        let mut hash = Polyval::new(Array::cast_from_core(self.hash_key));
        hash.update(&[Array(*tweak)]);
        let mut counter = Zeroizing::new(<[u8; BLOCK_LEN]>::from(hash.finalize()));
        counter[BLOCK_LEN - 1] &= !COUNTER_MASK;
        Keystream { cipher: Aes128Enc::new(Array::cast_from_core(self.block_key)), counter }
    }
}

/// One tweak's keystream.
pub(super) struct Keystream {
    cipher: Aes128Enc,
    counter: Zeroizing<[u8; BLOCK_LEN]>,
}

impl Keystream {
    /// `message ^= PRF(tweak, 0)`.
    pub(super) fn mask(&self, message: &mut Message) {
        self.xor(0, message);
    }

    /// `PRF(tweak, 1)`: the keys and nonce that replace a hop's.
    pub(super) fn next_seed(&self) -> Seed {
        let mut seed = Seed([0; SEED_LEN]);
        self.xor(MESSAGE_BLOCKS, &mut seed.0);
        seed
    }

    /// Xors the stream from block `first` on into `data`.
    fn xor(&self, first: u8, data: &mut [u8]) {
        self.cipher.encrypt_with_backend(XorKeystream { counter: *self.counter, first, data });
    }
}

/// Xors a keystream into `data`, as a closure that the cipher runs with the backend it chose for this processor.
///
/// `call` is compiled into that backend with the processor's features on, even where the rest of the program is not, so
/// that counters, cipher and xor stay in registers. A cell takes 55 ns where `encrypt_blocks` and then a loop take 70.
struct XorKeystream<'a> {
    counter: [u8; BLOCK_LEN],
    first: u8,
    data: &'a mut [u8],
}

impl BlockSizeUser for XorKeystream<'_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for XorKeystream<'_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let width = B::ParBlocksSize::USIZE;
        let counter = u128::from_le_bytes(self.counter);
        // The counter is big-endian: its last byte is the one to count in.
        let block_at = |index: usize| -> Block { Array((counter | (index as u128) << 120).to_le_bytes()) };
        let mut index = usize::from(self.first);
        for batch in self.data.chunks_mut(width * BLOCK_LEN) {
            // Blocks too many in a batch cost less than the same blocks one by one, up to half of it. A backend wider
            // than a cell (64, AVX-512) has processors that overlap single blocks just as well.
            if width <= usize::from(MESSAGE_BLOCKS) && 2 * batch.len() >= width * BLOCK_LEN {
                let mut stream = ParBlocks::<B>::from_fn(|i| block_at(index + i));
                backend.encrypt_par_blocks_inplace(&mut stream);
                for (part, mask) in batch.chunks_mut(BLOCK_LEN).zip(&stream) {
                    xor(part, mask);
                }
            } else {
                for (i, part) in batch.chunks_mut(BLOCK_LEN).enumerate() {
                    let mut mask = block_at(index + i);
                    backend.encrypt_block_inplace(&mut mask);
                    xor(part, &mask);
                }
            }
            index += width;
        }
    }
}

/// Xors a block into `part`, which may be shorter.
#[inline(always)]
fn xor(part: &mut [u8], mask: &Block) {
    if let Ok(part) = <&mut [u8; BLOCK_LEN]>::try_from(&mut *part) {
        xor_block(part, &mask.0);
    } else {
        for (byte, mask) in part.iter_mut().zip(mask) {
            *byte ^= mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::cgo::vectors::{self, bytes};

    #[test]
    fn outside_vectors() {
        for vector in vectors::list("prf", 10) {
            let key: [u8; 32] = bytes(&vector["key"]);
            let prf = Prf { block_key: key.first_chunk().unwrap(), hash_key: key.last_chunk().unwrap() };
            let tweak = bytes(&vector["tweak"]);
            if vector["t"] == 0 {
                let mut message = [0; MESSAGE_LEN];
                prf.keystream(&tweak).mask(&mut message);
                assert_eq!(message, bytes(&vector["output"]));
            } else {
                assert_eq!(vector["t"], 1);
                assert_eq!(prf.keystream(&tweak).next_seed().0, bytes(&vector["output"]));
            }
        }
    }

    /// Every length gives the same stream, cut off: whichever mix of whole batches and single blocks it takes.
    #[test]
    fn the_stream_does_not_depend_on_how_much_is_asked_for() {
        let stream = Prf { block_key: &[3; 16], hash_key: &[5; 16] }.keystream(&[1; 16]);
        let mut all = [0; 64 * BLOCK_LEN];
        stream.xor(0, &mut all);
        for len in 0..all.len() {
            let mut some = [0; 64 * BLOCK_LEN];
            stream.xor(0, &mut some[..len]);
            assert_eq!(some[..len], all[..len]);
            assert!(some[len..].iter().all(|&byte| byte == 0));
        }
        let mut later = [0; 33 * BLOCK_LEN];
        stream.xor(31, &mut later);
        assert_eq!(later, all[31 * BLOCK_LEN..]);
    }
}
