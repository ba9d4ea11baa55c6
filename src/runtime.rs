//! What the library needs of an async runtime: to wait, and to work ahead of time.
#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::pin::Pin;
#[cfg(feature = "tokio")]
use std::sync::Arc;
#[cfg(feature = "tokio")]
use std::task::{Context, Poll};
use std::time::Duration;

#[cfg(feature = "tokio")]
use async_lock::OnceCell;

/// A boxed future, so that `dyn` traits can be asynchronous.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Runs futures in the background and waits. Without one nothing is ever waited for: DEKs are renewed by the callers that find
/// them due, and calls to a key service have no timeout, no retry and no hedge.
pub trait Runtime: fmt::Debug + Send + Sync {
    /// Runs `future` to its end, some time.
    fn spawn(&self, future: BoxFuture<'static, ()>);

    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The tokio runtime, caught when an [`Envelope`](crate::Envelope) is built within it.
#[cfg(feature = "tokio")]
#[derive(Debug)]
pub(crate) struct Tokio(pub(crate) tokio::runtime::Handle);

#[cfg(feature = "tokio")]
impl Runtime for Tokio {
    fn spawn(&self, future: BoxFuture<'static, ()>) {
        drop(self.0.spawn(future));
    }

    /// An envelope may outlast the runtime that it was built in, whose timers panic then. The one that polls lives; without one, a task
    /// tells whether the other does.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        if tokio::runtime::Handle::try_current().is_ok() {
            return Box::pin(tokio::time::sleep(duration));
        }
        let task = Task(self.0.spawn(async move { tokio::time::sleep(duration).await }));
        Box::pin(async move {
            if task.await.is_err() {
                sleep_on_a_thread(duration).await;
            }
        })
    }
}

/// Ends with whoever waits for it.
#[cfg(feature = "tokio")]
pub(crate) struct Task<T>(pub(crate) tokio::task::JoinHandle<T>);

#[cfg(feature = "tokio")]
impl<T> Future for Task<T> {
    type Output = Result<T, tokio::task::JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

#[cfg(feature = "tokio")]
impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(feature = "tokio")]
async fn sleep_on_a_thread(duration: Duration) {
    let over = Arc::new(OnceCell::new());
    let thread = over.clone();
    let started = std::thread::Builder::new().name("waxseal-sleep".to_owned()).spawn(move || {
        std::thread::sleep(duration);
        let _ = thread.set_blocking(());
    });
    if started.is_ok() {
        over.wait().await;
    }
}
