//! The rate of calls in one lane.
#![forbid(unsafe_code)]

use super::BURST;

/// Spaces calls by the generic cell rate algorithm.
pub(super) struct Pace {
    /// The time between two calls.
    interval: i64,
    /// The time of the next call if every call had kept the interval.
    next: i64,
}

impl Pace {
    pub(super) fn new(interval: i64) -> Self {
        Self { interval, next: i64::MIN }
    }

    pub(super) fn is_free(&self, now: i64) -> bool {
        self.next <= now
    }

    /// Returns the time of the turn after `ahead` others.
    pub(super) fn turn(&self, now: i64, ahead: usize) -> i64 {
        let ahead = i64::try_from(ahead).unwrap_or(i64::MAX).saturating_mul(self.interval);
        self.next.max(now.saturating_sub(BURST)).saturating_add(ahead)
    }

    pub(super) fn take(&mut self, now: i64) {
        self.next = self.turn(now, 1);
    }

    pub(super) fn give_back(&mut self) {
        self.next = self.next.saturating_sub(self.interval);
    }
}
