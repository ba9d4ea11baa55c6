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

/// A DEK that a look-up gave.
pub(crate) enum Held<D: Leased + 'static> {
    Cached(Arc<D>),
    /// The caller waited for it.
    Awaited(Arc<Pinned<D>>),
}

impl<D: Leased> Held<D> {
    /// For a handle, which is not waited for any more: it ends if its DEK had to make room.
    pub(crate) fn into_dek(self) -> Arc<D> {
        match self {
            Self::Cached(dek) => dek,
            Self::Awaited(pinned) => Arc::clone(&pinned),
        }
    }
}

impl<D: Leased> Deref for Held<D> {
    type Target = Arc<D>;

    fn deref(&self) -> &Arc<D> {
        match self {
            Self::Cached(dek) => dek,
            Self::Awaited(pinned) => pinned,
        }
    }
}
