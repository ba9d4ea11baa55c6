//! A key store in the memory of this process.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;

use super::{
    BoxFuture, BranchId, BranchPlace, Erasure, Insertion, KeyStore, RowId, ScanCursor, ScanPage,
    StoreError, StoredRow,
};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A [`KeyStore`] in memory, for tests and for processes that keep nothing. A clone is the same
/// store.
///
/// ```
/// use waxseal::store::{KeyStore, MemoryStore};
///
/// let store = MemoryStore::new();
/// assert_eq!(store.name(), "memory");
/// ```
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Mutex<Rows>>);

#[derive(Default)]
struct Rows {
    by_id: BTreeMap<RowId, StoredRow>,
    by_place: BTreeMap<BranchPlace, RowId>,
}

impl MemoryStore {
    /// Makes an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of rows, tombstones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().by_id.len()
    }

    /// Returns whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert_now(&self, row: &StoredRow) -> Insertion {
        let mut rows = self.lock();
        let at_place = row.place().and_then(|place| rows.by_place.get(place)).copied();
        if let Some(there) = rows.by_id.get(&at_place.unwrap_or(*row.id())) {
            return Insertion::Exists(there.clone());
        }
        if let Some(there) = rows.by_id.get(row.id()) {
            return Insertion::Exists(there.clone());
        }
        if let Some(place) = row.place() {
            rows.by_place.insert(*place, *row.id());
        }
        rows.by_id.insert(*row.id(), row.clone());
        Insertion::Inserted
    }

    fn branch_now(&self, branch: &BranchId, from: i64) -> Vec<StoredRow> {
        let rows = self.lock();
        let first = BranchPlace { branch: *branch, period: from, epoch: 0 };
        let last = BranchPlace { branch: *branch, period: i64::MAX, epoch: u32::MAX };
        rows.by_place
            .range(first..=last)
            .filter_map(|(_, id)| rows.by_id.get(id).cloned())
            .collect()
    }

    fn replace_now(&self, old: &StoredRow, new: &StoredRow) -> bool {
        let mut rows = self.lock();
        match rows.by_id.get_mut(old.id()) {
            Some(there)
                if there == old
                    && !old.is_tombstone()
                    && new.id() == old.id()
                    && new.place() == old.place() =>
            {
                *there = new.clone();
                true
            }
            _ => false,
        }
    }

    fn erase_now(&self, branch: &BranchId) -> Erasure {
        let mut erasure = Erasure::default();
        for row in self.branch_now(branch, i64::MIN) {
            if row.is_tombstone() {
                erasure.already_erased += 1;
            } else if self.replace_now(&row, &row.tombstone()) {
                erasure.erased += 1;
            }
        }
        erasure
    }

    fn scan_now(&self, after: Option<&ScanCursor>, limit: usize) -> ScanPage {
        let after = after.and_then(|cursor| Some(RowId(cursor.as_bytes().try_into().ok()?)));
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let stored = self.lock();
        let rows: Vec<_> = stored
            .by_id
            .range((from, Bound::Unbounded))
            .take(limit.max(1))
            .map(|(_, row)| row.clone())
            .collect();
        let last = rows.last().map(|row| *row.id());
        let more = last.is_some_and(|last| {
            stored.by_id.range((Bound::Excluded(last), Bound::Unbounded)).next().is_some()
        });
        let next = last.filter(|_| more).map(|last| ScanCursor::from_bytes(*last.as_bytes()));
        ScanPage { rows, next }
    }
}

impl KeyStore for MemoryStore {
    fn name(&self) -> &str {
        "memory"
    }

    fn insert<'a>(&'a self, row: &'a StoredRow) -> BoxFuture<'a, Result<Insertion, StoreError>> {
        Box::pin(async { Ok(self.insert_now(row)) })
    }

    fn get<'a>(&'a self, id: &'a RowId) -> BoxFuture<'a, Result<Option<StoredRow>, StoreError>> {
        Box::pin(async { Ok(self.lock().by_id.get(id).cloned()) })
    }

    fn branch<'a>(
        &'a self,
        branch: &'a BranchId,
        from: i64,
    ) -> BoxFuture<'a, Result<Vec<StoredRow>, StoreError>> {
        Box::pin(async move { Ok(self.branch_now(branch, from)) })
    }

    fn replace<'a>(
        &'a self,
        old: &'a StoredRow,
        new: &'a StoredRow,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async { Ok(self.replace_now(old, new)) })
    }

    fn erase_branch<'a>(
        &'a self,
        branch: &'a BranchId,
    ) -> BoxFuture<'a, Result<Erasure, StoreError>> {
        Box::pin(async { Ok(self.erase_now(branch)) })
    }

    fn scan<'a>(
        &'a self,
        after: Option<&'a ScanCursor>,
        limit: usize,
    ) -> BoxFuture<'a, Result<ScanPage, StoreError>> {
        Box::pin(async move { Ok(self.scan_now(after, limit)) })
    }

    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryStore({} rows)", self.len())
    }
}
