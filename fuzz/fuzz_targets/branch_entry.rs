//! Any bytes as the entry of a branch key in a message's wrapped keys.
//!
//! - `BranchEntry::read` never panics, and allocates nothing in proportion to a length that the
//!   input only claims.
//! - It accepts exactly what docs/format.md describes, and what it accepts is written as the bytes
//!   that were read.
//!
//! The library does not show this type. So its file is compiled here, on top of what the library
//! does show.
#![no_main]

#[path = "../../src/branch/format.rs"]
mod entry;
#[path = "../../src/format/reader.rs"]
#[allow(dead_code, missing_docs)]
mod reader;

/// What the file imports.
mod format {
    pub(crate) use crate::reader;
    pub(crate) use waxseal::WrappedDek;
    pub(crate) use waxseal::store::{KeyKind, KeyRow};
}

mod store {
    pub(crate) use waxseal::store::RowId;
}

mod suite {
    pub(crate) type BranchSalt = [u8; 16];

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct BranchWrapped {
        pub(crate) nonce: [u8; 24],
        pub(crate) dek: [u8; 32],
        pub(crate) tag: [u8; 16],
    }
}

use entry::BranchEntry;
use libfuzzer_sys::fuzz_target;
use waxseal::store::{KeyKind, KeyRow};
use waxseal_fuzz::allocating_no_more_than_it_has;

fuzz_target!(|bytes: &[u8]| {
    let entry = allocating_no_more_than_it_has(bytes, BranchEntry::read);
    assert_eq!(entry.is_some(), is_an_entry(bytes));
    if let Some(entry) = entry {
        assert_eq!(entry.to_bytes().as_deref(), Some(bytes));
        assert_eq!(entry.row.map(|row| row.to_bytes()).as_deref(), row_of(bytes));
    }
});

/// The row of a self-contained entry.
fn row_of(bytes: &[u8]) -> Option<&[u8]> {
    match bytes {
        [3, _, low, high, rest @ ..] => rest.get(..u16::from_le_bytes([*low, *high]).into()),
        _ => None,
    }
}

fn is_an_entry(bytes: &[u8]) -> bool {
    let (form, behind) = match (bytes, row_of(bytes)) {
        ([3, form, _, _, rest @ ..], Some(row)) => (*form, &rest[row.len()..]),
        ([form @ (1 | 2), behind @ ..], _) => (*form, behind),
        _ => return false,
    };
    let has_its_length = match form {
        1 => behind.len() == 16 + 16,
        2 => behind.len() == 16 + 24 + 32 + 16,
        _ => false,
    };
    let is_of_the_branch_key = row_of(bytes).is_none_or(|row| {
        KeyRow::try_from(row).is_ok_and(|row| {
            !row.is_tombstone()
                && row.kind() == KeyKind::Branch
                && behind.starts_with(&row.id().as_bytes()[..16])
        })
    });
    bytes.len() <= 6144 && has_its_length && is_of_the_branch_key
}
