//! What the library needs of an async runtime: very little, and only for work ahead of time.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::kek::BoxFuture;

/// Runs futures in the background and waits. Without one, DEKs are renewed by the callers that find them due.
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
