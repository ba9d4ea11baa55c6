//! Which values of an encryption context a record shows, and the settings of a data domain.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use super::key::AuditKey;
use super::record::ContextValue;
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};

/// The shortest interval between summaries.
pub(super) const SHORTEST_SUMMARY: Duration = Duration::from_secs(1);

/// How the value of a pair of the encryption context appears in records. The name always appears,
/// and so does the name of a data domain, which operators choose.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Disclosure {
    /// In the clear.
    Clear,
    /// As a hash with the trail's key, which [`context_key`](super::AuditTrailBuilder::context_key)
    /// sets. Anyone with that key can search for a value. Without it the value cannot be guessed
    /// from the hash.
    Hashed,
    /// Not at all. The default.
    #[default]
    LeftOut,
}

/// The audit trail's settings for one data domain. Unset options come from the trail's builder.
///
/// ```
/// use std::time::Duration;
/// use waxseal::audit::Disclosure;
/// use waxseal::domain::{DomainAudit, DomainConfig};
///
/// let settings = DomainAudit::default()
///     .context_value("table", Disclosure::Clear)
///     .context_value("tenant", Disclosure::Hashed)
///     .access_summaries(Duration::from_secs(10));
/// let config = DomainConfig::default()
///     .wrap_with("local:/var/lib/app/orders.kek?name=orders")
///     .audit(settings);
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
#[must_use]
pub struct DomainAudit {
    context_values: BTreeMap<String, Disclosure>,
    other_context_values: Option<Disclosure>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration"))]
    access_summaries: Option<Duration>,
}

impl DomainAudit {
    /// Sets how the value of one name of the encryption context appears in records.
    pub fn context_value(mut self, name: impl Into<String>, shown: Disclosure) -> Self {
        self.context_values.insert(name.into(), shown);
        self
    }

    /// Sets how values appear whose names neither the domain nor the trail lists.
    pub fn other_context_values(mut self, shown: Disclosure) -> Self {
        self.other_context_values = Some(shown);
        self
    }

    /// Sets how often a record reports how many messages each DEK encrypted or decrypted: at least
    /// a second. With 0 the domain has no such records.
    pub fn access_summaries(mut self, every: Duration) -> Self {
        self.access_summaries = Some(every);
        self
    }

    fn shown(&self, name: &str) -> Option<Disclosure> {
        self.context_values.get(name).copied()
    }

    /// Returns the interval of summaries if the domain sets it. 0 means never.
    pub(super) fn summaries_every(&self) -> Option<Duration> {
        self.access_summaries
    }

    fn usual(&self) -> Option<Disclosure> {
        self.other_context_values
    }

    pub(super) fn check(&self, has_context_key: bool) -> Result<(), Error> {
        let refused = |detail: &'static str| Err(Error::new(ErrorKind::InvalidOption, detail));
        let is_hashed = |shown: &Disclosure| *shown == Disclosure::Hashed && !has_context_key;
        if self.context_values.values().any(is_hashed) {
            return refused("context_values: hashed values need the trail's context_key");
        }
        if self.other_context_values.as_ref().is_some_and(is_hashed) {
            return refused("other_context_values: hashed values need the trail's context_key");
        }
        match self.access_summaries {
            Some(every) if !every.is_zero() && every < SHORTEST_SUMMARY => {
                refused("access_summaries: at least a second, or 0 for none")
            }
            _ => Ok(()),
        }
    }
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

    /// Returns what a record shows of a context. The domain's settings take precedence.
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
            // Without a key, the builder refuses `Hashed`.
            (Disclosure::Hashed, None) | (Disclosure::LeftOut, _) => ContextValue::LeftOut,
        }
    }
}
