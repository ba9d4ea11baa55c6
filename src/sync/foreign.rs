//! Foreign code: providers, policies, runtimes, subscribers. A panic in it is caught here, even one
//! in its destructors: a second panic while a first one unwinds would end the process.
#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

/// Calls foreign code. Returns `None` if it panicked.
pub(crate) fn caught<R>(work: impl FnOnce() -> R) -> Option<R> {
    // The destructor of a panic's payload is foreign code too, so it does not run.
    catch_unwind(AssertUnwindSafe(work)).map_err(std::mem::forget).ok()
}

/// Owns a foreign value and catches a panic of its destructor.
pub(crate) struct Contained<T>(Option<T>);

impl<T> Contained<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }

    pub(crate) fn get(&self) -> Option<&T> {
        self.0.as_ref()
    }

    #[cfg(feature = "audit")]
    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        self.0.as_mut()
    }

    fn into_inner(mut self) -> Option<T> {
        self.0.take()
    }

    /// Drops the value now. Returns whether that succeeded.
    fn release(&mut self) -> bool {
        let value = self.0.take();
        caught(|| drop(value)).is_some()
    }
}

impl<T: fmt::Debug> fmt::Debug for Contained<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T> Drop for Contained<T> {
    fn drop(&mut self) {
        self.release();
    }
}

/// A foreign future, polled and dropped so that no panic escapes. If it were a local of an `async`
/// block, a panic in its poll would drop it while unwinding.
pub(crate) struct Foreign<F>(Contained<F>);

impl<F: Future + Unpin> Foreign<F> {
    pub(crate) fn new(future: F) -> Self {
        Self(Contained::new(future))
    }
}

impl<F> Unpin for Foreign<F> {}

impl<F: Future + Unpin> Future for Foreign<F> {
    /// `None` if it panicked.
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // A future is not polled after its end. If it is, it stays pending.
        let Some(future) = self.0.0.as_mut() else { return Poll::Pending };
        match caught(|| Pin::new(future).poll(cx)) {
            Some(Poll::Pending) => Poll::Pending,
            Some(Poll::Ready(answer)) => {
                let answer = Contained::new(answer);
                Poll::Ready(if self.0.release() { answer.into_inner() } else { None })
            }
            None => {
                self.0.release();
                Poll::Ready(None)
            }
        }
    }
}
