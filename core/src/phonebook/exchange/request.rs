//! What an asker says: which sample it wants, what it has already, and who it is if it wants to be known. `PROTOCOL.md` section 18.3.

use super::{EXCHANGE_VERSION, Filter, LENGTH_LEN, SALT_LEN, Salt, Want};
use crate::phonebook::exchange::FILTER_MAX_LEN;
use crate::wire::descriptor::DESCRIPTOR_MAX_LEN;
use crate::wire::{Descriptor, Reader, WireError, Writer};

/// Longest request in bytes. Whoever sends more is refused without another look.
pub const REQUEST_MAX_LEN: usize = 1 + 1 + 1 + SALT_LEN + LENGTH_LEN + FILTER_MAX_LEN + LENGTH_LEN + DESCRIPTOR_MAX_LEN;

/// Which nodes are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SampleKind {
    /// Any, at random.
    Random = 1,
    /// Those that stand first in the epoch, `PROTOCOL.md` section 18.6.
    Epoch = 2,
}

impl SampleKind {
    const fn from_code(code: u8) -> Result<Self, WireError> {
        match code {
            1 => Ok(Self::Random),
            2 => Ok(Self::Epoch),
            _ => Err(WireError::UnknownCode),
        }
    }
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// Which nodes are asked for.
    pub kind: SampleKind,
    /// How many of them at most.
    pub want: Want,
    /// What the asker has already.
    pub filter: Filter<'a>,
    /// The asker's own descriptor, if it wants to be passed on: the bytes of a [`Descriptor`], not verified.
    pub announcement: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    /// Reads a request that fills `bytes`, all that the asker said before its FIN. The announcement is taken apart, but not verified.
    ///
    /// # Errors
    /// [`WireError`]: the asker is told END 11.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != EXCHANGE_VERSION {
            return Err(WireError::UnknownCode);
        }
        let kind = SampleKind::from_code(reader.u8()?)?;
        let want = Want::from_code(reader.u8()?)?;
        let salt = Salt(*reader.array()?);
        let len = usize::from(reader.u16()?);
        if len > FILTER_MAX_LEN {
            return Err(WireError::Invalid);
        }
        let filter = Filter::new(salt, reader.take(len)?)?;
        let len = usize::from(reader.u16()?);
        if len > DESCRIPTOR_MAX_LEN {
            return Err(WireError::Invalid);
        }
        let announcement = reader.take(len)?;
        reader.end()?;
        Self { kind, want, filter, announcement: (!announcement.is_empty()).then_some(announcement) }.checked()
    }

    /// Writes the request and returns its length in bytes, at most [`REQUEST_MAX_LEN`].
    ///
    /// # Errors
    /// [`WireError::NoRoom`]; otherwise what is wrong with the announcement.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<usize, WireError> {
        self.checked()?;
        let announcement = self.announcement.unwrap_or_default();
        let mut writer = Writer::new(buffer);
        writer.put(&[EXCHANGE_VERSION, self.kind as u8, self.want.value()])?;
        writer.put(&self.filter.salt().0)?;
        for field in [self.filter.as_bytes(), announcement] {
            let len = u16::try_from(field.len()).map_err(|_| WireError::Invalid)?;
            writer.put(&len.to_be_bytes())?;
            writer.put(field)?;
        }
        Ok(writer.len())
    }

    /// The invariants that the fields' types do not carry.
    fn checked(self) -> Result<Self, WireError> {
        self.announced().transpose()?;
        Ok(self)
    }

    /// The asker's descriptor, to be verified before it is believed.
    ///
    /// # Errors
    /// [`WireError`] if it is malformed, which it is not in a request that was parsed.
    pub fn announced(&self) -> Option<Result<Descriptor, WireError>> {
        self.announcement.map(Descriptor::parse)
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::super::super::testing::descriptor;
    use super::*;
    use crate::wire::testing::{any_descriptor, assert_rejects_misfits, mutated};

    fn bytes_of(descriptor: &Descriptor) -> Vec<u8> {
        let mut buffer = [0; DESCRIPTOR_MAX_LEN];
        let len = descriptor.emit(&mut buffer).unwrap();
        buffer[..len].to_vec()
    }

    fn request<'a>(bits: &'a [u8], announcement: Option<&'a [u8]>) -> Request<'a> {
        Request {
            kind: SampleKind::Random,
            want: Want::new(100).unwrap(),
            filter: Filter::new(Salt([1, 2, 3, 4, 5, 6, 7, 8]), bits).unwrap(),
            announcement,
        }
    }

    fn emitted(request: &Request<'_>) -> Vec<u8> {
        let mut buffer = [0xa5; REQUEST_MAX_LEN];
        let len = request.emit(&mut buffer).unwrap();
        assert!(buffer[len..].iter().all(|&byte| byte == 0xa5), "wrote past its length");
        for short in 0..len {
            assert_eq!(request.emit(&mut vec![0; short]), Err(WireError::NoRoom));
        }
        buffer[..len].to_vec()
    }

    #[test]
    fn layout_is_as_specified() {
        let bytes = emitted(&request(&[0xaa, 0xbb, 0xcc], None));
        assert_eq!(bytes, [1, 1, 100, 1, 2, 3, 4, 5, 6, 7, 8, 0, 3, 0xaa, 0xbb, 0xcc, 0, 0]);
        let own = bytes_of(&descriptor(1));
        let epoch = Request { kind: SampleKind::Epoch, want: Want::MAX, ..request(&[], Some(&own)) };
        let bytes = emitted(&epoch);
        assert_eq!(bytes[..15], [1, 2, 128, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, (own.len() >> 8) as u8, own.len() as u8]);
        assert_eq!(bytes[15..], own);
        assert_eq!(Request::parse(&bytes), Ok(epoch));
        assert_eq!(epoch.announced(), Some(Ok(descriptor(1))));
    }

    #[test]
    fn every_truncation_and_extension_is_rejected() {
        let own = bytes_of(&descriptor(1));
        for request in [request(&[], None), request(&[7; 20], None), request(&[7; 20], Some(&own))] {
            let bytes = emitted(&request);
            assert_eq!(Request::parse(&bytes), Ok(request));
            assert_rejects_misfits(&bytes, |input| Request::parse(input).map(|_| ()));
        }
    }

    #[test]
    fn the_longest_request_is_as_long_as_is_said() {
        let mut own = descriptor(1);
        own.addresses = (1..=4).map(|port| core::net::SocketAddr::from(([7; 8], port))).collect();
        own.roles.exit = true;
        own.exit_ports = (1..=8).map(|port| crate::wire::PortRange::single(2 * port).unwrap()).collect();
        let own = bytes_of(&own);
        let bytes = emitted(&request(&[0xff; FILTER_MAX_LEN], Some(&own)));
        assert_eq!(bytes.len(), REQUEST_MAX_LEN);
        assert!(Request::parse(&bytes).is_ok());
    }

    #[test]
    fn code_points_and_bounds_are_checked() {
        let own = bytes_of(&descriptor(1));
        let bytes = emitted(&request(&[7; 20], Some(&own)));
        for byte in 0..=u8::MAX {
            let with = |position: usize| {
                let mut bytes = bytes.clone();
                bytes[position] = byte;
                Request::parse(&bytes).err()
            };
            assert_eq!(with(0).is_none(), byte == 1, "version {byte}");
            assert_eq!(with(1).is_none(), byte == 1 || byte == 2, "kind {byte}");
            assert_eq!(with(2).is_none(), (1..=128).contains(&byte), "want {byte}");
        }
        let mut long = bytes[..11].to_vec();
        long.extend_from_slice(&4097u16.to_be_bytes());
        long.extend_from_slice(&[0; 4097 + 2]);
        assert_eq!(Request::parse(&long), Err(WireError::Invalid));
        let mut long = bytes[..11].to_vec();
        long.extend_from_slice(&[0, 0]);
        long.extend_from_slice(&(DESCRIPTOR_MAX_LEN as u16 + 1).to_be_bytes());
        long.extend_from_slice(&[0; DESCRIPTOR_MAX_LEN + 1]);
        assert_eq!(Request::parse(&long), Err(WireError::Invalid));
    }

    #[test]
    fn an_announcement_that_is_no_descriptor_is_refused_by_both_sides() {
        let mut own = bytes_of(&descriptor(1));
        let bytes = emitted(&request(&[], Some(&own)));
        for announcement in [&[][..], &own[..own.len() - 1]] {
            assert!(request(&[], Some(announcement)).emit(&mut [0; REQUEST_MAX_LEN]).is_err());
        }
        own[0] = 2;
        assert_eq!(request(&[], Some(&own)).emit(&mut [0; REQUEST_MAX_LEN]), Err(WireError::UnknownCode));
        let mut spoilt = bytes;
        spoilt[15] = 2;
        assert_eq!(Request::parse(&spoilt), Err(WireError::UnknownCode));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn round_trips_and_has_no_second_spelling(
            (bytes, mutation) in (
                any::<bool>(),
                1..=128u8,
                any::<[u8; 8]>(),
                proptest::collection::vec(any::<u8>(), 0..100),
                proptest::option::of(any_descriptor()),
            )
            .prop_map(|(epoch, want, salt, bits, own)| {
                let own = own.map(|own| bytes_of(&own));
                let request = Request {
                    kind: if epoch { SampleKind::Epoch } else { SampleKind::Random },
                    want: Want::new(want).unwrap(),
                    filter: Filter::new(Salt(salt), &bits).unwrap(),
                    announcement: own.as_deref(),
                };
                let mut buffer = [0; REQUEST_MAX_LEN];
                let len = request.emit(&mut buffer).unwrap();
                assert_eq!(Request::parse(&buffer[..len]), Ok(request));
                buffer[..len].to_vec()
            })
            .prop_flat_map(|bytes| (Just(bytes.clone()), mutated(bytes)))
        ) {
            for bytes in [bytes, mutation] {
                if let Ok(request) = Request::parse(&bytes) {
                    let mut buffer = [0; REQUEST_MAX_LEN];
                    let len = request.emit(&mut buffer).unwrap();
                    prop_assert_eq!(&buffer[..len], &bytes);
                }
            }
        }
    }
}
