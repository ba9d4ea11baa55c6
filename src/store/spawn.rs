//! Runs a network client of a store on the tokio runtime in which the store was made, on whatever
//! executor its futures are polled.
#![forbid(unsafe_code)]

use std::future::Future;

use super::StoreError;
use crate::kek::toolkit::Spawner;
use crate::kek::{KekError, KekErrorClass};

/// The tokio runtime in which a [`KeyStore`](super::KeyStore) was made, if there was one.
///
/// It is for stores whose client needs such a runtime, as [`Spawner`] is for providers: whoever polls
/// may have none.
#[derive(Debug)]
pub struct StoreSpawner(Option<Spawner>);

impl StoreSpawner {
    /// Returns the runtime of the caller. Outside of one, or in one without timers or IO, the store
    /// works on the runtime of each of its callers.
    #[must_use]
    pub fn current() -> Self {
        Self(Spawner::current().ok())
    }

    /// Runs `work` on the runtime, on whatever executor this future is polled. Dropping the future
    /// ends the work.
    ///
    /// # Errors
    /// Those of the work. Misconfigured, if neither the store nor its caller has a runtime, and in a
    /// forked child. Unavailable, if the runtime ended in the middle of the work.
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

/// The spawner speaks of providers.
fn not_run(error: &KekError) -> StoreError {
    match error.class() {
        KekErrorClass::Misconfigured => StoreError::misconfigured(
            "the process forked since the store was made: make it anew in the child",
        ),
        _ => StoreError::unavailable(
            "the tokio runtime in which the store was made has ended, or nothing drives it",
        ),
    }
}
