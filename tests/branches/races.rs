//! Races between callers, renewals and everything that ends a branch key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use waxseal::kek::KekErrorClass::Denied;
use waxseal::store::{KeyStore, MemoryStore};
use waxseal::{Aad, ErrorKind, Limits};
use waxseal_testing::support::rivals::Rivals;
use waxseal_testing::support::{block_on, context};

use super::ground::{Fleet, Process, kek_id, kind, ms, secs, table};

const TABLES: usize = 16;

/// Ends the threads of a scope, which waits for them, even if the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Readers and writers in two envelopes work while `hand` intervenes again and again. After each
/// time no handle from before it serves.
fn race(name: &str, limits: Limits, hand: impl Fn(&Fleet, &Process)) -> u64 {
    let fleet = Fleet::new();
    let writer = fleet.process();
    let sealed: Vec<_> =
        (0..TABLES).map(|at| writer.seal_for(&table("acme", at)).unwrap()).collect();
    let process = fleet.process_with(|b| b.limits(limits), |e| e);
    let other = fleet.envelope(&process.kek).build().unwrap();
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let envelopes = [&process.envelope, &other, &process.envelope];
    let allowed = [ErrorKind::Denied, ErrorKind::Unavailable, ErrorKind::Expired];
    std::thread::scope(|threads| {
        let _stop = Stop(&stop);
        for (nth, envelope) in envelopes.iter().enumerate() {
            let (sealed, stop, done) = (&sealed, &stop, &done);
            threads.spawn(move || {
                for at in (nth..).map(|at| at % TABLES) {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let context = table("acme", at);
                    let read = block_on(envelope.decrypt(&context, Aad::empty(), &sealed[at]));
                    let written = block_on(envelope.encrypt(&context, Aad::empty(), b"x"));
                    for error in [read.err(), written.err()].into_iter().flatten() {
                        assert!(allowed.contains(&error.kind()), "{name}: {error}");
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let start = Instant::now();
        while start.elapsed() < secs(2) {
            let handles: Vec<_> = (0..TABLES)
                .filter_map(|at| {
                    let context = table("acme", at);
                    let opening = block_on(other.decryptor(&context, &sealed[at])).ok()?;
                    let sealing = block_on(process.envelope.encryptor(&context)).ok()?;
                    Some((at, opening, sealing))
                })
                .collect();
            hand(&fleet, &process);
            for (at, opening, sealing) in &handles {
                let read = opening.decrypt(Aad::empty(), &sealed[*at]);
                assert_eq!(kind(read), ErrorKind::Expired, "{name}");
                let written = sealing.encrypt(Aad::empty(), b"x");
                assert_eq!(kind(written), ErrorKind::Expired, "{name}");
            }
        }
    });
    done.into_inner()
}

#[test]
fn after_an_eviction_of_branch_keys_no_handle_from_before_serves() {
    let done = race("evict_all", Limits::default(), |_, process| process.kek.evict_all());
    println!("{done} reads and writes");
}

#[test]
fn after_a_revocation_no_handle_from_before_serves() {
    let done = race("revoke_kek", Limits::default(), |_, process| {
        process.kek.revoke_kek(&kek_id("local:root"));
        process.kek.reinstate_kek(&kek_id("local:root"));
    });
    println!("{done} reads and writes");
}

#[test]
fn after_a_denial_no_handle_from_before_serves() {
    let short = Limits::default().denial_ttl(ms(0));
    let done = race("denied", short, |fleet, process| {
        fleet.root.fail_with(Denied);
        fleet.clock.advance(secs(250));
        // The first caller learns of it for all.
        drop(process.seal_for(&table("acme", "new")));
        fleet.clock.advance(secs(51));
        fleet.root.fail_with(None);
    });
    println!("{done} reads and writes");
}

#[test]
fn after_an_erasure_nothing_of_before_opens_whatever_was_under_way() {
    let fleet = Fleet::new();
    let process = fleet.process();
    let other = fleet.envelope(&process.kek).build().unwrap();
    let start = Instant::now();
    let mut rounds = 0;
    while start.elapsed() < secs(2) {
        rounds += 1;
        let alice = context("alice");
        let sealed = process.seal("alice");
        process.kek.evict_all();
        let stop = AtomicBool::new(false);
        std::thread::scope(|threads| {
            let _stop = Stop(&stop);
            for envelope in [&process.envelope, &other] {
                let (alice, sealed, stop) = (&alice, &sealed, &stop);
                threads.spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        match block_on(envelope.decrypt(alice, Aad::empty(), sealed)) {
                            Ok(_) => {}
                            Err(error) => assert_eq!(error.kind(), ErrorKind::Denied, "{error}"),
                        }
                    }
                });
            }
            block_on(process.kek.erase([("tenant", "alice")])).unwrap();
            for envelope in [&process.envelope, &other] {
                let cached = envelope.decrypt_cached(&alice, Aad::empty(), &sealed);
                assert!(cached.is_ok_and(|plaintext| plaintext.is_none()));
                let result = block_on(envelope.decrypt(&alice, Aad::empty(), &sealed));
                assert_eq!(kind(result), ErrorKind::Denied);
            }
        });
        let cached = other.decrypt_cached(&alice, Aad::empty(), &sealed);
        assert!(cached.is_ok_and(|plaintext| plaintext.is_none()), "it came back");
    }
    println!("{rounds} erasures");
}

/// The same on PostgreSQL: crates/sqlx/tests/branches.rs.
#[test]
fn writers_rewrappers_erasers_and_who_revokes_lose_nothing_and_revive_nothing() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let mut all = (0, 0);
    for seed in 1..=10 {
        let stores: Vec<Arc<dyn KeyStore>> = vec![Arc::new(MemoryStore::new())];
        let rivals = Rivals::new(stores, seed, 150);
        runtime.block_on(async {
            let tasks: Vec<_> = rivals.tasks().into_iter().map(tokio::spawn).collect();
            for task in tasks {
                task.await.unwrap();
            }
            let (opened, refused) = rivals.check().await;
            all = (all.0 + opened, all.1 + refused);
        });
    }
    assert!(all.0 > 0 && all.1 > 0, "{all:?}");
}
