//! The counts of a trail in the `metrics` facade.
#![forbid(unsafe_code)]

use metrics::{counter, gauge};

use super::AuditStatistics;

impl AuditStatistics {
    /// Sets the metrics of a trail from these numbers. Call it when the service starts and every
    /// few seconds, with a name for the trail as the label `trail`. Counters are set to the
    /// absolute number.
    ///
    /// | name | kind |
    /// |---|---|
    /// | `waxseal_audit_written_total`, `waxseal_audit_dropped_total` | counter: records |
    /// | `waxseal_audit_waiting` | gauge: records in the queue |
    /// | `waxseal_audit_write_failures_total`, `waxseal_audit_sink_failures_total` | counter |
    pub fn record_metrics(&self, trail: &str) {
        let name = || trail.to_owned();
        counter!("waxseal_audit_written_total", "trail" => name()).absolute(self.written);
        counter!("waxseal_audit_dropped_total", "trail" => name()).absolute(self.dropped);
        counter!("waxseal_audit_write_failures_total", "trail" => name())
            .absolute(self.write_failures);
        counter!("waxseal_audit_sink_failures_total", "trail" => name())
            .absolute(self.sink_failures);
        // A gauge is a float. The bound of the queue is far below its precision.
        let waiting = u32::try_from(self.waiting).unwrap_or(u32::MAX);
        gauge!("waxseal_audit_waiting", "trail" => name()).set(waiting);
    }
}
