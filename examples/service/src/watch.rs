//! Metrics and health, every few seconds, so that asking for them costs no call to a key service.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use waxseal::audit::AuditTrail;
use waxseal::domain::Domains;

const EVERY: Duration = Duration::from_secs(5);
/// Of the latency of key services and of the policy, in seconds.
const BUCKETS: [f64; 10] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0];
pub(crate) const METRICS: &str = "text/plain; version=0.0.4";

/// What was seen last. A clone is a pointer.
#[derive(Clone)]
pub(crate) struct Watched {
    troubles: Arc<Mutex<Vec<String>>>,
    metrics: PrometheusHandle,
}

/// Installs the recorder of the process.
pub(crate) fn recorder() -> Result<PrometheusHandle, BuildError> {
    let seconds = Matcher::Suffix("_seconds".to_owned());
    PrometheusBuilder::new().set_buckets_for_metric(seconds, &BUCKETS)?.install_recorder()
}

/// Looks now, and then every few seconds.
pub(crate) fn start(domains: Domains, trail: AuditTrail, metrics: PrometheusHandle) -> Watched {
    let watched = Watched { troubles: Arc::default(), metrics };
    let seen = watched.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(EVERY);
        loop {
            ticks.tick().await;
            seen.look(&domains, &trail).await;
        }
    });
    watched
}

impl Watched {
    async fn look(&self, domains: &Domains, trail: &AuditTrail) {
        let mut troubles = Vec::new();
        for domain in domains.all() {
            domain.statistics().record_metrics(domain.name());
            if let Some(branches) = domain.branch_statistics() {
                branches.record_metrics(&format!("{}-branches", domain.name()));
            }
            for (kek, health) in domain.envelope().health().await {
                if let Err(error) = health {
                    tracing::warn!(%error, domain = domain.name(), "a KEK cannot be used");
                    let kind = error.kind().as_str();
                    troubles.push(format!("{}: {kek}: {kind}", domain.name()));
                }
            }
        }
        let statistics = trail.statistics();
        statistics.record_metrics("audit");
        if statistics.failure.is_some() {
            troubles.push("the audit trail cannot be written".to_owned());
        }
        self.metrics.run_upkeep();
        *self.troubles.lock().unwrap_or_else(PoisonError::into_inner) = troubles;
    }

    /// What an operator should look at. Empty if all is well.
    pub(crate) fn troubles(&self) -> Vec<String> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn metrics(&self) -> String {
        self.metrics.render()
    }
}
