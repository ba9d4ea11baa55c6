//! Runs a network client of a store on the tokio runtime in which the store was made, whichever
//! executor polls its futures.
#![forbid(unsafe_code)]

use std::future::Future;

use super::StoreError;
use crate::kek::toolkit::Spawner;
use crate::kek::{KekError, KekErrorClass};

/// The tokio runtime in which a [`KeyStore`](super::KeyStore) was made, if there was one.
///
/// It is for stores whose client needs such a runtime, as [`Spawner`] is for providers. The
/// executor that polls the store may have none.
#[derive(Debug)]
pub struct StoreSpawner(Option<Spawner>);

impl StoreSpawner {
    /// Returns the caller's runtime. Outside of one, or in one without timers or IO, the store
    /// works on the runtime of each of its callers.
    #[must_use]
    pub fn current() -> Self {
        Self(Spawner::current().ok())
    }

    /// Runs `work` on the runtime, whichever executor polls this future. Dropping the future ends
    /// the work.
    ///
    /// # Errors
    /// Those of the work. Misconfigured, if neither the store nor its caller has a runtime, and in
    /// a forked child. Unavailable, if the runtime ended while the work was running.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        match &self.0 {
            Some(spawner) => {
                let work = async move { Ok::<_, KekError>(work.await) };
                spawner.run(work).await.unwrap_or_else(|error| Err(not_run(&error)))
            }
            None if crate::runtime::tokio::is_here() => work.await,
            None => Err(StoreError::misconfigured(
                "the store was made outside of a tokio runtime with timers and IO, and so is its \
                 caller",
            )),
        }
    }
}

/// The spawner's errors speak of providers.
fn not_run(error: &KekError) -> StoreError {
    match error.class() {
        KekErrorClass::Misconfigured => StoreError::misconfigured(
            "the process forked since the store was made: make it again in the child",
        ),
        _ => StoreError::unavailable(
            "the tokio runtime in which the store was made has ended, or nothing drives it",
        ),
    }
}
