//! The store in memory against the conformance suite of key stores, the suite against stores that are wrong, and the scripted store.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use waxseal_testing::support::{block_on, context};

use waxseal::store::conformance::{self, Outcome, Report, Step, Subject};
use waxseal::store::scripted::{Act, ScriptedStore};
use waxseal::store::{
    BoxFuture, BranchId, BranchPlace, Erasure, Insertion, KeyKind, KeyRow, KeyStore, MemoryStore,
    RowId, ScanCursor, ScanPage, StoreError, StoreErrorClass, StoredRow,
};
use waxseal::{DekId, KekId, WrappedDek, WrappedKeys};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Wrong {
    HasNoName,
    IsUnwell,
    ForgetsRows,
    InsertOverwrites,
    InsertOverwritesTombstones,
    InsertReturnsItsOwnRow,
    InsertChecksThenWrites,
    PlaceIsNotUnique,
    PlaceIsUniqueOfLiveRowsOnly,
    BranchIsUnsorted,
    BranchIgnoresFrom,
    BranchLeavesOutTombstones,
    CutsLargeRows,
    ReplaceIgnoresOld,
    ReplaceComparesIdsOnly,
    ReplaceChecksThenWrites,
    ReplaceMovesRows,
    ReplaceRevivesTombstones,
    EraseForgetsOneRow,
    EraseForgetsPeriodsBelowZero,
    EraseDeletes,
    EraseTakesOtherBranches,
    EraseLosesToReplace,
    EraseCountsTombstonesAgain,
    EraseLeavesUnreadableRows,
    ScanRepeatsARow,
    ScanLeavesOutARow,
    ScanCountsOffsets,
    ScanIgnoresItsLimit,
    ScanNeverAdvances,
    ReadsAreStale,
    LosesRowsInACrash,
    CallsOutagesThrottled,
    HangsWhileItIsAway,
    BreaksWhenCancelled,
}

/// A store in memory that yields between its steps, and is wrong in one way.
#[derive(Debug, Clone)]
struct Probe(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    wrong: Option<Wrong>,
    truth: MemoryStore,
    /// Rows as they were changed against the rules. They stand before the truth.
    changed: Mutex<Vec<StoredRow>>,
    deleted: Mutex<HashSet<RowId>>,
    is_away: AtomicBool,
    calls: AtomicUsize,
    half_done: AtomicUsize,
}

async fn let_others_run() {
    let mut polls = 0;
    poll_fn(|task| {
        polls += 1;
        std::thread::yield_now();
        task.waker().wake_by_ref();
        if polls > 3 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Counts a call that was begun and not ended.
struct HalfDone<'a>(&'a AtomicUsize);

impl Drop for HalfDone<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Probe {
    fn new(wrong: Option<Wrong>) -> Self {
        Self(Arc::new(Shared {
            wrong,
            truth: MemoryStore::new(),
            changed: Mutex::default(),
            deleted: Mutex::default(),
            is_away: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            half_done: AtomicUsize::new(0),
        }))
    }

    fn is(&self, wrong: Wrong) -> bool {
        self.0.wrong == Some(wrong)
    }

    async fn begin(&self) -> Result<HalfDone<'_>, StoreError> {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        if self.is(Wrong::BreaksWhenCancelled) && self.0.half_done.load(Ordering::SeqCst) > 100 {
            return Err(StoreError::unavailable("all connections are in use"));
        }
        self.0.half_done.fetch_add(1, Ordering::SeqCst);
        let guard = HalfDone(&self.0.half_done);
        if self.is(Wrong::BreaksWhenCancelled) {
            let connection = std::mem::ManuallyDrop::new(guard);
            let_others_run().await;
            return Ok(std::mem::ManuallyDrop::into_inner(connection));
        }
        let_others_run().await;
        if self.0.is_away.load(Ordering::SeqCst) {
            if self.is(Wrong::HangsWhileItIsAway) {
                std::future::pending::<()>().await;
            }
            return Err(match self.0.wrong {
                Some(Wrong::CallsOutagesThrottled) => StoreError::throttled("away"),
                _ => StoreError::unavailable("away"),
            });
        }
        Ok(guard)
    }

    fn seen(&self, row: StoredRow) -> Option<StoredRow> {
        if self.0.deleted.lock().unwrap().contains(row.id()) {
            return None;
        }
        if self.is(Wrong::ForgetsRows) && row.id().as_bytes()[0] < 60 {
            return None;
        }
        if self.is(Wrong::CutsLargeRows) && row.as_bytes().len() > 65_535 {
            let bytes = &row.as_bytes()[..65_535];
            return Some(StoredRow::from_parts(*row.id(), row.place().copied(), bytes));
        }
        let changed = self.0.changed.lock().unwrap();
        Some(changed.iter().rev().find(|changed| changed.id() == row.id()).cloned().unwrap_or(row))
    }

    fn change(&self, row: &StoredRow) {
        self.0.changed.lock().unwrap().push(row.clone());
    }

    async fn stored(&self, id: &RowId) -> Option<StoredRow> {
        let found = self.0.truth.get(id).await.unwrap();
        found.and_then(|row| self.seen(row))
    }
}

impl KeyStore for Probe {
    fn name(&self) -> &str {
        if self.is(Wrong::HasNoName) { " " } else { "probe" }
    }

    fn insert<'a>(&'a self, row: &'a StoredRow) -> BoxFuture<'a, Result<Insertion, StoreError>> {
        Box::pin(async move {
            let _call = self.begin().await?;
            let there = self.stored(row.id()).await;
            match (self.0.wrong, &there) {
                (Some(Wrong::InsertOverwrites), Some(_)) => {
                    self.change(row);
                    return Ok(Insertion::Inserted);
                }
                (Some(Wrong::InsertOverwritesTombstones), Some(there)) if there.is_tombstone() => {
                    self.change(row);
                    return Ok(Insertion::Inserted);
                }
                (Some(Wrong::InsertChecksThenWrites), None) => {
                    let found = match row.place() {
                        Some(at) => self.0.truth.branch(&at.branch, at.period).await?,
                        None => Vec::new(),
                    };
                    let_others_run().await;
                    if !found.iter().any(|found| found.place() == row.place()) {
                        let result = self.0.truth.insert(row).await?;
                        if result != Insertion::Inserted {
                            self.change(row);
                        }
                        return Ok(Insertion::Inserted);
                    }
                }
                (Some(Wrong::PlaceIsNotUnique | Wrong::PlaceIsUniqueOfLiveRowsOnly), None) => {
                    let result = self.0.truth.insert(row).await?;
                    if let Insertion::Exists(there) = &result
                        && (self.is(Wrong::PlaceIsNotUnique)
                            || self.seen(there.clone()).unwrap().is_tombstone())
                    {
                        let without = StoredRow::from_parts(*row.id(), None, row.as_bytes());
                        return self.0.truth.insert(&without).await;
                    }
                    return Ok(result);
                }
                _ => {}
            }
            let result = self.0.truth.insert(row).await?;
            let_others_run().await;
            Ok(match result {
                Insertion::Inserted => Insertion::Inserted,
                Insertion::Exists(_) if self.is(Wrong::InsertReturnsItsOwnRow) => {
                    Insertion::Exists(row.clone())
                }
                Insertion::Exists(there) => {
                    self.seen(there).map_or(Insertion::Inserted, Insertion::Exists)
                }
            })
        })
    }

    fn get<'a>(&'a self, id: &'a RowId) -> BoxFuture<'a, Result<Option<StoredRow>, StoreError>> {
        Box::pin(async move {
            let _call = self.begin().await?;
            if self.is(Wrong::ReadsAreStale) {
                return self.0.truth.get(id).await;
            }
            Ok(self.stored(id).await)
        })
    }

    fn branch<'a>(
        &'a self,
        branch: &'a BranchId,
        from: i64,
    ) -> BoxFuture<'a, Result<Vec<StoredRow>, StoreError>> {
        Box::pin(async move {
            let _call = self.begin().await?;
            let from = if self.is(Wrong::BranchIgnoresFrom) { i64::MIN } else { from };
            let found = self.0.truth.branch(branch, from).await?;
            let mut rows: Vec<_> = found.into_iter().filter_map(|row| self.seen(row)).collect();
            if self.is(Wrong::BranchIsUnsorted) {
                rows.sort_by_key(|row| *row.id());
            }
            if self.is(Wrong::BranchLeavesOutTombstones) {
                rows.retain(|row| !row.is_tombstone());
            }
            Ok(rows)
        })
    }

    fn replace<'a>(
        &'a self,
        old: &'a StoredRow,
        new: &'a StoredRow,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            let _call = self.begin().await?;
            let there = self.stored(old.id()).await;
            let is_old = there.as_ref() == Some(old) && !old.is_tombstone();
            let is_allowed = match self.0.wrong {
                Some(Wrong::ReplaceIgnoresOld) => there.is_some_and(|row| !row.is_tombstone()),
                Some(Wrong::ReplaceComparesIdsOnly) => {
                    there.is_some_and(|row| row.as_bytes().len() == old.as_bytes().len())
                        && !old.is_tombstone()
                }
                Some(Wrong::ReplaceChecksThenWrites) => is_old && new.place() == old.place(),
                Some(Wrong::ReplaceMovesRows) => is_old && new.place() != old.place(),
                Some(Wrong::ReplaceRevivesTombstones) => {
                    there.as_ref() == Some(old) && old.is_tombstone()
                }
                Some(Wrong::ReadsAreStale) => {
                    if is_old && new.id() == old.id() && new.place() == old.place() {
                        self.change(new);
                        return Ok(true);
                    }
                    false
                }
                _ => return self.0.truth.replace(old, new).await,
            };
            if !is_allowed || new.id() != old.id() {
                return self.0.truth.replace(old, new).await;
            }
            let_others_run().await;
            self.change(new);
            Ok(true)
        })
    }

    fn erase_branch<'a>(
        &'a self,
        branch: &'a BranchId,
    ) -> BoxFuture<'a, Result<Erasure, StoreError>> {
        Box::pin(async move {
            let _call = self.begin().await?;
            let rows = self.0.truth.branch(branch, i64::MIN).await?;
            let mut rows: Vec<_> = rows.into_iter().filter_map(|row| self.seen(row)).collect();
            match self.0.wrong {
                Some(Wrong::EraseForgetsOneRow) if rows.len() > 1 => drop(rows.pop()),
                Some(Wrong::EraseForgetsPeriodsBelowZero) => {
                    rows.retain(|row| row.place().unwrap().period >= 0);
                }
                Some(Wrong::EraseDeletes) => {
                    let ids = rows.iter().map(|row| *row.id());
                    self.0.deleted.lock().unwrap().extend(ids);
                }
                Some(Wrong::EraseTakesOtherBranches) => {
                    let all = self.0.truth.scan(None, usize::MAX).await?.rows;
                    let placed = all.into_iter().filter(|row| row.place().is_some());
                    let others = placed.filter(|row| row.place().unwrap().branch != *branch);
                    for other in others.take(usize::from(!rows.is_empty()) * 1000) {
                        self.0.truth.replace(&other, &other.tombstone()).await?;
                    }
                }
                Some(Wrong::EraseLeavesUnreadableRows) => rows.retain(|row| row.row().is_ok()),
                Some(Wrong::EraseLosesToReplace | Wrong::EraseCountsTombstonesAgain) | None => {}
                // Their changes would be hidden by the truth.
                Some(_) if !self.0.changed.lock().unwrap().is_empty() => {}
                Some(_) => return self.0.truth.erase_branch(branch).await,
            }
            let mut erasure = Erasure::default();
            for row in rows {
                if self.is(Wrong::EraseLosesToReplace) {
                    let_others_run().await;
                }
                if row.is_tombstone() && !self.is(Wrong::EraseCountsTombstonesAgain) {
                    erasure.already_erased += 1;
                    continue;
                }
                let mut row = row;
                loop {
                    let replaced = if self.0.changed.lock().unwrap().is_empty() {
                        self.0.truth.replace(&row, &row.tombstone()).await?
                    } else {
                        self.change(&row.tombstone());
                        true
                    };
                    let there = self.0.truth.get(row.id()).await?.unwrap();
                    if replaced || there.is_tombstone() || self.is(Wrong::EraseLosesToReplace) {
                        break erasure.erased += 1;
                    }
                    row = there;
                }
            }
            Ok(erasure)
        })
    }

    fn scan<'a>(
        &'a self,
        after: Option<&'a ScanCursor>,
        limit: usize,
    ) -> BoxFuture<'a, Result<ScanPage, StoreError>> {
        Box::pin(async move {
            let _call = self.begin().await?;
            if self.is(Wrong::ScanCountsOffsets) {
                let offset = after
                    .map_or(0, |after| usize::from_le_bytes(after.as_bytes().try_into().unwrap()));
                let all = self.0.truth.scan(None, usize::MAX).await?.rows;
                let rows: Vec<_> = all.iter().skip(offset).take(limit).cloned().collect();
                let end = offset + rows.len();
                let next = (end < all.len()).then(|| ScanCursor::from_bytes(end.to_le_bytes()));
                return Ok(ScanPage { rows, next });
            }
            let limit = if self.is(Wrong::ScanIgnoresItsLimit) { usize::MAX } else { limit };
            let mut page = self.0.truth.scan(after, limit).await?;
            match self.0.wrong {
                Some(Wrong::ScanRepeatsARow) if limit > 1 && page.rows.len() > 1 => {
                    if let Some(next) = &page.next
                        && let [.., before, _] = page.rows.as_slice()
                        && next.as_bytes()[0] % 2 == 0
                    {
                        page.next = Some(ScanCursor::from_bytes(*before.id().as_bytes()));
                    }
                }
                Some(Wrong::ScanLeavesOutARow) if page.next.is_some() && limit == 1 => {
                    page = self.0.truth.scan(page.next.as_ref(), limit).await?;
                }
                Some(Wrong::ScanNeverAdvances) if page.next.is_some() && after.is_some() => {
                    page.next = after.cloned();
                }
                _ => {}
            }
            page.rows = page.rows.into_iter().filter_map(|row| self.seen(row)).collect();
            Ok(page)
        })
    }

    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let _call = self.begin().await?;
            match self.0.wrong {
                Some(Wrong::IsUnwell) => Err(StoreError::misconfigured("no table")),
                _ => Ok(()),
            }
        })
    }
}

/// Each task on a thread of its own.
struct OnThreads(Probe);

impl Subject for OnThreads {
    fn store(&self) -> Arc<dyn KeyStore> {
        Arc::new(self.0.clone())
    }

    fn run_at_once(&self, tasks: Vec<BoxFuture<'static, ()>>) -> BoxFuture<'_, ()> {
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
    block_on(conformance::run(&OnThreads(Probe::new(wrong))))
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
