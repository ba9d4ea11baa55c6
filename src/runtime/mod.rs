//! What the library needs from an async runtime: timers and background tasks.
#![forbid(unsafe_code)]

mod task_spawner;
#[cfg(any(feature = "domains", feature = "tokio"))]
mod timer;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;

pub(crate) use task_spawner::{Interrupted, TaskSpawner};

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// What an error says about an option that needs a runtime, if there is none.
pub(crate) const NEEDED: &str =
    "needs a runtime: build in a tokio runtime with the feature `tokio`, or set `runtime`";

/// A boxed future, which makes methods of `dyn` traits asynchronous.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Runs futures in the background and provides timers. Without a runtime there are no timeouts, no
/// retries and no hedging of calls to a key service, and a caller that finds a DEK due renews it.
///
/// Both methods are called from any thread, inside and outside of async code. Any executor may poll
/// the returned futures. Neither may panic after the runtime behind it has ended.
pub trait Runtime: fmt::Debug + Send + Sync {
    /// Runs `future` to its end in the background. A runtime that has ended drops it.
    fn spawn(&self, future: BoxFuture<'static, ()>);

    /// Completes after `duration`, whichever executor polls it. A `sleep` that depends on one
    /// runtime's progress breaks the deadlines of all callers when that runtime ends or stalls.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// Completes after `duration`, on a thread of this library. If none can be started, it completes at
/// once.
#[cfg(feature = "domains")]
pub(crate) async fn sleep(duration: Duration) {
    let _ = timer::sleep(duration).await;
}

/// Lets `future` use tokio's timers and channels without the budget of the task that polls it. Code
/// that blocks within a task never gets a new budget, and would spin forever.
#[cfg(feature = "tokio")]
pub(crate) fn unconstrained<F: Future>(future: F) -> impl Future<Output = F::Output> {
    ::tokio::task::coop::unconstrained(future)
}

#[cfg(not(feature = "tokio"))]
pub(crate) fn unconstrained<F: Future>(future: F) -> impl Future<Output = F::Output> {
    future
}
