//! Items of the table: rows under their id, and places under their branch.
//!
//! ```text
//!   id                at             attributes
//!   row#ROWID         row            key_row (B), erased (BOOL), branch (B), period (N), epoch (N)
//!   branch#BRANCHID   PERIOD-EPOCH   row_id (S)
//! ```
#![forbid(unsafe_code)]

use std::collections::HashMap;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use waxseal::store::{BranchId, BranchPlace, RowId, ScanCursor, StoreError, StoredRow};

/// The partition key.
pub(crate) const ID: &str = "id";
/// The sort key.
pub(crate) const AT: &str = "at";
pub(crate) const KEY_ROW: &str = "key_row";
pub(crate) const ERASED: &str = "erased";
pub(crate) const BRANCH: &str = "branch";
pub(crate) const PERIOD: &str = "period";
pub(crate) const EPOCH: &str = "epoch";
const ROW_ID: &str = "row_id";
/// The sort key of every row.
const ROW: &str = "row";

pub(crate) type Item = HashMap<String, AttributeValue>;

pub(crate) fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

pub(crate) fn bytes(value: &[u8]) -> AttributeValue {
    AttributeValue::B(Blob::new(value))
}

pub(crate) fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

fn key(id: String, at: impl Into<String>) -> Item {
    HashMap::from([(ID.to_owned(), text(id)), (AT.to_owned(), text(at))])
}

pub(crate) fn row_key(id: &RowId) -> Item {
    key(format!("row#{id}"), ROW)
}

pub(crate) fn branch_partition(branch: &BranchId) -> String {
    format!("branch#{branch}")
}

/// Returns the sort key of a place. Texts sort as places do: the sign is flipped, and the length is
/// fixed.
pub(crate) fn at(period: i64, epoch: u32) -> String {
    format!("{:016x}-{epoch:08x}", period.cast_unsigned() ^ (1 << 63))
}

pub(crate) fn place_key(place: &BranchPlace) -> Item {
    key(branch_partition(&place.branch), at(place.period, place.epoch))
}

pub(crate) fn row_item(row: &StoredRow) -> Item {
    let mut item = row_key(row.id());
    item.insert(KEY_ROW.to_owned(), bytes(row.as_bytes()));
    item.insert(ERASED.to_owned(), AttributeValue::Bool(row.is_tombstone()));
    if let Some(place) = row.place() {
        item.insert(BRANCH.to_owned(), bytes(place.branch.as_bytes()));
        item.insert(PERIOD.to_owned(), number(place.period));
        item.insert(EPOCH.to_owned(), number(place.epoch));
    }
    item
}

pub(crate) fn place_item(place: &BranchPlace, id: &RowId) -> Item {
    let mut item = place_key(place);
    item.insert(ROW_ID.to_owned(), text(id.to_string()));
    item
}

/// Returns the row of an item, or `None` for an item that is a place.
pub(crate) fn read_row(item: &Item) -> Result<Option<StoredRow>, StoreError> {
    let Some(id) = string(item, ID).and_then(|id| id.strip_prefix("row#")) else {
        return if read_place(item).is_some() { Ok(None) } else { Err(foreign(item)) };
    };
    let read = || {
        let id = RowId::from_bytes(from_hex(id)?);
        let place = match item.get(BRANCH) {
            None => None,
            Some(branch) => Some(BranchPlace {
                branch: BranchId::from_bytes(branch.as_b().ok()?.as_ref().try_into().ok()?),
                period: item.get(PERIOD)?.as_n().ok()?.parse().ok()?,
                epoch: item.get(EPOCH)?.as_n().ok()?.parse().ok()?,
            }),
        };
        let bytes = item.get(KEY_ROW)?.as_b().ok()?.as_ref();
        Some(StoredRow::from_parts(id, place, bytes))
    };
    read().map(Some).ok_or_else(|| foreign(item))
}

/// Returns the id of the row at a place.
pub(crate) fn read_place(item: &Item) -> Option<RowId> {
    string(item, ROW_ID).and_then(from_hex).map(RowId::from_bytes)
}

fn foreign(item: &Item) -> StoreError {
    let id: String = string(item, ID).unwrap_or_default().escape_debug().take(80).collect();
    let text = format!("the table has an item that is not a key row: id {id}");
    StoreError::misconfigured(text).about_one_row()
}

fn string<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.get(name)?.as_s().ok().map(String::as_str)
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let digits = text.as_bytes().chunks_exact(2);
    if text.len() != 2 * N || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// The key at which a scan stopped.
pub(crate) fn to_cursor(key: &Item) -> Option<ScanCursor> {
    let (id, at) = (string(key, ID)?, string(key, AT)?);
    Some(ScanCursor::from_bytes(format!("{id}\n{at}").into_bytes()))
}

pub(crate) fn from_cursor(cursor: &ScanCursor) -> Result<Item, StoreError> {
    let parts = std::str::from_utf8(cursor.as_bytes()).ok().and_then(|text| text.split_once('\n'));
    let (id, at) =
        parts.ok_or_else(|| StoreError::misconfigured("the scan cursor is of another store"))?;
    Ok(key(id.to_owned(), at))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn sort_keys_sort_as_places_do() {
        let periods = [i64::MIN, -300, -2, -1, 0, 9, 10, 256, 253_402_300_800, i64::MAX];
        let places = periods
            .iter()
            .flat_map(|period| [0, 1, 2, 10, 256, u32::MAX].map(|epoch| at(*period, epoch)));
        assert!(places.is_sorted_by(|a, b| a < b && a.len() == b.len()));
    }

    #[test]
    fn an_item_that_somebody_else_stored_is_an_error_that_names_it() {
        for id in ["row#00", "row#zz0102030405060708090a0b0c0d0e0f", "customer#17"] {
            let error = read_row(&key(id.to_owned(), "row")).unwrap_err();
            assert!(error.to_string().contains(id), "{error}");
        }
        let without_bytes = row_key(&RowId::from_bytes([7; 16]));
        assert!(read_row(&without_bytes).is_err());
    }

    #[test]
    fn items_are_read_as_they_were_written() {
        let branch = BranchId::from_bytes([0xAB; 32]);
        for place in [None, Some(BranchPlace { branch, period: -7, epoch: 3 })] {
            let row = StoredRow::from_parts(RowId::from_bytes([9; 16]), place, *b"\0\xFFx");
            assert_eq!(read_row(&row_item(&row)).unwrap(), Some(row.clone()));
            if let Some(place) = place {
                let item = place_item(&place, row.id());
                assert_eq!(read_place(&item), Some(*row.id()));
                assert_eq!(read_row(&item).unwrap(), None);
            }
        }
    }

    #[test]
    fn a_cursor_of_another_store_is_refused() {
        let key = row_key(&RowId::from_bytes([1; 16]));
        let cursor = to_cursor(&key).unwrap();
        assert_eq!(from_cursor(&cursor).unwrap(), key);
        for other in [&b"\xFF\xFE"[..], b"row"] {
            assert!(from_cursor(&ScanCursor::from_bytes(other)).is_err());
        }
    }
}
