//! The topology of every message, `PROTOCOL.md` section 17.2: `encoding:tag:username:request:content`.

use base64ct::{Base64UrlUnpadded, Encoding as _};
use rand_core::CryptoRng;

use super::envelope::Binding;
use super::key::{DER_LEN, PublicKey, SessionSecret};
use super::name::{USERNAME_MAX_LEN, Username};
use crate::crypto::identity::{BadSignature, SIGNATURE_LEN, Signature, SigningFailed};
use crate::wire::{WireError, Writer};

/// The longest content in bytes.
pub const CONTENT_MAX_LEN: usize = 1100;
/// Bytes of a tag that is not empty: 256 bytes in base64url without padding.
pub const TAG_LEN: usize = (SIGNATURE_LEN * 4).div_ceil(3);
/// The longest message in bytes.
pub const MESSAGE_MAX_LEN: usize = 1 + TAG_LEN + USERNAME_MAX_LEN + REQUEST_MAX_LEN + CONTENT_MAX_LEN + 4;

/// `public_key`, `disconnect`.
const REQUEST_MAX_LEN: usize = 10;
const SIGNATURE_CONTEXT: &[u8] = b"bulbil/1 auth message";
const SEPARATOR: u8 = b':';

/// What a message asks for, or what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// Asks for the server's public key; the reply carries it.
    PublicKey,
    /// Asks for an account.
    SignUp,
    /// Begins to sign in; carries the session's public key.
    SignIn,
    /// From the server the challenge, from the client the answer to it.
    Challenge,
    /// Reads or writes the user's note; the reply to reading carries it.
    Act,
    /// Ends the session.
    Disconnect,
    /// From the server: how it went.
    Log,
}

impl Request {
    const ALL: [Self; 7] =
        [Self::PublicKey, Self::SignUp, Self::SignIn, Self::Challenge, Self::Act, Self::Disconnect, Self::Log];

    /// The request as it is spelled.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PublicKey => "public_key",
            Self::SignUp => "sign_up",
            Self::SignIn => "sign_in",
            Self::Challenge => "challenge",
            Self::Act => "act",
            Self::Disconnect => "disconnect",
            Self::Log => "log",
        }
    }
}

/// What follows the fourth colon, of one of the three encodings. It may contain colons.
#[derive(Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "without an allocator the key has to lie in place")]
pub enum Content<'a> {
    /// Encoding 0: any bytes.
    Raw(&'a [u8]),
    /// Encoding 1: UTF-8.
    Text(&'a str),
    /// Encoding 2: a public key in DER.
    Key(PublicKey),
}

/// Tells the kind and the length: content may be a password key or a note.
impl core::fmt::Debug for Content<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Raw(bytes) => write!(f, "Raw({} bytes)", bytes.len()),
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Key(_) => f.write_str("Key"),
        }
    }
}

impl Content<'_> {
    const fn encoding(&self) -> u8 {
        match self {
            Self::Raw(_) => b'0',
            Self::Text(_) => b'1',
            Self::Key(_) => b'2',
        }
    }

    /// The bytes of the content; those of a key are put into `der`.
    fn bytes<'b>(&'b self, der: &'b mut [u8; DER_LEN]) -> &'b [u8] {
        match self {
            Self::Raw(bytes) => bytes,
            Self::Text(text) => text.as_bytes(),
            Self::Key(key) => {
                *der = key.to_der();
                der
            }
        }
    }
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageError {
    /// Fewer than four colons.
    Unfinished,
    /// An encoding that is not 0, 1 or 2.
    UnknownEncoding,
    /// A tag that is neither empty nor a signature in base64url without padding.
    BadTag,
    /// A username of a wrong length or with other characters.
    BadUsername,
    /// A request that is not of the set.
    UnknownRequest,
    /// Content longer than [`CONTENT_MAX_LEN`].
    TooLong,
    /// Content that is not what its encoding says.
    WrongEncoding,
}

impl core::fmt::Display for MessageError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Unfinished => "message ends before its content",
            Self::UnknownEncoding => "unknown encoding",
            Self::BadTag => "malformed tag",
            Self::BadUsername => "malformed username",
            Self::UnknownRequest => "unknown request",
            Self::TooLong => "content is too long",
            Self::WrongEncoding => "content is not what its encoding says",
        })
    }
}

impl core::error::Error for MessageError {}

/// A message. Whatever can be built can be emitted, unless its content is longer than [`CONTENT_MAX_LEN`].
#[derive(Clone, PartialEq, Eq)]
pub struct Message<'a> {
    /// The signature over username, request and content, if there is one.
    pub tag: Option<Signature>,
    /// The user that the message concerns.
    pub username: Username,
    /// What it asks for or is.
    pub request: Request,
    /// The rest.
    pub content: Content<'a>,
}

/// Tells neither user nor content.
impl core::fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mut message = f.debug_struct("Message");
        message.field("signed", &self.tag.is_some()).field("request", &self.request).field("content", &self.content);
        message.finish_non_exhaustive()
    }
}

impl<'a> Message<'a> {
    /// A message without a signature.
    #[must_use]
    pub const fn unsigned(username: Username, request: Request, content: Content<'a>) -> Self {
        Self { tag: None, username, request, content }
    }

    /// A message signed by `session` for the connection of `binding`.
    ///
    /// # Errors
    /// [`SigningFailed`], see there.
    pub fn signed(
        username: Username,
        request: Request,
        content: Content<'a>,
        session: &SessionSecret,
        binding: &Binding,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, SigningFailed> {
        let mut message = Self::unsigned(username, request, content);
        let tag = session.sign(&message.signed_parts(binding, &mut [0; DER_LEN]), rng)?;
        message.tag = Some(tag);
        Ok(message)
    }

    /// Checks that the message was signed by `key` for the connection of `binding`.
    ///
    /// # Errors
    /// [`BadSignature`], also if there is none.
    pub fn verify(&self, key: &PublicKey, binding: &Binding) -> Result<(), BadSignature> {
        let tag = self.tag.as_ref().ok_or(BadSignature)?;
        key.verify(&self.signed_parts(binding, &mut [0; DER_LEN]), tag)
    }

    /// Context and binding have fixed lengths and usernames and requests no colon, so no two messages join to the same
    /// bytes.
    fn signed_parts<'b>(&'b self, binding: &'b Binding, der: &'b mut [u8; DER_LEN]) -> [&'b [u8]; 7] {
        let content = self.content.bytes(der);
        let request = self.request.as_str().as_bytes();
        [SIGNATURE_CONTEXT, binding.as_bytes(), self.username.as_bytes(), b":", request, b":", content]
    }

    /// The message that `bytes` are.
    ///
    /// # Errors
    /// [`MessageError`], see there.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, MessageError> {
        let (encoding, rest) = field(bytes)?;
        let (tag, rest) = field(rest)?;
        let (username, rest) = field(rest)?;
        let (request, content) = field(rest)?;
        let username = core::str::from_utf8(username).ok().and_then(|text| Username::new(text).ok());
        let request = Request::ALL.into_iter().find(|known| known.as_str().as_bytes() == request);
        Ok(Self {
            tag: parse_tag(tag)?,
            username: username.ok_or(MessageError::BadUsername)?,
            request: request.ok_or(MessageError::UnknownRequest)?,
            content: match encoding {
                _ if content.len() > CONTENT_MAX_LEN => return Err(MessageError::TooLong),
                b"0" => Content::Raw(content),
                b"1" => Content::Text(core::str::from_utf8(content).map_err(|_| MessageError::WrongEncoding)?),
                b"2" => Content::Key(PublicKey::from_der(content).map_err(|_| MessageError::WrongEncoding)?),
                _ => return Err(MessageError::UnknownEncoding),
            },
        })
    }

    /// Appends the message.
    ///
    /// # Errors
    /// [`WireError::Invalid`] for content that is too long, [`WireError::NoRoom`].
    pub fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        let mut der = [0; DER_LEN];
        let content = self.content.bytes(&mut der);
        if content.len() > CONTENT_MAX_LEN {
            return Err(WireError::Invalid);
        }
        writer.put(&[self.content.encoding(), SEPARATOR])?;
        if let Some(signature) = &self.tag {
            let mut tag = [0; TAG_LEN];
            let tag = Base64UrlUnpadded::encode(signature, &mut tag).map_err(|_| WireError::NoRoom)?;
            writer.put(tag.as_bytes())?;
        }
        writer.put(&[SEPARATOR])?;
        writer.put(self.username.as_bytes())?;
        writer.put(&[SEPARATOR])?;
        writer.put(self.request.as_str().as_bytes())?;
        writer.put(&[SEPARATOR])?;
        writer.put(content)
    }
}

/// What stands before the next colon, and what behind it.
fn field(bytes: &[u8]) -> Result<(&[u8], &[u8]), MessageError> {
    let at = bytes.iter().position(|&byte| byte == SEPARATOR).ok_or(MessageError::Unfinished)?;
    let (field, rest) = bytes.split_at(at);
    Ok((field, rest.split_first().map_or(&[], |(_, rest)| rest)))
}

fn parse_tag(tag: &[u8]) -> Result<Option<Signature>, MessageError> {
    if tag.is_empty() {
        return Ok(None);
    }
    if tag.len() != TAG_LEN {
        return Err(MessageError::BadTag);
    }
    let mut signature = [0; SIGNATURE_LEN];
    match Base64UrlUnpadded::decode(tag, &mut signature) {
        Ok(decoded) if decoded.len() == SIGNATURE_LEN => Ok(Some(signature)),
        _ => Err(MessageError::BadTag),
    }
}

#[cfg(test)]
mod tests;
