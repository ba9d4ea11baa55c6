//! The store in memory against the conformance suite of key stores, the suite against stores that
//! are wrong, and the scripted store.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;
use waxseal_testing::support::{block_on, context};

use waxseal::store::conformance::{self, Outcome, Report, Step, Subject};
use waxseal::store::scripted::{Act, ScriptedStore};
use waxseal::store::{
    BoxFuture, BranchId, BranchPlace, Insertion, KeyKind, KeyRow, KeyStore, MemoryStore, RowId,
    StoreErrorClass, StoredRow,
};
use waxseal::{DekId, KekId, WrappedDek, WrappedKeys};

use crate::wrong_store::{Probe, Wrong, let_others_run};

/// Each task on its own thread, or all in turns on one. In turns, the interleaving is the same in
/// every run, so a bug that only a race shows is found in every run.
struct Probed(Probe, Tasks);

#[derive(Clone, Copy)]
enum Tasks {
    OnThreads,
    InTurns,
}

impl Subject for Probed {
    fn store(&self) -> Arc<dyn KeyStore> {
        Arc::new(self.0.clone())
    }

    fn run_at_once(&self, tasks: Vec<BoxFuture<'static, ()>>) -> BoxFuture<'_, ()> {
        if let Tasks::InTurns = self.1 {
            return Box::pin(async { drop(join_all(tasks).await) });
        }
        Box::pin(async {
            std::thread::scope(|scope| {
                tasks.into_iter().for_each(|task| drop(scope.spawn(|| block_on(task))));
            });
        })
    }

    fn take_away(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            self.0.0.is_away.store(true, Ordering::SeqCst);
            Step::Done
        })
    }

    fn give_back(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            self.0.0.is_away.store(false, Ordering::SeqCst);
            Step::Done
        })
    }

    fn answers_within(&self) -> Duration {
        Duration::from_millis(300)
    }

    fn crash(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            if self.0.is(Wrong::LosesRowsInACrash) {
                let last = self.0.0.truth.scan(None, usize::MAX).await.unwrap().rows;
                let ids = last.iter().map(|row| *row.id());
                self.0.0.deleted.lock().unwrap().extend(ids);
            }
            Step::Done
        })
    }
}

fn run(wrong: Option<Wrong>) -> Report {
    let tasks = if wrong.is_some() { Tasks::InTurns } else { Tasks::OnThreads };
    block_on(conformance::run(&Probed(Probe::new(wrong), tasks)))
}

fn failures(report: &Report) -> Vec<&str> {
    let failed = report.checks().filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_)));
    failed.map(|(name, _)| name).collect()
}

struct Memory(MemoryStore);

impl Subject for Memory {
    fn store(&self) -> Arc<dyn KeyStore> {
        Arc::new(self.0.clone())
    }
}

#[test]
fn the_store_in_memory_conforms_also_where_it_has_rows_already() {
    let subject = Memory(MemoryStore::new());
    for _ in 0..2 {
        let report = block_on(conformance::run(&subject));
        assert!(report.is_conformant(), "{report}");
        let not_applicable: Vec<_> = report
            .checks()
            .filter(|(_, outcome)| **outcome == Outcome::NotApplicable)
            .map(|(name, _)| name)
            .collect();
        let it_cannot_be_away = [
            "keeps_over_a_crash_what_has_returned",
            "is_unavailable_while_it_is_away_and_recovers",
        ];
        assert_eq!(not_applicable, it_cannot_be_away);
    }
}

#[test]
fn a_store_that_other_threads_use_between_its_steps_conforms() {
    for _ in 0..3 {
        let report = run(None);
        assert!(report.checks().all(|(_, outcome)| *outcome == Outcome::Passed), "{report}");
    }
}

#[test]
fn the_suite_finds_each_mistake() {
    use Wrong::*;
    for (wrong, found_by) in [
        (HasNoName, "has_a_name_and_is_well"),
        (IsUnwell, "has_a_name_and_is_well"),
        (ForgetsRows, "does_what_the_model_does"),
        (InsertOverwrites, "never_overwrites_by_insert"),
        (InsertOverwritesTombstones, "keeps_tombstones"),
        (InsertReturnsItsOwnRow, "never_overwrites_by_insert"),
        (InsertChecksThenWrites, "lets_one_of_many_inserts_win"),
        (PlaceIsNotUnique, "keeps_one_row_per_place"),
        (PlaceIsUniqueOfLiveRowsOnly, "keeps_tombstones"),
        (BranchIsUnsorted, "finds_the_rows_of_a_branch_in_order"),
        (BranchIgnoresFrom, "finds_the_rows_of_a_branch_in_order"),
        (BranchLeavesOutTombstones, "erases_the_branch_and_no_other"),
        (CutsLargeRows, "keeps_the_largest_rows"),
        (ReplaceIgnoresOld, "replaces_only_what_is_unchanged"),
        (ReplaceComparesIdsOnly, "replaces_only_what_is_unchanged"),
        (ReplaceChecksThenWrites, "lets_one_of_many_replacements_win"),
        (ReplaceMovesRows, "replaces_only_with_the_same_id_and_place"),
        (ReplaceRevivesTombstones, "keeps_tombstones"),
        (EraseForgetsOneRow, "erases_the_branch_and_no_other"),
        (EraseForgetsPeriodsBelowZero, "erases_the_branch_and_no_other"),
        (EraseDeletes, "erases_the_branch_and_no_other"),
        (EraseTakesOtherBranches, "erases_the_branch_and_no_other"),
        (EraseLosesToReplace, "leaves_nothing_half_when_erasures_race"),
        (EraseCountsTombstonesAgain, "erases_the_branch_and_no_other"),
        (EraseLeavesUnreadableRows, "keeps_what_it_cannot_read"),
        (ScanRepeatsARow, "scans_every_row_once_while_rows_change"),
        (ScanLeavesOutARow, "scans_pages_of_one_row"),
        (ScanCountsOffsets, "scans_every_row_once_while_rows_change"),
        (ScanIgnoresItsLimit, "scans_pages_of_one_row"),
        (ScanNeverAdvances, "resumes_a_scan_from_a_kept_cursor"),
        (ReadsAreStale, "replaces_only_what_is_unchanged"),
        (LosesRowsInACrash, "keeps_over_a_crash_what_has_returned"),
        (CallsOutagesThrottled, "is_unavailable_while_it_is_away_and_recovers"),
        (HangsWhileItIsAway, "is_unavailable_while_it_is_away_and_recovers"),
        (BreaksWhenCancelled, "survives_cancellation"),
    ] {
        let report = run(Some(wrong));
        assert!(failures(&report).contains(&found_by), "{wrong:?} is not found:\n{report}");
    }
}

#[test]
fn a_seed_repeats_the_random_operations_of_a_run() {
    let of = |seed| {
        let store = ScriptedStore::in_memory();
        struct Counted(ScriptedStore);
        impl Subject for Counted {
            fn store(&self) -> Arc<dyn KeyStore> {
                Arc::new(self.0.clone())
            }
        }
        let report = block_on(conformance::run_with_seed(&Counted(store.clone()), seed));
        assert!(report.is_conformant(), "{report}");
        // How many pages a scan has depends on the ids.
        let calls = store.calls();
        (calls.gets, calls.branches, calls.erasures)
    };
    assert_eq!(of(7), of(7));
    assert_ne!(of(7), of(8));
}

fn row(id: u8, at: Option<i64>) -> StoredRow {
    let kek_id = KekId::new("local:root").unwrap();
    let keys = WrappedKeys::new([WrappedDek::new(kek_id, vec![7; 76]).unwrap()]).unwrap();
    let row = KeyRow::live(KeyKind::Branch, DekId::from_bytes([id; 32]), context("acme"), keys);
    let branch = BranchId::from_bytes([1; 32]);
    StoredRow::new(&row, at.map(|period| BranchPlace { branch, period, epoch: 0 }))
}

#[test]
fn a_scripted_store_fails_loses_answers_and_counts() {
    let (store, row) = (ScriptedStore::in_memory(), row(1, None));
    store.fail_with(StoreErrorClass::Throttled);
    let error = block_on(store.insert(&row)).unwrap_err();
    assert_eq!(error.class(), StoreErrorClass::Throttled);
    assert_eq!(block_on(store.store().get(row.id())).unwrap(), None, "it did nothing");

    store.fail_with(None);
    store.script([Act::LoseAnswer(StoreErrorClass::Unavailable), Act::Succeed]);
    let error = block_on(store.insert(&row)).unwrap_err();
    assert_eq!(error.class(), StoreErrorClass::Unavailable);
    assert_eq!(block_on(store.insert(&row)).unwrap(), Insertion::Exists(row.clone()));
    store.script([Act::Fail(StoreErrorClass::Misconfigured)]);
    assert_eq!(block_on(store.health()).unwrap_err().class(), StoreErrorClass::Misconfigured);
    block_on(store.health()).unwrap();

    let calls = store.calls();
    assert_eq!((calls.inserts, calls.gets, calls.healths, calls.total()), (3, 0, 2, 5));
}

#[test]
fn a_scripted_store_waits_before_it_decides() {
    let store = ScriptedStore::in_memory();
    let failing = store.clone();
    store.wait_for(move || {
        failing.fail_with(StoreErrorClass::Unavailable);
        Box::pin(let_others_run())
    });
    assert!(block_on(store.get(&RowId::from_bytes([0; 16]))).is_err());
    store.wait_no_more();
    store.fail_with(None);
    assert!(block_on(store.get(&RowId::from_bytes([0; 16]))).is_ok());
    store.script([Act::Hang]);
    let id = RowId::from_bytes([0; 16]);
    let mut hanging = store.get(&id);
    let polled = block_on(poll_fn(|task| Poll::Ready(hanging.as_mut().poll(task).is_pending())));
    assert!(polled);
}

#[test]
fn a_scripted_store_lies_in_every_read() {
    let store = ScriptedStore::in_memory();
    let (first, second) = (row(1, Some(0)), row(2, Some(86_400)));
    block_on(store.insert(&first)).unwrap();
    block_on(store.insert(&second)).unwrap();
    let branch = first.place().unwrap().branch;

    let told = second.clone();
    store.lie(move |rows| rows.into_iter().map(|_| told.clone()).collect());
    assert_eq!(block_on(store.get(first.id())).unwrap(), Some(second.clone()));
    assert_eq!(block_on(store.branch(&branch, 0)).unwrap(), [second.clone(), second.clone()]);
    assert_eq!(block_on(store.insert(&first)).unwrap(), Insertion::Exists(second.clone()));

    store.lie(|_| Vec::new());
    assert_eq!(block_on(store.get(first.id())).unwrap(), None);
    assert_eq!(block_on(store.insert(&first)).unwrap(), Insertion::Inserted);

    store.tell_the_truth();
    assert_eq!(block_on(store.branch(&branch, 0)).unwrap(), [first, second]);
}
