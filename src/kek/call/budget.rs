//! Limits the calls that a process makes.
#![forbid(unsafe_code)]

use std::fmt;
use std::future::poll_fn;
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
use crate::sync::foreign::caught;
use crate::sync::{Arc, Mutex, PoisonError};

const DEFAULT_PER_SECOND: u32 = 1000;
const DEFAULT_IN_FLIGHT: u32 = 64;
const MAX_PER_SECOND: u32 = 1_000_000;
const MAX_IN_FLIGHT: u32 = 65_536;
/// Added to the longest time that a call holds its permit.
const SLACK: Duration = Duration::from_millis(100);
/// How much earlier than the clock a timer may fire.
const EARLY: i64 = 100_000;

/// Limits calls to key services, per second and in flight. Clones share one budget: give a clone to
/// several envelopes and they share the limit.
///
/// A quarter of it is reserved for renewals and encryption, so that a flood of messages to decrypt,
/// including forged ones, stops neither. They may also use what decryption leaves of its part. With
/// one call in flight the two take turns.
///
/// Calls wait for their turn as long as their deadline allows. A call whose turn would come too
/// late fails at once, as *throttled*. Turns come in order. Under overload, when callers give up or
/// wait for more than 250 ms, the newest is served first. Those that have waited longest are about
/// to give up, and calls for them would be wasted. After a pause, up to a quarter of a second's
/// calls may start at once.
///
/// By default each envelope has its own budget of 1,000 calls per second and 64 in flight. That is
/// far more than a service with a warm cache needs, and too little to use up a key service's quota
/// (AWS KMS: 10,000 or more per second, account and Region; an external key store: 1,800).
#[derive(Clone)]
pub struct CallBudget(Arc<Inner>);

struct Inner {
    per_second: u32,
    in_flight: u32,
    /// The state of this process. The child of a fork has its own, since the permits of the
    /// parent's threads would never be released.
    queue_of_process: ArcSwap<ProcessQueue>,
}

struct ProcessQueue {
    generation: u64,
    state: Mutex<State>,
}

/// Locked for a few instructions, never across a wait.
struct State {
    queue: Queue,
    /// How far timers are ahead of the clock, in a test whose runtime only simulates waiting.
    ahead: i64,
}

/// The part of a budget that a call uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lane {
    /// Decryption of a message whose DEK is not cached. Anyone who can submit a message can cause
    /// such calls.
    Ordinary,
    /// Renewal of DEKs in use, and encryption.
    Reserved,
}

/// A permit for one call in flight, released on drop. If no call began, its turn is also given
/// back.
pub(super) struct Permit {
    queue_of_process: Arc<ProcessQueue>,
    ticket: Ticket,
    began: bool,
    waited: bool,
}

impl CallBudget {
    /// Makes a budget of 1 to 1,000,000 calls per second with 1 to 65,536 in flight.
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

    /// Returns the default budget of one key store, used unless the store advises another. A store
    /// handles more calls than a key service.
    pub(crate) fn of_stores() -> Self {
        Self::unchecked(10 * DEFAULT_PER_SECOND, DEFAULT_IN_FLIGHT)
    }

    /// Returns how many requests of `calls` calls each one caller may make at the same time, so
    /// that each gets its turns before the newest are served first, even if only the reserved lane
    /// is left. A caller that made more would keep its own first requests waiting until their
    /// `deadline`. Half of the deadline is for the calls themselves.
    pub(super) fn at_once(&self, deadline: Duration, calls: usize) -> usize {
        let calls = u128::try_from(calls).unwrap_or(u128::MAX).max(1);
        let within = (deadline / 2).min(Duration::from_nanos(LONG_WAIT.unsigned_abs()));
        let turns = u128::from(self.0.per_second).saturating_mul(within.as_millis()) / 4000 / calls;
        let at_once = turns.min(u128::from(self.0.in_flight)).max(1);
        usize::try_from(at_once).unwrap_or(usize::MAX)
    }

    /// Returns whether both are handles to one budget.
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

    /// Waits for a turn, at most `max_wait`, and takes a permit for a call that ends within `hold`.
    /// Returns `None` if the turn does not come in time.
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
            let terms = Terms {
                line: lane,
                latest: max_wait.map(|max_wait| now.saturating_add(nanos(max_wait))),
                hold,
            };
            (terms, queue.arrive(now, terms, woken))
        });
        match look {
            Look::Enter(ticket) => Some(Permit::new(queue_of_process, ticket, false)),
            Look::Refused => None,
            Look::Wait(id, _) => {
                let mut wait = Wait {
                    queue_of_process: queue_of_process.clone(),
                    terms,
                    id,
                    over: false,
                    sleep: None,
                };
                let ticket = poll_fn(|cx| wait.poll(timer, cx)).await?;
                Some(Permit::new(queue_of_process, ticket, true))
            }
        }
    }
}

#[cfg(all(test, shuttle))]
impl CallBudget {
    /// Takes a permit without a timer: explored schedules have no time.
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
        // Not under the lock: a woken task may be polled at once, and a dropped waker may be the
        // last owner of a waiting task. A waker belongs to a foreign executor. If it panics, the
        // others are still woken, and the caller, which may be unwinding, is not affected.
        for waker in woken {
            caught(|| waker.wake());
        }
        for waker in discarded {
            caught(|| drop(waker));
        }
        result
    }

    /// A timer that was set for this moment has fired.
    fn timer_over(&self, at: i64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let early = at.saturating_sub(state.now());
        if early > EARLY {
            state.ahead = state.ahead.saturating_add(early);
        }
    }
}

impl State {
    /// Envelopes that share a budget may have different clocks in a test, so time is read from
    /// their timers.
    fn now(&self) -> i64 {
        Clock::System.now().boot_nanos().saturating_add(self.ahead)
    }
}

/// A position in line, given up on drop.
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
                    // A timer that fires earlier is kept.
                    let Some(again) =
                        again.filter(|again| self.sleep.as_ref().is_none_or(|(at, _)| at > again))
                    else {
                        return Poll::Pending;
                    };
                    let pause =
                        Duration::from_nanos(u64::try_from(again.saturating_sub(now)).unwrap_or(0));
                    self.sleep = timer.sleep_boxed(pause).map(|sleep| (again, sleep));
                    // Loop once more: the timer has to be polled to be set.
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
            self.queue_of_process
                .with(|queue, now, woken| queue.leave(now, self.terms.line, self.id, woken));
        }
    }
}

impl Permit {
    fn new(queue_of_process: Arc<ProcessQueue>, ticket: Ticket, waited: bool) -> Self {
        Self { queue_of_process, ticket, began: false, waited }
    }

    /// Whether its turn did not come at once.
    pub(super) fn waited(&self) -> bool {
        self.waited
    }

    /// Begins the call, which uses up the turn.
    pub(super) fn begin(&mut self) {
        self.began = true;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.queue_of_process.is_of_this_process() {
            self.queue_of_process
                .with(|queue, now, woken| queue.release(now, self.ticket, !self.began, woken));
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
