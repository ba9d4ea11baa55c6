//! Cached and gone: what a DEK serves at which age, what the key service's failures do to it, and
//! which caller waits for a call.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use waxseal_testing::support;

use support::stage::{Log, Stage, kind, secs};
use support::{block_on, context};
use waxseal::kek::scripted::ScriptedKek;
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal::{Aad, CallPolicy, EncryptionContext, Envelope, ErrorKind, Limits};

const CLASSES: [KekErrorClass; 5] = [
    KekErrorClass::Unavailable,
    KekErrorClass::Throttled,
    KekErrorClass::Denied,
    KekErrorClass::Invalid,
    KekErrorClass::Misconfigured,
];

/// For reading and for writing.
fn cached_deks(envelope: &Envelope) -> (u64, u64) {
    let statistics = envelope.statistics();
    (statistics.reading_deks, statistics.writing_deks)
}

#[test]
fn a_fresh_dek_serves_whatever_the_key_service_does() {
    for class in CLASSES {
        let stage = Stage::new(Limits::default());
        stage.read().unwrap();
        stage.write().unwrap();
        stage.kek.fail_with(class);
        stage.clock.advance(secs(71));
        for _ in 0..100 {
            stage.read().unwrap();
            stage.write().unwrap();
        }
        assert_eq!(stage.calls(), (1, 1), "{class}");
    }
}

#[test]
fn a_dek_in_use_is_renewed_ahead_of_its_age_by_one_call() {
    let stage = Stage::new(Limits::default());
    stage.read().unwrap();
    stage.write().unwrap();
    for round in 1..20 {
        stage.clock.advance(secs(81));
        for _ in 0..10 {
            stage.read().unwrap();
            stage.write().unwrap();
        }
        assert_eq!(stage.calls(), (1 + round, 1 + round));
    }
    assert_eq!(stage.log.count("ServedStale"), 0);
}

#[test]
fn a_renewal_leaves_handles_the_time_they_had() {
    let stage = Stage::new(Limits::default());
    let opening = block_on(stage.envelope.decryptor(&stage.alice, &stage.sealed)).unwrap();
    let sealing = block_on(stage.envelope.encryptor(&stage.alice)).unwrap();
    stage.clock.advance(secs(81));
    stage.read().unwrap();
    stage.write().unwrap();
    assert_eq!(stage.calls(), (2, 2));
    opening.decrypt(Aad::empty(), &stage.sealed).unwrap();
    sealing.encrypt(Aad::empty(), b"x").unwrap();
    stage.clock.advance(secs(19));
    assert_eq!(kind(opening.decrypt(Aad::empty(), &stage.sealed)), ErrorKind::Expired);
    assert_eq!(kind(sealing.encrypt(Aad::empty(), b"x")), ErrorKind::Expired);
    stage.read().unwrap();
    assert_eq!(stage.calls(), (2, 2), "the renewed one has its own time");
}

#[test]
fn a_dek_out_of_use_is_not_renewed() {
    let stage = Stage::new(Limits::default());
    stage.read().unwrap();
    stage.clock.advance(secs(99));
    assert_eq!(stage.calls(), (1, 0));
}

#[test]
fn a_failed_renewal_leaves_the_dek_its_age_and_is_not_repeated_at_once() {
    for class in [
        KekErrorClass::Unavailable,
        KekErrorClass::Throttled,
        KekErrorClass::Misconfigured,
        KekErrorClass::Invalid,
    ] {
        let stage = Stage::new(Limits::default());
        stage.read().unwrap();
        stage.write().unwrap();
        stage.kek.fail_with(class);
        stage.clock.advance(secs(81));
        for _ in 0..50 {
            stage.read().unwrap();
            stage.write().unwrap();
        }
        assert_eq!(stage.calls(), (2, 2), "{class}");
        assert_eq!(stage.log.count("RenewalFailed"), 2);
        stage.clock.advance(secs(1));
        stage.read().unwrap();
        // The answer *invalid* is remembered, as a denial is.
        let again = u64::from(class != KekErrorClass::Invalid);
        assert_eq!(stage.calls(), (2 + again, 2), "{class}: tried again after a while");
        stage.clock.advance(secs(18));
        assert!(stage.read().is_err() && stage.write().is_err(), "{class}: past max_age");
        stage.kek.fail_with(None);
        // The next probe of a breaker that has opened, and the end of what is remembered.
        stage.clock.advance(secs(5));
        stage.read().unwrap();
        stage.write().unwrap();
    }
}

#[test]
fn past_its_age_only_an_outage_is_ridden_out_and_only_within_the_grace() {
    for class in CLASSES {
        let stage = Stage::new(
            Limits::default().stale_if_error_reading(secs(50)).stale_if_error_writing(secs(20)),
        );
        stage.read().unwrap();
        stage.write().unwrap();
        stage.kek.fail_with(class);
        let outage = matches!(class, KekErrorClass::Unavailable | KekErrorClass::Throttled);
        stage.clock.advance(secs(101));
        assert_eq!(
            (stage.read().is_ok(), stage.write().is_ok()),
            (outage, outage),
            "{class} at 101 s"
        );
        assert_eq!(stage.log.count("ServedStale"), if outage { 2 } else { 0 });
        stage.clock.advance(secs(19));
        assert_eq!(
            (stage.read().is_ok(), stage.write().is_ok()),
            (outage, false),
            "{class} at 120 s"
        );
        stage.clock.advance(secs(30));
        assert_eq!(
            (stage.read().is_ok(), stage.write().is_ok()),
            (false, false),
            "{class} at 150 s"
        );
    }
}

#[test]
fn without_a_grace_nothing_serves_past_its_age() {
    let stage = Stage::new(Limits::default());
    stage.read().unwrap();
    stage.write().unwrap();
    stage.kek.fail_with(KekErrorClass::Unavailable);
    stage.clock.advance(secs(100));
    assert_eq!(kind(stage.read()), ErrorKind::Unavailable);
    assert_eq!(kind(stage.write()), ErrorKind::Unavailable);
    assert!(
        stage.envelope.decrypt_cached(&stage.alice, Aad::empty(), &stage.sealed).unwrap().is_none()
    );
}

#[test]
fn during_a_known_outage_one_call_a_second_asks_and_nobody_else_waits() {
    let limits =
        Limits::default().stale_if_error_reading(secs(1000)).stale_if_error_writing(secs(1000));
    let stage = Stage::new(limits);
    stage.read().unwrap();
    stage.write().unwrap();
    stage.kek.fail_with(KekErrorClass::Throttled);
    stage.clock.advance(secs(150));
    for second in 1..=10 {
        for _ in 0..50 {
            stage.read().unwrap();
            stage.write().unwrap();
        }
        assert_eq!(stage.calls(), (1 + second, 1 + second));
        stage.clock.advance(secs(1));
    }
    assert_eq!(stage.log.count("ServedStale"), 20, "told once for each DEK and retry interval");
    assert_eq!(stage.envelope.statistics().served_stale, 1000);
}

#[test]
fn an_outage_that_turns_into_a_misconfiguration_or_a_denial_is_ridden_out_no_more() {
    for class in [KekErrorClass::Misconfigured, KekErrorClass::Invalid, KekErrorClass::Denied] {
        let stage = Stage::new(
            Limits::default().stale_if_error_reading(secs(1000)).stale_if_error_writing(secs(1000)),
        );
        stage.read().unwrap();
        stage.write().unwrap();
        stage.kek.fail_with(KekErrorClass::Unavailable);
        stage.clock.advance(secs(150));
        stage.read().unwrap();
        stage.write().unwrap();
        stage.kek.fail_with(class);
        stage.clock.advance(secs(1));
        assert!(!stage.read().unwrap_err().is_retryable(), "{class}");
        assert!(!stage.write().unwrap_err().is_retryable(), "{class}");
    }
}

#[test]
fn a_handle_that_is_given_out_during_an_outage_serves_while_it_is_known_to_last_and_an_older_one_does_not()
 {
    let stage = Stage::new(
        Limits::default().stale_if_error_reading(secs(50)).stale_if_error_writing(secs(50)),
    );
    let handles = || {
        let opening = block_on(stage.envelope.decryptor(&stage.alice, &stage.sealed)).unwrap();
        let sealing = block_on(stage.envelope.encryptor(&stage.alice)).unwrap();
        let sealed = stage.sealed.clone();
        move || {
            (
                opening.decrypt(Aad::empty(), &sealed).is_ok(),
                sealing.encrypt(Aad::empty(), b"x").is_ok(),
            )
        }
    };
    let older = handles();
    stage.kek.fail_with(KekErrorClass::Unavailable);
    stage.clock.advance(secs(101));
    assert_eq!(older(), (false, false));
    let given = handles();
    assert_eq!(given(), (true, true));
    // Others ask occasionally, and so the outage is known to last.
    for _ in 0..48 {
        stage.clock.advance(secs(1));
        stage.read().unwrap();
        stage.write().unwrap();
        assert_eq!(given(), (true, true));
    }
    stage.clock.advance(secs(1));
    assert_eq!(given(), (false, false), "the grace is over");
}

#[test]
fn a_handle_in_the_grace_ends_when_nobody_knows_any_more_whether_the_outage_lasts() {
    let stage = Stage::new(
        Limits::default().stale_if_error_reading(secs(10_000)).stale_if_error_writing(secs(10_000)),
    );
    stage.read().unwrap();
    stage.write().unwrap();
    stage.kek.fail_with(KekErrorClass::Unavailable);
    stage.clock.advance(secs(101));
    let opening = block_on(stage.envelope.decryptor(&stage.alice, &stage.sealed)).unwrap();
    let sealing = block_on(stage.envelope.encryptor(&stage.alice)).unwrap();
    stage.kek.fail_with(KekErrorClass::Denied);
    // The retry interval, and the deadline of a call.
    stage.clock.advance(secs(7));
    assert_eq!(kind(opening.decrypt(Aad::empty(), &stage.sealed)), ErrorKind::Expired);
    assert_eq!(kind(sealing.encrypt(Aad::empty(), b"x")), ErrorKind::Expired);
    assert_eq!(
        kind(block_on(stage.envelope.decryptor(&stage.alice, &stage.sealed))),
        ErrorKind::Denied
    );
}

#[test]
fn a_service_back_from_an_outage_is_used_within_a_second() {
    let stage = Stage::new(Limits::default().stale_if_error_reading(secs(1000)));
    stage.read().unwrap();
    stage.kek.fail_with(KekErrorClass::Unavailable);
    stage.clock.advance(secs(200));
    stage.read().unwrap();
    stage.kek.fail_with(None);
    stage.clock.advance(secs(1));
    stage.read().unwrap();
    assert_eq!(stage.log.count("Unwrapped"), 2);
    let calls = stage.calls();
    stage.read().unwrap();
    assert_eq!(stage.calls(), calls);
}

#[test]
fn a_denial_evicts_at_once_and_is_remembered_for_a_while() {
    let stage = Stage::new(
        Limits::default()
            .denial_ttl(secs(5))
            .stale_if_error_reading(secs(1000))
            .stale_if_error_writing(secs(1000)),
    );
    stage.read().unwrap();
    stage.write().unwrap();
    let opening = block_on(stage.envelope.decryptor(&stage.alice, &stage.sealed)).unwrap();
    let sealing = block_on(stage.envelope.encryptor(&stage.alice)).unwrap();
    stage.clock.advance(secs(81));
    stage.kek.fail_with(KekErrorClass::Denied);
    // The very calls whose renewal is denied are refused.
    assert_eq!(kind(stage.read()), ErrorKind::Denied);
    assert_eq!(kind(stage.write()), ErrorKind::Denied);
    assert_eq!(kind(opening.decrypt(Aad::empty(), &stage.sealed)), ErrorKind::Expired);
    assert_eq!(kind(sealing.encrypt(Aad::empty(), b"x")), ErrorKind::Expired);
    let calls = stage.calls();
    for _ in 0..20 {
        assert_eq!(kind(stage.read()), ErrorKind::Denied);
        assert_eq!(kind(stage.write()), ErrorKind::Denied);
    }
    assert_eq!(stage.calls(), calls, "refused without asking again");
    for error in [stage.read().unwrap_err(), stage.write().map(|_| ()).unwrap_err()] {
        let text = error.to_string();
        assert!(text.ends_with("(remembered, not asked again; denial_ttl is 5s)"), "{text}");
        assert_eq!(text.matches("remembered").count(), 1, "{text}");
    }
    // No outage afterwards brings it back.
    stage.kek.fail_with(KekErrorClass::Unavailable);
    stage.clock.advance(secs(6));
    assert_eq!(kind(stage.read()), ErrorKind::Unavailable);
    assert_eq!(kind(stage.write()), ErrorKind::Unavailable);
    stage.kek.fail_with(None);
    stage.read().unwrap();
    stage.write().unwrap();
}

#[test]
fn without_refuse_for_every_call_asks() {
    let stage = Stage::new(Limits::default().denial_ttl(Duration::ZERO));
    stage.kek.fail_with(KekErrorClass::Denied);
    for call in 1..5 {
        assert_eq!(kind(stage.read()), ErrorKind::Denied);
        assert_eq!(stage.calls().0, call);
    }
}

#[test]
fn what_is_wrong_with_one_wrapped_key_concerns_nobody_who_has_another() {
    let stage = Stage::new(Limits::default().stale_if_error_reading(secs(1000)));
    stage.read().unwrap();
    // Somebody writes messages that name the same DEK: with a damaged wrapped key, one of a retired
    // version, a foreign one.
    let wrapped = 52..52 + usize::from(u16::from_le_bytes([stage.sealed[6], stage.sealed[7]]));
    let forged: Vec<Vec<u8>> = wrapped
        .clone()
        .map(|at| {
            let mut message = stage.sealed.clone();
            message[at] ^= 1;
            message
        })
        .collect();
    let before = stage.calls().0;
    for message in &forged {
        let _ = block_on(stage.envelope.decrypt(&stage.alice, Aad::empty(), message));
    }
    assert_eq!(stage.calls().0, before, "the DEK is cached, nobody was asked");
    stage.clock.advance(secs(81));
    for message in &forged {
        let _ = block_on(stage.envelope.decrypt(&stage.alice, Aad::empty(), message));
    }
    assert_eq!(stage.calls().0, before, "a forged message renews nothing");
    stage.read().unwrap();
    assert_eq!(stage.calls().0, before + 1, "and delays no renewal");
    stage.clock.advance(secs(81));
    assert!(
        stage.envelope.decrypt_cached(&stage.alice, Aad::empty(), &stage.sealed).unwrap().is_some(),
        "evicted"
    );
    stage.clock.advance(secs(20));
    stage.kek.fail_with(KekErrorClass::Denied);
    for message in &forged {
        assert!(block_on(stage.envelope.decrypt(&stage.alice, Aad::empty(), message)).is_err());
    }
    stage.kek.fail_with(None);
    stage.read().unwrap();
    let wiped = stage.log.count("Wiped");
    assert!(
        wiped <= 1,
        "nothing of the rightful reader's ended, but for what was replaced: {wiped}"
    );
}

#[test]
fn a_pause_that_only_one_clock_shows_counts_as_age() {
    let stage = Stage::new(Limits::default());
    stage.read().unwrap();
    stage.write().unwrap();
    stage.clock.set_wall_forward(secs(101));
    assert!(
        stage.envelope.decrypt_cached(&stage.alice, Aad::empty(), &stage.sealed).unwrap().is_none()
    );
    stage.read().unwrap();
    stage.write().unwrap();
    assert_eq!(stage.calls(), (2, 2));
    stage.clock.set_wall_back(secs(10_000));
    stage.clock.advance(secs(101));
    assert!(
        stage.envelope.decrypt_cached(&stage.alice, Aad::empty(), &stage.sealed).unwrap().is_none(),
        "set back, nothing is prolonged"
    );
}

#[test]
fn a_dek_near_its_caps_is_replaced_ahead_and_every_message_has_its_place() {
    let stage = Stage::new(Limits::default().max_messages(1000));
    for _ in 0..10_000 {
        stage.write().unwrap();
    }
    let wraps = stage.calls().1;
    assert!((10..=20).contains(&wraps), "{wraps} DEKs for ten times the cap");
}

// --- an operator's hand

#[test]
fn a_revoked_kek_ends_everything_it_vouched_for_until_it_is_reinstated() {
    let stage = Stage::new(Limits::default());
    stage.read().unwrap();
    stage.write().unwrap();
    let opening = block_on(stage.envelope.decryptor(&stage.alice, &stage.sealed)).unwrap();
    let sealing = block_on(stage.envelope.encryptor(&stage.alice)).unwrap();
    let calls = stage.calls();
    stage.envelope.revoke_kek(stage.kek.id());
    assert_eq!(cached_deks(&stage.envelope), (0, 0));
    assert_eq!(kind(opening.decrypt(Aad::empty(), &stage.sealed)), ErrorKind::Expired);
    assert_eq!(kind(sealing.encrypt(Aad::empty(), b"x")), ErrorKind::Expired);
    assert_eq!(kind(stage.read()), ErrorKind::Denied);
    assert_eq!(kind(stage.write()), ErrorKind::Denied);
    assert_eq!(stage.calls(), calls, "and it is not asked");
    assert_eq!(stage.log.count("Wiped"), 3, "one for reading, and two that it had made");
    stage.envelope.reinstate_kek(stage.kek.id());
    stage.read().unwrap();
    stage.write().unwrap();
}

#[test]
fn a_dek_that_another_kek_unwraps_survives_the_revocation_of_one() {
    let [a, b] = ["a", "b"].map(|name| ScriptedKek::new(name).unwrap());
    let alice = context("alice");
    let both = || Envelope::builder().wrap_with(a.clone()).wrap_with(b.clone()).build().unwrap();
    let sealed = block_on(both().encrypt(&alice, Aad::empty(), b"x")).unwrap();
    let reader = both();
    block_on(reader.decrypt(&alice, Aad::empty(), &sealed)).unwrap();
    reader.revoke_kek(b.id());
    assert!(
        reader.decrypt_cached(&alice, Aad::empty(), &sealed).unwrap().is_some(),
        "it came through the other"
    );
    reader.reinstate_kek(b.id());
    reader.revoke_kek(a.id());
    assert!(reader.decrypt_cached(&alice, Aad::empty(), &sealed).unwrap().is_none());
    block_on(reader.decrypt(&alice, Aad::empty(), &sealed)).unwrap();
    assert_eq!(
        kind(block_on(reader.encrypt(&alice, Aad::empty(), b"x"))),
        ErrorKind::Denied,
        "writing needs them all"
    );
}

#[test]
fn a_revoked_context_is_asked_for_again_and_no_other_is() {
    let stage = Stage::new(Limits::default());
    let bob = context("bob");
    let of_bob = block_on(stage.envelope.encrypt(&bob, Aad::empty(), b"x")).unwrap();
    stage.read().unwrap();
    stage.envelope.evict_context(&stage.alice);
    assert!(
        stage.envelope.decrypt_cached(&stage.alice, Aad::empty(), &stage.sealed).unwrap().is_none()
    );
    assert!(stage.envelope.decrypt_cached(&bob, Aad::empty(), &of_bob).unwrap().is_some());
    stage.read().unwrap();
    stage.envelope.evict_all();
    assert_eq!(cached_deks(&stage.envelope), (0, 0));
    stage.read().unwrap();
    assert_eq!(stage.calls().0, 3);
}

#[test]
fn a_revocation_holds_for_an_answer_that_is_on_its_way() {
    for revoke in [0, 1, 2] {
        let stage = Stage::new(Limits::default());
        let (envelope, kek_id, alice) =
            (stage.envelope.clone(), stage.kek.id().clone(), stage.alice.clone());
        let once = Arc::new(Mutex::new(true));
        stage.kek.wait_for(move || {
            let (envelope, kek_id, alice, once) =
                (envelope.clone(), kek_id.clone(), alice.clone(), once.clone());
            Box::pin(async move {
                if std::mem::take(&mut *once.lock().unwrap()) {
                    match revoke {
                        0 => envelope.revoke_kek(&kek_id),
                        1 => envelope.evict_context(&alice),
                        _ => envelope.evict_all(),
                    }
                }
            })
        });
        let result = stage.read();
        if revoke == 0 {
            assert_eq!(kind(result), ErrorKind::Denied);
            assert_eq!(cached_deks(&stage.envelope), (0, 0), "the answer was kept");
        } else {
            result.unwrap();
            assert_eq!(stage.calls().0, 2, "asked again");
        }
    }
}

// --- one call for many

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
}

fn slow(kek: &ScriptedKek, by: Duration) {
    kek.wait_for(move || Box::pin(tokio::time::sleep(by)));
}

#[test]
fn ten_thousand_callers_of_one_cold_dek_cost_one_call() {
    let stage = Stage::new(Limits::default());
    slow(&stage.kek, Duration::from_millis(200));
    runtime().block_on(async {
        let calls: Vec<_> = (0..10_000)
            .map(|_| {
                let (envelope, alice, sealed) =
                    (stage.envelope.clone(), stage.alice.clone(), stage.sealed.clone());
                tokio::spawn(async move {
                    envelope
                        .decrypt(&alice, Aad::empty(), &sealed)
                        .await
                        .map(|plaintext| plaintext.len())
                })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap(), 7);
        }
    });
    assert_eq!(stage.calls(), (1, 0));
}

#[test]
fn callers_of_a_hundred_cold_deks_cost_a_hundred_calls_reading_and_writing() {
    let kek = ScriptedKek::new("kek").unwrap();
    let contexts: Vec<_> = (0..100).map(|i| context(&format!("tenant {i}"))).collect();
    let messages: Vec<_> = contexts
        .iter()
        .map(|context| {
            block_on(support::envelope(kek.local()).encrypt(context, Aad::empty(), b"payload"))
                .unwrap()
        })
        .collect();
    slow(&kek, Duration::from_millis(100));
    let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    runtime().block_on(async {
        let mut calls = Vec::new();
        for _ in 0..30 {
            for (context, sealed) in contexts.iter().zip(&messages) {
                let (envelope, context, sealed) =
                    (envelope.clone(), context.clone(), sealed.clone());
                calls.push(tokio::spawn(async move {
                    envelope.decrypt(&context, Aad::empty(), &sealed).await.unwrap();
                    envelope.encrypt(&context, Aad::empty(), b"x").await.unwrap();
                }));
            }
        }
        for call in calls {
            call.await.unwrap();
        }
    });
    assert_eq!((kek.calls().unwraps, kek.calls().wraps), (100, 100));
}

#[test]
fn a_cancelled_leader_leaves_its_call_to_the_others() {
    let stage = Stage::new(Limits::default());
    slow(&stage.kek, Duration::from_millis(200));
    runtime().block_on(async {
        let call = || {
            let (envelope, alice, sealed) =
                (stage.envelope.clone(), stage.alice.clone(), stage.sealed.clone());
            tokio::spawn(async move {
                envelope.decrypt(&alice, Aad::empty(), &sealed).await.map(|_| ())
            })
        };
        let leader = call();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let followers: Vec<_> = (0..50).map(|_| call()).collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        leader.abort();
        for (i, follower) in followers.into_iter().enumerate() {
            if i % 3 == 0 {
                follower.abort();
            } else {
                follower.await.unwrap().unwrap();
            }
        }
        assert_eq!(stage.calls().0, 1);

        // When nobody waits any more, the call ends, and the next one starts again.
        stage.envelope.evict_all();
        let lonely = call();
        tokio::time::sleep(Duration::from_millis(50)).await;
        lonely.abort();
        let _ = lonely.await;
        call().await.unwrap().unwrap();
        assert_eq!(stage.calls().0, 3);
    });
}

#[test]
fn a_failure_reaches_all_who_asked_the_same_and_nobody_else() {
    let stage = Stage::new(Limits::default());
    slow(&stage.kek, Duration::from_millis(150));
    let mut damaged = stage.sealed.clone();
    damaged[80] ^= 1;
    runtime().block_on(async {
        let call = |sealed: &[u8], context: &EncryptionContext| {
            let (envelope, context, sealed) =
                (stage.envelope.clone(), context.clone(), sealed.to_vec());
            tokio::spawn(async move {
                envelope.decrypt(&context, Aad::empty(), &sealed).await.map(|_| ())
            })
        };
        let wrong: Vec<_> = (0..20)
            .flat_map(|_| [call(&damaged, &stage.alice), call(&stage.sealed, &context("mallory"))])
            .collect();
        let right: Vec<_> = (0..20).map(|_| call(&stage.sealed, &stage.alice)).collect();
        for call in wrong {
            assert!(call.await.unwrap().is_err());
        }
        for call in right {
            call.await.unwrap().unwrap();
        }
    });
    assert_eq!(stage.calls().0, 3, "one call for each question");
}

#[test]
fn with_a_runtime_nobody_waits_for_a_renewal() {
    let runtime = runtime();
    let _inside = runtime.enter();
    let patient = CallPolicy::default().timeout(secs(20)).deadline(secs(20));
    let stage = Stage::with(Limits::default(), |builder| builder.call_policy(patient));
    stage.read().unwrap();
    stage.write().unwrap();
    stage.clock.advance(secs(81));
    // A key service that does not answer for a long while: a caller that waited for it would not
    // finish in time.
    slow(&stage.kek, secs(3));
    let start = Instant::now();
    for _ in 0..100 {
        stage.read().unwrap();
        stage.write().unwrap();
    }
    assert!(start.elapsed() < secs(2), "a caller waited");
    std::thread::sleep(secs(4));
    assert_eq!(stage.calls(), (2, 2));
    assert_eq!((stage.log.count("Unwrapped"), stage.log.count("Wrapped")), (2, 2));
    assert_eq!((stage.log.count("Made"), stage.log.count("Refreshed")), (1, 2));
}

// --- gone

#[test]
fn an_idle_process_wipes_on_time() {
    let log = Log::default();
    let kek = ScriptedKek::new("kek").unwrap();
    let limits =
        Limits::default().max_age(Duration::from_millis(200)).stale_if_error_reading(secs(3));
    let envelope =
        Envelope::builder().wrap_with(kek).limits(limits).observer(log.clone()).build().unwrap();
    let alice = context("alice");
    let sealing = block_on(envelope.encryptor(&alice)).unwrap();
    assert_eq!(log.count("Wiped"), 0);
    // Generous bounds: this is behaviour, not timing.
    let wait_for = |wiped: usize, most: Duration| {
        let start = Instant::now();
        while log.count("Wiped") < wiped && start.elapsed() < most {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(log.count("Wiped"), wiped);
    };
    wait_for(1, secs(2));
    wait_for(2, secs(20));
    assert_eq!(kind(sealing.encrypt(Aad::empty(), b"x")), ErrorKind::Expired);
}

#[test]
fn the_last_envelope_or_handle_takes_the_deks_with_it() {
    let stage = Stage::new(Limits::default());
    stage.read().unwrap();
    let key = block_on(stage.envelope.decryptor(&stage.alice, &stage.sealed)).unwrap();
    let Stage { envelope, sealed, log, .. } = stage;
    drop(envelope);
    key.decrypt(Aad::empty(), &sealed).unwrap();
    assert_eq!(log.take().iter().filter(|event| *event == "Wiped").count(), 0);
    drop(key);
    log.wait_for("Wiped", 1);
}

#[test]
fn the_end_of_every_dek_is_told_once() {
    let stage = Stage::new(Limits::default());
    for _ in 0..10 {
        stage.read().unwrap();
        stage.write().unwrap();
        stage.clock.advance(secs(81));
    }
    let Stage { envelope, log, .. } = stage;
    drop(envelope);
    // The DEK that this thread used last is remembered, ended and reported.
    let begun = 2 * log.count("Made") + log.count("Unwrapped");
    // A new DEK is there for reading and for writing.
    log.wait_for("Wiped", begun);
}

#[test]
fn what_makes_room_is_wiped() {
    let stage = Stage::new(Limits::default().max_entries(1));
    for tenant in 0..20 {
        block_on(stage.envelope.encrypt(&context(&format!("{tenant}")), Aad::empty(), b"x"))
            .unwrap();
    }
    assert!(cached_deks(&stage.envelope) <= (1, 1), "{:?}", cached_deks(&stage.envelope));
    assert!(stage.log.count("Wiped") >= 38, "{}", stage.log.count("Wiped"));
}

#[test]
fn limits_that_contradict_each_other_are_refused_with_the_field_named() {
    let limits = Limits::default().max_age(secs(100));
    for (limits, field) in [
        (limits.refresh_after(secs(100)), "refresh_after"),
        (limits.refresh_after(secs(101)), "refresh_after"),
        (limits.refresh_after(Duration::ZERO), "refresh_after"),
        (limits.stale_if_error_reading(secs(24 * 3600 + 1)), "stale_if_error_reading"),
        (limits.stale_if_error_writing(Duration::MAX), "stale_if_error_writing"),
        (limits.denial_ttl(secs(301)), "denial_ttl"),
        (limits.stale_if_error_reading(secs(24 * 3600 - 99)), "max_age and stale_if_error"),
        (limits.stale_if_error_writing(secs(24 * 3600 - 99)), "max_age and stale_if_error"),
        (limits.max_uses(0), "max_uses"),
    ] {
        let error = Envelope::builder()
            .wrap_with(support::local("kek"))
            .limits(limits)
            .build()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(error.to_string().contains(field), "{field}: {error}");
    }
    let edge = limits
        .refresh_after(secs(99))
        .stale_if_error_reading(secs(24 * 3600 - 100))
        .denial_ttl(secs(300));
    Envelope::builder().wrap_with(support::local("kek")).limits(edge).build().unwrap();
}
