//! A DEK that opens messages and never seals one.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::lease::Lease;
use super::wiper::{Mortal, announce};
use crate::error::Error;
use crate::observer::Observer;

/// The keys of a DEK for reading, of one suite, within its time.
pub(crate) struct ReadingDek {
    pub(crate) lease: Lease,
    pub(super) observer: Option<Arc<dyn Observer>>,
}

impl Mortal for ReadingDek {
    fn lease(&self) -> &Lease {
        &self.lease
    }

    fn observer(&self) -> Option<&dyn Observer> {
        self.observer.as_deref()
    }
}

/// Nobody has it any more: it was replaced, and its keys go with it.
impl Drop for ReadingDek {
    fn drop(&mut self) {
        self.lease.end();
        announce(self);
    }
}

impl ReadingDek {
    /// Whether a handle may still open with it.
    pub(crate) fn check_handle(&self, given_in_grace: bool) -> Result<(), Error> {
        self.lease.check_handle(given_in_grace)
    }

    /// Decrypts in place, for a call that has just been given the DEK or has checked its handle. Expired, with `payload` untouched, if it was taken away since.
    pub(crate) fn open_now(&self, nonce: &[u8], aad: &[u8], payload: &mut [u8], tag: &[u8]) -> Result<(), Error> {
        self.lease.with_key(|key| key.open(nonce, aad, payload, tag))?
    }
}
