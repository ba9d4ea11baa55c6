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
mod calls;
mod counts;
mod latency;
mod policy;
mod queue;
mod reported;
mod request_counter;
mod service;
mod target;
mod underway;

use std::future::Future;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Either, select};

pub use breaker::BreakerState;
pub(crate) use breaker::Order;
pub use budget::CallBudget;
pub(crate) use budget::Lane;
pub(crate) use counts::CallCounts;
pub(crate) use policy::PolicyInForce;
pub use policy::{CallAdvice, CallPolicy, CallTarget};
pub use reported::report_request_id;
pub(crate) use reported::with_request_id;
pub(crate) use request_counter::RequestCounter;
pub(crate) use service::{Asked, Call, Calls, Service};

use super::{
    BoxFuture, Dek, Health, KekError, KekId, KekProvider, Login, UnwrappedDek, WrappedDek,
};
use crate::clock::{Clock, Moment};
use crate::context::EncryptionContext;
use crate::observe::{Observers, Operation};
use crate::runtime::Runtime;
use crate::sync::Arc;
use crate::sync::foreign::{Foreign, caught};

/// How many requests one caller makes at the same time to a provider that answers in this process.
const IN_PROCESS_AT_ONCE: usize = 64;

/// The bounds of one request: its deadline, and which lane of the budget it uses.
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

    pub(super) async fn sleep(&self, duration: Duration) {
        if let Some(sleep) = self.sleep_boxed(duration) {
            sleep.await;
        }
    }

    /// With a runtime that panics instead of sleeping, every wait ends at once.
    fn sleep_boxed(&self, duration: Duration) -> Option<BoxFuture<'static, ()>> {
        let sleep = |runtime: &Arc<dyn Runtime>| caught(|| Foreign::new(runtime.sleep(duration)));
        let sleep = self.0.as_ref().map(sleep)?;
        Some(sleep.map_or_else(
            || Box::pin(std::future::ready(())) as _,
            |sleep| Box::pin(sleep.map(drop)) as _,
        ))
    }

    /// Runs `work` for at most `limit`, or to its end if there is no runtime.
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
    calls: Calls,
}

impl GuardedKek {
    pub(crate) fn new(provider: Arc<dyn KekProvider>, terms: CallTerms) -> Self {
        let calls = Calls::new(Service::Kek(provider.id().clone()), terms);
        Self { provider, calls }
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

    /// Returns the target of a call about `kek_id`. It is looked up for each call, since a provider
    /// may learn its advice from its key service.
    pub(crate) fn target(&self, kek_id: &KekId) -> CallTarget {
        caught(|| self.provider.target(kek_id))
            .unwrap_or_else(|| CallTarget::new(self.id().as_str()))
    }

    /// Returns the worst breaker state of its targets, and the targets whose breaker is not closed.
    pub(crate) fn breakers(&self) -> (BreakerState, Vec<(Box<str>, BreakerState)>) {
        self.calls.breakers()
    }

    pub(crate) fn counts(&self) -> CallCounts {
        self.calls.counts()
    }

    /// Returns how many requests of `calls` calls each the budgets allow one caller at the same
    /// time.
    pub(crate) fn at_once(&self, calls: usize) -> usize {
        let (deadline, target) = (self.calls.terms.policy.deadline, self.target(self.id()));
        if target.advice().in_process {
            return IN_PROCESS_AT_ONCE;
        }
        let budgets = target.advice().budget.iter().chain([&self.calls.terms.budget]);
        budgets.map(|budget| budget.at_once(deadline, calls)).min().unwrap_or(1)
    }

    pub(crate) async fn wrap(
        &self,
        bounds: CallBounds,
        context: &EncryptionContext,
        dek: &Dek,
    ) -> Result<WrappedDek, KekError> {
        let call = || self.own(Operation::Wrap);
        self.calls.retrying(bounds, call, || self.provider.wrap(context, dek)).await
    }

    pub(crate) async fn unwrap(
        &self,
        bounds: CallBounds,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Result<UnwrappedDek, KekError> {
        let call = || self.call(Operation::Unwrap, wrapped.kek_id());
        self.calls.retrying(bounds, call, || self.provider.unwrap(context, wrapped)).await
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
        let call = self.call(Operation::Unwrap, wrapped.kek_id());
        self.calls.once(bounds, call, order, || self.provider.unwrap(context, wrapped)).await
    }

    pub(crate) async fn generate(
        &self,
        bounds: CallBounds,
        context: &EncryptionContext,
    ) -> Result<(UnwrappedDek, WrappedDek), KekError> {
        let call = || self.own(Operation::Generate);
        self.calls.retrying(bounds, call, || self.provider.generate(context)).await
    }

    /// Returns whether a rewrap is one call: the key service does it, or the provider makes no
    /// call.
    pub(crate) fn rewraps_in_one_call(&self) -> bool {
        caught(|| self.provider.rewraps_in_service()).unwrap_or(false)
            || self.target(self.id()).advice().in_process
    }

    pub(crate) async fn rewrap(
        &self,
        bounds: CallBounds,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Result<WrappedDek, KekError> {
        let call = || {
            let also = Some(self.target(self.id()));
            Call { also, ..self.call(Operation::Rewrap, wrapped.kek_id()) }
        };
        self.calls.retrying(bounds, call, || self.provider.rewrap(context, wrapped)).await
    }

    fn own(&self, operation: Operation) -> Call {
        self.call(operation, self.id())
    }

    fn call(&self, operation: Operation, about: &KekId) -> Call {
        Call { asked: Asked::OfKek(operation), target: self.target(about), also: None }
    }

    /// Waits before the next try of a call about `kek_id`. Returns `false` if there is none.
    pub(crate) async fn pause(
        &self,
        bounds: CallBounds,
        tries: u32,
        error: &KekError,
        kek_id: &KekId,
    ) -> bool {
        self.calls.pause(bounds, tries, error, &self.target(kek_id)).await
    }

    /// Tries once, whatever the state of the breaker. The provider's advice does not apply, since
    /// it is about using the KEK.
    pub(crate) async fn health(&self) -> Result<Health, KekError> {
        let limit = self.calls.terms.policy.timeout;
        self.calls.answer_within(limit, || self.provider.health()).await
    }

    /// Closes the provider within the time of one try.
    pub(crate) fn close(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let limit = self.calls.terms.policy.timeout;
            let Some(closing) = caught(|| Foreign::new(self.provider.close())) else { return };
            self.calls.terms.timer.within(Some(limit), closing).await;
        })
    }

    /// Returns how long to wait for this target before another is also asked. `None` means no
    /// limit.
    pub(crate) fn hedge_after(&self, target: &CallTarget) -> Option<Duration> {
        let policy = self.calls.policy(target);
        let percentile = policy.hedge_percentile.filter(|_| self.calls.terms.timer.can_wait())?;
        let usual = self
            .calls
            .targets
            .find(target.name())
            .and_then(|target| target.latency.percentile(percentile));
        // Until there are enough samples, half the timeout leaves time for the next KEK.
        Some(usual.unwrap_or(policy.timeout / 2).max(Duration::from_millis(1)))
    }

    /// Returns whether this target is asked in the usual order, or last because it was late too
    /// often.
    pub(crate) fn order(&self, target: &CallTarget) -> Order {
        let known = self.calls.targets.find(target.name());
        known.map_or(Order::Usual, |target| target.breaker.order())
    }

    pub(crate) async fn sleep(&self, duration: Duration) {
        self.calls.terms.timer.sleep(duration).await;
    }
}
