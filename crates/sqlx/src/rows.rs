//! Rows as columns, and the steps that are the same in both databases.
#![forbid(unsafe_code)]

use waxseal::store::{BranchId, BranchPlace, RowId, ScanCursor, ScanPage, StoreError, StoredRow};

/// The versions of a database's schema that this crate writes and reads. It makes the newest.
pub(crate) struct Versions {
    pub(crate) oldest: i64,
    pub(crate) newest: i64,
}

/// The maximum number of rows of a page. One may have 74 kB.
const MOST_ROWS: usize = 500;

/// The columns of a row, in the order in which every query names them.
pub(crate) type Columns = (Vec<u8>, Option<Vec<u8>>, Option<i64>, Option<i64>, Vec<u8>);

/// Makes a row from its columns.
pub(crate) fn row_of(columns: Columns) -> Result<StoredRow, StoreError> {
    let (id, branch, period, epoch, bytes) = columns;
    let id = <[u8; RowId::LEN]>::try_from(id).map_err(|_| damaged("row_id"))?;
    let place = match (branch, period, epoch) {
        (None, None, None) => None,
        (Some(branch), Some(period), Some(epoch)) => {
            let branch = <[u8; 32]>::try_from(branch).map_err(|_| damaged("branch"))?;
            let epoch = u32::try_from(epoch).map_err(|_| damaged("epoch"))?;
            Some(BranchPlace { branch: BranchId::from_bytes(branch), period, epoch })
        }
        _ => return Err(damaged("branch, period and epoch")),
    };
    Ok(StoredRow::from_parts(RowId::from_bytes(id), place, bytes))
}

fn damaged(column: &str) -> StoreError {
    StoreError::misconfigured(format!(
        "a row of waxseal_keys has a value in {column} that no version writes"
    ))
    .about_one_row()
}

/// Returns the place as columns.
pub(crate) fn place_of(row: &StoredRow) -> (Option<Vec<u8>>, Option<i64>, Option<i64>) {
    let place = row.place();
    (
        place.map(|place| place.branch.as_bytes().to_vec()),
        place.map(|place| place.period),
        place.map(|place| i64::from(place.epoch)),
    )
}

/// Returns whether the database may be asked for a replacement at all.
pub(crate) fn may_replace(old: &StoredRow, new: &StoredRow) -> bool {
    !old.is_tombstone() && old.id() == new.id() && old.place() == new.place()
}

/// The start of a scan, and its number of rows.
#[derive(Clone)]
pub(crate) struct From {
    /// The last id of the previous page. Ids are never empty.
    pub(crate) after: Vec<u8>,
    pub(crate) limit: usize,
}

impl From {
    pub(crate) fn new(after: Option<&ScanCursor>, limit: usize) -> Result<Self, StoreError> {
        let after = after.map_or(&[][..], ScanCursor::as_bytes);
        if !after.is_empty() && after.len() != RowId::LEN {
            return Err(StoreError::misconfigured("the cursor is of another store"));
        }
        Ok(Self { after: after.to_vec(), limit: limit.clamp(1, MOST_ROWS) })
    }

    /// The limit, for the query.
    pub(crate) fn limit(&self) -> i64 {
        i64::try_from(self.limit).unwrap_or(i64::MAX)
    }

    pub(crate) fn page(&self, rows: Vec<StoredRow>) -> ScanPage {
        let is_full = rows.len() >= self.limit;
        let last = rows.last().filter(|_| is_full);
        let next = last.map(|row| ScanCursor::from_bytes(*row.id().as_bytes()));
        ScanPage { rows, next }
    }
}

/// Returns what an erasure has to write: the id and the tombstone of each live row.
pub(crate) fn tombstones_of(rows: &[StoredRow]) -> Vec<StoredRow> {
    rows.iter().filter(|row| !row.is_tombstone()).map(StoredRow::tombstone).collect()
}

impl Versions {
    /// Returns the error for a schema of another version.
    pub(crate) fn check(&self, found: Option<i64>) -> Result<(), StoreError> {
        let Self { oldest, newest } = self;
        match found {
            Some(known) if (*oldest..=*newest).contains(&known) => Ok(()),
            Some(newer) if newer > *newest => Err(StoreError::misconfigured(format!(
                "the schema has version {newer}, and this version of waxseal-sqlx knows {newest}: update the service"
            ))),
            _ => Err(StoreError::misconfigured(
                "the schema is older than this version of waxseal-sqlx, or was never made: run `migrate`",
            )),
        }
    }
}
