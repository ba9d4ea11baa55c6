//! Time for deadlines. Suspension of the machine and changes to the clock count as elapsed time.
#![forbid(unsafe_code)]

use std::time::Duration;

#[cfg(any(test, feature = "test-util"))]
use crate::sync::Arc;
#[cfg(any(test, feature = "test-util"))]
use crate::sync::atomic::{AtomicI64, Ordering};

/// A reading of two clocks, in nanoseconds: the clock since boot, which runs while the machine is
/// suspended, and the wall clock, which catches what the first misses, such as a paused virtual
/// machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Moment {
    boot: i64,
    wall: i64,
}

impl Moment {
    pub(crate) fn plus(self, duration: Duration) -> Self {
        let nanos = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        Self { boot: self.boot.saturating_add(nanos), wall: self.wall.saturating_add(nanos) }
    }

    /// Returns the earlier of the two, by each clock.
    pub(crate) fn earlier(self, other: Self) -> Self {
        Self { boot: self.boot.min(other.boot), wall: self.wall.min(other.wall) }
    }

    /// Whether `deadline` has passed by either clock. The one that advanced further counts.
    pub(crate) fn is_past(self, deadline: Self) -> bool {
        self.boot >= deadline.boot || self.wall >= deadline.wall
    }

    pub(crate) fn boot_nanos(self) -> i64 {
        self.boot
    }

    pub(crate) fn wall_nanos(self) -> i64 {
        self.wall
    }

    /// Returns how long ago `earlier` was, by the clock since boot.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.boot.saturating_sub(earlier.boot)).unwrap_or(0))
    }

    /// Returns how long until `deadline`, by the clock that gets there first.
    pub(crate) fn until(self, deadline: Self) -> Duration {
        let nanos =
            (deadline.boot.saturating_sub(self.boot)).min(deadline.wall.saturating_sub(self.wall));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }
}

/// A source of moments.
#[derive(Clone, Debug, Default)]
pub(crate) enum Clock {
    #[default]
    System,
    #[cfg(any(test, feature = "test-util"))]
    Manual(ManualClock),
}

impl Clock {
    pub(crate) fn now(&self) -> Moment {
        match self {
            Self::System => system(),
            #[cfg(any(test, feature = "test-util"))]
            Self::Manual(clock) => clock.now(),
        }
    }

    /// Whether `deadline` is so far away that the exact time does not matter. If `false`,
    /// [`now`](Self::now) has to decide.
    ///
    /// It costs a quarter of [`now`](Self::now), and every use of a handle calls it. It reads the
    /// coarse wall clock, which moves with each tick of the kernel (1 to 10 ms), and when a
    /// suspended machine wakes up. While the coarse clock has not moved, the last reading of this
    /// thread is right to within a tick. [`ROOM`] covers that tick and those that a paused
    /// processor withholds from the others. After [`REUSES`] uses both clocks are read again in any
    /// case.
    #[inline]
    pub(crate) fn is_well_before(&self, deadline: Moment) -> bool {
        #[cfg(target_os = "linux")]
        if matches!(self, Self::System) {
            return !recent().plus(ROOM).is_past(deadline);
        }
        let _ = deadline;
        false
    }
}

/// A deadline further away than this is far enough.
#[cfg(target_os = "linux")]
const ROOM: Duration = Duration::from_secs(1);
/// The maximum number of times that a thread reuses a reading.
#[cfg(target_os = "linux")]
const REUSES: u32 = 32;

#[cfg(target_os = "linux")]
fn recent() -> Moment {
    use rustix::time::ClockId;
    use std::cell::Cell;

    thread_local! {
        static LAST: Cell<(Moment, u32)> = const { Cell::new((Moment { boot: 0, wall: 0 }, 0)) };
    }
    let wall = nanos(ClockId::RealtimeCoarse);
    LAST.with(|last| match last.get() {
        (moment, left @ 1..) if moment.wall == wall => {
            last.set((moment, left - 1));
            moment
        }
        _ => {
            let moment = Moment { boot: nanos(ClockId::Boottime), wall };
            last.set((moment, REUSES));
            moment
        }
    })
}

#[cfg(target_os = "linux")]
#[inline]
fn nanos(clock: rustix::time::ClockId) -> i64 {
    let time = rustix::time::clock_gettime(clock);
    // Checked arithmetic is cheaper than saturating here.
    let seconds = time.tv_sec.checked_mul(1_000_000_000);
    seconds.and_then(|nanos| nanos.checked_add(time.tv_nsec)).unwrap_or(i64::MAX)
}

#[cfg(target_os = "linux")]
fn system() -> Moment {
    use rustix::time::ClockId;

    // The coarse wall clock is a few milliseconds behind and costs a fraction of a read of the
    // exact one.
    Moment { boot: nanos(ClockId::Boottime), wall: nanos(ClockId::RealtimeCoarse) }
}

#[cfg(not(target_os = "linux"))]
fn system() -> Moment {
    use std::sync::OnceLock;
    use std::time::{Instant, SystemTime};

    static START: OnceLock<Instant> = OnceLock::new();
    let boot =
        i64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(i64::MAX);
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Moment { boot, wall: i64::try_from(wall.as_nanos()).unwrap_or(i64::MAX) }
}

/// A clock that tests control. Clones share one clock.
#[cfg(any(test, feature = "test-util"))]
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<[AtomicI64; 2]>);

#[cfg(any(test, feature = "test-util"))]
impl ManualClock {
    /// Makes a clock at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Advances both clocks.
    pub fn advance(&self, duration: Duration) {
        self.move_by([duration, duration]);
    }

    /// Sets the wall clock forward, as after a pause of the machine. The clock since boot does not
    /// move.
    pub fn set_wall_forward(&self, duration: Duration) {
        self.move_by([Duration::ZERO, duration]);
    }

    /// Sets the wall clock back.
    pub fn set_wall_back(&self, duration: Duration) {
        let nanos = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        let [_, wall] = &*self.0;
        wall.fetch_sub(nanos, Ordering::SeqCst);
    }

    fn move_by(&self, durations: [Duration; 2]) {
        for (clock, duration) in self.0.iter().zip(durations) {
            let nanos = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
            clock.fetch_add(nanos, Ordering::SeqCst);
        }
    }

    fn now(&self) -> Moment {
        let [boot, wall] = &*self.0;
        let read = |clock: &AtomicI64| clock.load(Ordering::SeqCst);
        Moment { boot: read(boot), wall: read(wall) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_passes_by_whichever_clock_goes_further() {
        let manual = ManualClock::new();
        let clock = Clock::Manual(manual.clone());
        let deadline = clock.now().plus(Duration::from_secs(10));
        manual.advance(Duration::from_secs(9));
        assert!(!clock.now().is_past(deadline));
        assert_eq!(clock.now().until(deadline), Duration::from_secs(1));
        manual.set_wall_back(Duration::from_secs(3600));
        assert!(!clock.now().is_past(deadline));
        manual.advance(Duration::from_secs(1));
        assert!(clock.now().is_past(deadline), "a wall clock set back prolongs nothing");

        let deadline = clock.now().plus(Duration::from_secs(10));
        manual.set_wall_forward(Duration::from_secs(10));
        assert!(clock.now().is_past(deadline), "a pause that only the wall clock shows counts");
        assert_eq!(clock.now().until(deadline), Duration::ZERO);
    }

    #[test]
    fn what_is_said_to_be_well_ahead_is_by_both_clocks() {
        let clock = Clock::System;
        let ahead = |boot, wall| {
            let now = clock.now();
            let [boot, wall] = [boot, wall].map(|millis| now.plus(Duration::from_millis(millis)));
            Moment { boot: boot.boot, wall: wall.wall }
        };
        for near in [0, 1, 500, 900] {
            for deadline in [ahead(near, near), ahead(near, 60_000), ahead(60_000, near)] {
                for _ in 0..100 {
                    assert!(!clock.is_well_before(deadline), "{near} ms");
                }
            }
        }
        #[cfg(target_os = "linux")]
        assert!(clock.is_well_before(ahead(60_000, 60_000)));
        let manual = Clock::Manual(ManualClock::new());
        assert!(!manual.is_well_before(manual.now().plus(Duration::from_secs(3600))), "exact");
    }

    /// A thread's remembered reading is not used once it is older than a tick, however rarely the
    /// thread looks.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_that_looks_rarely_or_all_the_time_sees_the_deadline_come() {
        let clock = Clock::System;
        for pause in [Duration::ZERO, Duration::from_millis(80)] {
            let deadline = clock.now().plus(ROOM + Duration::from_millis(60));
            let mut looks = 0;
            while clock.is_well_before(deadline) {
                std::thread::sleep(pause);
                looks += 1;
            }
            let near = clock.now().plus(ROOM);
            assert!(near.is_past(deadline), "the room is kept, and no more of it");
            assert!(pause.is_zero() || looks <= 1, "what was read before a sleep is not used");
        }
    }

    #[test]
    fn the_system_clock_goes_forward() {
        let before = Clock::System.now();
        std::thread::sleep(Duration::from_millis(20));
        assert!(Clock::System.now().is_past(before.plus(Duration::from_millis(15))));
        assert!(!Clock::System.now().is_past(before.plus(Duration::from_secs(3600))));
    }
}
