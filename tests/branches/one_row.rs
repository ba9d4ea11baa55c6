//! A store that cannot read one of its rows.

use waxseal::store::scripted::ScriptedStore;
use waxseal::store::{
    BoxFuture, BranchId, Erasure, Insertion, KeyStore, RowId, ScanCursor, ScanPage, StoreError,
    StoredRow,
};
use waxseal::{BreakerState, ErrorKind};

use super::ground::{Fleet, kind, ms};

#[derive(Debug)]
struct OneDamaged {
    store: ScriptedStore,
    damaged: RowId,
    marked: bool,
}

impl KeyStore for OneDamaged {
    fn name(&self) -> &str {
        self.store.name()
    }

    fn insert<'a>(&'a self, row: &'a StoredRow) -> BoxFuture<'a, Result<Insertion, StoreError>> {
        self.store.insert(row)
    }

    fn get<'a>(&'a self, id: &'a RowId) -> BoxFuture<'a, Result<Option<StoredRow>, StoreError>> {
        if *id != self.damaged {
            return self.store.get(id);
        }
        let error = StoreError::unavailable("the row's id is claimed for another place");
        let error = if self.marked { error.about_one_row() } else { error };
        Box::pin(async { Err(error) })
    }

    fn branch<'a>(
        &'a self,
        branch: &'a BranchId,
        from: i64,
    ) -> BoxFuture<'a, Result<Vec<StoredRow>, StoreError>> {
        self.store.branch(branch, from)
    }

    fn replace<'a>(
        &'a self,
        old: &'a StoredRow,
        new: &'a StoredRow,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        self.store.replace(old, new)
    }

    fn erase_branch<'a>(
        &'a self,
        branch: &'a BranchId,
    ) -> BoxFuture<'a, Result<Erasure, StoreError>> {
        self.store.erase_branch(branch)
    }

    fn scan<'a>(
        &'a self,
        after: Option<&'a ScanCursor>,
        limit: usize,
    ) -> BoxFuture<'a, Result<ScanPage, StoreError>> {
        self.store.scan(after, limit)
    }

    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.health()
    }
}

#[test]
fn whoever_names_a_damaged_row_again_and_again_keeps_nobody_from_the_others() {
    for marked in [false, true] {
        let fleet = Fleet::new();
        let writer = fleet.process();
        let bad = writer.seal("bad");
        let damaged = *fleet.rows()[0].id();
        let good = writer.seal("good");
        let store = OneDamaged { store: fleet.store.clone(), damaged, marked };
        let reader = fleet.process_with(|branch| branch.store(store), |envelope| envelope);
        for _ in 0..10 {
            assert_eq!(kind(reader.open("bad", &bad)), ErrorKind::Unavailable);
            fleet.clock.advance(ms(40));
        }
        let breaker = reader.kek.statistics().store_calls.unwrap().breaker;
        assert_eq!(breaker == BreakerState::Closed, marked, "the control: {breaker:?}");
        assert_eq!(reader.open("good", &good).is_ok(), marked);
    }
}
