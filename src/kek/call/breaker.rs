//! Stops calls to a key service that does not respond, and notices when it is back.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::PolicyInForce;
use crate::clock::{Clock, Moment};
use crate::kek::{KekError, KekErrorClass};
use crate::sync::{Mutex, MutexGuard, TryLockError};

/// Retries handle a shorter streak of failures: many calls that fail at one moment are one failure.
const SHORTEST_STREAK: Duration = Duration::from_millis(200);
/// How many calls in a row must be late before other targets are asked first. One call in twenty is
/// late at a healthy service.
const LATE_IN_A_ROW: u32 = 5;

/// Whether calls go to a key service.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum BreakerState {
    /// Every call goes through.
    Closed,
    /// Calls fail at once, with the class of the failure that opened the breaker.
    Open,
    /// As open, but the next call goes through as a probe, or one is in flight.
    HalfOpen,
}

/// The circuit breaker of one target.
pub(super) struct Breaker {
    clock: Clock,
    failures_to_open: u32,
    probe_every: Duration,
    /// Locked for a few instructions, never across a wait. Only `try_lock` is used: the child of a
    /// fork may inherit it locked, and a caller that finds it busy may continue without it.
    streak: Mutex<Streak>,
}

/// The failures since the last success.
#[derive(Default)]
struct Streak {
    failures: u32,
    /// Calls that were dropped because they took longer than usual. Alone they do not justify
    /// refusing a call that no other target can answer, such as one to a service that became slower
    /// than another.
    late: u32,
    began: Option<Moment>,
    open: Option<Open>,
}

struct Open {
    class: KekErrorClass,
    why: String,
    next_probe: Moment,
    /// It is asked only after other targets: see `Streak::late`.
    deprioritized: bool,
}

/// How a call goes through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Admission {
    Regular,
    /// The single call allowed in this interval.
    Probe,
}

/// The order in which a target is asked, among others that may respond as well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    Usual,
    /// In the usual order, to find out whether it is still late.
    Probe,
    /// After the others, because it was late too often.
    Last,
}

/// How a response changed the breaker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    None,
    Opened,
    Closed,
}

impl Breaker {
    pub(super) fn new(policy: &PolicyInForce, clock: Clock) -> Self {
        Self {
            clock,
            failures_to_open: policy.breaker_failures,
            probe_every: policy.breaker_probe,
            streak: Mutex::default(),
        }
    }

    fn streak(&self) -> Option<MutexGuard<'_, Streak>> {
        match self.streak.try_lock() {
            Ok(streak) => Some(streak),
            Err(TryLockError::Poisoned(streak)) => Some(streak.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Admits a call, or returns the class and the text of the latest failure.
    pub(super) fn admit(&self) -> Result<Admission, KekError> {
        let Some(mut streak) = self.streak() else { return Ok(Admission::Regular) };
        let Some(open) = streak.open.as_mut().filter(|open| !open.deprioritized) else {
            return Ok(Admission::Regular);
        };
        if self.is_probe(open) {
            return Ok(Admission::Probe);
        }
        let why = format!("circuit breaker open, since: {}", open.why);
        Err(KekError::new(open.class, why).without_asking())
    }

    /// Returns the position in which it is asked.
    pub(super) fn order(&self) -> Order {
        let Some(mut streak) = self.streak() else { return Order::Usual };
        let Some(open) = streak.open.as_mut().filter(|open| open.deprioritized) else {
            return Order::Usual;
        };
        if self.is_probe(open) { Order::Probe } else { Order::Last }
    }

    fn is_probe(&self, open: &mut Open) -> bool {
        let now = self.clock.now();
        let is_due = now.is_past(open.next_probe);
        if is_due {
            // A probe that hangs does not delay the next one.
            open.next_probe = now.plus(self.probe_every);
        }
        is_due
    }

    /// Gives back an admission whose call says nothing about the key service. If it was a probe,
    /// the next call becomes the probe.
    pub(super) fn give_back(&self, admission: Admission) {
        if admission == Admission::Probe
            && let Some(mut streak) = self.streak()
            && let Some(open) = &mut streak.open
        {
            open.next_probe = self.clock.now();
        }
    }

    /// Records that the key service responded, with a success or with its own refusal.
    pub(super) fn alive(&self) -> Change {
        let Some(mut streak) = self.streak() else { return Change::None };
        match std::mem::take(&mut *streak).open {
            Some(_) => Change::Closed,
            None => Change::None,
        }
    }

    pub(super) fn failed(&self, error: &KekError) -> Change {
        self.lengthen(error, |streak| streak.failures = streak.failures.saturating_add(1))
    }

    /// Records that it took longer than usual and its caller did not wait for the end.
    pub(super) fn late(&self, error: &KekError) -> Change {
        self.lengthen(error, |streak| streak.late = streak.late.saturating_add(1))
    }

    fn lengthen(&self, error: &KekError, count: impl FnOnce(&mut Streak)) -> Change {
        let (class, why) = (error.class(), error.to_string());
        let Some(mut streak) = self.streak() else { return Change::None };
        let now = self.clock.now();
        count(&mut streak);
        let began = *streak.began.get_or_insert(now);
        // If one failure is enough, the duration of the streak does not matter.
        let lasts = now.is_past(began.plus(SHORTEST_STREAK));
        let fails =
            streak.failures >= self.failures_to_open && (lasts || self.failures_to_open == 1);
        let all = streak.failures.saturating_add(streak.late);
        let is_late = all >= self.failures_to_open.max(LATE_IN_A_ROW) && lasts;
        if let Some(open) = &mut streak.open {
            (open.class, open.why) = (class, why);
            open.deprioritized &= !fails;
            return Change::None;
        }
        if !fails && !is_late {
            return Change::None;
        }
        streak.open = Some(Open {
            class,
            why,
            next_probe: now.plus(self.probe_every),
            deprioritized: !fails,
        });
        Change::Opened
    }

    /// Whether there are failures to remember.
    pub(super) fn has_streak(&self) -> bool {
        self.streak().is_none_or(|streak| streak.began.is_some())
    }

    pub(super) fn state(&self) -> BreakerState {
        let Some(streak) = self.streak() else { return BreakerState::Closed };
        match &streak.open {
            None => BreakerState::Closed,
            Some(open) if self.clock.now().is_past(open.next_probe) => BreakerState::HalfOpen,
            Some(_) => BreakerState::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CallPolicy;
    use crate::clock::ManualClock;

    const DOWN: fn() -> KekError = || KekError::unavailable("down");
    const REFUSED: fn() -> KekError = || KekError::misconfigured("login refused");

    fn admit(breaker: &Breaker) -> Result<(), KekErrorClass> {
        breaker.admit().map(|_| ()).map_err(|error| error.class())
    }

    fn breaker(failures: u32) -> (Breaker, ManualClock) {
        let clock = ManualClock::new();
        let policy = CallPolicy::default()
            .breaker_failures(failures)
            .breaker_probe(Duration::from_millis(500));
        (Breaker::new(&policy.check(true).unwrap(), Clock::Manual(clock.clone())), clock)
    }

    #[test]
    fn it_opens_after_a_streak_that_is_long_in_number_and_in_time() {
        let (breaker, clock) = breaker(3);
        for _ in 0..100 {
            assert_eq!(breaker.failed(&DOWN()), Change::None, "all at one moment");
        }
        clock.advance(SHORTEST_STREAK);
        assert_eq!(admit(&breaker), Ok(()));
        assert_eq!(breaker.failed(&DOWN()), Change::Opened);
        assert_eq!(admit(&breaker), Err(KekErrorClass::Unavailable));
        assert_eq!(breaker.state(), BreakerState::Open);
    }

    #[test]
    fn a_success_ends_the_streak() {
        let (breaker, clock) = breaker(3);
        for _ in 0..10 {
            breaker.failed(&DOWN());
            breaker.failed(&DOWN());
            clock.advance(SHORTEST_STREAK);
            assert_eq!(breaker.alive(), Change::None);
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn one_probe_at_a_time_goes_through_and_its_success_closes() {
        let (breaker, clock) = breaker(1);
        assert_eq!(breaker.failed(&REFUSED()), Change::Opened);
        assert_eq!(admit(&breaker), Err(KekErrorClass::Misconfigured));
        for _ in 0..3 {
            clock.advance(Duration::from_millis(500));
            assert_eq!(breaker.state(), BreakerState::HalfOpen);
            assert_eq!(admit(&breaker), Ok(()));
            assert_eq!(
                admit(&breaker),
                Err(KekErrorClass::Misconfigured),
                "the probe is on its way"
            );
            assert_eq!(breaker.failed(&REFUSED()), Change::None);
        }
        clock.advance(Duration::from_millis(500));
        assert_eq!(admit(&breaker), Ok(()));
        assert_eq!(breaker.alive(), Change::Closed);
        assert_eq!(admit(&breaker), Ok(()));
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn calls_that_were_late_in_a_row_put_others_first_and_refuse_nobody() {
        let (breaker, clock) = breaker(1);
        for n in 0..10 {
            let change = breaker.late(&DOWN());
            assert_eq!(change == Change::Opened, n == 5, "{n}: five of them, over a while");
            assert_eq!(admit(&breaker), Ok(()));
            clock.advance(SHORTEST_STREAK / 5);
        }
        assert_eq!((breaker.state(), breaker.order()), (BreakerState::Open, Order::Last));
        clock.advance(Duration::from_millis(500));
        assert_eq!((breaker.order(), breaker.order()), (Order::Probe, Order::Last));
        assert_eq!(breaker.failed(&DOWN()), Change::None, "it is open");
        assert_eq!(admit(&breaker), Err(KekErrorClass::Unavailable), "a failure is one");
        assert_eq!(breaker.alive(), Change::Closed);
        assert_eq!((admit(&breaker), breaker.order()), (Ok(()), Order::Usual));
    }

    #[test]
    fn a_probe_that_came_to_nothing_leaves_the_next_one_its_place() {
        let (breaker, clock) = breaker(1);
        breaker.failed(&DOWN());
        clock.advance(Duration::from_millis(500));
        for _ in 0..3 {
            let admission = breaker.admit().unwrap();
            assert_eq!(
                (admission, admit(&breaker)),
                (Admission::Probe, Err(KekErrorClass::Unavailable))
            );
            breaker.give_back(admission);
        }
        assert_eq!(admit(&breaker), Ok(()));
    }
}
