//! The proof that a descriptor is what its node signed.

use core::net::SocketAddr;

use rsa::{BoxedUint, Pss, RsaPublicKey};
use sha2::{Digest, Sha256};

use crate::wire::descriptor::{DESCRIPTOR_MAX_LEN, RSA_LEN, SIGNING_CONTEXT};
use crate::wire::{Descriptor, NodeId, UnixTime, WireError};

/// Why a descriptor is not acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DescriptorError {
    /// It holds values that `PROTOCOL.md` section 3 forbids.
    Malformed(WireError),
    /// Its validity begins in the future.
    NotYetValid,
    /// Its validity is over.
    Expired,
    /// The identity did not sign it.
    Signature,
}

impl core::fmt::Display for DescriptorError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Malformed(error) => write!(f, "malformed descriptor: {error}"),
            Self::NotYetValid => f.write_str("descriptor is not yet valid"),
            Self::Expired => f.write_str("descriptor expired"),
            Self::Signature => f.write_str("descriptor is not signed by its node"),
        }
    }
}

impl core::error::Error for DescriptorError {}

/// A descriptor whose signature and validity were checked, with the node id that follows from its identity.
#[derive(Debug, Clone)]
pub struct VerifiedDescriptor {
    descriptor: Descriptor,
    node: NodeId,
}

impl VerifiedDescriptor {
    /// Checks a descriptor: validity (60 seconds of grace) first, because it costs nothing, then the signature.
    ///
    /// # Errors
    /// [`DescriptorError`].
    pub fn verify(descriptor: Descriptor, now: UnixTime) -> Result<Self, DescriptorError> {
        judge_validity(&descriptor, now)?;
        Self::verify_stored(descriptor)
    }

    /// Checks a descriptor out of the node's own storage: the signature, whatever the time. A node whose clock is wrong must not
    /// lose its phonebook for that.
    ///
    /// # Errors
    /// [`DescriptorError::Malformed`], [`DescriptorError::Signature`].
    pub fn verify_stored(descriptor: Descriptor) -> Result<Self, DescriptorError> {
        let mut signed = [0; DESCRIPTOR_MAX_LEN];
        let len = descriptor.emit_unsigned(&mut signed).map_err(DescriptorError::Malformed)?;
        let signed = signed.get(..len).unwrap_or_default();
        if !verify_signature(&descriptor.identity, &[SIGNING_CONTEXT, signed], &descriptor.signature) {
            return Err(DescriptorError::Signature);
        }
        Ok(Self { node: descriptor.node_id(), descriptor })
    }

    /// Whether `now` lies in its validity, 60 seconds of grace at either end.
    ///
    /// # Errors
    /// [`DescriptorError::NotYetValid`], [`DescriptorError::Expired`].
    pub fn judge_validity(&self, now: UnixTime) -> Result<(), DescriptorError> {
        judge_validity(&self.descriptor, now)
    }

    /// For tests of what happens to descriptors once they are verified.
    #[cfg(test)]
    pub(crate) fn unchecked(descriptor: Descriptor) -> Self {
        Self { node: descriptor.node_id(), descriptor }
    }

    /// The node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// Where the node is reached: the first of its addresses.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        *self.descriptor.addresses.first().expect("without an address there is nothing that could be signed")
    }

    /// The descriptor.
    #[must_use]
    pub const fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }
}

fn judge_validity(descriptor: &Descriptor, now: UnixTime) -> Result<(), DescriptorError> {
    if descriptor.is_expired_at(now) {
        Err(DescriptorError::Expired)
    } else if !descriptor.is_valid_at(now) {
        Err(DescriptorError::NotYetValid)
    } else {
        Ok(())
    }
}

/// Whether `signature` is RSA-PSS (SHA-256, MGF1-SHA-256, salt 32) over the concatenated `parts` by the key with the
/// modulus `identity` and the exponent 65537.
fn verify_signature(identity: &[u8; RSA_LEN], parts: &[&[u8]], signature: &[u8; RSA_LEN]) -> bool {
    let Ok(modulus) = BoxedUint::from_be_slice(identity, 8 * RSA_LEN as u32) else { return false };
    let Ok(key) = RsaPublicKey::new(modulus, BoxedUint::from(65_537u64)) else { return false };
    let mut digest = Sha256::new();
    parts.iter().for_each(|part| digest.update(part));
    key.verify(Pss::<Sha256>::new_with_salt(32), &digest.finalize(), signature).is_ok()
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::SeedableRng;
    use rsa::RsaPrivateKey;
    use rsa::traits::PublicKeyParts;

    use super::super::testing::{NOW, descriptor};
    use super::*;

    fn sign(descriptor: &mut Descriptor, key: &RsaPrivateKey, context: &[u8], salt: usize, rng: &mut ChaCha20Rng) {
        let mut signed = [0; DESCRIPTOR_MAX_LEN];
        let len = descriptor.emit_unsigned(&mut signed).unwrap();
        let hash = Sha256::new().chain_update(context).chain_update(&signed[..len]).finalize();
        let signature = key.sign_with_rng(rng, Pss::<Sha256>::new_with_salt(salt), &hash).unwrap();
        descriptor.signature.copy_from_slice(&signature);
    }

    fn signed() -> (Descriptor, RsaPrivateKey, ChaCha20Rng) {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let key = RsaPrivateKey::new(&mut rng, 2048).unwrap();
        let mut descriptor = descriptor(1);
        descriptor.identity.copy_from_slice(&key.n().to_be_bytes());
        sign(&mut descriptor, &key, SIGNING_CONTEXT, 32, &mut rng);
        (descriptor, key, rng)
    }

    fn error(descriptor: &Descriptor, now: UnixTime) -> Option<DescriptorError> {
        VerifiedDescriptor::verify(descriptor.clone(), now).err()
    }

    #[test]
    fn accepts_what_the_identity_signed_and_nothing_else() {
        let (valid, key, mut rng) = signed();
        let verified = VerifiedDescriptor::verify(valid.clone(), NOW).unwrap();
        assert_eq!(verified.node(), valid.node_id());
        assert_eq!(verified.descriptor(), &valid);

        let spoil: [fn(&mut Descriptor); 8] = [
            |d| d.sequence += 1,
            |d| d.valid_until.0 += 1,
            |d| d.link_key[31] ^= 1,
            |d| d.roles.constrained ^= true,
            |d| d.addresses[0].set_port(81),
            |d| d.identity[100] ^= 4,
            |d| d.signature = [0; RSA_LEN],
            |d| d.signature = [0xff; RSA_LEN],
        ];
        for (number, spoil) in spoil.into_iter().enumerate() {
            let mut descriptor = valid.clone();
            spoil(&mut descriptor);
            assert_eq!(error(&descriptor, NOW), Some(DescriptorError::Signature), "spoilt by {number}");
        }
        for position in (0..RSA_LEN).step_by(17) {
            let mut descriptor = valid.clone();
            descriptor.signature[position] ^= 0x10;
            assert_eq!(error(&descriptor, NOW), Some(DescriptorError::Signature), "byte {position}");
        }
        let mut other_context = valid.clone();
        sign(&mut other_context, &key, b"bulbil/1 receipt", 32, &mut rng);
        assert_eq!(error(&other_context, NOW), Some(DescriptorError::Signature));
        let mut other_salt = valid;
        sign(&mut other_salt, &key, SIGNING_CONTEXT, 20, &mut rng);
        assert_eq!(error(&other_salt, NOW), Some(DescriptorError::Signature));
    }

    #[test]
    fn validity_and_form_are_checked_before_the_signature() {
        let mut unsigned = descriptor(1);
        assert_eq!(error(&unsigned, NOW), Some(DescriptorError::Signature));
        assert_eq!(error(&unsigned, UnixTime(unsigned.valid_until.0 + 61)), Some(DescriptorError::Expired));
        unsigned.valid_from = UnixTime(NOW.0 + 61);
        unsigned.valid_until = UnixTime(NOW.0 + 62);
        assert_eq!(error(&unsigned, NOW), Some(DescriptorError::NotYetValid));
        let mut malformed = descriptor(1);
        malformed.addresses.clear();
        assert_eq!(error(&malformed, NOW), Some(DescriptorError::Malformed(WireError::Invalid)));
    }

    #[test]
    fn descriptors_made_elsewhere_verify() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/descriptor.json")).unwrap();
        let vectors = vectors["descriptors"].as_array().unwrap();
        assert_eq!(vectors.len(), 2);
        for vector in vectors {
            let bytes = hex::decode(vector["descriptor"].as_str().unwrap()).unwrap();
            let descriptor = Descriptor::parse(&bytes).unwrap();
            assert_eq!(descriptor.onion_key.kind() as u64, vector["onion_key_kind"].as_u64().unwrap());
            assert_eq!(hex::encode(descriptor.link_key), vector["link_key"].as_str().unwrap());
            assert_eq!(descriptor.addresses.len() as u64, vector["addresses"].as_u64().unwrap());
            assert_eq!(descriptor.exit_ports.len() as u64, vector["exit_ranges"].as_u64().unwrap());
            let verified = VerifiedDescriptor::verify(descriptor, UnixTime(1_700_000_000)).unwrap();
            assert_eq!(verified.node(), vector["node"].as_str().unwrap().parse().unwrap());
        }
    }
}
