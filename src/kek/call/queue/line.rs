//! The callers that wait in one lane.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::task::Waker;

use super::MILLISECOND;

/// How long the newest caller is served first after a caller gave up.
const OVERLOADED_FOR: i64 = 1000 * MILLISECOND;

/// The callers that wait in one lane, in the order in which they arrived.
#[derive(Default)]
pub(super) struct Line {
    pub(super) present: BTreeMap<u64, Waiter>,
    /// Callers that did not take an offered turn because their future is not polled. They keep
    /// their position and return when they are polled again.
    pub(super) absent: BTreeMap<u64, Waiter>,
    overloaded_until: i64,
}

/// One caller in line.
pub(super) struct Waiter {
    pub(super) since: i64,
    /// The latest time until which it may wait.
    pub(super) latest: i64,
    pub(super) waker: Option<Waker>,
}

impl Line {
    /// Records that callers wait too long or give up.
    pub(super) fn overloaded(&mut self, now: i64) {
        self.overloaded_until = now.saturating_add(OVERLOADED_FOR);
    }

    pub(super) fn is_newest_first(&self, now: i64) -> bool {
        now < self.overloaded_until
    }

    /// Returns the arrival of the caller that has waited longest.
    pub(super) fn oldest(&self) -> Option<i64> {
        let first = |waiters: &BTreeMap<u64, Waiter>| {
            waiters.first_key_value().map(|(_, waiter)| waiter.since)
        };
        first(&self.present).into_iter().chain(first(&self.absent)).min()
    }

    /// Returns the caller that is served next.
    pub(super) fn first(&self, now: i64) -> Option<u64> {
        let first = match self.is_newest_first(now) {
            true => self.present.last_key_value(),
            false => self.present.first_key_value(),
        };
        first.map(|(id, _)| *id)
    }

    /// Marks all callers before `id`, or all callers, as absent until they look again, and wakes
    /// them.
    pub(super) fn pass_over(&mut self, now: i64, id: Option<u64>, woken: &mut Vec<Waker>) {
        let mut before = match id {
            None => std::mem::take(&mut self.present),
            Some(id) if self.is_newest_first(now) => self.present.split_off(&id.saturating_add(1)),
            Some(id) => {
                let rest = self.present.split_off(&id);
                std::mem::replace(&mut self.present, rest)
            }
        };
        woken.extend(before.values().filter_map(|waiter| waiter.waker.clone()));
        self.absent.append(&mut before);
        self.drop_late(now, woken);
    }

    /// Removes absent callers that are past their latest time, oldest first.
    pub(super) fn drop_late(&mut self, now: i64, woken: &mut Vec<Waker>) {
        while let Some(oldest) = self.absent.first_entry()
            && oldest.get().latest < now
        {
            woken.extend(oldest.remove().waker);
        }
    }
}
