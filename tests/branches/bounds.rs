//! What came through a branch key ends with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use waxseal::kek::KekErrorClass::{Denied, Misconfigured, Throttled, Unavailable};
use waxseal::kek::scripted::{Act, ScriptedKek};
use waxseal::store::StoreErrorClass;
use waxseal::{Aad, ErrorKind, Limits};
use waxseal_testing::support::stage::Log;
use waxseal_testing::support::{Threads, block_on, context};

use super::ground::{Fleet, Process, kek_id, kind, ms, secs, table, with_grace};

/// Never renewed ahead, so that a test sees the end.
fn late() -> Limits {
    Limits::default().refresh_after(secs(299))
}

/// A process whose own limits would let DEKs live long.
fn with_long_deks(fleet: &Fleet, branch: Limits) -> Process {
    let long = Limits::default().max_age(secs(80_000)).refresh_after(secs(79_000));
    fleet.process_with(|b| b.limits(branch), |e| e.limits(long))
}

#[test]
fn a_dek_obtained_at_second_299_ends_at_second_300_handles_too() {
    let fleet = Fleet::new();
    let sealed: Vec<_> =
        (0..2).map(|at| fleet.process().seal_for(&table("acme", at)).unwrap()).collect();
    let process = with_long_deks(&fleet, late());
    process.open_for(&table("acme", 0), &sealed[0]).unwrap();
    fleet.root.fail_with(Unavailable);
    fleet.clock.advance(secs(299) - ms(1));
    process.open_for(&table("acme", 1), &sealed[1]).unwrap();
    let opening = block_on(process.envelope.decryptor(&table("acme", 1), &sealed[1])).unwrap();
    fleet.clock.advance(secs(1));
    process.open_for(&table("acme", 1), &sealed[1]).unwrap();
    opening.decrypt(Aad::empty(), &sealed[1]).unwrap();
    fleet.clock.advance(ms(2));
    for (at, sealed) in sealed.iter().enumerate() {
        let result = process.open_for(&table("acme", at), sealed);
        assert_eq!(kind(result), ErrorKind::Unavailable);
    }
    assert_eq!(kind(opening.decrypt(Aad::empty(), &sealed[1])), ErrorKind::Expired);
}

#[test]
fn a_dek_for_writing_that_is_made_at_second_299_ends_at_second_300_handles_too() {
    let fleet = Fleet::new();
    let process = with_long_deks(&fleet, late());
    process.seal_for(&table("acme", 0)).unwrap();
    fleet.root.fail_with(Unavailable);
    fleet.clock.advance(secs(299) - ms(1));
    process.seal_for(&table("acme", 1)).unwrap();
    let sealing = block_on(process.envelope.encryptor(&table("acme", 1))).unwrap();
    sealing.encrypt(Aad::empty(), b"x").unwrap();
    fleet.clock.advance(secs(1) + ms(2));
    assert_eq!(kind(process.seal_for(&table("acme", 1))), ErrorKind::Unavailable);
    assert_eq!(kind(sealing.encrypt(Aad::empty(), b"x")), ErrorKind::Expired);
}

#[test]
fn a_dek_that_another_kek_wraps_too_ends_with_the_branch_key_all_the_same() {
    for branch_first in [true, false] {
        let fleet = Fleet::new();
        let other = ScriptedKek::new("other").unwrap();
        let kek = fleet.branch().store(fleet.store.clone()).limits(late()).build().unwrap();
        let builder = waxseal::Envelope::builder()
            .clock(fleet.clock.clone())
            .limits(Limits::default().max_age(secs(80_000)).refresh_after(secs(79_000)));
        let builder = match branch_first {
            true => builder.wrap_with(kek.clone()).wrap_with(other.clone()),
            false => builder.wrap_with(other.clone()).wrap_with(kek.clone()),
        };
        let envelope = builder.build().unwrap();
        let alice = context("alice");
        block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap();
        let sealing = block_on(envelope.encryptor(&alice)).unwrap();
        fleet.root.fail_with(Unavailable);
        fleet.clock.advance(secs(301));
        assert_eq!(kind(sealing.encrypt(Aad::empty(), b"x")), ErrorKind::Expired);
        let result = block_on(envelope.encrypt(&alice, Aad::empty(), b"x"));
        assert_eq!(kind(result), ErrorKind::Unavailable, "branch first: {branch_first}");
    }
}

#[test]
fn a_renewal_of_the_branch_key_renews_a_thousand_deks_without_a_call_for_each() {
    let fleet = Fleet::new();
    let writer = fleet.process();
    let sealed: Vec<_> = (0..1000).map(|at| writer.seal_for(&table("acme", at)).unwrap()).collect();
    let reader = fleet.process();
    let open_all = || {
        for (at, sealed) in sealed.iter().enumerate() {
            reader.open_for(&table("acme", at), sealed).unwrap();
        }
    };
    open_all();
    let calls = fleet.calls().1;
    for _ in 0..10 {
        fleet.clock.advance(secs(250));
        open_all();
    }
    let renewals = fleet.calls().1 - calls;
    println!("1,000 DEKs, 2,500 s, max_age 300 s: {renewals} unwraps");
    assert!((8..=11).contains(&renewals), "{renewals}");
}

#[test]
fn a_renewal_is_told_once_of_the_branch_key_and_once_of_the_dek() {
    let (fleet, log) = (Fleet::new(), Log::default());
    let process = fleet.process_with(|b| b, |e| e.observer(log.clone()));
    let sealed = process.seal("alice");
    let renewals = || (process.branch_log.count("Refreshed"), log.count("Refreshed"));
    assert_eq!(renewals(), (0, 0));
    fleet.clock.advance(secs(250));
    process.seal("alice");
    assert_eq!(renewals(), (1, 1), "for writing");
    // What was renewed for writing is there for reading too.
    process.open("alice", &sealed).unwrap();
    assert_eq!(renewals(), (1, 2), "the DEK for reading");
    fleet.clock.advance(secs(250));
    process.open("alice", &sealed).unwrap();
    assert_eq!(renewals(), (2, 3), "for reading");
}

#[test]
fn the_grace_of_a_branch_key_and_that_of_an_envelope_both_have_to_allow_it() {
    for (branch, envelope, serves) in [
        (with_grace(), with_grace(), true),
        // The branch key is gone: nothing that came through it is left.
        (Limits::default(), with_grace(), false),
        // The branch key serves, and derives what it is asked for.
        (with_grace(), Limits::default(), true),
        (Limits::default(), Limits::default(), false),
    ] {
        let fleet = Fleet::new();
        let sealed = fleet.process().seal("alice");
        let process = fleet.process_with(|b| b.limits(branch), |e| e.limits(envelope));
        process.open("alice", &sealed).unwrap();
        process.seal("alice");
        fleet.root.fail_with(Unavailable);
        for _ in 0..5 {
            fleet.clock.advance(secs(301));
            let result = process.open("alice", &sealed);
            assert_eq!(result.is_ok(), serves, "{result:?}");
            let result = process.seal_for(&context("alice"));
            assert_eq!(result.is_ok(), serves, "{result:?}");
        }
        fleet.root.fail_with(Denied);
        fleet.clock.advance(secs(301));
        assert_eq!(kind(process.open("alice", &sealed)), ErrorKind::Denied);
        assert_eq!(kind(process.seal_for(&context("alice"))), ErrorKind::Denied);
    }
}

#[test]
fn grace_of_a_branch_key_is_apart_for_reading_and_writing() {
    for writing in [true, false] {
        let fleet = Fleet::new();
        let sealed = fleet.process().seal("alice");
        let limits = match writing {
            true => Limits::default().stale_if_error_writing(secs(5000)),
            false => Limits::default().stale_if_error_reading(secs(5000)),
        };
        let process = fleet.process_with(|b| b.limits(limits), |e| e);
        process.open("alice", &sealed).unwrap();
        process.seal("alice");
        fleet.root.fail_with(Unavailable);
        fleet.clock.advance(secs(301));
        assert_eq!(process.seal_for(&context("alice")).is_ok(), writing);
        assert_eq!(process.open("alice", &sealed).is_ok(), !writing);
        // And not for ever.
        fleet.clock.advance(secs(5001));
        assert_eq!(kind(process.seal_for(&context("alice"))), ErrorKind::Unavailable);
        assert_eq!(kind(process.open("alice", &sealed)), ErrorKind::Unavailable);
    }
}

#[test]
fn an_outage_of_the_store_is_named_and_cached_branch_keys_go_on() {
    for (class, expected) in [
        (StoreErrorClass::Unavailable, ErrorKind::Unavailable),
        (StoreErrorClass::Throttled, ErrorKind::Throttled),
        (StoreErrorClass::Misconfigured, ErrorKind::Misconfigured),
    ] {
        let fleet = Fleet::new();
        let sealed: Vec<_> =
            (0..3).map(|at| fleet.process().seal_for(&table("acme", at)).unwrap()).collect();
        let process = fleet.process();
        process.open_for(&table("acme", 0), &sealed[0]).unwrap();
        process.seal_for(&table("acme", 0)).unwrap();
        fleet.store.fail_with(class);
        fleet.clock.advance(secs(200));
        for (at, sealed) in sealed.iter().enumerate() {
            process.open_for(&table("acme", at), sealed).unwrap();
            process.seal_for(&table("acme", at)).unwrap();
        }
        fleet.clock.advance(secs(101));
        let calls = fleet.calls();
        let error = process.open_for(&table("acme", 0), &sealed[0]).unwrap_err();
        assert_eq!(error.kind(), expected);
        assert!(error.to_string().contains("key store memory"), "{error}");
        let error = process.seal_for(&table("acme", 0)).unwrap_err();
        assert_eq!(error.kind(), expected);
        assert!(error.to_string().contains("key store memory"), "{error}");
        assert_eq!(fleet.calls(), calls, "the root was not asked");
        fleet.store.fail_with(None);
        process.open_for(&table("acme", 0), &sealed[0]).unwrap();
        process.seal_for(&table("acme", 0)).unwrap();
    }
}

#[test]
fn a_store_that_is_down_is_ridden_out_within_the_grace_and_a_wrong_login_is_not() {
    for (class, serves) in
        [(StoreErrorClass::Unavailable, true), (StoreErrorClass::Misconfigured, false)]
    {
        let fleet = Fleet::new();
        let sealed = fleet.process().seal("alice");
        let process = fleet.process_with(|b| b.limits(with_grace()), |e| e);
        process.open("alice", &sealed).unwrap();
        process.seal("alice");
        fleet.store.fail_with(class);
        fleet.clock.advance(secs(301));
        assert_eq!(process.open("alice", &sealed).is_ok(), serves, "{class:?}");
        assert_eq!(process.seal_for(&context("alice")).is_ok(), serves, "{class:?}");
        assert_eq!(process.branch_log.count("ServedStale") > 0, serves);
    }
}

#[test]
fn a_denial_by_the_root_ends_all_deks_and_handles_in_all_envelopes() {
    for writing in [true, false] {
        let fleet = Fleet::new();
        let sealed: Vec<_> =
            (0..20).map(|at| fleet.process().seal_for(&table("acme", at)).unwrap()).collect();
        let bob = fleet.process().seal("bob");
        let message = fleet.process().seal_for(&table("acme", 1000)).unwrap();
        let one = with_long_deks(&fleet, Limits::default());
        let other = fleet.envelope(&one.kek).build().unwrap();
        let mut handles = Vec::new();
        let mut sealing = Vec::new();
        for envelope in [&one.envelope, &other] {
            for (at, sealed) in sealed.iter().enumerate() {
                handles
                    .push((at, block_on(envelope.decryptor(&table("acme", at), sealed)).unwrap()));
                sealing.push(block_on(envelope.encryptor(&table("acme", at))).unwrap());
            }
        }
        let of_bob = block_on(one.envelope.decryptor(&context("bob"), &bob)).unwrap();
        fleet.clock.advance(secs(250));
        fleet.root.fail_with(Denied);
        // One caller learns of it, ahead of time. The cached branch key serves that caller still.
        match writing {
            true => drop(one.seal_for(&table("acme", 1000))),
            false => drop(one.open_for(&table("acme", 1000), &message)),
        }
        assert!(one.branch_log.count("Denied") > 0, "writing {writing}");
        for (at, handle) in &handles {
            let result = handle.decrypt(Aad::empty(), &sealed[*at]);
            assert_eq!(kind(result), ErrorKind::Expired, "writing {writing}");
        }
        for handle in &sealing {
            assert_eq!(kind(handle.encrypt(Aad::empty(), b"x")), ErrorKind::Expired);
        }
        for envelope in [&one.envelope, &other] {
            for (at, sealed) in sealed.iter().enumerate() {
                let result = envelope.decrypt_cached(&table("acme", at), Aad::empty(), sealed);
                assert!(result.is_ok_and(|plaintext| plaintext.is_none()));
                let result = block_on(envelope.decrypt(&table("acme", at), Aad::empty(), sealed));
                assert_eq!(kind(result), ErrorKind::Denied);
            }
        }
        // Another tenant's key was not the one that was denied.
        of_bob.decrypt(Aad::empty(), &bob).unwrap();
    }
}

#[test]
fn a_root_that_wraps_no_new_branch_key_ends_none_for_reading() {
    let fleet = Fleet::new();
    let of_a_minute = || fleet.process_with(|b| b.period(secs(60)), |e| e);
    let (sealed, process) = (of_a_minute().seal("alice"), of_a_minute());
    process.open("alice", &sealed).unwrap();
    let opening = block_on(process.envelope.decryptor(&context("alice"), &sealed)).unwrap();
    fleet.clock.advance(secs(61));
    let unwraps = fleet.calls().1;
    fleet.root.script([Act::Fail(Denied)]);
    assert_eq!(kind(process.seal_for(&context("alice"))), ErrorKind::Denied);
    opening.decrypt(Aad::empty(), &sealed).unwrap();
    process.envelope.evict_all();
    process.open("alice", &sealed).unwrap();
    assert_eq!(fleet.calls().1, unwraps, "the branch key was obtained again");
}

#[test]
fn a_revocation_by_the_id_of_root_or_branch_ends_everything_that_came_through() {
    type Revoke = fn(&Process);
    let ways: [(&str, Revoke); 7] = [
        ("root, envelope", |p| p.envelope.revoke_kek(&kek_id("local:root"))),
        ("branch, envelope", |p| p.envelope.revoke_kek(&kek_id("branch:orders"))),
        ("root, branch KEK", |p| p.kek.revoke_kek(&kek_id("local:root"))),
        ("branch, branch KEK", |p| p.kek.revoke_kek(&kek_id("branch:orders"))),
        ("evict_all, branch KEK", |p| p.kek.evict_all()),
        ("evict_all, envelope", |p| p.envelope.evict_all()),
        ("shut_down", |p| p.envelope.shut_down()),
    ];
    for (name, revoke) in ways {
        let fleet = Fleet::new();
        let sealed = fleet.process().seal("alice");
        let process = fleet.process();
        let alice = context("alice");
        let opening = block_on(process.envelope.decryptor(&alice, &sealed)).unwrap();
        let sealing = block_on(process.envelope.encryptor(&alice)).unwrap();
        revoke(&process);
        assert_eq!(kind(opening.decrypt(Aad::empty(), &sealed)), ErrorKind::Expired, "{name}");
        assert_eq!(kind(sealing.encrypt(Aad::empty(), b"x")), ErrorKind::Expired, "{name}");
        let (opened, written) = (process.open("alice", &sealed), process.seal_for(&alice));
        if name.starts_with("evict") {
            opened.unwrap();
            written.unwrap();
        } else {
            let expected =
                if name == "shut_down" { ErrorKind::ShutDown } else { ErrorKind::Denied };
            assert_eq!((kind(opened), kind(written)), (expected, expected), "{name}");
        }
        process.envelope.reinstate_kek(&kek_id("local:root"));
        process.envelope.reinstate_kek(&kek_id("branch:orders"));
        process.kek.reinstate_kek(&kek_id("branch:orders"));
        if name != "shut_down" {
            fleet.clock.advance(secs(60));
            process.open("alice", &sealed).unwrap_or_else(|error| panic!("{name}: {error}"));
            process.seal_for(&alice).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

#[test]
fn a_revocation_at_one_envelope_leaves_others_alone_and_one_at_the_branch_kek_does_not() {
    let fleet = Fleet::new();
    let one = fleet.process();
    let other = fleet.envelope(&one.kek).build().unwrap();
    let alice = context("alice");
    let sealed = one.seal("alice");
    let opening = block_on(other.decryptor(&alice, &sealed)).unwrap();
    one.envelope.revoke_kek(&kek_id("local:root"));
    opening.decrypt(Aad::empty(), &sealed).unwrap();
    one.kek.revoke_kek(&kek_id("local:root"));
    assert_eq!(kind(opening.decrypt(Aad::empty(), &sealed)), ErrorKind::Expired);
}

#[test]
fn branch_keys_live_as_long_as_an_envelope_or_a_handle_has_the_branch_kek() {
    let fleet = Fleet::new();
    let Process { kek, envelope, branch_log } = fleet.process();
    let alice = context("alice");
    let sealed = block_on(envelope.encrypt(&alice, Aad::empty(), b"payload")).unwrap();
    drop(kek);
    let calls = fleet.calls();
    envelope.evict_all();
    block_on(envelope.decrypt(&alice, Aad::empty(), &sealed)).unwrap();
    let opening = block_on(envelope.decryptor(&alice, &sealed)).unwrap();
    assert_eq!(fleet.calls(), calls);
    drop(envelope);
    opening.decrypt(Aad::empty(), &sealed).unwrap();
    assert_eq!(branch_log.count("Wiped"), 0);
    drop(opening);
    branch_log.wait_for("Wiped", 2);
}

#[test]
fn a_small_cache_of_branch_keys_costs_calls_and_no_request() {
    let fleet = Fleet::new();
    let process = fleet.process_with(|b| b.limits(Limits::default().max_entries(1)), |e| e);
    let tenants: Vec<_> = (0..8).map(|at| format!("tenant-{at}")).collect();
    let sealed: Vec<_> = tenants.iter().map(|tenant| process.seal(tenant)).collect();
    for _ in 0..3 {
        for (tenant, sealed) in tenants.iter().zip(&sealed) {
            process.open(tenant, sealed).unwrap();
            process.seal(tenant);
        }
    }
    let start = Instant::now();
    std::thread::scope(|threads| {
        for (tenant, sealed) in tenants.iter().zip(&sealed) {
            let process = &process;
            threads.spawn(move || {
                while start.elapsed() < secs(2) {
                    let context = context(tenant);
                    block_on(process.envelope.decrypt(&context, Aad::empty(), sealed)).unwrap();
                    block_on(process.envelope.encrypt(&context, Aad::empty(), b"x")).unwrap();
                }
            });
        }
    });
}

#[test]
fn a_clock_that_jumps_ends_branch_keys_and_what_came_through() {
    for jump in [true, false] {
        let fleet = Fleet::new();
        let sealed = fleet.process().seal("alice");
        let process = with_long_deks(&fleet, Limits::default());
        process.open("alice", &sealed).unwrap();
        let opening = block_on(process.envelope.decryptor(&context("alice"), &sealed)).unwrap();
        fleet.root.fail_with(Unavailable);
        match jump {
            true => fleet.clock.set_wall_forward(secs(301)),
            false => {
                fleet.clock.set_wall_back(secs(1000));
                fleet.clock.advance(secs(301));
            }
        }
        assert_eq!(kind(opening.decrypt(Aad::empty(), &sealed)), ErrorKind::Expired);
        assert_eq!(kind(process.open("alice", &sealed)), ErrorKind::Unavailable);
    }
}

#[test]
fn an_answer_that_comes_after_its_own_end_serves_those_who_waited_and_nobody_else() {
    let fleet = Fleet::new();
    let sealed = fleet.process().seal("alice");
    let process = fleet.process();
    let clock = fleet.clock.clone();
    fleet.root.wait_for(move || {
        clock.advance(secs(400));
        Box::pin(async {})
    });
    process.open("alice", &sealed).unwrap();
    process.seal("alice");
    assert!(!process.is_cached("alice", &sealed), "it served for longer than its branch key");
    let calls = fleet.calls().1;
    process.open("alice", &sealed).unwrap();
    assert_eq!(fleet.calls().1, calls + 1);
}

#[test]
fn a_root_or_store_that_panics_fails_one_request_and_harms_no_other() {
    let fleet = Fleet::new();
    let sealed = fleet.process().seal("alice");
    // What panics is asked again otherwise.
    let once = waxseal::CallPolicy::default().tries(1);
    for runtime in [false, true] {
        let process = fleet.process_with(
            |b| if runtime { b.runtime(Threads).call_policy(once) } else { b },
            |e| if runtime { e.runtime(Threads) } else { e },
        );
        if !runtime {
            fleet.root.script([Act::Panic]);
            let error = process.open("alice", &sealed).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        }
        fleet.store.script([waxseal::store::scripted::Act::Panic]);
        let error = process.open("alice", &sealed).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        fleet.store.script([waxseal::store::scripted::Act::Panic]);
        let error = process.seal_for(&context("alice")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        process.open("alice", &sealed).unwrap();
        process.seal("alice");
    }
}

#[test]
fn a_root_or_store_that_hangs_is_given_up_within_the_deadline() {
    let fleet = Fleet::new();
    let sealed = fleet.process().seal("alice");
    let policy = waxseal::CallPolicy::default().timeout(ms(300)).deadline(ms(400)).tries(1);
    let process =
        fleet.process_with(|b| b.runtime(Threads).call_policy(policy), |e| e.runtime(Threads));
    for of_store in [true, false] {
        let start = Instant::now();
        match of_store {
            true => fleet.store.script([waxseal::store::scripted::Act::Hang]),
            false => fleet.root.script([Act::Hang]),
        }
        let error = process.open("alice", &sealed).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        let took = start.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    process.open("alice", &sealed).unwrap();
}

#[test]
fn a_caller_that_goes_away_takes_nothing_from_another() {
    let fleet = Arc::new(Fleet::new());
    let sealed: Vec<_> =
        (0..50).map(|at| fleet.process().seal_for(&table("acme", at)).unwrap()).collect();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let process = Arc::new(fleet.process());
        let calls = fleet.calls().1;
        fleet.root.wait_for(|| Box::pin(tokio::time::sleep(ms(200))));
        let tasks: Vec<_> = sealed
            .iter()
            .enumerate()
            .map(|(at, sealed)| {
                let (process, sealed) = (process.clone(), sealed.clone());
                tokio::spawn(async move {
                    let context = table("acme", at);
                    process.envelope.decrypt(&context, Aad::empty(), &sealed).await.map(drop)
                })
            })
            .collect();
        tokio::time::sleep(ms(50)).await;
        for task in tasks.iter().step_by(2) {
            task.abort();
        }
        for (at, task) in tasks.into_iter().enumerate() {
            let result = task.await;
            if at % 2 == 1 {
                result.unwrap().unwrap();
            }
        }
        assert_eq!(fleet.calls().1, calls + 1);
    });
}

#[test]
fn a_runtime_that_ended_leaves_renewals_to_callers() {
    let fleet = Fleet::new();
    let sealed = fleet.process().seal("alice");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let process = runtime.block_on(async { fleet.process() });
    drop(runtime);
    process.open("alice", &sealed).unwrap();
    process.seal("alice");
    let calls = fleet.calls().1;
    for _ in 0..4 {
        fleet.clock.advance(secs(290));
        process.open("alice", &sealed).unwrap();
        process.seal("alice");
    }
    assert!(fleet.calls().1 > calls + 3);
    fleet.root.fail_with(Denied);
    fleet.clock.advance(secs(301));
    assert_eq!(kind(process.open("alice", &sealed)), ErrorKind::Denied);
}

#[test]
fn throttled_and_misconfigured_roots_are_said_as_such() {
    for (class, expected) in
        [(Throttled, ErrorKind::Throttled), (Misconfigured, ErrorKind::Misconfigured)]
    {
        let fleet = Fleet::new();
        let sealed = fleet.process().seal("alice");
        let process = fleet.process();
        fleet.root.fail_with(class);
        assert_eq!(kind(process.open("alice", &sealed)), expected);
        assert_eq!(kind(process.seal_for(&context("alice"))), expected);
        fleet.root.fail_with(None);
        process.open("alice", &sealed).unwrap();
    }
}

#[test]
fn branch_keys_have_no_bound_of_messages_bytes_or_uses() {
    let fleet = Fleet::new();
    let limits = Limits::default().max_messages(1).max_bytes(1).max_uses(1);
    let process = fleet.process_with(|b| b.limits(limits), |e| e);
    for at in 0..100 {
        let sealed = process.seal_for(&table("acme", at)).unwrap();
        process.envelope.evict_all();
        process.open_for(&table("acme", at), &sealed).unwrap();
    }
    assert_eq!(fleet.calls(), (1, 1));
}

#[test]
fn health_names_the_root_or_the_store_that_is_down() {
    let fleet = Fleet::new();
    let process = fleet.process();
    let health = || {
        let mut health = block_on(process.envelope.health());
        assert_eq!((health.len(), health[0].0.as_str()), (1, "branch:orders"));
        health.remove(0).1
    };
    health().unwrap();
    fleet.store.fail_with(StoreErrorClass::Unavailable);
    let error = health().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("key store memory"), "{error}");
    fleet.store.fail_with(None);
    fleet.root.fail_with(Unavailable);
    assert_eq!(kind(health()), ErrorKind::Unavailable);
}
