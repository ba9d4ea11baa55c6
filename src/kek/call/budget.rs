//! How many calls a process makes.
#![forbid(unsafe_code)]

use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::Timer;
use super::policy::invalid;
use super::queue::{LONG_WAIT, Look, Queue, Terms, Ticket, nanos};
use crate::clock::Clock;
use crate::error::Error;
use crate::memory::fork;
use crate::runtime::BoxFuture;
use crate::sync::{Arc, Mutex, PoisonError};

const DEFAULT_PER_SECOND: u32 = 1000;
const DEFAULT_IN_FLIGHT: u32 = 64;
const MAX_PER_SECOND: u32 = 1_000_000;
const MAX_IN_FLIGHT: u32 = 65_536;
/// A place is not waited for longer than its call can take and this.
const SLACK: Duration = Duration::from_millis(100);
/// How much earlier than the clock says a timer may be.
const EARLY: i64 = 100_000;

/// A limit on calls to key services, per second and in flight. A clone is the same budget: give it to several envelopes and they share
/// it.
///
/// A quarter of it is kept for renewals and for sealing, so that a flood of messages to open, forged ones too, does not stop either;
/// what opening leaves of its own share they may use as well. With one call in flight the two take turns.
/// Calls wait for their turn as long as their deadline lets them. One whose turn would come too late fails at once, as
/// *throttled*. Turns come in order; while more is asked than the budget lets through, so that callers give up or wait for
/// more than 250 ms, whoever came last is served first: those who have waited longest are about to leave, and calls for
/// them would help nobody. Up to a quarter of a second's calls may go at once after a pause.
///
/// By default each envelope has its own of 1,000 calls per second and 64 in flight: far above what a service with a warm cache
/// needs, and too little to use up a key service's quota (AWS KMS: 10,000 or more per second, account and Region; an external key store: 1,800).
#[derive(Clone)]
pub struct CallBudget(Arc<Inner>);

struct Inner {
    per_second: u32,
    in_flight: u32,
    /// Of this process: the child of a fork has its own, since nobody would give back what the parent's threads hold.
    queue_of_process: ArcSwap<ProcessQueue>,
}

struct ProcessQueue {
    generation: u64,
    state: Mutex<State>,
}

/// Locked for a few instructions, never across a wait.
struct State {
    queue: Queue,
    /// How far timers are ahead of the clock: in a test whose runtime only pretends to wait.
    ahead: i64,
}

/// Who pays for a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lane {
    /// Opening a message that is not at hand: anybody who can hand in a message can cause it.
    Ordinary,
    /// Renewing what is in use, and sealing.
    Reserved,
}

/// A place among the calls in flight, given back on drop; with its turn, if no call began.
pub(super) struct Permit {
    queue_of_process: Arc<ProcessQueue>,
    ticket: Ticket,
    began: bool,
}

impl CallBudget {
    /// A budget of 1 to 1,000,000 calls per second with 1 to 65,536 in flight.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](crate::ErrorKind::InvalidOption) outside these ranges.
    pub fn new(per_second: u32, in_flight: u32) -> Result<Self, Error> {
        let within = |option: &str, value: u32, most: u32| {
            if (1..=most).contains(&value) {
                return Ok(());
            }
            Err(invalid(format!("{option} is {value}, 1 to {most} are allowed")))
        };
        within("call budget per_second", per_second, MAX_PER_SECOND)?;
        within("call budget in_flight", in_flight, MAX_IN_FLIGHT)?;
        Ok(Self::unchecked(per_second, in_flight))
    }

    fn unchecked(per_second: u32, in_flight: u32) -> Self {
        let queue_of_process = ArcSwap::from_pointee(ProcessQueue::new(per_second, in_flight));
        Self(Arc::new(Inner { per_second, in_flight, queue_of_process }))
    }

    /// How many questions of so many calls each whoever has many may ask at the same time, so that each has its turns before the
    /// newest are served first, also where only the reserved share is left for it. Whoever asks the next question when one is
    /// answered would else keep its own first ones waiting until their `deadline`. Half of that is for the calls themselves.
    pub(super) fn at_once(&self, deadline: Duration, calls: usize) -> usize {
        let calls = u128::try_from(calls).unwrap_or(u128::MAX).max(1);
        let within = (deadline / 2).min(Duration::from_nanos(LONG_WAIT.unsigned_abs()));
        let turns = u128::from(self.0.per_second).saturating_mul(within.as_millis()) / 4000 / calls;
        let at_once = turns.min(u128::from(self.0.in_flight)).max(1);
        usize::try_from(at_once).unwrap_or(usize::MAX)
    }

    /// Whether both are handles to one budget.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn queue_of_process(&self) -> Arc<ProcessQueue> {
        let queue_of_process = self.0.queue_of_process.load_full();
        if queue_of_process.is_of_this_process() {
            return queue_of_process;
        }
        let ours = Arc::new(ProcessQueue::new(self.0.per_second, self.0.in_flight));
        let before = self.0.queue_of_process.compare_and_swap(&queue_of_process, ours);
        if Arc::ptr_eq(&before, &queue_of_process) {
            // A thread that the fork left behind may hold its lock.
            std::mem::forget(queue_of_process);
        }
        self.0.queue_of_process.load_full()
    }

    /// Waits for a turn, `patience` at most, and takes a place for a call that ends within `hold`; `None` if the turn does not come
    /// within that.
    pub(super) async fn enter(
        &self,
        lane: Lane,
        timer: &Timer,
        max_wait: Option<Duration>,
        hold: Duration,
    ) -> Option<Permit> {
        let queue_of_process = self.queue_of_process();
        let max_wait = max_wait.filter(|_| timer.can_wait());
        let hold = nanos(hold.saturating_add(SLACK));
        let (terms, look) = queue_of_process.with(|queue, now, woken| {
            let terms =
                Terms { line: lane, latest: max_wait.map(|max_wait| now.saturating_add(nanos(max_wait))), hold };
            (terms, queue.arrive(now, terms, woken))
        });
        match look {
            Look::Enter(ticket) => Some(Permit { queue_of_process, ticket, began: false }),
            Look::Refused => None,
            Look::Wait(id, _) => {
                let mut wait = Wait { queue_of_process: queue_of_process.clone(), terms, id, over: false, sleep: None };
                let ticket = poll_fn(|cx| wait.poll(timer, cx)).await?;
                Some(Permit { queue_of_process, ticket, began: false })
            }
        }
    }
}

#[cfg(all(test, shuttle))]
impl CallBudget {
    /// A place, waited for without a timer: the schedules that are explored know no time.
    pub(crate) async fn permit(&self, lane: Lane) -> Option<impl Sized + use<>> {
        self.enter(lane, &Timer::new(None), None, Duration::MAX).await
    }
}

impl Default for CallBudget {
    fn default() -> Self {
        Self::unchecked(DEFAULT_PER_SECOND, DEFAULT_IN_FLIGHT)
    }
}

impl fmt::Debug for CallBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallBudget")
            .field("per_second", &self.0.per_second)
            .field("in_flight", &self.0.in_flight)
            .finish_non_exhaustive()
    }
}

impl ProcessQueue {
    fn new(per_second: u32, in_flight: u32) -> Self {
        let state = State { queue: Queue::new(per_second, in_flight), ahead: 0 };
        Self { generation: fork::generation(), state: Mutex::new(state) }
    }

    fn is_of_this_process(&self) -> bool {
        self.generation == fork::generation()
    }

    fn with<R>(&self, work: impl FnOnce(&mut Queue, i64, &mut Vec<Waker>) -> R) -> R {
        let mut woken = Vec::new();
        let (result, discarded) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let now = state.now();
            (work(&mut state.queue, now, &mut woken), state.queue.take_discarded())
        };
        // Not under the lock: whoever is woken may be polled at once, and what a waker was the last to hold may be in line too.
        // A waker belongs to somebody's executor. One that panics keeps none of the others asleep, and whoever leaves, who may
        // be unwinding, does not meet it.
        for waker in woken {
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
        for waker in discarded {
            let _ = catch_unwind(AssertUnwindSafe(|| drop(waker)));
        }
        result
    }

    /// A timer that was set for this moment is over.
    fn timer_over(&self, at: i64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let early = at.saturating_sub(state.now());
        if early > EARLY {
            state.ahead = state.ahead.saturating_add(early);
        }
    }
}

impl State {
    /// Budgets are shared by envelopes whose clocks a test may have set apart, so the time is that of their timers.
    fn now(&self) -> i64 {
        Clock::System.now().boot_nanos().saturating_add(self.ahead)
    }
}

/// A place in line, which is given up on drop.
struct Wait {
    queue_of_process: Arc<ProcessQueue>,
    terms: Terms,
    id: u64,
    over: bool,
    sleep: Option<(i64, BoxFuture<'static, ()>)>,
}

impl Wait {
    fn poll(&mut self, timer: &Timer, cx: &mut Context<'_>) -> Poll<Option<Ticket>> {
        loop {
            if let Some((at, sleep)) = &mut self.sleep
                && sleep.as_mut().poll(cx).is_ready()
            {
                self.queue_of_process.timer_over(*at);
                self.sleep = None;
            }
            let (terms, id) = (self.terms, self.id);
            let look = |queue: &mut Queue, now, woken: &mut Vec<Waker>| {
                (queue.look(now, terms, id, Some(cx.waker()), woken), now)
            };
            let (look, now) = self.queue_of_process.with(look);
            let ticket = match look {
                Look::Enter(ticket) => Some(ticket),
                Look::Refused => None,
                Look::Wait(_, again) => {
                    // A timer that ends earlier is left as it is.
                    let Some(again) = again.filter(|again| self.sleep.as_ref().is_none_or(|(at, _)| at > again)) else {
                        return Poll::Pending;
                    };
                    let pause = Duration::from_nanos(u64::try_from(again.saturating_sub(now)).unwrap_or(0));
                    self.sleep = timer.sleep_boxed(pause).map(|sleep| (again, sleep));
                    // Once more: the timer has to be polled to be set.
                    continue;
                }
            };
            self.over = true;
            return Poll::Ready(ticket);
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if !self.over && self.queue_of_process.is_of_this_process() {
            self.queue_of_process.with(|queue, now, woken| queue.leave(now, self.terms.line, self.id, woken));
        }
    }
}

impl Permit {
    /// Its call begins, and uses up the turn.
    pub(super) fn begin(&mut self) {
        self.began = true;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.queue_of_process.is_of_this_process() {
            self.queue_of_process.with(|queue, now, woken| queue.release(now, self.ticket, !self.began, woken));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_outside_its_range_is_refused() {
        for (per_second, in_flight) in [(0, 64), (1_000_001, 64), (1000, 0), (1000, 65_537)] {
            let error = CallBudget::new(per_second, in_flight).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::InvalidOption, "{error}");
        }
        assert!(CallBudget::new(1, 1).is_ok());
        assert!(CallBudget::new(1_000_000, 65_536).is_ok());
    }
}
