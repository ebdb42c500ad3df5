//! Vectors that others have published or made: of the ciphers as they are compiled here, and of what the core makes of them.

use aes_siv::KeyInit as _;
use aes_siv::siv::Aes128Siv;
use bulbil_core::crypto::cgo::{ClientForward, HopIndex, RelayBackward, RelayForward, SEED_LEN, Seed};
use bulbil_core::crypto::identity::{self, IdentitySecret};
use bulbil_core::crypto::kem::{Kem, Rsa2048, RsaOnionSecret, XWing, XWingSecret};
use bulbil_core::link::{LinkSecret, PortableAead, RecordAead};
use bulbil_core::phonebook::VerifiedDescriptor;
use bulbil_core::wire::cell::BODY_LEN;
use bulbil_core::wire::{Command, Descriptor, NodeId, UnixTime};
use polyval::Polyval;
use polyval::universal_hash::UniversalHash as _;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::{Check, alike, ensure};

include!(concat!(env!("OUT_DIR"), "/vectors.rs"));

type Named = (&'static str, fn() -> Check);

/// Every check of this module with its name.
pub(crate) const CHECKS: [Named; 9] = [
    ("SHA-256, FIPS 180", sha256),
    ("X25519, RFC 7748", x25519),
    ("POLYVAL, RFC 8452", polyval),
    ("AES-256-GCM, the GCM specification", aes_gcm),
    ("AES-SIV, RFC 5297", aes_siv),
    ("X-Wing, its draft", x_wing),
    ("RSA-PSS and RSA-OAEP, OpenSSL", rsa),
    ("descriptors, OpenSSL", descriptors),
    ("relay cells, the reference vectors", relay_cells),
];

/// The bytes that hexadecimal digits spell.
const fn hex<const N: usize>(digits: &str) -> [u8; N] {
    const fn value(digit: u8) -> u8 {
        match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => panic!("no hexadecimal digit"),
        }
    }
    let digits = digits.as_bytes();
    assert!(digits.len() == 2 * N);
    let mut bytes = [0; N];
    let mut at = 0;
    while at < N {
        bytes[at] = value(digits[2 * at]) << 4 | value(digits[2 * at + 1]);
        at += 1;
    }
    bytes
}

fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

fn sha256() -> Check {
    let digest: [u8; 32] = Sha256::digest(b"abc").into();
    ensure!(digest == hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"), "another digest");
    Ok(())
}

/// Section 5.2: the first vector, and the first of those that are iterated, whose point is the base point.
fn x25519() -> Check {
    let scalar = StaticSecret::from(hex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"));
    let point = PublicKey::from(hex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"));
    let product = hex("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552");
    ensure!(scalar.diffie_hellman(&point).to_bytes() == product, "another product");
    let secret = LinkSecret::from_bytes(hex("0900000000000000000000000000000000000000000000000000000000000000"));
    let public = hex("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079");
    ensure!(secret.public().0 == public, "another public key");
    Ok(())
}

/// Appendix A.
fn polyval() -> Check {
    let key: [u8; 16] = hex("25629347589242761d31f826ba4b757b");
    let blocks: [[u8; 16]; 2] = [hex("4f4f95668c83dfb6401762bb2d01a262"), hex("d1a24ddd2721d006bbe45f20d3c9f362")];
    let mut hash = Polyval::new(&key.into());
    hash.update(&blocks.map(Into::into));
    let value: [u8; 16] = hash.finalize().into();
    ensure!(value == hex("f7a3b47b846119fae5b7866cf5e5b77e"), "another value");
    Ok(())
}

/// Test case 14; and that what is sealed opens, and not if it was altered.
fn aes_gcm() -> Check {
    let aead = PortableAead::new(&[0; 32]);
    let mut block = [0; 16];
    let tag = aead.seal(0, &mut block);
    ensure!(block == hex("cea7403d4d606b6e074ec5d3baf39d18"), "another ciphertext");
    ensure!(tag == hex("d0d1c8a799996bf0265b98b5d48ab919"), "another tag");
    ensure!(aead.open(0, &mut { block }, &tag).is_ok(), "does not open");
    ensure!(aead.open(1, &mut { block }, &tag).is_err(), "opens under another nonce");
    block[15] ^= 1;
    ensure!(aead.open(0, &mut block, &tag).is_err(), "opens although altered");
    Ok(())
}

/// Appendix A.1.
fn aes_siv() -> Check {
    let key: [u8; 32] = hex("fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff");
    let header: [u8; 24] = hex("101112131415161718191a1b1c1d1e1f2021222324252627");
    let mut text: [u8; 14] = hex("112233445566778899aabbccddee");
    let siv = Aes128Siv::new(&key.into()).encrypt_inout_detached([header], text.as_mut_slice().into());
    ensure!(siv.is_ok_and(|siv| siv[..] == hex::<16>("85632d07c6e8f37f950acd320a2ecc93")), "another synthetic IV");
    ensure!(text == hex("40c02b9690c4dc04daef7f6afe5c"), "another ciphertext");
    Ok(())
}

fn x_wing() -> Check {
    for [seed, randomness, public, ciphertext, shared] in X_WING {
        let mut seed = Scripted(seed);
        let secret = XWingSecret::generate(&mut seed);
        ensure!(secret.public() == public, "another public key");
        let mut made = [0; XWing::CIPHERTEXT_LEN];
        let theirs = XWing::encapsulate(&secret.public(), &mut made, &mut Scripted(randomness));
        ensure!(made == ciphertext, "another ciphertext");
        ensure!(theirs.is_ok_and(|theirs| *theirs == *shared), "another secret encapsulated");
        let ours = XWing::decapsulate(&secret, ciphertext, &mut rng(1));
        ensure!(ours.is_ok_and(|ours| *ours == *shared), "another secret decapsulated");
        made[100] ^= 1;
        let other = XWing::decapsulate(&secret, &made, &mut rng(1));
        ensure!(other.is_ok_and(|other| *other != *shared), "the same secret from another ciphertext");
    }
    Ok(())
}

fn rsa() -> Check {
    let signer = IdentitySecret::from_pkcs8(include_bytes!("../../tests/vectors/rsa/test-key-0.der"));
    let public = signer.map_err(|_| "a key does not parse")?.public();
    let mut signature = *include_bytes!("../../tests/vectors/rsa/openssl-pss.sig");
    let parts: [&[u8]; 2] = [b"bulbil/1 descriptor", b"signed by openssl"];
    ensure!(identity::verify(&public, &parts, &signature).is_ok(), "the signature does not verify");
    signature[200] ^= 1;
    ensure!(identity::verify(&public, &parts, &signature).is_err(), "an altered signature verifies");

    let receiver = RsaOnionSecret::from_pkcs8(include_bytes!("../../tests/vectors/rsa/test-key-1.der"));
    let receiver = receiver.map_err(|_| "a key does not parse")?;
    let ciphertext = include_bytes!("../../tests/vectors/rsa/openssl-oaep.ct");
    let secret = Rsa2048::decapsulate(&receiver, ciphertext, &mut rng(2));
    ensure!(secret.is_ok_and(|secret| *secret == core::array::from_fn(|at| at as u8)), "another secret");
    Ok(())
}

fn descriptors() -> Check {
    for (kind, node, bytes) in DESCRIPTORS {
        let descriptor = Descriptor::parse(bytes).map_err(|_| "one does not parse")?;
        ensure!(descriptor.onion_key.kind() as u64 == kind, "another kind of onion key");
        let mut again = [0; bulbil_core::wire::descriptor::DESCRIPTOR_MAX_LEN];
        let len = descriptor.emit(&mut again).map_err(|_| "one cannot be encoded again")?;
        ensure!(again[..len] == *bytes, "another encoding");
        let mut altered = descriptor.clone();
        altered.sequence ^= 1;
        let now = UnixTime(1_700_000_000);
        ensure!(VerifiedDescriptor::verify(altered, now).is_err(), "an altered one verifies");
        let verified = VerifiedDescriptor::verify(descriptor, now).map_err(|_| "one does not verify")?;
        ensure!(node.parse::<NodeId>().is_ok_and(|node| node == verified.node()), "another node id");
    }
    Ok(())
}

/// Of the reference vectors those that begin with a circuit; what follows in one is compared by [`alike`].
fn relay_cells() -> Check {
    let seeds = [(); 3].map(|()| Seed::from_bytes([0; SEED_LEN]));
    // The vectors' additional data is 0, which no relay cell has.
    let ad = Command::PADDING;
    let [passed, received, made, sent] = RELAY_CELLS;

    let mut body = [0; BODY_LEN];
    RelayBackward::new(&seeds[0]).pass(ad, &mut body);
    ensure!(body == passed, "another cell passed backward");

    let mut body = [0; BODY_LEN];
    let own = RelayForward::new(&seeds[0]).receive(ad, &mut body);
    ensure!(body == received && !own, "another cell received");

    let mut body = [0; BODY_LEN];
    RelayBackward::new(&seeds[0]).originate(ad, &mut body);
    ensure!(body == made, "another cell made by a relay");

    let mut body = [0; BODY_LEN];
    let mut client = ClientForward::new(&seeds).map_err(|_| "no path")?;
    let third = HopIndex::new(2).ok_or("no third hop")?;
    client.originate(third, ad, &mut body).map_err(|_| "no third hop")?;
    ensure!(body == sent, "another cell sent by a client");
    Ok(())
}

/// Hands out a vector's randomness, and zeros behind it.
struct Scripted(&'static [u8]);

impl rand_core::TryRng for Scripted {
    type Error = core::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        rand_core::utils::next_word_via_fill(self)
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        rand_core::utils::next_word_via_fill(self)
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        let (head, tail) = self.0.split_at(out.len().min(self.0.len()));
        out.fill(0);
        out[..head.len()].copy_from_slice(head);
        self.0 = tail;
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Scripted {}
