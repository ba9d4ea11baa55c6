//! How key services are called: timeouts, retries, the budget, circuit breakers, several KEKs, the
//! start and the end.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod several;
mod start_and_end;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use waxseal_testing::support;

use support::{HookedKek, context};
use waxseal::kek::scripted::{Act, ScriptedKek};
use waxseal::kek::{CallAdvice, KekErrorClass};
use waxseal::{
    Aad, BreakerState, CallBudget, CallPolicy, DekOrigin, EncryptionContext, Envelope,
    EnvelopeBuilder, Error, ErrorKind, Event, KekStatistics, Limits, ManualClock, Observer,
    StartOptions, StartUp,
};

use KekErrorClass::{Denied, Invalid, Misconfigured, Throttled, Unavailable};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Writes down events, as text.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Observer for Log {
    fn event(&self, event: &Event<'_>) {
        self.0.lock().unwrap().push(format!("{event:?}"));
    }
}

impl Log {
    fn count(&self, name: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|event| event.starts_with(name)).count()
    }
}

/// Quick enough for a test to wait for, slow enough to notice a wait.
fn policy() -> CallPolicy {
    CallPolicy::default().timeout(ms(200)).deadline(ms(2000)).backoff(ms(10)).breaker_probe(ms(100))
}

struct Stage {
    keks: Vec<ScriptedKek>,
    log: Log,
    envelope: Envelope,
    alice: EncryptionContext,
}

impl Stage {
    fn new() -> Self {
        Self::with(1, |builder| builder.call_policy(policy()))
    }

    /// Some KEKs, in order of preference.
    fn with(keks: usize, more: impl FnOnce(EnvelopeBuilder) -> EnvelopeBuilder) -> Self {
        let keks: Vec<_> =
            (0..keks).map(|n| ScriptedKek::new(&format!("kek{n}")).unwrap()).collect();
        let log = Log::default();
        let builder =
            keks.iter().fold(Envelope::builder(), |builder, kek| builder.wrap_with(kek.clone()));
        let envelope = more(builder.observer(log.clone())).build().unwrap();
        Self { keks, log, envelope, alice: context("alice") }
    }

    fn kek(&self) -> &ScriptedKek {
        &self.keks[0]
    }

    /// A message that was sealed elsewhere, under its own DEK.
    async fn sealed(&self) -> Vec<u8> {
        let builder = self
            .keks
            .iter()
            .fold(Envelope::builder(), |builder, kek| builder.wrap_with(kek.local().clone()));
        builder.build().unwrap().encrypt(&self.alice, Aad::empty(), b"payload").await.unwrap()
    }

    async fn open(&self, sealed: &[u8]) -> Result<(), Error> {
        self.envelope
            .decrypt(&self.alice, Aad::empty(), sealed)
            .await
            .map(|plaintext| assert_eq!(&*plaintext, b"payload"))
    }

    async fn open_another(&self) -> Result<(), Error> {
        self.open(&self.sealed().await).await
    }

    async fn seal_for(&self, tenant: &str) -> Result<(), Error> {
        self.envelope.encrypt(&context(tenant), Aad::empty(), b"x").await.map(|_| ())
    }

    fn calls(&self) -> u64 {
        self.kek().calls().total()
    }

    fn of_kek(&self, n: usize) -> KekStatistics {
        self.envelope.statistics().keks[n].clone()
    }

    /// Fails calls until the breaker of the first KEK is open.
    async fn open_the_breaker(&self, class: KekErrorClass) {
        self.kek().fail_with(class);
        let start = Instant::now();
        while self.of_kek(0).breaker == BreakerState::Closed {
            assert!(self.open_another().await.is_err());
            assert!(start.elapsed() < ms(20_000), "it stays closed");
        }
    }
}

fn kind<T>(result: Result<T, Error>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

// --- one try

#[tokio::test]
async fn a_try_that_gets_no_answer_ends_with_its_timeout_and_is_unavailable() {
    let stage = Stage::new();
    stage.kek().script([Act::Hang, Act::Hang, Act::Hang]);
    let error = stage.open_another().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("no answer within 200ms (3 tries)"), "{error}");
    assert_eq!(stage.calls(), 3);
    assert_eq!(kind(stage.open_another().await), None, "the next call is none the worse");
}

#[tokio::test]
async fn a_provider_that_panics_is_one_that_fails() {
    let stage = Stage::with(1, |builder| builder.call_policy(policy().tries(1)));
    let sealed = stage.sealed().await;
    stage.kek().script([Act::Panic, Act::Panic]);
    let error = stage.open(&sealed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("panicked"), "{error}");
    assert_eq!(kind(stage.seal_for("alice").await), Some(ErrorKind::Unavailable));
    stage.open(&sealed).await.unwrap();
}

// --- retries

#[tokio::test]
async fn only_an_outage_is_tried_again_and_so_often() {
    for (class, calls) in
        [(Unavailable, 4), (Throttled, 4), (Denied, 1), (Invalid, 1), (Misconfigured, 1)]
    {
        let stage = Stage::with(1, |builder| builder.call_policy(policy().tries(4)));
        stage.kek().fail_with(class);
        let error = stage.open_another().await.unwrap_err();
        assert_eq!(stage.calls(), calls, "{class}, opening: {error}");
        assert!(stage.seal_for("bob").await.is_err());
        assert_eq!(stage.calls(), 2 * calls, "{class}, sealing");
        assert_eq!(stage.log.count("Called") as u64, stage.calls());
        assert_eq!((stage.of_kek(0).calls, stage.of_kek(0).failures), (2 * calls, 2 * calls));
    }
}

#[tokio::test]
async fn a_failure_that_passes_is_not_felt() {
    let stage = Stage::new();
    stage.kek().script([Act::Fail(Unavailable), Act::Fail(Throttled), Act::Succeed, Act::Hang]);
    stage.open_another().await.unwrap();
    stage.seal_for("bob").await.unwrap();
    let stage =
        Stage::with(1, |builder| builder.call_policy(policy()).dek_origin(DekOrigin::KeyService));
    stage.kek().script([Act::Fail(Unavailable), Act::Fail(Unavailable)]);
    stage.seal_for("bob").await.unwrap();
    assert_eq!(stage.kek().calls().generates, 3);
}

#[tokio::test]
async fn the_deadline_bounds_all_tries_and_pauses() {
    let stage = Stage::with(1, |builder| {
        builder.call_policy(policy().tries(10).timeout(ms(100)).deadline(ms(350)).backoff(ms(1)))
    });
    stage.kek().script([Act::Hang; 20]);
    let start = Instant::now();
    let error = stage.open_another().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!((3..=4).contains(&stage.calls()), "{} tries of 100 ms in 350 ms", stage.calls());
    assert!(start.elapsed() < ms(5000));

    let stage = Stage::with(1, |builder| {
        builder.call_policy(
            policy().timeout(ms(300)).deadline(ms(400)).backoff(ms(1)).breaker_failures(1000),
        )
    });
    stage.kek().script([Act::Hang; 20]);
    let error = stage.open_another().await.unwrap_err().to_string();
    assert!(
        error.contains("(2 tries)") && !error.contains("300ms"),
        "the second has what is left: {error}"
    );
}

#[tokio::test]
async fn a_key_service_that_says_when_is_obeyed_if_there_is_time() {
    let stage = Stage::new();
    stage.kek().script([Act::AskLater(ms(300))]);
    let start = Instant::now();
    stage.open_another().await.unwrap();
    assert!(start.elapsed() >= ms(300));
    stage.kek().script([Act::AskLater(ms(60_000))]);
    assert_eq!(
        kind(stage.open_another().await),
        Some(ErrorKind::Throttled),
        "later than the deadline: no second try"
    );
}

// --- breaker

#[tokio::test]
async fn an_open_breaker_fails_at_once_keeps_the_class_and_lets_probes_through() {
    for class in [Unavailable, Misconfigured] {
        let stage = Stage::with(1, |builder| builder.call_policy(policy().breaker_probe(ms(1000))));
        stage.open_the_breaker(class).await;
        assert_eq!(stage.log.count("BreakerOpened"), 1);
        let calls = stage.calls();
        for _ in 0..20 {
            let error = stage.open_another().await.unwrap_err();
            assert_eq!(error.is_retryable(), class == Unavailable, "{error}");
            assert!(error.to_string().contains("circuit breaker open"), "{error}");
        }
        assert!(stage.calls() <= calls + 1, "the key service was asked while the breaker was open");
        stage.kek().fail_with(None);
        // Within two probe intervals, as seen by somebody who keeps asking.
        let start = Instant::now();
        while stage.open_another().await.is_err() {
            assert!(start.elapsed() < ms(10_000), "{class}: the recovery was not noticed");
            tokio::time::sleep(ms(10)).await;
        }
        assert_eq!(stage.of_kek(0).breaker, BreakerState::Closed);
        assert_eq!(stage.log.count("BreakerClosed"), 1);
        stage.open_another().await.unwrap();
    }
}

#[tokio::test]
async fn what_concerns_one_caller_never_opens_a_breaker() {
    for class in [Invalid, Denied, Throttled] {
        let stage =
            Stage::with(1, |builder| builder.call_policy(policy().tries(1).breaker_failures(2)));
        stage.kek().fail_with(class);
        let start = Instant::now();
        while start.elapsed() < ms(500) {
            assert!(stage.open_another().await.is_err());
        }
        assert_eq!(stage.of_kek(0).breaker, BreakerState::Closed, "{class}");
        stage.kek().fail_with(None);
        stage.open_another().await.unwrap();
    }
}

// --- budget

#[tokio::test]
async fn no_more_calls_are_in_flight_than_the_budget_says_and_sealing_has_a_share_of_its_own() {
    let budget = CallBudget::new(100_000, 8).unwrap();
    let stage = Arc::new(Stage::with(1, |builder| {
        builder.call_policy(policy().tries(1)).call_budget(budget)
    }));
    let mut messages = Vec::new();
    for _ in 0..50 {
        messages.push(stage.sealed().await);
    }
    // A flood of messages to open, at a key service that hangs.
    stage.kek().script([Act::Hang; 6]);
    let flood: Vec<_> = messages
        .into_iter()
        .map(|sealed| {
            let stage = stage.clone();
            tokio::spawn(async move { stage.open(&sealed).await })
        })
        .collect();
    tokio::time::sleep(ms(50)).await;
    assert_eq!(stage.calls(), 6, "three quarters of eight");
    stage.seal_for("bob").await.unwrap();
    assert_eq!(
        (stage.kek().calls().wraps, stage.calls()),
        (1, 7),
        "sealing does not wait for them"
    );
    let mut failed = 0;
    for call in flood {
        failed += usize::from(call.await.unwrap().is_err());
    }
    assert_eq!(failed, 6, "the others had their turn when the first had ended");
}

/// 200 openings, of which no more are let through than a budget of 80 a second leaves to them
/// within half a second; the others are throttled.
async fn keep_to_eighty_a_second(
    calls: Vec<impl Future<Output = Result<(), Error>> + Send + 'static>,
) {
    assert_eq!(calls.len(), 200);
    let start = Instant::now();
    let mut throttled = 0;
    for call in calls.into_iter().map(tokio::spawn).collect::<Vec<_>>() {
        if let Err(error) = call.await.unwrap() {
            assert_eq!(error.kind(), ErrorKind::Throttled, "{error}");
            throttled += 1;
        }
    }
    // 60 a second for opening: 16 at once, 30 within the deadline of 500 ms, and whatever the start
    // took.
    let (made, elapsed) = (200 - throttled, start.elapsed().as_secs_f64());
    assert!(f64::from(made) <= 16.0 + 60.0 * (elapsed + 0.5) + 1.0, "{made} calls in {elapsed} s");
    assert!((16..=60).contains(&made), "{made} calls in {elapsed} s");
}

#[tokio::test]
async fn no_more_calls_are_made_per_second_than_the_budget_says_and_several_envelopes_can_share_it()
{
    let budget = CallBudget::new(80, 1000).unwrap();
    let stages: Vec<_> = (0..2)
        .map(|_| {
            let budget = budget.clone();
            Arc::new(Stage::with(1, |builder| {
                builder.call_policy(policy().deadline(ms(500)).timeout(ms(500))).call_budget(budget)
            }))
        })
        .collect();
    let mut calls = Vec::new();
    for _ in 0..100 {
        for stage in &stages {
            let (stage, sealed) = (stage.clone(), stage.sealed().await);
            calls.push(async move { stage.open(&sealed).await });
        }
    }
    keep_to_eighty_a_second(calls).await;
}

#[tokio::test]
async fn no_try_is_begun_with_less_than_a_tenth_of_its_timeout_left() {
    let stage = Stage::with(1, |builder| {
        builder.call_policy(policy().tries(10).timeout(ms(400)).deadline(ms(430)).backoff(ms(1)))
    });
    stage.kek().script([Act::Hang; 10]);
    stage.open_another().await.unwrap_err();
    assert_eq!(stage.calls(), 1, "30 ms were left");
}

// --- what a provider advises

#[tokio::test]
async fn a_provider_s_advice_counts_where_the_policy_leaves_it_open_and_may_change() {
    let policy = || CallPolicy::default().breaker_failures(1000);
    let stage = Stage::with(1, |builder| builder.call_policy(policy()));
    stage.kek().advise(CallAdvice::default().tries(5).backoff(ms(2)).timeout(ms(40)));
    stage.kek().fail_with(Unavailable);
    let error = stage.open_another().await.unwrap_err();
    assert!(error.to_string().contains("5 tries"), "{error}");
    stage.kek().fail_with(None);
    stage.kek().script([Act::Hang; 5]);
    let error = stage.open_another().await.unwrap_err();
    assert!(error.to_string().contains("40ms"), "{error}");
    stage.kek().advise(CallAdvice::default().tries(1));
    stage.kek().fail_with(Unavailable);
    let before = stage.calls();
    stage.open_another().await.unwrap_err();
    assert_eq!(stage.calls() - before, 1);

    let stage = Stage::with(1, |builder| builder.call_policy(policy().tries(2).backoff(ms(2))));
    stage.kek().advise(CallAdvice::default().tries(5));
    stage.kek().fail_with(Unavailable);
    stage.open_another().await.unwrap_err();
    assert_eq!(stage.calls(), 2, "the user has chosen");
}

#[tokio::test]
async fn keks_that_share_a_store_share_its_budget_whatever_their_envelopes() {
    let store = CallBudget::new(80, 1000).unwrap();
    let stages: Vec<_> = (0..2)
        .map(|_| {
            Arc::new(Stage::with(1, |builder| {
                builder.call_policy(policy().deadline(ms(500)).timeout(ms(500)))
            }))
        })
        .collect();
    let mut calls = Vec::new();
    for stage in &stages {
        for _ in 0..100 {
            let (stage, sealed) = (stage.clone(), stage.sealed().await);
            calls.push(async move { stage.open(&sealed).await });
        }
        stage.kek().advise(CallAdvice::default().budget(store.clone()));
    }
    keep_to_eighty_a_second(calls).await;
}

#[tokio::test]
async fn a_rewrap_of_two_calls_takes_two_turns_of_the_budget() {
    // With one call in flight, two at the same time would wait for each other for ever.
    let budget = CallBudget::new(40, 1).unwrap();
    let patient = CallPolicy::default().deadline(ms(30_000));
    let stage = Stage::with(1, |builder| builder.call_policy(patient).call_budget(budget));
    stage.kek().have_no_rewrap();
    let sealed = stage.sealed().await;
    stage.kek().local().rotate().unwrap();
    let start = Instant::now();
    for _ in 0..20 {
        stage.envelope.rewrap_unverified(&stage.alice, &sealed).await.unwrap();
    }
    let calls = stage.kek().calls();
    assert_eq!((calls.unwraps, calls.wraps, stage.of_kek(0).calls), (20, 20, 40));
    // 40 turns take this long at least, and 20 would not.
    assert!(start.elapsed() >= ms(900), "{:?}", start.elapsed());
}

// --- calls that are shared

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stampede_with_cancellations_failures_denials_and_forgeries_costs_one_call_a_question() {
    let names = ["good", "denying", "failing"];
    let keks = names.map(|name| ScriptedKek::new(name).unwrap());
    keks[1].fail_with(Denied);
    keks[2].fail_with(Unavailable);
    keks.iter().for_each(|kek| kek.wait_for(|| Box::pin(tokio::time::sleep(ms(100)))));
    let builder =
        keks.iter().fold(Envelope::builder(), |builder, kek| builder.unwrap_with(kek.clone()));
    let envelope = builder
        .call_policy(policy().timeout(ms(60_000)).deadline(ms(60_000)).tries(1))
        .build()
        .unwrap();
    let alice = context("alice");

    let mut calls = Vec::new();
    for dek in 0..100 {
        let kek = [0, 0, 0, 1, 2][dek % 5];
        let sealed = support::envelope(keks[kek].local())
            .encrypt(&alice, Aad::empty(), b"payload")
            .await
            .unwrap();
        let mut damaged = sealed.clone();
        damaged[120] ^= 1;
        let expected = [None, Some(ErrorKind::Denied), Some(ErrorKind::Unavailable)][kek];
        for caller in 0..100 {
            let envelope = envelope.clone();
            // Of the good DEKs' callers some have the right message in a wrong context, or a
            // message with a damaged wrapped key.
            let (context, sealed, expected) = match (kek, caller % 10) {
                (0, 3) => (context("mallory"), sealed.clone(), Some(ErrorKind::Invalid)),
                (0, 7) => (alice.clone(), damaged.clone(), Some(ErrorKind::Invalid)),
                _ => (alice.clone(), sealed.clone(), expected),
            };
            let call = tokio::spawn(async move {
                envelope.decrypt(&context, Aad::empty(), &sealed).await.map(|_| ())
            });
            calls.push((call, expected, caller));
        }
    }
    // The first to come, and so the leaders, and others in between.
    tokio::time::sleep(ms(20)).await;
    for (call, _, caller) in &calls {
        if caller % 10 < 2 {
            call.abort();
        }
    }
    for (call, expected, caller) in calls {
        match call.await {
            Ok(answer) => assert_eq!(kind(answer), expected, "caller {caller}"),
            Err(aborted) => assert!(aborted.is_cancelled() && caller % 10 < 2, "{aborted}"),
        }
    }
    let asked = keks.each_ref().map(|kek| kek.calls().unwraps);
    assert_eq!(asked[0], 60 * 3, "a right question and two forged ones for each of sixty DEKs");
    assert_eq!(asked[1], 20, "a denial is asked for once");
    assert!((1..=60).contains(&asked[2]), "{} calls that failed", asked[2]);
}

#[tokio::test]
async fn whoever_comes_later_does_not_wait_for_a_call_that_hung() {
    let patient = CallPolicy::default().timeout(ms(60_000)).deadline(ms(60_000));
    let stage = Arc::new(Stage::with(1, |builder| builder.call_policy(patient)));
    let sealed = stage.sealed().await;
    stage.kek().script([Act::Hang, Act::Hang]);
    let ask = |seals| {
        let (stage, sealed) = (stage.clone(), sealed.clone());
        tokio::spawn(async move {
            if seals { stage.seal_for("bob").await } else { stage.open(&sealed).await }
        })
    };
    let hung = [ask(false), ask(true), ask(false), ask(true)];
    tokio::time::sleep(ms(300)).await;
    assert_eq!(stage.calls(), 2, "at first they share");
    tokio::time::sleep(ms(600)).await;
    for seals in [false, true] {
        tokio::time::timeout(ms(20_000), ask(seals))
            .await
            .expect("it waits for the one that hung")
            .unwrap()
            .unwrap();
    }
    assert_eq!(stage.calls(), 4);
    hung.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn in_grace_a_slow_key_service_is_not_waited_for_and_its_answer_counts_all_the_same() {
    let clock = ManualClock::new();
    let second = ms(1000);
    let limits = Limits::default().max_age(100 * second).stale_if_error_reading(50 * second);
    let stage = Stage::with(1, |builder| {
        let limits = limits.stale_if_error_writing(50 * second);
        builder.limits(limits).clock(clock.clone()).call_policy(CallPolicy::default())
    });
    let sealed = stage.sealed().await;
    stage.open(&sealed).await.unwrap();
    stage.seal_for("bob").await.unwrap();
    clock.advance(110 * second);
    stage.kek().wait_for(|| Box::pin(tokio::time::sleep(ms(1000))));
    for (n, seals) in [false, true].into_iter().enumerate() {
        let start = Instant::now();
        if seals {
            stage.seal_for("bob").await.unwrap()
        } else {
            stage.open(&sealed).await.unwrap()
        }
        assert!(start.elapsed() < ms(900), "it waited for the answer");
        assert_eq!(stage.log.count("ServedStale"), n + 1);
    }
    tokio::time::sleep(ms(1500)).await;
    stage.open(&sealed).await.unwrap();
    stage.seal_for("bob").await.unwrap();
    assert_eq!(
        (stage.log.count("ServedStale"), stage.calls()),
        (2, 4),
        "the answers came meanwhile, and serve"
    );
}

// --- configuration

#[tokio::test]
async fn a_policy_that_contradicts_itself_is_refused_with_the_option_named() {
    for (policy, option) in [
        (CallPolicy::default().timeout(ms(0)), "timeout"),
        (CallPolicy::default().timeout(ms(60_001)), "timeout"),
        (CallPolicy::default().deadline(ms(60_001)), "deadline"),
        (CallPolicy::default().timeout(ms(300)).deadline(ms(200)), "timeout"),
        (CallPolicy::default().backoff(ms(0)), "backoff"),
        (CallPolicy::default().backoff(ms(200)).deadline(ms(200)), "backoff"),
        (CallPolicy::default().tries(0), "tries"),
        (CallPolicy::default().tries(11), "tries"),
        (CallPolicy::default().hedge_percentile(49), "hedge_percentile"),
        (CallPolicy::default().hedge_percentile(101), "hedge_percentile"),
        (CallPolicy::default().breaker_failures(0), "breaker_failures"),
        (CallPolicy::default().breaker_failures(1001), "breaker_failures"),
        (CallPolicy::default().breaker_probe(ms(0)), "breaker_probe"),
        (CallPolicy::default().breaker_probe(ms(60_001)), "breaker_probe"),
    ] {
        let error = Envelope::builder()
            .wrap_with(support::local("kek"))
            .call_policy(policy)
            .build()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(error.to_string().contains(option), "{option}: {error}");
    }
    for policy in [
        CallPolicy::default(),
        CallPolicy::default().deadline(ms(1000)),
        CallPolicy::default().timeout(ms(10_000)),
        CallPolicy::default()
            .timeout(ms(60_000))
            .deadline(ms(60_000))
            .backoff(ms(10_000))
            .tries(10),
        CallPolicy::default()
            .timeout(ms(2))
            .deadline(ms(2))
            .tries(1)
            .hedge_percentile(50)
            .breaker_failures(1000),
    ] {
        Envelope::builder().wrap_with(support::local("kek")).call_policy(policy).build().unwrap();
    }
}

#[test]
fn an_option_that_has_to_wait_is_refused_without_a_runtime() {
    let build =
        |policy| Envelope::builder().wrap_with(support::local("kek")).call_policy(policy).build();
    for (policy, option) in [
        (CallPolicy::default().timeout(ms(100)), "timeout"),
        (CallPolicy::default().deadline(ms(100)), "deadline"),
        (CallPolicy::default().backoff(ms(100)), "backoff"),
        (CallPolicy::default().tries(2), "tries"),
        (CallPolicy::default().hedge_percentile(95), "hedge_percentile"),
    ] {
        let error = build(policy).unwrap_err();
        assert!(
            error.kind() == ErrorKind::InvalidOption && error.to_string().contains(option),
            "{option}: {error}"
        );
        assert!(error.to_string().contains("runtime"), "{error}");
    }
    build(
        CallPolicy::default()
            .tries(1)
            .hedge_percentile(100)
            .breaker_failures(3)
            .breaker_probe(ms(100)),
    )
    .unwrap();
    let budget = CallBudget::new(100, 100).unwrap();
    let error = Envelope::builder()
        .wrap_with(support::local("kek"))
        .call_budget(budget)
        .build()
        .unwrap_err();
    assert!(error.to_string().contains("call_budget"), "{error}");
}

// --- uses, statistics

#[tokio::test]
async fn a_dek_opens_no_more_messages_than_max_uses_before_it_is_unwrapped_again() {
    let stage = Stage::with(1, |builder| builder.limits(Limits::default().max_uses(10)));
    let sealed = stage.sealed().await;
    for _ in 0..100 {
        stage.open(&sealed).await.unwrap();
    }
    assert_eq!(stage.kek().calls().unwraps, 10);
    let key = stage.envelope.decryptor(&stage.alice, &sealed).await.unwrap();
    let opened = (0..100).filter(|_| key.decrypt(Aad::empty(), &sealed).is_ok()).count();
    assert!(opened <= 10, "{opened}");
    assert_eq!(kind(key.decrypt(Aad::empty(), &sealed)), Some(ErrorKind::Exhausted));
    // Many at once: as many unwraps as it takes, and every message is opened.
    let stage = Arc::new(stage);
    let before = stage.kek().calls().unwraps;
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let (stage, sealed) = (stage.clone(), sealed.clone());
            tokio::spawn(async move { stage.open(&sealed).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert!((19..=21).contains(&(stage.kek().calls().unwraps - before)));
}

#[tokio::test]
async fn statistics_count_what_was_cached_and_what_was_asked() {
    let stage = Stage::new();
    let sealed = stage.sealed().await;
    for _ in 0..100 {
        stage.open(&sealed).await.unwrap();
        stage.seal_for("bob").await.unwrap();
    }
    stage.kek().fail_with(Denied);
    assert!(stage.open_another().await.is_err());
    let statistics = stage.envelope.statistics();
    assert_eq!((statistics.reading_misses, statistics.reading_hits), (2, 99));
    assert_eq!((statistics.writing_misses, statistics.writing_hits), (1, 99));
    assert_eq!((statistics.reading_deks, statistics.writing_deks), (2, 1));
    assert_eq!((statistics.keks[0].calls, statistics.keks[0].failures), (3, 1));
    assert_eq!(statistics.served_stale, 0);
}

#[tokio::test]
async fn every_event_of_a_life_is_told() {
    let limits = Limits::default().max_age(ms(1000)).refresh_after(ms(1)).max_entries(1);
    let stage = Stage::with(1, |builder| builder.limits(limits).call_policy(policy()));
    let sealed = stage.sealed().await;
    stage.open(&sealed).await.unwrap();
    stage.seal_for("bob").await.unwrap();
    tokio::time::sleep(ms(20)).await;
    stage.seal_for("bob").await.unwrap();
    tokio::time::sleep(ms(100)).await;
    stage.envelope.evict_all();
    stage.open(&sealed).await.unwrap();
    for tenant in ["carol", "dave"] {
        stage.seal_for(tenant).await.unwrap();
    }
    stage.envelope.rewrap(&stage.alice, &sealed).await.unwrap();
    for name in ["Made", "Wrapped", "Unwrapped", "Refreshed", "Evicted", "Wiped", "Called"] {
        assert!(stage.log.count(name) > 0, "{name}");
    }
}
