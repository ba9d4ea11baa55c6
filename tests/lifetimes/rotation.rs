//! How long one DEK encrypts: renewals that leave it in use, and what ends it sooner.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use waxseal_testing::support;

use support::stage::{Log, Stage, kind, ms, secs};
use support::{HookedKek, block_on, context};
use waxseal::kek::scripted::ScriptedKek;
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal::{
    Aad, DekId, EncryptionContext, Envelope, ErrorKind, KekId, Limits, ManualClock, WrappedDek,
    inspect,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn message(stage: &Stage) -> Vec<u8> {
    block_on(stage.envelope.encrypt(&stage.alice, Aad::empty(), b"x")).unwrap()
}

fn dek_id(message: &[u8]) -> DekId {
    inspect(message).unwrap().dek_id
}

/// The DEK of a message that is written now.
fn writes_with(stage: &Stage) -> DekId {
    dek_id(&message(stage))
}

/// DEKs, calls and `Refreshed` events of 30 days with a message a minute.
fn thirty_days(limits: Limits) -> (usize, u64, usize) {
    let (kek, clock, log) = (ScriptedKek::new("kek").unwrap(), ManualClock::new(), Log::default());
    let builder = Envelope::builder().wrap_with(kek.clone()).limits(limits);
    let envelope = builder.clock(clock.clone()).observer(log.clone()).build().unwrap();
    let alice = context("alice");
    let mut ids = BTreeSet::new();
    for _ in 0..30 * 24 * 60 {
        let message = block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap();
        ids.insert(dek_id(&message));
        clock.advance(secs(60));
    }
    assert_eq!(log.count("Made"), ids.len(), "every DEK that was reported as made encrypted");
    drop(envelope);
    log.wait_for("Wiped", 2 * ids.len());
    (ids.len(), kek.calls().total(), log.count("Refreshed"))
}

#[test]
fn a_message_a_minute_takes_a_dek_a_day_and_a_call_every_four_minutes() {
    assert_eq!(thirty_days(Limits::default()), (30, 10_800, 10_799));
    assert_eq!(thirty_days(Limits::default().rotate_after(30 * DAY)), (1, 10_800, 10_799));
    // As often as every renewal.
    assert_eq!(thirty_days(Limits::default().rotate_after(secs(60))), (10_800, 10_800, 10_799));
}

#[test]
fn a_dek_encrypts_until_the_first_renewal_after_its_rotation() {
    let stage = Stage::new(Limits::default().rotate_after(secs(200)));
    let first = writes_with(&stage);
    for second in [81, 162] {
        stage.clock.advance(secs(81));
        assert_eq!(writes_with(&stage), first, "after {second} s");
    }
    stage.clock.advance(secs(70));
    assert_eq!(writes_with(&stage), first, "past its rotation, and not renewed yet");
    stage.clock.advance(secs(11));
    let next = writes_with(&stage);
    assert_ne!(next, first);
    stage.clock.advance(secs(81));
    assert_eq!(writes_with(&stage), next, "its time counts from when it was made");
    assert_eq!(stage.calls(), (0, 5));
    let statistics = stage.envelope.statistics();
    assert_eq!(statistics.writing_deks, 1);
    assert_eq!((statistics.writing_misses, statistics.writing_hits), (1, 5));
}

#[test]
fn an_auditor_sees_a_renewal_of_the_dek_and_no_dek_that_never_encrypted() {
    let stage = Stage::new(Limits::default());
    message(&stage);
    assert_eq!(stage.log.take(), ["Configured", "Called", "Wrapped", "Made"]);
    stage.clock.advance(secs(81));
    message(&stage);
    let events = stage.log.take();
    assert_eq!(events, ["Called", "Wrapped", "Refreshed"]);
    stage.clock.advance(secs(19));
    stage.log.wait_for("Wiped", 1);
    assert_eq!(stage.log.take(), ["Wiped"], "that it was there for reading");
    stage.clock.advance(secs(81));
    stage.log.wait_for("Wiped", 1);
}

#[test]
fn a_renewal_of_writing_prolongs_nothing_for_reading() {
    let stage = Stage::new(Limits::default());
    let message = message(&stage);
    let cached = || stage.envelope.decrypt_cached(&stage.alice, Aad::empty(), &message);
    let read = || block_on(stage.envelope.decrypt(&stage.alice, Aad::empty(), &message));
    let opening = block_on(stage.envelope.decryptor(&stage.alice, &message)).unwrap();
    stage.clock.advance(secs(81));
    let id = writes_with(&stage);
    assert!(cached().unwrap().is_some(), "it is due, and serves until its own max_age");
    opening.decrypt(Aad::empty(), &message).unwrap();
    stage.clock.advance(secs(19));
    assert!(cached().unwrap().is_none(), "max_age after it was made");
    assert_eq!(kind(opening.decrypt(Aad::empty(), &message)), ErrorKind::Expired);
    assert_eq!(stage.calls(), (0, 2));
    // A caller that may no longer decrypt is denied, although encrypting is allowed.
    stage.kek.fail_with(KekErrorClass::Denied);
    assert_eq!(kind(read()), ErrorKind::Denied);
    assert_eq!(writes_with(&stage), id);
    stage.kek.fail_with(None);
    stage.clock.advance(secs(6));
    read().unwrap();
    assert_eq!(stage.calls(), (2, 2), "unwrapped as any other");
}

#[test]
fn every_lease_ends_at_its_own_time() {
    let stage = Stage::new(Limits::default());
    let handle = || block_on(stage.envelope.encryptor(&stage.alice)).unwrap();
    let first = handle();
    stage.clock.advance(secs(81));
    let second = handle();
    assert_eq!(first.dek_id(), second.dek_id());
    assert_eq!(first.wrapped_keys(), second.wrapped_keys());
    stage.clock.advance(secs(19));
    assert_eq!(kind(first.encrypt(Aad::empty(), b"x")), ErrorKind::Expired);
    let sealed = second.encrypt(Aad::empty(), b"x").unwrap();
    stage.clock.advance(secs(81));
    assert_eq!(kind(second.encrypt(Aad::empty(), b"x")), ErrorKind::Expired);
    block_on(stage.envelope.decrypt(&stage.alice, Aad::empty(), &sealed)).unwrap();
}

#[test]
fn a_lease_counts_from_the_start_of_its_request() {
    let stage = Stage::new(Limits::default());
    let first = writes_with(&stage);
    let clock = stage.clock.clone();
    stage.clock.advance(secs(81));
    stage.kek.wait_for(move || {
        clock.advance(secs(15));
        Box::pin(async {})
    });
    assert_eq!(writes_with(&stage), first);
    stage.kek.wait_no_more();
    stage.kek.fail_with(KekErrorClass::Unavailable);
    stage.clock.advance(ms(84_999));
    assert_eq!(writes_with(&stage), first, "99.999 s after the request began");
    stage.clock.advance(ms(1));
    assert_eq!(kind(stage.write()), ErrorKind::Unavailable);
}

#[test]
fn a_rotation_counts_from_the_start_of_the_request_that_made_the_dek() {
    for (since_the_answer, goes_on) in [(ms(74_999), true), (secs(75), false)] {
        let stage = Stage::new(Limits::default().rotate_after(secs(90)));
        let clock = stage.clock.clone();
        stage.kek.wait_for(move || {
            clock.advance(secs(15));
            Box::pin(async {})
        });
        let first = writes_with(&stage);
        stage.kek.wait_no_more();
        stage.clock.advance(since_the_answer);
        assert_eq!(writes_with(&stage) == first, goes_on, "{since_the_answer:?}");
        assert_eq!(stage.calls(), (0, 2), "it was renewed");
    }
}

#[test]
fn an_answer_after_the_end_brings_no_dek_back() {
    let stage = Stage::new(Limits::default());
    let first = writes_with(&stage);
    let clock = stage.clock.clone();
    stage.clock.advance(secs(81));
    stage.kek.wait_for(move || {
        clock.advance(secs(19));
        Box::pin(async {})
    });
    // The present DEK has ended when the answer arrives, which itself is still good.
    let second = writes_with(&stage);
    assert_ne!(second, first);
    stage.kek.wait_no_more();
    assert_eq!(writes_with(&stage), second);
    // An answer that is past its own end serves only the caller that waited for it.
    let stage = Stage::new(Limits::default().stale_if_error_writing(secs(1000)));
    let first = writes_with(&stage);
    let clock = stage.clock.clone();
    stage.clock.advance(secs(81));
    stage.kek.wait_for(move || {
        clock.advance(secs(101));
        Box::pin(async {})
    });
    let late = writes_with(&stage);
    assert_ne!(late, first, "it proves nothing about now");
    stage.kek.wait_no_more();
    assert_eq!(writes_with(&stage), first, "allowed now, and within its grace");
}

#[test]
fn all_leases_of_a_dek_count_against_one_budget() {
    for (limits, len) in
        [(Limits::default().max_messages(64), 1), (Limits::default().max_bytes(64 * 100), 100)]
    {
        let stage = Stage::new(limits);
        let plaintext = vec![0; len];
        let handle = || block_on(stage.envelope.encryptor(&stage.alice)).unwrap();
        let first = handle();
        (0..20).for_each(|_| drop(first.encrypt(Aad::empty(), &plaintext).unwrap()));
        stage.clock.advance(secs(81));
        let second = handle();
        assert_eq!(first.dek_id(), second.dek_id());
        let mut encrypted = 20;
        while let Ok(message) = [&first, &second][encrypted % 2].encrypt(Aad::empty(), &plaintext) {
            assert_eq!(dek_id(&message), first.dek_id());
            encrypted += 1;
        }
        assert_eq!(encrypted, 64);
        for handle in [&first, &second] {
            assert_eq!(kind(handle.encrypt(Aad::empty(), &plaintext)), ErrorKind::Exhausted);
        }
        assert_ne!(handle().dek_id(), first.dek_id(), "used up, so the next one is used");
    }
}

#[test]
fn a_dek_near_its_cap_is_replaced_by_its_renewal_and_no_dek_passes_the_cap() {
    let stage = Stage::new(Limits::default().max_messages(1000));
    let mut messages: BTreeMap<DekId, u64> = BTreeMap::new();
    for i in 0..10_000 {
        *messages.entry(writes_with(&stage)).or_default() += 1;
        if i % 100 == 99 {
            stage.clock.advance(secs(81));
        }
    }
    assert!(messages.values().all(|count| *count <= 1000), "{messages:?}");
    assert!((10..=13).contains(&messages.len()), "{} DEKs for ten times the cap", messages.len());
    let calls = stage.calls().1;
    assert!(calls <= 113, "{calls} calls for a hundred renewals by age, and one for each DEK");
}

#[test]
fn a_denied_renewal_ends_every_lease_of_the_dek() {
    let stage = Stage::new(Limits::default().stale_if_error_writing(secs(1000)));
    let handle = || block_on(stage.envelope.encryptor(&stage.alice)).unwrap();
    let first = handle();
    stage.clock.advance(secs(75));
    stage.write().unwrap();
    stage.clock.advance(secs(6));
    stage.write().unwrap();
    let second = handle();
    assert_eq!(first.dek_id(), second.dek_id());
    first.encrypt(Aad::empty(), b"x").unwrap();
    stage.kek.fail_with(KekErrorClass::Denied);
    stage.clock.advance(secs(81));
    assert_eq!(kind(stage.write()), ErrorKind::Denied);
    for handle in [&first, &second] {
        assert_eq!(kind(handle.encrypt(Aad::empty(), b"x")), ErrorKind::Expired);
    }
    stage.kek.fail_with(None);
    stage.clock.advance(secs(6));
    assert_ne!(writes_with(&stage), first.dek_id());
}

#[test]
fn an_operator_ends_every_lease_before_and_during_a_renewal() {
    type Hand = fn(&Envelope, &KekId, &EncryptionContext);
    let hands: [Hand; 3] = [
        |envelope, kek_id, _| {
            envelope.revoke_kek(kek_id);
            envelope.reinstate_kek(kek_id);
        },
        |envelope, _, alice| envelope.evict_context(alice),
        |envelope, _, _| envelope.evict_all(),
    ];
    for (number, hand) in hands.into_iter().enumerate() {
        let stage = Stage::new(Limits::default());
        let handle = || block_on(stage.envelope.encryptor(&stage.alice)).unwrap();
        let (first, at) = (handle(), stage.log.count("Wiped"));
        stage.clock.advance(secs(81));
        let second = handle();
        assert_eq!(first.dek_id(), second.dek_id());
        hand(&stage.envelope, stage.kek.id(), &stage.alice);
        for handle in [&first, &second] {
            assert_eq!(kind(handle.encrypt(Aad::empty(), b"x")), ErrorKind::Expired, "{number}");
        }
        assert_eq!(stage.log.count("Wiped") - at, 2, "{number}: for reading, and for writing");
        let third = handle();
        assert_ne!(third.dek_id(), first.dek_id(), "{number}");

        // The same while a renewal is on its way.
        stage.clock.advance(secs(81));
        let (envelope, kek_id, alice) =
            (stage.envelope.clone(), stage.kek.id().clone(), stage.alice.clone());
        let once = Arc::new(Mutex::new(true));
        stage.kek.wait_for(move || {
            if std::mem::take(&mut *once.lock().unwrap()) {
                hand(&envelope, &kek_id, &alice);
            }
            Box::pin(async {})
        });
        let calls = stage.calls().1;
        assert_ne!(writes_with(&stage), third.dek_id(), "{number}");
        assert_eq!(stage.calls().1, calls + 2, "{number}: the answer from before did not count");
        assert_eq!(kind(third.encrypt(Aad::empty(), b"x")), ErrorKind::Expired, "{number}");
    }
}

#[test]
fn after_an_outage_the_same_dek_goes_on_within_its_grace_and_another_one_after_it() {
    let stage = Stage::new(Limits::default().stale_if_error_writing(secs(50)));
    let first = writes_with(&stage);
    stage.kek.fail_with(KekErrorClass::Unavailable);
    stage.clock.advance(secs(120));
    assert_eq!(writes_with(&stage), first);
    assert_eq!(stage.log.count("ServedStale"), 1);
    stage.kek.fail_with(None);
    stage.clock.advance(secs(20));
    stage.log.take();
    assert_eq!(writes_with(&stage), first, "the service is back");
    assert_eq!(stage.log.take(), ["Called", "Wrapped", "Refreshed"]);
    stage.kek.fail_with(KekErrorClass::Unavailable);
    stage.clock.advance(secs(99));
    assert_eq!(writes_with(&stage), first, "allowed anew");
    stage.clock.advance(secs(50));
    assert_eq!(writes_with(&stage), first, "and with its grace");
    stage.clock.advance(secs(1));
    assert_eq!(kind(stage.write()), ErrorKind::Unavailable);
    stage.kek.fail_with(None);
    stage.clock.advance(secs(1));
    assert_ne!(writes_with(&stage), first);
}

#[test]
fn a_dek_out_of_use_is_wiped_at_max_age_whatever_its_rotation() {
    let stage = Stage::new(Limits::default().rotate_after(30 * DAY));
    let first = writes_with(&stage);
    stage.clock.advance(secs(100));
    stage.log.wait_for("Wiped", 2);
    assert_ne!(writes_with(&stage), first);
    assert_eq!(stage.log.count("Made"), 2);
}

#[test]
fn a_dek_that_was_evicted_to_make_room_does_not_come_back() {
    let stage = Stage::new(Limits::default().max_entries(1));
    let first = writes_with(&stage);
    stage.clock.advance(secs(81));
    let (envelope, once) = (stage.envelope.clone(), Arc::new(Mutex::new(true)));
    stage.kek.wait_for(move || {
        let (envelope, first) = (envelope.clone(), std::mem::take(&mut *once.lock().unwrap()));
        Box::pin(async move {
            for tenant in 0..if first { 20 } else { 0 } {
                let context = context(&format!("{tenant}"));
                envelope.encrypt(&context, Aad::empty(), b"x").await.unwrap();
            }
        })
    });
    assert_ne!(writes_with(&stage), first);
}

#[test]
fn a_rotation_comes_though_the_wall_clock_was_set_back() {
    let stage = Stage::new(Limits::default().rotate_after(secs(200)));
    let first = writes_with(&stage);
    stage.clock.advance(secs(50));
    stage.clock.set_wall_back(10 * DAY);
    stage.clock.advance(secs(31));
    assert_eq!(writes_with(&stage), first);
    stage.clock.advance(secs(81));
    assert_eq!(writes_with(&stage), first);
    stage.clock.advance(secs(81));
    assert_ne!(writes_with(&stage), first);
}

#[test]
fn a_renewal_by_another_kek_than_the_one_that_wrapped_it_replaces_the_dek() {
    let key = |name: &str| KekId::new(format!("key:{name}")).unwrap();
    let names = Arc::new(Mutex::new(key("one")));
    // The KEK that an alias names.
    let kek = HookedKek::around(support::local("alias")).unwrapping_under_any_id().on_wrap({
        let names = names.clone();
        move |kek, context, dek| {
            let name = names.lock().unwrap().clone();
            Box::pin(async move {
                let wrapped = kek.wrap(context, dek).await?;
                Ok(WrappedDek::new(name, wrapped.wrapped()).unwrap())
            })
        }
    });
    let (clock, alice) = (ManualClock::new(), context("alice"));
    let builder = Envelope::builder().wrap_with(kek).limits(Limits::default().max_age(secs(100)));
    let envelope = builder.clock(clock.clone()).build().unwrap();
    let write = || {
        clock.advance(secs(81));
        let sealed = block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap();
        let inspection = inspect(&sealed).unwrap();
        (inspection.dek_id, inspection.keks[0].kek_id.clone())
    };
    let first = write();
    assert_eq!(write(), first);
    *names.lock().unwrap() = key("two");
    let second = write();
    assert_eq!((second.0 == first.0, &second.1), (false, &key("two")));
    assert_eq!(write(), second);
}

#[test]
fn a_rotated_kek_takes_the_next_dek_at_its_next_renewal() {
    let stage = Stage::new(Limits::default());
    let first = writes_with(&stage);
    stage.kek.local().rotate().unwrap();
    assert_eq!(writes_with(&stage), first);
    stage.clock.advance(secs(81));
    let message = message(&stage);
    assert_ne!(dek_id(&message), first);
    assert!(!stage.envelope.needs_rewrap(&message).unwrap());
    stage.clock.advance(secs(81));
    assert_eq!(writes_with(&stage), dek_id(&message), "and that one goes on");
}

#[test]
fn a_rotation_outside_a_minute_to_thirty_days_is_refused() {
    let built = |rotate_after| {
        let limits = Limits::default().rotate_after(rotate_after);
        Envelope::builder().wrap_with(support::local("kek")).limits(limits).build()
    };
    for outside in [
        Duration::ZERO,
        secs(60) - Duration::from_nanos(1),
        30 * DAY + Duration::from_nanos(1),
        Duration::MAX,
    ] {
        let error = built(outside).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{outside:?}");
        assert!(error.to_string().contains("rotate_after"), "{error}");
    }
    for edge in [secs(60), 30 * DAY] {
        built(edge).unwrap();
    }
}
