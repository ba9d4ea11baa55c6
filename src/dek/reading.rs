//! A DEK that decrypts messages and never encrypts one.
#![forbid(unsafe_code)]

use super::LimitsInForce;
use super::budget::Budget;
use super::lease::Lease;
use super::registry::{Leased, announce_later};
use crate::error::Error;
use crate::suite::{DekKeys, InOut, StreamRoot, Tag};

/// The keys of a DEK for reading, of one suite, with their deadlines.
pub(crate) struct ReadingDek {
    pub(crate) lease: Lease,
    /// How often it may still decrypt, and how often it did. Without `max_uses` and summaries there
    /// is no budget, and a use costs one comparison.
    uses: Option<Budget>,
}

impl Leased for ReadingDek {
    fn lease(&self) -> &Lease {
        &self.lease
    }

    fn is_for_reading(&self) -> bool {
        true
    }

    fn take_counted(&self) -> u64 {
        self.uses.as_ref().map_or(0, Budget::take_counted)
    }
}

/// Runs when the last owner is gone: the DEK was replaced, and its keys end with it.
impl Drop for ReadingDek {
    fn drop(&mut self) {
        self.lease.end();
        announce_later(self);
    }
}

impl ReadingDek {
    pub(super) fn new(lease: Lease, limits: &LimitsInForce) -> Self {
        let counted = limits.max_uses.or_else(|| limits.summaries.map(|_| u64::MAX));
        Self { lease, uses: counted.map(|uses| Budget::new(uses, u64::MAX)) }
    }

    /// Whether a message was refused because no use was left.
    pub(super) fn is_used_up(&self) -> bool {
        self.uses.as_ref().is_some_and(Budget::is_used_up)
    }

    /// Checks whether a handle may still decrypt with it.
    pub(crate) fn check_handle(&self, given_stale: bool) -> Result<(), Error> {
        self.lease.check_handle(given_stale)
    }

    /// Decrypts. The caller has just obtained the DEK or checked its handle. Returns *expired* if
    /// the DEK has ended since, and *exhausted* if `max_uses` is reached; both leave everything
    /// untouched. Only authentic messages count as uses.
    pub(crate) fn open_now(
        &self,
        nonce: &[u8],
        aad: &[u8],
        data: InOut<'_>,
        tag: &Tag,
    ) -> Result<(), Error> {
        let len = data.to.len();
        let open = |keys: &DekKeys| keys.message(len).open(nonce, aad, data, tag);
        self.counted(|lease| lease.with_dek_keys(open).flatten())
    }

    /// Counts up to `wanted` uses and returns how many, at least one. *Exhausted* if none is left.
    pub(crate) fn take_uses(&self, wanted: usize) -> Result<usize, Error> {
        let Some(uses) = &self.uses else { return Ok(wanted) };
        match uses.reserve_of(u64::try_from(wanted).unwrap_or(u64::MAX), 0) {
            Ok(()) => Ok(wanted),
            // Fewer are left than wanted.
            Err(_) => uses.reserve(0).map(|()| 1),
        }
    }

    /// Returns uses that were counted but produced nothing authentic.
    pub(crate) fn give_back_uses(&self, unused: usize) {
        if let (Some(uses), 1..) = (&self.uses, unused) {
            uses.give_back(u64::try_from(unused).unwrap_or(u64::MAX));
        }
    }

    /// Decrypts several messages, whose uses were [taken](Self::take_uses).
    pub(crate) fn with_keys<R>(&self, work: impl FnOnce(&DekKeys) -> R) -> Result<R, Error> {
        self.lease.with_dek_keys(work)
    }

    /// Opens a stream, which is one use.
    pub(super) fn open_stream<R>(
        &self,
        open: impl FnOnce(&StreamRoot) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.counted(|lease| lease.with_stream_root(open).flatten())
    }

    #[inline]
    fn counted<R>(&self, open: impl FnOnce(&Lease) -> Result<R, Error>) -> Result<R, Error> {
        if let Some(uses) = &self.uses {
            uses.reserve(0)?;
        }
        let opened = open(&self.lease);
        if let (Err(_), Some(uses)) = (&opened, &self.uses) {
            // Forged messages must not use up what is left for genuine ones.
            uses.give_back(1);
        }
        opened
    }
}
