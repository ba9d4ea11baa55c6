//! Which values of an encryption context a record shows.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::key::AuditKey;
use super::record::ContextValue;
use crate::context::EncryptionContext;

/// How the value of a pair of the encryption context appears in records. Its name always does,
/// and so does the name of a data domain, which operators choose.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Disclosure {
    /// As it is.
    Clear,
    /// As a hash with the key of the trail, which
    /// [`context_key`](super::AuditTrailBuilder::context_key) sets. Whoever holds that key can look
    /// for a value. Without it a hash cannot be guessed.
    Hashed,
    /// Not at all. The default.
    #[default]
    LeftOut,
}

/// The rule for each name.
#[derive(Debug, Default)]
pub(super) struct Disclosures {
    pub(super) usual: Disclosure,
    pub(super) by_name: BTreeMap<String, Disclosure>,
    pub(super) key: Option<AuditKey>,
}

impl Disclosures {
    /// Whether a value has to be hashed, so that a key is needed.
    pub(super) fn hashes(&self) -> bool {
        std::iter::once(&self.usual)
            .chain(self.by_name.values())
            .any(|how| *how == Disclosure::Hashed)
    }

    pub(super) fn shown(&self, context: &EncryptionContext) -> BTreeMap<String, ContextValue> {
        let pairs = context.iter();
        pairs.map(|(name, value)| (name.to_owned(), self.shown_value(name, value))).collect()
    }

    fn shown_value(&self, name: &str, value: &str) -> ContextValue {
        match (self.by_name.get(name).unwrap_or(&self.usual), &self.key) {
            (Disclosure::Clear, _) => ContextValue::Clear(value.to_owned()),
            (Disclosure::Hashed, Some(key)) => {
                let hmac = key.hash_value(name, value).ok();
                hmac.map_or(ContextValue::LeftOut, |hmac| ContextValue::Hashed { hmac })
            }
            // Without its key the builder refuses `Hashed`.
            (Disclosure::Hashed, None) | (Disclosure::LeftOut, _) => ContextValue::LeftOut,
        }
    }
}
