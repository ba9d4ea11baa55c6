//! Calls that continue in the background: what they may still change.
#![allow(missing_docs, dead_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use waxseal_testing::support;

use support::stage::{Stage, ms, secs};
use support::{HookedKek, block_on, context};
use waxseal::kek::scripted::ScriptedKek;
use waxseal::kek::{BoxFuture, KekErrorClass};
use waxseal::{Aad, Envelope, ErrorKind, Event, Limits, Observer, StartOptions};

fn slow(wait: Duration) -> impl Fn() -> BoxFuture<'static, ()> + Send + Sync + 'static {
    move || waxseal::Runtime::sleep(&support::Threads, wait)
}

/// The KEK denies, but takes 400 ms, while callers on plain threads come every 120 seconds.
fn a_slow_denial_is_heard(stage: &Stage) {
    stage.read().unwrap();
    stage.kek.fail_with(KekErrorClass::Denied);
    stage.kek.wait_for(slow(ms(400)));
    stage.clock.advance(secs(101));
    let mut served = 0;
    for _ in 0..6 {
        served += usize::from(stage.read().is_ok());
        std::thread::sleep(ms(800));
        stage.clock.advance(secs(120));
    }
    assert!(served <= 1, "served {served}");
}

/// Built in a tokio runtime that has ended.
#[test]
fn a_slow_denial_is_heard_though_the_runtime_has_ended() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let stage = {
        let _in = runtime.enter();
        Stage::new(Limits::default().stale_if_error_reading(secs(3600)))
    };
    drop(runtime);
    a_slow_denial_is_heard(&stage);
}

/// The runtime exists, but nothing drives it.
#[test]
fn a_slow_denial_is_heard_though_nobody_drives_the_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stage = runtime
        .block_on(async { Stage::new(Limits::default().stale_if_error_reading(secs(3600))) });
    a_slow_denial_is_heard(&stage);
}

#[derive(Debug, Clone, Default)]
struct Wiped(Arc<AtomicUsize>);
impl Observer for Wiped {
    fn event(&self, event: &Event<'_>) {
        if matches!(event, Event::Wiped { .. }) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// The last envelope is dropped while a renewal hangs in the background: are the keys gone?
#[test]
fn the_deks_end_with_the_last_envelope_though_a_call_goes_on() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let wiped = Wiped::default();
    let stage = {
        let _in = runtime.enter();
        Stage::with(Limits::default(), |b| b.observer(wiped.clone()))
    };
    stage.read().unwrap();
    stage.kek.wait_for(|| Box::pin(std::future::pending()));
    stage.clock.advance(secs(81));
    stage.read().unwrap();
    std::thread::sleep(ms(100));
    drop(stage.envelope);
    std::thread::sleep(ms(500));
    let now = wiped.0.load(Ordering::SeqCst);
    let began = Instant::now();
    while wiped.0.load(Ordering::SeqCst) == 0 && began.elapsed() < secs(40) {
        std::thread::sleep(ms(50));
    }
    assert_eq!(now, 1);
}

/// Takes its time to close, and counts how often it did.
fn closing(kek: ScriptedKek, closed: &Arc<AtomicUsize>) -> HookedKek {
    let closed = closed.clone();
    HookedKek::around(kek).on_close(move |_| {
        let closed = closed.clone();
        Box::pin(async move {
            waxseal::Runtime::sleep(&support::Threads, ms(100)).await;
            closed.fetch_add(1, Ordering::SeqCst);
        })
    })
}

#[test]
fn close_gives_up_what_providers_hold_though_shut_down_came_before() {
    let closed = Arc::new(AtomicUsize::new(0));
    let kek = closing(ScriptedKek::new("kek").unwrap(), &closed);
    let envelope = Envelope::builder().wrap_with(kek).build().unwrap();
    envelope.shut_down();
    block_on(envelope.close());
    let one = closed.swap(0, Ordering::SeqCst);

    let kek = closing(ScriptedKek::new("kek").unwrap(), &closed);
    let envelope = Envelope::builder().wrap_with(kek).build().unwrap();
    {
        let mut closing = Box::pin(envelope.close());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(closing.as_mut().poll(&mut cx).is_pending());
    }
    block_on(envelope.close());
    let two = closed.load(Ordering::SeqCst);
    assert_eq!((one, two), (1, 1));
}

#[test]
fn a_start_that_fails_closes_its_providers() {
    let closed = Arc::new(AtomicUsize::new(0));
    let started = |kek: ScriptedKek| {
        let kek = closing(kek, &closed);
        block_on(Envelope::builder().wrap_with(kek).start(StartOptions::default()))
    };
    let healthy = started(ScriptedKek::new("kek").unwrap());
    assert_eq!((healthy.is_ok(), closed.load(Ordering::SeqCst)), (true, 0));
    let denied = ScriptedKek::new("kek").unwrap();
    denied.fail_with(KekErrorClass::Denied);
    let error = started(denied).err().map(|error| error.kind());
    assert_eq!((error, closed.load(Ordering::SeqCst)), (Some(ErrorKind::Denied), 1));
}

/// Holds up the first `Evicted` until it is let go.
#[derive(Debug, Clone, Default)]
struct Holds {
    held: Arc<AtomicBool>,
    go: Arc<AtomicBool>,
}
impl Observer for Holds {
    fn event(&self, event: &Event<'_>) {
        if matches!(event, Event::Evicted { .. }) && !self.held.swap(true, Ordering::SeqCst) {
            while !self.go.load(Ordering::SeqCst) {
                std::thread::sleep(ms(1));
            }
        }
    }
}

/// An answer that is on its way when its context is revoked is cached before it is checked against
/// the revocation.
#[test]
fn a_revoked_answer_is_never_cached_while_an_observer_blocks() {
    let holds = Holds::default();
    let stage = Stage::with(Limits::default().max_entries(1), |b| b.observer(holds.clone()));
    let stage = Arc::new(stage);
    let bob = context("bob");
    let other =
        block_on(support::envelope(stage.kek.local()).encrypt(&bob, Aad::empty(), b"bob")).unwrap();
    block_on(stage.envelope.decrypt(&bob, Aad::empty(), &other)).unwrap();
    let go = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = go.clone();
    stage.kek.wait_for(move || {
        let gate = gate.clone();
        Box::pin(async move { gate.acquire().await.unwrap().forget() })
    });
    let _reader = {
        let stage = stage.clone();
        std::thread::spawn(move || stage.read())
    };
    while stage.calls().0 < 2 {
        std::thread::sleep(ms(1));
    }
    stage.envelope.evict_context(&stage.alice);
    go.add_permits(1);
    let began = Instant::now();
    while !holds.held.load(Ordering::SeqCst) && stage.calls().0 < 3 && began.elapsed() < secs(5) {
        std::thread::sleep(ms(1));
    }
    let after = stage.envelope.decrypt_cached(&stage.alice, Aad::empty(), &stage.sealed);
    holds.go.store(true, Ordering::SeqCst);
    go.add_permits(10);
    assert!(!matches!(after, Ok(Some(_))), "opened after evict_context, by an answer from before");
}
