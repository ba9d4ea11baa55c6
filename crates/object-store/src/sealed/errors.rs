//! The library's errors as those of `object_store`, and back.
#![forbid(unsafe_code)]

use std::error::Error as StdError;
use std::{fmt, io};

use super::api::path::Path;
use super::api::{Error, Result};
use waxseal::ErrorKind;

pub(super) const NAME: &str = "Waxseal";

/// An error of the library about one object.
#[derive(Debug)]
struct ObjectError {
    path: String,
    error: waxseal::Error,
}

impl fmt::Display for ObjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.error)
    }
}

impl StdError for ObjectError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.error)
    }
}

/// Returns the library's own error, if it caused the failure of an operation of a
/// [`SealedStore`](super::SealedStore).
///
/// A denial by a key service or a policy is
/// [`PermissionDenied`](super::api::Error::PermissionDenied). All others are
/// [`Generic`](super::api::Error::Generic).
#[must_use]
pub fn sealing_error(error: &Error) -> Option<&waxseal::Error> {
    let mut source = StdError::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref() {
            return Some(error);
        }
        if let Some(error) = error.downcast_ref::<io::Error>().and_then(waxseal::Error::of_io) {
            return Some(error);
        }
        source = error.source();
    }
    None
}

pub(super) fn sealing(path: &Path, error: waxseal::Error) -> Error {
    let (path, kind) = (path.to_string(), error.kind());
    let source = Box::new(ObjectError { path: path.clone(), error });
    match kind {
        ErrorKind::Denied | ErrorKind::PolicyDenied => Error::PermissionDenied { path, source },
        _ => Error::Generic { store: NAME, source },
    }
}

/// The error of a writer into memory, which is always one of the encryption.
pub(super) fn writing(path: &Path, error: &io::Error) -> Error {
    let own = waxseal::Error::of_io(error).cloned();
    let other = || waxseal::Error::new(ErrorKind::Io, "a buffer in memory could not be written");
    sealing(path, own.unwrap_or_else(other))
}

/// Returns the error for an answer that no honest store gives.
pub(super) fn malformed(path: &Path, detail: impl Into<String>) -> Error {
    sealing(path, waxseal::Error::new(ErrorKind::Malformed, detail.into()))
}

pub(super) fn generic(path: &Path, detail: &str) -> Error {
    Error::Generic { store: NAME, source: format!("{path}: {detail}").into() }
}

/// Returns the error for an answer that does not match the request.
pub(super) fn other_answer<T>(path: &Path) -> Result<T> {
    Err(malformed(path, "the store answered with another part of the object than was asked for"))
}
