//! Copies and renames. If both paths have the same context and AAD, the store moves the object
//! unchanged. Otherwise it is decrypted, and encrypted for its new path.
#![forbid(unsafe_code)]

use super::api::path::Path;
use super::api::{
    CopyMode, CopyOptions, Error, Extensions, MultipartUpload, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, RenameOptions, RenameTargetMode, Result,
};
use waxseal::policy::Action;

use super::errors::sealing;
use super::portions::{Next, Portions};
use super::reading::changing;
use super::store::Inner;

/// The minimum plaintext of a part, if an object passes through this process, and the maximum
/// number of parts: S3 allows 10,000.
const LEAST_PART: u64 = 8 << 20;
const MOST_PARTS: u64 = 9_000;
/// How often a copy is repeated because others overwrite the object meanwhile.
const TRIES: usize = 5;

impl<S: ObjectStore> Inner<S> {
    pub(super) async fn copy(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        if self.is_by_the_store(from, to, &options.extensions).await? {
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
        if self.is_by_the_store(from, to, &options.extensions).await? {
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

    /// Returns whether the store may move an object unchanged, because it opens at both paths.
    /// Nothing is decrypted then, but the policy decides as if it were.
    async fn is_by_the_store(
        &self,
        from: &Path,
        to: &Path,
        extensions: &Extensions,
    ) -> Result<bool> {
        let (keys_from, keys_to) = (self.keys_of(from)?, self.keys_of(to)?);
        let is_same_aad = self.binding.aad(from) == self.binding.aad(to);
        if !is_same_aad || keys_from.context != keys_to.context {
            return Ok(false);
        }
        let caller = extensions.get();
        let may_read = keys_from.check(caller, Action::Decrypt).await;
        may_read.map_err(|error| sealing(from, error))?;
        let may_write = keys_to.check(caller, Action::Encrypt).await;
        may_write.map_err(|error| sealing(to, error))?;
        Ok(true)
    }

    async fn encrypt_anew(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        for _ in 0..TRIES {
            if self.encrypted_anew(from, to, &options).await? {
                return Ok(());
            }
        }
        Err(changing(from))
    }

    /// Returns whether it was done. It was not if the object was overwritten while it was read.
    async fn encrypted_anew(&self, from: &Path, to: &Path, options: &CopyOptions) -> Result<bool> {
        let CopyOptions { mode, extensions } = options;
        let mut portions = Portions::begin(self, from, extensions).await?;
        let (attributes, extensions) = (portions.take_attributes(), extensions.clone());
        if portions.plaintext_len() <= self.single_put {
            let mode = match mode {
                CopyMode::Overwrite => PutMode::Overwrite,
                CopyMode::Create => PutMode::Create,
            };
            let options = PutOptions { mode, attributes, extensions, ..PutOptions::default() };
            let mut chunks = Vec::new();
            loop {
                match portions.next().await? {
                    Next::Plaintext(chunk) => chunks.push(chunk),
                    Next::Overwritten => return Ok(false),
                    // It is complete, and nothing was written before.
                    Next::End => break,
                }
            }
            let payload = PutPayload::from_iter(chunks);
            return self.put(to, payload, options).await.map(|_| true);
        }
        if *mode == CopyMode::Create {
            let detail = "an object above `single_put` is encrypted anew by a multipart upload, which \
                          cannot be made to fail where there is an object";
            return Err(Error::NotSupported { source: detail.into() });
        }
        let options = PutMultipartOptions { attributes, extensions, ..Default::default() };
        let mut upload = self.upload(to, options).await?;
        let written = write_parts(&mut upload, &mut portions).await;
        if !matches!(written, Ok(true)) {
            // The first error says more than that of the abort.
            let _ = upload.abort().await;
        }
        written
    }
}

/// Returns whether the upload is complete. It is not if the object was overwritten meanwhile.
async fn write_parts<S: ObjectStore>(
    upload: &mut impl MultipartUpload,
    portions: &mut Portions<'_, S>,
) -> Result<bool> {
    let part_len = part_len(portions.plaintext_len());
    let (mut part, mut len) = (Vec::new(), 0);
    loop {
        match portions.next().await? {
            Next::Plaintext(chunk) => {
                len += chunk.len() as u64;
                part.push(chunk);
            }
            Next::Overwritten => return Ok(false),
            Next::End => break,
        }
        if len >= part_len {
            upload.put_part(PutPayload::from_iter(part.split_off(0))).await?;
            len = 0;
        }
    }
    if len > 0 {
        upload.put_part(PutPayload::from_iter(part)).await?;
    }
    // Only the end shows that it is complete.
    upload.complete().await.map(|_| true)
}

/// Returns the length of the parts of an object of this size.
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
