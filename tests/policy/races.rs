//! Decisions that arrive while another question is in flight.

use std::sync::Arc;
use std::sync::OnceLock;

use waxseal::policy::{Decision, PolicyOptions};
use waxseal::{Aad, EncryptionContext, Envelope, Error, ErrorKind, Event, ManualClock, Observer};
use waxseal_testing::support::block_on;

use crate::ground::{Ground, Rules, SECOND, context, denied};

fn encrypt(envelope: &Envelope, context: &EncryptionContext) -> Result<Vec<u8>, Error> {
    block_on(envelope.encrypt(context, Aad::empty(), b"x"))
}

/// Does something once, at the first event for which `when` holds.
struct Once<F> {
    when: fn(&Event<'_>) -> bool,
    what: F,
    done: OnceLock<()>,
}

impl<F> std::fmt::Debug for Once<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Once")
    }
}

impl<F: Fn() + Send + Sync> Observer for Once<F> {
    fn event(&self, event: &Event<'_>) {
        if (self.when)(event) && self.done.set(()).is_ok() {
            (self.what)();
        }
    }
}

type Later = Arc<OnceLock<Envelope>>;

#[test]
fn a_denial_that_arrives_while_an_outage_is_reported_stays() {
    let (rules, later) = (Rules::open(), Later::default());
    let (its, its_rules) = (later.clone(), rules.clone());
    let what = move || {
        // Another thread's question is answered now.
        its_rules.answer(|_| Ok(Decision::deny(["revoked"])));
        denied(encrypt(its.get().unwrap(), &context("acme")));
    };
    let when: fn(&Event<'_>) -> bool = |event| matches!(event, Event::PolicyFailed { .. });
    let once = Once { when, what, done: OnceLock::new() };
    let options = PolicyOptions::default().last_known_for(3600 * SECOND);
    let ground = Ground::with(&rules, options, |builder| builder.observer(once));
    later.set(ground.envelope.clone()).ok().unwrap();
    let acme = context("acme");
    encrypt(&ground.envelope, &acme).unwrap();
    ground.clock.advance(30 * SECOND);
    rules.fail(ErrorKind::Unavailable);
    // Whatever becomes of this one.
    let _ = encrypt(&ground.envelope, &acme);
    denied(encrypt(&ground.envelope, &acme));
}

#[test]
fn a_denial_that_arrives_while_an_outage_is_reported_stays_for_the_outage() {
    let (rules, later) = (Rules::open(), Later::default());
    let (its, its_rules) = (later.clone(), rules.clone());
    let what = move || {
        its_rules.answer(|_| Ok(Decision::deny(["revoked"])));
        denied(encrypt(its.get().unwrap(), &context("acme")));
        its_rules.fail(ErrorKind::Unavailable);
    };
    let when: fn(&Event<'_>) -> bool = |event| matches!(event, Event::PolicyFailed { .. });
    let once = Once { when, what, done: OnceLock::new() };
    let options = PolicyOptions::default().last_known_for(3600 * SECOND);
    let ground = Ground::with(&rules, options, |builder| builder.observer(once));
    later.set(ground.envelope.clone()).ok().unwrap();
    let acme = context("acme");
    encrypt(&ground.envelope, &acme).unwrap();
    ground.clock.advance(30 * SECOND);
    rules.fail(ErrorKind::Unavailable);
    let _ = encrypt(&ground.envelope, &acme);
    ground.clock.advance(600 * SECOND);
    denied(encrypt(&ground.envelope, &acme));
}

#[test]
fn an_answer_to_an_older_question_replaces_none_to_a_newer_one() {
    let (rules, later) = (Rules::open(), Arc::new(OnceLock::<(Envelope, ManualClock)>::new()));
    let (its, its_rules) = (later.clone(), rules.clone());
    rules.answer(move |_| {
        // While this question is in flight, the data change, and another thread asks the same. It
        // comes too late to share the answer.
        its_rules.answer(|_| Ok(Decision::deny(["revoked"])));
        let (envelope, clock) = its.get().unwrap();
        clock.advance(SECOND);
        denied(encrypt(envelope, &context("acme")));
        Ok(Decision::allow())
    });
    let ground = Ground::new(&rules, PolicyOptions::default());
    later.set((ground.envelope.clone(), ground.clock.clone())).ok().unwrap();
    let acme = context("acme");
    let _ = encrypt(&ground.envelope, &acme);
    denied(encrypt(&ground.envelope, &acme));
}

#[test]
fn an_envelope_in_the_place_of_another_asks_for_itself() {
    let acme = context("acme");
    for _ in 0..50 {
        let open = Ground::new(&Rules::open(), PolicyOptions::default());
        for _ in 0..3 {
            encrypt(&open.envelope, &acme).unwrap();
        }
        drop(open);
        let shut = Ground::new(&Rules::role("r"), PolicyOptions::default());
        denied(encrypt(&shut.envelope, &acme));
    }
}

#[test]
fn clones_ask_and_feel_a_reload() {
    let ground = Ground::new(&Rules::open(), PolicyOptions::default());
    let (acme, clone) = (context("acme"), ground.envelope.clone());
    let sealed = encrypt(&clone, &acme).unwrap();
    block_on(clone.prepare([(&acme, &sealed)]));
    ground.rules.answer(|_| Ok(Decision::deny(["revoked"])));
    ground.rules.reload();
    assert!(clone.decrypt_cached(&acme, Aad::empty(), &sealed).unwrap().is_none());
    denied(block_on(clone.decrypt(&acme, Aad::empty(), &sealed)));
    denied(clone.decrypt_cached(&acme, Aad::empty(), &sealed));
    denied(encrypt(&clone, &acme));
}
