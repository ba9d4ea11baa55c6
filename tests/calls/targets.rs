//! What is learned from calls, and about which target: several keys behind one KEK, abandoned
//! calls, and forged messages.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use waxseal_testing::support;

use support::context;
use waxseal::kek::scripted::{Act, ScriptedKek};
use waxseal::kek::{
    BoxFuture, CallAdvice, CallTarget, Health, KekError, KekErrorClass, KekProvider, UnwrappedDek,
};
use waxseal::{
    Aad, BreakerState, CallBudget, CallPolicy, Compact, Dek, EncryptionContext, Envelope,
    EnvelopeBuilder, Error, ErrorKind, Event, KekId, Observer, Sealed, WrappedDek, WrappedKeys,
};

use KekErrorClass::{Denied, Invalid, Misconfigured, Throttled, Unavailable};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn policy() -> CallPolicy {
    CallPolicy::default()
        .timeout(ms(200))
        .deadline(ms(2000))
        .backoff(ms(10))
        .breaker_probe(ms(100))
        .tries(1)
}

#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Observer for Log {
    fn event(&self, event: &Event<'_>) {
        self.0.lock().unwrap().push(format!("{event:?}"));
    }
}

impl Log {
    fn count(&self, name: &str, with: &str) -> usize {
        self.0
            .lock()
            .unwrap()
            .iter()
            .filter(|event| event.starts_with(name) && event.contains(with))
            .count()
    }

    /// Another thread reports the events of a destructor.
    async fn wait_for(&self, name: &str, with: &str, count: usize) {
        let start = Instant::now();
        while self.count(name, with) < count {
            assert!(
                start.elapsed() < ms(10_000),
                "{name} {with}: {} of {count}",
                self.count(name, with)
            );
            tokio::time::sleep(ms(5)).await;
        }
    }
}

/// Several keys behind one provider, which wraps by the first of them.
#[derive(Debug, Clone)]
struct Branches {
    keys: Vec<ScriptedKek>,
    /// Each key is a separate target.
    apart: bool,
    /// Recognises every id, like a provider that discovers keys.
    discovers: bool,
    /// Refuses junk without asking.
    looks: bool,
}

impl Branches {
    fn new(names: &[&str]) -> Self {
        let keys = names.iter().map(|name| ScriptedKek::new(name).unwrap()).collect();
        Self { keys, apart: true, discovers: false, looks: false }
    }

    fn key(&self, kek_id: &KekId) -> Option<&ScriptedKek> {
        self.keys
            .iter()
            .find(|key| key.id() == kek_id)
            .or(self.keys.first().filter(|_| self.discovers))
    }

    fn unwraps(&self) -> u64 {
        self.keys.iter().map(|key| key.calls().unwraps).sum()
    }

    fn fail_with(&self, class: impl Into<Option<KekErrorClass>> + Copy) {
        self.keys.iter().for_each(|key| key.fail_with(class));
    }
}

impl KekProvider for Branches {
    fn id(&self) -> &KekId {
        self.keys[0].id()
    }

    fn recognises(&self, kek_id: &KekId) -> bool {
        self.key(kek_id).is_some()
    }

    fn target(&self, kek_id: &KekId) -> CallTarget {
        let key = self.key(kek_id).unwrap();
        let name = if self.apart { kek_id } else { self.id() };
        CallTarget::new(name.as_str()).with_advice(key.target(kek_id).advice().clone())
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        self.keys[0].wrap(context, dek)
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        if self.looks && wrapped.wrapped() == b"junk" {
            return Box::pin(async { Err(KekError::invalid("junk").without_asking()) });
        }
        self.key(wrapped.kek_id()).unwrap().unwrap(context, wrapped)
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        self.keys[0].health()
    }
}

struct Stage {
    branches: Branches,
    envelope: Envelope,
    log: Log,
    alice: EncryptionContext,
}

impl Stage {
    fn new(branches: Branches) -> Self {
        Self::with(branches, |builder| builder.call_policy(policy()))
    }

    fn with(branches: Branches, more: impl FnOnce(EnvelopeBuilder) -> EnvelopeBuilder) -> Self {
        let log = Log::default();
        let envelope = more(Envelope::builder().wrap_with(branches.clone()).observer(log.clone()))
            .build()
            .unwrap();
        Self { branches, envelope, log, alice: context("alice") }
    }

    /// A message of a new DEK, wrapped by these keys.
    async fn sealed(&self, keys: &[usize]) -> Compact {
        let builder = keys.iter().fold(Envelope::builder(), |b, key| {
            b.wrap_with(self.branches.keys[*key].local().clone())
        });
        builder
            .build()
            .unwrap()
            .encrypt_compact(&self.alice, Aad::empty(), b"payload")
            .await
            .unwrap()
    }

    async fn open_with(&self, sealed: &Compact, keys: &WrappedKeys) -> Result<(), Error> {
        self.envelope
            .decrypt(&self.alice, Aad::empty(), Sealed::compact(sealed.as_bytes(), keys))
            .await
            .map(drop)
    }

    /// Opens a message of a new DEK.
    async fn open(&self, keys: &[usize]) -> Result<(), Error> {
        let sealed = self.sealed(keys).await;
        self.open_with(&sealed, sealed.wrapped_keys()).await
    }

    async fn open_forged(&self, entries: impl IntoIterator<Item = WrappedDek>) -> ErrorKind {
        let sealed = self.sealed(&[0]).await;
        self.open_with(&sealed, &WrappedKeys::new(entries).unwrap()).await.unwrap_err().kind()
    }

    async fn seal(&self) -> Result<(), Error> {
        static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let context = context(&NUMBER.fetch_add(1, SeqCst).to_string());
        self.envelope.encrypt(&context, Aad::empty(), b"x").await.map(drop)
    }

    fn breaker(&self) -> BreakerState {
        self.envelope.statistics().keks[0].breaker
    }

    async fn until_open(&self, open: impl AsyncFn()) {
        let start = Instant::now();
        while self.breaker() == BreakerState::Closed {
            assert!(start.elapsed() < ms(20_000), "the breaker stays closed");
            open().await;
        }
    }
}

fn junk(kek_id: impl AsRef<str>) -> WrappedDek {
    WrappedDek::new(KekId::new(kek_id).unwrap(), *b"junk").unwrap()
}

// --- several targets

#[tokio::test]
async fn a_key_that_is_down_keeps_no_call_from_another_key_of_its_provider() {
    let stage = Stage::new(Branches::new(&["new", "former"]));
    stage.branches.keys[1].fail_with(Unavailable);
    stage.until_open(async || drop(stage.open(&[1]).await)).await;
    let calls = stage.branches.keys[1].calls().unwraps;
    for _ in 0..10 {
        stage.seal().await.unwrap();
        stage.open(&[0]).await.unwrap();
        assert!(stage.open(&[1]).await.unwrap_err().to_string().contains("circuit breaker open"));
    }
    assert!(stage.branches.keys[1].calls().unwraps <= calls + 3, "probes only");
    // Both that something is wrong is shown, and what.
    let statistics = stage.envelope.statistics().keks[0].clone();
    assert_ne!(statistics.breaker, BreakerState::Closed);
    let names: Vec<_> = statistics.targets.iter().map(|target| &*target.name).collect();
    assert_eq!(names, ["local:former"]);
    assert_eq!(stage.log.count("BreakerOpened", "target: Some(\"local:former\")"), 1);
    stage.branches.keys[1].fail_with(None);
    let start = Instant::now();
    while stage.breaker() != BreakerState::Closed {
        let _ = stage.open(&[1]).await;
        assert!(start.elapsed() < ms(10_000));
    }
    assert_eq!(stage.log.count("BreakerClosed", "local:former"), 1);
    // The one that has the KEK's own name needs no other.
    stage.branches.keys[0].fail_with(Unavailable);
    stage.until_open(async || drop(stage.seal().await)).await;
    assert_eq!(stage.log.count("BreakerOpened", "target: None"), 1);
}

#[tokio::test]
async fn each_target_s_advice_and_budget_are_its_own() {
    let stage = Stage::with(Branches::new(&["new", "former"]), |builder| builder);
    let store = CallBudget::new(1, 1).unwrap();
    stage.branches.keys[1].advise(CallAdvice::default().budget(store).tries(1));
    let (former, start) =
        (async { [stage.open(&[1]).await, stage.open(&[1]).await] }, Instant::now());
    let others = async {
        for _ in 0..20 {
            stage.open(&[0]).await.unwrap();
        }
        start.elapsed()
    };
    let (former, others) = tokio::join!(former, others);
    assert!(former.into_iter().all(|answer| answer.is_ok()));
    assert!(start.elapsed() >= ms(900) && others < ms(900), "{others:?} of {:?}", start.elapsed());
}

// --- abandoned calls

#[tokio::test]
async fn a_preferred_kek_that_hangs_is_asked_last_and_that_is_told() {
    let (hung, other) = (ScriptedKek::new("hung").unwrap(), ScriptedKek::new("other").unwrap());
    let log = Log::default();
    let builder =
        Envelope::builder().wrap_with(hung.clone()).wrap_with(other.clone()).observer(log.clone());
    let envelope =
        builder.call_policy(CallPolicy::default().breaker_probe(ms(60_000))).build().unwrap();
    let elsewhere = || {
        Envelope::builder()
            .wrap_with(hung.local().clone())
            .wrap_with(other.local().clone())
            .build()
            .unwrap()
    };
    let alice = context("alice");
    let read = async || {
        let sealed = elsewhere().encrypt(&alice, Aad::empty(), b"payload").await.unwrap();
        envelope.decrypt(&alice, Aad::empty(), &sealed).await.map(drop)
    };
    for kek in [&hung, &other] {
        kek.wait_for(|| Box::pin(tokio::time::sleep(ms(4))));
    }
    for _ in 0..25 {
        read().await.unwrap();
    }
    hung.wait_for(|| Box::pin(std::future::pending()));
    let start = Instant::now();
    while envelope.statistics().keks[0].breaker == BreakerState::Closed {
        read().await.unwrap();
        assert!(start.elapsed() < ms(20_000), "a hang that nobody waits for is not seen");
    }
    let calls = hung.calls().unwraps;
    for _ in 0..20 {
        read().await.unwrap();
    }
    // On a busy machine the other one may be late once, and this one is asked as well.
    let asked = hung.calls().unwraps - calls;
    assert!(asked < 10, "it is asked first all the same: {asked} of 20");
    let failures = envelope.statistics().keks[0].failures;
    assert!(failures >= 5, "{failures}");
    log.wait_for(
        "Called",
        "kind: Some(Unavailable), abandoned: true",
        usize::try_from(failures).unwrap(),
    )
    .await;
    log.wait_for("BreakerOpened", "local:hung", 1).await;
    // Where it is the only one left, it is asked. So a service that has only become slower is not
    // refused.
    hung.wait_for(|| Box::pin(tokio::time::sleep(ms(100))));
    envelope.encrypt(&context("bob"), Aad::empty(), b"x").await.unwrap();
    other.fail_with(Unavailable);
    read().await.unwrap();
}

/// Rewraps that are given up after `patience`, one after the other.
async fn rewraps_given_up(stage: &Stage, patience: Duration, count: usize) {
    for _ in 0..count {
        let sealed = stage.sealed(&[0]).await;
        let rewrap = stage.envelope.rewrap_wrapped_keys(
            &stage.alice,
            dek_id(&sealed),
            sealed.wrapped_keys(),
        );
        let _ = tokio::time::timeout(patience, rewrap).await;
    }
}

fn dek_id(sealed: &Compact) -> &'static waxseal::DekId {
    let inspection = waxseal::inspect(sealed.as_bytes()).unwrap();
    Box::leak(Box::new(inspection.dek_id))
}

#[tokio::test]
async fn a_hang_counts_though_every_caller_leaves_before_the_timeout() {
    let branches = Branches::new(&["kek"]);
    branches.keys[0].wait_for(|| Box::pin(std::future::pending()));
    let stage = Stage::new(branches);
    let patience = ms(100);
    stage.until_open(async || rewraps_given_up(&stage, patience, 1).await).await;
    let statistics = stage.envelope.statistics().keks[0].clone();
    assert!(statistics.failures >= 5 && statistics.failures == statistics.calls, "{statistics:?}");
    stage
        .log
        .wait_for("Called", "abandoned: true", usize::try_from(statistics.failures).unwrap())
        .await;
    assert!(stage.seal().await.unwrap_err().to_string().contains("circuit breaker open"));
}

#[tokio::test]
async fn callers_that_leave_early_say_nothing_of_a_key_service() {
    let branches = Branches::new(&["kek"]);
    branches.keys[0].wait_for(|| Box::pin(tokio::time::sleep(ms(60))));
    let stage = Stage::with(branches, |builder| builder.call_policy(policy().timeout(ms(2000))));
    rewraps_given_up(&stage, ms(20), 30).await;
    assert_eq!((stage.breaker(), stage.log.count("Called", "")), (BreakerState::Closed, 0));
    assert_eq!(stage.envelope.statistics().keks[0].failures, 0);
    stage.seal().await.unwrap();
}

// --- signs of life

#[tokio::test]
async fn any_answer_of_the_key_service_closes_its_breaker() {
    for class in [Invalid, Denied, Throttled] {
        let stage = Stage::new(Branches::new(&["kek"]));
        stage.branches.fail_with(Misconfigured);
        stage.until_open(async || drop(stage.open(&[0]).await)).await;
        stage.branches.fail_with(class);
        let start = Instant::now();
        while stage.breaker() != BreakerState::Closed {
            let _ = stage.open(&[0]).await;
            tokio::time::sleep(ms(5)).await;
            assert!(start.elapsed() < ms(10_000), "{class}: it answers, and is not heard");
        }
    }
}

#[tokio::test]
async fn forged_messages_that_the_provider_refuses_by_itself_use_up_no_probe_and_no_streak() {
    let stage = Stage::new(Branches { looks: true, ..Branches::new(&["kek"]) });
    stage.branches.fail_with(Unavailable);
    let forge = async || stage.open_forged([junk("local:kek")]).await;
    // What the provider itself refuses between two failures is not a sign of life either.
    stage
        .until_open(async || {
            drop(stage.open(&[0]).await);
            forge().await;
        })
        .await;
    stage.branches.fail_with(None);
    tokio::time::sleep(ms(120)).await;
    for _ in 0..5 {
        assert_eq!(forge().await, ErrorKind::Invalid, "it went through as the probe");
    }
    assert_ne!(stage.breaker(), BreakerState::Closed, "nobody was asked");
    stage.open(&[0]).await.unwrap();
    assert_eq!(stage.breaker(), BreakerState::Closed);
}

// --- forged lists

#[tokio::test]
async fn a_forged_list_costs_one_call_however_long_it_is() {
    for apart in [false, true] {
        let stage = Stage::new(Branches { apart, discovers: true, ..Branches::new(&["kek"]) });
        for n in 1..=5 {
            let ids = (0..15).map(|id| format!("local:made-up-{n}-{id}"));
            let kind = stage.open_forged(ids.map(junk).chain([junk("local:kek")])).await;
            assert_eq!((kind, stage.branches.unwraps()), (ErrorKind::Invalid, n));
        }
        // Nor is there one for each id where the answer is another.
        for (class, most) in [(Denied, 3), (Unavailable, 3), (Misconfigured, 3), (Throttled, 3)] {
            let before = stage.branches.unwraps();
            stage.branches.fail_with(class);
            stage.open_forged((0..16).map(|id| junk(format!("local:made-up-{class}-{id}")))).await;
            let calls = stage.branches.unwraps() - before;
            assert!(
                calls <= most && (apart || class == Denied || calls == 1),
                "{class}: {calls} calls"
            );
        }
    }
}

#[tokio::test]
async fn of_several_rightful_entries_one_that_opens_is_found() {
    // The former key's entry is first, as in a list that was half rewrapped.
    for apart in [false, true] {
        let names = ["new", "former", "other"];
        let stage = Stage::new(Branches { apart, ..Branches::new(&names) });
        stage.open(&[1, 0]).await.unwrap();
        assert_eq!(stage.branches.keys[1].calls().unwraps, 0, "the KEK's own entry comes first");
        // Two keys that are denied, and one that is not.
        stage.branches.keys[0].fail_with(Denied);
        stage.branches.keys[1].fail_with(Denied);
        stage.open(&[0, 1, 2]).await.unwrap();
    }
    // A Region that is down, or hangs.
    let stage = Stage::new(Branches { discovers: true, ..Branches::new(&["eu", "us"]) });
    for act in [Act::Fail(Unavailable), Act::Fail(Misconfigured), Act::Hang] {
        stage.branches.keys[0].script([act]);
        stage.open(&[0, 1]).await.unwrap();
    }
}

// --- providers that panic

/// Panics in each of its methods before there is a future.
#[derive(Debug)]
struct Panics {
    kek: ScriptedKek,
    now: Arc<AtomicBool>,
}

impl Panics {
    fn check(&self) -> &ScriptedKek {
        assert!(!self.now.load(SeqCst), "by script");
        &self.kek
    }
}

impl KekProvider for Panics {
    fn id(&self) -> &KekId {
        self.kek.id()
    }
    fn recognises(&self, kek_id: &KekId) -> bool {
        self.check().recognises(kek_id)
    }
    fn target(&self, kek_id: &KekId) -> CallTarget {
        self.check().target(kek_id)
    }
    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        self.check().is_current(wrapped)
    }
    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        self.check().wrap(context, dek)
    }
    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        self.check().unwrap(context, wrapped)
    }
    fn generate<'a>(
        &'a self,
        context: &'a EncryptionContext,
    ) -> BoxFuture<'a, Result<(UnwrappedDek, WrappedDek), KekError>> {
        self.check().generate(context)
    }
    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        self.check().rewrap(context, wrapped)
    }
    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        self.check().health()
    }
}

#[tokio::test]
async fn a_provider_that_panics_before_there_is_a_future_is_one_that_fails() {
    for origin in [waxseal::DekOrigin::Local, waxseal::DekOrigin::KeyService] {
        let (kek, now) = (ScriptedKek::new("kek").unwrap(), Arc::new(AtomicBool::new(false)));
        let provider = Panics { kek: kek.clone(), now: now.clone() };
        let envelope = Envelope::builder()
            .wrap_with(provider)
            .call_policy(policy())
            .dek_origin(origin)
            .build()
            .unwrap();
        let alice = context("alice");
        let sealed =
            support::envelope(kek.local()).encrypt(&alice, Aad::empty(), b"x").await.unwrap();
        now.store(true, SeqCst);
        let error = envelope.encrypt(&alice, Aad::empty(), b"x").await.unwrap_err();
        assert!(
            error.kind() == ErrorKind::Unavailable && error.to_string().contains("panicked"),
            "{error}"
        );
        // It may be asked for nothing that it does not say it recognises.
        assert_eq!(
            envelope.decrypt(&alice, Aad::empty(), &sealed).await.unwrap_err().kind(),
            ErrorKind::UnknownKek
        );
        assert!(!envelope.needs_rewrap(&sealed).unwrap());
        envelope.rewrap(&alice, &sealed).await.unwrap_err();
        assert!(envelope.health().await[0].1.is_err());
        now.store(false, SeqCst);
        envelope.encrypt(&alice, Aad::empty(), b"x").await.unwrap();
        envelope.decrypt(&alice, Aad::empty(), &sealed).await.unwrap();
    }
}
