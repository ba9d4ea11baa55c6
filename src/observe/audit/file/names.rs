//! The names of a trail's files.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const PREFIX: &str = "trail-";
const SUFFIX: &str = ".jsonl";
/// Only the one writer has it open.
pub(super) const LOCK: &str = "trail.lock";

/// Returns the name of a file by its number.
pub(in super::super) fn file_name(number: u64) -> String {
    format!("{PREFIX}{number:08}{SUFFIX}")
}

/// Returns the name under which the bytes of an incomplete line are kept. `at` is where the line
/// began, and `count`, from 1, distinguishes those of one place.
pub(super) fn partial_name(number: u64, at: u64, count: u32) -> String {
    let again = if count > 1 { format!("-{count}") } else { String::new() };
    format!("{PREFIX}{number:08}.partial-{at}{again}")
}

/// Returns the name under which a file without a checkpoint is kept. `count` distinguishes those of
/// one number.
pub(super) fn unsigned_name(number: u64, count: u32) -> String {
    format!("{PREFIX}{number:08}.unsigned-{count}")
}

/// Returns the number of a file, if it belongs to a trail.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let number = digits.parse().ok()?;
    // Each number has only one name.
    (file_name(number) == name && number > 0).then_some(number)
}

/// Returns the numbers of all files of the trail in `directory`, ascending.
pub(in super::super) fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        numbers.extend(entry?.file_name().to_str().and_then(number_of));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

pub(in super::super) fn path_of(directory: &Path, number: u64) -> PathBuf {
    directory.join(file_name(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_has_one_name() {
        assert_eq!(file_name(7), "trail-00000007.jsonl");
        assert_eq!(number_of("trail-00000007.jsonl"), Some(7));
        assert_eq!(number_of(&file_name(123_456_789)), Some(123_456_789));
        for name in [
            "trail-7.jsonl",
            "trail-00000000.jsonl",
            "trail-000000007.jsonl",
            "trail-+0000007.jsonl",
            "trail-00000007.jsonl.gz",
            "trail-00000007.partial-90",
            "trail.lock",
        ] {
            assert_eq!(number_of(name), None, "{name}");
        }
    }
}
