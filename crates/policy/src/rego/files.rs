//! A file of a policy, and the limits of what is read.
#![forbid(unsafe_code)]

use waxseal::{Error, ErrorKind};

/// The maximum number of files of one policy, and their maximum total size in bytes.
pub(super) const MAX_FILES: usize = 4096;
pub(super) const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// The file that makes a bundle a signed one.
pub(super) const SIGNATURES: &str = ".signatures.json";

/// One file of a directory or a bundle, by its path in it.
pub(super) struct FileIn {
    pub(super) path: String,
    pub(super) bytes: Vec<u8>,
}

/// Returns the error for a bad policy.
pub(super) fn bad(name: &str, what: &str) -> Error {
    Error::new(ErrorKind::InvalidOption, format!("{name}: {what}"))
}
