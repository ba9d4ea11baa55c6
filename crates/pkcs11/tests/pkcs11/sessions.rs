//! Sessions and threads: lost ones, few of them, calls that hang, futures that are dropped.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use pollster::block_on;
use waxseal::kek::{Health, KekErrorClass, KekProvider};
use waxseal::{Aad, Envelope};
use waxseal_testing::pkcs11::{Ground, Kind, alone};
use waxseal_testing::support::{a_dek, context};

use super::{builder, kek, until};
use KekErrorClass::{Denied, Throttled, Unavailable};

/// Threads of providers in this process.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .filter(|name| name.trim() == "waxseal-pkcs11")
        .count()
}

#[test]
fn a_session_that_was_lost_is_replaced_within_the_call() {
    alone(Kind::Shim, |ground| {
        let kek = builder(ground).sessions(1).build().unwrap();
        let (alice, dek) = (context("alice"), a_dek());
        let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
        // Handle invalid, closed, removed, not present, not logged in, not recognised, slot gone.
        for (n, code) in ["0xb3", "0xb0", "0x32", "0xe0", "0x101", "0xe1", "0x3"].iter().enumerate()
        {
            for function in ["C_DecryptInit", "C_EncryptInit"] {
                ground.control(&format!("{function} rv {code} {function}{n} 1\n"));
                let opened = ground.called("C_OpenSession");
                let unwrapped = block_on(kek.unwrap(&alice, &wrapped)).unwrap();
                assert_eq!(unwrapped.expose(), dek.expose());
                block_on(kek.wrap(&alice, &dek)).unwrap();
                assert_eq!(ground.called("C_OpenSession"), opened + 1, "{code}");
            }
            // Twice in a row is an outage.
            ground.control(&format!("C_DecryptInit rv {code} again{n} 0\n"));
            let error = block_on(kek.unwrap(&alice, &wrapped)).unwrap_err();
            assert_eq!(error.class(), Unavailable, "{error}");
            ground.control("");
            block_on(kek.unwrap(&alice, &wrapped)).unwrap();
        }
        assert_eq!(block_on(kek.health()).unwrap(), Health::Ready);
    });
}

#[test]
fn a_login_that_other_code_ended_is_made_again() {
    alone(Kind::SoftHsm, |ground| {
        let (one, other) = (kek(ground), kek(ground));
        let (alice, dek) = (context("alice"), a_dek());
        let wrapped = block_on(one.wrap(&alice, &dek)).unwrap();
        block_on(other.read_key()).unwrap();
        for _ in 0..3 {
            log_out_and_finalise(ground, false);
            assert_eq!(block_on(one.unwrap(&alice, &wrapped)).unwrap().expose(), dek.expose());
            block_on(other.wrap(&alice, &dek)).unwrap();
        }
        // Or the whole module.
        log_out_and_finalise(ground, true);
        assert_eq!(block_on(one.unwrap(&alice, &wrapped)).unwrap().expose(), dek.expose());
        block_on(other.wrap(&alice, &dek)).unwrap();
    });
}

/// As other code of this process may do.
fn log_out_and_finalise(ground: &Ground, finalise: bool) {
    waxseal_testing::pkcs11::interfere(&ground.module(), finalise);
}

#[test]
fn a_token_that_is_removed_is_an_outage_and_is_found_again_when_it_is_back() {
    alone(Kind::SoftHsm, |ground| removed(ground));
}

#[test]
fn a_token_that_is_gone_denies_nothing_while_another_provider_keeps_the_module() {
    alone(Kind::SoftHsm, |ground| {
        let (kek, other) = (kek(ground), kek(ground));
        let (alice, dek) = (context("alice"), a_dek());
        let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
        // Its session, and the login of the process, stay.
        block_on(other.wrap(&alice, &dek)).unwrap();
        ground.remove_tokens();
        let (mut seen, start) = (Vec::new(), Instant::now());
        while seen.len() < 3 && start.elapsed() < Duration::from_secs(20) {
            block_on(kek.close());
            seen.extend(block_on(kek.read_key()).err());
        }
        assert!(!seen.is_empty(), "nothing failed");
        for error in &seen {
            assert_eq!(error.class(), Unavailable, "{error}");
        }
        ground.put_tokens_back();
        block_on(other.close());
        until("it recovers", || block_on(kek.unwrap(&alice, &wrapped)).is_ok());
    });
}

fn removed(ground: &Ground) {
    let kek = kek(ground);
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
    for round in 0..3 {
        ground.remove_tokens();
        // A software token may continue for a while with what it has read.
        let mut seen = Vec::new();
        let start = Instant::now();
        while seen.len() < 6 && start.elapsed() < Duration::from_secs(20) {
            for result in [
                block_on(kek.unwrap(&alice, &wrapped)).map(|_| ()),
                block_on(kek.wrap(&alice, &dek)).map(|_| ()),
                block_on(kek.health()).map(|_| ()),
            ] {
                seen.extend(result.err());
            }
            block_on(kek.close());
        }
        for error in &seen {
            println!("round {round}: {error}");
            assert_eq!(error.class(), Unavailable, "{error}");
        }
        assert!(!seen.is_empty(), "nothing failed");
        ground.put_tokens_back();
        until("it recovers", || block_on(kek.unwrap(&alice, &wrapped)).is_ok());
        until("it wraps", || block_on(kek.wrap(&alice, &dek)).is_ok());
    }
}

#[test]
fn one_session_is_enough_and_more_are_not_asked_for_at_once() {
    alone(Kind::Shim, |ground| {
        ground.control("sessions 1\n");
        let kek = builder(ground).sessions(8).build().unwrap();
        let (alice, dek) = (context("alice"), a_dek());
        let items: Vec<_> = (0..200).map(|_| (&alice, &dek)).collect();
        let wrapped: Vec<_> =
            block_on(kek.wrap_many(&items)).into_iter().map(Result::unwrap).collect();
        assert_eq!(wrapped.len(), 200);
        assert_eq!(kek.statistics().sessions, 1);
        assert!(ground.called("C_OpenSession") < 40, "{}", ground.called("C_OpenSession"));
        match block_on(kek.health()).unwrap() {
            Health::Degraded(why) => assert!(why.contains("no session left"), "{why}"),
            health => panic!("{health:?}"),
        }
        // Another provider finds none.
        let error = block_on(super::kek(ground).wrap(&alice, &dek)).unwrap_err();
        assert_eq!(error.class(), Throttled, "{error}");
        block_on(kek.close());
        block_on(super::kek(ground).wrap(&alice, &dek)).unwrap();
    });
}

#[test]
fn close_ends_threads_and_sessions_and_the_next_call_starts_anew() {
    alone(Kind::Shim, |ground| {
        let kek = kek(ground);
        let (alice, dek) = (context("alice"), a_dek());
        let items: Vec<_> = (0..100).map(|_| (&alice, &dek)).collect();
        for round in 1..=3 {
            block_on(kek.wrap_many(&items)).into_iter().for_each(|item| drop(item.unwrap()));
            assert!((1..=4).contains(&threads()), "{}", threads());
            block_on(kek.close());
            until("threads end", || threads() == 0);
            assert_eq!(kek.statistics().sessions, 0);
            assert_eq!(ground.called("C_OpenSession"), ground.called("C_CloseSession"));
            assert_eq!(ground.called("C_Login"), round, "the login ends with the last session");
        }
        block_on(kek.wrap(&alice, &dek)).unwrap();
        drop(kek);
        until("the last handle ends them too", || threads() == 0);
        assert_eq!(ground.called("C_OpenSession"), ground.called("C_CloseSession"));
        assert_eq!(ground.called("C_Finalize"), 0);
    });
}

#[test]
fn a_call_that_hangs_keeps_its_thread_and_no_other_is_added() {
    alone(Kind::Shim, |ground| {
        let kek = builder(ground).sessions(2).build().unwrap();
        let (alice, dek) = (context("alice"), a_dek());
        let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
        ground.control("C_DecryptInit sleep 1500\n");
        let start = Instant::now();
        // Callers that give up at once.
        for _ in 0..500 {
            let mut unwrap = kek.unwrap(&alice, &wrapped);
            let mut task = Context::from_waker(Waker::noop());
            assert!(matches!(unwrap.as_mut().poll(&mut task), Poll::Pending));
        }
        thread::sleep(Duration::from_millis(100));
        ground.control("");
        assert!(threads() <= 2, "{}", threads());
        // What was not begun is never begun.
        assert_eq!(block_on(kek.unwrap(&alice, &wrapped)).unwrap().expose(), dek.expose());
        assert!(start.elapsed() < Duration::from_secs(20));
        let tries = ground.called("C_DecryptInit");
        assert!(tries < 20, "{tries} of 500 were begun");
        assert_eq!(kek.statistics().waiting, 0);
    });
}

#[test]
fn an_envelope_waits_no_longer_than_its_timeout_for_a_module_that_hangs() {
    alone(Kind::Shim, |ground| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let policy = waxseal::CallPolicy::default()
                .timeout(Duration::from_millis(200))
                .deadline(Duration::from_millis(500));
            let kek = Arc::new(builder(ground).sessions(1).build().unwrap());
            let envelope =
                Envelope::builder().wrap_with(kek.clone()).call_policy(policy).build().unwrap();
            envelope.encrypt(&context("alice"), Aad::empty(), b"x").await.unwrap();
            ground.control("C_EncryptInit sleep 2000\n");
            let error = envelope.encrypt(&context("bob"), Aad::empty(), b"x").await.unwrap_err();
            assert_eq!(error.kind(), waxseal::ErrorKind::Unavailable, "{error}");
            // Who has a DEK does not notice.
            envelope.encrypt(&context("alice"), Aad::empty(), b"x").await.unwrap();
            ground.control("");
            let start = Instant::now();
            while envelope.encrypt(&context("bob"), Aad::empty(), b"x").await.is_err() {
                assert!(start.elapsed() < Duration::from_secs(30));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            envelope.close().await;
        });
        until("threads end", || threads() == 0);
    });
}

#[test]
fn more_calls_than_can_wait_are_throttled_and_not_kept() {
    alone(Kind::Shim, |ground| {
        let kek = builder(ground).sessions(1).build().unwrap();
        let (alice, dek) = (context("alice"), a_dek());
        block_on(kek.wrap(&alice, &dek)).unwrap();
        ground.control("C_EncryptInit sleep 1000\n");
        let mut task = Context::from_waker(Waker::noop());
        let mut calls: Vec<_> = (0..1100).map(|_| kek.wrap(&alice, &dek)).collect();
        let refused = calls
            .iter_mut()
            .filter_map(|call| match call.as_mut().poll(&mut task) {
                Poll::Ready(result) => Some(result.unwrap_err()),
                Poll::Pending => None,
            })
            .collect::<Vec<_>>();
        assert!((70..=76).contains(&refused.len()), "{}", refused.len());
        assert!(refused.iter().all(|error| error.class() == Throttled && !error.was_asked()));
        assert!(kek.statistics().waiting > 1000);
        drop(calls);
        ground.control("");
        block_on(kek.wrap(&alice, &dek)).unwrap();
    });
}

#[test]
fn a_key_that_is_destroyed_or_may_no_longer_unwrap_is_denied_and_may_come_back() {
    alone(Kind::SoftHsm, |ground| revoked(ground));
}

#[test]
fn a_key_in_kryoptic_that_is_destroyed_or_may_no_longer_unwrap_is_denied() {
    alone(Kind::Kryoptic, |ground| revoked(ground));
}

fn revoked(ground: &Ground) {
    let kek = kek(ground);
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
    let key = waxseal_testing::pkcs11::KEY;
    ground.allow(key, "01", "e");
    assert_eq!(block_on(kek.unwrap(&alice, &wrapped)).unwrap_err().class(), Denied);
    block_on(kek.wrap(&alice, &dek)).unwrap();
    assert!(
        matches!(block_on(kek.health()).unwrap(), Health::Degraded(why) if why.contains("CKA_DECRYPT"))
    );
    ground.allow(key, "01", "d");
    until("the flag is seen", || block_on(kek.unwrap(&alice, &wrapped)).is_ok());
    let error = block_on(kek.wrap(&alice, &dek)).unwrap_err();
    assert_eq!(error.class(), Denied, "{error}");
    ground.allow(key, "01", "ed");
    block_on(kek.unwrap(&alice, &wrapped)).unwrap();
    until("it wraps again", || block_on(kek.wrap(&alice, &dek)).is_ok());
    // The module may be started again a second after it was started: see docs/pkcs11.md.
    thread::sleep(Duration::from_millis(1200));
    ground.destroy(key, "01");
    until("it is seen to be gone", || {
        block_on(kek.unwrap(&alice, &wrapped)).is_err_and(|error| error.class() == Denied)
    });
    for _ in 0..2 {
        for error in [
            block_on(kek.unwrap(&alice, &wrapped)).unwrap_err(),
            block_on(kek.wrap(&alice, &dek)).unwrap_err(),
            block_on(kek.health()).unwrap_err(),
        ] {
            assert_eq!(error.class(), Denied, "{error}");
        }
    }
    // Another key of the same name does not unwrap what the old one wrapped.
    ground.key(key, "01", "eds");
    until("the new key is found", || block_on(kek.wrap(&alice, &dek)).is_ok());
    let error = block_on(kek.unwrap(&alice, &wrapped)).unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Invalid, "{error}");
}
