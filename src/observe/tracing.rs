//! Emits every event to the `tracing` facade.
#![forbid(unsafe_code)]

use tracing::{debug, info, warn};

use super::{Event, Observer};
use crate::caller::Caller;
use crate::context::EncryptionContext;
use crate::format::KekId;

/// Emits every event to [`tracing`], under the target `waxseal`, with the fields `event`, `dek_id`,
/// `kek_id`, `kek_version`, `kind`, `operation`, `elapsed_ms`, `abandoned`, `request_id` and
/// `call_target` if they apply. The configuration event has `domain`, the number of KEKs for
/// writing (`wrap_with`) and for reading only (`unwrap_with`), and `kek_ids`, those for writing
/// first.
///
/// Level *warn* is for events that need attention (denials, failed renewals, stale DEKs, open
/// breakers), *info* shows which KEK was used for which DEK, and *debug* is for the rest.
/// Encryption contexts may name customers, so they are left out unless
/// [`with_context`](Self::with_context) adds them.
#[derive(Clone, Copy, Debug, Default)]
pub struct TracingObserver {
    with_context: bool,
}

impl TracingObserver {
    /// Makes an observer that leaves encryption contexts out.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the encryption context, as the field `context`.
    #[must_use]
    pub fn with_context(mut self) -> Self {
        self.with_context = true;
        self
    }

    fn shown<'a>(
        &self,
        context: &'a EncryptionContext,
    ) -> Option<tracing::field::DebugValue<&'a EncryptionContext>> {
        self.with_context.then(|| tracing::field::debug(context))
    }
}

fn listed<'k>(kek_ids: impl Iterator<Item = &'k KekId>) -> String {
    kek_ids.map(KekId::as_str).collect::<Vec<_>>().join(", ")
}

impl Observer for TracingObserver {
    fn event(&self, event: &Event<'_>) {
        match *event {
            Event::Made { dek_id, context, kek_ids } => {
                let context = self.shown(context);
                let kek_ids = kek_ids.len();
                info!(
                    target: "waxseal", event = "made", %dek_id, keks = kek_ids, context,
                    "DEK made"
                );
            }
            Event::Wrapped { dek_id, context, kek_id, kek_version, request_id } => {
                let context = self.shown(context);
                info!(
                    target: "waxseal", event = "wrapped", %dek_id, %kek_id, kek_version, request_id,
                    context,
                    "DEK wrapped"
                );
            }
            Event::Unwrapped { dek_id, context, kek_id, kek_version, request_id } => {
                let context = self.shown(context);
                info!(
                    target: "waxseal", event = "unwrapped", %dek_id, %kek_id, kek_version,
                    request_id, context,
                    "DEK unwrapped"
                );
            }
            Event::Refreshed { dek_id, context } => {
                let context = self.shown(context);
                debug!(
                    target: "waxseal", event = "refreshed", %dek_id, context,
                    "DEK renewed ahead of time"
                );
            }
            Event::RenewalFailed { dek_id, context, kind } => {
                let context = self.shown(context);
                warn!(
                    target: "waxseal", event = "renewal_failed", %dek_id, kind = kind.as_str(),
                    context,
                    "DEK could not be renewed"
                );
            }
            Event::ServedStale { dek_id, context, kind } => {
                let context = self.shown(context);
                warn!(
                    target: "waxseal", event = "served_stale", %dek_id, kind = kind.as_str(),
                    context,
                    "DEK served past max_age"
                );
            }
            Event::Denied { dek_id, context } => {
                let (dek_id, context) = (dek_id.map(tracing::field::display), self.shown(context));
                warn!(
                    target: "waxseal", event = "denied", dek_id, context,
                    "use of the KEK denied"
                );
            }
            Event::PolicyDenied { caller, operation, context, reasons, revision, .. } => {
                let (context, service) = (self.shown(context), caller.and_then(Caller::service));
                let operation = operation.as_str();
                warn!(
                    target: "waxseal", event = "policy_denied", operation, service, ?reasons,
                    revision, context,
                    "denied by the policy"
                );
            }
            Event::PolicyAllowed { caller, operation, context, revision, .. } => {
                let (context, service) = (self.shown(context), caller.and_then(Caller::service));
                let operation = operation.as_str();
                debug!(
                    target: "waxseal", event = "policy_allowed", operation, service, revision,
                    context,
                    "allowed by the policy"
                );
            }
            Event::PolicyFailed { operation, context, error, last_known } => {
                let (context, operation) = (self.shown(context), operation.as_str());
                warn!(
                    target: "waxseal", event = "policy_failed", operation,
                    kind = error.kind().as_str(), %error, last_known, context,
                    "the policy gave no decision"
                );
            }
            Event::DamagedRow { row_id, store } => {
                warn!(
                    target: "waxseal", event = "damaged_row", row_id, store,
                    "a row of the key store cannot be read"
                );
            }
            Event::Erased { context, store, keys } => {
                let context = self.shown(context);
                info!(target: "waxseal", event = "erased", store, keys, context, "branch erased");
            }
            Event::Evicted { dek_id, context } => {
                let context = self.shown(context);
                debug!(
                    target: "waxseal", event = "evicted", %dek_id, context,
                    "DEK made room for another"
                );
            }
            Event::Accessed { dek_id, context, access, messages, within: _ } => {
                let (access, context) = (access.as_str(), self.shown(context));
                debug!(
                    target: "waxseal", event = "accessed", %dek_id, access, messages, context,
                    "DEK used"
                );
            }
            Event::AccessedBy { caller, dek_id, context, access, messages, within: _ } => {
                let (access, context, service) =
                    (access.as_str(), self.shown(context), caller.service());
                debug!(target: "waxseal", event = "accessed_by", %dek_id, access, service, messages, context, "DEK used on behalf of a caller");
            }
            Event::AccessedByOthers { access, messages, within: _ } => {
                let access = access.as_str();
                warn!(target: "waxseal", event = "accessed_by_others", access, messages, "more callers than are tracked");
            }
            Event::Wiped { dek_id, context } => {
                let context = self.shown(context);
                debug!(
                    target: "waxseal", event = "wiped", %dek_id, context,
                    "keys of the DEK wiped"
                );
            }
            Event::Called { kek_id, operation, elapsed, kind, abandoned, request_id } => {
                let (operation, elapsed_ms) = (operation.as_str(), elapsed.as_secs_f64() * 1e3);
                let kind = kind.map(crate::error::ErrorKind::as_str);
                debug!(
                    target: "waxseal", event = "called", %kek_id, operation, elapsed_ms, kind,
                    abandoned, request_id,
                    "key service called"
                );
            }
            Event::BreakerOpened { kek_id, target } => {
                warn!(
                    target: "waxseal", event = "breaker_opened", %kek_id, call_target = target,
                    "circuit breaker opened"
                );
            }
            Event::BreakerClosed { kek_id, target } => {
                info!(
                    target: "waxseal", event = "breaker_closed", %kek_id, call_target = target,
                    "circuit breaker closed"
                );
            }
            Event::StoreCalled { store, operation, elapsed, kind, abandoned } => {
                let (operation, elapsed_ms) = (operation.as_str(), elapsed.as_secs_f64() * 1e3);
                let kind = kind.map(crate::error::ErrorKind::as_str);
                debug!(
                    target: "waxseal", event = "store_called", store, operation, elapsed_ms, kind,
                    abandoned,
                    "key store called"
                );
            }
            Event::StoreBreakerOpened { store } => {
                warn!(
                    target: "waxseal", event = "store_breaker_opened", store,
                    "circuit breaker of the key store opened"
                );
            }
            Event::StoreBreakerClosed { store } => {
                info!(
                    target: "waxseal", event = "store_breaker_closed", store,
                    "circuit breaker of the key store closed"
                );
            }
            Event::MemoryNotProtected { protection } => {
                warn!(target: "waxseal", event = "memory_not_protected", "{protection}");
            }
            Event::ObserverPanicked { observer } => {
                warn!(
                    target: "waxseal", event = "observer_panicked", observer,
                    "an observer panicked"
                );
            }
            Event::Configured { wrap_with, unwrap_with, options } => {
                let kek_ids = listed(wrap_with.iter().chain(unwrap_with));
                let (wrap_with, unwrap_with) = (wrap_with.len(), unwrap_with.len());
                let of_domain = options.iter().find(|(name, _)| *name == "domain");
                let domain = of_domain.map(|(_, domain)| domain.as_str());
                info!(
                    target: "waxseal", event = "configured", domain, wrap_with, unwrap_with,
                    kek_ids, "envelope built"
                );
            }
            Event::Revoked { kek_id } => {
                warn!(target: "waxseal", event = "revoked", %kek_id, "KEK revoked in this process");
            }
            Event::Reinstated { kek_id } => {
                warn!(
                    target: "waxseal", event = "reinstated", %kek_id,
                    "KEK reinstated in this process"
                );
            }
            Event::ShutDown => info!(target: "waxseal", event = "shut_down", "envelope shut down"),
            Event::StartedWithout { kek_id, kind } => {
                warn!(
                    target: "waxseal", event = "started_without", %kek_id, kind = kind.as_str(),
                    "started without the key service"
                );
            }
            Event::DomainsReloaded { opened, changed, ended, kept } => {
                info!(
                    target: "waxseal", event = "domains_reloaded", opened, changed, ended, kept,
                    "data domains reloaded"
                );
            }
            Event::DomainsNotReloaded { error } => {
                warn!(
                    target: "waxseal", event = "domains_not_reloaded", kind = error.kind().as_str(),
                    "data domains continue unchanged: {error}"
                );
            }
        }
    }
}
