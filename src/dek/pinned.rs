//! A DEK for the callers that waited for it. They may use it even if it was evicted meanwhile.
#![forbid(unsafe_code)]

use std::ops::Deref;
use std::slice;

use super::registry::{Leased, end_evicted_later};
use crate::sync::Arc;

/// Keeps an eviction from destroying the keys of a DEK. It does not extend the DEK's lifetime, and
/// a revocation or a denial still ends it.
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
            end_evicted_later(slice::from_ref(&self.0));
        }
    }
}

/// The DEK that a look-up returns.
pub(crate) enum Held<D: Leased + 'static> {
    Cached(Arc<D>),
    /// The caller waited for it.
    Awaited(Arc<Pinned<D>>),
}

impl<D: Leased> Held<D> {
    /// Returns the DEK for a handle. A handle does not pin: it ends if its DEK is evicted.
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
