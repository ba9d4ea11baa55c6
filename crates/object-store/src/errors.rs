//! What the errors of `object_store` mean.
//!
//! It has types for a few of them. The others are distinguished only by their text: the status line
//! and the body of the service's answer.
#![forbid(unsafe_code)]

use std::error::Error as StdError;

use object_store::Error;
use waxseal::kek::toolkit::certificates;
use waxseal::store::StoreError;

/// The maximum number of characters of a text that is passed on.
const MOST_TEXT: usize = 700;

/// How services report that the bucket itself does not exist: S3, Azure, Google Cloud Storage.
const NO_BUCKET: &[&str] =
    &["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"];
const THROTTLED: &[&str] = &[
    "429 Too Many Requests",
    "SlowDown",
    "ServerBusy",
    "TooManyRequests",
    "RequestLimitExceeded",
    "rateLimitExceeded",
];
/// An operator has to act: the answer is a refusal, or there is no source of credentials.
const MISCONFIGURED: &[&str] = &[
    "status code: 400",
    "status code: 401",
    "status code: 403",
    "status code: 405",
    "incorrectly configured region",
    "169.254.169.254",
    "URL scheme is not allowed",
    "builder error",
    "Permission denied",
    "Read-only file system",
    "Not a directory",
];

/// Returns whether an object is missing because all of them are.
pub(crate) fn is_without_bucket(error: &Error) -> bool {
    let text = text(error);
    NO_BUCKET.iter().any(|words| text.contains(words))
}

pub(crate) fn failure(operation: &str, error: &Error) -> StoreError {
    let text = text(error);
    let says = |rows: &[&str]| rows.iter().any(|words| text.contains(words));
    let full = format!("{operation}: {}", tidy(&text));
    if says(NO_BUCKET) {
        let text = format!("{operation}: the bucket is not there: {}", tidy(&text));
        return StoreError::misconfigured(text);
    }
    match error {
        // Only an object is missing, which is not a failure for a read.
        Error::NotFound { .. }
        | Error::InvalidPath { .. }
        | Error::NotSupported { .. }
        | Error::NotImplemented { .. }
        | Error::PermissionDenied { .. }
        | Error::Unauthenticated { .. }
        | Error::UnknownConfigurationKey { .. } => StoreError::misconfigured(full),
        _ if says(THROTTLED) => StoreError::throttled(full),
        // A slow connection, which S3 calls the client's mistake.
        _ if says(&["RequestTimeout"]) => StoreError::unavailable(full),
        _ if says(MISCONFIGURED) || certificates::blamed_in(&text) => {
            StoreError::misconfigured(full)
        }
        _ => StoreError::unavailable(full),
    }
}

/// The error with all its causes, without those that repeat the one before.
fn text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

fn tidy(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use waxseal::store::StoreErrorClass::{self, Misconfigured, Throttled, Unavailable};

    fn class(error: &Error) -> StoreErrorClass {
        failure("put", error).class()
    }

    #[test]
    fn errors_have_their_class() {
        let generic = |text: &str| Error::Generic { store: "S3", source: text.to_owned().into() };
        let path = || "keys/x".to_owned();
        let source = || "no".to_owned().into();
        for (error, expected) in [
            (Error::NotFound { path: path(), source: source() }, Misconfigured),
            (Error::PermissionDenied { path: path(), source: source() }, Misconfigured),
            (Error::Unauthenticated { path: path(), source: source() }, Misconfigured),
            (generic("Server returned non-2xx status code: 503: SlowDown"), Throttled),
            (generic("Server returned non-2xx status code: 429 Too Many Requests: "), Throttled),
            (generic("Server returned non-2xx status code: 500: InternalError"), Unavailable),
            (generic("Server returned non-2xx status code: 400: x"), Misconfigured),
            (generic("Server returned non-2xx status code: 400: RequestTimeout"), Unavailable),
            (generic("status code: 404 Not Found: NoSuchBucket"), Misconfigured),
            (generic("PUT http://169.254.169.254/latest/api/token: timed out"), Misconfigured),
            (generic("invalid peer certificate: UnknownIssuer"), Misconfigured),
            (generic("HTTP error: error sending request: Connection refused"), Unavailable),
            (generic("No space left on device"), Unavailable),
        ] {
            assert_eq!(class(&error), expected, "{error}");
        }
    }
}
