//! Statistics of the cached DEKs and of calls.
#![forbid(unsafe_code)]

#[cfg(feature = "metrics")]
mod metrics;

use crate::kek::call::BreakerState;
use crate::kek::{KekId, Login};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::shards::{shard, shards};

/// Counts what an [`Envelope`](crate::Envelope) did since it was built. Use through handles is not
/// counted.
///
/// The numbers are read one after the other while other threads continue.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Statistics {
    /// How often a cached DEK for reading was used.
    pub reading_hits: u64,
    /// How often a caller waited for a key service to unwrap one, successfully or not.
    pub reading_misses: u64,
    /// How often a cached DEK for writing was used.
    pub writing_hits: u64,
    /// How often a caller waited for the key services to wrap one, successfully or not.
    pub writing_misses: u64,
    /// How often a caller joined a call in flight for the same DEK instead of making its own.
    pub calls_shared: u64,
    /// The number of DEKs that [`Envelope::prepare`](crate::Envelope::prepare) obtained.
    pub prepared: u64,
    /// How often a cached DEK was used stale: past `max_age`, within `stale_if_error`.
    pub served_stale: u64,
    /// The number of cached DEKs for reading.
    pub reading_deks: u64,
    /// The number of cached DEKs for writing.
    pub writing_deks: u64,
    /// How often an observer panicked.
    pub observer_panics: u64,
    /// How many events were lost because an observer blocked and too many were waiting.
    pub events_lost: u64,
    /// The name of the key store, if there is one.
    pub key_store: Option<Box<str>>,
    /// The calls to the key store, if there is one.
    pub store_calls: Option<StoreStatistics>,
    /// For a [`BranchKek`](crate::branch::BranchKek): the branch keys in memory, by age.
    pub branch_keys: Option<BranchKeyAges>,
    /// Every KEK, in order of preference.
    pub keks: Vec<KekStatistics>,
}

impl Statistics {
    /// Adds the counts of an earlier source of the same keys. Returns the KEKs that only that
    /// source had. Current values, such as the number of cached DEKs, stay.
    pub(crate) fn add_earlier(&mut self, earlier: &Self) -> Vec<KekStatistics> {
        let add = |counter: &mut u64, more: u64| *counter = counter.saturating_add(more);
        for (counter, more) in [
            (&mut self.reading_hits, earlier.reading_hits),
            (&mut self.reading_misses, earlier.reading_misses),
            (&mut self.writing_hits, earlier.writing_hits),
            (&mut self.writing_misses, earlier.writing_misses),
            (&mut self.calls_shared, earlier.calls_shared),
            (&mut self.prepared, earlier.prepared),
            (&mut self.served_stale, earlier.served_stale),
            (&mut self.observer_panics, earlier.observer_panics),
            (&mut self.events_lost, earlier.events_lost),
        ] {
            add(counter, more);
        }
        if let (Some(calls), Some(earlier_calls)) = (&mut self.store_calls, &earlier.store_calls)
            && self.key_store == earlier.key_store
        {
            add(&mut calls.calls, earlier_calls.calls);
            add(&mut calls.failures, earlier_calls.failures);
            add(&mut calls.budget_waits, earlier_calls.budget_waits);
            add(&mut calls.budget_refusals, earlier_calls.budget_refusals);
        }
        let mut gone = Vec::new();
        for earlier in &earlier.keks {
            let Some(kek) = self.keks.iter_mut().find(|kek| kek.kek_id == earlier.kek_id) else {
                gone.push(earlier.clone());
                continue;
            };
            add(&mut kek.calls, earlier.calls);
            add(&mut kek.failures, earlier.failures);
            add(&mut kek.budget_waits, earlier.budget_waits);
            add(&mut kek.budget_refusals, earlier.budget_refusals);
            if let (Some(login), Some(earlier)) = (&mut kek.login, earlier.login) {
                add(&mut login.logins, earlier.logins);
                add(&mut login.failures, earlier.failures);
            }
        }
        gone
    }
}

/// The number of branch keys in memory, by how long ago their period began. Old ones are there
/// because old rows are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct BranchKeyAges {
    /// Within 24 hours.
    pub day: u64,
    /// Longer, within 7 days.
    pub week: u64,
    /// Longer, within 31 days.
    pub month: u64,
    /// Longer, within 366 days.
    pub year: u64,
    /// Longer than that.
    pub older: u64,
}

impl BranchKeyAges {
    /// Counts a key of this age in seconds.
    pub(crate) fn count(&mut self, seconds: i64) {
        const DAY: i64 = 24 * 60 * 60;
        let counted = match seconds / DAY {
            ..1 => &mut self.day,
            1..7 => &mut self.week,
            7..31 => &mut self.month,
            31..366 => &mut self.year,
            366.. => &mut self.older,
        };
        *counted = counted.saturating_add(1);
    }
}

/// The calls to one KEK.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct KekStatistics {
    /// The KEK.
    pub kek_id: KekId,
    /// The state of its circuit breaker: the worst of its targets.
    pub breaker: BreakerState,
    /// Its targets whose breaker is not closed, by name. If the KEK has several targets (keys,
    /// Regions, stores), the others are healthy.
    pub targets: Vec<TargetStatistics>,
    /// Calls made, retries and probes included.
    pub calls: u64,
    /// How many of them failed.
    pub failures: u64,
    /// How often a call waited for its turn in a [`CallBudget`](crate::CallBudget).
    pub budget_waits: u64,
    /// How often a call was refused because its turn in a budget would have come too late.
    pub budget_refusals: u64,
    /// Its login, if its provider [reports](crate::kek::KekProvider::login) one.
    pub login: Option<Login>,
}

/// The calls to a key store. Those to a store in this process are not counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct StoreStatistics {
    /// The state of its circuit breaker.
    pub breaker: BreakerState,
    /// Calls made, retries and probes included.
    pub calls: u64,
    /// How many of them failed.
    pub failures: u64,
    /// How often a call waited for its turn in the store's budget.
    pub budget_waits: u64,
    /// How often a call was refused because its turn would have come too late.
    pub budget_refusals: u64,
}

/// One key, Region or store behind a KEK.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct TargetStatistics {
    /// The provider's name for it: see [`CallTarget`](crate::kek::CallTarget).
    pub name: Box<str>,
    /// The state of its circuit breaker.
    pub breaker: BreakerState,
}

/// Counts separately for each group of threads, so that threads do not write to the same cache
/// line.
pub(super) struct Counters(Box<[Group]>);

#[repr(align(128))]
#[derive(Default)]
struct Group([AtomicU64; 7]);

#[derive(Clone, Copy)]
pub(crate) enum Counter {
    ReadingHit,
    ReadingMiss,
    WritingHit,
    WritingMiss,
    ServedStale,
    CallShared,
    Prepared,
}

impl Counters {
    pub(super) fn new() -> Self {
        Self((0..shards()).map(|_| Group::default()).collect())
    }

    #[inline]
    pub(super) fn count(&self, what: Counter) {
        self.add(what, 1);
    }

    #[inline]
    pub(super) fn add(&self, what: Counter, number: u64) {
        if let Some(counter) =
            self.0.get(shard()).and_then(|Group(counters)| counters.get(what as usize))
        {
            counter.fetch_add(number, Ordering::Relaxed);
        }
    }

    fn sum(&self, what: Counter) -> u64 {
        let counters = self.0.iter().filter_map(|Group(counters)| counters.get(what as usize));
        counters.map(|counter| counter.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn statistics(
        &self,
        deks: (usize, usize),
        (key_store, keks): (Option<Box<str>>, Vec<KekStatistics>),
        (observer_panics, events_lost): (u64, u64),
    ) -> Statistics {
        let number = |deks: usize| u64::try_from(deks).unwrap_or(u64::MAX);
        Statistics {
            reading_hits: self.sum(Counter::ReadingHit),
            reading_misses: self.sum(Counter::ReadingMiss),
            writing_hits: self.sum(Counter::WritingHit),
            writing_misses: self.sum(Counter::WritingMiss),
            calls_shared: self.sum(Counter::CallShared),
            prepared: self.sum(Counter::Prepared),
            served_stale: self.sum(Counter::ServedStale),
            reading_deks: number(deks.0),
            writing_deks: number(deks.1),
            observer_panics,
            events_lost,
            key_store,
            store_calls: None,
            branch_keys: None,
            keks,
        }
    }
}
