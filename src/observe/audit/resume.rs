//! Finds where a trail continues after a start.
//!
//! What a start finds is verified before anything is written after it. Otherwise the next
//! checkpoint would authenticate whatever somebody else wrote there.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::Path;

use super::chain::Chain;
use super::checkpoint::{CheckpointVerifier, Link};
use super::file::names;
use super::unusable;
use super::verify::{Fault, FaultKind, Passed, Verifier};
use crate::error::{Error, ErrorKind};

/// What a start finds.
pub(super) enum End {
    /// No record.
    Nothing,
    /// File 1 with only its first record, which no checkpoint authenticates. The writer was killed
    /// before the first checkpoint, or somebody cut the trail back to there. Nothing is signed
    /// after it.
    OnlyBegun,
    /// An unmodified trail.
    Known(Resumed),
}

/// The end of an existing trail.
pub(super) struct Resumed {
    pub(super) chain: Chain,
    /// The last authenticated checkpoint.
    pub(super) previous: Link,
    /// Whether the previous writer closed it. With a key, a checkpoint says so.
    pub(super) is_closed: bool,
}

/// Verifies the end of the trail in `directory`. With keys it starts from the last file with a
/// checkpoint that one of them accepts. Without keys it verifies only the last file.
///
/// # Errors
/// [`ErrorKind::Io`], naming file and line, if the trail was modified, or if there are keys and no
/// such checkpoint.
pub(super) fn end_of(directory: &Path, keys: Vec<CheckpointVerifier>) -> Result<End, Error> {
    let failed = |error| unusable(format_args!("audit trail in {}", directory.display()), error);
    let all = names::numbers(directory).map_err(failed)?;
    let numbers = written(directory, &all).map_err(failed)?;
    let Some(&last) = numbers.last() else { return Ok(End::Nothing) };
    let has_keys = !keys.is_empty();
    let verifier = keys.into_iter().fold(Verifier::new(), Verifier::key);
    let refused = |fault: &Fault| {
        let detail = format!(
            "audit trail in {}: {fault}. Nothing is written after it: keep the directory, and begin a new trail in another one",
            directory.display()
        );
        Error::new(ErrorKind::Io, detail)
    };

    let mut oldest = None;
    for &number in numbers.iter().rev() {
        let passed = verifier.verify_between(directory, number, number)?;
        let fault = passed.found.fault.as_ref();
        if is_only_begun(&all, &passed) {
            return Ok(End::OnlyBegun);
        }
        if fault.is_none() {
            oldest = Some((number, passed));
            break;
        }
        // The writer of this file was killed before its first checkpoint. The previous file has
        // one.
        if let Some(fault) = fault
            && (fault.kind != FaultKind::NoCheckpoint
                || number == 1
                || numbers.first() == Some(&number))
        {
            return Err(refused(fault));
        }
    }
    let Some((first, mut passed)) = oldest else { return Ok(End::Nothing) };
    if first != last {
        passed = verifier.verify_between(directory, first, last)?;
        if let Some(fault) = &passed.found.fault {
            return Err(refused(fault));
        }
    }
    let Some(chain) = passed.chain else { return Ok(End::Nothing) };
    let previous = passed.last_checkpoint.unwrap_or_else(|| Link::first(chain.trail));
    let ends_with_checkpoint = previous.sequence.checked_add(1) == Some(chain.next);
    let is_closed = passed.found.is_closed && (ends_with_checkpoint || !has_keys);
    Ok(End::Known(Resumed { chain, previous, is_closed }))
}

/// Returns the numbers of files that are not empty.
fn written(directory: &Path, all: &[u64]) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for &number in all {
        if fs::symlink_metadata(names::path_of(directory, number))?.len() > 0 {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

/// Whether there is only the first record of file 1, and keys but no checkpoint.
fn is_only_begun(all: &[u64], passed: &Passed) -> bool {
    let found = &passed.found;
    let lacks_checkpoint =
        found.fault.as_ref().is_some_and(|fault| fault.kind == FaultKind::NoCheckpoint);
    lacks_checkpoint && all == [1] && found.records == 1
}
