//! One call for many callers: whoever asks the same question while it is being asked shares the answer.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::lease::RequestKey;
use super::pinned::Pinned;
use super::registry::Leased;
use super::{ReadingDek, WritingDek};
use crate::clock::Moment;
use crate::error::{Error, ErrorKind};
use crate::kek::BoxFuture;
use crate::kek::call::RequestCounter;
use crate::kek::set::Failure;
use crate::runtime::{Runtime, unconstrained};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::wakers::Wakers;
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What a question gives, to everybody who asked it.
pub(crate) type Answer<D> = Result<Arc<Pinned<D>>, Failure>;
type Work<D> = BoxFuture<'static, Answer<D>>;

/// A call that has been on its way for longer is not joined: whoever asks now asks anew, and does not wait for an
/// answer that a key service which hung will never give. So a service that is back is noticed within a second.
const JOINED_WITHIN: Duration = Duration::from_millis(750);
/// How often calls that ended, or that nobody drives, are looked for.
const SWEEP_EVERY: Duration = Duration::from_millis(250);

/// The questions that are being asked.
///
/// Every caller who waits for a call can drive it, so none depends on another one's runtime, patience or being polled.
/// Where the envelope has a runtime, a task there drives it too. It finishes the request that is on its way when
/// the last caller leaves, so that a key service slower than every caller's patience still gets its answer through.
/// Without that task, and while no request is on its way, the last caller who leaves cancels the call.
pub(super) struct Flights {
    reading: InFlight<ReadingDek>,
    writing: InFlight<WritingDek>,
    runtime: Option<Arc<dyn Runtime>>,
}

impl Flights {
    pub(super) fn new(runtime: Option<Arc<dyn Runtime>>) -> Self {
        Self { reading: InFlight::default(), writing: InFlight::default(), runtime }
    }

    pub(super) fn reading<F>(&self, now: Moment, key: RequestKey, ask: impl FnOnce() -> F) -> Waiter<ReadingDek>
    where
        F: Future<Output = Answer<ReadingDek>> + Send + 'static,
    {
        self.reading.join(now, key, || Call::new(ask(), self.runtime.clone()))
    }

    pub(super) fn writing<F>(&self, now: Moment, key: RequestKey, ask: impl FnOnce() -> F) -> Waiter<WritingDek>
    where
        F: Future<Output = Answer<WritingDek>> + Send + 'static,
    {
        self.writing.join(now, key, || Call::new(ask(), self.runtime.clone()))
    }
}

struct InFlight<D: Leased + 'static>(Mutex<Asked<D>>);

struct Asked<D: Leased + 'static> {
    flights: BTreeMap<RequestKey, Flight<D>>,
    sweep_at: Option<Moment>,
}

/// The calls for one question.
struct Flight<D: Leased + 'static> {
    began: Moment,
    newest: Weak<Call<D>>,
    /// One that was on its way for too long to be joined, and may still bring an answer. At most this one and the
    /// newest go on without callers, so a service that hangs is not asked again and again in the background.
    oldest: Weak<Call<D>>,
}

impl<D: Leased> Default for InFlight<D> {
    fn default() -> Self {
        Self(Mutex::new(Asked { flights: BTreeMap::new(), sweep_at: None }))
    }
}

/// What must be dropped outside the lock: a call's work, and a DEK in its answer, may tell observers of their end.
type Leftovers<D> = Vec<(Arc<Call<D>>, Option<Work<D>>)>;

impl<D: Leased> InFlight<D> {
    /// The call that is under way, or a new one. A call that has its answer is not joined any more.
    fn join(&self, now: Moment, key: RequestKey, ask: impl FnOnce() -> Arc<Call<D>>) -> Waiter<D> {
        let mut leftovers = Leftovers::new();
        let waiter = {
            let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let before = asked.flights.get(&key).map(|flight| (flight.began, flight.calls()));
            let under_way = match &before {
                Some((began, [Some(newest), _])) if !now.is_past(began.plus(JOINED_WITHIN)) => newest.join(),
                _ => None,
            };
            let waiter = under_way.unwrap_or_else(|| {
                asked.sweep(now, &mut leftovers);
                let (call, waiter) = Waiter::first(ask());
                let oldest = match before.as_ref().map(|(_, calls)| calls) {
                    Some([newest, Some(oldest)]) if oldest.is_under_way() => {
                        leftovers.extend(newest.as_ref().map(|newest| (newest.clone(), newest.end_with_callers())));
                        Arc::downgrade(oldest)
                    }
                    Some([Some(newest), _]) => Arc::downgrade(newest),
                    _ => Weak::new(),
                };
                asked.flights.insert(key, Flight { began: now, newest: Arc::downgrade(&call), oldest });
                waiter
            });
            leftovers.extend(before.into_iter().flat_map(|(_, calls)| calls).flatten().map(|call| (call, None)));
            waiter
        };
        leftovers.into_iter().for_each(|(call, work)| call.discard(work));
        waiter
    }
}

impl<D: Leased> Flight<D> {
    fn calls(&self) -> [Option<Arc<Call<D>>>; 2] {
        [self.newest.upgrade(), self.oldest.upgrade()]
    }
}

impl<D: Leased> Asked<D> {
    /// Now and then, so that the map does not grow with what ended, nor the budget shrink by what nobody drives.
    fn sweep(&mut self, now: Moment, leftovers: &mut Leftovers<D>) {
        let many = self.flights.len() >= 64 && self.flights.len().is_power_of_two();
        if !many && self.sweep_at.is_some_and(|at| !now.is_past(at)) {
            return;
        }
        self.sweep_at = Some(now.plus(SWEEP_EVERY));
        self.flights.retain(|_, flight| {
            let mut under_way = false;
            for call in flight.calls().into_iter().flatten() {
                let ended = call.end_if_undriven();
                under_way |= call.is_under_way();
                leftovers.push((call, ended));
            }
            under_way
        });
    }
}

struct Call<D: Leased + 'static> {
    waker: Arc<CallWaker>,
    wire: RequestCounter,
    state: Mutex<State<D>>,
}

struct State<D: Leased + 'static> {
    /// Taken out by whoever polls it, so that no lock is held meanwhile.
    work: Option<Work<D>>,
    /// There when the call is over. An error if it was cancelled, which nobody waits for.
    answer: Option<Answer<D>>,
    callers: usize,
    /// Until the first poll that leaves the call unanswered, which starts the task there.
    runtime: Option<Arc<dyn Runtime>>,
    /// That task is there and has been polled: a runtime that nobody drives cannot be relied on.
    task_drives: bool,
    /// Others took its place, so it ends with its callers.
    ends_with_callers: bool,
    /// It had been woken, and nobody had polled it, when it was looked at.
    neglected: bool,
}

impl<D: Leased> State<D> {
    /// Ends it if it is of no use. What is left of it is to be discarded outside the lock. While it is being polled
    /// that is for whoever polls it to decide.
    fn end_unless_wanted(&mut self, wire: &RequestCounter) -> Option<Work<D>> {
        let goes_on = self.task_drives && !self.ends_with_callers && wire.is_busy();
        if self.work.is_none() || self.callers > 0 || goes_on {
            return None;
        }
        self.end()
    }

    fn end(&mut self) -> Option<Work<D>> {
        self.answer = Some(Err(Error::new(ErrorKind::Unavailable, "nobody waited for the answer").into()));
        self.work.take()
    }
}

impl<D: Leased> Call<D> {
    fn new(work: impl Future<Output = Answer<D>> + Send + 'static, runtime: Option<Arc<dyn Runtime>>) -> Arc<Self> {
        let state = State {
            work: Some(Box::pin(unconstrained(work))),
            answer: None,
            callers: 0,
            runtime,
            task_drives: false,
            ends_with_callers: false,
            neglected: false,
        };
        Arc::new(Self { waker: CallWaker::woken(), wire: RequestCounter::default(), state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State<D>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_under_way(&self) -> bool {
        self.lock().answer.is_none()
    }

    /// One more caller, if it is under way.
    fn join(self: &Arc<Self>) -> Option<Waiter<D>> {
        let mut state = self.lock();
        if state.answer.is_some() {
            return None;
        }
        state.callers += 1;
        drop(state);
        Some(Waiter::new(self.clone(), Role::Caller))
    }

    fn end_with_callers(&self) -> Option<Work<D>> {
        let mut state = self.lock();
        state.ends_with_callers = true;
        state.end_unless_wanted(&self.wire)
    }

    /// Ends a call without callers whose task does not poll it though it was woken: its runtime is not driven any more.
    fn end_if_undriven(&self) -> Option<Work<D>> {
        let mut state = self.lock();
        if state.work.is_none() || state.callers > 0 || !self.waker.is_woken() {
            return None;
        }
        if !std::mem::replace(&mut state.neglected, true) {
            return None;
        }
        state.end()
    }

    /// Drops what is left of a call that ended, and lets its task know.
    fn discard(&self, work: Option<Work<D>>) {
        if work.is_some() {
            // A provider whose future panics when it is dropped harms nobody.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(work)));
            self.waker.wakers.wake_all();
        }
    }

    /// Polls the work, unless somebody else does, or nothing has happened since it was polled last. A waiter that the bell did not
    /// wake has reasons of its own to look.
    fn drive(&self, role: Role, was_woken: bool) -> Poll<Answer<D>> {
        let mut work = {
            let mut state = self.lock();
            state.task_drives |= role == Role::Task;
            if let Some(answer) = &state.answer {
                return Poll::Ready(answer.clone());
            }
            // Whoever polls it now looks at the bell afterwards, and wakes the others if it rang.
            let Some(work) = state.work.take_if(|_| self.waker.is_woken() || !was_woken) else { return Poll::Pending };
            self.waker.woken.store(false, Ordering::SeqCst);
            state.neglected = false;
            work
        };
        let waker = Waker::from(self.waker.clone());
        let mut poll = || self.wire.scope(|| work.as_mut().poll(&mut Context::from_waker(&waker)));
        let polled = catch_unwind(AssertUnwindSafe(&mut poll)).unwrap_or_else(|_| Poll::Ready(Err(panicked())));
        match polled {
            Poll::Ready(answer) => {
                // Before the answer is there, so that nothing of the call outlives what its callers do next.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(work)));
                self.lock().answer = Some(answer.clone());
                self.waker.wakers.wake_all();
                Poll::Ready(answer)
            }
            Poll::Pending => {
                let mut state = self.lock();
                state.work = Some(work);
                let ended = state.end_unless_wanted(&self.wire);
                let answer = state.answer.clone();
                drop(state);
                self.discard(ended);
                if self.waker.is_woken() {
                    self.waker.wakers.wake_all();
                }
                answer.map_or(Poll::Pending, Poll::Ready)
            }
        }
    }

    /// Starts the task that drives it as well, once.
    fn start_task(self: &Arc<Self>) {
        let mut state = self.lock();
        let Some(runtime) = state.runtime.take() else { return };
        drop(state);
        let task = Waiter::new(self.clone(), Role::Task);
        let spawn = || runtime.spawn(Box::pin(async move { drop(task.await) }));
        // Without the task its callers drive it.
        let _ = catch_unwind(AssertUnwindSafe(spawn));
    }
}

fn panicked() -> Failure {
    Error::new(ErrorKind::Unavailable, "the call panicked").into()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Caller,
    Task,
}

/// One caller's part in a call, or that of the task that goes on with it.
pub(crate) struct Waiter<D: Leased + 'static> {
    call: Arc<Call<D>>,
    role: Role,
    slot: usize,
}

impl<D: Leased> Waiter<D> {
    fn new(call: Arc<Call<D>>, role: Role) -> Self {
        let slot = call.waker.wakers.add();
        Self { call, role, slot }
    }

    /// Of a new call.
    fn first(call: Arc<Call<D>>) -> (Arc<Call<D>>, Self) {
        call.lock().callers += 1;
        (call.clone(), Self::new(call, Role::Caller))
    }
}

impl<D: Leased> Future for Waiter<D> {
    type Output = Answer<D>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer<D>> {
        // Before it looks, so that whatever happens from here on wakes it.
        let was_woken = self.call.waker.wakers.register(self.slot, cx.waker());
        let answer = self.call.drive(self.role, was_woken);
        if answer.is_pending() && self.role == Role::Caller {
            self.call.start_task();
        }
        answer
    }
}

impl<D: Leased> Drop for Waiter<D> {
    fn drop(&mut self) {
        self.call.waker.wakers.remove(self.slot);
        let mut state = self.call.lock();
        match self.role {
            Role::Caller => state.callers = state.callers.saturating_sub(1),
            Role::Task => state.task_drives = false,
        }
        let ended = state.end_unless_wanted(&self.call.wire);
        drop(state);
        self.call.discard(ended);
    }
}

/// The waker of a call's work. It wakes all that wait for the call.
struct CallWaker {
    /// Something happened since the work was polled last.
    woken: AtomicBool,
    wakers: Wakers,
}

impl CallWaker {
    /// For new work, which has to be polled.
    fn woken() -> Arc<Self> {
        Arc::new(Self { woken: AtomicBool::new(true), wakers: Wakers::default() })
    }

    fn is_woken(&self) -> bool {
        self.woken.load(Ordering::SeqCst)
    }
}

impl Wake for CallWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        self.wakers.wake_all();
    }
}
