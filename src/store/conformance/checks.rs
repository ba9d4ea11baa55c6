//! The checks. The name of each is a sentence about the store.
#![forbid(unsafe_code)]

mod changes;
mod contents;
mod outages;
mod races;
mod random;
mod scans;

use std::future::Future;

use super::Subject;
use super::rows::{branch_key, changed, dek, largest, new_branch, new_id, place, version};
use crate::kek::conformance::{Stop, ensure, failed, ok, step};
use crate::store::{
    BoxFuture, BranchId, Erasure, Insertion, KeyStore, RowId, ScanCursor, StoreErrorClass,
    StoredRow,
};
use crate::sync::{Arc, Mutex, PoisonError};

use changes::{
    erases_the_branch_and_no_other, keeps_tombstones, replaces_only_what_is_unchanged,
    replaces_only_with_the_same_id_and_place,
};
use contents::{
    finds_the_rows_of_a_branch_in_order, has_a_name_and_is_well, keeps_one_row_per_place,
    keeps_the_largest_rows, keeps_what_it_cannot_read, never_overwrites_by_insert,
    returns_what_was_inserted, takes_every_period_and_epoch,
};
use outages::{
    is_unavailable_while_it_is_away_and_recovers, keeps_over_a_crash_what_has_returned,
    survives_cancellation,
};
use races::{
    leaves_nothing_half_when_erasures_race, lets_one_of_many_inserts_win,
    lets_one_of_many_replacements_win,
};
use random::does_what_the_model_does;
use scans::{
    resumes_a_scan_from_a_kept_cursor, scans_every_row_once_while_rows_change,
    scans_pages_of_one_row,
};

type Check = for<'a> fn(&'a dyn Subject, u64) -> BoxFuture<'a, Result<(), Stop>>;

macro_rules! checks {
    ($($check:ident),* $(,)?) => {
        pub(super) const ALL: &[(&str, Check)] =
            &[$((stringify!($check), |subject, seed| Box::pin($check(subject, seed)))),*];
    };
}

checks![
    has_a_name_and_is_well,
    returns_what_was_inserted,
    never_overwrites_by_insert,
    keeps_one_row_per_place,
    finds_the_rows_of_a_branch_in_order,
    takes_every_period_and_epoch,
    keeps_the_largest_rows,
    keeps_what_it_cannot_read,
    replaces_only_what_is_unchanged,
    replaces_only_with_the_same_id_and_place,
    erases_the_branch_and_no_other,
    keeps_tombstones,
    scans_every_row_once_while_rows_change,
    scans_pages_of_one_row,
    resumes_a_scan_from_a_kept_cursor,
    lets_one_of_many_inserts_win,
    lets_one_of_many_replacements_win,
    leaves_nothing_half_when_erasures_race,
    does_what_the_model_does,
    survives_cancellation,
    keeps_over_a_crash_what_has_returned,
    is_unavailable_while_it_is_away_and_recovers,
];

/// Inserts a row that is not there yet.
async fn insert(store: &dyn KeyStore, row: &StoredRow) -> Result<(), Stop> {
    match ok("insert", store.insert(row).await)? {
        Insertion::Inserted => Ok(()),
        Insertion::Exists(there) => {
            failed(format!("insert of a new row: there is {} already", shown(Some(&there))))
        }
    }
}

/// Expects that an insertion returns the row that was there before.
async fn insert_finds(
    store: &dyn KeyStore,
    row: &StoredRow,
    there: &StoredRow,
    what: &str,
) -> Result<(), Stop> {
    match ok("insert", store.insert(row).await)? {
        Insertion::Exists(found) => same(Some(&found), Some(there), what),
        Insertion::Inserted => failed(format!("{what}: inserted")),
    }
}

/// Expects that both handles find this row, or none, by the id.
async fn is_stored(
    subject: &dyn Subject,
    id: &RowId,
    row: Option<&StoredRow>,
    what: &str,
) -> Result<(), Stop> {
    for store in [subject.store(), subject.another()] {
        same(ok("get", store.get(id).await)?.as_ref(), row, what)?;
    }
    Ok(())
}

/// Expects that both handles find these rows of the branch, in this order.
async fn branch_is(
    subject: &dyn Subject,
    branch: &BranchId,
    from: i64,
    rows: &[&StoredRow],
    what: &str,
) -> Result<(), Stop> {
    for store in [subject.store(), subject.another()] {
        let found = ok("branch", store.branch(branch, from).await)?;
        let list =
            |rows: &[&StoredRow]| rows.iter().map(|row| shown(Some(row))).collect::<Vec<_>>();
        let found: Vec<_> = found.iter().collect();
        ensure(found == rows, format!("{what}: branch returned [{}]", list(&found).join(", ")))?;
    }
    Ok(())
}

async fn replace(store: &dyn KeyStore, old: &StoredRow, new: &StoredRow) -> Result<bool, Stop> {
    ok("replace", store.replace(old, new).await)
}

fn same(found: Option<&StoredRow>, expected: Option<&StoredRow>, what: &str) -> Result<(), Stop> {
    ensure(found == expected, format!("{what}: {} instead of {}", shown(found), shown(expected)))
}

/// Describes a row by what distinguishes it: id, place, size and state.
fn shown(row: Option<&StoredRow>) -> String {
    let Some(row) = row else { return "no row".to_owned() };
    let state = match row.row() {
        Ok(row) if row.is_tombstone() => "a tombstone",
        Ok(_) => "live",
        Err(_) => "unreadable",
    };
    let place = row.place().map_or(String::new(), |place| {
        format!(" at {}/{}/{}", place.branch, place.period, place.epoch)
    });
    format!("row {}{place} ({state}, {} bytes)", row.id(), row.as_bytes().len())
}

/// Runs the futures at once and returns their values in order.
async fn at_once<T: Send + 'static>(
    subject: &dyn Subject,
    futures: Vec<impl Future<Output = Result<T, Stop>> + Send + 'static>,
) -> Result<Vec<T>, Stop> {
    let (results, count) = (Arc::new(Mutex::new(Vec::new())), futures.len());
    let collect = |(index, future)| -> BoxFuture<'static, ()> {
        let results = results.clone();
        let future: std::pin::Pin<Box<dyn Future<Output = Result<T, Stop>> + Send>> =
            Box::pin(future);
        Box::pin(async move {
            let result = future.await;
            results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
        })
    };
    subject.run_at_once(futures.into_iter().enumerate().map(collect).collect()).await;
    let mut results = std::mem::take(&mut *results.lock().unwrap_or_else(PoisonError::into_inner));
    ensure(results.len() == count, format!("{} of {count} tasks ended", results.len()))?;
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Returns one of the two handles, in turns.
fn handle(subject: &dyn Subject, turn: usize) -> Arc<dyn KeyStore> {
    if turn.is_multiple_of(2) { subject.store() } else { subject.another() }
}
