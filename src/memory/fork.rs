//! A number that changes in the child of a fork and costs one memory read.
//!
//! On Linux it is in a page that the kernel replaces with zeros in a forked child. Zero means that
//! no thread has looked since the fork. On systems without such pages, each look compares the
//! process id, which costs a system call.
#![forbid(unsafe_code)]

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;

use super::pages::ForkMark;

/// The last generation that was assigned. Some are skipped when threads race for the first look
/// after a fork.
static LAST: AtomicU64 = AtomicU64::new(0);

/// The generation of this process. It is zero after a fork.
static MARK: ForkMark = ForkMark::new();

/// For systems without the mark: the process id in the upper half, and the number of its changes.
static PROCESS: AtomicU64 = AtomicU64::new(0);

/// Returns the fork generation of this process, which is never zero. Anything made under another
/// generation belongs to an ancestor.
pub(crate) fn generation() -> u64 {
    match MARK.get() {
        Some(mark) => match mark.load(Ordering::Acquire) {
            0 => first_look(mark),
            generation => generation,
        },
        None => by_process_id(&PROCESS, std::process::id()),
    }
}

#[cold]
fn first_look(mark: &AtomicU64) -> u64 {
    let next = LAST.fetch_add(1, Ordering::AcqRel) + 1;
    match mark.compare_exchange(0, next, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => next,
        Err(generation) => generation,
    }
}

fn by_process_id(seen: &AtomicU64, process: u32) -> u64 {
    let known = seen.load(Ordering::Acquire);
    if known >> 32 == u64::from(process) {
        return known;
    }
    let next = u64::from(process) << 32 | ((known + 1) & u64::from(u32::MAX));
    match seen.compare_exchange(known, next, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => next,
        // Another thread of this process was quicker.
        Err(generation) => generation,
    }
}

/// A value that each process makes for itself. The child of a fork neither touches nor drops its
/// parent's value, whose locks a thread that the fork left behind may hold.
pub(crate) struct PerProcess<T>(ArcSwapOption<OfProcess<T>>);

/// The value of [`PerProcess`].
pub(crate) struct OfProcess<T> {
    generation: u64,
    value: T,
}

impl<T> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self(ArcSwapOption::const_empty())
    }

    pub(crate) fn get_or_init(&self, init: impl FnOnce() -> T) -> Arc<OfProcess<T>> {
        let generation = generation();
        let old = self.0.load_full();
        if let Some(ours) = old.as_ref().filter(|old| old.generation == generation) {
            return ours.clone();
        }
        let ours = Arc::new(OfProcess { generation, value: init() });
        let before = self.0.compare_and_swap(&old, Some(ours.clone()));
        if let Some(other) = before.as_ref().filter(|other| other.generation == generation) {
            return other.clone();
        }
        std::mem::forget(old);
        ours
    }
}

impl<T> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        if let Some(parents) = self.0.swap(None).filter(|value| value.generation != generation()) {
            std::mem::forget(parents);
        }
    }
}

impl<T> Deref for OfProcess<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_stands_still_without_a_fork() {
        let first = generation();
        assert!(first >= 1);
        for _ in 0..1000 {
            assert_eq!(generation(), first);
        }
        let other_thread = std::thread::spawn(generation).join().unwrap();
        assert_eq!(other_thread, first);
    }

    #[test]
    fn threads_that_race_for_the_first_look_agree() {
        for _ in 0..200 {
            let (mark, seen) = (AtomicU64::new(0), AtomicU64::new(0));
            let looks: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4)
                    .map(|_| scope.spawn(|| (first_look(&mark), by_process_id(&seen, 7))))
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(
                looks.iter().all(|look| *look == looks[0] && look.0 != 0 && look.1 != 0),
                "{looks:?}"
            );
        }
    }

    #[test]
    fn without_the_mark_another_process_id_is_another_generation() {
        let seen = AtomicU64::new(0);
        let generations = [7, 8, 7, 9].map(|process| {
            let generation = by_process_id(&seen, process);
            assert_eq!(by_process_id(&seen, process), generation);
            generation
        });
        let distinct: std::collections::HashSet<_> = generations.into_iter().collect();
        assert_eq!(
            distinct.len(),
            4,
            "an id that comes again is not the same process: {generations:?}"
        );
    }
}
