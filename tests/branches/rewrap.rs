//! Rewrapping branch keys, and messages to and from a branch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use waxseal::branch::BranchKek;
use waxseal::kek::KekErrorClass::{Denied, Unavailable};
use waxseal::kek::scripted::ScriptedKek;
use waxseal::store::{KeyRow, KeyStore, RewrapOptions, RewrapProgress, StoredRow};
use waxseal::{Aad, Envelope, ErrorKind};
use waxseal_testing::support::stage::entries_of;
use waxseal_testing::support::{block_on, context};

use super::ground::{DAY, Fleet, Process, kek_id, kind, secs};

const TENANTS: [&str; 5] = ["alice", "bob", "carol", "dave", "erin"];

fn rewrap(kek: &BranchKek) -> RewrapProgress {
    block_on(kek.rewrap_branch_keys(RewrapOptions::default(), |_| {})).unwrap()
}

/// Messages of five tenants in three periods.
fn history(fleet: &Fleet) -> Vec<(&'static str, Vec<u8>)> {
    let mut sealed = Vec::new();
    for _ in 0..3 {
        for tenant in TENANTS {
            sealed.push((tenant, fleet.process().seal(tenant)));
        }
        fleet.clock.advance(DAY * 30);
    }
    sealed
}

fn open_all(process: &Process, sealed: &[(&str, Vec<u8>)]) {
    for (tenant, sealed) in sealed {
        process.open(tenant, sealed).unwrap();
    }
}

fn versions(fleet: &Fleet) -> Vec<u8> {
    let version = |row: &StoredRow| {
        let row = row.row().unwrap();
        row.wrapped_keys().map(|keys| keys.entries()[0].wrapped()[0])
    };
    let mut versions: Vec<_> = fleet.rows().iter().filter_map(version).collect();
    versions.dedup();
    versions
}

#[test]
fn a_rotation_of_the_root_rewraps_rows_and_no_message() {
    let fleet = Fleet::new();
    let sealed = history(&fleet);
    let process = fleet.process();
    open_all(&process, &sealed);
    let done = rewrap(&process.kek);
    assert_eq!((done.current, done.rewrapped, done.failed), (15, 0, 0));
    fleet.root.local().rotate().unwrap();
    for (_, sealed) in &sealed {
        assert!(!process.envelope.needs_rewrap(sealed).unwrap(), "messages need nothing");
    }
    let done = rewrap(&process.kek);
    assert_eq!((done.current, done.rewrapped, done.failed, done.skipped), (0, 15, 0, 0));
    assert_eq!(versions(&fleet).len(), 1);
    assert_eq!(rewrap(&process.kek).current, 15, "a repetition has nothing to do");
    fleet.clock.advance(secs(301));
    open_all(&process, &sealed);
    open_all(&fleet.process(), &sealed);
}

#[test]
fn another_root_takes_over_and_the_old_one_can_be_disabled() {
    let fleet = Fleet::new();
    let sealed = history(&fleet);
    let erased = fleet.process();
    block_on(erased.kek.erase([("tenant", "erin")])).unwrap();
    let new = ScriptedKek::new("new").unwrap();
    let successor = Fleet { root: new.clone(), ..Fleet::new() };
    let successor = Fleet { store: fleet.store.clone(), clock: fleet.clock.clone(), ..successor };
    let moving = successor.process_with(|b| b.unwrap_with(fleet.root.clone()), |e| e);
    let (of_erin, sealed): (Vec<_>, Vec<_>) =
        sealed.into_iter().partition(|(tenant, _)| *tenant == "erin");
    open_all(&moving, &sealed);
    let done = rewrap(&moving.kek);
    assert_eq!((done.rewrapped, done.skipped, done.failed), (12, 3, 0));
    fleet.root.fail_with(Denied);
    let calls = fleet.calls();
    for process in [&moving, &successor.process()] {
        process.kek.evict_all();
        open_all(process, &sealed);
        process.seal("alice");
        for (tenant, sealed) in &of_erin {
            assert_eq!(kind(process.open(tenant, sealed)), ErrorKind::Denied);
        }
    }
    assert_eq!(fleet.calls(), calls, "the old root is not asked");
    for row in fleet.rows().iter().filter(|row| !row.is_tombstone()) {
        let row = row.row().unwrap();
        let ids: Vec<_> =
            row.wrapped_keys().unwrap().entries().iter().map(|e| e.kek_id().clone()).collect();
        assert_eq!(ids, [kek_id("local:new")]);
    }
}

#[test]
fn a_walk_that_stops_goes_on_where_it_was() {
    let fleet = Fleet::new();
    let sealed = history(&fleet);
    fleet.root.local().rotate().unwrap();
    let process = fleet.process();
    let (mut rewrapped, mut seen) = (0, Vec::new());
    let mut cursor = None;
    for page in 0.. {
        let mut options = RewrapOptions::default().page(4);
        if let Some(cursor) = cursor.take() {
            options = options.after(cursor);
        }
        // The store stops after each page.
        fleet.store.script([waxseal::store::scripted::Act::Succeed; 5]);
        let failing = fleet.store.clone();
        let mut last = None;
        let result = block_on(process.kek.rewrap_branch_keys(options, |progress| {
            last = Some(progress.clone());
            failing.fail_with(waxseal::store::StoreErrorClass::Unavailable);
        }));
        fleet.store.fail_with(None);
        let progress = last.unwrap();
        rewrapped += progress.rewrapped;
        seen.push(progress.rewrapped);
        match result {
            Ok(done) => {
                assert_eq!(done.next, None);
                break;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
        }
        cursor = progress.next;
        assert!(cursor.is_some() && page < 10);
    }
    assert_eq!(rewrapped, 15, "{seen:?}");
    open_all(&fleet.process(), &sealed);
}

#[test]
fn an_outage_of_the_root_stops_the_walk_and_a_damaged_row_is_counted() {
    let fleet = Fleet::new();
    let sealed = history(&fleet);
    fleet.root.local().rotate().unwrap();
    let process = fleet.process();
    fleet.root.fail_with(Unavailable);
    let result = block_on(process.kek.rewrap_branch_keys(RewrapOptions::default(), |_| {}));
    assert_eq!(kind(result), ErrorKind::Unavailable);
    fleet.root.fail_with(None);

    // A row whose wrapped key is of no known root, and one that is not a row.
    let rows = fleet.rows();
    let spoil = |row: &StoredRow, bytes: Vec<u8>| {
        let new = StoredRow::from_parts(*row.id(), row.place().copied(), bytes);
        assert!(block_on(fleet.store.store().replace(row, &new)).unwrap());
    };
    let mut damaged = rows[3].as_bytes().to_vec();
    let within_the_tag = damaged.len() - 10;
    damaged[within_the_tag] ^= 1;
    spoil(&rows[3], damaged.clone());
    spoil(&rows[7], b"nonsense".to_vec());
    let done = rewrap(&process.kek);
    assert_eq!((done.rewrapped, done.failed, done.next), (13, 2, None));
    assert!(done.first_failure.is_some());
    let now = fleet.rows();
    assert_eq!(now[3].as_bytes(), damaged, "unchanged");
    assert_eq!(process.branch_log.count("DamagedRow"), 1);
    let readable = sealed.iter().filter(|(t, s)| fleet.process().open(t, s).is_ok()).count();
    assert_eq!(readable, 13);
}

#[test]
fn rows_of_other_names_and_kinds_are_left_alone() {
    let fleet = Fleet::new();
    let other = fleet.process_with(|b| b.name("others"), |e| e.key_store(fleet.store.clone()));
    other.seal("alice");
    let process = fleet.process();
    process.seal("alice");
    fleet.root.local().rotate().unwrap();
    let before = fleet.rows();
    let done = rewrap(&process.kek);
    assert_eq!((done.rewrapped, done.skipped), (1, 2));
    let changed = fleet.rows().iter().filter(|row| !before.contains(row)).count();
    assert_eq!(changed, 1);
}

#[test]
fn without_a_store_there_is_nothing_to_walk() {
    let kek = Fleet::new().self_contained().kek;
    let result = block_on(kek.rewrap_branch_keys(RewrapOptions::default(), |_| {}));
    assert_eq!(kind(result), ErrorKind::InvalidOption);
}

#[test]
fn makers_rewrappers_and_erasers_lose_no_update_and_raise_nothing_from_the_dead() {
    let fleet = Arc::new(Fleet::new());
    let stop = AtomicBool::new(false);
    let tombstones = std::sync::Mutex::new(std::collections::HashMap::new());
    let watch = || {
        for row in fleet.rows() {
            let mut dead = tombstones.lock().unwrap();
            match row.is_tombstone() {
                true => _ = dead.insert(*row.id(), ()),
                false => assert!(!dead.contains_key(row.id()), "a live row over a tombstone"),
            }
        }
    };
    let (mut rewrapped, mut erased, mut written) = (0, 0, 0);
    std::thread::scope(|threads| {
        let makers: Vec<_> = (0..2)
            .map(|_| {
                threads.spawn(|| {
                    let mut sealed = 0;
                    while !stop.load(Ordering::SeqCst) {
                        let process = fleet.process();
                        for tenant in TENANTS {
                            match process.seal_for(&context(tenant)) {
                                Ok(_) => sealed += 1,
                                // Erased between making and using it, three times in a row.
                                Err(error) => assert!(
                                    [ErrorKind::Unavailable, ErrorKind::Misconfigured]
                                        .contains(&error.kind()),
                                    "{error}"
                                ),
                            }
                        }
                    }
                    sealed
                })
            })
            .collect();
        let rewrappers: Vec<_> = (0..2)
            .map(|_| {
                threads.spawn(|| {
                    let (process, mut rewrapped) = (fleet.process(), 0);
                    while !stop.load(Ordering::SeqCst) {
                        fleet.root.local().rotate().unwrap();
                        let options = RewrapOptions::default().page(16);
                        match block_on(process.kek.rewrap_branch_keys(options, |_| {})) {
                            Ok(done) => {
                                assert_eq!(done.failed, 0, "{:?}", done.first_failure);
                                rewrapped += done.rewrapped;
                            }
                            // A row that keeps changing.
                            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
                        }
                    }
                    rewrapped
                })
            })
            .collect();
        let eraser = threads.spawn(|| {
            let (process, mut erased) = (fleet.process(), 0);
            while !stop.load(Ordering::SeqCst) {
                for tenant in TENANTS {
                    erased += block_on(process.kek.erase([("tenant", tenant)])).unwrap().erased;
                }
                watch();
            }
            erased
        });
        std::thread::sleep(secs(3));
        stop.store(true, Ordering::SeqCst);
        written = makers.into_iter().map(|maker| maker.join().unwrap()).sum();
        rewrapped = rewrappers.into_iter().map(|rewrapper| rewrapper.join().unwrap()).sum::<u64>();
        erased = eraser.join().unwrap();
    });
    watch();
    println!(
        "{written} messages, {rewrapped} rewrapped, {erased} erased, {} rows",
        fleet.rows().len()
    );
    assert!(rewrapped > 0 && erased > 0);
    // One live key at most for each tenant, and each opens.
    let live = fleet.rows().iter().filter(|row| !row.is_tombstone()).count();
    assert!(live <= TENANTS.len(), "{live}");
    let process = fleet.process();
    for tenant in TENANTS {
        let sealed = process.seal(tenant);
        fleet.process().open(tenant, &sealed).unwrap();
    }
}

#[test]
fn a_row_that_another_rewrapper_changed_meanwhile_is_read_again() {
    let fleet = Fleet::new();
    let sealed = history(&fleet);
    fleet.root.local().rotate().unwrap();
    let process = fleet.process();
    // A second one does it all while the first waits for the root.
    let (other, once) = (fleet.process(), AtomicBool::new(false));
    fleet.root.wait_for(move || {
        if !once.swap(true, Ordering::SeqCst) {
            assert_eq!(rewrap(&other.kek).rewrapped, 15);
        }
        Box::pin(async {})
    });
    let done = rewrap(&process.kek);
    assert_eq!((done.rewrapped + done.current, done.failed), (15, 0));
    open_all(&fleet.process(), &sealed);
}

#[test]
fn an_erasure_during_a_rewrap_wins() {
    let fleet = Fleet::new();
    let sealed = fleet.process().seal("alice");
    fleet.root.local().rotate().unwrap();
    let (process, eraser) = (fleet.process(), fleet.process());
    let once = AtomicBool::new(false);
    fleet.root.wait_for(move || {
        if !once.swap(true, Ordering::SeqCst) {
            block_on(eraser.kek.erase([("tenant", "alice")])).unwrap();
        }
        Box::pin(async {})
    });
    let done = rewrap(&process.kek);
    assert_eq!((done.rewrapped, done.skipped, done.failed), (0, 1, 0));
    assert!(fleet.rows()[0].is_tombstone());
    assert_eq!(kind(process.open("alice", &sealed)), ErrorKind::Denied);
}

#[test]
fn a_message_moves_from_a_root_to_a_branch_and_back() {
    let fleet = Fleet::new();
    let plain = ScriptedKek::new("plain").unwrap();
    let by_plain = Envelope::builder().wrap_with(plain.clone()).build().unwrap();
    let alice = context("alice");
    let sealed = block_on(by_plain.encrypt(&alice, Aad::empty(), b"payload")).unwrap();
    let process = fleet.process_with(|b| b, |e| e.unwrap_with(plain.clone()));
    assert!(process.envelope.needs_rewrap(&sealed).unwrap());
    let moved = block_on(process.envelope.rewrap(&alice, &sealed)).unwrap();
    let entries = entries_of(&moved);
    assert_eq!((entries.len(), entries[0].wrapped().len()), (1, 89));
    assert!(!process.envelope.needs_rewrap(&moved).unwrap());
    plain.fail_with(Denied);
    fleet.process().open("alice", &moved).unwrap();
    plain.fail_with(None);
    // And back.
    let back = Envelope::builder()
        .clock(fleet.clock.clone())
        .wrap_with(plain.clone())
        .unwrap_with(process.kek.clone())
        .build()
        .unwrap();
    let derived = process.seal("alice");
    for message in [&derived[..], &moved[..]] {
        assert!(back.needs_rewrap(message).unwrap());
        let returned = block_on(back.rewrap(&alice, message)).unwrap();
        let opened = block_on(by_plain.decrypt(&alice, Aad::empty(), &returned[..]));
        assert_eq!(&*opened.unwrap(), b"payload");
    }
}

#[test]
fn a_self_contained_message_is_current_as_its_roots_are() {
    let fleet = Fleet::new();
    let alone = fleet.self_contained();
    let alice = context("alice");
    let sealed = alone.seal("alice");
    assert!(!alone.envelope.needs_rewrap(&sealed).unwrap());
    fleet.root.local().rotate().unwrap();
    assert!(alone.envelope.needs_rewrap(&sealed).unwrap());
    let current = block_on(alone.envelope.rewrap(&alice, &sealed)).unwrap();
    assert!(!alone.envelope.needs_rewrap(&current).unwrap());
    alone.open("alice", &current).unwrap();
    // A process with a store reads it, and afterwards it needs no store.
    let process = fleet.process();
    assert!(process.envelope.needs_rewrap(&current).unwrap());
    let stored = block_on(process.envelope.rewrap(&alice, &current)).unwrap();
    assert!(!process.envelope.needs_rewrap(&stored).unwrap());
    fleet.process().open("alice", &stored).unwrap();
}

#[test]
fn a_self_contained_branch_key_follows_the_roots_version_with_its_next_renewal() {
    let fleet = Fleet::new();
    let alone = fleet.self_contained();
    let old = alone.seal("alice");
    fleet.root.local().rotate().unwrap();
    fleet.clock.advance(secs(301));
    let new = alone.seal("alice");
    assert!(alone.envelope.needs_rewrap(&old).unwrap());
    assert!(!alone.envelope.needs_rewrap(&new).unwrap());
    for sealed in [&old, &new] {
        alone.open("alice", sealed).unwrap();
        fleet.self_contained().open("alice", sealed).unwrap();
    }
}

/// A cached branch key opens the message, whatever version of the root its entry claims.
#[test]
fn a_rewrap_believes_no_version_that_a_self_contained_message_claims() {
    let fleet = Fleet::new();
    let alone = fleet.self_contained();
    let alice = context("alice");
    let sealed = alone.seal("alice");
    fleet.root.local().rotate().unwrap();
    // The version of a local KEK is before its nonce.
    let entry = entries_of(&sealed)[0].clone();
    let row = entry.wrapped()[4..entry.wrapped().len() - 32].to_vec();
    let keys = KeyRow::try_from(&row[..]).unwrap();
    let of_root = keys.wrapped_keys().unwrap().entries()[0].wrapped().to_vec();
    let at = entry.wrapped().windows(of_root.len()).position(|part| part == of_root).unwrap();
    let mut forged = entry.wrapped().to_vec();
    forged[at] = 2;
    let forged = waxseal::WrappedDek::new(entry.kek_id().clone(), forged).unwrap();
    let forged = waxseal_testing::support::stage::with_entries(&sealed, [forged]);
    alone.open("alice", &forged).unwrap();
    // No KEK unwraps this entry, so it is not kept.
    assert!(fleet.self_contained().open("alice", &forged).is_err());
    let mended = block_on(alone.envelope.rewrap(&alice, &forged)).unwrap();
    fleet.self_contained().open("alice", &mended).unwrap();
    let good = block_on(alone.envelope.rewrap(&alice, &sealed)).unwrap();
    fleet.self_contained().open("alice", &good).unwrap();
}

#[test]
fn a_row_that_was_restored_over_its_rewrap_is_rewrapped_again() {
    let fleet = Fleet::new();
    let sealed = fleet.process().seal("alice");
    let old = fleet.rows().remove(0);
    fleet.root.local().rotate().unwrap();
    let process = fleet.process();
    assert_eq!(rewrap(&process.kek).rewrapped, 1);
    let new = fleet.rows().remove(0);
    assert!(block_on(fleet.store.store().replace(&new, &old)).unwrap());
    assert_eq!(rewrap(&process.kek).rewrapped, 1);
    process.open("alice", &sealed).unwrap();
}
