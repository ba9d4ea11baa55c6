//! What the last known decision is, and what an outage prolongs.

use std::time::Duration;

use waxseal::kek::local::LocalKek;
use waxseal::policy::{BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::{Aad, EncryptionContext, Envelope, Error, ErrorKind};
use waxseal_testing::support::{Threads, block_on};

use crate::ground::{Ground, Rules, SECOND, context, denied};

fn encrypt(envelope: &Envelope, context: &EncryptionContext) -> Result<Vec<u8>, Error> {
    block_on(envelope.encrypt(context, Aad::empty(), b"x"))
}

#[test]
fn in_an_outage_a_denial_with_valid_for_zero_is_the_last_known_decision() {
    let rules = Rules::open();
    let ground = Ground::new(&rules, PolicyOptions::default().last_known_for(3600 * SECOND));
    let acme = context("acme");
    encrypt(&ground.envelope, &acme).unwrap();
    ground.clock.advance(30 * SECOND);
    rules.answer(|_| Ok(Decision::deny(["revoked"]).valid_for(Duration::ZERO)));
    assert_eq!(denied(encrypt(&ground.envelope, &acme)), ["revoked"]);
    rules.fail(ErrorKind::Unavailable);
    denied(encrypt(&ground.envelope, &acme));
}

#[test]
fn in_an_outage_a_denial_that_came_late_is_the_last_known_decision() {
    let rules = Rules::open();
    let ground = Ground::new(
        &rules,
        PolicyOptions::default().cache_for(SECOND).last_known_for(3600 * SECOND),
    );
    let (acme, clock) = (context("acme"), ground.clock.clone());
    encrypt(&ground.envelope, &acme).unwrap();
    ground.clock.advance(30 * SECOND);
    rules.answer(move |_| {
        clock.advance(SECOND);
        Ok(Decision::deny(["revoked"]))
    });
    assert_eq!(denied(encrypt(&ground.envelope, &acme)), ["revoked"]);
    rules.fail(ErrorKind::Unavailable);
    denied(encrypt(&ground.envelope, &acme));
}

#[test]
fn with_cache_for_zero_the_last_known_decision_serves_in_an_outage() {
    let rules = Rules::open();
    let options = PolicyOptions::default().cache_for(Duration::ZERO);
    let ground = Ground::new(&rules, options.last_known_for(3600 * SECOND));
    let acme = context("acme");
    encrypt(&ground.envelope, &acme).unwrap();
    rules.fail(ErrorKind::Unavailable);
    encrypt(&ground.envelope, &acme).unwrap();
}

#[test]
fn no_time_that_a_decision_sets_is_exceeded_in_an_outage() {
    let rules = Rules::new(|_| Ok(Decision::allow().valid_for(5 * SECOND)));
    let ground = Ground::new(&rules, PolicyOptions::default().last_known_for(3600 * SECOND));
    let acme = context("acme");
    encrypt(&ground.envelope, &acme).unwrap();
    rules.fail(ErrorKind::Unavailable);
    ground.clock.advance(3000 * SECOND);
    denied(encrypt(&ground.envelope, &acme));
}

/// A policy that blocks its thread, and then allows.
#[derive(Debug)]
struct Blocks;

impl Policy for Blocks {
    fn decide<'a>(&'a self, _: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        std::thread::sleep(Duration::from_millis(300));
        Box::pin(async { Ok(Decision::allow()) })
    }
}

#[test]
fn an_allow_that_is_late_is_a_denial_also_if_the_policy_blocked() {
    let options = PolicyOptions::default().timeout(Duration::from_millis(20));
    let envelope = Envelope::builder()
        .wrap_with(LocalKek::in_memory("kek").unwrap())
        .runtime(Threads)
        .policy(Blocks, options)
        .build()
        .unwrap();
    denied(encrypt(&envelope, &context("acme")));
}
