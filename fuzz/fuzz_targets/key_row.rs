//! Any bytes as a row of a key store.
//!
//! - `KeyRow::try_from` never panics, fails with the documented kinds only, and allocates nothing
//!   in proportion to a length that the input only claims.
//! - What it accepts is written as the bytes that were read, and says what is at the offsets of
//!   docs/format.md.
#![no_main]

use libfuzzer_sys::fuzz_target;
use waxseal::ErrorKind;
use waxseal::store::{KeyKind, KeyRow, RowId};
use waxseal_fuzz::allocating_no_more_than_it_has;

const FIXED_LEN: usize = 42;

fuzz_target!(|bytes: &[u8]| {
    let row = match allocating_no_more_than_it_has(bytes, KeyRow::try_from) {
        Ok(row) => row,
        Err(error) => {
            let kind = match bytes {
                [0xC1, b'W', b'K', 1, _, 3..=255, ..] => ErrorKind::UnsupportedKind,
                [0xC1, b'W', b'K', 1, ..] | [] | [_] | [_, _] | [_, _, _] => ErrorKind::Malformed,
                [0xC1, b'W', b'K', ..] => ErrorKind::UnsupportedVersion,
                _ => ErrorKind::Malformed,
            };
            assert_eq!(error.kind(), kind, "{error}");
            return;
        }
    };
    assert_eq!(row.to_bytes(), bytes);
    assert!(bytes.len() <= KeyRow::MAX_BYTES);

    assert_eq!(row.is_tombstone(), bytes[4] == 1);
    assert_eq!(row.kind(), [KeyKind::Dek, KeyKind::Branch, KeyKind::Index][usize::from(bytes[5])]);
    assert_eq!(row.id().as_bytes(), &bytes[8..40]);
    assert_eq!(RowId::from(row.id()).as_bytes(), &bytes[8..24]);
    let rebuilt = match (row.context(), row.wrapped_keys()) {
        (Some(context), Some(keys)) => {
            let (of_context, of_keys) = bytes[FIXED_LEN..].split_at(context.as_bytes().len());
            assert_eq!((context.as_bytes(), keys.as_bytes()), (of_context, of_keys));
            KeyRow::live(row.kind(), *row.id(), context.clone(), keys.clone())
        }
        (None, None) => {
            assert_eq!(bytes.len(), FIXED_LEN);
            KeyRow::tombstone(row.kind(), *row.id())
        }
        parts => panic!("half a row: {parts:?}"),
    };
    assert_eq!(rebuilt, row);
});
