//! The sealed envelope and its frames on the connection, `PROTOCOL.md` section 17.1.
//!
//! The server speaks first: a greeting with a fresh X25519 key. The client's first frame opens a channel: a fresh
//! X25519 key of its own, a secret under RSAES-OAEP to the server's key, and its first message under AES-256-GCM. The keys of both
//! directions come from both secrets, so
//!
//! - only the holder of the server's key reads the client, and only who opened the channel reads the server;
//! - a frame fits one place in one connection: replayed on another, moved, or sent back to its sender it fails;
//! - who records everything and steals the server's key later reads nothing.
//!
//! All messages are padded to one length, so that the exit learns from their lengths neither name nor request.
//!
//! A client that does not know the server's key yet opens without the RSA part; then only the server's key may be asked
//! for, and nothing says whose it is: the client pins or remembers it.

use hkdf::Hkdf;
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use super::key::{PublicKey, ServerSecret};
use super::message::{MESSAGE_MAX_LEN, Message};
use super::password::KdfParameters;
use crate::crypto::transport::{self, CIPHERTEXT_LEN};
use crate::link::{PortableAead, RecordAead};
use crate::wire::{Reader, WireError, Writer};

/// Bytes of the greeting: version 1, parameters 9, X25519 key 32.
pub const GREETING_LEN: usize = 1 + KdfParameters::LEN + DH_LEN;
/// Bytes of a frame's length field.
pub const LENGTH_LEN: usize = 2;
/// Bytes of the longest frame, its length field included: one that opens a channel.
pub const FRAME_MAX_LEN: usize = LENGTH_LEN + OPENING_LEN + SEALED_LEN;

const VERSION: u8 = 1;
const DH_LEN: usize = 32;
const AEAD_TAG_LEN: usize = 16;
/// Bytes of every message once it is padded.
const PADDED_LEN: usize = 1536;
const SEALED_LEN: usize = PADDED_LEN + AEAD_TAG_LEN;
/// Kind, X25519 key, and with the server's key an encrypted secret.
const OPENING_LEN: usize = DISCOVERY_LEN + CIPHERTEXT_LEN;
const DISCOVERY_LEN: usize = 1 + DH_LEN;

const KIND_SEALED: u8 = 1;
const KIND_DISCOVERY: u8 = 2;

const LABEL: &[u8] = b"bulbil/1 auth";
const BINDING_CONTEXT: &[u8] = b"bulbil/1 auth channel";
const KEYS_INFO: &[u8] = b"bulbil/1 auth keys";

const _: () = assert!(LENGTH_LEN + MESSAGE_MAX_LEN <= PADDED_LEN);
const _: () = assert!(FRAME_MAX_LEN - LENGTH_LEN <= u16::MAX as usize);

/// The peer's bytes do not belong here. One reason for all, and nothing more is accepted: close the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChannelFailed;

impl core::fmt::Display for ChannelFailed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("not a frame of this connection")
    }
}

impl core::error::Error for ChannelFailed {}

/// What names one channel: a hash over everything that opened it, the server's key included. Signatures and answers are
/// made for one channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding([u8; 32]);

impl Binding {
    #[cfg(test)]
    pub(super) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(super) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What the server says when a client connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    bytes: [u8; GREETING_LEN],
    parameters: KdfParameters,
    dh: [u8; DH_LEN],
}

impl Greeting {
    /// The greeting that `bytes` are.
    ///
    /// # Errors
    /// [`WireError::UnknownCode`] for another version, [`WireError::Invalid`] for parameters outside the client's bounds.
    pub fn parse(bytes: &[u8; GREETING_LEN]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != VERSION {
            return Err(WireError::UnknownCode);
        }
        let parameters = KdfParameters::parse(&mut reader)?;
        let dh = *reader.array()?;
        reader.end()?;
        Ok(Self { bytes: *bytes, parameters, dh })
    }

    /// How this server's passwords are hashed, as whoever greets says. Hash by
    /// [`Connection::parameters`](super::client::Connection::parameters), which the server has confirmed.
    #[must_use]
    pub const fn parameters(&self) -> KdfParameters {
        self.parameters
    }
}

/// The server's end of a connection on which it has greeted and heard nothing yet.
pub(super) struct Greeter {
    secret: StaticSecret,
    greeting: [u8; GREETING_LEN],
}

impl Greeter {
    pub(super) fn new(parameters: KdfParameters, rng: &mut dyn CryptoRng) -> Self {
        let secret = StaticSecret::random_from_rng(rng);
        let mut greeting = [0; GREETING_LEN];
        let mut writer = Writer::new(&mut greeting);
        let written = writer
            .put(&[VERSION])
            .and_then(|()| parameters.emit(&mut writer))
            .and_then(|()| writer.put(x25519_dalek::PublicKey::from(&secret).as_bytes()));
        written.expect("the length is that of the three");
        Self { secret, greeting }
    }

    pub(super) const fn greeting(&self) -> &[u8; GREETING_LEN] {
        &self.greeting
    }

    /// Opens the channel that the first frame (without its length) asks for, and answers where its first message is.
    pub(super) fn accept<'a>(
        self,
        server: &ServerSecret,
        frame: &'a mut [u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<(Channel, &'a [u8]), ChannelFailed> {
        let mut reader = Reader::new(frame);
        let failed = |_| ChannelFailed;
        let kind = reader.u8().map_err(failed)?;
        let dh = *reader.array::<DH_LEN>().map_err(failed)?;
        let ciphertext = match kind {
            KIND_SEALED => Some(*reader.array::<CIPHERTEXT_LEN>().map_err(failed)?),
            KIND_DISCOVERY => None,
            _ => return Err(ChannelFailed),
        };
        let opening = frame.len() - reader.remaining();
        // Before RSA: what nobody can have made costs little.
        if reader.remaining() != SEALED_LEN {
            return Err(ChannelFailed);
        }
        let mut secret = None;
        if let Some(ciphertext) = &ciphertext {
            secret = Some(server.receive(LABEL, ciphertext, rng).map_err(|_| ChannelFailed)?);
        }
        let rsa = ciphertext.as_ref().zip(secret.as_deref());
        let public = rsa.map(|_| server.public());
        let transcript = Transcript { greeting: &self.greeting, dh: &dh, rsa, server: public.as_ref() };
        let mut channel = transcript.channel(&self.secret, &dh, Side::Server)?;
        let message = channel.open(frame.get_mut(opening..).unwrap_or_default())?;
        Ok((channel, message))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

/// Everything that goes into a channel's name and keys.
struct Transcript<'a> {
    greeting: &'a [u8; GREETING_LEN],
    /// The client's X25519 key.
    dh: &'a [u8; DH_LEN],
    /// The secret, encrypted and as it is.
    rsa: Option<(&'a [u8; CIPHERTEXT_LEN], &'a [u8; 32])>,
    server: Option<&'a PublicKey>,
}

impl Transcript<'_> {
    fn channel(&self, own: &StaticSecret, peer: &[u8; DH_LEN], side: Side) -> Result<Channel, ChannelFailed> {
        let dh = own.diffie_hellman(&x25519_dalek::PublicKey::from(*peer));
        if !dh.was_contributory() {
            return Err(ChannelFailed);
        }
        let kind = if self.rsa.is_some() { KIND_SEALED } else { KIND_DISCOVERY };
        let mut hash = Sha256::new().chain_update(BINDING_CONTEXT).chain_update([kind]);
        hash.update(self.greeting);
        hash.update(self.dh);
        let mut secrets = Zeroizing::new([0; DH_LEN + 32]);
        let (first, second) = secrets.split_at_mut(DH_LEN);
        first.copy_from_slice(dh.as_bytes());
        if let (Some((ciphertext, secret)), Some(server)) = (self.rsa, self.server) {
            hash.update(ciphertext);
            hash.update(server.modulus());
            second.copy_from_slice(secret);
        }
        let binding = Binding(hash.finalize().into());
        let mut keys = Zeroizing::new([[0; 32]; 2]);
        Hkdf::<Sha256>::new(Some(binding.as_bytes()), secrets.as_slice())
            .expand(KEYS_INFO, keys.as_flattened_mut())
            .expect("HKDF gives up to 8160 bytes");
        let [client, server] = &*keys;
        let (own, peer) = if side == Side::Client { (client, server) } else { (server, client) };
        Ok(Channel {
            binding,
            authentic: self.rsa.is_some(),
            sealer: PortableAead::new(own),
            sealed: 0,
            opener: PortableAead::new(peer),
            opened: 0,
        })
    }
}

/// A channel between a client and the server: seals and opens messages in order.
pub(super) struct Channel {
    binding: Binding,
    authentic: bool,
    sealer: PortableAead,
    sealed: u64,
    opener: PortableAead,
    opened: u64,
}

impl Channel {
    /// The client's end, and what its first frame has to begin with. Without `server` only discovery is possible.
    pub(super) fn connect(
        greeting: &Greeting,
        server: Option<&PublicKey>,
        rng: &mut dyn CryptoRng,
    ) -> Result<(Self, Opening), ChannelFailed> {
        let own = StaticSecret::random_from_rng(rng);
        let dh = x25519_dalek::PublicKey::from(&own).to_bytes();
        let sent = server.map(|server| transport::send(server.modulus(), LABEL, rng)).transpose();
        let sent = sent.map_err(|_| ChannelFailed)?;
        let rsa = sent.as_ref().map(|(ciphertext, secret)| (ciphertext, &**secret));
        let transcript = Transcript { greeting: &greeting.bytes, dh: &dh, rsa, server };
        let channel = transcript.channel(&own, &greeting.dh, Side::Client)?;
        let mut bytes = [0; OPENING_LEN];
        let mut writer = Writer::new(&mut bytes);
        let kind = if rsa.is_some() { KIND_SEALED } else { KIND_DISCOVERY };
        let written = writer
            .put(&[kind])
            .and_then(|()| writer.put(&dh))
            .and_then(|()| rsa.map_or(Ok(()), |(ciphertext, _)| writer.put(ciphertext)));
        written.expect("the length is that of the three");
        let len = writer.len();
        Ok((channel, Opening { bytes, len }))
    }

    pub(super) const fn binding(&self) -> &Binding {
        &self.binding
    }

    /// Whether the server's key is part of the channel.
    pub(super) const fn is_authentic(&self) -> bool {
        self.authentic
    }

    /// Puts a frame with `message` into `frame`, behind `opening` if it is the first of a client.
    ///
    /// # Errors
    /// [`WireError::Invalid`] for content that is too long; nothing was sealed then.
    pub(super) fn seal(
        &mut self,
        message: &Message<'_>,
        opening: Option<&Opening>,
        frame: &mut Frame,
    ) -> Result<(), WireError> {
        let opening = opening.map_or(&[][..], Opening::as_bytes);
        let len = opening.len() + SEALED_LEN;
        let mut padded = Zeroizing::new([0; PADDED_LEN]);
        let (length, rest) = padded.split_at_mut(LENGTH_LEN);
        let mut writer = Writer::new(rest);
        message.emit(&mut writer)?;
        length.copy_from_slice(&(writer.len() as u16).to_be_bytes());
        writer.zero_rest();
        let tag = self.sealer.seal(self.sealed, padded.as_mut_slice());
        self.sealed += 1;

        let mut writer = Writer::new(&mut frame.bytes);
        writer.put(&(len as u16).to_be_bytes())?;
        writer.put(opening)?;
        writer.put(padded.as_slice())?;
        writer.put(&tag)?;
        frame.len = writer.len();
        Ok(())
    }

    /// The message in the next frame (without its length).
    pub(super) fn open<'a>(&mut self, sealed: &'a mut [u8]) -> Result<&'a [u8], ChannelFailed> {
        let (padded, tag) = sealed.split_last_chunk_mut().ok_or(ChannelFailed)?;
        if padded.len() != PADDED_LEN {
            return Err(ChannelFailed);
        }
        self.opener.open(self.opened, padded, tag).map_err(|_| ChannelFailed)?;
        self.opened += 1;
        let mut reader = Reader::new(padded);
        let len = reader.u16().map_err(|_| ChannelFailed)?;
        let message = reader.take(len.into()).map_err(|_| ChannelFailed)?;
        reader.end_zeros().map_err(|_| ChannelFailed)?;
        Ok(message)
    }
}

/// What a client's first frame begins with.
pub(super) struct Opening {
    bytes: [u8; OPENING_LEN],
    len: usize,
}

impl Opening {
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Room for one frame to be sent, its length field included. May be used again for the next.
pub struct Frame {
    bytes: [u8; FRAME_MAX_LEN],
    len: usize,
}

impl Frame {
    /// An empty frame.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; FRAME_MAX_LEN], len: 0 }
    }
}

impl Default for Frame {
    fn default() -> Self {
        Self::new()
    }
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Which frames may come next, by the length that stands in front of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// At the server: one that opens a channel.
    Opening,
    /// Any other.
    Sealed,
}

impl Expected {
    /// How many bytes follow the length field.
    pub(super) fn frame_len(self, field: [u8; LENGTH_LEN]) -> Result<usize, ChannelFailed> {
        let len = usize::from(u16::from_be_bytes(field));
        let allowed = match self {
            Self::Opening => len == OPENING_LEN + SEALED_LEN || len == DISCOVERY_LEN + SEALED_LEN,
            Self::Sealed => len == SEALED_LEN,
        };
        if allowed { Ok(len) } else { Err(ChannelFailed) }
    }
}

#[cfg(test)]
mod tests;
