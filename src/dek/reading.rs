//! A DEK that opens messages and never seals one.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::suite::{AeadKey, DekId, Suite};

/// The keys of a DEK for reading, of one suite, within its limits.
pub(crate) struct ReadingDek {
    pub(crate) context: EncryptionContext,
    pub(crate) id: DekId,
    pub(crate) suite: Suite,
    key: Arc<AeadKey>,
    expires: Instant,
}

impl ReadingDek {
    pub(super) fn new(
        context: EncryptionContext,
        id: DekId,
        suite: Suite,
        key: Arc<AeadKey>,
        max_age: Duration,
    ) -> Self {
        Self { context, id, suite, key, expires: Instant::now() + max_age }
    }

    pub(super) fn is_fresh(&self) -> bool {
        Instant::now() < self.expires
    }

    /// Decrypts in place, unless the lease is over.
    pub(crate) fn open(&self, nonce: &[u8], aad: &[u8], payload: &mut [u8], tag: &[u8]) -> Result<(), Error> {
        if !self.is_fresh() {
            return Err(Error::new(ErrorKind::Expired, ""));
        }
        self.open_unchecked(nonce, aad, payload, tag)
    }

    /// Decrypts in place for the very call that found the DEK fresh.
    pub(crate) fn open_unchecked(&self, nonce: &[u8], aad: &[u8], payload: &mut [u8], tag: &[u8]) -> Result<(), Error> {
        self.key.open(nonce, aad, payload, tag)
    }
}
