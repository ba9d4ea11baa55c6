//! The one place that decides how a provider is called: how long a try may take, whether there is another, and whether the key
//! service is asked at all.
//!
//! ```text
//!  question ──► retries ──► breaker ──► budgets ──► timeout ──► provider (tries once)
//! ```
#![forbid(unsafe_code)]

mod breaker;
mod budget;
mod latency;
mod policy;
mod wire;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Either, select};

pub use breaker::BreakerState;
use breaker::{Breaker, Change};
pub use budget::CallBudget;
use budget::Place;
pub(crate) use budget::Share;
use latency::Latency;
pub(crate) use policy::PolicyInForce;
pub use policy::{CallAdvice, CallPolicy, CallTarget};
use wire::OnItsWay;
pub(crate) use wire::Wire;

use super::{BoxFuture, Dek, Health, KekError, KekErrorClass, KekId, KekProvider, UnwrappedDek, WrappedDek};
use crate::context::EncryptionContext;
use crate::memory::clock::{Clock, Moment};
use crate::observer::{Event, Observers, Operation};
use crate::runtime::Runtime;
use crate::suite::spread;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU64, Ordering};

/// How much longer the pause before another try is after *throttled*.
const THROTTLED_FACTOR: u32 = 4;
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What a question may cost in all: until when it may be asked, and whose share of the budget pays.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) ends: Moment,
    pub(crate) share: Share,
}

/// Waits, where there is a runtime to do it.
#[derive(Clone)]
pub(crate) struct Timer(Option<Arc<dyn Runtime>>);

impl Timer {
    pub(crate) fn new(runtime: Option<Arc<dyn Runtime>>) -> Self {
        Self(runtime)
    }

    fn can_wait(&self) -> bool {
        self.0.is_some()
    }

    async fn sleep(&self, duration: Duration) {
        if let Some(runtime) = &self.0 {
            runtime.sleep(duration).await;
        }
    }

    /// Runs `work` to its end, `limit` at most; without a runtime, to its end.
    async fn within<T>(&self, limit: Option<Duration>, work: impl Future<Output = T>) -> Option<T> {
        let (Some(runtime), Some(limit)) = (&self.0, limit) else { return Some(work.await) };
        match select(std::pin::pin!(work), runtime.sleep(limit)).await {
            Either::Left((answer, _)) => Some(answer),
            Either::Right(_) => None,
        }
    }
}

/// What [`Caller::new`] takes over, the same for all KEKs of an envelope.
#[derive(Clone)]
pub(crate) struct CallTerms {
    pub(crate) policy: PolicyInForce,
    pub(crate) budget: CallBudget,
    pub(crate) timer: Timer,
    pub(crate) clock: Clock,
    pub(crate) observers: Observers,
}

/// A provider, called as the policy says.
pub(crate) struct Caller {
    provider: Arc<dyn KekProvider>,
    terms: CallTerms,
    breaker: Breaker,
    latency: Latency,
    calls: AtomicU64,
    failures: AtomicU64,
}

impl Caller {
    pub(crate) fn new(provider: Arc<dyn KekProvider>, terms: CallTerms) -> Self {
        let breaker = Breaker::new(&terms.policy, terms.clock.clone());
        let (calls, failures) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { provider, terms, breaker, latency: Latency::new(), calls, failures }
    }

    pub(crate) fn id(&self) -> &KekId {
        self.provider.id()
    }

    pub(crate) fn recognises(&self, kek_id: &KekId) -> bool {
        self.provider.recognises(kek_id)
    }

    pub(crate) fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        self.provider.is_current(wrapped)
    }

    /// Asked anew for each call: a provider may learn what it advises from its key service.
    fn policy(&self) -> (PolicyInForce, Option<CallBudget>) {
        let target = self.provider.target(self.id());
        (self.terms.policy.advised(target.advice()), target.advice().budget.clone())
    }

    pub(crate) fn breaker(&self) -> BreakerState {
        self.breaker.state()
    }

    /// Calls made, and how many of them failed.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.calls.load(Ordering::Relaxed), self.failures.load(Ordering::Relaxed))
    }

    pub(crate) async fn wrap(
        &self,
        question: Question,
        context: &EncryptionContext,
        dek: &Dek,
    ) -> Result<WrappedDek, KekError> {
        self.retrying(question, Operation::Wrap, || self.provider.wrap(context, dek)).await
    }

    pub(crate) async fn unwrap(
        &self,
        question: Question,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Result<UnwrappedDek, KekError> {
        self.retrying(question, Operation::Unwrap, || self.provider.unwrap(context, wrapped)).await
    }

    /// For whoever has another KEK to ask, and decides by itself about the next try.
    pub(crate) async fn unwrap_once(
        &self,
        question: Question,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Result<UnwrappedDek, KekError> {
        self.once(question, Operation::Unwrap, self.provider.unwrap(context, wrapped)).await
    }

    pub(crate) async fn generate(
        &self,
        question: Question,
        context: &EncryptionContext,
    ) -> Result<(UnwrappedDek, WrappedDek), KekError> {
        self.retrying(question, Operation::Generate, || self.provider.generate(context)).await
    }

    pub(crate) async fn rewrap(
        &self,
        question: Question,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Result<WrappedDek, KekError> {
        self.retrying(question, Operation::Rewrap, || self.provider.rewrap(context, wrapped)).await
    }

    /// One try, whatever the breaker says: whoever asks for the health wants to know. What the provider advises is about using the KEK.
    pub(crate) async fn health(&self) -> Result<Health, KekError> {
        let limit = self.terms.policy.timeout;
        let answer = AssertUnwindSafe(self.provider.health()).catch_unwind();
        self.terms
            .timer
            .within(Some(limit), answer)
            .await
            .map_or_else(|| Err(no_answer(limit)), |answer| answer.unwrap_or_else(|_| Err(panicked())))
    }

    /// Lets the provider give up what it holds, within the time of one try.
    pub(crate) fn close(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let limit = self.terms.policy.timeout;
            let closing = AssertUnwindSafe(async { self.provider.close().await }).catch_unwind();
            self.terms.timer.within(Some(limit), closing).await;
        })
    }

    async fn retrying<T, F>(
        &self,
        question: Question,
        operation: Operation,
        mut work: impl FnMut() -> F,
    ) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>>,
    {
        let mut tries = 0;
        loop {
            let error = match self.once(question, operation, work()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            tries += 1;
            if !self.pause(question, tries, &error).await {
                return Err(error.after(tries));
            }
        }
    }

    /// Waits before the next try; `false` if there is none.
    pub(crate) async fn pause(&self, question: Question, tries: u32, error: &KekError) -> bool {
        let ((policy, _), timer) = (self.policy(), &self.terms.timer);
        if !error.is_worth_a_retry() || tries >= policy.tries || !timer.can_wait() {
            return false;
        }
        let factor = if error.class() == KekErrorClass::Throttled { THROTTLED_FACTOR } else { 1 };
        let longest = policy.backoff.saturating_mul(factor.saturating_mul(1 << (tries - 1).min(16))).min(LONGEST_PAUSE);
        let pause = longest.mul_f64(spread()).max(error.retry_after().unwrap_or_default());
        // A key service that answers at all does so in a tenth of the timeout: a try with less left is a call for nothing.
        if self.time_left(question).is_some_and(|left| left <= pause + policy.timeout / 10) {
            return false;
        }
        timer.sleep(pause).await;
        true
    }

    /// How long to wait for this KEK before another is asked as well; `None`: as long as it takes.
    pub(crate) fn hedge_after(&self) -> Option<Duration> {
        let (policy, _) = self.policy();
        let percentile = policy.hedge_percentile.filter(|_| self.terms.timer.can_wait())?;
        // Until there are enough answers to go by: half the timeout leaves the next KEK its time.
        Some(self.latency.percentile(percentile).unwrap_or(policy.timeout / 2).max(Duration::from_millis(1)))
    }

    pub(crate) async fn sleep(&self, duration: Duration) {
        self.terms.timer.sleep(duration).await;
    }

    fn time_left(&self, question: Question) -> Option<Duration> {
        self.terms.timer.can_wait().then(|| self.terms.clock.now().until(question.ends))
    }

    async fn enter(&self, budget: &CallBudget, question: Question) -> Result<Place, KekError> {
        let place = budget.enter(question.share, &self.terms.timer, self.time_left(question)).await;
        place.ok_or_else(|| KekError::throttled(format!("{budget:?} of this process used up")).without_asking())
    }

    async fn once<T>(
        &self,
        question: Question,
        operation: Operation,
        work: impl Future<Output = Result<T, KekError>>,
    ) -> Result<T, KekError> {
        let CallTerms { budget, timer, clock, observers, .. } = &self.terms;
        self.breaker.admit()?;
        let (policy, shared) = self.policy();
        // The scarcer one first: nobody holds a place of the envelope's while he waits for it.
        let shared = match &shared {
            Some(shared) => Some(self.enter(shared, question).await?),
            None => None,
        };
        let places = (shared, self.enter(budget, question).await?);
        self.calls.fetch_add(1, Ordering::Relaxed);
        let began = clock.now();
        let limit = self.time_left(question).map_or(policy.timeout, |left| left.min(policy.timeout));
        let on_its_way = OnItsWay::begin();
        // A provider that panics is one that fails: whoever shares the call learns of it as of any failure.
        let answer = timer.within(Some(limit), AssertUnwindSafe(work).catch_unwind()).await;
        drop((on_its_way, places));
        let elapsed = clock.now().since(began);
        let answer = answer.map_or_else(|| Err(no_answer(limit)), |answer| answer.unwrap_or_else(|_| Err(panicked())));
        self.learn_from(answer.as_ref().err(), elapsed);
        let kind = answer.as_ref().err().map(|error| error.class().kind());
        observers.tell(&Event::Called { kek_id: self.id(), operation, elapsed, kind });
        answer
    }

    fn learn_from(&self, failure: Option<&KekError>, elapsed: Duration) {
        if failure.is_some() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        let change = match failure.map(|error| (error, error.class())) {
            None => {
                self.latency.record(elapsed);
                self.breaker.alive()
            }
            // It answered, and with authority.
            Some((_, KekErrorClass::Denied | KekErrorClass::Throttled)) => self.breaker.alive(),
            // Says nothing of the key service: a provider may know by itself that a wrapped key is none.
            Some((_, KekErrorClass::Invalid)) => Change::None,
            Some((error, KekErrorClass::Unavailable | KekErrorClass::Misconfigured)) => self.breaker.failed(error),
        };
        let kek_id = self.id();
        match change {
            Change::None => {}
            Change::Opened => self.terms.observers.tell(&Event::BreakerOpened { kek_id }),
            Change::Closed => self.terms.observers.tell(&Event::BreakerClosed { kek_id }),
        }
    }
}

fn no_answer(limit: Duration) -> KekError {
    KekError::unavailable(format!("no answer within {limit:?}"))
}

fn panicked() -> KekError {
    KekError::unavailable("the provider panicked")
}
