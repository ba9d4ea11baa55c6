//! A store that lies: nothing decrypts, each failure has its class, and no other key ends.

use std::sync::Arc;

use waxseal::store::scripted::ScriptedStore;
use waxseal::store::{
    BranchId, BranchPlace, KeyKind, KeyRow, KeyStore, MemoryStore, RowId, StoredRow,
};
use waxseal::{DekId, ErrorKind, WrappedDek, WrappedKeys};
use waxseal_testing::support::stage::{entries_of, with_entries};
use waxseal_testing::support::{block_on, context};

use super::ground::{DAY, Fleet, Process, kek_id, kind, secs};

/// A fleet with keys of two tenants in two periods, and a message of each.
struct Scene {
    fleet: Fleet,
    sealed: Vec<(&'static str, Vec<u8>)>,
    rows: Vec<StoredRow>,
}

fn scene() -> Scene {
    let fleet = Fleet::new();
    let (mut sealed, mut rows) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let writer = fleet.process();
        for tenant in ["alice", "bob"] {
            sealed.push((tenant, writer.seal(tenant)));
            let known = |row: &StoredRow| rows.contains(row);
            let new = fleet.rows().into_iter().find(|row| !known(row)).unwrap();
            rows.push(new);
        }
        fleet.clock.advance(DAY * 30);
    }
    Scene { fleet, sealed, rows }
}

fn of(id: &RowId, place: Option<BranchPlace>, row: &StoredRow) -> StoredRow {
    StoredRow::from_parts(*id, place, row.as_bytes())
}

#[test]
fn a_row_in_the_place_of_another_opens_nothing_and_ends_nothing() {
    let Scene { fleet, sealed, rows } = scene();
    for (at, (tenant, message)) in sealed.iter().enumerate() {
        for (_, row) in rows.iter().enumerate().filter(|(other, _)| *other != at) {
            let witness = fleet.process();
            for (tenant, message) in &sealed {
                witness.open(tenant, message).unwrap();
            }
            let reader = fleet.process();
            // The other row as it is, and under our id.
            for whole in [true, false] {
                let (asked, given) = (*rows[at].id(), row.clone());
                fleet.store.lie(move |truth| {
                    let of_us = |row: &StoredRow| *row.id() == asked;
                    let swap = |row: StoredRow| match of_us(&row) {
                        true if whole => given.clone(),
                        true => of(&asked, given.place().copied(), &given),
                        false => row,
                    };
                    truth.into_iter().map(swap).collect()
                });
                let told = reader.branch_log.count("DamagedRow");
                assert_eq!(kind(reader.open(tenant, message)), ErrorKind::Misconfigured);
                assert!(reader.branch_log.count("DamagedRow") > told);
                fleet.store.tell_the_truth();
                reader.open(tenant, message).unwrap();
                reader.kek.evict_all();
            }
            for (tenant, message) in &sealed {
                assert!(witness.is_cached(tenant, message));
            }
        }
    }
}

#[test]
fn a_message_that_names_the_key_of_another_tenant_or_none_harms_nobody() {
    let Scene { fleet, sealed, .. } = scene();
    let (victim, message) = &sealed[0];
    let entry = |id: &[u8], kind: u8| {
        let rest = if kind == 1 { 16 } else { 72 };
        let bytes = [&[kind][..], id, &vec![7; rest]].concat();
        WrappedDek::new(kek_id("branch:orders"), bytes).unwrap()
    };
    let of_victim = entries_of(message)[0].wrapped()[1..17].to_vec();
    for warm in [false, true] {
        let reader = fleet.process();
        if warm {
            reader.open(victim, message).unwrap();
        }
        let calls = fleet.calls();
        for kind_of in [1, 2] {
            // Under the attacker's own tenant.
            let forged = with_entries(message, [entry(&of_victim, kind_of)]);
            let result = reader.open("mallory", &forged);
            assert_eq!(kind(result), ErrorKind::Invalid, "kind {kind_of}, warm {warm}");
            // A made-up id.
            let forged = with_entries(message, [entry(&[9; 16], kind_of)]);
            let error = reader.open("mallory", &forged).unwrap_err();
            let expected = if warm { ErrorKind::Invalid } else { ErrorKind::MissingWrappedKeys };
            assert_eq!(error.kind(), expected, "kind {kind_of}, warm {warm}");
        }
        assert_eq!(fleet.calls(), calls, "no root was asked");
        if warm {
            assert!(reader.is_cached(victim, message));
        }
        // Under the victim's own name, with another salt or wrapped key.
        for kind_of in [1, 2] {
            let forged = with_entries(message, [entry(&of_victim, kind_of)]);
            let fresh = fleet.process();
            assert_eq!(kind(fresh.open(victim, &forged)), ErrorKind::Invalid);
            let calls = fleet.calls();
            fresh.open(victim, message).unwrap();
            assert_eq!(fleet.calls(), calls, "the branch key is cached all the same");
        }
        reader.open(victim, message).unwrap();
    }
}

#[test]
fn an_old_row_does_not_stop_writers_and_is_not_written_under() {
    let Scene { fleet, rows, .. } = scene();
    // The store shows alice's first key as the current one, whatever it is asked.
    let old = rows[0].clone();
    let now = fleet.rows().len();
    let place = BranchPlace { period: 60 * 86_400, ..*old.place().unwrap() };
    let lie = StoredRow::from_parts(*old.id(), Some(place), old.as_bytes());
    fleet.store.lie(move |truth| {
        let mut rows = vec![lie.clone()];
        rows.extend(truth);
        rows
    });
    let sealed = fleet.process().seal("alice");
    let named = entries_of(&sealed)[0].wrapped()[1..17].to_vec();
    assert_ne!(named, rows[0].id().as_bytes(), "a key of two periods ago");
    assert_eq!(fleet.rows().len(), now + 1);
}

#[test]
fn a_current_row_of_last_year_makes_nobody_write_under_it() {
    let fleet = Fleet::new();
    fleet.process().seal("alice");
    let old = fleet.rows().remove(0);
    fleet.clock.advance(DAY * 365);
    // It is all the store shows, even if another row is to be inserted.
    let shown = old.clone();
    fleet.store.lie(move |_| vec![shown.clone()]);
    let sealed = fleet.process().seal_for(&context("alice"));
    match sealed {
        Ok(sealed) => assert_ne!(entries_of(&sealed)[0].wrapped()[1..17], old.id().as_bytes()[..]),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Misconfigured, "{error}"),
    }
}

#[test]
fn an_old_row_in_the_place_of_the_present_period_stops_no_writer() {
    let fleet = Fleet::new();
    let sealed = fleet.process().seal("alice");
    let old = fleet.rows().remove(0);
    fleet.clock.advance(DAY * 30);
    let place = BranchPlace { period: 30 * 86_400, ..*old.place().unwrap() };
    let misplaced = StoredRow::from_parts(*old.id(), Some(place), old.as_bytes());
    let store = MemoryStore::new();
    block_on(store.insert(&misplaced)).unwrap();
    let fleet = Fleet { store: ScriptedStore::over(store), ..fleet };
    let process = fleet.process();
    let new = process.seal("alice");
    assert_ne!(entries_of(&new)[0].wrapped()[1..17], old.id().as_bytes()[..]);
    for sealed in [sealed, new] {
        fleet.process().open("alice", &sealed).unwrap();
    }
    assert_eq!(fleet.rows().len(), 2);
}

#[test]
fn rows_of_another_tenant_are_not_written_under() {
    let Scene { fleet, .. } = scene();
    fleet.process().seal("bob");
    let of_bob = fleet.rows().into_iter().find(|row| row.place().unwrap().period == 60 * 86_400);
    let of_bob = of_bob.unwrap();
    fleet.store.lie(move |_| vec![of_bob.clone()]);
    let process = fleet.process();
    let error = process.seal_for(&context("alice")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    assert!(error.to_string().contains("of another branch"), "{error}");
    assert!(process.branch_log.count("DamagedRow") > 0);
}

#[test]
fn a_row_whose_period_begins_in_two_hours_is_neither_read_nor_written_under() {
    let fleet = Fleet::new();
    let ahead = Fleet { root: fleet.root.clone(), store: fleet.store.clone(), ..Fleet::new() };
    fleet.clock.advance(DAY * 30 - secs(7200));
    ahead.clock.advance(DAY * 30);
    let of_tomorrow = ahead.process().seal("alice");
    let process = fleet.process();
    let error = process.open("alice", &of_tomorrow).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    assert!(error.to_string().contains("7200 s from now"), "{error}");
    let sealed = process.seal("alice");
    assert_ne!(
        entries_of(&sealed)[0].wrapped()[1..17],
        entries_of(&of_tomorrow)[0].wrapped()[1..17]
    );
    // Nor one that a message carries, if it is a branch key at all.
    let carried = ahead.self_contained().seal("alice");
    assert_eq!(kind(fleet.self_contained().open("alice", &carried)), ErrorKind::Misconfigured);
    let entry = entries_of(&carried)[0].clone();
    let mut bytes = entry.wrapped().to_vec();
    let at = bytes.len() - 32 - 10;
    bytes[at] ^= 1;
    let forged = WrappedDek::new(entry.kek_id().clone(), bytes).unwrap();
    let forged = with_entries(&carried, [forged]);
    assert_eq!(kind(fleet.self_contained().open("alice", &forged)), ErrorKind::Invalid);
    // Even if the store says that its period began long ago.
    let row = ahead.rows().into_iter().find(|row| row.place().unwrap().period > 0).unwrap();
    let place = BranchPlace { period: 0, ..*row.place().unwrap() };
    let lie = StoredRow::from_parts(*row.id(), Some(place), row.as_bytes());
    fleet.store.lie(move |truth| truth.into_iter().chain([lie.clone()]).collect());
    let sealed = fleet.process().seal("alice");
    assert_ne!(entries_of(&sealed)[0].wrapped()[1..17], row.id().as_bytes()[..]);
}

/// Reads and writes while the store shows `bytes` in the place of a row.
fn with_bytes(fleet: &Fleet, row: &StoredRow, bytes: Vec<u8>) -> Process {
    let lie = StoredRow::from_parts(*row.id(), row.place().copied(), bytes);
    fleet.store.lie(move |truth| {
        truth.into_iter().map(|row| if row.id() == lie.id() { lie.clone() } else { row }).collect()
    });
    fleet.process()
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_row_opens_nothing_and_derives_nothing() {
    let fleet = Fleet::new();
    let writer = fleet.process();
    let sealed = writer.seal("alice");
    let of_bob = writer.seal("bob");
    let rows = fleet.rows();
    let row =
        rows.iter().find(|row| row.id().as_bytes()[..] == entries_of(&sealed)[0].wrapped()[1..17]);
    let row = row.unwrap().clone();
    let bytes = row.as_bytes().to_vec();
    let mut seen = std::collections::BTreeMap::new();
    let mut check = |damaged: Vec<u8>, what: String| {
        let process = with_bytes(&fleet, &row, damaged);
        process.open("bob", &of_bob).unwrap();
        let read = kind(process.open("alice", &sealed));
        let allowed = [
            ErrorKind::Misconfigured,
            ErrorKind::Invalid,
            ErrorKind::Denied,
            // The wrapped key names an unknown root.
            ErrorKind::UnknownKek,
        ];
        assert!(allowed.contains(&read), "{what}: read {read:?}");
        match process.seal_for(&context("alice")) {
            Err(error) => {
                assert!(allowed.contains(&error.kind()), "{what}: write {error}");
                *seen.entry((read.as_str(), error.kind().as_str())).or_insert(0) += 1;
            }
            // A row that the store reports as a tombstone is erased, and a new key is made.
            Ok(written) => {
                let named = entries_of(&written)[0].wrapped()[1..17].to_vec();
                assert_ne!(named, row.id().as_bytes(), "{what}");
                *seen.entry((read.as_str(), "another key")).or_insert(0) += 1;
            }
        }
        process.open("bob", &of_bob).unwrap();
        fleet.store.tell_the_truth();
    };
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        check(damaged, format!("bit {bit}"));
    }
    for len in 0..bytes.len() {
        check(bytes[..len].to_vec(), format!("cut at {len}"));
    }
    check([&bytes[..], &[0]].concat(), "one byte more".to_owned());
    println!("{} bytes: {seen:?}", bytes.len());
    fleet.process().open("alice", &sealed).unwrap();
}

#[test]
fn a_branch_key_that_readers_would_not_find_is_not_written_under() {
    let fleet = Fleet::new();
    fleet.process().seal("alice");
    let row = fleet.rows().remove(0);
    let lie =
        StoredRow::from_parts(RowId::from_bytes([8; 16]), row.place().copied(), row.as_bytes());
    fleet.store.lie(move |_| vec![lie.clone()]);
    assert_eq!(kind(fleet.process().seal_for(&context("alice"))), ErrorKind::Misconfigured);
}

#[test]
fn a_tombstone_under_any_kind_is_denied_and_a_missing_row_is_said_as_such() {
    let fleet = Fleet::new();
    let sealed = fleet.process().seal("alice");
    let row = fleet.rows().remove(0);
    let id = *row.row().unwrap().id();
    for of_kind in [KeyKind::Branch, KeyKind::Dek] {
        let process = with_bytes(&fleet, &row, KeyRow::tombstone(of_kind, id).to_bytes());
        assert_eq!(kind(process.open("alice", &sealed)), ErrorKind::Denied);
    }
    fleet.store.lie(|_| Vec::new());
    let error = fleet.process().open("alice", &sealed).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingWrappedKeys);
    assert!(error.to_string().contains("has no row"), "{error}");
}

#[test]
fn a_live_row_of_another_kind_opens_nothing() {
    let fleet = Fleet::new();
    let sealed = fleet.process().seal("alice");
    let row = fleet.rows().remove(0);
    let live = row.row().unwrap();
    let (context_of, keys) =
        (live.context().unwrap().clone(), live.wrapped_keys().unwrap().clone());
    let as_dek = KeyRow::live(KeyKind::Dek, *live.id(), context_of, keys).to_bytes();
    let process = with_bytes(&fleet, &row, as_dek);
    assert_eq!(kind(process.open("alice", &sealed)), ErrorKind::Invalid);
}

#[test]
fn an_old_copy_in_the_place_of_a_tombstone_opens_what_it_is_a_copy_of_and_nothing_else() {
    let Scene { fleet, sealed, rows } = scene();
    let process = fleet.process();
    block_on(process.kek.erase([("tenant", "alice")])).unwrap();
    // Restoring a backup of the store undoes an erasure, as docs/key-stores.md says. It does
    // nothing else.
    let copy = rows[0].clone();
    fleet.store.lie(move |truth| {
        let restore = |row: StoredRow| if row.id() == copy.id() { copy.clone() } else { row };
        truth.into_iter().map(restore).collect()
    });
    fleet.clock.advance(secs(60));
    let reader = fleet.process();
    for (at, (tenant, message)) in sealed.iter().enumerate() {
        let result = reader.open(tenant, message);
        match (at, *tenant) {
            (0, _) | (_, "bob") => result.unwrap(),
            _ => assert_eq!(kind(result), ErrorKind::Denied),
        }
    }
}

#[test]
fn a_row_that_claims_another_place_is_used_for_what_its_context_says() {
    let fleet = Fleet::new();
    let process = fleet.process();
    let sealed = process.seal("alice");
    let row = fleet.rows().remove(0);
    for place in [
        None,
        Some(BranchPlace { branch: BranchId::from_bytes([1; 32]), period: 1, epoch: 9 }),
        Some(BranchPlace {
            branch: BranchId::from_bytes([1; 32]),
            period: i64::MAX,
            epoch: u32::MAX,
        }),
        Some(BranchPlace { branch: BranchId::from_bytes([1; 32]), period: i64::MIN, epoch: 0 }),
    ] {
        let lie = StoredRow::from_parts(*row.id(), place, row.as_bytes());
        fleet.store.lie(move |_| vec![lie.clone()]);
        let process = fleet.process();
        process.open("alice", &sealed).unwrap();
        let written = process.seal("alice");
        assert_eq!(entries_of(&written)[0].wrapped()[1..17], row.id().as_bytes()[..]);
    }
}

#[test]
fn a_store_that_claims_to_have_inserted_and_shows_nothing_costs_readers_and_no_key() {
    let fleet = Fleet::new();
    fleet.store.lie(|_| Vec::new());
    let process = fleet.process();
    let sealed = process.seal("alice");
    process.open("alice", &sealed).unwrap();
    assert_eq!(kind(fleet.process().open("alice", &sealed)), ErrorKind::MissingWrappedKeys);
    // A writer elsewhere makes another: the place is taken, and is not shown.
    let result = fleet.process().seal_for(&context("alice"));
    match result {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::Misconfigured, "{error}"),
    }
}

#[test]
fn two_rows_that_share_16_bytes_of_their_ids_do_not_open_for_each_other() {
    let fleet = Fleet::new();
    let sealed = fleet.process().seal("alice");
    let row = fleet.rows().remove(0).row().unwrap();
    let mut id = *row.id().as_bytes();
    id[31] ^= 1;
    let keys = WrappedKeys::new(row.wrapped_keys().unwrap().entries().to_vec()).unwrap();
    let twin =
        KeyRow::live(KeyKind::Branch, DekId::from_bytes(id), row.context().unwrap().clone(), keys);
    let store = Arc::new(MemoryStore::new());
    let place = fleet.rows().remove(0).place().copied();
    use waxseal::store::KeyStore;
    block_on(store.insert(&StoredRow::new(&twin, place))).unwrap();
    let kek = fleet.branch().store(store).build().unwrap();
    let envelope = fleet.envelope(&kek).build().unwrap();
    let result = block_on(envelope.decrypt(&context("alice"), waxseal::Aad::empty(), &sealed));
    assert_eq!(kind(result), ErrorKind::Invalid);
}
