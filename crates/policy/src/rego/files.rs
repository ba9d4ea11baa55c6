//! A file of a policy, and the bounds of what is read.
#![forbid(unsafe_code)]

use waxseal::{Error, ErrorKind};

/// The most files of one policy, and the most bytes of all of them together.
pub(super) const MAX_FILES: usize = 4096;
pub(super) const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// The file that makes a bundle a signed one.
pub(super) const SIGNATURES: &str = ".signatures.json";

/// One file of a directory or a bundle, by its path in there.
pub(super) struct FileIn {
    pub(super) path: String,
    pub(super) bytes: Vec<u8>,
}

/// What is wrong with a policy.
pub(super) fn bad(name: &str, what: &str) -> Error {
    Error::new(ErrorKind::InvalidOption, format!("{name}: {what}"))
}
