//! One call for many callers: whoever asks the same question while it is being asked shares the answer.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::future::Future;

use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};

use super::lease::Request;
use super::{ReadingDek, WritingDek};
use crate::error::Error;
use crate::kek::BoxFuture;
use crate::sync::{Arc, Mutex, PoisonError};

/// What a question gives, to everybody who asked it.
pub(super) type Answer<D> = Result<Arc<D>, Error>;
type Call<D> = BoxFuture<'static, Answer<D>>;

/// The questions that are being asked. A call lives as long as somebody waits for it: each waiter can drive it, so one that goes away
/// leaves the others their call, and the last one cancels it.
#[derive(Default)]
pub(super) struct Flights {
    reading: Questions<ReadingDek>,
    writing: Questions<WritingDek>,
}

struct Questions<D>(Mutex<HashMap<Request, WeakShared<Call<D>>>>);

impl<D> Default for Questions<D> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl Flights {
    pub(super) fn reading<F>(&self, request: Request, ask: impl FnOnce() -> F) -> Shared<Call<ReadingDek>>
    where
        F: Future<Output = Answer<ReadingDek>> + Send + 'static,
    {
        self.reading.join(request, ask)
    }

    pub(super) fn writing<F>(&self, request: Request, ask: impl FnOnce() -> F) -> Shared<Call<WritingDek>>
    where
        F: Future<Output = Answer<WritingDek>> + Send + 'static,
    {
        self.writing.join(request, ask)
    }
}

impl<D> Questions<D> {
    /// The call that is under way, or a new one. A call that has its answer is not joined any more.
    fn join<F>(&self, request: Request, ask: impl FnOnce() -> F) -> Shared<Call<D>>
    where
        F: Future<Output = Answer<D>> + Send + 'static,
    {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(call) = calls.get(&request).and_then(WeakShared::upgrade)
            && call.peek().is_none()
        {
            return call;
        }
        // Now and then, so that the map does not grow with what nobody waits for any more.
        if calls.len() >= 64 && calls.len().is_power_of_two() {
            calls.retain(|_, call| call.upgrade().is_some());
        }
        let call: Shared<Call<D>> = FutureExt::boxed(ask()).shared();
        calls.extend(call.downgrade().map(|weak| (request, weak)));
        call
    }
}
