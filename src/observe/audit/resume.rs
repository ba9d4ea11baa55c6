//! Where a trail goes on after a start.
//!
//! What a start finds is verified before anything is written behind it. Otherwise the next
//! checkpoint would authenticate whatever somebody else wrote there.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::Path;

use super::chain::Chain;
use super::checkpoint::{CheckpointVerifier, Link};
use super::file::names;
use super::verify::{Fault, FaultKind, Passed, Verifier};
use crate::error::{Error, ErrorKind};

/// The end of a trail that is there already.
pub(super) struct Resumed {
    pub(super) chain: Chain,
    /// The last authenticated checkpoint.
    pub(super) previous: Link,
    /// The writer before ended it. With a key, a checkpoint says so.
    pub(super) is_closed: bool,
}

/// Verifies the end of the trail in `directory`: with keys from the last file on with a checkpoint
/// that one of them accepts, without any the last file. `None` if there is no record.
///
/// # Errors
/// [`ErrorKind::Io`], naming file and line, if it is not as it was written, or if there are keys and
/// no such checkpoint.
pub(super) fn end_of(
    directory: &Path,
    keys: Vec<CheckpointVerifier>,
) -> Result<Option<Resumed>, Error> {
    let numbers = written(directory).map_err(|error| {
        let detail = format!("audit trail in {}: {error}", directory.display());
        Error::new(ErrorKind::Io, detail).with_source(error)
    })?;
    let Some(&last) = numbers.last() else { return Ok(None) };
    let has_keys = !keys.is_empty();
    let verifier = keys.into_iter().fold(Verifier::new(), Verifier::key);
    let refused = |fault: &Fault| {
        let detail = format!(
            "audit trail in {}: {fault}. Nothing is written behind that: keep the directory, and begin a new trail in another one",
            directory.display()
        );
        Error::new(ErrorKind::Io, detail)
    };

    let mut oldest = None;
    for &number in numbers.iter().rev() {
        let passed = verifier.verify_between(directory, number, number)?;
        let fault = passed.found.fault.as_ref();
        if fault.is_none() || is_only_begun(&numbers, &passed) {
            oldest = Some((number, passed));
            break;
        }
        // The writer of this file was killed before its first checkpoint. The one before has one.
        if let Some(fault) = fault
            && (fault.kind != FaultKind::NoCheckpoint
                || number == 1
                || numbers.first() == Some(&number))
        {
            return Err(refused(fault));
        }
    }
    let Some((first, mut passed)) = oldest else { return Ok(None) };
    if first != last {
        passed = verifier.verify_between(directory, first, last)?;
        if let Some(fault) = &passed.found.fault {
            return Err(refused(fault));
        }
    }
    let Some(chain) = passed.chain else { return Ok(None) };
    let previous = passed.last_checkpoint.unwrap_or_else(|| Link::first(chain.trail));
    let ends_with_checkpoint = previous.sequence.checked_add(1) == Some(chain.next);
    let is_closed = passed.found.is_closed && (ends_with_checkpoint || !has_keys);
    Ok(Some(Resumed { chain, previous, is_closed }))
}

/// The numbers of the files that are not empty, ascending.
fn written(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for number in names::numbers(directory)? {
        if fs::symlink_metadata(names::path_of(directory, number))?.len() > 0 {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

/// The writer was killed between the first record and the first checkpoint, which follows at once.
/// A trail like that says no more than an empty directory.
fn is_only_begun(numbers: &[u64], passed: &Passed) -> bool {
    let found = &passed.found;
    let lacks_checkpoint =
        found.fault.as_ref().is_some_and(|fault| fault.kind == FaultKind::NoCheckpoint);
    lacks_checkpoint && numbers == [1] && (found.first_sequence, found.records) == (0, 1)
}
