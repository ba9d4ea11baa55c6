//! Copies and renames. Where both paths have the same context and AAD, the store moves the object
//! as it is. Otherwise it is decrypted, and encrypted for its new path.
#![forbid(unsafe_code)]

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, MultipartUpload, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, RenameOptions,
    RenameTargetMode, Result,
};

use super::store::Inner;

/// The least plaintext of a part, where an object goes through this process, and the most parts: S3
/// takes 10,000.
const LEAST_PART: u64 = 8 << 20;
const MOST_PARTS: u64 = 9_000;

impl<S: ObjectStore> Inner<S> {
    pub(super) async fn copy(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        if self.has_same_keys(from, to)? {
            let copied = self.store.copy_opts(from, to, options).await;
            self.heads.forget(to);
            return copied;
        }
        self.encrypt_anew(from, to, options).await
    }

    pub(super) async fn rename(
        &self,
        from: &Path,
        to: &Path,
        options: RenameOptions,
    ) -> Result<()> {
        if self.has_same_keys(from, to)? {
            let renamed = self.store.rename_opts(from, to, options).await;
            self.heads.forget(from);
            self.heads.forget(to);
            return renamed;
        }
        let mode = match options.target_mode {
            RenameTargetMode::Overwrite => CopyMode::Overwrite,
            RenameTargetMode::Create => CopyMode::Create,
        };
        let options = CopyOptions { mode, extensions: options.extensions };
        self.encrypt_anew(from, to, options).await?;
        self.heads.forget(from);
        self.store.delete(from).await
    }

    fn has_same_keys(&self, from: &Path, to: &Path) -> Result<bool> {
        let (keys_from, keys_to) = (self.keys_of(from)?, self.keys_of(to)?);
        let is_same_aad = self.binding.aad(from) == self.binding.aad(to);
        Ok(is_same_aad && keys_from.context == keys_to.context)
    }

    async fn encrypt_anew(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let CopyOptions { mode, extensions } = options;
        let reading = GetOptions { extensions: extensions.clone(), ..GetOptions::new() };
        let read = self.get(from, reading).await?;
        if read.meta.size <= self.single_put {
            let mode = match mode {
                CopyMode::Overwrite => PutMode::Overwrite,
                CopyMode::Create => PutMode::Create,
            };
            let attributes = read.attributes.clone();
            let options = PutOptions { mode, attributes, extensions, ..PutOptions::default() };
            // It is whole when the stream has ended, and nothing is written before.
            let chunks: Vec<Bytes> = read.into_stream().try_collect().await?;
            let payload = PutPayload::from_iter(chunks);
            return self.put(to, payload, options).await.map(drop);
        }
        if mode == CopyMode::Create {
            let detail = "an object above `single_put` is encrypted anew by a multipart upload, which \
                          cannot be made to fail where there is an object";
            return Err(Error::NotSupported { source: detail.into() });
        }
        let attributes = read.attributes.clone();
        let options = PutMultipartOptions { attributes, extensions, ..Default::default() };
        let mut upload = self.upload(to, options).await?;
        let written = write_parts(&mut upload, read).await;
        if written.is_err() {
            // The first error says more than that of the abort.
            let _ = upload.abort().await;
        }
        written
    }
}

async fn write_parts(upload: &mut impl MultipartUpload, read: GetResult) -> Result<()> {
    let part_len = part_len(read.meta.size);
    let mut stream = read.into_stream();
    let (mut part, mut len) = (Vec::new(), 0);
    // Only after the end of the stream it is known to be whole.
    while let Some(bytes) = stream.try_next().await? {
        len += bytes.len() as u64;
        part.push(bytes);
        if len >= part_len {
            upload.put_part(PutPayload::from_iter(part.split_off(0))).await?;
            len = 0;
        }
    }
    if len > 0 {
        upload.put_part(PutPayload::from_iter(part)).await?;
    }
    upload.complete().await.map(drop)
}

/// Returns the length of the parts of an object of so many bytes.
fn part_len(size: u64) -> u64 {
    LEAST_PART.max(size / MOST_PARTS + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_the_largest_object_are_no_more_than_s3_takes() {
        for size in [0, 1 << 20, 78 << 30, 100 << 30, 5 << 40] {
            let len = part_len(size);
            assert!(len >= 5 << 20 && size.div_ceil(len) <= 9_000, "{size}");
        }
    }
}
