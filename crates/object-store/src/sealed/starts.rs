//! New beginnings of objects, whose rest the store copies by itself.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use super::api::path::Path;
use super::api::{Attributes, Result};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;

/// Gives an object a new beginning, and has the store copy the rest by itself: how rewraps of large
/// objects do without their chunks. Set by
/// [`replace_start_by`](super::SealedStoreBuilder::replace_start_by).
///
/// `v0_14::S3ReplaceStart` does it for S3. Others can, by `UploadPartCopy` of an SDK of S3, by
/// `compose` of Google Cloud Storage, or by `Put Block From URL` of Azure.
#[async_trait]
pub trait ReplaceStart: fmt::Debug + Send + Sync + 'static {
    /// Returns how many bytes a new beginning has at least, in an object of `object_len` bytes. S3
    /// demands 5 MiB of every part but the last. What is given has up to one chunk more, and is in
    /// memory. `None` has objects of this length go through the process.
    fn start_len(&self, object_len: u64) -> Option<u64>;

    /// Replaces the first bytes of an object, as many as there are new ones, if it is still the
    /// version that [`e_tag`](StartChange::e_tag) names. The bytes behind are those of this
    /// version, and the new object has the [`attributes`](StartChange::attributes). Whoever reads
    /// the object sees the old one or the new one.
    ///
    /// Right before the new object takes the place of the old one,
    /// [`is_unchanged`](StartChange::is_unchanged) is to be asked, unless the store itself replaces
    /// it only if it is unchanged. A future that is dropped, and one that fails, leave nothing
    /// behind.
    ///
    /// # Errors
    /// [`Precondition`] if it is another version by now: then the newer one is rewrapped.
    /// [`NotSupported`] and [`NotImplemented`] if it cannot be done here: then the object goes
    /// through the process. Others are those of the rewrap, where [`NotFound`] means that the
    /// object is gone only if a last look does not find it either.
    ///
    /// [`NotFound`]: super::api::Error::NotFound
    /// [`NotImplemented`]: super::api::Error::NotImplemented
    /// [`NotSupported`]: super::api::Error::NotSupported
    /// [`Precondition`]: super::api::Error::Precondition
    async fn replace_start(&self, change: StartChange) -> Result<()>;
}

pub(super) type Look = dyn Fn() -> BoxFuture<'static, Result<bool>> + Send + Sync;

/// What [`ReplaceStart::replace_start`] is to do.
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
    /// Returns the path of the object, as the inner store has it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the new beginning. It is shorter than the object.
    #[must_use]
    pub fn start(&self) -> &Bytes {
        &self.start
    }

    /// Returns how many bytes the object has, before and after.
    #[must_use]
    pub fn object_len(&self) -> u64 {
        self.object_len
    }

    /// Returns the tag of the version that is to be changed, as the store gave it. It is a strong
    /// one.
    #[must_use]
    pub fn e_tag(&self) -> &str {
        &self.e_tag
    }

    /// Returns the attributes of this version.
    #[must_use]
    pub fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    /// Looks at the object again, by one request: whether it is still this version.
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
