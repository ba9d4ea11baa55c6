//! Where a network provider works: on the tokio runtime in which it was built, whoever polls its futures.
#![forbid(unsafe_code)]

use std::future::Future;

use tokio::runtime::Handle;

use super::KekError;
use crate::memory::fork;
use crate::runtime::Task;

/// The tokio runtime in which a provider was built.
pub(super) struct Home {
    runtime: Handle,
    /// Of the process in which it was built.
    generation: u64,
}

impl Home {
    /// `None` outside a tokio runtime.
    pub(super) fn current() -> Option<Self> {
        Some(Self { runtime: Handle::try_current().ok()?, generation: fork::generation() })
    }

    /// After a fork the runtime's threads are the parent's: whatever is given to it in the child waits for ever.
    pub(super) fn is_of_this_process(&self) -> bool {
        self.generation == fork::generation()
    }

    /// Runs `work` there, whoever polls; ends it there when it is dropped here.
    pub(super) async fn run<T, E>(
        &self,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, KekError>
    where
        T: Send + 'static,
        E: Send + 'static + Into<KekError>,
    {
        if !self.is_of_this_process() {
            return Err(KekError::misconfigured(
                "the process forked since the provider was built; build it anew in the child",
            ));
        }
        match Task(self.runtime.spawn(work)).await {
            Ok(result) => result.map_err(Into::into),
            Err(_) => Err(KekError::unavailable("the tokio runtime in which the provider was built has ended")),
        }
    }

    /// Runs `work` there in the background.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if self.is_of_this_process() {
            self.runtime.spawn(work);
        }
    }

    #[cfg(feature = "vault-transit")]
    pub(super) fn handle(&self) -> &Handle {
        &self.runtime
    }
}
