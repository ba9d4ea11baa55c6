//! Decides how a provider is called: how long a try may take, whether there is another, and whether
//! the key service is asked at all.
//!
//! ```text
//!   request ──► retries ──► breaker of the target ──► budgets ──► timeout ──► provider (tries once)
//! ```
#![forbid(unsafe_code)]

mod batch;
mod breaker;
mod budget;
mod counts;
mod latency;
mod policy;
mod queue;
mod reported;
mod request_counter;
mod target;
mod underway;

use std::future::Future;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Either, select};

use breaker::Admission;
pub use breaker::BreakerState;
pub(crate) use breaker::Order;
pub use budget::CallBudget;
pub(crate) use budget::Lane;
use budget::Permit;
pub(crate) use counts::CallCounts;
use counts::Counters;
pub(crate) use policy::PolicyInForce;
pub use policy::{CallAdvice, CallPolicy, CallTarget};
pub use reported::report_request_id;
pub(crate) use reported::with_request_id;
pub(crate) use request_counter::RequestCounter;
use request_counter::RequestInFlight;
use target::Targets;
use underway::{Admissions, Underway};

use super::{
    BoxFuture, Dek, Health, KekError, KekErrorClass, KekId, KekProvider, Login, UnwrappedDek,
    WrappedDek,
};
use crate::clock::{Clock, Moment};
use crate::context::EncryptionContext;
use crate::observe::{CallSpan, Observers, Operation};
use crate::runtime::{Runtime, unconstrained};
use crate::suite::jitter;
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::sync::foreign::{Foreign, caught};

/// How many requests one caller makes at the same time of a provider that answers in this process.
const IN_PROCESS_AT_ONCE: usize = 64;
/// How much longer the pause before another try is after *throttled*.
const THROTTLED_FACTOR: u32 = 4;
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The part of the timeout that a call must have left to begin. A healthy key service answers in a
/// tenth of it.
const SHORTEST_TRY: u32 = 10;

/// The bounds of one request: until when it may make calls, and which lane of the budget they use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallBounds {
    pub(crate) ends: Moment,
    pub(crate) lane: Lane,
}

/// Waits if there is a runtime.
#[derive(Clone)]
pub(crate) struct Timer(Option<Arc<dyn Runtime>>);

impl Timer {
    pub(crate) fn new(runtime: Option<Arc<dyn Runtime>>) -> Self {
        Self(runtime)
    }

    pub(crate) fn can_wait(&self) -> bool {
        self.0.is_some()
    }

    async fn sleep(&self, duration: Duration) {
        if let Some(sleep) = self.sleep_boxed(duration) {
            sleep.await;
        }
    }

    /// A runtime that panics in place of sleeping lets every wait end at once.
    fn sleep_boxed(&self, duration: Duration) -> Option<BoxFuture<'static, ()>> {
        let sleep = |runtime: &Arc<dyn Runtime>| caught(|| Foreign::new(runtime.sleep(duration)));
        let sleep = self.0.as_ref().map(sleep)?;
        Some(sleep.map_or_else(
            || Box::pin(std::future::ready(())) as _,
            |sleep| Box::pin(sleep.map(drop)) as _,
        ))
    }

    /// Runs `work` for at most `limit`, or without a runtime to its end.
    pub(crate) async fn within<T>(
        &self,
        limit: Option<Duration>,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let over = limit.and_then(|limit| self.sleep_boxed(limit));
        let Some(over) = over else { return Some(work.await) };
        match select(std::pin::pin!(work), over).await {
            Either::Left((answer, _)) => Some(answer),
            Either::Right(_) => None,
        }
    }
}

/// The parameters of [`GuardedKek::new`], the same for all KEKs of an envelope.
#[derive(Clone)]
pub(crate) struct CallTerms {
    pub(crate) policy: PolicyInForce,
    pub(crate) budget: CallBudget,
    pub(crate) timer: Timer,
    pub(crate) clock: Clock,
    pub(crate) observers: Observers,
}

/// A provider behind the call policy: timeout, retries, budget and circuit breakers.
pub(crate) struct GuardedKek {
    provider: Arc<dyn KekProvider>,
    terms: CallTerms,
    targets: Targets,
    counters: Counters,
}

/// One call: the operation and the KEK ids. A rewrap has two, the old entry's and the provider's
/// own.
#[derive(Clone, Copy)]
struct Call<'a> {
    operation: Operation,
    about: &'a KekId,
    also: Option<&'a KekId>,
}

impl GuardedKek {
    pub(crate) fn new(provider: Arc<dyn KekProvider>, terms: CallTerms) -> Self {
        let targets = Targets::new(terms.policy, terms.clock.clone());
        Self { provider, terms, targets, counters: Counters::default() }
    }

    pub(crate) fn id(&self) -> &KekId {
        self.provider.id()
    }

    pub(crate) fn recognises(&self, kek_id: &KekId) -> bool {
        caught(|| self.provider.recognises(kek_id)).unwrap_or(false)
    }

    pub(crate) fn derives_deks(&self) -> bool {
        caught(|| self.provider.derives_deks()).unwrap_or(false)
    }

    pub(crate) fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        caught(|| self.provider.is_current(wrapped)).flatten()
    }

    /// Returns the version of the KEK that made `wrapped`.
    pub(crate) fn key_version(&self, wrapped: &WrappedDek) -> Option<Box<str>> {
        caught(|| self.provider.key_version(wrapped)).flatten()
    }

    pub(crate) fn login(&self) -> Option<Login> {
        caught(|| self.provider.login()).flatten()
    }

    /// Returns what answers a call about `kek_id`. It is looked up for each call, since a provider
    /// may learn its advice from its key service.
    pub(crate) fn target(&self, kek_id: &KekId) -> CallTarget {
        caught(|| self.provider.target(kek_id))
            .unwrap_or_else(|| CallTarget::new(self.id().as_str()))
    }

    fn policy(&self, target: &CallTarget) -> PolicyInForce {
        self.terms.policy.advised(target.advice())
    }

    /// Returns the worst breaker state of its targets, and the targets whose breaker is not closed.
    pub(crate) fn breakers(&self) -> (BreakerState, Vec<(Box<str>, BreakerState)>) {
        let targets = self.targets.not_closed();
        let is = |state: BreakerState| targets.iter().any(|(_, of_target)| *of_target == state);
        let worst =
            [BreakerState::Open, BreakerState::HalfOpen].into_iter().find(|state| is(*state));
        (worst.unwrap_or(BreakerState::Closed), targets)
    }

    pub(crate) fn counts(&self) -> CallCounts {
        self.counters.counts()
    }

    /// Returns how many requests of so many calls each the budgets allow one caller at the same
    /// time.
    pub(crate) fn at_once(&self, calls: usize) -> usize {
        let (deadline, target) = (self.terms.policy.deadline, self.target(self.id()));
        if target.advice().in_process {
            return IN_PROCESS_AT_ONCE;
        }
        let budgets = target.advice().budget.iter().chain([&self.terms.budget]);
        budgets.map(|budget| budget.at_once(deadline, calls)).min().unwrap_or(1)
    }

    pub(crate) async fn wrap(
        &self,
        bounds: CallBounds,
        context: &EncryptionContext,
        dek: &Dek,
    ) -> Result<WrappedDek, KekError> {
        self.retrying(bounds, self.own(Operation::Wrap), || self.provider.wrap(context, dek)).await
    }

    pub(crate) async fn unwrap(
        &self,
        bounds: CallBounds,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Result<UnwrappedDek, KekError> {
        let call = Call { operation: Operation::Unwrap, about: wrapped.kek_id(), also: None };
        self.retrying(bounds, call, || self.provider.unwrap(context, wrapped)).await
    }

    /// Unwraps without a call, if the provider can.
    pub(crate) fn unwrap_cached(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Option<UnwrappedDek> {
        caught(|| self.provider.unwrap_cached(context, wrapped)).flatten()
    }

    /// Tries once, for a caller that has other KEKs to ask and decides about the next try itself.
    pub(crate) async fn unwrap_once(
        &self,
        bounds: CallBounds,
        order: Order,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Result<UnwrappedDek, KekError> {
        let call = Call { operation: Operation::Unwrap, about: wrapped.kek_id(), also: None };
        self.once(bounds, call, order, || self.provider.unwrap(context, wrapped)).await
    }

    pub(crate) async fn generate(
        &self,
        bounds: CallBounds,
        context: &EncryptionContext,
    ) -> Result<(UnwrappedDek, WrappedDek), KekError> {
        self.retrying(bounds, self.own(Operation::Generate), || self.provider.generate(context))
            .await
    }

    pub(crate) async fn rewrap(
        &self,
        bounds: CallBounds,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Result<WrappedDek, KekError> {
        let call =
            Call { operation: Operation::Rewrap, about: wrapped.kek_id(), also: Some(self.id()) };
        self.retrying(bounds, call, || self.provider.rewrap(context, wrapped)).await
    }

    fn own(&self, operation: Operation) -> Call<'_> {
        Call { operation, about: self.id(), also: None }
    }

    /// Tries once, whatever the state of the breaker. The provider's advice does not apply: it is
    /// about using the KEK.
    pub(crate) async fn health(&self) -> Result<Health, KekError> {
        let limit = self.terms.policy.timeout;
        self.answer_within(limit, || self.provider.health()).await
    }

    /// Runs `work` within `limit`. A provider that panics counts as failed, and all that share the
    /// call see that failure.
    async fn answer_within<T, F>(
        &self,
        limit: Duration,
        work: impl FnOnce() -> F,
    ) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>> + Unpin,
    {
        let answer = self.terms.timer.within(Some(limit), self.answer(work)).await;
        answer.unwrap_or_else(|| Err(no_answer(limit)))
    }

    async fn answer<T, F>(&self, work: impl FnOnce() -> F) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>> + Unpin,
    {
        let Some(answer) = caught(|| Foreign::new(work())) else { return Err(panicked()) };
        unconstrained(answer).await.unwrap_or_else(|| Err(panicked()))
    }

    /// Closes the provider within the time of one try.
    pub(crate) fn close(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let limit = self.terms.policy.timeout;
            let Some(closing) = caught(|| Foreign::new(self.provider.close())) else { return };
            self.terms.timer.within(Some(limit), closing).await;
        })
    }

    async fn retrying<T, F>(
        &self,
        bounds: CallBounds,
        call: Call<'_>,
        mut work: impl FnMut() -> F,
    ) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>> + Unpin,
    {
        let mut tries = 0;
        loop {
            let error = match self.once(bounds, call, Order::Usual, &mut work).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            tries += 1;
            if !self.pause(bounds, tries, &error, call.about).await {
                return Err(error.after(tries));
            }
        }
    }

    /// Waits before the next try of a call about `kek_id`. Returns `false` if there is none.
    pub(crate) async fn pause(
        &self,
        bounds: CallBounds,
        tries: u32,
        error: &KekError,
        kek_id: &KekId,
    ) -> bool {
        let target = self.target(kek_id);
        if target.advice().in_process {
            return false;
        }
        let (policy, timer) = (self.policy(&target), &self.terms.timer);
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

    /// Returns how long to wait for this target before another is asked as well. `None` means
    /// without limit.
    pub(crate) fn hedge_after(&self, target: &CallTarget) -> Option<Duration> {
        let policy = self.policy(target);
        let percentile = policy.hedge_percentile.filter(|_| self.terms.timer.can_wait())?;
        let usual = self
            .targets
            .find(target.name())
            .and_then(|target| target.latency.percentile(percentile));
        // Until there are enough samples, half the timeout leaves the next KEK its time.
        Some(usual.unwrap_or(policy.timeout / 2).max(Duration::from_millis(1)))
    }

    /// Returns whether this target is asked in the usual order, or last because it was late too
    /// often.
    pub(crate) fn order(&self, target: &CallTarget) -> Order {
        let known = self.targets.find(target.name());
        known.map_or(Order::Usual, |target| target.breaker.order())
    }

    pub(crate) async fn sleep(&self, duration: Duration) {
        self.terms.timer.sleep(duration).await;
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

    async fn once<T, F>(
        &self,
        bounds: CallBounds,
        call: Call<'_>,
        order: Order,
        work: impl FnOnce() -> F,
    ) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>> + Unpin,
    {
        let target = self.target(call.about);
        if target.advice().in_process {
            return self.answer(work).await;
        }
        let also =
            call.also.map(|kek_id| self.target(kek_id)).filter(|also| also.name() != target.name());
        let policy = self.policy(&target);
        let mut admissions = Admissions(Vec::new());
        for target in std::iter::once(&target).chain(&also) {
            self.admit(target, order, &mut admissions)?;
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
            Underway { kek: self, call, policy, target, also, began, admissions, over: false };
        let limit = self.time_left(bounds).map_or(policy.timeout, |left| left.min(policy.timeout));
        let in_flight = RequestInFlight::begin();
        let span = CallSpan::new(self.id(), call.operation);
        let work = with_request_id(self.answer_within(limit, work));
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
}

fn no_answer(limit: Duration) -> KekError {
    KekError::unavailable(format!("no answer within {limit:?}"))
}

fn panicked() -> KekError {
    KekError::unavailable("the provider panicked")
}
