//! A call in flight, and what its end says about the key service.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::super::{KekError, KekErrorClass, KekId};
use super::breaker::{Admission, Change};
use super::policy::{CallTarget, PolicyInForce};
use super::service::{Asked, Calls, Service};
use super::target::Target;
use crate::clock::Moment;
use crate::error::ErrorKind;
use crate::observe::{Event, LaterEvent};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;

/// The part of the timeout after which a dropped call counts as unanswered.
pub(super) const NO_ANSWER: u32 = 4;
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

/// A call in flight. Dropping it before its response can say as much as a response.
pub(super) struct Underway<'a> {
    pub(super) calls: &'a Calls,
    pub(super) asked: Asked,
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
        let (elapsed, targets) = (self.elapsed(), &self.calls.targets);
        let class = failure.map(KekError::class);
        match failure {
            None => {
                let target = targets.listed(self.target.name());
                target.latency.record(elapsed);
                self.calls.emit_change(target.breaker.alive(), &target);
                if let Some(also) = self.also.and_then(|also| targets.find(also.name())) {
                    self.calls.emit_change(also.breaker.alive(), &also);
                }
            }
            // The provider or an intermediary decided it, which says nothing about the key service.
            Some(error) if !error.was_asked() || error.is_from_the_way() || self.also.is_some() => {
            }
            Some(error) => match error.class() {
                // A role that may not write can still read.
                KekErrorClass::Misconfigured if self.is_of_store() => {}
                KekErrorClass::Unavailable | KekErrorClass::Misconfigured => {
                    let (change, target) = self.failed(|target| target.breaker.failed(error));
                    self.calls.emit_change(change, &target);
                }
                // It responded and refused this caller or this message.
                KekErrorClass::Denied | KekErrorClass::Throttled | KekErrorClass::Invalid => {
                    if let Some(target) = targets.find(self.target.name()) {
                        self.calls.emit_change(target.breaker.alive(), &target);
                    }
                }
            },
        }
        let Self { calls, asked, .. } = &self;
        if class.is_some() {
            calls.counters.failures.fetch_add(1, Ordering::Relaxed);
        }
        let (kind, abandoned) = (class.map(KekErrorClass::kind), false);
        match (&calls.service, *asked) {
            (Service::Kek(kek_id), Asked::OfKek(operation)) => {
                let called =
                    Event::Called { kek_id, operation, elapsed, kind, abandoned, request_id };
                calls.terms.observers.emit(&called);
            }
            (Service::Store(store), Asked::OfStore(operation)) => {
                let called = Event::StoreCalled { store, operation, elapsed, kind, abandoned };
                calls.terms.observers.emit(&called);
            }
            _ => {}
        }
    }

    fn is_of_store(&self) -> bool {
        matches!(self.calls.service, Service::Store(_))
    }

    fn failed(&mut self, learn: impl FnOnce(&Target) -> Change) -> (Change, Arc<Target>) {
        let target = self.calls.targets.listed(self.target.name());
        // If it was a probe, it has done its work.
        self.admissions.0.clear();
        (learn(&target), target)
    }

    fn elapsed(&self) -> Duration {
        self.calls.terms.clock.now().since(self.began)
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
        let known = self.calls.targets.find(self.target.name());
        let usual = known.and_then(|target| target.latency.percentile(percentile));
        let usual = usual.map(|usual| usual.max(Duration::from_millis(1)));
        let is_silent = elapsed >= (policy.timeout / NO_ANSWER).max(usual.unwrap_or_default());
        // A store has no other target that could be asked first.
        let is_late = matches!(self.calls.service, Service::Kek(_))
            && usual.is_some_and(|usual| elapsed >= usual);
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
            self.calls.emit_change_later(change, &target);
        }
        let Self { calls, asked, .. } = self;
        calls.counters.failures.fetch_add(1, Ordering::Relaxed);
        let kind = ErrorKind::Unavailable;
        let later = match (&calls.service, *asked) {
            (Service::Kek(kek_id), Asked::OfKek(operation)) => {
                LaterEvent::Abandoned { kek_id: kek_id.clone(), operation, elapsed, kind }
            }
            (Service::Store(store), Asked::OfStore(operation)) => {
                LaterEvent::StoreAbandoned { store: store.clone(), operation, elapsed, kind }
            }
            _ => return,
        };
        calls.terms.observers.emit_later(later);
    }
}

impl Calls {
    fn emit_change(&self, change: Change, target: &Target) {
        let event = match (&self.service, change) {
            (_, Change::None) => return,
            (Service::Kek(kek_id), Change::Opened) => {
                Event::BreakerOpened { kek_id, target: other_name(kek_id, target) }
            }
            (Service::Kek(kek_id), Change::Closed) => {
                Event::BreakerClosed { kek_id, target: other_name(kek_id, target) }
            }
            (Service::Store(store), Change::Opened) => Event::StoreBreakerOpened { store },
            (Service::Store(store), Change::Closed) => Event::StoreBreakerClosed { store },
        };
        self.terms.observers.emit(&event);
    }

    /// Does the same as [`emit_change`](Self::emit_change), from a destructor. It closes no
    /// breaker.
    fn emit_change_later(&self, change: Change, target: &Target) {
        if change != Change::Opened {
            return;
        }
        self.terms.observers.emit_later(match &self.service {
            Service::Kek(kek_id) => {
                let target = other_name(kek_id, target).map(Into::into);
                LaterEvent::BreakerOpened { kek_id: kek_id.clone(), target }
            }
            Service::Store(store) => LaterEvent::StoreBreakerOpened { store: store.clone() },
        });
    }
}

/// A target with the KEK's own name needs no other.
fn other_name<'t>(kek_id: &KekId, target: &'t Target) -> Option<&'t str> {
    Some(&*target.name).filter(|name| *name != kek_id.as_str())
}
