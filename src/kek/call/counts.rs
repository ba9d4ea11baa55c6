//! Counts the calls to a KEK.
#![forbid(unsafe_code)]

use crate::sync::atomic::{AtomicU64, Ordering};

#[derive(Default)]
pub(super) struct Counters {
    pub(super) calls: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) budget_waits: AtomicU64,
    pub(super) budget_refusals: AtomicU64,
}

/// What was counted so far.
pub(crate) struct CallCounts {
    pub(crate) calls: u64,
    pub(crate) failures: u64,
    pub(crate) budget_waits: u64,
    pub(crate) budget_refusals: u64,
}

impl Counters {
    pub(super) fn counts(&self) -> CallCounts {
        let Self { calls, failures, budget_waits, budget_refusals } = self;
        CallCounts {
            calls: calls.load(Ordering::Relaxed),
            failures: failures.load(Ordering::Relaxed),
            budget_waits: budget_waits.load(Ordering::Relaxed),
            budget_refusals: budget_refusals.load(Ordering::Relaxed),
        }
    }
}
