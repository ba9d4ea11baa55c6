//! Asks the policy, once for all concurrent callers with the same question.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;

use super::decisions::{Asked, AskedBefore, Stamp};
use super::options::OptionsInForce;
use super::{Decision, Policy, Question};
use crate::caller::{Action, Caller};
use crate::clock::{Clock, Moment};
use crate::dek::{DekSource, InFlight, Shareable};
use crate::error::{Error, ErrorKind};
use crate::format::KekId;
use crate::kek::call::{GuardedKek, Timer};
use crate::memory::fork::{OfProcess, PerProcess};
use crate::observe::Observers;
use crate::runtime::Runtime;
use crate::sync::foreign::{Contained, Foreign, caught};

/// What a guard knows about the DEK source behind it.
pub(super) struct Surroundings {
    /// The KEKs that encrypt.
    writing: Box<[KekId]>,
    /// All KEKs.
    all: Box<[KekId]>,
    pub(super) clock: Clock,
    timer: Timer,
    runtime: Option<Arc<dyn Runtime>>,
    pub(super) observers: Observers,
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
            runtime: options.runtime.clone(),
            observers: options.observers.clone(),
        }
    }
}

/// A policy gave no decision.
pub(super) struct Failure {
    pub(super) error: Contained<Error>,
    /// The part that the denied caller sees. It contains nothing from the policy.
    pub(super) told: Option<&'static str>,
}

impl Failure {
    pub(super) fn own(kind: ErrorKind, told: &'static str) -> Self {
        Self { error: Contained::new(Error::new(kind, told)), told: Some(told) }
    }

    pub(super) fn panicked() -> Self {
        Self::own(ErrorKind::Provider, "it panicked")
    }

    fn late() -> Self {
        Self::own(ErrorKind::Unavailable, "it did not answer in time")
    }
}

/// A decision that arrived.
pub(super) struct Answer {
    pub(super) decision: Arc<Decision>,
    /// Later questions have higher numbers.
    pub(super) question: u64,
    pub(super) began: Moment,
    taken: AtomicBool,
}

impl Answer {
    /// Claims a decision that is for one operation. Returns whether this caller is the first.
    pub(super) fn take(&self) -> bool {
        !self.taken.swap(true, Ordering::AcqRel)
    }
}

/// The outcome of a question, for all that asked it.
#[derive(Clone)]
pub(super) struct Answered(Arc<Result<Answer, Failure>>);

impl Answered {
    pub(super) fn get(&self) -> Result<&Answer, &Failure> {
        (*self.0).as_ref()
    }
}

impl Shareable for Answered {
    fn panicked() -> Self {
        Self(Arc::new(Err(Failure::panicked())))
    }

    fn nobody_waited() -> Self {
        Self(Arc::new(Err(Failure::late())))
    }
}

/// Asks the policy of one envelope. Questions in flight share it, and may outlive their callers.
pub(super) struct Asker {
    pub(super) policy: Arc<dyn Policy>,
    pub(super) options: OptionsInForce,
    pub(super) surroundings: Surroundings,
    /// How often the policy was asked.
    questions: AtomicU64,
    /// By everything that a decision depends on: the question and the state of the rules.
    in_flight: PerProcess<Questions>,
}

type Questions = InFlight<(Stamp, AskedBefore), Answered>;

/// A caller that asked. The last one to leave drops the question, which may be large.
struct Boarded {
    in_flight: Arc<OfProcess<Questions>>,
    key: (Stamp, AskedBefore),
}

impl Drop for Boarded {
    fn drop(&mut self) {
        self.in_flight.forget(&self.key);
    }
}

impl Asker {
    pub(super) fn new(
        policy: Arc<dyn Policy>,
        options: OptionsInForce,
        source: &DekSource,
    ) -> Arc<Self> {
        let (surroundings, questions) = (Surroundings::of(source), AtomicU64::new(0));
        Arc::new(Self { policy, options, surroundings, questions, in_flight: PerProcess::new() })
    }

    /// Asks, or joins callers with the same question under the same rules. Each waiter drives the
    /// question, so that none depends on another's runtime or timeout.
    pub(super) async fn ask(self: &Arc<Self>, asked: Asked<'_>, rules: Stamp) -> Answered {
        let key = (rules, AskedBefore::of(asked, self.options.with_request_id));
        let (now, runtime) = (self.surroundings.clock.now(), self.surroundings.runtime.as_ref());
        let in_flight = self.in_flight.get_or_init(InFlight::default);
        let flight = Boarded { in_flight, key };
        let waiter = flight.in_flight.join(now, flight.key.clone(), runtime, || {
            let (asker, (_, question)) = (self.clone(), flight.key.clone());
            async move { asker.ask_alone(question.as_asked()).await }
        });
        waiter.await
    }

    /// Asks for one caller.
    pub(super) async fn ask_alone(&self, asked: Asked<'_>) -> Answered {
        let question = self.questions.fetch_add(1, Ordering::Relaxed);
        let began = self.surroundings.clock.now();
        let answer = self.decide(asked, began).await.map(|decision| {
            let (decision, taken) = (Arc::new(decision), AtomicBool::new(false));
            Answer { decision, question, began, taken }
        });
        Answered(Arc::new(answer))
    }

    /// Asks the policy once. Whatever the policy does, the result is a decision or a failure.
    async fn decide(&self, asked: Asked<'_>, began: Moment) -> Result<Decision, Failure> {
        let Surroundings { writing, all, timer, .. } = &self.surroundings;
        let nanos = u64::try_from(began.wall_nanos()).unwrap_or_default();
        // A decision cannot depend on what the policy does not see.
        let without_id = match self.options.with_request_id {
            true => None,
            false => asked.caller.map(Caller::without_request_id),
        };
        let caller = without_id.as_ref().or(asked.caller);
        let question = Question {
            operation: asked.operation,
            domain: self.options.domain.as_deref(),
            kek_ids: if asked.operation == Action::Encrypt { writing } else { all },
            context: asked.context,
            caller,
            time: SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos),
            request_id: caller.and_then(Caller::request_id),
        };
        let timeout = self.options.timeout;
        let deciding = caught(|| Foreign::new(self.policy.decide(&question)));
        let deciding = deciding.ok_or_else(Failure::panicked)?;
        let contained = deciding.map(|answer| answer.map(|answer| answer.map_err(Contained::new)));
        let Some(answer) = timer.within(Some(timeout), contained).await else {
            return Err(Failure::late());
        };
        let answer = answer.ok_or_else(Failure::panicked)?;
        let decision = answer.map_err(|error| Failure { error, told: None })?;
        // No timer can end a policy that blocks its thread. A late denial still counts.
        let is_late = timer.can_wait() && self.surroundings.clock.now().since(began) > timeout;
        if is_late && decision.is_allowed() { Err(Failure::late()) } else { Ok(decision) }
    }
}
