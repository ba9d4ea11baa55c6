//! Writes of whole objects.
#![forbid(unsafe_code)]

use std::io::Write;

use super::api::path::Path;
use super::api::{Extensions, ObjectStore, PutOptions, PutPayload, PutResult, Result};
use waxseal::{StreamEncryptor, StreamHead};

use super::errors::{sealing, writing};
use super::extras::tell;
use super::store::{ContentId, Inner};

/// How much is encrypted before other tasks get their turn.
const STEP: usize = 256 << 10;

impl<S: ObjectStore> Inner<S> {
    pub(super) async fn put(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let encryptor = self.encryptor(path, &options.extensions).await?;
        let (sealed, id) = seal(path, encryptor, &payload).await?;
        self.put_sealed(path, sealed.into(), options, id).await
    }

    /// Writes an object that is already encrypted.
    pub(super) async fn put_sealed(
        &self,
        path: &Path,
        sealed: PutPayload,
        options: PutOptions,
        id: ContentId,
    ) -> Result<PutResult> {
        let put = self.store.put_opts(path, sealed, options).await;
        self.heads.forget(path);
        let mut put = put?;
        tell(&mut put, id);
        Ok(put)
    }

    /// Has the envelope look up the key of a new object.
    pub(super) async fn encryptor(
        &self,
        path: &Path,
        extensions: &Extensions,
    ) -> Result<StreamEncryptor> {
        let (keys, aad) = (self.keys_of(path)?, self.binding.aad(path));
        let encryptor = keys.encryptor(extensions.get(), aad, self.options).await;
        encryptor.map_err(|error| sealing(path, error))
    }
}

async fn seal(
    path: &Path,
    encryptor: StreamEncryptor,
    payload: &PutPayload,
) -> Result<(Vec<u8>, ContentId)> {
    let plaintext_len = payload.content_length();
    let len = encryptor.stream_len(plaintext_len as u64);
    let len = len.and_then(|len| usize::try_from(len).ok()).unwrap_or(plaintext_len);
    let mut writer = encryptor.writer(Vec::with_capacity(len));
    for part in payload.iter().flat_map(|bytes| bytes.chunks(STEP)) {
        writer.write_all(part).map_err(|error| writing(path, &error))?;
        tokio::task::yield_now().await;
    }
    let sealed = writer.finish().map_err(|error| writing(path, &error))?;
    let head = StreamHead::from_prefix(&sealed).map_err(|error| sealing(path, error))?;
    Ok((sealed, ContentId::of(&head)))
}
