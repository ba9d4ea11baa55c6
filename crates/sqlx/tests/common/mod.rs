//! Rows for the tests of both databases.
#![allow(dead_code, missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::error::Error;
use std::time::{Duration, SystemTime};

use waxseal::store::{
    BoxFuture, BranchId, BranchPlace, KeyKind, KeyRow, StoreError, StoreErrorClass, StoredRow,
};
use waxseal::{Dek, DekId, EncryptionContext, KekId, WrappedDek, WrappedKeys};

pub fn random() -> [u8; 32] {
    *Dek::random().unwrap().expose()
}

pub fn row(kind: KeyKind, place: Option<BranchPlace>) -> StoredRow {
    version(DekId::from_bytes(random()), kind, place, 0)
}

pub fn version(id: DekId, kind: KeyKind, place: Option<BranchPlace>, version: u8) -> StoredRow {
    let context = EncryptionContext::new([("tenant", "acme")]).unwrap();
    let entry = WrappedDek::new(KekId::new("local:root").unwrap(), vec![version; 76]).unwrap();
    let keys = WrappedKeys::new([entry]).unwrap();
    StoredRow::new(&KeyRow::live(kind, id, context, keys), place)
}

pub fn changed(row: &StoredRow) -> StoredRow {
    let read = row.row().unwrap();
    version(*read.id(), read.kind(), row.place().copied(), 1)
}

pub fn at(branch: BranchId, period: i64) -> StoredRow {
    row(KeyKind::Branch, Some(BranchPlace { branch, period, epoch: 0 }))
}

pub fn dek() -> StoredRow {
    row(KeyKind::Dek, None)
}

pub fn new_branch() -> BranchId {
    BranchId::from_bytes(random())
}

/// Everything that an error says, its causes too.
pub fn text(error: &StoreError) -> String {
    let mut text = format!("{error} {error:?}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(" {error} {error:?}"));
        cause = error.source();
    }
    text
}

pub fn class<T>(result: Result<T, StoreError>) -> StoreErrorClass {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(error) => error.class(),
    }
}

/// Runs tasks of the suite as tasks of the runtime, which may have several threads.
pub fn spawn_all(tasks: Vec<BoxFuture<'static, ()>>) -> BoxFuture<'static, ()> {
    Box::pin(async {
        for task in tasks.into_iter().map(tokio::spawn).collect::<Vec<_>>() {
            task.await.unwrap();
        }
    })
}

pub fn nanos() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::from(now.unwrap_or(Duration::ZERO).subsec_nanos())
}
