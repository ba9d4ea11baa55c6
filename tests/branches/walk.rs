//! Rewrapping the keys of a store, row by row: those of compact messages, and what holds for branch
//! keys too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use waxseal::kek::KekErrorClass::{self, Denied};
use waxseal::kek::local::LocalKek;
use waxseal::kek::scripted::{self, ScriptedKek};
use waxseal::store::scripted::Act;
use waxseal::store::{
    BoxFuture, KeyKind, KeyRow, KeyStore, RewrapOptions, RewrapProgress, RowId, StoreErrorClass,
    StoredRow,
};
use waxseal::{EncryptionContext, Envelope, Error, ErrorKind};
use waxseal_testing::support::stage::Log;
use waxseal_testing::support::{block_on, context};

use super::ground::{Fleet, kek_id, kind, rows_of};
use super::stored::{Shared, compact, open};

fn walk(envelope: &Envelope, options: RewrapOptions) -> Result<RewrapProgress, Error> {
    block_on(envelope.rewrap_stored(options, |_| {}))
}

fn rewrap(envelope: &Envelope) -> RewrapProgress {
    walk(envelope, RewrapOptions::default()).unwrap()
}

/// Rewrapped, current, skipped, failed, unknown.
fn counts(done: &RewrapProgress) -> [u64; 5] {
    [done.rewrapped, done.current, done.skipped, done.failed, done.unknown]
}

/// Compact messages in a store, each of its own DEK.
struct Messages(Vec<(EncryptionContext, Vec<u8>)>);

impl Messages {
    fn of(shared: &Shared, deks: usize) -> Self {
        let writer = shared.envelope();
        let message = |n: usize| {
            let context = context(&format!("tenant {n}"));
            let sealed = compact(&writer, &context).unwrap();
            (context, sealed)
        };
        Self((0..deks).map(message).collect())
    }

    fn assert_open(&self, envelope: &Envelope) {
        for (context, sealed) in &self.0 {
            open(envelope, context, sealed).unwrap();
        }
    }

    fn row_id(&self, n: usize) -> RowId {
        RowId::from_bytes(self.0[n].1[8..24].try_into().unwrap())
    }
}

fn row_of(shared: &Shared, id: &RowId) -> StoredRow {
    block_on(shared.store.store().get(id)).unwrap().unwrap()
}

fn put(shared: &Shared, old: &StoredRow, bytes: &[u8]) {
    let new = StoredRow::from_parts(*old.id(), old.place().copied(), bytes);
    assert!(block_on(shared.store.store().replace(old, &new)).unwrap());
}

/// Another KEK takes over, and the old one unwraps until then.
fn successor(shared: &Shared, new: &LocalKek) -> Envelope {
    let builder = Envelope::builder().wrap_with(new.clone()).unwrap_with(shared.kek.clone());
    builder.key_store(shared.store.clone()).clock(shared.clock.clone()).build().unwrap()
}

#[test]
fn a_rotation_rewraps_every_row_in_batches_and_no_message() {
    let shared = Shared::new();
    let messages = Messages::of(&shared, 300);
    shared.kek.take_batches_of(128);
    shared.kek.local().rotate().unwrap();
    let envelope = shared.envelope();
    let before = shared.kek.calls();
    let mut pages = Vec::new();
    let done = block_on(envelope.rewrap_stored(RewrapOptions::default(), |so_far| {
        pages.push((so_far.rewrapped, so_far.next.is_some()));
    }));
    assert_eq!(counts(&done.unwrap()), [300, 0, 0, 0, 0]);
    assert_eq!(pages, [(256, true), (300, false)]);
    let after = shared.kek.calls();
    assert_eq!((after.rewraps - before.rewraps, after.unwraps - before.unwraps), (3, 3));
    assert_eq!(after.wraps, before.wraps);
    let calls = shared.store.calls();
    assert_eq!((calls.scans, calls.replaces), (2, 300));
    shared.kek.local().retire(1).unwrap();
    messages.assert_open(&shared.envelope());
    // A repetition checks all and changes nothing.
    assert_eq!(counts(&rewrap(&envelope)), [0, 300, 0, 0, 0]);
    assert_eq!((shared.kek.calls().rewraps, shared.store.calls().replaces), (after.rewraps, 300));
}

#[test]
fn another_kek_takes_over_and_the_old_one_can_be_disabled() {
    let shared = Shared::new();
    let messages = Messages::of(&shared, 20);
    let new = LocalKek::in_memory("new").unwrap();
    let done = rewrap(&successor(&shared, &new));
    assert_eq!(counts(&done), [20, 0, 0, 0, 0]);
    shared.kek.fail_with(Denied);
    let calls = shared.kek.calls();
    messages.assert_open(&successor(&shared, &new));
    assert_eq!(shared.kek.calls(), calls, "the old KEK is not asked");
    for row in rows_of(&**shared.store.store()) {
        let row = row.row().unwrap();
        let ids: Vec<_> =
            row.wrapped_keys().unwrap().entries().iter().map(|e| e.kek_id().clone()).collect();
        assert_eq!(ids, [kek_id("local:new")]);
    }
}

#[test]
fn tombstones_and_branch_keys_are_left_as_they_are() {
    let fleet = Fleet::new();
    let process = fleet.process_with(
        |branch| branch,
        |envelope| envelope.key_store(fleet.store.clone()).unwrap_with(fleet.root.clone()),
    );
    // DEKs under a branch, and one under the root itself.
    for tenant in ["alice", "bob"] {
        compact(&process.envelope, &context(tenant)).unwrap();
    }
    let plain = Envelope::builder().wrap_with(fleet.root.clone()).key_store(fleet.store.clone());
    let plain = plain.clock(fleet.clock.clone()).build().unwrap();
    let (erased, kept) = (context("erased"), context("kept"));
    let sealed = [compact(&plain, &erased).unwrap(), compact(&plain, &kept).unwrap()];
    let id = RowId::from_bytes(sealed[0][8..24].try_into().unwrap());
    let row = block_on(fleet.store.store().get(&id)).unwrap().unwrap();
    assert!(block_on(fleet.store.store().replace(&row, &row.tombstone())).unwrap());
    fleet.root.local().rotate().unwrap();
    let before = fleet.rows();
    // DEKs that are derived from a branch key need nothing: the branch key does.
    let done = rewrap(&process.envelope);
    assert_eq!(counts(&done), [1, 2, 3, 0, 0]);
    // The one under the root has moved under its branch, whose key is new.
    let is_new = |row: &&StoredRow| !before.iter().any(|old| old.id() == row.id());
    let after = fleet.rows();
    let (new, old): (Vec<_>, Vec<_>) = after.iter().partition(is_new);
    assert_eq!((new.len(), old.iter().filter(|row| !before.contains(row)).count()), (1, 1));
    open(&process.envelope, &kept, &sealed[1]).unwrap();
    assert_eq!(kind(open(&process.envelope, &erased, &sealed[0])), ErrorKind::Denied);
}

#[test]
fn rows_that_cannot_be_rewrapped_are_told_and_left_as_they_are() {
    let shared = Shared::new();
    let messages = Messages::of(&shared, 12);
    shared.kek.local().rotate().unwrap();
    let rows: Vec<_> = (0..12).map(|n| row_of(&shared, &messages.row_id(n))).collect();
    let mut damaged = rows[1].as_bytes().to_vec();
    let within_the_tag = damaged.len() - 10;
    damaged[within_the_tag] ^= 1;
    put(&shared, &rows[0], b"nonsense");
    put(&shared, &rows[1], &damaged);
    put(&shared, &rows[2], rows[3].as_bytes());
    // Of a KEK that is not configured here.
    let row = rows[4].row().unwrap();
    let foreign = {
        let entry = row.wrapped_keys().unwrap().entries()[0].wrapped().to_vec();
        let entry = waxseal::WrappedDek::new(kek_id("local:foreign"), entry).unwrap();
        let keys = waxseal::WrappedKeys::new([entry]).unwrap();
        KeyRow::live(KeyKind::Dek, *row.id(), row.context().unwrap().clone(), keys)
    };
    put(&shared, &rows[4], &foreign.to_bytes());
    // A branch key's, said to be a DEK's: its context is of the library's own.
    let fleet = Fleet::new();
    fleet.process().seal("alice");
    let of_branch = fleet.rows().remove(0).row().unwrap();
    let disguised = KeyRow::live(
        KeyKind::Dek,
        *of_branch.id(),
        of_branch.context().unwrap().clone(),
        of_branch.wrapped_keys().unwrap().clone(),
    );
    block_on(shared.store.store().insert(&StoredRow::new(&disguised, None))).unwrap();
    let before = rows_of(&**shared.store.store());

    let log = Log::default();
    let envelope = Envelope::builder()
        .wrap_with(shared.kek.clone())
        .key_store(shared.store.clone())
        .observer(log.clone())
        .build()
        .unwrap();
    let done = walk(&envelope, RewrapOptions::default().page(5)).unwrap();
    assert_eq!(counts(&done), [8, 0, 0, 4, 1], "{done:?}");
    assert_eq!(done.next, None);
    assert!(done.first_failure.is_some());
    let unknown = done.first_unknown.unwrap();
    assert_eq!(unknown.kind(), ErrorKind::UnknownKek);
    assert!(unknown.to_string().contains("local:foreign"), "{unknown}");
    assert_eq!(log.count("DamagedRow"), 2, "no row, and the row of another key");
    let unchanged = rows_of(&**shared.store.store()).iter().filter(|r| before.contains(r)).count();
    assert_eq!(unchanged, 5);
    for (n, (context, sealed)) in messages.0.iter().enumerate() {
        let opens = open(&shared.envelope(), context, sealed).is_ok();
        assert_eq!(opens, ![0, 1, 2, 4].contains(&n), "{n}");
    }
}

#[test]
fn a_kek_that_denies_half_of_the_rows_fails_that_half_and_a_repetition_does_it() {
    let shared = Shared::new();
    let messages = Messages::of(&shared, 100);
    shared.kek.take_batches_of(16);
    shared.kek.local().rotate().unwrap();
    shared.kek.fail_where(|context| {
        let is_odd = context.get("tenant").unwrap().as_bytes().last().unwrap() % 2 == 1;
        is_odd.then_some(Denied)
    });
    let done = walk(&shared.envelope(), RewrapOptions::default().page(30)).unwrap();
    assert_eq!((counts(&done), done.next), ([50, 0, 0, 50, 0], None));
    assert_eq!(done.first_failure.unwrap().kind(), ErrorKind::Denied);
    shared.kek.fail_where(|_| None);
    assert_eq!(counts(&rewrap(&shared.envelope())), [50, 50, 0, 0, 0]);
    shared.kek.local().retire(1).unwrap();
    messages.assert_open(&shared.envelope());
}

/// The store or the KEK fails at each of the calls of a walk in turn, and the answer may be lost.
#[test]
fn a_walk_that_an_outage_stops_anywhere_goes_on_from_its_last_cursor_and_does_the_rest() {
    let (mut stops, mut at) = (0, 0);
    loop {
        let shared = Shared::new();
        let messages = Messages::of(&shared, 10);
        shared.kek.take_batches_of(4);
        shared.kek.local().rotate().unwrap();
        let envelope = shared.envelope();
        let fails = match at % 2 {
            0 => Act::Fail(StoreErrorClass::Unavailable),
            _ => Act::LoseAnswer(StoreErrorClass::Throttled),
        };
        shared.store.script(std::iter::repeat_n(Act::Succeed, at / 2).chain([fails]));
        let (mut rewrapped, mut cursor) = (0, None);
        let options = |cursor: Option<_>| {
            let options = RewrapOptions::default().page(4);
            cursor.into_iter().fold(options, RewrapOptions::after)
        };
        let stopped = block_on(envelope.rewrap_stored(options(None), |so_far| {
            (rewrapped, cursor) = (so_far.rewrapped, so_far.next.clone());
        }));
        let Err(error) = stopped else { break };
        assert!(error.is_retryable(), "{error}");
        assert!(error.to_string().contains("key store memory"), "{error}");
        stops += 1;
        let done = block_on(envelope.rewrap_stored(options(cursor.clone()), |_| {})).unwrap();
        // What the page that failed had done already is found current.
        let sum = rewrapped + done.rewrapped + done.current;
        assert_eq!((sum, done.failed, done.skipped), (10, 0, 0), "{at}: {done:?}");
        assert_eq!(counts(&rewrap(&envelope)), [0, 10, 0, 0, 0]);
        shared.kek.local().retire(1).unwrap();
        messages.assert_open(&shared.envelope());
        at += 1;
    }
    // Three scans and ten replacements, each failed and with its answer lost.
    assert_eq!(stops, 26);
}

#[test]
fn an_outage_of_the_kek_stops_the_walk_and_so_does_a_shut_down() {
    let shared = Shared::new();
    let messages = Messages::of(&shared, 10);
    shared.kek.take_batches_of(4);
    shared.kek.local().rotate().unwrap();
    for class in [KekErrorClass::Unavailable, KekErrorClass::Throttled] {
        // Between the second page's rewrap and its check.
        let fine = [scripted::Act::Succeed; 3];
        shared.kek.script(fine.into_iter().chain([scripted::Act::Fail(class)]));
        let mut next = None;
        let stopped =
            block_on(shared.envelope().rewrap_stored(RewrapOptions::default().page(4), |so_far| {
                next = so_far.next.clone();
            }));
        let error = stopped.unwrap_err();
        assert!(error.is_retryable() && next.is_some(), "{error}");
        assert!(error.to_string().contains("local:kek"), "{error}");
        shared.kek.local().rotate().unwrap();
    }
    let envelope = shared.envelope();
    let ended = envelope.clone();
    let scans = shared.store.calls().scans;
    let result = block_on(envelope.rewrap_stored(RewrapOptions::default().page(4), |so_far| {
        assert_eq!(so_far.rewrapped, 4);
        ended.shut_down();
    }));
    assert_eq!(kind(result), ErrorKind::ShutDown);
    assert_eq!(shared.store.calls().scans, scans + 1, "nothing more is read");
    // While the KEK is asked.
    let envelope = shared.envelope();
    let ended = envelope.clone();
    shared.kek.wait_for(move || {
        ended.shut_down();
        Box::pin(std::future::pending())
    });
    assert_eq!(kind(walk(&envelope, RewrapOptions::default())), ErrorKind::ShutDown);
    shared.kek.wait_no_more();
    assert_eq!(rewrap(&shared.envelope()).failed, 0);
    messages.assert_open(&shared.envelope());
}

#[test]
fn whoever_gives_up_in_the_middle_leaves_whole_rows() {
    // The walk hangs at each of its calls of the store, and of the KEK, in turn.
    for (of_store, at) in (0..13).map(|at| (true, at)).chain((0..6).map(|at| (false, at))) {
        let shared = Shared::new();
        let messages = Messages::of(&shared, 10);
        shared.kek.take_batches_of(4);
        shared.kek.local().rotate().unwrap();
        match of_store {
            true => shared.store.script(std::iter::repeat_n(Act::Succeed, at).chain([Act::Hang])),
            false => shared.kek.script(
                std::iter::repeat_n(scripted::Act::Succeed, at).chain([scripted::Act::Hang]),
            ),
        }
        let envelope = shared.envelope();
        {
            let options = RewrapOptions::default().page(4);
            let mut walking = Box::pin(envelope.rewrap_stored(options, |_| {}));
            let mut task = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(walking.as_mut().poll(&mut task).is_pending(), "{of_store} {at}");
        }
        messages.assert_open(&shared.envelope());
        let done = rewrap(&envelope);
        assert_eq!((done.rewrapped + done.current, done.failed), (10, 0), "{of_store} {at}");
        shared.kek.local().retire(1).unwrap();
        messages.assert_open(&shared.envelope());
    }
}

/// What another process does between two calls of a walk.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Other {
    Erases,
    Rewraps,
    RewrapsByAnotherKek,
    Writes,
}

/// Another process acts before each call of a walk in turn, of the KEK or of the store.
#[test]
fn no_race_with_an_eraser_a_writer_or_another_rewrapper_revives_or_loses_a_key() {
    for other in [Other::Erases, Other::Rewraps, Other::RewrapsByAnotherKek, Other::Writes] {
        let mut at = 0;
        loop {
            let shared = Shared::new();
            let messages = Messages::of(&shared, 6);
            shared.kek.take_batches_of(4);
            shared.kek.local().rotate().unwrap();
            let second = LocalKek::in_memory("second").unwrap();
            // They go past the scripts.
            let (store, kek) = (shared.store.store().clone(), shared.kek.local().clone());
            let erased = messages.row_id(2);
            let act = {
                let second = second.clone();
                move || {
                    let builder = Envelope::builder().key_store(store.clone());
                    match other {
                        Other::Erases => {
                            let row = block_on(store.get(&erased)).unwrap().unwrap();
                            assert!(block_on(store.replace(&row, &row.tombstone())).unwrap());
                        }
                        Other::Rewraps => {
                            let envelope = builder.wrap_with(kek.clone()).build().unwrap();
                            assert_eq!(rewrap(&envelope).failed, 0);
                        }
                        Other::RewrapsByAnotherKek => {
                            let builder = builder.wrap_with(kek.clone()).wrap_with(second.clone());
                            assert_eq!(rewrap(&builder.build().unwrap()).failed, 0);
                        }
                        Other::Writes => {
                            let envelope = builder.wrap_with(kek.clone()).build().unwrap();
                            compact(&envelope, &context("new")).unwrap();
                        }
                    }
                }
            };
            let calls = Arc::new(AtomicU64::new(0));
            let hook = {
                let calls = calls.clone();
                move || -> BoxFuture<'static, ()> {
                    if calls.fetch_add(1, Ordering::SeqCst) == at {
                        act();
                    }
                    Box::pin(async {})
                }
            };
            shared.kek.wait_for(hook.clone());
            shared.store.wait_for(hook);
            let done = walk(&shared.envelope(), RewrapOptions::default().page(4)).unwrap();
            shared.kek.wait_no_more();
            shared.store.wait_no_more();
            assert_eq!((done.failed, done.unknown), (0, 0), "{other:?} {at}: {done:?}");
            shared.kek.local().retire(1).unwrap();
            for (n, (context, sealed)) in messages.0.iter().enumerate() {
                let opened = open(&shared.envelope(), context, sealed);
                let acted = calls.load(Ordering::SeqCst) > at;
                match other == Other::Erases && acted && n == 2 {
                    true => assert_eq!(kind(opened), ErrorKind::Denied, "{at}"),
                    false => opened.unwrap(),
                }
            }
            if calls.load(Ordering::SeqCst) <= at {
                assert!(at >= 12, "{other:?}: only {at} calls");
                break;
            }
            at += 1;
        }
    }
}

#[test]
fn a_row_that_changes_all_the_time_stops_the_walk_which_can_be_repeated() {
    let shared = Shared::new();
    let messages = Messages::of(&shared, 3);
    shared.kek.local().rotate().unwrap();
    // A walk that wants a second KEK's entry in every row, which this row lacks.
    let (store, kek) = (shared.store.store().clone(), shared.kek.local().clone());
    let second = LocalKek::in_memory("second").unwrap();
    shared.store.wait_for(move || {
        second.rotate().unwrap();
        let builder = Envelope::builder().wrap_with(kek.clone()).wrap_with(second.clone());
        assert_eq!(rewrap(&builder.key_store(store.clone()).build().unwrap()).failed, 0);
        Box::pin(async {})
    });
    let error = walk(&shared.envelope(), RewrapOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("keeps changing"), "{error}");
    shared.store.wait_no_more();
    assert_eq!(rewrap(&shared.envelope()).failed, 0);
    messages.assert_open(&shared.envelope());
}

#[test]
fn a_store_that_did_it_twice_counts_it_once() {
    let shared = Shared::new();
    let messages = Messages::of(&shared, 2);
    shared.kek.local().rotate().unwrap();
    // A scan, and for each row a replacement and another look.
    shared.store.script([Act::Succeed, Act::Repeat, Act::Succeed, Act::Repeat]);
    // The second try finds what the first has left, which is its own.
    assert_eq!(counts(&rewrap(&shared.envelope())), [2, 0, 0, 0, 0]);
    shared.kek.local().retire(1).unwrap();
    messages.assert_open(&shared.envelope());
}

#[test]
fn without_a_store_or_a_kek_for_writing_no_row_is_touched() {
    let shared = Shared::new();
    Messages::of(&shared, 3);
    let without_a_store = Envelope::builder().wrap_with(shared.kek.clone()).build().unwrap();
    let reader = Envelope::builder().unwrap_with(shared.kek.clone());
    let reader = reader.key_store(shared.store.clone()).build().unwrap();
    let before = (rows_of(&**shared.store.store()), shared.kek.calls());
    for envelope in [without_a_store, reader] {
        let result = walk(&envelope, RewrapOptions::default().page(1));
        assert_eq!(kind(result), ErrorKind::InvalidOption);
    }
    assert_eq!((rows_of(&**shared.store.store()), shared.kek.calls()), before);
}

#[test]
fn branch_keys_are_rewrapped_in_batches() {
    let fleet = Fleet::new();
    let process = fleet.process();
    for n in 0..30 {
        process.seal(&format!("tenant {n}"));
    }
    fleet.root.local().rotate().unwrap();
    let root = ScriptedKek::over(fleet.root.local().clone());
    root.take_batches_of(16);
    let successor = Fleet { root: root.clone(), store: fleet.store.clone(), ..Fleet::new() };
    let kek = successor.process().kek;
    let done = block_on(kek.rewrap_branch_keys(RewrapOptions::default(), |_| {})).unwrap();
    assert_eq!(counts(&done), [30, 0, 0, 0, 0]);
    assert_eq!((root.calls().rewraps, root.calls().unwraps, root.calls().wraps), (2, 2, 0));
}
