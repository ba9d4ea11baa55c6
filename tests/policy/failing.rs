//! Policies that fail. Everything but a clear allow is a denial.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use waxseal::kek::local::LocalKek;
use waxseal::policy::{BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::{Aad, Caller, Envelope, Error, ErrorKind};
use waxseal_testing::support::{Threads, block_on};

use crate::ground::{Ground, Rules, SECOND, caller, context, denied};

/// What a broken policy does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// Its future never completes.
    Hangs,
    PanicsAtOnce,
    PanicsLater,
    /// The panic's payload panics when it is dropped.
    PanicsTwice,
    /// It does not say which rules are in force.
    NoGeneration,
}

#[derive(Debug)]
struct Broken(Fault);

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("the payload");
    }
}

impl Policy for Broken {
    fn decide<'a>(&'a self, _: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        match self.0 {
            Fault::Hangs => Box::pin(pending()),
            Fault::PanicsAtOnce => panic!("at once"),
            Fault::PanicsLater => Box::pin(async { panic!("later") }),
            Fault::PanicsTwice => Box::pin(async { std::panic::panic_any(Bomb) }),
            Fault::NoGeneration => Box::pin(async { Ok(Decision::allow()) }),
        }
    }

    fn generation(&self) -> u64 {
        assert_ne!(self.0, Fault::NoGeneration, "no generation");
        0
    }
}

#[test]
fn a_policy_that_hangs_or_panics_denies_in_time() {
    for (fault, text) in [
        (Fault::Hangs, "did not answer in time"),
        (Fault::PanicsAtOnce, "it panicked"),
        (Fault::PanicsLater, "it panicked"),
        (Fault::PanicsTwice, "it panicked"),
        (Fault::NoGeneration, "it panicked"),
    ] {
        // Even if the last known decision may serve: there is none.
        for last_known in [0, 60] {
            let options = PolicyOptions::default()
                .timeout(Duration::from_millis(50))
                .last_known_for(last_known * SECOND);
            let envelope = Envelope::builder()
                .wrap_with(LocalKek::in_memory("kek").unwrap())
                .runtime(Threads)
                .policy(Broken(fault), options)
                .build()
                .unwrap();
            let began = Instant::now();
            let reasons = denied(block_on(envelope.encrypt(&context("acme"), Aad::empty(), b"x")));
            assert!(reasons[0].contains(text), "{fault:?}: {reasons:?}");
            assert!(began.elapsed() < 5 * SECOND, "{fault:?}");
            assert_eq!(envelope.statistics().writing_deks, 0);
            let handle = block_on(envelope.encryptor(&context("acme")));
            assert_eq!(handle.unwrap_err().kind(), ErrorKind::PolicyDenied);
        }
    }
}

#[test]
fn an_error_is_a_denial_that_says_so_and_is_not_remembered() {
    let ground = Ground::new(&Rules::open(), PolicyOptions::default());
    let (who, acme) = (caller("a", "r"), context("acme"));
    let encrypt = || block_on(ground.envelope.acting_for(&who).encrypt(&acme, Aad::empty(), b"x"));
    for kind in [
        ErrorKind::Unavailable,
        ErrorKind::Throttled,
        ErrorKind::Misconfigured,
        ErrorKind::Provider,
        ErrorKind::Expired,
        ErrorKind::Exhausted,
    ] {
        ground.rules.fail(kind);
        let error = encrypt().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PolicyDenied);
        assert!(!error.is_retryable());
        // What the policy says about itself is for the service and not for the denied caller.
        let expected = format!("the policy gave no decision ({})", kind.as_str());
        assert_eq!(&*error.reasons()[0], expected);
        let cause = error.cause().unwrap().downcast_ref::<Error>().unwrap();
        assert_eq!(cause.kind(), kind);
        assert!(cause.to_string().contains("broken") && !error.to_string().contains("broken"));
        ground.rules.answer(|_| Ok(Decision::allow()));
        encrypt().unwrap();
        ground.rules.reload();
    }
}

#[test]
fn in_an_outage_a_cached_decision_goes_on_until_its_end_and_no_longer() {
    let ground = Ground::new(&Rules::open(), PolicyOptions::default());
    let (who, acme) = (caller("a", "r"), context("acme"));
    let encrypt = || block_on(ground.envelope.acting_for(&who).encrypt(&acme, Aad::empty(), b"x"));
    encrypt().unwrap();
    ground.rules.fail(ErrorKind::Unavailable);
    ground.clock.advance(29 * SECOND);
    encrypt().unwrap();
    ground.clock.advance(SECOND);
    denied(encrypt());
}

#[test]
fn the_last_known_decision_serves_in_an_outage_for_its_time_and_only_its_question() {
    let rules = Rules::role("reader");
    let options = PolicyOptions::default().last_known_for(60 * SECOND);
    let ground = Ground::new(&rules, options);
    let (reader, other, acme) = (caller("a", "reader"), caller("b", "other"), context("acme"));
    let encrypt =
        |who: &Caller| block_on(ground.envelope.acting_for(who).encrypt(&acme, Aad::empty(), b"x"));
    encrypt(&reader).unwrap();
    denied(encrypt(&other));
    rules.fail(ErrorKind::Unavailable);
    ground.clock.advance(30 * SECOND);
    rules.asked();
    encrypt(&reader).unwrap();
    assert_eq!(denied(encrypt(&other)), ["not the role"], "what was denied stays so");
    encrypt(&reader).unwrap();
    assert_eq!(rules.asked().len(), 2, "not asked again for a second");
    let stranger = caller("c", "reader");
    denied(encrypt(&stranger));
    // It is asked again, and a decision ends the grace.
    ground.clock.advance(SECOND);
    encrypt(&reader).unwrap();
    assert_eq!(rules.asked().len(), 2);
    ground.clock.advance(58 * SECOND);
    encrypt(&reader).unwrap();
    ground.clock.advance(SECOND);
    denied(encrypt(&reader));
    rules.answer(|_| Ok(Decision::allow()));
    encrypt(&reader).unwrap();
}

#[test]
fn the_last_known_decision_serves_in_no_other_failure_and_not_after_a_reload() {
    let rules = Rules::open();
    let options = PolicyOptions::default().last_known_for(3600 * SECOND);
    let ground = Ground::new(&rules, options);
    let (who, acme) = (caller("a", "r"), context("acme"));
    let encrypt = || block_on(ground.envelope.acting_for(&who).encrypt(&acme, Aad::empty(), b"x"));
    for kind in [ErrorKind::Provider, ErrorKind::Misconfigured, ErrorKind::Denied] {
        rules.answer(|_| Ok(Decision::allow()));
        encrypt().unwrap();
        ground.clock.advance(30 * SECOND);
        rules.fail(kind);
        denied(encrypt());
    }
    rules.answer(|_| Ok(Decision::allow()));
    encrypt().unwrap();
    ground.clock.advance(30 * SECOND);
    rules.fail(ErrorKind::Unavailable);
    encrypt().unwrap();
    rules.reload();
    denied(encrypt());
}

/// A policy that answers when the test says so.
#[derive(Debug)]
struct Gate(Arc<tokio::sync::Semaphore>, AtomicU64);

impl Policy for Gate {
    fn decide<'a>(&'a self, _: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Box::pin(async {
            self.0.acquire().await.unwrap().forget();
            Ok(Decision::allow())
        })
    }
}

#[test]
fn a_caller_that_gives_up_changes_nothing_for_another() {
    let gate = Arc::new(Gate(Arc::new(tokio::sync::Semaphore::new(0)), AtomicU64::new(0)));
    let kek = LocalKek::in_memory("kek").unwrap();
    let policy = PolicyOptions::default();
    let envelope = Envelope::builder().wrap_with(kek).policy(gate.clone(), policy).build().unwrap();
    let (acme, runtime) = (context("acme"), tokio::runtime::Builder::new_current_thread());
    let runtime = { runtime }.enable_all().build().unwrap();
    runtime.block_on(async {
        let first = envelope.encrypt(&acme, Aad::empty(), b"x");
        let left = tokio::time::timeout(Duration::from_millis(20), first).await;
        assert!(left.is_err(), "it waits for the policy");
        gate.0.add_permits(1);
        envelope.encrypt(&acme, Aad::empty(), b"x").await.unwrap();
        envelope.encrypt(&acme, Aad::empty(), b"x").await.unwrap();
        assert_eq!(gate.1.load(Ordering::SeqCst), 2);
    });
}
