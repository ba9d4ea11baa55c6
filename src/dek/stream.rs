//! An open stream: the DEK it came from, and a lease on its own key.
//!
//! The lease is a child of the DEK's. Whatever ends the DEK early ends it too. It has its own time
//! limit, which may be later than the DEK's.
#![forbid(unsafe_code)]

use super::lease::Lease;
use super::parent::LeaseParent;
use super::registry::Leased;
use super::{LimitsInForce, ReadingDek, WritingDek};
use crate::error::Error;
use crate::suite::{DekId, InOut, StreamKey, Tag};
use crate::sync::Arc;

/// The key of one open stream.
pub(crate) struct StreamDek {
    lease: Lease,
    /// Set if the stream is being written. The DEK counts its bytes.
    writing: Option<Arc<WritingDek>>,
}

impl Leased for StreamDek {
    fn lease(&self) -> &Lease {
        &self.lease
    }

    fn is_for_reading(&self) -> bool {
        self.writing.is_none()
    }

    /// It was counted when it was opened.
    fn take_counted(&self) -> u64 {
        0
    }

    /// Only the end of the DEK's keys is reported.
    fn is_end_to_report(&self) -> bool {
        false
    }
}

impl Drop for StreamDek {
    fn drop(&mut self) {
        self.lease.end();
    }
}

impl StreamDek {
    pub(super) fn written(
        dek: &Arc<WritingDek>,
        key: &Arc<StreamKey>,
        limits: &LimitsInForce,
    ) -> Self {
        let itself = Arc::new(LeaseParent::of_streams(dek.clone()));
        Self { lease: dek.lease.of_stream(key, itself, limits), writing: Some(dek.clone()) }
    }

    pub(super) fn read(
        dek: &Arc<ReadingDek>,
        key: &Arc<StreamKey>,
        limits: &LimitsInForce,
    ) -> Self {
        let itself = Arc::new(LeaseParent::of_streams(dek.clone()));
        Self { lease: dek.lease.of_stream(key, itself, limits), writing: None }
    }

    pub(crate) fn dek_id(&self) -> DekId {
        self.lease.id
    }

    /// Counts plaintext bytes before they are encrypted.
    pub(crate) fn count(&self, len: usize) -> Result<(), Error> {
        self.writing.as_ref().map_or(Ok(()), |dek| dek.grow_stream(len))
    }

    /// Uses the key for several chunks. The key stays in memory while `work` runs, so keep it
    /// short.
    ///
    /// Each lock waits for all earlier writes, while the processor could otherwise continue with
    /// chunks that are not in a cache.
    pub(crate) fn with<R>(
        &self,
        work: impl FnOnce(StreamUse<'_>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.lease.with_stream_key(|key| work(StreamUse { dek: self, key })).flatten()
    }

    /// Encrypts a chunk and returns its tag. **Call it once for each index**: the caller counts. On
    /// an error the output is unchanged or wiped.
    pub(crate) fn seal(&self, index: u64, data: InOut<'_>) -> Result<Tag, Error> {
        self.count(data.to.len())?;
        self.with(|key| key.seal(index, data))
    }

    /// Decrypts a chunk. If it is not authentic, the output is wiped.
    pub(crate) fn open(&self, index: u64, data: InOut<'_>, tag: &Tag) -> Result<(), Error> {
        self.with(|key| key.open(index, data, tag))
    }
}

/// The key of an open stream while it is in use. The time limit is checked for each chunk.
pub(crate) struct StreamUse<'k> {
    dek: &'k StreamDek,
    key: &'k StreamKey,
}

impl StreamUse<'_> {
    /// Does the same as [`StreamDek::seal`], for bytes that were already
    /// [counted](StreamDek::count).
    pub(crate) fn seal(&self, index: u64, data: InOut<'_>) -> Result<Tag, Error> {
        self.dek.lease.check_handle(false)?;
        if let Some(dek) = &self.dek.writing {
            dek.check_process()?;
        }
        self.key.seal(index, data)
    }

    /// Does the same as [`StreamDek::open`].
    pub(crate) fn open(&self, index: u64, data: InOut<'_>, tag: &Tag) -> Result<(), Error> {
        self.dek.lease.check_handle(false)?;
        self.key.open(index, data, tag)
    }
}
