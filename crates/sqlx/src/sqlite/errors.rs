//! What the failures of SQLite mean. Their messages name tables and columns, and quote no value.
#![forbid(unsafe_code)]

use sqlx::Error;
use waxseal::store::StoreError;

pub(super) fn classified(error: Error) -> StoreError {
    match error {
        Error::Database(error) => {
            let code = error.code().unwrap_or_default().parse().unwrap_or(0);
            of_code(code, error.message())
        }
        Error::ColumnDecode { .. }
        | Error::ColumnNotFound(_)
        | Error::ColumnIndexOutOfBounds { .. }
        | Error::Decode(_)
        | Error::RowNotFound => {
            StoreError::misconfigured("the table waxseal_keys is not as this version made it")
        }
        Error::Configuration(_) => StoreError::misconfigured("the path cannot be opened"),
        _ => StoreError::unavailable("the connection to SQLite broke"),
    }
}

/// <https://www.sqlite.org/rescode.html>. The lower byte is the primary code.
fn of_code(code: u32, message: &str) -> StoreError {
    let text = format!("SQLite: {message} ({code})");
    match code & 0xff {
        // ERROR, PERM, READONLY, CORRUPT, CANTOPEN, CONSTRAINT, MISMATCH, AUTH, NOTADB.
        1 | 3 | 8 | 11 | 14 | 19 | 20 | 23 | 26 => StoreError::misconfigured(text),
        // BUSY, LOCKED, NOMEM, INTERRUPT, IOERR, FULL, PROTOCOL.
        _ => StoreError::unavailable(text),
    }
}
