//! Where the calls of a store run: its client needs a tokio runtime, and whoever polls may have none.
#![forbid(unsafe_code)]

use std::future::Future;

use tokio::runtime::Handle;
use waxseal::kek::toolkit::Spawner;
use waxseal::kek::{KekError, KekErrorClass};
use waxseal::store::StoreError;

/// The tokio runtime in which a store was made, if there was one.
pub(crate) struct Home(Option<Spawner>);

impl Home {
    pub(crate) fn current() -> Self {
        Self(Spawner::current().ok())
    }

    /// Runs `work` there, whoever polls this future. A store that was made outside of a runtime works
    /// on that of its caller.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        match &self.0 {
            Some(spawner) => {
                let work = async move { Ok::<_, KekError>(work.await) };
                spawner.run(work).await.unwrap_or_else(|error| Err(not_run(&error)))
            }
            None if Handle::try_current().is_ok() => work.await,
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
