//! Asks the policy, and holds operations and handles to what it decided.
#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;

use super::decisions::{Asked, Decisions, Entry, Stamp};
use super::options::OptionsInForce;
use super::{BoxFuture, Decision, Policy, PolicyOptions, Question};
use crate::caller::{Action, Caller};
use crate::clock::{Clock, Moment};
use crate::context::EncryptionContext;
use crate::dek::DekSource;
use crate::error::{Error, ErrorKind};
use crate::format::KekId;
use crate::kek::call::{GuardedKek, Timer};
use crate::observe::{Event, Observers};

/// How often the policy is asked again because it was reloaded during the request.
const ATTEMPTS: usize = 3;
/// The pause before an unavailable policy is asked again about a question whose last known decision
/// serves.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a guard has from the source of the DEKs that it stands in front of.
struct Surroundings {
    /// The KEKs that encrypt.
    writing: Box<[KekId]>,
    /// All KEKs.
    all: Box<[KekId]>,
    clock: Clock,
    timer: Timer,
    observers: Observers,
}

impl Surroundings {
    fn of(source: &DekSource) -> Self {
        let ids = |keks: &[Arc<GuardedKek>]| keks.iter().map(|kek| kek.id().clone()).collect();
        let (keks, options) = (source.keks(), source.options());
        Self {
            writing: ids(&keks.writing),
            all: ids(&keks.reading),
            clock: options.clock.clone(),
            timer: Timer::new(options.runtime.clone()),
            observers: options.observers.clone(),
        }
    }
}

/// A policy with its cached decisions, in front of one envelope.
pub(crate) struct Guard {
    policy: Arc<dyn Policy>,
    options: OptionsInForce,
    decisions: Decisions,
    /// How often decisions were dropped here.
    epoch: AtomicU64,
    surroundings: Surroundings,
}

/// The proof that an operation may be done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Granted {
    stamp: Stamp,
    until: Moment,
}

/// Completes when it is known whether an operation may be done.
pub(crate) enum Permit<'a> {
    Known(Option<Result<Granted, Error>>),
    Asking(BoxFuture<'a, Result<Granted, Error>>),
}

impl Future for Permit<'_> {
    type Output = Result<Granted, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            // A future is not polled after its end. If it is, it stays silent.
            Self::Known(known) => known.take().map_or(Poll::Pending, Poll::Ready),
            Self::Asking(asking) => asking.as_mut().poll(cx),
        }
    }
}

impl Guard {
    pub(crate) fn new(
        policy: Arc<dyn Policy>,
        options: PolicyOptions,
        source: &DekSource,
    ) -> Result<Self, Error> {
        let options = options.check(source.options().limits.max_age)?;
        let (decisions, surroundings) = (Decisions::new(&options), Surroundings::of(source));
        Ok(Self { policy, options, decisions, epoch: AtomicU64::new(0), surroundings })
    }

    /// Whether an operation may be done.
    #[cold]
    #[inline(never)]
    pub(crate) fn permit<'a>(
        &'a self,
        operation: Action,
        context: &'a EncryptionContext,
        caller: Option<&'a Caller>,
    ) -> Permit<'a> {
        let asked = Asked { operation, context, caller };
        match self.known(asked) {
            Some(known) => Permit::Known(Some(known)),
            None => Permit::Asking(Box::pin(self.ask(asked))),
        }
    }

    /// Whether an operation may be done, if that is known without asking the policy.
    #[cold]
    #[inline(never)]
    pub(crate) fn permit_cached(
        &self,
        operation: Action,
        context: &EncryptionContext,
        caller: Option<&Caller>,
    ) -> Option<Result<(), Error>> {
        self.known(Asked { operation, context, caller }).map(|known| known.map(|_| ()))
    }

    /// Whether a handle may be given out: as [`permit`](Self::permit), if decisions are cached at
    /// all.
    pub(crate) async fn lease(
        self: &Arc<Self>,
        operation: Action,
        context: &EncryptionContext,
        caller: Option<&Caller>,
    ) -> Result<Permission, Error> {
        if self.options.cache_for.is_zero() {
            let detail = "policy: cache_for is 0, so that no decision lasts as long as a handle";
            return Err(Error::new(ErrorKind::InvalidOption, detail));
        }
        let granted = self.permit(operation, context, caller).await?;
        Ok(Permission { guard: self.clone(), granted })
    }

    /// Drops every decision, and ends the handles that rest on one.
    pub(crate) fn forget(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// The state of the rules now. `None` if the policy does not tell.
    fn stamp(&self) -> Option<Stamp> {
        let generation = catch_unwind(AssertUnwindSafe(|| self.policy.generation()));
        let generation = generation.map_err(std::mem::forget).ok()?;
        Some(Stamp { generation, epoch: self.epoch.load(Ordering::Acquire) })
    }

    fn now(&self) -> Moment {
        self.surroundings.clock.now()
    }

    fn emit(&self, event: &Event<'_>) {
        self.surroundings.observers.emit(event);
    }

    #[inline(never)]
    fn known(&self, asked: Asked<'_>) -> Option<Result<Granted, Error>> {
        let every = self.options.report_every;
        let quick = |entry: &Entry, uses: u32| {
            let is_to_report = every > 0 && uses.is_multiple_of(every);
            (entry.decision.is_allowed() && !is_to_report).then(|| entry.granted())
        };
        match self.decisions.with(asked, self.stamp()?, self.now(), quick)? {
            Ok(granted) => Some(Ok(granted)),
            Err(entry) => {
                self.report(asked, &entry.decision, None);
                Some(granted(asked, &entry))
            }
        }
    }

    async fn ask(&self, asked: Asked<'_>) -> Result<Granted, Error> {
        for _ in 0..ATTEMPTS {
            let began = self.now();
            let Some(stamp) = self.stamp() else { break };
            let answer = self.answer(asked, began).await;
            if self.stamp() != Some(stamp) {
                // The answer may be that of the rules before.
                continue;
            }
            let took = Some(self.now().since(began));
            return match answer {
                Ok(decision) => {
                    let entry = self.entry(decision, stamp, began);
                    if !self.now().is_past(entry.until) {
                        self.decisions.put(asked, entry.clone());
                    }
                    self.report(asked, &entry.decision, took);
                    granted(asked, &entry)
                }
                Err(error) => self.settle_without(asked, error, stamp, took),
            };
        }
        let error = Error::new(ErrorKind::Provider, "its rules changed during each request");
        self.fail(asked, &error, None, None)
    }

    /// Asks the policy once. Whatever it does ends in an answer.
    async fn answer(&self, asked: Asked<'_>, now: Moment) -> Result<Decision, Error> {
        let Surroundings { writing, all, timer, .. } = &self.surroundings;
        let nanos = u64::try_from(now.wall_nanos()).unwrap_or_default();
        let with_id =
            |caller: &&Caller| self.options.with_request_id && caller.request_id().is_some();
        let question = Question {
            operation: asked.operation,
            domain: self.options.domain.as_deref(),
            kek_ids: if asked.operation == Action::Encrypt { writing } else { all },
            context: asked.context,
            caller: asked.caller,
            time: SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos),
            request_id: asked.caller.filter(with_id).and_then(Caller::request_id),
        };
        let decision = AssertUnwindSafe(async { self.policy.decide(&question).await });
        match timer.within(Some(self.options.timeout), decision.catch_unwind()).await {
            Some(Ok(answer)) => answer,
            Some(Err(panic)) => {
                // Its destructor is foreign code too.
                std::mem::forget(panic);
                Err(Error::new(ErrorKind::Provider, "it panicked"))
            }
            None => Err(Error::new(ErrorKind::Unavailable, "it did not answer in time")),
        }
    }

    fn entry(&self, decision: Decision, stamp: Stamp, began: Moment) -> Entry {
        let cache_for = self.options.cache_for;
        let until = began.plus(decision.valid_for.map_or(cache_for, |own| own.min(cache_for)));
        let last_known_until = until.plus(self.options.last_known_for);
        Entry { decision: Arc::new(decision), stamp, until, last_known_until }
    }

    /// The policy gave no decision. In an outage the last known one may serve.
    fn settle_without(
        &self,
        asked: Asked<'_>,
        error: Error,
        stamp: Stamp,
        took: Option<Duration>,
    ) -> Result<Granted, Error> {
        let now = self.now();
        let serves = |entry: &Entry| {
            error.is_retryable() && entry.stamp == stamp && !now.is_past(entry.last_known_until)
        };
        let last = self.decisions.last(asked).filter(serves);
        self.fail(asked, &error, last, took)
    }

    fn fail(
        &self,
        asked: Asked<'_>,
        error: &Error,
        last_known: Option<Entry>,
        took: Option<Duration>,
    ) -> Result<Granted, Error> {
        let Asked { operation, context, .. } = asked;
        let is_known = last_known.is_some();
        self.emit(&Event::PolicyFailed { operation, context, error, last_known: is_known });
        let Some(mut entry) = last_known else {
            let (kind, detail) = (error.kind().as_str(), error.detail());
            let reason = format!("the policy gave no decision ({kind}): {detail}");
            let denied = Decision::deny([reason]);
            self.report(asked, &denied, took);
            return Err(denial(asked, &denied).with_source(error.clone()));
        };
        entry.until = self.now().plus(RETRY_AFTER).earlier(entry.last_known_until);
        self.decisions.put(asked, entry.clone());
        self.report(asked, &entry.decision, took);
        granted(asked, &entry)
    }

    /// Tells the observers of a decision.
    fn report(&self, asked: Asked<'_>, decision: &Decision, elapsed: Option<Duration>) {
        let Asked { operation, context, caller } = asked;
        let (reasons, revision) = (decision.reasons(), decision.revision());
        self.emit(&match decision.is_allowed() {
            true => Event::PolicyAllowed { caller, operation, context, revision, elapsed },
            false => Event::PolicyDenied { caller, operation, context, reasons, revision, elapsed },
        });
    }
}

impl Entry {
    fn granted(&self) -> Granted {
        Granted { stamp: self.stamp, until: self.until }
    }
}

fn granted(asked: Asked<'_>, entry: &Entry) -> Result<Granted, Error> {
    match entry.decision.is_allowed() {
        true => Ok(entry.granted()),
        false => Err(denial(asked, &entry.decision)),
    }
}

fn denial(asked: Asked<'_>, decision: &Decision) -> Error {
    Error::policy_denied(asked.operation.as_str(), decision.reasons.clone())
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("policy", &self.policy)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// What a handle rests on: a decision that allows, until it ends or the rules change.
#[derive(Debug)]
pub(crate) struct Permission {
    guard: Arc<Guard>,
    granted: Granted,
}

impl Permission {
    /// Whether the handle may still be used.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Granted { stamp, until } = self.granted;
        if self.guard.stamp() != Some(stamp) || self.guard.now().is_past(until) {
            return Err(Error::new(ErrorKind::Expired, "the decision of the policy ended"));
        }
        Ok(())
    }
}
