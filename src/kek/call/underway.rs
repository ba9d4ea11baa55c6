//! A call in flight, and what its end says about the key service.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::super::{KekError, KekErrorClass};
use super::breaker::{Admission, Change};
use super::policy::{CallTarget, PolicyInForce};
use super::target::Target;
use super::{Call, GuardedKek};
use crate::clock::Moment;
use crate::error::ErrorKind;
use crate::observe::{Event, LaterEvent};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;

/// The part of the timeout after which a dropped call counts as unanswered.
const NO_ANSWER: u32 = 4;
/// The latency that counts as late if the policy has no hedge.
const LATE_PERCENTILE: u8 = 95;

/// The admissions of a call by its breakers. They are given back on drop, so that a call that says
/// nothing about a key service does not use up its probe.
pub(super) struct Admissions(pub(super) Vec<(Arc<Target>, Admission)>);

impl Drop for Admissions {
    fn drop(&mut self) {
        for (target, admission) in &self.0 {
            target.breaker.give_back(*admission);
        }
    }
}

/// A call in flight. A drop before its response can say as much as a response.
pub(super) struct Underway<'a> {
    pub(super) kek: &'a GuardedKek,
    pub(super) call: Call<'a>,
    pub(super) policy: PolicyInForce,
    pub(super) target: &'a CallTarget,
    /// The second target of a call that has two. Then a failure cannot be attributed to either.
    pub(super) also: Option<&'a CallTarget>,
    pub(super) began: Moment,
    pub(super) admissions: Admissions,
    pub(super) over: bool,
}

impl Underway<'_> {
    pub(super) fn ended(mut self, failure: Option<&KekError>, request_id: Option<&str>) {
        self.over = true;
        let (elapsed, targets) = (self.elapsed(), &self.kek.targets);
        let class = failure.map(KekError::class);
        match failure {
            None => {
                let target = targets.listed(self.target.name());
                target.latency.record(elapsed);
                self.kek.emit_change(target.breaker.alive(), &target);
                if let Some(also) = self.also.and_then(|also| targets.find(also.name())) {
                    self.kek.emit_change(also.breaker.alive(), &also);
                }
            }
            // The provider or an intermediary decided it, which says nothing about the key service.
            Some(error) if !error.was_asked() || error.is_from_the_way() || self.also.is_some() => {
            }
            Some(error) => match error.class() {
                KekErrorClass::Unavailable | KekErrorClass::Misconfigured => {
                    let (change, target) = self.failed(|target| target.breaker.failed(error));
                    self.kek.emit_change(change, &target);
                }
                // It responded and refused this caller or this message.
                KekErrorClass::Denied | KekErrorClass::Throttled | KekErrorClass::Invalid => {
                    if let Some(target) = targets.find(self.target.name()) {
                        self.kek.emit_change(target.breaker.alive(), &target);
                    }
                }
            },
        }
        let Self { kek, call, .. } = &self;
        if class.is_some() {
            kek.counters.failures.fetch_add(1, Ordering::Relaxed);
        }
        let (kek_id, operation, kind) = (kek.id(), call.operation, class.map(KekErrorClass::kind));
        kek.terms.observers.emit(&Event::Called {
            kek_id,
            operation,
            elapsed,
            kind,
            abandoned: false,
            request_id,
        });
    }

    fn failed(&mut self, learn: impl FnOnce(&Target) -> Change) -> (Change, Arc<Target>) {
        let target = self.kek.targets.listed(self.target.name());
        // If it was a probe, it did its work.
        self.admissions.0.clear();
        (learn(&target), target)
    }

    fn elapsed(&self) -> Duration {
        self.kek.terms.clock.now().since(self.began)
    }
}

/// The caller left, or another KEK was quicker. If no caller waits for the timeout, only this shows
/// that a service hangs.
impl Drop for Underway<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let (elapsed, policy) = (self.elapsed(), &self.policy);
        let percentile = policy.hedge_percentile.unwrap_or(LATE_PERCENTILE);
        let known = self.kek.targets.find(self.target.name());
        let usual = known.and_then(|target| target.latency.percentile(percentile));
        let usual = usual.map(|usual| usual.max(Duration::from_millis(1)));
        let is_silent = elapsed >= (policy.timeout / NO_ANSWER).max(usual.unwrap_or_default());
        let is_late = usual.is_some_and(|usual| elapsed >= usual);
        if !is_silent && !is_late {
            return;
        }
        if self.also.is_none() {
            let error = KekError::unavailable(format!(
                "no answer within {elapsed:?}, and no caller waited any longer"
            ));
            let learn = |target: &Target| {
                if is_silent { target.breaker.failed(&error) } else { target.breaker.late(&error) }
            };
            let (change, target) = self.failed(learn);
            self.kek.emit_change_later(change, &target);
        }
        let Self { kek, call, .. } = self;
        kek.counters.failures.fetch_add(1, Ordering::Relaxed);
        let (kek_id, operation, kind) = (kek.id().clone(), call.operation, ErrorKind::Unavailable);
        kek.terms.observers.emit_later(LaterEvent::Abandoned { kek_id, operation, elapsed, kind });
    }
}

impl GuardedKek {
    fn emit_change(&self, change: Change, target: &Target) {
        let kek_id = self.id();
        // A target with the KEK's own name needs no other.
        let target = Some(&*target.name).filter(|name| *name != kek_id.as_str());
        match change {
            Change::None => {}
            Change::Opened => self.terms.observers.emit(&Event::BreakerOpened { kek_id, target }),
            Change::Closed => self.terms.observers.emit(&Event::BreakerClosed { kek_id, target }),
        }
    }

    /// As [`emit_change`](Self::emit_change), from a destructor. It closes no breaker.
    fn emit_change_later(&self, change: Change, target: &Target) {
        let kek_id = self.id().clone();
        let target = Some(target.name.clone()).filter(|name| **name != *kek_id.as_str());
        if change == Change::Opened {
            self.terms.observers.emit_later(LaterEvent::BreakerOpened { kek_id, target });
        }
    }
}
