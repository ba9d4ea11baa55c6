//! Rewrapping the keys of a store: the options of a run, and its progress.
#![forbid(unsafe_code)]

use super::ScanCursor;
use crate::error::{Error, ErrorKind};

const DEFAULT_PAGE: usize = 256;

/// Options of [`Envelope::rewrap_stored`](crate::Envelope::rewrap_stored) and
/// [`BranchKek::rewrap_branch_keys`](crate::branch::BranchKek::rewrap_branch_keys).
///
/// ```
/// use waxseal::store::{RewrapOptions, ScanCursor};
///
/// // Resume a run, in smaller steps.
/// let kept = [7; 16];
/// let options = RewrapOptions::default().after(ScanCursor::from_bytes(kept)).page(64);
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct RewrapOptions {
    after: Option<ScanCursor>,
    page: Option<usize>,
}

impl RewrapOptions {
    /// Continues where an earlier run ended: [`RewrapProgress::next`]. By default it begins with
    /// the first row.
    pub fn after(mut self, cursor: ScanCursor) -> Self {
        self.after = Some(cursor);
        self
    }

    /// Sets how many rows are read at a time: at least 1, by default 256. The keys of a page are
    /// rewrapped together, so a multiple of the key service's batch size costs the fewest calls.
    pub fn page(mut self, rows: usize) -> Self {
        self.page = Some(rows.max(1));
        self
    }

    /// Returns the progress of a run that begins, and the number of rows of a page.
    pub(crate) fn begin(self) -> (RewrapProgress, usize) {
        let progress = RewrapProgress { next: self.after, ..RewrapProgress::default() };
        (progress, self.page.unwrap_or(DEFAULT_PAGE))
    }
}

/// The progress of a run that rewraps the keys of a store. The numbers are those of this run alone.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RewrapProgress {
    /// Keys that were wrapped again.
    pub rewrapped: u64,
    /// Keys that were already wrapped by the current versions of the KEKs, and by no other.
    pub current: u64,
    /// Tombstones, and rows that the run does not cover.
    pub skipped: u64,
    /// Keys that could not be rewrapped, for a reason that does not pass on its own: damaged,
    /// denied, changed. Their rows are unchanged.
    pub failed: u64,
    /// The first of these failures.
    pub first_failure: Option<Error>,
    /// Keys that no configured KEK has wrapped. They belong to someone else who shares the store,
    /// or a KEK is missing from the configuration. Their rows are unchanged.
    pub unknown: u64,
    /// The first of these, with the ids of its KEKs.
    pub first_unknown: Option<Error>,
    /// Where to continue, which a job can keep as text. `None` at the end.
    pub next: Option<ScanCursor>,
}

impl RewrapProgress {
    /// Counts the failure of one row.
    ///
    /// # Errors
    /// The failure concerns more than the row, so the run ends.
    pub(crate) fn count_failure(&mut self, failure: Error) -> Result<(), Error> {
        match failure.kind() {
            _ if failure.is_retryable() => return Err(failure),
            ErrorKind::ShutDown | ErrorKind::InvalidOption => return Err(failure),
            ErrorKind::UnknownKek => {
                self.unknown += 1;
                self.first_unknown.get_or_insert(failure);
            }
            _ => {
                self.failed += 1;
                self.first_failure.get_or_insert(failure);
            }
        }
        Ok(())
    }
}
