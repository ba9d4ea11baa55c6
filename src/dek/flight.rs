//! One call for many callers: concurrent callers with the same request share the response.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash};
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
use crate::sync::foreign::caught;
use crate::sync::wakers::Wakers;
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The outcome of a request, for all callers that made it.
pub(crate) type Answer<D> = Result<Arc<Pinned<D>>, Failure>;
type Work<A> = BoxFuture<'static, A>;

/// A result that many callers can share.
pub(crate) trait Shareable: Clone + Send + 'static {
    /// Returns the answer of a call that panicked.
    fn panicked() -> Self;

    /// Returns the answer of a call that ended because nobody waited for it. No caller sees it.
    fn nobody_waited() -> Self;
}

impl<D: Leased + 'static> Shareable for Answer<D> {
    fn panicked() -> Self {
        Err(Error::new(ErrorKind::Unavailable, "the call panicked").into())
    }

    fn nobody_waited() -> Self {
        Err(Error::new(ErrorKind::Unavailable, "no caller waited for the response").into())
    }
}

/// A call that has been in flight for longer is not joined. A later caller starts a new call. So it
/// does not wait for a hung service, and a recovered service is noticed within a second.
const JOINED_WITHIN: Duration = Duration::from_millis(750);
/// How often to look for calls that ended or that no task polls.
const SWEEP_EVERY: Duration = Duration::from_millis(250);

/// The requests in flight.
///
/// Every waiting caller can poll the call, so none depends on another caller's runtime, timeout or
/// executor. If the envelope has a runtime, a task there polls it too. That task finishes the
/// request in flight after the last caller left, so a key service slower than every caller's
/// timeout still gets its response through. Without that task, and between two requests, the call
/// is cancelled when the last caller leaves.
pub(super) struct Flights {
    reading: InFlight<RequestKey, Answer<ReadingDek>>,
    writing: InFlight<RequestKey, Answer<WritingDek>>,
    runtime: Option<Arc<dyn Runtime>>,
}

impl Flights {
    pub(super) fn new(runtime: Option<Arc<dyn Runtime>>) -> Self {
        Self { reading: InFlight::default(), writing: InFlight::default(), runtime }
    }

    pub(super) fn reading<F>(
        &self,
        now: Moment,
        key: RequestKey,
        ask: impl FnOnce() -> F,
    ) -> Waiter<Answer<ReadingDek>>
    where
        F: Future<Output = Answer<ReadingDek>> + Send + 'static,
    {
        self.reading.join(now, key, self.runtime.as_ref(), ask)
    }

    pub(super) fn writing<F>(
        &self,
        now: Moment,
        key: RequestKey,
        ask: impl FnOnce() -> F,
    ) -> Waiter<Answer<WritingDek>>
    where
        F: Future<Output = Answer<WritingDek>> + Send + 'static,
    {
        self.writing.join(now, key, self.runtime.as_ref(), ask)
    }
}

/// The calls in flight, by request.
pub(crate) struct InFlight<K, A: Shareable>(Mutex<Asked<K, A>>);

struct Asked<K, A: Shareable> {
    /// Outsiders cannot choose the hash of a key.
    flights: HashMap<K, Flight<A>, BuildHasherDefault<DefaultHasher>>,
    sweep_at: Option<Moment>,
}

/// The calls for one request.
struct Flight<A: Shareable> {
    began: Moment,
    newest: Weak<Call<A>>,
    /// A call that is too old to be joined but may still bring a response. Only this one and the
    /// newest continue without callers, so that a hung service is not asked again and again in the
    /// background.
    oldest: Weak<Call<A>>,
}

impl<K, A: Shareable> Default for InFlight<K, A> {
    fn default() -> Self {
        Self(Mutex::new(Asked { flights: HashMap::default(), sweep_at: None }))
    }
}

/// Values that must be dropped outside the lock: a call's work, and a DEK in its response, may
/// report to observers.
type Leftovers<A> = Vec<(Arc<Call<A>>, Option<Work<A>>)>;

impl<K: Hash + Eq, A: Shareable> InFlight<K, A> {
    /// Joins the call in flight or starts a new one. A call that has its response is not joined.
    pub(crate) fn join<F>(
        &self,
        now: Moment,
        key: K,
        runtime: Option<&Arc<dyn Runtime>>,
        ask: impl FnOnce() -> F,
    ) -> Waiter<A>
    where
        F: Future<Output = A> + Send + 'static,
    {
        let mut leftovers = Leftovers::new();
        let waiter = {
            let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let before = asked.flights.get(&key).map(|flight| (flight.began, flight.calls()));
            let under_way = match &before {
                Some((began, [Some(newest), _])) if !now.is_past(began.plus(JOINED_WITHIN)) => {
                    newest.join()
                }
                _ => None,
            };
            let waiter = under_way.unwrap_or_else(|| {
                asked.sweep(now, &mut leftovers);
                let (call, waiter) = Waiter::first(Call::new(ask(), runtime.cloned()));
                let oldest = match before.as_ref().map(|(_, calls)| calls) {
                    Some([newest, Some(oldest)]) if oldest.is_under_way() => {
                        leftovers.extend(
                            newest
                                .as_ref()
                                .map(|newest| (newest.clone(), newest.end_with_callers())),
                        );
                        Arc::downgrade(oldest)
                    }
                    Some([Some(newest), _]) => Arc::downgrade(newest),
                    _ => Weak::new(),
                };
                asked
                    .flights
                    .insert(key, Flight { began: now, newest: Arc::downgrade(&call), oldest });
                waiter
            });
            leftovers.extend(
                before.into_iter().flat_map(|(_, calls)| calls).flatten().map(|call| (call, None)),
            );
            waiter
        };
        leftovers.into_iter().for_each(|(call, work)| call.discard(work));
        waiter
    }

    /// Forgets a request whose calls are over. For large keys.
    pub(crate) fn forget(&self, key: &K) {
        let is_over =
            |flight: &Flight<A>| flight.calls().iter().flatten().all(|call| !call.is_under_way());
        let forgotten = {
            let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let is_over = asked.flights.get(key).is_some_and(is_over);
            if is_over { asked.flights.remove_entry(key) } else { None }
        };
        drop(forgotten);
    }
}

impl<A: Shareable> Flight<A> {
    fn calls(&self) -> [Option<Arc<Call<A>>>; 2] {
        [self.newest.upgrade(), self.oldest.upgrade()]
    }
}

impl<K: Hash + Eq, A: Shareable> Asked<K, A> {
    /// From time to time removes calls that ended, so that the map does not grow, and ends calls
    /// that no task polls, so that they do not hold the budget.
    fn sweep(&mut self, now: Moment, leftovers: &mut Leftovers<A>) {
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

struct Call<A: Shareable> {
    waker: Arc<CallWaker>,
    wire: RequestCounter,
    state: Mutex<State<A>>,
}

struct State<A: Shareable> {
    /// Taken out while it is polled, so that no lock is held meanwhile.
    work: Option<Work<A>>,
    /// Present once the call is over. It is an error if the call was cancelled, which no caller
    /// sees.
    answer: Option<A>,
    callers: usize,
    /// Present until the first poll without a response, which starts the task there.
    runtime: Option<Arc<dyn Runtime>>,
    /// The task exists and has been polled. A runtime that does not run cannot be relied on.
    task_drives: bool,
    /// It was replaced, so it ends when its callers leave.
    ends_with_callers: bool,
    /// At the last sweep it had been woken but not polled.
    neglected: bool,
}

impl<A: Shareable> State<A> {
    /// Ends the call if it is no longer needed. The caller drops the returned work outside the
    /// lock. While the work is being polled, the poller decides.
    fn end_unless_wanted(&mut self, wire: &RequestCounter) -> Option<Work<A>> {
        let goes_on = self.task_drives && !self.ends_with_callers && wire.is_busy();
        if self.work.is_none() || self.callers > 0 || goes_on {
            return None;
        }
        self.end()
    }

    fn end(&mut self) -> Option<Work<A>> {
        self.answer = Some(A::nobody_waited());
        self.work.take()
    }
}

impl<A: Shareable> Call<A> {
    fn new(
        work: impl Future<Output = A> + Send + 'static,
        runtime: Option<Arc<dyn Runtime>>,
    ) -> Arc<Self> {
        let state = State {
            work: Some(Box::pin(unconstrained(work))),
            answer: None,
            callers: 0,
            runtime,
            task_drives: false,
            ends_with_callers: false,
            neglected: false,
        };
        Arc::new(Self {
            waker: CallWaker::woken(),
            wire: RequestCounter::default(),
            state: Mutex::new(state),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State<A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_under_way(&self) -> bool {
        self.lock().answer.is_none()
    }

    /// Adds a caller if the call is in flight.
    fn join(self: &Arc<Self>) -> Option<Waiter<A>> {
        let mut state = self.lock();
        if state.answer.is_some() {
            return None;
        }
        state.callers += 1;
        drop(state);
        Some(Waiter::new(self.clone(), Role::Caller))
    }

    fn end_with_callers(&self) -> Option<Work<A>> {
        let mut state = self.lock();
        state.ends_with_callers = true;
        state.end_unless_wanted(&self.wire)
    }

    /// Ends a call without callers that was woken but that its task does not poll: its runtime has
    /// stopped.
    fn end_if_undriven(&self) -> Option<Work<A>> {
        let mut state = self.lock();
        if state.work.is_none() || state.callers > 0 || !self.waker.is_woken() {
            return None;
        }
        if !std::mem::replace(&mut state.neglected, true) {
            return None;
        }
        state.end()
    }

    /// Drops the remains of a call that ended, and wakes its task.
    fn discard(&self, work: Option<Work<A>>) {
        if work.is_some() {
            // A provider whose future panics on drop affects no caller.
            caught(|| drop(work));
            self.waker.wakers.wake_all();
        }
    }

    /// Polls the work, unless another caller does or nothing has happened since the last poll. A
    /// waiter that was woken by something other than the call polls anyway.
    fn drive(&self, role: Role, was_woken: bool) -> Poll<A> {
        let mut work = {
            let mut state = self.lock();
            state.task_drives |= role == Role::Task;
            if let Some(answer) = &state.answer {
                return Poll::Ready(answer.clone());
            }
            // The poller checks the flag afterwards, and wakes the others if it was set.
            let Some(work) = state.work.take_if(|_| self.waker.is_woken() || !was_woken) else {
                return Poll::Pending;
            };
            self.waker.woken.store(false, Ordering::SeqCst);
            state.neglected = false;
            work
        };
        let waker = Waker::from(self.waker.clone());
        let mut poll = || self.wire.scope(|| work.as_mut().poll(&mut Context::from_waker(&waker)));
        let polled = caught(&mut poll).unwrap_or_else(|| Poll::Ready(A::panicked()));
        match polled {
            Poll::Ready(answer) => {
                // Before the response is published, so that nothing of the call outlives it.
                caught(|| drop(work));
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

    /// Starts, once, the task that also polls it.
    fn start_task(self: &Arc<Self>) {
        let mut state = self.lock();
        let Some(runtime) = state.runtime.take() else { return };
        drop(state);
        let task = Waiter::new(self.clone(), Role::Task);
        let spawn = || runtime.spawn(Box::pin(async move { drop(task.await) }));
        // Without the task the callers poll it.
        caught(spawn);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Caller,
    Task,
}

/// One caller of a call, or the task that continues it.
pub(crate) struct Waiter<A: Shareable> {
    call: Arc<Call<A>>,
    role: Role,
    slot: usize,
}

impl<A: Shareable> Waiter<A> {
    fn new(call: Arc<Call<A>>, role: Role) -> Self {
        let slot = call.waker.wakers.add();
        Self { call, role, slot }
    }

    /// Returns the first waiter of a new call.
    fn first(call: Arc<Call<A>>) -> (Arc<Call<A>>, Self) {
        call.lock().callers += 1;
        (call.clone(), Self::new(call, Role::Caller))
    }
}

impl<A: Shareable> Future for Waiter<A> {
    type Output = A;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<A> {
        // Registered before the poll, so that every later event wakes it.
        let was_woken = self.call.waker.wakers.register(self.slot, cx.waker());
        let answer = self.call.drive(self.role, was_woken);
        if answer.is_pending() && self.role == Role::Caller {
            self.call.start_task();
        }
        answer
    }
}

impl<A: Shareable> Drop for Waiter<A> {
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

/// The waker of a call's work. It wakes every waiter of the call.
struct CallWaker {
    /// Something happened since the work was last polled.
    woken: AtomicBool,
    wakers: Wakers,
}

impl CallWaker {
    /// Returns a waker for new work, which has to be polled.
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
