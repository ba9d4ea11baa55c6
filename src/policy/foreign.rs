//! Values of foreign code. Their destructors may panic, and no panic gets out of here.
#![forbid(unsafe_code)]

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use super::{BoxFuture, Decision};
use crate::error::Error;

/// Calls foreign code. `None` if it panicked.
pub(super) fn caught<R>(work: impl FnOnce() -> R) -> Option<R> {
    // The destructor of a panic's payload is foreign code too, so it does not run.
    catch_unwind(AssertUnwindSafe(work)).map_err(std::mem::forget).ok()
}

/// Owns a foreign value and drops it so that a panic of its destructor ends there.
pub(super) struct Contained<T>(Option<T>);

impl<T> Contained<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Some(value))
    }

    pub(super) fn get(&self) -> Option<&T> {
        self.0.as_ref()
    }

    /// Drops the value now. Returns whether that went well.
    fn release(&mut self) -> bool {
        let value = self.0.take();
        caught(|| drop(value)).is_some()
    }
}

impl<T> Drop for Contained<T> {
    fn drop(&mut self) {
        self.release();
    }
}

type Answer = Result<Decision, Error>;

/// The future of a policy. It is polled and dropped so that no panic gets out.
pub(super) struct Deciding<'a>(Contained<BoxFuture<'a, Answer>>);

impl<'a> Deciding<'a> {
    pub(super) fn new(future: BoxFuture<'a, Answer>) -> Self {
        Self(Contained::new(future))
    }
}

impl Future for Deciding<'_> {
    /// `None` if it panicked.
    type Output = Option<Result<Decision, Contained<Error>>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // A future is not polled after its end. If it is, it stays silent.
        let Some(future) = self.0.0.as_mut() else { return Poll::Pending };
        match caught(|| future.as_mut().poll(cx)) {
            Some(Poll::Pending) => Poll::Pending,
            Some(Poll::Ready(answer)) => {
                let answer = answer.map_err(Contained::new);
                Poll::Ready(self.0.release().then_some(answer))
            }
            None => {
                self.0.release();
                Poll::Ready(None)
            }
        }
    }
}
