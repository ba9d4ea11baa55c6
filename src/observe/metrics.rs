//! Counts every event in the `metrics` facade.
#![forbid(unsafe_code)]

use std::time::Duration;

use metrics::{counter, gauge, histogram};

use super::{Event, Observer, Operation, StoreOperation};
use crate::caller::Action;
use crate::error::ErrorKind;
use crate::format::KekId;

/// Counts every event in the [`metrics`] facade. DEK ids and contexts are not labels, since there
/// are too many of them.
///
/// | name | kind | labels |
/// |---|---|---|
/// | `waxseal_deks_made_total` | counter | |
/// | `waxseal_deks_wrapped_total`, `waxseal_deks_unwrapped_total` | counter | `kek` |
/// | `waxseal_deks_refreshed_total`, `waxseal_deks_evicted_total`, `waxseal_deks_wiped_total` | counter | |
/// | `waxseal_renewals_failed_total`, `waxseal_served_stale_total` | counter | `kind` |
/// | `waxseal_denied_total` | counter | |
/// | `waxseal_keks_revoked_total` | counter | `kek` |
/// | `waxseal_policy_denied_total` | counter | `operation` |
/// | `waxseal_policy_failed_total` | counter | `operation`, `kind` |
/// | `waxseal_policy_seconds` | histogram: how long the policy took where it was asked | `operation`, `outcome` (`allowed`, `denied`) |
/// | `waxseal_damaged_rows_total`, `waxseal_keys_erased_total` | counter | `store` |
/// | `waxseal_calls_total` | counter | `kek`, `operation`, `outcome` (`ok`, or the kind of the failure) |
/// | `waxseal_call_seconds` | histogram | `kek`, `operation` |
/// | `waxseal_breaker_open` | gauge (0, 1) | `kek`; `target` where it has another name |
/// | `waxseal_store_calls_total` | counter | `store`, `operation`, `outcome` (`ok`, or the kind of the failure) |
/// | `waxseal_store_call_seconds` | histogram | `store`, `operation` |
/// | `waxseal_memory_not_protected` | gauge (1) | |
/// | `waxseal_started_without_total` | counter | `kek`, `kind` |
/// | `waxseal_domain_reloads_total` | counter | `outcome` (`ok`, or the kind of the failure) |
/// | `waxseal_observers_panicked_total` | counter | |
///
/// How often DEKs were cached is not included, since an event for each message would cost more than
/// the message. [`Statistics::record_metrics`](crate::Statistics::record_metrics) has it.
///
/// ```
/// use metrics_util::debugging::{DebugValue, DebuggingRecorder};
/// use waxseal::{Aad, EncryptionContext, Envelope, MetricsObserver, kek::local::LocalKek};
///
/// // Once per process, before the envelope is built. A service installs the recorder of its
/// // exporter here, such as that of metrics-exporter-prometheus.
/// let recorder = DebuggingRecorder::new();
/// let snapshotter = recorder.snapshotter();
/// recorder.install()?;
///
/// let kek = LocalKek::in_memory("dev")?;
/// let envelope = Envelope::builder().wrap_with(kek).observer(MetricsObserver).build()?;
/// # let context = EncryptionContext::empty();
/// # pollster::block_on(envelope.encrypt(&context, Aad::empty(), b"text"))?;
///
/// let counted = snapshotter.snapshot().into_vec();
/// let made = counted.iter().find(|(key, ..)| key.key().name() == "waxseal_deks_made_total");
/// assert_eq!(made.map(|(.., value)| value), Some(&DebugValue::Counter(1)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct MetricsObserver;

impl Observer for MetricsObserver {
    fn event(&self, event: &Event<'_>) {
        match *event {
            Event::Made { .. } => counter!("waxseal_deks_made_total").increment(1),
            Event::Wrapped { kek_id, .. } => {
                counter!("waxseal_deks_wrapped_total", "kek" => kek_id.to_string()).increment(1);
            }
            Event::Unwrapped { kek_id, .. } => {
                counter!("waxseal_deks_unwrapped_total", "kek" => kek_id.to_string()).increment(1);
            }
            Event::Refreshed { .. } => counter!("waxseal_deks_refreshed_total").increment(1),
            Event::RenewalFailed { kind, .. } => {
                counter!("waxseal_renewals_failed_total", "kind" => kind.as_str()).increment(1);
            }
            Event::ServedStale { kind, .. } => {
                counter!("waxseal_served_stale_total", "kind" => kind.as_str()).increment(1);
            }
            Event::Denied { .. } => counter!("waxseal_denied_total").increment(1),
            Event::PolicyDenied { operation, elapsed, .. } => {
                counter!("waxseal_policy_denied_total", "operation" => operation.as_str())
                    .increment(1);
                record_policy(operation, "denied", elapsed);
            }
            Event::PolicyAllowed { operation, elapsed, .. } => {
                record_policy(operation, "allowed", elapsed);
            }
            Event::PolicyFailed { operation, error, .. } => {
                let (operation, kind) = (operation.as_str(), error.kind().as_str());
                counter!("waxseal_policy_failed_total", "operation" => operation, "kind" => kind)
                    .increment(1);
            }
            Event::DamagedRow { store, .. } => {
                counter!("waxseal_damaged_rows_total", "store" => store.to_owned()).increment(1);
            }
            Event::Erased { store, keys, .. } => {
                counter!("waxseal_keys_erased_total", "store" => store.to_owned()).increment(keys);
            }
            Event::Evicted { .. } => counter!("waxseal_deks_evicted_total").increment(1),
            Event::Wiped { .. } => counter!("waxseal_deks_wiped_total").increment(1),
            Event::Called { kek_id, operation, elapsed, kind, .. } => {
                let (kek, outcome) = (kek_id.to_string(), kind.map_or("ok", |kind| kind.as_str()));
                let operation = operation.as_str();
                counter!("waxseal_calls_total", "kek" => kek.clone(), "operation" => operation, "outcome" => outcome)
                    .increment(1);
                histogram!("waxseal_call_seconds", "kek" => kek, "operation" => operation)
                    .record(elapsed);
            }
            Event::BreakerOpened { kek_id, target } => breaker_gauge(kek_id, target).set(1),
            Event::BreakerClosed { kek_id, target } => breaker_gauge(kek_id, target).set(0),
            Event::StoreCalled { store, operation, elapsed, kind, .. } => {
                let (store, outcome) = (store.to_owned(), kind.map_or("ok", |kind| kind.as_str()));
                let operation = operation.as_str();
                counter!("waxseal_store_calls_total", "store" => store.clone(), "operation" => operation, "outcome" => outcome)
                    .increment(1);
                histogram!("waxseal_store_call_seconds", "store" => store, "operation" => operation)
                    .record(elapsed);
            }
            Event::MemoryNotProtected { .. } => gauge!("waxseal_memory_not_protected").set(1),
            Event::ObserverPanicked { .. } => {
                counter!("waxseal_observers_panicked_total").increment(1)
            }
            Event::Revoked { kek_id } => {
                counter!("waxseal_keks_revoked_total", "kek" => kek_id.to_string()).increment(1);
            }
            // The statistics count uses and show the current state. A breaker event of a store does
            // not name its envelope, but the statistics do.
            Event::StoreBreakerOpened { .. }
            | Event::StoreBreakerClosed { .. }
            | Event::Accessed { .. }
            | Event::AccessedBy { .. }
            | Event::AccessedByOthers { .. }
            | Event::Configured { .. }
            | Event::Reinstated { .. }
            | Event::ShutDown => {}
            Event::StartedWithout { kek_id, kind } => {
                let kek = kek_id.to_string();
                counter!("waxseal_started_without_total", "kek" => kek, "kind" => kind.as_str())
                    .increment(1);
            }
            Event::DomainsReloaded { .. } => {
                counter!("waxseal_domain_reloads_total", "outcome" => "ok").increment(1);
            }
            Event::DomainsNotReloaded { error } => {
                counter!("waxseal_domain_reloads_total", "outcome" => error.kind().as_str())
                    .increment(1);
            }
        }
    }
}

fn record_policy(operation: Action, outcome: &'static str, elapsed: Option<Duration>) {
    if let Some(elapsed) = elapsed {
        let operation = operation.as_str();
        histogram!("waxseal_policy_seconds", "operation" => operation, "outcome" => outcome)
            .record(elapsed);
    }
}

/// Makes the counters that alerts watch appear before their first event. Prometheus sees no
/// increase from an absent counter to one that is 1.
pub(crate) fn register<'k>(kek_ids: impl Iterator<Item = &'k KekId>, store: Option<&str>) {
    const KINDS: [ErrorKind; 5] = [
        ErrorKind::Unavailable,
        ErrorKind::Throttled,
        ErrorKind::Denied,
        ErrorKind::Misconfigured,
        ErrorKind::Invalid,
    ];
    let kinds = KINDS.map(ErrorKind::as_str);
    for name in ["waxseal_denied_total", "waxseal_observers_panicked_total"] {
        _ = counter!(name);
    }
    for kind in kinds {
        _ = counter!("waxseal_renewals_failed_total", "kind" => kind);
        _ = counter!("waxseal_served_stale_total", "kind" => kind);
    }
    for operation in Action::ALL.map(Action::as_str) {
        _ = counter!("waxseal_policy_denied_total", "operation" => operation);
        for kind in [ErrorKind::Unavailable, ErrorKind::Provider].map(ErrorKind::as_str) {
            _ = counter!("waxseal_policy_failed_total", "operation" => operation, "kind" => kind);
        }
    }
    for kek_id in kek_ids {
        let kek = || kek_id.to_string();
        for operation in Operation::ALL.map(Operation::as_str) {
            for outcome in kinds.iter().chain(&["ok"]) {
                _ = counter!("waxseal_calls_total", "kek" => kek(), "operation" => operation, "outcome" => *outcome);
            }
        }
        _ = counter!("waxseal_keks_revoked_total", "kek" => kek());
        for kind in kinds {
            _ = counter!("waxseal_started_without_total", "kek" => kek(), "kind" => kind);
        }
    }
    let of_file = [ErrorKind::InvalidOption, ErrorKind::Io].map(ErrorKind::as_str);
    for outcome in kinds.iter().chain(&of_file).chain(&["ok"]) {
        _ = counter!("waxseal_domain_reloads_total", "outcome" => *outcome);
    }
    if let Some(store) = store {
        _ = counter!("waxseal_damaged_rows_total", "store" => store.to_owned());
        _ = counter!("waxseal_keys_erased_total", "store" => store.to_owned());
        for operation in StoreOperation::ALL.map(StoreOperation::as_str) {
            for outcome in kinds.iter().chain(&["ok"]) {
                _ = counter!("waxseal_store_calls_total", "store" => store.to_owned(), "operation" => operation, "outcome" => *outcome);
            }
        }
    }
}

fn breaker_gauge(kek_id: &KekId, target: Option<&str>) -> metrics::Gauge {
    let kek = kek_id.to_string();
    match target {
        Some(target) => gauge!("waxseal_breaker_open", "kek" => kek, "target" => target.to_owned()),
        None => gauge!("waxseal_breaker_open", "kek" => kek),
    }
}
