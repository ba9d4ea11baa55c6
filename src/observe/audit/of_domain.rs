//! The trail as one data domain has it: what its records show of contexts, and what is recorded.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::disclosure::Disclosure;
use super::draft::Draft;
use super::trail::{AuditTrail, SHORTEST_SUMMARY};
use crate::error::{Error, ErrorKind};
use crate::observe::{Event, Observer};

/// What an audit trail shows of one data domain. What is not set here is as the trail's builder says.
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
/// let config = DomainConfig::default().wrap_with("local:/var/lib/app/orders.kek?name=orders").audit(settings);
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

    /// Sets how the values of all names appear that neither the domain nor the trail names.
    pub fn other_context_values(mut self, shown: Disclosure) -> Self {
        self.other_context_values = Some(shown);
        self
    }

    /// Sets how often a record says how many messages each DEK encrypted or decrypted: at least a
    /// second. With 0 the domain has no such records.
    pub fn access_summaries(mut self, every: Duration) -> Self {
        self.access_summaries = Some(every);
        self
    }

    pub(super) fn shown(&self, name: &str) -> Option<Disclosure> {
        self.context_values.get(name).copied()
    }

    pub(super) fn usual(&self) -> Option<Disclosure> {
        self.other_context_values
    }

    fn check(&self, has_context_key: bool) -> Result<(), Error> {
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

impl AuditTrail {
    /// Returns the trail as a data domain has it, to observe the domain's envelopes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], naming the setting.
    pub(crate) fn of_domain(&self, settings: &DomainAudit) -> Result<DomainTrail, Error> {
        settings.check(self.has_context_key())?;
        Ok(DomainTrail { trail: self.clone(), settings: Arc::new(settings.clone()) })
    }
}

/// An audit trail with the settings of a data domain.
#[derive(Debug)]
pub(crate) struct DomainTrail {
    trail: AuditTrail,
    settings: Arc<DomainAudit>,
}

impl Observer for DomainTrail {
    fn event(&self, event: &Event<'_>) {
        // Another observer may have asked for them.
        if event.is_a_summary() && self.access_summaries().is_none() {
            return;
        }
        let of_domain = Some(self.settings.clone());
        self.trail.push(Draft { of_domain, ..self.trail.draft(event) });
    }

    fn access_summaries(&self) -> Option<Duration> {
        let own = self.settings.access_summaries;
        own.map_or_else(
            || self.trail.access_summaries(),
            |own| Some(own).filter(|own| !own.is_zero()),
        )
    }
}
