//! Relay messages, `PROTOCOL.md` section 9: `command u8 || length u16 || data || zero padding`.
//!
//! DATA is the hot one. A sender reads its payload straight into [`data_room_mut`] and then puts the header with
//! [`emit_data_header`]; a receiver gets the payload as a slice of the cell.

use core::net::SocketAddr;

use super::address::{emit_address, parse_address};
use super::cell::BODY_LEN;
use super::descriptor::RSA_LEN;
use super::{Reader, Target, UnixTime, WireError, Writer};

/// Length in bytes of the tag that a relay cell's body begins with.
pub const TAG_LEN: usize = 16;
/// Length in bytes of a relay message with its padding.
pub const MESSAGE_LEN: usize = BODY_LEN - TAG_LEN;
/// Where a message's data begins, after command and length.
pub const DATA_OFFSET: usize = 1 + 2;
/// Most bytes of data in one message.
pub const DATA_MAX: usize = MESSAGE_LEN - DATA_OFFSET;

const _: () = assert!(MESSAGE_LEN == 493 && DATA_MAX == 490);
// The longest target leaves room for first bytes.
const _: () = assert!(1 + super::address::TARGET_MAX_LEN < DATA_MAX);

const BEGIN: u8 = 1;
const CONNECTED: u8 = 2;
const DATA: u8 = 3;
const FIN: u8 = 4;
const END: u8 = 5;
const DROP: u8 = 6;
const RECEIPT: u8 = 7;

const FLAG_SIGN: u8 = 1 << 0;
const FLAG_ONCE: u8 = 1 << 1;

/// What the client asks of the exit besides the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BeginOptions {
    /// Sign the answer: a RECEIPT follows it.
    pub sign: bool,
    /// Request-response: the circuit ends with the answer.
    pub once: bool,
}

impl BeginOptions {
    fn parse(flags: u8) -> Result<Self, WireError> {
        if flags & !(FLAG_SIGN | FLAG_ONCE) != 0 {
            return Err(WireError::NotZero);
        }
        Ok(Self { sign: flags & FLAG_SIGN != 0, once: flags & FLAG_ONCE != 0 })
    }

    const fn flags(self) -> u8 {
        (self.sign as u8 * FLAG_SIGN) | (self.once as u8 * FLAG_ONCE)
    }
}

/// Why a conversation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EndReason {
    /// Both sides said all they had to say.
    Done = 0,
    /// The target refused the connection.
    Refused = 1,
    /// The target's name has no address.
    NotResolved = 2,
    /// The exit's policy does not allow the target.
    Forbidden = 3,
    /// The target did not answer, or nothing moved for too long.
    TimedOut = 4,
    /// The target broke the connection off.
    Reset = 5,
    /// No route to the target.
    Unreachable = 6,
    /// The next hop on the path cannot be reached; said by the relay before it.
    NextHopUnreachable = 7,
    /// The link to the next hop broke; said by the relay before it.
    NextHopLost = 8,
    /// The node has no such service.
    NoService = 9,
    /// No room for another conversation.
    Busy = 10,
    /// Something came that the protocol does not allow.
    Protocol = 11,
    /// The node is shutting down.
    Shutdown = 12,
    /// The node failed.
    Internal = 13,
    /// The client does not want it any more.
    Cancelled = 14,
}

impl EndReason {
    /// Every reason, in the order of its code.
    pub const ALL: [Self; 15] = [
        Self::Done,
        Self::Refused,
        Self::NotResolved,
        Self::Forbidden,
        Self::TimedOut,
        Self::Reset,
        Self::Unreachable,
        Self::NextHopUnreachable,
        Self::NextHopLost,
        Self::NoService,
        Self::Busy,
        Self::Protocol,
        Self::Shutdown,
        Self::Internal,
        Self::Cancelled,
    ];

    /// The reason spelled on the wire as `code`.
    ///
    /// # Errors
    /// [`WireError::UnknownCode`].
    pub fn from_code(code: u8) -> Result<Self, WireError> {
        Self::ALL.get(usize::from(code)).copied().ok_or(WireError::UnknownCode)
    }

    /// The code on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl core::fmt::Display for EndReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Refused => "refused by the target",
            Self::NotResolved => "name not resolved",
            Self::Forbidden => "forbidden by the exit policy",
            Self::TimedOut => "timed out",
            Self::Reset => "reset by the target",
            Self::Unreachable => "target unreachable",
            Self::NextHopUnreachable => "next hop unreachable",
            Self::NextHopLost => "next hop lost",
            Self::NoService => "no such service",
            Self::Busy => "no room for another conversation",
            Self::Protocol => "protocol violation",
            Self::Shutdown => "node shutting down",
            Self::Internal => "internal failure",
            Self::Cancelled => "cancelled",
        })
    }
}

/// A relay message. Payloads stay where they are, in the cell.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "without an allocator the target has to lie in place; DATA never moves it"
)]
pub enum Message<'a> {
    /// Forward, first and once: connect to a target.
    Begin {
        /// How to answer.
        options: BeginOptions,
        /// What to connect to.
        target: Target,
        /// The first bytes for the target, at most [`begin_room`]; may be empty.
        first: &'a [u8],
    },
    /// Backward: the exit is connected.
    Connected {
        /// The address that the exit connected to.
        address: SocketAddr,
    },
    /// 1 to [`DATA_MAX`] bytes of the conversation.
    Data(&'a [u8]),
    /// The sender will send no more DATA.
    Fin,
    /// The conversation is over, both ways.
    End(EndReason),
    /// Padding inside the circuit, ignored.
    Drop,
    /// Backward: the exit's signature over request and answer.
    Receipt {
        /// When the exit signed.
        time: UnixTime,
        /// RSA-PSS by the exit's identity, over what section 9 lists.
        signature: &'a [u8; RSA_LEN],
    },
}

impl<'a> Message<'a> {
    /// Takes a message out of a decrypted relay cell.
    ///
    /// # Errors
    /// Unknown commands, lengths that do not fit the command, non-zero padding, invalid contents.
    #[inline]
    pub fn parse(message: &'a [u8; MESSAGE_LEN]) -> Result<Self, WireError> {
        let ([command, high, low], rest) = message.split_first_chunk::<DATA_OFFSET>().ok_or(WireError::Truncated)?;
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let (data, padding) = rest.split_at_checked(len).ok_or(WireError::Invalid)?;
        Reader::new(padding).end_zeros()?;
        if *command == DATA {
            return if data.is_empty() { Err(WireError::Invalid) } else { Ok(Self::Data(data)) };
        }
        Self::parse_control(*command, data)
    }

    /// All but DATA, kept out of the hot path.
    #[inline(never)]
    fn parse_control(command: u8, data: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(data);
        let message = match command {
            BEGIN => {
                let options = BeginOptions::parse(reader.u8()?)?;
                let target = Target::parse(&mut reader)?;
                Self::Begin { options, target, first: reader.rest() }
            }
            CONNECTED => Self::Connected { address: parse_address(&mut reader)? },
            FIN => Self::Fin,
            END => Self::End(EndReason::from_code(reader.u8()?)?),
            DROP => Self::Drop,
            RECEIPT => Self::Receipt { time: UnixTime(reader.u64()?), signature: reader.array()? },
            _ => return Err(WireError::UnknownCode),
        };
        reader.end()?;
        Ok(message)
    }

    /// Writes the message and its padding. After an error the content of `message` is meaningless.
    ///
    /// # Errors
    /// The caller's fault only: [`WireError::NoRoom`] for data that does not fit, [`WireError::Invalid`] for empty
    /// DATA and for port 0.
    pub fn emit(&self, message: &mut [u8; MESSAGE_LEN]) -> Result<(), WireError> {
        let (header, data) = message.split_first_chunk_mut::<DATA_OFFSET>().ok_or(WireError::NoRoom)?;
        let mut writer = Writer::new(data);
        let command = match self {
            Self::Begin { options, target, first } => {
                writer.put(&[options.flags()])?;
                target.emit(&mut writer)?;
                writer.put(first)?;
                BEGIN
            }
            Self::Connected { address } => {
                emit_address(*address, &mut writer)?;
                CONNECTED
            }
            Self::Data([]) => return Err(WireError::Invalid),
            Self::Data(data) => {
                writer.put(data)?;
                DATA
            }
            Self::Fin => FIN,
            Self::End(reason) => {
                writer.put(&[reason.code()])?;
                END
            }
            Self::Drop => DROP,
            Self::Receipt { time, signature } => {
                writer.put(&time.0.to_be_bytes())?;
                writer.put(*signature)?;
                RECEIPT
            }
        };
        let [high, low] = (writer.len() as u16).to_be_bytes();
        writer.zero_rest();
        *header = [command, high, low];
        Ok(())
    }
}

/// Most first bytes that fit into a BEGIN for `target`.
#[must_use]
pub fn begin_room(target: &Target) -> usize {
    DATA_MAX.saturating_sub(1 + target.encoded_len())
}

/// Where the payload of a DATA message lies, for reading it in from its source without a copy.
#[must_use]
pub fn data_room_mut(message: &mut [u8; MESSAGE_LEN]) -> &mut [u8; DATA_MAX] {
    message.last_chunk_mut().expect("the data is shorter than the message")
}

/// Makes a DATA message of the first `len` bytes that lie in its [`data_room_mut`]: writes header and padding.
///
/// # Errors
/// [`WireError::Invalid`] unless `len` is 1 to [`DATA_MAX`]; nothing is written then.
#[inline]
pub fn emit_data_header(message: &mut [u8; MESSAGE_LEN], len: usize) -> Result<(), WireError> {
    let (header, room) = message.split_first_chunk_mut::<DATA_OFFSET>().ok_or(WireError::NoRoom)?;
    let padding = room.get_mut(len..).ok_or(WireError::Invalid)?;
    if len == 0 {
        return Err(WireError::Invalid);
    }
    padding.fill(0);
    let [high, low] = (len as u16).to_be_bytes();
    *header = [DATA, high, low];
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::string::ToString;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::Host;
    use crate::wire::testing::{any_address, any_bytes, any_target, assert_rejects_padding};

    /// A message that owns its payload, for generating.
    #[derive(Debug, Clone)]
    enum Owned {
        Begin(BeginOptions, Target, Vec<u8>),
        Connected(SocketAddr),
        Data(Vec<u8>),
        Fin,
        End(EndReason),
        Drop,
        Receipt(UnixTime, [u8; RSA_LEN]),
    }

    impl Owned {
        fn message(&self) -> Message<'_> {
            match self {
                Self::Begin(options, target, first) => {
                    Message::Begin { options: *options, target: target.clone(), first }
                }
                Self::Connected(address) => Message::Connected { address: *address },
                Self::Data(data) => Message::Data(data),
                Self::Fin => Message::Fin,
                Self::End(reason) => Message::End(*reason),
                Self::Drop => Message::Drop,
                Self::Receipt(time, signature) => Message::Receipt { time: *time, signature },
            }
        }
    }

    fn any_message() -> impl Strategy<Value = Owned> {
        let begin = (any::<(bool, bool)>(), any_target()).prop_flat_map(|((sign, once), target)| {
            proptest::collection::vec(any::<u8>(), 0..=begin_room(&target))
                .prop_map(move |first| Owned::Begin(BeginOptions { sign, once }, target.clone(), first))
        });
        prop_oneof![
            begin,
            any_address().prop_map(Owned::Connected),
            proptest::collection::vec(any::<u8>(), 1..=DATA_MAX).prop_map(Owned::Data),
            Just(Owned::Fin),
            proptest::sample::select(&EndReason::ALL[..]).prop_map(Owned::End),
            Just(Owned::Drop),
            (any::<u64>(), any_bytes()).prop_map(|(time, signature)| Owned::Receipt(UnixTime(time), signature)),
        ]
    }

    fn emitted(message: &Message<'_>) -> [u8; MESSAGE_LEN] {
        let mut bytes = [0xa5; MESSAGE_LEN];
        message.emit(&mut bytes).unwrap();
        let mut other = [0x5a; MESSAGE_LEN];
        message.emit(&mut other).unwrap();
        assert_eq!(bytes, other, "left bytes unwritten");
        bytes
    }

    fn data_len(bytes: &[u8; MESSAGE_LEN]) -> usize {
        usize::from(u16::from_be_bytes([bytes[1], bytes[2]]))
    }

    /// `bytes` with another length field.
    fn with_len(bytes: &[u8; MESSAGE_LEN], len: u16) -> [u8; MESSAGE_LEN] {
        let mut bytes = *bytes;
        bytes[1..3].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    /// One message of every kind, those with a fixed length of data marked.
    fn samples() -> Vec<(Owned, bool)> {
        let name: Target = "example.org:443".parse().unwrap();
        let address: SocketAddr = "[2001:db8::1]:80".parse().unwrap();
        std::vec![
            (Owned::Begin(BeginOptions::default(), name, b"GET /".to_vec()), false),
            (Owned::Connected(address), true),
            (Owned::Data(std::vec![7; 100]), false),
            (Owned::Fin, true),
            (Owned::End(EndReason::Cancelled), true),
            (Owned::Drop, true),
            (Owned::Receipt(UnixTime(1_700_000_000), [9; RSA_LEN]), true),
        ]
    }

    #[test]
    fn layouts_are_as_specified() {
        let begin = Owned::Begin(
            BeginOptions { sign: true, once: true },
            Target::Tcp(Host::Ip([192, 0, 2, 1].into()), 80),
            b"hi".to_vec(),
        );
        let bytes = emitted(&begin.message());
        assert_eq!(bytes[..13], [1, 0, 10, 3, 1, 192, 0, 2, 1, 0, 80, b'h', b'i']);
        assert_eq!(emitted(&Message::Data(&[5, 6]))[..6], [3, 0, 2, 5, 6, 0]);
        assert_eq!(emitted(&Message::Fin)[..4], [4, 0, 0, 0]);
        assert_eq!(emitted(&Message::End(EndReason::Cancelled))[..5], [5, 0, 1, 14, 0]);
        assert_eq!(emitted(&Message::Drop)[..4], [6, 0, 0, 0]);
        let receipt = emitted(&Message::Receipt { time: UnixTime(2), signature: &[8; RSA_LEN] });
        assert_eq!(receipt[..12], [7, 1, 8, 0, 0, 0, 0, 0, 0, 0, 2, 8]);
    }

    #[test]
    fn every_kind_rejects_other_lengths_and_padding() {
        for (owned, fixed) in samples() {
            let bytes = emitted(&owned.message());
            let used = DATA_OFFSET + data_len(&bytes);
            assert_rejects_padding(&bytes, used, |bytes| Message::parse(bytes).map(|_| ()));
            // A shorter length turns the data's tail into padding: zero the tail, so that only the length is wrong.
            for len in 0..data_len(&bytes) {
                let mut shorter = with_len(&bytes, len as u16);
                assert!(Message::parse(&shorter).is_err(), "{owned:?} with the first {len} bytes of data");
                shorter[DATA_OFFSET + len..].fill(0);
                if fixed || len == 0 {
                    assert!(Message::parse(&shorter).is_err(), "{owned:?} cut to {len} bytes of data");
                }
            }
            if fixed {
                for len in data_len(&bytes) + 1..=DATA_MAX {
                    assert!(Message::parse(&with_len(&bytes, len as u16)).is_err(), "{owned:?} grown to {len} bytes");
                }
            }
            for len in DATA_MAX + 1..=usize::from(u16::MAX) {
                assert_eq!(Message::parse(&with_len(&bytes, len as u16)), Err(WireError::Invalid));
            }
        }
    }

    #[test]
    fn begin_rejects_every_cut_inside_its_target() {
        for target in ["example.org:443", "192.0.2.1:80", "[::1]:80", "phonebook"] {
            let target: Target = target.parse().unwrap();
            let bytes =
                emitted(&Message::Begin { options: BeginOptions::default(), target: target.clone(), first: &[] });
            for len in 0..=target.encoded_len() {
                let mut cut = with_len(&bytes, len as u16);
                cut[DATA_OFFSET + len..].fill(0);
                assert_eq!(Message::parse(&cut), Err(WireError::Truncated));
            }
        }
    }

    #[test]
    fn rejects_unknown_commands_flags_and_reasons() {
        for command in (0..=u8::MAX).filter(|command| !(1..=7).contains(command)) {
            let mut bytes = emitted(&Message::Fin);
            bytes[0] = command;
            assert_eq!(Message::parse(&bytes), Err(WireError::UnknownCode));
        }
        let (begin, _) = &samples()[0];
        for flags in 4..=u8::MAX {
            let mut bytes = emitted(&begin.message());
            bytes[DATA_OFFSET] = flags;
            assert_eq!(Message::parse(&bytes), Err(WireError::NotZero));
        }
        for code in 15..=u8::MAX {
            let mut bytes = emitted(&Message::End(EndReason::Done));
            bytes[DATA_OFFSET] = code;
            assert_eq!(Message::parse(&bytes), Err(WireError::UnknownCode));
        }
    }

    #[test]
    fn end_reasons_have_their_codes_and_their_own_texts() {
        for (code, reason) in EndReason::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(reason.code()), code);
            assert_eq!(EndReason::from_code(code as u8), Ok(reason));
            assert_eq!(EndReason::ALL.iter().filter(|other| other.to_string() == reason.to_string()).count(), 1);
        }
    }

    #[test]
    fn emits_nothing_that_does_not_fit() {
        let mut bytes = [0; MESSAGE_LEN];
        assert_eq!(Message::Data(&[]).emit(&mut bytes), Err(WireError::Invalid));
        assert_eq!(Message::Data(&[0; DATA_MAX + 1]).emit(&mut bytes), Err(WireError::NoRoom));
        let target: Target = "example.org:443".parse().unwrap();
        let first = std::vec![1; begin_room(&target) + 1];
        let begin = |first| Message::Begin { options: BeginOptions::default(), target: target.clone(), first };
        assert_eq!(begin(&first).emit(&mut bytes), Err(WireError::NoRoom));
        assert_eq!(begin(&first[1..]).emit(&mut bytes), Ok(()));
        assert_eq!(emit_data_header(&mut bytes, 0), Err(WireError::Invalid));
        assert_eq!(emit_data_header(&mut bytes, DATA_MAX + 1), Err(WireError::Invalid));
        assert_eq!(emit_data_header(&mut bytes, usize::MAX), Err(WireError::Invalid));
    }

    #[test]
    fn sizes_are_pinned() {
        assert!(size_of::<Message<'_>>() <= 304, "{}", size_of::<Message<'_>>());
        assert!(size_of::<Target>() <= 272, "{}", size_of::<Target>());
        assert_eq!(size_of::<EndReason>(), 1);
    }

    proptest! {
        #[test]
        fn round_trips(owned in any_message()) {
            let bytes = emitted(&owned.message());
            prop_assert_eq!(Message::parse(&bytes), Ok(owned.message()));
        }

        #[test]
        fn data_header_over_payload_is_the_same_message(data in proptest::collection::vec(any::<u8>(), 1..=DATA_MAX)) {
            let mut bytes = [0xa5; MESSAGE_LEN];
            data_room_mut(&mut bytes)[..data.len()].copy_from_slice(&data);
            emit_data_header(&mut bytes, data.len()).unwrap();
            prop_assert_eq!(bytes, emitted(&Message::Data(&data)));
        }

        #[test]
        fn has_no_second_spelling(
            owned in any_message(),
            changes in proptest::collection::vec((0..40usize, any::<u8>()), 0..4),
        ) {
            let mut bytes = emitted(&owned.message());
            for (position, byte) in changes {
                bytes[position] = byte;
            }
            if let Ok(message) = Message::parse(&bytes) {
                prop_assert_eq!(emitted(&message), bytes);
            }
        }
    }
}
