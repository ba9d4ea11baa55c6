//! Foreign code that panics while a panic unwinds. It would abort the process, so each test runs in
//! a separate one.

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::time::Duration;

use tracing::span;
use waxseal::kek::{BoxFuture, Health, KekError, KekProvider, UnwrappedDek};
use waxseal::{
    Aad, Dek, EncryptionContext, Envelope, ErrorKind, Event, KekId, Observer, Runtime, WrappedDek,
};
use waxseal_testing::support::{block_on, context};

/// Runs a test of this binary in its own process, which has to end as usual.
fn alone(name: &str, test: impl FnOnce()) {
    const IS_ALONE: &str = "WAXSEAL_TEST_IS_ALONE";
    if std::env::var_os(IS_ALONE).is_some() {
        return test();
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(IS_ALONE, "1")
        .output()
        .unwrap();
    let (told, failed) = (String::from_utf8_lossy(&output.stdout), &output.stderr);
    assert!(told.contains("1 passed"), "{told}{}", String::from_utf8_lossy(failed));
}

/// A payload of a panic, or another value, that panics when it is dropped.
struct Bites;

impl Drop for Bites {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

/// Panics when it is polled, with a payload that panics too, and when it is dropped.
fn rotten<'a, T: Send + 'a>() -> BoxFuture<'a, T> {
    let bites = Bites;
    Box::pin(std::future::poll_fn(move |_| {
        let _keeps = &bites;
        panic_any(Bites)
    }))
}

#[derive(Debug)]
struct RottenKek(KekId);

impl KekProvider for RottenKek {
    fn id(&self) -> &KekId {
        &self.0
    }

    fn wrap<'a>(
        &'a self,
        _: &'a EncryptionContext,
        _: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        rotten()
    }

    fn unwrap<'a>(
        &'a self,
        _: &'a EncryptionContext,
        _: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        rotten()
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        rotten()
    }
}

/// A subscriber that panics in every operation on a span.
struct BadSubscriber;

impl tracing::Subscriber for BadSubscriber {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {
        panic_any(Bites);
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        panic_any(Bites);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {
        panic_any(Bites);
    }

    fn try_close(&self, _: span::Id) -> bool {
        panic_any(Bites);
    }
}

/// A runtime whose timers panic.
#[derive(Debug)]
struct BadTimers;

impl Runtime for BadTimers {
    fn spawn(&self, _: BoxFuture<'static, ()>) {}

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        rotten()
    }
}

fn kek() -> RottenKek {
    RottenKek(KekId::new("local:rotten").unwrap())
}

/// What unwinds leaves the span too.
#[test]
fn a_subscriber_that_panics_when_a_span_is_left_while_a_call_unwinds_aborts_nothing() {
    let name =
        "panics::a_subscriber_that_panics_when_a_span_is_left_while_a_call_unwinds_aborts_nothing";
    alone(name, || {
        tracing::subscriber::set_global_default(BadSubscriber).unwrap();
        let envelope = Envelope::builder().wrap_with(kek()).build().unwrap();
        let error = block_on(envelope.encrypt(&context("a"), Aad::empty(), b"x")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        // One that does not only fail but unwinds.
        let call = catch_unwind(AssertUnwindSafe(|| {
            let envelope = Envelope::builder().wrap_with(kek()).runtime(BadTimers).build().unwrap();
            block_on(envelope.encrypt(&context("a"), Aad::empty(), b"x"))
        }));
        assert!(call.is_ok_and(|call| call.is_err()));
    });
}

#[test]
fn a_provider_that_panics_in_poll_and_in_its_destructor_is_one_that_fails() {
    let name = "panics::a_provider_that_panics_in_poll_and_in_its_destructor_is_one_that_fails";
    alone(name, || {
        let envelope = Envelope::builder().wrap_with(kek()).build().unwrap();
        let error = block_on(envelope.encrypt(&context("a"), Aad::empty(), b"x")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("panicked"), "{error}");
    });
}

/// Panics at each event, with a payload that panics, and when it is dropped.
#[derive(Debug)]
struct BadObserver(Held);

#[derive(Debug)]
struct Held;

impl Drop for Held {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

impl Observer for BadObserver {
    fn event(&self, _: &Event<'_>) {
        let _keeps = &self.0;
        panic_any(Bites);
    }

    fn access_summaries(&self) -> Option<Duration> {
        panic_any(Bites);
    }
}

/// The envelope ends while its caller unwinds.
#[test]
fn an_observer_that_panics_in_its_destructor_while_its_envelope_unwinds_aborts_nothing() {
    let name = "panics::an_observer_that_panics_in_its_destructor_while_its_envelope_unwinds_aborts_nothing";
    alone(name, || {
        let mine = catch_unwind(AssertUnwindSafe(|| {
            let kek = waxseal::kek::local::LocalKek::in_memory("kek").unwrap();
            let envelope =
                Envelope::builder().wrap_with(kek).observer(BadObserver(Held)).build().unwrap();
            block_on(envelope.encrypt(&context("a"), Aad::empty(), b"x")).unwrap();
            panic!("mine");
        }));
        assert_eq!(mine.unwrap_err().downcast_ref(), Some(&"mine"));
    });
}
