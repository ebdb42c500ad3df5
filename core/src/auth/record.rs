//! A user as the server's storage keeps it, `PROTOCOL.md` section 17.5.

use super::key::{Fingerprint, PublicKey};
use super::name::{USERNAME_MAX_LEN, Username};
use super::password::{PASSWORD_KEY_LEN, PasswordKey};
use super::status::SessionNumber;
use crate::wire::descriptor::RSA_LEN;
use crate::wire::{Reader, WireError, Writer};
use zeroize::{Zeroize, Zeroizing};

/// Bytes of an encoded record.
pub const RECORD_LEN: usize = 1
    + 8
    + 8
    + (1 + USERNAME_MAX_LEN)
    + PASSWORD_KEY_LEN
    + (1 + DEVICES_MAX * Fingerprint::LEN)
    + (1 + RSA_LEN)
    + (2 + NOTE_MAX_LEN);
/// The longest note in bytes.
pub const NOTE_MAX_LEN: usize = 1024;
/// Known session keys at most: of the one that signed up and those that signed in, the latest.
pub const DEVICES_MAX: usize = 4;

const VERSION: u8 = 1;
const DISCONNECTED: u8 = 0;
const CONNECTED: u8 = 1;

/// Counts the changes of a record, from 1. Storage replaces a record only by its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// Whether a user has a session.
#[derive(Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "without an allocator the key has to lie in place")]
pub enum Presence {
    /// Registered, and without a session.
    Disconnected,
    /// In the session that this key began. Only its holder may act and disconnect.
    Connected(PublicKey),
}

/// A registered user. Wiped when dropped, as far as it is secret.
#[derive(Clone, PartialEq, Eq)]
pub struct UserRecord {
    revision: Revision,
    sessions: SessionNumber,
    username: Username,
    key: PasswordKey,
    /// At least one.
    devices: heapless::Vec<Fingerprint, DEVICES_MAX, u8>,
    presence: Presence,
    note: Note,
}

impl UserRecord {
    /// A user who has just signed up with the holder of `session`: its key is known from the beginning.
    pub(super) fn new(username: Username, key: PasswordKey, session: &PublicKey) -> Self {
        Self {
            revision: Revision(1),
            sessions: SessionNumber(0),
            username,
            key,
            devices: heapless::Vec::from_array([session.fingerprint()]),
            presence: Presence::Disconnected,
            note: Note::empty(),
        }
    }

    /// Which of the record's versions this is.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// Whose record it is.
    #[must_use]
    pub const fn username(&self) -> &Username {
        &self.username
    }

    /// How many sessions there have been.
    #[must_use]
    pub const fn sessions(&self) -> SessionNumber {
        self.sessions
    }

    /// Whether the user has a session.
    #[must_use]
    pub const fn presence(&self) -> &Presence {
        &self.presence
    }

    pub(super) const fn key(&self) -> &PasswordKey {
        &self.key
    }

    pub(super) fn note(&self) -> &[u8] {
        self.note.as_ref()
    }

    /// Whether this is one of the [`DEVICES_MAX`] session keys that signed up or in last.
    pub(super) fn knows(&self, device: &Fingerprint) -> bool {
        self.devices.contains(device)
    }

    /// The record after a sign-in by the holder of `session`. `None` when the counters are at their end.
    pub(super) fn connected(&self, session: &PublicKey) -> Option<Self> {
        let mut next = self.successor()?;
        next.sessions = SessionNumber(self.sessions.0.checked_add(1)?);
        let device = session.fingerprint();
        next.devices.retain(|known| *known != device);
        next.devices.truncate(DEVICES_MAX - 1);
        next.devices.insert(0, device).expect("room was made for it");
        next.presence = Presence::Connected(session.clone());
        Some(next)
    }

    /// The record after the session's end.
    pub(super) fn disconnected(&self) -> Option<Self> {
        Some(Self { presence: Presence::Disconnected, ..self.successor()? })
    }

    /// The record with another note; `None` also if that is too long.
    pub(super) fn with_note(&self, note: &[u8]) -> Option<Self> {
        Some(Self { note: Note::new(note)?, ..self.successor()? })
    }

    fn successor(&self) -> Option<Self> {
        Some(Self { revision: Revision(self.revision.0.checked_add(1)?), ..self.clone() })
    }

    /// The record for storage. It holds the password key and the note: treat it as a secret.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<[u8; RECORD_LEN]> {
        let mut bytes = Zeroizing::new([0; RECORD_LEN]);
        let mut writer = Writer::new(bytes.as_mut_slice());
        self.emit(&mut writer).expect("the length is the sum of the fields'");
        bytes
    }

    fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        writer.put(&[VERSION])?;
        writer.put(&self.revision.0.to_be_bytes())?;
        writer.put(&self.sessions.0.to_be_bytes())?;
        writer.put(&[self.username.as_bytes().len() as u8])?;
        put_padded::<USERNAME_MAX_LEN>(writer, self.username.as_bytes())?;
        writer.put(self.key.as_bytes())?;
        writer.put(&[self.devices.len() as u8])?;
        self.devices.iter().try_for_each(|device| writer.put(device.as_bytes()))?;
        (self.devices.len()..DEVICES_MAX).try_for_each(|_| writer.put(&[0; Fingerprint::LEN]))?;
        let (presence, session) = match &self.presence {
            Presence::Disconnected => (DISCONNECTED, &[0; RSA_LEN]),
            Presence::Connected(session) => (CONNECTED, session.modulus()),
        };
        writer.put(&[presence])?;
        writer.put(session)?;
        writer.put(&self.note.len.to_be_bytes())?;
        writer.put(&self.note.bytes)
    }

    /// The record that storage kept.
    ///
    /// # Errors
    /// [`WireError`] for bytes that [`Self::encode`] does not give.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != VERSION {
            return Err(WireError::UnknownCode);
        }
        let revision = Revision(reader.u64()?);
        let sessions = SessionNumber(reader.u64()?);
        let len = reader.u8()?;
        let username = take_padded::<USERNAME_MAX_LEN>(&mut reader, len.into())?;
        let username = Username::new(core::str::from_utf8(username).map_err(|_| WireError::Invalid)?)?;
        let key = PasswordKey::new(*reader.array()?);
        let count = reader.u8()?;
        if !(1..=DEVICES_MAX).contains(&count.into()) {
            return Err(WireError::Invalid);
        }
        let mut devices = heapless::Vec::new();
        for index in 0..DEVICES_MAX {
            let device = Fingerprint::from_bytes(*reader.array()?);
            if index < usize::from(count) {
                devices.push(device).map_err(|_| WireError::Invalid)?;
            } else if *device.as_bytes() != [0; Fingerprint::LEN] {
                return Err(WireError::NotZero);
            }
        }
        let presence = match (reader.u8()?, reader.array::<RSA_LEN>()?) {
            (DISCONNECTED, [0, rest @ ..]) if rest.iter().all(|&byte| byte == 0) => Presence::Disconnected,
            (DISCONNECTED, _) => return Err(WireError::NotZero),
            (CONNECTED, session) => Presence::Connected(PublicKey::from_modulus(session)?),
            _ => return Err(WireError::UnknownCode),
        };
        let len = reader.u16()?;
        let note = Note::new(take_padded::<NOTE_MAX_LEN>(&mut reader, len.into())?).ok_or(WireError::Invalid)?;
        reader.end()?;
        if revision.0 == 0 {
            return Err(WireError::Invalid);
        }
        Ok(Self { revision, sessions, username, key, devices, presence, note })
    }
}

fn put_padded<const N: usize>(writer: &mut Writer<'_>, bytes: &[u8]) -> Result<(), WireError> {
    let mut padded = [0; N];
    padded.get_mut(..bytes.len()).ok_or(WireError::NoRoom)?.copy_from_slice(bytes);
    writer.put(&padded)
}

fn take_padded<'a, const N: usize>(reader: &mut Reader<'a>, len: usize) -> Result<&'a [u8], WireError> {
    let mut field = Reader::new(reader.take(N)?);
    let bytes = field.take(len).map_err(|_| WireError::Invalid)?;
    field.end_zeros()?;
    Ok(bytes)
}

/// A user's note; wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
struct Note {
    bytes: [u8; NOTE_MAX_LEN],
    len: u16,
}

impl Note {
    const fn empty() -> Self {
        Self { bytes: [0; NOTE_MAX_LEN], len: 0 }
    }

    fn new(text: &[u8]) -> Option<Self> {
        let mut note = Self::empty();
        note.bytes.get_mut(..text.len())?.copy_from_slice(text);
        note.len = text.len() as u16;
        Some(note)
    }
}

impl AsRef<[u8]> for Note {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

/// Storage could not be read or written. What it was is the storage's to report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StorageFailed;

/// What became of [`Users::replace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "a record that met a conflict is not stored"]
pub enum Replaced {
    /// The record is stored and survives a crash from now on.
    Stored,
    /// What is stored is not what was expected; nothing has changed.
    Conflict,
}

/// Where users are kept.
///
/// Implementations keep one record a username. They may serve several connections at once: [`Users::replace`] is what
/// keeps those apart.
pub trait Users {
    /// The record of `username`, or `None` if there is no such user.
    ///
    /// # Errors
    /// [`StorageFailed`].
    fn load(&mut self, username: &Username) -> Result<Option<UserRecord>, StorageFailed>;

    /// In one atomic and durable step: stores `record` as that of its username if the stored one has the revision
    /// `previous`, or, where that is `None`, if there is none.
    ///
    /// # Errors
    /// [`StorageFailed`]; the record is then stored whole or not at all.
    fn replace(&mut self, previous: Option<Revision>, record: &UserRecord) -> Result<Replaced, StorageFailed>;
}

#[cfg(test)]
mod tests;
