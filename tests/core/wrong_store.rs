//! A key store that is wrong in one way, for the conformance suite to find.
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use waxseal::store::{
    BoxFuture, BranchId, Erasure, Insertion, KeyStore, MemoryStore, RowId, ScanCursor, ScanPage,
    StoreError, StoredRow,
};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wrong {
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
pub struct Probe(pub Arc<Shared>);

#[derive(Debug)]
pub struct Shared {
    wrong: Option<Wrong>,
    pub truth: MemoryStore,
    /// Rows that were changed against the rules. They hide the real ones.
    changed: Mutex<Vec<StoredRow>>,
    pub deleted: Mutex<HashSet<RowId>>,
    pub is_away: AtomicBool,
    calls: AtomicUsize,
    half_done: AtomicUsize,
}

pub async fn let_others_run() {
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
pub struct HalfDone<'a>(&'a AtomicUsize);

impl Drop for HalfDone<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Probe {
    pub fn new(wrong: Option<Wrong>) -> Self {
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

    pub fn is(&self, wrong: Wrong) -> bool {
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
