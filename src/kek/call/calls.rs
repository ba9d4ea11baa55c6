//! Calls to one service, a KEK's or a key store's: retries, breakers, budgets and timeouts.
#![forbid(unsafe_code)]

use std::future::Future;
use std::time::Duration;

use super::breaker::{Admission, Order};
use super::budget::Permit;
use super::policy::CallTarget;
use super::request_counter::RequestInFlight;
use super::service::{Asked, Call, Calls, Service};
use super::underway::{Admissions, NO_ANSWER, Underway};
use super::{CallBounds, CallBudget, with_request_id};
use crate::kek::{KekError, KekErrorClass};
use crate::observe::CallSpan;
use crate::runtime::unconstrained;
use crate::suite::jitter;
use crate::sync::atomic::Ordering;
use crate::sync::foreign::{Foreign, caught};

/// How much longer the pause before another try is after *throttled*.
const THROTTLED_FACTOR: u32 = 4;
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The part of the timeout that must be left for a call to begin. A healthy key service answers in
/// a tenth of it.
const SHORTEST_TRY: u32 = 10;

impl Calls {
    /// Asks `target` once within its timeout, whatever the state of the breaker.
    pub(crate) async fn checked<T, F>(
        &self,
        target: &CallTarget,
        work: impl FnOnce() -> F,
    ) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>> + Unpin,
    {
        self.answer_within(self.policy(target).timeout, work).await
    }

    /// Runs `work` within `limit`. A provider that panics counts as failed, and all callers that
    /// share the call see that failure.
    pub(super) async fn answer_within<T, F>(
        &self,
        limit: Duration,
        work: impl FnOnce() -> F,
    ) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>> + Unpin,
    {
        self.answer_or(limit, no_answer, work).await
    }

    /// Does the same as [`answer_within`](Self::answer_within), with the given error if there is no
    /// answer.
    async fn answer_or<T, F>(
        &self,
        limit: Duration,
        late: fn(Duration) -> KekError,
        work: impl FnOnce() -> F,
    ) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>> + Unpin,
    {
        let answer = self.terms.timer.within(Some(limit), self.answer(work)).await;
        answer.unwrap_or_else(|| Err(late(limit)))
    }

    async fn answer<T, F>(&self, work: impl FnOnce() -> F) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>> + Unpin,
    {
        let Some(answer) = caught(|| Foreign::new(work())) else { return Err(self.panicked()) };
        unconstrained(answer).await.unwrap_or_else(|| Err(self.panicked()))
    }

    /// Tries as often as the policy allows. `call` is evaluated before each try, since a provider
    /// may learn its advice from its key service.
    pub(crate) async fn retrying<T, F>(
        &self,
        bounds: CallBounds,
        call: impl Fn() -> Call,
        mut work: impl FnMut() -> F,
    ) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>> + Unpin,
    {
        let mut tries = 0;
        loop {
            let error = match self.once(bounds, call(), Order::Usual, &mut work).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            tries += 1;
            if !self.pause(bounds, tries, &error, &call().target).await {
                return Err(error.after(tries));
            }
        }
    }

    /// Waits before the next try of a call to `target`. Returns `false` if there is none.
    pub(crate) async fn pause(
        &self,
        bounds: CallBounds,
        tries: u32,
        error: &KekError,
        target: &CallTarget,
    ) -> bool {
        if target.advice().in_process {
            return false;
        }
        let (policy, timer) = (self.policy(target), &self.terms.timer);
        if !error.is_worth_a_retry() || tries >= policy.tries || !timer.can_wait() {
            return false;
        }
        let factor = if error.class() == KekErrorClass::Throttled { THROTTLED_FACTOR } else { 1 };
        let longest = policy
            .backoff
            .saturating_mul(factor.saturating_mul(1 << (tries - 1).min(16)))
            .min(LONGEST_PAUSE);
        let pause = longest.mul_f64(jitter()).max(error.retry_after().unwrap_or_default());
        // A try with less time left would be wasted.
        let needed = pause.saturating_add(policy.timeout / SHORTEST_TRY);
        if self.time_left(bounds).is_some_and(|left| left <= needed) {
            return false;
        }
        timer.sleep(pause).await;
        true
    }

    fn time_left(&self, bounds: CallBounds) -> Option<Duration> {
        self.terms.timer.can_wait().then(|| self.terms.clock.now().until(bounds.ends))
    }

    /// Waits for a turn and a permit of `budget`, as long as `needed` is left for the call.
    async fn enter(
        &self,
        budget: &CallBudget,
        bounds: CallBounds,
        needed: Duration,
    ) -> Result<Permit, KekError> {
        let left = self.time_left(bounds);
        let max_wait = left.map(|left| left.saturating_sub(needed));
        let hold = left.unwrap_or(Duration::MAX);
        let permit = budget.enter(bounds.lane, &self.terms.timer, max_wait, hold).await;
        let counter = match &permit {
            Some(permit) if permit.waited() => Some(&self.counters.budget_waits),
            Some(_) => None,
            None => Some(&self.counters.budget_refusals),
        };
        counter.inspect(|counter| _ = counter.fetch_add(1, Ordering::Relaxed));
        permit
            .ok_or_else(|| KekError::over_budget(format!("{budget:?} of this process is used up")))
    }

    /// Tries once.
    pub(super) async fn once<T, F>(
        &self,
        bounds: CallBounds,
        call: Call,
        order: Order,
        work: impl FnOnce() -> F,
    ) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>> + Unpin,
    {
        let Call { asked, target, also } = call;
        if target.advice().in_process {
            return self.answer(work).await;
        }
        let also = also.filter(|also| also.name() != target.name());
        let mut policy = self.policy(&target);
        if asked.is_of_many_rows() {
            policy.timeout = policy.deadline;
        }
        let mut admissions = Admissions(Vec::new());
        if !asked.passes_breakers() {
            for target in std::iter::once(&target).chain(&also) {
                self.admit(target, order, &mut admissions)?;
            }
        }
        // The scarcer budgets first, so that no permit of the envelope is held while waiting for
        // them.
        let mut budgets: Vec<&CallBudget> = Vec::new();
        let of_targets = [Some(&target), also.as_ref()].into_iter().flatten();
        for budget in of_targets
            .filter_map(|target| target.advice().budget.as_ref())
            .chain([&self.terms.budget])
        {
            if !budgets.iter().any(|entered| entered.is_same(budget)) {
                budgets.push(budget);
            }
        }
        let half =
            self.targets.find(target.name()).and_then(|target| target.latency.percentile(50));
        let needed = half.unwrap_or_default().max(policy.timeout / SHORTEST_TRY);
        let mut permits = Vec::new();
        for budget in budgets {
            permits.push(self.enter(budget, bounds, needed).await?);
        }
        permits.iter_mut().for_each(Permit::begin);
        self.counters.calls.fetch_add(1, Ordering::Relaxed);
        let began = self.terms.clock.now();
        let (target, also) = (&target, also.as_ref());
        let underway =
            Underway { calls: self, asked, policy, target, also, began, admissions, over: false };
        let limit = self.time_left(bounds).map_or(policy.timeout, |left| left.min(policy.timeout));
        // Other work left too little of the deadline, which says nothing about the called service.
        let late: fn(Duration) -> KekError =
            if limit < policy.timeout / NO_ANSWER { cut_short } else { no_answer };
        let in_flight = RequestInFlight::begin();
        let span = self.span(asked);
        let work = with_request_id(self.answer_or(limit, late, work));
        let (answer, request_id) = span.around(work).await;
        span.ended(answer.as_ref().err().map(|error| error.class().kind()));
        drop((in_flight, permits));
        underway.ended(answer.as_ref().err(), request_id.as_deref());
        answer
    }

    fn admit(
        &self,
        target: &CallTarget,
        order: Order,
        admissions: &mut Admissions,
    ) -> Result<(), KekError> {
        let Some(target) = self.targets.find(target.name()) else { return Ok(()) };
        let admission = match target.breaker.admit()? {
            Admission::Regular if order == Order::Probe => Admission::Probe,
            admission => admission,
        };
        admissions.0.push((target, admission));
        Ok(())
    }

    fn panicked(&self) -> KekError {
        KekError::unavailable(match self.service {
            Service::Kek(_) => "the provider panicked",
            Service::Store(_) => "the key store panicked",
        })
    }

    fn span(&self, asked: Asked) -> CallSpan {
        match (&self.service, asked) {
            (Service::Kek(kek_id), Asked::OfKek(operation)) => CallSpan::new(kek_id, operation),
            // A store's client has its own spans.
            _ => CallSpan::none(),
        }
    }
}

fn no_answer(limit: Duration) -> KekError {
    KekError::unavailable(format!("no answer within {limit:?}"))
}

/// Does the same as [`no_answer`], if the time was too short to blame the service.
fn cut_short(limit: Duration) -> KekError {
    no_answer(limit).on_the_way()
}
