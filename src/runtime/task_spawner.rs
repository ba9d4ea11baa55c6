//! Runs tasks on the runtime in which something was built.
#![forbid(unsafe_code)]

use std::future::Future;

#[cfg(feature = "tokio")]
use crate::memory::fork;
use crate::sync::foreign::Foreign;

/// The tokio runtime in which something was built, if there was one. Later work also runs there, so
/// that it does not depend on the runtime of the caller that caused it.
#[derive(Debug)]
pub(crate) struct TaskSpawner {
    #[cfg(feature = "tokio")]
    runtime: Option<super::tokio::Handle>,
    /// The process in which it was built. In the child of a fork the runtime's threads do not
    /// exist.
    #[cfg(feature = "tokio")]
    generation: u64,
}

/// Why there is no result.
#[derive(Debug)]
pub(crate) enum Interrupted {
    Panicked,
    /// The runtime ended while the work was running.
    #[cfg(feature = "tokio")]
    Ended,
}

impl TaskSpawner {
    pub(crate) fn current() -> Self {
        Self {
            #[cfg(feature = "tokio")]
            runtime: super::tokio::Handle::try_current().ok(),
            #[cfg(feature = "tokio")]
            generation: fork::generation(),
        }
    }

    #[cfg(feature = "tokio")]
    fn runtime(&self) -> Option<&super::tokio::Handle> {
        self.runtime.as_ref().filter(|_| self.generation == fork::generation())
    }

    /// Runs `work`, which may be foreign code, there. Without a runtime, or if it has ended or
    /// starts nothing, the work runs where this future is polled. Dropping the future ends the
    /// work.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Interrupted> {
        let work = Foreign::new(Box::pin(work));
        #[cfg(feature = "tokio")]
        let worked = match self.runtime() {
            Some(runtime) => {
                let worked = super::tokio::run_on(runtime, work).await;
                worked.map_err(|super::tokio::EndedMeanwhile| Interrupted::Ended)?
            }
            None => work.await,
        };
        #[cfg(not(feature = "tokio"))]
        let worked = work.await;
        worked.ok_or(Interrupted::Panicked)
    }

    /// Whether [`spawn`](Self::spawn) has a runtime for the work.
    #[cfg(feature = "domains")]
    pub(crate) fn takes_tasks(&self) -> bool {
        #[cfg(feature = "tokio")]
        return self.runtime().is_some();
        #[cfg(not(feature = "tokio"))]
        false
    }

    /// Runs `work` in the background, or drops it if there is no runtime, or it has ended.
    #[cfg(feature = "domains")]
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        #[cfg(feature = "tokio")]
        if let Some(runtime) = self.runtime() {
            let _ = super::tokio::spawn_on(runtime, work);
            return;
        }
        drop(work);
    }
}
