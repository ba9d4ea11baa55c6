//! Ties operations and handles to the policy's decisions, and asks the policy if a decision is not
//! cached.
#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use super::asker::{Answer, Asker, Failure};
use super::decisions::{Asked, Decisions, Entry, Stamp};
use super::{BoxFuture, Decision, Policy, PolicyOptions};
use crate::caller::{Action, Caller};
use crate::clock::Moment;
use crate::context::EncryptionContext;
use crate::dek::DekSource;
use crate::error::{Error, ErrorKind};
use crate::observe::Event;
use crate::sync::foreign::caught;

/// How often the policy is asked again because it was reloaded during the request.
const ATTEMPTS: usize = 3;
/// The pause before an unavailable policy is asked again about a question whose last known decision
/// is being used.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A policy with its cached decisions, in front of one envelope.
pub(crate) struct Guard {
    asker: Arc<Asker>,
    decisions: Decisions,
    /// The number of times that decisions were dropped here.
    epoch: AtomicU64,
    /// The last generation of the policy that was seen.
    last_seen: AtomicU64,
}

/// The proof that an operation is allowed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Granted {
    stamp: Stamp,
    until: Moment,
    /// The decision had ended when it arrived. It covers only the operation that asked.
    for_one: bool,
}

impl Granted {
    /// Returns a proof that ends as soon as one of two proofs under the same rules does.
    pub(crate) fn first_over(self, other: Self) -> Self {
        match (self.for_one, other.for_one) {
            (true, _) => other,
            (false, true) => self,
            (false, false) => Self { until: self.until.earlier(other.until), ..self },
        }
    }
}

/// Completes when it is known whether an operation is allowed.
pub(crate) enum Permit<'a> {
    Known(Option<Result<Granted, Error>>),
    Asking(BoxFuture<'a, Result<Granted, Error>>),
}

impl Future for Permit<'_> {
    type Output = Result<Granted, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            // A future is not polled after its end. If it is, it stays pending.
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
        let decisions = Decisions::new(&options);
        let [epoch, last_seen] = [const { AtomicU64::new(0) }; 2];
        Ok(Self { asker: Asker::new(policy, options, source), decisions, epoch, last_seen })
    }

    /// Checks whether an operation is allowed.
    #[cold]
    #[inline(never)]
    pub(crate) fn permit<'a>(
        &'a self,
        operation: Action,
        context: &'a EncryptionContext,
        caller: Option<&'a Caller>,
    ) -> Permit<'a> {
        let asked = Asked { operation, context, caller };
        match self.known(self.now(), asked) {
            Some(known) => Permit::Known(Some(known)),
            None => Permit::Asking(Box::pin(self.ask(asked))),
        }
    }

    /// Whether this thread knows that an operation is allowed at `now` and nobody has to be
    /// notified. If not, [`permit_cached`](Self::permit_cached) decides.
    #[inline]
    pub(crate) fn allows_at_once(
        &self,
        now: Moment,
        operation: Action,
        context: &EncryptionContext,
        caller: Option<&Caller>,
    ) -> bool {
        // If a caller is required, a decision without one is never made, and so never remembered.
        self.asker.options.report_every == 0
            && self.stamp().is_some_and(|stamp| {
                self.decisions.remembers_allow(Asked { operation, context, caller }, stamp, now)
            })
    }

    /// Checks whether an operation is allowed, if that is known without asking the policy.
    #[cold]
    #[inline(never)]
    pub(crate) fn permit_cached(
        &self,
        now: Moment,
        operation: Action,
        context: &EncryptionContext,
        caller: Option<&Caller>,
    ) -> Option<Result<Granted, Error>> {
        self.known(now, Asked { operation, context, caller })
    }

    /// Checks whether a handle may be issued: like [`permit`](Self::permit), if the decision lasts.
    pub(crate) async fn lease(
        self: &Arc<Self>,
        operation: Action,
        context: &EncryptionContext,
        caller: Option<&Caller>,
    ) -> Result<Permission, Error> {
        if self.asker.options.cache_for.is_zero() {
            let detail = "policy: cache_for is 0, so that no decision lasts as long as a handle";
            return Err(Error::new(ErrorKind::InvalidOption, detail));
        }
        let granted = self.permit(operation, context, caller).await?;
        if granted.for_one {
            let reason = "the decision lasts for one operation, and no handle rests on it";
            return Err(self.deny(Asked { operation, context, caller }, reason));
        }
        Ok(Permission { guard: self.clone(), granted })
    }

    /// Whether the grant no longer holds.
    pub(crate) fn is_over(&self, granted: Granted) -> bool {
        let Granted { stamp, until, for_one } = granted;
        self.stamp() != Some(stamp) || !for_one && self.now().is_past(until)
    }

    /// Denies an operation on many contexts whose decisions were never in force at the same time.
    pub(crate) fn unsettled(
        &self,
        operation: Action,
        context: &EncryptionContext,
        caller: Option<&Caller>,
    ) -> Error {
        let reason = "the decision ended before the last one of this call was made";
        self.deny(Asked { operation, context, caller }, reason)
    }

    /// Drops every decision, and ends the handles that depend on one.
    pub(crate) fn forget(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Returns the current state of the rules. `None` if the policy does not report it.
    ///
    /// A generation that differs from the last one raises the epoch, so that ended decisions stay
    /// ended even if the number returns. If several threads see the change, one raises it. A thread
    /// that returns the new number has seen it raised.
    #[inline]
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        let epoch = self.epoch.load(Ordering::Acquire);
        let generation = caught(|| self.asker.policy.generation())?;
        if self.last_seen.load(Ordering::Acquire) != generation {
            self.raise(epoch, generation);
        }
        Some(Stamp { generation, epoch: self.epoch.load(Ordering::Acquire) })
    }

    /// Raises the epoch, if it is still `from`, for a generation that was not the last one.
    #[cold]
    fn raise(&self, from: u64, generation: u64) {
        let to = from.wrapping_add(1);
        // If this fails, somebody else has raised it.
        let _ = self.epoch.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        self.last_seen.store(generation, Ordering::Release);
    }

    fn now(&self) -> Moment {
        self.asker.surroundings.clock.now()
    }

    fn emit(&self, event: &Event<'_>) {
        self.asker.surroundings.observers.emit(event);
    }

    #[inline(never)]
    fn known(&self, now: Moment, asked: Asked<'_>) -> Option<Result<Granted, Error>> {
        if self.asker.options.require_caller && asked.caller.is_none() {
            return Some(Err(self.deny(asked, "no caller is named")));
        }
        let every = self.asker.options.report_every;
        let is_to_report = |entry: &Entry| {
            every > 0
                && entry.uses.fetch_add(1, Ordering::Relaxed).wrapping_add(1).is_multiple_of(every)
        };
        let quick = |entry: &Entry| {
            (entry.decision.is_allowed() && !is_to_report(entry)).then(|| entry.granted())
        };
        match self.decisions.with(asked, self.stamp()?, now, quick)? {
            Ok(granted) => Some(Ok(granted)),
            Err(entry) => {
                self.report(asked, &entry.decision, None);
                Some(granted(asked, &entry))
            }
        }
    }

    async fn ask(&self, asked: Asked<'_>) -> Result<Granted, Error> {
        // A decision that is not used again belongs to the caller that asked.
        let mut alone = self.asker.options.cache_for.is_zero();
        for _ in 0..ATTEMPTS {
            let Some(stamp) = self.stamp() else {
                return self.settle_without(asked, &Failure::panicked(), None, None);
            };
            let began = self.now();
            let answered = match alone {
                true => self.asker.ask_alone(asked).await,
                false => self.asker.ask(asked, stamp).await,
            };
            match self.stamp() {
                // The answer may come from the previous rules.
                Some(now) if now != stamp => continue,
                Some(_) => {}
                None => return self.settle_without(asked, &Failure::panicked(), None, None),
            }
            let took = Some(self.now().since(began));
            let answer = match answered.get() {
                Ok(answer) => answer,
                Err(failure) => return self.settle_without(asked, failure, Some(stamp), took),
            };
            let entry = self.entry(answer, stamp);
            let for_one = self.now().is_past(entry.until);
            // It covers one operation, and only one that began before the question.
            let is_mine = || began.since(answer.began).is_zero() && answer.take();
            if for_one && entry.decision.is_allowed() && !is_mine() {
                alone = true;
                continue;
            }
            self.decisions.put(asked, entry.clone());
            self.report(asked, &entry.decision, took);
            return granted(asked, &entry).map(|granted| Granted { for_one, ..granted });
        }
        let failure = Failure::own(ErrorKind::Provider, "its rules changed during each request");
        self.settle_without(asked, &failure, None, None)
    }

    fn entry(&self, answer: &Answer, stamp: Stamp) -> Entry {
        let Answer { decision, question, began, .. } = answer;
        let cached_until = began.plus(self.asker.options.cache_for);
        let last_known_until = cached_until.plus(self.asker.options.last_known_for);
        // No time that the decision sets is exceeded.
        let own = |end: Moment| decision.valid_for.map_or(end, |own| end.earlier(began.plus(own)));
        let (until, last_known_until) = (own(cached_until), own(last_known_until));
        let (decision, uses) = (decision.clone(), Arc::default());
        Entry { decision, question: *question, stamp, until, last_known_until, uses }
    }

    /// Handles a policy that gave no decision. In an outage the last known one under these rules
    /// may be used.
    fn settle_without(
        &self,
        asked: Asked<'_>,
        failure: &Failure,
        rules: Option<Stamp>,
        took: Option<Duration>,
    ) -> Result<Granted, Error> {
        let Asked { operation, context, .. } = asked;
        // It is there until the failure is dropped.
        let Some(error) = failure.error.get() else { return Err(Error::invalid()) };
        let rules = rules.filter(|_| error.is_retryable());
        let serves =
            |entry: &Entry| rules.is_some_and(|rules| entry.is_last_known(rules, self.now()));
        let last = self.decisions.last(asked).filter(serves);
        let last_known = last.is_some();
        self.emit(&Event::PolicyFailed { operation, context, error, last_known });
        // Meanwhile another thread may have received an answer. Then that one counts.
        let prolong = |last: Entry| {
            let until = self.now().plus(RETRY_AFTER);
            self.decisions.prolong(asked, last.question, until)
        };
        if let Some(entry) = last.and_then(prolong).filter(serves) {
            self.report(asked, &entry.decision, took);
            return granted(asked, &entry);
        }
        let kind = error.kind().as_str();
        let reason = match failure.told {
            Some(told) => format!("the policy gave no decision ({kind}): {told}"),
            None => format!("the policy gave no decision ({kind})"),
        };
        let denied = Decision::deny([reason]);
        self.report(asked, &denied, took);
        Err(denial(asked, &denied).with_source(error.clone()))
    }

    /// Returns a denial by this layer.
    fn deny(&self, asked: Asked<'_>, reason: &str) -> Error {
        let denied = Decision::deny([reason]);
        self.report(asked, &denied, None);
        denial(asked, &denied)
    }

    /// Reports a decision to the observers.
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
        Granted { stamp: self.stamp, until: self.until, for_one: false }
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
            .field("policy", &self.asker.policy)
            .field("options", &self.asker.options)
            .finish_non_exhaustive()
    }
}

/// The basis of a handle: a decision that allows, until it ends or the rules change.
#[derive(Debug)]
pub(crate) struct Permission {
    guard: Arc<Guard>,
    granted: Granted,
}

impl Permission {
    /// Whether the handle may still be used.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.guard.is_over(self.granted) {
            return Err(Error::new(ErrorKind::Expired, "the decision of the policy ended"));
        }
        Ok(())
    }
}
