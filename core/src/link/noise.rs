//! The link handshake, `PROTOCOL.md` section 4.1: Noise revision 34, pattern NX with the hybrid forward secrecy
//! extension.
//!
//! ```text
//! -> e, e1
//! <- e, ee, ekem1, s, es
//! ```
//!
//! The connector stays anonymous and the answerer proves its static link key. Names follow the Noise specification; its
//! sections are given.
//!
//! Why not `snow`: it boxes every primitive behind `dyn` and so needs an allocator, and the only KEM of its hybrid
//! extension is Kyber-1024. Why not `clatter`: it creates its generator inside with `Default`, so an injected one is
//! ignored; its hybrid NX makes the answerer send an ephemeral KEM key that nobody uses and adds a third message; and
//! it brings an older generation of every RustCrypto crate. What is left to write is the symmetric state and one
//! pattern, and the tests hold both against vectors of other implementations.

use libcrux_ml_kem::mlkem768::{self, MlKem768Ciphertext, MlKem768PrivateKey, MlKem768PublicKey};
use rand_core::CryptoRng;
use x25519_dalek::{PublicKey, SharedSecret, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

use super::aead::{OpenFailed, RecordKey, TAG_LEN};
use super::key::{LinkKey, LinkSecret};
use super::symmetric::{Protocol, SymmetricState};

/// Bytes of an X25519 key.
pub const DH_LEN: usize = 32;
/// Bytes of an ML-KEM-768 encapsulation key.
pub const KEM_KEY_LEN: usize = 1184;
/// Bytes of an ML-KEM-768 ciphertext.
pub const KEM_CIPHERTEXT_LEN: usize = 1088;
/// Bytes of the connector's message; its payload is empty.
pub const MESSAGE1_LEN: usize = DH_LEN + KEM_KEY_LEN;
/// Bytes of the answerer's message beside its payload.
pub const MESSAGE2_OVERHEAD: usize = DH_LEN + SEALED_CIPHERTEXT_LEN + SEALED_STATIC_LEN + TAG_LEN;

/// `d || z` of FIPS 203.
const KEM_SEED_LEN: usize = 64;
const KEM_RANDOMNESS_LEN: usize = 32;
const SEALED_CIPHERTEXT_LEN: usize = KEM_CIPHERTEXT_LEN + TAG_LEN;
const SEALED_STATIC_LEN: usize = DH_LEN + TAG_LEN;

const _: () = assert!(MESSAGE1_LEN == 1216 && MESSAGE2_OVERHEAD == 1200);
const _: () = assert!(MlKem768PublicKey::len() == KEM_KEY_LEN && MlKem768Ciphertext::len() == KEM_CIPHERTEXT_LEN);

/// Why a handshake ends without a link. Nothing of it is told to the peer: the connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HandshakeError {
    /// The message is shorter than its fixed parts.
    Length,
    /// The peer's ML-KEM-768 key is not one (FIPS 203 section 7.2, modulus check).
    KemKey,
    /// An X25519 output is all zero: the peer's public key has small order.
    WeakKey,
    /// A part of the message does not open.
    Forged,
    /// The caller's fault: the payload does not fit the output buffer.
    NoRoom,
}

impl core::fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Length => "handshake message is too short",
            Self::KemKey => "encapsulation key is invalid",
            Self::WeakKey => "public key has small order",
            Self::Forged => "handshake message is not authentic",
            Self::NoRoom => "output buffer is too small for the payload",
        })
    }
}

impl core::error::Error for HandshakeError {}

impl From<OpenFailed> for HandshakeError {
    fn from(_: OpenFailed) -> Self {
        Self::Forged
    }
}

/// The two keys that a handshake yields, one a direction.
pub struct SessionKeys {
    /// For the records that this node sends.
    pub send: RecordKey,
    /// For the records that this node receives.
    pub receive: RecordKey,
}

/// What the connector knows once the answer is authentic. Whose key it is and what the payload says are still to be
/// judged.
pub struct Established<'m> {
    /// The answer's payload, where it lay in the message.
    pub payload: &'m [u8],
    /// The answerer's static key, which it has proved to hold.
    pub link_key: LinkKey,
    /// The link's keys.
    pub keys: SessionKeys,
}

/// The handshake of this protocol; tests also run those that other implementations have vectors for.
const PROTOCOL: Protocol<'static> =
    Protocol { name: b"Noise_NXhfs_25519+MLKEM768_AESGCM_SHA256", prologue: b"bulbil/1", hybrid: true };

/// A handshake begun by this node, waiting for the answer.
///
/// It keeps the seed of its KEM key instead of the key: 64 bytes rather than 2,400 for each half-open link, at the
/// price of generating the key a second time.
pub struct Connector {
    symmetric: SymmetricState,
    ephemeral: StaticSecret,
    kem_seed: Option<Zeroizing<[u8; KEM_SEED_LEN]>>,
}

impl Connector {
    /// Begins a handshake: writes message 1 to `out`. Draws 96 bytes from `rng`.
    #[must_use]
    pub fn start<R: CryptoRng + ?Sized>(rng: &mut R, out: &mut [u8; MESSAGE1_LEN]) -> Self {
        Self::write_message1(&PROTOCOL, rng, &[], out).expect("the buffer has the length of message 1").0
    }

    fn write_message1<R: CryptoRng + ?Sized>(
        protocol: &Protocol<'_>,
        rng: &mut R,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<(Self, usize), HandshakeError> {
        let mut symmetric = SymmetricState::new(protocol);
        let total = DH_LEN + if protocol.hybrid { KEM_KEY_LEN } else { 0 } + payload.len();
        let out = out.get_mut(..total).ok_or(HandshakeError::NoRoom)?;

        // e
        let ephemeral = StaticSecret::random_from_rng(rng);
        let (e, rest) = out.split_first_chunk_mut::<DH_LEN>().ok_or(HandshakeError::NoRoom)?;
        *e = PublicKey::from(&ephemeral).to_bytes();
        symmetric.mix_hash(e);
        // e1
        let (kem_seed, rest) = if protocol.hybrid {
            let mut seed = Zeroizing::new([0; KEM_SEED_LEN]);
            rng.fill_bytes(&mut *seed);
            let (e1, rest) = rest.split_first_chunk_mut::<KEM_KEY_LEN>().ok_or(HandshakeError::NoRoom)?;
            *e1 = *kem_key_pair(&seed).1.as_slice();
            symmetric.encrypt_and_hash(e1)?;
            (Some(seed), rest)
        } else {
            (None, rest)
        };
        rest.copy_from_slice(payload);
        symmetric.encrypt_and_hash(rest)?;
        Ok((Self { symmetric, ephemeral, kem_seed }, total))
    }

    /// Ends the handshake with the answerer's message, decrypted in place: [`MESSAGE2_OVERHEAD`] bytes and the payload.
    ///
    /// # Errors
    /// Everything but [`HandshakeError::NoRoom`] and [`HandshakeError::KemKey`]. The handshake is over then, and the
    /// message's bytes are of no use.
    pub fn finish(self, message2: &mut [u8]) -> Result<Established<'_>, HandshakeError> {
        self.read_message2(message2).map(|(established, _end)| established)
    }

    /// [`Self::finish`] that also answers the end state.
    fn read_message2(self, message2: &mut [u8]) -> Result<(Established<'_>, SymmetricState), HandshakeError> {
        let Self { mut symmetric, ephemeral, kem_seed } = self;

        // e, ee
        let (re, rest) = message2.split_first_chunk_mut::<DH_LEN>().ok_or(HandshakeError::Length)?;
        symmetric.mix_hash(re);
        symmetric.mix_key(agree(&ephemeral, re)?.as_bytes());
        // ekem1
        let rest = match kem_seed {
            Some(seed) => {
                let (ekem1, rest) =
                    rest.split_first_chunk_mut::<SEALED_CIPHERTEXT_LEN>().ok_or(HandshakeError::Length)?;
                let ciphertext: &[u8] = symmetric.decrypt_and_hash(ekem1)?;
                let ciphertext = MlKem768Ciphertext::try_from(ciphertext).map_err(|_| HandshakeError::Length)?;
                let shared = Zeroizing::new(mlkem768::decapsulate(&kem_secret(&seed).0, &ciphertext));
                symmetric.mix_key(&*shared);
                rest
            }
            None => rest,
        };
        // s, es
        let (s, payload) = rest.split_first_chunk_mut::<SEALED_STATIC_LEN>().ok_or(HandshakeError::Length)?;
        let rs: &[u8] = symmetric.decrypt_and_hash(s)?;
        let rs: [u8; DH_LEN] = rs.try_into().map_err(|_| HandshakeError::Length)?;
        symmetric.mix_key(agree(&ephemeral, &rs)?.as_bytes());

        let payload = symmetric.decrypt_and_hash(payload)?;
        let (send, receive) = symmetric.split();
        Ok((Established { payload, link_key: LinkKey(rs), keys: SessionKeys { send, receive } }, symmetric))
    }
}

/// Answers a connector's message 1 with message 2 in `out`: [`MESSAGE2_OVERHEAD`] bytes and `payload`. Gives the
/// message's length and the link's keys. Draws 64 bytes from `rng`.
///
/// The keys are not confirmed by the connector until its first record opens.
///
/// # Errors
/// [`HandshakeError::KemKey`], [`HandshakeError::WeakKey`], [`HandshakeError::NoRoom`]; `out` is unchanged then.
pub fn answer<R: CryptoRng + ?Sized>(
    secret: &LinkSecret,
    message1: &[u8; MESSAGE1_LEN],
    payload: &[u8],
    out: &mut [u8],
    rng: &mut R,
) -> Result<(usize, SessionKeys), HandshakeError> {
    write_message2(&PROTOCOL, secret, message1, payload, out, rng).map(|(len, keys, _end)| (len, keys))
}

/// [`answer`] that also answers the end state. Whatever message 1 carries behind its keys is its payload, in clear.
fn write_message2<R: CryptoRng + ?Sized>(
    protocol: &Protocol<'_>,
    secret: &LinkSecret,
    message1: &[u8],
    payload: &[u8],
    out: &mut [u8],
    rng: &mut R,
) -> Result<(usize, SessionKeys, SymmetricState), HandshakeError> {
    let mut symmetric = SymmetricState::new(protocol);

    // Message 1: e, e1. No key yet, so DecryptAndHash is MixHash.
    let (re, rest) = message1.split_first_chunk::<DH_LEN>().ok_or(HandshakeError::Length)?;
    symmetric.mix_hash(re);
    let (kem_key, payload1) = if protocol.hybrid {
        let (e1, rest) = rest.split_first_chunk::<KEM_KEY_LEN>().ok_or(HandshakeError::Length)?;
        symmetric.mix_hash(e1);
        let key = MlKem768PublicKey::from(e1);
        if !mlkem768::validate_public_key(&key) {
            return Err(HandshakeError::KemKey);
        }
        (Some(key), rest)
    } else {
        (None, rest)
    };
    symmetric.mix_hash(payload1);

    // Everything that can fail comes before the first byte is written.
    let ephemeral = StaticSecret::random_from_rng(rng);
    let ee = agree(&ephemeral, re)?;
    let es = agree(&secret.secret, re)?;
    let sealed_ciphertext_len = if protocol.hybrid { SEALED_CIPHERTEXT_LEN } else { 0 };
    let len = DH_LEN + sealed_ciphertext_len + SEALED_STATIC_LEN + payload.len() + TAG_LEN;
    let out = out.get_mut(..len).ok_or(HandshakeError::NoRoom)?;

    // e, ee
    let (e, rest) = out.split_first_chunk_mut::<DH_LEN>().ok_or(HandshakeError::NoRoom)?;
    *e = PublicKey::from(&ephemeral).to_bytes();
    symmetric.mix_hash(e);
    symmetric.mix_key(ee.as_bytes());
    // ekem1
    let rest = match kem_key {
        Some(key) => {
            let mut randomness = Zeroizing::new([0; KEM_RANDOMNESS_LEN]);
            rng.fill_bytes(&mut *randomness);
            let (ciphertext, shared) = mlkem768::encapsulate(&key, *randomness);
            let shared = Zeroizing::new(shared);
            let (ekem1, rest) = rest.split_first_chunk_mut::<SEALED_CIPHERTEXT_LEN>().ok_or(HandshakeError::NoRoom)?;
            ekem1[..KEM_CIPHERTEXT_LEN].copy_from_slice(ciphertext.as_ref());
            symmetric.encrypt_and_hash(ekem1)?;
            symmetric.mix_key(&*shared);
            rest
        }
        None => rest,
    };
    // s, es
    let (s, rest) = rest.split_first_chunk_mut::<SEALED_STATIC_LEN>().ok_or(HandshakeError::NoRoom)?;
    s[..DH_LEN].copy_from_slice(&secret.public.0);
    symmetric.encrypt_and_hash(s)?;
    symmetric.mix_key(es.as_bytes());

    rest.get_mut(..payload.len()).ok_or(HandshakeError::NoRoom)?.copy_from_slice(payload);
    symmetric.encrypt_and_hash(rest)?;
    let (receive, send) = symmetric.split();
    Ok((len, SessionKeys { send, receive }, symmetric))
}

/// DH of Noise section 12.1, which leaves it to the implementation to refuse all-zero outputs. They are refused, so
/// that nobody can make an output a constant and the KEM the link's only secret.
fn agree(secret: &StaticSecret, public: &[u8; DH_LEN]) -> Result<SharedSecret, HandshakeError> {
    let shared = secret.diffie_hellman(&PublicKey::from(*public));
    if shared.was_contributory() { Ok(shared) } else { Err(HandshakeError::WeakKey) }
}

/// A decapsulation key, which the library itself does not wipe.
struct KemSecret(MlKem768PrivateKey);

impl Drop for KemSecret {
    fn drop(&mut self) {
        self.0[0..].zeroize();
    }
}

fn kem_key_pair(seed: &[u8; KEM_SEED_LEN]) -> (KemSecret, MlKem768PublicKey) {
    let (secret, public) = mlkem768::generate_key_pair(*seed).into_parts();
    (KemSecret(secret), public)
}

/// The secret half alone. Not inlined: what making it takes of the stack must not lie under what using it takes.
#[inline(never)]
fn kem_secret(seed: &[u8; KEM_SEED_LEN]) -> KemSecret {
    kem_key_pair(seed).0
}

#[cfg(test)]
mod tests {
    use core::convert::Infallible;
    use std::vec;
    use std::vec::Vec;

    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::SeedableRng;
    use rand_core::{TryCryptoRng, TryRng};
    use serde_json::Value;

    use super::super::aead::PortableAead;
    use super::super::record::CipherState;
    use super::*;

    /// Gives out the bytes of a vector, and panics when they end.
    struct Script(Vec<u8>);

    impl TryRng for Script {
        type Error = Infallible;

        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            unreachable!("the handshake draws bytes")
        }

        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            unreachable!("the handshake draws bytes")
        }

        fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
            let drawn = self.0.drain(..out.len()).collect::<Vec<_>>();
            out.copy_from_slice(&drawn);
            Ok(())
        }
    }

    impl TryCryptoRng for Script {}

    fn rng(seed: u8) -> ChaCha20Rng {
        ChaCha20Rng::from_seed([seed; 32])
    }

    fn secret() -> LinkSecret {
        LinkSecret::from_bytes([5; DH_LEN])
    }

    fn bytes(value: &Value) -> Vec<u8> {
        hex::decode(value.as_str().unwrap()).unwrap()
    }

    /// Payload and ciphertext of each message.
    fn pairs(messages: &Value) -> Vec<(Vec<u8>, Vec<u8>)> {
        let messages = messages.as_array().unwrap().iter();
        messages.map(|message| (bytes(&message["payload"]), bytes(&message["ciphertext"]))).collect()
    }

    /// Both sides against every message of a vector: handshake, transport and, where there are some, those after a
    /// REKEY.
    fn check_vector(vector: &Value) {
        let name = vector["protocol_name"].as_str().unwrap();
        let (prologue, hybrid) = (bytes(&vector["init_prologue"]), name.contains("hfs"));
        let protocol = Protocol { name: name.as_bytes(), prologue: &prologue, hybrid };
        let script = |ephemeral: &str, kem: &str| {
            let mut script = bytes(&vector[ephemeral]);
            script.extend(vector.get(kem).map(bytes).unwrap_or_default());
            Script(script)
        };
        let (mut rng1, mut rng2) =
            (script("init_ephemeral", "init_kem_seed"), script("resp_ephemeral", "resp_kem_seed"));
        let secret = LinkSecret::from_bytes(bytes(&vector["resp_static"]).try_into().unwrap());
        let messages = pairs(&vector["messages"]);

        let mut buffer = [0xa5; 4096];
        let (connector, len) = Connector::write_message1(&protocol, &mut rng1, &messages[0].0, &mut buffer).unwrap();
        assert_eq!(buffer[..len], messages[0].1, "{name}: message 1");
        let (len, theirs, end) =
            write_message2(&protocol, &secret, &messages[0].1, &messages[1].0, &mut buffer, &mut rng2).unwrap();
        assert_eq!(buffer[..len], messages[1].1, "{name}: message 2");
        assert!(rng1.0.is_empty() && rng2.0.is_empty());
        let (ours, our_end) = connector.read_message2(&mut buffer[..len]).ok().unwrap();
        assert_eq!(ours.payload, messages[1].0);
        assert_eq!(ours.link_key, secret.public());
        assert_eq!(end.hash(), our_end.hash());
        if let Some(hash) = vector.get("handshake_hash") {
            assert_eq!(end.hash().as_slice(), bytes(hash), "{name}: handshake hash");
        }

        let mut seal = [&ours.keys.send, &theirs.send].map(CipherState::<PortableAead>::new);
        let mut open = [&theirs.receive, &ours.keys.receive].map(CipherState::<PortableAead>::new);
        let rekeyed = vector.get("messages_after_rekey").map(pairs).unwrap_or_default();
        for (i, (payload, ciphertext)) in messages.iter().skip(2).chain(&rekeyed).enumerate() {
            if i == messages.len() - 2 {
                seal.iter_mut().chain(&mut open).for_each(CipherState::rekey);
            }
            let mut text = payload.clone();
            let tag = seal[i % 2].seal(&mut text).unwrap();
            assert_eq!([&text[..], &tag].concat(), *ciphertext, "{name}: transport message {i}");
            open[i % 2].open(&mut text, &tag).unwrap();
            assert_eq!(text, *payload);
        }
    }

    fn check_vectors(file: &str, count: usize) {
        let file: Value = serde_json::from_str(file).unwrap();
        let vectors = file["vectors"].as_array().unwrap();
        assert_eq!(vectors.len(), count);
        vectors.iter().for_each(check_vector);
    }

    #[test]
    fn nx_agrees_with_cacophony_and_snow() {
        check_vectors(include_str!("../../tests/vectors/noise_nx.json"), 2);
    }

    #[test]
    fn nxhfs_agrees_with_snow() {
        check_vectors(include_str!("../../tests/vectors/noise_nxhfs.json"), 1);
    }

    /// A handshake with these seeds, message 2 changed by `alter` on the way.
    fn run(seed1: u8, seed2: u8, payload: &[u8], alter: impl FnOnce(&mut Vec<u8>)) -> Result<Vec<u8>, HandshakeError> {
        let mut message1 = [0xa5; MESSAGE1_LEN];
        let connector = Connector::start(&mut rng(seed1), &mut message1);
        let mut message2 = vec![0xa5; MESSAGE2_OVERHEAD + payload.len()];
        let (len, theirs) = answer(&secret(), &message1, payload, &mut message2, &mut rng(seed2))?;
        assert_eq!(len, message2.len());
        alter(&mut message2);
        let ours = connector.finish(&mut message2)?;
        assert_eq!(ours.link_key, secret().public());
        assert_eq!(ours.keys.send.as_bytes(), theirs.receive.as_bytes());
        assert_eq!(ours.keys.receive.as_bytes(), theirs.send.as_bytes());
        assert_ne!(ours.keys.receive.as_bytes(), ours.keys.send.as_bytes());
        assert_eq!(ours.payload, payload);
        Ok(ours.keys.send.as_bytes().to_vec())
    }

    #[test]
    fn both_sides_get_the_same_keys_and_the_payload() {
        for len in [0, 1, 1000, 3000] {
            run(1, 2, &vec![0x5a; len], |_| {}).unwrap();
        }
    }

    #[test]
    fn the_same_generators_give_the_same_handshake() {
        let same = |seed1, seed2| run(seed1, seed2, b"payload", |_| {}).unwrap();
        assert_eq!(same(1, 2), same(1, 2));
        assert_ne!(same(1, 2), same(3, 2));
        assert_ne!(same(1, 2), same(1, 3));
    }

    #[test]
    fn every_altered_byte_of_message_2_is_refused() {
        let payload = [3; 40];
        for at in 0..MESSAGE2_OVERHEAD + payload.len() {
            let result = run(1, 2, &payload, |message| message[at] ^= 1 << (at % 8));
            assert_eq!(result, Err(HandshakeError::Forged), "byte {at}");
        }
    }

    #[test]
    fn truncated_and_extended_message_2_is_refused() {
        let payload = [3; 3];
        for len in 0..MESSAGE2_OVERHEAD + payload.len() {
            let error = run(1, 2, &payload, |message| message.truncate(len)).err();
            assert!(matches!(error, Some(HandshakeError::Length | HandshakeError::Forged)), "{len} bytes");
        }
        for byte in 0..=255 {
            assert_eq!(run(1, 2, &payload, |message| message.push(byte)), Err(HandshakeError::Forged));
        }
    }

    #[test]
    fn message_1_altered_on_the_way_ends_in_no_link() {
        let mut original = [0; MESSAGE1_LEN];
        let _begun = Connector::start(&mut rng(1), &mut original);
        for at in (0..MESSAGE1_LEN).step_by(13).chain([DH_LEN - 1]) {
            let mut message1 = original;
            message1[at] ^= 0x80;
            let mut message2 = vec![0; MESSAGE2_OVERHEAD];
            match answer(&secret(), &message1, &[], &mut message2, &mut rng(2)) {
                Ok(_) => {
                    let connector = Connector::start(&mut rng(1), &mut original);
                    assert_eq!(connector.finish(&mut message2).err(), Some(HandshakeError::Forged), "byte {at}");
                }
                Err(error) => assert_eq!(error, HandshakeError::KemKey, "byte {at}"),
            }
        }
    }

    #[test]
    fn invalid_kem_key_is_refused_and_nothing_written() {
        let mut message1 = [0; MESSAGE1_LEN];
        let _begun = Connector::start(&mut rng(1), &mut message1);
        message1[DH_LEN..DH_LEN + 2].fill(0xff);
        let mut out = [0xa5; MESSAGE2_OVERHEAD];
        let result = answer(&secret(), &message1, &[], &mut out, &mut rng(2));
        assert_eq!(result.err(), Some(HandshakeError::KemKey));
        assert_eq!(out, [0xa5; MESSAGE2_OVERHEAD]);
    }

    /// The u-coordinates of small order below 2^255 (the list of the page cr.yp.to/ecdh.html), canonical or not.
    const SMALL_ORDER: [&str; 7] = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];

    #[test]
    fn public_keys_of_small_order_are_refused_from_either_side() {
        for point in SMALL_ORDER {
            let point: [u8; DH_LEN] = hex::decode(point).unwrap().try_into().unwrap();
            let mut message1 = [0; MESSAGE1_LEN];
            let connector = Connector::start(&mut rng(1), &mut message1);

            let mut altered = message1;
            altered[..DH_LEN].copy_from_slice(&point);
            let mut out = [0xa5; MESSAGE2_OVERHEAD];
            let result = answer(&secret(), &altered, &[], &mut out, &mut rng(2));
            assert_eq!(result.err(), Some(HandshakeError::WeakKey));
            assert_eq!(out, [0xa5; MESSAGE2_OVERHEAD]);

            let claims_weak_key = LinkSecret { public: LinkKey(point), ..secret() };
            answer(&claims_weak_key, &message1, &[], &mut out, &mut rng(2)).ok().unwrap();
            assert_eq!(connector.finish(&mut out).err(), Some(HandshakeError::WeakKey));

            let ephemeral = run(1, 2, &[], |message| message[..DH_LEN].copy_from_slice(&point));
            assert_eq!(ephemeral.err(), Some(HandshakeError::WeakKey));
        }
    }

    #[test]
    fn an_answerer_without_the_static_secret_is_refused() {
        let mut message1 = [0; MESSAGE1_LEN];
        let connector = Connector::start(&mut rng(1), &mut message1);
        let impostor = LinkSecret { public: secret().public(), ..LinkSecret::from_bytes([6; DH_LEN]) };
        let mut message2 = [0; MESSAGE2_OVERHEAD];
        answer(&impostor, &message1, &[], &mut message2, &mut rng(2)).ok().unwrap();
        assert_eq!(connector.finish(&mut message2).err(), Some(HandshakeError::Forged));
    }

    #[test]
    fn short_output_is_the_callers_error() {
        let mut message1 = [0; MESSAGE1_LEN];
        let _begun = Connector::start(&mut rng(1), &mut message1);
        for len in [0, DH_LEN, MESSAGE2_OVERHEAD, MESSAGE2_OVERHEAD + 9] {
            let result = answer(&secret(), &message1, &[0; 10], &mut vec![0; len], &mut rng(2));
            assert_eq!(result.err(), Some(HandshakeError::NoRoom));
        }
    }

    #[test]
    fn a_half_open_link_stays_small() {
        assert!(size_of::<Connector>() <= 240, "{} bytes", size_of::<Connector>());
    }
}
