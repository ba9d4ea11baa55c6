//! The trail with the settings of one data domain: what its records show of contexts, and what is
//! recorded.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use super::disclosure::DomainAudit;
use super::draft::Draft;
use super::trail::AuditTrail;
use crate::error::Error;
use crate::observe::{Event, Observer};

impl AuditTrail {
    /// Returns the trail with a data domain's settings, to observe the domain's envelopes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](crate::error::ErrorKind::InvalidOption), naming the setting.
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
        let own = self.settings.summaries_every();
        own.map_or_else(
            || self.trail.access_summaries(),
            |own| Some(own).filter(|own| !own.is_zero()),
        )
    }
}
