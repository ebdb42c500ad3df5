//! Identities from and to what the state directory keeps: PKCS#8 DER.

use bulbil_core::{
    crypto::{InvalidKey, identity::IdentitySecret},
    wire::NodeId,
};
use getrandom::SysRng;
use rand_core::UnwrapErr;
use zeroize::Zeroizing;

/// A fresh identity as PKCS#8 DER, from the system's generator. Takes from 10 to 300 ms.
///
/// # Panics
/// The system's generator fails, after which nothing secret can be made.
#[must_use]
pub fn generate() -> Zeroizing<Vec<u8>> {
    let identity = IdentitySecret::generate(&mut UnwrapErr(SysRng));
    Zeroizing::new(identity.to_pkcs8().as_ref().to_vec())
}

/// What the node with this identity is called.
///
/// # Errors
/// `der` is no RSA-2048 key in PKCS#8 DER.
pub fn fingerprint(der: &[u8]) -> Result<NodeId, InvalidKey> {
    Ok(IdentitySecret::from_pkcs8(der)?.node_id())
}
