//! One call for many callers: whoever asks the same question while it is being asked shares the answer.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};

use super::lease::Request;
use super::{ReadingDek, WritingDek};
use crate::error::Error;
use crate::kek::BoxFuture;
use crate::memory::clock::Moment;

/// What a question gives, to everybody who asked it.
pub(super) type Answer<D> = Result<Arc<D>, Error>;
type Call<D> = BoxFuture<'static, Answer<D>>;
pub(super) type SharedCall<D> = Shared<Call<D>>;

/// The questions that are being asked. A call lives as long as somebody waits for it: each waiter can drive it, so one that goes away
/// leaves the others their call, and the last one cancels it.
#[derive(Default)]
pub(super) struct Flights {
    reading: Questions<ReadingDek>,
    writing: Questions<WritingDek>,
}

struct Questions<D>(Mutex<HashMap<Request, Flight<D>>>);

struct Flight<D> {
    began: Moment,
    call: WeakShared<Call<D>>,
}

/// A call that has been on its way for longer is not joined: whoever asks now asks anew, and does not wait for an answer that a key
/// service which hung will never give. So a service that is back is noticed within a second.
const JOINED_WITHIN: Duration = Duration::from_millis(750);

impl<D> Default for Questions<D> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl Flights {
    pub(super) fn reading<F>(&self, now: Moment, request: Request, ask: impl FnOnce() -> F) -> SharedCall<ReadingDek>
    where
        F: Future<Output = Answer<ReadingDek>> + Send + 'static,
    {
        self.reading.join(now, request, ask)
    }

    pub(super) fn writing<F>(&self, now: Moment, request: Request, ask: impl FnOnce() -> F) -> SharedCall<WritingDek>
    where
        F: Future<Output = Answer<WritingDek>> + Send + 'static,
    {
        self.writing.join(now, request, ask)
    }
}

impl<D> Questions<D> {
    /// The call that is under way, or a new one. A call that has its answer is not joined any more.
    fn join<F>(&self, now: Moment, request: Request, ask: impl FnOnce() -> F) -> SharedCall<D>
    where
        F: Future<Output = Answer<D>> + Send + 'static,
    {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = calls.get(&request).filter(|flight| !now.is_past(flight.began.plus(JOINED_WITHIN)));
        if let Some(call) = under_way.and_then(|flight| flight.call.upgrade())
            && call.peek().is_none()
        {
            return call;
        }
        // Now and then, so that the map does not grow with what nobody waits for any more.
        if calls.len() >= 64 && calls.len().is_power_of_two() {
            calls.retain(|_, flight| flight.call.upgrade().is_some());
        }
        let call: SharedCall<D> = FutureExt::boxed(ask()).shared();
        calls.extend(call.downgrade().map(|weak| (request, Flight { began: now, call: weak })));
        call
    }
}
