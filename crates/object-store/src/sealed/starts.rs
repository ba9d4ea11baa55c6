//! New beginnings of objects, whose rest the store copies by itself.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use super::api::path::Path;
use super::api::{Attributes, Error, ObjectStore, Result};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use waxseal::StreamHead;

use super::heads::Known;
use super::rewrap::RewrapOptions;
use super::store::Inner;

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
    /// [`Precondition`](Error::Precondition) if it is another version by now: then the newer one is
    /// rewrapped. [`NotSupported`](Error::NotSupported) and
    /// [`NotImplemented`](Error::NotImplemented) if it cannot be done here: then the object goes
    /// through the process. Others are those of the rewrap.
    async fn replace_start(&self, change: StartChange) -> Result<()>;
}

type Look = dyn Fn() -> BoxFuture<'static, Result<bool>> + Send + Sync;

/// What [`ReplaceStart::replace_start`] is to do.
#[derive(Clone)]
pub struct StartChange {
    path: Path,
    start: Bytes,
    object_len: u64,
    e_tag: String,
    attributes: Attributes,
    look: Arc<Look>,
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

/// What became of it.
pub(super) enum ByStore {
    Done,
    /// It is another object by now.
    Overwritten,
    /// The object has to go through the process.
    Not,
}

impl<S: ObjectStore> Inner<S> {
    /// Gives an object another head. Of its chunks, only the first go through this process.
    pub(super) async fn replace_by_store(
        self: &Arc<Self>,
        path: &Path,
        known: &Arc<Known>,
        head: &StreamHead,
        options: &RewrapOptions,
    ) -> Result<ByStore> {
        let (Some(by), Some(e_tag)) = (&self.starts, known.strong_tag()) else {
            return Ok(ByStore::Not);
        };
        let least = by.start_len(known.meta.size);
        let chunks = least.and_then(|least| self.layout.chunks_within(least, known.meta.size));
        let Some(chunks) = chunks else { return Ok(ByStore::Not) };
        let Some((mut first, attributes)) =
            self.chunks_as_they_are(path, known, chunks, options).await?
        else {
            return Ok(ByStore::Overwritten);
        };
        let mut start = head.as_bytes().to_vec();
        while let Some(chunk) = first.next(path).await? {
            start.extend_from_slice(&chunk);
        }
        let (store, at, of) = (self.clone(), path.clone(), known.clone());
        let look = move || {
            let (store, at, of) = (store.clone(), at.clone(), of.clone());
            async move { Ok(store.latest_head(&at).await?.is_of(&of.meta)) }.boxed()
        };
        let change = StartChange {
            path: path.clone(),
            start: start.into(),
            object_len: known.meta.size,
            e_tag: e_tag.to_owned(),
            attributes,
            look: Arc::new(look),
        };
        let replaced = by.replace_start(change).await;
        self.heads.forget(path);
        let error = match replaced {
            Ok(()) => return Ok(ByStore::Done),
            Err(Error::NotSupported { .. } | Error::NotImplemented { .. }) => {
                return Ok(ByStore::Not);
            }
            Err(error) => error,
        };
        // Where only the answer was lost, a repetition meets what the first request did.
        if let Ok(now) = self.latest_head(path).await
            && now.head.as_bytes() == head.as_bytes()
        {
            return Ok(ByStore::Done);
        }
        match error {
            Error::Precondition { .. } => Ok(ByStore::Overwritten),
            error => Err(error),
        }
    }
}
