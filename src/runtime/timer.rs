//! A timer that depends on no caller's runtime: one thread per process, started by the first
//! sleeper.
//!
//! A tokio timer ends with its runtime, stalls while that runtime does not run, and counts against
//! the budget of the task that polls it. A shared deadline can depend on none of this.
#![forbid(unsafe_code)]

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use crate::memory::fork;
use crate::sync::foreign::caught;

/// The timer thread of this process and the sleepers that it wakes.
struct Timer {
    generation: u64,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    entries: BinaryHeap<Reverse<Entry>>,
    /// When the thread looks next. `None` while it is busy and will look again, or while it waits
    /// for the first entry.
    looks_at: Option<Instant>,
    /// The thread ended, which only a bug in this file can cause.
    gone: bool,
}

struct Entry {
    at: Instant,
    sleeper: Weak<Sleeper>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.cmp(&other.at)
    }
}

/// One sleeper.
struct Sleeper {
    generation: u64,
    bed: Mutex<Bed>,
}

#[derive(Default)]
struct Bed {
    woken: bool,
    waker: Option<Waker>,
}

impl Sleeper {
    fn lock(&self) -> MutexGuard<'_, Bed> {
        self.bed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let waker = {
            let mut bed = self.lock();
            bed.woken = true;
            bed.waker.take()
        };
        if let Some(waker) = waker {
            // The waker belongs to a foreign executor, and all timers depend on this thread.
            caught(|| waker.wake());
        }
    }
}

/// Held in a pointer that is swapped and not in a lock, which a thread that a fork left behind
/// could hold.
static TIMER: ArcSwapOption<Timer> = ArcSwapOption::const_empty();

impl Timer {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the timer of this process, with its thread. `None` if no thread can be started now.
    fn of_this_process() -> Option<Arc<Self>> {
        let generation = fork::generation();
        match TIMER.load_full() {
            Some(timer) if timer.generation == generation && !timer.lock().gone => Some(timer),
            old => Self::start(generation, old),
        }
    }

    #[cold]
    fn start(generation: u64, old: Option<Arc<Self>>) -> Option<Arc<Self>> {
        let timer = Arc::new(Self { generation, queue: Mutex::default(), changed: Condvar::new() });
        let its = timer.clone();
        // Started before it is published, so that no sleeper relies on a thread that could not be
        // started.
        std::thread::Builder::new()
            .name("waxseal-timer".to_owned())
            .spawn(move || its.run())
            .ok()?;
        let before = TIMER.compare_and_swap(&old, Some(timer.clone()));
        let ours = match (before.as_ref(), &old) {
            (None, None) => true,
            (Some(before), Some(old)) => Arc::ptr_eq(before, old),
            _ => false,
        };
        if let Some(old) = old
            && old.generation != generation
        {
            // Its lock may be held forever. It is never dropped, so that it is never touched.
            std::mem::forget(old);
        }
        if ours {
            return Some(timer);
        }
        // Another thread was quicker.
        timer.lock().gone = true;
        timer.changed.notify_one();
        before.as_ref().filter(|other| other.generation == generation).cloned()
    }

    fn add(&self, at: Instant, sleeper: &Arc<Sleeper>) {
        let mut queue = self.lock();
        // From time to time, removes sleepers that left early, so that the heap does not grow.
        if queue.entries.len() >= 1024 && queue.entries.len().is_power_of_two() {
            queue.entries.retain(|Reverse(entry)| entry.sleeper.strong_count() > 0);
        }
        queue.entries.push(Reverse(Entry { at, sleeper: Arc::downgrade(sleeper) }));
        let too_late = queue.looks_at.is_none_or(|looks_at| at < looks_at);
        drop(queue);
        if too_late {
            self.changed.notify_one();
        }
    }

    fn run(&self) {
        let _told = Gone(self);
        let mut queue = self.lock();
        while !queue.gone {
            let now = Instant::now();
            let mut due = Vec::new();
            while queue.entries.peek().is_some_and(|Reverse(entry)| entry.at <= now) {
                due.extend(queue.entries.pop());
            }
            if !due.is_empty() {
                queue.looks_at = None;
                drop(queue);
                due.iter()
                    .filter_map(|Reverse(entry)| entry.sleeper.upgrade())
                    .for_each(|sleeper| sleeper.wake());
                queue = self.lock();
                continue;
            }
            queue.looks_at = queue.entries.peek().map(|Reverse(entry)| entry.at);
            queue = match queue.looks_at {
                Some(at) => {
                    let waited =
                        self.changed.wait_timeout(queue, at.saturating_duration_since(now));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// Wakes all sleepers when the thread ends. Each then looks for another thread.
struct Gone<'a>(&'a Timer);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let entries = {
            let mut queue = self.0.lock();
            queue.gone = true;
            std::mem::take(&mut queue.entries)
        };
        entries
            .iter()
            .filter_map(|Reverse(entry)| entry.sleeper.upgrade())
            .for_each(|sleeper| sleeper.wake());
    }
}

/// No timer thread could be started.
#[derive(Debug)]
pub(super) struct NoThread;

/// Completes at its time. It costs nothing until it is polled.
pub(super) struct Sleep {
    at: Option<Instant>,
    sleeper: Option<Arc<Sleeper>>,
}

pub(super) fn sleep(duration: Duration) -> Sleep {
    // A time beyond the clock's range never comes.
    Sleep { at: Instant::now().checked_add(duration), sleeper: None }
}

impl Sleep {
    #[cfg(feature = "tokio")]
    pub(super) fn left(&self) -> Duration {
        self.at.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }
}

impl Future for Sleep {
    type Output = Result<(), NoThread>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(at) = self.at else { return Poll::Pending };
        if at <= Instant::now() {
            return Poll::Ready(Ok(()));
        }
        if let Some(sleeper) = &self.sleeper
            && sleeper.generation == fork::generation()
        {
            let waker = cx.waker().clone();
            let mut bed = sleeper.lock();
            if !bed.woken {
                let before = bed.waker.replace(waker);
                drop((bed, before));
                return Poll::Pending;
            }
        }
        // The first poll, a poll in the child of a fork, or a wake-up because the thread ended.
        let Some(timer) = Timer::of_this_process() else { return Poll::Ready(Err(NoThread)) };
        let bed = Bed { woken: false, waker: Some(cx.waker().clone()) };
        let sleeper = Arc::new(Sleeper { generation: timer.generation, bed: Mutex::new(bed) });
        timer.add(at, &sleeper);
        if let Some(before) = self.sleeper.replace(sleeper)
            && before.generation != timer.generation
        {
            // A thread that the fork left behind may hold its lock forever.
            std::mem::forget(before);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn sleepers_wake_in_the_order_of_their_time_and_none_too_soon() {
        let began = Instant::now();
        let (done, woken) = std::sync::mpsc::channel();
        for wait in [150, 30, 90, 60, 120] {
            let done = done.clone();
            std::thread::spawn(move || {
                pollster::block_on(sleep(ms(wait))).unwrap();
                done.send((wait, began.elapsed())).unwrap();
            });
            std::thread::sleep(ms(2));
        }
        drop(done);
        let woken: Vec<_> = woken.iter().collect();
        assert!(woken.iter().all(|(wait, after)| *after >= ms(*wait)), "{woken:?}");
        assert_eq!(woken.len(), 5);
    }

    #[test]
    fn a_waker_that_panics_stops_nobody_s_time() {
        struct Bad;
        impl std::task::Wake for Bad {
            fn wake(self: Arc<Self>) {
                std::panic::resume_unwind(Box::new("a bad waker"));
            }
        }
        let mut bad = sleep(ms(10));
        let waker = Waker::from(Arc::new(Bad));
        assert!(Pin::new(&mut bad).poll(&mut Context::from_waker(&waker)).is_pending());
        pollster::block_on(sleep(ms(50))).unwrap();
        assert!(matches!(
            Pin::new(&mut bad).poll(&mut Context::from_waker(&waker)),
            Poll::Ready(Ok(()))
        ));
    }

    #[test]
    fn a_sleeper_whose_thread_ended_finds_another() {
        let mut sleeper = sleep(ms(80));
        assert!(Pin::new(&mut sleeper).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let timer = TIMER.load_full().unwrap();
        timer.lock().gone = true;
        timer.changed.notify_one();
        pollster::block_on(sleeper).unwrap();
        assert!(!Arc::ptr_eq(&timer, &TIMER.load_full().unwrap()));
    }

    #[test]
    fn those_who_left_are_forgotten() {
        for _ in 0..4000 {
            let mut sleeper = sleep(Duration::from_secs(3600));
            assert!(
                Pin::new(&mut sleeper).poll(&mut Context::from_waker(Waker::noop())).is_pending()
            );
        }
        let timer = Timer::of_this_process().unwrap();
        assert!(timer.lock().entries.len() < 3000);
        pollster::block_on(sleep(Duration::ZERO)).unwrap();
        assert!(sleep(Duration::MAX).left() > Duration::from_secs(1 << 40));
    }
}
