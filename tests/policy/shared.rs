//! Those who ask the same at the same time share one question, and nothing else.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use waxseal::policy::{BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::{
    Aad, Caller, EncryptionContext, Envelope, EnvelopeBuilder, Error, ErrorKind, Event, Limits,
    ManualClock, Observer, Runtime, kek::local::LocalKek,
};
use waxseal_testing::support::{Threads, block_on};

use crate::ground::{SECOND, caller, context, denied};

type Answer = dyn for<'q> Fn(&Question<'q>) -> Result<Decision, Error> + Send + Sync;

/// A policy that answers when its gate is open, polled by any caller.
#[derive(Clone)]
struct Gated(Arc<Inner>);

struct Inner {
    open: AtomicBool,
    asked: AtomicUsize,
    /// Questions that were begun and are not over.
    waiting: AtomicUsize,
    generation: AtomicU64,
    wakers: Mutex<Vec<Waker>>,
    answer: Box<Answer>,
}

impl Gated {
    fn new(
        answer: impl Fn(&Question<'_>) -> Result<Decision, Error> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            open: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            wakers: Mutex::default(),
            answer: Box::new(answer),
        }))
    }

    fn open(&self) {
        self.0.open.store(true, Ordering::SeqCst);
        self.0.wakers.lock().unwrap().drain(..).for_each(Waker::wake);
    }

    fn asked(&self) -> usize {
        self.0.asked.load(Ordering::SeqCst)
    }

    fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::SeqCst)
    }
}

impl std::fmt::Debug for Gated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gated")
    }
}

struct Deciding<'a>(&'a Gated, &'a Question<'a>);

impl Future for Deciding<'_> {
    type Output = Result<Decision, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let inner = &self.0.0;
        inner.wakers.lock().unwrap().push(cx.waker().clone());
        match inner.open.load(Ordering::SeqCst) {
            true => Poll::Ready((inner.answer)(self.1)),
            false => Poll::Pending,
        }
    }
}

impl Drop for Deciding<'_> {
    fn drop(&mut self) {
        self.0.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Policy for Gated {
    fn decide<'a>(&'a self, question: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        self.0.waiting.fetch_add(1, Ordering::SeqCst);
        Box::pin(Deciding(self, question))
    }

    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::SeqCst)
    }
}

fn built(
    policy: &Gated,
    options: PolicyOptions,
    configure: impl FnOnce(EnvelopeBuilder) -> EnvelopeBuilder,
) -> (Envelope, ManualClock) {
    let clock = ManualClock::new();
    let builder = Envelope::builder()
        .wrap_with(LocalKek::in_memory("kek").unwrap())
        .limits(Limits::default().max_age(3600 * SECOND))
        .clock(clock.clone())
        .policy(policy.clone(), options);
    (configure(builder).build().unwrap(), clock)
}

fn envelope(policy: &Gated) -> Envelope {
    built(policy, PolicyOptions::default(), |builder| builder).0
}

type Encrypting<'a> = Pin<Box<dyn Future<Output = Result<Vec<u8>, Error>> + Send + 'a>>;

/// An encryption that was polled once, and waits for the policy.
fn begun<'a>(
    envelope: &'a Envelope,
    caller: &'a Caller,
    context: &'a EncryptionContext,
) -> Encrypting<'a> {
    let mut call: Encrypting<'a> =
        Box::pin(envelope.acting_for(caller).encrypt(context, Aad::empty(), b"x"));
    assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    call
}

fn open() -> Gated {
    Gated::new(|_| Ok(Decision::allow()))
}

#[test]
fn a_hundred_that_ask_the_same_at_once_are_one_question() {
    let policy = open();
    let (envelope, acme) = (envelope(&policy), context("acme"));
    let callers: Vec<_> = (0..100).map(|_| caller("billing", "clerk")).collect();
    let calls: Vec<_> = callers.iter().map(|caller| begun(&envelope, caller, &acme)).collect();
    assert_eq!((policy.asked(), policy.waiting()), (1, 1));
    policy.open();
    // The last ones first: no caller has to wait for the first one.
    for call in calls.into_iter().rev() {
        block_on(call).unwrap();
    }
    assert_eq!((policy.asked(), policy.waiting()), (1, 0));
}

#[test]
fn so_are_a_hundred_threads() {
    let policy = open();
    let (envelope, acme, billing) =
        (envelope(&policy), context("acme"), caller("billing", "clerk"));
    let count = thread::scope(|scope| {
        let call = || {
            let call = envelope.acting_for(&billing).encrypt(&acme, Aad::empty(), b"x");
            block_on(call).is_ok()
        };
        let threads: Vec<_> = (0..100).map(|_| scope.spawn(call)).collect();
        while policy.waiting() == 0 {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(50));
        policy.open();
        threads.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum::<usize>()
    });
    assert_eq!((count, policy.asked()), (100, 1));
}

#[test]
fn nobody_s_leaving_ends_the_question_of_the_others() {
    for leaves in 0..3 {
        let policy = open();
        let (envelope, acme) = (envelope(&policy), context("acme"));
        let billing = caller("billing", "clerk");
        let mut calls: Vec<_> = (0..3).map(|_| begun(&envelope, &billing, &acme)).collect();
        drop(calls.remove(leaves));
        policy.open();
        for call in calls {
            block_on(call).unwrap();
        }
        assert_eq!((policy.asked(), policy.waiting()), (1, 0));
    }
    // With the last one the question ends.
    let policy = open();
    let (envelope, acme, billing) =
        (envelope(&policy), context("acme"), caller("billing", "clerk"));
    let calls: Vec<_> = (0..3).map(|_| begun(&envelope, &billing, &acme)).collect();
    drop(calls);
    assert_eq!((policy.asked(), policy.waiting()), (1, 0));
    drop(begun(&envelope, &billing, &acme));
    assert_eq!((policy.asked(), policy.waiting()), (2, 0));
}

#[test]
fn one_that_is_never_polled_again_holds_up_nobody() {
    let policy = open();
    let (envelope, acme, billing) =
        (envelope(&policy), context("acme"), caller("billing", "clerk"));
    let forgotten = begun(&envelope, &billing, &acme);
    let other = begun(&envelope, &billing, &acme);
    policy.open();
    block_on(other).unwrap();
    assert_eq!(policy.asked(), 1);
    block_on(forgotten).unwrap();
}

/// A waker that panics.
struct Bites;

impl Wake for Bites {
    fn wake(self: Arc<Self>) {
        panic!("the waker");
    }
}

#[test]
fn a_waker_that_panics_keeps_nobody_asleep() {
    let policy = open();
    let (envelope, acme, billing) =
        (envelope(&policy), context("acme"), caller("billing", "clerk"));
    let mut biting: Encrypting<'_> =
        Box::pin(envelope.acting_for(&billing).encrypt(&acme, Aad::empty(), b"x"));
    let waker = Waker::from(Arc::new(Bites));
    assert!(biting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    thread::scope(|scope| {
        let waits = scope.spawn(|| block_on(begun(&envelope, &billing, &acme)).unwrap());
        thread::sleep(Duration::from_millis(20));
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| policy.open()));
        assert!(opened.is_ok());
        waits.join().unwrap();
    });
}

#[test]
fn a_panic_of_the_policy_is_a_denial_for_each_and_the_next_one_asks_again() {
    let policy = Gated::new(|_| panic!("the policy"));
    let (envelope, acme, billing) =
        (envelope(&policy), context("acme"), caller("billing", "clerk"));
    let calls: Vec<_> = (0..5).map(|_| begun(&envelope, &billing, &acme)).collect();
    policy.open();
    for call in calls {
        assert_eq!(denied(block_on(call)), ["the policy gave no decision (provider): it panicked"]);
    }
    assert_eq!(policy.asked(), 1);
    denied(block_on(envelope.acting_for(&billing).encrypt(&acme, Aad::empty(), b"x")));
    assert_eq!(policy.asked(), 2);
}

#[test]
fn a_question_under_the_rules_before_is_not_joined() {
    let policy = open();
    let (envelope, acme, billing) =
        (envelope(&policy), context("acme"), caller("billing", "clerk"));
    let before = begun(&envelope, &billing, &acme);
    policy.0.generation.fetch_add(1, Ordering::SeqCst);
    let after = begun(&envelope, &billing, &acme);
    assert_eq!(policy.asked(), 2);
    envelope.evict_all();
    let last = begun(&envelope, &billing, &acme);
    assert_eq!(policy.asked(), 3);
    policy.open();
    for call in [before, after, last] {
        block_on(call).unwrap();
    }
}

#[test]
fn a_question_that_hangs_is_not_joined_after_a_second() {
    let policy = open();
    let (envelope, clock) = built(&policy, PolicyOptions::default(), |builder| builder);
    let (acme, billing) = (context("acme"), caller("billing", "clerk"));
    let hangs = begun(&envelope, &billing, &acme);
    clock.advance(SECOND);
    let later = begun(&envelope, &billing, &acme);
    assert_eq!(policy.asked(), 2);
    policy.open();
    block_on(later).unwrap();
    block_on(hangs).unwrap();
}

#[test]
fn where_every_operation_asks_each_asks_for_itself() {
    let policy = open();
    let options = PolicyOptions::default().cache_for(Duration::ZERO);
    let (envelope, _clock) = built(&policy, options, |builder| builder);
    let (acme, billing) = (context("acme"), caller("billing", "clerk"));
    let calls: Vec<_> = (0..3).map(|_| begun(&envelope, &billing, &acme)).collect();
    assert_eq!(policy.asked(), 3);
    policy.open();
    for call in calls {
        block_on(call).unwrap();
    }
    assert_eq!(policy.asked(), 3);
}

#[test]
fn a_decision_that_is_for_one_operation_is_for_one_of_those_who_wait() {
    let policy = Gated::new(|_| Ok(Decision::allow().valid_for(Duration::ZERO)));
    let (envelope, clock) = built(&policy, PolicyOptions::default(), |builder| builder);
    let (acme, billing) = (context("acme"), caller("billing", "clerk"));
    let mut calls: Vec<_> = (0..3).map(|_| begun(&envelope, &billing, &acme)).collect();
    clock.advance(Duration::from_millis(500));
    // It came after the question, so that the answer is not for it.
    calls.insert(0, begun(&envelope, &billing, &acme));
    assert_eq!(policy.asked(), 1);
    policy.open();
    for call in calls {
        block_on(call).unwrap();
    }
    assert_eq!(policy.asked(), 4);
    // A denied caller has no use for another answer.
    let policy = Gated::new(|_| Ok(Decision::deny(["no"]).valid_for(Duration::ZERO)));
    let (envelope, _clock) = built(&policy, PolicyOptions::default(), |builder| builder);
    let calls: Vec<_> = (0..3).map(|_| begun(&envelope, &billing, &acme)).collect();
    policy.open();
    for call in calls {
        assert_eq!(denied(block_on(call)), ["no"]);
    }
    assert_eq!(policy.asked(), 1);
}

#[test]
fn requests_share_a_question_only_where_the_policy_does_not_see_their_ids() {
    for (ignore, asked) in [(false, 3), (true, 1)] {
        let policy = open();
        let options = PolicyOptions::default();
        let options = if ignore { options.ignore_request_id() } else { options };
        let (envelope, _clock) = built(&policy, options, |builder| builder);
        let acme = context("acme");
        let callers: Vec<_> = ["r1", "r2", "r3"]
            .iter()
            .map(|id| caller("billing", "clerk").with_request_id(*id).unwrap())
            .collect();
        let calls: Vec<_> = callers.iter().map(|caller| begun(&envelope, caller, &acme)).collect();
        assert_eq!(policy.asked(), asked);
        policy.open();
        for call in calls {
            block_on(call).unwrap();
        }
    }
}

/// Counts the events about decisions.
#[derive(Clone, Debug, Default)]
struct Told(Arc<[AtomicUsize; 3]>);

impl Observer for Told {
    fn event(&self, event: &Event<'_>) {
        let index = match event {
            Event::PolicyAllowed { .. } => 0,
            Event::PolicyDenied { .. } => 1,
            Event::PolicyFailed { .. } => 2,
            _ => return,
        };
        self.0[index].fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn observers_are_told_of_each_operation() {
    for (policy, expected) in [
        (open(), [4, 0, 0]),
        (Gated::new(|_| Ok(Decision::deny(["no"]))), [0, 4, 0]),
        (Gated::new(|_| Err(Error::new(ErrorKind::Unavailable, "down"))), [0, 4, 4]),
    ] {
        let told = Told::default();
        let its = told.clone();
        let (envelope, _clock) =
            built(&policy, PolicyOptions::default(), |builder| builder.observer(its));
        let (acme, billing) = (context("acme"), caller("billing", "clerk"));
        let calls: Vec<_> = (0..4).map(|_| begun(&envelope, &billing, &acme)).collect();
        policy.open();
        for call in calls {
            let _ = block_on(call);
        }
        assert_eq!(told.0.each_ref().map(|count| count.load(Ordering::SeqCst)), expected);
    }
}

/// A runtime that takes tasks and runs none, as one that ended.
#[derive(Debug)]
struct Ended;

impl Runtime for Ended {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(task);
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

#[test]
fn neither_a_runtime_that_ended_nor_one_that_runs_matters() {
    for runs in [false, true] {
        let policy = open();
        let (envelope, _clock) = built(&policy, PolicyOptions::default(), |builder| match runs {
            true => builder.runtime(Threads),
            false => builder.runtime(Ended),
        });
        let (acme, billing) = (context("acme"), caller("billing", "clerk"));
        let first = begun(&envelope, &billing, &acme);
        let second = begun(&envelope, &billing, &acme);
        drop(first);
        policy.open();
        block_on(second).unwrap();
        assert_eq!(policy.asked(), 1);
    }
}

#[test]
fn a_handle_shares_the_question_and_rests_on_the_answer() {
    let policy = open();
    let (envelope, acme, billing) =
        (envelope(&policy), context("acme"), caller("billing", "clerk"));
    let call = begun(&envelope, &billing, &acme);
    let mut handle = Box::pin(envelope.acting_for(&billing).encryptor(&acme));
    assert!(handle.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    policy.open();
    let handle = block_on(handle).unwrap();
    block_on(call).unwrap();
    assert_eq!(policy.asked(), 1);
    assert!(handle.encrypt(Aad::empty(), b"x").is_ok());
    policy.0.generation.fetch_add(1, Ordering::SeqCst);
    assert_eq!(handle.encrypt(Aad::empty(), b"x").unwrap_err().kind(), ErrorKind::Expired);
}

/// A policy that says in its denial what it was asked.
fn echo(question: &Question<'_>) -> String {
    let mut said = serde_json::to_value(question).unwrap();
    said.as_object_mut().unwrap().remove("time");
    said.to_string()
}

fn some_caller() -> impl Strategy<Value = Caller> {
    let text = || prop::sample::select(vec!["a", "b", "ab", "c"]);
    let texts = || prop::collection::vec(text(), 0..3);
    (
        prop::option::of(text()),
        texts(),
        texts(),
        prop::option::of(0..3_u8),
        prop::collection::btree_map(text(), texts(), 0..3),
        prop::option::of(text()),
    )
        .prop_map(|(service, roles, groups, address, attributes, request)| {
            let mut caller = Caller::builder().roles(roles).groups(groups);
            if let Some(service) = service {
                caller = caller.service(service);
            }
            if let Some(last) = address {
                caller = caller.source_address([10, 0, 0, last]);
            }
            for (name, values) in attributes {
                caller = match &values[..] {
                    [one] => caller.attribute(name, one),
                    many => caller.attribute_list(name, many),
                };
            }
            let caller = caller.build().unwrap();
            request.map_or(caller.clone(), |id| caller.with_request_id(id).unwrap())
        })
}

fn some_tenant() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["x", "y", "xy"])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// All of them are in flight at once. Each gets its own answer, in any order.
    #[test]
    fn nobody_gets_an_answer_about_another(
        asked in prop::collection::vec((some_caller(), some_tenant()), 2..40),
        ignore in any::<bool>(),
    ) {
        let policy = Gated::new(|question| Ok(Decision::deny([echo(question)])));
        let options = PolicyOptions::default();
        let options = if ignore { options.ignore_request_id() } else { options };
        let (envelope, _clock) = built(&policy, options, |builder| builder);
        let contexts: HashMap<_, _> = ["x", "y", "xy"].map(|name| (name, context(name))).into();
        let mut calls = Vec::new();
        for (caller, tenant) in &asked {
            calls.push(begun(&envelope, caller, &contexts[tenant]));
        }
        policy.open();
        let mut distinct = std::collections::HashSet::new();
        for ((caller, tenant), call) in asked.iter().zip(calls).rev() {
            let reasons = denied(block_on(call));
            let mut said: serde_json::Value = serde_json::from_str(&reasons[0]).unwrap();
            let mut expected = serde_json::to_value(
                Question::new(waxseal::policy::Action::Encrypt, &contexts[tenant]).caller(caller),
            ).unwrap();
            expected.as_object_mut().unwrap().remove("time");
            if ignore {
                expected.as_object_mut().unwrap().remove("request_id");
            }
            said["kek_ids"] = serde_json::json!([]);
            prop_assert_eq!(&said, &expected);
            distinct.insert(expected.to_string());
        }
        // And none is asked twice.
        prop_assert_eq!(policy.asked(), distinct.len());
    }
}
