//! No panic of a policy gets out, whichever part of it panics.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use waxseal::kek::local::LocalKek;
use waxseal::policy::{BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::{Aad, EncryptionContext, Envelope, Error, ErrorKind};
use waxseal_testing::support::{Threads, block_on};

use crate::ground::{Ground, Rules, SECOND, alone, context, denied};

fn encrypt(envelope: &Envelope, context: &EncryptionContext) -> Result<Vec<u8>, Error> {
    block_on(envelope.encrypt(context, Aad::empty(), b"x"))
}

/// A policy whose future hangs and panics when it is dropped.
#[derive(Debug)]
struct Sticky;

impl Policy for Sticky {
    fn decide<'a>(&'a self, _: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        Box::pin(HangsAndBites)
    }
}

struct HangsAndBites;

impl Future for HangsAndBites {
    type Output = Result<Decision, Error>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Pending
    }
}

impl Drop for HangsAndBites {
    fn drop(&mut self) {
        panic!("the destructor");
    }
}

#[test]
fn a_late_policy_whose_destructor_panics_is_a_denial() {
    let options = PolicyOptions::default().timeout(Duration::from_millis(20));
    let envelope = Envelope::builder()
        .wrap_with(LocalKek::in_memory("kek").unwrap())
        .runtime(Threads)
        .policy(Sticky, options)
        .build()
        .unwrap();
    let result = catch_unwind(AssertUnwindSafe(|| encrypt(&envelope, &context("acme"))));
    denied(result.expect("the panic reached the caller"));
}

#[test]
fn a_caller_that_gives_up_survives_the_destructor_of_the_policy() {
    let envelope = Envelope::builder()
        .wrap_with(LocalKek::in_memory("kek").unwrap())
        .policy(Sticky, PolicyOptions::default())
        .build()
        .unwrap();
    let acme = context("acme");
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut call = Box::pin(envelope.encrypt(&acme, Aad::empty(), b"x"));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(call.as_mut().poll(&mut cx).is_pending());
        drop(call);
    }));
    assert!(result.is_ok(), "the panic reached the caller");
}

/// The cause of an error, which panics when it is dropped.
#[derive(Debug)]
struct Bites;

impl std::fmt::Display for Bites {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("bites")
    }
}

impl std::error::Error for Bites {}

impl Drop for Bites {
    fn drop(&mut self) {
        panic!("the destructor of a cause");
    }
}

#[test]
fn a_cause_whose_destructor_panics_reaches_nobody() {
    let rules = Rules::open();
    let ground = Ground::new(&rules, PolicyOptions::default().last_known_for(60 * SECOND));
    let acme = context("acme");
    encrypt(&ground.envelope, &acme).unwrap();
    ground.clock.advance(30 * SECOND);
    rules.answer(|_| Err(Error::new(ErrorKind::Unavailable, "").with_source(Bites)));
    let result = catch_unwind(AssertUnwindSafe(|| encrypt(&ground.envelope, &acme)));
    assert!(result.is_ok(), "the panic reached the caller");
}

/// A policy whose future panics when it is polled and when it is dropped.
#[derive(Debug)]
struct BitesTwice;

impl Policy for BitesTwice {
    fn decide<'a>(&'a self, _: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        Box::pin(PanicsAndBites)
    }
}

struct PanicsAndBites;

impl Future for PanicsAndBites {
    type Output = Result<Decision, Error>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        panic!("polled")
    }
}

impl Drop for PanicsAndBites {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

/// In a separate process, which a panic in a destructor would abort.
#[test]
fn a_policy_that_panics_in_poll_and_in_its_destructor_aborts_nothing() {
    alone("panics::a_policy_that_panics_in_poll_and_in_its_destructor_aborts_nothing", || {
        let envelope = Envelope::builder()
            .wrap_with(LocalKek::in_memory("kek").unwrap())
            .policy(BitesTwice, PolicyOptions::default())
            .build()
            .unwrap();
        denied(encrypt(&envelope, &context("acme")));
    });
}

#[test]
fn a_generation_that_panics_is_not_reported_as_a_reload() {
    #[derive(Debug)]
    struct NoNumber;

    impl Policy for NoNumber {
        fn decide<'a>(&'a self, _: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
            Box::pin(async { Ok(Decision::allow()) })
        }

        fn generation(&self) -> u64 {
            panic!("no number")
        }
    }

    let envelope = Envelope::builder()
        .wrap_with(LocalKek::in_memory("kek").unwrap())
        .policy(NoNumber, PolicyOptions::default())
        .build()
        .unwrap();
    let reasons = denied(encrypt(&envelope, &context("acme")));
    assert!(reasons[0].contains("panicked"), "{reasons:?}");
}
