//! A handle rests on a decision, and ends with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use waxseal::kek::local::LocalKek;
use waxseal::policy::{BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::{Aad, Envelope, Error, ErrorKind, Limits};
use waxseal_testing::support::block_on;

use crate::ground::{Ground, Rules, SECOND, caller, context, denied};

#[test]
fn a_handle_ends_with_the_decision_that_allowed_it() {
    let ground = Ground::new(&Rules::role("reader"), PolicyOptions::default());
    let (who, acme, aad) = (caller("a", "reader"), context("acme"), Aad::empty());
    let view = ground.envelope.acting_for(&who);
    let encryptor = block_on(view.encryptor(&acme)).unwrap();
    let sealed = encryptor.encrypt(aad, b"x").unwrap();
    ground.clock.advance(20 * SECOND);
    let decryptor = block_on(view.decryptor(&acme, &sealed)).unwrap();
    let compact = encryptor.clone().compact();
    ground.clock.advance(9 * SECOND);
    encryptor.encrypt(aad, b"x").unwrap();
    compact.encrypt(aad, b"x").unwrap();
    ground.clock.advance(SECOND);
    let mut buffer = vec![7; encryptor.prefix_len() + encryptor.tag_len() + 1];
    let before = buffer.clone();
    for error in [
        encryptor.encrypt(aad, b"x").unwrap_err(),
        encryptor.encrypt_in_place(aad, &mut buffer).unwrap_err(),
        compact.encrypt(aad, b"x").unwrap_err(),
        compact.encrypt_in_place(aad, &mut buffer).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Expired, "{error}");
    }
    assert_eq!(buffer, before);
    assert_eq!(&*decryptor.decrypt(aad, &sealed).unwrap(), b"x", "asked later, ends later");
    ground.clock.advance(20 * SECOND);
    let mut bytes = sealed.clone();
    for error in [
        decryptor.decrypt(aad, &sealed).unwrap_err(),
        decryptor.decrypt_in_place(aad, &mut bytes).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Expired, "{error}");
    }
    assert_eq!(bytes, sealed);
    // The DEK is cached all the while. The next handle asks.
    assert!(block_on(view.decryptor(&acme, &sealed)).unwrap().decrypt(aad, &sealed).is_ok());
}

#[test]
fn a_handle_ends_at_a_reload_and_the_next_is_decided_anew() {
    let ground = Ground::new(&Rules::open(), PolicyOptions::default());
    let (acme, aad) = (context("acme"), Aad::empty());
    let encryptor = block_on(ground.envelope.encryptor(&acme)).unwrap();
    let sealed = encryptor.encrypt(aad, b"x").unwrap();
    let decryptor = block_on(ground.envelope.decryptor(&acme, &sealed)).unwrap();
    ground.rules.answer(|_| Ok(Decision::deny(["revoked"])));
    ground.rules.reload();
    assert_eq!(encryptor.encrypt(aad, b"x").unwrap_err().kind(), ErrorKind::Expired);
    assert_eq!(decryptor.decrypt(aad, &sealed).unwrap_err().kind(), ErrorKind::Expired);
    assert_eq!(denied(block_on(ground.envelope.encryptor(&acme))), ["revoked"]);
    denied(block_on(ground.envelope.decryptor(&acme, &sealed)));
}

#[test]
fn a_handle_ends_with_its_dek_also_while_the_decision_lasts() {
    let options = PolicyOptions::default().cache_for(60 * SECOND);
    let ground = Ground::with(&Rules::open(), options, |builder| {
        builder.limits(Limits::default().max_age(10 * SECOND))
    });
    let acme = context("acme");
    let handle = block_on(ground.envelope.encryptor(&acme)).unwrap();
    handle.encrypt(Aad::empty(), b"x").unwrap();
    ground.clock.advance(10 * SECOND);
    assert_eq!(handle.encrypt(Aad::empty(), b"x").unwrap_err().kind(), ErrorKind::Expired);
    let handle = block_on(ground.envelope.encryptor(&acme)).unwrap();
    ground.envelope.evict_context(&acme);
    assert_eq!(handle.encrypt(Aad::empty(), b"x").unwrap_err().kind(), ErrorKind::Expired);
}

/// A policy whose number the test sets.
#[derive(Debug)]
struct Numbered(Arc<AtomicU64>);

impl Policy for Numbered {
    fn decide<'a>(&'a self, _: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        Box::pin(async { Ok(Decision::allow()) })
    }

    fn generation(&self) -> u64 {
        self.0.load(SeqCst)
    }
}

#[test]
fn what_a_reload_ended_stays_ended_when_the_number_comes_back() {
    let number = Arc::new(AtomicU64::new(7));
    let envelope = Envelope::builder()
        .wrap_with(LocalKek::in_memory("kek").unwrap())
        .policy(Numbered(number.clone()), PolicyOptions::default())
        .build()
        .unwrap();
    let acme = context("acme");
    let handle = block_on(envelope.encryptor(&acme)).unwrap();
    number.store(8, SeqCst);
    assert_eq!(handle.encrypt(Aad::empty(), b"x").unwrap_err().kind(), ErrorKind::Expired);
    number.store(7, SeqCst);
    assert_eq!(handle.encrypt(Aad::empty(), b"x").unwrap_err().kind(), ErrorKind::Expired);
}

#[test]
fn no_handle_rests_on_a_decision_for_one_operation() {
    let rules = Rules::new(|_| Ok(Decision::allow().valid_for(Duration::ZERO)));
    let ground = Ground::new(&rules, PolicyOptions::default());
    block_on(ground.envelope.encrypt(&context("acme"), Aad::empty(), b"x")).unwrap();
    let reasons = denied(block_on(ground.envelope.encryptor(&context("acme"))));
    assert!(reasons[0].contains("lasts for one operation"), "{reasons:?}");
}
