//! The options of a store.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use super::api::path::Path;
use super::api::{OBJECT_STORE_COALESCE_DEFAULT, ObjectStore};
use waxseal::{Error, ErrorKind};

use super::heads::Heads;
use super::keys::{Binding, KeysOf, ObjectKeys};
use super::layout::Layout;
use super::starts::ReplaceStart;
use super::store::{Inner, SealedStore};

/// A head without its wrapped keys.
const BARE_HEAD: u32 = 104;

impl<S: ObjectStore> SealedStore<S> {
    /// Begins a store whose objects have one encryption context.
    pub fn builder(store: S, keys: ObjectKeys) -> SealedStoreBuilder<S> {
        SealedStoreBuilder::new(store, Arc::new(move |_: &Path| Ok(keys.clone())))
    }

    /// Begins a store whose objects get their envelope and context from their paths, such as a
    /// context for each customer's folder, or an envelope for each [data domain](waxseal::domain).
    ///
    /// The function is called in every operation, and must not wait. For one path it always returns
    /// the same result. **For one context it must return the same envelope everywhere**: between
    /// such paths, the store copies objects unchanged.
    pub fn builder_by_path(
        store: S,
        keys: impl Fn(&Path) -> Result<ObjectKeys, waxseal::Error> + Send + Sync + 'static,
    ) -> SealedStoreBuilder<S> {
        SealedStoreBuilder::new(store, Arc::new(keys))
    }
}

/// Builds a [`SealedStore`]: see [`SealedStore::builder`].
#[must_use]
pub struct SealedStoreBuilder<S> {
    store: S,
    keys: Arc<KeysOf>,
    binding: Binding,
    chunk_size: u32,
    head_len: u32,
    cached_heads: u64,
    coalesce: u64,
    single_put: u64,
    starts: Option<Arc<dyn ReplaceStart>>,
}

impl<S: ObjectStore> SealedStoreBuilder<S> {
    fn new(store: S, keys: Arc<KeysOf>) -> Self {
        Self {
            store,
            keys,
            binding: Binding::default(),
            chunk_size: 1 << 16,
            head_len: 1024,
            cached_heads: 4 << 20,
            coalesce: OBJECT_STORE_COALESCE_DEFAULT,
            single_put: 64 << 20,
            starts: None,
        }
    }

    /// Sets the AAD of objects, by default [`Binding::Path`]. Objects must be read with the binding
    /// that they were written with.
    pub fn binding(mut self, binding: Binding) -> Self {
        self.binding = binding;
        self
    }

    /// Sets the plaintext bytes of a chunk: a power of two from 4 KiB to 16 MiB, by default 64 KiB.
    ///
    /// A ranged read fetches whole chunks. **The chunk size is part of the store's layout**:
    /// lengths in listings follow from it, so objects with another chunk size are refused.
    pub fn chunk_size(mut self, bytes: u32) -> Self {
        self.chunk_size = bytes;
        self
    }

    /// Sets the length of an object's head in bytes: 104 to 65,639, by default 1,024. It includes
    /// the wrapped keys and room for longer ones: a KMS key takes about 270 bytes, a Vault key 130,
    /// a branch key 50.
    ///
    /// **It is part of the store's layout**, like [`chunk_size`](Self::chunk_size).
    pub fn head_len(mut self, bytes: u32) -> Self {
        self.head_len = bytes;
        self
    }

    /// Sets how many bytes of heads are cached in memory, by default 4 MiB, or about 2,500 heads. A
    /// ranged read of an object takes one request if its head is cached, and otherwise two.
    pub fn cached_heads(mut self, bytes: u64) -> Self {
        self.cached_heads = bytes;
        self
    }

    /// Sets how far apart ranges of [`get_ranges`](ObjectStore::get_ranges) may be, in bytes of the
    /// encrypted object, for one request to fetch them with everything in between. By default 1
    /// MiB, as in `object_store`. With 0, only the needed chunks are fetched.
    pub fn coalesce(mut self, bytes: u64) -> Self {
        self.coalesce = bytes;
        self
    }

    /// Sets the plaintext size up to which an object that passes through this process is written in
    /// one request: copies that the store cannot do, and rewraps. The object is then in memory. By
    /// default 64 MiB. Larger objects are multipart uploads, which have no conditions.
    pub fn single_put(mut self, bytes: u64) -> Self {
        self.single_put = bytes;
        self
    }

    /// Makes rewraps of large objects replace only their beginning, while the store copies the
    /// rest: see [`ReplaceStart`], and `v0_14::S3ReplaceStart` for S3. Without it, and for objects
    /// that it refuses, all chunks pass through this process.
    pub fn replace_start_by(mut self, by: impl ReplaceStart) -> Self {
        self.starts = Some(Arc::new(by));
        self
    }

    /// Makes the store. It makes no request.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for an option out of range.
    pub fn build(self) -> Result<SealedStore<S>, Error> {
        let invalid = |detail| Err(Error::new(ErrorKind::InvalidOption, detail));
        let (chunk, head) = (self.chunk_size, self.head_len);
        if !chunk.is_power_of_two() || !(1 << 12..=1 << 24).contains(&chunk) {
            return invalid(format!(
                "chunk_size is {chunk}, a power of two from 4096 to 16777216 is allowed"
            ));
        }
        let longest = BARE_HEAD + 65_535;
        let Some(key_space) = head.checked_sub(BARE_HEAD).filter(|_| head <= longest) else {
            return invalid(format!("head_len is {head}, {BARE_HEAD} to {longest} are allowed"));
        };
        let options = waxseal::StreamOptions::default().chunk_size(chunk).key_space(key_space);
        let shared = Arc::new(Inner {
            store: self.store,
            keys: self.keys,
            binding: self.binding,
            layout: Layout { head_len: head.into(), chunk: chunk.into() },
            options,
            heads: Heads::new(self.cached_heads),
            coalesce: self.coalesce,
            single_put: self.single_put,
            starts: self.starts,
        });
        Ok(SealedStore { shared, caller: None })
    }
}

impl<S: fmt::Debug> fmt::Debug for SealedStoreBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedStoreBuilder")
            .field("store", &self.store)
            .field("binding", &self.binding)
            .field("chunk_size", &self.chunk_size)
            .field("head_len", &self.head_len)
            .finish_non_exhaustive()
    }
}
