//! One call for many, renewal, revocation and wiping under thousands of schedules that shuttle
//! chooses, each of which can be replayed.
//!
//! ```sh
//! RUSTFLAGS='--cfg shuttle' cargo test --lib --target-dir target/schedules schedules
//! ```
//!
//! `WAXSEAL_SCHEDULES` is the number of schedules for each test, by default 2,000. A failure prints
//! its schedule; with that text in a file that `WAXSEAL_REPLAY` names, the test of that name runs
//! it again.
//!
//! These are unit tests, so that shuttle is a dependency of nobody but the tests. Everything random
//! that could change what a schedule does is fixed: the key service here makes the DEKs, and each
//! scenario has few enough entries for one shard of the cache.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod branches;
mod flights;
mod permits;
mod revocation;
mod runs;
mod streams;
mod wiping;

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use shuttle::future::block_on;
use shuttle::rand::Rng;
use shuttle::scheduler::{
    PctScheduler, RandomScheduler, ReplayScheduler, Scheduler,
    UncontrolledNondeterminismCheckScheduler,
};
use shuttle::thread::{JoinHandle, spawn};
use shuttle::{Config, MaxSteps, Runner};

use runs::Runs;

use crate::kek::{BoxFuture, Health, KekError, KekErrorClass, KekProvider, UnwrappedDek};
use crate::sync;
use crate::{
    Aad, Dek, DekId, DekOrigin, EncryptionContext, Encryptor, Envelope, EnvelopeBuilder, Error,
    ErrorKind, Event, KekId, Limits, ManualClock, Observer, Runtime, WrappedDek,
};

const SCHEDULES: usize = 2_000;
const MAX_AGE: Duration = Duration::from_secs(100);

/// Runs `scenario` in many schedules: half of them by PCT, with few preemptions at random places,
/// half with many.
pub(crate) fn explore(scenario: impl Fn() + Send + Sync + 'static) {
    let in_schedule = Arc::new(move || {
        sync::begin_schedule();
        scenario();
        // The library's own thread reports first.
        sync::settle();
        sync::end_of_schedule();
    });
    let run = |scheduler: Box<dyn Scheduler + Send>| {
        let mut config = Config::new();
        config.stack_size = 512 * 1024;
        config.max_steps = MaxSteps::FailAfter(100_000);
        config.silence_warnings = true;
        let in_schedule = in_schedule.clone();
        Runner::new(scheduler, config).run(move || in_schedule())
    };
    if let Ok(path) = std::env::var("WAXSEAL_REPLAY") {
        run(Box::new(ReplayScheduler::new_from_file(path).unwrap()));
        return;
    }
    let number =
        std::env::var("WAXSEAL_SCHEDULES").map_or(SCHEDULES, |number| number.parse().unwrap());
    let mut ran = run(Box::new(Runs::new(number.div_ceil(2))));
    ran += run(Box::new(PctScheduler::new(3, number / 2)));
    assert_eq!(ran, number);
    // What a schedule does twice it does again in a replay.
    run(Box::new(UncontrolledNondeterminismCheckScheduler::new(RandomScheduler::new(10))));
}

/// So few entries that the cache has one shard, whatever the hash.
fn few_entries() -> Limits {
    Limits::default().max_entries(8)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn join<T>(threads: impl IntoIterator<Item = JoinHandle<T>>) -> Vec<T> {
    // All are started before one is waited for.
    let threads: Vec<_> = threads.into_iter().collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

fn kind<T>(result: &Result<T, Error>) -> Option<ErrorKind> {
    result.as_ref().err().map(Error::kind)
}

static ALICE: LazyLock<EncryptionContext> =
    LazyLock::new(|| EncryptionContext::new([("tenant", "alice")]).unwrap());
static BOB: LazyLock<EncryptionContext> =
    LazyLock::new(|| EncryptionContext::new([("tenant", "bob")]).unwrap());

/// One message of each, sealed elsewhere, so that its DEK has to be unwrapped.
static MESSAGES: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    elsewhere(|stage| {
        [&*ALICE, &*BOB].map(|context| {
            block_on(stage.envelope.encrypt(context, Aad::empty(), b"payload")).unwrap()
        })
    })
});

/// What another process makes, whose DEKs are others. Where a test's own schedule runs already,
/// this one cannot, so tests ask for it before they begin.
fn elsewhere<T: Send + 'static>(make: impl Fn(&Stage) -> T + Send + Sync + 'static) -> T {
    let made = Arc::new(Mutex::new(None));
    let out = made.clone();
    let apart = std::thread::spawn(move || {
        let mut config = Config::new();
        config.stack_size = 512 * 1024;
        config.silence_warnings = true;
        Runner::new(RandomScheduler::new(1), config).run(move || {
            sync::begin_schedule();
            let stage = Stage::new(|builder| builder);
            stage.kek.0.made.store(100, SeqCst);
            *out.lock().unwrap() = Some(make(&stage));
            drop(stage);
            sync::end_of_schedule();
        });
    });
    apart.join().unwrap();
    made.lock().unwrap().take().unwrap()
}

/// A key service whose DEKs are the same in every schedule.
#[derive(Clone)]
struct ToyKek(Arc<Toy>);

impl std::fmt::Debug for ToyKek {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ToyKek")
    }
}

struct Toy {
    id: KekId,
    made: AtomicU64,
    unwraps: AtomicU64,
    generates: AtomicU64,
    down: AtomicBool,
    gate: Gate,
    /// What is refused, by context and wrapped bytes.
    denies: Mutex<Option<fn(&EncryptionContext, &[u8]) -> bool>>,
}

impl ToyKek {
    fn new() -> Self {
        Self(Arc::new(Toy {
            id: KekId::new("toy:kek").unwrap(),
            made: AtomicU64::new(0),
            unwraps: AtomicU64::new(0),
            generates: AtomicU64::new(0),
            down: AtomicBool::new(false),
            gate: Gate::default(),
            denies: Mutex::new(None),
        }))
    }

    /// How many calls have begun.
    fn unwraps(&self) -> u64 {
        self.0.unwraps.load(SeqCst)
    }

    fn generates(&self) -> u64 {
        self.0.generates.load(SeqCst)
    }

    async fn answer(
        &self,
        calls: &AtomicU64,
        context: &EncryptionContext,
        wrapped: &[u8],
    ) -> Result<(), KekError> {
        calls.fetch_add(1, SeqCst);
        answers_some_time().await;
        self.0.gate.pass().await;
        let denies = self.0.denies.lock().unwrap().is_some_and(|denies| denies(context, wrapped));
        match () {
            () if self.0.down.load(SeqCst) => {
                Err(KekError::new(KekErrorClass::Unavailable, "by script"))
            }
            () if denies => Err(KekError::new(KekErrorClass::Denied, "by script")),
            () => Ok(()),
        }
    }

    fn toggled(bytes: &[u8]) -> Vec<u8> {
        bytes.iter().map(|byte| byte ^ 0x5A).collect()
    }
}

impl KekProvider for ToyKek {
    fn id(&self) -> &KekId {
        &self.0.id
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            self.answer(&self.0.generates, context, &[]).await?;
            Ok(WrappedDek::new(self.0.id.clone(), Self::toggled(dek.expose())).unwrap())
        })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            self.answer(&self.0.unwraps, context, wrapped.wrapped()).await?;
            Ok(UnwrappedDek::new(Self::toggled(wrapped.wrapped())))
        })
    }

    fn generate<'a>(
        &'a self,
        context: &'a EncryptionContext,
    ) -> BoxFuture<'a, Result<(UnwrappedDek, WrappedDek), KekError>> {
        Box::pin(async move {
            self.answer(&self.0.generates, context, &[]).await?;
            let dek = [u8::try_from(self.0.made.fetch_add(1, SeqCst) + 1).unwrap(); 32];
            let wrapped = WrappedDek::new(self.0.id.clone(), Self::toggled(&dek)).unwrap();
            Ok((UnwrappedDek::new(dek.to_vec()), wrapped))
        })
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        Box::pin(async { Ok(Health::Ready) })
    }
}

/// Open at first. Calls wait while it is shut.
#[derive(Debug, Default)]
struct Gate(Mutex<Shut>);

#[derive(Debug, Default)]
struct Shut {
    shut: bool,
    waiting: Vec<Waker>,
}

impl Gate {
    fn shut(&self) {
        self.0.lock().unwrap().shut = true;
    }

    fn open(&self) {
        let waiting = {
            let mut gate = self.0.lock().unwrap();
            gate.shut = false;
            std::mem::take(&mut gate.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    async fn pass(&self) {
        std::future::poll_fn(|cx| {
            let mut gate = self.0.lock().unwrap();
            if !gate.shut {
                return Poll::Ready(());
            }
            gate.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A runtime of shuttle's threads. What sleeps there sleeps for ever: no call takes too long in
/// these tests.
#[derive(Clone, Debug, Default)]
struct ToyRuntime {
    polls: Arc<AtomicU64>,
    alive: Arc<AtomicU64>,
    /// Nothing drives it: spawned tasks do not run.
    idle: bool,
    spawned: Arc<Mutex<Vec<Undriven>>>,
}

struct Undriven(#[allow(dead_code)] BoxFuture<'static, ()>);

impl std::fmt::Debug for Undriven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Undriven")
    }
}

impl ToyRuntime {
    /// Waits until nothing happens there any more.
    fn settle(&self) {
        while self.alive.load(SeqCst) > 0 {
            shuttle::thread::yield_now();
        }
    }
}

impl Runtime for ToyRuntime {
    fn spawn(&self, mut future: BoxFuture<'static, ()>) {
        if self.idle {
            self.spawned.lock().unwrap().push(Undriven(future));
            return;
        }
        let (polls, alive) = (self.polls.clone(), self.alive.clone());
        alive.fetch_add(1, SeqCst);
        drop(shuttle::future::spawn(async move {
            std::future::poll_fn(|cx| {
                let polled = future.as_mut().poll(cx);
                polls.fetch_add(1, SeqCst);
                polled
            })
            .await;
            drop(future);
            alive.fetch_sub(1, SeqCst);
        }));
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// Counts events by name, and for each DEK.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<HashMap<(&'static str, Option<DekId>), usize>>>);

impl Observer for Log {
    fn event(&self, event: &Event<'_>) {
        let (name, id) = match event {
            Event::Made { dek_id, .. } => ("made", Some(**dek_id)),
            Event::Unwrapped { dek_id, .. } => ("unwrapped", Some(**dek_id)),
            Event::Wiped { dek_id, .. } => ("wiped", Some(**dek_id)),
            Event::Refreshed { dek_id, .. } => ("refreshed", Some(**dek_id)),
            Event::Evicted { dek_id, .. } => ("evicted", Some(**dek_id)),
            Event::Denied { dek_id, .. } => ("denied", dek_id.copied()),
            _ => return,
        };
        *self.0.lock().unwrap().entry((name, id)).or_default() += 1;
    }
}

impl Log {
    pub(crate) fn count(&self, name: &str) -> usize {
        self.0
            .lock()
            .unwrap()
            .iter()
            .filter(|((event, _), _)| *event == name)
            .map(|(_, count)| count)
            .sum()
    }

    /// How many DEKs came into being: a new one is there for reading and for writing.
    fn begun(&self) -> usize {
        2 * self.count("made") + self.count("unwrapped")
    }
}

/// An envelope over the toy key service, with its own clock.
#[derive(Clone)]
struct Stage {
    kek: ToyKek,
    clock: ManualClock,
    log: Log,
    envelope: Envelope,
}

impl Stage {
    fn new(more: impl FnOnce(EnvelopeBuilder) -> EnvelopeBuilder) -> Self {
        Self::with(few_entries().max_age(MAX_AGE), more)
    }

    fn with(limits: Limits, more: impl FnOnce(EnvelopeBuilder) -> EnvelopeBuilder) -> Self {
        let (kek, clock, log) = (ToyKek::new(), ManualClock::new(), Log::default());
        let builder = Envelope::builder()
            .wrap_with(kek.clone())
            .dek_origin(DekOrigin::KeyService)
            .limits(limits);
        let envelope = more(builder.clock(clock.clone()).observer(log.clone())).build().unwrap();
        Self { kek, clock, log, envelope }
    }

    async fn read_of(&self, context: &EncryptionContext, sealed: &[u8]) -> Result<(), Error> {
        let plaintext = self.envelope.decrypt(context, Aad::empty(), sealed).await?;
        assert_eq!(&*plaintext, b"payload");
        Ok(())
    }

    fn read(&self) -> Result<(), Error> {
        block_on(self.read_of(&ALICE, &MESSAGES[0]))
    }

    fn write(&self) -> Result<(), Error> {
        block_on(self.envelope.encrypt(&ALICE, Aad::empty(), b"x")).map(drop)
    }

    fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce(Self) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let stage = self.clone();
        spawn(move || work(stage))
    }

    /// For the clock, and for waiting threads.
    fn pass(&self, duration: Duration) {
        self.clock.advance(duration);
        sync::pass(duration);
    }

    /// Everything ends with the last envelope, and every end was reported once.
    fn end(self) {
        let Self { log, envelope, .. } = self;
        drop(envelope);
        // The wiper reports what it was wiping.
        sync::settle();
        assert_eq!(log.count("wiped"), log.begun(), "told of each end once");
    }
}

/// At once, or later; then what wakes the caller comes after its poll, or while it is at it.
async fn answers_some_time() {
    let mut pauses = shuttle::rand::thread_rng().gen_range(0..3);
    std::future::poll_fn(|cx| {
        let pause = std::mem::take(&mut pauses);
        if pause == 0 {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        if pause == 2 {
            shuttle::thread::yield_now();
        }
        Poll::Pending
    })
    .await;
}

/// Polls `future` as often, and drops it if it is not done by then.
async fn poll_at_most<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let mut future = Box::pin(future);
    let mut left = times;
    std::future::poll_fn(move |cx| {
        left -= 1;
        match Pin::new(&mut future).poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
