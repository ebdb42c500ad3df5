//! Descriptors that somebody has verified already. Every node checks every signature on a real machine; here each distinct descriptor is
//! checked once, and whoever gets the same bytes gets the same proof. It cannot be had in another way.

use std::collections::HashMap;
use std::sync::Arc;

use bulbil_core::phonebook::{DescriptorError, VerifiedDescriptor};
use bulbil_core::wire::descriptor::DESCRIPTOR_MAX_LEN;
use bulbil_core::wire::{Descriptor, UnixTime};
use sha2::{Digest, Sha256};

/// A verified descriptor as phonebooks hold it.
pub type Card = Arc<VerifiedDescriptor>;

/// Every distinct descriptor that was verified, by the hash of all its bytes.
#[derive(Default)]
pub struct Registry {
    known: HashMap<[u8; 32], Option<Card>>,
    /// Signatures really checked.
    pub checked: u64,
    /// Checks asked for.
    pub asked: u64,
}

impl Registry {
    /// What [`VerifiedDescriptor::verify`] says.
    ///
    /// # Errors
    /// As there.
    pub fn verify(&mut self, descriptor: &Descriptor, now: UnixTime) -> Result<Card, DescriptorError> {
        let card = self.verify_stored(descriptor)?;
        card.judge_validity(now)?;
        Ok(card)
    }

    /// What [`VerifiedDescriptor::verify_stored`] says.
    ///
    /// # Errors
    /// As there.
    pub fn verify_stored(&mut self, descriptor: &Descriptor) -> Result<Card, DescriptorError> {
        self.asked += 1;
        let Some(hash) = hash(descriptor) else {
            return VerifiedDescriptor::verify_stored(descriptor.clone()).map(Arc::new);
        };
        let checked = &mut self.checked;
        let known = self.known.entry(hash).or_insert_with(|| {
            *checked += 1;
            VerifiedDescriptor::verify_stored(descriptor.clone()).ok().map(Arc::new)
        });
        known.clone().ok_or(DescriptorError::Signature)
    }

    /// The handle that everybody shares of a descriptor verified elsewhere.
    pub fn share(&mut self, verified: &VerifiedDescriptor) -> Card {
        let Some(hash) = hash(verified.descriptor()) else { return Arc::new(verified.clone()) };
        let known = self.known.entry(hash).or_default();
        Arc::clone(known.get_or_insert_with(|| Arc::new(verified.clone())))
    }

    /// Forgets what nobody holds any more.
    pub fn tidy(&mut self) {
        self.known.retain(|_, card| card.as_ref().is_some_and(|card| Arc::strong_count(card) > 1));
    }
}

fn hash(descriptor: &Descriptor) -> Option<[u8; 32]> {
    let mut bytes = [0; DESCRIPTOR_MAX_LEN];
    let len = descriptor.emit(&mut bytes).ok()?;
    Some(Sha256::digest(&bytes[..len]).into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may panic")]

    use bulbil_core::wire::OnionKeyKind;

    use super::*;
    use crate::fixture;

    #[test]
    fn one_check_serves_all_and_says_what_the_real_one_says() {
        let mut registry = Registry::default();
        let good = Descriptor::parse(fixture::descriptor(0, OnionKeyKind::XWing)).unwrap();
        let mut forged = good.clone();
        forged.sequence += 1;
        for _ in 0..3 {
            let card = registry.verify(&good, fixture::EPOCH).unwrap();
            assert_eq!((card.node(), card.descriptor()), (good.node_id(), &good));
            assert_eq!(registry.verify(&forged, fixture::EPOCH).unwrap_err(), DescriptorError::Signature);
        }
        assert_eq!((registry.checked, registry.asked), (2, 6));
        let late = UnixTime(good.valid_until.0 + 61);
        assert_eq!(registry.verify(&good, late).unwrap_err(), DescriptorError::Expired);
        let early = UnixTime(good.valid_from.0 - 61);
        assert_eq!(registry.verify(&good, early).unwrap_err(), DescriptorError::NotYetValid);
        registry.tidy();
        let card = registry.verify(&good, fixture::EPOCH).unwrap();
        assert_eq!(registry.checked, 3, "nobody held it");
        assert!(Arc::ptr_eq(&card, &registry.share(&card)));
    }
}
