//! A DEK for those who waited for it: it serves them though it had to make room meanwhile.
#![forbid(unsafe_code)]

use std::ops::Deref;
use std::slice;

use super::registry::{Leased, end_later};
use crate::sync::Arc;

/// Keeps the keys of a DEK from being destroyed by an eviction. It prolongs no time, and a revocation or a denial ends it all the same.
pub(crate) struct Pinned<D: Leased + 'static>(Arc<D>);

impl<D: Leased> Pinned<D> {
    pub(super) fn new(dek: Arc<D>) -> Self {
        dek.lease().pin();
        Self(dek)
    }
}

impl<D: Leased> Deref for Pinned<D> {
    type Target = Arc<D>;

    fn deref(&self) -> &Arc<D> {
        &self.0
    }
}

impl<D: Leased> Drop for Pinned<D> {
    fn drop(&mut self) {
        if self.0.lease().unpin() {
            end_later(slice::from_ref(&self.0));
        }
    }
}
