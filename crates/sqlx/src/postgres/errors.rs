//! What the failures of PostgreSQL mean. Only the server's own message is kept of the driver's
//! errors: its details quote values, and configuration errors may quote the URL.
#![forbid(unsafe_code)]

use std::io;

use sqlx::Error;
use waxseal::store::StoreError;

pub(super) fn classified(error: Error) -> StoreError {
    match error {
        Error::Database(error) => {
            let code = error.code().unwrap_or_default().into_owned();
            of_server(&code, error.message())
        }
        Error::Io(error) => of_io(&error),
        Error::Tls(error) => match error.downcast_ref::<io::Error>() {
            Some(error) => of_io(error),
            None => StoreError::misconfigured(format!("TLS: {error}")),
        },
        Error::Configuration(_) | Error::InvalidArgument(_) => {
            StoreError::misconfigured("the driver refuses the options of the connection")
        }
        Error::ColumnDecode { .. }
        | Error::ColumnNotFound(_)
        | Error::ColumnIndexOutOfBounds { .. }
        | Error::TypeNotFound { .. }
        | Error::Decode(_)
        | Error::RowNotFound => {
            StoreError::misconfigured("the table waxseal_keys is not as this version made it")
        }
        _ => StoreError::unavailable("the connection to PostgreSQL broke"),
    }
}

fn of_io(error: &io::Error) -> StoreError {
    match error.kind() {
        // TLS reports certificate errors this way.
        io::ErrorKind::InvalidData => StoreError::misconfigured(format!("TLS: {error}")),
        io::ErrorKind::PermissionDenied => {
            StoreError::misconfigured(format!("cannot connect: {error}"))
        }
        _ => StoreError::unavailable(format!("cannot reach PostgreSQL: {error}")),
    }
}

/// Appendix A of PostgreSQL's manual lists the codes.
fn of_server(code: &str, message: &str) -> StoreError {
    let text = format!("PostgreSQL: {message} ({code})");
    match code {
        "53300" => StoreError::throttled(text),
        "42P01" | "3F000" => StoreError::misconfigured(format!("{text}: run `migrate`")),
        // A standby, or a primary that is about to become one.
        "25006" => StoreError::unavailable(text),
        _ => match code.get(..2) {
            // Login, database, syntax and permission; data and constraints, which only a changed
            // schema refuses; features that a server lacks.
            Some("28" | "3D" | "42" | "22" | "23" | "0A" | "P0") => StoreError::misconfigured(text),
            _ => StoreError::unavailable(text),
        },
    }
}

#[cfg(test)]
mod tests {
    use waxseal::store::StoreErrorClass::{Misconfigured, Throttled, Unavailable};

    use super::*;

    #[test]
    fn each_code_has_its_class() {
        for (code, class) in [
            ("28P01", Misconfigured),
            ("28000", Misconfigured),
            ("3D000", Misconfigured),
            ("42501", Misconfigured),
            ("42P01", Misconfigured),
            ("23514", Misconfigured),
            ("23001", Misconfigured),
            ("53300", Throttled),
            ("53100", Unavailable),
            ("57P01", Unavailable),
            ("57P02", Unavailable),
            ("57P03", Unavailable),
            ("57014", Unavailable),
            ("40001", Unavailable),
            ("40P01", Unavailable),
            ("08006", Unavailable),
            ("25006", Unavailable),
            ("55P03", Unavailable),
            ("XX000", Unavailable),
            ("", Unavailable),
        ] {
            assert_eq!(of_server(code, "why").class(), class, "{code}");
        }
    }

    #[test]
    fn what_the_driver_says_about_configuration_is_not_repeated() {
        for error in [
            Error::Configuration("postgres://u:hunter2@h".into()),
            Error::InvalidArgument("hunter2".into()),
            Error::Protocol("hunter2".into()),
            Error::Decode("hunter2".into()),
        ] {
            let shown = classified(error);
            assert!(!format!("{shown} {shown:?}").contains("hunter2"), "{shown:?}");
        }
    }
}
