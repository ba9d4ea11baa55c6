//! Objects that are created once, replaced if unchanged, and listed.
#![forbid(unsafe_code)]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload, UpdateVersion};
use waxseal::store::{ConflictBackoff, StoreError};

use crate::errors::{failure, is_without_bucket};
use crate::local::LocalFiles;

pub(crate) struct Objects {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) prefix: Path,
    /// Set for the file system.
    pub(crate) local: Option<LocalFiles>,
    pub(crate) bound: Duration,
}

/// Names in a folder, in their order.
pub(crate) struct Names {
    pub(crate) names: Vec<String>,
    /// Whether more names follow.
    pub(crate) has_more: bool,
}

impl Objects {
    pub(crate) fn path(&self, folder: &[&str], name: &str) -> Path {
        let folder = folder.iter().fold(self.prefix.clone(), |path, part| path.join(*part));
        folder.join(name)
    }

    async fn within<T>(
        &self,
        operation: &str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<Result<T, Error>, StoreError> {
        tokio::time::timeout(self.bound, call)
            .await
            .map_err(|_| StoreError::unavailable(format!("{operation}: no answer in time")))
    }

    pub(crate) async fn get(&self, path: &Path) -> Result<Option<Bytes>, StoreError> {
        Ok(self.read(path).await?.map(|(bytes, _)| bytes))
    }

    async fn read(&self, path: &Path) -> Result<Option<(Bytes, UpdateVersion)>, StoreError> {
        let call = async {
            let found = self.store.get(path).await?;
            let (e_tag, version) = (found.meta.e_tag.clone(), found.meta.version.clone());
            Ok((found.bytes().await?, UpdateVersion { e_tag, version }))
        };
        match self.within("get", call).await? {
            Ok(found) => Ok(Some(found)),
            Err(error @ Error::NotFound { .. }) if !is_without_bucket(&error) => Ok(None),
            Err(error) => Err(failure("get", &error)),
        }
    }

    /// Creates an object, and returns whether it did. It never replaces one.
    pub(crate) async fn create(&self, path: &Path, bytes: Vec<u8>) -> Result<bool, StoreError> {
        let call = self.store.put_opts(path, PutPayload::from(bytes), PutMode::Create.into());
        match self.within("create", call).await? {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(failure("create", &error)),
        }
    }

    /// Replaces an object if it has these bytes, and returns whether it did.
    pub(crate) async fn swap(
        &self,
        path: &Path,
        old: &[u8],
        new: Vec<u8>,
    ) -> Result<bool, StoreError> {
        if let Some(local) = &self.local {
            return local.swap(path.clone(), old.to_vec(), new, self.bound).await;
        }
        let (mut backoff, new) = (ConflictBackoff::new(self.bound), PutPayload::from(new));
        loop {
            let version = match self.read(path).await? {
                Some((found, version)) if found == old => version,
                _ => return Ok(false),
            };
            let call = self.store.put_opts(path, new.clone(), PutMode::Update(version).into());
            match self.within("replace", call).await? {
                Ok(_) => return Ok(true),
                // It is another version now, which may have the same bytes.
                Err(
                    Error::Precondition { .. }
                    | Error::AlreadyExists { .. }
                    | Error::NotModified { .. },
                ) => backoff.wait().await?,
                Err(error) => return Err(failure("replace", &error)),
            }
        }
    }

    /// Lists up to `limit` names of a folder after `after`, in the order of the names. Object
    /// stores list in that order. The file system does not.
    pub(crate) async fn list(
        &self,
        folder: &[&str],
        after: Option<&str>,
        limit: usize,
    ) -> Result<Names, StoreError> {
        let path = folder.iter().fold(self.prefix.clone(), |path, part| path.join(*part));
        let listing = match after {
            Some(after) => self.store.list_with_offset(Some(&path), &path.clone().join(after)),
            None => self.store.list(Some(&path)),
        };
        let is_sorted = self.local.is_none();
        let most = if is_sorted { limit.saturating_add(1) } else { usize::MAX };
        let name = |object: object_store::ObjectMeta| {
            object.location.filename().unwrap_or_default().to_owned()
        };
        let names = listing.take(most).map_ok(name).try_collect::<Vec<_>>();
        let names = self.within("list", names).await?;
        let mut names = names.map_err(|error| failure("list", &error))?;
        names.sort_unstable();
        let has_more = names.len() > limit;
        names.truncate(limit);
        Ok(Names { names, has_more })
    }
}
