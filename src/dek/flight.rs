//! One call for many callers: whoever asks the same question while it is being asked shares the answer.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};

use super::keks::Failure;
use super::lease::Request;
use super::pinned::Pinned;
use super::registry::Mortal;
use super::{ReadingDek, WritingDek};
use crate::kek::BoxFuture;
use crate::memory::clock::Moment;
use crate::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What a question gives, to everybody who asked it.
pub(crate) type Answer<D> = Result<Arc<Pinned<D>>, Failure>;
type Call<D> = BoxFuture<'static, Answer<D>>;

/// The questions that are being asked. A call lives as long as somebody waits for it: each waiter can drive it, so one that goes away
/// leaves the others their call, and the last one cancels it.
#[derive(Default)]
pub(super) struct Flights {
    reading: Questions<ReadingDek>,
    writing: Questions<WritingDek>,
}

struct Questions<D: Mortal + 'static>(Mutex<HashMap<Request, Flight<D>>>);

struct Flight<D: Mortal + 'static> {
    began: Moment,
    call: WeakShared<Call<D>>,
    everybody: Everybody,
}

/// A call that has been on its way for longer is not joined: whoever asks now asks anew, and does not wait for an answer that a key
/// service which hung will never give. So a service that is back is noticed within a second.
const JOINED_WITHIN: Duration = Duration::from_millis(750);

/// What wakes all who wait for a call, once it was polled.
type Everybody = Arc<OnceLock<Waker>>;

/// One caller's part in a call. Who leaves before the answer wakes the others: what woke the call may have reached only the one that leaves,
/// since a `Shared` wakes those that wait at that moment, and not who comes while the call is being polled.
pub(crate) struct Part<D: Mortal + 'static> {
    call: Shared<Call<D>>,
    everybody: Everybody,
    answered: bool,
}

impl<D: Mortal> Future for Part<D> {
    type Output = Answer<D>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer<D>> {
        let answer = self.call.poll_unpin(cx);
        self.answered = answer.is_ready();
        answer
    }
}

impl<D: Mortal> Drop for Part<D> {
    fn drop(&mut self) {
        if !self.answered
            && let Some(everybody) = self.everybody.get()
        {
            everybody.wake_by_ref();
        }
    }
}

impl<D: Mortal> Default for Questions<D> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl Flights {
    pub(super) fn reading<F>(&self, now: Moment, request: Request, ask: impl FnOnce() -> F) -> Part<ReadingDek>
    where
        F: Future<Output = Answer<ReadingDek>> + Send + 'static,
    {
        self.reading.join(now, request, ask)
    }

    pub(super) fn writing<F>(&self, now: Moment, request: Request, ask: impl FnOnce() -> F) -> Part<WritingDek>
    where
        F: Future<Output = Answer<WritingDek>> + Send + 'static,
    {
        self.writing.join(now, request, ask)
    }
}

impl<D: Mortal> Questions<D> {
    /// The call that is under way, or a new one. A call that has its answer is not joined any more.
    fn join<F>(&self, now: Moment, request: Request, ask: impl FnOnce() -> F) -> Part<D>
    where
        F: Future<Output = Answer<D>> + Send + 'static,
    {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = calls.get(&request).filter(|flight| !now.is_past(flight.began.plus(JOINED_WITHIN)));
        if let Some(Flight { call, everybody, .. }) = under_way
            && let Some(call) = call.upgrade()
            && call.peek().is_none()
        {
            return Part { call, everybody: everybody.clone(), answered: false };
        }
        // Now and then, so that the map does not grow with what nobody waits for any more.
        if calls.len() >= 64 && calls.len().is_power_of_two() {
            calls.retain(|_, flight| flight.call.upgrade().is_some());
        }
        let everybody = Everybody::default();
        let (call, all) = (ask(), everybody.clone());
        let call = async move {
            let mut call = pin!(call);
            poll_fn(|cx| {
                // The same waker at each poll, whoever polls.
                all.get_or_init(|| cx.waker().clone());
                call.as_mut().poll(cx)
            })
            .await
        };
        let call: Shared<Call<D>> = FutureExt::boxed(call).shared();
        calls.extend(
            call.downgrade().map(|weak| (request, Flight { began: now, call: weak, everybody: everybody.clone() })),
        );
        Part { call, everybody, answered: false }
    }
}
