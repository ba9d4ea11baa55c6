//! A key store in the memory of this process.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;

use super::{
    BoxFuture, BranchId, BranchPlace, Erasure, Insertion, KeyStore, RowId, ScanCursor, ScanPage,
    StoreError, StoredRow,
};
use crate::kek::CallAdvice;
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A [`KeyStore`] in memory, for tests and for processes that keep nothing. Clones are handles to
/// the same store.
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

impl Rows {
    fn of_branch(&self, branch: &BranchId, from: i64) -> Vec<StoredRow> {
        let first = BranchPlace { branch: *branch, period: from, epoch: 0 };
        let last = BranchPlace { branch: *branch, period: i64::MAX, epoch: u32::MAX };
        self.by_place
            .range(first..=last)
            .filter_map(|(_, id)| self.by_id.get(id).cloned())
            .collect()
    }
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

    /// Returns whether there are no rows.
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
        self.lock().of_branch(branch, from)
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
        // One lock, like a transaction: a row that is replaced meanwhile must not stay live.
        let mut rows = self.lock();
        let mut erasure = Erasure::default();
        for row in rows.of_branch(branch, i64::MIN) {
            if row.is_tombstone() {
                erasure.already_erased += 1;
            } else {
                rows.by_id.insert(*row.id(), row.tombstone());
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

    fn advice(&self) -> CallAdvice {
        CallAdvice::default().in_process()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryStore({} rows)", self.len())
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::context::EncryptionContext;
    use crate::format::{KekId, KeyKind, KeyRow, WrappedDek, WrappedKeys};
    use crate::suite::DekId;

    fn row(wrapped: u8) -> StoredRow {
        let entry = WrappedDek::new(KekId::new("local:root").unwrap(), vec![wrapped; 76]).unwrap();
        let keys = WrappedKeys::new([entry]).unwrap();
        let (id, context) = (DekId::from_bytes([9; 32]), EncryptionContext::empty());
        let place = BranchPlace { branch: BranchId::from_bytes([1; 32]), period: 0, epoch: 0 };
        StoredRow::new(&KeyRow::live(KeyKind::Branch, id, context, keys), Some(place))
    }

    #[test]
    fn erasure_also_erases_a_row_that_is_replaced_meanwhile() {
        let rows = [row(1), row(2)];
        let branch = rows[0].place().unwrap().branch;
        for _ in 0..200 {
            let store = MemoryStore::new();
            assert_eq!(store.insert_now(&rows[0]), Insertion::Inserted);
            let started = std::sync::Barrier::new(2);
            let erasure = std::thread::scope(|scope| {
                scope.spawn(|| {
                    started.wait();
                    (0..200).for_each(|i| {
                        store.replace_now(&rows[i % 2], &rows[(i + 1) % 2]);
                    });
                });
                started.wait();
                store.erase_now(&branch)
            });
            assert_eq!(erasure, Erasure { erased: 1, already_erased: 0 });
            assert!(store.branch_now(&branch, 0).iter().all(StoredRow::is_tombstone));
        }
    }

    #[test]
    fn the_tombstone_of_a_row_that_holds_another_key_s_bytes_has_the_id_it_is_found_by() {
        let moved = RowId::from_bytes([3; 16]);
        let row = StoredRow::from_parts(moved, None, row(1).as_bytes());
        let tombstone = row.tombstone().row().unwrap();
        assert!(tombstone.is_tombstone());
        assert_eq!(RowId::from(tombstone.id()), moved);
    }
}
