//! Groups of threads, so that not all threads use one cache line for counting or locking.
#![forbid(unsafe_code)]

use super::atomic::{AtomicUsize, Ordering};
use super::{process_static, thread, thread_local};

/// Returns the number of groups.
pub(crate) fn shards() -> usize {
    // Not in a `Once`: if a thread counts while another forks, the child would wait for it forever.
    process_static! {
        static SHARDS: AtomicUsize = AtomicUsize::new(0);
    }
    match SHARDS.load(Ordering::Relaxed) {
        0 => {
            let count =
                thread::available_parallelism().map_or(1, usize::from).next_power_of_two().min(16);
            let first = SHARDS.compare_exchange(0, count, Ordering::Relaxed, Ordering::Relaxed);
            first.map_or_else(|first| first, |_| count)
        }
        count => count,
    }
}

/// Returns the group of this thread.
#[inline]
pub(crate) fn shard() -> usize {
    process_static! {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
    }
    thread_local! {
        static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) & (shards() - 1);
    }
    MINE.with(|mine| *mine)
}
