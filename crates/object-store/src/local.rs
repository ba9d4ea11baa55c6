//! Local files. `object_store` has no conditional replacement of a file, so there is one here.
#![forbid(unsafe_code)]

use std::fs::{File, TryLockError};
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use tokio::sync::oneshot;
use waxseal::store::StoreError;

use crate::errors::failure;

/// The file that a process locks (`flock`) while it replaces a row. The system unlocks it when the
/// process ends, however it ends. The file stays, empty.
const LOCK: &str = "lock";
const POLL: Duration = Duration::from_millis(2);

#[derive(Clone)]
pub(crate) struct LocalFiles {
    pub(crate) files: LocalFileSystem,
    pub(crate) root: PathBuf,
}

impl LocalFiles {
    /// Replaces a file if it has these bytes. It runs to its end on a separate thread: a dropped
    /// future must not unlock while its file is still being written.
    pub(crate) async fn swap(
        &self,
        location: Path,
        old: Vec<u8>,
        new: Vec<u8>,
        bound: Duration,
    ) -> Result<bool, StoreError> {
        let (tell, told) = oneshot::channel();
        let files = self.clone();
        let thread = std::thread::Builder::new().name("waxseal-replace".to_owned());
        let swap = move || {
            let _ = tell.send(files.swap_now(&location, &old, new, bound));
        };
        let not_started =
            |error| StoreError::unavailable("no thread to replace a file").with_source(error);
        thread.spawn(swap).map_err(not_started)?;
        told.await.map_err(|_| StoreError::unavailable("the thread that replaces a file ended"))?
    }

    fn swap_now(
        &self,
        location: &Path,
        old: &[u8],
        new: Vec<u8>,
        bound: Duration,
    ) -> Result<bool, StoreError> {
        // Unlocks when it is dropped.
        let _lock = self.lock(bound)?;
        let found = match now(self.files.get(location))? {
            Ok(found) => now(found.bytes())?,
            Err(error) => Err(error),
        };
        match found {
            Ok(found) if found == old => {
                let put = now(self.files.put(location, PutPayload::from(new)))?;
                put.map(|_| true).map_err(|error| failure("replace", &error))
            }
            Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(failure("replace", &error)),
        }
    }

    fn lock(&self, bound: Duration) -> Result<File, StoreError> {
        let path = self.root.join(LOCK);
        let open = File::options().create(true).truncate(false).write(true).open(path);
        let lock = open.map_err(|error| {
            StoreError::misconfigured("the file `lock` cannot be opened").with_source(error)
        })?;
        let began = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::WouldBlock) if began.elapsed() < bound => {
                    std::thread::sleep(POLL);
                }
                Err(TryLockError::WouldBlock) => {
                    let text = "the file `lock` is always locked by others";
                    return Err(StoreError::throttled(text));
                }
                Err(TryLockError::Error(error)) => {
                    let text = "the file `lock` cannot be locked";
                    return Err(StoreError::misconfigured(text).with_source(error));
                }
            }
        }
    }
}

/// Outside a runtime the file system's futures do their work at once.
fn now<T>(future: impl Future<Output = T>) -> Result<T, StoreError> {
    future.now_or_never().ok_or_else(|| StoreError::unavailable("a file is not ready"))
}
