//! Counts every event in the `metrics` facade.
#![forbid(unsafe_code)]

use std::time::Duration;

use metrics::{counter, gauge, histogram};

use super::{Event, Observer};
use crate::caller::Action;
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
/// | `waxseal_policy_denied_total` | counter | `operation` |
/// | `waxseal_policy_failed_total` | counter | `operation`, `kind` |
/// | `waxseal_policy_seconds` | histogram: how long the policy took where it was asked | `operation`, `outcome` (`allowed`, `denied`) |
/// | `waxseal_damaged_rows_total`, `waxseal_keys_erased_total` | counter | `store` |
/// | `waxseal_calls_total` | counter | `kek`, `operation`, `outcome` (`ok`, or the kind of the failure) |
/// | `waxseal_call_seconds` | histogram | `kek`, `operation` |
/// | `waxseal_breaker_open` | gauge (0, 1) | `kek`; `target` where it has another name |
/// | `waxseal_memory_not_protected` | gauge (1) | |
/// | `waxseal_started_without_total` | counter | `kek`, `kind` |
/// | `waxseal_observers_panicked_total` | counter | |
///
/// [`Envelope::statistics`](crate::Envelope::statistics) has how often DEKs were cached: an event
/// for each message would cost more than the message.
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
            Event::Called { kek_id, operation, elapsed, kind, abandoned: _ } => {
                let (kek, outcome) = (kek_id.to_string(), kind.map_or("ok", |kind| kind.as_str()));
                let operation = operation.as_str();
                counter!("waxseal_calls_total", "kek" => kek.clone(), "operation" => operation, "outcome" => outcome)
                    .increment(1);
                histogram!("waxseal_call_seconds", "kek" => kek, "operation" => operation)
                    .record(elapsed);
            }
            Event::BreakerOpened { kek_id, target } => breaker_gauge(kek_id, target).set(1),
            Event::BreakerClosed { kek_id, target } => breaker_gauge(kek_id, target).set(0),
            Event::MemoryNotProtected { .. } => gauge!("waxseal_memory_not_protected").set(1),
            Event::ObserverPanicked { .. } => {
                counter!("waxseal_observers_panicked_total").increment(1)
            }
            Event::StartedWithout { kek_id, kind } => {
                let kek = kek_id.to_string();
                counter!("waxseal_started_without_total", "kek" => kek, "kind" => kind.as_str())
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

fn breaker_gauge(kek_id: &KekId, target: Option<&str>) -> metrics::Gauge {
    let kek = kek_id.to_string();
    match target {
        Some(target) => gauge!("waxseal_breaker_open", "kek" => kek, "target" => target.to_owned()),
        None => gauge!("waxseal_breaker_open", "kek" => kek),
    }
}
