//! Statistics in the `metrics` facade.
#![forbid(unsafe_code)]

use metrics::{counter, gauge};

use super::{BranchKeyAges, Statistics};
use crate::kek::call::BreakerState;
use crate::observe::register;

impl Statistics {
    /// Sets the metrics that no event causes, such as how often a DEK was cached, from these
    /// numbers. Call it when the service starts and every few seconds, with a name for the envelope
    /// as the label `envelope`. Counters are set to the absolute number, so calling more often does
    /// not change them, and two envelopes need two names. For a data domain use
    /// [`Domain::statistics`](crate::domain::Domain::statistics), which a reload does not reset.
    ///
    /// It also makes the counters of [`MetricsObserver`](crate::MetricsObserver) appear as zero, so
    /// that an alert on their increase sees the first event.
    ///
    /// | name | kind | labels besides `envelope` |
    /// |---|---|---|
    /// | `waxseal_lookups_total` | counter | `purpose` (`reading`, `writing`), `outcome` (`cached`, `waited`) |
    /// | `waxseal_deks_cached` | gauge | `purpose` |
    /// | `waxseal_stale_lookups_total`, `waxseal_calls_shared_total`, `waxseal_deks_prepared_total` | counter | |
    /// | `waxseal_budget_waits_total`, `waxseal_budget_refusals_total` | counter | `kek` |
    /// | `waxseal_store_budget_waits_total`, `waxseal_store_budget_refusals_total` | counter | `store` |
    /// | `waxseal_store_breaker_open` | gauge (0, 1) | `store` |
    /// | `waxseal_events_lost_total` | counter | |
    /// | `waxseal_logins_total` | counter | `kek`, `outcome` (`ok`, `failed`) |
    /// | `waxseal_login_ends_seconds` | gauge | `kek` |
    /// | `waxseal_branch_keys` | gauge | `age` (`day`, `week`, `month`, `year`, `older`) |
    ///
    /// ```
    /// # use waxseal::{Envelope, kek::local::LocalKek};
    /// # let envelope = Envelope::builder().wrap_with(LocalKek::in_memory("dev")?).build()?;
    /// envelope.statistics().record_metrics("orders");
    /// # Ok::<(), waxseal::Error>(())
    /// ```
    pub fn record_metrics(&self, envelope: &str) {
        register(self.keks.iter().map(|kek| &kek.kek_id), self.key_store.as_deref());
        let lookups = [
            ("reading", "cached", self.reading_hits),
            ("reading", "waited", self.reading_misses),
            ("writing", "cached", self.writing_hits),
            ("writing", "waited", self.writing_misses),
        ];
        let name = || envelope.to_owned();
        for (purpose, outcome, number) in lookups {
            counter!("waxseal_lookups_total", "envelope" => name(), "purpose" => purpose, "outcome" => outcome)
                .absolute(number);
        }
        for (purpose, deks) in [("reading", self.reading_deks), ("writing", self.writing_deks)] {
            // A gauge is a float. The number of DEKs is never large enough to lose precision.
            let deks = u32::try_from(deks).unwrap_or(u32::MAX);
            gauge!("waxseal_deks_cached", "envelope" => name(), "purpose" => purpose).set(deks);
        }
        counter!("waxseal_stale_lookups_total", "envelope" => name()).absolute(self.served_stale);
        counter!("waxseal_calls_shared_total", "envelope" => name()).absolute(self.calls_shared);
        counter!("waxseal_deks_prepared_total", "envelope" => name()).absolute(self.prepared);
        counter!("waxseal_events_lost_total", "envelope" => name()).absolute(self.events_lost);
        if let Some(BranchKeyAges { day, week, month, year, older }) = self.branch_keys {
            let ages =
                [("day", day), ("week", week), ("month", month), ("year", year), ("older", older)];
            for (age, keys) in ages {
                let keys = u32::try_from(keys).unwrap_or(u32::MAX);
                gauge!("waxseal_branch_keys", "envelope" => name(), "age" => age).set(keys);
            }
        }
        if let (Some(store), Some(calls)) = (&self.key_store, self.store_calls) {
            let store = || store.to_string();
            counter!("waxseal_store_budget_waits_total", "envelope" => name(), "store" => store())
                .absolute(calls.budget_waits);
            counter!("waxseal_store_budget_refusals_total", "envelope" => name(), "store" => store())
                .absolute(calls.budget_refusals);
            let is_open = u8::from(calls.breaker != BreakerState::Closed);
            gauge!("waxseal_store_breaker_open", "envelope" => name(), "store" => store())
                .set(is_open);
        }
        for kek in &self.keks {
            let id = || kek.kek_id.to_string();
            counter!("waxseal_budget_waits_total", "envelope" => name(), "kek" => id())
                .absolute(kek.budget_waits);
            counter!("waxseal_budget_refusals_total", "envelope" => name(), "kek" => id())
                .absolute(kek.budget_refusals);
            let Some(login) = kek.login else { continue };
            for (outcome, number) in [("ok", login.logins), ("failed", login.failures)] {
                counter!("waxseal_logins_total", "envelope" => name(), "kek" => id(), "outcome" => outcome)
                    .absolute(number);
            }
            // A gauge cannot be withdrawn, so a login without an end needs a value too.
            let left = login.ends_in.map_or(f64::INFINITY, |left| left.as_secs_f64());
            gauge!("waxseal_login_ends_seconds", "envelope" => name(), "kek" => id()).set(left);
        }
    }
}
