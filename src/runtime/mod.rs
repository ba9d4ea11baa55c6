//! What the library needs of an async runtime: to wait, and to work ahead of time.
#![forbid(unsafe_code)]

#[cfg(feature = "tokio")]
mod timer;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// A boxed future, so that `dyn` traits can be asynchronous.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Runs futures in the background and waits. Without one there are no timeouts, no retries and no hedges for calls to a key service,
/// and DEKs are renewed by the callers that find them due.
///
/// Both methods are called from any thread, inside and outside of async code. What they return is polled by
/// any executor, and neither may panic when the runtime behind it has ended.
pub trait Runtime: fmt::Debug + Send + Sync {
    /// Runs `future` to its end, some time. A runtime that has ended drops it.
    fn spawn(&self, future: BoxFuture<'static, ()>);

    /// Completes after `duration`, whoever polls it. A `sleep` that ends with its runtime, or that stands still while
    /// nobody drives it, takes the deadlines of all callers with it.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// Lets `future` use tokio's timers and channels without the budget of the task that happens to poll it: code that blocks within a task
/// never gets a new one, and would spin for ever.
#[cfg(feature = "tokio")]
pub(crate) fn unconstrained<F: Future>(future: F) -> impl Future<Output = F::Output> {
    ::tokio::task::coop::unconstrained(future)
}

#[cfg(not(feature = "tokio"))]
pub(crate) fn unconstrained<F: Future>(future: F) -> impl Future<Output = F::Output> {
    future
}
