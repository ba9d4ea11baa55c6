//! Stores to test with.

use crate::version::{ContentId, ObjectKeys, SealedStore, SealedStoreBuilder, sealing_error};
use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutResult};
use waxseal::{EncryptionContext, Envelope, ErrorKind, kek::local::LocalKek};

pub(crate) const CHUNK: u64 = 4096;
pub(crate) const SEALED_CHUNK: u64 = CHUNK + 16;
pub(crate) const HEAD: u64 = 1024;

pub(crate) fn context() -> EncryptionContext {
    EncryptionContext::new([("tenant", "acme")]).unwrap()
}

pub(crate) fn envelope() -> Envelope {
    let kek = LocalKek::in_memory("objects").unwrap();
    Envelope::builder().wrap_with(kek).build().unwrap()
}

pub(crate) fn keys() -> ObjectKeys {
    ObjectKeys::new(envelope(), context())
}

pub(crate) fn builder<S: ObjectStore>(store: S) -> SealedStoreBuilder<S> {
    SealedStore::builder(store, keys())
}

/// With small chunks.
pub(crate) fn small<S: ObjectStore>(store: S) -> SealedStore<S> {
    builder(store).chunk_size(4096).build().unwrap()
}

/// Bytes of which no two chunks are alike.
pub(crate) fn plaintext(len: u64) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i ^ (i >> 8).wrapping_mul(37)) % 251).unwrap()).collect()
}

pub(crate) async fn get(store: &impl ObjectStore, path: &Path) -> object_store::Result<Bytes> {
    store.get(path).await?.bytes().await
}

/// The id of what was just written: from the result, and from the object.
pub(crate) async fn id_of<S: ObjectStore>(
    sealed: &SealedStore<S>,
    path: &Path,
    put: &PutResult,
) -> ContentId {
    let id = sealed.content_id(path).await.unwrap();
    assert!(crate::told_by_put(put).is_none_or(|told| told == id));
    id
}

/// The kind of the library's own error.
pub(crate) fn kind(error: &object_store::Error) -> Option<ErrorKind> {
    sealing_error(error).map(waxseal::Error::kind)
}
