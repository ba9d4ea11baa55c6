//! Erasure: what was written under a branch cannot be read any more.

use waxseal::store::StoreErrorClass::Unavailable;
use waxseal::store::scripted::Act;
use waxseal::store::{Erasure, KeyRow};
use waxseal::{Aad, ErrorKind};
use waxseal_testing::support::{block_on, context};

use super::ground::{DAY, Fleet, Process, kind, secs};

fn erase(process: &Process, tenant: &str) -> Erasure {
    block_on(process.kek.erase([("tenant", tenant)])).unwrap()
}

#[test]
fn an_erased_branch_is_denied_here_at_once_and_elsewhere_within_max_age() {
    let fleet = Fleet::new();
    let (here, elsewhere) = (fleet.process(), fleet.process());
    let (sealed, of_bob) = (here.seal("alice"), here.seal("bob"));
    let other_envelope = fleet.envelope(&here.kek).build().unwrap();
    elsewhere.open("alice", &sealed).unwrap();
    elsewhere.open("bob", &of_bob).unwrap();
    let alice = context("alice");
    let opening = block_on(here.envelope.decryptor(&alice, &sealed)).unwrap();
    let sealing = block_on(other_envelope.encryptor(&alice)).unwrap();
    let opening_elsewhere = block_on(elsewhere.envelope.decryptor(&alice, &sealed)).unwrap();

    assert_eq!(erase(&here, "alice"), Erasure { erased: 1, already_erased: 0 });
    assert_eq!(kind(here.open("alice", &sealed)), ErrorKind::Denied);
    let error = here.open("alice", &sealed).unwrap_err();
    assert!(error.to_string().contains("erased"), "{error}");
    assert_eq!(kind(opening.decrypt(Aad::empty(), &sealed)), ErrorKind::Expired);
    assert_eq!(kind(sealing.encrypt(Aad::empty(), b"x")), ErrorKind::Expired);
    assert_eq!(here.branch_log.count("Erased"), 1);

    // In the other process, nothing was asked yet.
    fleet.clock.advance(secs(301));
    assert_eq!(kind(elsewhere.open("alice", &sealed)), ErrorKind::Denied);
    assert_eq!(kind(opening_elsewhere.decrypt(Aad::empty(), &sealed)), ErrorKind::Expired);
    assert_eq!(kind(fleet.process().open("alice", &sealed)), ErrorKind::Denied);
    for process in [&here, &elsewhere] {
        process.open("bob", &of_bob).unwrap();
        process.seal("bob");
    }
}

#[test]
fn a_renewal_elsewhere_notices_the_erasure_and_ends_what_is_in_use() {
    let fleet = Fleet::new();
    let (here, elsewhere) = (fleet.process(), fleet.process());
    let sealed = here.seal("alice");
    let opening = block_on(elsewhere.envelope.decryptor(&context("alice"), &sealed)).unwrap();
    erase(&here, "alice");
    opening.decrypt(Aad::empty(), &sealed).unwrap();
    fleet.clock.advance(secs(241));
    assert_eq!(kind(elsewhere.open("alice", &sealed)), ErrorKind::Denied);
    assert_eq!(kind(opening.decrypt(Aad::empty(), &sealed)), ErrorKind::Expired);
}

#[test]
fn rows_become_tombstones_of_the_same_place_and_a_later_write_begins_a_new_epoch() {
    let fleet = Fleet::new();
    let process = fleet.process();
    let mut all = Vec::new();
    for epoch in 0..4 {
        all.push(process.seal("alice"));
        all.push(fleet.process().seal("alice"));
        let rows = fleet.rows();
        assert_eq!(rows.len(), epoch + 1);
        let erasure = erase(&process, "alice");
        assert_eq!((erasure.erased, erasure.already_erased), (1, u64::try_from(epoch).unwrap()));
        assert_eq!(erase(&process, "alice").erased, 0, "twice");
        let after = fleet.rows();
        assert!(after.iter().all(waxseal::store::StoredRow::is_tombstone));
        for row in rows {
            let now = after.iter().find(|now| now.id() == row.id()).unwrap();
            assert_eq!(now.place(), row.place());
            assert_eq!(now.row().unwrap().wrapped_keys(), None);
            assert_eq!(now.row().unwrap().context(), None);
        }
    }
    let mut epochs: Vec<_> = fleet.rows().iter().map(|row| row.place().unwrap().epoch).collect();
    epochs.sort_unstable();
    assert_eq!(epochs, [0, 1, 2, 3]);
    let last = process.seal("alice");
    process.open("alice", &last).unwrap();
    for process in [&process, &fleet.process()] {
        for sealed in &all {
            assert_eq!(kind(process.open("alice", sealed)), ErrorKind::Denied);
        }
        process.open("alice", &last).unwrap();
    }
}

#[test]
fn keys_of_every_period_are_erased() {
    let fleet = Fleet::new();
    let process = fleet.process();
    let sealed: Vec<_> = (0..5)
        .map(|_| {
            fleet.clock.advance(DAY * 30);
            process.seal("alice")
        })
        .collect();
    assert_eq!(erase(&process, "alice").erased, 5);
    for sealed in &sealed {
        assert_eq!(kind(process.open("alice", sealed)), ErrorKind::Denied);
    }
}

/// The message with its branch key in it, as a process without a store would have written it.
fn self_contained(fleet: &Fleet, process: &Process) -> (Vec<u8>, KeyRow) {
    use waxseal::WrappedDek;
    use waxseal_testing::support::stage::{entries_of, with_entries};

    let sealed = process.seal("alice");
    let row = fleet.rows().into_iter().find(|row| !row.is_tombstone()).unwrap().row().unwrap();
    let entry = entries_of(&sealed)[0].clone();
    let bytes = row.to_bytes();
    let len = u16::try_from(bytes.len()).unwrap().to_le_bytes();
    let carried = [&[3, 1][..], &len, &bytes, &entry.wrapped()[1..]].concat();
    let entry = WrappedDek::new(entry.kek_id().clone(), carried).unwrap();
    (with_entries(&sealed, [entry]), row)
}

#[test]
fn a_wrapped_branch_key_that_somebody_kept_undoes_no_erasure() {
    let fleet = Fleet::new();
    let here = fleet.process();
    let (kept, _) = self_contained(&fleet, &here);
    let elsewhere = fleet.process();
    here.open("alice", &kept).unwrap();
    here.envelope.evict_all();
    here.kek.evict_all();
    here.open("alice", &kept).unwrap();
    elsewhere.open("alice", &kept).unwrap();
    let opening = block_on(here.envelope.decryptor(&context("alice"), &kept)).unwrap();
    erase(&here, "alice");
    assert_eq!(kind(opening.decrypt(Aad::empty(), &kept)), ErrorKind::Expired, "at once, here");
    assert_eq!(kind(here.open("alice", &kept)), ErrorKind::Denied);
    fleet.clock.advance(secs(301));
    assert_eq!(kind(elsewhere.open("alice", &kept)), ErrorKind::Denied);
    assert_eq!(kind(fleet.process().open("alice", &kept)), ErrorKind::Denied);
}

#[test]
fn an_erasure_that_fails_half_way_is_complete_when_it_is_repeated() {
    let fleet = Fleet::new();
    let process = fleet.process();
    let sealed = process.seal("alice");
    for act in [Act::Fail(Unavailable), Act::LoseAnswer(Unavailable)] {
        fleet.store.script([act]);
        let error = block_on(process.kek.erase([("tenant", "alice")])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("key store"), "{error}");
        assert_eq!(process.branch_log.count("Erased"), 0);
        assert!(!process.is_cached("alice", &sealed), "it may have erased some");
    }
    let erasure = erase(&process, "alice");
    assert_eq!(erasure, Erasure { erased: 0, already_erased: 1 }, "the lost answer did it");
    assert_eq!(process.branch_log.count("Erased"), 1);
    assert_eq!(kind(process.open("alice", &sealed)), ErrorKind::Denied);
}

#[test]
fn erasure_needs_the_pairs_of_the_branch_and_a_store() {
    let fleet = Fleet::new();
    let process = fleet.process();
    let sealed = process.seal("alice");
    let alone = fleet.self_contained();
    let no_pairs: [(&str, &str); 0] = [];
    for pairs in [&no_pairs[..], &[("table", "cards")], &[("tenant", "alice"), ("table", "cards")]]
    {
        let error = block_on(process.kek.erase(pairs.iter().copied())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidContext, "{pairs:?}");
    }
    let error = block_on(alone.kek.erase([("tenant", "alice")])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    process.open("alice", &sealed).unwrap();
    assert_eq!(erase(&process, "nobody"), Erasure::default());
}

#[test]
fn a_write_that_is_under_way_while_its_branch_is_erased_uses_the_new_key() {
    let fleet = Fleet::new();
    let process = fleet.process();
    let old = process.seal("alice");
    process.kek.evict_all();
    let (kek, asked) = (process.kek.clone(), std::sync::atomic::AtomicBool::new(false));
    fleet.root.wait_for(move || {
        // While the root is asked for the old key.
        if !asked.swap(true, std::sync::atomic::Ordering::SeqCst) {
            block_on(kek.erase([("tenant", "alice")])).unwrap();
        }
        Box::pin(async {})
    });
    let sealed = process.seal("alice");
    process.open("alice", &sealed).unwrap();
    assert_eq!(kind(process.open("alice", &old)), ErrorKind::Denied);
    assert_eq!(fleet.rows().len(), 2);
    fleet.process().open("alice", &sealed).unwrap();
}
