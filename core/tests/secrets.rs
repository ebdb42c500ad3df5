//! Secrets are wiped when they are dropped, and nothing can print them: they reach neither the memory of a later owner nor a log by
//! accident (`PROTOCOL.md` section 15).

use core::fmt::Debug;

use bulbil_core::auth::key::SessionSecret;
use bulbil_core::auth::{PasswordKey, ServerSecret, UserRecord};
use bulbil_core::crypto::SecretBytes;
use bulbil_core::crypto::cgo::{ClientBackward, ClientForward, RelayBackward, RelayForward, Seed};
use bulbil_core::crypto::identity::IdentitySecret;
use bulbil_core::crypto::kem::{OnionKeys, RsaOnionSecret, XWingSecret};
use bulbil_core::crypto::onion::HopKeys;
use bulbil_core::crypto::transport::TransportSecret;
use bulbil_core::link::{LinkSecret, PortableAead, RecordKey, SessionKeys};
use bulbil_core::phonebook::BookKey;
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// A type that can be printed has the method of both implementations, so that naming it does not compile.
trait Printed<A> {
    fn method() {}
}

impl<T> Printed<()> for T {}
impl<T: Debug> Printed<u8> for T {}

macro_rules! cannot_be_printed {
    ($($secret:ty),* $(,)?) => {
        $(<$secret as Printed<_>>::method();)*
    };
}

/// The types that others take their secrets' bytes from. (What is private and has a `Drop` of its own, as the link's KEM key, cannot be named here.)
#[test]
fn secrets_are_wiped() {
    fn wiped<T: ZeroizeOnDrop>() {}
    wiped::<Seed>();
    wiped::<XWingSecret>();
    wiped::<rsa::RsaPrivateKey>();
    wiped::<x25519_dalek::StaticSecret>();
    wiped::<RecordKey>();
    wiped::<PasswordKey>();
    wiped::<BookKey>();
    wiped::<Zeroizing<[u8; 32]>>();
}

#[test]
fn secrets_cannot_be_printed() {
    cannot_be_printed!(Seed, HopKeys, RelayForward, RelayBackward, ClientForward, ClientBackward);
    cannot_be_printed!(XWingSecret, RsaOnionSecret, OnionKeys, IdentitySecret, TransportSecret, SecretBytes);
    cannot_be_printed!(LinkSecret, SessionKeys, RecordKey, PortableAead);
    cannot_be_printed!(PasswordKey, ServerSecret, SessionSecret, UserRecord);
    cannot_be_printed!(BookKey);
}
