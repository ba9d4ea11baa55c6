//! The store: an `ObjectStore` around another.
#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::list::{PaginatedListOptions, PaginatedListResult, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use waxseal::{StreamHead, StreamOptions};

use super::builder::{Binding, KeysOf, ObjectKeys, SealedStoreBuilder};
use super::errors::{malformed, sealing};
use super::heads::Heads;
use super::layout::Layout;

/// An [`ObjectStore`] that encrypts what it puts into another, and decrypts what it gets.
///
/// A clone is a pointer. The [module's page](super) says what may be relied on.
pub struct SealedStore<S>(pub(super) Arc<Inner<S>>);

pub(super) struct Inner<S> {
    pub(super) store: S,
    pub(super) keys: Arc<KeysOf>,
    pub(super) binding: Binding,
    pub(super) layout: Layout,
    pub(super) options: StreamOptions,
    pub(super) heads: Heads,
    pub(super) coalesce: u64,
    pub(super) single_put: u64,
}

/// Which object this is: 32 bytes that every written object has anew, and nobody without its DEK
/// can give to another (its [commitment](StreamHead::commitment)).
///
/// It is in the extensions of the results of `put_opts`, of a completed upload, and of `get_opts`.
/// Kept elsewhere, as in a catalogue, and given in the extensions of
/// [`GetOptions`], it has a store serve this object or none:
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
    /// Makes an id of what [`as_bytes`](Self::as_bytes) returned.
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
    /// Begins a store whose objects have one encryption context.
    pub fn builder(store: S, keys: ObjectKeys) -> SealedStoreBuilder<S> {
        SealedStoreBuilder::new(store, Arc::new(move |_: &Path| Ok(keys.clone())))
    }

    /// Begins a store whose objects have envelope and context by their paths: a context for each
    /// customer's folder, an envelope for each [data domain](waxseal::domain).
    ///
    /// The function is called in every operation, and must not wait. It gives the same for one path
    /// at all times, and **the same envelope wherever it gives the same context**: between such
    /// paths, objects are copied by the store as they are.
    pub fn builder_by_path(
        store: S,
        keys: impl Fn(&Path) -> Result<ObjectKeys, waxseal::Error> + Send + Sync + 'static,
    ) -> SealedStoreBuilder<S> {
        SealedStoreBuilder::new(store, Arc::new(keys))
    }

    /// Returns the store with the encrypted objects.
    #[must_use]
    pub fn inner(&self) -> &S {
        &self.0.store
    }
}

impl<S> Clone for SealedStore<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Inner<S> {
    pub(super) fn keys_of(&self, path: &Path) -> Result<ObjectKeys> {
        (self.keys)(path).map_err(|error| sealing(path, error))
    }
}

/// Puts the length of the plaintext in place of that of the object.
fn in_plaintext(layout: Layout, mut meta: ObjectMeta) -> Result<ObjectMeta> {
    meta.size = layout.plaintext_len(meta.size).ok_or_else(|| no_object(&meta))?;
    Ok(meta)
}

/// What was not written by such a store is not left out in silence.
pub(super) fn no_object(meta: &ObjectMeta) -> object_store::Error {
    let detail = format!(
        "{} bytes, which no object of this store has: is it plaintext, cut, or of another chunk_size \
         or head_len?",
        meta.size
    );
    malformed(&meta.location, detail)
}

fn all_in_plaintext(layout: Layout, listed: ListResult) -> Result<ListResult> {
    let ListResult { common_prefixes, objects, extensions } = listed;
    let objects = objects.into_iter().map(|meta| in_plaintext(layout, meta));
    Ok(ListResult { common_prefixes, objects: objects.collect::<Result<_>>()?, extensions })
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: ObjectStore> ObjectStore for SealedStore<S> {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.0.put(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Ok(Box::new(self.0.upload(location, options).await?))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.0.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let heads = self.0.heads.clone();
        let forget = move |location: &Result<Path>| {
            if let Ok(location) = location {
                heads.forget(location);
            }
        };
        self.0.store.delete_stream(locations.inspect(forget).boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let layout = self.0.layout;
        self.0.store.list(prefix).map(move |meta| in_plaintext(layout, meta?)).boxed()
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let (layout, listed) = (self.0.layout, self.0.store.list_with_offset(prefix, offset));
        listed.map(move |meta| in_plaintext(layout, meta?)).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        all_in_plaintext(self.0.layout, self.0.store.list_with_delimiter(prefix).await?)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.0.rename(from, to, options).await
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
            self.0.store.list_paginated(prefix, options).await?;
        Ok(PaginatedListResult { result: all_in_plaintext(self.0.layout, result)?, page_token })
    }
}

impl<S: fmt::Display> fmt::Display for SealedStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedStore({})", self.0.store)
    }
}

impl<S: fmt::Debug> fmt::Debug for SealedStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedStore")
            .field("store", &self.0.store)
            .field("binding", &self.0.binding)
            .field("layout", &self.0.layout)
            .finish_non_exhaustive()
    }
}
