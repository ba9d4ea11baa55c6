//! The rows that the checks store.
#![forbid(unsafe_code)]

use crate::context::EncryptionContext;
use crate::format::{KekId, KeyKind, KeyRow, WrappedDek, WrappedKeys};
use crate::kek::conformance::{Stop, ensure, ok};
use crate::store::{BranchId, BranchPlace, StoredRow};
use crate::suite::{Dek, DekId};

/// Returns 32 unique bytes.
fn random() -> Result<[u8; 32], Stop> {
    Ok(*ok("randomness", Dek::random())?.expose())
}

pub(super) fn new_id() -> Result<DekId, Stop> {
    Ok(DekId::from_bytes(random()?))
}

pub(super) fn new_branch() -> Result<BranchId, Stop> {
    Ok(BranchId::from_bytes(random()?))
}

pub(super) fn place(branch: BranchId, period: i64, epoch: u32) -> BranchPlace {
    BranchPlace { branch, period, epoch }
}

/// Returns the row of an id. Each version of it has different wrapped keys.
pub(super) fn version(
    id: DekId,
    place: Option<BranchPlace>,
    version: u32,
) -> Result<StoredRow, Stop> {
    let context = ok("a context", EncryptionContext::new([("suite", "key stores")]))?;
    let wrapped = version.to_le_bytes().repeat(19);
    let kek_id = ok("a KEK id", KekId::new("local:conformance"))?;
    let entry = ok("an entry", WrappedDek::new(kek_id, wrapped))?;
    let keys = ok("wrapped keys", WrappedKeys::new([entry]))?;
    let kind = if place.is_some() { KeyKind::Branch } else { KeyKind::Dek };
    Ok(StoredRow::new(&KeyRow::live(kind, id, context, keys), place))
}

/// Returns the first version of a branch key's row.
pub(super) fn branch_key(place: BranchPlace) -> Result<StoredRow, Stop> {
    version(new_id()?, Some(place), 0)
}

/// Returns the first version of the row of a DEK, which has no place.
pub(super) fn dek() -> Result<StoredRow, Stop> {
    version(new_id()?, None, 0)
}

/// Returns another version of a row, with the same id and place.
pub(super) fn changed(row: &StoredRow, to: u32) -> Result<StoredRow, Stop> {
    let id = *ok("a row", row.row())?.id();
    version(id, row.place().copied(), to)
}

/// Returns a row of the maximum size.
pub(super) fn largest(place: Option<BranchPlace>) -> Result<StoredRow, Stop> {
    let pairs = [("a", "x".repeat(4096)), ("b", "y".repeat(4080))];
    let context = ok("a context", EncryptionContext::new(pairs))?;
    let list = |last: usize| {
        let entry = |i: usize| {
            let kek_id = KekId::new(format!("local:{i:02}"))?;
            let len = if i == 10 { last } else { 6144 };
            WrappedDek::new(kek_id, vec![0xC3; len])
        };
        WrappedKeys::new((0..11).map(entry).collect::<Result<Vec<_>, _>>()?)
    };
    let without = ok("wrapped keys", list(1000))?.as_bytes().len() - 1000;
    let keys = ok("wrapped keys", list(WrappedKeys::MAX_BYTES - without))?;
    let row = KeyRow::live(KeyKind::Branch, new_id()?, context, keys);
    let stored = StoredRow::new(&row, place);
    ensure(stored.as_bytes().len() == KeyRow::MAX_BYTES, "the largest row is not the largest")?;
    Ok(stored)
}
