//! The store: an `ObjectStore` around another.
#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::api::list::{PaginatedListOptions, PaginatedListResult, PaginatedListStore};
use super::api::path::Path;
use super::api::{
    CopyOptions, Error, Extensions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use waxseal::{Caller, StreamHead, StreamOptions};

use super::errors::{malformed, sealing};
use super::heads::Heads;
use super::keys::{Binding, KeysOf, ObjectKeys};
use super::layout::Layout;
use super::starts::ReplaceStart;

/// An [`ObjectStore`] that encrypts everything it puts into another store, and decrypts everything
/// it gets from it.
///
/// A clone is a pointer or two. The [module's page](super::super) lists the guarantees.
pub struct SealedStore<S> {
    pub(super) shared: Arc<Inner<S>>,
    pub(super) caller: Option<Caller>,
}

pub(super) struct Inner<S> {
    pub(super) store: S,
    pub(super) keys: Arc<KeysOf>,
    pub(super) binding: Binding,
    pub(super) layout: Layout,
    pub(super) options: StreamOptions,
    pub(super) heads: Heads,
    pub(super) coalesce: u64,
    pub(super) single_put: u64,
    pub(super) starts: Option<Arc<dyn ReplaceStart>>,
}

/// The identity of an object: 32 bytes that are new for every written object, and that nobody
/// without its DEK can give to another (its [commitment](StreamHead::commitment)).
///
/// It is in the extensions of the results of `put_opts`, of a completed upload, and of `get_opts`.
/// Store it elsewhere, such as in a catalogue, and pass it in the extensions of [`GetOptions`]. The
/// read then returns this object or fails:
///
/// ```
/// # use waxseal_object_store::v0_14::{ContentId, ObjectKeys, SealedStore};
/// # use object_store::{GetOptions, ObjectStore, ObjectStoreExt, memory::InMemory, path::Path};
/// # async fn example(store: SealedStore<InMemory>) -> object_store::Result<()> {
/// let path = Path::from("invoices/17.pdf");
/// let put = store.put(&path, "text".into()).await?;
/// let id = *put.extensions.get::<ContentId>().expect("every put has one");
///
/// let mut options = GetOptions::new();
/// options.extensions.insert(id);
/// assert!(store.get_opts(&path, options.clone()).await.is_ok());
/// store.put(&path, "another text".into()).await?;
/// assert!(store.get_opts(&path, options).await.is_err());
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentId([u8; 32]);

impl ContentId {
    /// Makes an id from what [`as_bytes`](Self::as_bytes) returned.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes of the id.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn of(head: &StreamHead) -> Self {
        Self(head.commitment())
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentId(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

impl<S: ObjectStore> SealedStore<S> {
    /// Returns this store on behalf of a caller. The policies and observers of its envelopes see
    /// the caller in every operation that reads or writes content, including those without a
    /// parameter for a caller: `get_ranges`, and everything that a library like DataFusion does
    /// with the store. A [`Caller`] in the extensions of an operation takes precedence.
    ///
    /// It costs two counters, and shares the cached heads. Make one for each request that is
    /// served:
    ///
    /// ```
    /// # use waxseal::Caller;
    /// # use waxseal_object_store::v0_14::SealedStore;
    /// # use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory, path::Path};
    /// # async fn example(store: SealedStore<InMemory>) -> Result<(), Box<dyn std::error::Error>> {
    /// let caller = Caller::builder().service("reporting").role("analyst").build()?;
    /// let store = store.acting_for(&caller);
    /// store.get_ranges(&Path::from("sales.parquet"), &[0..4096]).await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn acting_for(&self, caller: &Caller) -> Self {
        Self { shared: self.shared.clone(), caller: Some(caller.clone()) }
    }

    /// Asks the store for the [`ContentId`] of an object. It needs no key, so the id is only what
    /// the store claims. Reads that require it verify it.
    ///
    /// # Errors
    /// Those of the store, and for an object that is not of this store.
    pub async fn content_id(&self, path: &Path) -> Result<ContentId> {
        let answer = self.shared.fetch_head(path, GetOptions::new()).await?;
        Ok(ContentId::of(&answer.known.head))
    }

    /// Names the caller, unless the operation names one.
    fn on_behalf(&self, extensions: &mut Extensions) {
        if let Some(caller) = &self.caller
            && extensions.get::<Caller>().is_none()
        {
            extensions.insert(caller.clone());
        }
    }

    /// Returns the store with the encrypted objects.
    #[must_use]
    pub fn inner(&self) -> &S {
        &self.shared.store
    }
}

impl<S> Clone for SealedStore<S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), caller: self.caller.clone() }
    }
}

impl<S> Inner<S> {
    pub(super) fn keys_of(&self, path: &Path) -> Result<ObjectKeys> {
        (self.keys)(path).map_err(|error| sealing(path, error))
    }
}

/// Replaces the length of the object with that of the plaintext.
fn in_plaintext(layout: Layout, mut meta: ObjectMeta) -> Result<ObjectMeta> {
    meta.size = layout.plaintext_len(meta.size).ok_or_else(|| no_object(&meta))?;
    Ok(meta)
}

/// Returns the error for an object that no such store wrote, so that it is not silently left out.
pub(super) fn no_object(meta: &ObjectMeta) -> Error {
    let detail = format!(
        "{} bytes, which no object of this store has: is it plaintext, cut, or of another chunk_size \
         or head_len?",
        meta.size
    );
    malformed(&meta.location, detail)
}

fn all_in_plaintext(layout: Layout, mut listed: ListResult) -> Result<ListResult> {
    let objects = std::mem::take(&mut listed.objects).into_iter();
    listed.objects = objects.map(|meta| in_plaintext(layout, meta)).collect::<Result<_>>()?;
    Ok(listed)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: ObjectStore> ObjectStore for SealedStore<S> {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult> {
        self.on_behalf(&mut options.extensions);
        self.shared.put(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        mut options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.on_behalf(&mut options.extensions);
        Ok(Box::new(self.shared.upload(location, options).await?))
    }

    async fn get_opts(&self, location: &Path, mut options: GetOptions) -> Result<GetResult> {
        self.on_behalf(&mut options.extensions);
        self.shared.get(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.shared.get_ranges(location, ranges, self.caller.as_ref()).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let heads = self.shared.heads.clone();
        let forget = move |location: &Result<Path>| {
            if let Ok(location) = location {
                heads.forget(location);
            }
        };
        self.shared.store.delete_stream(locations.inspect(forget).boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let layout = self.shared.layout;
        self.shared.store.list(prefix).map(move |meta| in_plaintext(layout, meta?)).boxed()
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let (layout, listed) =
            (self.shared.layout, self.shared.store.list_with_offset(prefix, offset));
        listed.map(move |meta| in_plaintext(layout, meta?)).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        all_in_plaintext(self.shared.layout, self.shared.store.list_with_delimiter(prefix).await?)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, mut options: CopyOptions) -> Result<()> {
        self.on_behalf(&mut options.extensions);
        self.shared.copy(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, mut options: RenameOptions) -> Result<()> {
        self.on_behalf(&mut options.extensions);
        self.shared.rename(from, to, options).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: ObjectStore + PaginatedListStore> PaginatedListStore for SealedStore<S> {
    async fn list_paginated(
        &self,
        prefix: Option<&str>,
        options: PaginatedListOptions,
    ) -> Result<PaginatedListResult> {
        let PaginatedListResult { result, page_token } =
            self.shared.store.list_paginated(prefix, options).await?;
        Ok(PaginatedListResult {
            result: all_in_plaintext(self.shared.layout, result)?,
            page_token,
        })
    }
}

impl<S: fmt::Display> fmt::Display for SealedStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedStore({})", self.shared.store)
    }
}

impl<S: fmt::Debug> fmt::Debug for SealedStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedStore")
            .field("store", &self.shared.store)
            .field("binding", &self.shared.binding)
            .field("layout", &self.shared.layout)
            .finish_non_exhaustive()
    }
}
