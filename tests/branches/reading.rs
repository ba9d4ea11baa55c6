//! What a cold read costs, in calls to the root and reads of the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use waxseal::kek::local::LocalKek;
use waxseal::kek::scripted::ScriptedKek;
use waxseal::{Aad, Envelope, ErrorKind, WrappedKeys};
use waxseal_testing::support::stage::entries_of;
use waxseal_testing::support::{block_on, context, local};

use super::ground::{DAY, Fleet, kind, secs, table};

/// Seals `count` messages with as many DEKs of one branch.
fn history(fleet: &Fleet, count: usize) -> Vec<Vec<u8>> {
    let writer = fleet.process();
    (0..count).map(|at| writer.seal_for(&table("acme", at)).unwrap()).collect()
}

#[test]
fn a_thousand_deks_of_one_branch_key_cost_one_unwrap_and_one_read_of_the_store() {
    let fleet = Fleet::new();
    let sealed = history(&fleet, 1000);
    assert_eq!((fleet.calls(), fleet.rows().len()), ((1, 1), 1), "made, unwrapped, stored");
    let (calls, before) = (fleet.calls(), fleet.store.calls());
    let reader = fleet.process();
    for (at, sealed) in sealed.iter().enumerate() {
        reader.open_for(&table("acme", at), sealed).unwrap();
    }
    assert_eq!(fleet.calls(), (calls.0, calls.1 + 1));
    let after = fleet.store.calls();
    assert_eq!((after.gets, after.total()), (before.gets + 1, before.total() + 1));

    // The branch key is cached now: neither a new DEK nor an old one needs a call.
    for (at, sealed) in sealed.iter().enumerate() {
        reader.envelope.evict_all();
        reader.open_for(&table("acme", at), sealed).unwrap();
    }
    assert_eq!((fleet.calls().1, fleet.store.calls()), (calls.1 + 1, after));
}

#[test]
fn envelopes_share_branch_keys_and_processes_share_rows() {
    let fleet = Fleet::new();
    let one = fleet.process();
    let other = fleet.envelope(&one.kek).build().unwrap();
    let alice = context("alice");
    let sealed = one.seal("alice");
    let calls = (fleet.calls(), fleet.store.calls());
    let plaintext = block_on(other.decrypt(&alice, Aad::empty(), &sealed)).unwrap();
    assert_eq!(&*plaintext, b"payload");
    let back = block_on(other.encrypt(&alice, Aad::empty(), b"payload")).unwrap();
    assert_ne!(sealed[8..40], back[8..40], "DEKs for writing are not shared");
    one.open("alice", &back).unwrap();
    assert_eq!((fleet.calls(), fleet.store.calls()), calls, "two envelopes over one branch KEK");

    let elsewhere = fleet.process();
    elsewhere.open("alice", &sealed).unwrap();
    one.open("alice", &elsewhere.seal("alice")).unwrap();
    assert_eq!(fleet.rows().len(), 1, "two processes");
    assert_eq!(fleet.calls().0, 1, "nobody made another branch key");
}

#[test]
fn a_derived_dek_costs_118_bytes_a_message_and_50_of_wrapped_keys() {
    let fleet = Fleet::new();
    let sealed = fleet.process().seal("alice");
    assert_eq!(sealed.len() - b"payload".len(), 118);
    assert_eq!(WrappedKeys::new(entries_of(&sealed)).unwrap().as_bytes().len(), 50);
    assert_eq!(entries_of(&sealed)[0].wrapped().len(), 33);
    assert_eq!(entries_of(&sealed)[0].kek_id().as_str(), "branch:orders");
}

#[test]
fn what_another_kek_wraps_too_opens_by_either_whichever_comes_first() {
    for branch_first in [true, false] {
        let fleet = Fleet::new();
        let other = ScriptedKek::new("other").unwrap();
        let kek = fleet.branch().store(fleet.store.clone()).build().unwrap();
        let builder = Envelope::builder().clock(fleet.clock.clone());
        let both = match branch_first {
            true => builder.wrap_with(kek.clone()).wrap_with(other.clone()),
            false => builder.wrap_with(other.clone()).wrap_with(kek.clone()),
        };
        let both = both.build().unwrap();
        let alice = context("alice");
        let sealed = block_on(both.encrypt(&alice, Aad::empty(), b"payload")).unwrap();
        assert_eq!(entries_of(&sealed).len(), 2);
        fleet.process().open("alice", &sealed).unwrap();
        let by_other = Envelope::builder().unwrap_with(other.clone()).build().unwrap();
        block_on(by_other.decrypt(&alice, Aad::empty(), &sealed)).unwrap();
    }
}

#[test]
fn a_branch_key_wraps_what_another_branch_derived() {
    let fleet = Fleet::new();
    let (one, other) = (fleet.process(), fleet.process_with(|b| b.name("other"), |e| e));
    let both = fleet.envelope(&one.kek).wrap_with(other.kek.clone()).build().unwrap();
    let alice = context("alice");
    let sealed = block_on(both.encrypt(&alice, Aad::empty(), b"payload")).unwrap();
    let lens: Vec<_> = entries_of(&sealed).iter().map(|entry| entry.wrapped().len()).collect();
    assert_eq!(lens, [33, 89]);
    one.open("alice", &sealed).unwrap();
    other.open("alice", &sealed).unwrap();
    // Neither outlives the branch key of the other.
    block_on(both.decrypt(&alice, Aad::empty(), &sealed)).unwrap();
    let sealing = block_on(both.encryptor(&alice)).unwrap();
    other.kek.evict_all();
    assert_eq!(kind(sealing.encrypt(Aad::empty(), b"x")), ErrorKind::Expired);
    let sealing = block_on(both.encryptor(&alice)).unwrap();
    one.kek.evict_all();
    assert_eq!(kind(sealing.encrypt(Aad::empty(), b"x")), ErrorKind::Expired);
}

#[test]
fn without_a_store_a_message_carries_its_branch_key() {
    let fleet = Fleet::new();
    let (one, other) = (fleet.self_contained(), fleet.self_contained());
    let sealed: Vec<_> = (0..50).map(|at| one.seal_for(&table("acme", at)).unwrap()).collect();
    let calls = fleet.calls();
    for (at, sealed) in sealed.iter().enumerate() {
        other.open_for(&table("acme", at), sealed).unwrap();
    }
    assert_eq!(fleet.calls(), (calls.0, calls.1 + 1), "one unwrap for all of one process");
    // A process with a store reads them as well.
    fleet.process().open_for(&table("acme", 7), &sealed[7]).unwrap();
    assert_eq!(kind(other.open_for(&table("evil", 7), &sealed[7])), ErrorKind::Invalid);
    assert_eq!(fleet.store.calls().inserts, 0);
}

#[test]
fn a_self_contained_branch_key_is_renewed_and_kept_for_its_period() {
    let fleet = Fleet::new();
    let one = fleet.self_contained();
    let carried = |sealed: &[u8]| entries_of(sealed)[0].wrapped().to_vec();
    let row = |sealed: &[u8]| carried(sealed)[4..carried(sealed).len() - 32].to_vec();
    let first = row(&one.seal("alice"));
    for _ in 0..5 {
        fleet.clock.advance(secs(400));
        assert_eq!(row(&one.seal("alice")), first, "the same branch key after a renewal");
    }
    assert_eq!(fleet.calls().0, 1);
    fleet.clock.advance(DAY * 31);
    assert_ne!(row(&one.seal("alice")), first, "another period");
}

#[test]
fn a_branch_key_that_is_too_long_for_a_message_is_said_so_when_it_is_made() {
    let fleet = Fleet::new();
    let (long, short) = ("v".repeat(4096), "v".repeat(3000));
    let pairs = [("tenant", &long), ("region", &short)];
    let context = waxseal::EncryptionContext::new(pairs).unwrap();
    let per = ["tenant", "region"];
    let alone = fleet.branch().per(per).self_contained().build().unwrap();
    let alone = fleet.envelope(&alone).build().unwrap();
    let error = block_on(alone.encrypt(&context, Aad::empty(), b"x")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("use a store"), "{error}");
    let sealed = fleet.process_with(|b| b.per(per), |e| e).seal_for(&context).unwrap();
    fleet.process_with(|b| b.per(per), |e| e).open_for(&context, &sealed).unwrap();
}

#[test]
fn ten_thousand_callers_with_as_many_deks_cause_one_call() {
    const CALLERS: usize = 10_000;
    let fleet = Fleet::new();
    let sealed = history(&fleet, CALLERS);
    let (calls, store) = (fleet.calls(), fleet.store.calls());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let open = Arc::new(AtomicBool::new(false));
    let gate = open.clone();
    // The root answers when all are waiting.
    fleet.root.wait_for(move || {
        let gate = gate.clone();
        Box::pin(async move {
            while !gate.load(Ordering::SeqCst) {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        })
    });
    runtime.block_on(async {
        let reader = Arc::new(fleet.process_with(
            |branch| branch.limits(waxseal::Limits::default()),
            |envelope| envelope.limits(waxseal::Limits::default().max_entries(20_000)),
        ));
        let tasks: Vec<_> = sealed
            .into_iter()
            .enumerate()
            .map(|(at, sealed)| {
                let reader = reader.clone();
                tokio::spawn(async move {
                    let context = table("acme", at);
                    reader.envelope.decrypt(&context, Aad::empty(), &sealed).await.map(drop)
                })
            })
            .collect();
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        open.store(true, Ordering::SeqCst);
        for task in tasks {
            task.await.unwrap().unwrap();
        }
    });
    let after = fleet.store.calls();
    println!(
        "{CALLERS} callers: {} unwraps, {} reads of the store",
        fleet.calls().1 - calls.1,
        after.total() - store.total()
    );
    assert_eq!(fleet.calls().1, calls.1 + 1);
    assert_eq!(after.total(), store.total() + 1);
}

#[test]
fn a_period_is_one_call_and_a_tenant_has_keys_of_its_own() {
    let fleet = Fleet::new();
    let writer = fleet.process();
    let mut sealed = Vec::new();
    for _ in 0..12 {
        for tenant in ["acme", "bob", "carol"] {
            sealed.push((tenant, writer.seal(tenant)));
        }
        fleet.clock.advance(DAY * 30);
    }
    assert_eq!(fleet.rows().len(), 36);
    let (calls, gets) = (fleet.calls().1, fleet.store.calls().gets);
    let reader = fleet.process();
    for _ in 0..3 {
        for (tenant, sealed) in &sealed {
            reader.open(tenant, sealed).unwrap();
        }
    }
    assert_eq!(fleet.calls().1 - calls, 36);
    assert_eq!(fleet.store.calls().gets - gets, 36);
}

#[test]
fn a_branch_is_per_all_its_pairs_and_per_no_other() {
    let fleet = Fleet::new();
    let process = fleet.process_with(|branch| branch.per(["region", "tenant"]), |e| e);
    let of = |region: &str, tenant: &str, table: &str| {
        let pairs = [("region", region), ("tenant", tenant), ("table", table)];
        waxseal::EncryptionContext::new(pairs).unwrap()
    };
    process.seal_for(&of("eu", "a", "x")).unwrap();
    process.seal_for(&of("eu", "a", "y")).unwrap();
    assert_eq!(fleet.rows().len(), 1);
    process.seal_for(&of("us", "a", "x")).unwrap();
    process.seal_for(&of("eu", "b", "x")).unwrap();
    assert_eq!(fleet.rows().len(), 3);
    // No `per`: one branch for all.
    let fleet = Fleet::new();
    let process = fleet.process_with(|branch| branch.per::<&str>([]), |e| e);
    process.seal("alice");
    process.seal("bob");
    process.seal_for(&waxseal::EncryptionContext::empty()).unwrap();
    assert_eq!(fleet.rows().len(), 1);
}

#[test]
fn a_context_without_the_pair_is_refused_by_name_for_writing_and_reading() {
    for process in [Fleet::new().process(), Fleet::new().self_contained()] {
        let without = waxseal::EncryptionContext::new([("table", "cards")]).unwrap();
        let error = process.seal_for(&without).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidContext);
        assert!(error.to_string().contains("\"tenant\""), "{error}");
        let sealed = process.seal("alice");
        // If the DEK is cached, the error says only that the contexts differ.
        let error = process.open_for(&without, &sealed).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let cold = Envelope::builder().unwrap_with(process.kek.clone()).build().unwrap();
        let error = block_on(cold.decrypt(&without, Aad::empty(), &sealed)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidContext);
        assert!(error.to_string().contains("\"tenant\""), "{error}");
        process.open("alice", &sealed).unwrap();
    }
}

#[test]
fn two_fleets_with_other_roots_or_names_read_nothing_of_each_other() {
    let fleet = Fleet::new();
    let sealed = fleet.process().seal("alice");
    let other = Fleet { root: ScriptedKek::over(local("other")), ..Fleet::new() };
    let stranger = Fleet { store: fleet.store.clone(), ..other }.process();
    assert_eq!(kind(stranger.open("alice", &sealed)), ErrorKind::UnknownKek);
    let other_name = fleet.process_with(|branch| branch.name("others"), |e| e);
    assert_eq!(kind(other_name.open("alice", &sealed)), ErrorKind::UnknownKek);
    let plain: LocalKek = fleet.root.local().clone();
    let plain = Envelope::builder().wrap_with(plain).build().unwrap();
    let result = block_on(plain.decrypt(&context("alice"), Aad::empty(), &sealed));
    assert_eq!(kind(result), ErrorKind::UnknownKek);
}
