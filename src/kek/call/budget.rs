//! How many calls a process makes.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_lock::{Semaphore, SemaphoreGuardArc};

use super::Timer;
use super::policy::invalid;
use crate::error::Error;
use crate::memory::clock::Clock;
use crate::memory::fork;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicI64, Ordering};

const DEFAULT_PER_SECOND: u32 = 1000;
const DEFAULT_IN_FLIGHT: u32 = 64;
const MOST_PER_SECOND: u32 = 1_000_000;
const MOST_IN_FLIGHT: u32 = 65_536;
/// How much is saved up while nobody calls.
const BURST: Duration = Duration::from_millis(250);

/// A limit on calls to key services, per second and in flight. A clone is the same budget: give it to several envelopes and they share
/// it.
///
/// A quarter of it is kept for renewals and for sealing, so that a flood of messages to open, forged ones too, does not stop either.
/// Calls wait for their turn, in order, as long as their deadline lets them, and fail as *throttled* if it does not. Up to a quarter
/// of a second's calls may go at once after a pause.
///
/// By default each envelope has its own of 1,000 calls per second and 64 in flight: far above what a service with a warm cache
/// needs, and too little to use up a key service's quota (AWS KMS: 10,000 or more per second, account and Region; an external key store: 1,800).
#[derive(Clone)]
pub struct CallBudget(Arc<Inner>);

struct Inner {
    per_second: u32,
    in_flight: u32,
    /// Of this process: the child of a fork has its own, since nobody would give back what the parent's threads hold.
    lanes: ArcSwap<Lanes>,
}

struct Lanes {
    generation: u64,
    ordinary: Lane,
    reserved: Lane,
}

struct Lane {
    pace: Pace,
    in_flight: Arc<Semaphore>,
}

/// Who pays for a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Share {
    /// Opening a message that is not at hand: anybody who can hand in a message can cause it.
    Ordinary,
    /// Renewing what is in use, and sealing.
    Reserved,
}

/// A place among the calls in flight, given back on drop.
pub(super) struct Place {
    _guard: SemaphoreGuardArc,
}

impl CallBudget {
    /// A budget of 4 to 1,000,000 calls per second with 4 to 65,536 in flight.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](crate::ErrorKind::InvalidOption) outside these ranges.
    pub fn new(per_second: u32, in_flight: u32) -> Result<Self, Error> {
        let within = |option: &str, value: u32, most: u32| {
            if (4..=most).contains(&value) {
                return Ok(());
            }
            Err(invalid(format!("{option} is {value}, 4 to {most} are allowed")))
        };
        within("call budget per_second", per_second, MOST_PER_SECOND)?;
        within("call budget in_flight", in_flight, MOST_IN_FLIGHT)?;
        Ok(Self::unchecked(per_second, in_flight))
    }

    fn unchecked(per_second: u32, in_flight: u32) -> Self {
        let lanes = ArcSwap::from_pointee(Lanes::new(per_second, in_flight));
        Self(Arc::new(Inner { per_second, in_flight, lanes }))
    }

    /// The same for two handles to one budget.
    #[cfg(all(test, feature = "xks"))]
    pub(crate) fn identity(&self) -> *const () {
        Arc::as_ptr(&self.0).cast()
    }

    fn lanes(&self) -> Arc<Lanes> {
        let lanes = self.0.lanes.load_full();
        if lanes.generation == fork::generation() {
            return lanes;
        }
        let ours = Arc::new(Lanes::new(self.0.per_second, self.0.in_flight));
        let before = self.0.lanes.compare_and_swap(&lanes, ours);
        if Arc::ptr_eq(&before, &lanes) {
            // A thread that the fork left behind may hold its locks.
            std::mem::forget(lanes);
        }
        self.0.lanes.load_full()
    }

    /// Waits for a turn, `patience` at most; `None` if it does not come within that.
    pub(super) async fn enter(&self, share: Share, timer: &Timer, patience: Option<Duration>) -> Option<Place> {
        let lanes = self.lanes();
        let now = now();
        let lane = match share {
            // Its own share first; if that is busy and the rest is not, as everybody else.
            Share::Reserved if lanes.reserved.is_free(now) || !lanes.ordinary.is_free(now) => &lanes.reserved,
            Share::Reserved | Share::Ordinary => &lanes.ordinary,
        };
        if timer.can_wait() {
            let turn = lane.pace.take(now, patience)?;
            if !turn.is_zero() {
                timer.sleep(turn).await;
            }
        }
        let left = patience.map(|patience| patience.saturating_sub(Duration::from_nanos(since(now))));
        timer.within(left, lane.in_flight.acquire_arc()).await.map(|guard| Place { _guard: guard })
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

/// Budgets are shared by envelopes whose clocks a test may have set apart, and the pauses they make are real.
fn now() -> i64 {
    Clock::System.now().boot_nanos()
}

fn since(then: i64) -> u64 {
    u64::try_from(now().saturating_sub(then)).unwrap_or(0)
}

impl Lanes {
    fn new(per_second: u32, in_flight: u32) -> Self {
        let lane = |per_second: u32, in_flight: u32| Lane {
            pace: Pace::new(per_second),
            in_flight: Arc::new(Semaphore::new(usize::try_from(in_flight).unwrap_or(usize::MAX))),
        };
        Self {
            generation: fork::generation(),
            ordinary: lane(per_second - per_second / 4, in_flight - in_flight / 4),
            reserved: lane(per_second / 4, in_flight / 4),
        }
    }
}

impl Lane {
    fn is_free(&self, now: i64) -> bool {
        // Whoever is given the place gives it back at once.
        self.pace.is_free(now) && self.in_flight.try_acquire().is_some()
    }
}

/// The generic cell rate algorithm, with turns that are reserved: who comes first is let through first, and nobody wakes up in vain.
struct Pace {
    /// Nanoseconds between two calls.
    interval: i64,
    /// When the next call would be if all had kept the interval.
    next: AtomicI64,
}

impl Pace {
    fn new(per_second: u32) -> Self {
        Self { interval: 1_000_000_000 / i64::from(per_second.max(1)), next: AtomicI64::new(i64::MIN) }
    }

    /// The turn that is next, as the time to wait for it; none is taken if it is later than `patience`.
    fn take(&self, now: i64, patience: Option<Duration>) -> Option<Duration> {
        let latest = patience.map_or(i64::MAX, |patience| now.saturating_add(nanos(patience)));
        let turn = |next: i64| next.max(now.saturating_sub(nanos(BURST)));
        self.next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                (turn(next) <= latest).then(|| turn(next).saturating_add(self.interval))
            })
            .ok()
            .map(|next| Duration::from_nanos(u64::try_from(turn(next).saturating_sub(now)).unwrap_or(0)))
    }

    fn is_free(&self, now: i64) -> bool {
        self.next.load(Ordering::Relaxed) <= now
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_keep_the_pace_after_the_burst() {
        let pace = Pace::new(100);
        let waits: Vec<_> = (0..126).map(|_| pace.take(1_000_000_000_000, None).unwrap()).collect();
        assert!(waits.iter().take(26).all(Duration::is_zero), "a quarter of a second's calls are saved up");
        assert_eq!(waits.last(), Some(&Duration::from_secs(1)), "and a hundred more take a second");
    }

    #[test]
    fn a_turn_that_comes_too_late_is_not_taken() {
        let pace = Pace::new(4);
        let now = 1_000_000_000_000;
        while pace.take(now, Some(Duration::ZERO)).is_some() {}
        assert_eq!(pace.take(now, Some(Duration::from_millis(200))), None);
        assert_eq!(pace.take(now, Some(Duration::from_millis(300))), Some(Duration::from_millis(250)));
        assert_eq!(pace.take(now + 250_000_000, Some(Duration::ZERO)), None, "it was the next one's");
        assert_eq!(pace.take(now + 500_000_000, Some(Duration::ZERO)), Some(Duration::ZERO));
    }

    #[test]
    fn a_budget_outside_its_range_is_refused() {
        for (per_second, in_flight) in [(3, 64), (1_000_001, 64), (1000, 3), (1000, 65_537)] {
            let error = CallBudget::new(per_second, in_flight).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::InvalidOption, "{error}");
        }
        assert!(CallBudget::new(4, 4).is_ok());
        assert!(CallBudget::new(1_000_000, 65_536).is_ok());
    }
}
