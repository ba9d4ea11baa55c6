//! New beginnings of objects, while the store copies the rest.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use super::api::path::Path;
use super::api::{Attributes, Result};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;

/// Gives an object a new beginning, and makes the store copy the rest, so that rewraps of large
/// objects need not transfer their chunks. Set by
/// [`replace_start_by`](super::SealedStoreBuilder::replace_start_by).
///
/// `v0_14::S3ReplaceStart` does it for S3. Other implementations can use `UploadPartCopy` of an S3
/// SDK, `compose` of Google Cloud Storage, or `Put Block From URL` of Azure.
#[async_trait]
pub trait ReplaceStart: fmt::Debug + Send + Sync + 'static {
    /// Returns the minimum length of a new beginning, in an object of `object_len` bytes. S3
    /// requires 5 MiB of every part except the last. The beginning that is passed has up to one
    /// chunk more, and is in memory. With `None`, objects of this length pass through the process.
    fn start_len(&self, object_len: u64) -> Option<u64>;

    /// Replaces the first bytes of an object, as many as there are new ones, if it is still the
    /// version that [`e_tag`](StartChange::e_tag) names. The bytes after them stay those of this
    /// version, and the new object has the [`attributes`](StartChange::attributes). Readers see the
    /// old object or the new one.
    ///
    /// Right before the new object replaces the old one, call
    /// [`is_unchanged`](StartChange::is_unchanged), unless the store itself replaces it only if it
    /// is unchanged. A future that is dropped or fails must leave nothing behind.
    ///
    /// # Errors
    /// [`Precondition`] if it is another version now: then the newer one is rewrapped.
    /// [`NotSupported`] and [`NotImplemented`] if it cannot be done here: then the object passes
    /// through the process. Other errors become those of the rewrap. [`NotFound`] means that the
    /// object is gone only if a last check does not find it either.
    ///
    /// [`NotFound`]: super::api::Error::NotFound
    /// [`NotImplemented`]: super::api::Error::NotImplemented
    /// [`NotSupported`]: super::api::Error::NotSupported
    /// [`Precondition`]: super::api::Error::Precondition
    async fn replace_start(&self, change: StartChange) -> Result<()>;
}

pub(super) type Look = dyn Fn() -> BoxFuture<'static, Result<bool>> + Send + Sync;

/// The task of [`ReplaceStart::replace_start`].
#[derive(Clone)]
pub struct StartChange {
    pub(super) path: Path,
    pub(super) start: Bytes,
    pub(super) object_len: u64,
    pub(super) e_tag: String,
    pub(super) attributes: Attributes,
    pub(super) look: Arc<Look>,
}

impl StartChange {
    /// Returns the path of the object in the inner store.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the new beginning. It is shorter than the object.
    #[must_use]
    pub fn start(&self) -> &Bytes {
        &self.start
    }

    /// Returns the length of the object in bytes, which stays the same.
    #[must_use]
    pub fn object_len(&self) -> u64 {
        self.object_len
    }

    /// Returns the tag of the version to change, as the store returned it. It is a strong one.
    #[must_use]
    pub fn e_tag(&self) -> &str {
        &self.e_tag
    }

    /// Returns the attributes of this version.
    #[must_use]
    pub fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    /// Checks by one request whether the object is still this version.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn is_unchanged(&self) -> Result<bool> {
        (self.look)().await
    }
}

impl fmt::Debug for StartChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartChange")
            .field("path", &self.path)
            .field("start_len", &self.start.len())
            .field("object_len", &self.object_len)
            .field("e_tag", &self.e_tag)
            .finish_non_exhaustive()
    }
}
