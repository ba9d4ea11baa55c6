//! Which values of an encryption context a record shows.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::key::AuditKey;
use super::of_domain::DomainAudit;
use super::record::ContextValue;
use crate::context::EncryptionContext;

/// How the value of a pair of the encryption context appears in records. Its name always does,
/// and so does the name of a data domain, which operators choose.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(rename_all = "kebab-case"))]
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

    /// What a record shows of a context. What its domain says counts more.
    pub(super) fn shown(
        &self,
        context: &EncryptionContext,
        domain: Option<&DomainAudit>,
    ) -> BTreeMap<String, ContextValue> {
        let shown = |name: &str| {
            domain
                .and_then(|domain| domain.shown(name))
                .or_else(|| self.by_name.get(name).copied())
                .or_else(|| domain.and_then(DomainAudit::usual))
                .unwrap_or(self.usual)
        };
        let value = |name: &str, value: &str| self.shown_value(shown(name), name, value);
        context.iter().map(|(name, text)| (name.to_owned(), value(name, text))).collect()
    }

    fn shown_value(&self, shown: Disclosure, name: &str, value: &str) -> ContextValue {
        match (shown, &self.key) {
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
