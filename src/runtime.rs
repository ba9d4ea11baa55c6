//! What the library needs of an async runtime: to wait, and to work ahead of time.
#![forbid(unsafe_code)]

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// A boxed future, so that `dyn` traits can be asynchronous.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Runs futures in the background and waits. Without one nothing is ever waited for: DEKs are renewed by the callers that find
/// them due, and calls to a key service have no timeout, no retry and no hedge.
pub trait Runtime: Send + Sync {
    /// Runs `future` to its end, some time.
    fn spawn(&self, future: BoxFuture<'static, ()>);

    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The tokio runtime, caught when an [`Envelope`](crate::Envelope) is built within it.
#[cfg(feature = "tokio")]
pub(crate) struct Tokio(pub(crate) tokio::runtime::Handle);

#[cfg(feature = "tokio")]
impl Runtime for Tokio {
    fn spawn(&self, future: BoxFuture<'static, ()>) {
        drop(self.0.spawn(future));
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let _entered = self.0.enter();
        Box::pin(tokio::time::sleep(duration))
    }
}
