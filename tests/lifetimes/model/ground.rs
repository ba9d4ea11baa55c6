//! What the model's steps act on: the time, the roots, and processes with their envelopes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use waxseal::branch::BranchKek;
use waxseal::kek::local::LocalKek;
use waxseal::kek::{
    BoxFuture, CallTarget, ContextBinding, Health, KekError, KekErrorClass, KekProvider,
    UnwrappedDek,
};
use waxseal::store::scripted::ScriptedStore;
use waxseal::{
    CallPolicy, Dek, DekId, EncryptionContext, Envelope, Event, KekId, Limits, ManualClock,
    Observer, WrappedDek,
};

use super::rules::{
    GRACE, MAX_AGE, Moment, OF_ENVELOPE, READING, REFRESH_AFTER, REFUSE_FOR, ROTATE_AFTER, WRITING,
};

pub(super) fn ms(ms: i64) -> Duration {
    Duration::from_millis(ms.try_into().unwrap())
}

/// The clock of all, and what it shows.
#[derive(Clone, Debug, Default)]
pub(super) struct Time {
    pub(super) clock: ManualClock,
    now: Arc<Mutex<Moment>>,
}

impl Time {
    pub(super) fn now(&self) -> Moment {
        *self.now.lock().unwrap()
    }

    pub(super) fn advance(&self, by: i64) {
        self.clock.advance(ms(by));
        let mut now = self.now.lock().unwrap();
        *now = now.plus(by);
    }

    pub(super) fn set_wall(&self, by: i64) {
        match by {
            0.. => self.clock.set_wall_forward(ms(by)),
            _ => self.clock.set_wall_back(ms(-by)),
        }
        self.now.lock().unwrap().wall += by;
    }
}

/// A call that a root was asked for, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) wraps: bool,
    pub(super) began: Moment,
}

/// One process's way to the root KEK, which all share. It is occasionally slow.
#[derive(Clone, Debug)]
pub(super) struct Root {
    kek: LocalKek,
    time: Time,
    script: Arc<Mutex<Script>>,
}

#[derive(Debug, Default)]
struct Script {
    failure: Option<KekErrorClass>,
    delay: i64,
    calls: Vec<Call>,
}

impl Root {
    pub(super) fn new(kek: &LocalKek, time: &Time) -> Self {
        Self { kek: kek.clone(), time: time.clone(), script: Arc::default() }
    }

    pub(super) fn failure(&self) -> Option<KekErrorClass> {
        self.script.lock().unwrap().failure
    }

    pub(super) fn fail_with(&self, failure: Option<KekErrorClass>) {
        self.script.lock().unwrap().failure = failure;
    }

    /// The next call that succeeds takes so long.
    pub(super) fn delay(&self, by: i64) {
        self.script.lock().unwrap().delay = by;
    }

    pub(super) fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.script.lock().unwrap().calls)
    }

    fn act(&self, wraps: bool) -> Result<(), KekError> {
        let mut script = self.script.lock().unwrap();
        script.calls.push(Call { wraps, began: self.time.now() });
        match script.failure {
            Some(class) => Err(KekError::new(class, "by the model")),
            None => {
                self.time.advance(std::mem::take(&mut script.delay));
                Ok(())
            }
        }
    }
}

impl KekProvider for Root {
    fn id(&self) -> &KekId {
        self.kek.id()
    }

    fn target(&self, kek_id: &KekId) -> CallTarget {
        self.kek.target(kek_id)
    }

    fn context_binding(&self) -> ContextBinding {
        self.kek.context_binding()
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            self.act(true)?;
            self.kek.wrap(context, dek).await
        })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            self.act(false)?;
            self.kek.unwrap(context, wrapped).await
        })
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        self.kek.health()
    }
}

/// What an envelope reported about its DEKs in one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Told {
    Made(DekId),
    Unwrapped(DekId),
    Refreshed(DekId),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<Mutex<Vec<Told>>>);

impl Observer for Heard {
    fn event(&self, event: &Event<'_>) {
        let told = match event {
            Event::Made { dek_id, .. } => Told::Made(**dek_id),
            Event::Unwrapped { dek_id, .. } => Told::Unwrapped(**dek_id),
            Event::Refreshed { dek_id, .. } => Told::Refreshed(**dek_id),
            _ => return,
        };
        self.0.lock().unwrap().push(told);
    }
}

impl Heard {
    pub(super) fn take(&self) -> Vec<Told> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// The limits of what the root vouches for: of envelopes without branch keys, or of branch keys.
fn limits() -> Limits {
    Limits::default()
        .max_age(ms(MAX_AGE))
        .refresh_after(ms(REFRESH_AFTER))
        .rotate_after(ms(ROTATE_AFTER))
        .stale_if_error_reading(ms(GRACE[READING]))
        .stale_if_error_writing(ms(GRACE[WRITING]))
        .denial_ttl(ms(REFUSE_FOR))
}

/// The circuit breaker has its own tests. Here it stays closed.
fn policy() -> CallPolicy {
    CallPolicy::default().breaker_failures(1000)
}

pub(super) fn envelope(root: &Root, time: &Time) -> (Envelope, Heard) {
    let heard = Heard::default();
    let builder = Envelope::builder().wrap_with(root.clone()).limits(limits());
    let builder = builder.call_policy(policy()).clock(time.clock.clone());
    (builder.observer(heard.clone()).build().unwrap(), heard)
}

pub(super) fn branches(root: &Root, store: &ScriptedStore, period: i64, time: &Time) -> BranchKek {
    BranchKek::builder(root.clone())
        .name("orders")
        .per(["tenant"])
        .store(store.clone())
        .period(ms(period))
        .limits(limits())
        .call_policy(policy())
        .clock(time.clock.clone())
        .build()
        .unwrap()
}

/// An envelope over a branch KEK. The first of a process would keep DEKs for longer than branch
/// keys live, the second keeps them for a shorter time. A denial is remembered by the branch KEK
/// alone.
pub(super) fn envelope_over(kek: &BranchKek, number: usize, time: &Time) -> (Envelope, Heard) {
    let heard = Heard::default();
    let of_envelope = &OF_ENVELOPE[number];
    let limits = Limits::default()
        .max_age(ms(of_envelope.max_age))
        .rotate_after(ms(ROTATE_AFTER))
        .stale_if_error_reading(ms(of_envelope.grace[READING]))
        .stale_if_error_writing(ms(of_envelope.grace[WRITING]))
        .denial_ttl(Duration::ZERO);
    let builder = Envelope::builder().wrap_with(kek.clone()).limits(limits);
    (builder.clock(time.clock.clone()).observer(heard.clone()).build().unwrap(), heard)
}
