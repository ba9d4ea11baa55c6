//! The queue between the threads where events happen and the thread that writes.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::draft::Draft;
use crate::memory::fork;

/// What happens to a record while the queue is full because the disk is slow or full.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Backpressure {
    /// It is dropped and counted. A record later says how many, and when. The default.
    #[default]
    Drop,
    /// The thread where it happened waits up to this long for room. Then the record is dropped and
    /// counted. A thread of an async runtime is blocked too. Wiping does not wait.
    Block(Duration),
}

/// The dropped records that no record has reported yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Dropped {
    pub(super) count: u64,
    /// Nanoseconds of the wall clock.
    pub(super) first: i64,
    pub(super) last: i64,
}

/// The queue. Threads wait for its lock, and none does anything else while holding it.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    capacity: usize,
    pressure: Backpressure,
    /// The process that writes. A forked child has no writing thread.
    generation: u64,
}

#[derive(Debug, Default)]
struct State {
    drafts: VecDeque<Draft>,
    /// The number of records taken but not written yet. They count as waiting too.
    taken: usize,
    dropped: Option<Dropped>,
    counts: Counts,
    writer: Option<ThreadId>,
    /// The number of queued records, from the start, that flushes wait for, and the number done.
    flush_to: u64,
    done: u64,
    /// Nothing is written after this moment.
    ends: Option<Instant>,
    /// Nothing more is accepted.
    is_sealed: bool,
    ended: bool,
    failure: Option<String>,
}

/// What [`AuditStatistics`](super::AuditStatistics) shows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) queued: u64,
    pub(super) dropped: u64,
    pub(super) written: u64,
    pub(super) write_failures: u64,
    pub(super) sink_failures: u64,
}

/// What the writing thread has to do next.
pub(super) struct Work {
    pub(super) drafts: VecDeque<Draft>,
    pub(super) dropped: Option<Dropped>,
    /// A flush waits for all that was queued before.
    pub(super) is_flushed: bool,
    pub(super) is_last: bool,
}

impl Queue {
    pub(super) fn new(capacity: usize, pressure: Backpressure) -> Self {
        let state = Mutex::new(State::default());
        let generation = fork::generation();
        Self { state, changed: Condvar::new(), capacity, pressure, generation }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>, limit: Duration) -> MutexGuard<'s, State> {
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Whether this is the process that writes.
    pub(super) fn is_of_this_process(&self) -> bool {
        self.generation == fork::generation()
    }

    /// Queues a record, as [`Backpressure`] prescribes.
    pub(super) fn push(&self, draft: Draft) {
        // A lock that the parent held at the fork stays locked forever.
        if !self.is_of_this_process() {
            return;
        }
        let mut state = self.lock();
        if let Backpressure::Block(limit) = self.pressure {
            let began = Instant::now();
            // A sink that causes events would wait for itself.
            let waits = state.writer != Some(thread::current().id());
            while waits && state.waiting() >= self.capacity && state.ends.is_none() {
                let Some(left) = limit.checked_sub(began.elapsed()).filter(|left| !left.is_zero())
                else {
                    break;
                };
                state = self.wait(state, left);
            }
        }
        if state.is_sealed || state.waiting() >= self.capacity {
            state.drop_one(draft.wall_nanos);
            return;
        }
        state.drafts.push_back(draft);
        state.counts.queued = state.counts.queued.saturating_add(1);
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until everything queued so far is written, and on disk if the policy requires it.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        if !self.is_of_this_process() {
            return false;
        }
        let began = Instant::now();
        let mut state = self.lock();
        let all = state.counts.queued;
        state.flush_to = state.flush_to.max(all);
        self.changed.notify_all();
        while state.done < all && !state.ended {
            let Some(left) = limit.checked_sub(began.elapsed()).filter(|left| !left.is_zero())
            else {
                break;
            };
            state = self.wait(state, left);
        }
        state.done >= all
    }

    /// Ends the trail. Waits until everything is written, but no longer than `limit`.
    pub(super) fn end(&self, limit: Duration) -> bool {
        if !self.is_of_this_process() {
            return false;
        }
        let began = Instant::now();
        let mut state = self.lock();
        state.ends.get_or_insert(began.checked_add(limit).unwrap_or(began));
        self.changed.notify_all();
        // The thread may be in a write when the time is up.
        let grace = limit.saturating_add(Duration::from_millis(100));
        while !state.ended && state.writer != Some(thread::current().id()) {
            let Some(left) = grace.checked_sub(began.elapsed()).filter(|left| !left.is_zero())
            else {
                break;
            };
            state = self.wait(state, left);
        }
        state.ended && state.done >= state.counts.queued
    }

    pub(super) fn counts(&self) -> (Counts, usize, Option<String>) {
        if !self.is_of_this_process() {
            return (Counts::default(), 0, None);
        }
        let state = self.lock();
        (state.counts, state.waiting(), state.failure.clone())
    }

    /// Registers the calling thread as the writing thread.
    pub(super) fn begin(&self) {
        self.lock().writer = Some(thread::current().id());
    }

    /// Takes everything that is queued, after waiting for it up to `limit`. For the writing thread.
    pub(super) fn take(&self, limit: Duration) -> Work {
        let began = Instant::now();
        let mut state = self.lock();
        while state.has_nothing_to_do() {
            let Some(left) = limit.checked_sub(began.elapsed()).filter(|left| !left.is_zero())
            else {
                break;
            };
            state = self.wait(state, left);
        }
        let drafts = std::mem::take(&mut state.drafts);
        state.taken = drafts.len();
        let work = Work {
            drafts,
            dropped: state.dropped.take(),
            is_flushed: state.flush_to > state.done,
            is_last: state.ends.is_some(),
        };
        drop(state);
        self.changed.notify_all();
        work
    }

    /// Stops accepting records if everything is written or the time is up. Otherwise the newly
    /// queued records have to be taken first. For the writing thread.
    pub(super) fn seal(&self) -> bool {
        let mut state = self.lock();
        let is_written = state.drafts.is_empty() && state.dropped.is_none();
        state.is_sealed = is_written || state.ends.is_none_or(|ends| Instant::now() >= ends);
        state.is_sealed
    }

    /// Waits before another try, unless the trail ends. Returns `false` if there is no other try.
    pub(super) fn pause(&self, pause: Duration, failure: &str) -> bool {
        let mut state = self.lock();
        state.counts.write_failures = state.counts.write_failures.saturating_add(1);
        state.failure = Some(failure.to_owned());
        let began = Instant::now();
        loop {
            let now = Instant::now();
            if state.ends.is_some_and(|ends| now >= ends) {
                return false;
            }
            let left = pause.saturating_sub(began.elapsed());
            let left =
                state.ends.map_or(left, |ends| left.min(ends.saturating_duration_since(now)));
            if left.is_zero() {
                return true;
            }
            state = self.wait(state, left);
        }
    }

    /// Counts a queued record that is now written.
    pub(super) fn count_written(&self, records: u64, failed_sinks: u64) {
        let mut state = self.lock();
        let counts = &mut state.counts;
        counts.written = counts.written.saturating_add(records);
        counts.sink_failures = counts.sink_failures.saturating_add(failed_sinks);
        state.failure = None;
    }

    /// Records that one taken record is written.
    pub(super) fn written(&self) {
        let mut state = self.lock();
        state.taken = state.taken.saturating_sub(1);
        drop(state);
        if matches!(self.pressure, Backpressure::Block(_)) {
            self.changed.notify_all();
        }
    }

    /// Records that this many queued records are done.
    pub(super) fn done(&self, drafts: u64) {
        let mut state = self.lock();
        state.done = state.done.saturating_add(drafts);
        drop(state);
        self.changed.notify_all();
    }

    /// Ends writing. Whatever is still queued is lost, and so are `lost` more.
    pub(super) fn ended(&self, lost: u64) {
        let mut state = self.lock();
        let waiting = u64::try_from(state.drafts.len()).unwrap_or(u64::MAX);
        state.drafts.clear();
        state.taken = 0;
        state.is_sealed = true;
        state.counts.dropped = state.counts.dropped.saturating_add(lost.saturating_add(waiting));
        state.ended = true;
        drop(state);
        self.changed.notify_all();
    }
}

impl State {
    fn waiting(&self) -> usize {
        self.drafts.len().saturating_add(self.taken)
    }

    fn has_nothing_to_do(&self) -> bool {
        self.drafts.is_empty()
            && self.dropped.is_none()
            && self.flush_to <= self.done
            && self.ends.is_none()
    }

    fn drop_one(&mut self, at: i64) {
        self.counts.dropped = self.counts.dropped.saturating_add(1);
        let dropped = self.dropped.get_or_insert(Dropped { count: 0, first: at, last: at });
        dropped.count = dropped.count.saturating_add(1);
        dropped.last = at;
    }
}
